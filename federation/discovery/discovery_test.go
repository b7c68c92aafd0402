package discovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/federation/fedtest"
	"hanok/matrix"
)

func newResolver(n *fedtest.Network, clock func() time.Time) *Resolver {
	return New(Options{Roots: n.Roots, DNS: n.DNS, Dial: n.Dial, Now: clock})
}

// wellKnown serves a body at the well-known path of a host.
func wellKnown(n *fedtest.Network, host, body string) {
	n.Serve(host+":443", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/.well-known/matrix/server" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, body)
	}), host)
}

func TestSteps(t *testing.T) {
	n := fedtest.NewNetwork(t)
	wellKnown(n, "ip.example", `{"m.server":"192.0.2.9"}`)
	wellKnown(n, "ipport.example", `{"m.server":"[2001:db8::9]:99"}`)
	wellKnown(n, "port.example", `{"m.server":"fed.example:4567"}`)
	wellKnown(n, "srv.example", `{"m.server":"deleg.example"}`)
	n.Record("_matrix-fed._tcp.deleg.example. 60 IN SRV 10 0 8450 b.example.")
	n.Record("_matrix-fed._tcp.deleg.example. 60 IN SRV 5 0 8449 a.example.")
	n.Record("_matrix._tcp.deleg.example. 60 IN SRV 5 0 1 never.example.")
	wellKnown(n, "oldsrv.example", `{"m.server":"olddeleg.example"}`)
	n.Record("_matrix._tcp.olddeleg.example. 60 IN SRV 5 0 8449 a.example.")
	wellKnown(n, "plain.example", `{"m.server":"plaindeleg.example"}`)
	n.Record("_matrix-fed._tcp.nowk.example. 60 IN SRV 5 0 8449 a.example.")
	n.Record("_matrix._tcp.nowkold.example. 60 IN SRV 5 0 8449 a.example.")
	n.Record("_matrix-fed._tcp.gone.example. 60 IN SRV 0 0 0 .")
	n.Record("_matrix-fed._tcp.somebad.example. 60 IN SRV 5 0 8449 a.example.")
	n.Record("_matrix-fed._tcp.somebad.example. 60 IN SRV 1 0 8449 not\\032a\\032name.example.")
	for _, bad := range []string{`no json`, `{}`, `{"m.server":1}`, `{"m.server":"a b"}`, `{"m.server":"x:0"}`, `{"m.server":"x:99999"}`, `{"m.server":"a","m.server":"b"}`} {
		wellKnown(n, fmt.Sprintf("bad%d.example", len(bad)), bad)
	}

	r := newResolver(n, nil)
	for name, want := range map[matrix.ServerName]Server{
		"192.0.2.1":           {Host: "192.0.2.1", Certificate: "192.0.2.1", Endpoints: []Endpoint{{"192.0.2.1", 8448}}},
		"192.0.2.1:80":        {Host: "192.0.2.1:80", Certificate: "192.0.2.1", Endpoints: []Endpoint{{"192.0.2.1", 80}}},
		"[2001:db8::1]":       {Host: "[2001:db8::1]", Certificate: "2001:db8::1", Endpoints: []Endpoint{{"2001:db8::1", 8448}}},
		"[2001:db8::1]:80":    {Host: "[2001:db8::1]:80", Certificate: "2001:db8::1", Endpoints: []Endpoint{{"2001:db8::1", 80}}},
		"explicit.example:80": {Host: "explicit.example:80", Certificate: "explicit.example", Endpoints: []Endpoint{{"explicit.example", 80}}},
		"ip.example":          {Host: "192.0.2.9", Certificate: "192.0.2.9", Endpoints: []Endpoint{{"192.0.2.9", 8448}}},
		"ipport.example":      {Host: "[2001:db8::9]:99", Certificate: "2001:db8::9", Endpoints: []Endpoint{{"2001:db8::9", 99}}},
		"port.example":        {Host: "fed.example:4567", Certificate: "fed.example", Endpoints: []Endpoint{{"fed.example", 4567}}},
		"srv.example":         {Host: "deleg.example", Certificate: "deleg.example", Endpoints: []Endpoint{{"a.example", 8449}, {"b.example", 8450}}},
		"oldsrv.example":      {Host: "olddeleg.example", Certificate: "olddeleg.example", Endpoints: []Endpoint{{"a.example", 8449}}},
		"plain.example":       {Host: "plaindeleg.example", Certificate: "plaindeleg.example", Endpoints: []Endpoint{{"plaindeleg.example", 8448}}},
		"nowk.example":        {Host: "nowk.example", Certificate: "nowk.example", Endpoints: []Endpoint{{"a.example", 8449}}},
		"nowkold.example":     {Host: "nowkold.example", Certificate: "nowkold.example", Endpoints: []Endpoint{{"a.example", 8449}}},
		"gone.example":        {Host: "gone.example", Certificate: "gone.example"},
		"somebad.example":     {Host: "somebad.example", Certificate: "somebad.example", Endpoints: []Endpoint{{"a.example", 8449}}, SRVFailures: []string{"bad"}},
		"nothing.example":     {Host: "nothing.example", Certificate: "nothing.example", Endpoints: []Endpoint{{"nothing.example", 8448}}},
		"bad7.example":        {Host: "bad7.example", Certificate: "bad7.example", Endpoints: []Endpoint{{"bad7.example", 8448}}},
		"bad2.example":        {Host: "bad2.example", Certificate: "bad2.example", Endpoints: []Endpoint{{"bad2.example", 8448}}},
		"bad14.example":       {Host: "bad14.example", Certificate: "bad14.example", Endpoints: []Endpoint{{"bad14.example", 8448}}},
		"bad18.example":       {Host: "bad18.example", Certificate: "bad18.example", Endpoints: []Endpoint{{"bad18.example", 8448}}},
		"bad22.example":       {Host: "bad22.example", Certificate: "bad22.example", Endpoints: []Endpoint{{"bad22.example", 8448}}},
		"bad31.example":       {Host: "bad31.example", Certificate: "bad31.example", Endpoints: []Endpoint{{"bad31.example", 8448}}},
	} {
		got, err := r.Resolve(t.Context(), name)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got.Via, got.WellKnown = "", WellKnown{}
		if len(got.SRVFailures) > 0 {
			got.SRVFailures = []string{"bad"}
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if _, err := r.Dial(t.Context(), Server{}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("a service that SRV denies: %v", err)
	}
}

func TestWellKnownRedirects(t *testing.T) {
	n := fedtest.NewNetwork(t)
	wellKnown(n, "target.example", `{"m.server":"fed.example:1"}`)
	redirect := func(host, to string) {
		n.Serve(host+":443", http.RedirectHandler(to, http.StatusFound), host)
	}
	redirect("once.example", "https://target.example/.well-known/matrix/server")
	redirect("loop.example", "https://loop.example/.well-known/matrix/server")
	redirect("plain.example", "http://target.example/.well-known/matrix/server")
	r := newResolver(n, nil)
	for name, want := range map[matrix.ServerName]string{
		"once.example": "fed.example:1", "loop.example": "loop.example", "plain.example": "plain.example",
	} {
		got, err := r.Resolve(t.Context(), name)
		if err != nil || got.Host != want {
			t.Errorf("%s: %v %v, want %s", name, got, err, want)
		}
	}
	loops := 0
	for _, a := range n.Dialed() {
		if a == "loop.example:443" {
			loops++
		}
	}
	if loops != wellKnownMaxRedirects+1 {
		t.Errorf("the loop was followed %d times", loops)
	}
}

// What became of the file is told to people.
func TestWhatWellKnownSays(t *testing.T) {
	n := fedtest.NewNetwork(t)
	wellKnown(n, "good.example", `{"m.server":"fed.example:1"}`)
	wellKnown(n, "junk.example", `<html>`)
	wellKnown(n, "name.example", `{"m.server":"https://fed.example"}`)
	n.Serve("none.example:443", http.NotFoundHandler(), "none.example")
	n.Serve("down.example:443", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }), "down.example")
	n.Serve("cert.example:443", http.NotFoundHandler(), "other.example")
	r := newResolver(n, nil)
	for name, want := range map[matrix.ServerName]WellKnown{
		"good.example":      {Server: "fed.example:1"},
		"junk.example":      {Problem: "json"},
		"name.example":      {Problem: `m.server "https://fed.example"`},
		"none.example":      {Problem: "status 404", Absent: true},
		"down.example":      {Problem: "status 503"},
		"cert.example":      {Problem: "certificate is valid for other.example"},
		"port.example:8448": {},
	} {
		s, err := r.Resolve(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		got := s.WellKnown
		if strings.Contains(got.Problem, want.Problem) {
			got.Problem = want.Problem
		}
		if got != want {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestHostileWellKnown(t *testing.T) {
	n := fedtest.NewNetwork(t)
	n.Serve("huge.example:443", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"m.server":"evil.example:1","x":"`)
		for {
			if _, err := io.WriteString(w, strings.Repeat("a", 1<<16)); err != nil {
				return
			}
		}
	}), "huge.example")
	n.Serve("cert.example:443", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, `{"m.server":"evil.example:1"}`)
	}), "another.example")
	r := newResolver(n, nil)
	for _, name := range []matrix.ServerName{"huge.example", "cert.example"} {
		if got, err := r.Resolve(t.Context(), name); err != nil || got.Host != string(name) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	// A caller that gives up is let go at once, although the server never answers.
	block := make(chan struct{})
	n.Serve("slow.example:443", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-block }), "slow.example")
	defer close(block)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Resolve(ctx, "slow.example"); !errors.Is(err, context.Canceled) {
		t.Errorf("slow.example: %v", err)
	}
}

func TestWellKnownCache(t *testing.T) {
	n := fedtest.NewNetwork(t)
	var hits, status atomic.Int64
	var body atomic.Value
	body.Store(`{"m.server":"one.example:1"}`)
	status.Store(200)
	n.Serve("a.example:443", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		if r.UserAgent() != "Hanok/test" {
			t.Errorf("asked by %q", r.UserAgent())
		}
		w.Header().Set("Cache-Control", "public, max-age=3600")
		w.WriteHeader(int(status.Load()))
		fmt.Fprint(w, body.Load())
	}), "a.example")
	now := time.Now()
	r := New(Options{Roots: n.Roots, DNS: n.DNS, Dial: n.Dial, Agent: "Hanok/test", Now: func() time.Time { return now }})
	expect := func(host string, wantHits int64) {
		t.Helper()
		got, err := r.Resolve(t.Context(), "a.example")
		if err != nil || got.Host != host || hits.Load() != wantHits {
			t.Fatalf("%v %v after %d requests, want %s after %d", got.Host, err, hits.Load(), host, wantHits)
		}
	}
	expect("one.example:1", 1)
	now = now.Add(59 * time.Minute)
	expect("one.example:1", 1)
	body.Store(`{"m.server":"two.example:1"}`)
	now = now.Add(2 * time.Minute)
	expect("two.example:1", 2)

	// A failure keeps what was good, and is itself remembered, longer each time.
	status.Store(500)
	now = now.Add(61 * time.Minute)
	expect("two.example:1", 3)
	now = now.Add(failureFirst - time.Second)
	expect("two.example:1", 3)
	now = now.Add(2 * time.Second)
	expect("two.example:1", 4)
	now = now.Add(failureFirst + time.Second)
	expect("two.example:1", 4)
	// But not for ever.
	now = now.Add(wellKnownMax)
	expect("a.example", 5)
}

func TestCacheLifetime(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		control, expires string
		want             time.Duration
	}{
		{"", "", wellKnownDefault},
		{"max-age=7200", "", 2 * time.Hour},
		{"public, Max-Age=7200", "", 2 * time.Hour},
		{"max-age=99999999", "", wellKnownMax},
		{"max-age=1", "", wellKnownMin},
		{"max-age=-5", "", wellKnownMin},
		{"max-age=junk", "", wellKnownDefault},
		{"no-store, max-age=7200", "", wellKnownMin},
		{"", now.Add(3 * time.Hour).Format(http.TimeFormat), 3 * time.Hour},
		{"max-age=7200", now.Add(3 * time.Hour).Format(http.TimeFormat), 2 * time.Hour},
		{"", "0", wellKnownMin},
	} {
		h := http.Header{}
		h.Set("Cache-Control", c.control)
		h.Set("Expires", c.expires)
		if got := cacheLifetime(h, now); got != c.want {
			t.Errorf("%q %q: %s, want %s", c.control, c.expires, got, c.want)
		}
	}
}

func TestPermittedAddresses(t *testing.T) {
	for _, good := range []string{"1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"} {
		if !permitted(netip.MustParseAddr(good), nil) {
			t.Errorf("%s is refused", good)
		}
	}
	for _, bad := range []string{
		"127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "0.1.2.3",
		"224.0.0.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1",
		"ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::", "2001:db8::1", "2001::1",
		"::7f00:1", "::10.0.0.1", "fec0::1", "3fff::1", "100::1", "100:0:0:1::1", "64:ff9b:1::7f00:1", "5f00::1", "2002:a00:1::",
	} {
		if permitted(netip.MustParseAddr(bad), nil) {
			t.Errorf("%s is let through", bad)
		}
	}
	if !permitted(netip.MustParseAddr("127.0.0.1"), []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}) {
		t.Error("an allowed range is refused")
	}
}

// The check must hold for the address a name resolves to, not for the name.
func TestPrivateAddressBehindAName(t *testing.T) {
	n := fedtest.NewNetwork(t)
	n.Record("inner.example. 60 IN A 127.0.0.1")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	r := New(Options{Roots: n.Roots, DNS: n.DNS})
	for _, name := range []string{"inner.example:" + port, "127.0.0.1:" + port} {
		s, err := r.Resolve(t.Context(), matrix.ServerName(name))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Dial(t.Context(), s); !errors.Is(err, ErrPrivateAddress) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDialVerifiesTheCertificate(t *testing.T) {
	n := fedtest.NewNetwork(t)
	nothing := http.NotFoundHandler()
	n.Serve("good.example:8448", nothing, "good.example")
	n.Serve("bad.example:8448", nothing, "other.example")
	n.Serve("192.0.2.1:8448", nothing, "192.0.2.1")
	n.Serve("192.0.2.2:8448", nothing, "192.0.2.9")
	// SRV: the certificate is that of the name, not of the record's target.
	n.Record("_matrix-fed._tcp.srv.example. 60 IN SRV 0 0 1234 down.example.")
	n.Record("_matrix-fed._tcp.srv.example. 60 IN SRV 1 0 1234 target.example.")
	n.Serve("target.example:1234", nothing, "srv.example")
	n.Record("_matrix-fed._tcp.wrong.example. 60 IN SRV 0 0 1235 target.example.")
	n.Serve("target.example:1235", nothing, "target.example")
	r := newResolver(n, nil)
	for name, good := range map[matrix.ServerName]bool{
		"good.example": true, "bad.example": false, "192.0.2.1": true, "192.0.2.2": false, "srv.example": true, "wrong.example": false,
	} {
		s, err := r.Resolve(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := r.Dial(t.Context(), s)
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			conn.Close()
		}
	}
}
