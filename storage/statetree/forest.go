package statetree

import (
	"context"
	"fmt"
	"sync"
)

// Forest makes trees over one store and caches their nodes, bounded. It may be
// used by many goroutines.
type Forest struct {
	store Store
	half  int64 // bytes in each generation of the cache

	mu sync.Mutex
	// The cache has two generations: what was used since the last turn, and what was before.
	now, old map[int64]*blob
	size     int64 // of now

	placing sync.Mutex // nodes get their places one tree at a time
}

// New makes a forest whose cache holds about cacheBytes of nodes.
func New(store Store, cacheBytes int64) *Forest {
	return &Forest{store: store, half: cacheBytes / 2, now: make(map[int64]*blob)}
}

// cost is about the memory of a blob with its nodes decoded.
func (b *blob) cost() int64 { return 400 + 4*int64(len(b.data)) }

// blob returns a stored blob.
func (f *Forest) blob(ctx context.Context, id int64) (*blob, error) {
	f.mu.Lock()
	b := f.now[id]
	if b == nil {
		if b = f.old[id]; b != nil {
			f.keep(b)
		}
	}
	f.mu.Unlock()
	if b != nil {
		return b, nil
	}
	data, err := f.store.LoadNodes(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("load state nodes %d: %w", id, err)
	}
	if b, err = parseBlob(id, data); err != nil {
		return nil, err
	}
	b.saved.Store(true)
	f.mu.Lock()
	defer f.mu.Unlock()
	if other := f.now[id]; other != nil {
		return other, nil
	}
	f.keep(b)
	return b, nil
}

// keep puts a blob in the cache. f.mu is held.
func (f *Forest) keep(b *blob) {
	if f.now[b.id] != nil {
		return
	}
	if f.size += b.cost(); f.size > f.half {
		f.old, f.now, f.size = f.now, make(map[int64]*blob), b.cost()
	}
	f.now[b.id] = b
}

// node follows a link.
func (f *Forest) node(ctx context.Context, l link) (*node, error) {
	if l.node != nil {
		return l.node, nil
	}
	b, err := f.blob(ctx, l.id)
	if err != nil {
		return nil, err
	}
	return b.nodeOf(l)
}

// Blob is nodes to be stored under a number, in one row.
type Blob struct {
	ID   int64
	Data []byte

	blob *blob
}

// Unsaved lists what must be stored for this tree to be loadable, in the same
// transaction as whatever refers to it. Trees made from each other may list the same blob:
// storing it again under its number must do nothing. Saved tells the forest that
// they are stored; from then on no tree lists them.
func (t Tree) Unsaved() []Blob {
	if t.r == nil {
		return nil
	}
	t.f.place(t.r, nil) // fails only for want of numbers, and this takes none
	t.r.mu.Lock()
	defer t.r.mu.Unlock()
	var out []Blob
	if t.r.known {
		seen := make(map[*blob]bool)
		t.r.link.unsaved(seen, &out)
	}
	return out
}

// unsaved collects the blobs below that are not stored. What is below a stored node is stored.
func (l *link) unsaved(seen map[*blob]bool, out *[]Blob) {
	if l.node == nil {
		return
	}
	b := l.node.place.Load().blob
	if b.saved.Load() {
		return
	}
	if !seen[b] {
		seen[b] = true
		*out = append(*out, Blob{b.id, b.data, b})
	}
	for i := range l.node.children {
		l.node.children[i].unsaved(seen, out)
	}
}

// Saved: see Unsaved.
func (f *Forest) Saved(blobs []Blob) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range blobs {
		if b.blob != nil {
			f.keep(b.blob)
			b.blob.saved.Store(true)
		}
	}
}
