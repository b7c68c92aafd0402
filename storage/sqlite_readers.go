package storage

import (
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// readersKept is how many reading connections stay open.
	readersKept = 8
	// readersMax bounds them. Beyond those kept, one is opened only after patience: a caller
	// that asks something for each row of an open result needs two, and all callers may do
	// so at once.
	readersMax      = 100
	readersPatience = 20 * time.Millisecond
)

// readers is the pool of reading connections. The one used last is lent first, so that at
// little load few connections fill their caches.
type readers struct {
	file sqliteFile

	mu      sync.Mutex
	idle    []*sqliteConn
	open    int
	waiting []chan *sqliteConn // closed when the pool is
	closed  bool
}

func newReaders(file sqliteFile) *readers { return &readers{file: file} }

func (r *readers) acquire(ctx context.Context) (*sqliteConn, error) {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil, ErrClosed
	}
	if n := len(r.idle); n > 0 {
		c := r.idle[n-1]
		r.idle = r.idle[:n-1]
		r.mu.Unlock()
		return c, nil
	}
	if r.open < readersKept {
		r.open++
		r.mu.Unlock()
		return r.openOne()
	}
	wait := make(chan *sqliteConn, 1)
	r.waiting = append(r.waiting, wait)
	r.mu.Unlock()

	patience := time.NewTimer(readersPatience)
	defer patience.Stop()
	for {
		select {
		case c := <-wait:
			return lent(c)
		case <-ctx.Done():
			if !r.leave(wait, false) {
				if c := <-wait; c != nil {
					r.release(c)
				}
			}
			return nil, ctx.Err()
		case <-patience.C:
			r.mu.Lock()
			full := r.open >= readersMax
			r.mu.Unlock()
			if full {
				patience.Reset(readersPatience)
				continue
			}
			if !r.leave(wait, true) {
				return lent(<-wait)
			}
			return r.openOne()
		}
	}
}

// lent is what a waiting caller gets: nil from a closed pool.
func lent(c *sqliteConn) (*sqliteConn, error) {
	if c == nil {
		return nil, ErrClosed
	}
	return c, nil
}

// leave takes a waiting caller off the list, and counts a connection that it is going to open.
// It is false if the caller is not on the list any more: then it was sent something.
func (r *readers) leave(wait chan *sqliteConn, toOpen bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.waiting, wait)
	if i < 0 {
		return false
	}
	r.waiting = slices.Delete(r.waiting, i, i+1)
	if toOpen {
		r.open++
	}
	return true
}

// openOne opens a connection that is counted already.
func (r *readers) openOne() (*sqliteConn, error) {
	c, err := r.file.open(true)
	if err == nil {
		// No memory map: each connection would have its own, and the pages be counted once for each.
		for _, q := range []string{`PRAGMA cache_size = -4000`, `PRAGMA temp_store = MEMORY`} {
			if err = c.pragma(q); err != nil {
				c.close()
				break
			}
		}
	}
	if err != nil {
		r.mu.Lock()
		r.open--
		r.mu.Unlock()
		return nil, err
	}
	return c, nil
}

func (r *readers) release(c *sqliteConn) {
	c.resetAll()
	r.mu.Lock()
	if len(r.waiting) > 0 {
		r.waiting[0] <- c
		r.waiting = r.waiting[1:]
		r.mu.Unlock()
		return
	}
	if !r.closed && len(r.idle) < readersKept {
		r.idle = append(r.idle, c)
		r.mu.Unlock()
		return
	}
	r.open--
	r.mu.Unlock()
	c.close()
}

// close closes what is idle, sends those away who wait and returns how many
// connections are still lent; they are closed when they come back.
func (r *readers) close() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for _, w := range r.waiting {
		close(w)
	}
	r.waiting = nil
	for _, c := range r.idle {
		c.close()
		r.open--
	}
	r.idle = nil
	return r.open
}
