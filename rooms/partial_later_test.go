package rooms_test

import (
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// What becomes of a room joined without its members while they are fetched, and of who comes to it again.

// What an event follows on comes after it, and follows on the join itself: the state before the one is worked out from that before the other.
func TestPartialJoinPrevComesLater(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{Name: "x"}, nil)
	alice, bob, bea := p.a.user("alice"), p.b.user("bob"), p.b.user("bea")
	<-p.asked
	p.n.settle()
	p.b.join(bea, p.room, p.a)
	p.n.settle()
	key := string(bea)
	said := p.a.forge(p.room, event.Proto{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"about bea"}`)})
	kick := p.a.forge(p.room, event.Proto{Sender: alice, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`), PrevEvents: []matrix.EventID{said.ID()}, Depth: said.Depth() + 1})
	for _, ev := range []*event.Event{said, kick} {
		for _, s := range []*server{p.a, p.c} {
			if r := s.receive(p.a, p.room, ev.JSON()); r[0].Err != nil {
				t.Fatal(r[0].Err)
			}
		}
	}
	p.n.mu.Lock()
	held := p.n.hold
	p.n.missing = func() [][]byte { return nil }
	p.n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "state_ids" {
			return matrix.Forbidden("your server is not in the room")
		}
		return nil
	}
	p.n.mu.Unlock()
	for _, ev := range []*event.Event{kick, said} {
		if r := p.b.receive(p.a, p.room, ev.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	p.b.expectMembership(bea, p.room, "leave")
	if !p.partial() {
		t.Fatal("whole")
	}
	p.n.mu.Lock()
	p.n.hold, p.n.missing = held, nil
	p.n.mu.Unlock()
	p.complete(bob)
	p.agree()
}
