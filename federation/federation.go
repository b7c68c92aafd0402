// Package federation is the server-server API: what this server asks of others,
// what it sends them, and what it answers them.
//
// Outbound is the part that rooms, users and media stand on; Server, made from
// them, is the part that stands on them. The packages below are, in the
// direction of imports: xmatrix (request authentication), discovery (names to
// connections), peers (whom to talk to, back-off), client (requests), keyring
// (keys and signatures), queue (the durable outbox) and server (inbound endpoints).
package federation

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/federation/keyring"
	"hanok/federation/peers"
	"hanok/federation/queue"
	"hanok/federation/server"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/signing"
	"hanok/media"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Options say who this server is and how it reaches others.
type Options struct {
	ServerName matrix.ServerName
	Key        signing.Key
	DB         *storage.DB
	Version    string // of this software

	AllowPrivateAddresses bool     // dial loopback and private networks too
	TrustedCAFiles        []string // PEM files with certificate authorities, beside the system's
	Notaries              []matrix.ServerName
	AllowServers          []string // globs; not empty: only these
	DenyServers           []string // globs

	// Observe is told of every finished outbound request; nil for none.
	Observe func(operation string, class peers.Class, status int, elapsed time.Duration)
	// Delivered is told of every transaction that was answered for; nil for none.
	Delivered func(d queue.Delivery)
	Log       zerolog.Logger

	// Roots, DNS and Dial replace the system's, in tests.
	Roots *x509.CertPool
	DNS   *net.Resolver
	Dial  func(ctx context.Context, network, address string) (net.Conn, error)
	// MaxSilent is how many connections to servers that do not answer may be waited for (see queue.Options).
	MaxSilent int
	// Transport, in tests, takes the requests to other servers in place of connections, and Jitter replaces chance (see peers.Options).
	Transport http.RoundTripper
	Jitter    func(server matrix.ServerName, wait time.Duration) time.Duration
}

// Outbound talks to other servers.
type Outbound struct {
	*client.Client
	Resolver *discovery.Resolver
	Keys     *keyring.Ring
	Peers    *peers.Peers
	Queue    *queue.Queue
	name     matrix.ServerName
	key      signing.Key
}

// The parts of the server that need others declare what they need.
var (
	_ rooms.Remote   = (*Outbound)(nil)
	_ users.Remote   = (*Outbound)(nil)
	_ media.Remote   = (*Outbound)(nil)
	_ users.Outbox   = (*queue.Queue)(nil)
	_ rooms.Listener = (*queue.Queue)(nil)
	_ queue.Rooms    = (*rooms.Engine)(nil)
	_ server.Rooms   = (*rooms.Engine)(nil)
	_ server.Outbox  = (*queue.Queue)(nil)
)

// NewOutbound makes the outbound half. Nothing is sent before Queue.Run.
func NewOutbound(ctx context.Context, o Options) (*Outbound, error) {
	roots, err := CertPool(o.TrustedCAFiles)
	if err != nil {
		return nil, err
	}
	if o.Roots != nil {
		roots = o.Roots
	}
	d := discovery.Options{Roots: roots, DNS: o.DNS, Dial: o.Dial, Agent: client.Agent(o.Version)}
	if o.AllowPrivateAddresses {
		d.AllowPrivate = discovery.Everywhere()
	}
	resolver := discovery.New(d)
	known, err := peers.New(ctx, peers.Options{DB: o.DB, Allow: o.AllowServers, Deny: o.DenyServers, Jitter: o.Jitter, Log: o.Log})
	if err != nil {
		return nil, fmt.Errorf("federation: %w", err)
	}
	old, err := keyring.OldKeys(ctx, o.DB, o.ServerName, o.Key, matrix.TimestampOf(time.Now()))
	if err != nil {
		return nil, fmt.Errorf("federation: %w", err)
	}
	c := client.New(client.Options{
		ServerName: o.ServerName, Key: o.Key, Resolver: resolver, Peers: known, Version: o.Version, Log: o.Log, Observe: o.Observe, Transport: o.Transport,
	})
	return &Outbound{
		name:     o.ServerName,
		key:      o.Key,
		Client:   c,
		Resolver: resolver,
		Peers:    known,
		Keys: keyring.New(keyring.Options{
			ServerName: o.ServerName, Key: o.Key, OldKeys: old, DB: o.DB, Fetch: c, Notaries: o.Notaries, Log: o.Log,
		}),
		Queue: queue.New(queue.Options{ServerName: o.ServerName, DB: o.DB, Sender: c, Peers: known, Delivered: o.Delivered, MaxSilent: o.MaxSilent, Log: o.Log}),
	}, nil
}

// CertPool is the system's certificate authorities and those of the files; nil, which means the former, if there are no files.
func CertPool(files []string) (*x509.CertPool, error) {
	if len(files) == 0 {
		return nil, nil
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool() // a machine without any: only the files count
	}
	for _, f := range files {
		pem, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("federation: certificate authority: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("federation: %s holds no PEM certificate", f)
		}
	}
	return pool, nil
}

// Verify checks the signatures that events must carry, fetching keys as needed.
func (o *Outbound) Verify(ctx context.Context, events []*event.Event) []error {
	return o.Keys.Verify(ctx, events)
}
