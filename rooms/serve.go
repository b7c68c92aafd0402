package rooms

import (
	"cmp"
	"context"
	"net/http"
	"slices"

	"hanok/matrix"
	"hanok/matrix/acl"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Limits on what we give another server at once.
const (
	maxServedMissing  = 20
	maxServedBackfill = 100
	maxServedWalk     = 2000    // events looked at for one answer
	maxServedChain    = 100_000 // events of an auth chain
)

// AllowsServer checks the room's m.room.server_acl, and that the operator does not keep the room apart; M_FORBIDDEN. Of a room that this server
// has left nobody knows here what the list says now: it keeps no one from sending an invite, or taking one back.
func (e *Engine) AllowsServer(ctx context.Context, room matrix.RoomID, server matrix.ServerName) error {
	r, err := e.room(ctx, room)
	if err != nil {
		return err
	}
	defer r.release()
	if resident, err := r.resident(ctx); err != nil {
		return err
	} else if !resident {
		return r.allowsSharing()
	}
	return r.allowsServer(ctx, server)
}

// allowsSharing refuses other servers a room that the operator keeps apart.
func (r *room) allowsSharing() error {
	if r.e.isolation.has(r.id) {
		return errIsolatedRoom
	}
	return nil
}

func (r *room) allowsServer(ctx context.Context, server matrix.ServerName) error {
	if err := r.allowsSharing(); err != nil {
		return err
	}
	c, err := r.current(ctx)
	if err != nil {
		return err
	}
	ev, err := State{r.e, c.head.state}.Event(ctx, "m.room.server_acl", "")
	if err != nil || ev == nil {
		return err
	}
	if !acl.Compile(ev.Content()).Allows(server) {
		return errBarred
	}
	return nil
}

var errBarred = matrix.Forbidden("the room's m.room.server_acl excludes your server")

// served returns a room of which a server may be shown what it asks about: it is in the room now, or it was at the
// events in question. The latter lets a server that is not in the room any more learn why; and it lets others take the event with
// which the last of our own users left, when they miss what comes before it. Pinned.
func (e *Engine) served(ctx context.Context, origin matrix.ServerName, id matrix.RoomID, about ...matrix.EventID) (*room, error) {
	r, err := e.room(ctx, id)
	if err != nil {
		return nil, err
	}
	if err := r.maySee(ctx, origin, about); err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

func (r *room) maySee(ctx context.Context, origin matrix.ServerName, about []matrix.EventID) error {
	resident, err := r.resident(ctx)
	if err != nil {
		return err
	}
	if err := r.allowsServer(ctx, origin); err != nil {
		return err
	}
	in, err := r.hasServer(ctx, origin) // after our last user left: as of then
	if err != nil {
		return err
	}
	if !in {
		if in, err = r.hadServer(ctx, origin, about); err != nil {
			return err
		}
	}
	switch {
	case in:
		return nil
	case !resident:
		return matrix.NotFound("this server is not in the room")
	}
	return matrix.Forbidden("your server is not in the room")
}

// maxAbout is how many events are looked at to see whether a server was in the room.
const maxAbout = 5

// hadServer says whether a server was in the room at all of these events, or came into it upon them.
func (r *room) hadServer(ctx context.Context, server matrix.ServerName, about []matrix.EventID) (bool, error) {
	if len(about) == 0 || len(about) > maxAbout {
		return false, nil
	}
	known, err := r.e.eventsByID(ctx, about)
	if err != nil {
		return false, err
	}
	for _, id := range about {
		ev := known[id]
		if ev == nil || ev.RoomNID != r.nid || ev.Outlier {
			return false, nil
		}
		joined, err := r.e.servers.at(ctx, r.e, r.nid, r.e.treeBefore(ev))
		if err != nil {
			return false, err
		}
		if joined[server] > 0 {
			continue
		}
		if had, err := r.joinedUpon(ctx, server, ev); err != nil || !had {
			return false, err
		}
	}
	return true, nil
}

// maxAfter is how many of the events that come after one are looked at to find a join that follows on it.
const maxAfter = 20

// joinedUpon says whether a user of a server joined right after an event. Whoever joins without being told of the members asks for the event before
// the join and its state afterwards; Synapse never again gets to know a room if it is refused that, because its user has left meanwhile.
func (r *room) joinedUpon(ctx context.Context, server matrix.ServerName, ev *Event) (bool, error) {
	nids, err := storage.HistoryForward(ctx, r.e.db, r.nid, ev.Depth(), ev.Pos, maxAfter)
	if err != nil {
		return false, err
	}
	after, err := r.e.eventsByNID(ctx, nids)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(after, func(join *Event) bool {
		return join.Membership() == "join" && domain(join.Sender()) == server && slices.Contains(join.PrevEvents(), ev.ID())
	}), nil
}

// hasServer says whether a server has a user in the room, or may have one by what is known of a partial state.
func (r *room) hasServer(ctx context.Context, server matrix.ServerName) (bool, error) {
	nid, err := r.e.db.LookupName(ctx, string(server))
	if err != nil {
		return false, ignoreNotFound(err)
	}
	if joined, err := storage.ServerJoined(ctx, r.e.db, r.nid, nid, storage.EndOfStream); joined || err != nil {
		return joined, err
	}
	// While the state is partial we cannot know that all users of a server have left.
	pr := r.e.partials.get(r.nid)
	return pr != nil && slices.Contains(pr.servers, server), nil
}

// serverView says what of a room's history a server may see. spec: server-server-api#backfilling-and-retrieving-missing-events
type serverView struct {
	e      *Engine
	server matrix.ServerName
	memo   map[statetree.Ref]serverAt
	joined *bool // whether it is in the room now, once that was asked

	erasures erasures
}

// joinedNow says whether the server has a user in the room of an event.
func (v *serverView) joinedNow(ctx context.Context, ev *Event) (bool, error) {
	if v.joined == nil {
		r, err := v.e.roomByNID(ctx, ev.RoomNID)
		if err != nil {
			return false, err
		}
		defer r.release()
		in, err := r.hasServer(ctx, v.server)
		if err != nil {
			return false, err
		}
		v.joined = &in
	}
	return *v.joined, nil
}

func (v *serverView) sees(ctx context.Context, ev *Event) (bool, error) {
	if ev.Outlier {
		return ev.IsState(), nil
	}
	if ev.sticks(v.e.now()) {
		if in, err := v.joinedNow(ctx, ev); err != nil || in {
			return in, err
		}
	}
	at, err := v.at(ctx, ev)
	if err != nil {
		return false, err
	}
	vis, in := at.visibility, at.membership
	key, _ := ev.StateKey()
	switch {
	case ev.Is("m.room.history_visibility", ""):
		// What a change hides or shows is judged by the more open side.
		if after := visibility(ev); openness[after] > openness[vis] {
			if vis = after; vis == "invited" && in == "" {
				in, err = v.invited(ctx, ev)
			}
		}
	case ev.Type() == "m.room.member" && domain(key) == v.server && in != "join":
		if m := ev.Membership(); m == "join" || m == "invite" {
			in = m
		}
	}
	return vis == "shared" || vis == "world_readable" || in == "join" || vis == "invited" && in == "invite", err
}

// serverAt is what matters of a state to a server.
type serverAt struct {
	visibility string
	membership string // "join" if any of its users is joined; else "invite" if any is invited, which is looked at if it makes a difference
}

// at reads the state before an event.
func (v *serverView) at(ctx context.Context, ev *Event) (at serverAt, err error) {
	if at, known := v.memo[ev.stateBefore]; known {
		return at, nil
	}
	state := State{v.e, v.e.treeBefore(ev)}
	set, err := state.Event(ctx, "m.room.history_visibility", "")
	if err != nil {
		return at, err
	}
	at.visibility = visibility(set)
	if at.visibility == "joined" || at.visibility == "invited" {
		joined, err := v.e.servers.at(ctx, v.e, ev.RoomNID, state.tree)
		if err != nil {
			return at, err
		}
		pr := v.e.partials.get(ev.RoomNID)
		switch {
		case joined[v.server] > 0 || ev.Partial && pr != nil && slices.Contains(pr.servers, v.server):
			at.membership = "join"
		case at.visibility == "invited":
			if at.membership, err = v.invited(ctx, ev); err != nil {
				return at, err
			}
		}
	}
	if v.memo == nil {
		v.memo = make(map[statetree.Ref]serverAt)
	}
	v.memo[ev.stateBefore] = at
	return at, nil
}

// invited is "invite" if the state before an event has an invite of one of the server's users.
func (v *serverView) invited(ctx context.Context, ev *Event) (string, error) {
	members, err := State{v.e, v.e.treeBefore(ev)}.OfType(ctx, "m.room.member")
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if key, _ := m.StateKey(); domain(key) == v.server && m.Membership() == "invite" {
			return "invite", nil
		}
	}
	return "", nil
}

// pdus returns events as the server may see them: what it may not see, and what is erased, in redacted form.
func (v *serverView) pdus(ctx context.Context, events []*Event) ([][]byte, error) {
	out := make([][]byte, 0, len(events))
	for _, ev := range events {
		ok, err := v.sees(ctx, ev)
		if err != nil {
			return nil, err
		}
		erased, err := v.erasures.asked(ctx, v.e, ev)
		if err != nil {
			return nil, err
		}
		if ok && !erased {
			out = append(out, ev.JSON())
		} else {
			out = append(out, ev.Redact().JSON())
		}
	}
	return out, nil
}

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
	r, err := e.served(ctx, origin, room, id)
	if err != nil {
		return nil, err
	}
	defer r.release()
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
