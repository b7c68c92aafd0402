package statetree

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"
	"sync/atomic"
)

const (
	// fanout is the number of children of a node. Few make a change small (each node on
	// the path is copied with all its links), many make the path short.
	fanout   = 4
	slotBits = 2
	// leafMax is how many entries stay together in a leaf.
	leafMax = 16
	// levels is the number of slots in a path, typeLevels those that come from the type.
	levels     = 128 / slotBits
	typeLevels = 64 / slotBits
)

// path is where a key stands in the tree: the mixed type, then the mixed state key.
// Mixing loses nothing, so two keys never share a path, and spreads numbers that were allocated in sequence.
type path struct {
	typ, key uint64
}

func (k Key) path() path { return path{mix(uint64(k.Type)), mix(uint64(k.StateKey))} }

// mix is a bijection (the finaliser of splitmix64).
func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// slot is the child that the path takes at a level.
func (p path) slot(level int) int {
	if level < typeLevels {
		return int(p.typ >> (64 - slotBits - level*slotBits) & (fanout - 1))
	}
	return int(p.key >> (64 - slotBits - (level-typeLevels)*slotBits) & (fanout - 1))
}

// common is the number of levels on which two paths agree.
func (p path) common(q path) int {
	if x := p.typ ^ q.typ; x != 0 {
		return bits.LeadingZeros64(x) / slotBits
	}
	return typeLevels + bits.LeadingZeros64(p.key^q.key)/slotBits
}

// cut keeps the first levels of a path.
func (p path) cut(level int) path {
	if level <= typeLevels {
		return path{typ: p.typ &^ (^uint64(0) >> (level * slotBits))}
	}
	return path{p.typ, p.key &^ (^uint64(0) >> ((level - typeLevels) * slotBits))}
}

func (p path) compare(q path) int {
	if c := cmp.Compare(p.typ, q.typ); c != 0 {
		return c
	}
	return cmp.Compare(p.key, q.key)
}

func compareEntries(a, b Entry) int { return a.path().compare(b.path()) }

// digest stands for the content of a subtree: equal digests, equal content.
type digest [16]byte

// link leads to a node. Its zero value leads nowhere: no entries.
type link struct {
	count  int   // entries below
	newest int64 // the greatest number of their events
	digest digest
	node   *node // of a node that may not be stored yet
	id     int64 // the blob of a stored node, and the place in it
	index  int
}

// node is a leaf with 1 to leafMax entries in the order of their paths, or an inner node
// with more than leafMax entries below. The content alone decides: an inner node
// stands at the first level on which its entries part.
type node struct {
	entries []Entry

	typ      int64 // any type below, from which the prefix is made when level > typeLevels
	level    int
	prefix   path // of all below, cut at level
	children [fanout]link

	place atomic.Pointer[place] // nil: not in a blob yet
}

// place is a node's place in a blob.
type place struct {
	blob  *blob
	index int
}

func (n *node) leaf() bool { return n.entries != nil }

func (n *node) count() int {
	c := len(n.entries)
	for i := range n.children {
		c += n.children[i].count
	}
	return c
}

func (n *node) newest() int64 {
	var newest int64
	for _, e := range n.entries {
		newest = max(newest, e.Event)
	}
	for i := range n.children {
		newest = max(newest, n.children[i].newest)
	}
	return newest
}

func (n *node) digest() digest {
	// Distinct first bytes keep a leaf from passing for an inner node.
	var buf [1 + leafMax*24]byte
	b := buf[:1]
	if n.leaf() {
		for _, e := range n.entries {
			b = binary.BigEndian.AppendUint64(b, uint64(e.Type))
			b = binary.BigEndian.AppendUint64(b, uint64(e.StateKey))
			b = binary.BigEndian.AppendUint64(b, uint64(e.Event))
		}
	} else {
		b[0] = 1
		for i := range n.children {
			b = append(b, n.children[i].digest[:]...)
		}
	}
	sum := sha256.Sum256(b)
	return digest(sum[:16])
}

// linkTo makes the link of a new node.
func linkTo(n *node) link {
	return link{count: n.count(), newest: n.newest(), digest: n.digest(), node: n}
}

// build makes the subtree of entries that are sorted by path, without duplicates.
func build(entries []Entry) link {
	switch {
	case len(entries) == 0:
		return link{}
	case len(entries) <= leafMax:
		return linkTo(&node{entries: slices.Clone(entries)})
	}
	first := entries[0].path()
	level := first.common(entries[len(entries)-1].path())
	n := inner(level, first, entries[0].Type)
	for slot := range n.children {
		var part []Entry
		part, entries = splitAt(entries, level, slot)
		n.children[slot] = build(part)
	}
	return linkTo(n)
}

func inner(level int, p path, typ int64) *node {
	return &node{level: level, prefix: p.cut(level), typ: typ}
}

// splitAt parts sorted entries after the last one that is in a slot or a lower one.
func splitAt(entries []Entry, level, slot int) (in, after []Entry) {
	i := 0
	for i < len(entries) && entries[i].path().slot(level) <= slot {
		i++
	}
	return entries[:i], entries[i:]
}
