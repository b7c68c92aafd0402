package rooms

import (
	"context"
	"errors"
	"slices"

	"hanok/matrix"
	"hanok/matrix/acl"
	"hanok/storage"
	"hanok/storage/statetree"
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

// maySeeAuth is maySee of an event's auth chain. That of a membership is shown to the user's server also if it is not in the room: who was removed
// while others did not know of the join is told so, and its server has to be able to check it.
func (r *room) maySeeAuth(ctx context.Context, origin matrix.ServerName, id matrix.EventID) error {
	err := r.maySee(ctx, origin, []matrix.EventID{id})
	if !matrix.HasCode(err, "M_FORBIDDEN") || errors.Is(err, errIsolatedRoom) || errors.Is(err, errBarred) {
		return err
	}
	known, failed := r.eventsByID(ctx, []matrix.EventID{id})
	if failed != nil {
		return failed
	}
	if ev := known[id]; ev != nil && !ev.Outlier && ev.Type() == "m.room.member" {
		if user, _ := ev.StateKey(); domain(user) == origin {
			return nil
		}
	}
	return err
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

// serverNID is the number of a server's name, 0 if that occurs nowhere. It need not, though the server is in a room: while a room's members are not
// known its servers are, as they were told on joining.
func (e *Engine) serverNID(ctx context.Context, server matrix.ServerName) (storage.NameNID, error) {
	nid, err := e.db.LookupName(ctx, string(server))
	return nid, ignoreNotFound(err)
}

// hasServer says whether a server has a user in the room, or may have one by what is known of a partial state.
func (r *room) hasServer(ctx context.Context, server matrix.ServerName) (bool, error) {
	nid, err := r.e.serverNID(ctx, server)
	if err != nil {
		return false, err
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
