package recent_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/internal/recent"
)

// expect compares what is in a map, using nothing.
func expect(t *testing.T, m *recent.Map[string, int], want map[string]int) {
	t.Helper()
	got := map[string]int{}
	for _, key := range []string{"a", "b", "c", "d"} {
		if v, ok := m.Peek(key); ok {
			got[key] = v
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if m.Len() != len(want) {
		t.Errorf("%d entries, want %d", m.Len(), len(want))
	}
}

func TestMap(t *testing.T) {
	m := recent.NewMap[string, int](2)
	m.Put("a", 1)
	m.Put("b", 2)
	if v, ok := m.Get("a"); v != 1 || !ok {
		t.Error(v, ok)
	}
	m.Put("c", 3)
	expect(t, m, map[string]int{"a": 1, "c": 3})
	if v := m.GetOrPut("a", func() int { t.Error("made what is there"); return 0 }); v != 1 {
		t.Error(v)
	}
	if v := m.GetOrPut("d", func() int { return 4 }); v != 4 {
		t.Error(v)
	}
	expect(t, m, map[string]int{"a": 1, "d": 4})
	add := func(was int, ok bool) int {
		if ok != (was != 0) {
			t.Error(was, ok)
		}
		return was + 10
	}
	m.Update("a", add)
	m.Update("b", add)
	expect(t, m, map[string]int{"a": 11, "b": 10})
	if v, ok := m.Take("b"); v != 10 || !ok {
		t.Error(v, ok)
	}
	if v, ok := m.Take("b"); v != 0 || ok {
		t.Error(v, ok)
	}
	m.Remove("a", "c")
	expect(t, m, map[string]int{})
	m.Put("a", 1)
	m.Clear()
	expect(t, m, map[string]int{})
}

func TestWeighedMap(t *testing.T) {
	m := recent.NewWeighedMap[string](3, 10, func(v int) int { return v })
	m.Put("a", 4)
	m.Put("b", 4)
	m.Put("c", 4)
	expect(t, m, map[string]int{"b": 4, "c": 4})
	m.Put("b", 1) // what an entry weighed does not count any more
	m.Put("d", 5)
	expect(t, m, map[string]int{"b": 1, "c": 4, "d": 5})
	m.Put("b", 11) // too heavy, and what was there is out of date
	expect(t, m, map[string]int{"c": 4, "d": 5})
	m.Put("a", 0)
	m.Put("b", 0)
	expect(t, m, map[string]int{"a": 0, "b": 0, "d": 5})
	m.Take("d")
	m.Clear()
	m.Put("a", 10)
	expect(t, m, map[string]int{"a": 10})
}

func TestSet(t *testing.T) {
	s := recent.NewSet[int](2)
	for i, key := range []int{1, 2, 1, 3, 2} {
		if before := s.Add(key); before != (i == 2) {
			t.Errorf("%d was there: %t", key, before)
		}
	}
	if s.Has(1) || !s.Has(2) || !s.Has(3) {
		t.Error("the oldest is not the one that is gone")
	}
	s.Remove(2)
	if s.Has(2) {
		t.Error("there after it was removed")
	}
}
