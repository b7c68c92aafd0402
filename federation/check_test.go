package federation_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"hanok/federation"
	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/federation/fedtest"
	"hanok/federation/keyring"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
)

// Whoever reads that a check failed learns what to do, where that can be told.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		err  error
		hint string
	}{
		{nil, ""},
		{fmt.Errorf("strange"), ""},
		{discovery.ErrPrivateAddress, "federation.allow_private_addresses"},
		{x509.UnknownAuthorityError{}, "federation.trusted_ca_files"},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "a"}, "the name that discovery ends with"},
		{x509.CertificateInvalidError{Reason: x509.Expired}, "renewed"},
		{tls.RecordHeaderError{}, "does not speak TLS"},
		{&net.DNSError{IsNotFound: true}, "has no address"},
		{&net.DNSError{IsTimeout: true}, "resolver"},
		{&net.OpError{Op: "dial", Err: syscall.ENETUNREACH}, "routes"},
		{&net.OpError{Op: "remote error", Err: fmt.Errorf("tls: unrecognized name")}, "no certificate for the name"},
		{keyring.ErrOtherServer, "Another server"},
		{keyring.ErrNotSigned, "another key"},
		{keyring.ErrNotValid, "out of date"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "Nothing listens there"},
		{&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}, "firewall"},
		{&client.Error{Status: 401, Peer: matrix.Errorf(401, "M_UNAUTHORIZED", "no")}, "hanok federation check"},
		{&client.Error{Status: 502}, "reverse proxy"},
		{&client.Error{Status: 403, Peer: matrix.Forbidden("no")}, "does not want"},
		{&client.Error{Status: 429, Peer: matrix.Errorf(429, "M_LIMIT_EXCEEDED", "no")}, "later"},
		{&client.Error{Status: 400, Peer: matrix.BadJSON("no")}, ""},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("%w: %w", discovery.ErrUnreachable, err)
		}
		hint := federation.Finding{Err: err}.Hint()
		if !strings.Contains(hint, c.hint) || c.hint == "" && hint != "" {
			t.Errorf("%v: %q", c.err, hint)
		}
	}
}

// peer is a server that is as it should be, unless a test changes it.
type peer struct {
	name     matrix.ServerName
	key      signing.Key
	clock    time.Duration // how far it is off
	document func() []byte // its keys
	answer   func(w http.ResponseWriter)
}

func (p *peer) keys(server matrix.ServerName, until time.Time) []byte {
	doc, err := canonicaljson.Marshal(map[string]any{
		"server_name": server, "valid_until_ts": until.UnixMilli(), "old_verify_keys": map[string]any{},
		"verify_keys": map[matrix.KeyID]any{p.key.ID: map[string]any{"key": signing.EncodeBase64(p.key.Public())}},
	})
	if err != nil {
		panic(err)
	}
	signed, err := p.key.Sign(string(server), doc)
	if err != nil {
		panic(err)
	}
	return signed
}

func (p *peer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Date", time.Now().Add(p.clock).UTC().Format(http.TimeFormat))
	switch r.URL.Path {
	case "/_matrix/federation/v1/version":
		fmt.Fprint(w, `{"server":{"name":"Peer","version":"1"}}`)
	case "/_matrix/key/v2/server":
		_, _ = w.Write(p.document())
	case "/_matrix/federation/v1/query/directory":
		p.answer(w)
	default:
		http.NotFound(w, r)
	}
}

// Whatever is wrong with a server: the check says which step, and what to do.
func TestCheckOfBrokenServers(t *testing.T) {
	const name = "b.example"
	matrixError := func(status int, code string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"errcode":%q,"error":"x"}`, code)
		}
	}
	wellKnown := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, body)
		}
	}
	for what, c := range map[string]struct {
		spoil func(n *fedtest.Network, p *peer)
		step  string   // that fails, "" if none does
		says  []string // in what is found and the hints
	}{
		"nothing":  {says: []string{"there is none", "certificate until", "Peer 1", "it can reach us too"}},
		"no DNS":   {func(n *fedtest.Network, _ *peer) { n.Forget(name) }, "connection", []string{"no such host", "has no address"}},
		"the port": {func(n *fedtest.Network, _ *peer) { n.Unplug(name + ":8448") }, "connection", []string{"refused", "Nothing listens there"}},
		"the name on the certificate": {func(n *fedtest.Network, p *peer) { n.Serve(name+":8448", p, "www.b.example") }, "connection",
			[]string{"www.b.example", "the name that discovery ends with"}},
		"an old certificate": {func(n *fedtest.Network, p *peer) {
			n.ServeWith(name+":8448", p, n.CertificateUntil(time.Now().Add(-time.Hour), name))
		}, "connection", []string{"expired", "must be renewed"}},
		"a certificate that ends soon": {func(n *fedtest.Network, p *peer) {
			n.ServeWith(name+":8448", p, n.CertificateUntil(time.Now().Add(50*time.Hour), name))
		}, "", []string{"ends in 2 days", "renewed"}},
		"a self-made certificate": {func(n *fedtest.Network, p *peer) {
			n.ServeWith(name+":8448", p, fedtest.NewNetwork(t).Certificate(name))
		}, "connection", []string{"unknown authority", "federation.trusted_ca_files"}},
		"plain HTTP": {func(n *fedtest.Network, p *peer) {
			s := httptest.NewServer(p)
			t.Cleanup(s.Close)
			n.Route(name+":8448", s.Listener.Addr().String())
		}, "connection", []string{"does not look like a TLS handshake", "does not speak TLS"}},
		".well-known that is no JSON": {func(n *fedtest.Network, _ *peer) { n.Serve(name+":443", wellKnown(200, "<html>"), name) }, "", []string{"cannot be used", "It should be JSON like"}},
		".well-known with a URL": {func(n *fedtest.Network, _ *peer) {
			n.Serve(name+":443", wellKnown(200, `{"m.server":"https://b.example"}`), name)
		}, "", []string{"cannot be used: m.server \"https://b.example\""}},
		".well-known that fails": {func(n *fedtest.Network, _ *peer) { n.Serve(name+":443", wellKnown(500, ``), name) }, "", []string{"cannot be used: status 500"}},
		".well-known that leads astray": {func(n *fedtest.Network, _ *peer) {
			n.Serve(name+":443", wellKnown(200, `{"m.server":"gone.example:443"}`), name)
		}, "connection", []string{"it delegates to gone.example:443", "no such host"}},
		"an address of two": {func(n *fedtest.Network, p *peer) {
			n.Record(name + ". 60 IN A 192.0.2.1")
			n.Record(name + ". 60 IN AAAA 2001:db8::1")
			n.Serve("192.0.2.1:8448", p, name)
		}, "", []string{"to 192.0.2.1:8448", "[2001:db8::1]:8448: ", "Nothing listens there"}},
		"SRV": {func(n *fedtest.Network, _ *peer) { n.Record("_matrix-fed._tcp." + name + ". 60 IN SRV 0 0 0 .") }, "discovery", []string{"no such service"}},
		"another server": {func(n *fedtest.Network, p *peer) {
			p.document = func() []byte { return p.keys("c.example", time.Now().Add(time.Hour)) }
		}, "keys", []string{"c.example", "Another server answers there"}},
		"keys signed by another key": {func(n *fedtest.Network, p *peer) {
			doc := p.document()
			p.document = func() []byte { return canonicaljson.Set(doc, "valid_until_ts", []byte("9")) }
		}, "keys", []string{"not signed", "another key"}},
		"keys out of date": {func(n *fedtest.Network, p *peer) {
			p.document = func() []byte { return p.keys(name, time.Now().Add(-time.Hour)) }
		}, "keys", []string{"out of date"}},
		"the clock":           {func(_ *fedtest.Network, p *peer) { p.clock = -3 * time.Hour }, "", []string{"its clock is 3h0m", "behind that of this machine", "NTP"}},
		"a fast clock":        {func(_ *fedtest.Network, p *peer) { p.clock = 3 * time.Hour }, "", []string{"ahead of that of this machine"}},
		"a proxy":             {func(n *fedtest.Network, _ *peer) { n.Serve(name+":8448", wellKnown(502, "<html>"), name) }, "software", []string{"reverse proxy"}},
		"a web server":        {func(n *fedtest.Network, _ *peer) { n.Serve(name+":8448", wellKnown(200, "<html>"), name) }, "software", []string{"getVersion"}},
		"it cannot reach us":  {func(_ *fedtest.Network, p *peer) { p.answer = matrixError(401, "M_UNAUTHORIZED") }, "our signature", []string{"can others reach this server"}},
		"it refuses us":       {func(_ *fedtest.Network, p *peer) { p.answer = matrixError(403, "M_FORBIDDEN") }, "our signature", []string{"does not want to talk"}},
		"a proxy for a part":  {func(_ *fedtest.Network, p *peer) { p.answer = func(w http.ResponseWriter) { w.WriteHeader(404) } }, "our signature", []string{"reverse proxy"}},
		"it wants to be left": {func(_ *fedtest.Network, p *peer) { p.answer = matrixError(429, "M_LIMIT_EXCEEDED") }, "our signature", []string{"try again later"}},
	} {
		t.Run(what, func(t *testing.T) {
			n := fedtest.NewNetwork(t)
			a := newNode(t, n, "a.example")
			key, err := signing.Generate()
			if err != nil {
				t.Fatal(err)
			}
			p := &peer{name: name, key: key, answer: matrixError(404, "M_NOT_FOUND")}
			p.document = func() []byte { return p.keys(name, time.Now().Add(time.Hour)) }
			n.Serve(name+":8448", p, name)
			if c.spoil != nil {
				c.spoil(n, p)
			}
			failed, said := "", ""
			for f := range a.out.Check(a.ctx(), name) {
				if f.Err != nil {
					failed = f.Step
				}
				said += fmt.Sprintf("%s: %s %v\n\t%s\n", f.Step, f.Detail, f.Err, f.Hint())
			}
			if failed != c.step {
				t.Errorf("%q fails, not %q", failed, c.step)
			}
			for _, words := range c.says {
				if !strings.Contains(said, words) {
					t.Errorf("nothing is said of %q", words)
				}
			}
			if t.Failed() {
				t.Log(said)
			}
		})
	}
}

// A server that was set up anew under its old name has the same key ID and another key.
func TestCheckOfAReplacedKey(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a := newNode(t, n, "a.example")
	first, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	second, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	second.ID = first.ID
	said := ""
	for _, key := range []signing.Key{first, second} {
		p := &peer{key: key, answer: func(w http.ResponseWriter) { w.WriteHeader(500) }}
		p.document = func() []byte { return p.keys("b.example", time.Now().Add(time.Hour)) }
		n.Serve("b.example:8448", p, "b.example")
		a.out.Close() // no connection to the one before
		said = ""
		for f := range a.out.Check(a.ctx(), "b.example") {
			said += f.Detail + "\n"
		}
	}
	if want := "the key " + string(first.ID) + " is another one"; !strings.Contains(said, want) {
		t.Errorf("not found: %s\n%s", want, said)
	}
}
