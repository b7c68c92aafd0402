package push

import (
	"context"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

// Limits of requests under way.
const (
	MaxPerGateway = 100
	maxRunning    = 1024 // in all
	// maxGateways is how many gateways that fail are remembered at least; one that is forgotten is tried once more than need be.
	maxGateways = 10_000
)

// gateway is where several pushers send to: scheme and host of their URLs. It exists while there is something to send, and
// while it does not answer. It is guarded by Sender.mu.
type gateway struct {
	name    string
	ready   []*delivery // that wait for their turn
	running int
	queued  bool // is in Sender.turn

	unheld  []*delivery // that came while the gateway does not answer, and have to be told to wait
	holding bool        // that is under way

	failures int // requests without answer since the last with one
	// While a gateway does not answer, one request at a time finds out whether it does again.
	failingSince matrix.Timestamp // 0: it answers
	retryAt      matrix.Timestamp
}

func (g *gateway) mayRun() bool {
	return len(g.ready) > 0 && (g.running == 0 || g.failingSince == 0 && g.running < MaxPerGateway)
}

func (g *gateway) idle() bool { return g.running == 0 && len(g.ready) == 0 && !g.holding }

// start takes a pusher into memory because there may be something to send, or lets it look again.
func (s *Sender) start(key storage.PusherKey, gateway string, counts bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx == nil || s.ctx.Err() != nil {
		return // Run looks at all
	}
	if d := s.active[key]; d != nil {
		d.again = true
		d.counts = d.counts || counts
		return
	}
	if len(s.active) >= maxActive {
		s.full = true
		return
	}
	d := &delivery{key: key, counts: counts}
	s.active[key] = d
	s.queue(d, gateway)
}

// queue lets a delivery wait for its turn at a gateway. s.mu is held.
func (s *Sender) queue(d *delivery, name string) {
	g := s.gateways[name]
	if g == nil {
		if len(s.gateways) >= maxGateways {
			s.forgetGateways()
		}
		g = &gateway{name: name}
		s.gateways[name] = g
	}
	if g.retryAt > s.now() {
		// It was found not to answer a moment ago.
		if g.unheld = append(g.unheld, d); !g.holding {
			g.holding = true
			ctx := s.ctx
			s.steps.Go(func() { s.holdUnheld(ctx, g) })
		}
		return
	}
	g.ready = append(g.ready, d)
	s.schedule(g)
}

// schedule starts steps while there may be more. s.mu is held.
func (s *Sender) schedule(g *gateway) {
	if !g.queued && g.mayRun() {
		g.queued = true
		s.turn = append(s.turn, g)
	}
	for s.running < maxRunning && len(s.turn) > 0 && s.ctx != nil && s.ctx.Err() == nil {
		g := s.turn[0]
		s.turn = s.turn[1:]
		g.queued = false
		if !g.mayRun() {
			continue
		}
		d := g.ready[0]
		g.ready = g.ready[1:]
		g.running++
		s.running++
		if d.again {
			d.again, d.beyond = false, true // what was read before is not all
		}
		ctx := s.ctx
		s.steps.Go(func() { s.serve(ctx, g, d) })
		if g.mayRun() {
			g.queued = true
			s.turn = append(s.turn, g)
		}
	}
}

// release ends a step's turn at a gateway.
func (s *Sender) release(g *gateway) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g.running--
	s.running--
	s.schedule(g)
	s.drop(g)
}

// drop forgets a gateway that there is no reason to remember. s.mu is held.
func (s *Sender) drop(g *gateway) {
	if g.idle() && g.failingSince == 0 && s.gateways[g.name] == g {
		delete(s.gateways, g.name)
	}
}

// forgetGateways forgets those that fail and have nothing to send. s.mu is held.
func (s *Sender) forgetGateways() {
	for name, g := range s.gateways {
		if g.idle() {
			delete(s.gateways, name)
		}
	}
}

// finish lets a delivery go on, or ends it.
func (s *Sender) finish(d *delivery, gateway string, more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if (more || d.again) && s.ctx != nil && s.ctx.Err() == nil {
		s.queue(d, gateway)
		return
	}
	s.remove(d)
}

// end ends a delivery. If there was news meanwhile, somebody looks whether there is still a pusher for it.
func (s *Sender) end(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d.again {
		s.fresh.add(d.counts, d.key.UserID)
	}
	s.remove(d)
}

// remove forgets a delivery. s.mu is held.
func (s *Sender) remove(d *delivery) {
	delete(s.active, d.key)
	if s.full && len(s.active) < maxActive/2 {
		s.full = false
		s.fresh.rescan()
	}
}

// answered notes that a gateway answers, and hurries those who waited for that.
func (s *Sender) answered(ctx context.Context, g *gateway) {
	s.mu.Lock()
	failed := g.failingSince != 0
	g.failures, g.failingSince, g.retryAt = 0, 0, 0
	s.mu.Unlock()
	if failed {
		s.hurry(ctx, g)
	}
}

// hurry makes pushers due that wait for a gateway.
func (s *Sender) hurry(ctx context.Context, g *gateway) {
	err := s.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.HurryPushers(ctx, tx, g.name, s.now()) })
	if err != nil && ctx.Err() == nil {
		s.opts.Log.Error().Err(err).Msg("push: hurry pushers") // they come when they are due
	}
	wake.Up(s.due)
}

// fewFailures is how many requests may go without answer before a gateway counts as silent, while others are under way there.
const fewFailures = 3

// silent notes that a gateway did not answer a delivery. If it seems not to answer anybody, it returns those that wait for their turn there.
func (s *Sender) silent(g *gateway, d *delivery) (waiting []*delivery, silent bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if g.failures++; g.failures < fewFailures && g.failingSince == 0 && g.running > 1 {
		return nil, false
	}
	if g.failingSince == 0 {
		g.failingSince = now
	}
	if since := d.progress.FailingSince; since != 0 && !d.progress.Refused {
		g.failingSince = min(g.failingSince, since) // found before a restart
	}
	g.retryAt = now + backoff(now-g.failingSince, maxGatewayWait)
	s.gateways[g.name] = g
	waiting, g.ready = g.ready, nil
	return waiting, true
}

// Waits between attempts. Each is half as long as it has been failing: whoever comes back late is not left waiting for much longer still.
const (
	minWait        = time.Second
	maxWait        = 30 * time.Minute // of a pusher that its gateway refuses
	maxGatewayWait = 5 * time.Minute  // of a gateway that does not answer
)

// backoff is how long to wait after failing for some time.
func backoff(failing matrix.Timestamp, most time.Duration) matrix.Timestamp {
	return min(max(failing/2, matrix.Span(minWait)), matrix.Span(most))
}
