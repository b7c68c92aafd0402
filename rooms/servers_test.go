package rooms_test

import (
	"testing"

	"hanok/rooms"
	"hanok/storage"
)

// A server that was away is sent the newest event that it should have got: none from after it was out of the room.
func TestNewestForAServer(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	nid, err := a.RoomNID(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	newest := func(after storage.Position) *rooms.Event {
		t.Helper()
		ev, err := a.NewestFor(ctx, nid, b.name, after)
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	a.say(alice, room, "one")
	last := a.say(alice, room, "two")
	b.say(bob, room, "an event of another server")
	n.settle()
	if ev := newest(0); ev == nil || ev.ID() != last {
		t.Errorf("%v, not %s", ev, last)
	}
	kick, err := a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob})
	if err != nil {
		t.Fatal(err)
	}
	a.say(alice, room, "among ourselves")
	ev := newest(0)
	if ev == nil || ev.ID() != kick {
		t.Fatalf("%v, not %s", ev, kick)
	}
	if ev := newest(ev.Pos); ev != nil {
		t.Errorf("%s after it left", ev.ID())
	}
}
