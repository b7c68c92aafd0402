package rooms

import (
	"context"
	"errors"
	"time"

	"hanok/matrix"
)

// A question that any of several servers can answer is put to one after the other. One that is silent does not keep whoever waits
// from the answer of the next.

// How long a server may be silent before the next one is asked as well.
const (
	overtakeQuestion = 2500 * time.Millisecond // that is little work
	overtakeState    = 10 * time.Second        // about a state, or what comes before an event
	overtakeJoin     = 20 * time.Second        // that brings a room
)

// How many servers are waited for at a time.
const (
	mostQuestions = 6
	mostStates    = 2 // an answer may be hundreds of megabytes
)

// inquiry is a question to servers in turn.
type inquiry[T any] struct {
	next func() (matrix.ServerName, bool) // the server to ask now, false if there is none (any more)
	ask  func(ctx context.Context, server matrix.ServerName) (T, error)
	// take makes use of an answer; if it fails, the search goes on. One answer is taken at a time, and nobody new is asked meanwhile.
	take   func(server matrix.ServerName, answer T) error
	failed func(server matrix.ServerName, err error) // ask or take
	after  time.Duration                             // until the next one is asked besides
	most   int                                       // who are asked at a time
}

// listed makes a search go through a list.
func listed(servers []matrix.ServerName) func() (matrix.ServerName, bool) {
	return func() (next matrix.ServerName, ok bool) {
		if len(servers) == 0 {
			return "", false
		}
		next, servers = servers[0], servers[1:]
		return next, true
	}
}

type found[T any] struct {
	server matrix.ServerName
	answer T
	err    error
}

// run searches until an answer was taken, and says whether one was. The error is ctx's. Servers that were overtaken, or had not answered by ctx's
// deadline, are not called off, so that it becomes known which of them do not answer at all; what they answer is dropped.
func (s inquiry[T]) run(ctx context.Context, e *Engine) (bool, error) {
	answers := make(chan found[T])
	over := make(chan struct{})
	defer close(over)
	underWay := 0
	start := func() {
		server, ok := s.next()
		if !ok {
			return
		}
		asking, done := e.outlive(ctx, over)
		started := e.background(func() {
			defer done()
			answer, err := s.ask(asking, server)
			select {
			case answers <- found[T]{server, answer, err}:
			case <-over:
			}
		})
		if started {
			underWay++
		} else {
			done()
		}
	}
	for start(); underWay > 0; {
		var overtake <-chan time.Time
		timer := time.NewTimer(s.after)
		if underWay < s.most {
			overtake = timer.C
		}
		select {
		case f := <-answers:
			underWay--
			if f.err == nil {
				f.err = s.take(f.server, f.answer)
			}
			if f.err == nil {
				timer.Stop()
				return true, nil
			}
			if ctx.Err() == nil {
				s.failed(f.server, f.err)
			}
			if ctx.Err() == nil { // it may be over with that failure
				start()
			}
		case <-overtake:
			start()
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
	}
	return false, ctx.Err()
}

// outlive returns a context that ends with the engine, and when ctx is cancelled before over is closed.
func (e *Engine) outlive(ctx context.Context, over <-chan struct{}) (context.Context, func()) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ended := context.AfterFunc(e.life, cancel)
	given := context.AfterFunc(ctx, func() {
		select {
		case <-over:
		default:
			if errors.Is(ctx.Err(), context.Canceled) {
				cancel()
			}
		}
	})
	return out, func() {
		ended()
		given()
		cancel()
	}
}

// background runs work that Close waits for, with e.life as its life; false if the engine is closed.
func (e *Engine) background(work func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.life.Err() != nil {
		return false
	}
	e.works.Go(work)
	return true
}
