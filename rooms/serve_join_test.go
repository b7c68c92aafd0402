package rooms_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// joinUpon makes a join of a user of this server upon a room as another one knows it.
func (s *server) joinUpon(snap *rooms.Snapshot, user matrix.UserID) *event.Event {
	key := string(user)
	create, _ := snap.State.Event(ctx, "m.room.create", "")
	rules, _ := snap.State.Event(ctx, "m.room.join_rules", "")
	levels, _ := snap.State.Event(ctx, "m.room.power_levels", "")
	return s.build(snap.Version, event.Proto{
		RoomID: snap.Room, Sender: user, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join"}`), OriginServerTS: 1,
		PrevEvents: snap.Extremities, AuthEvents: []matrix.EventID{create.ID(), rules.ID(), levels.ID()}, Depth: snap.Depth + 1,
	})
}

func TestSendJoinOmitsMembers(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	for _, name := range []string{"", "named"} {
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11", Name: name})
		for i := range 10 {
			a.join(a.user(fmt.Sprint("u", i)), room)
		}
		snap, err := a.Snapshot(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		join := b.joinUpon(snap, bob)
		sent, err := a.SendJoin(ctx, b.name, room, join.ID(), join.JSON(), true)
		if err != nil {
			t.Fatal(err)
		}
		members := 0
		known := make(map[matrix.EventID]bool)
		var all []*event.Event
		for _, raw := range append(sent.State, sent.AuthChain...) {
			ev, err := event.Parse(snap.Version, raw)
			if err != nil {
				t.Fatal(err)
			}
			if known[ev.ID()] {
				t.Error("an event is given twice")
			}
			known[ev.ID()] = true
			all = append(all, ev)
		}
		for _, ev := range all[:len(sent.State)] {
			if ev.Type() == "m.room.member" {
				members++
			}
		}
		for _, ev := range append(all, join) {
			for _, id := range ev.AuthEvents() {
				if !known[id] {
					t.Errorf("%s lacks an auth event", ev.Type())
				}
			}
		}
		want := 5 // the heroes of a room without a name
		if name != "" {
			want = 0
		}
		if members != want || !sent.MembersOmitted || len(sent.Servers) != 1 {
			t.Errorf("room %q: %d memberships, want %d; servers %v", name, members, want, sent.Servers)
		}
	}
}

// Who joins is told which servers were in the room before, its own too if another user of it was, whoever has left since.
func TestServersBeforeAJoin(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bella, bob, carol := a.user("alice"), b.user("bella"), b.user("bob"), c.user("carol")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11", Name: "named"})
	b.join(bella, room, a)
	n.settle()
	for _, joiner := range []struct {
		server *server
		user   matrix.UserID
		want   []matrix.ServerName
	}{{b, bob, []matrix.ServerName{a.name, b.name}}, {c, carol, []matrix.ServerName{a.name, b.name}}} {
		snap, err := a.Snapshot(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		join := joiner.server.joinUpon(snap, joiner.user)
		expect := func(when string) {
			t.Helper()
			sent, err := a.SendJoin(ctx, joiner.server.name, room, join.ID(), join.JSON(), true)
			if err != nil {
				t.Fatal(err)
			}
			if slices.Sort(sent.Servers); !slices.Equal(sent.Servers, joiner.want) {
				t.Errorf("%s, %s: %v", joiner.user, when, sent.Servers)
			}
		}
		expect("at first")
		a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: joiner.user}))
		expect("again, when it has been removed")
	}
}

// A join is sent to a server that came into the room after another one had made it. That server tells the others of it, although it was not in the
// room at the state that the join follows on, and tells who joins the members, although it does not know that state as one of the room's.
func TestSendJoinToWhoCameLater(t *testing.T) {
	n := newNetwork(t)
	n.omit = true
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11", Name: "named"})
	var once sync.Once
	n.hold = func(from, to matrix.ServerName, call string) error {
		if from != c.name || to != a.name || call != "send_join" {
			return nil
		}
		once.Do(func() {
			b.join(bob, room, a)
			if err := b.AwaitMembers(ctx, bob, room); err != nil {
				t.Error(err)
			}
			n.split(a, c, true)
		})
		return errUnreachable
	}
	c.join(carol, room, a, b)
	if err := c.AwaitMembers(ctx, carol, room); err != nil {
		t.Fatal(err)
	}
	n.settle()
	for _, s := range []*server{a, b, c} {
		for _, u := range []matrix.UserID{alice, carol} {
			if m, err := s.MembershipOf(ctx, room, u); err != nil || m.Membership != "join" {
				t.Errorf("%s says that %s is %q: %v", s.name, u, m.Membership, err)
			}
		}
	}
}

// What came into a room beside what a join was made upon is sent to the server that joins: also where that has no place in the timeline, and where
// another server has made the join.
func TestBesideAJoin(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	missed := func(user matrix.UserID) (bodies []string) {
		t.Helper()
		m, err := a.MembershipOf(ctx, room, user)
		if err != nil {
			t.Fatal(err)
		}
		join, err := a.Event(ctx, m.Event)
		if err != nil {
			t.Fatal(err)
		}
		events, err := a.MissedBy(ctx, join)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			body, _ := ev.ContentString("body")
			bodies = append(bodies, body)
		}
		return bodies
	}
	a.say(alice, room, "before")
	n.settle()
	dummy := b.forge(room, event.Proto{Sender: bob, Type: event.DummyType})
	for _, s := range []*server{a, b} {
		if r := s.receive(b, room, dummy.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	c, d := n.server("c.example"), n.server("d.example")
	carol, dora := c.user("carol"), d.user("dora")
	n.hold = func(from, to matrix.ServerName, call string) error {
		switch {
		case from == c.name && call == "send_join":
			a.say(alice, room, "beside a dummy event")
		case from == d.name && to == b.name && call == "send_join":
			return errUnreachable
		}
		return nil
	}
	c.join(carol, room, a)
	if got := missed(carol); !slices.Equal(got, []string{"beside a dummy event"}) {
		t.Errorf("%q", got)
	}
	n.settle()
	a.say(alice, room, "unknown to the other")
	b.say(bob, room, "what the join is made upon")
	b.flush()
	d.join(dora, room, b, a)
	if got := missed(dora); !slices.Equal(got, []string{"unknown to the other"}) {
		t.Errorf("%q", got)
	}
	n.settle()

	// Who came in through another server is sent by each what its own users said.
	f := n.server("f.example")
	for _, s := range []*server{b, c, d, f} {
		n.split(a, s, true)
	}
	f.join(f.user("frank"), room, b)
	join, err := b.Event(ctx, b.tips(room)[0])
	if err != nil {
		t.Fatal(err)
	}
	b.say(bob, room, "b sends that itself")
	a.say(alice, room, "said apart from all")
	n.settle()
	if r := a.receive(b, room, join.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	if got := missed(f.user("frank")); !slices.Equal(got, []string{"said apart from all"}) {
		t.Errorf("%q", got)
	}
}

// What somebody says whose server has not heard yet that another one came into the room is missed there, if it may be seen there at all.
func TestMisses(t *testing.T) {
	for visibility, shown := range map[string]bool{"shared": true, "joined": false} {
		n, a, b, room := twoServers(t)
		c := n.server("c.example")
		alice, carol := a.user("alice"), c.user("carol")
		a.set(alice, room, "m.room.history_visibility", "", `{"history_visibility":"`+visibility+`"}`)
		n.settle()
		misses := func(id matrix.EventID, server *server) bool {
			t.Helper()
			ev, err := b.Event(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			missed, err := b.Misses(ctx, ev, server.name)
			if err != nil {
				t.Fatal(err)
			}
			return missed
		}
		c.join(carol, room, b)
		said := a.say(alice, room, "not for c, as far as a knows")
		a.flush()
		if misses(said, c) != shown {
			t.Errorf("%s: that it is missed is not %v", visibility, shown)
		}
		n.settle()
		heard := a.say(alice, room, "for all")
		n.settle()
		c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
		n.settle()
		if misses(heard, c) || misses(said, a) || misses(said, c) {
			t.Errorf("%s: what was sent, or is not for it, is missed", visibility)
		}
	}
}
