// Package discovery finds out where a server name lives and opens verified TLS
// connections to it.
//
// Resolve follows the steps of the specification and says which address to
// dial, which certificate to expect and which Host header to send; Dial does
// the dialling. Addresses are checked after name resolution, at the moment of
// the connection, so no name, redirect or SRV record leads into a private
// network unless the operator allows it.
// spec: server-server-api#resolving-server-names
package discovery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"hanok/internal/recent"
	"hanok/matrix"
)

// DefaultPort is where a server listens when nothing else is said.
const DefaultPort = 8448

// Options say how to reach other servers.
type Options struct {
	// Roots are the certificate authorities to trust; nil means those of the system.
	Roots *x509.CertPool
	// AllowPrivate lists address ranges that may be dialled although they are private.
	AllowPrivate []netip.Prefix
	// DNS answers SRV and address look-ups; nil is the system's resolver.
	DNS *net.Resolver
	// Dial replaces the dialler, in tests only: it bypasses the check of private addresses.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Agent is the User-Agent header of plain requests: web servers turn away what does not say what it is.
	Agent string
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Server is the outcome of discovery.
type Server struct {
	// Host is the Host header of requests.
	Host string
	// Certificate is the hostname or IP address that the certificate must be valid for.
	Certificate string
	// Endpoints are tried in order; none means that DNS says there is no such service.
	Endpoints []Endpoint
	// Via says which step of the specification led here, for people.
	Via string
	// WellKnown is what the .well-known file of the name says; the zero value if it was not asked for.
	WellKnown WellKnown
	// SRVFailures says which look-ups of SRV records failed, rather than find none.
	SRVFailures []string
}

// WellKnown is the outcome of looking for a .well-known file.
type WellKnown struct {
	Server  matrix.ServerName // that is delegated to; "" for none
	Problem string            // why the file could not be used, "" if it could
	Absent  bool              // there is decidedly no file, which is no problem
}

// Endpoint is a place to dial.
type Endpoint struct {
	Host string // hostname or IP literal, without brackets
	Port int
}

func (e Endpoint) String() string { return net.JoinHostPort(e.Host, strconv.Itoa(e.Port)) }

// Resolver resolves server names and dials them.
type Resolver struct {
	opts    Options
	http    *http.Client
	cache   *recent.Map[string, wellKnownEntry] // by host
	flights singleflight.Group
	open    atomic.Int64 // connections made by Dial that are not closed
}

// Timeouts of the single steps of a connection.
const (
	dialTimeout      = 10 * time.Second
	handshakeTimeout = 10 * time.Second
	srvTimeout       = 5 * time.Second
)

// New makes a resolver.
func New(o Options) *Resolver {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.DNS == nil {
		o.DNS = net.DefaultResolver
	}
	if o.Dial == nil {
		o.Dial = guardedDialer(o.DNS, o.AllowPrivate).DialContext
	}
	r := &Resolver{opts: o, cache: recent.NewMap[string, wellKnownEntry](wellKnownCacheSize)}
	r.http = r.wellKnownClient()
	return r
}

// Resolve finds where a server lives.
func (r *Resolver) Resolve(ctx context.Context, name matrix.ServerName) (Server, error) {
	delegated, found, err := r.delegation(ctx, name)
	if err != nil {
		return Server{}, err
	}
	s, err := r.Locate(ctx, delegated)
	s.WellKnown = found
	if string(delegated) != string(name) {
		s.Via = ".well-known, then " + s.Via
	}
	return s, err
}

// Delegate is the first half of Resolve, which is all that a request needs that goes over a connection which is there: the Host header of
// requests to a server. Servers with the same one live at the same place, behind the same certificate.
func (r *Resolver) Delegate(ctx context.Context, name matrix.ServerName) (host matrix.ServerName, err error) {
	host, _, err = r.delegation(ctx, name)
	return host, err
}

func (r *Resolver) delegation(ctx context.Context, name matrix.ServerName) (matrix.ServerName, WellKnown, error) {
	host, port, err := split(string(name))
	if err != nil {
		return "", WellKnown{}, err
	}
	// Steps 1 and 2.
	if _, ok := direct(string(name), host, port); ok {
		return name, WellKnown{}, nil
	}
	// Step 3.
	found := r.wellKnown(ctx, host)
	if err := ctx.Err(); err != nil {
		return "", found, err
	}
	if found.Server == "" {
		return name, found, nil
	}
	return found.Server, found, nil
}

// Locate is the second half of Resolve: where the server lives to which Delegate led.
func (r *Resolver) Locate(ctx context.Context, delegated matrix.ServerName) (Server, error) {
	host, port, err := split(string(delegated))
	if err != nil {
		return Server{}, err
	}
	// Steps 3.1 and 3.2 are 1 and 2 for the delegated name, 3.3 to 3.5 are 4 to 6.
	s, ok := direct(string(delegated), host, port)
	if !ok {
		s = r.bySRV(ctx, host)
	}
	return s, ctx.Err()
}

// direct covers the names that need no look-up besides an address: IP literals and explicit ports.
func direct(name, host string, port int) (Server, bool) {
	_, err := netip.ParseAddr(host)
	ip := err == nil
	if !ip && port == 0 {
		return Server{}, false
	}
	via := "explicit port"
	if ip {
		via = "IP literal"
	}
	if port == 0 {
		port = DefaultPort
	}
	return Server{Host: name, Certificate: host, Endpoints: []Endpoint{{host, port}}, Via: via}, true
}

// services are the names of SRV records, the registered one first.
var services = [...]string{"matrix-fed", "matrix"}

// bySRV is the end of the line: SRV records of the registered, then of the old
// service name, then port 8448. A failing look-up counts as no record, because the
// address may well be served by a resolver that knows nothing of SRV.
func (r *Resolver) bySRV(ctx context.Context, host string) Server {
	type answer struct {
		records []*net.SRV
		err     error
	}
	// Most servers have neither record, so both are asked for at once.
	var answers [len(services)]chan answer
	lookup, cancel := context.WithTimeout(ctx, srvTimeout)
	defer cancel()
	for i, service := range services {
		answers[i] = make(chan answer, 1)
		go func() {
			_, records, err := r.opts.DNS.LookupSRV(lookup, service, "tcp", host)
			answers[i] <- answer{records, err}
		}()
	}
	var failures []string
	for i, service := range services {
		found := <-answers[i]
		var dns *net.DNSError
		if found.err != nil && !(errors.As(found.err, &dns) && dns.IsNotFound) {
			failures = append(failures, fmt.Sprintf("_%s._tcp.%s: %v", service, host, found.err))
		}
		if len(found.records) == 0 { // besides an error there may be records: the good ones among bad ones
			continue
		}
		s := Server{Host: host, Certificate: host, Via: "SRV _" + service + "._tcp", SRVFailures: failures}
		for _, rec := range found.records {
			target := strings.TrimSuffix(rec.Target, ".")
			if target == "" || rec.Port == 0 {
				continue // RFC 2782: the service is decidedly not available at this domain
			}
			if len(s.Endpoints) < maxEndpoints {
				s.Endpoints = append(s.Endpoints, Endpoint{target, int(rec.Port)})
			}
		}
		return s
	}
	return Server{Host: host, Certificate: host, Endpoints: []Endpoint{{host, DefaultPort}}, Via: "port 8448", SRVFailures: failures}
}

// maxEndpoints bounds how many targets of an SRV record are tried.
const maxEndpoints = 8

// split takes a server name apart; port 0 means none. What a .well-known file
// says comes through here too, so the grammar is checked.
func split(name string) (host string, port int, err error) {
	if _, err := matrix.ParseServerName(name); err != nil {
		return "", 0, fmt.Errorf("server name: %w", err)
	}
	host = name
	if i := strings.LastIndexByte(name, ':'); i >= 0 && !strings.HasSuffix(name, "]") {
		host = name[:i]
		if port, err = strconv.Atoi(name[i+1:]); err != nil || port < 1 || port > 65535 {
			return "", 0, fmt.Errorf("server name: port %q is out of range", name[i+1:])
		}
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return host, port, nil
}

// ErrUnreachable wraps the failure to connect to any endpoint of a server.
var ErrUnreachable = errors.New("server cannot be reached")

// Dial connects to a server and verifies its certificate.
func (r *Resolver) Dial(ctx context.Context, s Server) (*tls.Conn, error) {
	if len(s.Endpoints) == 0 {
		return nil, fmt.Errorf("%w: its SRV record says that there is no such service", ErrUnreachable)
	}
	var failures []error
	for _, e := range s.Endpoints {
		conn, err := r.dialEndpoint(ctx, s, e)
		if err == nil {
			return conn, nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", e, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrUnreachable, errors.Join(failures...))
}

// Addresses are the addresses of a host, which may be one itself.
func (r *Resolver) Addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	found, err := r.opts.DNS.LookupNetIP(ctx, "ip", host)
	for i := range found {
		found[i] = found[i].Unmap()
	}
	return found, err
}

func (r *Resolver) dialEndpoint(ctx context.Context, s Server, e Endpoint) (*tls.Conn, error) {
	dialCtx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	raw, err := r.opts.Dial(dialCtx, "tcp", e.String())
	if err != nil {
		return nil, err
	}
	r.open.Add(1)
	raw = &countedConn{Conn: raw, open: &r.open}
	config := r.tlsConfig()
	// crypto/tls sends no SNI for an IP address and verifies the certificate against it.
	config.ServerName = s.Certificate
	config.NextProtos = []string{"h2", "http/1.1"}
	conn := tls.Client(raw, config)
	shakeCtx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(shakeCtx); err != nil {
		_ = raw.Close() // the handshake's error is the one that matters
		return nil, err
	}
	return conn, nil
}

// Open is how many connections made by Dial are open now.
func (r *Resolver) Open() int { return int(r.open.Load()) }

// countedConn is a connection that is counted until it is closed.
type countedConn struct {
	net.Conn
	open *atomic.Int64
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

func (r *Resolver) tlsConfig() *tls.Config {
	return &tls.Config{RootCAs: r.opts.Roots, MinVersion: tls.VersionTLS12}
}
