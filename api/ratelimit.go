package api

import (
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"hanok/internal/endpoint"
	"hanok/internal/recent"
	"hanok/matrix"
)

// The rate-limit classes of routes, as events per second and burst. Each is counted per user,
// or per address where there is no session. spec: client-server-api#rate-limiting
var classes = map[string]struct {
	perSecond rate.Limit
	burst     int
}{
	"message": {10, 50}, // sending into rooms
	// Clients in a call restart their delayed events about once a second; a media server does it for all of them, without a session.
	"delayed": {20, 200},
	"join":    {1, 10},   // joins and knocks
	"create":  {0.5, 10}, // rooms and aliases
	"report":  {0.1, 10},
	"login":   {0.2, 5}, // password checks
	"invite":  {1, 20},
	"search":  {2, 10},
	"media":   {5, 50},
}

// maxBuckets bounds the memory of a limiter. Who comes back after that many others may burst once more.
const maxBuckets = 100_000

type limiter struct {
	now     func() time.Time
	mu      sync.Mutex
	buckets *recent.Map[bucket, *rate.Limiter]
}

type bucket struct{ class, who string }

func newLimiter(now func() time.Time) *limiter {
	return &limiter{now: now, buckets: recent.NewMap[bucket, *rate.Limiter](maxBuckets)}
}

// take uses up one event, or says how long to wait for the next.
func (l *limiter) take(class, who string) (wait time.Duration) {
	c, ok := classes[class]
	if !ok {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets.GetOrPut(bucket{class, who}, func() *rate.Limiter { return rate.NewLimiter(c.perSecond, c.burst) })
	now := l.now()
	res := b.ReserveN(now, 1)
	wait = res.DelayFrom(now)
	if wait > 0 {
		res.CancelAt(now)
	}
	return wait
}

func (a *API) rateLimit(r *endpoint.Request, rt endpoint.Route) error {
	who := a.remoteAddress(r)
	if s := requester(r); s != nil {
		if by := serviceOf(r); s.Admin || by != nil && !by.Limited(s.UserID) {
			return nil
		}
		who = string(s.UserID)
	} else if !a.Services.None() && a.Services.ByToken(accessToken(r)) != nil {
		return nil // a service registers its users, or logs in as one
	}
	if wait := a.limits.take(rt.Limit, who); wait > 0 {
		return matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "Too many requests. Wait a moment and try again.").
			With("retry_after_ms", wait.Milliseconds()+1)
	}
	return nil
}
