package rooms_test

import (
	"bytes"
	"slices"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// An event that was rejected stands in the graph all the same: other servers get it, and what comes before it. The state at it is nobody's business.
func TestServingRejectedEvents(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	before := a.say(alice, room, "before")
	n.settle()
	coup := b.forge(room, event.Proto{Sender: bob, Type: "m.room.name", StateKey: new(string), Content: []byte(`{"name":"coup"}`)})
	next := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{coup.ID()}, Depth: 50, Content: []byte(`{"body":"after"}`)})
	if r := a.receive(b, room, coup.JSON(), next.JSON()); !r[0].Rejected() || r[1].Err != nil {
		t.Fatalf("%+v", r)
	}
	snap, err := a.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	idsOf := func(pdus [][]byte, err error) []matrix.EventID {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var ids []matrix.EventID
		for _, pdu := range pdus {
			ev, err := event.Parse(snap.Version, pdu)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, ev.ID())
		}
		return ids
	}
	for what, got := range map[string][]matrix.EventID{
		"backfill":                       idsOf(a.ServeBackfill(ctx, b.name, room, []matrix.EventID{next.ID()}, 3)),
		"backfill from the rejected one": append([]matrix.EventID{next.ID()}, idsOf(a.ServeBackfill(ctx, b.name, room, []matrix.EventID{coup.ID()}, 2))...),
	} {
		if want := []matrix.EventID{next.ID(), coup.ID(), before}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	got := idsOf(a.ServeMissingEvents(ctx, b.name, room, []matrix.EventID{before}, []matrix.EventID{next.ID()}, 10, 0))
	if want := []matrix.EventID{coup.ID()}; !slices.Equal(got, want) {
		t.Errorf("get_missing_events: %v, want %v", got, want)
	}
	if pdu, err := a.ServeEvent(ctx, b.name, coup.ID()); err != nil || !bytes.Equal(pdu, coup.JSON()) {
		t.Errorf("event: %s, %v", pdu, err)
	}
	if _, _, err := a.ServeStateIDs(ctx, b.name, room, coup.ID()); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("state_ids: %v", err)
	}
}

// What the access list of a room said when the last local user left is no reason to keep a server's invites out.
func TestAccessListOfRoomThatWasLeft(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@bob:b.example":100}}`)
	a.set(alice, room, "m.room.server_acl", "", `{"allow":["*"],"deny":["b.example"]}`)
	n.settle()
	if err := a.AllowsServer(ctx, room, b.name); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Fatal(err)
	}
	if _, err := a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}); err != nil {
		t.Fatal(err)
	}
	if err := a.AllowsServer(ctx, room, b.name); err != nil {
		t.Errorf("after the last leave: %v", err)
	}
	n.settle()
	if _, err := b.Invite(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: alice}); err != nil {
		t.Fatal(err)
	}
	a.expectMembership(alice, room, "invite")
	// The history from before stays closed to it.
	if _, _, err := a.ServeStateIDs(ctx, b.name, room, b.say(bob, room, "x")); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("state_ids: %v", err)
	}
	if err := a.Isolate(ctx, room, true); err != nil {
		t.Fatal(err)
	}
	if err := a.AllowsServer(ctx, room, b.name); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("a room that is kept apart: %v", err)
	}
}
