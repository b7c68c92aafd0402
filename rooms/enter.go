package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"hanok/internal/budget"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// madeMember is a membership event of our user that another server has made for us.
type madeMember struct {
	version *roomversion.Version
	event   *event.Event
}

// joinThrough joins a room through a server that is in it. spec: ss/makeJoin, ss/sendJoinV2
func (e *Engine) joinThrough(ctx context.Context, q MemberRequest, content []byte) (id matrix.EventID, err error) {
	err = throughServers(ctx, e, q, func(ctx context.Context, server matrix.ServerName) (*madeMember, error) {
		made, err := e.remote.MakeJoin(ctx, server, q.Room, q.Sender, supportedVersions())
		if err != nil {
			return nil, err
		}
		t, err := readTemplate(made, q.Room, q.Sender, "join")
		if err != nil {
			return nil, err
		}
		join, err := e.complete(t, content, q.Timestamp)
		if err != nil {
			return nil, err
		}
		return &madeMember{t.version, join}, e.barred(ctx, t, q.Sender)
	}, func(w *wayIn, join *madeMember) error {
		id = join.event.ID()
		return e.sendJoin(ctx, w, q.Room, join)
	})
	return id, err
}

// maxJoinsSent is to how many servers one join is sent.
const maxJoinsSent = 3

// sendJoin puts a join into its room. Where the server that made it does not answer, it may have taken the join all the same: the others are given
// the very same event, not another one. Only a restricted join is of no use to them: it needs the signature of the server that made it.
func (e *Engine) sendJoin(ctx context.Context, w *wayIn, room matrix.RoomID, join *madeMember) error {
	to := []matrix.ServerName{w.server}
	if _, restricted := canonicaljson.Get(join.event.Content(), "join_authorised_via_users_server"); !restricted {
		for _, s := range w.servers {
			if s != w.server && len(to) < maxJoinsSent && !slices.Contains(w.failed, s) {
				to = append(to, s)
			}
		}
	}
	ctx, over := budget.Keep(ctx)
	defer over()
	sending, stop := context.WithCancel(ctx)
	defer stop()
	var refused error
	done, err := inquiry[SentJoin]{
		next: listed(to),
		ask: func(ctx context.Context, server matrix.ServerName) (SentJoin, error) {
			return e.remote.SendJoin(ctx, server, room, join.event.ID(), join.event.JSON())
		},
		take: func(server matrix.ServerName, sent SentJoin) error { return e.joined(ctx, server, room, join, sent) },
		failed: func(server matrix.ServerName, err error) {
			if server == w.server {
				refused = err // the others need not have what the join follows on
			}
			if server == w.server && answers(err) {
				stop()
			}
		},
		after: overtakeJoin, most: mostStates,
	}.run(sending, e)
	if done || refused == nil {
		return err
	}
	return refused
}

// joined makes a join count that a server has accepted.
func (e *Engine) joined(ctx context.Context, server matrix.ServerName, room matrix.RoomID, made *madeMember, sent SentJoin) error {
	join := made.event
	if sent.Event != nil {
		signed, err := event.Parse(made.version, sent.Event)
		if err != nil || signed.ID() != join.ID() || signed.HashMismatch() {
			return nonsense("another event came back")
		}
		// It may have come back with other content under our name, or without the signature that a restricted room asks for.
		if err := e.verify(ctx, []*event.Event{signed})[0]; err != nil {
			return nonsense("our join came back without the signatures that it needs").Because(err)
		}
		join = signed
	}
	// From here on the room counts us in: finish even if the client has gone away.
	ctx = context.WithoutCancel(ctx)
	if r, err := e.room(ctx, room); err == nil {
		resident, err := r.resident(ctx)
		if err == nil && resident && !e.refusedHere(r.nid) {
			// A restricted room that we are in, or one whose members we do not know yet: another server let the user in.
			defer r.release()
			return e.receiveOwn(ctx, server, r, join)
		}
		r.release()
		if err != nil {
			return err
		}
	}
	if err := e.enter(ctx, server, made.version, room, join, sent); err != nil {
		return fmt.Errorf("send_join: %w", err)
	}
	if m, err := e.MembershipOf(ctx, room, join.Sender()); err != nil || m.Membership == "join" {
		return err
	}
	return errJoinUndone
}

// errJoinUndone is what becomes of a join through a server that counted the user in still, where nobody may come in again just so.
var errJoinUndone = matrix.Forbidden("You left the room before, of which the server that let you in had not heard, and the room does not let you in again.")

// receiveOwn takes a membership event of a local user that another server has taken for a room that this server is in. M_FORBIDDEN if it is not allowed by
// what is known here, which the other one may not have heard of yet.
func (e *Engine) receiveOwn(ctx context.Context, server matrix.ServerName, r *room, made *event.Event) error {
	if err := e.receive(ctx, server, r, []*event.Event{made})[0]; err != nil {
		return rejection(err)
	}
	stored, err := e.Event(ctx, made.ID())
	if err == nil && (stored.SoftFailed || stored.Rejected && !stored.Partial) {
		err = matrix.Forbidden("the room does not allow it")
	}
	return err
}

// enter makes a room ours from the answer to a join.
func (e *Engine) enter(ctx context.Context, server matrix.ServerName, v *roomversion.Version, id matrix.RoomID, join *event.Event, sent SentJoin) error {
	states, err := e.parseAll(v, id, sent.State)
	if err != nil {
		return err
	}
	chain, err := e.parseAll(v, id, sent.AuthChain)
	if err != nil {
		return err
	}
	r, err := e.claimRoom(ctx, id, v)
	if err != nil {
		return err
	}
	defer r.release()
	wanted := slices.Clone(join.AuthEvents())
	for _, ev := range states {
		wanted = append(wanted, ev.ID())
	}
	given, err := r.vouched(ctx, leadingTo(wanted, append(slices.Clone(chain), states...)))
	if err != nil {
		return err
	}
	if err := r.lockInbound(ctx); err != nil {
		return err
	}
	defer r.unlockInbound()
	known, err := r.storeOutliers(ctx, given)
	if err != nil {
		return err
	}
	tree, err := r.treeOf(ctx, states, known)
	if err != nil {
		return err
	}
	create, err := e.lookup(ctx, tree, "m.room.create", "")
	if err != nil {
		return err
	}
	if create == 0 {
		return nonsense("the state has no valid m.room.create")
	}
	if ev := known[matrixIDOf(known, create)]; ev != nil {
		if stated, ok := ev.ContentString("room_version"); ok && stated != string(v.ID) || !ok && v.ID != "1" {
			return nonsense("m.room.create and make_join disagree about the room version")
		}
	}
	rejection, err := r.checkEvent(ctx, join, tree, sent.MembersOmitted)
	if err != nil {
		return err
	}
	if rejection != nil {
		return nonsense("our join is not allowed by the state that came with it").Because(rejection)
	}
	if !sent.MembersOmitted {
		return r.takeOver(ctx, join, tree, nil)
	}
	return r.takeOver(ctx, join, tree, e.partialRoom(r, server, sent.Servers))
}

// barred looks at the template of a join: if it goes back on a ban that we know, the state that comes with the answer need not say so.
func (e *Engine) barred(ctx context.Context, t *template, user matrix.UserID) error {
	known, err := e.eventsByID(ctx, t.proto.AuthEvents)
	if err != nil {
		return err
	}
	for _, ev := range known {
		if ev.Is("m.room.member", string(user)) && ev.Membership() == "ban" && !ev.Rejected {
			return matrix.Forbidden("you are banned from this room")
		}
	}
	return nil
}

func matrixIDOf(known map[matrix.EventID]*Event, nid storage.EventNID) matrix.EventID {
	for id, ev := range known {
		if ev.NID == nid {
			return id
		}
	}
	return ""
}

// treeState is a stored state as the auth rules see it.
type treeState struct {
	ctx  context.Context
	r    *room
	tree statetree.Tree
}

// StateEvent implements eventauth.State.
func (s treeState) StateEvent(eventType, stateKey string) (*event.Event, error) {
	nid, err := s.r.e.lookup(s.ctx, s.tree, eventType, stateKey)
	if err != nil || nid == 0 {
		return nil, err
	}
	ev, err := s.r.event(s.ctx, nid)
	if err != nil {
		return nil, err
	}
	return ev.Event, nil
}

// claimRoom is ensureRoom for who has been let in by a server of the room, which knows its version. An invite can have come
// before that claimed another version: it must not keep everybody out.
func (e *Engine) claimRoom(ctx context.Context, id matrix.RoomID, v *roomversion.Version) (*room, error) {
	r, err := e.room(ctx, id)
	if err == nil {
		nid, version := r.nid, r.version.ID
		r.release()
		if version != v.ID {
			if err := e.freeRoomID(ctx, id, nid); err != nil {
				return nil, err
			}
		}
	}
	return e.ensureRoom(ctx, id, v)
}

// freeRoomID makes the ID of a room free, unless this server was joined to it.
func (e *Engine) freeRoomID(ctx context.Context, id matrix.RoomID, nid storage.RoomNID) error {
	var nids []storage.NameNID
	for _, m := range []storage.Membership{storage.MembershipInvite, storage.MembershipKnock, storage.MembershipLeave, storage.MembershipBan} {
		rows, err := storage.MembershipsIn(ctx, e.db, nid, m)
		if err != nil {
			return err
		}
		for _, row := range rows {
			nids = append(nids, row.User)
		}
	}
	members, err := e.db.UserIDs(ctx, nids...)
	if err != nil {
		return err
	}
	e.userRooms.hold(members)
	defer e.userRooms.release(members)
	err = e.db.Write(ctx, func(tx *storage.Tx) error { return storage.AbandonRoom(ctx, tx, nid) })
	if err != nil {
		return ignoreNotFound(err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.byID, id)
	delete(e.byNID, nid)
	return nil
}

// errOtherVersion is in the error about a room that is known here as one of another version.
var errOtherVersion = errors.New("rooms: another room version")

// ensureRoom returns a room, pinned, storing it if it is new.
func (e *Engine) ensureRoom(ctx context.Context, id matrix.RoomID, v *roomversion.Version) (*room, error) {
	r, err := e.room(ctx, id)
	if err == nil {
		if r.version.ID != v.ID {
			r.release()
			return nil, matrix.InvalidParam("the room is known here as one of version %s, not %s", r.version.ID, v.ID).Because(errOtherVersion)
		}
		return r, nil
	}
	if !matrix.HasCode(err, "M_NOT_FOUND") {
		return nil, err
	}
	nid, err := e.db.AllocateRoom()
	if err != nil {
		return nil, err
	}
	err = e.db.Write(ctx, func(tx *storage.Tx) error { return storage.InsertRoom(ctx, tx, nid, id, string(v.ID)) })
	if err != nil {
		return nil, err
	}
	return e.room(ctx, id)
}

// takeOver sets the room's head to our join and its state to what came with it, which is partial if the room is to be so.
func (r *room) takeOver(ctx context.Context, join *event.Event, tree statetree.Tree, partial *partialRoom) error {
	ev, promote, err := r.newEvent(ctx, join)
	if err != nil {
		return err
	}
	ev.Outlier, ev.Partial = false, partial != nil
	ev.stateBefore = tree.Ref()
	after, err := tree.With(ctx, ev.entry())
	if err != nil {
		return err
	}
	prevs, err := r.eventsByID(ctx, join.PrevEvents())
	if err != nil {
		return err
	}
	r.mu.Lock()
	if err := r.load(ctx); err != nil {
		r.mu.Unlock()
		return err
	}
	it := &item{ev: ev, before: tree, timeline: forward, promote: promote, moved: true}
	en := &entry{room: r, line: r.line, items: []*item{it}}
	r.addPending(it, after)
	if err := r.restart(ctx, en, tree, after); err != nil {
		r.pending.drop(en.items)
		r.mu.Unlock()
		return err
	}
	for _, p := range missingPrevs(join, prevs) {
		en.missing = append(en.missing, storage.MissingPrev{ID: p, Child: ev.NID, Depth: join.Depth()})
	}
	if partial == nil {
		if partial, err = r.stillPartial(ctx, en); err != nil {
			r.pending.drop(en.items)
			r.mu.Unlock()
			return err
		}
	}
	r.head = en.head
	var before *partialRoom
	if partial != nil {
		en.partial, before = partial, r.e.partials.begin(partial)
	}
	r.e.committer.add(en)
	r.mu.Unlock()
	err = en.wait(ctx)
	if partial != nil {
		if err != nil {
			r.e.partials.restore(r.nid, before)
		}
		r.e.partials.start()
	}
	return err
}

// stillPartial is for a room that this server was in before, and left or lost without ever knowing its members, now that it knows them. The events of
// that time are still to be judged by what they were; r.mu is held.
func (r *room) stillPartial(ctx context.Context, en *entry) (*partialRoom, error) {
	before := r.e.partials.get(r.nid)
	if before == nil {
		return nil, nil
	}
	events, err := r.partialEvents(ctx)
	if err != nil {
		return nil, err
	}
	if len(events) == 0 {
		en.whole = &restatement{room: r}
		return nil, nil
	}
	return newPartialRoom(r.nid, r.id, before.servers...), nil
}

// restart moves the head to our join, whose state before is tree; r.mu is held.
func (r *room) restart(ctx context.Context, en *entry, tree, after statetree.Tree) error {
	it := en.items[0]
	ev := it.ev
	en.head = &head{tips: []tip{{nid: ev.NID, id: ev.ID(), depth: ev.Depth(), after: after, partial: ev.Partial}}, state: after}
	missed, err := r.missedLeave(ctx, tree, ev)
	if err != nil {
		return err
	}
	if missed {
		// Its state is another branch's. What we know of ours counts as well, as it does for all who have heard.
		for _, t := range deepest(r.head.tips, min(len(r.head.tips), maxTips-1)) {
			if !slices.Contains(ev.prevs, t.nid) {
				t.unweighed = t.unweighed || ev.Partial
				en.head.tips = append(en.head.tips, t)
			}
		}
		if en.head.state, err = r.stateOver(ctx, en.head.tips); err != nil {
			return err
		}
	}
	it.current = en.head.state.Ref()
	if en.members, err = r.memberChanges(ctx, r.head.state, en.head.state, ev); err != nil {
		return err
	}
	if en.members, err = r.afterEnd(ctx, en.head.state, en.members); err != nil || ev.Partial {
		return err
	}
	en.members, err = r.settleApart(ctx, en.head.state, en.members)
	return err
}

// settleApart adds to the changes of membership those of local users that were invited or knocked while this server was not in the room, and of
// whom the room's state says something else, or nothing: it counts from now on.
func (r *room) settleApart(ctx context.Context, state statetree.Tree, changes []memberChange) ([]memberChange, error) {
	e := r.e
	for _, m := range []storage.Membership{storage.MembershipInvite, storage.MembershipKnock} {
		rows, err := storage.MembershipsIn(ctx, e.db, r.nid, m)
		if err != nil {
			return nil, err
		}
		nids := make([]storage.NameNID, len(rows))
		for i, row := range rows {
			nids[i] = row.User
		}
		names, err := e.db.UserIDs(ctx, nids...)
		if err != nil {
			return nil, err
		}
		for i, row := range rows {
			if !e.isLocal(names[i]) || slices.ContainsFunc(changes, func(ch memberChange) bool { return ch.user == row.User }) {
				continue
			}
			nid, err := e.lookup(ctx, state, "m.room.member", string(names[i]))
			if err != nil {
				return nil, err
			}
			ch := memberChange{user: row.User, server: e.own, name: names[i], previous: m.String(), current: "leave"}
			switch {
			case nid == row.Event:
				continue
			case nid != 0:
				if ch.event, err = r.event(ctx, nid); err != nil {
					return nil, err
				}
				ch.current = ch.event.Membership()
			}
			changes = append(changes, ch)
		}
	}
	return changes, nil
}

// maxMemberships bounds the walk through former memberships of a user.
const maxMemberships = 50

// missedLeave says whether the server that lets us in again has not heard how we left: the state before the join holds an earlier membership of
// a local user than we know of, or one that was made upon such a state. Everybody else will hear, and take it for a branch beside our join. The state may lack members, but the join
// names the one before it. r.mu is held.
func (r *room) missedLeave(ctx context.Context, tree statetree.Tree, join *Event) (bool, error) {
	if len(r.head.tips) == 0 {
		return false, nil
	}
	diffs, err := statetree.Diff(ctx, r.head.state, tree)
	if err != nil {
		return false, err
	}
	diffs = slices.DeleteFunc(diffs, func(d statetree.Difference) bool { return d.Events[0] == 0 })
	names, err := r.e.diffNames(ctx, diffs)
	if err != nil {
		return false, err
	}
	for i, d := range diffs {
		if names[i].Type != "m.room.member" || !r.e.isLocal(matrix.UserID(names[i].Key)) {
			continue
		}
		ours, err := r.event(ctx, storage.EventNID(d.Events[0]))
		if err != nil {
			return false, err
		}
		theirs := storage.EventNID(d.Events[1])
		switch {
		case theirs != 0:
		case join.Is("m.room.member", names[i].Key):
			before, err := r.membershipBefore(ctx, join)
			if err != nil {
				return false, err
			}
			if before != nil {
				theirs = before.NID
			}
		case join.Partial && (ours.Membership() == "leave" || ours.Membership() == "ban") && join.Depth() <= ours.Depth()+maxGap:
			// The state lacks this membership, and is too early for its end, or may be. What comes before the join tells: see gap.go.
			return true, nil
		}
		if apart, err := r.apartFrom(ctx, ours, theirs); apart || err != nil {
			return apart, err
		}
	}
	return false, nil
}

// membershipBefore finds the user's previous membership event among the auth events of another, nil if there is none.
func (r *room) membershipBefore(ctx context.Context, member *Event) (*Event, error) {
	key, _ := member.StateKey()
	known, err := r.eventsByID(ctx, member.AuthEvents())
	if err != nil {
		return nil, err
	}
	for _, ev := range known {
		if ev.Is("m.room.member", key) {
			return ev, nil
		}
	}
	return nil, nil
}

// apartFrom says whether another membership of a local user is one before the user's present one, or the user's own, from a branch beside it.
func (r *room) apartFrom(ctx context.Context, member *Event, other storage.EventNID) (bool, error) {
	if other == 0 || member.NID == other {
		return false, nil
	}
	if earlier, err := r.earlierMembership(ctx, member, other); earlier || err != nil {
		return earlier, err
	}
	beside, err := r.event(ctx, other)
	if err != nil || !r.e.isLocal(beside.Sender()) {
		return false, err
	}
	later, err := r.earlierMembership(ctx, beside, member.NID)
	return !later, err
}

// earlierMembership says whether a user had another membership before one.
func (r *room) earlierMembership(ctx context.Context, member *Event, other storage.EventNID) (bool, error) {
	for range maxMemberships {
		before, err := r.membershipBefore(ctx, member)
		if before == nil || err != nil {
			return false, err
		}
		if before.NID == other {
			return true, nil
		}
		member = before
	}
	return false, nil
}
