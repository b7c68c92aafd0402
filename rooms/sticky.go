package rooms

import (
	"context"
	"slices"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Sticky events are ordinary events with a lifetime, at most an hour. While it lasts they are told to every client in the room whatever
// the limit of its timeline and the history visibility, and are sent to servers that join. spec: MSC4354

// StickyUntil is when the event ceases to be sticky, 0 if it never was.
func (ev *Event) StickyUntil() matrix.Timestamp {
	ms, ok := ev.Sticky()
	if !ok {
		return 0
	}
	// A clock that is ahead must not prolong it.
	return min(ev.ReceivedTS, ev.OriginServerTS()) + matrix.Timestamp(ms)
}

// sticks says whether the event is sticky at a time, for those to whom it was not refused.
func (ev *Event) sticks(now matrix.Timestamp) bool {
	return ev.placed() && !ev.Rejected && ev.StickyUntil() > now
}

// stickyRow is the row of an event about to be stored. It has none if it has expired, or was refused for good.
func (e *Engine) stickyRow(it *item, pos storage.Position) (row storage.StickyRow, ok bool) {
	ev := it.ev
	until := ev.StickyUntil()
	if until <= e.now() || ev.Outlier || ev.Rejected || pos == 0 && !it.waits {
		return row, false
	}
	return storage.StickyRow{Event: ev.NID, Room: ev.RoomNID, Pos: pos, Own: e.isLocal(ev.Sender()), Expires: until}, true
}

// maxWaiting bounds the soft-failed events of a room that are looked at again when its state changes.
const maxWaiting = 100

// waitingEvent is a sticky event that the room's current state does not allow. Another state may: then it is taken in after all,
// or servers would not agree on which events are sticky.
type waitingEvent struct {
	nid   storage.EventNID
	until matrix.Timestamp
}

// await remembers a sticky event that was just soft-failed; r.mu is held.
func (r *room) await(it *item) {
	until := it.ev.StickyUntil()
	if until <= r.e.now() || it.ev.IsState() {
		return // state events are state resolution's
	}
	it.waits = true
	if len(r.waiting) == maxWaiting {
		r.waiting = slices.Delete(r.waiting, 0, 1)
	}
	r.waiting = append(r.waiting, waitingEvent{it.ev.NID, until})
}

// loadWaiting reads what waits in the room; r.mu is held.
func (r *room) loadWaiting(ctx context.Context) error {
	rows, err := storage.WaitingStickyEvents(ctx, r.e.db, r.nid, r.e.now(), maxWaiting)
	if err != nil {
		return err
	}
	r.waiting = nil
	for _, row := range rows {
		r.waiting = append(r.waiting, waitingEvent{row.Event, row.Expires})
	}
	return nil
}

// takeIn looks at the events that wait for another state, and adds those that this one allows to what en stores: they
// become part of the room's history, and clients are told. r.mu is held.
func (r *room) takeIn(ctx context.Context, en *entry, state statetree.Tree) error {
	now := r.e.now()
	r.waiting = slices.DeleteFunc(r.waiting, func(w waitingEvent) bool { return w.until <= now })
	view := headView{ctx, r, state}
	for i := 0; i < len(r.waiting); {
		ev, err := r.event(ctx, r.waiting[i].nid)
		if err != nil {
			return err
		}
		rejection, err := split(r.checker.Check(ev.Event, view))
		if err != nil {
			return err
		}
		if rejection != nil || ev.RedactedBy != "" {
			i++
			continue
		}
		known, err := r.eventsByID(ctx, ev.PrevEvents())
		if err != nil {
			return err
		}
		for _, id := range missingPrevs(ev.Event, known) { // what comes before it is history of the room now
			en.missing = append(en.missing, storage.MissingPrev{ID: id, Child: ev.NID, Depth: ev.Depth()})
		}
		accepted := *ev
		accepted.SoftFailed = false
		en.items = append(en.items, &item{ev: &accepted, before: r.e.treeBefore(ev), timeline: backward, promote: true})
		r.waiting = slices.Delete(r.waiting, i, i+1)
	}
	return nil
}

// StickyEvent is a sticky event at its place in the stream, which differs from Event.Pos for one that came late.
type StickyEvent struct {
	*Event
	Position storage.Position
}

// StickyRequest asks for live sticky events with Since < Position <= Until, the first Limit of them.
type StickyRequest struct {
	Since, Until storage.Position
	Limit        int
}

// StickyEvents lists the sticky events that a client in a room must be told of, in order of position. Who asks has checked that the user is
// joined: history visibility does not matter. more says that there are others, after the last.
func (e *Engine) StickyEvents(ctx context.Context, room storage.RoomNID, q StickyRequest) (events []StickyEvent, more bool, err error) {
	if e.db.Unchanged(storage.Subject{Topic: storage.TopicRoomSticky, RoomNID: room}, q.Since) {
		return nil, false, nil
	}
	rows, err := storage.StickyEventsIn(ctx, e.db, room, q.Since, q.Until, e.now(), q.Limit+1)
	if err != nil {
		return nil, false, err
	}
	return e.stickyEvents(ctx, rows, q.Limit)
}

// StickyEventsOf is StickyEvents for all rooms that a user is joined to.
func (e *Engine) StickyEventsOf(ctx context.Context, user matrix.UserID, q StickyRequest) (events []StickyEvent, more bool, err error) {
	if e.db.Unchanged(storage.Subject{Topic: storage.TopicSticky}, q.Since) {
		return nil, false, nil
	}
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return nil, false, ignoreNotFound(err)
	}
	rows, err := storage.StickyEventsOf(ctx, e.db, nid, q.Since, q.Until, e.now(), q.Limit+1)
	if err != nil {
		return nil, false, err
	}
	return e.stickyEvents(ctx, rows, q.Limit)
}

func (e *Engine) stickyEvents(ctx context.Context, rows []storage.StickyRow, limit int) (out []StickyEvent, more bool, err error) {
	if more = len(rows) > limit; more {
		rows = rows[:limit]
	}
	nids := make([]storage.EventNID, len(rows))
	for i, row := range rows {
		nids[i] = row.Event
	}
	events, err := e.eventsByNID(ctx, nids)
	if err != nil {
		return nil, false, err
	}
	for i, ev := range events {
		out = append(out, StickyEvent{ev, rows[i].Pos})
	}
	return out, more, nil
}

// maxStickyForServer bounds the sticky events that a server is sent when it joins.
const maxStickyForServer = 500

// stickyFor lists this server's own sticky events that a server has to be sent because it came into the room with a join.
func (e *Engine) stickyFor(ctx context.Context, join *Event) ([]*Event, error) {
	rows, err := storage.OwnStickyEvents(ctx, e.db, join.RoomNID, join.Pos, e.now(), maxStickyForServer)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	events, _, err := e.stickyEvents(ctx, rows, len(rows))
	out := make([]*Event, len(events))
	for i, ev := range events {
		out[i] = ev.Event
	}
	return out, err
}
