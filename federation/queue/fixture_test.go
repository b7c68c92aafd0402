package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/peers"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// delivery is a transaction that arrived.
type delivery struct {
	Dest matrix.ServerName
	ID   string
	PDUs []string // bodies of the events
	EDUs []string // "type content"
}

// network takes transactions in place of other servers.
type network struct {
	peers     *peers.Peers
	mu        sync.Mutex
	down      map[matrix.ServerName]error
	attempts  []delivery
	arrived   chan delivery
	active    map[matrix.ServerName]int
	overlap   bool
	hold      chan struct{}
	held      func(dest matrix.ServerName) bool          // whom hold concerns; nil: all
	delay     func(dest matrix.ServerName) time.Duration // nil: none
	attempted chan struct{}
	refuse    func(delivery) error // nil: nothing is refused
}

func (n *network) SendTransaction(ctx context.Context, dest matrix.ServerName, id string, body []byte) (map[matrix.EventID]client.PDUResult, error) {
	var txn struct {
		PDUs []struct{ Content struct{ Body string } }
		EDUs []struct {
			Type    string `json:"edu_type"`
			Content json.RawMessage
		}
	}
	if err := json.Unmarshal(body, &txn); err != nil {
		return nil, err
	}
	d := delivery{Dest: dest, ID: id}
	for _, p := range txn.PDUs {
		d.PDUs = append(d.PDUs, p.Content.Body)
	}
	for _, e := range txn.EDUs {
		d.EDUs = append(d.EDUs, e.Type+" "+string(e.Content))
	}
	n.mu.Lock()
	n.active[dest]++
	n.overlap = n.overlap || n.active[dest] > 1
	n.attempts = append(n.attempts, d)
	err := n.down[dest]
	if n.refuse != nil {
		err = n.refuse(d)
	}
	hold := n.hold
	if n.held != nil && !n.held(dest) {
		hold = nil
	}
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		n.active[dest]--
		n.mu.Unlock()
	}()
	wake.Up(n.attempted)
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if n.delay != nil {
		time.Sleep(n.delay(dest))
	}
	if err != nil {
		// As the client does.
		var answer *client.Error
		switch {
		case !errors.As(err, &answer):
			n.peers.Failed(dest, 0, "")
		case answer.Status == 0, answer.Status == 429, answer.Status >= 500:
			n.peers.Failed(dest, answer.RetryAfter, "")
		default:
			n.peers.Answered(dest)
		}
		return nil, err
	}
	n.peers.Answered(dest)
	n.arrived <- d
	return nil, nil
}

func (n *network) fail(dest matrix.ServerName, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down[dest] = err
}

// house is the rooms of the test: one, in which the servers are.
type house struct {
	t       testing.TB
	db      *storage.DB
	mu      sync.Mutex
	events  []*rooms.Event
	servers []matrix.ServerName
	told    int // how many events were published
	sticky  []*rooms.Event
}

func (h *house) MissedBy(context.Context, *rooms.Event) ([]*rooms.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sticky, nil
}

// Misses says so of what somebody else sent before they said that they know.
func (h *house) Misses(_ context.Context, ev *rooms.Event, server matrix.ServerName) (bool, error) {
	body, _ := ev.ContentString("body")
	return ev.Type() == "m.room.message" && body != "known" && ev.Sender().Server() != server, nil
}

func (h *house) EventsAfter(_ context.Context, since, until storage.Position, limit int) (out []*rooms.Event, _ error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.Pos > since && e.Pos <= until && len(out) < limit {
			out = append(out, e)
		}
	}
	return out, nil
}

func (h *house) ServersAt(context.Context, *rooms.Event) ([]matrix.ServerName, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]matrix.ServerName{"us.example"}, h.servers...), nil
}

func (h *house) NewestFor(_ context.Context, _ storage.RoomNID, _ matrix.ServerName, after storage.Position) (*rooms.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range slices.Backward(h.events) {
		if e.Relay && e.Pos > after {
			return e, nil
		}
	}
	return nil, nil
}

func (h *house) Federates(matrix.RoomID) bool { return true }

func (h *house) Event(_ context.Context, id matrix.EventID) (*rooms.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.events {
		if e.ID() == id {
			return e, nil
		}
	}
	return nil, matrix.NotFound("no such event")
}

// add makes an event with a position, as the room engine would.
func (h *house) add(p event.Proto, relay bool) *rooms.Event {
	h.t.Helper()
	v, _ := roomversion.Get("10")
	p.RoomID, p.Depth = "!r:us.example", 1
	e, err := event.Build(v, p, p.Sender.Server())
	if err != nil {
		h.t.Fatal(err)
	}
	stored := &rooms.Event{Event: e, RoomNID: 1, ReceivedTS: p.OriginServerTS, Relay: relay || p.Sender.Server() == "us.example"}
	err = h.db.Write(h.t.Context(), func(tx *storage.Tx) error {
		// Within the transaction: the event must be there once its position is visible.
		if stored.Pos, err = tx.NextPosition(); err != nil {
			return err
		}
		h.mu.Lock()
		h.events = append(h.events, stored)
		h.mu.Unlock()
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return stored
}

func (h *house) say(sender matrix.UserID, body string) {
	h.t.Helper()
	h.add(event.Proto{Sender: sender, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":%q}`, body)}, false)
}

type fixture struct {
	*network
	*house
	q    *Queue
	stop func()
}

func setUp(t testing.TB, servers ...matrix.ServerName) *fixture {
	t.Helper()
	return setUpOn(t, storagetest.Open(t), servers...)
}

func setUpOn(t testing.TB, db *storage.DB, servers ...matrix.ServerName) *fixture {
	t.Helper()
	f := &fixture{
		network: &network{
			down: map[matrix.ServerName]error{}, active: map[matrix.ServerName]int{},
			arrived: make(chan delivery, 10_000), attempted: make(chan struct{}, 1),
		},
		house: &house{t: t, db: db, servers: servers},
	}
	f.loadPeers()
	f.start()
	return f
}

// idle is a fixture whose queue does not run: tests call its steps.
func idle(t *testing.T) *fixture {
	f := setUp(t, "a.example")
	f.stop()
	f.prepare()
	f.q.rooms = f.house
	f.q.passed.Store(int64(everything))
	return f
}

// loadPeers has the outbox know of other servers what is stored, from its next start on.
func (f *fixture) loadPeers() {
	f.t.Helper()
	known, err := peers.New(f.t.Context(), peers.Options{DB: f.db, Log: zerolog.Nop()})
	if err != nil {
		f.t.Fatal(err)
	}
	f.peers = known
}

// publish tells the outbox of the events that were added, as the room engine does after their commit.
func (f *fixture) publish() {
	f.house.mu.Lock()
	defer f.house.mu.Unlock()
	for _, e := range f.events[f.told:] {
		f.q.RoomUpdated(&rooms.Update{Events: []*rooms.Event{e}, Position: e.Pos})
	}
	f.told = len(f.events)
}

func (f *fixture) start() {
	f.prepare()
	f.run()
}

func (f *fixture) prepare() {
	f.q = New(Options{ServerName: "us.example", DB: f.db, Sender: f.network, Peers: f.peers, Log: zerolog.Nop()})
}

func (f *fixture) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.q.Run(ctx, f.house) }()
	stopped := false
	f.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			f.t.Errorf("Run: %v", err)
		}
	}
	f.t.Cleanup(f.stop)
}

func (f *fixture) next() delivery {
	f.t.Helper()
	select {
	case d := <-f.arrived:
		return d
	case <-time.After(10 * time.Second):
		f.t.Fatal("nothing arrives")
		return delivery{}
	}
}

func (f *fixture) queueEDU(eduType, content string, dests ...matrix.ServerName) {
	f.t.Helper()
	err := f.db.Write(f.t.Context(), func(tx *storage.Tx) error {
		return f.q.QueueEDU(f.t.Context(), tx, dests, eduType, []byte(content))
	})
	if err != nil {
		f.t.Fatal(err)
	}
}

// empty waits until nothing is queued any more.
func (f *fixture) empty() {
	f.t.Helper()
	for range 1000 {
		pending, err := storage.FindOutboxDestinations(f.t.Context(), f.db)
		if err != nil {
			f.t.Fatal(err)
		}
		f.q.mu.Lock()
		busy := len(f.q.busy)
		f.q.mu.Unlock()
		if len(pending) == 0 && busy == 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.t.Error("the outbox does not get empty")
}

func waitFor(t testing.TB, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("does not happen")
}
