package stateres

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"maps"
	"slices"
	"strings"

	"hanok/matrix"
)

// resolveV1 is the algorithm of room version 1. A key that some states lack, and
// on which the others agree, is not in conflict for it.
// spec: rooms/v1#state-resolution
func (r *resolution) resolveV1() error {
	var refs []Ref
	for _, c := range r.conflicts {
		refs = append(refs, c.Values...)
	}
	if err := r.load(refs); err != nil {
		return err
	}
	disputed := make(map[matrix.StateKey][]candidate)
	for _, c := range r.conflicts {
		candidates := r.candidates(c)
		switch len(candidates) {
		case 0:
		case 1:
			r.state[c.Key] = candidates[0].ref
		default:
			disputed[c.Key] = candidates
		}
	}
	for _, eventType := range authTypes {
		if err := r.settle(disputed, func(key matrix.StateKey) bool { return key.Type == eventType }, r.follow); err != nil {
			return err
		}
	}
	return r.settle(disputed, func(key matrix.StateKey) bool { return !slices.Contains(authTypes, key.Type) }, r.latestAllowed)
}

// authTypes are resolved first, in this order.
var authTypes = []string{"m.room.power_levels", "m.room.join_rules", "m.room.member"}

// settle resolves some of the disputed keys. It does so side by side: none sees what becomes of another.
func (r *resolution) settle(disputed map[matrix.StateKey][]candidate, which func(matrix.StateKey) bool,
	choose func(matrix.StateKey, []candidate) (Ref, error)) error {
	won := make(map[matrix.StateKey]Ref)
	for key, candidates := range disputed {
		if !which(key) {
			continue
		}
		ref, err := choose(key, candidates)
		if err != nil {
			return err
		}
		won[key] = ref
	}
	maps.Copy(r.state, won)
	return nil
}

// candidate is one event in a dispute over a key.
type candidate struct {
	ref   Ref
	entry *Entry
	depth int64
	hash  [sha1.Size]byte
}

// candidates returns the known events of a conflict, by ascending depth, then
// descending SHA-1 of the event ID.
func (r *resolution) candidates(c Conflict) []candidate {
	var list []candidate
	for _, ref := range c.Values {
		if ref == 0 || slices.ContainsFunc(list, func(c candidate) bool { return c.ref == ref }) {
			continue
		}
		if e := r.entries[ref]; e.Event != nil {
			list = append(list, candidate{ref, e, e.Event.Depth(), sha1.Sum([]byte(e.Event.ID()))})
		}
	}
	slices.SortFunc(list, func(a, b candidate) int {
		return cmp.Or(
			cmp.Compare(a.depth, b.depth),
			bytes.Compare(b.hash[:], a.hash[:]),
			strings.Compare(string(a.entry.Event.ID()), string(b.entry.Event.ID())))
	})
	return list
}

// follow goes from the earliest candidate on as long as each is allowed after
// the one before it.
func (r *resolution) follow(key matrix.StateKey, candidates []candidate) (Ref, error) {
	defer delete(r.state, key)
	for i, c := range candidates {
		if i > 0 {
			allowed, err := r.allowed(c.entry, nil)
			if err != nil {
				return 0, err
			}
			if !allowed {
				break
			}
		}
		r.state[key] = c.ref
	}
	return r.state[key], nil
}

// latestAllowed returns the last candidate that is allowed. If none is, the
// earliest one stands.
func (r *resolution) latestAllowed(_ matrix.StateKey, candidates []candidate) (Ref, error) {
	for _, c := range slices.Backward(candidates) {
		allowed, err := r.allowed(c.entry, nil)
		if err != nil || allowed {
			return c.ref, err
		}
	}
	return candidates[0].ref, nil
}
