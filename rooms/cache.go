package rooms

import (
	"container/list"
	"sync"

	"hanok/matrix"
	"hanok/storage"
)

// eventCache keeps parsed events that are stored, by number and by ID, the least recently used leaving first.
type eventCache struct {
	mu     sync.Mutex
	budget int64
	size   int64
	byNID  map[storage.EventNID]*list.Element
	byID   map[matrix.EventID]*list.Element
	order  list.List // of *Event, most recently used first
	// partial says whether the state of a room is partial: events that were read as such before it was whole must not come in afterwards.
	partial func(storage.RoomNID) bool
}

func newEventCache(budget int64, partial func(storage.RoomNID) bool) *eventCache {
	return &eventCache{
		budget: budget, partial: partial,
		byNID: make(map[storage.EventNID]*list.Element),
		byID:  make(map[matrix.EventID]*list.Element),
	}
}

// eventOverhead is about what a parsed event takes besides its bytes.
const eventOverhead = 900

func eventCost(ev *Event) int64 { return int64(len(ev.JSON())) + eventOverhead }

func (c *eventCache) byNumber(nid storage.EventNID) *Event { return cached(c, c.byNID, nid) }

func (c *eventCache) byEventID(id matrix.EventID) *Event { return cached(c, c.byID, id) }

// cached returns an event, which was used by that, from one of the maps of the cache; nil if it is not there.
func cached[K comparable](c *eventCache, by map[K]*list.Element, key K) *Event {
	c.mu.Lock()
	defer c.mu.Unlock()
	el, ok := by[key]
	if !ok {
		return nil
	}
	c.order.MoveToFront(el)
	return el.Value.(*Event)
}

// byNumbers puts those events that it has where they are lacking in out.
func (c *eventCache) byNumbers(nids []storage.EventNID, out []*Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, nid := range nids {
		if out[i] != nil {
			continue
		}
		if el, ok := c.byNID[nid]; ok {
			c.order.MoveToFront(el)
			out[i] = el.Value.(*Event)
		}
	}
}

// put adds events or replaces what is known of them.
func (c *eventCache) put(events ...*Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(events...)
}

// add is put while c.mu is held.
func (c *eventCache) add(events ...*Event) {
	for _, ev := range events {
		if el, ok := c.byNID[ev.NID]; ok {
			c.size += eventCost(ev) - eventCost(el.Value.(*Event))
			el.Value = ev
			c.order.MoveToFront(el)
			continue
		}
		el := c.order.PushFront(ev)
		c.byNID[ev.NID] = el
		c.byID[ev.ID()] = el
		c.size += eventCost(ev)
	}
	for c.size > c.budget && c.order.Len() > 1 {
		c.remove(c.order.Back())
	}
}

// remove forgets an event; c.mu is held.
func (c *eventCache) remove(el *list.Element) {
	old := el.Value.(*Event)
	c.order.Remove(el)
	delete(c.byNID, old.NID)
	delete(c.byID, old.ID())
	c.size -= eventCost(old)
}

// forgetPartial forgets the events of a room that follow on a partial state, once that is whole: those that were read from the database just before.
func (c *eventCache) forgetPartial(room storage.RoomNID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for el := c.order.Front(); el != nil; {
		next := el.Next()
		if ev := el.Value.(*Event); ev.Partial && ev.RoomNID == room {
			c.remove(el)
		}
		el = next
	}
}

// fill adds events read from the database, unless something newer is known of them.
func (c *eventCache) fill(events ...*Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ev := range events {
		if _, ok := c.byNID[ev.NID]; !ok && (!ev.Partial || c.partial(ev.RoomNID)) {
			c.add(ev)
		}
	}
}
