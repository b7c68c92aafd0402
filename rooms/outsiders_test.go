package rooms_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// stored is how many events a server has, and how many bytes of them.
func (s *server) stored() (events, bytes int64) {
	s.t.Helper()
	if err := s.db.QueryRow(ctx, `SELECT COUNT(*), COALESCE(SUM(LENGTH(json)), 0) FROM events`).Scan(&events, &bytes); err != nil {
		s.t.Fatal(err)
	}
	return events, bytes
}

// A server that is not in a room makes up events of it, which are rejected, one upon the other: none is stored, and none judged twice.
func TestRejectedEventsOfOutsiders(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	mallory := c.user("mallory")
	events, _ := a.stored()
	var made []*event.Event
	var prevs []matrix.EventID
	n.missing = func() (out [][]byte) {
		for _, ev := range made {
			out = append(out, ev.JSON())
		}
		return out
	}
	for i := range 10 {
		ev := c.forgeAt(a, room, event.Proto{Sender: mallory, Type: "m.room.message", PrevEvents: prevs, Content: fmt.Appendf(nil, `{"body":"%d"}`, i)})
		for range 2 {
			if r := a.receive(c, room, ev.JSON()); r[0].Err == nil || i == 0 && !r[0].Rejected() {
				t.Errorf("event %d: %+v", i, r)
			}
		}
		made = append(made, ev)
		if prevs = nil; i%2 == 0 {
			prevs = []matrix.EventID{ev.ID()}
		}
	}
	if got, _ := a.stored(); got != events {
		t.Errorf("%d events were stored", got-events)
	}
	n.missing = nil
	// One that a member builds on is no obstacle, and rejected events of members are remembered.
	next := b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message", PrevEvents: []matrix.EventID{made[0].ID()}, Content: []byte(`{"body":"upon it"}`)})
	snap, err := b.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	n.event = func(matrix.EventID) []byte { return made[0].JSON() }
	n.stateIDs = func() (state, auth []matrix.EventID) {
		all, err := snap.State.All(ctx)
		if err != nil {
			t.Error(err)
		}
		return idsOf(all), idsOf(all)
	}
	if r := a.receive(b, room, next.JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	empty := ""
	coup := b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.name", StateKey: &empty, Content: []byte(`{"name":"coup"}`)})
	a.receive(b, room, coup.JSON())
	if ev, err := a.Event(ctx, coup.ID()); err != nil || !ev.Rejected {
		t.Errorf("%+v %v", ev, err)
	}
	n.event, n.stateIDs = nil, nil
	// Once the server is in the room, what it sends is like what others send.
	c.join(mallory, room, a)
	n.settle()
	if r := a.receive(c, room, c.forge(room, event.Proto{Sender: mallory, Type: "m.room.message", Content: []byte(`{"body":"hello"}`)}).JSON()); r[0].Err != nil {
		t.Error(r[0].Err)
	}
}

// What such a server has us store by what its events refer to, and by a state of its own making, is a number of bytes a day.
func TestWhatOutsidersHaveUsStore(t *testing.T) {
	const perRoom = 16 << 20
	filler := strings.Repeat("x", 60_000)
	for name, events := range map[string]func(n *network, a, c *server, room matrix.RoomID) func(i int) *event.Event{
		"auth events": func(n *network, a, c *server, room matrix.RoomID) func(i int) *event.Event {
			member := func(i, j int) *event.Event {
				key := fmt.Sprintf("@u%d_%d:c.example", i, j)
				return c.forgeAt(a, room, event.Proto{Sender: matrix.UserID(key), Type: "m.room.member", StateKey: &key, Content: fmt.Appendf(nil, `{"membership":"join","x":%q}`, filler)})
			}
			return func(i int) *event.Event {
				var chain [][]byte
				var auth []matrix.EventID
				for j := range 10 {
					ev := member(i, j)
					chain, auth = append(chain, ev.JSON()), append(auth, ev.ID())
				}
				n.eventAuth = func() [][]byte { return chain }
				return c.forgeAt(a, room, event.Proto{Sender: c.user("mallory"), Type: "m.room.message", AuthEvents: auth})
			}
		},
		"soft-failed events": func(n *network, a, c *server, room matrix.RoomID) func(i int) *event.Event {
			mallory := c.user("mallory")
			key := string(mallory)
			join := c.forgeAt(a, room, event.Proto{Sender: mallory, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`)})
			snap, err := a.Snapshot(ctx, room)
			if err != nil {
				a.t.Fatal(err)
			}
			auth := []matrix.EventID{join.ID()}
			for _, typ := range []string{"m.room.create", "m.room.power_levels"} {
				ev, err := snap.State.Event(ctx, typ, "")
				if err != nil {
					a.t.Fatal(err)
				}
				auth = append(auth, ev.ID())
			}
			all, err := snap.State.All(ctx)
			if err != nil {
				a.t.Fatal(err)
			}
			n.missing = func() [][]byte { return nil }
			n.stateIDs = func() (state, auth []matrix.EventID) { return idsOf(all), idsOf(all) }
			n.event = func(matrix.EventID) []byte { return join.JSON() }
			n.eventAuth = func() [][]byte { return [][]byte{join.JSON()} }
			prev, last := join.ID(), join.ID()
			return func(i int) *event.Event {
				if _, err := a.Event(ctx, last); err == nil {
					prev = last
				}
				ev := c.forgeAt(a, room, event.Proto{Sender: mallory, Type: "m.room.message", PrevEvents: []matrix.EventID{prev}, AuthEvents: auth, Depth: int64(100 + i),
					Content: fmt.Appendf(nil, `{"body":%q}`, filler)})
				last = ev.ID()
				return ev
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			clock := n.stoppedClock(1_700_000_000_000)
			a, c := n.server("a.example"), n.server("c.example")
			room := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "11"})
			next := events(n, a, c, room)
			i := 0
			flood := func() (stored int64) {
				t.Helper()
				_, before := a.stored()
				for last := before; ; i++ {
					a.receive(c, room, next(i).JSON())
					_, now := a.stored()
					if now == last {
						return now - before
					}
					if last = now; now-before > 2*perRoom {
						t.Fatalf("%d bytes were stored", now-before)
					}
				}
			}
			if got := flood(); got < perRoom || got > perRoom+1<<20 {
				t.Errorf("%d bytes were stored", got)
			}
			clock.Add(6 * 60 * 60 * 1000)
			if got := flood(); got < perRoom/4-1<<20 || got > perRoom/4+1<<20 {
				t.Errorf("%d bytes were stored after six hours", got)
			}
		})
	}
}

// Whose invite of a local user was taken back was never in a room with us, and has us keep nothing of it.
func TestEventsAfterAnInviteTakenBack(t *testing.T) {
	n := newNetwork(t)
	a, c := n.server("a.example"), n.server("c.example")
	alice, carol := a.user("alice"), c.user("carol")
	room := a.create(alice, rooms.CreateRequest{Preset: "private_chat"})
	a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol}))
	n.settle()
	c.expectMembership(carol, room, "invite")
	a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol}))
	n.settle()
	c.expectMembership(carol, room, "leave")
	said, err := a.Event(ctx, a.say(alice, room, "fill their disk"))
	if err != nil {
		t.Fatal(err)
	}
	if r := c.receive(a, room, said.JSON()); !errors.Is(r[0].Err, rooms.ErrNotInRoom) {
		t.Error(r[0].Err)
	}
	if _, err := c.Event(ctx, said.ID()); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Error("the event was kept:", err)
	}
}

// A removal may turn out not to hold, and events of the room are taken still; but not for ever.
func TestRemovalStandsAfterAWhile(t *testing.T) {
	n := newNetwork(t)
	clock := n.stoppedClock(time.Now().UnixMilli())
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	b.join(bob, room, a)
	n.settle()
	a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	n.settle()
	b.expectMembership(bob, room, "leave")
	send := func() error {
		said, err := a.Event(ctx, a.say(alice, room, "still here?"))
		if err != nil {
			t.Fatal(err)
		}
		return b.receive(a, room, said.JSON())[0].Err
	}
	if err := send(); err != nil {
		t.Error(err)
	}
	clock.Add((31 * 24 * time.Hour).Milliseconds())
	if err := send(); !errors.Is(err, rooms.ErrNotInRoom) {
		t.Error(err)
	}
}
