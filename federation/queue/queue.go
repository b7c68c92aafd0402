// Package queue is the durable outbox: it sends events and EDUs to other
// servers, in order, one transaction at a time to each.
//
// A reader follows the event stream and stores which event goes to which
// server (reader.go); EDUs are stored by whoever makes them, in its own
// transaction. Destinations for which there is something to send take turns (lane.go); a goroutine per
// transaction under way sends it (destination.go): idle, waiting and failing servers cost none. A transaction
// is stored before it is sent and keeps its ID until it is answered, over restarts too.
package queue

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"hanok/federation/client"
	"hanok/federation/peers"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// Limits of one transaction. spec: server-server-api#transactions
const (
	MaxPDUs = 50
	MaxEDUs = 100
)

// Sender delivers a transaction; *client.Client does.
type Sender interface {
	SendTransaction(ctx context.Context, dest matrix.ServerName, txnID string, body []byte) (map[matrix.EventID]client.PDUResult, error)
}

// Rooms is what the outbox reads; *rooms.Engine has it.
type Rooms interface {
	EventsAfter(ctx context.Context, since, until storage.Position, limit int) ([]*rooms.Event, error)
	ServersAt(ctx context.Context, ev *rooms.Event) ([]matrix.ServerName, error)
	MissedBy(ctx context.Context, join *rooms.Event) ([]*rooms.Event, error)
	Misses(ctx context.Context, ev *rooms.Event, server matrix.ServerName) (bool, error)
	NewestFor(ctx context.Context, room storage.RoomNID, server matrix.ServerName, after storage.Position) (*rooms.Event, error)
	Federates(room matrix.RoomID) bool
	Event(ctx context.Context, id matrix.EventID) (*rooms.Event, error)
}

// Options are what a Queue works with.
type Options struct {
	ServerName matrix.ServerName
	DB         *storage.DB
	Sender     Sender
	Peers      *peers.Peers
	// Delivered is told of every transaction that was answered for; nil for none.
	Delivered func(d Delivery)
	// MaxSilent is how many servers that were not heard from yet, and are silent, are waited for beside those whose turn it is; 0 is 2,048.
	MaxSilent int
	Now       func() time.Time // nil is time.Now
	Log       zerolog.Logger
}

// Delivery is a transaction that is done with.
type Delivery struct {
	Class      peers.Class // of the destination, before it answered
	PDUs, EDUs int
	Oldest     time.Duration // from when its oldest event came into being here; 0 without events
	Dropped    bool          // the destination refused it once too often
}

// Queue is the outbox.
type Queue struct {
	opts  Options
	rooms Rooms
	// news tells the reader that there is something in fresh.
	news    chan struct{}
	freshMu sync.Mutex
	fresh   fresh
	// newcomers are servers that have come into rooms through this one lately; under freshMu.
	newcomers map[storage.RoomNID]map[matrix.ServerName]newcomer
	// passed is how far the reader is. What is queued at a later position waits until it is there: rows are removed by their positions when they are
	// sent, and the reader may still queue some before it.
	passed atomic.Int64

	mu      sync.Mutex
	ctx     context.Context // of Run; nil while the queue does not run
	senders sync.WaitGroup
	busy    map[matrix.ServerName]*destination
	// Servers that were heard from do not wait for those of which that is not known: each of them may cost half a minute.
	heard, unheard lane
	ahead          map[matrix.ServerName]storage.Position // destinations with something queued where the reader is not yet
}

// How many transactions are under way to servers that were heard from, and to others; the latter beside those to maxSilent that have not
// answered for silence, each of which has a connection open that is not made yet.
const (
	maxHeard   = 256
	maxUnheard = 512
	maxSilent  = 2048
	silence    = 3 * time.Second
)

// New makes an outbox. It accepts EDUs at once and sends once Run is called.
func New(o Options) *Queue {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MaxSilent == 0 {
		o.MaxSilent = maxSilent
	}
	return &Queue{
		opts: o, news: make(chan struct{}, 1), busy: map[matrix.ServerName]*destination{}, ahead: map[matrix.ServerName]storage.Position{}, newcomers: map[storage.RoomNID]map[matrix.ServerName]newcomer{},
		heard: lane{limit: maxHeard}, unheard: lane{limit: maxUnheard, patience: silence, mayLinger: o.MaxSilent},
	}
}

// Run sends until ctx ends.
func (q *Queue) Run(ctx context.Context, source Rooms) error {
	group, ctx := errgroup.WithContext(ctx)
	q.mu.Lock()
	q.rooms, q.ctx = source, ctx
	q.mu.Unlock()
	group.Go(func() error {
		cursor, err := storage.Cursor(ctx, q.opts.DB, cursorName)
		if err != nil {
			return err
		}
		q.passed.Store(int64(cursor))
		if err := q.loadNewcomers(ctx); err != nil {
			return err
		}
		// The reader takes destinations that nobody knows for idle, so those with something queued come first.
		if err := q.resume(ctx); err != nil {
			return err
		}
		return q.read(ctx)
	})
	group.Go(func() error { return q.followPeers(ctx) })
	group.Go(func() error { return q.opts.Peers.Run(ctx) })
	group.Go(func() error { return q.sweep(ctx) })
	err := group.Wait()
	q.mu.Lock()
	q.ctx = nil
	for _, d := range q.busy {
		d.stop()
	}
	q.mu.Unlock()
	q.senders.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// resume starts where the last run ended. What is queued for servers that the operator's lists refuse by now stays where it is.
func (q *Queue) resume(ctx context.Context) error {
	pending, err := storage.FindOutboxDestinations(ctx, q.opts.DB)
	if err == nil {
		q.wake(q.remote(pending)...)
	}
	return err
}

// followPeers wakes destinations that were heard from.
func (q *Queue) followPeers(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case server := <-q.opts.Peers.Recovered():
			q.mu.Lock()
			_, waiting := q.busy[server]
			q.mu.Unlock()
			if waiting {
				q.wake(server)
			}
		}
	}
}

const sweepEvery = 5 * time.Minute

// sweep removes EDUs that every destination has got, and newcomers that are none any more.
func (q *Queue) sweep(ctx context.Context) error {
	wake.Every(ctx, sweepEvery, func() {
		err := q.opts.DB.Write(ctx, func(tx *storage.Tx) error {
			if err := storage.DropOutboxNewcomers(ctx, tx, matrix.TimestampOf(q.opts.Now())); err != nil {
				return err
			}
			return storage.DeleteDeliveredEDUs(ctx, tx)
		})
		if err != nil && ctx.Err() == nil {
			q.opts.Log.Error().Err(err).Msg("federation: sweep the outbox")
		}
	})
	return ctx.Err()
}

// Destinations counts the servers by class for which something is queued now.
func (q *Queue) Destinations() map[peers.Class]int {
	out := map[peers.Class]int{peers.Well: 0, peers.Failing: 0, peers.Lost: 0}
	q.mu.Lock()
	defer q.mu.Unlock()
	for server := range q.busy {
		out[q.opts.Peers.ClassOf(server)]++
	}
	return out
}

// eduLifetime says after what time an EDU is not worth sending any more; 0: never.
func eduLifetime(eduType string) time.Duration {
	switch eduType {
	case "m.typing":
		return time.Minute
	case "m.presence":
		return 5 * time.Minute
	case "m.receipt":
		return time.Hour
	}
	return 0
}

// QueueEDU stores an EDU for each destination in tx and sends it after the commit.
func (q *Queue) QueueEDU(ctx context.Context, tx *storage.Tx, destinations []matrix.ServerName, eduType string, content []byte) error {
	to := q.remote(destinations)
	life := eduLifetime(eduType)
	if life > 0 {
		// Nothing that passes is kept for those who have been silent for long: in a big room, that is most servers.
		to = slices.DeleteFunc(to, q.longGone)
	}
	if len(to) == 0 {
		return nil
	}
	id, err := tx.NextPosition()
	if err != nil {
		return err
	}
	e := storage.OutboxEDU{ID: id, Type: eduType, Content: content}
	if life > 0 {
		e.ExpiresAt = matrix.TimestampOf(q.opts.Now().Add(life))
	}
	if err := storage.AddOutboxEDU(ctx, tx, to, e); err != nil {
		return err
	}
	wake := q.wake
	if canWait(eduType) {
		wake = q.wakeSoon
	}
	tx.OnVisible(func() { wake(to...) })
	return nil
}

// QueueAgain sends an event to a server that was not in the room at the event, or is thought to have missed it.
func (q *Queue) QueueAgain(ctx context.Context, dest matrix.ServerName, ev *rooms.Event) error {
	to := q.remote([]matrix.ServerName{dest})
	if len(to) == 0 {
		return nil
	}
	return q.opts.DB.Write(ctx, func(tx *storage.Tx) error {
		return q.queueBehind(ctx, tx, storage.OutboxPDU{Destination: dest, Room: ev.RoomNID, EventID: ev.ID()})
	})
}

// queueBehind queues events whose time has passed: behind those that may be under way to their destinations, at positions that it gives them.
func (q *Queue) queueBehind(ctx context.Context, tx *storage.Tx, pdus ...storage.OutboxPDU) error {
	for i := range pdus {
		var err error
		if pdus[i].Position, err = tx.NextPosition(); err != nil {
			return err
		}
	}
	tx.OnVisible(func() { // not before: until then the reader cannot go there
		for _, p := range pdus {
			q.wakeThere(p.Position, p.Destination)
		}
	})
	return storage.AddOutboxPDUs(ctx, tx, pdus)
}

// wakeThere is wake once the reader is at a position at least, which it is told to go to.
func (q *Queue) wakeThere(pos storage.Position, servers ...matrix.ServerName) {
	q.mu.Lock()
	for _, s := range servers {
		q.ahead[s] = max(q.ahead[s], pos)
	}
	q.mu.Unlock()
	q.freshMu.Lock()
	q.fresh.events, q.fresh.lost = nil, true
	q.freshMu.Unlock()
	wake.Up(q.news)
}

// canWait says which EDUs may wait for company: people read many messages one after the other,
// and who is online is no news of the second.
func canWait(eduType string) bool { return eduType == "m.receipt" || eduType == "m.presence" }

// SendVolatile sends an EDU that may be lost: to servers that do not answer, or over a restart.
func (q *Queue) SendVolatile(destinations []matrix.ServerName, eduType string, content []byte) {
	e := volatileEDU{eduType: eduType, content: content, stale: q.opts.Now().Add(max(eduLifetime(eduType), time.Minute))}
	for _, dest := range q.remote(destinations) {
		if _, wait := q.opts.Peers.RetryAt(dest); wait {
			continue
		}
		q.mu.Lock()
		q.destination(dest).addVolatile(e)
		q.mu.Unlock()
		if canWait(eduType) {
			q.wakeSoon(dest)
		} else {
			q.wake(dest)
		}
	}
}

// remote keeps the servers that we send to at all.
func (q *Queue) remote(destinations []matrix.ServerName) []matrix.ServerName {
	out := make([]matrix.ServerName, 0, len(destinations))
	for _, d := range destinations {
		if d != q.opts.ServerName && q.opts.Peers.Check(d) == nil {
			out = append(out, d)
		}
	}
	return out
}
