package rooms_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// bigPartialRoom is a room of a.example which bob of b.example has joined without its members, with thousands of servers of which no other answers.
func bigPartialRoom(t *testing.T) (n *network, a, b *server, room matrix.RoomID) {
	t.Helper()
	n = newNetwork(t)
	n.omit = true
	n.lie = func(sent *rooms.SentJoin) {
		for i := range 2000 {
			sent.Servers = append(sent.Servers, matrix.ServerName(fmt.Sprintf("gone%d.example", i)))
		}
	}
	a, b = n.server("a.example"), n.server("b.example")
	room = a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "11", Name: "big"})
	n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "state_ids" {
			n.split(a, b, true)
		}
		return nil
	}
	b.join(b.user("bob"), room, a)
	time.Sleep(time.Hour)
	n.mu.Lock()
	n.hold = nil
	n.mu.Unlock()
	return n, a, b, room
}

// Most servers of a big room are gone: the one that let us in, and others that work, are asked for the members each time.
func TestResyncOfManyServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := bigPartialRoom(t)
		nid, err := b.RoomNID(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		n.split(a, b, false)
		time.Sleep(15 * time.Minute)
		if b.PartialAt(b.db.Current())[nid] {
			t.Error("the members are not known yet")
		}
	})
}

// Who asks for the members of a room whose servers did not answer for long does not wait for the next try.
func TestResyncThatIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := bigPartialRoom(t)
		n.split(a, b, false)
		began := time.Now()
		members, err := b.Members(ctx, rooms.MembersRequest{Room: room, User: b.user("bob")})
		if err != nil || len(members) != 2 {
			t.Errorf("%d members, %v", len(members), err)
		}
		if waited := time.Since(began); waited > 10*time.Second {
			t.Errorf("that took %s", waited)
		}
	})
}

// What is stored ahead, of states, is not stored in vain each time that an event comes of which the state has to be asked for, too.
func TestNothingIsStoredAheadInVain(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, nil)
	<-p.asked
	alice := p.a.user("alice")
	for i := range 120 {
		p.a.set(alice, p.room, "test.state", fmt.Sprint(i), `{}`)
	}
	p.a.set(alice, p.room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100},"kick":60}`, alice)) // that authorises the ban, which comes after all others therefore
	p.n.settle()
	stored := func() (n int64) {
		t.Helper()
		if err := p.b.db.QueryRow(ctx, `SELECT COUNT(*) FROM state_nodes`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	again := make(chan struct{}, 100)
	p.n.mu.Lock()
	p.n.hold = func(from, _ matrix.ServerName, call string) error {
		if from != p.b.name || call != "state_ids" {
			return nil
		}
		again <- struct{}{}
		return matrix.Forbidden("not for you")
	}
	p.n.mu.Unlock()
	lost := p.a.forge(p.room, event.Proto{Sender: alice, Type: "m.room.message"})
	key := string(p.b.user("bella"))
	p.send(p.a, event.Proto{Sender: alice, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"ban"}`),
		PrevEvents: []matrix.EventID{lost.ID()}, Depth: lost.Depth() + 1})
	p.b.expectMembership(p.b.user("bella"), p.room, "ban")
	for len(again) > 0 {
		<-again
	}
	before := stored()
	p.release() // the state before our join comes; that before the ban is asked for then
	<-again
	if more := stored() - before; more != 0 {
		t.Errorf("%d rows of nodes were stored", more)
	}
	p.n.mu.Lock()
	p.n.hold = nil
	p.n.mu.Unlock()
}
