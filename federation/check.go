package federation

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/federation/keyring"
	"hanok/matrix"
)

// Finding is one step of a check, or a part of one, for people.
type Finding struct {
	Step   string
	Detail string
	Err    error // nil: the step went well
	// Advice says of a step that went well that something should be looked at all the same, and what.
	Advice string
}

// Check goes through everything that federation with a server needs, in order, and
// yields findings; it stops at the first step without which the next make no sense. The last step
// has the other server verify our signature, for which it must reach us. Of our own name it goes the way that other servers go to reach us, for which this one has to run.
func (o *Outbound) Check(ctx context.Context, name matrix.ServerName) iter.Seq[Finding] {
	return func(yield func(Finding) bool) {
		c := &check{o: o, name: name, yield: yield}
		steps := []func(context.Context) bool{c.lists, c.backOff, c.discovery, c.connection, c.software, c.keys, c.signature}
		if name == o.name {
			steps = []func(context.Context) bool{c.discovery, c.connection, c.software, c.ownKeys}
		}
		for _, step := range steps {
			if !step(ctx) || c.stopped {
				return
			}
		}
	}
}

// check is one run of Check. Its steps return whether the next one makes sense.
type check struct {
	o       *Outbound
	name    matrix.ServerName
	yield   func(Finding) bool
	stopped bool
	where   discovery.Server
}

func (c *check) find(f Finding) bool {
	c.stopped = c.stopped || !c.yield(f)
	return f.Err == nil
}

func (c *check) fine(step, format string, args ...any) bool {
	return c.find(Finding{Step: step, Detail: fmt.Sprintf(format, args...)})
}

func (c *check) doubt(step, advice, format string, args ...any) {
	if !c.stopped {
		c.find(Finding{Step: step, Detail: fmt.Sprintf(format, args...), Advice: advice})
	}
}

func (c *check) fail(step string, err error) bool { return c.find(Finding{Step: step, Err: err}) }

func (c *check) lists(context.Context) bool {
	if err := c.o.Peers.Check(c.name); err != nil {
		return c.fail("lists", err)
	}
	return c.fine("lists", "the configuration lets us talk to it")
}

func (c *check) backOff(context.Context) bool {
	since, failing := c.o.Peers.FailingSince(c.name)
	if !failing {
		return true
	}
	at, _ := c.o.Peers.RetryAt(c.name)
	c.doubt("back-off", "If all is well below, have it tried at once: hanok federation retry "+string(c.name),
		"it has not answered since %s (%s); next attempt at %s", since.UTC().Format(time.RFC3339), c.o.Peers.Reason(c.name), at.UTC().Format(time.RFC3339))
	return true
}

func (c *check) discovery(ctx context.Context) (ok bool) {
	where, err := c.o.Resolver.Resolve(ctx, c.name)
	if err != nil {
		return c.fail("discovery", err)
	}
	c.where = where
	const step = ".well-known"
	switch w := where.WellKnown; {
	case w.Problem != "" && !w.Absent:
		c.doubt(step, "Servers go on as if there was no such file. It should be JSON like {\"m.server\": \"matrix.example.org:443\"}, at a host with a valid certificate.",
			"https://%s/.well-known/matrix/server cannot be used: %s", c.name, w.Problem)
	case w.Problem != "":
		c.fine(step, "there is none (%s)", w.Problem)
	case w.Server != "":
		c.fine(step, "it delegates to %s", w.Server)
	}
	for _, failure := range where.SRVFailures {
		c.doubt("SRV", "A look-up that fails counts as no record. Look at the name servers of the domain, and at the resolver of this machine.", "%s", failure)
	}
	if len(where.Endpoints) == 0 {
		return c.fail("discovery", fmt.Errorf("%w: %s says that there is no such service", discovery.ErrUnreachable, where.Via))
	}
	endpoints := make([]string, len(where.Endpoints))
	for i, e := range where.Endpoints {
		endpoints[i] = e.String()
	}
	return c.fine("discovery", "%s: %s, with a certificate for %s", where.Via, strings.Join(endpoints, ", "), where.Certificate)
}

// reached is what became of one address.
type reached struct {
	endpoint discovery.Endpoint
	state    tls.ConnectionState
	err      error
}

// expiresSoon is when the end of a certificate is worth a word: most are renewed a month before.
const expiresSoon = 14 * 24 * time.Hour

// connection tries every address of every endpoint: a client that finds one that works hides that others do not.
func (c *check) connection(ctx context.Context) bool {
	const step = "connection"
	var failures []error
	var good, bad []reached
	for _, r := range c.dialAll(ctx) {
		if r.err != nil {
			failures = append(failures, r.err) // which names the endpoint
			bad = append(bad, r)
			continue
		}
		good = append(good, r)
	}
	if len(good) == 0 {
		return c.fail(step, errors.Join(failures...))
	}
	for _, r := range good {
		expires := "no certificate"
		if len(r.state.PeerCertificates) > 0 {
			end := r.state.PeerCertificates[0].NotAfter.UTC()
			expires = "certificate until " + end.Format(time.DateOnly)
			if left := time.Until(end); left < expiresSoon {
				c.doubt(step, "It has to be renewed, and the server or proxy to load the new one.", "the certificate at %s ends in %d days", r.endpoint, left/(24*time.Hour))
			}
		}
		c.fine(step, "%s to %s, %s", tls.VersionName(r.state.Version), r.endpoint, expires)
	}
	for _, r := range bad {
		if address, err := netip.ParseAddr(r.endpoint.Host); err == nil && address.Is6() && errors.Is(r.err, syscall.ENETUNREACH) {
			c.fine(step, "%s: not tried, this machine has no IPv6", r.endpoint)
			continue
		}
		advice := Finding{Err: r.err}.Hint()
		if advice == "" {
			advice = "Some servers will try this address, and wait in vain."
		}
		c.doubt(step, advice, "%v", r.err)
	}
	return true
}

// maxAddresses bounds how many addresses of a server are tried.
const maxAddresses = 16

func (c *check) dialAll(ctx context.Context) []reached {
	var all []reached
	for _, e := range c.where.Endpoints {
		addresses, err := c.o.Resolver.Addresses(ctx, e.Host)
		if err != nil {
			all = append(all, reached{endpoint: e}) // the attempt will say why
		}
		for _, a := range addresses {
			all = append(all, reached{endpoint: discovery.Endpoint{Host: a.String(), Port: e.Port}})
		}
	}
	all = all[:min(len(all), maxAddresses)]
	var wg sync.WaitGroup
	for i := range all {
		r := &all[i]
		wg.Go(func() {
			at := c.where
			at.Endpoints = []discovery.Endpoint{r.endpoint}
			conn, err := c.o.Resolver.Dial(ctx, at)
			if err != nil {
				r.err = err
				return
			}
			r.state = conn.ConnectionState()
			_ = conn.Close() // it has served
		})
	}
	wg.Wait()
	return all
}

// clockSkew is by how much two clocks may differ before it is worth a word.
const clockSkew = time.Minute

func (c *check) software(ctx context.Context) bool {
	const step = "software"
	asked := time.Now()
	s, err := c.o.Version(ctx, c.name)
	if err != nil {
		return c.fail(step, err)
	}
	if !s.Clock.IsZero() {
		early, late := asked.Sub(s.Clock), s.Clock.Sub(time.Now())
		if off := max(early, late); off > clockSkew {
			relation := "behind"
			if late > early {
				relation = "ahead of"
			}
			c.doubt(step, "One of them is wrong: keys and certificates are judged by it, and messages show it. Look at NTP.",
				"its clock is %s %s that of this machine", off.Round(time.Second), relation)
		}
	}
	return c.fine(step, "%s %s", s.Name, s.Version)
}

func (c *check) keys(ctx context.Context) bool {
	const step = "keys"
	until, replaced, err := c.o.Keys.Examine(ctx, c.name)
	if err != nil {
		return c.fail(step, err)
	}
	for _, id := range replaced {
		c.doubt(step, "Its signing key was lost or replaced under the same name. What it signed before cannot be verified any more; a new key needs a new ID, and the old one a place in old_verify_keys.",
			"the key %s is another one than it was", id)
	}
	return c.fine(step, "valid until %s", until.Time().UTC().Format(time.RFC3339))
}

// ownKeys checks that whoever answers under our name publishes our key.
func (c *check) ownKeys(ctx context.Context) bool {
	const step = "keys"
	key := c.o.key
	raw, err := c.o.ServerKeys(ctx, c.name, true)
	if err != nil {
		return c.fail(step, err)
	}
	published, err := keyring.Published(raw, c.name)
	if err != nil {
		return c.fail(step, err)
	}
	if !published[key.ID].Equal(key.Public()) {
		return c.fail(step, fmt.Errorf("who answers for %s does not publish the key %s of the file: is it another server, or has it not been restarted since the key was rotated?", c.name, key.ID))
	}
	return c.fine(step, "it publishes our key %s", key.ID)
}

// signature asks for an alias that nobody has: a server that answers "not found" has verified our signature before.
func (c *check) signature(ctx context.Context) bool {
	const step = "our signature"
	err := c.o.Do(ctx, client.Request{
		Operation: "queryRoomDirectory", Method: http.MethodGet, Destination: c.name, Urgent: true,
		Path:  []string{"_matrix", "federation", "v1", "query", "directory"},
		Query: url.Values{"room_alias": {"#hanok-federation-check:" + string(c.name)}},
	}, nil)
	var answer *client.Error
	verified := errors.As(err, &answer) && answer.Peer != nil && answer.Peer.Code != "M_UNRECOGNIZED" &&
		(answer.Status == http.StatusNotFound || answer.Status == http.StatusBadRequest)
	if err != nil && !verified {
		return c.fail(step, err)
	}
	return c.fine(step, "it knows our keys, so it can reach us too")
}
