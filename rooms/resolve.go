package rooms

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/stateres"
	"hanok/storage"
	"hanok/storage/statetree"
)

// resolve merges states of the room. Trees that agree cost no more than comparing them.
func (r *room) resolve(ctx context.Context, trees []statetree.Tree) (statetree.Tree, error) {
	distinct := trees[:0:0]
	for _, t := range trees {
		if !slices.ContainsFunc(distinct, func(d statetree.Tree) bool { return d.Ref() == t.Ref() }) {
			distinct = append(distinct, t)
		}
	}
	switch len(distinct) {
	case 0:
		return r.e.forest.At(0), nil
	case 1:
		return distinct[0], nil
	}
	slices.SortFunc(distinct, func(a, b statetree.Tree) int { return int(a.Ref() - b.Ref()) })
	key := make([]byte, 0, 8*len(distinct))
	for _, t := range distinct {
		key = binary.AppendVarint(key, int64(t.Ref()))
	}
	if t, ok := r.e.resolved.Get(string(key)); ok {
		return t, nil
	}
	diffs, err := statetree.Diff(ctx, distinct...)
	if err != nil {
		return statetree.Tree{}, fmt.Errorf("compare states: %w", err)
	}
	if len(diffs) == 0 {
		return distinct[0], nil
	}
	names, err := r.e.diffNames(ctx, diffs)
	if err != nil {
		return statetree.Tree{}, err
	}
	conflicts := make([]stateres.Conflict, len(diffs))
	keys := make(map[matrix.StateKey]statetree.Key, len(diffs))
	for i, d := range diffs {
		values := make([]stateres.Ref, len(d.Events))
		for j, n := range d.Events {
			values[j] = stateres.Ref(n)
		}
		conflicts[i] = stateres.Conflict{Key: names[i], Values: values}
		keys[names[i]] = d.Key
	}
	src := &resolution{ctx: ctx, r: r, base: distinct[0], conflicting: keys}
	won, err := src.run(conflicts)
	if err != nil {
		return statetree.Tree{}, fmt.Errorf("resolve state: %w", err)
	}
	changes := make([]statetree.Entry, 0, len(won))
	for name, ref := range won {
		k, ok := keys[name]
		if !ok {
			// A key that none of the states had: a value from the auth difference.
			nids, err := r.e.db.Intern(ctx, name.Type, name.Key)
			if err != nil {
				return statetree.Tree{}, err
			}
			k = statetree.Key{Type: int64(nids[0]), StateKey: int64(nids[1])}
		}
		changes = append(changes, statetree.Entry{Key: k, Event: int64(ref)})
	}
	slices.SortFunc(changes, func(a, b statetree.Entry) int {
		if a.Type != b.Type {
			return int(a.Type - b.Type)
		}
		return int(a.StateKey - b.StateKey)
	})
	result, err := distinct[0].With(ctx, changes...)
	if err != nil {
		return statetree.Tree{}, err
	}
	// Prefer a tree that exists: the head then often refers to one that is stored.
	for _, t := range distinct {
		if same, err := statetree.Diff(ctx, result, t); err == nil && len(same) == 0 {
			result = t
			break
		}
	}
	r.e.resolved.Put(string(key), result)
	return result, nil
}

// diffNames spells out the keys of differences.
func (e *Engine) diffNames(ctx context.Context, diffs []statetree.Difference) ([]matrix.StateKey, error) {
	nids := make([]storage.NameNID, 0, 2*len(diffs))
	for _, d := range diffs {
		nids = append(nids, storage.NameNID(d.Type), storage.NameNID(d.StateKey))
	}
	names, err := e.db.Names(ctx, nids...)
	if err != nil {
		return nil, err
	}
	out := make([]matrix.StateKey, len(diffs))
	for i := range diffs {
		out[i] = matrix.StateKey{Type: names[2*i], Key: names[2*i+1]}
	}
	return out, nil
}

// resolution answers stateres about one room.
type resolution struct {
	ctx         context.Context
	r           *room
	base        statetree.Tree
	conflicting map[matrix.StateKey]statetree.Key
}

// run resolves with what the room's earlier resolutions left, which one resolution uses at a time.
func (s *resolution) run(conflicts []stateres.Conflict) (map[matrix.StateKey]stateres.Ref, error) {
	s.r.resolving.Lock()
	defer s.r.resolving.Unlock()
	memory := s.r.e.memories.take(s.r.nid)
	if memory == nil {
		memory = stateres.NewMemory()
	}
	won, err := stateres.Resolve(s.r.version, conflicts, memory, s)
	s.r.e.memories.put(s.r.nid, memory)
	return won, err
}

// memories are what resolutions of rooms leave for the next one. Those of rooms that were not resolved for longest leave first.
type memories struct {
	byRoom *recent.Map[storage.RoomNID, *stateres.Memory]
}

// maxRemembered is how many bytes all memories take together. A room whose branches have more in them, some 20,000 events,
// is resolved from scratch each time.
const (
	maxRemembered      = 8 << 20
	maxRememberedRooms = 50_000
)

func newMemories() *memories {
	return &memories{recent.NewWeighedMap[storage.RoomNID](maxRememberedRooms, maxRemembered, (*stateres.Memory).Size)}
}

// take removes the memory of a room, nil if there is none.
func (m *memories) take(room storage.RoomNID) *stateres.Memory {
	memory, _ := m.byRoom.Take(room)
	return memory
}

// put keeps the memory of a room, for which there is none.
func (m *memories) put(room storage.RoomNID, memory *stateres.Memory) { m.byRoom.Put(room, memory) }

// Events implements stateres.Source.
func (s *resolution) Events(refs []stateres.Ref) ([]stateres.Entry, error) {
	events, err := s.r.eventsByNID(s.ctx, nidsOf(refs))
	if err != nil {
		return nil, err
	}
	out := make([]stateres.Entry, len(refs))
	for i, ev := range events {
		out[i] = stateres.Entry{Event: ev.Event, Rejected: ev.Rejected}
	}
	return out, nil
}

func nidsOf(refs []stateres.Ref) []storage.EventNID {
	out := make([]storage.EventNID, len(refs))
	for i, ref := range refs {
		out[i] = storage.EventNID(ref)
	}
	return out
}

// AuthEvents implements stateres.Source, without reading the events themselves.
func (s *resolution) AuthEvents(refs []stateres.Ref) ([][]stateres.Ref, error) {
	out := make([][]stateres.Ref, len(refs))
	var load []storage.EventNID
	at := make(map[storage.EventNID][]int)
	put := func(i int, auths []storage.EventNID) {
		out[i] = make([]stateres.Ref, len(auths))
		for j, a := range auths {
			out[i][j] = stateres.Ref(a)
		}
	}
	for i, nid := range nidsOf(refs) {
		if ev := s.r.pending.get(nid); ev != nil {
			put(i, ev.auths)
		} else if ev := s.r.e.events.byNumber(nid); ev != nil {
			put(i, ev.auths)
		} else {
			load = append(load, nid)
			at[nid] = append(at[nid], i)
		}
	}
	if len(load) == 0 {
		return out, nil
	}
	edges, err := storage.EdgesByNID(s.ctx, s.r.e.db, load)
	if err != nil {
		return nil, err
	}
	for _, ed := range edges {
		for _, i := range at[ed.NID] {
			put(i, ed.Auth)
		}
	}
	return out, nil
}

// Unconflicted implements stateres.Source.
func (s *resolution) Unconflicted(key matrix.StateKey) (stateres.Ref, error) {
	if _, ok := s.conflicting[key]; ok {
		return 0, nil
	}
	nid, err := s.r.e.lookup(s.ctx, s.base, key.Type, key.Key)
	return stateres.Ref(nid), err
}

// Shared implements stateres.Source.
func (s *resolution) Shared(targets []stateres.Ref, yield func(stateres.Ref) bool) error {
	if len(targets) == 0 {
		return nil
	}
	conflicting := make(map[statetree.Key]bool, len(s.conflicting))
	for _, k := range s.conflicting {
		conflicting[k] = true
	}
	return s.base.Newer(s.ctx, int64(slices.Min(targets)), func(en statetree.Entry) bool {
		return conflicting[en.Key] || yield(stateres.Ref(en.Event))
	})
}

// maxResolutions is of how many sets of states it is remembered what they resolved to. They are forgotten when events are rejected that were not, or the other
// way round.
const maxResolutions = 1024
