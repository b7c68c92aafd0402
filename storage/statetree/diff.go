package statetree

import (
	"context"
	"slices"
)

// Difference is a key on which trees do not agree; Events[i] is tree i's event, 0 if absent.
type Difference struct {
	Key
	Events []int64
}

// Diff returns the keys on which the trees differ, which are of one forest. It takes time in
// proportion to the result.
func Diff(ctx context.Context, trees ...Tree) ([]Difference, error) {
	if len(trees) < 2 {
		return nil, nil
	}
	d := differ{ctx: ctx}
	views := make([]view, len(trees))
	for i, t := range trees {
		l, err := t.top(ctx)
		if err != nil {
			return nil, err
		}
		if d.f == nil {
			d.f = t.f
		}
		views[i].link = l
	}
	if err := d.diff(views); err != nil {
		return nil, err
	}
	return d.out, nil
}

// view is the part of one tree that is being compared: a subtree, or some entries of a leaf.
type view struct {
	link    link
	entries []Entry // when link leads nowhere
}

func (v view) count() int { return v.link.count + len(v.entries) }

// digest is that of the subtree these entries would be.
func (v view) digest() digest {
	if len(v.entries) > 0 {
		return (&node{entries: v.entries}).digest()
	}
	return v.link.digest
}

type differ struct {
	ctx context.Context
	f   *Forest
	out []Difference
}

func (d *differ) diff(views []view) error {
	if same(views) {
		return nil
	}
	inners := make([]*node, len(views))
	level := levels
	var prefix path
	some := false
	for i := range views {
		v := &views[i]
		if v.link.count == 0 {
			continue
		}
		n, err := d.f.node(d.ctx, v.link)
		if err != nil {
			return err
		}
		if n.leaf() {
			*v = view{entries: n.entries}
			continue
		}
		inners[i], some = n, true
		if n.level < level {
			level, prefix = n.level, n.prefix
		}
	}
	if !some {
		d.entries(views)
		return nil
	}
	// The highest level at which the subtrees part. Entries from elsewhere go along in the
	// slot that they would have.
	for _, n := range inners {
		if n != nil {
			level = min(level, prefix.common(n.prefix))
		}
	}
	for slot := range fanout {
		part := make([]view, len(views))
		for i, v := range views {
			switch n := inners[i]; {
			case n == nil:
				for _, e := range v.entries {
					if e.path().slot(level) == slot {
						part[i].entries = append(part[i].entries, e)
					}
				}
			case n.level == level:
				part[i].link = n.children[slot]
			case n.prefix.slot(level) == slot:
				part[i] = v
			}
		}
		if err := d.diff(part); err != nil {
			return err
		}
	}
	return nil
}

// same says whether all views have the same content.
func same(views []view) bool {
	for _, v := range views[1:] {
		if v.count() != views[0].count() {
			return false
		}
	}
	if views[0].count() == 0 {
		return true
	}
	first := views[0].digest()
	for _, v := range views[1:] {
		if v.digest() != first {
			return false
		}
	}
	return true
}

// entries compares views that are entries only, which are few.
func (d *differ) entries(views []view) {
	var keys []Entry
	for _, v := range views {
		keys = append(keys, v.entries...)
	}
	slices.SortFunc(keys, compareEntries)
	keys = slices.CompactFunc(keys, func(a, b Entry) bool { return a.Key == b.Key })
	for _, k := range keys {
		events := make([]int64, len(views))
		differ := false
		for i, v := range views {
			for _, e := range v.entries {
				if e.Key == k.Key {
					events[i] = e.Event
				}
			}
			differ = differ || events[i] != events[0]
		}
		if differ {
			d.out = append(d.out, Difference{k.Key, events})
		}
	}
}
