package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

func TestEventsAreSentInOrder(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	want := map[matrix.ServerName][]string{}
	for i := range 120 {
		body := fmt.Sprint(i)
		f.say("@me:us.example", body)
		f.say("@you:a.example", "not ours to send")
		want["a.example"] = append(want["a.example"], body)
		want["b.example"] = append(want["b.example"], body)
	}
	f.publish()
	got := map[matrix.ServerName][]string{}
	for len(got["a.example"]) < 120 || len(got["b.example"]) < 120 {
		d := f.next()
		if len(d.PDUs) > MaxPDUs {
			t.Errorf("%d events in a transaction", len(d.PDUs))
		}
		got[d.Dest] = append(got[d.Dest], d.PDUs...)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	f.empty()
	if f.overlap {
		t.Error("two transactions were under way to one server")
	}
	// Nothing is repeated by a restart.
	f.stop()
	f.start()
	f.say("@me:us.example", "after")
	f.publish()
	for range 2 {
		if d := f.next(); len(d.PDUs) != 1 || d.PDUs[0] != "after" {
			t.Errorf("after a restart: %v", d)
		}
	}
}

// More events than are kept in memory, before the outbox runs: each is sent once, in order.
func TestABurst(t *testing.T) {
	f := setUp(t, "a.example")
	f.stop()
	const n = maxFresh + 100
	err := f.db.Write(t.Context(), func(tx *storage.Tx) error { return storage.SetCursor(t.Context(), tx, cursorName, f.db.Current()) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		f.say("@me:us.example", fmt.Sprint(i))
	}
	f.prepare()
	f.publish()
	if got := f.q.takeFresh(); !got.lost || got.events != nil {
		t.Errorf("%d events are kept, lost %v", len(got.events), got.lost)
	}
	f.told = 0
	f.publish()
	f.run()
	var got []string
	for len(got) < n {
		got = append(got, f.next().PDUs...)
	}
	f.empty()
	for i, body := range got {
		if body != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, body)
		}
	}
	if len(got) != n || len(f.arrived) > 0 {
		t.Errorf("%d events, and %d more transactions", len(got), len(f.arrived))
	}
}

func TestWhoseEventsAreSent(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	member := func(sender, target matrix.UserID, membership string) event.Proto {
		key := string(target)
		return event.Proto{
			Sender: sender, Type: "m.room.member", StateKey: &key,
			Content: fmt.Appendf(nil, `{"membership":%q,"body":"%s %s"}`, membership, membership, target),
		}
	}
	f.add(member("@x:a.example", "@x:a.example", "join"), true)  // by send_join to us
	f.add(member("@y:a.example", "@y:a.example", "join"), false) // by send_join to somebody else
	f.add(member("@me:us.example", "@z:c.example", "invite"), true)
	f.publish()
	got := map[matrix.ServerName][]string{}
	for len(got["a.example"]) < 1 || len(got["b.example"]) < 2 {
		d := f.next()
		got[d.Dest] = append(got[d.Dest], d.PDUs...)
	}
	f.empty()
	want := map[matrix.ServerName][]string{
		"a.example": {"invite @z:c.example"},
		"b.example": {"join @x:a.example", "invite @z:c.example"},
	}
	if len(f.arrived) > 0 {
		t.Errorf("sent besides: %+v", f.next())
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A server that comes into the room is sent what is sticky there, though it happened before; also if another server let it in.
func TestStickyEventsAreSentToAServerThatJoins(t *testing.T) {
	f := setUp(t, "a.example")
	ms := int64(3_600_000)
	old := f.add(event.Proto{
		Sender: "@me:us.example", Type: "m.rtc.member", Content: []byte(`{"body":"sticky"}`), Sticky: &ms, OriginServerTS: matrix.TimestampOf(time.Now()),
	}, false)
	f.publish()
	if d := f.next(); !cmp.Equal(d.PDUs, []string{"sticky"}) {
		t.Errorf("to who was there: %+v", d)
	}
	f.house.mu.Lock()
	f.sticky, f.servers = []*rooms.Event{old}, append(f.servers, "b.example")
	f.house.mu.Unlock()
	key := "@x:b.example"
	f.add(event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join","body":"join"}`)}, false)
	f.publish()
	if d := f.next(); d.Dest != "b.example" || !cmp.Equal(d.PDUs, []string{"sticky"}) {
		t.Errorf("to who joined: %+v", d)
	}
	f.empty()
	if len(f.arrived) > 0 {
		t.Errorf("sent besides: %+v", f.next())
	}
	if got := keepUntil(old, "b.example"); got != old.StickyUntil() || got == 0 {
		t.Errorf("kept until %d", got)
	}
}

// What other servers send which have not heard yet that a server came into the room is sent on to it, by who let it in.
func TestWhatAServerThatJoinsIsNotSentByOthers(t *testing.T) {
	f := setUp(t)
	f.say("@x:a.example", "before")
	target := "@x:b.example"
	join := event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"join"}`)}
	f.add(join, false) // through somebody else
	f.say("@x:a.example", "for others to send")
	f.add(join, true)
	f.say("@x:b.example", "its own")
	f.say("@x:a.example", "unknown to a")
	f.say("@x:a.example", "known")
	f.publish()
	if d := f.next(); d.Dest != "b.example" || !slices.Equal(d.PDUs, []string{"unknown to a"}) {
		t.Errorf("%+v", d)
	}
	// Also by another process than the one that let it in.
	f.empty()
	f.stop()
	f.start()
	f.say("@x:a.example", "unknown to a still")
	f.publish()
	if d := f.next(); d.Dest != "b.example" || !slices.Equal(d.PDUs, []string{"unknown to a still"}) {
		t.Errorf("after a restart: %+v", d)
	}
	for range 2 * newcomerEvents {
		f.say("@x:a.example", "unknown to a")
	}
	f.publish()
	f.house.mu.Lock()
	f.servers = []matrix.ServerName{"b.example"}
	f.house.mu.Unlock()
	f.say("@me:us.example", "last")
	f.publish()
	sent := 2
	for last := false; !last; {
		d := f.next()
		sent += len(d.PDUs)
		last = slices.Contains(d.PDUs, "last")
	}
	if sent > newcomerEvents+1 {
		t.Errorf("%d events were sent", sent)
	}
}

// The same if it is sent an event that follows on its join at the same time.
func TestServerThatJoinsAndIsSentAnEvent(t *testing.T) {
	f := setUp(t, "b.example")
	f.peers.Answered("b.example") // it has asked to be let in
	f.stop()
	f.say("@me:us.example", "meanwhile")
	f.sticky = slices.Clone(f.events)
	if err := f.db.Write(t.Context(), func(tx *storage.Tx) error {
		return storage.SetCursor(t.Context(), tx, cursorName, f.events[0].Pos) // before which b was not in the room
	}); err != nil {
		t.Fatal(err)
	}
	target := "@x:b.example"
	f.add(event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"join"}`)}, true)
	f.say("@me:us.example", "welcome")
	f.start()
	var got []string
	for len(got) < 2 {
		got = append(got, f.next().PDUs...)
	}
	if !slices.Equal(got, []string{"welcome", "meanwhile"}) {
		t.Errorf("%q", got)
	}
	f.empty()
}

// What a server missed is stored while another write, which began before, is under way: the reader is told of it once it can read up to there.
func TestWhatAServerMissedIsVisibleLater(t *testing.T) {
	db := storagetest.OpenDSN(t, storagetest.PostgresDSN(t)) // SQLite has one writer
	f := setUpOn(t, db)
	f.stop()
	f.prepare()
	f.q.rooms = f.house
	f.say("@x:a.example", "meanwhile")
	f.sticky = slices.Clone(f.events)
	target := "@x:b.example"
	join := f.add(event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"join"}`)}, true)
	r := &reader{q: f.q}
	r.goTo(f.events[0].Pos)
	begun, ended := make(chan struct{}), make(chan error, 1)
	goOn := make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	go func() {
		ended <- db.Write(t.Context(), func(tx *storage.Tx) error {
			_, err := tx.NextPosition()
			close(begun)
			<-goOn
			return err
		})
	}()
	<-begun
	if err := r.handle(t.Context(), []*rooms.Event{join}, join.Pos, 1); err != nil {
		t.Fatal(err)
	}
	queued, err := storage.FindOutboxPDUs(t.Context(), db, "b.example", everything, 10)
	if err != nil || len(queued) != 1 || queued[0].Position <= db.Current() {
		t.Fatalf("queued %+v at %d: %v", queued, db.Current(), err)
	}
	select {
	case <-f.q.news:
		t.Fatal("the reader is told of what it cannot read yet")
	default:
	}
	release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	<-f.q.news
	if err := r.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.cursor < queued[0].Position || len(f.q.ahead) != 0 {
		t.Errorf("the reader is at %d, and waited for are %v", r.cursor, f.q.ahead)
	}
}

func TestMembershipMustArrive(t *testing.T) {
	f := setUp(t)
	target := "@z:c.example"
	for _, membership := range []string{"invite", "leave"} {
		e := f.add(event.Proto{
			Sender: "@me:us.example", Type: "m.room.member", StateKey: &target, Content: fmt.Appendf(nil, `{"membership":%q}`, membership),
		}, false)
		if keepUntil(e, "c.example") == 0 || keepUntil(e, "a.example") != 0 {
			t.Errorf("%s: wrong about what must arrive", membership)
		}
	}
}

func TestATransactionSurvivesARestart(t *testing.T) {
	f := setUp(t, "a.example")
	f.hold = make(chan struct{})
	f.say("@me:us.example", "one")
	f.queueEDU("m.direct_to_device", `{"n":1}`, "a.example")
	f.publish()
	<-f.attempted
	f.stop() // while the transaction is under way: whether it arrived is not known
	first := f.attempts[len(f.attempts)-1]
	f.say("@me:us.example", "two")
	close(f.hold)
	f.start()
	f.publish()
	second := f.next()
	if second.ID != first.ID {
		t.Errorf("repeated as %s, was %s", second.ID, first.ID)
	}
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("its content changed: %s", d)
	}
	got := append(second.PDUs, second.EDUs...)
	for len(got) < 3 {
		d := f.next()
		if d.ID == first.ID {
			t.Error("a transaction ID was used twice")
		}
		got = append(append(got, d.PDUs...), d.EDUs...)
	}
	f.empty()
}

func TestBackOffAndRecovery(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	f.fail("a.example", errors.New("down"))
	for i := range 3 {
		f.say("@me:us.example", fmt.Sprint(i))
		f.publish()
		f.next() // b.example is not held up by a.example
	}
	waitFor(t, func() bool {
		_, failing := f.peers.FailingSince("a.example")
		return failing
	})
	f.fail("a.example", nil)
	f.peers.Answered("a.example")
	var got []string
	for len(got) < 3 {
		d := f.next()
		if d.Dest != "a.example" {
			t.Errorf("%+v", d)
		}
		got = append(got, d.PDUs...)
	}
	if d := cmp.Diff([]string{"0", "1", "2"}, got); d != "" {
		t.Error(d)
	}
	f.empty()
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

func TestEDUs(t *testing.T) {
	f := setUp(t)
	for i := range 250 {
		f.queueEDU("m.direct_to_device", fmt.Sprintf(`{"n":%d}`, i), "a.example", "us.example")
	}
	var got []string
	for len(got) < 250 {
		d := f.next()
		if len(d.EDUs) > MaxEDUs || d.Dest != "a.example" {
			t.Errorf("%d EDUs to %s", len(d.EDUs), d.Dest)
		}
		got = append(got, d.EDUs...)
	}
	for i, e := range got {
		if want := fmt.Sprintf(`m.direct_to_device {"n":%d}`, i); e != want {
			t.Fatalf("EDU %d is %s", i, e)
		}
	}
	f.q.SendVolatile([]matrix.ServerName{"a.example", "us.example"}, "m.typing", []byte(`{}`))
	if d := f.next(); len(d.EDUs) != 1 || d.EDUs[0] != "m.typing {}" {
		t.Errorf("%+v", d)
	}
	f.empty()
}

func TestReceiptsWaitForCompany(t *testing.T) {
	f := setUp(t)
	waitFor(t, func() bool {
		f.q.mu.Lock()
		defer f.q.mu.Unlock()
		return f.q.ctx != nil // it runs
	})
	f.q.wakeSoon("z.example")
	f.q.mu.Lock()
	if d := f.q.busy["z.example"]; d == nil || d.running || d.timer == nil {
		t.Errorf("not waiting: %+v", d)
	}
	f.q.mu.Unlock()
	f.queueEDU("m.receipt", `{}`, "a.example")
	f.next() // nothing else has to come for it to be sent
	f.empty()
	// What cannot wait takes them along.
	err := f.db.Write(t.Context(), func(tx *storage.Tx) error {
		return errors.Join(
			f.q.QueueEDU(t.Context(), tx, []matrix.ServerName{"a.example"}, "m.receipt", []byte(`{}`)),
			f.q.QueueEDU(t.Context(), tx, []matrix.ServerName{"a.example"}, "m.direct_to_device", []byte(`{}`)),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := f.next(); len(d.EDUs) != 2 {
		t.Errorf("%v", d.EDUs)
	}
	f.empty()
}

func TestStaleEDUsAreDropped(t *testing.T) {
	f := setUp(t)
	f.stop()
	now := time.Now()
	f.q = New(Options{ServerName: "us.example", DB: f.db, Sender: f.network, Peers: f.peers, Log: zerolog.Nop(), Now: func() time.Time { return now }})
	f.queueEDU("m.receipt", `{}`, "a.example")
	f.queueEDU("m.device_list_update", `{}`, "a.example")
	edus, err := storage.FindOutboxEDUs(t.Context(), f.db, "a.example", everything, 10)
	if err != nil || len(edus) != 2 {
		t.Fatal(edus, err)
	}
	volatile := []volatileEDU{{"m.typing", []byte(`{}`), now.Add(time.Minute)}}
	for _, c := range []struct {
		after time.Duration
		want  int
	}{{0, 3}, {2 * time.Minute, 2}, {2 * time.Hour, 1}} {
		f.q.opts.Now = func() time.Time { return now.Add(c.after) }
		txn, err := f.q.compose(t.Context(), nil, edus, volatile)
		if err != nil || len(txn.EDUs) != c.want {
			t.Errorf("after %s: %+v %v", c.after, txn, err)
		}
	}
}

func TestNothingVolatileForServersThatDoNotAnswer(t *testing.T) {
	f := setUp(t)
	f.peers.Failed("a.example", time.Hour, "")
	f.q.SendVolatile([]matrix.ServerName{"a.example"}, "m.typing", []byte(`{}`))
	f.q.mu.Lock()
	defer f.q.mu.Unlock()
	if len(f.q.busy) != 0 {
		t.Error("it costs memory")
	}
}

func TestARefusedTransactionDoesNotBlockForEver(t *testing.T) {
	f := setUp(t, "a.example")
	refusal := &client.Error{Destination: "a.example", Status: 400, Cause: errors.New("no")}
	d := &destination{}
	txn := storage.OutboxTransaction{ID: "t"}
	for i := 1; i <= maxRefusals; i++ {
		if got := f.q.giveUp("a.example", d, txn, refusal); got != (i == maxRefusals) {
			t.Errorf("refusal %d: %v", i, got)
		}
	}
	d = &destination{}
	for range 2 * maxRefusals {
		if f.q.giveUp("a.example", d, txn, &client.Error{Status: 403}) {
			t.Error("events are dropped because the server does not want us now")
		}
		if f.q.giveUp("a.example", d, txn, errors.New("down")) {
			t.Error("events are dropped because the server is down")
		}
	}
}

func TestCatchUpAfterALongOutage(t *testing.T) {
	f := setUp(t, "a.example")
	f.peers.Failed("a.example", time.Hour, "")
	target := "@x:a.example"
	f.add(event.Proto{Sender: "@me:us.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"leave","body":"kick"}`)}, false)
	for i := range collapseAt + 10 {
		f.say("@me:us.example", fmt.Sprint(i))
	}
	f.publish()
	waitFor(t, func() bool {
		n, err := storage.CountOutboxPDUs(t.Context(), f.db, "a.example", 10_000)
		return err == nil && n == collapseAt+11
	})
	f.q.collapse(t.Context(), "a.example")
	f.peers.Answered("a.example")
	d := f.next()
	if want := []string{"kick", fmt.Sprint(collapseAt + 9)}; !cmp.Equal(d.PDUs, want) {
		t.Errorf("sent %v, want %v", d.PDUs, want)
	}
	f.empty()
}

// Servers that were heard from do not wait for silent ones, of which there may be thousands in a room; not if they are heard from while they wait, either.
func TestSilentServersHoldUpNobodyElse(t *testing.T) {
	silent := many("silent", maxUnheard+100)
	f := setUp(t, silent...)
	f.stop()
	f.prepare()
	f.q.unheard.patience = 0
	f.run()
	f.network.hold = make(chan struct{})
	f.network.held = func(dest matrix.ServerName) bool { return strings.HasPrefix(string(dest), "silent") }
	for _, name := range silent {
		f.fail(name, errors.New("silent"))
	}
	f.say("@me:us.example", "one")
	f.publish()
	waitFor(t, func() bool {
		f.q.mu.Lock()
		defer f.q.mu.Unlock()
		return f.q.unheard.sending == maxUnheard && len(f.q.unheard.waiting) == 100
	})
	if n := runtime.NumGoroutine(); n > maxUnheard+maxHeard {
		t.Errorf("%d goroutines", n)
	}
	f.house.mu.Lock()
	f.servers = append(f.servers, "known.example", "new.example")
	f.house.mu.Unlock()
	f.peers.Answered("known.example")
	f.say("@me:us.example", "two")
	f.publish()
	if d := f.next(); d.Dest != "known.example" {
		t.Errorf("%+v", d)
	}
	f.peers.Answered("new.example") // it asks us something
	if d := f.next(); d.Dest != "new.example" {
		t.Errorf("%+v", d)
	}
	close(f.network.hold)
}

// Of servers of which nothing is known, those that work do not wait until all that do not have been given up; of these no more are waited for than may be.
func TestSilentServersMakePlace(t *testing.T) {
	const places, beside = 2, 3
	for name, c := range map[string]struct {
		silent int
		waits  bool
	}{"few": {places + beside - 1, false}, "many": {places + beside, true}} {
		t.Run(name, func(t *testing.T) {
			silent := many("silent", c.silent)
			f := setUp(t, silent...)
			f.stop()
			f.prepare()
			f.q.unheard.limit, f.q.unheard.patience, f.q.unheard.mayLinger = places, 20*time.Millisecond, beside
			f.network.hold = make(chan struct{})
			f.network.held = func(dest matrix.ServerName) bool { return dest != "works.example" }
			for _, name := range silent {
				f.fail(name, errors.New("silent"))
			}
			state := func(sending, lingering, waiting int) {
				t.Helper()
				waitFor(t, func() bool {
					f.q.mu.Lock()
					defer f.q.mu.Unlock()
					l := &f.q.unheard
					return l.sending == sending && l.lingering == lingering && len(l.waiting) == waiting
				})
			}
			f.run()
			f.say("@me:us.example", "hello")
			f.publish()
			state(c.silent-beside, beside, 0)
			f.house.mu.Lock()
			f.servers = append(f.servers, "works.example")
			f.house.mu.Unlock()
			f.say("@me:us.example", "you too")
			f.publish()
			if c.waits {
				state(places, beside, 1)
				close(f.network.hold) // all are given up
			}
			if d := f.next(); d.Dest != "works.example" {
				t.Errorf("%+v", d)
			}
			if !c.waits {
				close(f.network.hold)
			}
			state(0, 0, 0)
		})
	}
}

// A destination with much to get takes turns with the others.
func TestDestinationsTakeTurns(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	f.stop()
	f.prepare()
	f.q.heard.limit, f.q.unheard.limit = 1, 1
	f.peers.Answered("a.example") // in one lane
	f.peers.Answered("b.example")
	for i := range 4 * MaxPDUs {
		f.say("@me:us.example", fmt.Sprint(i))
	}
	f.run()
	f.publish()
	var order []matrix.ServerName
	for range 8 {
		order = append(order, f.next().Dest)
	}
	switches := 0
	for i := range order[1:] {
		if order[i] != order[i+1] {
			switches++
		}
	}
	if switches < 6 {
		t.Errorf("%v", order)
	}
	f.empty()
}

// What is queued while a destination waits for its turn is sent, too: its first transaction was made before.
func TestEventsWhileADestinationWaitsForItsTurn(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	f.stop()
	f.prepare()
	f.q.heard.limit, f.q.unheard.limit = 1, 1
	f.network.hold = make(chan struct{})
	for _, dest := range f.servers {
		f.peers.Answered(dest)
	}
	f.run()
	f.say("@me:us.example", "one")
	f.publish()
	<-f.attempted // one of them; the other waits
	f.say("@me:us.example", "two")
	f.publish()
	waitFor(t, func() bool {
		for _, dest := range f.servers {
			queued, err := storage.FindOutboxPDUs(t.Context(), f.db, dest, everything, MaxPDUs)
			if err != nil || len(queued) != 2 {
				return false
			}
		}
		return true
	})
	close(f.network.hold)
	got := map[matrix.ServerName][]string{}
	for range 4 {
		d := f.next()
		got[d.Dest] = append(got[d.Dest], d.PDUs...)
		if len(got["a.example"]) == 2 && len(got["b.example"]) == 2 {
			break
		}
	}
	for _, dest := range f.servers {
		if !slices.Equal(got[dest], []string{"one", "two"}) {
			t.Errorf("%s got %q", dest, got[dest])
		}
	}
	f.empty()
}

// An event may be queued for a server that was not in the room at the event, and is sent once.
func TestQueueAgain(t *testing.T) {
	f := setUp(t, "a.example")
	f.say("@me:us.example", "bye")
	f.publish()
	first := f.next()
	for _, dest := range []matrix.ServerName{"late.example", "us.example"} {
		if err := f.q.QueueAgain(t.Context(), dest, f.events[0]); err != nil {
			t.Fatal(err)
		}
	}
	if d := f.next(); d.Dest != "late.example" || !slices.Equal(d.PDUs, first.PDUs) {
		t.Errorf("%+v, want %v for late.example", d, first.PDUs)
	}
	f.say("@me:us.example", "more")
	f.publish()
	if d := f.next(); d.Dest != "a.example" {
		t.Errorf("%+v", d)
	}
}
