package feed

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// activity remembers of rooms what lists of rooms are sorted and filtered by, so that a list of a thousand rooms is made without
// reading any of them. It follows the stream as the listener of commits; what it does not know is read when it is asked for.
type activity struct {
	mu    sync.Mutex
	era   int // counts how often everything was forgotten
	rooms map[storage.RoomNID]*roomActivity
}

type roomActivity struct {
	last   storage.Position // of the newest event, 0 if not known
	bump   storage.Position // of the newest event that bumps the room, 0 if not known
	traits *roomTraits      // nil if not known
	states int              // counts changes of the room's state
}

// roomTraits are what filters ask of a room's state. Immutable.
type roomTraits struct {
	known     bool // the create event is: nothing else can be said without it
	encrypted bool
	roomType  string
	name      string // in lower case
}

// maxActivity is how many rooms are remembered, of some 150 bytes each.
const maxActivity = 200_000

func newActivity() *activity { return &activity{rooms: make(map[storage.RoomNID]*roomActivity)} }

// bumpTypes are the events that bump a room. spec: MSC4186#common-fields
var bumpTypes = []string{"m.room.create", "m.room.message", "m.room.encrypted", "m.sticker", "m.call.invite", "m.poll.start", "m.beacon_info"}

func bumps(ev *rooms.Event) bool { return slices.Contains(bumpTypes, ev.Type()) }

// room is a room's entry, made if need be. The lock is held.
func (a *activity) room(nid storage.RoomNID) *roomActivity {
	r := a.rooms[nid]
	if r == nil {
		if len(a.rooms) >= maxActivity {
			clear(a.rooms)
			a.era++
		}
		r = &roomActivity{}
		a.rooms[nid] = r
	}
	return r
}

// note takes in a commit. Commits come in order.
func (a *activity) note(u *rooms.Update) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.room(u.RoomNID)
	r.last = max(r.last, u.Position)
	for _, ev := range u.Events {
		if bumps(ev) {
			r.bump = max(r.bump, ev.Pos)
		}
	}
	if u.NewState {
		r.states++
		r.traits = nil
	}
}

// lastPositions returns the positions of the newest events in rooms that a user is joined to, in the order given.
func (f *Feed) lastPositions(ctx context.Context, user matrix.UserID, nids []storage.RoomNID) ([]storage.Position, error) {
	a := f.Hub.activity
	for attempt := 0; ; attempt++ {
		out, missing, era := a.last(nids)
		if !missing || attempt == 2 { // rooms joined this very moment come last, once
			return out, nil
		}
		name, err := f.DB.Intern(ctx, string(user))
		if err != nil {
			return nil, err
		}
		places, err := storage.JoinedPlaces(ctx, f.DB, name[0])
		if err != nil {
			return nil, fmt.Errorf("newest events of rooms: %w", err)
		}
		a.mu.Lock()
		// What was read is only as old as era: since then, commits have been noted here.
		if a.era == era {
			for _, p := range places {
				r := a.room(p.Room)
				r.last = max(r.last, p.Pos)
			}
		}
		a.mu.Unlock()
	}
}

func (a *activity) last(nids []storage.RoomNID) (out []storage.Position, missing bool, era int) {
	out = make([]storage.Position, len(nids))
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, nid := range nids {
		if r := a.rooms[nid]; r != nil {
			out[i] = r.last
		}
		missing = missing || out[i] == 0
	}
	return out, missing, a.era
}

// bumpStamp is the position of the last event that bumped a room, 0 if there is none.
func (f *Feed) bumpStamp(ctx context.Context, nid storage.RoomNID) (storage.Position, error) {
	a := f.Hub.activity
	a.mu.Lock()
	era := a.era
	r := a.rooms[nid]
	if r != nil && r.bump != 0 {
		defer a.mu.Unlock()
		return r.bump, nil
	}
	a.mu.Unlock()
	var types []storage.NameNID
	for _, t := range bumpTypes {
		n, err := f.DB.LookupName(ctx, t)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		types = append(types, n)
	}
	pos, err := storage.LastOfTypes(ctx, f.DB, nid, types, f.DB.Current())
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return 0, fmt.Errorf("bump stamp: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.era != era {
		return pos, nil
	}
	r = a.room(nid)
	r.bump = max(r.bump, pos)
	return r.bump, nil
}

// traits returns what filters ask of a joined room's state.
func (f *Feed) traits(ctx context.Context, nid storage.RoomNID) (*roomTraits, error) {
	a := f.Hub.activity
	a.mu.Lock()
	r := a.room(nid)
	known, states, era := r.traits, r.states, a.era
	a.mu.Unlock()
	if known != nil {
		return known, nil
	}
	// All commits noted so far are visible; one noted while this reads counts states on.
	state, err := f.Rooms.StateAtPosition(ctx, nid, f.DB.Current())
	if err != nil {
		return nil, err
	}
	t, err := traitsOf(ctx, state)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if r := a.room(nid); a.era == era && r.states == states {
		r.traits = t
	}
	return t, nil
}

// traitsKey names a state of a room that does not change any more: as somebody left it, or as they were invited to it.
type traitsKey struct {
	room storage.RoomNID
	user matrix.UserID
	pos  storage.Position
}

// traitsCache remembers traits of rooms that users are not in.
type traitsCache struct {
	past *recent.Map[traitsKey, *roomTraits]
}

const maxPastTraits = 20_000

func newTraitsCache() *traitsCache {
	return &traitsCache{recent.NewMap[traitsKey, *roomTraits](maxPastTraits)}
}

func (c *traitsCache) get(key traitsKey, load func() (*roomTraits, error)) (*roomTraits, error) {
	if t, ok := c.past.Get(key); ok {
		return t, nil
	}
	t, err := load()
	if err == nil {
		c.past.Put(key, t)
	}
	return t, err
}

func traitsOf(ctx context.Context, state rooms.State) (*roomTraits, error) {
	events, err := state.Events(ctx, matrix.StateKey{Type: "m.room.create"}, matrix.StateKey{Type: "m.room.encryption"}, matrix.StateKey{Type: "m.room.name"})
	if err != nil {
		return nil, fmt.Errorf("traits of a room: %w", err)
	}
	t := &roomTraits{known: events[0] != nil, encrypted: events[1] != nil}
	if events[0] != nil {
		t.roomType, _ = events[0].ContentString("type")
	}
	if events[2] != nil {
		name, _ := events[2].ContentString("name")
		t.name = strings.ToLower(name)
	}
	return t, nil
}
