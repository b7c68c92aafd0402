package queue

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// cursorName is the reader's name among the durable readers of the stream.
const cursorName = "federation-outbox"

const (
	readBatch = 200
	// readEvery bounds how long an event waits of which this process was not told.
	readEvery = 5 * time.Second
	// cursorSlack is how many events without effect may be read again after a restart.
	cursorSlack = 2000
	// maxFresh bounds how many events wait in memory; beyond it they are read from the database.
	maxFresh = 1000
)

// fresh is what the reader was told of since it looked last. Events of other servers, most of
// all in a busy room, are not kept: they need no look at the database either.
type fresh struct {
	events []*rooms.Event
	upTo   storage.Position // everything up to here was told
	passed int              // how many events that was
	lost   bool             // there were too many: the database has them
}

// How long, and how often, a server is sent what others say who have not heard yet that it came into a room through us; in how many rooms such
// servers are remembered, and how many in each.
const (
	newcomerFor    = 10 * time.Minute
	newcomerEvents = 50
	maxNewRooms    = 1000
	maxNewcomers   = 50
)

// newcomer is a server that came into a room through this one: from which position on and until when what it misses is sent to it, and how many
// events still are.
type newcomer struct {
	since storage.Position
	until time.Time
	left  int
}

// noteNewcomer remembers the server of who has just come into a room through this one; q.freshMu is held.
func (q *Queue) noteNewcomer(e *rooms.Event) {
	user, ok := target(e)
	if !ok || !e.Relay || !joined(e) || user.Server() == q.opts.ServerName {
		return
	}
	now := q.opts.Now()
	over := func(_ matrix.ServerName, n newcomer) bool { return now.After(n.until) }
	if len(q.newcomers) >= maxNewRooms {
		for room, servers := range q.newcomers {
			if maps.DeleteFunc(servers, over); len(servers) == 0 {
				delete(q.newcomers, room)
			}
		}
	}
	in := q.newcomers[e.RoomNID]
	switch {
	case in == nil && len(q.newcomers) < maxNewRooms:
		in = map[matrix.ServerName]newcomer{}
		q.newcomers[e.RoomNID] = in
	case in == nil:
		return
	default:
		maps.DeleteFunc(in, over)
	}
	if _, known := in[user.Server()]; !known && len(in) < maxNewcomers {
		in[user.Server()] = newcomer{e.Pos, now.Add(newcomerFor), newcomerEvents}
	}
}

// loadNewcomers goes on with those of the last run.
func (q *Queue) loadNewcomers(ctx context.Context) error {
	rows, err := storage.OutboxNewcomers(ctx, q.opts.DB, matrix.TimestampOf(q.opts.Now()))
	if err != nil {
		return err
	}
	q.freshMu.Lock()
	defer q.freshMu.Unlock()
	for _, row := range rows {
		in := q.newcomers[row.Room]
		if in == nil {
			in = map[matrix.ServerName]newcomer{}
			q.newcomers[row.Room] = in
		}
		in[row.Server] = newcomer{row.Since, row.Until.Time(), row.Events}
	}
	return nil
}

// newcomerRows are what is to be stored of newcomers.
func (q *Queue) newcomerRows(changed map[storage.RoomNID]map[matrix.ServerName]bool) []storage.OutboxNewcomer {
	q.freshMu.Lock()
	defer q.freshMu.Unlock()
	var rows []storage.OutboxNewcomer
	for room, servers := range changed {
		for s := range servers {
			if n, ok := q.newcomers[room][s]; ok {
				rows = append(rows, storage.OutboxNewcomer{Room: room, Server: s, Since: n.since, Until: matrix.TimestampOf(n.until), Events: n.left})
			}
		}
	}
	return rows
}

// newcomersAt lists the servers that had come into a room through this one not long before an event; q.freshMu is held.
func (q *Queue) newcomersAt(e *rooms.Event) []matrix.ServerName {
	in := q.newcomers[e.RoomNID]
	if len(in) == 0 {
		return nil
	}
	now := q.opts.Now()
	maps.DeleteFunc(in, func(_ matrix.ServerName, n newcomer) bool { return n.left == 0 || now.After(n.until) })
	if len(in) == 0 {
		delete(q.newcomers, e.RoomNID)
	}
	var out []matrix.ServerName
	for s, n := range in {
		if e.Pos > n.since {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

// missing lists the newcomers to which an event of another server has to be sent on, since who made it had not heard of them.
func (q *Queue) missing(ctx context.Context, e *rooms.Event) ([]matrix.ServerName, error) {
	if e.Relay {
		return nil, nil
	}
	q.freshMu.Lock()
	servers := q.newcomersAt(e)
	q.freshMu.Unlock()
	var out []matrix.ServerName
	for _, s := range q.remote(servers) {
		misses, err := q.rooms.Misses(ctx, e, s)
		if err != nil {
			return nil, err
		}
		if misses {
			out = append(out, s)
		}
	}
	q.freshMu.Lock()
	defer q.freshMu.Unlock()
	for _, s := range out {
		if n, ok := q.newcomers[e.RoomNID][s]; ok && n.left > 0 {
			n.left--
			q.newcomers[e.RoomNID][s] = n
		}
	}
	return out, nil
}

// RoomUpdated tells the outbox of new events. It does not block.
func (q *Queue) RoomUpdated(u *rooms.Update) {
	q.freshMu.Lock()
	f := &q.fresh
	f.upTo = max(f.upTo, u.Position)
	f.passed += len(u.Events)
	for _, e := range u.Events {
		q.noteNewcomer(e)
		if !e.Relay && !joined(e) && len(q.newcomersAt(e)) == 0 || f.lost {
			continue
		}
		if len(f.events) == maxFresh {
			f.events, f.lost = nil, true
			continue
		}
		f.events = append(f.events, e)
	}
	look := len(f.events) > 0 || f.lost || f.passed >= cursorSlack
	q.freshMu.Unlock()
	if look {
		wake.Up(q.news)
	}
}

func (q *Queue) takeFresh() fresh {
	q.freshMu.Lock()
	defer q.freshMu.Unlock()
	f := q.fresh
	q.fresh = fresh{}
	return f
}

// reader follows the event stream and stores what is to be sent to whom.
type reader struct {
	q       *Queue
	cursor  storage.Position
	unsaved int // events passed since the cursor was stored
}

// read follows the stream: from the database until it has caught up, then by what it is told.
func (q *Queue) read(ctx context.Context) error {
	cursor, err := storage.Cursor(ctx, q.opts.DB, cursorName)
	if err != nil {
		return err
	}
	r := &reader{q: q}
	r.goTo(cursor)
	tick := time.NewTicker(readEvery)
	defer tick.Stop()
	behind, resumed := true, false
	for {
		if behind {
			err = r.catchUp(ctx)
		} else if f := q.takeFresh(); f.lost {
			err = r.catchUp(ctx)
		} else {
			err = r.handle(ctx, f.events, f.upTo, f.passed)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if behind = err != nil; behind {
			q.opts.Log.Error().Err(err).Msg("federation: read the event stream")
		} else {
			if !resumed {
				resumed = q.resume(ctx) == nil // what was queued ahead of where the last run was
			}
			select {
			case <-q.news:
				continue
			default:
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-q.news:
		case <-tick.C:
			behind = true
		}
	}
}

// catchUp reads from the database whatever is after the cursor.
func (r *reader) catchUp(ctx context.Context) error {
	for {
		until := r.q.opts.DB.Current()
		if until <= r.cursor {
			return nil
		}
		events, err := r.q.rooms.EventsAfter(ctx, r.cursor, until, readBatch)
		if err != nil {
			return err
		}
		next := until
		if len(events) == readBatch {
			next = events[len(events)-1].Pos
		}
		if err := r.handle(ctx, events, next, len(events)); err != nil {
			return err
		}
		if len(events) < readBatch {
			return nil
		}
	}
}

// goTo moves the cursor, and wakes who waited for that.
func (r *reader) goTo(next storage.Position) {
	q := r.q
	r.cursor = next
	q.passed.Store(int64(next))
	q.mu.Lock()
	defer q.mu.Unlock()
	var there []matrix.ServerName
	for s, pos := range q.ahead {
		if pos <= next {
			delete(q.ahead, s)
			there = append(there, s)
		}
	}
	slices.Sort(there)
	q.wakeLocked(there...)
}

// handle queues events for their destinations and moves the cursor. What is at or before the cursor was handled.
func (r *reader) handle(ctx context.Context, events []*rooms.Event, next storage.Position, passed int) error {
	q := r.q
	var pdus, late []storage.OutboxPDU
	var to []matrix.ServerName
	var standing []storage.OutboxPDU
	changed := map[storage.RoomNID]map[matrix.ServerName]bool{} // newcomers
	change := func(e *rooms.Event, s matrix.ServerName) {
		if changed[e.RoomNID] == nil {
			changed[e.RoomNID] = map[matrix.ServerName]bool{}
		}
		changed[e.RoomNID][s] = true
	}
	for _, e := range events {
		if e.Pos <= r.cursor {
			continue
		}
		q.freshMu.Lock()
		q.noteNewcomer(e) // where it was read from the database
		q.freshMu.Unlock()
		if user, ok := target(e); ok && e.Relay && joined(e) {
			change(e, user.Server())
		}
		servers, err := q.destinations(ctx, e)
		if err != nil {
			return fmt.Errorf("destinations of an event: %w", err)
		}
		for _, s := range servers {
			p := storage.OutboxPDU{Destination: s, Position: e.Pos, Room: e.RoomNID, EventID: e.ID(), KeepUntil: keepUntil(e, s)}
			if p.KeepUntil == 0 && q.longGone(s) {
				if p.Newest = q.stand(s, e.RoomNID); !p.Newest {
					continue // another one stands for it
				}
				standing = append(standing, p)
			}
			pdus = append(pdus, p)
			to = append(to, s)
		}
		missing, err := q.missing(ctx, e)
		if err != nil {
			return fmt.Errorf("who misses an event: %w", err)
		}
		for _, s := range missing {
			change(e, s)
			late = append(late, storage.OutboxPDU{Destination: s, Room: e.RoomNID, EventID: e.ID(), KeepUntil: keepUntil(e, s)})
			to = append(to, s)
		}
		if joined(e) {
			// A server that comes into the room missed what is sticky there, and what happened meanwhile. spec: MSC4354#federation-behaviour
			missed, err := q.rooms.MissedBy(ctx, e)
			if err != nil {
				return fmt.Errorf("what a server missed: %w", err)
			}
			user, _ := target(e)
			for _, s := range q.remote([]matrix.ServerName{user.Server()}) {
				for _, ev := range missed {
					late = append(late, storage.OutboxPDU{Destination: s, Room: ev.RoomNID, EventID: ev.ID(), KeepUntil: ev.StickyUntil()})
					to = append(to, s)
				}
			}
		}
	}
	next = max(next, r.cursor)
	r.unsaved += passed
	newcomers := q.newcomerRows(changed)
	if len(to)+len(newcomers) == 0 && r.unsaved < cursorSlack {
		r.goTo(next)
		return nil
	}
	matrix.SortInTurn(to, string(q.opts.ServerName)) // in a big room, not the same ones are to come last everywhere
	to = slices.Compact(to)
	first := q.firstTransactions(pdus, late)
	err := q.opts.DB.Write(ctx, func(tx *storage.Tx) error {
		if err := storage.AddOutboxPDUs(ctx, tx, pdus); err != nil {
			return err
		}
		if err := q.queueBehind(ctx, tx, late...); err != nil {
			return err
		}
		if err := storage.SupersedeOutboxPDUs(ctx, tx, standing, matrix.TimestampOf(q.opts.Now())); err != nil {
			return err
		}
		if err := storage.AddOutboxTransactions(ctx, tx, first); err != nil {
			return err
		}
		if err := storage.PutOutboxNewcomers(ctx, tx, newcomers); err != nil {
			return err
		}
		return storage.SetCursor(ctx, tx, cursorName, next)
	})
	if err != nil {
		q.unstand(standing)
		return err
	}
	r.unsaved = 0
	r.goTo(next)
	q.mu.Lock()
	defer q.mu.Unlock()
	first = slices.DeleteFunc(first, func(t storage.OutboxTransaction) bool { return q.busy[t.Destination] != nil })
	q.wakeLocked(to...)
	for _, t := range first {
		q.destination(t.Destination).only = t.ID // no sender has looked yet
	}
	return nil
}

// firstTransactions makes the transactions to idle destinations, for which nothing is queued before
// these events: stored along with them, they spare the sender a commit before it sends. A destination of late events has something queued behind them.
func (q *Queue) firstTransactions(pdus, late []storage.OutboxPDU) []storage.OutboxTransaction {
	count := map[matrix.ServerName]int{}
	last := map[matrix.ServerName]storage.Position{}
	more := map[matrix.ServerName]bool{} // than is in the transaction
	for _, p := range late {
		more[p.Destination] = true
	}
	for _, p := range pdus {
		more[p.Destination] = more[p.Destination] || p.Newest
		count[p.Destination]++
		last[p.Destination] = max(last[p.Destination], p.Position)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []storage.OutboxTransaction
	for dest, n := range count {
		_, busy := q.busy[dest]
		if _, wait := q.opts.Peers.RetryAt(dest); !busy && !wait && !more[dest] && n <= MaxPDUs {
			out = append(out, storage.OutboxTransaction{Destination: dest, ID: q.newID(), LastPDU: last[dest]})
		}
	}
	return out
}

// destinations are the servers that this server has to send an event to.
func (q *Queue) destinations(ctx context.Context, e *rooms.Event) ([]matrix.ServerName, error) {
	if !e.Relay {
		return nil, nil // its maker sends it, or who let its maker's user in
	}
	servers, err := q.rooms.ServersAt(ctx, e)
	if err != nil {
		return nil, err
	}
	skip := e.Sender().Server() // it has its own event
	out := make([]matrix.ServerName, 0, len(servers))
	for _, s := range q.remote(servers) {
		if s != skip {
			out = append(out, s)
		}
	}
	return out, nil
}

func target(e *rooms.Event) (matrix.UserID, bool) {
	if e.Type() != "m.room.member" {
		return "", false
	}
	key, ok := e.StateKey()
	return matrix.UserID(key), ok
}

// joined says whether an event lets a user into a room who may be the first of another server.
func joined(e *rooms.Event) bool { return e.Type() == "m.room.member" && e.Membership() == "join" }

// keepUntil says until when an event may not be left out by a destination that catches up
// on a long outage: a change of the membership of a user of its own reaches it no other way, and
// a sticky event is sent as long as it is sticky.
func keepUntil(e *rooms.Event, dest matrix.ServerName) matrix.Timestamp {
	if user, ok := target(e); ok && user.Server() == dest {
		return math.MaxInt64
	}
	return e.StickyUntil()
}
