package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/internal/backoff"
	"hanok/matrix"
)

// What a .well-known file may cost.
const (
	wellKnownMaxBytes     = 50 << 10
	wellKnownTimeout      = 15 * time.Second
	wellKnownMaxRedirects = 5
	wellKnownCacheSize    = 20_000
)

// How long an answer is believed. spec: server-server-api#resolving-server-names 3
const (
	wellKnownDefault = 24 * time.Hour
	wellKnownMax     = 48 * time.Hour
	wellKnownMin     = 5 * time.Minute
	failureFirst     = 2 * time.Minute
	failureMax       = time.Hour
)

// wellKnownEntry is what is remembered of one host.
type wellKnownEntry struct {
	found    WellKnown
	until    time.Time
	failures int       // failed attempts in a row
	lastGood time.Time // when found.Server was last confirmed
}

// wellKnown returns what a host's file says. A failure is never an
// error: discovery goes on with the next step.
func (r *Resolver) wellKnown(ctx context.Context, host string) WellKnown {
	if e, ok := r.cache.Get(host); ok && r.opts.Now().Before(e.until) {
		return e.found
	}
	// The fetch outlives a caller that gives up: its outcome serves the next one.
	ch := r.flights.DoChan(host, func() (any, error) {
		fetch, cancel := context.WithTimeout(context.WithoutCancel(ctx), wellKnownTimeout)
		defer cancel()
		return r.refreshWellKnown(fetch, host), nil
	})
	select {
	case res := <-ch:
		found, _ := res.Val.(WellKnown)
		return found
	case <-ctx.Done():
		return WellKnown{}
	}
}

func (r *Resolver) refreshWellKnown(ctx context.Context, host string) WellKnown {
	now := r.opts.Now()
	old, _ := r.cache.Get(host)
	server, lifetime, err := r.fetchWellKnown(ctx, host)
	if err == nil {
		e := wellKnownEntry{found: WellKnown{Server: server}, until: now.Add(lifetime), lastGood: now}
		r.cache.Put(host, e)
		return e.found
	}
	wait := backoff.Doubled(failureFirst, failureMax, old.failures)
	e := wellKnownEntry{failures: old.failures + 1, until: now.Add(wait), found: WellKnown{Problem: brief(err), Absent: absent(err)}}
	// A web server that is down for an hour must not move a homeserver: what was true lately stays true.
	if old.found.Server != "" && now.Sub(old.lastGood) < wellKnownMax {
		e.found.Server, e.lastGood = old.found.Server, old.lastGood
	}
	r.cache.Put(host, e)
	return e.found
}

// errStatus is an answer that is no file.
type errStatus int

func (s errStatus) Error() string { return fmt.Sprintf("status %d", int(s)) }

// absent says whether a failure means that there is no file, rather than one that cannot be had or used.
func absent(err error) bool {
	var (
		status errStatus
		dns    *net.DNSError
	)
	return errors.As(err, &status) && (status == http.StatusNotFound || status == http.StatusGone) ||
		errors.As(err, &dns) && dns.IsNotFound || errors.Is(err, syscall.ECONNREFUSED)
}

// maxProblem bounds the text that is kept of a failure: there may be thousands.
const maxProblem = 200

// brief is a failure's text without the URL, which everybody knows.
func brief(err error) string {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	text := err.Error()
	return strings.ToValidUTF8(text[:min(len(text), maxProblem)], "")
}

// spec: ss/getWellKnown
func (r *Resolver) fetchWellKnown(ctx context.Context, host string) (server matrix.ServerName, lifetime time.Duration, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/.well-known/matrix/server", nil)
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Accept", "application/json")
	if r.opts.Agent != "" {
		req.Header.Set("User-Agent", r.opts.Agent)
	}
	res, err := r.http.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", 0, errStatus(res.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, wellKnownMaxBytes+1))
	if err != nil {
		return "", 0, err
	}
	if len(body) > wellKnownMaxBytes {
		return "", 0, errors.New("response too large")
	}
	var doc struct {
		Server string `json:"m.server"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", 0, err
	}
	if _, _, err := split(doc.Server); err != nil {
		return "", 0, fmt.Errorf("m.server %.100q: %w", doc.Server, err)
	}
	return matrix.ServerName(doc.Server), cacheLifetime(res.Header, r.opts.Now()), nil
}

// cacheLifetime reads how long a response may be kept, within our bounds.
func cacheLifetime(h http.Header, now time.Time) time.Duration {
	lifetime := wellKnownDefault
	stated := false
	for directive := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
		switch strings.ToLower(name) {
		case "no-store", "no-cache":
			return wellKnownMin
		case "max-age":
			if s, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32); err == nil {
				lifetime, stated = time.Duration(s)*time.Second, true
			}
		}
	}
	if expires := h.Get("Expires"); !stated && expires != "" {
		lifetime = 0 // RFC 9111: an invalid date means already expired
		if t, err := http.ParseTime(expires); err == nil {
			lifetime = t.Sub(now)
		}
	}
	return min(max(lifetime, wellKnownMin), wellKnownMax)
}
