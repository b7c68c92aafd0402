package discovery

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hanok/federation/fedtest"
	"hanok/matrix"
)

// Delegation is one step: names that point at each other, at themselves, or at something else each time are looked up once.
func TestDelegationsWithoutEnd(t *testing.T) {
	n := fedtest.NewNetwork(t)
	wellKnown(n, "a.example", `{"m.server":"b.example"}`)
	wellKnown(n, "b.example", `{"m.server":"a.example"}`)
	wellKnown(n, "self.example", `{"m.server":"self.example"}`)
	var asked atomic.Int64
	n.Serve("fickle.example:443", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store, max-age=0")
		fmt.Fprintf(w, `{"m.server":"victim%d.example:443"}`, asked.Add(1))
	}), "fickle.example")
	now := time.Now()
	r := newResolver(n, func() time.Time { return now })
	for name, want := range map[matrix.ServerName]string{"a.example": "b.example", "b.example": "a.example", "self.example": "self.example"} {
		before := len(n.Dialed())
		for range 3 {
			if got, err := r.Resolve(t.Context(), name); err != nil || got.Host != want {
				t.Errorf("%s: %v %v", name, got, err)
			}
		}
		if dialed := len(n.Dialed()) - before; dialed != 1 {
			t.Errorf("%s: %d connections", name, dialed)
		}
	}
	for range 100 {
		if got, err := r.Resolve(t.Context(), "fickle.example"); err != nil || got.Host != "victim1.example:443" {
			t.Fatalf("%v %v", got, err)
		}
		now = now.Add(2 * time.Second)
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("asked %d times within minutes", n)
	}
}

// Headers without end, and answers that are no HTTP.
func TestHeadersWithoutEnd(t *testing.T) {
	n := fedtest.NewNetwork(t)
	var sent atomic.Int64
	raw := func(answer func(w io.Writer) error) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 1 {
				t.Errorf("HTTP/%d", r.ProtoMajor)
				return
			}
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_ = answer(conn) // ends when the other side has had enough
		})
	}
	line := "X-Filler: " + strings.Repeat("x", 1000) + "\r\n"
	n.Serve("headers.example:443", raw(func(w io.Writer) error {
		if _, err := io.WriteString(w, "HTTP/1.1 200 OK\r\n"); err != nil {
			return err
		}
		for {
			k, err := io.WriteString(w, line)
			sent.Add(int64(k))
			if err != nil {
				return err
			}
		}
	}), "headers.example")
	n.Serve("junk.example:443", raw(func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Repeat("junk", 10_000))
		return err
	}), "junk.example")
	n.Serve("continue.example:443", raw(func(w io.Writer) error {
		for {
			if _, err := io.WriteString(w, "HTTP/1.1 103 Early Hints\r\n"+line+"\r\n"); err != nil {
				return err
			}
		}
	}), "continue.example")
	r := newResolver(n, nil)
	for _, name := range []matrix.ServerName{"headers.example", "junk.example", "continue.example"} {
		if got, err := r.Resolve(t.Context(), name); err != nil || got.Host != string(name) {
			t.Errorf("%s: %v %v", name, got, err)
		}
	}
	if n := sent.Load(); n > 8<<20 { // what lies in buffers on the way
		t.Errorf("%d bytes of headers were taken", n)
	}
}

// Neither a redirect nor a delegation leads into a private network.
func TestDelegationsIntoPrivateNetworks(t *testing.T) {
	n := fedtest.NewNetwork(t)
	r := New(Options{Roots: n.Roots, DNS: n.DNS})
	for _, delegated := range []matrix.ServerName{"127.0.0.1:8448", "[::1]:8448", "10.1.2.3", "169.254.169.254:80"} {
		where, err := r.Locate(t.Context(), delegated)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Dial(t.Context(), where); !errors.Is(err, ErrPrivateAddress) {
			t.Errorf("%s: %v", delegated, err)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://127.0.0.1:1/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if res, err := r.HTTPClient().Do(req); !errors.Is(err, ErrPrivateAddress) {
		t.Errorf("a plain request, as after a redirect: %v", err)
		if err == nil {
			res.Body.Close()
		}
	}
}
