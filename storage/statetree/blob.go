package statetree

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"sync/atomic"
)

// A blob holds nodes: a format byte, the number of nodes, the length of each, the nodes, and a
// CRC-32C of it all. A child comes before its parent; the last node is the root of the tree that
// bears the blob's number.
//
// A node starts with a byte. A leaf: the number of entries (1 to leafMax), then type, state key
// and event of each. An inner node: 128 + level; its prefix, up to typeLevels as bytes, beyond it
// as the type and the bytes of the state key's part; a byte whose bits say which children there
// are; for each child the number of its blob (as the difference to this one), its index,
// its count, the greatest number of an event in it (as the difference to that of the whole node, which comes before all
// children) and its digest. Numbers are varints.
type blob struct {
	id    int64
	data  []byte
	start int
	ends  []int // of the nodes, from start
	nodes []atomic.Pointer[node]
	saved atomic.Bool // stored for certain
}

const (
	blobFormat = 1
	// blobTarget is the size at which a big change starts another blob, so that
	// reading a little of a big tree does not load all of it.
	blobTarget = 16 << 10
	// blobLimit bounds what is accepted.
	blobLimit = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errCorrupt = errors.New("corrupt state nodes")

// parseBlob checks the outer form; nodes are decoded when they are asked for.
func parseBlob(id int64, data []byte) (*blob, error) {
	body := len(data) - crc32.Size
	if body < 1 || len(data) > blobLimit || data[0] != blobFormat || binary.BigEndian.Uint32(data[body:]) != crc32.Checksum(data[:body], castagnoli) {
		return nil, fmt.Errorf("blob %d: %w", id, errCorrupt)
	}
	data = data[:body]
	r := reader{data: data[1:]}
	count := r.uint()
	if count == 0 || count > uint64(len(data)) {
		return nil, fmt.Errorf("blob %d: %w", id, errCorrupt)
	}
	b := &blob{id: id, data: data, ends: make([]int, count), nodes: make([]atomic.Pointer[node], count)}
	end := 0
	for i := range b.ends {
		n := r.uint()
		if n > uint64(len(data)-end) {
			return nil, fmt.Errorf("blob %d: %w", id, errCorrupt)
		}
		end += int(n)
		b.ends[i] = end
	}
	b.start = len(data) - len(r.data)
	if r.bad || end != len(r.data) {
		return nil, fmt.Errorf("blob %d: %w", id, errCorrupt)
	}
	return b, nil
}

// node returns the node at an index.
func (b *blob) node(i int) (*node, error) {
	if i < 0 || i >= len(b.nodes) {
		return nil, fmt.Errorf("blob %d has no node %d: %w", b.id, i, errCorrupt)
	}
	if n := b.nodes[i].Load(); n != nil {
		return n, nil
	}
	from := b.start
	if i > 0 {
		from += b.ends[i-1]
	}
	n, ok := decodeNode(b.data[from:b.start+b.ends[i]], b.id, i)
	if !ok {
		return nil, fmt.Errorf("blob %d, node %d: %w", b.id, i, errCorrupt)
	}
	n.place.Store(&place{b, i})
	b.nodes[i].Store(n)
	return n, nil
}

// nodeOf is node with a check, the first time, that it is the one the link means: what was
// damaged in the store is found before a state is made of it.
func (b *blob) nodeOf(l link) (*node, error) {
	known := l.index >= 0 && l.index < len(b.nodes) && b.nodes[l.index].Load() != nil
	n, err := b.node(l.index)
	if err == nil && !known && (n.digest() != l.digest || n.count() != l.count || n.newest() != l.newest) {
		b.nodes[l.index].Store(nil)
		return nil, fmt.Errorf("blob %d, node %d: wrong digest: %w", b.id, l.index, errCorrupt)
	}
	return n, err
}

func decodeNode(data []byte, id int64, index int) (*node, bool) {
	r := reader{data: data}
	kind := int(r.byte())
	if kind < 128 {
		return decodeLeaf(&r, kind)
	}
	n := &node{level: kind - 128}
	if n.level >= levels {
		return nil, false
	}
	if n.level <= typeLevels {
		n.prefix.typ = r.prefix(n.level)
	} else {
		n.typ = int64(r.uint())
		n.prefix.typ = mix(uint64(n.typ))
		n.prefix.key = r.prefix(n.level - typeLevels)
	}
	if n.prefix != n.prefix.cut(n.level) {
		return nil, false
	}
	present := r.byte()
	if present >= 1<<fanout || present&(present-1) == 0 { // one child alone would stand in its place
		return nil, false
	}
	newest := r.uint()
	total, reached := 0, false
	for slot := range n.children {
		if present&(1<<slot) == 0 {
			continue
		}
		c := &n.children[slot]
		c.id = id - r.int()
		i, count, older := r.uint(), r.uint(), r.uint()
		if c.id <= 0 || i > blobLimit || count == 0 || count > 1<<40 || c.id == id && int(i) >= index || newest > math.MaxInt64 || older >= newest {
			return nil, false
		}
		c.index, c.count, c.newest = int(i), int(count), int64(newest-older)
		reached = reached || older == 0
		copy(c.digest[:], r.take(len(c.digest)))
		total += c.count
	}
	return n, !r.bad && len(r.data) == 0 && total > leafMax && reached
}

func decodeLeaf(r *reader, count int) (*node, bool) {
	if count < 1 || count > leafMax {
		return nil, false
	}
	entries := make([]Entry, count)
	for i := range entries {
		entries[i] = Entry{Key{int64(r.uint()), int64(r.uint())}, int64(r.uint())}
		if entries[i].Event == 0 || i > 0 && compareEntries(entries[i-1], entries[i]) >= 0 {
			return nil, false
		}
	}
	return &node{entries: entries}, !r.bad && len(r.data) == 0
}

// appendNode encodes a node; all its children have a place by now.
func appendNode(b []byte, n *node, id int64) []byte {
	if n.leaf() {
		b = append(b, byte(len(n.entries)))
		for _, e := range n.entries {
			b = binary.AppendUvarint(b, uint64(e.Type))
			b = binary.AppendUvarint(b, uint64(e.StateKey))
			b = binary.AppendUvarint(b, uint64(e.Event))
		}
		return b
	}
	b = append(b, byte(128+n.level))
	if n.level <= typeLevels {
		b = appendPrefix(b, n.prefix.typ, n.level)
	} else {
		b = binary.AppendUvarint(b, uint64(n.typ))
		b = appendPrefix(b, n.prefix.key, n.level-typeLevels)
	}
	present := byte(0)
	for slot := range n.children {
		if n.children[slot].count > 0 {
			present |= 1 << slot
		}
	}
	b = append(b, present)
	newest := n.newest()
	b = binary.AppendUvarint(b, uint64(newest))
	for slot := range n.children {
		c := &n.children[slot]
		if c.count == 0 {
			continue
		}
		child, index := c.stored()
		b = binary.AppendVarint(b, id-child)
		b = binary.AppendUvarint(b, uint64(index))
		b = binary.AppendUvarint(b, uint64(c.count))
		b = binary.AppendUvarint(b, uint64(newest-c.newest))
		b = append(b, c.digest[:]...)
	}
	return b
}

// stored returns where the node of a link is, 0 if it has no place yet.
func (l *link) stored() (id int64, index int) {
	if l.node != nil {
		if p := l.node.place.Load(); p != nil {
			return p.blob.id, p.index
		}
		return 0, 0
	}
	return l.id, l.index
}

func appendPrefix(b []byte, bits uint64, levels int) []byte {
	var buf [8]byte
	binary.BigEndian.PutUint64(buf[:], bits)
	return append(b, buf[:prefixBytes(levels)]...)
}

func prefixBytes(levels int) int { return (levels*slotBits + 7) / 8 }

// packer collects nodes in a blob.
type packer struct {
	id      int64
	nodes   []*node
	lengths []byte
	body    []byte
}

func (p *packer) add(n *node) {
	before := len(p.body)
	p.body = appendNode(p.body, n, p.id)
	p.lengths = binary.AppendUvarint(p.lengths, uint64(len(p.body)-before))
	p.nodes = append(p.nodes, n)
}

// finish makes the blob. The nodes must get their place before others that refer to them are added.
func (p *packer) finish(b *blob) {
	data := make([]byte, 0, 1+binary.MaxVarintLen64+len(p.lengths)+len(p.body)+crc32.Size)
	data = append(data, blobFormat)
	data = binary.AppendUvarint(data, uint64(len(p.nodes)))
	data = append(data, p.lengths...)
	b.start = len(data)
	data = append(data, p.body...)
	b.data = binary.BigEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
	b.ends = make([]int, len(p.nodes))
	b.nodes = make([]atomic.Pointer[node], len(p.nodes))
	r := reader{data: p.lengths}
	end := 0
	for i, n := range p.nodes {
		end += int(r.uint())
		b.ends[i] = end
		b.nodes[i].Store(n)
	}
}

// reader takes bytes apart; after the first that is missing it is bad and returns zeros.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) take(n int) []byte {
	if r.bad || n > len(r.data) {
		r.bad, r.data = true, nil
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.bad, r.data = true, nil
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.data)
	if n <= 0 {
		r.bad, r.data = true, nil
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *reader) prefix(levels int) uint64 {
	var buf [8]byte
	copy(buf[:], r.take(prefixBytes(levels)))
	return binary.BigEndian.Uint64(buf[:])
}
