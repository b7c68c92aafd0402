package homeserver

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// Gateway is a push gateway that a test looks into.
type Gateway struct {
	URL string // of pushers

	t           testing.TB
	address     string
	certificate *tls.Certificate // nil: plain HTTP
	got         chan JSON

	mu      sync.Mutex
	answer  func(notification JSON) (status int, body JSON)
	running *http.Server
}

// maxGot is how many notifications wait for the test to look at them.
const maxGot = 100_000

// NewGateway starts a gateway, over TLS if secure. It is stopped with the test.
func (n *Network) NewGateway(secure bool) *Gateway {
	n.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(n.t, err)
	g := &Gateway{t: n.t, address: l.Addr().String(), got: make(chan JSON, maxGot)}
	g.URL = "http://" + g.address + "/_matrix/push/v1/notify"
	if secure {
		certFile, keyFile := n.certificate(filepath.Base("gateway" + g.address))
		certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
		must(n.t, err)
		g.certificate = &certificate
		g.URL = "https" + g.URL[len("http"):]
	}
	g.serve(l)
	n.t.Cleanup(g.Stop)
	return g
}

func (g *Gateway) serve(l net.Listener) {
	s := &http.Server{Handler: http.HandlerFunc(g.notify), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute}
	g.mu.Lock()
	g.running = s
	g.mu.Unlock()
	go func() { // ends with Stop
		if g.certificate != nil {
			s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{*g.certificate}}
			_ = s.ServeTLS(l, "", "")
			return
		}
		_ = s.Serve(l)
	}()
}

// Stop makes the gateway unreachable.
func (g *Gateway) Stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.running != nil {
		_ = g.running.Close()
		g.running = nil
	}
}

// Start makes it reachable again, at the same address.
func (g *Gateway) Start() {
	g.t.Helper()
	l, err := net.Listen("tcp", g.address)
	must(g.t, err)
	g.serve(l)
}

// Answer sets what notifications are answered with; nil is 200 and {}. A location in the body is a header too. It may be called from several goroutines.
func (g *Gateway) Answer(answer func(notification JSON) (status int, body JSON)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answer = answer
}

func (g *Gateway) notify(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Notification JSON `json:"notification"`
	}
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return // the server was killed
	}
	if err := json.Unmarshal(raw, &body); err != nil || r.Method != http.MethodPost || r.URL.Path != "/_matrix/push/v1/notify" || r.Header.Get("Content-Type") != "application/json" {
		g.t.Errorf("%s %s is no notification: %v", r.Method, r.URL, err)
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	g.mu.Lock()
	answer := g.answer
	g.mu.Unlock()
	status, out := http.StatusOK, JSON{}
	if answer != nil {
		status, out = answer(body.Notification)
	}
	if status/100 == 2 {
		g.got <- body.Notification
	}
	if location, ok := out["location"].(string); ok {
		w.Header().Set("Location", location)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(out) // the server may have gone away
}

// Next is the next notification that the gateway accepted.
func (g *Gateway) Next() JSON {
	g.t.Helper()
	select {
	case n := <-g.got:
		return n
	case <-time.After(20 * time.Second):
		g.t.Fatal("the gateway is not told of anything")
		return nil
	}
}

// NextEvent is Next for one that is about this event.
func (g *Gateway) NextEvent(eventID string) JSON {
	g.t.Helper()
	n := g.Next()
	if n["event_id"] != eventID {
		g.t.Fatalf("the gateway is told of %v, not of %s", n, eventID)
	}
	return n
}

// NextCounts is Next for one that holds nothing but the count of unread messages.
func (g *Gateway) NextCounts(unread float64) JSON {
	g.t.Helper()
	n := g.Next()
	if n["event_id"] != nil || Dig(n, "counts", "unread") != unread {
		g.t.Fatalf("the gateway is told %v, not that %v messages are unread", n, unread)
	}
	return n
}

// Waiting is how many notifications were accepted and not looked at.
func (g *Gateway) Waiting() int { return len(g.got) }

// SetPusher has the user's notifications sent to a gateway. data is added to the pusher's.
func (c *Client) SetPusher(g *Gateway, key string, data JSON) {
	c.t.Helper()
	all := JSON{"url": g.URL}
	for k, v := range data {
		all[k] = v
	}
	c.Must("POST", "/v3/pushers/set", Pusher(key, all))
}

// Pusher is the body of a request that sets a pusher.
func Pusher(key string, data JSON) JSON {
	return JSON{
		"app_id": "org.example.app", "pushkey": key, "kind": "http", "app_display_name": "App", "device_display_name": "Phone",
		"lang": "en", "data": data,
	}
}
