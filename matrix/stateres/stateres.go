// Package stateres resolves conflicting room states.
//
// It works on the differences between states only: the caller (which holds
// states as persistent trees) hands in the keys on which the states do not
// agree, and look-ups for everything else. The work follows the size of the
// conflict and of its auth chains, not that of the room.
//
// Start reading at Resolve; v1.go and v2.go hold the algorithms, authchains.go
// what they ask about auth chains.
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
// chains is the room's memory of its auth chains between calls; it may be nil.
// The result does not depend on the order of anything in the input.
func Resolve(v *roomversion.Version, conflicts []Conflict, chains *AuthChains, src Source) (map[matrix.StateKey]Ref, error) {
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
	if chains == nil {
		chains = NewAuthChains()
	}
	r := &resolution{
		version:   v,
		conflicts: conflicts,
		states:    states,
		chains:    chains,
		src:       src,
		entries:   make(map[Ref]*Entry),
		agreed:    make(map[matrix.StateKey]Ref),
		state:     make(map[matrix.StateKey]Ref),
		keys:      make(map[matrix.StateKey]bool, len(conflicts)),
	}
	for _, c := range conflicts {
		r.keys[c.Key] = true
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

// resolution is one run of an algorithm.
type resolution struct {
	version   *roomversion.Version
	conflicts []Conflict
	states    int
	keys      map[matrix.StateKey]bool // in conflict
	chains    *AuthChains
	src       Source
	checker   eventauth.Checker

	entries map[Ref]*Entry          // events asked for so far
	agreed  map[matrix.StateKey]Ref // unconflicted entries asked for so far
	state   map[matrix.StateKey]Ref // what the algorithm has put into the state
}

// load asks for events that are not at hand, in batches.
func (r *resolution) load(refs []Ref) error {
	var missing []Ref
	for _, ref := range refs {
		if _, ok := r.entries[ref]; !ok && ref != 0 {
			r.entries[ref] = &Entry{}
			missing = append(missing, ref)
		}
	}
	for batch := range slices.Chunk(missing, maxBatch) {
		entries, err := r.src.Events(batch)
		if err != nil {
			return fmt.Errorf("load events: %w", err)
		}
		for i, ref := range batch {
			*r.entries[ref] = entries[i]
		}
	}
	return nil
}

// entry returns one event.
func (r *resolution) entry(ref Ref) (*Entry, error) {
	if e, ok := r.entries[ref]; ok {
		return e, nil
	}
	err := r.load([]Ref{ref})
	return r.entries[ref], err
}

// unconflicted returns the event on which all states agree for a key, 0 if none.
func (r *resolution) unconflicted(key matrix.StateKey) (Ref, error) {
	if r.keys[key] {
		return 0, nil
	}
	ref, ok := r.agreed[key]
	if !ok {
		var err error
		if ref, err = r.src.Unconflicted(key); err != nil {
			return 0, fmt.Errorf("read shared state: %w", err)
		}
		r.agreed[key] = ref
	}
	return ref, nil
}

// keyOf is the state entry that an event is for; ok is false for one that is
// unknown or no state event.
func keyOf(e *Entry) (key matrix.StateKey, ok bool) {
	if e.Event == nil {
		return key, false
	}
	stateKey, ok := e.Event.StateKey()
	return matrix.StateKey{Type: e.Event.Type(), Key: stateKey}, ok
}

// result is what Resolve returns. An unconflicted key keeps its event, whatever
// the algorithm put there on its way.
// spec: rooms/v12#state-resolution 5
func (r *resolution) result() (map[matrix.StateKey]Ref, error) {
	result := make(map[matrix.StateKey]Ref, len(r.keys))
	for key := range r.keys {
		result[key] = r.state[key]
	}
	for key, ref := range r.state {
		agreed, err := r.unconflicted(key)
		if err != nil {
			return nil, err
		}
		if agreed == 0 {
			result[key] = ref
		}
	}
	return result, nil
}
