package rooms_test

import (
	"errors"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// A server that missed that we left is told when it goes on to send us events, if they show that it knows the room.
func TestFarewell(t *testing.T) {
	n, a, b, c, room := threeServers(t)
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	said, err := c.Event(ctx, c.say(carol, room, "all here"))
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := b.Farewell(ctx, room, [][]byte{said.JSON()}); ev != nil || err != nil {
		t.Error("from a server that is in the room:", ev, err)
	}
	n.split(b, c, true)
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	n.settle()
	a.expectMembership(bob, room, "leave")
	c.expectMembership(bob, room, "join")
	n.split(b, c, false)
	if said, err = c.Event(ctx, c.say(carol, room, "still here?")); err != nil {
		t.Fatal(err)
	}
	if r := b.receive(c, room, said.JSON()); !errors.Is(r[0].Err, rooms.ErrNotInRoom) {
		t.Error(r[0].Err)
	}
	d := n.server("d.example")
	mallory := d.user("mallory")
	elsewhere := d.create(mallory, rooms.CreateRequest{Version: "11"})
	forged := func(sender matrix.UserID, auth ...matrix.EventID) []byte {
		t.Helper()
		return d.build(version11(t), event.Proto{
			RoomID: room, Sender: sender, Type: "m.room.message", Content: []byte(`{}`), OriginServerTS: 1, PrevEvents: auth, AuthEvents: auth, Depth: 30,
		}).JSON()
	}
	for what, pdus := range map[string][][]byte{
		"nothing":                 nil,
		"nonsense":                {[]byte(`{}`)},
		"not of the room":         {d.forge(elsewhere, event.Proto{Sender: mallory, Type: "m.room.message"}).JSON()},
		"what nobody has":         {forged(mallory, nowhere(1))},
		"what another has signed": {forged(alice, said.AuthEvents()...)},
	} {
		if ev, err := b.Farewell(ctx, room, pdus); ev != nil || err != nil {
			t.Errorf("%s: %v %v", what, ev, err)
		}
	}
	leave, err := b.Farewell(ctx, room, [][]byte{said.JSON()})
	if err != nil || leave == nil || leave.Sender() != bob {
		t.Fatal(leave, err)
	}
	if r := c.receive(b, room, leave.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	c.expectMembership(bob, room, "leave")
	if ev, err := b.Farewell(ctx, "!nowhere:a.example", [][]byte{said.JSON()}); ev != nil || err != nil {
		t.Error(ev, err)
	}
}

// The same where events are taken all the same, because a user of ours was removed once, which may turn out not to hold.
func TestFarewellOfServerThatWasRemovedOnce(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	alice, bob, bella, carol := a.user("alice"), b.user("bob"), b.user("bella"), c.user("carol")
	b.join(bella, room, a)
	c.join(carol, room, a)
	n.settle()
	a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bella}))
	n.settle()
	n.split(b, c, true)
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	n.settle()
	n.split(b, c, false)
	n.split(a, c, true)
	said, err := c.Event(ctx, c.say(carol, room, "still here?"))
	if err != nil {
		t.Fatal(err)
	}
	if r := b.receive(c, room, said.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	leave, err := b.Farewell(ctx, room, [][]byte{said.JSON()})
	if err != nil || leave == nil || leave.Sender() != bob {
		t.Fatal(leave, err)
	}
}

// What follows on the event before our own join needs no state from others: it is the one before the join.
func TestStateKnownFromOurJoin(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	a.set(alice, room, "m.room.topic", "", `{"topic":"before"}`)
	n.settle()
	n.split(a, b, true)
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	b.mu.Lock()
	leave := b.outbox[len(b.outbox)-1]
	b.mu.Unlock()
	n.settle()
	c.join(carol, room, a) // which has not heard of the leave
	n.settle()
	c.expectMembership(bob, room, "join")
	before := n.count("c.example state_ids")
	n.split(a, c, true)
	if r := c.receive(b, room, leave.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	c.expectMembership(bob, room, "leave")
	if more := n.count("c.example state_ids") - before; more != 0 {
		t.Errorf("the state was asked for %d times", more)
	}
}
