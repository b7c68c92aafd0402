package rooms_test

import (
	"encoding/json"
	"fmt"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// Servers that are in the room already hear of an invite as of any other event.
func TestInviteReachesTheRoom(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	for _, invited := range []matrix.UserID{b.user("bella"), c.user("carol")} {
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: a.user("alice"), Target: invited}))
	}
	n.settle()
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Error(diff)
	}
	m, err := b.MembershipOf(ctx, room, b.user("bella"))
	if err != nil || m.Membership != "invite" {
		t.Error(m, err)
	}
}

// An invite is taken back by who sent it; if by another, that is asked later.
func TestInviteTakenBack(t *testing.T) {
	n := newNetwork(t)
	a, c := n.server("a.example"), n.server("c.example")
	alice, bob, carol := a.user("alice"), a.user("bob"), c.user("carol")
	room := a.create(alice, rooms.CreateRequest{Preset: "private_chat", Invite: []matrix.UserID{bob}})
	a.join(bob, room)
	expect := func(want string) {
		t.Helper()
		n.settle()
		m, err := c.MembershipOf(ctx, room, carol)
		if err != nil || m.Membership != want {
			t.Errorf("membership %q, not %q: %v", m.Membership, want, err)
		}
	}
	invite := func(by matrix.UserID) {
		t.Helper()
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: by, Target: carol}))
		expect("invite")
	}
	kick := func() {
		t.Helper()
		a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol}))
	}
	invite(bob)
	kick()
	expect("invite")
	invite(alice)
	kick()
	expect("leave")
}

// A named server's refusal stands; where none of the named answers, others that are known to be in the room are asked.
func TestJoinAsksNamedServersFirst(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	carol := c.user("carol")
	c.join(carol, room, a)
	c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
	n.settle()
	a.set(a.user("alice"), room, "m.room.join_rules", "", `{"join_rule":"invite"}`)
	n.settle()
	try := func(code string, want int) {
		t.Helper()
		before := n.count("c.example make_join")
		_, err := c.Join(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{b.name}})
		if got := n.count("c.example make_join") - before; got != want {
			t.Errorf("%d servers asked, not %d", got, want)
		}
		if code == "" && err != nil || code != "" && !matrix.HasCode(err, code) {
			t.Error(err)
		}
	}
	try("M_FORBIDDEN", 1)
	a.set(a.user("alice"), room, "m.room.join_rules", "", `{"join_rule":"public"}`)
	n.split(b, c, true)
	try("", 2)
	n.split(b, c, false)
	c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: b.user("bob")}))
	n.settle()
	try("", 2) // that b is not in the room any more is no refusal
}

// Servers that did not answer lately are asked last, and one that may not let the user in does not end the search.
func TestJoinThroughWhoCan(t *testing.T) {
	n := newNetwork(t)
	a, b, c, d := n.server("a.example"), n.server("b.example"), n.server("c.example"), n.server("d.example")
	alice, carol := a.user("alice"), c.user("carol")
	lobby := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	b.join(b.user("bob"), room, a)
	d.join(d.user("dora"), room, a)
	c.join(carol, lobby, a)
	n.settle()
	a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"`+string(lobby)+`"}]}`)
	n.settle()
	c.stop()
	c.answers = func(s matrix.ServerName) bool { return s != "d.example" }
	c.start()
	// b is in the room, but cannot tell who is in the lobby: only a can let carol in. d is not asked, it did not answer lately.
	join := rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{"d.example", "b.example", "a.example"}}
	c.must(c.Join(ctx, join))
	if asked := n.count("c.example make_join"); asked != 1+2 { // the lobby, then b and a
		t.Errorf("%d servers were asked", asked-1)
	}
}

// What was sent on the other side of a partition comes late in the stream and early in the graph: paginating back from
// a timeline finds all that came before it, once.
func TestTimelineAfterPartition(t *testing.T) {
	_, a, b, room := twoServers(t)
	alice := a.user("alice")
	late := b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message", Content: []byte(`{"body":"late"}`)})
	for _, text := range []string{"1", "2", "3", "4"} {
		a.say(alice, room, text)
	}
	if r := a.receive(b, room, late.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	for _, text := range []string{"5", "6", "7"} {
		a.say(alice, room, text)
	}
	bodies := func(events []*rooms.Event) []string {
		var out []string
		for _, ev := range events {
			body, _ := ev.ContentString("body")
			out = append(out, body)
		}
		return out
	}
	nid, err := a.RoomNID(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	tl, err := a.Timeline(ctx, rooms.TimelineRequest{Room: nid, Until: a.db.Current(), Limit: 4})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"late", "5", "6", "7"}, bodies(tl.Events)); diff != "" {
		t.Fatal(diff)
	}
	var got []string
	from := tl.PrevBatch
	for range 3 {
		if from, err = rooms.ParseToken(from.String()); err != nil {
			t.Fatal(err)
		}
		page, err := a.Messages(ctx, rooms.MessagesRequest{Room: room, User: alice, From: &from, Backward: true, Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, bodies(page.Events)...)
		from = *page.End
	}
	if diff := cmp.Diff([]string{"4", "3", "2", "1"}, got[:4]); diff != "" {
		t.Error(diff)
	}
	if slices.Contains(got, "late") {
		t.Error("an event of the timeline was shown again")
	}
}

// A redaction may be sent before its target has come, by those who may redact what others sent.
func TestRedactionOfUnknownEvent(t *testing.T) {
	_, a, b, room := twoServers(t)
	bob := b.user("bob")
	target := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"x"}`)})
	_, err := b.Redact(ctx, rooms.SendRequest{Room: room, Sender: bob, Redacts: "$" + target.ID()[1:5]}, "")
	if !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
	redaction, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: a.user("alice"), Redacts: target.ID()}, "")
	if err != nil {
		t.Fatal(err)
	}
	if r := a.receive(b, room, target.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	ev, err := a.Event(ctx, target.ID())
	if err != nil || ev.RedactedBy != redaction || string(ev.Content()) != "{}" {
		t.Error("the target is not redacted", err)
	}
}

// Where the room ID names the create event in the place of auth_events, it is part of every chain all the same.
func TestAuthChainsHoldCreate(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	room := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "12"})
	b.join(b.user("bob"), room, a)
	id := a.say(a.user("alice"), room, "x")
	version, _ := roomversion.Get("12")
	check := func(what string, chain [][]byte, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(what, err)
		}
		types := map[string]int{}
		for _, pdu := range chain {
			ev, err := event.Parse(version, pdu)
			if err != nil {
				t.Fatal(err)
			}
			types[ev.Type()]++
		}
		if types["m.room.create"] != 1 || types["m.room.member"] < 1 || types["m.room.power_levels"] != 1 {
			t.Errorf("the auth chain of %s: %v", what, types)
		}
	}
	chain, err := a.ServeEventAuth(ctx, b.name, room, id)
	check("an event", chain, err)
	_, chain, err = a.ServeState(ctx, b.name, room, id)
	check("a state", chain, err)
	carol := string(b.user("carol"))
	join := b.forge(room, event.Proto{Sender: matrix.UserID(carol), Type: "m.room.member", StateKey: &carol, Content: []byte(`{"membership":"join"}`)})
	sent, err := a.SendJoin(ctx, b.name, room, join.ID(), join.JSON(), false)
	check("a join", sent.AuthChain, err)
}

// Content that nobody may send is the request's fault, not a lack of permission.
func TestMalformedStateIsBadRequest(t *testing.T) {
	n := newNetwork(t)
	a := n.server("a.example")
	alice := a.user("alice")
	room := a.create(alice, rooms.CreateRequest{Version: "12"})
	empty := ""
	for content, code := range map[string]string{`{"users":{"@alice:a.example":100}}`: "M_BAD_JSON", `{"ban":"50"}`: "M_BAD_JSON"} {
		_, err := a.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.power_levels", StateKey: &empty, Content: []byte(content)})
		if !matrix.HasCode(err, code) {
			t.Errorf("%s: %v", content, err)
		}
	}
	_, err := a.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.create", StateKey: &empty, Content: []byte(`{}`)})
	if !matrix.HasCode(err, "M_INVALID_PARAM") {
		t.Error(err)
	}
}

// A knock is taken back where it was made, also in a room whose ID has no domain.
func TestKnockTakenBack(t *testing.T) {
	n := newNetwork(t)
	a, c := n.server("a.example"), n.server("c.example")
	carol := c.user("carol")
	room := a.create(a.user("alice"), rooms.CreateRequest{Version: "12", InitialState: []rooms.StateInput{{Type: "m.room.join_rules", Content: []byte(`{"join_rule":"knock"}`)}}})
	for _, want := range []string{"knock", "leave"} {
		q := rooms.MemberRequest{Room: room, Sender: carol}
		if want == "knock" {
			q.Via = []matrix.ServerName{a.name}
			c.must(c.Knock(ctx, q))
		} else {
			c.must(c.Leave(ctx, q))
		}
		n.settle()
		for _, s := range []*server{a, c} {
			if m, err := s.MembershipOf(ctx, room, carol); err != nil || m.Membership != want {
				t.Errorf("%s: %q, not %q: %v", s.name, m.Membership, want, err)
			}
		}
	}
}

// A restricted room is joined right after the room that counts, before the other server has heard of that; and
// servers say why they cannot let somebody in.
func TestRestrictedJoinAheadOfNews(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob, bella, carol := a.user("alice"), b.user("bob"), b.user("bella"), c.user("carol")
	club := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	room := a.create(alice, rooms.CreateRequest{Version: "11", PowerOverride: []byte(`{"invite":50}`)})
	a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"`+string(club)+`"}]}`)
	b.join(bob, club, a)
	n.settle()
	b.join(bob, room, a)
	n.settle()

	b.join(bella, club)
	before := n.count("b.example make_join")
	done := make(chan error, 1)
	go func() {
		_, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: bella})
		done <- err
	}()
	for n.count("b.example make_join") == before {
		runtime.Gosched()
	}
	n.settle()
	if err := <-done; err != nil {
		t.Error(err)
	}

	c.join(carol, club, a)
	n.settle()
	makeJoin := func(code string) {
		t.Helper()
		if _, err := b.MakeJoin(ctx, c.name, room, carol, roomversion.Supported()); !matrix.HasCode(err, code) {
			t.Error(err)
		}
	}
	makeJoin("M_UNABLE_TO_GRANT_JOIN")
	for _, user := range []matrix.UserID{bob, bella} {
		b.must(b.Leave(ctx, rooms.MemberRequest{Room: club, Sender: user}))
	}
	makeJoin("M_UNABLE_TO_AUTHORISE_JOIN")
}

// A server that asks for the members to be left out is told who was in the room before it.
func TestServersBeforeJoin(t *testing.T) {
	n, a, _, room := twoServers(t)
	c := n.server("c.example")
	version, _ := roomversion.Get("11")
	join := func(user matrix.UserID) []matrix.ServerName {
		t.Helper()
		made, err := a.MakeJoin(ctx, c.name, room, user, roomversion.Supported())
		if err != nil {
			t.Fatal(err)
		}
		var template struct {
			Prev  []matrix.EventID `json:"prev_events"`
			Auth  []matrix.EventID `json:"auth_events"`
			Depth int64            `json:"depth"`
		}
		if err := json.Unmarshal(made.Event, &template); err != nil {
			t.Fatal(err)
		}
		key := string(user)
		ev := c.build(version, event.Proto{
			RoomID: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`),
			PrevEvents: template.Prev, AuthEvents: template.Auth, Depth: template.Depth, OriginServerTS: 1,
		})
		sent, err := a.SendJoin(ctx, c.name, room, ev.ID(), ev.JSON(), true)
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(sent.Servers)
		return sent.Servers
	}
	if diff := cmp.Diff([]matrix.ServerName{"a.example", "b.example"}, join(c.user("carol"))); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]matrix.ServerName{"a.example", "b.example", "c.example"}, join(c.user("carla"))); diff != "" {
		t.Error(diff)
	}
}

// What its sender does not say about an event is asked of another server in the room.
func TestStateFromAnotherServer(t *testing.T) {
	n, a, b, c, room := threeServers(t)
	// a misses a message of c and the one of b that builds on it.
	n.split(a, c, true)
	c.say(c.user("carol"), room, "missed")
	c.flush()
	b.say(b.user("bob"), room, "built on it")
	b.mu.Lock()
	news := b.outbox[len(b.outbox)-1]
	b.outbox = nil
	b.mu.Unlock()
	n.split(a, c, false)
	n.split(a, b, true) // b sends, and answers nothing
	for _, r := range a.receive(b, room, news.JSON()) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	if texts := a.texts(a.user("alice"), room); len(texts) == 0 || texts[len(texts)-1] != "built on it" {
		t.Error(texts)
	}
}

// Events of a gap that come one by one, in order, cost no question about each: they go on where the room ended before the gap.
func TestGapClosedFromBehind(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice := a.user("alice")
	var late [][]byte
	for i := range 30 {
		ev, err := a.Event(ctx, a.say(alice, room, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		late = append(late, ev.JSON())
	}
	a.set(alice, room, "m.room.topic", "", `{"topic":"after"}`)
	a.mu.Lock()
	a.outbox = a.outbox[len(a.outbox)-1:]
	a.mu.Unlock()
	n.missing = func() [][]byte { return nil } // a does not tell what is between
	n.settle()
	before := n.count("b.example get_missing_events")
	for _, pdu := range late {
		if r := b.receive(a, room, pdu); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	if asked := n.count("b.example get_missing_events") - before; asked != 0 {
		t.Errorf("what lies between was asked for %d times", asked)
	}
	n.missing = nil
	b.say(b.user("bob"), room, "all there")
	n.settle()
	if d := cmp.Diff(a.state(room), b.state(room)); d != "" {
		t.Error(d)
	}
	want, got := a.texts(alice, room), b.texts(b.user("bob"), room)
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" || len(got) != 31 {
		t.Error(d)
	}
}
