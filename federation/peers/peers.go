// Package peers is what this server knows about other servers as such: whether
// it talks to them at all, and whether they answered lately.
//
// The back-off of a server that does not answer is durable, so a restart does
// not hammer it, and ends the moment anything is heard from it.
package peers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"hanok/internal/backoff"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/matrix/glob"
	"hanok/storage"
)

// Options are what Peers works with.
type Options struct {
	DB *storage.DB
	// Allow lists globs of server names; if not empty, others are refused.
	Allow []string
	// Deny lists globs of server names that are refused.
	Deny []string
	Now  func() time.Time // nil is time.Now
	// Jitter makes of a wait until a server is tried again one that is a little different: servers that failed
	// together are not to be retried together. nil takes between three quarters and five quarters of it at random.
	Jitter func(server matrix.ServerName, wait time.Duration) time.Duration
	Log    zerolog.Logger
}

// Peers remembers who can be talked to.
type Peers struct {
	opts        Options
	allow, deny []glob.Glob
	recovered   chan matrix.ServerName

	mu      sync.RWMutex
	failing map[matrix.ServerName]storage.ServerBackoff
	heard   map[matrix.ServerName]struct{} // who answered the last time, or asked something of us, since the start
}

// How long to wait before a server that did not answer is tried again.
const (
	firstWait = time.Second
	maxWait   = 6 * time.Hour
)

// maxFailing bounds how many failing servers are remembered: anybody can make up names for us to ask after. One that is forgotten
// costs an attempt.
const maxFailing = 20_000

// maxHeard bounds how many servers are remembered that were heard from. One that is forgotten may wait longer for its first transaction.
const maxHeard = 50_000

// Class says how a server has been doing, for metrics: there are too many servers for a number each.
type Class string

// The classes of servers.
const (
	Well    Class = "well"    // answers, or was never asked
	Failing Class = "failing" // has not answered for less than a day
	Lost    Class = "lost"    // has not answered for longer
)

const lostAfter = 24 * time.Hour

// ClassOf returns the class of a server now.
func (p *Peers) ClassOf(server matrix.ServerName) Class {
	since, failing := p.FailingSince(server)
	switch {
	case !failing:
		return Well
	case p.opts.Now().Sub(since) < lostAfter:
		return Failing
	}
	return Lost
}

// New loads what was known.
func New(ctx context.Context, o Options) (*Peers, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Jitter == nil {
		o.Jitter = func(_ matrix.ServerName, wait time.Duration) time.Duration { return wait*3/4 + rand.N(wait/2) }
	}
	p := &Peers{
		opts: o, allow: compile(o.Allow), deny: compile(o.Deny),
		recovered: make(chan matrix.ServerName, 256),
		failing:   map[matrix.ServerName]storage.ServerBackoff{},
		heard:     map[matrix.ServerName]struct{}{},
	}
	stored, err := storage.FindServerBackoffs(ctx, o.DB)
	if err != nil {
		return nil, err
	}
	for _, b := range stored {
		p.failing[b.Server] = b
	}
	return p, nil
}

func compile(patterns []string) []glob.Glob {
	globs := make([]glob.Glob, len(patterns))
	for i, s := range patterns {
		globs[i] = glob.Compile(s, true)
	}
	return globs
}

// Check returns M_FORBIDDEN for a server that the operator's lists refuse.
func (p *Peers) Check(server matrix.ServerName) error {
	if len(p.allow) > 0 && !matches(p.allow, server) || matches(p.deny, server) {
		return matrix.Forbidden("This server does not federate with %s.", server)
	}
	return nil
}

// matches looks at the name with and without its port, so that a rule for a host covers its ports.
func matches(globs []glob.Glob, server matrix.ServerName) bool {
	host := server.Host()
	for _, g := range globs {
		if g.Match(string(server)) || g.Match(host) {
			return true
		}
	}
	return false
}

// RetryAt returns when a failing server may be tried again; ok is false if it may be tried now.
func (p *Peers) RetryAt(server matrix.ServerName) (at time.Time, ok bool) {
	p.mu.RLock()
	b, failing := p.failing[server]
	p.mu.RUnlock()
	if !failing {
		return time.Time{}, false
	}
	at = time.UnixMilli(int64(b.RetryAt))
	return at, p.opts.Now().Before(at)
}

// FailingSince returns since when a server has not answered; ok is false if it does.
func (p *Peers) FailingSince(server matrix.ServerName) (since time.Time, ok bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	b, ok := p.failing[server]
	return time.UnixMilli(int64(b.FailingSince)), ok
}

// Reason says how the last attempt to reach a failing server failed, for people.
func (p *Peers) Reason(server matrix.ServerName) string {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.failing[server].Reason
}

// maxReason bounds what is kept of a reason.
const maxReason = 300

// Failed notes that a server did not answer. wait is how long it asked us to leave it alone, 0 if it did not. reason says how, for people.
func (p *Peers) Failed(server matrix.ServerName, wait time.Duration, reason string) {
	now := p.opts.Now()
	p.mu.Lock()
	delete(p.heard, server)
	b, known := p.failing[server]
	if known && now.Before(time.UnixMilli(int64(b.RetryAt))) {
		// A request that was under way already, or one that ignores back-off: no news.
		p.mu.Unlock()
		return
	}
	var forgotten []matrix.ServerName
	if !known {
		for name := range p.failing {
			if len(p.failing)-len(forgotten) < maxFailing {
				break
			}
			forgotten = append(forgotten, name)
		}
		for _, name := range forgotten {
			delete(p.failing, name)
		}
		b = storage.ServerBackoff{Server: server, FailingSince: matrix.Timestamp(now.UnixMilli())}
	}
	b.Attempts++
	b.Reason = strings.ToValidUTF8(reason[:min(len(reason), maxReason)], "")
	b.RetryAt = matrix.Timestamp(now.Add(max(p.opts.Jitter(server, backoff.Doubled(firstWait, maxWait, b.Attempts-1)), min(wait, maxWait))).UnixMilli())
	p.failing[server] = b
	p.mu.Unlock()
	p.store(func(tx *storage.Tx) error {
		for _, name := range forgotten {
			if err := storage.DeleteServerBackoff(context.Background(), tx, name); err != nil {
				return err
			}
		}
		return storage.PutServerBackoff(context.Background(), tx, b)
	})
}

// Heard says whether a server was heard from since the start, and has not failed to answer after that.
func (p *Peers) Heard(server matrix.ServerName) bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	_, heard := p.heard[server]
	return heard
}

// Answered notes that a server answered, or that a request of it came in.
func (p *Peers) Answered(server matrix.ServerName) {
	p.mu.RLock()
	_, failing := p.failing[server]
	_, heard := p.heard[server]
	p.mu.RUnlock()
	if !failing && heard {
		return
	}
	p.mu.Lock()
	delete(p.failing, server)
	for other := range p.heard {
		if len(p.heard) < maxHeard {
			break
		}
		delete(p.heard, other)
	}
	p.heard[server] = struct{}{}
	p.mu.Unlock()
	if failing {
		p.store(func(tx *storage.Tx) error { return storage.DeleteServerBackoff(context.Background(), tx, server) })
	}
	select {
	case p.recovered <- server:
	default: // the outbox looks again by itself when the old back-off ends
	}
}

// lookEvery is how often requests of the operator are looked for.
const lookEvery = 3 * time.Second

// Run follows what the operator asks for on the command line, which is another process: servers to be tried again at once.
func (p *Peers) Run(ctx context.Context) error {
	wake.Every(ctx, lookEvery, func() {
		if err := p.retryRequested(ctx); err != nil && ctx.Err() == nil {
			p.opts.Log.Error().Err(err).Msg("federation: look for requested retries")
		}
	})
	return nil
}

func (p *Peers) retryRequested(ctx context.Context) error {
	servers, err := storage.FindRequestedRetries(ctx, p.opts.DB)
	if err != nil || len(servers) == 0 {
		return err
	}
	now := matrix.TimestampOf(p.opts.Now())
	asked := make([]storage.ServerBackoff, 0, len(servers))
	p.mu.Lock()
	for _, s := range servers {
		b, known := p.failing[s]
		if !known {
			b = storage.ServerBackoff{Server: s, FailingSince: now}
		}
		b.RetryAt = now
		p.failing[s] = b
		asked = append(asked, b)
	}
	p.mu.Unlock()
	err = p.opts.DB.Write(ctx, func(tx *storage.Tx) error {
		for _, b := range asked {
			if err := storage.PutServerBackoff(ctx, tx, b); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range servers {
		select {
		case p.recovered <- s:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// Recovered yields servers that may be tried before their time: they were heard from for the first time or again, or the operator wants it.
func (p *Peers) Recovered() <-chan matrix.ServerName { return p.recovered }

// store does not wait: losing a back-off in a crash costs one attempt.
func (p *Peers) store(fn func(tx *storage.Tx) error) {
	p.opts.DB.WriteAsync(fn, func(err error) {
		if err != nil {
			p.opts.Log.Warn().Err(fmt.Errorf("back-off: %w", err)).Msg("federation: cannot store")
		}
	})
}
