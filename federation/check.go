package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/federation/keyring"
	"hanok/matrix"
)

// Finding is one step of a check, for people.
type Finding struct {
	Step   string
	Detail string
	Err    error // nil: the step went well
}

// Hint says what to do about a failure; "" if nothing better is known than the failure itself.
func (f Finding) Hint() string {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		plain    tls.RecordHeaderError
		dns      *net.DNSError
		timeout  net.Error
		refusal  *client.Error
	)
	switch {
	case f.Err == nil:
		return ""
	case errors.Is(f.Err, discovery.ErrPrivateAddress):
		return "In a closed network, set federation.allow_private_addresses. Elsewhere the name should lead to a public address."
	case errors.As(f.Err, &unknown):
		return "Nobody that this machine trusts has issued the certificate. Behind a proxy, serve the whole chain; for an authority of your own, set federation.trusted_ca_files."
	case errors.As(f.Err, &hostname):
		return "The certificate must be valid for the name that discovery ends with, not for that of the machine."
	case errors.As(f.Err, &invalid) && invalid.Reason == x509.Expired:
		return "The certificate must be renewed, or the clock of this machine is wrong."
	case errors.As(f.Err, &plain):
		return "What answers there does not speak TLS: set tls_certificate for the listener, or let a reverse proxy do it."
	case errors.As(f.Err, &dns):
		return "The name has no address: look at the DNS records, and at the resolver of this machine."
	case errors.Is(f.Err, syscall.ECONNREFUSED):
		return "Nothing listens there: look at the port in .well-known/matrix/server or the SRV record; without either it is 8448."
	case errors.As(f.Err, &timeout) && timeout.Timeout():
		return "Nothing answers: a firewall may be in the way, there or here."
	case errors.As(f.Err, &refusal) && refusal.Status == http.StatusUnauthorized:
		return "It cannot verify what we sign: can others reach this server? Try 'hanok federation check' without a name."
	case errors.As(f.Err, &refusal) && refusal.Status != 0 && refusal.Peer == nil:
		return "Something answers that is no homeserver: look at the reverse proxy, which must pass on /_matrix/federation and /_matrix/key."
	}
	return ""
}

// Check goes through everything that federation with a server needs, in order, and
// yields a finding per step; it stops at the first step without which the next make no sense. The last step
// has the other server verify our signature, for which it must reach us.
func (o *Outbound) Check(ctx context.Context, name matrix.ServerName) func(yield func(Finding) bool) {
	if name == o.name {
		return o.checkSelf(ctx)
	}
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

// checkSelf goes the way that other servers go to reach this one, by its public name; it has to run.
func (o *Outbound) checkSelf(ctx context.Context) func(yield func(Finding) bool) {
	name := o.name
	return func(yield func(Finding) bool) {
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
		yield(Finding{"keys", "it publishes our key " + string(o.key.ID), o.ownKeys(ctx)})
	}
}

// ownKeys checks that whoever answers under our name publishes our key.
func (o *Outbound) ownKeys(ctx context.Context) error {
	raw, err := o.ServerKeys(ctx, o.name, true)
	if err != nil {
		return err
	}
	published, err := keyring.Published(raw, o.name)
	if err != nil {
		return err
	}
	if !published[o.key.ID].Equal(o.key.Public()) {
		return fmt.Errorf("who answers for %s does not publish the key %s of the file: is it another server, or has it not been restarted since the key was rotated?", o.name, o.key.ID)
	}
	return nil
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
