// Package recent remembers what was used last, within a bound.
package recent

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Map is a map of so many entries at most: for one more, the one that was not used for longest leaves. Several goroutines may use it.
type Map[K comparable, V any] struct {
	mu     sync.Mutex
	lru    *simplelru.LRU[K, entry[V]]
	weigh  func(V) int // nil: nothing weighs anything
	most   int
	weight int // of all entries
}

type entry[V any] struct {
	value  V
	weight int
}

// NewMap makes an empty map of a size, which is at least 1.
func NewMap[K comparable, V any](size int) *Map[K, V] { return NewWeighedMap[K, V](size, 0, nil) }

// NewWeighedMap makes a map of which the entries also weigh no more than most together. One that weighs more by itself is not kept.
// Each is weighed when it is put.
func NewWeighedMap[K comparable, V any](size, most int, weigh func(V) int) *Map[K, V] {
	m := &Map[K, V]{weigh: weigh, most: most}
	var err error
	if m.lru, err = simplelru.NewLRU(size, func(_ K, gone entry[V]) { m.weight -= gone.weight }); err != nil {
		panic(err) // sizes are positive constants
	}
	return m
}

// Get returns an entry, which was used by that.
func (m *Map[K, V]) Get(key K) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.lru.Get(key)
	return e.value, ok
}

// Peek is Get of an entry that does not count as used by it.
func (m *Map[K, V]) Peek(key K) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.lru.Peek(key)
	return e.value, ok
}

// GetOrPut is Get of an entry that is made if there is none. make must not use the map.
func (m *Map[K, V]) GetOrPut(key K, make func() V) V {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e, ok := m.lru.Get(key); ok {
		return e.value
	}
	value := make()
	m.put(key, value)
	return value
}

// Put adds an entry, or replaces it.
func (m *Map[K, V]) Put(key K, value V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.put(key, value)
}

// Update puts what becomes of an entry, or of none. change must not use the map.
func (m *Map[K, V]) Update(key K, change func(was V, ok bool) V) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was, ok := m.lru.Peek(key)
	m.put(key, change(was.value, ok))
}

// put is Put while m.mu is held.
func (m *Map[K, V]) put(key K, value V) {
	e := entry[V]{value: value}
	if m.weigh != nil {
		m.lru.Remove(key)
		if e.weight = m.weigh(value); e.weight > m.most {
			return
		}
	}
	m.weight += e.weight
	m.lru.Add(key, e)
	for m.weight > m.most {
		m.lru.RemoveOldest()
	}
}

// Take is Get of an entry that is removed.
func (m *Map[K, V]) Take(key K) (value V, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.lru.Peek(key)
	m.lru.Remove(key)
	return e.value, ok
}

// Remove removes entries, those that there are.
func (m *Map[K, V]) Remove(keys ...K) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		m.lru.Remove(key)
	}
}

// Clear removes all entries.
func (m *Map[K, V]) Clear() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lru.Purge()
}

// Len is how many entries there are.
func (m *Map[K, V]) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lru.Len()
}

// Set is a Map of keys only.
type Set[K comparable] struct{ keys *Map[K, struct{}] }

// NewSet makes an empty set of a size, which is at least 1.
func NewSet[K comparable](size int) *Set[K] { return &Set[K]{NewMap[K, struct{}](size)} }

// Add reports whether the key was there before.
func (s *Set[K]) Add(key K) (before bool) {
	s.keys.Update(key, func(_ struct{}, ok bool) struct{} {
		before = ok
		return struct{}{}
	})
	return before
}

// Has says whether a key is there. It does not count as used by that.
func (s *Set[K]) Has(key K) bool {
	_, ok := s.keys.Peek(key)
	return ok
}

// Remove removes a key.
func (s *Set[K]) Remove(key K) { s.keys.Remove(key) }
