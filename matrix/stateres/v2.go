package stateres

import (
	"cmp"
	"slices"

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
	var picked indexSet
	for _, i := range power {
		picked.add(i)
	}
	rest := slices.DeleteFunc(full, picked.has)
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

// conflicting returns the events in conflict.
func (r *resolution) conflicting() []int32 {
	var events indexSet
	for _, c := range r.conflicts {
		for _, ref := range c.Values {
			if ref != 0 {
				events.add(r.chains.intern(ref))
			}
		}
	}
	return events.list
}

// fullConflictedSet returns the state events that have to be replayed, loaded.
//
// The auth difference takes the state events themselves as part of their
// auth chains, as servers do: an event on which all states agree is then
// common to all chains, even if only one state has an event that builds on it.
// spec: rooms/v12#definitions "Full conflicted set", "Auth difference"
func (r *resolution) fullConflictedSet() ([]int32, error) {
	conflicting := r.conflicting()
	if err := r.chains.fill(r.src, conflicting); err != nil {
		return nil, err
	}
	if err := r.load(conflicting); err != nil {
		return nil, err
	}
	// The checks will want their auth events, and the difference begins with them.
	if err := r.loadAuth(conflicting); err != nil {
		return nil, err
	}
	var full indexSet
	for _, i := range conflicting {
		full.add(i)
	}
	if r.emptyStart() {
		between, err := r.chains.subgraph(r.src, conflicting)
		if err != nil {
			return nil, err
		}
		for _, i := range between {
			full.add(i)
		}
	}
	if err := r.addAuthDifference(&full); err != nil {
		return nil, err
	}
	if err := r.load(full.list); err != nil {
		return nil, err
	}
	if err := r.chains.fill(r.src, full.list); err != nil {
		return nil, err
	}
	if err := r.loadAuth(full.list); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(full.list, func(i int32) bool { return r.known(i).slot == noSlot }), nil
}

// loadAuth loads the auth events of events.
func (r *resolution) loadAuth(events []int32) error {
	var auth []int32
	for _, i := range events {
		for _, a := range r.chains.auth(i) {
			if f := r.known(a); f == nil || f.run != r.run {
				auth = append(auth, a)
			}
		}
	}
	return r.load(auth)
}

// addAuthDifference adds the auth difference to what is in full already.
func (r *resolution) addAuthDifference(full *indexSet) error {
	var m masks
	for _, c := range r.conflicts {
		for state, ref := range c.Values {
			if ref != 0 {
				m.extend(r.chains.intern(ref), 1<<state)
			}
		}
	}
	candidates, err := r.chains.differences(r.src, &m, r.states, r.load, func(i int32) (bool, error) {
		slot := r.known(i).slot
		if slot == noSlot {
			return false, nil
		}
		agreed, err := r.unconflicted(slot)
		return agreed == i+1, err
	})
	if err != nil {
		return err
	}
	targets, err := r.chains.unreached(r.src, slices.DeleteFunc(candidates, full.has))
	if err != nil {
		return err
	}
	for _, i := range targets {
		full.add(i)
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
func (r *resolution) powerOrder(full []int32) ([]int32, error) {
	place := make([]int32, len(r.chains.nodes)) // in full, plus one; by auth chain index
	for k, i := range full {
		place[i] = int32(k) + 1
	}
	list := make([]ordered, len(full))
	var next []int32 // places of those picked whose auth events have to be looked at
	for k, i := range full {
		if r.known(i).power {
			list[k].picked = true
			next = append(next, int32(k))
		}
	}
	var free []int32
	picked := 0
	for len(next) > 0 {
		k := next[len(next)-1]
		next = next[:len(next)-1]
		picked++
		o := &list[k]
		var err error
		if o.level, err = r.senderLevel(full[k]); err != nil {
			return nil, err
		}
		o.event = r.known(full[k]).event
		for _, a := range r.chains.auth(full[k]) {
			p := place[a] - 1
			if p < 0 {
				continue
			}
			o.waiting++
			list[p].followers = append(list[p].followers, k)
			if !list[p].picked {
				list[p].picked = true
				next = append(next, p)
			}
		}
		if o.waiting == 0 {
			free = append(free, k)
		}
	}
	ready := heap[int32]{less: func(a, b int32) bool {
		x, y := &list[a], &list[b]
		return cmp.Or(cmp.Compare(y.level, x.level), compareAge(x.event, y.event)) < 0
	}}
	for _, k := range free {
		ready.push(k)
	}
	order := make([]int32, 0, picked)
	for len(ready.items) > 0 {
		k := ready.pop()
		order = append(order, full[k])
		for _, f := range list[k].followers {
			if list[f].waiting--; list[f].waiting == 0 {
				ready.push(f)
			}
		}
	}
	return order, nil
}

// ordered is an event in the power ordering.
type ordered struct {
	event     *event.Event
	level     int64
	picked    bool
	waiting   int32   // for how many events
	followers []int32 // those that wait for it
}

// compareAge is the tie-break of both orderings.
func compareAge(a, b *event.Event) int {
	return cmp.Or(cmp.Compare(a.OriginServerTS(), b.OriginServerTS()), cmp.Compare(a.ID(), b.ID()))
}

// senderLevel is the level of an event's sender by the event's own auth events, all of them loaded.
func (r *resolution) senderLevel(i int32) (int64, error) {
	var create int32 // plus one
	var levels *event.Event
	for _, a := range r.chains.auth(i) {
		switch f := r.known(a); f.slot {
		case r.create:
			create = a + 1
		case r.powerLevels:
			levels = f.event
		}
	}
	if create == 0 { // not an auth event in v12
		var err error
		if create, err = r.unconflicted(r.create); err != nil || create == 0 {
			return 0, err
		}
	}
	c, err := r.at(create - 1)
	if err != nil || c.event == nil {
		return 0, err
	}
	f := r.known(i)
	if f.level.era != r.era || f.level.create != create {
		f.level = level{era: r.era, create: create}
		if p, err := r.checker.Levels(c.event, levels); err == nil { // malformed levels give nobody any
			f.level.value = p.User(f.event.Sender())
		}
	}
	return f.level.value, nil
}
