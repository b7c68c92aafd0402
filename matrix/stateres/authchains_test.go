package stateres

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// graph is a Source of auth events alone: those of event i are graph[i].
type graph struct {
	Source
	auth   map[Ref][]Ref
	shared []Ref
	fails  Ref // asking for this one fails
	asked  []Ref
}

var errLost = errors.New("database lost")

func (g *graph) AuthEvents(refs []Ref) ([][]Ref, error) {
	lists := make([][]Ref, len(refs))
	for i, ref := range refs {
		if ref == g.fails {
			return nil, errLost
		}
		g.asked = append(g.asked, ref)
		lists[i] = g.auth[ref]
	}
	return lists, nil
}

func (g *graph) Shared(_ []Ref, yield func(Ref) bool) error {
	for _, ref := range g.shared {
		if !yield(ref) {
			break
		}
	}
	return nil
}

func TestAuthChains(t *testing.T) {
	g := &graph{auth: map[Ref][]Ref{2: {1}, 3: {2, 1}, 4: {1}, 5: {3, 4}, 6: {0, 5}, 7: {1}}}
	c := newAuthChains()
	load := func(refs ...Ref) []int32 {
		t.Helper()
		indices, err := c.load(g, refs)
		if err != nil {
			t.Fatal(err)
		}
		return indices
	}
	refs := func(indices []int32) []Ref {
		list := make([]Ref, len(indices))
		for i, index := range indices {
			list[i] = c.nodes[index].ref
		}
		slices.Sort(list)
		return list
	}
	asked := func(want ...Ref) {
		t.Helper()
		slices.Sort(g.asked)
		if !slices.Equal(g.asked, want) {
			t.Errorf("asked for %v, want %v", g.asked, want)
		}
		g.asked = nil
	}
	load(5, 99, 5)
	asked(5, 5, 99)
	load(5, 99)
	asked()
	if len(c.nodes) != 4 { // with 3 and 4
		t.Errorf("holds %d events", len(c.nodes))
	}
	below := func(lowest Ref, events ...Ref) {
		t.Helper()
		got, err := c.below(g, load(events...), lowest)
		c.ascend(got)
		var want []int32
		for ref := lowest; ref <= 5; ref++ {
			want = append(want, c.index[ref])
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("below %v down to %d: %v, %v", events, lowest, refs(got), err)
		}
	}
	below(3, 5)
	asked(4) // not 3, where it ends
	below(1, 5)
	asked(2, 3)

	between, err := c.subgraph(g, load(5, 2, 7))
	if err != nil || !slices.Equal(refs(between), []Ref{2, 3, 5, 7}) {
		t.Errorf("subgraph %v, %v", refs(between), err)
	}
	between, err = c.subgraph(g, load(6, 2)) // by way of two others
	if err != nil || !slices.Equal(refs(between), []Ref{2, 3, 5, 6}) {
		t.Errorf("subgraph %v, %v", refs(between), err)
	}
	var looked []Ref
	look := func(events []int32) error {
		looked = append(looked, refs(events)...)
		return nil
	}
	private := func(int32) (bool, error) { return false, nil }
	states := func(refs ...Ref) *masks {
		m := new(masks)
		for state, ref := range refs {
			m.extend(load(ref)[0], 1<<state)
		}
		return m
	}
	two := states(6, 4)
	g.asked = nil
	got, err := c.differences(g, two, 2, look, private)
	if err != nil || !slices.Equal(refs(got), []Ref{2, 3, 5, 6}) {
		t.Errorf("difference %v, %v", refs(got), err)
	}
	asked() // not even for 1, which is common
	if slices.Sort(looked); !slices.Equal(looked, []Ref{2, 3, 4, 5, 6}) {
		t.Errorf("looked at %v", looked)
	}
	all := make([]Ref, MaxStates)
	for state := range all {
		all[state] = Ref(100 + state)
	}
	if got, _ = c.differences(g, states(all...), MaxStates, look, private); len(got) != MaxStates {
		t.Errorf("difference of %d states: %v", MaxStates, refs(got))
	}

	g.shared = []Ref{7, 3, 200}
	g.auth[200] = []Ref{7}
	if left, err := c.unreached(g, load(2, 4)); err != nil || !slices.Equal(left, load(4)) {
		t.Errorf("left %v, %v", left, err)
	}
}

// What goes wrong leaves nothing half done behind.
func TestAuthChainsFailure(t *testing.T) {
	g := &graph{auth: map[Ref][]Ref{2: {1}, 3: {2}, 4: {3}, 5: {4}, 10: {1, 11}, 12: {1, 12}}, fails: 3}
	c := newAuthChains()
	five, err := c.load(g, []Ref{5})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := c.below(g, five, 1); !errors.Is(err, errLost) {
			t.Errorf("got %v", err)
		}
		for _, ref := range []Ref{10, 12} {
			if i, err := c.load(g, []Ref{ref}); !errors.Is(err, errOrder) || len(c.auth(i[0])) != 0 {
				t.Errorf("event %d: got %v", ref, err)
			}
		}
	}
	if len(c.edges) != 2 {
		t.Errorf("%d edges", len(c.edges))
	}
	g.fails = 0
	if seen, err := c.below(g, five, 1); err != nil || len(seen) != 5 {
		t.Errorf("afterwards: %d events, %v", len(seen), err)
	}
}

// Batches of a walk are bounded, and one that has found all it looked for asks for no more.
func TestWalkInBatches(t *testing.T) {
	g := &graph{auth: make(map[Ref][]Ref)}
	for i := range Ref(3 * maxBatch) {
		g.auth[10+i] = []Ref{2}
		g.shared = append(g.shared, 10+i)
	}
	c := newAuthChains()
	if left, err := c.unreached(g, []int32{c.intern(2)}); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
	if len(g.asked) != maxBatch {
		t.Errorf("asked for %d events", len(g.asked))
	}
	if left, err := c.unreached(g, []int32{c.intern(3)}); err != nil || len(left) != 1 {
		t.Errorf("left %v, %v", left, err)
	}
	if len(g.asked) != len(g.shared) {
		t.Errorf("asked for %d events in all", len(g.asked))
	}
}

func TestResolveInput(t *testing.T) {
	v, _ := roomversion.Get("12")
	key := matrix.StateKey{Type: "m.room.topic"}
	if won, err := Resolve(v, nil, nil, nil); len(won) != 0 || err != nil {
		t.Errorf("nothing: %v, %v", won, err)
	}
	for want, conflicts := range map[string][]Conflict{
		"at most 64":                    {{key, make([]Ref, MaxStates+1)}},
		"conflicts of 2 and of 3 state": {{key, make([]Ref, 2)}, {key, make([]Ref, 3)}},
	} {
		if _, err := Resolve(v, conflicts, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// A failing Source fails the resolution, whatever it is asked for.
func TestSourceFailure(t *testing.T) {
	for _, version := range []roomversion.ID{"1", "11", "12"} {
		room := newBigRoom(t, version, 20, 5, 3)
		f := &flaky{Source: room}
		if _, err := Resolve(room.version, room.conflicts, nil, f); err != nil {
			t.Fatal(err)
		}
		calls := f.calls
		if calls < 4 {
			t.Errorf("v%s: only %d calls", version, calls)
		}
		for f.fails = 1; f.fails <= calls; f.fails++ {
			f.calls = 0
			if _, err := Resolve(room.version, room.conflicts, nil, f); !errors.Is(err, errLost) {
				t.Errorf("v%s: call %d failed, but: %v", version, f.fails, err)
			}
		}
	}
}

// flaky fails one call.
type flaky struct {
	Source
	calls, fails int
}

func (f *flaky) fail() error {
	if f.calls++; f.calls == f.fails {
		return errLost
	}
	return nil
}

func (f *flaky) Events(refs []Ref) ([]Entry, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f.Source.Events(refs)
}

func (f *flaky) AuthEvents(refs []Ref) ([][]Ref, error) {
	if err := f.fail(); err != nil {
		return nil, err
	}
	return f.Source.AuthEvents(refs)
}

func (f *flaky) Unconflicted(key matrix.StateKey) (Ref, error) {
	if err := f.fail(); err != nil {
		return 0, err
	}
	return f.Source.Unconflicted(key)
}

func (f *flaky) Shared(targets []Ref, yield func(Ref) bool) error {
	if err := f.fail(); err != nil {
		return err
	}
	return f.Source.Shared(targets, yield)
}
