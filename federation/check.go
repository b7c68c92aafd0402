package federation

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/matrix"
)

// Finding is one step of a check, for people.
type Finding struct {
	Step   string
	Detail string
	Err    error // nil: the step went well
}

// Check goes through everything that federation with a server needs, in order, and
// yields a finding per step; it stops at the first step without which the next make no sense. The last step
// has the other server verify our signature, for which it must reach us.
func (o *Outbound) Check(ctx context.Context, name matrix.ServerName) func(yield func(Finding) bool) {
	return func(yield func(Finding) bool) {
		if !yield(Finding{Step: "lists", Detail: "the configuration lets us talk to it", Err: o.Peers.Check(name)}) {
			return
		}
		if o.Peers.Check(name) != nil {
			return
		}
		if since, failing := o.Peers.FailingSince(name); failing {
			at, _ := o.Peers.RetryAt(name)
			if !yield(Finding{Step: "back-off", Detail: fmt.Sprintf("it has not answered since %s; next attempt at %s", since.UTC().Format(time.RFC3339), at.UTC().Format(time.RFC3339))}) {
				return
			}
		}
		where, err := o.Resolver.Resolve(ctx, name)
		if !yield(Finding{"discovery", describe(where), err}) || err != nil {
			return
		}
		detail, err := o.handshake(ctx, where)
		if !yield(Finding{"connection", detail, err}) || err != nil {
			return
		}
		software, version, err := o.Version(ctx, name)
		if !yield(Finding{"software", software + " " + version, err}) || err != nil {
			return
		}
		until, err := o.Keys.ValidUntil(ctx, name)
		if !yield(Finding{"keys", "valid until " + until.Time().UTC().Format(time.RFC3339), err}) || err != nil {
			return
		}
		yield(Finding{"our signature", "it knows our keys, so it can reach us too", o.probe(ctx, name)})
	}
}

func describe(s discovery.Server) string {
	endpoints := make([]string, len(s.Endpoints))
	for i, e := range s.Endpoints {
		endpoints[i] = e.String()
	}
	if len(endpoints) == 0 {
		return s.Via + ": DNS says that there is no such service"
	}
	return fmt.Sprintf("%s: %s, with a certificate for %s", s.Via, strings.Join(endpoints, ", "), s.Certificate)
}

func (o *Outbound) handshake(ctx context.Context, s discovery.Server) (string, error) {
	conn, err := o.Resolver.Dial(ctx, s)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	state := conn.ConnectionState()
	expires := "no certificate"
	if len(state.PeerCertificates) > 0 {
		expires = "certificate until " + state.PeerCertificates[0].NotAfter.UTC().Format(time.DateOnly)
	}
	return fmt.Sprintf("%s to %s, %s", tls.VersionName(state.Version), conn.RemoteAddr(), expires), nil
}

// probe asks for an alias that nobody has: a server that answers "not found" has verified our signature before.
func (o *Outbound) probe(ctx context.Context, name matrix.ServerName) error {
	err := o.Do(ctx, client.Request{
		Operation: "queryRoomDirectory", Method: http.MethodGet, Destination: name, Urgent: true,
		Path:  []string{"_matrix", "federation", "v1", "query", "directory"},
		Query: url.Values{"room_alias": {"#hanok-federation-check:" + string(name)}},
	}, nil)
	var refusal *client.Error
	if errors.As(err, &refusal) && refusal.Status == http.StatusNotFound {
		return nil
	}
	return err
}
