package rooms_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hanok/matrix"
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
