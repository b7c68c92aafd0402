package push

import (
	"context"
	"sync"
	"time"

	"hanok/internal/wake"
	"hanok/storage"
)

// dueBatch is how many pushers that are due are read at a time.
const dueBatch = 5000

// lookEvery bounds how long a pusher waits of which this process was not told.
const lookEvery = time.Minute

// followWaiting starts pushers that have waited long enough.
func (s *Sender) followWaiting(ctx context.Context) error {
	for {
		wait, err := s.startDue(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			s.opts.Log.Error().Err(err).Msg("push: find pushers that are due")
			wait = retryAfter
		}
		if wake.After(ctx, wait, s.due) != nil {
			return nil
		}
	}
}

// startDue starts the pushers that are due, and returns how long it is until there may be others.
func (s *Sender) startDue(ctx context.Context) (wait time.Duration, err error) {
	now := s.now()
	keys, err := storage.DuePushers(ctx, s.opts.DB, now, dueBatch)
	if err != nil {
		return 0, err
	}
	var unused []storage.PusherKey
	for _, key := range keys {
		p, err := s.pusher(ctx, key)
		if err != nil {
			return 0, err
		}
		if p == nil {
			unused = append(unused, key)
			continue
		}
		s.start(key, p.Gateway, false)
	}
	if len(unused) > 0 { // of accounts that are locked, perhaps: they begin with the next notification
		err := s.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.HoldPushers(ctx, tx, unused, 0, 0) })
		if err != nil {
			return 0, err
		}
	}
	if len(keys) == dueBatch {
		return minWait, nil
	}
	next, err := storage.NextPusherDue(ctx, s.opts.DB, now)
	if err != nil || next == 0 {
		return lookEvery, err
	}
	return min(max(next.Time().Sub(s.opts.Now()), 0), lookEvery), nil
}

// holdUnheld makes pushers wait that came while their gateway does not answer.
func (s *Sender) holdUnheld(ctx context.Context, g *gateway) {
	for {
		s.mu.Lock()
		waiting := g.unheld
		g.unheld, g.holding = nil, len(waiting) > 0
		s.mu.Unlock()
		if len(waiting) == 0 {
			return
		}
		s.hold(ctx, g, waiting)
	}
}

// hold makes pushers wait until their gateway is tried again.
func (s *Sender) hold(ctx context.Context, g *gateway, waiting []*delivery) {
	s.mu.Lock()
	until, since := g.retryAt, g.failingSince
	s.mu.Unlock()
	if until == 0 { // another request was answered
		for _, d := range waiting {
			s.finish(d, g.name, true)
		}
		return
	}
	keys := make([]storage.PusherKey, len(waiting))
	for i, d := range waiting {
		keys[i] = d.key
	}
	err := s.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.HoldPushers(ctx, tx, keys, since, until) })
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Error().Err(err).Msg("push: let pushers wait")
		time.AfterFunc(retryAfter, s.fresh.rescan)
	}
	for _, d := range waiting {
		s.end(d)
	}
	s.mu.Lock()
	answers := g.failingSince == 0
	s.mu.Unlock()
	if answers {
		s.hurry(ctx, g)
	}
	wake.Up(s.due)
}

// saver stores how far pushers have come, many at a time.
type saver struct {
	work chan struct{} // holds a token when there is something

	mu    sync.Mutex
	steps []storage.PusherStep
	done  []func()
}

func newSaver() saver { return saver{work: make(chan struct{}, 1)} }

// add has a step stored; done is called when it is durable, or when it failed.
func (v *saver) add(step storage.PusherStep, done func()) {
	v.mu.Lock()
	v.steps, v.done = append(v.steps, step), append(v.done, done)
	v.mu.Unlock()
	wake.Up(v.work)
}

func (v *saver) take() ([]storage.PusherStep, []func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	steps, done := v.steps, v.done
	v.steps, v.done = nil, nil
	return steps, done
}

// save stores steps until ctx ends, and what there is then.
func (s *Sender) save(ctx context.Context) error {
	for last := false; !last; {
		select {
		case <-ctx.Done():
			last = true
		case <-s.saver.work:
		}
		steps, done := s.saver.take()
		if len(steps) == 0 {
			continue
		}
		write := context.WithoutCancel(ctx)
		err := s.opts.DB.Write(write, func(tx *storage.Tx) error { return storage.SetPusherProgress(write, tx, steps) })
		if err != nil { // what was sent is sent again after a restart, at worst
			s.opts.Log.Error().Err(err).Msg("push: store how far pushers have come")
		}
		for _, fn := range done {
			fn()
		}
	}
	return nil
}
