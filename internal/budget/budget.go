// Package budget bounds the memory that what others send takes at one time: all of it together, and that of each of them.
package budget

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// ErrSpent says that there is nothing left to take.
var ErrSpent = errors.New("too much of what other servers send is being worked on")

// Budget is a number of bytes.
type Budget struct {
	share int64

	mu    sync.Mutex
	free  int64
	taken map[string]int64 // by whom it is taken for
}

// New makes a budget of which nobody may take more than a share.
func New(total, share int64) *Budget {
	return &Budget{share: share, free: total, taken: map[string]int64{}}
}

// Free is how much is left.
func (b *Budget) Free() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}

// Holders is for how many something is taken.
func (b *Budget) Holders() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.taken)
}

func (b *Budget) take(whose string, n int64) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free < n || b.taken[whose]+n > b.share {
		return fmt.Errorf("%w: %d bytes more", ErrSpent, n)
	}
	b.free -= n
	b.taken[whose] += n
	return nil
}

func (b *Budget) give(whose string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
	if b.taken[whose] -= n; b.taken[whose] == 0 {
		delete(b.taken, whose)
	}
}

// Hold is what was taken for one body. It is for one goroutine.
type Hold struct {
	budget *Budget
	whose  string
	taken  int64
}

// Hold begins to take something for somebody.
func (b *Budget) Hold(whose string) *Hold { return &Hold{budget: b, whose: whose} }

// Take takes some more: ErrSpent.
func (h *Hold) Take(n int64) error {
	if err := h.budget.take(h.whose, n); err != nil {
		return err
	}
	h.taken += n
	return nil
}

// Release gives everything back.
func (h *Hold) Release() {
	h.budget.give(h.whose, h.taken)
	h.taken = 0
}

// Done gives everything back when the work under ctx is over (see Keep), which lives on what was read; at once if there is no such work.
func (h *Hold) Done(ctx context.Context) {
	if w, ok := ctx.Value(workKey{}).(*work); ok && w.keep(h) {
		return
	}
	h.Release()
}

type workKey struct{}

// work is what lives on things that were read.
type work struct {
	mu    sync.Mutex
	over  bool
	holds []*Hold
}

func (w *work) keep(h *Hold) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.over {
		return false
	}
	w.holds = append(w.holds, h)
	return true
}

// Keep returns a context for work that goes on living on what is read under it: it counts until over is called. Work within
// other such work is a part of that.
func Keep(ctx context.Context) (working context.Context, over func()) {
	if _, within := ctx.Value(workKey{}).(*work); within {
		return ctx, func() {}
	}
	w := &work{}
	return context.WithValue(ctx, workKey{}, w), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
		for _, h := range w.holds {
			h.Release()
		}
		w.holds = nil
	}
}
