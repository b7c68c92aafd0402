package simulation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"

	"hanok/matrix"
)

// network carries requests between the servers of a world, and does to them what networks do.
//
// What becomes of a message is drawn from the seed and from the message itself, not from a common
// source of chance: it does not matter in which order goroutines send in one instant.
type network struct {
	w *world

	mu     sync.Mutex
	cut    map[link]bool
	seen   map[string]int // how often a message was sent
	flying int            // requests under way, with their repetitions

	loss, repeat float64       // probabilities
	latency      time.Duration // at most, one way, of most messages
}

// link is a direction between two servers.
type link struct{ from, to *server }

func newNetwork(w *world) *network {
	return &network{w: w, cut: map[link]bool{}, seen: map[string]int{}}
}

// draw is a source of chance that depends on the seed and a text only.
func draw(seed uint64, text string) *rand.Rand {
	sum := sha256.Sum256([]byte(text))
	return rand.New(rand.NewPCG(seed, binary.LittleEndian.Uint64(sum[:])))
}

// duration is one between low and high; to the nanosecond, so that hardly two things happen at once.
func duration(r *rand.Rand, low, high time.Duration) time.Duration {
	return low + time.Duration(r.Int64N(int64(high-low)+1))
}

func (n *network) connected(from, to *server) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[link{from, to}] && !n.cut[link{to, from}]
}

// set changes links; heal restores all.
func (n *network) set(l link, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[l] = down
}

func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

func (n *network) underWay(change int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.flying += change
	return n.flying
}

// message is a request on its way.
type message struct {
	from   *process
	to     *server
	method string
	uri    string
	header http.Header
	body   []byte
	label  string // what it is, without what is random in it
	chance *rand.Rand
}

// What is left out of a message's fingerprint: IDs that servers draw from crypto/rand to recognise repetitions, and numbers
// from the stream of positions, of which a write takes one more or less when another was in the same commit.
var (
	randomPath    = regexp.MustCompile(`^/_matrix/federation/v1/send/[^/?]+`)
	randomContent = regexp.MustCompile(`"message_id":"[A-Z2-7]+"|"stream_id":[0-9]+|"prev_id":\[[0-9,]*\]`)
)

// fingerprint says what is in a body, in whatever order.
func fingerprint(body []byte) string {
	var count [256 * 4]byte
	for _, b := range randomContent.ReplaceAll(body, nil) {
		at := count[int(b)*4:]
		binary.LittleEndian.PutUint32(at, binary.LittleEndian.Uint32(at)+1)
	}
	sum := sha256.Sum256(count[:])
	return fmt.Sprintf("#%x", sum[:4])
}

func (n *network) message(from *process, r *http.Request) (*message, error) {
	m := &message{from: from, to: n.w.byHost[r.URL.Host], method: r.Method, uri: r.URL.RequestURI(), header: r.Header.Clone()}
	if m.to == nil {
		return nil, fmt.Errorf("no such host: %s", r.URL.Host)
	}
	if r.Body != nil {
		var err error
		if m.body, err = io.ReadAll(r.Body); err != nil {
			return nil, err
		}
		r.Body.Close()
	}
	uri := randomPath.ReplaceAllString(m.uri, "/_matrix/federation/v1/send/-")
	m.label = fmt.Sprintf("%s > %s %s %s", from.s.short, m.to.short, m.method, shortURI(uri))
	if len(m.body) > 0 {
		m.label += " " + fingerprint(m.body)
	}
	n.mu.Lock()
	n.seen[m.label]++
	again := n.seen[m.label]
	n.mu.Unlock()
	if again > 1 {
		m.label += fmt.Sprint(" again ", again)
	}
	m.chance = draw(n.w.seed, m.label)
	return m, nil
}

func shortURI(uri string) string {
	if text, err := url.PathUnescape(uri); err == nil {
		uri = text
	}
	return strings.TrimPrefix(strings.TrimPrefix(uri, "/_matrix/federation"), "/_matrix")
}

var (
	errRefused = errors.New("connection refused")
	errReset   = errors.New("connection reset")
	errTimeout = errors.New("no answer")
)

// port is a process's way out.
type port struct{ p *process }

func (o port) RoundTrip(r *http.Request) (*http.Response, error) {
	n := o.p.s.w.net
	n.underWay(1)
	defer n.underWay(-1)
	m, err := n.message(o.p, r)
	if err != nil {
		return nil, err
	}
	res, err := n.carry(r.Context(), m)
	if err != nil && r.Context().Err() == nil {
		n.w.trace.add("%s: %v", m.label, err)
	}
	return res, err
}

// carry takes a message to its destination and the answer back.
func (n *network) carry(ctx context.Context, m *message) (*http.Response, error) {
	lost, answerLost := m.chance.Float64() < n.loss, m.chance.Float64() < n.loss
	repeated := m.chance.Float64() < n.repeat
	there, back := n.delay(m.chance), n.delay(m.chance)
	silence := duration(m.chance, time.Second, 20*time.Second)
	if !n.connected(m.from.s, m.to) && m.chance.IntN(2) == 0 {
		return nil, n.after(ctx, there, errRefused)
	}
	if lost {
		return nil, n.after(ctx, silence, errTimeout)
	}
	if err := n.after(ctx, there, nil); err != nil {
		return nil, err
	}
	if !n.connected(m.from.s, m.to) || m.from.dead.Load() {
		return nil, n.after(ctx, silence, errTimeout)
	}
	to := m.to.current()
	if to == nil {
		return nil, n.after(ctx, back, errRefused)
	}
	if repeated {
		n.repeatLater(m)
	}
	res, err := n.serve(ctx, m, to)
	if err != nil {
		return nil, n.after(ctx, back, err)
	}
	if answerLost {
		return nil, n.after(ctx, silence, errTimeout)
	}
	if err := n.after(ctx, back, nil); err != nil {
		return nil, err
	}
	if !n.connected(m.from.s, m.to) {
		return nil, n.after(ctx, silence, errTimeout)
	}
	if to.dead.Load() {
		return nil, errReset
	}
	return res, nil
}

// delay is mostly short, and sometimes so long that others overtake.
func (n *network) delay(r *rand.Rand) time.Duration {
	if n.loss > 0 && r.IntN(10) == 0 {
		return duration(r, n.latency, 20*n.latency)
	}
	return duration(r, time.Millisecond, n.latency)
}

// after waits and returns err, or why ctx ended before.
func (n *network) after(ctx context.Context, d time.Duration, err error) error {
	t := time.NewTimer(n.w.untilTick(d))
	defer t.Stop()
	select {
	case <-t.C:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// repeatLater has a message arrive a second time; nobody hears the answer.
func (n *network) repeatLater(m *message) {
	d := duration(m.chance, time.Millisecond, 10*time.Second)
	n.underWay(1)
	go func() {
		defer n.underWay(-1)
		time.Sleep(n.w.untilTick(d))
		if to := m.to.current(); to != nil && n.connected(m.from.s, m.to) {
			again := *m
			again.label += " (repeated)"
			n.serve(context.Background(), &again, to) //nolint:errcheck // nobody waits for it
		}
	}()
}

// serve has a process answer. The request ends when the sender gives up or the process dies.
func (n *network) serve(ctx context.Context, m *message, to *process) (*http.Response, error) {
	sender := ctx
	ctx, cancel := context.WithCancel(context.Background()) // what the sender's context holds does not travel
	defer cancel()
	defer context.AfterFunc(sender, cancel)()
	defer context.AfterFunc(to.life, cancel)()
	r := (&http.Request{
		Method: m.method, RequestURI: m.uri, Header: m.header.Clone(), Host: string(m.to.name), ContentLength: int64(len(m.body)),
		Body: io.NopCloser(bytes.NewReader(m.body)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: "192.0.2.1:1",
	}).WithContext(ctx)
	var err error
	if r.URL, err = url.ParseRequestURI(m.uri); err != nil {
		return nil, err
	}
	n.w.trace.add("%s", m.label)
	answered := make(chan *httptest.ResponseRecorder, 1)
	n.underWay(1)
	go func() {
		defer n.underWay(-1)
		rec := httptest.NewRecorder()
		to.inbound.ServeHTTP(rec, r)
		if rec.Code >= 500 && ctx.Err() == nil && !to.dead.Load() {
			n.w.fail("%s is answered with %d %s", m.label, rec.Code, rec.Body)
		}
		answered <- rec
	}()
	select {
	case rec := <-answered:
		if to.dead.Load() {
			return nil, errReset
		}
		text := ""
		if rec.Code != http.StatusOK || bytes.Contains(rec.Body.Bytes(), []byte(`"error":`)) {
			text = " " + rec.Body.String()
		}
		n.w.trace.add("%s = %d %s%s", m.label, rec.Code, fingerprint(rec.Body.Bytes()), text)
		return rec.Result(), nil
	case <-ctx.Done():
		if to.dead.Load() {
			return nil, errReset
		}
		return nil, sender.Err()
	}
}

// host is what a server is called in URLs.
func host(name matrix.ServerName) string { return string(name) }
