package storage

import "container/list"

// Recency orders things that live in memory by the position of their last change, so that what changed since a
// position is found without looking at the others. It is not safe for concurrent use. The zero value is empty.
type Recency[K comparable] struct {
	order    list.List // of change[K], the newest first
	elements map[K]*list.Element
}

type change[K comparable] struct {
	key K
	pos Position
}

// Touch notes a change, at a position above all before.
func (r *Recency[K]) Touch(key K, pos Position) {
	if el, ok := r.elements[key]; ok {
		el.Value = change[K]{key, pos}
		r.order.MoveToFront(el)
		return
	}
	if r.elements == nil {
		r.elements = make(map[K]*list.Element)
	}
	r.elements[key] = r.order.PushFront(change[K]{key, pos})
}

// Forget drops a thing.
func (r *Recency[K]) Forget(key K) {
	if el, ok := r.elements[key]; ok {
		r.order.Remove(el)
		delete(r.elements, key)
	}
}

// Since lists what changed after a position, the newest first.
func (r *Recency[K]) Since(pos Position) []K {
	var keys []K
	for el := r.order.Front(); el != nil && el.Value.(change[K]).pos > pos; el = el.Next() {
		keys = append(keys, el.Value.(change[K]).key)
	}
	return keys
}

// Oldest is what changed longest ago.
func (r *Recency[K]) Oldest() (key K, ok bool) {
	el := r.order.Back()
	if el == nil {
		return key, false
	}
	return el.Value.(change[K]).key, true
}

// Len is the number of things.
func (r *Recency[K]) Len() int { return r.order.Len() }
