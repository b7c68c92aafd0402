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
	c := NewAuthChains()
	load := func(refs ...Ref) []int32 {
		t.Helper()
		indices, err := c.load(g, refs)
		if err != nil {
			t.Fatal(err)
		}
		return indices
	}
	for i, want := range map[Ref]int32{1: 1, 2: 2, 3: 3, 4: 2, 5: 4, 6: 5, 7: 2, 99: 1} {
		if got := c.nodes[load(i)[0]].generation; got != want {
			t.Errorf("event %d: generation %d, want %d", i, got, want)
		}
	}
	slices.Sort(g.asked)
	if !slices.Equal(g.asked, []Ref{1, 2, 3, 4, 5, 6, 7, 99}) || c.Len() != 8 {
		t.Errorf("asked for %v, holds %d", g.asked, c.Len())
	}
	refs := func(indices []int32) []Ref {
		list := make([]Ref, len(indices))
		for i, index := range indices {
			list[i] = c.nodes[index].ref
		}
		slices.Sort(list)
		return list
	}
	if got := refs(c.subgraph(load(5, 2, 7))); !slices.Equal(got, []Ref{2, 3, 5, 7}) {
		t.Errorf("subgraph %v", got)
	}
	private := func(int32) (bool, error) { return false, nil }
	masks := map[int32]uint64{load(6)[0]: 1, load(4)[0]: 2}
	got, err := c.differences(masks, 2, private)
	if err != nil || !slices.Equal(refs(got), []Ref{2, 3, 5, 6}) {
		t.Errorf("difference %v, %v", refs(got), err)
	}
	all := make(map[int32]uint64)
	for state := range MaxStates {
		all[load(Ref(100 + state))[0]] = 1 << state
	}
	if got, _ = c.differences(all, MaxStates, private); len(got) != MaxStates {
		t.Errorf("difference of %d states: %v", MaxStates, refs(got))
	}

	g.shared = []Ref{7, 3, 200}
	targets := map[int32]bool{load(2)[0]: true, load(4)[0]: true}
	g.auth[200] = []Ref{7}
	if err := c.reachedByShared(g, targets); err != nil || len(targets) != 1 || !targets[load(4)[0]] {
		t.Errorf("left %v, %v", targets, err)
	}
}

// What goes wrong leaves nothing behind.
func TestAuthChainsFailure(t *testing.T) {
	g := &graph{auth: map[Ref][]Ref{2: {1}, 3: {2}, 4: {3}, 5: {4}, 10: {11}, 11: {12}, 12: {10}}, fails: 3}
	c := NewAuthChains()
	if _, err := c.load(g, []Ref{2}); err != nil {
		t.Fatal(err)
	}
	nodes, edges := c.Len(), len(c.edges)
	for range 2 {
		if _, err := c.load(g, []Ref{5}); !errors.Is(err, errLost) {
			t.Errorf("got %v", err)
		}
		if _, err := c.load(g, []Ref{10}); !errors.Is(err, errCycle) {
			t.Errorf("got %v", err)
		}
	}
	if c.Len() != nodes || len(c.edges) != edges || len(c.index) != nodes {
		t.Errorf("%d events, %d edges, %d numbers left behind", c.Len()-nodes, len(c.edges)-edges, len(c.index)-nodes)
	}
	g.fails = 0
	i, err := c.load(g, []Ref{5})
	if err != nil || c.nodes[i[0]].generation != 5 {
		t.Errorf("afterwards: %v", err)
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
		room := newBigRoom(t, version, 20, 5)
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
