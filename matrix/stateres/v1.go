package stateres

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/event"
)

// resolveV1 is the algorithm of room version 1. A key that some states lack, and
// on which the others agree, is not in conflict for it.
// spec: rooms/v1#state-resolution
func (r *resolution) resolveV1() error {
	events := r.conflicting()
	if err := r.load(events); err != nil {
		return err
	}
	disputes := make(map[int32][]candidate)
	for i, c := range r.conflicts {
		slot := r.disputed[i]
		candidates := r.candidates(c)
		switch len(candidates) {
		case 0:
		case 1:
			r.cell(slot).state = candidates[0].index + 1
		default:
			disputes[slot] = candidates
		}
	}
	for _, eventType := range authTypes {
		if err := r.settle(disputes, func(key matrix.StateKey) bool { return key.Type == eventType }, r.follow); err != nil {
			return err
		}
	}
	return r.settle(disputes, func(key matrix.StateKey) bool { return !slices.Contains(authTypes, key.Type) }, r.latestAllowed)
}

// authTypes are resolved first, in this order.
var authTypes = []string{"m.room.power_levels", "m.room.join_rules", "m.room.member"}

// settle resolves some of the disputes. It does so side by side: none sees what becomes of another.
func (r *resolution) settle(disputes map[int32][]candidate, which func(matrix.StateKey) bool,
	choose func(slot int32, candidates []candidate) (int32, error)) error {
	won := make(map[int32]int32)
	for slot, candidates := range disputes {
		if !which(r.keys[slot]) {
			continue
		}
		i, err := choose(slot, candidates)
		if err != nil {
			return err
		}
		won[slot] = i
	}
	for slot, i := range won {
		r.cell(slot).state = i + 1
	}
	return nil
}

// candidate is one event in a dispute over a key.
type candidate struct {
	index int32
	event *event.Event
	hash  [sha1.Size]byte
}

// candidates returns the known events of a conflict, by ascending depth, then
// descending SHA-1 of the event ID.
func (r *resolution) candidates(c Conflict) []candidate {
	var list []candidate
	for k, ref := range c.Values {
		if ref == 0 || slices.Contains(c.Values[:k], ref) {
			continue
		}
		i := r.chains.intern(ref)
		if e := r.known(i).event; e != nil {
			list = append(list, candidate{index: i, event: e})
		}
	}
	if len(list) < 2 {
		return list
	}
	for k := range list {
		list[k].hash = sha1.Sum([]byte(list[k].event.ID()))
	}
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(a.event.Depth(), b.event.Depth()),
			bytes.Compare(b.hash[:], a.hash[:]),
			strings.Compare(string(a.event.ID()), string(b.event.ID())))
	})
	return list
}

// follow goes from the earliest candidate on as long as each is allowed after
// the one before it.
func (r *resolution) follow(slot int32, candidates []candidate) (int32, error) {
	defer func() { r.cell(slot).state = 0 }()
	last := candidates[0].index
	for _, c := range candidates[1:] {
		r.cell(slot).state = last + 1
		allowed, err := r.allowed(c.index, nil)
		if err != nil {
			return 0, err
		}
		if !allowed {
			break
		}
		last = c.index
	}
	return last, nil
}

// latestAllowed returns the last candidate that is allowed. If none is, the
// earliest one stands.
func (r *resolution) latestAllowed(_ int32, candidates []candidate) (int32, error) {
	for _, c := range slices.Backward(candidates) {
		allowed, err := r.allowed(c.index, nil)
		if err != nil || allowed {
			return c.index, err
		}
	}
	return candidates[0].index, nil
}
