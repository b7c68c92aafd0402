package rooms

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
	"hanok/storage/statetree"
)

// fromRows turns rows into events and caches them.
func (e *Engine) fromRows(ctx context.Context, rows []*storage.EventRow) ([]*Event, error) {
	out := make([]*Event, len(rows))
	redacted := make(map[*Event]storage.EventNID)
	for i, row := range rows {
		if ev := e.events.byNumber(row.NID); ev != nil {
			out[i] = ev
			continue
		}
		r, err := e.roomByNID(ctx, row.Room)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", row.NID, err)
		}
		version := r.version
		r.release()
		parsed, err := event.FromStored(version, row.ID, row.JSON)
		if err != nil {
			return nil, fmt.Errorf("event %d: %w", row.NID, err)
		}
		out[i] = fromRow(row, parsed)
		if row.RedactedBy != 0 {
			redacted[out[i]] = row.RedactedBy
		}
	}
	if len(redacted) > 0 {
		ids, err := storage.EventIDs(ctx, e.db, slices.Collect(maps.Values(redacted)))
		if err != nil {
			return nil, err
		}
		for ev, by := range redacted {
			ev.RedactedBy = ids[by]
		}
	}
	e.events.fill(out...)
	return out, nil
}

func fromRow(row *storage.EventRow, parsed *event.Event) *Event {
	return &Event{
		Event: parsed, NID: row.NID, RoomNID: row.Room, Pos: row.Pos, ReceivedTS: row.ReceivedTS,
		Rejected: row.Flags&storage.EventRejected != 0, SoftFailed: row.Flags&storage.EventSoftFailed != 0, Outlier: row.Flags&storage.EventOutlier != 0, Relay: row.Flags&storage.EventRelay != 0,
		TxnDevice: row.TxnDevice, TxnID: row.TxnID, Delayed: row.Flags&storage.EventDelayed != 0,
		Partial:    row.Flags&storage.EventPartial != 0,
		redactedBy: row.RedactedBy, stateBefore: statetree.Ref(row.State), prevs: row.Prev, auths: row.Auth,
		typ: row.Type, skey: row.StateKey, sender: row.Sender,
	}
}

// flags are the event's as stored.
func (ev *Event) flags() storage.EventFlags {
	var flags storage.EventFlags
	if ev.Outlier {
		flags |= storage.EventOutlier
	}
	if ev.Rejected {
		flags |= storage.EventRejected
	}
	if ev.Relay {
		flags |= storage.EventRelay
	}
	if ev.SoftFailed {
		flags |= storage.EventSoftFailed
	}
	if ev.Delayed {
		flags |= storage.EventDelayed
	}
	if ev.Partial {
		flags |= storage.EventPartial
	}
	return flags
}

func (ev *Event) row() *storage.EventRow {
	return &storage.EventRow{
		NID: ev.NID, ID: ev.ID(), Room: ev.RoomNID, Type: ev.typ, StateKey: ev.skey, Sender: ev.sender, Depth: ev.Depth(), Pos: ev.Pos,
		ReceivedTS: ev.ReceivedTS, OriginTS: ev.OriginServerTS(), Flags: ev.flags(), State: int64(ev.stateBefore), Prev: ev.prevs, Auth: ev.auths,
		RedactedBy: ev.redactedBy, TxnDevice: ev.TxnDevice, TxnID: ev.TxnID, JSON: ev.JSON(),
	}
}

// eventMap returns stored events by number; unknown numbers are missing.
func (e *Engine) eventMap(ctx context.Context, nids []storage.EventNID) (map[storage.EventNID]*Event, error) {
	return findEvents(ctx, e, nids, e.events.byNumber, storage.EventsByNID, func(ev *Event) storage.EventNID { return ev.NID })
}

// eventsByID returns stored events by ID; unknown ones are missing.
func (e *Engine) eventsByID(ctx context.Context, ids []matrix.EventID) (map[matrix.EventID]*Event, error) {
	return findEvents(ctx, e, ids, e.events.byEventID, storage.EventsByID, (*Event).ID)
}

// findEvents returns stored events by key, those that are not cached with one query. Unknown keys are missing, zero ones are passed over.
func findEvents[K comparable](ctx context.Context, e *Engine, keys []K, cached func(K) *Event,
	query func(context.Context, storage.Querier, []K) ([]*storage.EventRow, error), keyOf func(*Event) K) (map[K]*Event, error) {
	out := make(map[K]*Event, len(keys))
	var load []K
	var zero K
	for _, key := range keys {
		if key == zero || out[key] != nil {
			continue
		}
		if ev := cached(key); ev != nil {
			out[key] = ev
		} else {
			load = append(load, key)
		}
	}
	if len(load) == 0 {
		return out, nil
	}
	rows, err := query(ctx, e.db, load)
	if err != nil {
		return nil, err
	}
	events, err := e.fromRows(ctx, rows)
	if err != nil {
		return nil, err
	}
	for _, ev := range events {
		out[keyOf(ev)] = ev
	}
	return out, nil
}

// eventsByNID returns stored events in the order asked for. An unknown number is an error: our own tables are at odds.
func (e *Engine) eventsByNID(ctx context.Context, nids []storage.EventNID) ([]*Event, error) {
	out := make([]*Event, len(nids))
	return out, e.fillIn(ctx, nids, out)
}

// fillIn puts stored events where they are lacking in out.
func (e *Engine) fillIn(ctx context.Context, nids []storage.EventNID, out []*Event) error {
	e.events.byNumbers(nids, out)
	var load []storage.EventNID
	for i, nid := range nids {
		if out[i] == nil {
			load = append(load, nid)
		}
	}
	if len(load) == 0 {
		return nil
	}
	stored, err := e.eventMap(ctx, load)
	if err != nil {
		return err
	}
	for i, nid := range nids {
		if out[i] == nil {
			if out[i] = stored[nid]; out[i] == nil {
				return fmt.Errorf("event %d is referred to but not stored", nid)
			}
		}
	}
	return nil
}

func (e *Engine) eventByNID(ctx context.Context, nid storage.EventNID) (*Event, error) {
	if ev := e.events.byNumber(nid); ev != nil {
		return ev, nil
	}
	events, err := e.eventsByNID(ctx, []storage.EventNID{nid})
	if err != nil {
		return nil, err
	}
	return events[0], nil
}

// Event returns a stored event whatever its flags, without any access check; M_NOT_FOUND.
func (e *Engine) Event(ctx context.Context, id matrix.EventID) (*Event, error) {
	events, err := e.eventsByID(ctx, []matrix.EventID{id})
	if err != nil {
		return nil, err
	}
	if ev := events[id]; ev != nil {
		return ev, nil
	}
	return nil, matrix.NotFound("no such event")
}

// EventsByNumber returns stored events in the order asked for, without any access check; unknown numbers are left out.
func (e *Engine) EventsByNumber(ctx context.Context, nids ...storage.EventNID) ([]*Event, error) {
	found, err := e.eventMap(ctx, nids)
	if err != nil {
		return nil, err
	}
	out := make([]*Event, 0, len(nids))
	for _, nid := range nids {
		if ev := found[nid]; ev != nil {
			out = append(out, ev)
		}
	}
	return out, nil
}

// EventsAfter returns timeline events of all rooms in (since, until], in order: for readers of the stream.
func (e *Engine) EventsAfter(ctx context.Context, since, until storage.Position, limit int) ([]*Event, error) {
	nids, err := storage.EventsAfter(ctx, e.db, since, until, limit)
	if err != nil {
		return nil, err
	}
	return e.eventsByNID(ctx, nids)
}

// How far back the newest event for a server is looked for.
const (
	maxNewestAmong = 2000 // events of the room
	maxNewest      = 50   // of them, sent by us
)

// NewestFor returns the newest event of a room after a position that this server has to send to another one; nil if there is none among the
// last ones of the room.
func (e *Engine) NewestFor(ctx context.Context, room storage.RoomNID, server matrix.ServerName, after storage.Position) (*Event, error) {
	nids, err := storage.NewestSent(ctx, e.db, room, after, maxNewestAmong, maxNewest)
	if err != nil {
		return nil, err
	}
	for _, nid := range nids {
		ev, err := e.eventByNID(ctx, nid)
		if err != nil {
			return nil, err
		}
		servers, err := e.ServersAt(ctx, ev)
		if err != nil {
			return nil, err
		}
		if ev.Sender().Server() != server && slices.Contains(servers, server) {
			return ev, nil
		}
	}
	return nil, nil
}

// internEvent makes sure the names in an event have numbers, the server of a member included: later, with a lock held,
// they are only looked up.
func (e *Engine) internEvent(ctx context.Context, ev *event.Event) (typ, skey, sender storage.NameNID, err error) {
	names := [4]string{ev.Type(), string(ev.Sender())}
	n := 2
	key, isState := ev.StateKey()
	if isState {
		names[2], n = key, 3
		if ev.Type() == "m.room.member" {
			names[3], n = string(domain(key)), 4
		}
	}
	nids, err := e.db.Intern(ctx, names[:n]...)
	if err != nil {
		return 0, 0, 0, err
	}
	if isState {
		skey = nids[2]
	}
	return nids[0], skey, nids[1], nil
}

// treeBefore and treeAfter are the states around an event that is not an outlier.
func (e *Engine) treeBefore(ev *Event) statetree.Tree { return e.forest.At(ev.stateBefore) }

func (e *Engine) treeAfter(ctx context.Context, ev *Event) (statetree.Tree, error) {
	before := e.treeBefore(ev)
	if ev.skey == 0 || ev.Rejected {
		return before, nil
	}
	return before.With(ctx, ev.entry())
}

// entry is a state event's place in a state.
func (ev *Event) entry() statetree.Entry {
	return statetree.Entry{Key: statetree.Key{Type: int64(ev.typ), StateKey: int64(ev.skey)}, Event: int64(ev.NID)}
}
