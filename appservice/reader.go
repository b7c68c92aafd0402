package appservice

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

const (
	// maxEvents is how many events, and how many pieces of ephemeral data, go into one transaction.
	maxEvents = 100
	// lookEvery bounds how long an event waits of which this process was not told.
	lookEvery = 5 * time.Second
	// retryAfter is how long a reader waits when the database failed.
	retryAfter = 5 * time.Second
	// cursorSlack is how many events that concern nobody may be read again after a restart.
	cursorSlack = 2000
)

// reader follows the event stream for one service.
type reader struct {
	*Service
	s       *Services
	from    Sources
	cursor  storage.Position
	unsaved int   // events passed since the cursor was stored
	lastID  int64 // of the last transaction
}

func (s *Services) newReader(x *Service, from Sources) *reader {
	return &reader{Service: x, s: s, from: from}
}

// cursorName is the reader's name among the durable readers of the stream.
func (x *Service) cursorName() string { return "appservice:" + x.ID }

// run tells the service what concerns it, until ctx ends.
func (r *reader) run(ctx context.Context) error {
	under, err := r.start(ctx)
	for err != nil && r.pause(ctx, err) {
		under, err = r.start(ctx)
	}
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for ctx.Err() == nil {
		if under == nil {
			under, err = r.next(ctx, false)
		} else if err = r.deliver(ctx, under); err == nil {
			under, err = r.next(ctx, true)
		}
		switch {
		case err != nil:
			r.pause(ctx, err)
		case under == nil:
			select {
			case <-r.news:
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	}
	return nil
}

// pause waits after the database has failed; false if ctx has ended.
func (r *reader) pause(ctx context.Context, cause error) bool {
	if ctx.Err() == nil {
		r.s.Log.Error().Err(cause).Str("service", r.ID).Msg("follow the event stream for an application service")
	}
	select {
	case <-time.After(retryAfter):
	case <-ctx.Done():
	}
	return ctx.Err() == nil
}

// start finds where the last run ended. A service that is new is told of what comes from now on.
func (r *reader) start(ctx context.Context) (*storage.AppserviceTransaction, error) {
	cursor, err := storage.Cursor(ctx, r.s.DB, r.cursorName())
	if err != nil {
		return nil, err
	}
	if cursor == 0 {
		err := r.s.DB.Write(ctx, func(tx *storage.Tx) (err error) {
			if cursor, err = tx.NextPosition(); err != nil {
				return err
			}
			return storage.SetCursor(ctx, tx, r.cursorName(), cursor)
		})
		if err != nil {
			return nil, err
		}
	}
	r.setCursor(cursor)
	under, err := storage.GetAppserviceTransaction(ctx, r.s.DB, r.ID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("transaction under way: %w", err)
	}
	r.lastID = under.ID
	return under, nil
}

func (r *reader) setCursor(pos storage.Position) {
	r.cursor = pos
	r.progress.at.Store(int64(pos))
}

// next stores the next transaction, in the place of one that was answered for if there is one, and returns it; nil if there is nothing to tell.
func (r *reader) next(ctx context.Context, answered bool) (*storage.AppserviceTransaction, error) {
	for {
		r.interest.refresh()
		h, err := r.gather(ctx)
		if err != nil {
			return nil, r.end(ctx, answered, err)
		}
		r.unsaved += h.passed
		if h.empty() && !answered && r.unsaved < cursorSlack {
			r.setCursor(h.until)
			return nil, nil
		}
		t, err := r.store(ctx, h)
		if t != nil || err != nil || !h.more {
			return t, err
		}
		answered = false
	}
}

// store makes a transaction of what was found and stores it along with the cursor; nil if there was nothing.
func (r *reader) store(ctx context.Context, h *harvest) (*storage.AppserviceTransaction, error) {
	now := r.now().UnixMilli()
	t := &storage.AppserviceTransaction{Service: r.ID, ID: max(now, r.lastID+1), CreatedAt: matrix.Timestamp(now), Events: h.events, Ephemeral: h.ephemeralJSON()}
	err := r.s.DB.Write(ctx, func(tx *storage.Tx) error {
		if err := storage.SetCursor(ctx, tx, r.cursorName(), h.until); err != nil {
			return err
		}
		if h.empty() {
			return storage.DeleteAppserviceTransaction(ctx, tx, r.ID)
		}
		return storage.PutAppserviceTransaction(ctx, tx, t)
	})
	if err != nil {
		return nil, err
	}
	r.setCursor(h.until)
	r.unsaved = 0
	if h.empty() {
		return nil, nil
	}
	r.lastID = t.ID
	return t, nil
}

// end ends the transaction that was answered for, when what follows could not be read.
func (r *reader) end(ctx context.Context, answered bool, cause error) error {
	if !answered {
		return cause
	}
	err := r.s.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteAppserviceTransaction(ctx, tx, r.ID) })
	return errors.Join(cause, err)
}

// harvest is what a stretch of the stream has for the service.
type harvest struct {
	events    []matrix.EventID
	ephemeral [][]byte // JSON objects
	until     storage.Position
	passed    int  // events, those included that do not concern the service
	more      bool // there is more behind until
}

func (h *harvest) empty() bool { return len(h.events) == 0 && len(h.ephemeral) == 0 }

func (h *harvest) ephemeralJSON() []byte {
	if len(h.ephemeral) == 0 {
		return nil
	}
	return jsonArray(h.ephemeral)
}

// gather reads on from the cursor until a transaction is full, or there is nothing more.
func (r *reader) gather(ctx context.Context) (*harvest, error) {
	h := &harvest{until: r.cursor}
	for current := r.s.DB.Current(); h.until < current; {
		if err := r.gatherSome(ctx, h, current); err != nil {
			return nil, err
		}
		if !h.more || len(h.events) >= maxEvents || len(h.ephemeral) >= maxEvents || h.passed >= cursorSlack {
			break
		}
	}
	return h, nil
}

// placed is an event at its place in the stream, which those apart do not have themselves.
type placed struct {
	*rooms.Event
	pos   storage.Position
	apart bool
}

// gatherSome reads the next events. What does not fit any more stays for later: h.until is as far as everything was taken.
func (r *reader) gatherSome(ctx context.Context, h *harvest, current storage.Position) error {
	until := current
	limit := maxEvents - len(h.events)
	events, err := r.from.Rooms.EventsAfter(ctx, h.until, until, limit)
	if err != nil {
		return err
	}
	if len(events) == limit {
		until = events[limit-1].Pos
	}
	apart, err := r.from.Rooms.ApartAfter(ctx, h.until, until, limit)
	if err != nil {
		return err
	}
	if len(apart) == limit {
		until = apart[limit-1].Position
	}
	told, until, err := r.ephemeral(ctx, h.until, until)
	if err != nil {
		return fmt.Errorf("ephemeral data: %w", err)
	}
	list := make([]placed, 0, len(events)+len(apart))
	for _, ev := range events {
		list = append(list, placed{Event: ev, pos: ev.Pos})
	}
	for _, ev := range apart {
		list = append(list, placed{Event: ev.Event, pos: ev.Position, apart: true})
	}
	slices.SortFunc(list, func(a, b placed) int { return cmp.Compare(a.pos, b.pos) })
	for _, ev := range list {
		if ev.pos > until {
			break
		}
		if len(h.events) == maxEvents {
			until = ev.pos - 1
			break
		}
		concerns, err := r.concerns(ctx, ev)
		if _, odd := matrix.AsError(err); odd {
			// Something about this event or its room: no reason to keep all others from the service.
			r.s.Log.Error().Err(err).Str("service", r.ID).Str("event", string(ev.ID())).Msg("it is not known whether an event concerns an application service")
		} else if err != nil {
			return fmt.Errorf("event %s: %w", ev.ID(), err)
		}
		h.passed++
		if concerns {
			h.events = append(h.events, ev.ID())
		}
	}
	for _, e := range told {
		if e.pos <= until {
			h.ephemeral = append(h.ephemeral, e.json)
		}
	}
	h.until, h.more = until, until < current
	return nil
}

func (r *reader) concerns(ctx context.Context, ev placed) (bool, error) {
	if ev.apart {
		user, _ := target(ev.Event)
		return r.OwnsUser(user) || within(r.Rooms, string(ev.RoomID())), nil
	}
	return r.interest.concerns(ctx, r.from.Rooms, ev.Event)
}
