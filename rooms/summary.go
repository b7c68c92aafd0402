package rooms

import (
	"context"
	"math"

	"hanok/matrix"
	"hanok/storage"
)

// MemberSummary is what clients need to name a room that has no name. spec: cs/sync RoomSummary
type MemberSummary struct {
	Joined, Invited int
	// Heroes are the first five other members, joined or invited; those who left where there are none.
	Heroes []matrix.UserID
}

const maxHeroes = 5

// MemberSummary counts a room's members, and picks heroes for one of them.
func (e *Engine) MemberSummary(ctx context.Context, room storage.RoomNID, user matrix.UserID) (*MemberSummary, error) {
	s := &MemberSummary{}
	var err error
	if s.Joined, err = storage.CountMembers(ctx, e.db, room, storage.MembershipJoin); err != nil {
		return nil, err
	}
	if s.Joined, err = e.knownJoined(ctx, room, s.Joined); err != nil {
		return nil, err
	}
	if s.Invited, err = storage.CountMembers(ctx, e.db, room, storage.MembershipInvite); err != nil {
		return nil, err
	}
	self := e.nameOr0(ctx, user)
	present := []storage.Membership{storage.MembershipJoin, storage.MembershipInvite}
	gone := []storage.Membership{storage.MembershipLeave, storage.MembershipBan}
	for _, kinds := range [][]storage.Membership{present, gone} {
		nids, err := storage.FirstMembers(ctx, e.db, room, kinds[0], kinds[1], self, maxHeroes)
		if err != nil {
			return nil, err
		}
		if len(nids) > 0 {
			s.Heroes, err = e.db.UserIDs(ctx, nids...)
			return s, err
		}
	}
	return s, nil
}

// MembersRequest asks for membership events. spec: cs/getMembersByRoom
type MembersRequest struct {
	Room          matrix.RoomID
	User          matrix.UserID    // the reader
	Place         *Token           // the members after the last event before it; nil means now
	Position      storage.Position // the members when the stream stood there; 0 means now
	Membership    string           // these; "": all
	NotMembership string           // all but these; with Membership, those besides
}

// Members returns the membership events the reader may see. While the room's state is partial, it waits for the whole.
func (e *Engine) Members(ctx context.Context, q MembersRequest) ([]*Event, error) {
	if err := e.AwaitMembers(ctx, q.User, q.Room); err != nil {
		return nil, err
	}
	state, err := e.VisibleState(ctx, q.User, q.Room)
	if err != nil {
		return nil, err
	}
	if state, err = e.stateAsked(ctx, q, state); err != nil {
		return nil, err
	}
	events, err := state.OfType(ctx, "m.room.member")
	if err != nil {
		return nil, err
	}
	out := events[:0]
	for _, ev := range events {
		m := ev.Membership()
		if q.Membership == "" && q.NotMembership == "" || m == q.Membership || q.NotMembership != "" && m != q.NotMembership {
			out = append(out, ev)
		}
	}
	return out, nil
}

// stateAsked is the state at the point in time asked for; latest is the one that the reader may see now. Who has left does not see
// what became of the room since.
func (e *Engine) stateAsked(ctx context.Context, q MembersRequest, latest State) (State, error) {
	if q.Place == nil && q.Position == 0 {
		return latest, nil
	}
	m, err := e.MembershipOf(ctx, q.Room, q.User)
	if err != nil {
		return State{}, err
	}
	last := storage.Position(math.MaxInt64)
	if m.Membership != "join" && m.LeftPosition != 0 {
		last = m.LeftPosition
	}
	switch {
	case q.Place != nil && q.Place.Seen != 0:
		return e.stateThen(ctx, q.Room, min(q.Place.Seen, last), latest)
	case q.Place != nil:
		return e.stateAtToken(ctx, q.Room, *q.Place, last, latest)
	}
	return e.stateThen(ctx, q.Room, min(q.Position, last), latest)
}

// stateAtToken is the state after the last event before a place, or the given one if there is none, or it came after the last position.
func (e *Engine) stateAtToken(ctx context.Context, room matrix.RoomID, t Token, last storage.Position, latest State) (State, error) {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return State{}, err
	}
	nids, err := storage.HistoryBackward(ctx, e.db, nid, t.Depth, t.Pos, 1)
	if err != nil || len(nids) == 0 {
		return latest, err
	}
	ev, err := e.eventByNID(ctx, nids[0])
	if err != nil {
		return State{}, err
	}
	if ev.Pos > last {
		return latest, nil
	}
	return e.StateAfter(ctx, ev)
}

// stateThen is the state when the stream stood at a position; latest if this server was not in the room yet.
func (e *Engine) stateThen(ctx context.Context, room matrix.RoomID, pos storage.Position, latest State) (State, error) {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return State{}, err
	}
	state, err := e.StateAtPosition(ctx, nid, pos)
	if err != nil {
		return State{}, err
	}
	if n, err := state.Len(ctx); err != nil || n == 0 {
		return latest, err
	}
	return state, nil
}
