package stateres

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// authChains are the auth events of a room's events, filled from a Source as far as resolutions had to look.
//
// An auth chain only ever leads to lower numbers (see Ref). So walks go down by
// number and stop where nothing of interest can follow: of chains that go back
// to the beginning of the room only the part is ever read that is younger than the conflict.
type authChains struct {
	index map[Ref]int32
	nodes []node
	edges []int32 // the auth events of all nodes, by index
}

type node struct {
	ref        Ref
	first, end int32 // its edges
	loaded     bool  // its edges are known
	fact       *fact // what else is known of it
}

func newAuthChains() *authChains { return &authChains{index: make(map[Ref]int32)} }

// auth gives the auth events of an event that is loaded.
func (c *authChains) auth(i int32) []int32 {
	return c.edges[c.nodes[i].first:c.nodes[i].end]
}

// maxBatch is how many events a Source is asked for at once.
const maxBatch = 500

// maxEvents bounds the memory: about 100 MB.
const maxEvents = 1 << 20

var (
	// errOrder cannot happen with events that were numbered as they were checked, one after the other.
	errOrder    = errors.New("an event is not numbered after its auth events")
	errTooLarge = fmt.Errorf("auth chains of more than %d events", maxEvents)
)

// load returns the indices of events whose auth events are known.
func (c *authChains) load(src Source, refs []Ref) ([]int32, error) {
	indices := make([]int32, len(refs))
	for i, ref := range refs {
		indices[i] = c.intern(ref)
	}
	return indices, c.fill(src, indices)
}

// intern returns the index of an event, a new one if need be.
func (c *authChains) intern(ref Ref) int32 {
	i, ok := c.index[ref]
	if !ok {
		i = int32(len(c.nodes))
		c.index[ref] = i
		c.nodes = append(c.nodes, node{ref: ref})
	}
	return i
}

// fill asks for the auth events of those events that are not loaded.
func (c *authChains) fill(src Source, events []int32) error {
	var missing []int32
	for _, i := range events {
		if !c.nodes[i].loaded {
			missing = append(missing, i)
		}
	}
	for batch := range slices.Chunk(missing, maxBatch) {
		if len(c.nodes) > maxEvents {
			return errTooLarge
		}
		refs := make([]Ref, len(batch))
		for k, i := range batch {
			refs[k] = c.nodes[i].ref
		}
		auth, err := src.AuthEvents(refs)
		if err != nil {
			return fmt.Errorf("load auth events: %w", err)
		}
		for k, i := range batch {
			if c.nodes[i].loaded { // twice in the batch
				continue
			}
			first := int32(len(c.edges))
			for _, ref := range auth[k] {
				if ref >= refs[k] {
					c.edges = c.edges[:first]
					return errOrder
				}
				if ref != 0 {
					c.edges = append(c.edges, c.intern(ref))
				}
			}
			n := &c.nodes[i]
			n.first, n.end, n.loaded = first, int32(len(c.edges)), true
		}
	}
	return nil
}

// lowest is the least number among events.
func (c *authChains) lowest(events []int32) Ref {
	lowest := Ref(1<<63 - 1)
	for _, i := range events {
		lowest = min(lowest, c.nodes[i].ref)
	}
	return lowest
}

// walk is a walk from some events down their chains to a number. It visits each
// event once and in no order, until visit returns false.
type walk struct {
	*authChains
	src    Source
	lowest Ref
	visit  func(int32) bool

	seen           indexSet
	ready, unknown []int32 // to be gone on from; of unknown ones the auth events are not at hand
	stopped        bool
}

func (c *authChains) newWalk(src Source, lowest Ref, visit func(int32) bool) *walk {
	return &walk{authChains: c, src: src, lowest: lowest, visit: visit}
}

// meet visits an event, and remembers it to go on from.
func (w *walk) meet(i int32) {
	n := &w.nodes[i]
	if w.stopped || n.ref < w.lowest || !w.seen.add(i) {
		return
	}
	switch {
	case n.ref == w.lowest: // nothing of interest follows
	case n.loaded:
		w.ready = append(w.ready, i)
	default:
		w.unknown = append(w.unknown, i)
	}
	w.stopped = !w.visit(i)
}

// known goes on as far as is possible without asking the source.
func (w *walk) known() {
	for len(w.ready) > 0 && !w.stopped {
		top := w.ready[len(w.ready)-1]
		w.ready = w.ready[:len(w.ready)-1]
		for _, a := range w.auth(top) {
			w.meet(a)
		}
	}
}

// finish goes on to the end.
func (w *walk) finish() error {
	for w.known(); len(w.unknown) > 0 && !w.stopped; w.known() {
		rest := max(0, len(w.unknown)-maxBatch)
		batch := w.unknown[rest:]
		w.unknown = w.unknown[:rest]
		if err := w.fill(w.src, batch); err != nil {
			return err
		}
		w.ready = append(w.ready, batch...)
	}
	return nil
}

// below returns the events and what is in their chains, down to a number.
func (c *authChains) below(src Source, events []int32, lowest Ref) ([]int32, error) {
	w := c.newWalk(src, lowest, func(int32) bool { return true })
	for _, i := range events {
		w.meet(i)
	}
	err := w.finish()
	return w.seen.list, err
}

// subgraph returns the conflicted state subgraph: everything on a path from one
// of the events to another, ends included.
// spec: rooms/v12#state-resolution "Conflicted state subgraph"
func (c *authChains) subgraph(src Source, events []int32) ([]int32, error) {
	seen, err := c.below(src, events, c.lowest(events))
	if err != nil {
		return nil, err
	}
	var leads indexSet // to one of the events, or one of them
	for _, i := range events {
		leads.add(i)
	}
	c.ascend(seen)
	for _, i := range seen {
		// The lowest event may not be loaded; it is one of the events.
		if !leads.has(i) && slices.ContainsFunc(c.auth(i), leads.has) {
			leads.add(i)
		}
	}
	return leads.list, nil
}

// ascend sorts events, those first on which others build.
func (c *authChains) ascend(events []int32) {
	slices.SortFunc(events, func(a, b int32) int { return cmp.Compare(c.nodes[a].ref, c.nodes[b].ref) })
}

// masks say which states events belong to, one bit each.
type masks struct {
	indexSet
	of []uint64 // by auth chain index
}

// extend adds states to those that an event belongs to, and returns which these were.
func (m *masks) extend(i int32, states uint64) (was uint64, isNew bool) {
	isNew = m.add(i)
	m.of = grown(m.of, i)
	was = m.of[i]
	m.of[i] |= states
	return was, isNew
}

// differences returns the events that some but not all states reach, walking down
// from all of them together until what is left is common to all. It extends m, which begins
// with the states. shared reports whether an event is part of what all states agree on; load is given,
// in batches, the events that it is going to be asked about.
func (c *authChains) differences(src Source, m *masks, states int,
	load func([]int32) error, shared func(int32) (bool, error)) ([]int32, error) {
	all := uint64(1)<<states - 1 // of 64 states: all bits
	queue := heap[int32]{less: func(a, b int32) bool { return c.nodes[a].ref > c.nodes[b].ref }}
	open := 0         // queued events that are not common yet
	var fresh []int32 // events that were queued so, and not loaded yet
	var ready indexSet
	for _, i := range m.list {
		queue.push(i)
		if m.of[i] != all {
			open++
			fresh = append(fresh, i)
		}
	}
	var result, batch []int32
	for open > 0 {
		i := queue.pop()
		mask := m.of[i]
		if mask != all && ready.add(i) {
			// The other open ones are looked at soon.
			batch = append(batch[:0], i)
			for len(fresh) > 0 && len(batch) < maxBatch {
				next := fresh[len(fresh)-1]
				fresh = fresh[:len(fresh)-1]
				if m.of[next] != all && ready.add(next) {
					batch = append(batch, next)
				}
			}
			if err := c.fill(src, batch); err != nil {
				return nil, err
			}
			if err := load(batch); err != nil {
				return nil, err
			}
		}
		if mask != all {
			open--
			common, err := shared(i)
			if err != nil {
				return nil, err
			}
			if common {
				mask = all
			} else {
				result = append(result, i)
			}
		} else if !c.nodes[i].loaded {
			if err := c.fill(src, []int32{i}); err != nil {
				return nil, err
			}
		}
		for _, a := range c.auth(i) {
			was, isNew := m.extend(a, mask)
			if isNew {
				queue.push(a)
			}
			switch {
			case isNew && mask != all:
				open++
				fresh = append(fresh, a)
			case !isNew && was != all && was|mask == all:
				open--
			}
		}
	}
	return result, nil
}

// unreached returns those targets that are not in the auth chain of the state
// that all inputs share.
func (c *authChains) unreached(src Source, targets []int32) ([]int32, error) {
	if len(targets) == 0 {
		return nil, nil
	}
	refs := make([]Ref, len(targets))
	var left []bool // by auth chain index: not reached yet
	for k, i := range targets {
		refs[k] = c.nodes[i].ref
		left = grown(left, i)
		left[i] = true
	}
	open := len(targets)
	w := c.newWalk(src, slices.Min(refs), func(i int32) bool {
		if int(i) < len(left) && left[i] {
			left[i] = false
			open--
		}
		return open > 0
	})
	// What is at hand may do.
	var unknown []Ref
	err := src.Shared(refs, func(ref Ref) bool {
		if i, ok := c.index[ref]; ok {
			w.meet(i)
			w.known()
		} else if ref >= w.lowest {
			unknown = append(unknown, ref)
		}
		return !w.stopped
	})
	if err != nil {
		return nil, fmt.Errorf("read shared state: %w", err)
	}
	for batch := range slices.Chunk(unknown, maxBatch) {
		if w.stopped {
			break
		}
		for _, ref := range batch {
			w.meet(c.intern(ref))
		}
		if err := w.finish(); err != nil {
			return nil, err
		}
	}
	if err := w.finish(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(targets), func(i int32) bool { return !left[i] }), nil
}
