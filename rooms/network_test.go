package rooms_test

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

var (
	ctx       = context.Background()
	supported = roomversion.Supported()
)

// network connects engines without any network: a request is a call.
type network struct {
	t  testing.TB
	mu sync.Mutex
	// servers by name; cut holds the links that are down.
	servers    map[matrix.ServerName]*server
	cut        map[[2]matrix.ServerName]bool
	calls      map[string]int
	lie        func(*rooms.SentJoin)                              // what becomes of answers to send_join
	knocked    func([][]byte) [][]byte                            // the same for send_knock
	forged     *event.Event                                       // an event that every server gives out
	eventAuth  func() [][]byte                                    // what every server answers to event_auth; nil: the truth
	missing    func() [][]byte                                    // and to get_missing_events
	backfill   func(by matrix.ServerName, pdus [][]byte) [][]byte // what becomes of the answers to backfill
	event      func(matrix.EventID) []byte
	eventFails func(matrix.EventID) error // why a single event is not given; may be nil
	stateIDs   func() (state, auth []matrix.EventID)
	now        func() matrix.Timestamp // nil: the system's clock
	// recommend is the one policy server that there is: it signs an event or says why not.
	recommend func(by matrix.ServerName, pdu []byte) (signature []byte, err error)
	omit      bool // members are left out of them
	// hold, if set, is asked before a call is made.
	hold func(from, to matrix.ServerName, call string) error
}

// server is one engine with its database, and the events it has to send to others.
type server struct {
	*rooms.Engine
	t    testing.TB
	net  *network
	name matrix.ServerName
	key  signing.Key
	dsn  string
	db   *storage.DB

	mu             sync.Mutex
	updates        []*rooms.Update
	outbox         []*rooms.Event
	policy         rooms.Policy
	mayFederate    func(context.Context, matrix.UserID) error
	localByDefault bool
	answers        func(matrix.ServerName) bool
	end            context.CancelFunc
	ran            chan struct{} // closed when Run has returned
	memory         bool          // for tests that compare what is remembered with what is read
}

func newNetwork(t testing.TB) *network {
	return &network{t: t, servers: make(map[matrix.ServerName]*server), cut: make(map[[2]matrix.ServerName]bool), calls: make(map[string]int)}
}

// stoppedClock gives servers that start from now on a time that stands still until the test moves it.
func (n *network) stoppedClock(ms int64) *atomic.Int64 {
	clock := new(atomic.Int64)
	clock.Store(ms)
	n.now = func() matrix.Timestamp { return matrix.Timestamp(clock.Load()) }
	return clock
}

// runningClock gives them a time that is later each time it is asked for: what comes later says so.
func (n *network) runningClock() {
	var clock atomic.Int64
	n.now = func() matrix.Timestamp { return matrix.Timestamp(clock.Add(1)) }
}

func (n *network) server(name matrix.ServerName) *server {
	return n.serverOn(name, storagetest.SQLiteDSN(n.t))
}

func (n *network) serverOn(name matrix.ServerName, dsn string) *server {
	key, err := signing.Generate()
	if err != nil {
		n.t.Fatal(err)
	}
	s := &server{t: n.t, net: n, name: name, key: key, dsn: dsn}
	n.mu.Lock()
	n.servers[name] = s
	n.mu.Unlock()
	s.start()
	n.t.Cleanup(s.stop)
	return s
}

func (s *server) start() {
	s.t.Helper()
	var err error
	if s.db, err = storage.Open(ctx, storage.Options{DSN: s.dsn}); err != nil {
		s.t.Fatal(err)
	}
	log := zerolog.Nop()
	if testing.Verbose() {
		log = zerolog.New(zerolog.NewTestWriter(s.t)).With().Str("on", string(s.name)).Logger()
	}
	s.Engine, err = rooms.New(rooms.Options{DB: s.db, ServerName: s.name, Key: s.key, Remote: peer{s}, Listener: s, Policy: s.policy, MayFederate: s.mayFederate, LocalByDefault: s.localByDefault, Answers: s.answers, Now: s.net.now, Log: log})
	if err != nil {
		s.t.Fatal(err)
	}
	background, end := context.WithCancel(ctx)
	ran := make(chan struct{})
	s.end, s.ran = end, ran
	engine := s.Engine
	go func() {
		defer close(ran)
		_ = engine.Run(background)
	}()
}

func (s *server) stop() {
	if s.Engine == nil {
		return
	}
	s.end()
	<-s.ran
	s.Engine.Close()
	s.db.Close()
	s.Engine = nil
}

// restart loses all that is in memory.
func (s *server) restart() {
	s.t.Helper()
	s.stop()
	s.start()
}

// RoomUpdated implements rooms.Listener.
func (s *server) RoomUpdated(u *rooms.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.updates = append(s.updates, u)
	for _, ev := range u.Events {
		if ev.Relay {
			s.outbox = append(s.outbox, ev)
		}
	}
}

// flush sends what waits to the servers that are reachable, and reports whether there was anything.
// What cannot be sent is lost, as for a server that was away too long.
func (s *server) flush() bool {
	s.mu.Lock()
	out := s.outbox
	s.outbox = nil
	s.mu.Unlock()
	for _, ev := range out {
		servers, err := s.ServersAt(ctx, ev)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, name := range servers {
			other, err := s.net.reach(s.name, name)
			if err != nil {
				continue
			}
			for _, r := range other.Receive(ctx, s.name, ev.RoomID(), [][]byte{ev.JSON()}) {
				if r.Err != nil && testing.Verbose() {
					s.t.Logf("%s -> %s: %s %v", s.name, name, ev.Type(), r.Err)
				}
			}
		}
	}
	return len(out) > 0
}

// settle delivers everything.
func (n *network) settle() {
	for again := true; again; {
		again = false
		for _, name := range n.names() {
			if n.servers[name].flush() {
				again = true
			}
		}
	}
}

func (n *network) names() []matrix.ServerName {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []matrix.ServerName
	for name := range n.servers {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (n *network) split(a, b *server, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]matrix.ServerName{a.name, b.name}] = down
	n.cut[[2]matrix.ServerName{b.name, a.name}] = down
}

var errUnreachable = errors.New("unreachable")

func (n *network) reach(from, to matrix.ServerName) (*server, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.servers[to]
	if s == nil || n.cut[[2]matrix.ServerName{from, to}] {
		return nil, errUnreachable
	}
	return s, nil
}

// peer is a server's view of the others.
type peer struct{ s *server }

func (p peer) to(call string, dest matrix.ServerName) (*server, error) {
	p.s.net.mu.Lock()
	p.s.net.calls[string(p.s.name)+" "+call]++
	hold := p.s.net.hold
	p.s.net.mu.Unlock()
	if hold != nil {
		if err := hold(p.s.name, dest, call); err != nil {
			return nil, err
		}
	}
	return p.s.net.reach(p.s.name, dest)
}

func (p peer) Verify(_ context.Context, events []*event.Event) []error {
	out := make([]error, len(events))
	for i, ev := range events {
		out[i] = p.verify(ev)
	}
	return out
}

func (p peer) verify(ev *event.Event) error {
	for _, name := range ev.RequiredSigners() {
		p.s.net.mu.Lock()
		s := p.s.net.servers[name]
		p.s.net.mu.Unlock()
		if s == nil {
			return fmt.Errorf("no key of %s", name)
		}
		msg, sig, ok := ev.SignatureCheck(name, s.key.ID)
		if !ok {
			return fmt.Errorf("not signed by %s", name)
		}
		if !ed25519.Verify(s.key.Public(), msg, sig) {
			return signing.ErrBad
		}
	}
	return nil
}

func (p peer) MakeJoin(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (m rooms.MadeEvent, err error) {
	s, err := p.to("make_join", dest)
	if err != nil {
		return m, err
	}
	return s.MakeJoin(ctx, p.s.name, room, user, versions)
}

func (p peer) SendJoin(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) (m rooms.SentJoin, err error) {
	s, err := p.to("send_join", dest)
	if err != nil {
		return m, err
	}
	m, err = s.SendJoin(ctx, p.s.name, room, id, pdu, p.s.net.omit)
	if err == nil && p.s.net.lie != nil {
		p.s.net.lie(&m)
	}
	return m, err
}

func (p peer) MakeLeave(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID) (m rooms.MadeEvent, err error) {
	s, err := p.to("make_leave", dest)
	if err != nil {
		return m, err
	}
	return s.MakeLeave(ctx, p.s.name, room, user)
}

func (p peer) SendLeave(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) error {
	s, err := p.to("send_leave", dest)
	if err != nil {
		return err
	}
	return s.SendLeave(ctx, p.s.name, room, id, pdu)
}

func (p peer) MakeKnock(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (m rooms.MadeEvent, err error) {
	s, err := p.to("make_knock", dest)
	if err != nil {
		return m, err
	}
	return s.MakeKnock(ctx, p.s.name, room, user, versions)
}

func (p peer) SendKnock(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) ([][]byte, error) {
	s, err := p.to("send_knock", dest)
	if err != nil {
		return nil, err
	}
	stripped, err := s.SendKnock(ctx, p.s.name, room, id, pdu)
	if err == nil && p.s.net.knocked != nil {
		stripped = p.s.net.knocked(stripped)
	}
	return stripped, err
}

func (p peer) Invite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, version roomversion.ID, pdu []byte, stripped [][]byte) ([]byte, error) {
	s, err := p.to("invite", dest)
	if err != nil {
		return nil, err
	}
	return s.ReceiveInvite(ctx, p.s.name, room, id, version, pdu, stripped)
}

func (p peer) Event(ctx context.Context, dest matrix.ServerName, id matrix.EventID) ([]byte, error) {
	s, err := p.to("event", dest)
	if err != nil {
		return nil, err
	}
	if forged := p.s.net.forged; forged != nil && forged.ID() == id {
		return forged.JSON(), nil
	}
	if fails := p.s.net.eventFails; fails != nil {
		if err := fails(id); err != nil {
			return nil, err
		}
	}
	if p.s.net.event != nil {
		return p.s.net.event(id), nil
	}
	return s.ServeEvent(ctx, p.s.name, id)
}

func (p peer) State(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth [][]byte, err error) {
	s, err := p.to("state", dest)
	if err != nil {
		return nil, nil, err
	}
	return s.ServeState(ctx, p.s.name, room, at)
}

func (p peer) StateIDs(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth []matrix.EventID, err error) {
	s, err := p.to("state_ids", dest)
	if err != nil {
		return nil, nil, err
	}
	if p.s.net.stateIDs != nil {
		state, auth = p.s.net.stateIDs()
		return state, auth, nil
	}
	return s.ServeStateIDs(ctx, p.s.name, room, at)
}

func (p peer) EventAuth(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([][]byte, error) {
	s, err := p.to("event_auth", dest)
	if err != nil {
		return nil, err
	}
	if p.s.net.eventAuth != nil {
		return p.s.net.eventAuth(), nil
	}
	return s.ServeEventAuth(ctx, p.s.name, room, id)
}

func (p peer) Backfill(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([][]byte, error) {
	s, err := p.to("backfill", dest)
	if err != nil {
		return nil, err
	}
	pdus, err := s.ServeBackfill(ctx, p.s.name, room, from, limit)
	if err == nil && p.s.net.backfill != nil {
		pdus = p.s.net.backfill(dest, pdus)
	}
	return pdus, err
}

func (p peer) MissingEvents(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([][]byte, error) {
	s, err := p.to("get_missing_events", dest)
	if err != nil {
		return nil, err
	}
	if p.s.net.missing != nil {
		return p.s.net.missing(), nil
	}
	return s.ServeMissingEvents(ctx, p.s.name, room, earliest, latest, limit, minDepth)
}

func (p peer) TimestampToEvent(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, ts matrix.Timestamp, dir string) (matrix.EventID, matrix.Timestamp, error) {
	s, err := p.to("timestamp_to_event", dest)
	if err != nil {
		return "", 0, err
	}
	ev, err := s.ServeEventByTime(ctx, p.s.name, room, ts, dir == "b")
	if err != nil {
		return "", 0, err
	}
	return ev.ID(), ev.OriginServerTS(), nil
}

// Hierarchy goes through JSON, as between servers.
func (p peer) Hierarchy(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*rooms.Hierarchy, error) {
	s, err := p.to("hierarchy", dest)
	if err != nil {
		return nil, err
	}
	h, err := s.ServeHierarchy(ctx, p.s.name, room, suggestedOnly)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	var out rooms.Hierarchy
	return &out, json.Unmarshal(b, &out)
}

func (p peer) PolicySign(_ context.Context, dest matrix.ServerName, pdu []byte, _ bool) ([]byte, error) {
	if _, err := p.to("policy", dest); err != nil {
		return nil, err
	}
	return p.s.net.recommend(p.s.name, pdu)
}

func (p peer) ExchangeThirdPartyInvite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, event []byte) error {
	s, err := p.to("exchange_third_party_invite", dest)
	if err != nil {
		return err
	}
	var made struct {
		Sender  matrix.UserID `json:"sender"`
		Target  matrix.UserID `json:"state_key"`
		Content struct {
			Invite struct {
				Signed json.RawMessage `json:"signed"`
			} `json:"third_party_invite"`
		} `json:"content"`
	}
	if err := json.Unmarshal(event, &made); err != nil {
		return err
	}
	return s.AcceptThirdPartyInvite(ctx, room, made.Sender, made.Target, made.Content.Invite.Signed)
}

func (p peer) Directory(ctx context.Context, dest matrix.ServerName, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	s, err := p.to("directory", dest)
	if err != nil {
		return "", nil, err
	}
	return s.ResolveLocalAlias(ctx, alias)
}

// Shorthands.

func (s *server) user(name string) matrix.UserID {
	return matrix.UserID("@" + name + ":" + string(s.name))
}

func (s *server) create(user matrix.UserID, q rooms.CreateRequest) matrix.RoomID {
	s.t.Helper()
	q.Creator = user
	id, err := s.CreateRoom(ctx, q)
	if err != nil {
		s.t.Fatalf("create: %v", err)
	}
	return id
}

func (s *server) say(user matrix.UserID, room matrix.RoomID, text string) matrix.EventID {
	s.t.Helper()
	id, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: "m.room.message", Content: []byte(`{"msgtype":"m.text","body":"` + text + `"}`)})
	if err != nil {
		s.t.Fatalf("%s says %q: %v", user, text, err)
	}
	return id
}

func (s *server) set(user matrix.UserID, room matrix.RoomID, typ, key, content string) matrix.EventID {
	s.t.Helper()
	id, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: typ, StateKey: &key, Content: []byte(content)})
	if err != nil {
		s.t.Fatalf("%s sets %s: %v", user, typ, err)
	}
	return id
}

func (s *server) join(user matrix.UserID, room matrix.RoomID, via ...*server) {
	s.t.Helper()
	q := rooms.MemberRequest{Room: room, Sender: user}
	for _, v := range via {
		q.Via = append(q.Via, v.name)
	}
	if _, err := s.Join(ctx, q); err != nil {
		s.t.Fatalf("%s joins: %v", user, err)
	}
}

func (s *server) must(_ matrix.EventID, err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// state lists the current state as "type|key=eventID", sorted.
func (s *server) state(room matrix.RoomID) []string {
	s.t.Helper()
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	events, err := snap.State.All(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, ev := range events {
		key, _ := ev.StateKey()
		out = append(out, ev.Type()+"|"+key+"="+string(ev.ID()))
	}
	slices.Sort(out)
	return out
}

// texts are the bodies of the messages that a user sees, oldest first.
func (s *server) texts(user matrix.UserID, room matrix.RoomID) []string {
	s.t.Helper()
	page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: user, Backward: true, Limit: 100, Filter: func(ev *rooms.Event) bool { return ev.Type() == "m.room.message" }})
	if err != nil {
		s.t.Fatal(err)
	}
	var out []string
	for _, ev := range page.Events {
		body, _ := ev.ContentString("body")
		out = append(out, body)
	}
	slices.Reverse(out)
	return out
}

func (n *network) count(call string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.calls[call]
}
