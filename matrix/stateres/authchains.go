package stateres

import (
	"errors"
	"fmt"
)

// AuthChains remembers the auth events of a room's events, filled on demand from a
// Source: at first use the chains of the events in conflict, later only what is
// new. It is a cache: drop it at any time, and when the known auth events of
// an event change. Not safe for concurrent use.
//
// Each event has a generation, one more than the greatest among its auth events. A
// chain only ever leads to lower generations, so walks go down generation by
// generation and stop where nothing of interest can follow.
type AuthChains struct {
	index map[Ref]int32
	nodes []node
	edges []int32 // the auth events of all nodes, by index
}

type node struct {
	ref        Ref
	generation int32 // 0 while loading, inProgress while being computed
	first, end int32 // its edges
}

const inProgress = -1

// NewAuthChains makes an empty memory.
func NewAuthChains() *AuthChains { return &AuthChains{index: make(map[Ref]int32)} }

// Len is how many events it holds, of some 100 bytes each.
func (c *AuthChains) Len() int { return len(c.nodes) }

func (c *AuthChains) auth(i int32) []int32 {
	return c.edges[c.nodes[i].first:c.nodes[i].end]
}

// maxBatch is how many events a Source is asked for at once.
const maxBatch = 500

// maxEvents bounds the memory: about 100 MB.
const maxEvents = 1 << 20

var (
	// errCycle cannot happen with events that were checked one after the other.
	errCycle    = errors.New("auth events form a cycle")
	errTooLarge = fmt.Errorf("auth chains of more than %d events", maxEvents)
)

// load makes sure that events and their chains are known, and returns their indices.
func (c *AuthChains) load(src Source, refs []Ref) ([]int32, error) {
	nodes, edges := len(c.nodes), len(c.edges)
	indices := make([]int32, len(refs))
	for i, ref := range refs {
		indices[i] = c.intern(ref)
	}
	err := c.fill(src, nodes)
	for i := nodes; err == nil && i < len(c.nodes); i++ {
		err = c.generation(int32(i))
	}
	if err != nil {
		for _, n := range c.nodes[nodes:] {
			delete(c.index, n.ref)
		}
		c.nodes, c.edges = c.nodes[:nodes], c.edges[:edges]
		return nil, err
	}
	return indices, nil
}

// intern returns the index of an event, a new one if need be.
func (c *AuthChains) intern(ref Ref) int32 {
	i, ok := c.index[ref]
	if !ok {
		i = int32(len(c.nodes))
		c.index[ref] = i
		c.nodes = append(c.nodes, node{ref: ref})
	}
	return i
}

// fill asks for the auth events of the nodes as from the given one, and of
// those that this adds.
func (c *AuthChains) fill(src Source, from int) error {
	var batch []Ref
	for from < len(c.nodes) {
		if len(c.nodes) > maxEvents {
			return errTooLarge
		}
		batch = batch[:0]
		for _, n := range c.nodes[from:min(len(c.nodes), from+maxBatch)] {
			batch = append(batch, n.ref)
		}
		auth, err := src.AuthEvents(batch)
		if err != nil {
			return fmt.Errorf("load auth chain: %w", err)
		}
		for i := range batch {
			first := int32(len(c.edges))
			for _, ref := range auth[i] {
				if ref != 0 {
					c.edges = append(c.edges, c.intern(ref))
				}
			}
			n := &c.nodes[from+i]
			n.first, n.end = first, int32(len(c.edges))
		}
		from += len(batch)
	}
	return nil
}

// generation computes a node's generation, and those that it depends on.
func (c *AuthChains) generation(i int32) error {
	if c.nodes[i].generation > 0 {
		return nil
	}
	stack := []int32{i}
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		n := &c.nodes[top]
		if n.generation > 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		n.generation = inProgress
		highest, waiting := int32(0), false
		for _, a := range c.auth(top) {
			switch g := c.nodes[a].generation; {
			case g > 0:
				highest = max(highest, g)
			case g == inProgress:
				return errCycle
			default:
				stack, waiting = append(stack, a), true
			}
		}
		if !waiting {
			n.generation = highest + 1
			stack = stack[:len(stack)-1]
		}
	}
	return nil
}

// lowest is the least generation among events.
func (c *AuthChains) lowest(events []int32) int32 {
	lowest := int32(1<<31 - 1)
	for _, i := range events {
		lowest = min(lowest, c.nodes[i].generation)
	}
	return lowest
}

// below returns the events and what is in their chains, down to a generation.
func (c *AuthChains) below(events []int32, lowest int32) map[int32]bool {
	seen := make(map[int32]bool, 2*len(events))
	var stack []int32
	visit := func(i int32) {
		if c.nodes[i].generation >= lowest && !seen[i] {
			seen[i] = true
			stack = append(stack, i)
		}
	}
	for _, i := range events {
		visit(i)
	}
	for len(stack) > 0 {
		top := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, a := range c.auth(top) {
			visit(a)
		}
	}
	return seen
}

// subgraph returns the conflicted state subgraph: everything on a path from one
// of the events to another, ends included.
// spec: rooms/v12#state-resolution "Conflicted state subgraph"
func (c *AuthChains) subgraph(events []int32) []int32 {
	seen := c.below(events, c.lowest(events))
	leads := make(map[int32]bool, len(seen)) // to one of the events
	for _, i := range events {
		leads[i] = true
	}
	result := append([]int32(nil), events...)
	for _, i := range c.ascending(seen) {
		if leads[i] {
			continue
		}
		for _, a := range c.auth(i) {
			if leads[a] {
				leads[i] = true
				result = append(result, i)
				break
			}
		}
	}
	return result
}

// differences returns the events that some but not all states reach, walking down
// from all of them together until what is left is common to all. masks says
// which states an event belongs to, one bit each; it is extended. shared
// reports whether an event is part of what all states agree on.
func (c *AuthChains) differences(masks map[int32]uint64, states int, shared func(int32) (bool, error)) ([]int32, error) {
	all := uint64(1)<<states - 1 // of 64 states: all bits
	queue := heap[int32]{less: func(a, b int32) bool { return c.nodes[a].generation > c.nodes[b].generation }}
	open := 0 // queued events that are not common yet
	for i, mask := range masks {
		queue.push(i)
		if mask != all {
			open++
		}
	}
	var result []int32
	for open > 0 {
		i := queue.pop()
		mask := masks[i]
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
		}
		for _, a := range c.auth(i) {
			was, queued := masks[a]
			masks[a] = was | mask
			if !queued {
				queue.push(a)
			}
			switch {
			case !queued && mask != all:
				open++
			case queued && was != all && was|mask == all:
				open--
			}
		}
	}
	return result, nil
}

// reachedByShared removes from targets what is in the auth chain of the state
// that all inputs share.
func (c *AuthChains) reachedByShared(src Source, targets map[int32]bool) error {
	if len(targets) == 0 {
		return nil
	}
	lowest := int32(1<<31 - 1)
	refs := make([]Ref, 0, len(targets))
	for i := range targets {
		lowest = min(lowest, c.nodes[i].generation)
		refs = append(refs, c.nodes[i].ref)
	}
	seen := make(map[int32]bool)
	var stack []int32
	walk := func(i int32) {
		stack = append(stack, i)
		for len(stack) > 0 && len(targets) > 0 {
			top := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			// Below the lowest target there is none.
			if c.nodes[top].generation < lowest || seen[top] {
				continue
			}
			seen[top] = true
			delete(targets, top)
			stack = append(stack, c.auth(top)...)
		}
	}
	var unknown []Ref
	err := src.Shared(refs, func(ref Ref) bool {
		if i, ok := c.index[ref]; ok {
			walk(i)
		} else {
			unknown = append(unknown, ref)
		}
		return len(targets) > 0
	})
	if err != nil {
		return fmt.Errorf("read shared state: %w", err)
	}
	if len(targets) == 0 {
		return nil
	}
	indices, err := c.load(src, unknown)
	if err != nil {
		return err
	}
	for _, i := range indices {
		walk(i)
	}
	return nil
}
