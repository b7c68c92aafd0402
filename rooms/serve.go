package rooms

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Limits on what we give another server at once.
const (
	maxServedMissing  = 20
	maxServedBackfill = 100
	maxServedWalk     = 2000    // events looked at for one answer
	maxServedChain    = 100_000 // events of an auth chain
)

// ServeEvent returns an event's JSON if origin may see it. One that was rejected is a part of the graph like others, and who asks judges for
// itself. spec: ss/getEvent
func (e *Engine) ServeEvent(ctx context.Context, origin matrix.ServerName, id matrix.EventID) ([]byte, error) {
	ev, err := e.Event(ctx, id)
	if err != nil {
		return nil, err
	}
	r, err := e.roomByNID(ctx, ev.RoomNID)
	if err != nil {
		return nil, err
	}
	defer r.release()
	if err := r.maySee(ctx, origin, []matrix.EventID{id}); err != nil {
		return nil, err
	}
	v := &serverView{e: e, server: origin}
	pdus, err := v.pdus(ctx, []*Event{ev})
	if err != nil {
		return nil, err
	}
	return pdus[0], nil
}

// eventIn returns an event of a room that has its place in the graph.
func (r *room) eventIn(ctx context.Context, id matrix.EventID) (*Event, error) {
	ev, err := r.e.Event(ctx, id)
	if err != nil {
		return nil, err
	}
	if ev.RoomNID != r.nid || ev.Outlier {
		return nil, matrix.NotFound("no such event in this room")
	}
	return ev, nil
}

// ServeState returns the state before an event and its auth chain. spec: ss/getRoomState
func (e *Engine) ServeState(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth [][]byte, err error) {
	states, chain, err := e.servedState(ctx, origin, room, at)
	if err != nil {
		return nil, nil, err
	}
	pdus, err := e.rawEvents(ctx, slices.Concat(states, chain))
	if err != nil {
		return nil, nil, err
	}
	return pdus[:len(states)], pdus[len(states):], nil
}

// ServeStateIDs is ServeState with IDs. spec: ss/getRoomStateIds
func (e *Engine) ServeStateIDs(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth []matrix.EventID, err error) {
	states, chain, err := e.servedState(ctx, origin, room, at)
	if err != nil {
		return nil, nil, err
	}
	if state, err = e.idsOf(ctx, states); err != nil {
		return nil, nil, err
	}
	auth, err = e.idsOf(ctx, chain)
	return state, auth, err
}

func (e *Engine) idsOf(ctx context.Context, nids []storage.EventNID) ([]matrix.EventID, error) {
	ids, err := storage.EventIDs(ctx, e.db, nids)
	if err != nil {
		return nil, err
	}
	out := make([]matrix.EventID, 0, len(nids))
	for _, n := range nids {
		out = append(out, ids[n])
	}
	return out, nil
}

// CodePartialState is the error code of who does not know a state yet, that of MSC3895.
const CodePartialState = "M_UNABLE_DUE_TO_PARTIAL_STATE"

// errPartialState is the answer to who asks for a state that this server does not know yet.
var errPartialState = matrix.Errorf(http.StatusForbidden, CodePartialState, "this server has joined the room just now and does not know the whole state at the event yet")

func (e *Engine) servedState(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, at matrix.EventID) (states, chain []storage.EventNID, err error) {
	r, err := e.served(ctx, origin, room, at)
	if err != nil {
		return nil, nil, err
	}
	defer r.release()
	ev, err := r.eventIn(ctx, at)
	if err != nil {
		return nil, nil, err
	}
	if ev.Partial {
		return nil, nil, errPartialState
	}
	if ev.Rejected {
		return nil, nil, matrix.NotFound("the event was rejected")
	}
	if states, err = treeEvents(ctx, e.treeBefore(ev)); err != nil {
		return nil, nil, err
	}
	chain, err = r.authChain(ctx, states)
	return states, chain, err
}

// authChain returns the auth chains of events: all that they depend on, not themselves unless another depends on them. Where the
// room ID stands for the create event, that one belongs to them, too: without it nothing in the chain could be checked, and
// Dendrite looks for it there.
func (r *room) authChain(ctx context.Context, roots []storage.EventNID) ([]storage.EventNID, error) {
	e := r.e
	seen := make(map[storage.EventNID]bool)
	frontier := roots
	var out []storage.EventNID
	if r.version.RoomIDIsCreateHash {
		create, err := e.Event(ctx, matrix.EventID("$"+string(r.id)[1:]))
		if err != nil {
			return nil, err
		}
		if !slices.Equal(roots, []storage.EventNID{create.NID}) {
			seen[create.NID] = true
			out = append(out, create.NID)
		}
	}
	for len(frontier) > 0 {
		var next []storage.EventNID
		var load []storage.EventNID
		visit := func(auths []storage.EventNID) {
			for _, a := range auths {
				if !seen[a] {
					seen[a] = true
					next = append(next, a)
				}
			}
		}
		for _, nid := range frontier {
			if ev := e.events.byNumber(nid); ev != nil {
				visit(ev.auths)
			} else {
				load = append(load, nid)
			}
		}
		if len(load) > 0 {
			edges, err := storage.EdgesByNID(ctx, e.db, load)
			if err != nil {
				return nil, err
			}
			for _, ed := range edges {
				visit(ed.Auth)
			}
		}
		out = append(out, next...)
		if len(out) > maxServedChain {
			return nil, matrix.TooLarge("the auth chain is too long")
		}
		frontier = next
	}
	slices.Sort(out)
	return out, nil
}

// ServeEventAuth returns an event's auth chain. spec: ss/getEventAuth
func (e *Engine) ServeEventAuth(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([][]byte, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	if err := r.maySeeAuth(ctx, origin, id); err != nil {
		return nil, err
	}
	ev, err := e.Event(ctx, id)
	if err != nil {
		return nil, err
	}
	if ev.RoomNID != r.nid {
		return nil, matrix.NotFound("no such event in this room")
	}
	chain, err := r.authChain(ctx, []storage.EventNID{ev.NID})
	if err != nil {
		return nil, err
	}
	return e.rawEvents(ctx, chain)
}

func (e *Engine) rawEvents(ctx context.Context, nids []storage.EventNID) ([][]byte, error) {
	events, err := e.eventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	return pdusOf(events), nil
}

func pdusOf(events []*Event) [][]byte {
	out := make([][]byte, len(events))
	for i, ev := range events {
		out[i] = ev.JSON()
	}
	return out
}

// ServeBackfill returns events from `from` backwards, those included. spec: ss/backfillRoom
func (e *Engine) ServeBackfill(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([][]byte, error) {
	r, err := e.served(ctx, origin, room, from...)
	if err != nil {
		return nil, err
	}
	defer r.release()
	limit = min(limit, maxServedBackfill)
	if limit <= 0 || len(from) > maxServedBackfill {
		return nil, matrix.InvalidParam("the limit must be above 0, and the events at most %d", maxServedBackfill)
	}
	known, err := r.eventsByID(ctx, from)
	if err != nil {
		return nil, err
	}
	if len(from) > 0 && len(known) == 0 {
		elsewhere, err := e.eventsByID(ctx, from)
		if err != nil || len(elsewhere) > 0 {
			return [][]byte{}, err // of other rooms: there is nothing before them in this one
		}
		// Servers that are given nothing take that for an answer, and come back to ask for it instead of asking somebody else.
		return nil, matrix.NotFound("none of the events is known here")
	}
	var events []*Event
	err = r.walkBack(ctx, values(known), nil, 0, func(ev *Event) bool {
		events = append(events, ev)
		return len(events) < limit
	})
	if err != nil {
		return nil, err
	}
	v := &serverView{e: e, server: origin}
	return v.pdus(ctx, events)
}

func values(m map[matrix.EventID]*Event) []*Event {
	out := make([]*Event, 0, len(m))
	for _, ev := range m {
		out = append(out, ev)
	}
	return out
}

// ServeMissingEvents returns events between two sets, oldest first. spec: ss/getMissingPreviousEvents
func (e *Engine) ServeMissingEvents(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([][]byte, error) {
	r, err := e.served(ctx, origin, room, latest...)
	if err != nil {
		return nil, err
	}
	defer r.release()
	if len(earliest) > 100 || len(latest) > 100 {
		return nil, matrix.InvalidParam("too many events")
	}
	if limit = min(limit, maxServedMissing); limit <= 0 {
		return nil, nil
	}
	known, err := r.eventsByID(ctx, latest)
	if err != nil {
		return nil, err
	}
	stop := make(map[matrix.EventID]bool)
	for _, id := range earliest {
		stop[id] = true
	}
	// The latest events themselves are not part of the answer: start from their parents.
	var prevs []storage.EventNID
	for id, ev := range known {
		stop[id] = true
		if ev.Outlier {
			continue
		}
		before, err := r.prevsOf(ctx, ev)
		if err != nil {
			return nil, err
		}
		prevs = append(prevs, before...)
	}
	start, err := e.eventMap(ctx, prevs)
	if err != nil {
		return nil, err
	}
	var from []*Event
	for _, ev := range start {
		from = append(from, ev)
	}
	var events []*Event
	err = r.walkBack(ctx, from, stop, minDepth, func(ev *Event) bool {
		events = append(events, ev)
		return len(events) < limit
	})
	if err != nil {
		return nil, err
	}
	slices.Reverse(events)
	v := &serverView{e: e, server: origin}
	return v.pdus(ctx, events)
}

// walkBack visits events from some on backwards along prev events, deepest first, until visit says stop. It does not go
// beyond events to stop at or above a depth. Events that have no place in the graph are not visited. Those that were rejected are: what comes
// before them could not be reached otherwise.
func (r *room) walkBack(ctx context.Context, from []*Event, stop map[matrix.EventID]bool, minDepth int64, visit func(*Event) bool) error {
	seen := make(map[storage.EventNID]bool)
	frontier := from
	for n := 0; len(frontier) > 0 && n < maxServedWalk; n++ {
		// By their IDs where depths are equal: who asks again gets the same.
		slices.SortFunc(frontier, func(a, b *Event) int { return cmp.Or(cmp.Compare(b.Depth(), a.Depth()), cmp.Compare(b.ID(), a.ID())) })
		ev := frontier[0]
		frontier = frontier[1:]
		if seen[ev.NID] || stop[ev.ID()] || ev.Depth() < minDepth || ev.RoomNID != r.nid || ev.Outlier {
			continue
		}
		seen[ev.NID] = true
		if !visit(ev) {
			return nil
		}
		prevs, err := r.prevsOf(ctx, ev)
		if err != nil {
			return err
		}
		before, err := r.e.eventMap(ctx, prevs)
		if err != nil {
			return err
		}
		for _, p := range before {
			frontier = append(frontier, p)
		}
	}
	return nil
}

// madeFrom turns an event built on our head into what make_join and its like answer.
func madeFrom(json []byte) []byte {
	return canonicaljson.Delete(json, "hashes", "signatures", "event_id")
}
