package server

import (
	"context"
	"io"
	"net/http"
	"sync"

	"hanok/federation/xmatrix"
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// What other servers may make us do at once. Each limit is for one of them, so that one that asks for too much waits for itself.
const (
	// heavyAtOnce and heavyWaiting are for requests that read much: states, auth chains, history.
	heavyAtOnce, heavyWaiting = 8, 64
	// strangersAtOnce and strangersWaiting are for requests from one address in the name of servers whose key has to be fetched: nobody
	// has proved anything yet.
	strangersAtOnce, strangersWaiting = 4, 32
	// bodyBudget is how many bytes of requests are kept at once, of all servers: a body is read before its signature can be checked.
	bodyBudget = 128 << 20
)

var errBusy = matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "Too many requests at once.").With("retry_after_ms", int64(2000))

// gate lets a few in at once for each key, and some more wait.
type gate[K comparable] struct {
	atOnce, waiting int

	mu   sync.Mutex
	byID map[K]*gateQueue
}

type gateQueue struct {
	slots chan struct{}
	users int // inside and waiting
}

func newGate[K comparable](atOnce, waiting int) *gate[K] {
	return &gate[K]{atOnce: atOnce, waiting: waiting, byID: map[K]*gateQueue{}}
}

// enter waits for a place, which leave gives back; errBusy if too many wait already.
func (g *gate[K]) enter(ctx context.Context, id K) (leave func(), err error) {
	g.mu.Lock()
	q := g.byID[id]
	if q == nil {
		q = &gateQueue{slots: make(chan struct{}, g.atOnce)}
		g.byID[id] = q
	}
	if q.users == g.atOnce+g.waiting {
		g.mu.Unlock()
		return nil, errBusy
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

// heavy makes a handler one of which a server may use a few at once.
func (s *Server) heavy(h endpoint.Handler) endpoint.Handler {
	return func(r *endpoint.Request) (any, error) {
		leave, err := s.heavyWork.enter(r.Ctx(), origin(r))
		if err != nil {
			return nil, err
		}
		defer leave()
		return h(r)
	}
}

// meet makes sure that a key of the server that seems to ask is known, before anything of the request is read.
func (s *Server) meet(r *endpoint.Request, headers []xmatrix.Header) error {
	for _, h := range headers {
		if known, err := s.opts.Keys.Known(r.Ctx(), h); known || err != nil {
			return err
		}
	}
	leave, err := s.strangers.enter(r.Ctx(), r.RemoteAddress(s.opts.BehindProxy))
	if err != nil {
		return err
	}
	defer leave()
	for _, h := range headers {
		if err = s.opts.Keys.Fetch(r.Ctx(), h); err == nil {
			return nil
		}
	}
	return err
}

// budget is what all bodies together may hold.
type budget struct {
	mu   sync.Mutex
	free int64
}

func (b *budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free < n {
		return false
	}
	b.free -= n
	return true
}

func (b *budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
}

// charged is a body that takes from the budget what is read of it.
type charged struct {
	io.ReadCloser
	budget *budget
	taken  int64
}

func (c *charged) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		if !c.budget.take(int64(n)) {
			return 0, errBusy
		}
		c.taken += int64(n)
	}
	return n, err
}
