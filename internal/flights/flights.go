// Package flights lets concurrent callers share one piece of work, which one of them does.
package flights

import (
	"context"
	"errors"
	"sync"
)

// errAbandoned is what those who waited get if the work ended in a panic.
var errAbandoned = errors.New("the work shared with another request was abandoned")

// Flights are the works under way by key. The zero value is ready.
type Flights[K comparable, V any] struct {
	mu    sync.Mutex
	under map[K]*flight[V]
}

type flight[V any] struct {
	done    chan struct{}
	yields  bool
	wanted  chan struct{} // closed when the first of them came
	value   V
	err     error
	waiting int // callers that came; under the lock
}

// Waiting is how many callers have come to wait for the work under way with a key.
func (f *Flights[K, V]) Waiting(key K) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if other := f.under[key]; other != nil {
		return other.waiting
	}
	return 0
}

// Wait waits for the work under way with a key, if there is any and it is not one that yields.
func (f *Flights[K, V]) Wait(ctx context.Context, key K) {
	f.mu.Lock()
	other := f.under[key]
	f.mu.Unlock()
	if other == nil || other.yields {
		return
	}
	select {
	case <-other.done:
	case <-ctx.Done():
	}
}

// Do runs work in the caller's goroutine, or waits for the run under way with the same key. shared is true for those who waited.
func (f *Flights[K, V]) Do(ctx context.Context, key K, work func() (V, error)) (value V, shared bool, err error) {
	return f.do(ctx, key, false, func(<-chan struct{}) (V, error) { return work() })
}

// DoYielding is Do for work that others need not wait for to its end: wanted is closed when the first of them comes, and Wait does not wait for it.
func (f *Flights[K, V]) DoYielding(ctx context.Context, key K, work func(wanted <-chan struct{}) (V, error)) (value V, shared bool, err error) {
	return f.do(ctx, key, true, work)
}

func (f *Flights[K, V]) do(ctx context.Context, key K, yields bool, work func(wanted <-chan struct{}) (V, error)) (value V, shared bool, err error) {
	f.mu.Lock()
	if f.under == nil {
		f.under = make(map[K]*flight[V])
	}
	if other, ok := f.under[key]; ok {
		if other.waiting++; other.waiting == 1 {
			close(other.wanted)
		}
		f.mu.Unlock()
		select {
		case <-other.done:
			return other.value, true, other.err
		case <-ctx.Done():
			return value, true, ctx.Err()
		}
	}
	mine := &flight[V]{done: make(chan struct{}), yields: yields, wanted: make(chan struct{}), err: errAbandoned}
	f.under[key] = mine
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.under, key)
		f.mu.Unlock()
		close(mine.done)
	}()
	mine.value, mine.err = work(mine.wanted)
	return mine.value, false, mine.err
}
