package discovery

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"time"
)

// Everywhere are the address ranges to allow so that private networks may be dialled.
func Everywhere() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
}

// transport makes plain requests over the guarded dialler.
func (r *Resolver) transport() *http.Transport {
	return &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			return r.opts.Dial(ctx, network, addr)
		},
		TLSClientConfig:        r.tlsConfig(),
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// wellKnownClient is a plain HTTPS client that follows few redirects.
func (r *Resolver) wellKnownClient() *http.Client {
	t := r.transport()
	t.ResponseHeaderTimeout = wellKnownTimeout
	t.DisableKeepAlives = true // one file a day per host
	return &http.Client{
		Transport: t,
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > wellKnownMaxRedirects {
				return errors.New("too many redirects")
			}
			if req.URL.Scheme != "https" {
				return errors.New("redirect to something other than https")
			}
			return nil
		},
	}
}

// HTTPClient is for plain HTTPS requests to addresses that other servers name: the same
// certificate authorities and the same care about private networks.
func (r *Resolver) HTTPClient() *http.Client { return r.http }

// PooledClient is for many requests to a few hosts, of which each gets up to some connections that are kept open for a while. It
// follows no redirects.
func (r *Resolver) PooledClient(perHost int) *http.Client {
	t := r.transport()
	t.ForceAttemptHTTP2 = true
	t.MaxIdleConnsPerHost, t.MaxConnsPerHost, t.MaxIdleConns = perHost, perHost, 4*perHost
	t.IdleConnTimeout = idleTimeout
	return &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// idleTimeout is shorter than that of common web servers, so that hardly any request meets a connection that is being closed.
const idleTimeout = 50 * time.Second
