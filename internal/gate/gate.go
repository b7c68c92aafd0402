// Package gate lets a few in at once for each key, and some more wait: one server, or one address, that asks for too much waits for itself.
package gate

import (
	"context"
	"errors"
	"sync"
)

// ErrFull says that too many wait already.
var ErrFull = errors.New("gate: too many are waiting")

// Gate has places for each key.
type Gate[K comparable] struct {
	atOnce, waiting int

	mu   sync.Mutex
	byID map[K]*queue
}

type queue struct {
	slots chan struct{}
	users int // inside and waiting
}

// New makes a gate that lets atOnce in for each key, while waiting more may wait.
func New[K comparable](atOnce, waiting int) *Gate[K] {
	return &Gate[K]{atOnce: atOnce, waiting: waiting, byID: map[K]*queue{}}
}

// Enter waits for a place, which leave gives back: ErrFull, or ctx's error.
func (g *Gate[K]) Enter(ctx context.Context, id K) (leave func(), err error) {
	g.mu.Lock()
	q := g.byID[id]
	if q == nil {
		q = &queue{slots: make(chan struct{}, g.atOnce)}
		g.byID[id] = q
	}
	if q.users == g.atOnce+g.waiting {
		g.mu.Unlock()
		return nil, ErrFull
	}
	q.users++
	g.mu.Unlock()
	gone := func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if q.users--; q.users == 0 {
			delete(g.byID, id)
		}
	}
	select {
	case q.slots <- struct{}{}:
		return func() { <-q.slots; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, ctx.Err()
	}
}

// Users is how many are inside or waiting for a key.
func (g *Gate[K]) Users(id K) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	if q := g.byID[id]; q != nil {
		return q.users
	}
	return 0
}

// Keys is for how many keys somebody is inside or waiting.
func (g *Gate[K]) Keys() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.byID)
}
