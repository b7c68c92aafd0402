// Package stateres resolves conflicting room states.
//
// It works on the differences between states only: the caller (which holds
// states as persistent trees) hands in the keys on which the states do not
// agree, and look-ups for everything else. The work follows the size of the
// conflict and of its auth chains, not that of the room.
//
// Start reading at Resolve; v1.go and v2.go hold the algorithms, authchains.go
// what they ask about auth chains, memory.go what one resolution leaves for the next.
// spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
package stateres

import (
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
)

// Ref names an event by number, greater than 0. The caller assigns them: equal
// events have equal numbers, and the number of an event is greater than those of
// its auth events, which is what comes of numbering events as they are accepted.
type Ref int64

// MaxStates is how many states can be resolved at once. An event has at most 20 prev_events.
const MaxStates = 64

// Conflict is one key on which the states do not agree. Values[i] is state i's
// event, 0 where state i has none. All conflicts have equally many values.
type Conflict struct {
	Key    matrix.StateKey
	Values []Ref
}

// Entry is what a Source knows of one event.
type Entry struct {
	Event    *event.Event // nil: not known
	Rejected bool
}

// Source answers questions about events and about the state that all inputs
// share. All look-ups come in batches, so that each can be one query.
type Source interface {
	// Events returns events by number, in the order asked.
	Events(refs []Ref) ([]Entry, error)
	// AuthEvents returns the auth events of events, those that are known, in the
	// order asked. What is not known has none.
	AuthEvents(refs []Ref) ([][]Ref, error)
	// Unconflicted returns the event on which all states agree for a key, 0 if none.
	Unconflicted(matrix.StateKey) (Ref, error)
	// Shared yields, in any order, the events on which all states agree and that may
	// have one of the targets in their auth chains, until yield returns false: those
	// with a number above the least target. Yielding more does no harm. It is only asked when
	// the auth chains of the events in conflict differ by more than these events.
	Shared(targets []Ref, yield func(Ref) bool) error
}

// Resolve returns the event for every conflicting key, 0 where the key is absent
// from the result. It may return a few more keys: those that no state had and
// the result has. Unconflicted keys are never returned: they stay.
//
// memory is what the room's earlier resolutions left; it may be nil. The result does not depend on it.
// The result does not depend on the order of anything in the input.
func Resolve(v *roomversion.Version, conflicts []Conflict, memory *Memory, src Source) (map[matrix.StateKey]Ref, error) {
	if len(conflicts) == 0 {
		return nil, nil
	}
	states := len(conflicts[0].Values)
	if states > MaxStates {
		return nil, fmt.Errorf("resolve %d states at once: at most %d are possible", states, MaxStates)
	}
	for _, c := range conflicts {
		if len(c.Values) != states {
			return nil, fmt.Errorf("resolve state: conflicts of %d and of %d states", states, len(c.Values))
		}
	}
	if memory == nil {
		memory = NewMemory()
	}
	memory.run++
	defer memory.forget()
	r := &resolution{
		Memory: memory, version: v, conflicts: conflicts, states: states, src: src,
		create:      memory.slot(matrix.StateKey{Type: "m.room.create"}),
		powerLevels: memory.slot(matrix.StateKey{Type: "m.room.power_levels"}),
		cells:       make([]cell, len(memory.keys), len(memory.keys)+len(conflicts)),
		disputed:    make([]int32, len(conflicts)),
		checker:     eventauth.Checker{Budget: maxLevels},
	}
	r.view.resolution = r
	for i, c := range conflicts {
		r.disputed[i] = r.slot(c.Key)
		r.cell(r.disputed[i]).conflicting = true
	}
	var err error
	if v.StateResolution == roomversion.StateResolutionV1 {
		err = r.resolveV1()
	} else {
		err = r.resolveV2()
	}
	if err != nil {
		return nil, fmt.Errorf("resolve state: %w", err)
	}
	return r.result()
}

// maxLevels is how many bytes of power levels a resolution keeps read. It goes back and forth between them.
const maxLevels = 4 << 20

// resolution is one run of an algorithm.
type resolution struct {
	*Memory
	version   *roomversion.Version
	conflicts []Conflict
	states    int
	src       Source
	checker   eventauth.Checker
	cells     []cell  // by slot
	disputed  []int32 // the slots in conflict
	// The slots of the create event and of the power levels.
	create, powerLevels int32
	view                view
}

// cell is what a resolution knows of one entry of the state. Events are by auth chain index plus one; 0: none.
type cell struct {
	conflicting bool  // the states do not agree
	asked       bool  // agreed is known
	agreed      int32 // on which all states agree
	state       int32 // what the algorithm has put into the state
}

// cell returns that of a slot; it is good until the next call.
func (r *resolution) cell(slot int32) *cell {
	r.cells = grown(r.cells, slot)
	return &r.cells[slot]
}

// load has the source tell of events, in batches, once in a resolution.
func (r *resolution) load(events []int32) error {
	var missing []int32
	for _, i := range events {
		if f := r.fact(i); f.run != r.run {
			f.run = r.run
			missing = append(missing, i)
		}
	}
	refs := make([]Ref, 0, min(len(missing), maxBatch))
	for batch := range slices.Chunk(missing, maxBatch) {
		refs = refs[:0]
		for _, i := range batch {
			refs = append(refs, r.chains.nodes[i].ref)
		}
		entries, err := r.src.Events(refs)
		if err != nil {
			return fmt.Errorf("load events: %w", err)
		}
		for k, i := range batch {
			r.learn(i, entries[k])
		}
	}
	return nil
}

// at returns what is known of an event.
func (r *resolution) at(i int32) (*fact, error) {
	if f := r.chains.nodes[i].fact; f != nil && f.run == r.run {
		return f, nil
	}
	err := r.load([]int32{i})
	return r.known(i), err
}

// known is at for an event that is loaded.
func (r *resolution) known(i int32) *fact { return r.chains.nodes[i].fact }

// unconflicted returns the event on which all states agree for a slot, as in a cell.
func (r *resolution) unconflicted(slot int32) (int32, error) {
	c := r.cell(slot)
	if !c.conflicting && !c.asked {
		ref, err := r.src.Unconflicted(r.keys[slot])
		if err != nil {
			return 0, fmt.Errorf("read shared state: %w", err)
		}
		c.asked = true
		if ref != 0 {
			c.agreed = r.chains.intern(ref) + 1
		}
	}
	return c.agreed, nil
}

// result is what Resolve returns. An unconflicted key keeps its event, whatever
// the algorithm put there on its way.
// spec: rooms/v12#state-resolution 5
func (r *resolution) result() (map[matrix.StateKey]Ref, error) {
	result := make(map[matrix.StateKey]Ref, len(r.disputed))
	for _, slot := range r.disputed {
		result[r.keys[slot]] = 0
	}
	for slot := range r.cells {
		state := r.cells[slot].state
		if state == 0 {
			continue
		}
		agreed, err := r.unconflicted(int32(slot))
		if err != nil {
			return nil, err
		}
		if agreed == 0 {
			result[r.keys[slot]] = r.chains.nodes[state-1].ref
		}
	}
	return result, nil
}
