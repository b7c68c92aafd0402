package rooms

import (
	"context"
	"sync"
)

// flights lets concurrent callers with one key share one piece of work.
type flights[K comparable, V any] struct {
	mu    sync.Mutex
	under map[K]*flight[V]
}

type flight[V any] struct {
	done  chan struct{}
	value V
	err   error
}

// wait waits for the work under way with a key, if there is any.
func (f *flights[K, V]) wait(ctx context.Context, key K) {
	f.mu.Lock()
	other := f.under[key]
	f.mu.Unlock()
	if other == nil {
		return
	}
	select {
	case <-other.done:
	case <-ctx.Done():
	}
}

// do runs work, or waits for the run under way with the same key. shared is true for those who waited.
func (f *flights[K, V]) do(ctx context.Context, key K, work func() (V, error)) (value V, shared bool, err error) {
	f.mu.Lock()
	if f.under == nil {
		f.under = make(map[K]*flight[V])
	}
	if other, ok := f.under[key]; ok {
		f.mu.Unlock()
		select {
		case <-other.done:
			return other.value, true, other.err
		case <-ctx.Done():
			return value, true, ctx.Err()
		}
	}
	mine := &flight[V]{done: make(chan struct{}), err: errAbandoned}
	f.under[key] = mine
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.under, key)
		f.mu.Unlock()
		close(mine.done)
	}()
	mine.value, mine.err = work()
	return mine.value, false, mine.err
}
