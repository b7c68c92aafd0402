package rooms_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// A user leaves the only room that is shared with a server; before that server knows, it comes into another one in which the user is.
func TestPartedWithoutBothKnowing(t *testing.T) {
	n := newNetwork(t)
	clock := n.stoppedClock(1_000)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	parting := func(s *server, user matrix.UserID, want ...matrix.Timestamp) {
		t.Helper()
		left, shared, known, err := s.Parting(ctx, user)
		if err != nil {
			t.Fatal(err)
		}
		var got []matrix.Timestamp
		if known {
			got = []matrix.Timestamp{left, shared}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: the parting of %s: %s", s.name, user, diff)
		}
	}
	newServer := func(s *server, room matrix.RoomID, user matrix.UserID, at matrix.Timestamp, want ...matrix.UserID) {
		t.Helper()
		local, made, err := s.NewServer(ctx, room, user)
		if err != nil || len(want) > 0 && made != at {
			t.Errorf("%s: %s came at %d: %v", s.name, user, made, err)
		}
		if diff := cmp.Diff(want, local); diff != "" {
			t.Errorf("%s: %s came to %s", s.name, user, diff)
		}
	}
	shared := func(s *server, user matrix.UserID, with matrix.ServerName, want bool) {
		t.Helper()
		if got, err := s.SharedSince(ctx, user, with, 1<<40); err != nil || got != want {
			t.Errorf("%s: %s shares a room with %s: %v, %v", s.name, user, with, got, err)
		}
		if before, err := s.SharedSince(ctx, user, with, 1); err != nil || before {
			t.Errorf("%s: %s has always shared a room with %s: %v", s.name, user, with, err)
		}
	}
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	other := c.create(carol, rooms.CreateRequest{Preset: "public_chat"})
	b.join(bob, room, a)
	b.join(bob, other, c)
	n.settle()
	newServer(a, room, bob, 1_000, alice)
	newServer(b, room, alice, 0) // it was there before
	shared(b, bob, "a.example", true)
	parting(a, bob)

	n.split(a, b, true)
	clock.Store(2_000)
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	b.mu.Lock()
	leave := b.outbox[len(b.outbox)-1]
	b.mu.Unlock()
	clock.Store(3_000)
	a.join(alice, other, c)
	n.settle()
	newServer(b, other, alice, 3_000, bob)
	shared(b, bob, "a.example", true)
	shared(b, bob, "c.example", true)
	shared(b, b.user("bert"), "c.example", false)
	shared(b, bob, "d.example", false)
	parting(a, bob) // it thinks that he is still there
	a.expectMembership(bob, room, "join")

	n.split(a, b, false)
	if r := a.receive(b, room, leave.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	a.expectMembership(bob, room, "leave")
	parting(a, bob, 2_000, 3_000)
	// Who joins beside others of that server does not bring it.
	clock.Store(4_000)
	adam := a.user("adam")
	a.join(adam, other, c)
	n.settle()
	newServer(b, other, adam, 0)
	parting(a, bob, 2_000, 3_000)
	// Nothing is shared but a room that is kept apart, so nothing is shared.
	if err := b.Isolate(ctx, other, true); err != nil {
		t.Fatal(err)
	}
	shared(b, bob, "a.example", false)
	newServer(b, other, alice, 0)
}

// The commit of a local user's join notes that it is to be announced, and no other does.
func TestJoinsAreNoted(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	b.join(bob, room, a)
	n.settle()
	for s, want := range map[*server]matrix.UserID{a: alice, b: bob} {
		joins, err := storage.ListUnannouncedJoins(ctx, s.db, "", 10)
		if err != nil || len(joins) != 1 || joins[0].UserID != want || joins[0].Pos == 0 {
			t.Errorf("%s: joins to be announced: %v, %v", s.name, joins, err)
		}
	}
}
