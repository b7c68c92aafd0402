package places

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// conn is a connection from some address.
type conn struct {
	net.Conn
	from   string
	closed bool
}

func (c *conn) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(c.from), Port: 1} }
func (c *conn) Close() error         { c.closed = true; return nil }

// room is a Listener with connections from any address.
type room struct {
	t    *testing.T
	l    *Listener
	full int
}

func open(t *testing.T, places int) *room {
	r := &room{t: t}
	r.l = New(nil, Options{Places: places, Full: func() { r.full++ }})
	return r
}

// come has a connection arrive; nil if it is turned away.
func (r *room) come(from string) *connection {
	r.t.Helper()
	c := r.l.admit(&conn{from: from})
	r.check()
	return c
}

func (r *room) begin(c *connection) bool {
	ok := c.begin()
	r.check()
	return ok
}

// check holds the books against one another.
func (r *room) check() {
	r.t.Helper()
	taken := r.l.proxies.has
	for i, h := range r.l.ranking {
		taken += h.has
		if h.has == 0 || h.at != i || r.l.byKey[h.key] != h || h.idle.Len()+h.busy.Len() == 0 {
			r.t.Fatalf("%v at %d has %d places", h.key, i, h.has)
		}
		if i > 0 && r.l.ranking.Less(i, (i-1)/2) {
			r.t.Fatalf("%v ranks before who is above it", h.key)
		}
	}
	if taken != r.l.taken || taken > r.l.opts.Places || len(r.l.byKey) != len(r.l.ranking) {
		r.t.Fatalf("%d places are taken, by the holders' books %d, of %d", r.l.taken, taken, r.l.opts.Places)
	}
}

func closed(c *connection) bool { return c.Conn.(*conn).closed }

func TestOneAddressDoesNotKeepOthersOut(t *testing.T) {
	r := open(t, 10)
	var hostile []*connection
	for range 10 {
		c := r.come("192.0.2.1")
		r.begin(c) // it sends its requests, slowly
		hostile = append(hostile, c)
	}
	if r.come("192.0.2.1") != nil {
		t.Error("an eleventh connection of an address with ten was let in")
	}
	// Others get in, up to the same number; who came first goes first.
	var others []*connection
	for i := range 5 {
		c := r.come("198.51.100.1")
		if c == nil || !closed(hostile[i]) || closed(hostile[i+1]) {
			t.Fatalf("newcomer %d: let in %v", i, c != nil)
		}
		r.begin(c)
		others = append(others, c)
	}
	if r.come("198.51.100.1") != nil {
		t.Error("who has as many as the other took one more from it")
	}
	for _, c := range others {
		if closed(c) {
			t.Error("a connection of who has fewer had to go")
		}
	}
	if e := r.l.Ended(); e.Busy != 5 || e.Turned != 2 || r.full != 7 {
		t.Errorf("%+v, told %d times", e, r.full)
	}
	for _, c := range hostile {
		c.end() // those that had to go as well
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		r.check()
	}
	if r.l.Taken() != 5 {
		t.Errorf("%d places taken", r.l.Taken())
	}
}

func TestIdleConnectionsGoFirst(t *testing.T) {
	r := open(t, 6)
	// A company behind one address, whose users wait for news, and many others that do nothing.
	var company, silent []*connection
	for range 4 {
		c := r.come("192.0.2.1")
		r.begin(c)
		company = append(company, c)
	}
	silent = append(silent, r.come("2001:db8:1:1::1"), r.come("2001:db8:1:2::1"))
	if r.come("203.0.113.1") == nil || !closed(silent[0]) || closed(silent[1]) {
		t.Error("who was silent for longest stayed")
	}
	if r.come("203.0.113.2") == nil || !closed(silent[1]) {
		t.Error("the other silent one stayed")
	}
	for _, c := range company {
		if closed(c) {
			t.Error("one on which a request is being answered had to go before an idle one")
		}
	}
	// The same subscriber by another address of the /64: of several idle ones those go of who has most.
	r = open(t, 4)
	one := r.come("198.51.100.1")
	first := r.come("2001:db8:1:1::1")
	r.come("2001:db8:1:1::2")
	r.come("2001:db8:1:1::3")
	if r.come("203.0.113.1") == nil || closed(one) || !closed(first) {
		t.Error("not the one of who has most")
	}
	// One whose request was answered is idle again, for less long than others.
	r = open(t, 2)
	a, b := r.come("192.0.2.1"), r.come("192.0.2.2")
	r.begin(a)
	a.end()
	if r.come("192.0.2.3"); closed(a) || !closed(b) {
		t.Error("who has just been answered had to go")
	}
}

func TestProxiesStandForMany(t *testing.T) {
	r := open(t, 4)
	var proxied []*connection
	for range 4 {
		c := r.come("127.0.0.1")
		r.begin(c)
		proxied = append(proxied, c)
	}
	if r.come("192.0.2.1") != nil {
		t.Error("a connection of a proxy on which something is asked had to go, as if it were one of many of somebody")
	}
	proxied[0].end()
	if r.come("192.0.2.1") == nil || !closed(proxied[0]) {
		t.Error("an idle one stayed")
	}
	r = open(t, 4)
	r.l.opts.BehindProxy = true
	for range 4 {
		r.begin(r.come("192.0.2.1"))
	}
	if r.come("192.0.2.2") != nil {
		t.Error("proxies elsewhere are told apart")
	}
}

func TestRequestsOnOneConnectionTakePlaces(t *testing.T) {
	r := open(t, 5)
	many := r.come("192.0.2.1")
	for i := range 5 {
		if !r.begin(many) {
			t.Fatalf("request %d was refused", i)
		}
	}
	if r.begin(many) {
		t.Error("a sixth request was let in")
	}
	if r.come("192.0.2.2") == nil || !closed(many) {
		t.Error("a connection with five requests kept another address out")
	}
	if r.l.Taken() != 1 {
		t.Errorf("%d places taken, the requests' of a connection that is gone among them", r.l.Taken())
	}
	many.end()
	if err := many.Close(); err != nil || r.l.Taken() != 1 {
		t.Error(err, r.l.Taken())
	}
}

func TestBooks(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		r := open(t, 1+rnd.IntN(20))
		var all []*connection
		begun := map[*connection]int{}
		for range 1000 {
			if len(all) == 0 || rnd.IntN(3) == 0 {
				if c := r.come([]string{"127.0.0.1", fmt.Sprintf("192.0.2.%d", rnd.IntN(6))}[min(1, rnd.IntN(5))]); c != nil {
					all = append(all, c)
				}
				continue
			}
			i := rnd.IntN(len(all))
			switch c := all[i]; rnd.IntN(4) {
			case 0:
				if r.begin(c) {
					begun[c]++
				}
			case 1:
				if begun[c] > 0 {
					begun[c]--
					c.end()
				}
			case 2:
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
				all = append(all[:i], all[i+1:]...)
			}
			r.check()
		}
		for _, c := range all {
			if err := c.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if r.check(); r.l.Taken() != 0 {
			t.Fatalf("seed %d: %d places are taken by nobody", seed, r.l.Taken())
		}
	}
}

// served is an HTTP server with a number of places.
func served(t testing.TB, places int, useTLS bool, h http.HandlerFunc) (*httptest.Server, *Listener) {
	s := httptest.NewUnstartedServer(h)
	l := New(s.Listener, Options{Places: places})
	s.Listener = l
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	l.Hook(s.Config, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }))
	if useTLS {
		s.EnableHTTP2 = true
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s, l
}

func TestSlowConnectionsGiveWay(t *testing.T) {
	for _, useTLS := range []bool{false, true} {
		s, l := served(t, 20, useTLS, func(http.ResponseWriter, *http.Request) {})
		for i := range 60 { // each says a little, or nothing
			c, err := net.Dial("tcp", s.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			start := "GET / HTTP/1.1\r\nHost"
			if useTLS {
				start = "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + start
			}
			if _, err = io.WriteString(c, start[:i%3*10]); err != nil {
				t.Fatal(err)
			}
		}
		res, err := s.Client().Get(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if e := l.Ended(); res.StatusCode != http.StatusOK || l.Taken() > 20 || e.Idle < 41 || e.Busy+e.Turned > 0 {
			t.Errorf("TLS %v: status %d, %d places taken, %+v", useTLS, res.StatusCode, l.Taken(), e)
		}
	}
}

func TestRequestsOfHTTP2AreCounted(t *testing.T) {
	release := make(chan struct{})
	var inside atomic.Int64
	s, l := served(t, 5, true, func(_ http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			t.Error(r.Proto)
		}
		inside.Add(1)
		<-release
	})
	results := make(chan int, 20)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ask := func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
		if err != nil {
			t.Error(err)
			return
		}
		res, err := s.Client().Do(req)
		if err != nil {
			t.Error(err)
			results <- 0
			return
		}
		res.Body.Close()
		results <- res.StatusCode
	}
	go ask() // makes the connection
	for inside.Load() < 1 {
		runtime.Gosched()
	}
	for range 11 {
		go ask()
	}
	for range 7 {
		if status := <-results; status != http.StatusTooManyRequests {
			t.Errorf("status %d of a request for which there is no place", status)
		}
	}
	if l.Taken() != 5 || inside.Load() != 5 {
		t.Errorf("%d places taken, %d requests", l.Taken(), inside.Load())
	}
	close(release)
	for range 5 {
		if status := <-results; status != http.StatusOK {
			t.Error(status)
		}
	}
}

// BenchmarkIdleConnections says what an idle connection takes, at both ends.
func BenchmarkIdleConnections(b *testing.B) {
	for name, useTLS := range map[string]bool{"plain": false, "TLS": true} {
		b.Run(name, func(b *testing.B) {
			const n = 2000
			s, _ := served(b, n+1, useTLS, func(http.ResponseWriter, *http.Request) {})
			config := &tls.Config{ServerName: "example.com", NextProtos: []string{"http/1.1"}}
			if useTLS {
				config.RootCAs = s.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
			}
			memory := func() (sum uint64) {
				runtime.GC()
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				return m.HeapInuse + m.StackInuse
			}
			for b.Loop() {
				before := memory()
				var conns []net.Conn
				for range n {
					c, err := net.Dial("tcp", s.Listener.Addr().String())
					if err != nil {
						b.Fatal(err)
					}
					if useTLS {
						c = tls.Client(c, config)
					}
					if _, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"); err != nil {
						b.Fatal(err)
					}
					if _, err = c.Read(make([]byte, 1024)); err != nil {
						b.Fatal(err)
					}
					conns = append(conns, c)
				}
				b.ReportMetric(float64(memory()-before)/n/1000, "kB/connection")
				for _, c := range conns {
					if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

// BenchmarkFlood says what it takes to turn connections from many addresses over when all places are taken.
func BenchmarkFlood(b *testing.B) {
	l := New(nil, Options{Places: 10_000})
	i := 0
	for b.Loop() {
		i++
		l.admit(&conn{from: fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255)})
	}
}
