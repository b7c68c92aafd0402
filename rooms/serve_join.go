package rooms

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// guest returns a room that a user of another server wants to enter or leave through us. Pinned.
func (e *Engine) guest(ctx context.Context, origin matrix.ServerName, id matrix.RoomID, user matrix.UserID) (*room, error) {
	if domain(user) != origin {
		return nil, matrix.Forbidden("the user is of another server")
	}
	r, err := e.room(ctx, id)
	if err != nil {
		return nil, err
	}
	resident, err := r.resident(ctx)
	if err == nil && !resident {
		err = matrix.NotFound("this server is not in the room")
	}
	if err == nil {
		err = r.refusePartial(ctx)
	}
	if err == nil {
		err = r.allowsServer(ctx, origin)
	}
	if err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// make builds a membership event for a user of another server on our head.
func (r *room) make(ctx context.Context, user matrix.UserID, membership string, content []byte) (MadeEvent, error) {
	if content == nil {
		content = []byte(`{"membership":"` + membership + `"}`)
	}
	ev, err := r.composeMember(ctx, MemberRequest{Room: r.id, Sender: user}, content, appendOptions{unchecked: true})
	if err != nil {
		return MadeEvent{}, err
	}
	return MadeEvent{Version: r.version.ID, Event: madeFrom(ev.JSON())}, nil
}

func incompatible(v roomversion.ID) error {
	return matrix.Errorf(http.StatusBadRequest, "M_INCOMPATIBLE_ROOM_VERSION", "the room is of version %s, which your server does not support", v).With("room_version", string(v))
}

// MakeJoin makes a join for a user of origin. M_INCOMPATIBLE_ROOM_VERSION, M_UNABLE_TO_AUTHORISE_JOIN, M_UNABLE_TO_GRANT_JOIN, M_NOT_FOUND. spec: ss/makeJoin
func (e *Engine) MakeJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (MadeEvent, error) {
	r, err := e.guest(ctx, origin, room, user)
	if err != nil {
		return MadeEvent{}, err
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return MadeEvent{}, err
	}
	if len(c.local) == 0 {
		return MadeEvent{}, matrix.NotFound("nobody is in this room any more")
	}
	if !slices.Contains(versions, r.version.ID) {
		return MadeEvent{}, incompatible(r.version.ID)
	}
	content, err := e.grant(ctx, r, user, []byte(`{"membership":"join"}`))
	if err != nil {
		return MadeEvent{}, err
	}
	return r.make(ctx, user, "join", content)
}

// grant authorises a restricted join for another server's user.
func (e *Engine) grant(ctx context.Context, r *room, user matrix.UserID, content []byte) ([]byte, error) {
	c, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	content, err = e.authorise(ctx, r, State{e, c.head.state}, user, content)
	switch {
	case errors.Is(err, errUnknownMember):
		return nil, matrix.Errorf(http.StatusBadRequest, "M_UNABLE_TO_AUTHORISE_JOIN", "this server cannot tell whether the user may join")
	case errors.Is(err, errNoAuthoriser):
		return nil, matrix.Errorf(http.StatusBadRequest, "M_UNABLE_TO_GRANT_JOIN", "the user may join, but nobody on this server may let them in")
	}
	return content, err
}

// member checks a membership event that another server sends for its user.
func (e *Engine) member(ctx context.Context, origin matrix.ServerName, r *room, id matrix.EventID, pdu []byte, membership string) (*event.Event, error) {
	ev, err := event.Parse(r.version, pdu)
	if err != nil {
		return nil, err
	}
	key, _ := ev.StateKey()
	switch {
	case ev.RoomID() != r.id || ev.ID() != id || ev.HashMismatch():
		return nil, matrix.InvalidParam("the event is not the one named in the path")
	case ev.Type() != "m.room.member" || ev.Membership() != membership || key != string(ev.Sender()):
		return nil, matrix.InvalidParam("the event is not a %s of its sender", membership)
	case domain(ev.Sender()) != origin:
		return nil, matrix.Forbidden("the sender is of another server")
	}
	return ev, nil
}

// admit puts such an event into the room; it is then ours to send on to the other servers.
func (e *Engine) admit(ctx context.Context, origin matrix.ServerName, r *room, ev *event.Event, check func(headView) error) (*Event, error) {
	if err := e.verify(ctx, []*event.Event{ev})[0]; err != nil {
		return nil, matrix.Forbidden("the event is not properly signed").Because(err)
	}
	in := r.newInbound(origin)
	defer in.unlock()
	in.relay, in.check = true, check
	if err := in.handle(ctx, ev, true); err != nil {
		return nil, rejection(err)
	}
	in.unlock()
	for _, en := range in.entries {
		if err := en.wait(ctx); err != nil {
			return nil, err
		}
	}
	stored, err := e.Event(ctx, ev.ID())
	if err != nil {
		return nil, err
	}
	if stored.SoftFailed && in.refusal != nil {
		return nil, in.refusal
	}
	if stored.SoftFailed || stored.Rejected {
		return nil, matrix.Forbidden("the room does not allow it")
	}
	return stored, nil
}

// SendJoin accepts a join made by MakeJoin. spec: ss/sendJoinV2
func (e *Engine) SendJoin(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte, omitMembers bool) (SentJoin, error) {
	r, err := e.guest(ctx, origin, room, matrix.UserID("@:"+string(origin)))
	if err != nil {
		return SentJoin{}, err
	}
	defer r.release()
	ev, err := e.member(ctx, origin, r, id, pdu, "join")
	if err != nil {
		return SentJoin{}, err
	}
	if ev, err = e.countersign(ctx, r, ev); err != nil {
		return SentJoin{}, err
	}
	stored, err := e.admit(ctx, origin, r, ev, r.mayHost)
	if err != nil {
		return SentJoin{}, err
	}
	return e.joinAnswer(ctx, r, stored, omitMembers)
}

// mayHost is asked under the room's lock: M_NOT_FOUND if the last local user has left since the join was made. Nobody would tell the new
// server what happened in between.
func (r *room) mayHost(v headView) error {
	for _, u := range r.committed.Load().local {
		if m, err := v.membership(u); err != nil || m == "join" {
			return err
		}
	}
	return matrix.NotFound("this server has just left the room")
}

// countersign adds our signature to a restricted join that one of our users authorises.
func (e *Engine) countersign(ctx context.Context, r *room, ev *event.Event) (*event.Event, error) {
	by, ok := canonicaljson.GetString(ev.Content(), "join_authorised_via_users_server")
	if !ok || domain(by) != e.server {
		return ev, nil
	}
	if _, err := e.grant(ctx, r, ev.Sender(), []byte(`{"membership":"join"}`)); err != nil {
		return nil, err
	}
	return ev.Sign(e.server, e.key)
}

func (e *Engine) joinAnswer(ctx context.Context, r *room, join *Event, omitMembers bool) (SentJoin, error) {
	out := SentJoin{Event: join.JSON()}
	states, err := treeEvents(ctx, e.treeBefore(join))
	if err != nil {
		return SentJoin{}, err
	}
	if omitMembers {
		if states, err = e.withoutMembers(ctx, r, join, states); err != nil {
			return SentJoin{}, err
		}
		out.MembersOmitted = true
		if out.Servers, err = e.serversBefore(ctx, r, join); err != nil {
			return SentJoin{}, err
		}
	}
	if out.State, err = e.rawEvents(ctx, states); err != nil {
		return SentJoin{}, err
	}
	chain, err := r.authChain(ctx, append(slices.Clone(states), join.NID))
	if err != nil {
		return SentJoin{}, err
	}
	if omitMembers {
		given := make(map[storage.EventNID]bool, len(states))
		for _, nid := range states {
			given[nid] = true
		}
		chain = slices.DeleteFunc(chain, func(nid storage.EventNID) bool { return given[nid] })
	}
	out.AuthChain, err = e.rawEvents(ctx, chain)
	return out, err
}

// withoutMembers leaves the memberships out of a state, but for those by which a room without a name is named.
// spec: ss/sendJoinV2 omit_members
func (e *Engine) withoutMembers(ctx context.Context, r *room, join *Event, states []storage.EventNID) ([]storage.EventNID, error) {
	tree := e.treeBefore(join)
	drop := make(map[storage.EventNID]bool)
	err := tree.OfType(ctx, int64(join.typ), func(en statetree.Entry) bool {
		drop[storage.EventNID(en.Event)] = true
		return true
	})
	if err != nil {
		return nil, err
	}
	named, err := State{e, tree}.Named(ctx)
	if err != nil {
		return nil, err
	}
	if !named {
		summary, err := e.MemberSummary(ctx, r.nid, join.Sender())
		if err != nil {
			return nil, err
		}
		for _, hero := range summary.Heroes {
			nid, err := e.lookup(ctx, tree, "m.room.member", string(hero))
			if err != nil {
				return nil, err
			}
			delete(drop, nid)
		}
	}
	return slices.DeleteFunc(states, func(nid storage.EventNID) bool { return drop[nid] }), nil
}

// serversBefore lists the servers that were in the room before a join: those that are now, but for the joining one if
// it was not.
func (e *Engine) serversBefore(ctx context.Context, r *room, join *Event) ([]matrix.ServerName, error) {
	servers, err := e.JoinedServers(ctx, r.id)
	if err != nil {
		return nil, err
	}
	joining := domain(join.Sender())
	before, err := e.servers.at(ctx, e, r.nid, e.treeBefore(join))
	if err != nil || before[joining] > 0 {
		return servers, err
	}
	return slices.DeleteFunc(slices.Clone(servers), func(s matrix.ServerName) bool { return s == joining }), nil
}

// MissedBy lists what a server has to be sent beside the join by which it comes into a room, none for any other event: this server's own sticky events,
// and what happened while the join was made: what our own users did, who were not heard of where it was made; all of it if it came in through this server.
func (e *Engine) MissedBy(ctx context.Context, join *Event) ([]*Event, error) {
	key, ok := join.StateKey()
	if !ok || join.Type() != "m.room.member" || join.Membership() != "join" || e.isLocal(matrix.UserID(key)) {
		return nil, nil
	}
	joined, err := e.servers.at(ctx, e, join.RoomNID, e.treeBefore(join))
	if err != nil || joined[domain(key)] > 0 {
		return nil, err
	}
	missed, err := e.stickyFor(ctx, join)
	if err != nil {
		return nil, err
	}
	beside, err := e.beside(ctx, join)
	return append(beside, slices.DeleteFunc(missed, func(ev *Event) bool {
		return slices.ContainsFunc(beside, func(b *Event) bool { return b.NID == ev.NID })
	})...), err
}

// maxBeside is among how many events that came last those are looked for which are sent to a server because they came while its join was made.
const maxBeside = 50

// beside lists what came into the room before a join and not before what it was made upon, as far as its server may see it, and only what our users
// sent of a join that came in through another server. Nobody sends that server these events, since it was not in the room when they were made, and nothing
// that it has refers to them: it would learn of them with the next event only, which may be a long time off.
func (e *Engine) beside(ctx context.Context, join *Event) ([]*Event, error) {
	if len(join.prevs) < max(len(distinctIDs(join.PrevEvents())), 1) {
		return nil, nil
	}
	prevs, err := e.eventsByNID(ctx, join.prevs)
	if err != nil {
		return nil, err
	}
	// Which are those cannot be told by their positions: another server, which has met events in another order, may have made the join.
	nids, err := storage.TimelineBackward(ctx, e.db, join.RoomNID, 0, join.Pos-1, maxBeside)
	if err != nil || len(nids) == 0 {
		return nil, err
	}
	slices.Reverse(nids)
	events, err := e.eventsByNID(ctx, nids)
	if err != nil {
		return nil, err
	}
	if !join.Relay {
		events = slices.DeleteFunc(events, func(ev *Event) bool { return !e.isLocal(ev.Sender()) })
	}
	if len(events) == 0 {
		return nil, nil
	}
	if events, err = e.withoutBefore(ctx, join.RoomNID, events, prevs); err != nil {
		return nil, err
	}
	v := &serverView{e: e, server: domain(join.Sender())}
	out := events[:0]
	for _, ev := range events {
		ok, err := v.sees(ctx, ev)
		if err != nil {
			return nil, err
		}
		if ok && domain(ev.Sender()) != v.server {
			out = append(out, ev)
		}
	}
	return out, nil
}

// Misses says whether a server that is in a room now was not in it at an event, so that who made that did not send it there, and may see it.
func (e *Engine) Misses(ctx context.Context, ev *Event, server matrix.ServerName) (bool, error) {
	if ev.IsDummy() || domain(ev.Sender()) == server || e.isolation.has(ev.RoomID()) {
		return false, nil
	}
	joined, err := e.servers.at(ctx, e, ev.RoomNID, e.treeBefore(ev))
	if err != nil || joined[server] > 0 {
		return false, err
	}
	v := &serverView{e: e, server: server}
	if in, err := v.joinedNow(ctx, ev); err != nil || !in {
		return false, err
	}
	return v.sees(ctx, ev)
}

// withoutBefore leaves out of some events of a room those that are, or come before, others.
func (e *Engine) withoutBefore(ctx context.Context, room storage.RoomNID, events, others []*Event) ([]*Event, error) {
	r, err := e.roomByNID(ctx, room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	lowest := slices.MinFunc(events, func(a, b *Event) int { return cmp.Compare(a.Depth(), b.Depth()) }).Depth()
	before := make(map[storage.EventNID]bool)
	err = r.walkBack(ctx, others, nil, lowest, func(ev *Event) bool {
		before[ev.NID] = true
		return true
	})
	return slices.DeleteFunc(events, func(ev *Event) bool { return before[ev.NID] }), err
}

// MakeLeave makes a leave for a user of origin. spec: ss/makeLeave
func (e *Engine) MakeLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID) (MadeEvent, error) {
	r, err := e.guest(ctx, origin, room, user)
	if err != nil {
		return MadeEvent{}, err
	}
	defer r.release()
	return r.make(ctx, user, "leave", nil)
}

// SendLeave accepts a leave. spec: ss/sendLeaveV2
func (e *Engine) SendLeave(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) error {
	_, err := e.sendMembership(ctx, origin, room, id, pdu, "leave")
	return err
}

func (e *Engine) sendMembership(ctx context.Context, origin matrix.ServerName, roomID matrix.RoomID, id matrix.EventID, pdu []byte, membership string) (*room, error) {
	r, err := e.guest(ctx, origin, roomID, matrix.UserID("@:"+string(origin)))
	if err != nil {
		return nil, err
	}
	defer r.release()
	ev, err := e.member(ctx, origin, r, id, pdu, membership)
	if err != nil {
		return nil, err
	}
	_, err = e.admit(ctx, origin, r, ev, nil)
	return r, err
}

// MakeKnock makes a knock for a user of origin. spec: ss/makeKnock
func (e *Engine) MakeKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (MadeEvent, error) {
	r, err := e.guest(ctx, origin, room, user)
	if err != nil {
		return MadeEvent{}, err
	}
	defer r.release()
	if !slices.Contains(versions, r.version.ID) {
		return MadeEvent{}, incompatible(r.version.ID)
	}
	return r.make(ctx, user, "knock", nil)
}

// SendKnock accepts a knock and returns stripped state. spec: ss/sendKnock
func (e *Engine) SendKnock(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) ([][]byte, error) {
	r, err := e.sendMembership(ctx, origin, room, id, pdu, "knock")
	if err != nil {
		return nil, err
	}
	events, err := r.shownState(ctx)
	if err != nil {
		return nil, err
	}
	return pdusOf(events), nil
}
