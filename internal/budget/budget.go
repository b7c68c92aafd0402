// Package budget bounds the memory that what others send takes at one time, and shares it out among them.
//
// Nobody may take so much that too little is left for others, and who has most, and has had it for longest, has to give it back
// when there is nothing for somebody who has less: else a few who send much, and then go on slowly, would have it all.
package budget

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrSpent says that there is nothing left to take, or that what was taken is needed for others.
var ErrSpent = errors.New("too much of what other servers send is being worked on")

// Budget is a number of bytes.
type Budget struct {
	total, share int64

	mu     sync.Mutex
	free   int64
	taken  map[string]int64   // by whom it is taken for
	holds  map[*Hold]struct{} // all by which something is taken
	change chan struct{}      // closed when something is given back; nil: nobody waits for that
}

// New makes a budget of which one may take a share, less when others have taken something: always the share's part of what would be left.
func New(total, share int64) *Budget {
	return &Budget{total: total, share: share, free: total, taken: map[string]int64{}, holds: map[*Hold]struct{}{}}
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

// fits says whether somebody may take n more: the rest stays at least as large, in proportion to what they have then, as it would be
// if they alone had a share.
func (b *Budget) fits(whose string, n int64) bool {
	if b.free < n {
		return false
	}
	mine, left := b.taken[whose]+n, b.free-n
	if b.share == b.total {
		return true
	}
	return float64(mine)*float64(b.total-b.share) <= float64(left)*float64(b.share)
}

const (
	// endPatience is how long somebody waits for what others have to give back.
	endPatience = 5 * time.Second
	// workGrace is how long work may live on what was read before it may have to end.
	workGrace = time.Minute
)

func (b *Budget) take(h *Hold, n int64) error {
	var patience <-chan time.Time
	b.mu.Lock()
	defer b.mu.Unlock()
	for !b.fits(h.whose, n) {
		victim := b.victim(h.whose, n)
		if victim == nil && !b.ending() {
			return fmt.Errorf("%w: %d bytes more", ErrSpent, n)
		}
		if victim != nil {
			victim.ended = true
			go victim.end(fmt.Errorf("%w: somebody else has less", ErrSpent))
		}
		if b.change == nil {
			b.change = make(chan struct{})
		}
		change := b.change
		if patience == nil {
			patience = time.After(endPatience)
		}
		b.mu.Unlock()
		over := false
		select {
		case <-change:
		case <-patience:
			over = true
		}
		b.mu.Lock()
		if over && !b.fits(h.whose, n) {
			return fmt.Errorf("%w: %d bytes more", ErrSpent, n)
		}
	}
	b.free -= n
	b.taken[h.whose] += n
	h.count(n)
	b.holds[h] = struct{}{}
	return nil
}

// victim is what has to be given back: of those for whom more is taken than the newcomer would have, by whom most was held for longest.
func (b *Budget) victim(newcomer string, n int64) (victim *Hold) {
	now := time.Now()
	var most float64
	for h := range b.holds {
		if h.end == nil || h.ended || h.whose == newcomer || b.taken[h.whose] <= b.taken[newcomer]+n || h.working && now.Sub(h.since) < workGrace {
			continue
		}
		if used := h.usedBy(now); victim == nil || used > most {
			victim, most = h, used
		}
	}
	return victim
}

// ending says whether something is about to be given back.
func (b *Budget) ending() bool {
	for h := range b.holds {
		if h.ended {
			return true
		}
	}
	return false
}

func (b *Budget) give(h *Hold) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += h.taken
	if b.taken[h.whose] -= h.taken; b.taken[h.whose] == 0 {
		delete(b.taken, h.whose)
	}
	delete(b.holds, h)
	h.taken = 0
	if b.change != nil {
		close(b.change)
		b.change = nil
	}
}

// Hold is what was taken for one body. It is for one goroutine.
type Hold struct {
	budget *Budget
	whose  string

	// Under the budget's lock.
	taken   int64
	end     context.CancelCauseFunc // has it given back; nil: cannot be done
	ended   bool                    // and was called
	working bool                    // work lives on it
	since   time.Time               // when something was taken first
	counted time.Time               // when used was worked out
	used    float64                 // how many bytes for how many seconds, until then
}

func (h *Hold) usedBy(now time.Time) float64 {
	return h.used + float64(h.taken)*now.Sub(h.counted).Seconds()
}

func (h *Hold) count(n int64) {
	now := time.Now()
	if h.taken == 0 {
		h.since, h.counted, h.used = now, now, 0
	}
	h.used, h.counted = h.usedBy(now), now
	h.taken += n
}

// Hold begins to take something for somebody. end is called, at most once, when others need it, and has it released soon; nil if that
// cannot be done.
func (b *Budget) Hold(whose string, end context.CancelCauseFunc) *Hold {
	return &Hold{budget: b, whose: whose, end: end}
}

// Take takes some more: ErrSpent. It may wait for others to give something back.
func (h *Hold) Take(n int64) error { return h.budget.take(h, n) }

// Release gives everything back.
func (h *Hold) Release() { h.budget.give(h) }

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
	end context.CancelCauseFunc

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
	h.budget.mu.Lock()
	defer h.budget.mu.Unlock()
	h.end, h.working = w.end, true
	if h.ended { // there was nothing more to read that could have been ended
		h.ended = false
	}
	return true
}

// Keep returns a context for work that goes on living on what is read under it: it counts until over is called. Work within
// other such work is a part of that. The context is cancelled, because of ErrSpent, if the work has lasted long and others need what
// it lives on.
func Keep(ctx context.Context) (working context.Context, over func()) {
	if _, within := ctx.Value(workKey{}).(*work); within {
		return ctx, func() {}
	}
	working, end := context.WithCancelCause(ctx)
	w := &work{end: end}
	return context.WithValue(working, workKey{}, w), func() {
		end(nil)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.over = true
		for _, h := range w.holds {
			h.Release()
		}
		w.holds = nil
	}
}
