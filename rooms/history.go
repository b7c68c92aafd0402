package rooms

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

// viewer decides what of a room a user may see. It remembers what it read of the states it met.
// spec: client-server-api#room-history-visibility
type viewer struct {
	e      *Engine
	user   matrix.UserID
	member storage.MembershipRow // now
	memo   map[statetree.Ref]atState
	// stranger is somebody who sees only what everybody may see.
	stranger bool

	erasures erasures
}

// atState is what matters of a state to one user.
type atState struct {
	visibility string
	membership string
}

func (e *Engine) viewer(ctx context.Context, room storage.RoomNID, user matrix.UserID) (*viewer, error) {
	m, err := e.membershipIn(ctx, room, user)
	if err != nil {
		return nil, err
	}
	return &viewer{e: e, user: user, member: m, memo: make(map[statetree.Ref]atState)}, nil
}

// visibility names what a state says; anything unknown counts as the default.
func visibility(ev *Event) string {
	if ev != nil {
		switch v, _ := ev.ContentString("history_visibility"); v {
		case "world_readable", "invited", "joined":
			return v
		}
	}
	return "shared"
}

// openness orders visibilities: what a change of visibility hides or shows is judged by the more open side.
var openness = map[string]int{"joined": 0, "invited": 1, "shared": 2, "world_readable": 3}

func (v *viewer) at(ctx context.Context, ref statetree.Ref) (atState, error) {
	if s, ok := v.memo[ref]; ok {
		return s, nil
	}
	state := State{v.e, v.e.forest.At(ref)}
	events, err := state.Events(ctx, matrix.StateKey{Type: "m.room.history_visibility"}, matrix.StateKey{Type: "m.room.member", Key: string(v.user)})
	if err != nil {
		return atState{}, err
	}
	s := atState{visibility: visibility(events[0])}
	if events[1] != nil {
		s.membership = events[1].Membership()
	}
	if len(v.memo) > 1000 {
		clear(v.memo)
	}
	v.memo[ref] = s
	return s, nil
}

func (v *viewer) sees(ctx context.Context, ev *Event) (bool, error) {
	if ev.Pos == 0 {
		return false, nil
	}
	if v.member.Membership == storage.MembershipJoin && ev.sticks(v.e.now()) {
		return true, nil
	}
	s, err := v.at(ctx, ev.stateBefore)
	if err != nil {
		return false, err
	}
	switch {
	case ev.Is("m.room.history_visibility", ""):
		if after := visibility(ev); openness[after] > openness[s.visibility] {
			s.visibility = after
		}
	case ev.Is("m.room.member", string(v.user)):
		if s.membership != "join" && (ev.Membership() == "join" || s.membership != "invite") {
			s.membership = ev.Membership()
		}
	}
	switch {
	case s.visibility == "world_readable":
		return true, nil
	case v.stranger:
		return false, nil
	case s.membership == "join":
		return true, nil
	case s.visibility == "invited":
		return s.membership == "invite", nil
	case s.visibility == "shared":
		// Everything from before the user was last joined.
		return v.member.Membership == storage.MembershipJoin || v.member.LeftPos != 0 && ev.Pos <= v.member.LeftPos, nil
	}
	return false, nil
}

// keep returns those events that the user may see, as they may see them.
func (v *viewer) keep(ctx context.Context, events []*Event) ([]*Event, error) {
	out := make([]*Event, 0, len(events))
	for _, ev := range events {
		shown, err := v.show(ctx, ev)
		if err != nil {
			return nil, err
		}
		if shown != nil {
			out = append(out, shown)
		}
	}
	return out, nil
}

// Visible keeps those events of one room that a user may see by its history visibility.
func (e *Engine) Visible(ctx context.Context, user matrix.UserID, events []*Event) ([]*Event, error) {
	if len(events) == 0 {
		return nil, nil
	}
	v, err := e.viewer(ctx, events[0].RoomNID, user)
	if err != nil {
		return nil, err
	}
	return v.keep(ctx, events)
}

// VisibleEvent returns an event that a user may see; else M_NOT_FOUND. spec: cs/getOneRoomEvent
func (e *Engine) VisibleEvent(ctx context.Context, user matrix.UserID, room matrix.RoomID, id matrix.EventID) (*Event, error) {
	hidden := matrix.NotFound("no such event, or you may not see it")
	ev, err := e.Event(ctx, id)
	if err != nil {
		if matrix.HasCode(err, "M_NOT_FOUND") {
			return nil, hidden
		}
		return nil, err
	}
	in, err := e.RoomID(ctx, ev.RoomNID)
	if err != nil {
		return nil, err
	}
	if in != room {
		return nil, hidden
	}
	v, err := e.viewer(ctx, ev.RoomNID, user)
	if err != nil {
		return nil, err
	}
	v.stranger = v.member.Forgotten // spec: cs/forgetRoom
	if shown, err := v.show(ctx, ev); err != nil || shown != nil {
		return shown, err
	}
	if ev.Pos == 0 && ev.IsState() {
		// State that came with our join has no place in the timeline; who sees the state sees its events.
		ok, err := e.inVisibleState(ctx, user, room, ev)
		if err != nil {
			return nil, err
		}
		if ok {
			return ev, nil
		}
	}
	return nil, hidden
}

func (e *Engine) inVisibleState(ctx context.Context, user matrix.UserID, room matrix.RoomID, ev *Event) (bool, error) {
	state, err := e.VisibleState(ctx, user, room)
	if err != nil {
		if matrix.HasCode(err, "M_FORBIDDEN") {
			return false, nil
		}
		return false, err
	}
	nid, err := state.tree.Get(ctx, ev.entry().Key)
	return storage.EventNID(nid) == ev.NID, err
}

// Token is a place between two events of a room, in topological order. Its text form
// is what clients get as from, to, start, end and prev_batch.
type Token struct {
	Depth int64
	Pos   storage.Position
	// Seen is how far in the stream a client was that got this token from /sync, 0 if it did not:
	// it asks for the members of that time with it. spec: cs/getMembersByRoom at
	Seen storage.Position
	// Bound, if not 0, leaves out events that came later: the client has them from /sync, whose order is
	// that of the stream. What came before them may well be deeper in the graph.
	Bound storage.Position
}

func (t Token) String() string {
	s := "t" + strconv.FormatInt(t.Depth, 10) + "_" + strconv.FormatInt(int64(t.Pos), 10)
	if t.Seen != 0 || t.Bound != 0 {
		s += "_" + strconv.FormatInt(int64(t.Seen), 10)
	}
	if t.Bound != 0 {
		s += "_" + strconv.FormatInt(int64(t.Bound), 10)
	}
	return s
}

// ParseToken reads a Token's text form. M_INVALID_PARAM
func ParseToken(s string) (Token, error) {
	rest, ok := strings.CutPrefix(s, "t")
	parts := strings.Split(rest, "_")
	bad := matrix.InvalidParam("not a pagination token")
	if !ok || len(parts) < 2 || len(parts) > 4 {
		return Token{}, bad
	}
	var n [4]int64
	for i, part := range parts {
		var err error
		if n[i], err = strconv.ParseInt(part, 10, 64); err != nil {
			return Token{}, bad
		}
	}
	if n[0] < 0 || n[2] < 0 || n[3] < 0 {
		return Token{}, bad
	}
	return Token{n[0], storage.Position(n[1]), storage.Position(n[2]), storage.Position(n[3])}, nil
}

// after is the place behind an event, before the one in front of it.
func (ev *Event) after() Token  { return Token{Depth: ev.Depth(), Pos: ev.Pos} }
func (ev *Event) before() Token { return Token{Depth: ev.Depth(), Pos: ev.Pos - 1} }

// placeBefore is the place before an event that begins a timeline: behind everything that came earlier, deeper or not.
func (e *Engine) placeBefore(ctx context.Context, ev *Event) (Token, error) {
	t := ev.before()
	t.Bound = ev.Pos - 1
	if _, c := e.settled(ev.RoomNID, ev.Pos); c != nil {
		if deepest, ok := c.tail.deepestBefore(ev.Pos); ok {
			if deepest.depth > t.Depth {
				t.Depth, t.Pos = deepest.depth, deepest.pos
			}
			return t, nil
		}
	}
	depth, pos, err := storage.DeepestBefore(ctx, e.db, ev.RoomNID, ev.Depth(), ev.Pos)
	if err == nil {
		t.Depth, t.Pos = depth, pos
	}
	return t, ignoreNotFound(err)
}

// TokenAt is the place after the last event of a room at a stream position.
func (e *Engine) TokenAt(ctx context.Context, room storage.RoomNID, pos storage.Position) (Token, error) {
	depth, at, err := storage.PlaceAt(ctx, e.db, room, pos)
	if errors.Is(err, storage.ErrNotFound) {
		return Token{}, nil
	}
	return Token{Depth: depth, Pos: at}, err
}
