// Package delayed keeps the events that users have scheduled and sends them when their time has come,
// unless they are cancelled or restarted before: "last wills", by which a client that
// vanishes leaves its call, and messages for later.
//
// What is scheduled is a row, so nothing is lost over a restart. The row is finalised in the transaction
// that stores the event in its room: an event is sent once, whoever asks for it how often, and one that was
// cancelled is not sent. Start reading at Scheduler. spec: MSC4140
package delayed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// Options are what a Scheduler works with.
type Options struct {
	DB    *storage.DB
	Rooms *rooms.Engine
	// MaySend refuses events of users who may not send at present (a *matrix.Error): suspended, locked, deactivated.
	MaySend func(ctx context.Context, user matrix.UserID) error
	// MaxDelay is how far ahead an event may be scheduled, MaxScheduled how many a user may have scheduled at a time.
	MaxDelay     time.Duration
	MaxScheduled int
	Now          func() time.Time // nil: the system's clock
	Log          zerolog.Logger
}

// Scheduler schedules and sends.
type Scheduler struct {
	Options
	claims claims
	news   chan struct{} // holds a token when something was scheduled since Run looked
}

// New makes a scheduler. It sends once Run is called.
func New(o Options) *Scheduler {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Scheduler{Options: o, claims: claims{held: make(map[string]chan struct{})}, news: make(chan struct{}, 1)}
}

// Event is a delayed event.
type Event = storage.DelayedEvent

// What is kept of events that are done with, so that an action may be repeated and an outcome looked up.
const (
	keepFinalised    = 24 * time.Hour
	maxKeptFinalised = 200 // per user
)

func (s *Scheduler) now() matrix.Timestamp { return matrix.TimestampOf(s.Now()) }

// Request is an event to be scheduled.
type Request struct {
	Event rooms.SendRequest
	Delay time.Duration // of whole milliseconds
}

// Scheduled returns the ID that a repeated request got the first time, "" if it is not a repeated one.
func (s *Scheduler) Scheduled(ctx context.Context, q rooms.SendRequest) (id string, err error) {
	if q.TxnID == "" {
		return "", nil
	}
	return s.scheduled(ctx, s.DB, q)
}

func (s *Scheduler) scheduled(ctx context.Context, r storage.Querier, q rooms.SendRequest) (id string, err error) {
	id, err = storage.DelayedEventByTxn(ctx, r, q.Sender, q.Device, q.Room, q.Type, q.TxnID)
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	return id, err
}

// Schedule stores an event to be sent later, and returns its ID: whoever knows that may cancel, restart and send it.
// Repeating a request with the same device and transaction ID returns the first ID. Errors: M_INVALID_PARAM and
// M_FORBIDDEN for a delay out of range, M_LIMIT_EXCEEDED if the user has too many events scheduled, and what
// rooms.CheckSendable says.
func (s *Scheduler) Schedule(ctx context.Context, q Request) (string, error) {
	delay := q.Delay.Milliseconds()
	switch {
	case delay <= 0:
		return "", matrix.InvalidParam("The delay must be a positive number of milliseconds.")
	case q.Delay > s.MaxDelay:
		// The names under which clients look for the limit come from before the proposal was accepted.
		return "", matrix.Forbidden("Events can be scheduled %v ahead at most.", s.MaxDelay).
			With("org.matrix.msc4140.errcode", "M_MAX_DELAY_EXCEEDED").With("org.matrix.msc4140.max_delay", s.MaxDelay.Milliseconds())
	}
	if err := s.Rooms.CheckSendable(ctx, q.Event); err != nil {
		return "", err
	}
	id := rand.Text()
	err := s.DB.Write(ctx, func(tx *storage.Tx) error {
		ev := q.Event
		if ev.TxnID != "" {
			if first, err := s.scheduled(ctx, tx, ev); err != nil || first != "" {
				id = first
				return err
			}
		}
		now := s.now()
		if err := storage.ForgetDelayedEvents(ctx, tx, now.Add(-keepFinalised), ev.Sender, maxKeptFinalised); err != nil {
			return err
		}
		n, first, err := storage.CountDelayedEvents(ctx, tx, ev.Sender)
		if err != nil {
			return err
		}
		if n >= s.MaxScheduled {
			return matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "You have %d events scheduled, which is as many as there may be. Cancel some, or wait until they are sent.", n).
				With("retry_after_ms", max(int64(first-now), 1))
		}
		tx.OnVisible(s.wake)
		return storage.InsertDelayedEvent(ctx, tx, Event{
			ID: id, User: ev.Sender, Device: ev.Device, TxnID: ev.TxnID, Room: ev.Room, Type: ev.Type, StateKey: ev.StateKey,
			Content: ev.Content, Sticky: ev.Sticky, Delay: delay, Since: now, SendAt: now + matrix.Timestamp(delay),
		})
	})
	return id, err
}

func (s *Scheduler) wake() { wake.Up(s.news) }

var (
	errUnknown   = matrix.NotFound("There is no such delayed event. It may have been sent or cancelled long ago.")
	errSent      = matrix.Errorf(http.StatusConflict, "M_UNKNOWN", "The event was sent already.")
	errCancelled = matrix.Errorf(http.StatusConflict, "M_UNKNOWN", "The event was cancelled already.")
)

// Get returns a delayed event of a user, scheduled or done with: M_NOT_FOUND if there is none.
func (s *Scheduler) Get(ctx context.Context, user matrix.UserID, id string) (*Event, error) {
	ev, err := s.get(ctx, id)
	if err == nil && ev.User != user {
		err = errUnknown
	}
	return &ev, err
}

func (s *Scheduler) get(ctx context.Context, id string) (Event, error) {
	ev, err := storage.GetDelayedEvent(ctx, s.DB, id)
	if errors.Is(err, storage.ErrNotFound) {
		return ev, errUnknown
	}
	return ev, err
}

// List returns a page of a user's scheduled events in the order in which they are to be sent, and the token of the next page, ""
// if this was the last. from is "" for the first page.
func (s *Scheduler) List(ctx context.Context, user matrix.UserID, from string, limit int) (page []Event, next string, err error) {
	var after matrix.Timestamp
	var afterID string
	if from != "" {
		at, id, ok := strings.Cut(from, "_")
		n, err := strconv.ParseInt(at, 10, 64)
		if !ok || err != nil {
			return nil, "", matrix.InvalidParam("%q is no token of this list.", from)
		}
		after, afterID = matrix.Timestamp(n), id
	}
	page, err = storage.DelayedEventsOf(ctx, s.DB, user, after, afterID, limit+1)
	if len(page) > limit {
		page = page[:limit]
		last := page[limit-1]
		next = fmt.Sprintf("%d_%s", last.SendAt, last.ID)
	}
	return page, next, err
}

// Cancel makes sure that an event is not sent: 409 if it was.
func (s *Scheduler) Cancel(ctx context.Context, id string) error {
	return s.act(ctx, id, errSent, nil, func(ev Event) error {
		return s.finalise(ctx, ev, "", nil)
	})
}

// Restart lets the delay of an event begin anew: 409 if it was sent or cancelled.
func (s *Scheduler) Restart(ctx context.Context, id string) error {
	return s.act(ctx, id, errSent, errCancelled, func(ev Event) error {
		return s.DB.Write(ctx, func(tx *storage.Tx) error {
			scheduled, err := storage.RestartDelayedEvent(ctx, tx, ev.ID, s.now())
			if err == nil && !scheduled {
				err = errUnknown // the account was closed meanwhile
			}
			return err
		})
	})
}

// Send sends an event now: 409 if it was cancelled. An event that cannot be sent stays scheduled.
func (s *Scheduler) Send(ctx context.Context, id string) error {
	return s.act(ctx, id, nil, errCancelled, func(ev Event) error {
		return s.send(ctx, ev)
	})
}

// act does something with an event that is scheduled. sent and cancelled are the answers if it is done with.
func (s *Scheduler) act(ctx context.Context, id string, sent, cancelled error, do func(ev Event) error) error {
	release, err := s.claims.take(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	ev, err := s.get(ctx, id)
	switch {
	case err != nil:
		return err
	case ev.EventID != "":
		return sent
	case ev.FinalisedAt != 0:
		return cancelled
	}
	return do(ev)
}

// finalise notes that an event was not sent, or that it was without a transaction of its own.
func (s *Scheduler) finalise(ctx context.Context, ev Event, sent matrix.EventID, failure []byte) error {
	return s.DB.Write(ctx, func(tx *storage.Tx) error {
		_, err := storage.FinaliseDelayedEvent(ctx, tx, ev.ID, s.now(), sent, failure)
		return err
	})
}

// send sends a scheduled event; the caller has claimed it. A *matrix.Error says why it cannot be sent.
func (s *Scheduler) send(ctx context.Context, ev Event) error {
	if err := s.MaySend(ctx, ev.User); err != nil {
		return err
	}
	stored := false
	id, err := s.Rooms.Send(ctx, rooms.SendRequest{
		Room: ev.Room, Sender: ev.User, Type: ev.Type, StateKey: ev.StateKey, Content: ev.Content, Sticky: ev.Sticky,
		TxnID: ev.ID, Delayed: true,
		Commit: func(ctx context.Context, tx *storage.Tx, id matrix.EventID) error {
			scheduled, err := storage.FinaliseDelayedEvent(ctx, tx, ev.ID, s.now(), id, nil)
			if err == nil && !scheduled {
				err = errUnknown // another process was faster, or the account was closed
			}
			stored = true
			return err
		},
	})
	if err != nil || stored {
		return err
	}
	return s.finalise(ctx, ev, id, nil)
}
