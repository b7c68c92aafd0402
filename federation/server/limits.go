package server

import (
	"context"
	"errors"
	"net/http"

	"hanok/federation/xmatrix"
	"hanok/internal/endpoint"
	"hanok/internal/gate"
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
	// bigBodies is how many bodies of more than bigBody bytes are checked at once.
	bigBody, bigBodies = 1 << 20, 2
	// bodyShare is how much of it those from one address may take: one that sends slowly keeps it for a minute.
	bodyShare = bodyBudget / 4
)

// enter waits for a place at a gate; endpoint.ErrBusy if too many wait already.
func enter[K comparable](ctx context.Context, g *gate.Gate[K], id K) (leave func(), err error) {
	leave, err = g.Enter(ctx, id)
	if errors.Is(err, gate.ErrFull) {
		return nil, endpoint.ErrBusy
	}
	return leave, err
}

// heavy makes a handler one of which a server may use a few at once.
func (s *Server) heavy(h endpoint.Handler) endpoint.Handler {
	return func(r *endpoint.Request) (any, error) {
		leave, err := enter(r.Ctx(), s.heavyWork, origin(r))
		if err != nil {
			return nil, err
		}
		defer leave()
		return h(r)
	}
}

// stranger makes a handler that has us ask other servers, of which one address may use a few at once: anybody may call it.
func (s *Server) stranger(h endpoint.Handler) endpoint.Handler {
	return func(r *endpoint.Request) (any, error) {
		leave, err := enter(r.Ctx(), s.strangers, s.address(r.Request))
		if err != nil {
			return nil, err
		}
		defer leave()
		return h(r)
	}
}

// address is what is taken for one caller among those who have not proved who they are.
func (s *Server) address(r *http.Request) string { return endpoint.Caller(r, s.opts.BehindProxy) }

// meet makes sure that a key of the server that seems to ask is known, before anything of the request is read.
func (s *Server) meet(r *endpoint.Request, headers []xmatrix.Header) error {
	for _, h := range headers {
		if known, err := s.opts.Keys.Known(r.Ctx(), h); known || err != nil {
			return err
		}
	}
	leave, err := enter(r.Ctx(), s.strangers, s.address(r.Request))
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
