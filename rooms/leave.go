package rooms

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
)

// Leave leaves a room, rejects an invite or takes back a knock. It does nothing for those who left. spec: cs/leaveRoom
func (e *Engine) Leave(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	return e.hereOrElsewhere(ctx, q.Room,
		func(ctx context.Context) (matrix.EventID, error) { return e.leave(ctx, q, false) },
		func(ctx context.Context) (matrix.EventID, error) { return e.leave(ctx, q, true) })
}

// mayReject refuses to reject an invite to the room in which the server speaks to a user. spec: client-server-api#server-notices
func (e *Engine) mayReject(ctx context.Context, invite storage.MembershipRow) error {
	if e.notices == "" {
		return nil
	}
	inviter, err := e.db.UserIDs(ctx, invite.Sender)
	if err == nil && inviter[0] == e.notices {
		err = matrix.Errorf(http.StatusForbidden, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM", "this is the room in which the server tells you what you have to know: you cannot reject the invite")
	}
	return err
}

// leave is Leave where this server takes part in the room. Where it does not, it goes through other servers if away is
// set, else it fails with errElsewhere.
func (e *Engine) leave(ctx context.Context, q MemberRequest, away bool) (matrix.EventID, error) {
	r, err := e.room(ctx, q.Room)
	if err != nil {
		return "", hideRoom(err)
	}
	defer r.release()
	m, err := e.membershipIn(ctx, r.nid, q.Sender)
	if err != nil {
		return "", err
	}
	resident, err := r.resident(ctx)
	if err != nil {
		return "", err
	}
	switch m.Membership {
	case storage.MembershipLeave:
		if m.Event == 0 {
			return "", nil // a resolution of states ended the membership: there is no event that did
		}
		ev, err := e.eventByNID(ctx, m.Event)
		if err != nil {
			return "", err
		}
		return ev.ID(), nil
	case storage.MembershipJoin, storage.MembershipInvite, storage.MembershipKnock:
	default:
		return "", matrix.Forbidden("you are not in this room")
	}
	if m.Membership == storage.MembershipInvite {
		if err := e.mayReject(ctx, m); err != nil {
			return "", err
		}
	}
	content, err := e.memberContent(ctx, q, "leave", q.Sender)
	if err != nil {
		return "", err
	}
	if resident {
		id, err := r.appendMember(ctx, q, content, r.mayTurnDown)
		if !errors.Is(err, errElsewhere) || !away {
			return id, err
		}
	}
	if !away {
		return "", errElsewhere
	}
	leave, through, err := e.leaveAway(ctx, q, content, leavePatience, nil)
	if err == nil {
		return leave.ID(), e.taken(ctx, through, r, leave, m.Membership, nil)
	}
	if in, failed := r.inside(ctx); in || failed != nil {
		return "", cmp.Or(failed, err)
	}
	// Nobody in the room can be reached, or they have forgotten the invite: the user is rid of it all the same.
	e.log.Info().Err(err).Int64("room", int64(r.nid)).Msg("a leave stays local")
	var untold func(context.Context, *storage.Tx, *Event) error
	if !nothingToLeave(err) {
		if untold, err = e.tellLater(ctx, r, q); err != nil {
			return "", err
		}
	}
	if leave, err = e.leaveAlone(ctx, r, q, m, content); err != nil {
		return "", err
	}
	return leave.ID(), r.setApart(context.WithoutCancel(ctx), leave, q.Sender, m.Membership, nil, untold)
}

// mayTurnDown is asked under the room's lock before an invite is rejected here, or a knock taken back: errElsewhere if the state lacks members and
// does not have it, or if nobody of this server is in the room by now, so that the others would not hear of it.
func (r *room) mayTurnDown(v headView, current string) error {
	switch {
	case current == "join":
		return nil
	case current != "invite" && current != "knock" && r.head.partial():
		return errElsewhere
	}
	return r.stillHere(v)
}

// inside says whether this server takes part in a room as of its head, and those who are in it do not say otherwise.
func (r *room) inside(ctx context.Context) (bool, error) {
	if resident, err := r.resident(ctx); err != nil || !resident || r.e.refusedHere(r.nid) {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return false, err
	}
	err := r.stillHere(headView{ctx, r, r.head.state})
	if errors.Is(err, errElsewhere) {
		return false, nil
	}
	return err == nil, err
}

// taken makes a membership event of a local user count which another server has taken for the room. stripped is what that shows of the room, nil
// for nothing.
func (e *Engine) taken(ctx context.Context, server matrix.ServerName, r *room, made *event.Event, previous storage.Membership, stripped [][]byte) error {
	ctx = context.WithoutCancel(ctx) // the room has it, even if the client has gone away
	in, err := r.inside(ctx)
	if err != nil {
		return err
	}
	if in {
		err = e.receiveOwn(ctx, server, r, made)
		if made.Membership() == "leave" && matrix.HasCode(err, "M_FORBIDDEN") {
			err = nil // they are out of the room already
		}
		return err
	}
	key, _ := made.StateKey()
	return r.setApart(ctx, made, matrix.UserID(key), previous, stripped, nil)
}

// leavePatience is how long who rejects an invite, or takes back a knock, waits for the servers in the room. After that they are told later.
const leavePatience = 5 * time.Second

// errUnheard is in the error about a leave if not all servers that were asked to take it have answered.
var errUnheard = errors.New("rooms: some servers did not answer")

// nothingToLeave says of a failed leaveAway that those in the room do not know the user as invited, and need not be told.
func nothingToLeave(err error) bool {
	return matrix.HasCode(err, "M_FORBIDDEN") && !errors.Is(err, errIsolatedRoom) && !errors.Is(err, errUnheard)
}

// leaveAway has another server put the leave into the room, and returns which. mayBegin is asked before the first server is sent the leave; nil: it may. spec: ss/makeLeave, ss/sendLeaveV2
func (e *Engine) leaveAway(ctx context.Context, q MemberRequest, content []byte, patience time.Duration, mayBegin func() bool) (leave *event.Event, through matrix.ServerName, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var unheard atomic.Bool
	note := func(err error) error {
		if err != nil && !answers(err) {
			unheard.Store(true)
		}
		return err
	}
	err = throughServers(ctx, e, q, func(ctx context.Context, server matrix.ServerName) (*event.Event, error) {
		made, err := e.remote.MakeLeave(ctx, server, q.Room, q.Sender)
		if err != nil {
			return nil, note(err)
		}
		t, err := readTemplate(made, q.Room, q.Sender, "leave")
		if err != nil {
			return nil, err
		}
		return e.complete(t, content, q.Timestamp)
	}, func(w *wayIn, made *event.Event) error {
		if mayBegin != nil && leave == nil && !mayBegin() {
			return context.Canceled
		}
		leave, through = made, w.server
		return note(e.remote.SendLeave(ctx, w.server, q.Room, leave.ID(), leave.JSON()))
	})
	if err != nil && unheard.Load() {
		err = errors.Join(err, errUnheard)
	}
	return leave, through, err
}

// receiveApart takes events of a room in which this server does not take part. All that can concern us is that a local user's
// invite was taken back, or a knock turned down: nobody else tells us; or an invite that we signed while we were in the room, if
// its last local user left before it came into it.
func (e *Engine) receiveApart(ctx context.Context, r *room, events []*event.Event) []error {
	out := make([]error, len(events))
	asked := make(map[matrix.UserID]bool)
	for i, ev := range events {
		if ev.Membership() == "invite" {
			out[i] = e.invitedBefore(ctx, r, ev)
			continue
		}
		out[i] = e.takenBack(ctx, r, ev, asked)
	}
	return out
}

// invitedBefore takes an invite of a local user that this server has agreed to, which its signature shows.
func (e *Engine) invitedBefore(ctx context.Context, r *room, ev *event.Event) error {
	key, _ := ev.StateKey()
	user := matrix.UserID(key)
	message, signature, ok := ev.SignatureCheck(e.server, e.key.ID)
	if ev.Type() != "m.room.member" || !e.isLocal(user) || ev.HashMismatch() || !ok || !ed25519.Verify(e.key.Public(), message, signature) {
		return ErrNotInRoom
	}
	known, err := r.eventsByID(ctx, []matrix.EventID{ev.ID()})
	if err != nil || known[ev.ID()] != nil {
		return err // it has had its effect
	}
	if err := e.verify(ctx, []*event.Event{ev})[0]; err != nil {
		return err
	}
	if err := e.mayInvite(ctx, user, ev.Sender()); err != nil {
		return err
	}
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return err
	}
	// What the room was when we left is what there is to show.
	shown, err := r.invitePDUs(ctx, ev.Sender())
	if err != nil {
		return err
	}
	return r.setApart(ctx, ev, user, m.Membership, shown, nil)
}

// ErrNotInRoom says of an event of another server that it belongs to a room in which this server takes no part.
var ErrNotInRoom = matrix.Forbidden("this server is not in the room")

// takenBack ends a local user's invite or knock. The room's rules cannot be checked from here; that the event
// names the invite or knock among its auth events shows that its sender's server knows the room. asked notes about whom
// another server was asked on the way: once in a batch is enough.
func (e *Engine) takenBack(ctx context.Context, r *room, ev *event.Event, asked map[matrix.UserID]bool) error {
	key, _ := ev.StateKey()
	user := matrix.UserID(key)
	if ev.Type() != "m.room.member" || !e.isLocal(user) || ev.HashMismatch() || ev.Membership() != "leave" && ev.Membership() != "ban" {
		return ErrNotInRoom
	}
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return err
	}
	if m.Membership != storage.MembershipInvite && m.Membership != storage.MembershipKnock {
		return ErrNotInRoom
	}
	was, err := e.eventByNID(ctx, m.Event)
	if err != nil {
		return err
	}
	if !slices.Contains(ev.AuthEvents(), was.ID()) {
		return ErrNotInRoom
	}
	if err := e.verify(ctx, []*event.Event{ev})[0]; err != nil {
		return err
	}
	// An invite is taken back by who sent it, or by anybody whom the room gives the power to: that cannot be told from outside the room.
	if m.Membership == storage.MembershipInvite && ev.Sender() != was.Sender() {
		if asked[user] {
			return ErrNotInRoom
		}
		asked[user] = true
		if !e.doubted.Add(ev.ID()) {
			// Not while its sender waits for the answer, and before the other server can have heard.
			return matrix.Forbidden("whether the invite was taken back has to be asked").Because(ErrUnsettled)
		}
		if err := e.inviteOver(ctx, r.id, user); err != nil {
			return err
		}
	}
	return r.setApart(ctx, ev, user, m.Membership, nil, nil)
}

// maxDoubted bounds the events that are remembered because they have to come again.
const maxDoubted = 1000

// ErrUnsettled is in the error about an event that may yet be accepted, when another server has heard of it too.
var ErrUnsettled = errors.New("rooms: another server has not heard of it yet")

// inviteOver asks the server that a local user was invited by whether the invite is over. It is not if the user could still reject it. A
// server that has left the room, or does not know its members yet, cannot say (M_NOT_FOUND): then those are asked that are named by the state that came with the invite.
func (e *Engine) inviteOver(ctx context.Context, room matrix.RoomID, user matrix.UserID) error {
	err := throughServers(ctx, e, MemberRequest{Room: room, Sender: user}, func(ctx context.Context, server matrix.ServerName) (MadeEvent, error) {
		return e.remote.MakeLeave(ctx, server, room, user)
	}, func(*wayIn, MadeEvent) error { return nil })
	switch {
	case err == nil:
		return matrix.Forbidden("a server in the room says that the invite stands").Because(ErrUnsettled)
	case errors.Is(err, errIsolatedRoom):
		return err
	case matrix.HasCode(err, "M_FORBIDDEN"):
		return nil
	case matrix.HasCode(err, "M_NOT_FOUND"):
		return matrix.Forbidden("whether the invite was taken back is known to no server that can be asked").Because(ErrUnsettled)
	}
	return matrix.Forbidden("whether the invite was taken back cannot be told").Because(err)
}

// leaveAlone makes a leave that stays on this server.
func (e *Engine) leaveAlone(ctx context.Context, r *room, q MemberRequest, m storage.MembershipRow, content []byte) (*event.Event, error) {
	was, err := e.eventByNID(ctx, m.Event)
	if err != nil {
		return nil, err
	}
	key := string(q.Sender)
	ts := q.Timestamp
	if ts == 0 {
		ts = e.now()
	}
	leave, err := event.Build(r.version, event.Proto{
		RoomID: r.id, Sender: q.Sender, Type: "m.room.member", StateKey: &key, Content: content, OriginServerTS: ts,
		PrevEvents: []matrix.EventID{was.ID()}, AuthEvents: []matrix.EventID{was.ID()}, Depth: min(was.Depth(), event.MaxDepth-1) + 1,
		ReferenceHashes: map[matrix.EventID][sha256.Size]byte{was.ID(): was.ReferenceHash()},
	}, e.server)
	if err != nil {
		return nil, err
	}
	return leave.Sign(e.server, e.key)
}

// Knock asks to be let in. spec: cs/knockRoom
func (e *Engine) Knock(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	if err := e.mayEnter(ctx, q.Sender, q.Room); err != nil {
		return "", err
	}
	content, err := e.memberContent(ctx, q, "knock", q.Sender)
	if err != nil {
		return "", err
	}
	here := func(ctx context.Context) (matrix.EventID, error) { return e.knockHere(ctx, q, content) }
	return e.hereOrElsewhere(ctx, q.Room, here, func(ctx context.Context) (matrix.EventID, error) {
		if id, err := here(ctx); !errors.Is(err, errElsewhere) {
			return id, err
		}
		return e.knockAway(ctx, q, content)
	})
}

// knockHere is Knock where this server takes part in the room, else it fails with errElsewhere.
func (e *Engine) knockHere(ctx context.Context, q MemberRequest, content []byte) (matrix.EventID, error) {
	r, err := e.roomHere(ctx, q.Room)
	if err != nil {
		return "", err
	}
	defer r.release()
	return r.appendMember(ctx, q, content, func(v headView, current string) error {
		if current == "" && r.head.partial() {
			return errElsewhere // whether the user is banned is known there
		}
		return r.stillHere(v)
	})
}

// knockAway has another server put the knock into the room. spec: ss/makeKnock, ss/sendKnock
func (e *Engine) knockAway(ctx context.Context, q MemberRequest, content []byte) (id matrix.EventID, err error) {
	err = throughServers(ctx, e, q, func(ctx context.Context, server matrix.ServerName) (*madeMember, error) {
		made, err := e.remote.MakeKnock(ctx, server, q.Room, q.Sender, supportedVersions())
		if err != nil {
			return nil, err
		}
		t, err := readTemplate(made, q.Room, q.Sender, "knock")
		if err != nil {
			return nil, err
		}
		knock, err := e.complete(t, content, q.Timestamp)
		return &madeMember{t.version, knock}, err
	}, func(w *wayIn, knock *madeMember) error {
		id = knock.event.ID()
		return e.sendKnock(ctx, w.server, q, knock)
	})
	return id, err
}

func (e *Engine) sendKnock(ctx context.Context, server matrix.ServerName, q MemberRequest, made *madeMember) error {
	knock := made.event
	stripped, err := e.remote.SendKnock(ctx, server, q.Room, knock.ID(), knock.JSON())
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	r, err := e.claimRoom(ctx, q.Room, made.version)
	if err != nil {
		return err
	}
	defer r.release()
	m, err := e.membershipIn(ctx, r.nid, q.Sender)
	if err != nil {
		return err
	}
	return e.taken(ctx, server, r, knock, m.Membership, e.knockState(ctx, made.version, q.Room, stripped))
}
