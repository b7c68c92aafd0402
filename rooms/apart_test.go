package rooms_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// What happens to servers that leave rooms, are removed from them and come back while others have not heard of it.

func (s *server) expectMembership(user matrix.UserID, room matrix.RoomID, want string) {
	s.t.Helper()
	m, err := s.MembershipOf(ctx, room, user)
	if err != nil || m.Membership != want {
		s.t.Errorf("%s says that %s has the membership %q, not %q: %v", s.name, user, m.Membership, want, err)
	}
}

func (s *server) tips(room matrix.RoomID) []matrix.EventID {
	s.t.Helper()
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	return snap.Extremities
}

func version11(t *testing.T) *roomversion.Version {
	t.Helper()
	v, ok := roomversion.Get("11")
	if !ok {
		t.Fatal("no room version 11")
	}
	return v
}

// The server that an invite came from may have left the room, or not know its members yet. That says nothing about the invite: another is asked.
func TestInviteTakenBackIfTheInviterDoesNotKnow(t *testing.T) {
	n, a, b, room := twoServers(t)
	c, d := n.server("c.example"), n.server("d.example")
	alice, bob, carol, dave := a.user("alice"), b.user("bob"), c.user("carol"), d.user("dave")
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100},"invite":0}`)
	n.settle()
	id, err := b.Invite(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: carol})
	b.must(id, err)
	n.settle()
	n.mu.Lock()
	n.hold = func(_, to matrix.ServerName, call string) error {
		if to == b.name && call == "make_leave" {
			return matrix.NotFound("this server has joined the room just now and does not know its members yet")
		}
		return nil
	}
	n.mu.Unlock()
	key := string(carol)
	forged := d.build(version11(t), event.Proto{
		RoomID: room, Sender: dave, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`),
		OriginServerTS: 1, PrevEvents: []matrix.EventID{id}, AuthEvents: []matrix.EventID{id}, Depth: 20,
	}).JSON()
	for _, unreachable := range []bool{false, true} {
		n.split(a, c, unreachable)
		for range 2 {
			if r := c.receive(d, room, forged); r[0].Err == nil {
				t.Errorf("other server unreachable %v: not told to come again", unreachable)
			}
			c.expectMembership(carol, room, "invite")
		}
	}
	n.split(a, c, false)
	kick, err := a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol})
	a.must(kick, err)
	ev, err := a.Event(ctx, kick)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // it is asked when the event comes again
		c.receive(a, room, ev.JSON())
	}
	c.expectMembership(carol, room, "leave")
}

// The request with an invite may be repeated when the invite is over: it does not come back. Another invite does count.
func TestInviteRepeated(t *testing.T) {
	for name, end := range map[string]func(a, b *server, room matrix.RoomID, bob matrix.UserID) (matrix.EventID, error){
		"taken back": func(a, _ *server, room matrix.RoomID, bob matrix.UserID) (matrix.EventID, error) {
			return a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: a.user("alice"), Target: bob})
		},
		"turned down": func(_, b *server, room matrix.RoomID, bob matrix.UserID) (matrix.EventID, error) {
			return b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob})
		},
		"accepted, and left": func(a, b *server, room matrix.RoomID, bob matrix.UserID) (matrix.EventID, error) {
			b.join(bob, room, a)
			return b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob})
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			a, b := n.server("a.example"), n.server("b.example")
			alice, bob := a.user("alice"), b.user("bob")
			room := a.create(alice, rooms.CreateRequest{Preset: "private_chat", Version: "11"})
			id, err := a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob})
			a.must(id, err)
			n.settle()
			b.expectMembership(bob, room, "invite")
			invite, err := a.Event(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			b.must(end(a, b, room, bob))
			n.settle()
			b.expectMembership(bob, room, "leave")
			if _, err := b.ReceiveInvite(ctx, a.name, room, id, "11", invite.JSON(), nil); err != nil {
				t.Errorf("repeated: %v", err)
			}
			b.expectMembership(bob, room, "leave")
			id, err = a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob})
			a.must(id, err)
			b.expectMembership(bob, room, "invite")
		})
	}
}

// An invite may be taken back by others than who sent it; whether they may is asked of the server that the invite came from.
func TestInviteTakenBackByOthers(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	b.join(bob, room, a)
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100},"invite":0}`)
	n.settle()
	invite := func() matrix.EventID {
		t.Helper()
		id, err := b.Invite(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: carol})
		b.must(id, err)
		n.settle()
		c.expectMembership(carol, room, "invite")
		return id
	}
	id := invite()
	// Bob's server makes what the rules do not allow; that is for the inviter's server to know, which here is another's.
	key := string(carol)
	forged := func(by *server, sender matrix.UserID) []byte {
		t.Helper()
		return by.build(version11(t), event.Proto{
			RoomID: room, Sender: sender, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`),
			OriginServerTS: 1, PrevEvents: []matrix.EventID{id}, AuthEvents: []matrix.EventID{id}, Depth: 20,
		}).JSON()
	}
	d := n.server("d.example")
	for range 3 {
		if r := c.receive(d, room, forged(d, d.user("dave"))); !errors.Is(r[0].Err, rooms.ErrUnsettled) {
			t.Error("not told to come again:", r[0].Err)
		}
	}
	c.expectMembership(carol, room, "invite")
	n.split(b, c, true)
	if r := c.receive(d, room, forged(d, d.user("dave"))); r[0].Err == nil {
		t.Error("taken back though the inviter's server cannot be asked")
	}
	n.split(b, c, false)
	kick, err := a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol})
	a.must(kick, err)
	n.settle()
	ev, err := a.Event(ctx, kick)
	if err != nil {
		t.Fatal(err)
	}
	c.expectMembership(carol, room, "invite")
	if r := c.receive(a, room, ev.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	c.expectMembership(carol, room, "leave")
}

// The invited user's server was in the room when it signed the invite, and is not any more when the invite comes.
func TestInviteAfterTheLastLeave(t *testing.T) {
	n, a, b, room := twoServers(t)
	bob, bella := b.user("bob"), b.user("bella")
	n.split(a, b, true)
	n.hold = func(_, _ matrix.ServerName, call string) error {
		n.split(a, b, call != "invite")
		return nil
	}
	a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: a.user("alice"), Target: bella}))
	n.hold = nil
	n.split(a, b, true)
	a.mu.Lock()
	last := a.outbox[len(a.outbox)-1]
	invite := last.JSON()
	a.mu.Unlock()
	n.split(a, b, false)
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	b.flush()
	sent, err := a.ServersAt(ctx, last)
	if err != nil || !slices.Contains(sent, b.name) {
		t.Errorf("the invite is not sent to the server: %s %v", sent, err)
	}
	for range 2 {
		if r := b.receive(a, room, invite); r[0].Err != nil {
			t.Error(r[0].Err)
		}
		b.expectMembership(bella, room, "invite")
	}
	state, err := b.InviteState(ctx, bella, room)
	if err != nil || !slices.ContainsFunc(state, func(ev []byte) bool { return strings.Contains(string(ev), `"m.room.create"`) }) {
		t.Errorf("nothing to show of the room: %s %v", state, err)
	}
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bella}))
	b.expectMembership(bella, room, "leave")
	b.receive(a, room, invite)
	b.expectMembership(bella, room, "leave")
}

// Who was banned by one who might not, as it turns out, is in the room again with the news that says so.
func TestBanThatDoesNotHold(t *testing.T) {
	n, a, b, c, room := aModeratorOnC(t)
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	n.split(a, c, true)
	n.split(a, b, true)
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100}}`)
	demotion := a.tips(room)[0]
	pdu, err := a.Event(ctx, demotion)
	if err != nil {
		t.Fatal(err)
	}
	c.must(c.Ban(ctx, rooms.MemberRequest{Room: room, Sender: carol, Target: bob}))
	n.settle()
	b.expectMembership(bob, room, "ban")
	n.split(a, c, false)
	n.split(a, b, false)
	if r := b.receive(a, room, pdu.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	if r := c.receive(a, room, pdu.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	b.expectMembership(bob, room, "join")
	a.say(alice, room, "still here?")
	b.say(bob, room, "yes")
	n.settle()
	a.say(alice, room, "good")
	n.settle()
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Error(diff)
	}
}

// The same with who was banned by somebody of the same server, who left then.
func TestBanByOwnUserThatDoesNotHold(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob, bella := a.user("alice"), b.user("bob"), b.user("bella")
	b.join(bella, room, a)
	n.settle()
	c := n.server("c.example")
	c.join(c.user("carol"), room, a)
	n.settle()
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@bob:b.example":50}}`)
	n.settle()
	n.split(a, b, true)
	n.split(a, c, true)
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100}}`)
	b.must(b.Ban(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: bella}))
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	b.mu.Lock()
	unsent := b.outbox
	b.mu.Unlock()
	n.settle()
	c.expectMembership(bella, room, "ban")
	n.split(a, b, false)
	n.split(a, c, false)
	for _, ev := range unsent {
		if r := a.receive(b, room, ev.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	a.expectMembership(bella, room, "join")
	b.expectMembership(bella, room, "ban")
	a.say(alice, room, "still here?")
	n.settle()
	b.expectMembership(bella, room, "join")
	for _, s := range []*server{b, c} {
		if diff := cmp.Diff(a.state(room), s.state(room)); diff != "" {
			t.Errorf("%s: %s", s.name, diff)
		}
	}
	// Which sent b nothing meanwhile.
	if missed, err := c.ReturnedUnawares(ctx, room, bella); err != nil || !missed {
		t.Errorf("the server of the join that holds again missed something: %v, %v", missed, err)
	}
}

// Device lists are told to a server that has come back into a room without knowing that it was out of it.
func TestReturnedUnawares(t *testing.T) {
	expect := func(s *server, room matrix.RoomID, user matrix.UserID, want bool) {
		t.Helper()
		if got, err := s.ReturnedUnawares(ctx, room, user); err != nil || got != want {
			t.Errorf("%s: %s came back unawares: %v, %v", s.name, user, got, err)
		}
	}
	n, a, b, room := twoServers(t)
	alice, bob, bert := a.user("alice"), b.user("bob"), b.user("bert")
	expect(a, room, bob, false)
	expect(b, room, alice, false)
	b.join(bert, room)
	n.settle()
	expect(a, room, bert, false)

	// The join was made while another one's was thought to last.
	n, a, b, room = twoServers(t)
	alice, bob, bert = a.user("alice"), b.user("bob"), b.user("bert")
	n.split(a, b, true)
	b.join(bert, room)
	b.mu.Lock()
	join := b.outbox[len(b.outbox)-1]
	b.mu.Unlock()
	a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	n.settle()
	n.split(a, b, false)
	if r := a.receive(b, room, join.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	a.expectMembership(bert, room, "join")
	expect(a, room, bert, true)
	a.say(alice, room, "that was a kick")
	n.settle()
	b.expectMembership(bob, room, "leave")
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bert}))
	n.settle()
	b.join(bert, room, a)
	n.settle()
	expect(a, room, bert, false)
}

// Who is banned may not be told any more what came before the ban.
func TestBanOutOfTheBlue(t *testing.T) {
	for _, gone := range []bool{false, true} { // the server of who bans has left by then
		n, a, b, c, room := threeServers(t)
		d := n.server("d.example")
		alice, dave := a.user("alice"), d.user("dave")
		for _, s := range []*server{b, c, d} {
			n.split(a, s, true)
		}
		a.say(alice, room, "about dave")
		ban, err := a.Ban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: dave})
		a.must(ban, err)
		d.join(dave, room, b)
		pdu, err := a.Event(ctx, ban)
		if err != nil {
			t.Fatal(err)
		}
		if gone {
			a.must(a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}))
		}
		n.split(a, d, false)
		if r := d.receive(a, room, pdu.JSON()); r[0].Err != nil {
			t.Error(r[0].Err)
		}
		d.expectMembership(dave, room, "ban")
	}
}

// The same by somebody who has come back meanwhile, of which the banned user's server has not heard either: it can check that by the auth events.
func TestBanOutOfTheBlueBySomebodyWhoCameBack(t *testing.T) {
	n, a, b, c, room := threeServers(t)
	d := n.server("d.example")
	alice, dave := a.user("alice"), d.user("dave")
	a.join(a.user("adam"), room)
	a.must(a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}))
	n.settle()
	for _, s := range []*server{b, c, d} {
		n.split(a, s, true)
	}
	a.join(alice, room)
	ban, err := a.Ban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: dave})
	a.must(ban, err)
	other, err := a.Ban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: c.user("carol")})
	a.must(other, err)
	d.join(dave, room, b)
	pdu, err := a.Event(ctx, ban)
	if err != nil {
		t.Fatal(err)
	}
	n.split(a, d, false)
	if r := d.receive(a, room, pdu.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	d.expectMembership(dave, room, "ban")
	for id, want := range map[matrix.EventID]string{ban: "", other: "M_FORBIDDEN"} {
		_, err := a.ServeEventAuth(ctx, d.name, room, id)
		if want == "" && err != nil || want != "" && !matrix.HasCode(err, want) {
			t.Errorf("the auth chain of %s: %v", id, err)
		}
	}
}

// Who has no power cannot ban like that.
func TestBanOutOfTheBlueWithoutPower(t *testing.T) {
	n, _, b, c, room := threeServers(t)
	e := n.server("e.example")
	e.join(e.user("erin"), room, c)
	key := "@erin:e.example"
	head := b.tips(room)[0]
	forged := b.build(version11(t), event.Proto{
		RoomID: room, Sender: b.user("bob"), Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"ban"}`), OriginServerTS: 1,
		PrevEvents: []matrix.EventID{"$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}, AuthEvents: authEvents(t, b, head), Depth: 50,
	})
	n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "state_ids" {
			return matrix.Forbidden("your server is not in the room")
		}
		return nil
	}
	if r := e.receive(b, room, forged.JSON()); r[0].Err == nil {
		t.Error("banned without the power for it")
	}
	e.expectMembership(e.user("erin"), room, "join")
}

// authEvents are those of a message of bob's on the head of a room.
func authEvents(t *testing.T, s *server, head matrix.EventID) []matrix.EventID {
	t.Helper()
	ev, err := s.Event(ctx, head)
	if err != nil {
		t.Fatal(err)
	}
	state, err := s.StateAfter(ctx, ev)
	if err != nil {
		t.Fatal(err)
	}
	var out []matrix.EventID
	for _, key := range []matrix.StateKey{{Type: "m.room.create"}, {Type: "m.room.power_levels"}, {Type: "m.room.member", Key: "@bob:b.example"}, {Type: "m.room.member", Key: "@erin:e.example"}} {
		auth, err := state.Event(ctx, key.Type, key.Key)
		if err != nil {
			t.Fatal(err)
		}
		if auth != nil {
			out = append(out, auth.ID())
		}
	}
	return out
}

// The last user of the server that a join goes through leaves in between: nobody would tell the new server.
func TestJoinThroughServerThatLeaves(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "send_join" {
			a.must(a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}))
		}
		return nil
	}
	if _, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{a.name}}); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Error("joined a room that nobody is in:", err)
	}
	a.expectMembership(bob, room, "")
}

// A server that has missed how we left lets us into a room again which others let nobody into. The join is not said to have been made: those
// who have heard will not count us in, however often we try.
func TestRejoinOfClosedRoomThroughServerThatMissedTheLeave(t *testing.T) {
	for _, omit := range []bool{false, true} {
		n := newNetwork(t)
		n.runningClock()
		n.omit = omit
		a, b, c, room := n.three()
		alice, bob := a.user("alice"), b.user("bob")
		a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"invite"}`)
		n.settle()
		n.split(b, c, true)
		b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
		n.settle() // C has missed it
		n.split(b, c, false)
		for range 3 {
			_, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{c.name}})
			if !matrix.HasCode(err, "M_FORBIDDEN") {
				t.Errorf("members omitted %v: %v", omit, err)
			}
			n.settle()
			b.expectMembership(bob, room, "leave")
			a.expectMembership(bob, room, "leave")
		}
	}
}

// The server that lets us in again has missed how we left. What we know counts, as it does for those who have heard.
func TestRejoinThroughServerThatMissedTheLeave(t *testing.T) {
	for _, omit := range []bool{false, true} {
		t.Run(fmt.Sprint("omitting members ", omit), func(t *testing.T) {
			n := newNetwork(t)
			n.runningClock()
			a, b, c, room := n.three()
			alice, bob := a.user("alice"), b.user("bob")
			n.omit = omit
			a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@bob:b.example":50}}`)
			n.settle()
			n.split(a, c, true)
			n.split(b, c, true)
			b.set(bob, room, "m.room.topic", "", `{"topic":"before"}`)
			b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
			n.settle() // C has missed it
			n.split(b, c, false)
			b.join(bob, room, c)
			if _, err := b.Members(ctx, rooms.MembersRequest{Room: room, User: bob}); err != nil {
				t.Fatal(err)
			}
			snap, err := b.Snapshot(ctx, room)
			if err != nil {
				t.Fatal(err)
			}
			topic, err := snap.State.Event(ctx, "m.room.topic", "")
			if err != nil || topic == nil {
				t.Errorf("what we said before we left is gone: %v", err)
			}
			n.split(a, c, false)
			b.set(bob, room, "m.room.name", "", `{"name":"after"}`)
			n.settle()
			for _, s := range []*server{a, c} {
				if diff := cmp.Diff(b.state(room), s.state(room)); diff != "" {
					t.Errorf("%s: %s", s.name, diff)
				}
			}
		})
	}
}

// A gap is closed also where it is longer than one answer, and where the sender of what came has no answer: else what came before it
// stays an end of the room.
func TestLongGap(t *testing.T) {
	n, a, b, _, room := threeServers(t)
	n.split(a, b, true)
	for i := range 70 {
		a.say(a.user("alice"), room, fmt.Sprint("missed ", i))
	}
	n.settle()
	last := a.say(a.user("alice"), room, "heard")
	n.settle()
	heard, err := a.Event(ctx, last)
	if err != nil {
		t.Fatal(err)
	}
	if r := b.receive(a, room, heard.JSON()); r[0].Err != nil { // but B cannot reach A
		t.Error(r[0].Err)
	}
	if tips := b.tips(room); len(tips) != 1 || tips[0] != last {
		t.Errorf("ends of the room: %s", tips)
	}
	if got := n.count("b.example state_ids"); got != 0 {
		t.Errorf("%d states were asked for", got)
	}
	if diff := cmp.Diff(a.texts(a.user("alice"), room), b.texts(b.user("bob"), room)); diff != "" {
		t.Error(diff)
	}
}

// A membership that was lost in a resolution of states has no event that ended it.
func TestLeaveWithoutMembership(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	alice, carol := a.user("alice"), c.user("carol")
	n.split(a, b, true)
	n.split(a, c, true)
	a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"invite"}`)
	a.say(alice, room, "closed")
	c.join(carol, room, b)
	n.settle()
	n.split(a, b, false)
	n.split(a, c, false)
	a.say(alice, room, "one")
	b.say(b.user("bob"), room, "two")
	n.settle()
	a.say(alice, room, "three")
	n.settle()
	for _, s := range []*server{a, b} {
		if m, err := s.MembershipOf(ctx, room, carol); err != nil || m.Membership == "join" {
			t.Fatalf("%s: %+v %v", s.name, m, err)
		}
	}
	if _, err := c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}); err != nil {
		t.Error(err)
	}
	if _, err := c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}); err != nil {
		t.Error(err)
	}
}

// The last user of a server is banned, unbanned and invited in no time: that the ban has ended is heard of after the invite.
func TestUnbanAfterInvite(t *testing.T) {
	_, a, b, room := twoServers(t)
	n := a.net
	alice, bob := a.user("alice"), b.user("bob")
	a.must(a.Ban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	n.settle()
	n.split(a, b, true)
	a.must(a.Unban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	snap, err := a.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	unban, err := a.Event(ctx, snap.Extremities[0])
	if err != nil {
		t.Fatal(err)
	}
	n.split(a, b, false)
	a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	b.receive(a, room, unban.JSON())
	if m, err := b.MembershipOf(ctx, room, bob); err != nil || m.Membership != "invite" {
		t.Fatal(m, err)
	}
	b.join(bob, room)
	n.settle()
	if m, err := a.MembershipOf(ctx, room, bob); err != nil || m.Membership != "join" {
		t.Error(m, err)
	}
}

// A user who joins and knocks at the same time is in the room.
func TestKnockWhileJoining(t *testing.T) {
	n := newNetwork(t)
	a, c := n.server("a.example"), n.server("c.example")
	alice, carol := a.user("alice"), c.user("carol")
	room := a.create(alice, rooms.CreateRequest{Preset: "private_chat", Version: "11", Invite: []matrix.UserID{carol}})
	a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
	knocked := make(chan error, 1)
	n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "send_join" {
			go func() {
				_, err := c.Knock(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{a.name}})
				knocked <- err
			}()
			select {
			case err := <-knocked:
				t.Error("knocked before the join was done:", err)
				knocked <- nil
			case <-time.After(100 * time.Millisecond): // it waits, which cannot be seen
			}
		}
		return nil
	}
	c.join(carol, room, a)
	if err := <-knocked; err == nil {
		t.Error("knocked at a room that one is in")
	}
	n.settle()
	for _, s := range []*server{a, c} {
		s.expectMembership(carol, room, "join")
	}
}

// What was invited while this server was not in the room is what the room says once it is.
func TestInviteThatTheRoomKnowsNothingOf(t *testing.T) {
	for _, omit := range []bool{false, true} {
		n := newNetwork(t)
		n.omit = omit
		a, b := n.server("a.example"), n.server("b.example")
		alice, bella, bob := a.user("alice"), b.user("bella"), b.user("bob")
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11", Invite: []matrix.UserID{bella}})
		b.expectMembership(bella, room, "invite")
		n.split(a, b, true)
		a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bella}))
		n.settle()
		n.split(a, b, false)
		b.join(bob, room, a)
		if _, err := b.Members(ctx, rooms.MembersRequest{Room: room, User: bob}); err != nil {
			t.Fatal(err)
		}
		b.expectMembership(bella, room, "leave")
	}
}

// History is asked of those who were there: whoever came later may have it as little as we do.
func TestBackfillAsksWitnesses(t *testing.T) {
	n := newNetwork(t)
	late := []matrix.ServerName{"b.example", "c.example", "d.example", "e.example", "f.example"}
	var before matrix.RoomID
	for _, name := range late { // they know each other longer than the one that has it all
		s := n.server(name)
		if before == "" {
			before = s.create(s.user("u"), rooms.CreateRequest{Preset: "public_chat", Version: "11"})
		} else {
			s.join(s.user("u"), before, n.servers["b.example"])
		}
		n.settle()
	}
	z := n.server("z.example")
	zoe := z.user("zoe")
	room := z.create(zoe, rooms.CreateRequest{Preset: "public_chat", Version: "12"})
	z.say(zoe, room, "first")
	for _, name := range late {
		s := n.servers[name]
		s.join(s.user("u"), room, z)
		n.settle()
	}
	for _, name := range []matrix.ServerName{"f.example", "b.example"} {
		s := n.servers[name]
		var asked []matrix.ServerName
		n.hold = func(_, to matrix.ServerName, call string) error {
			if call == "backfill" {
				asked = append(asked, to)
			}
			return nil
		}
		if got := s.texts(s.user("u"), room); len(got) != 1 || got[0] != "first" {
			t.Errorf("%s reads %q", name, got)
		}
		if i := slices.Index(asked, z.name); i < 0 || i < len(asked)-1 || name == "b.example" && i > 0 {
			t.Errorf("%s asked %s", name, asked)
		}
		n.hold = nil
	}
}

// Who was there and has left since may be the only one to have it.
func TestBackfillAsksThoseWhoLeft(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "12"})
	a.say(alice, room, "first")
	b.join(bob, room, a)
	n.settle()
	a.must(a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}))
	n.settle()
	if got := b.texts(bob, room); !slices.Equal(got, []string{"first"}) {
		t.Errorf("bob reads %q", got)
	}
}

// Who had nothing to add is asked last the next time, so that in the end the one is found that has it.
func TestBackfillAsksOthersNextTime(t *testing.T) {
	n := newNetwork(t)
	z := n.server("z.example")
	zoe := z.user("zoe")
	room := z.create(zoe, rooms.CreateRequest{Preset: "public_chat", Version: "12"})
	z.say(zoe, room, "first")
	var late []*server
	for i := range 12 {
		s := n.server(matrix.ServerName(fmt.Sprintf("s%d.example", i)))
		s.join(s.user("u"), room, z)
		n.settle()
		late = append(late, s)
	}
	reader, others := late[11], late[:11]
	n.split(z, reader, true)
	asked := make(map[matrix.ServerName]bool)
	n.hold = func(from, to matrix.ServerName, call string) error {
		if call == "backfill" && from == reader.name {
			asked[to] = true
		}
		return nil
	}
	if got := reader.texts(reader.user("u"), room); len(got) > 0 {
		t.Fatalf("nobody has it, but it reads %q", got)
	}
	i := slices.IndexFunc(others, func(s *server) bool { return !asked[s.name] })
	if i < 0 {
		t.Fatal("all were asked at once")
	}
	if got := others[i].texts(others[i].user("u"), room); len(got) != 1 {
		t.Fatalf("one reads %q", got)
	}
	if got := reader.texts(reader.user("u"), room); len(got) != 1 || got[0] != "first" {
		t.Errorf("it reads %q", got)
	}
}

// A server that has not heard of our join yet shows history in redacted form. It is asked of another one then, and in no case takes content from what we have.
func TestBackfillInRedactedForm(t *testing.T) {
	for _, id := range []roomversion.ID{"2", "11"} {
		version, _ := roomversion.Get(id)
		for blind, want := range map[matrix.ServerName][]string{"a.example": {"first", "second"}, "": {"", ""}} {
			n := newNetwork(t)
			a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
			alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
			room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: id, Name: "Town square"})
			a.say(alice, room, "first")
			a.say(alice, room, "second")
			b.join(bob, room, a)
			n.settle()
			if got := b.texts(bob, room); len(got) != 2 {
				t.Fatal(got)
			}
			c.join(carol, room, b)
			n.settle()
			n.backfill = func(by matrix.ServerName, pdus [][]byte) [][]byte {
				if blind != "" && by != blind {
					return pdus
				}
				out := make([][]byte, len(pdus))
				for i, pdu := range pdus {
					ev, err := event.Parse(version, pdu)
					if err != nil {
						t.Error(err)
						return nil
					}
					out[i] = ev.Redact().JSON()
				}
				return out
			}
			if got := c.texts(carol, room); !slices.Equal(got, want) {
				t.Errorf("version %s, %q is blind: %q, want %q", id, blind, got, want)
			}
			if got := c.content(room, "m.room.name", ""); got != `{"name":"Town square"}` {
				t.Errorf("version %s, %q is blind: the name is %s", id, blind, got)
			}
			if got := c.content(room, "m.room.create", ""); !strings.Contains(got, `"room_version"`) {
				t.Errorf("version %s, %q is blind: the create event is %s", id, blind, got)
			}
		}
	}
}

// The power to redact may come with the redaction.
func TestRedactionWithItsPower(t *testing.T) {
	n, a, b, c, room := threeServers(t)
	alice, carol := a.user("alice"), c.user("carol")
	said := a.say(alice, room, "something")
	n.settle()
	n.split(a, b, true)
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@carol:c.example":50}}`)
	n.settle()
	if _, err := c.Redact(ctx, rooms.SendRequest{Room: room, Sender: carol, Redacts: said}, ""); err != nil {
		t.Fatal(err)
	}
	n.settle()
	for _, s := range []*server{a, b, c} {
		if ev, err := s.Event(ctx, said); err != nil || ev.RedactedBy == "" {
			t.Errorf("not redacted on %s: %v", s.name, err)
		}
	}
}

// A server is refused by a list that excludes it also where the list comes with what it sends.
func TestServerACLInTheGap(t *testing.T) {
	n, a, b, c, room := aModeratorOnC(t)
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	n.split(a, b, true)
	a.set(alice, room, "m.room.server_acl", "", `{"allow":["*"],"deny":["c.example"]}`)
	n.settle()
	ban, err := c.Ban(ctx, rooms.MemberRequest{Room: room, Sender: carol, Target: bob})
	c.must(ban, err)
	pdu, err := c.Event(ctx, ban)
	if err != nil {
		t.Fatal(err)
	}
	if r := b.receive(c, room, pdu.JSON()); !matrix.HasCode(r[0].Err, "M_FORBIDDEN") {
		t.Error(r[0].Err)
	}
	b.expectMembership(bob, room, "join")
}

// A server comes back without the members through one that had not heard that a user of it was kicked, and went on meanwhile. That one is out still; and where
// the kick belongs is found out, so that it does not stay an end of the room.
func TestRejoinThroughServerThatMissedAKick(t *testing.T) {
	for _, missed := range []bool{true, false} {
		t.Run(fmt.Sprint("missed ", missed), func(t *testing.T) {
			n := newNetwork(t)
			n.runningClock()
			a, b, c, room := n.three()
			alice, bob, bella, carol := a.user("alice"), b.user("bob"), b.user("bella"), c.user("carol")
			a.set(alice, room, "m.room.name", "", `{"name":"one without heroes"}`)
			b.join(bella, room)
			b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
			n.settle()
			n.split(a, c, missed)
			a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bella}))
			n.settle()
			b.expectMembership(bella, room, "leave")
			for range 3 {
				c.say(carol, room, "on")
			}
			n.omit = true
			b.join(bob, room, c)
			if _, err := b.Members(ctx, rooms.MembersRequest{Room: room, User: bob}); err != nil {
				t.Fatal(err)
			}
			b.expectMembership(bella, room, "leave")
			n.split(a, c, false)
			n.settle()
			c.say(carol, room, "and on")
			n.settle()
			b.say(bob, room, "and on")
			n.settle()
			for _, s := range []*server{a, c} {
				if diff := cmp.Diff(b.state(room), s.state(room)); diff != "" {
					t.Errorf("%s: %s", s.name, diff)
				}
				if diff := cmp.Diff(b.tips(room), s.tips(room)); diff != "" {
					t.Errorf("%s: %s", s.name, diff)
				}
			}
			b.expectMembership(bella, room, "leave")
		})
	}
}
