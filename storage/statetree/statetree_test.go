package statetree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// memory is a Store that counts.
type memory struct {
	mu     sync.Mutex
	blobs  map[int64][]byte
	last   int64
	loads  int
	bytes  int
	broken error
}

func newMemory() *memory { return &memory{blobs: make(map[int64][]byte)} }

func (m *memory) LoadNodes(_ context.Context, id int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loads++
	if m.broken != nil {
		return nil, m.broken
	}
	b, ok := m.blobs[id]
	if !ok {
		return nil, fmt.Errorf("no blob %d", id)
	}
	return b, nil
}

func (m *memory) Allocate() (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	return m.last, nil
}

// save stores a tree as a transaction would.
func (m *memory) save(f *Forest, t Tree) {
	blobs := t.Unsaved()
	m.mu.Lock()
	for _, b := range blobs {
		if old, ok := m.blobs[b.ID]; ok && string(old) != string(b.Data) {
			panic("a blob changed")
		}
		m.blobs[b.ID] = b.Data
		m.bytes += len(b.Data)
	}
	m.mu.Unlock()
	f.Saved(blobs)
}

type model map[Key]int64

func (m model) with(changes []Entry) model {
	out := maps.Clone(m)
	for _, e := range changes {
		if e.Event == 0 {
			delete(out, e.Key)
		} else {
			out[e.Key] = e.Event
		}
	}
	return out
}

var ctx = context.Background()

func entries(t interface{ Fatal(...any) }, tree Tree) model {
	out := model{}
	err := tree.All(ctx, func(e Entry) bool {
		if _, ok := out[e.Key]; ok {
			t.Fatal("key twice")
		}
		out[e.Key] = e.Event
		return true
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func wantDiff(models ...model) map[Key][]int64 {
	out := map[Key][]int64{}
	for _, m := range models {
		for k := range m {
			events := make([]int64, len(models))
			for i := range models {
				events[i] = models[i][k]
			}
			if slices.Max(events) != slices.Min(events) {
				out[k] = events
			}
		}
	}
	return out
}

func gotDiff(t interface{ Fatal(...any) }, trees ...Tree) map[Key][]int64 {
	list, err := Diff(ctx, trees...)
	if err != nil {
		t.Fatal(err)
	}
	out := map[Key][]int64{}
	for _, d := range list {
		if out[d.Key] != nil {
			t.Fatal("difference twice")
		}
		out[d.Key] = d.Events
	}
	return out
}

// TestModel runs random changes on random trees, with some saved and all memory lost now and
// then, and holds every tree against a map.
func TestModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		store := newMemory()
		cache := rapid.SampledFrom([]int64{0, 3000, 1 << 20}).Draw(t, "cache")
		f := New(store, cache)
		key := rapid.Custom(func(t *rapid.T) Key {
			return Key{int64(rapid.IntRange(1, 3).Draw(t, "type")), int64(rapid.IntRange(1, 120).Draw(t, "key"))}
		})
		change := rapid.Custom(func(t *rapid.T) Entry {
			return Entry{key.Draw(t, "k"), int64(rapid.IntRange(0, 3).Draw(t, "event"))}
		})
		type state struct {
			tree  Tree
			model model
			saved bool
		}
		states := []state{{f.At(0), model{}, true}}
		pick := func(t *rapid.T) *state { return &states[rapid.IntRange(0, len(states)-1).Draw(t, "state")] }
		t.Repeat(map[string]func(*rapid.T){
			"with": func(t *rapid.T) {
				s := pick(t)
				changes := rapid.SliceOfN(change, 0, 90).Draw(t, "changes")
				tree, err := s.tree.With(ctx, changes...)
				if err != nil {
					t.Fatal(err)
				}
				states = append(states, state{tree, s.model.with(changes), false})
			},
			"remove most": func(t *rapid.T) {
				s := pick(t)
				var changes []Entry
				for k := range s.model {
					if rapid.IntRange(0, 9).Draw(t, "keep") > 0 {
						changes = append(changes, Entry{Key: k})
					}
				}
				tree, err := s.tree.With(ctx, changes...)
				if err != nil {
					t.Fatal(err)
				}
				states = append(states, state{tree, s.model.with(changes), false})
			},
			"save": func(t *rapid.T) {
				s := pick(t)
				store.save(f, s.tree)
				s.saved = true
				if left := s.tree.Unsaved(); len(left) != 0 {
					t.Fatal("still unsaved", len(left))
				}
			},
			"restart": func(t *rapid.T) {
				f = New(store, cache)
				kept := states[:0]
				for _, s := range states {
					if s.saved {
						s.tree = f.At(s.tree.Ref())
						kept = append(kept, s)
					}
				}
				states = kept
			},
			"diff": func(t *rapid.T) {
				n := rapid.IntRange(2, 4).Draw(t, "trees")
				var trees []Tree
				var models []model
				for range n {
					s := pick(t)
					trees, models = append(trees, s.tree), append(models, s.model)
				}
				if d := cmp.Diff(wantDiff(models...), gotDiff(t, trees...)); d != "" {
					t.Fatal(d)
				}
			},
			"": func(t *rapid.T) {
				s := states[len(states)-1]
				if d := cmp.Diff(s.model, entries(t, s.tree)); d != "" {
					t.Fatal(d)
				}
				if n, err := s.tree.Len(ctx); err != nil || n != len(s.model) {
					t.Fatal(n, len(s.model), err)
				}
				k := key.Draw(t, "get")
				if e, err := s.tree.Get(ctx, k); err != nil || e != s.model[k] {
					t.Fatal(e, s.model[k], err)
				}
				ofType := model{}
				if err := s.tree.OfType(ctx, k.Type, func(e Entry) bool { ofType[e.Key] = e.Event; return true }); err != nil {
					t.Fatal(err)
				}
				want := maps.Clone(s.model)
				maps.DeleteFunc(want, func(o Key, _ int64) bool { return o.Type != k.Type })
				if d := cmp.Diff(want, ofType); d != "" {
					t.Fatal(d)
				}
				than := int64(rapid.IntRange(0, 3).Draw(t, "than"))
				newer := model{}
				if err := s.tree.Newer(ctx, than, func(e Entry) bool { newer[e.Key] = e.Event; return true }); err != nil {
					t.Fatal(err)
				}
				want = maps.Clone(s.model)
				maps.DeleteFunc(want, func(_ Key, event int64) bool { return event <= than })
				if d := cmp.Diff(want, newer); d != "" {
					t.Fatal(d)
				}
				// The shape follows from the content: the digest is that of the tree built at once.
				var list []Entry
				for k, e := range s.model {
					list = append(list, Entry{k, e})
				}
				built := build(sorted(list))
				top, err := s.tree.top(ctx)
				if err != nil || top.digest != built.digest || top.count != built.count || top.newest != built.newest {
					t.Fatal("shape depends on history", err)
				}
			},
		})
	})
}

// TestShape grows and shrinks trees one entry at a time: at each size the shape is that of the tree built at once.
func TestShape(t *testing.T) {
	f := New(newMemory(), 1<<20)
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 0))
		list := members(60)
		tr := f.At(0)
		check := func(present []Entry) {
			t.Helper()
			built := build(sorted(present))
			if top, err := tr.top(ctx); err != nil || top.digest != built.digest || top.count != built.count || top.newest != built.newest {
				t.Fatalf("seed %d, %d entries: another shape (%v)", seed, len(present), err)
			}
		}
		step := func(e Entry) {
			t.Helper()
			var err error
			if tr, err = tr.With(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i, e := range list {
			step(e)
			check(list[:i+1])
		}
		r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		for i, e := range list {
			step(Entry{Key: e.Key})
			check(list[i+1:])
		}
	}
}

func members(n int) []Entry {
	out := []Entry{{Key{1, 1}, 1}, {Key{2, 1}, 2}, {Key{3, 1}, 3}, {Key{4, 1}, 4}}
	for i := range n {
		out = append(out, Entry{Key{5, int64(100 + i)}, int64(10 + i)})
	}
	return out
}

func tree(t testing.TB, f *Forest, list []Entry) Tree {
	tr, err := f.At(0).With(ctx, list...)
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// TestPathCopy bounds what one change stores, and what a look-up of a big stored tree loads.
func TestPathCopy(t *testing.T) {
	store := newMemory()
	f := New(store, 64<<20)
	tr := tree(t, f, members(20_000))
	store.save(f, tr)
	if len(store.blobs) < 5 {
		t.Fatalf("a tree of %d bytes in %d blobs", store.bytes, len(store.blobs))
	}
	store.bytes = 0
	for i := range 100 {
		next, err := tr.With(ctx, Entry{Key{5, int64(100 + i*7)}, int64(1_000_000 + i)})
		if err != nil {
			t.Fatal(err)
		}
		if blobs := next.Unsaved(); len(blobs) != 1 || Ref(blobs[0].ID) != next.Ref() {
			t.Fatalf("%d blobs for one change", len(blobs))
		}
		store.save(f, next)
		tr = next
	}
	if avg := store.bytes / 100; avg > 1200 {
		t.Errorf("%d bytes per change", avg)
	}
	store.loads = 0
	cold := New(store, 64<<20).At(tr.Ref())
	if e, err := cold.Get(ctx, Key{5, 107}); err != nil || e != 1_000_001 {
		t.Fatal(e, err)
	}
	if store.loads > 12 {
		t.Errorf("%d loads for a Get", store.loads)
	}
}

// TestIntermediate checks that a chain of trees of which only the last is saved stores no garbage.
func TestIntermediate(t *testing.T) {
	store := newMemory()
	f := New(store, 1<<20)
	tr := tree(t, f, members(200))
	store.save(f, tr)
	for i := range 20 {
		var err error
		if tr, err = tr.With(ctx, Entry{Key{5, 100}, int64(5000 + i)}); err != nil {
			t.Fatal(err)
		}
	}
	blobs := tr.Unsaved()
	if len(blobs) != 1 || len(blobs[0].Data) > 1000 {
		t.Fatalf("%d blobs, %d bytes", len(blobs), len(blobs[0].Data))
	}
}

func TestUnchanged(t *testing.T) {
	f := New(newMemory(), 1<<20)
	tr := tree(t, f, members(100))
	same, err := tr.With(ctx, Entry{Key{5, 100}, 10}, Entry{Key{9, 9}, 0})
	if err != nil || same.Ref() != tr.Ref() {
		t.Fatal(same.Ref(), tr.Ref(), err)
	}
	empty, err := tr.With(ctx, func() (out []Entry) {
		for _, e := range members(100) {
			out = append(out, Entry{Key: e.Key})
		}
		return out
	}()...)
	if err != nil || empty.Ref() != 0 || len(empty.Unsaved()) != 0 {
		t.Fatal(empty.Ref(), err)
	}
}

// TestDiffLoads checks that comparing big trees, built apart, touches only what differs.
func TestDiffLoads(t *testing.T) {
	store := newMemory()
	f := New(store, 1<<30)
	list := members(20_000)
	a := tree(t, f, list)
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	b := f.At(0)
	for part := range slices.Chunk(list, 1000) {
		var err error
		if b, err = b.With(ctx, part...); err != nil {
			t.Fatal(err)
		}
	}
	b, err := b.With(ctx, Entry{Key{5, 777}, 42})
	if err != nil {
		t.Fatal(err)
	}
	store.save(f, a)
	store.save(f, b)
	store.loads = 0
	cold := New(store, 1<<30)
	d := gotDiff(t, cold.At(a.Ref()), cold.At(b.Ref()))
	if want := map[Key][]int64{{5, 777}: {687, 42}}; !cmp.Equal(want, d) {
		t.Fatal(d)
	}
	if store.loads > 30 {
		t.Errorf("%d loads", store.loads)
	}
}

func TestConcurrent(t *testing.T) {
	store := newMemory()
	f := New(store, 20_000)
	base := tree(t, f, members(500))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			tr := base
			for i := range 50 {
				var err error
				if tr, err = tr.With(ctx, Entry{Key{5, int64(100 + i)}, int64(g*1000 + i + 1)}); err != nil {
					t.Error(err)
					return
				}
				if i%3 == 0 {
					store.save(f, tr)
				}
			}
			store.save(f, tr)
			again := New(store, 0).At(tr.Ref())
			if !cmp.Equal(entries(t, tr), entries(t, again)) {
				t.Error("reload differs")
			}
		})
	}
	wg.Wait()
}

func TestStoreFails(t *testing.T) {
	store := newMemory()
	f := New(store, 0)
	tr := tree(t, f, members(500))
	store.save(f, tr)
	store.broken = errors.New("disk")
	cold := New(store, 0).At(tr.Ref())
	if _, err := cold.Get(ctx, Key{5, 100}); !errors.Is(err, store.broken) {
		t.Fatal(err)
	}
	if _, err := cold.With(ctx, Entry{Key{5, 100}, 1}); !errors.Is(err, store.broken) {
		t.Fatal(err)
	}
}

// TestDamage flips the bytes of a stored tree: no reader takes it for good.
func TestDamage(t *testing.T) {
	store := newMemory()
	f := New(store, 0)
	tr := tree(t, f, members(60))
	store.save(f, tr)
	id := int64(tr.Ref())
	good := store.blobs[id]
	for i := range good {
		bad := slices.Clone(good)
		bad[i] ^= 0x11
		store.blobs[id] = bad
		if err := readAll(New(store, 0), id); !errors.Is(err, errCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		store.blobs[id] = good[:i]
		if err := readAll(New(store, 0), id); !errors.Is(err, errCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
}

// TestWrongBlob exchanges a blob for another good one: the digest in the link tells.
func TestWrongBlob(t *testing.T) {
	store := newMemory()
	f := New(store, 0)
	a := tree(t, f, members(60))
	store.save(f, a)
	b, err := a.With(ctx, Entry{Key{5, 100}, 99})
	if err != nil {
		t.Fatal(err)
	}
	store.save(f, b)
	other := newMemory()
	f = New(other, 0)
	other.save(f, tree(t, f, append(members(59), Entry{Key{6, 1}, 1})))
	store.blobs[int64(a.Ref())] = other.blobs[1]
	if err := readAll(New(store, 0), int64(b.Ref())); !errors.Is(err, errCorrupt) {
		t.Fatal(err)
	}
}

func readAll(f *Forest, id int64) error {
	tr := f.At(Ref(id))
	err := tr.All(ctx, func(e Entry) bool { return true })
	if err == nil {
		_, err = tr.With(ctx, Entry{Key{5, 100}, 99}, Entry{Key{77, 1}, 99}, Entry{Key: Key{5, 101}})
	}
	if err == nil {
		_, err = Diff(ctx, tr, f.At(0))
	}
	if err == nil {
		err = tr.OfType(ctx, 5, func(Entry) bool { return true })
	}
	return err
}

// FuzzBlob feeds any bytes to the reader: errors, no panic, no endless walk.
func FuzzBlob(f *testing.F) {
	store := newMemory()
	fo := New(store, 0)
	for _, n := range []int{1, 15, 40, 200} {
		tr := tree(f, fo, members(n))
		store.save(fo, tr)
		b := store.blobs[int64(tr.Ref())]
		f.Add(b[:len(b)-crc32.Size])
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		store := newMemory()
		store.last = 10
		store.blobs[5] = binary.BigEndian.AppendUint32(data, crc32.Checksum(data, castagnoli))
		readAll(New(store, 0), 5)
	})
}

func BenchmarkStateTree(b *testing.B) {
	for _, n := range []int{100, 100_000} {
		store := newMemory()
		f := New(store, 1<<30)
		list := members(n)
		tr := tree(b, f, list)
		store.save(f, tr)
		b.Run(fmt.Sprintf("Build/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				tree(b, f, list)
			}
			b.ReportMetric(float64(store.bytes)/float64(n), "B/entry")
		})
		b.Run(fmt.Sprintf("Get/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				i = (i + 7919) % n
				if e, err := tr.Get(ctx, Key{5, int64(100 + i)}); err != nil || e == 0 {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("With/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			store.bytes = 0
			now, i := tr, 0
			for b.Loop() {
				i++
				next, err := now.With(ctx, Entry{Key{5, int64(100 + i*7919%n)}, int64(1_000_000 + i)})
				if err != nil {
					b.Fatal(err)
				}
				store.save(f, next)
				now = next
			}
			b.ReportMetric(float64(store.bytes)/float64(b.N), "B-stored/op")
		})
		b.Run(fmt.Sprintf("Newer/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			changed, err := tr.With(ctx, Entry{Key{5, 105}, 1_000_000}, Entry{Key{5, 150}, 1_000_000})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				found := 0
				if err := changed.Newer(ctx, 999_999, func(Entry) bool { found++; return true }); err != nil || found != 2 {
					b.Fatal(found, err)
				}
			}
			took := b.Elapsed() / time.Duration(b.N)
			start := time.Now()
			if err := changed.All(ctx, func(Entry) bool { return true }); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(time.Since(start))/float64(took), "x-All")
		})
		b.Run(fmt.Sprintf("Diff/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			one, err := tr.With(ctx, Entry{Key{5, 105}, 1_000_000}, Entry{Key{5, 150}, 1_000_000})
			if err != nil {
				b.Fatal(err)
			}
			two, err := tr.With(ctx, Entry{Key{5, 108}, 1_000_001}, Entry{Key{1, 1}, 1_000_000})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if d, err := Diff(ctx, tr, one, two); err != nil || len(d) != 4 {
					b.Fatal(len(d), err)
				}
			}
		})
	}
}
