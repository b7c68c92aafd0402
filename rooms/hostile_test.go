package rooms_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage"
)

// forge makes an event of a user of s upon s's view of the room, whether or not it is allowed.
func (s *server) forge(room matrix.RoomID, p event.Proto) *event.Event {
	s.t.Helper()
	return s.forgeAt(s, room, p)
}

// forgeAt is forge in a room as another server sees it.
func (s *server) forgeAt(view *server, room matrix.RoomID, p event.Proto) *event.Event {
	s.t.Helper()
	snap, err := view.Snapshot(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	p.RoomID = room
	if p.PrevEvents == nil {
		p.PrevEvents = snap.Extremities
	}
	if p.Depth == 0 {
		p.Depth = snap.Depth + 1
	}
	if p.Content == nil {
		p.Content = []byte(`{}`)
	}
	p.OriginServerTS = max(p.OriginServerTS, 1)
	if p.AuthEvents == nil {
		key := ""
		if p.StateKey != nil {
			key = *p.StateKey
		}
		for _, k := range eventauth.Select(snap.Version, p.Type, key, p.StateKey != nil, p.Sender, p.Content) {
			if ev, err := snap.State.Event(ctx, k.Type, k.Key); err != nil {
				s.t.Fatal(err)
			} else if ev != nil {
				p.AuthEvents = append(p.AuthEvents, ev.ID())
			}
		}
	}
	return s.build(snap.Version, p)
}

// build makes an event as it is drafted, signed by s.
func (s *server) build(version *roomversion.Version, p event.Proto) *event.Event {
	s.t.Helper()
	ev, err := event.Build(version, p, s.name)
	if err == nil {
		ev, err = ev.Sign(s.name, s.key)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return ev
}

// twoServers is a room of two servers, in which b tries things.
func twoServers(t *testing.T) (n *network, a, b *server, room matrix.RoomID) {
	return twoServersIn(t, "11")
}

func twoServersIn(t *testing.T, version roomversion.ID) (n *network, a, b *server, room matrix.RoomID) {
	n = newNetwork(t)
	a, b, room = n.two(version)
	return n, a, b, room
}

func (n *network) two(version roomversion.ID) (a, b *server, room matrix.RoomID) {
	a, b = n.server("a.example"), n.server("b.example")
	room = a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: version})
	b.join(b.user("bob"), room, a)
	n.settle()
	return a, b, room
}

// threeServers is such a room of which c, whose user is carol, is the third server.
func threeServers(t *testing.T) (n *network, a, b, c *server, room matrix.RoomID) {
	n = newNetwork(t)
	a, b, c, room = n.three()
	return n, a, b, c, room
}

func (n *network) three() (a, b, c *server, room matrix.RoomID) {
	a, b, room = n.two("11")
	c = n.server("c.example")
	c.join(c.user("carol"), room, a)
	n.settle()
	return a, b, c, room
}

// aModeratorOnC is such a room in which carol may ban and redact.
func aModeratorOnC(t *testing.T) (n *network, a, b, c *server, room matrix.RoomID) {
	n, a, b, c, room = threeServers(t)
	a.set(a.user("alice"), room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@carol:c.example":50}}`)
	n.settle()
	return n, a, b, c, room
}

func (s *server) receive(from *server, room matrix.RoomID, pdus ...[]byte) []rooms.Received {
	return s.Receive(ctx, from.name, room, pdus)
}

func TestRejectedEvent(t *testing.T) {
	_, a, b, room := twoServers(t)
	bob := b.user("bob")
	before := a.state(room)
	empty := ""
	coup := b.forge(room, event.Proto{Sender: bob, Type: "m.room.name", StateKey: &empty, Content: []byte(`{"name":"coup"}`)})
	if r := a.receive(b, room, coup.JSON()); r[0].Err == nil || r[0].ID != coup.ID() {
		t.Fatalf("%+v", r)
	}
	if r := a.receive(b, room, coup.JSON()); r[0].Err == nil {
		t.Fatal("accepted the second time")
	}
	ev, err := a.Event(ctx, coup.ID())
	if err != nil || !ev.Rejected {
		t.Fatal("a rejected event is kept as such", ev, err)
	}
	// An event upon it is judged by itself, and the rejected event is in no state.
	next := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{coup.ID()}, Depth: 50, Content: []byte(`{"body":"after"}`)})
	if r := a.receive(b, room, next.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	if diff := cmp.Diff(before, a.state(room)); diff != "" {
		t.Fatal(diff)
	}
	// Naming the rejected event as an auth event is a reason for rejection.
	worse := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", AuthEvents: append(next.AuthEvents(), coup.ID())})
	if r := a.receive(b, room, worse.JSON()); r[0].Err == nil {
		t.Fatal("accepted an event authorised by a rejected one")
	}
	if diff := cmp.Diff([]string{"after"}, a.texts(a.user("alice"), room)); diff != "" {
		t.Fatal(diff)
	}
	a.restart()
	if diff := cmp.Diff(before, a.state(room)); diff != "" {
		t.Fatal(diff)
	}
}

// The server that made a room cannot make it again.
func TestSecondCreateEvent(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, mallory := a.user("alice"), b.user("mallory")
	room := b.create(b.user("bob"), rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	a.join(alice, room, b)
	n.settle()
	before := a.state(room)
	empty := ""
	again := b.forge(room, event.Proto{
		Sender: mallory, Type: "m.room.create", StateKey: &empty, Content: []byte(`{"room_version":"11"}`),
		PrevEvents: []matrix.EventID{}, AuthEvents: []matrix.EventID{}, Depth: 1,
	})
	if r := a.receive(b, room, again.JSON()); r[0].Err == nil {
		t.Errorf("%+v", r)
	}
	key := string(mallory)
	join := b.forge(room, event.Proto{
		Sender: mallory, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`),
		PrevEvents: []matrix.EventID{again.ID()}, AuthEvents: []matrix.EventID{again.ID()}, Depth: 2,
	})
	if r := a.receive(b, room, join.JSON()); r[0].Err == nil {
		t.Errorf("%+v", r)
	}
	// Nor does it count as an auth event that has to be fetched.
	n.forged = b.forge(room, event.Proto{
		Sender: mallory, Type: "m.room.create", StateKey: &empty, Content: []byte(`{"room_version":"11","x":1}`),
		PrevEvents: []matrix.EventID{}, AuthEvents: []matrix.EventID{}, Depth: 1,
	})
	message := b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message"})
	message = b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message",
		AuthEvents: append([]matrix.EventID{n.forged.ID()}, message.AuthEvents()[1:]...)})
	if r := a.receive(b, room, message.JSON()); r[0].Err == nil {
		t.Errorf("%+v", r)
	}
	if diff := cmp.Diff(before, a.state(room)); diff != "" {
		t.Error(diff)
	}
}

// named is an event of a room of version 1 or 2 under another name, signed by s.
func (s *server) named(e *event.Event, id matrix.EventID) *event.Event {
	s.t.Helper()
	json := canonicaljson.Set(canonicaljson.Delete(canonicaljson.Delete(e.JSON(), "signatures"), "hashes"), "event_id", canonicaljson.AppendString(nil, string(id)))
	hash := sha256.Sum256(json)
	json = canonicaljson.Set(json, "hashes", fmt.Appendf(nil, `{"sha256":%q}`, base64.RawStdEncoding.EncodeToString(hash[:])))
	same, err := event.FromStored(e.Version(), id, json)
	if err == nil {
		same, err = same.Sign(s.name, s.key)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return same
}

// Up to room version 2 a server names its events as it likes. A name that an event of another room has does not do.
func TestEventIDOfAnotherRoom(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	bob := b.user("bob")
	var in [2]matrix.RoomID
	for i := range in {
		in[i] = a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "1"})
		b.join(bob, in[i], a)
	}
	n.settle()
	first := b.forge(in[0], event.Proto{Sender: bob, Type: "m.room.message"})
	if r := a.receive(b, in[0], first.JSON()); r[0].Err != nil {
		t.Fatalf("%+v", r)
	}
	again := b.named(b.forge(in[1], event.Proto{Sender: bob, Type: "m.room.message"}), first.ID())
	good := b.forge(in[1], event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"good"}`)})
	r := a.receive(b, in[1], again.JSON(), good.JSON())
	if !matrix.HasCode(r[0].Err, "M_FORBIDDEN") || r[1].Err != nil {
		t.Errorf("%+v", r)
	}
	// The same where it is an auth event.
	n.forged = b.named(b.forge(in[1], event.Proto{Sender: bob, Type: "m.room.power_levels", StateKey: new(string)}), first.ID())
	auth := good.AuthEvents()
	auth = append([]matrix.EventID{n.forged.ID()}, auth...)
	message := b.forge(in[1], event.Proto{Sender: bob, Type: "m.room.message", AuthEvents: auth})
	if r := a.receive(b, in[1], message.JSON()); !matrix.HasCode(r[0].Err, "M_FORBIDDEN") || strings.Contains(r[0].Err.Error(), "UNIQUE") {
		t.Errorf("%+v", r)
	}
	a.say(a.user("alice"), in[1], "still here")
}

func TestMalformedEvents(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	bob := b.user("bob")
	good := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"good"}`)})
	other := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "11", Name: "other"})
	tampered := bytes.Replace(good.JSON(), []byte(`"good"`), []byte(`"evil"`), 1)
	unsigned, err := event.Build(good.Version(), event.Proto{RoomID: room, Sender: bob, Type: "m.room.message", Content: []byte(`{}`), PrevEvents: good.PrevEvents(), AuthEvents: good.AuthEvents(), Depth: good.Depth(), OriginServerTS: 2}, b.name)
	if err != nil {
		t.Fatal(err)
	}
	forSomebody, err := event.Build(good.Version(), event.Proto{RoomID: room, Sender: a.user("alice"), Type: "m.room.message", Content: []byte(`{}`), PrevEvents: good.PrevEvents(), AuthEvents: good.AuthEvents(), Depth: good.Depth(), OriginServerTS: 2}, b.name)
	if err == nil {
		forSomebody, err = forSomebody.Sign(b.name, b.key)
	}
	if err != nil {
		t.Fatal(err)
	}
	orphan := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{"$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}})
	foundling := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", AuthEvents: []matrix.EventID{"$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}})
	before := a.state(room)
	pdus := [][]byte{[]byte(`{`), []byte(`[]`), []byte(`{"type":"m.room.message"}`), unsigned.JSON(), forSomebody.JSON(), orphan.JSON(), foundling.JSON(), good.JSON(), nil}
	for i, r := range a.receive(b, room, pdus...) {
		if wantErr := i != 7; (r.Err != nil) != wantErr {
			t.Errorf("PDU %d: %v", i, r.Err)
		}
	}
	if r := a.receive(b, other, good.JSON()); r[0].Err == nil {
		t.Error("accepted an event of another room")
	}
	if r := c.receive(b, room, good.JSON()); r[0].Err == nil {
		t.Error("accepted an event for a room that the server is not in")
	}
	for _, ev := range []*event.Event{unsigned, forSomebody, orphan, foundling} {
		if _, err := a.Event(ctx, ev.ID()); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Errorf("an event that could not be checked was kept: %v", err)
		}
	}
	if diff := cmp.Diff(before, a.state(room)); diff != "" {
		t.Fatal(diff)
	}
	// A wrong content hash costs the content, no more. spec: server-server-api#checks-performed-on-receipt-of-a-pdu 3
	if r := b.receive(a, room, tampered); r[0].Err != nil || r[0].ID != good.ID() {
		t.Fatal(r)
	}
	if ev, err := b.Event(ctx, good.ID()); err != nil || string(ev.Content()) != `{}` {
		t.Fatal(ev, err)
	}
}

// Many forks at once: the extremities stay bounded, and go down again as soon as anybody speaks.
func TestManyForks(t *testing.T) {
	n, a, b, room := twoServers(t)
	bob := b.user("bob")
	var pdus [][]byte
	for i := range 120 {
		pdus = append(pdus, b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":"%d"}`, i)}).JSON())
	}
	for i, r := range a.receive(b, room, pdus...) {
		if r.Err != nil {
			t.Fatal(i, r.Err)
		}
	}
	if got := len(a.tips(room)); got > 50 {
		t.Fatalf("%d extremities", got)
	}
	for range 8 {
		a.say(a.user("alice"), room, "merge")
	}
	if got := len(a.tips(room)); got != 1 {
		t.Fatalf("%d extremities after merging", got)
	}
	n.settle()
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Fatal(diff)
	}
}

// Thousands of forks in one transaction after the other do not pile up.
func TestForksWithoutEnd(t *testing.T) {
	_, a, b, room := twoServers(t)
	most := 0
	for i := range 40 {
		branch(t, a, b, room, 50*i, 50)
		most = max(most, len(a.tips(room)))
	}
	if most > 10 {
		t.Errorf("%d extremities", most)
	}
}

// A server that answers with more than was asked for does not fill our disk.
func TestMoreThanTheAuthChain(t *testing.T) {
	n, a, b, room := twoServers(t)
	bob := b.user("bob")
	key := string(bob)
	rename := b.forge(room, event.Proto{Sender: bob, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join","displayname":"B"}`)})
	snapshot, err := b.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	auth := []matrix.EventID{rename.ID()}
	for _, typ := range []string{"m.room.create", "m.room.power_levels"} {
		ev, err := snapshot.State.Event(ctx, typ, "")
		if err != nil {
			t.Fatal(err)
		}
		auth = append(auth, ev.ID())
	}
	news := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", AuthEvents: auth, Content: []byte(`{"body":"news"}`)})
	var junk []*event.Event
	n.eventAuth = func() [][]byte {
		answer := [][]byte{rename.JSON()}
		for i := range 100 {
			ev := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":"junk %d"}`, i)})
			junk, answer = append(junk, ev), append(answer, ev.JSON())
		}
		return answer
	}
	for _, r := range a.receive(b, room, news.JSON()) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if _, err := a.Event(ctx, rename.ID()); err != nil {
		t.Errorf("the auth event that was asked for: %v", err)
	}
	for _, ev := range junk {
		if _, err := a.Event(ctx, ev.ID()); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Fatalf("an event that nobody asked for is kept: %v", err)
		}
	}
	if len(junk) == 0 {
		t.Error("nobody asked for the auth chain")
	}
}

// Who is not in a room gets nothing of it.
func TestServingStrangers(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	last := a.say(a.user("alice"), room, "private")
	denied := func(what string, err error) {
		t.Helper()
		if !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := a.ServeEvent(ctx, c.name, last)
	denied("event", err)
	_, _, err = a.ServeState(ctx, c.name, room, last)
	denied("state", err)
	_, _, err = a.ServeStateIDs(ctx, c.name, room, last)
	denied("state_ids", err)
	_, err = a.ServeEventAuth(ctx, c.name, room, last)
	denied("event_auth", err)
	_, err = a.ServeBackfill(ctx, c.name, room, []matrix.EventID{last}, 10)
	denied("backfill", err)
	_, err = a.ServeMissingEvents(ctx, c.name, room, nil, []matrix.EventID{last}, 10, 0)
	denied("get_missing_events", err)
	_, err = a.MakeJoin(ctx, c.name, room, b.user("bob"), supported)
	denied("make_join for another server's user", err)
	if _, err := a.MakeJoin(ctx, c.name, room, c.user("carol"), nil); !matrix.HasCode(err, "M_INCOMPATIBLE_ROOM_VERSION") {
		t.Error(err)
	}
	a.set(a.user("alice"), room, "m.room.server_acl", "", `{"allow":["*"],"deny":["c.example"]}`)
	_, err = a.MakeJoin(ctx, c.name, room, c.user("carol"), supported)
	denied("make_join against the ACL", err)
	a.set(a.user("alice"), room, "m.room.server_acl", "", `{"allow":["*"],"deny":["b.example"]}`)
	if r := a.receive(b, room, b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message"}).JSON()); r[0].Err == nil {
		t.Error("took an event from a server that the ACL excludes")
	}
}

// Nobody lets others into a room that everybody has left.
func TestJoinOfDesertedRoom(t *testing.T) {
	n := newNetwork(t)
	a, c := n.server("a.example"), n.server("c.example")
	alice := a.user("alice")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	if _, err := a.MakeJoin(ctx, c.name, room, c.user("carol"), roomversion.Supported()); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}); err != nil {
		t.Fatal(err)
	}
	if _, err := a.MakeJoin(ctx, c.name, room, c.user("carol"), roomversion.Supported()); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("make_join of a deserted room: %v", err)
	}
	a.join(alice, room) // who is at home here may come back
}

// A server that answers send_join with nonsense leaves us out of the room, and able to join through another.
func TestJoinThroughLiars(t *testing.T) {
	n, a, _, room := twoServers(t)
	c := n.server("c.example")
	for name, lie := range map[string]func(*rooms.SentJoin){
		"no state":        func(s *rooms.SentJoin) { s.State, s.AuthChain = nil, nil },
		"no create event": func(s *rooms.SentJoin) { s.State = s.State[:0:0] },
		"another event":   func(s *rooms.SentJoin) { s.Event = s.State[0] },
		"not JSON":        func(s *rooms.SentJoin) { s.Event = []byte("{") },
		"doubled state":   func(s *rooms.SentJoin) { s.State = append(s.State, doubles(t, a, room)...) },
	} {
		t.Run(name, func(t *testing.T) {
			n.lie = lie
			_, err := c.Join(ctx, rooms.MemberRequest{Room: room, Sender: c.user("carol"), Via: []matrix.ServerName{a.name}})
			if err == nil {
				t.Fatal("joined")
			}
			if snap, err := c.Snapshot(ctx, room); err == nil && snap.Resident {
				t.Fatal("resident")
			}
		})
	}
	n.lie = nil
	c.join(c.user("carol"), room, a)
	n.settle()
	if diff := cmp.Diff(a.state(room), c.state(room)); diff != "" {
		t.Fatal(diff)
	}
}

// doubles gives a second valid event for a key of the state.
func doubles(t *testing.T, a *server, room matrix.RoomID) [][]byte {
	snap, err := a.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := snap.State.Event(ctx, "m.room.join_rules", "")
	if err != nil {
		t.Fatal(err)
	}
	empty := ""
	return [][]byte{a.forge(room, event.Proto{Sender: ev.Sender(), Type: "m.room.join_rules", StateKey: &empty, Content: []byte(`{"join_rule":"public","x":1}`)}).JSON()}
}

// A commit fails while a transaction of another server is worked on: what was not stored is reported, and taken when it is
// sent again.
func TestFailedCommitOfRemoteEvents(t *testing.T) {
	n, a, b, room := twoServers(t)
	exec := func(statement string) {
		t.Helper()
		err := b.db.Write(ctx, func(tx *storage.Tx) error { _, err := tx.Exec(ctx, statement); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	alice := a.user("alice")
	var pdus [][]byte
	for i := range 20 {
		var id matrix.EventID
		if i%5 == 0 {
			id = a.set(alice, room, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, i))
		} else {
			id = a.say(alice, room, fmt.Sprint(i))
		}
		ev, err := a.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		pdus = append(pdus, ev.JSON())
		if i == 5 {
			exec(fmt.Sprintf(`CREATE TRIGGER fail BEFORE INSERT ON events WHEN NEW.event_id = '%s' BEGIN SELECT RAISE(ABORT, 'injected'); END`, id))
		}
	}
	failed := 0
	for _, r := range b.receive(a, room, pdus...) {
		if r.Err != nil {
			failed++
		}
	}
	if failed == 0 {
		t.Fatal("nothing failed")
	}
	exec(`DROP TRIGGER fail`)
	for i, r := range b.receive(a, room, pdus...) {
		if r.Err != nil {
			t.Fatal(i, r.Err)
		}
	}
	n.settle()
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Fatal(diff)
	}
	b.restart()
	if diff := cmp.Diff(a.texts(alice, room), b.texts(b.user("bob"), room)); diff != "" {
		t.Fatal(diff)
	}
}
