package stateres

import (
	"cmp"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// resolveV2 is the algorithm of room versions 2 to 11, and with an empty start and
// the conflicted state subgraph that of room version 12.
// spec: rooms/v2#algorithm, rooms/v12#algorithm
func (r *resolution) resolveV2() error {
	full, err := r.fullConflictedSet()
	if err != nil {
		return err
	}
	power, err := r.powerOrder(full)
	if err != nil {
		return err
	}
	if err := r.apply(power); err != nil {
		return err
	}
	picked := make(map[int32]bool, len(power))
	for _, i := range power {
		picked[i] = true
	}
	rest := make([]int32, 0, len(full)-len(power))
	for i := range full {
		if !picked[i] {
			rest = append(rest, i)
		}
	}
	if err := r.mainlineOrder(rest); err != nil {
		return err
	}
	return r.apply(rest)
}

// emptyStart reports whether events are checked against what the algorithm has
// applied so far and their own auth events only, not against the unconflicted state.
func (r *resolution) emptyStart() bool {
	return r.version.StateResolution == roomversion.StateResolutionV2_1
}

// at returns the event of an auth chain index.
func (r *resolution) at(i int32) (*Entry, error) { return r.entry(r.chains.nodes[i].ref) }

// known is at for an event that is loaded, nil for any other.
func (r *resolution) known(i int32) *Entry { return r.entries[r.chains.nodes[i].ref] }

// fullConflictedSet returns the state events that have to be replayed, loaded.
//
// The auth difference takes the state events themselves as part of their
// auth chains, as servers do: an event on which all states agree is then
// common to all chains, even if only one state has an event that builds on it.
// spec: rooms/v12#definitions "Full conflicted set", "Auth difference"
func (r *resolution) fullConflictedSet() (map[int32]bool, error) {
	var refs []Ref
	for _, c := range r.conflicts {
		for _, ref := range c.Values {
			if ref != 0 {
				refs = append(refs, ref)
			}
		}
	}
	slices.Sort(refs)
	refs = slices.Compact(refs)
	conflicting, err := r.chains.load(r.src, refs)
	if err != nil {
		return nil, err
	}
	if err := r.load(refs); err != nil {
		return nil, err
	}
	// The checks will want their auth events, and the difference begins with them.
	if err := r.loadAuth(conflicting); err != nil {
		return nil, err
	}

	full := make(map[int32]bool, 2*len(conflicting))
	for _, i := range conflicting {
		full[i] = true
	}
	if r.emptyStart() {
		between, err := r.chains.subgraph(r.src, conflicting)
		if err != nil {
			return nil, err
		}
		for _, i := range between {
			full[i] = true
		}
	}
	if err := r.addAuthDifference(full); err != nil {
		return nil, err
	}

	all := make([]int32, 0, len(full))
	for i := range full {
		all = append(all, i)
	}
	if err := r.loadIndices(all); err != nil {
		return nil, err
	}
	if err := r.chains.fill(r.src, all); err != nil {
		return nil, err
	}
	if err := r.loadAuth(all); err != nil {
		return nil, err
	}
	for _, i := range all {
		if _, ok := keyOf(r.known(i)); !ok {
			delete(full, i)
		}
	}
	return full, nil
}

// loadAuth loads the auth events of events.
func (r *resolution) loadAuth(events []int32) error {
	var refs []Ref
	for _, i := range events {
		for _, a := range r.chains.auth(i) {
			if r.known(a) == nil {
				refs = append(refs, r.chains.nodes[a].ref)
			}
		}
	}
	if refs == nil {
		return nil
	}
	return r.load(refs)
}

// loadIndices is load for auth chain indices.
func (r *resolution) loadIndices(events []int32) error {
	var refs []Ref
	for _, i := range events {
		if r.known(i) == nil {
			refs = append(refs, r.chains.nodes[i].ref)
		}
	}
	return r.load(refs)
}

// addAuthDifference adds the auth difference to what is in full already.
func (r *resolution) addAuthDifference(full map[int32]bool) error {
	masks := make(map[int32]uint64)
	for _, c := range r.conflicts {
		for state, ref := range c.Values {
			if ref != 0 {
				masks[r.chains.index[ref]] |= 1 << state
			}
		}
	}
	candidates, err := r.chains.differences(r.src, masks, r.states, r.loadIndices, func(i int32) (bool, error) {
		key, ok := keyOf(r.known(i))
		if !ok {
			return false, nil
		}
		agreed, err := r.unconflicted(key)
		return agreed == r.chains.nodes[i].ref, err
	})
	if err != nil {
		return err
	}
	targets := make(map[int32]bool)
	for _, i := range candidates {
		if !full[i] {
			targets[i] = true
		}
	}
	if err := r.chains.reachedByShared(r.src, targets); err != nil {
		return err
	}
	for i := range targets {
		full[i] = true
	}
	return nil
}

// isPowerEvent: such an event might take someone's ability to do something.
// spec: rooms/v12#definitions "Power events"
func isPowerEvent(e *event.Event) bool {
	switch e.Type() {
	case "m.room.power_levels", "m.room.join_rules":
		return true
	case "m.room.member":
		target, _ := e.StateKey()
		switch e.Membership() {
		case "leave", "ban":
			return target != string(e.Sender())
		}
	}
	return false
}

// powerOrder picks the power events of the full conflicted set, and what of the set leads to them, in reverse topological power
// ordering.
//
// The specification says "auth chain" and "the DAG formed by auth events". Servers agree on reading both within the
// set: an event comes after those of its auth events that are in the set, and is not kept behind another by way of
// one that all states have.
// spec: rooms/v12#algorithm 1
// spec: rooms/v12#definitions "Reverse topological power ordering"
func (r *resolution) powerOrder(full map[int32]bool) ([]int32, error) {
	picked := make(map[int32]bool)
	var next []int32
	for i := range full {
		if isPowerEvent(r.known(i).Event) {
			picked[i] = true
			next = append(next, i)
		}
	}
	waiting := make(map[int32]int)       // for how many events
	followers := make(map[int32][]int32) // those that wait
	levels := make(map[int32]int64)
	var free []int32
	for len(next) > 0 {
		i := next[len(next)-1]
		next = next[:len(next)-1]
		level, err := r.senderLevel(i)
		if err != nil {
			return nil, err
		}
		levels[i] = level
		for _, a := range r.chains.auth(i) {
			if !full[a] {
				continue
			}
			waiting[i]++
			followers[a] = append(followers[a], i)
			if !picked[a] {
				picked[a] = true
				next = append(next, a)
			}
		}
		if waiting[i] == 0 {
			free = append(free, i)
		}
	}
	ready := heap[int32]{less: func(a, b int32) bool {
		return cmp.Or(
			cmp.Compare(levels[b], levels[a]),
			compareAge(r.known(a).Event, r.known(b).Event)) < 0
	}}
	for _, i := range free {
		ready.push(i)
	}
	order := make([]int32, 0, len(picked))
	for len(ready.items) > 0 {
		i := ready.pop()
		order = append(order, i)
		for _, f := range followers[i] {
			if waiting[f]--; waiting[f] == 0 {
				ready.push(f)
			}
		}
	}
	return order, nil
}

// compareAge is the tie-break of both orderings.
func compareAge(a, b *event.Event) int {
	return cmp.Or(cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.ID(), b.ID()))
}

// senderLevel is the level of an event's sender by the event's own auth events.
func (r *resolution) senderLevel(i int32) (int64, error) {
	var create, powerLevels *event.Event
	for _, i := range r.chains.auth(i) {
		a, err := r.at(i)
		if err != nil {
			return 0, err
		}
		switch {
		case a.Event == nil:
		case a.Event.Is("m.room.create", ""):
			create = a.Event
		case a.Event.Is("m.room.power_levels", ""):
			powerLevels = a.Event
		}
	}
	if create == nil { // not an auth event in v12
		ref, err := r.unconflicted(matrix.StateKey{Type: "m.room.create"})
		if err != nil || ref == 0 {
			return 0, err
		}
		c, err := r.entry(ref)
		if err != nil || c.Event == nil {
			return 0, err
		}
		create = c.Event
	}
	levels, err := r.checker.Levels(create, powerLevels)
	if err != nil {
		return 0, nil // malformed levels give nobody any
	}
	return levels.User(r.known(i).Event.Sender()), nil
}
