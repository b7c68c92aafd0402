package rooms_test

import (
	"slices"
	"testing"

	"hanok/matrix"
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

// A server that comes into a room while another one is asked about an event is sent it, too, if it may see it.
func TestServersThatComeMeanwhile(t *testing.T) {
	for visibility, shown := range map[string]bool{"shared": true, "joined": false} {
		t.Run(visibility, func(t *testing.T) {
			n, a, b, room, sign := policedRoom(t)
			c, d := n.server("c.example"), n.server("d.example")
			alice, dave := a.user("alice"), d.user("dave")
			a.set(alice, room, "m.room.history_visibility", "", `{"history_visibility":"`+visibility+`"}`)
			n.settle()
			n.hold = func(from, _ matrix.ServerName, call string) error {
				if from == a.name && call == "invite" {
					c.join(c.user("carol"), room, b)
					n.settle()
				}
				return nil
			}
			a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: dave}))
			n.settle()
			for _, s := range []*server{a, b, c, d} {
				s.expectMembership(dave, room, "invite")
			}
			recommend := n.recommend
			n.recommend = func(_ matrix.ServerName, pdu []byte) ([]byte, error) {
				n.recommend = recommend
				d.join(dave, room, b)
				n.settle()
				return sign(pdu), nil
			}
			id := a.say(alice, room, "meanwhile")
			ev, err := a.Event(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			servers, err := a.ServersAt(ctx, ev)
			if err != nil || slices.Contains(servers, d.name) != shown || !slices.Contains(servers, c.name) {
				t.Errorf("sent to %s, %v", servers, err)
			}
		})
	}
}
