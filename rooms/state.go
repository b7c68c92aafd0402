package rooms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// State is the state of a room at some point: an immutable value, loaded as it is read.
// The zero State is empty.
type State struct {
	e    *Engine
	tree statetree.Tree
}

// lookup returns the number of a state event, 0 if there is none.
func (e *Engine) lookup(ctx context.Context, tree statetree.Tree, eventType, stateKey string) (storage.EventNID, error) {
	key, ok, err := e.treeKey(ctx, eventType, stateKey)
	if err != nil || !ok {
		return 0, err
	}
	nid, err := tree.Get(ctx, key)
	return storage.EventNID(nid), err
}

// treeKey finds a key's numbers; ok is false when no event ever had it.
func (e *Engine) treeKey(ctx context.Context, eventType, stateKey string) (key statetree.Key, ok bool, err error) {
	typ, err := e.db.LookupName(ctx, eventType)
	if err == nil {
		var skey storage.NameNID
		skey, err = e.db.LookupName(ctx, stateKey)
		key = statetree.Key{Type: int64(typ), StateKey: int64(skey)}
	}
	if errors.Is(err, storage.ErrNotFound) {
		return key, false, nil
	}
	return key, err == nil, err
}

// Event returns a state event, nil if there is none.
func (s State) Event(ctx context.Context, eventType, stateKey string) (*Event, error) {
	if s.e == nil {
		return nil, nil
	}
	nid, err := s.e.lookup(ctx, s.tree, eventType, stateKey)
	if err != nil || nid == 0 {
		return nil, err
	}
	return s.e.eventByNID(ctx, nid)
}

// Events returns several state events at once; entries are nil where there is none.
func (s State) Events(ctx context.Context, keys ...matrix.StateKey) ([]*Event, error) {
	out := make([]*Event, len(keys))
	if s.e == nil {
		return out, nil
	}
	nids := make([]storage.EventNID, len(keys))
	for i, k := range keys {
		var err error
		if nids[i], err = s.e.lookup(ctx, s.tree, k.Type, k.Key); err != nil {
			return nil, err
		}
	}
	byNID, err := s.e.eventMap(ctx, nids)
	if err != nil {
		return nil, err
	}
	for i, nid := range nids {
		out[i] = byNID[nid]
	}
	return out, nil
}

// All returns all state events.
func (s State) All(ctx context.Context) ([]*Event, error) {
	if s.e == nil {
		return nil, nil
	}
	nids, err := treeEvents(ctx, s.tree)
	if err != nil {
		return nil, err
	}
	return s.e.eventsByNID(ctx, nids)
}

func treeEvents(ctx context.Context, tree statetree.Tree) ([]storage.EventNID, error) {
	var nids []storage.EventNID
	err := tree.All(ctx, func(en statetree.Entry) bool {
		nids = append(nids, storage.EventNID(en.Event))
		return true
	})
	return nids, err
}

// OfType returns the state events of one type.
func (s State) OfType(ctx context.Context, eventType string) ([]*Event, error) {
	if s.e == nil {
		return nil, nil
	}
	typ, err := s.e.db.LookupName(ctx, eventType)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var nids []storage.EventNID
	err = s.tree.OfType(ctx, int64(typ), func(en statetree.Entry) bool {
		nids = append(nids, storage.EventNID(en.Event))
		return true
	})
	if err != nil {
		return nil, err
	}
	return s.e.eventsByNID(ctx, nids)
}

// Matching returns the state events of which first the type and then the whole key is wanted. Events that are not are not loaded.
func (s State) Matching(ctx context.Context, wantType func(string) bool, want func(matrix.StateKey) bool) ([]*Event, error) {
	if s.e == nil {
		return nil, nil
	}
	var entries []statetree.Entry
	typeNames := make(map[int64]string)
	var failed error
	err := s.tree.All(ctx, func(en statetree.Entry) bool {
		name, ok := typeNames[en.Type]
		if !ok {
			names, err := s.e.db.Names(ctx, storage.NameNID(en.Type))
			if err != nil {
				failed = err
				return false
			}
			name = names[0]
			typeNames[en.Type] = name
		}
		if wantType(name) {
			entries = append(entries, en)
		}
		return true
	})
	if err = cmp.Or(err, failed); err != nil {
		return nil, err
	}
	keys := make([]storage.NameNID, len(entries))
	for i, en := range entries {
		keys[i] = storage.NameNID(en.StateKey)
	}
	names, err := s.e.db.Names(ctx, keys...)
	if err != nil {
		return nil, err
	}
	var nids []storage.EventNID
	for i, en := range entries {
		if want(matrix.StateKey{Type: typeNames[en.Type], Key: names[i]}) {
			nids = append(nids, storage.EventNID(en.Event))
		}
	}
	return s.e.eventsByNID(ctx, nids)
}

// Len is the number of state events.
func (s State) Len(ctx context.Context) (int, error) {
	if s.e == nil {
		return 0, nil
	}
	return s.tree.Len(ctx)
}

// Same reports whether two states are known to be equal without comparing them.
func (s State) Same(t State) bool { return s.tree.Ref() == t.tree.Ref() }

// Named reports whether the room has a name or an alias to be called by, so that no members' names are needed for it.
// spec: client-server-api#calculating-the-display-name-for-a-room
func (s State) Named(ctx context.Context) (bool, error) {
	name, err := s.content(ctx, "m.room.name", "name")
	if err != nil || name != "" {
		return name != "", err
	}
	alias, err := s.content(ctx, "m.room.canonical_alias", "alias")
	return alias != "", err
}

// AdmitsGuests reports whether guests may join. spec: client-server-api#guest-access
func (s State) AdmitsGuests(ctx context.Context) (bool, error) {
	access, err := s.content(ctx, "m.room.guest_access", "guest_access")
	return access == "can_join", err
}

// Open reports whether anybody may join the room, or read it.
func (s State) Open(ctx context.Context) (bool, error) {
	rule, err := s.content(ctx, "m.room.join_rules", "join_rule")
	if err != nil || rule == "public" {
		return err == nil, err
	}
	visibility, err := s.content(ctx, "m.room.history_visibility", "history_visibility")
	return visibility == "world_readable", err
}

// Membership returns a user's membership, "leave" if there is no event.
func (s State) Membership(ctx context.Context, user matrix.UserID) (string, error) {
	ev, err := s.Event(ctx, "m.room.member", string(user))
	if err != nil {
		return "", err
	}
	if ev == nil || ev.Membership() == "" {
		return "leave", nil
	}
	return ev.Membership(), nil
}

// PowerLevels returns the room's levels.
func (s State) PowerLevels(ctx context.Context) (*eventauth.PowerLevels, error) {
	evs, err := s.Events(ctx, matrix.StateKey{Type: "m.room.create"}, matrix.StateKey{Type: "m.room.power_levels"})
	if err != nil {
		return nil, err
	}
	if evs[0] == nil {
		return nil, errors.New("a state without m.room.create")
	}
	var levels *event.Event
	if evs[1] != nil {
		levels = evs[1].Event
	}
	return eventauth.Levels(evs[0].Event, levels)
}

// content returns a string in the content of a state event with an empty state key, "" if there is none.
func (s State) content(ctx context.Context, eventType, key string) (string, error) {
	ev, err := s.Event(ctx, eventType, "")
	if err != nil || ev == nil {
		return "", err
	}
	v, _ := ev.ContentString(key)
	return v, nil
}

// StateChange is one difference between two states.
type StateChange struct {
	Key      matrix.StateKey
	Old, New *Event // nil: absent
}

// StateDelta lists what changed from one state to another of the same room.
func (e *Engine) StateDelta(ctx context.Context, from, to State) ([]StateChange, error) {
	if from.Same(to) {
		return nil, nil
	}
	diffs, err := statetree.Diff(ctx, e.orEmpty(from), e.orEmpty(to))
	if err != nil {
		return nil, err
	}
	return e.stateChanges(ctx, diffs)
}

// StateDeltaLazy is StateDelta with the memberships of some users only: events of others are not loaded.
func (e *Engine) StateDeltaLazy(ctx context.Context, from, to State, members map[matrix.UserID]bool) ([]StateChange, error) {
	if from.Same(to) {
		return nil, nil
	}
	diffs, err := statetree.Diff(ctx, e.orEmpty(from), e.orEmpty(to))
	if err != nil {
		return nil, err
	}
	member, err := e.db.LookupName(ctx, "m.room.member")
	if err != nil {
		return nil, err
	}
	wanted := make(map[int64]bool, len(members))
	for user := range members {
		if nid := e.nameOr0(ctx, user); nid != 0 {
			wanted[int64(nid)] = true
		}
	}
	diffs = slices.DeleteFunc(diffs, func(d statetree.Difference) bool { return d.Key.Type == int64(member) && !wanted[d.Key.StateKey] })
	return e.stateChanges(ctx, diffs)
}

// stateChanges loads the events of differences between two states.
func (e *Engine) stateChanges(ctx context.Context, diffs []statetree.Difference) ([]StateChange, error) {
	if len(diffs) == 0 {
		return nil, nil
	}
	names, err := e.diffNames(ctx, diffs)
	if err != nil {
		return nil, err
	}
	nids := make([]storage.EventNID, 0, 2*len(diffs))
	for _, d := range diffs {
		nids = append(nids, storage.EventNID(d.Events[0]), storage.EventNID(d.Events[1]))
	}
	byNID, err := e.eventMap(ctx, nids)
	if err != nil {
		return nil, err
	}
	out := make([]StateChange, len(diffs))
	for i, d := range diffs {
		out[i] = StateChange{Key: names[i], Old: byNID[storage.EventNID(d.Events[0])], New: byNID[storage.EventNID(d.Events[1])]}
	}
	return out, nil
}

func (e *Engine) orEmpty(s State) statetree.Tree {
	if s.e == nil {
		return e.forest.At(0)
	}
	return s.tree
}

// StateBefore is the state before an event; empty for outliers.
func (e *Engine) StateBefore(ctx context.Context, ev *Event) (State, error) {
	return State{e, e.treeBefore(ev)}, nil
}

// StateAfter is the state after an event.
func (e *Engine) StateAfter(ctx context.Context, ev *Event) (State, error) {
	if ev.Outlier {
		return State{e, e.forest.At(0)}, nil
	}
	tree, err := e.treeAfter(ctx, ev)
	return State{e, tree}, err
}

// StateAtPosition is the room's current state as it was when the stream stood at pos.
func (e *Engine) StateAtPosition(ctx context.Context, room storage.RoomNID, pos storage.Position) (State, error) {
	if _, c := e.settled(room, pos); c != nil && pos >= c.statePos {
		return State{e, c.head.state}, nil
	}
	ref, err := storage.RoomStateAt(ctx, e.db, room, pos)
	if errors.Is(err, storage.ErrNotFound) {
		return State{e, e.forest.At(0)}, nil
	}
	return State{e, e.forest.At(statetree.Ref(ref))}, err
}

// VisibleState is the state a user may see: the current one for members and of world-readable rooms,
// that of the time they left for those who were members; else M_FORBIDDEN. spec: cs/getRoomState
func (e *Engine) VisibleState(ctx context.Context, user matrix.UserID, room matrix.RoomID) (State, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return State{}, hideRoom(err)
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return State{}, err
	}
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return State{}, err
	}
	state := State{e, c.head.state}
	switch {
	case m.Membership == storage.MembershipJoin:
		return state, nil
	case m.LeftPos != 0 && !m.Forgotten:
		return e.StateAtPosition(ctx, r.nid, m.LeftPos)
	}
	visibility, err := state.content(ctx, "m.room.history_visibility", "history_visibility")
	if err != nil {
		return State{}, err
	}
	if visibility == "world_readable" {
		return state, nil
	}
	return State{}, matrix.Forbidden("you are not in this room")
}

// stateOf is the current state of a room for somebody who must be in it: M_FORBIDDEN.
func (r *room) stateOf(ctx context.Context, user matrix.UserID) (State, error) {
	c, err := r.current(ctx)
	if err != nil {
		return State{}, err
	}
	state := State{r.e, c.head.state}
	membership, err := state.Membership(ctx, user)
	if err == nil && membership != "join" {
		err = matrix.Forbidden("you are not in this room")
	}
	return state, err
}

// WholeState is VisibleState that waits while the room's state is partial. spec: cs/getRoomState
func (e *Engine) WholeState(ctx context.Context, user matrix.UserID, room matrix.RoomID) (State, error) {
	if err := e.AwaitMembers(ctx, user, room); err != nil {
		return State{}, err
	}
	return e.VisibleState(ctx, user, room)
}

// VisibleStateEvent returns an event of the visible state, nil if there is none. While that is partial, it waits for the whole if that
// could have the event. spec: cs/getRoomStateWithKey
func (e *Engine) VisibleStateEvent(ctx context.Context, user matrix.UserID, room matrix.RoomID, eventType, stateKey string) (*Event, error) {
	state, err := e.VisibleState(ctx, user, room)
	if err != nil {
		return nil, err
	}
	ev, err := state.Event(ctx, eventType, stateKey)
	if err != nil || ev != nil || eventType != "m.room.member" || e.isLocal(matrix.UserID(stateKey)) {
		return ev, err
	}
	if state, err = e.WholeState(ctx, user, room); err != nil {
		return nil, err
	}
	return state.Event(ctx, eventType, stateKey)
}

// hideRoom makes an unknown room look like one that the user may not see.
func hideRoom(err error) error {
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return matrix.Forbidden("you are not in this room")
	}
	return err
}

// Snapshot is a room as of its last commit.
type Snapshot struct {
	Room        matrix.RoomID
	RoomNID     storage.RoomNID
	Version     *roomversion.Version
	State       State
	Extremities []matrix.EventID
	Depth       int64 // of the deepest extremity
	Position    storage.Position
	// Resident: at least one user of this server is joined, so we get the room's events.
	Resident bool
}

// Snapshot returns the room; M_NOT_FOUND when this server knows nothing of it.
func (e *Engine) Snapshot(ctx context.Context, room matrix.RoomID) (*Snapshot, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	s := &Snapshot{Room: r.id, RoomNID: r.nid, Version: r.version, State: State{e, c.head.state}, Depth: c.head.depth(), Position: c.pos, Resident: len(c.local) > 0}
	for _, t := range c.head.tips {
		s.Extremities = append(s.Extremities, t.id)
	}
	return s, nil
}
