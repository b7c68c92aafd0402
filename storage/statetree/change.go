package statetree

import (
	"context"
	"slices"
)

// With returns the tree with changes applied; of several for one key the last counts.
// New nodes stay in memory until saved. A tree that is not changed is returned as it is.
func (t Tree) With(ctx context.Context, changes ...Entry) (Tree, error) {
	top, err := t.top(ctx)
	if err != nil {
		return Tree{}, err
	}
	c := change{ctx: ctx, f: t.f}
	now, err := c.apply(top, sorted(changes))
	if err != nil {
		return Tree{}, err
	}
	if now.count == top.count && now.digest == top.digest {
		return t, nil
	}
	if now.count == 0 {
		return Tree{f: t.f}, nil
	}
	if now.node == nil || now.node.place.Load() != nil {
		// A subtree that was there becomes the whole tree. The root is stored under a number of its own.
		n, err := t.f.node(ctx, now)
		if err != nil {
			return Tree{}, err
		}
		now.node = n.copy()
	}
	id, err := t.f.store.Allocate()
	if err != nil {
		return Tree{}, err
	}
	r := &root{id: id, link: now, known: true, unplaced: c.size}
	if t.r != nil {
		t.r.mu.Lock()
		r.unplaced += t.r.unplaced
		t.r.mu.Unlock()
	}
	if r.unplaced > blobTarget {
		if err := t.f.place(r, t.f.store.Allocate); err != nil {
			return Tree{}, err
		}
	}
	return Tree{t.f, r}, nil
}

// sorted returns changes in the order of their paths, the last one for each key.
func sorted(changes []Entry) []Entry {
	out := slices.Clone(changes)
	slices.SortStableFunc(out, compareEntries)
	kept := out[:0]
	for i, e := range out {
		if i+1 == len(out) || out[i+1].Key != e.Key {
			kept = append(kept, e)
		}
	}
	return kept
}

// copy returns an unplaced copy of an inner node or leaf. Links to stored nodes let go of
// the node in memory, so that a tree that lives long holds only what is not in the cache or the store.
func (n *node) copy() *node {
	out := &node{entries: n.entries, typ: n.typ, level: n.level, prefix: n.prefix, children: n.children}
	for i := range out.children {
		c := &out.children[i]
		if c.node == nil {
			continue
		}
		if p := c.node.place.Load(); p != nil && p.blob.saved.Load() {
			c.node, c.id, c.index = nil, p.blob.id, p.index
		}
	}
	return out
}

// change is one With under way.
type change struct {
	ctx  context.Context
	f    *Forest
	size int // about the bytes of the new nodes
}

// made makes the link of a new node.
func (c *change) made(n *node) link {
	c.size += 16 + 12*len(n.entries)
	if !n.leaf() {
		c.size += fanout * 22
	}
	return linkTo(n)
}

// apply returns the subtree l with sorted changes applied.
func (c *change) apply(l link, changes []Entry) (link, error) {
	if len(changes) == 0 {
		return l, nil
	}
	if l.count == 0 {
		return c.build(merge(nil, changes)), nil
	}
	n, err := c.f.node(c.ctx, l)
	if err != nil {
		return link{}, err
	}
	if n.leaf() {
		merged := merge(n.entries, changes)
		if slices.Equal(merged, n.entries) {
			return l, nil
		}
		return c.build(merged), nil
	}
	// The changes below the prefix are one run; those outside are new keys or nothing.
	from := 0
	for from < len(changes) && changes[from].path().cut(n.level).compare(n.prefix) < 0 {
		from++
	}
	to := from
	for to < len(changes) && changes[to].path().cut(n.level) == n.prefix {
		to++
	}
	now, err := c.applyBelow(l, n, changes[from:to])
	if err != nil {
		return link{}, err
	}
	outside := merge(nil, slices.Concat(changes[:from], changes[to:]))
	return c.join(now, outside)
}

// applyBelow applies changes that share the prefix of an inner node.
func (c *change) applyBelow(l link, n *node, changes []Entry) (link, error) {
	if len(changes) == 0 {
		return l, nil
	}
	var out *node
	for slot := range n.children {
		var part []Entry
		part, changes = splitAt(changes, n.level, slot)
		child, err := c.apply(n.children[slot], part)
		if err != nil {
			return link{}, err
		}
		if child.count == n.children[slot].count && child.digest == n.children[slot].digest {
			continue
		}
		if out == nil {
			out = n.copy()
		}
		out.children[slot] = child
	}
	if out == nil {
		return l, nil
	}
	return c.normal(out)
}

// normal gives an inner node the form that its content demands.
func (c *change) normal(n *node) (link, error) {
	total, children, only := 0, 0, 0
	for slot := range n.children {
		if count := n.children[slot].count; count > 0 {
			total += count
			children++
			only = slot
		}
	}
	switch {
	case total <= leafMax:
		var entries []Entry
		for _, child := range n.children {
			if child.count == 0 {
				continue
			}
			if _, err := c.f.walk(c.ctx, child, func(e Entry) bool { entries = append(entries, e); return true }); err != nil {
				return link{}, err
			}
		}
		return c.build(entries), nil
	case children == 1:
		return n.children[only], nil
	}
	return c.made(n), nil
}

// join adds entries that are outside of the prefix of a subtree.
func (c *change) join(l link, outside []Entry) (link, error) {
	if len(outside) == 0 {
		return l, nil
	}
	if l.count == 0 {
		return c.build(outside), nil
	}
	n, err := c.f.node(c.ctx, l)
	if err != nil {
		return link{}, err
	}
	if n.leaf() {
		return c.build(merge(n.entries, outside)), nil
	}
	level := n.level
	for _, e := range outside {
		level = min(level, n.prefix.common(e.path()))
	}
	out := inner(level, n.prefix, n.typ)
	for slot := range out.children {
		var part []Entry
		part, outside = splitAt(outside, level, slot)
		if n.prefix.slot(level) == slot {
			out.children[slot], err = c.join(l, part)
		} else {
			out.children[slot] = c.build(part)
		}
		if err != nil {
			return link{}, err
		}
	}
	return c.made(out), nil
}

func (c *change) build(entries []Entry) link {
	c.size += 40 * len(entries)
	return build(entries)
}

// merge applies sorted changes to sorted entries.
func merge(entries, changes []Entry) []Entry {
	out := make([]Entry, 0, len(entries)+len(changes))
	for _, e := range changes {
		for len(entries) > 0 && compareEntries(entries[0], e) < 0 {
			out, entries = append(out, entries[0]), entries[1:]
		}
		if len(entries) > 0 && entries[0].Key == e.Key {
			entries = entries[1:]
		}
		if e.Event != 0 {
			out = append(out, e)
		}
	}
	return append(out, entries...)
}
