// Package statetree keeps room states as persistent trees with shared nodes.
//
// A Tree maps (type, state key), both interned, to an event. It is immutable:
// With returns a new tree that shares all but O(log n) nodes. Two trees are
// compared in time that follows their difference, also when they were built
// independently: the shape of a tree depends on its content only, and each
// child link carries a digest of what is below it.
//
// The tree is a radix tree over a hash of the key with four children to a node and small
// leaves (node.go). Nodes that were made together are stored together, in one blob (blob.go);
// nodes in memory are those not stored yet and a bounded cache of blobs (forest.go).
package statetree

import (
	"context"
	"fmt"
	"sync"
)

// Key is an interned (type, state_key).
type Key struct {
	Type, StateKey int64
}

// Entry is one state entry. Event 0 in a change means: remove the key.
type Entry struct {
	Key
	Event int64
}

// Ref is the number under which a root is stored; 0 is the empty tree.
type Ref int64

// Store loads and names nodes.
type Store interface {
	// LoadNodes returns the bytes stored under a number.
	LoadNodes(ctx context.Context, id int64) ([]byte, error)
	// Allocate gives a fresh number, above 0.
	Allocate() (int64, error)
}

// Tree is one immutable state. The zero Tree is empty, but only a Forest's can be changed.
type Tree struct {
	f *Forest
	r *root // nil: empty
}

// root is what the copies of a Tree share.
type root struct {
	id int64 // under which it is stored, or will be

	mu       sync.Mutex
	link     link
	known    bool // link is set; otherwise the tree is the last node of blob id
	unplaced int  // about the bytes of nodes not in a blob yet
}

// At returns the tree stored under a reference; nothing is loaded yet.
func (f *Forest) At(r Ref) Tree {
	if r == 0 {
		return Tree{f: f}
	}
	return Tree{f, &root{id: int64(r)}}
}

// top returns the link to the root node, loading it when the tree is known by reference only.
func (t Tree) top(ctx context.Context) (link, error) {
	if t.r == nil {
		return link{}, nil
	}
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	if t.r.known {
		return t.r.link, nil
	}
	b, err := t.f.blob(ctx, t.r.id)
	if err != nil {
		return link{}, fmt.Errorf("state tree %d: %w", t.r.id, err)
	}
	i := len(b.ends) - 1
	n, err := b.node(i)
	if err != nil {
		return link{}, fmt.Errorf("state tree %d: %w", t.r.id, err)
	}
	t.r.link = link{id: t.r.id, index: i, count: n.count(), newest: n.newest(), digest: n.digest()}
	t.r.known = true
	return t.r.link, nil
}

// Ref returns the tree's reference. It may name nodes that are not stored yet: see Unsaved.
func (t Tree) Ref() Ref {
	if t.r == nil {
		return 0
	}
	return Ref(t.r.id)
}

// Len is the number of entries.
func (t Tree) Len(ctx context.Context) (int, error) {
	l, err := t.top(ctx)
	return l.count, err
}

// Get returns the event for a key, 0 if there is none.
func (t Tree) Get(ctx context.Context, k Key) (int64, error) {
	l, err := t.top(ctx)
	if err != nil || l.count == 0 {
		return 0, err
	}
	p := k.path()
	for {
		n, err := t.f.node(ctx, l)
		if err != nil {
			return 0, err
		}
		if n.leaf() {
			for _, e := range n.entries {
				if e.Key == k {
					return e.Event, nil
				}
			}
			return 0, nil
		}
		child := n.children[p.slot(n.level)]
		if child.count == 0 {
			return 0, nil
		}
		l = child
	}
}

// All calls fn for every entry in a fixed order until fn returns false.
func (t Tree) All(ctx context.Context, fn func(Entry) bool) error {
	l, err := t.top(ctx)
	if err != nil || l.count == 0 {
		return err
	}
	_, err = t.f.walk(ctx, l, fn)
	return err
}

// Newer calls fn for every entry whose event has a greater number than one, in a fixed order, until fn
// returns false. It does not look where there is none.
func (t Tree) Newer(ctx context.Context, than int64, fn func(Entry) bool) error {
	l, err := t.top(ctx)
	if err != nil || l.count == 0 {
		return err
	}
	_, err = t.f.walkNewer(ctx, l, than, fn)
	return err
}

// walk visits the entries below a link and says whether to go on.
func (f *Forest) walk(ctx context.Context, l link, fn func(Entry) bool) (bool, error) {
	return f.walkNewer(ctx, l, 0, fn)
}

func (f *Forest) walkNewer(ctx context.Context, l link, than int64, fn func(Entry) bool) (bool, error) {
	if l.newest <= than {
		return true, nil
	}
	n, err := f.node(ctx, l)
	if err != nil {
		return false, err
	}
	for _, e := range n.entries {
		if e.Event > than && !fn(e) {
			return false, nil
		}
	}
	for _, c := range n.children {
		if more, err := f.walkNewer(ctx, c, than, fn); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// OfType calls fn for every entry of one type, without walking the others: the
// type comes first in the path of a key.
func (t Tree) OfType(ctx context.Context, typ int64, fn func(Entry) bool) error {
	l, err := t.top(ctx)
	if err != nil {
		return err
	}
	p := Key{Type: typ}.path()
	for l.count > 0 {
		n, err := t.f.node(ctx, l)
		if err != nil {
			return err
		}
		if n.leaf() || n.level >= typeLevels {
			if !n.leaf() && n.prefix.typ != p.typ {
				return nil
			}
			_, err := t.f.walk(ctx, l, func(e Entry) bool { return e.Type != typ || fn(e) })
			return err
		}
		l = n.children[p.slot(n.level)]
	}
	return nil
}
