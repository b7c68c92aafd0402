package push

import (
	"context"
	"errors"
	"slices"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// maxAge is how old an event may be and still alert somebody. Beyond it, what is unread is known from the next count.
const maxAge = 24 * time.Hour

// pendingBatch is how many notifications are read at a time.
const pendingBatch = 20

// delivery is a pusher that has something to send. Between its steps it is with Sender.mu, within one with its goroutine.
type delivery struct {
	key    storage.PusherKey
	again  bool // there is news since the step began. Sender.mu
	counts bool // the counts may have changed. Sender.mu

	loaded   bool // progress is known
	progress storage.PusherProgress
	pending  []storage.Notification // the next ones
	beyond   bool                   // there may be others after them
	moved    bool                   // progress is not stored
}

// outcome is what became of a step.
type outcome struct {
	more    bool   // there may be more to send
	waits   bool   // whether the pusher has to wait has changed
	gone    bool   // the pusher may not be used any more, or not now
	silent  bool   // the gateway does not answer
	gateway string // not "": the pusher sends to another gateway now
}

// serve takes one step of a delivery: one request, or none if there is nothing to send.
func (s *Sender) serve(ctx context.Context, g *gateway, d *delivery) {
	out, err := s.step(ctx, g, d)
	var waiting []*delivery
	if out.silent {
		if waiting, out.silent = s.silent(g, d); !out.silent {
			d.wait(s.now(), maxGatewayWait, false)
			out.waits = true
		}
	}
	s.release(g)
	switch {
	case err != nil:
		if ctx.Err() == nil {
			s.opts.Log.Error().Err(err).Msg("push: take a step")
			time.AfterFunc(retryAfter, s.fresh.rescan)
		}
		s.end(d)
	case out.gone:
		s.end(d)
	case out.silent:
		s.hold(ctx, g, append(waiting, d))
	case out.gateway != "":
		s.finish(d, out.gateway, true)
	case d.moved || out.waits:
		d.moved = false
		step := storage.PusherStep{Key: d.key, PusherProgress: d.progress, Waits: out.waits}
		s.saver.add(step, func() {
			s.finish(d, g.name, out.more || out.waits) // whoever looked for the pusher meanwhile was told that it waits
			if step.RetryAt != 0 {
				wake.Up(s.due)
			}
		})
	default:
		s.finish(d, g.name, out.more)
	}
}

// pusher finds the pusher as it is now; nil if there is none that may be used.
func (s *Sender) pusher(ctx context.Context, key storage.PusherKey) (*users.Pusher, error) {
	list, err := s.opts.Users.Pushers.Usable(ctx, key.UserID)
	if err != nil {
		return nil, err
	}
	if i := slices.IndexFunc(list, func(p users.Pusher) bool { return p.Key() == key }); i >= 0 {
		return &list[i], nil
	}
	return nil, nil
}

func (s *Sender) step(ctx context.Context, g *gateway, d *delivery) (outcome, error) {
	p, err := s.pusher(ctx, d.key)
	if err != nil || p == nil {
		return outcome{gone: true}, err
	}
	if p.Gateway != g.name {
		return outcome{gateway: p.Gateway}, nil
	}
	if !d.loaded {
		d.progress, err = storage.GetPusherProgress(ctx, s.opts.DB, d.key)
		if errors.Is(err, storage.ErrNotFound) {
			return outcome{gone: true}, nil
		}
		if err != nil {
			return outcome{}, err
		}
		d.loaded = true
	}
	if d.progress.RetryAt > s.now() {
		return outcome{gone: true}, nil // others begin when it is due
	}
	n, ev, err := s.next(ctx, d)
	if err != nil {
		return outcome{}, err
	}
	s.mu.Lock()
	counts := d.counts || d.progress.Badge >= 0
	d.counts = false
	s.mu.Unlock()
	var unread int64
	if ev != nil || counts {
		if unread, err = s.opts.Feed.UnreadTotal(ctx, d.key.UserID); err != nil {
			return outcome{}, err
		}
	}
	a := Attempt{Kind: "event"}
	var body []byte
	switch {
	case ev != nil:
		if body, err = s.notification(ctx, p, n, ev, unread); err != nil {
			return outcome{}, err
		}
	case counts && unread != d.progress.Badge:
		a.Kind, body = "counts", countsOnly(p, unread)
	default:
		waited := d.progress.RetryAt != 0
		d.progress.RetryAt = 0
		return outcome{waits: waited}, nil
	}
	began := s.opts.Now()
	answer, err := s.post(s.requests, p, body)
	if err != nil && ctx.Err() != nil {
		return outcome{gone: true}, nil // the server stops
	}
	a.Request = s.opts.Now().Sub(began)
	if ev != nil {
		a.Age = s.opts.Now().Sub(ev.ReceivedTS.Time())
	}
	if err != nil {
		a.Result = "failed"
		s.opts.Observe(a)
		s.opts.Log.Debug().Err(err).Str("gateway", g.name).Msg("push: the gateway does not answer")
		return outcome{silent: true}, nil
	}
	s.answered(ctx, g)
	out := s.judge(ctx, d, answer, &a)
	s.opts.Observe(a)
	if a.Result == "sent" || a.Result == "dropped" {
		if d.progress.Badge, d.moved = unread, true; ev != nil {
			d.pass()
		}
		out.more = len(d.pending) > 0 || d.beyond // of what came meanwhile somebody is told
	}
	return out, nil
}

// next finds the next notification that is worth sending, and passes by those that are not; ev is nil if there is none.
func (s *Sender) next(ctx context.Context, d *delivery) (n storage.Notification, ev *rooms.Event, err error) {
	for {
		if len(d.pending) == 0 {
			user, err := s.opts.DB.Intern(ctx, string(d.key.UserID))
			if err != nil {
				return n, nil, err
			}
			d.pending, err = storage.NotificationsAfter(ctx, s.opts.DB, user[0], d.progress.LastPosition, pendingBatch)
			if d.beyond = len(d.pending) == pendingBatch; err != nil || len(d.pending) == 0 {
				return n, nil, err
			}
		}
		n = d.pending[0]
		ev, err = s.opts.Feed.ToPush(ctx, d.key.UserID, n)
		if err != nil {
			return n, nil, err
		}
		if ev != nil && s.opts.Now().Sub(ev.ReceivedTS.Time()) < maxAge {
			return n, ev, nil
		}
		d.pass()
		s.opts.Observe(Attempt{Kind: "event", Result: "dropped"})
	}
}

// pass leaves the next notification behind.
func (d *delivery) pass() {
	d.progress.LastPosition, d.pending, d.moved = d.pending[0].EventPos, d.pending[1:], true
}

// refusedFor is for how long a notification is tried again that a gateway refuses as malformed, or too large.
const refusedFor = time.Minute

// judge works out what an answer means for a pusher.
func (s *Sender) judge(ctx context.Context, d *delivery, answer reply, a *Attempt) outcome {
	if answer.status/100 == 2 {
		if slices.Contains(answer.rejected, d.key.PushKey) {
			a.Result = "rejected"
			if err := s.opts.Users.Pushers.Delete(ctx, d.key); err != nil {
				s.opts.Log.Error().Err(err).Msg("push: remove a rejected pusher") // it will be rejected again
			}
			return outcome{gone: true}
		}
		a.Result = "sent"
		waited := d.progress.RetryAt != 0
		d.progress.FailingSince, d.progress.RetryAt, d.progress.Refused = 0, 0, false
		return outcome{waits: waited}
	}
	a.Result = "failed"
	failing := d.wait(s.now(), maxWait, true)
	if asked := min(answer.retryAfter, maxWait); asked > 0 {
		d.progress.RetryAt = max(d.progress.RetryAt, s.now().Add(asked))
	}
	if answer.malformed() && failing >= matrix.Span(refusedFor) {
		a.Result = "dropped" // the next may be better
	}
	return outcome{waits: true}
}

// wait notes that a request failed: the pusher waits for longer with each, up to a limit. It returns for how long the pusher has been failing.
func (d *delivery) wait(now matrix.Timestamp, most time.Duration, refused bool) (failing matrix.Timestamp) {
	if d.progress.FailingSince == 0 {
		d.progress.FailingSince = now
	}
	failing = now - d.progress.FailingSince
	d.progress.RetryAt, d.progress.Refused = now+backoff(failing, most), refused
	return failing
}
