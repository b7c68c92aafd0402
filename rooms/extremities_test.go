package rooms_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// branch makes events of bob side by side, numbered from first, and has a take them.
func branch(t *testing.T, a, b *server, room matrix.RoomID, first, n int) {
	t.Helper()
	var pdus [][]byte
	for i := first; i < first+n; i++ {
		pdus = append(pdus, b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":"%d"}`, i)}).JSON())
	}
	for i, r := range a.receive(b, room, pdus...) {
		if r.Err != nil {
			t.Fatal(i, r.Err)
		}
	}
}

func extremities(t *testing.T, s *server, room matrix.RoomID) []matrix.EventID {
	t.Helper()
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	return snap.Extremities
}

// everything is what a user is shown of a room, by type.
func everything(t *testing.T, s *server, user matrix.UserID, room matrix.RoomID) (dummies, messages int) {
	t.Helper()
	page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: user, Backward: true, Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range page.Events {
		switch ev.Type() {
		case event.DummyType:
			dummies++
		case "m.room.message":
			messages++
		}
	}
	return dummies, messages
}

// A room with many branches is brought together without anybody noticing.
func TestBranchesAreMerged(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	branch(t, a, b, room, 0, 40)
	if got := extremities(t, a, room); len(got) > 10 {
		t.Fatalf("%d extremities", len(got))
	}
	a.restart()
	if got := extremities(t, a, room); len(got) > 10 {
		t.Fatalf("%d extremities after a restart", len(got))
	}
	if dummies, messages := everything(t, a, alice, room); dummies != 0 || messages != 40 {
		t.Errorf("alice sees %d dummy events and %d messages", dummies, messages)
	}
	for range 3 {
		a.say(alice, room, "hello")
	}
	a.restart()
	for _, u := range a.updates {
		for _, ev := range u.Events {
			if ev.IsDummy() {
				t.Error("a dummy event is announced")
			}
		}
	}
	n.settle()
	if got := extremities(t, b, room); !cmp.Equal(got, extremities(t, a, room)) || len(got) != 1 {
		t.Errorf("extremities at b: %v", got)
	}
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Error(diff)
	}
	if dummies, messages := everything(t, b, bob, room); dummies != 0 || messages != 43 {
		t.Errorf("bob sees %d dummy events and %d messages", dummies, messages)
	}
}

// Without anybody here who may speak, the room waits for somebody who may.
func TestBranchesOfARoomInWhichNobodyMaySpeak(t *testing.T) {
	_, a, b, room := twoServers(t)
	a.set(a.user("alice"), room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:100},"events_default":0,"events":{%q:100,"m.room.power_levels":50}}`, b.user("bob"), a.user("alice"), event.DummyType))
	a.flush()
	a.set(a.user("alice"), room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100},"events_default":0,"events":{%q:100,"m.room.power_levels":50}}`, b.user("bob"), event.DummyType))
	a.flush()
	branch(t, a, b, room, 0, 20)
	if got := extremities(t, a, room); len(got) != 20 {
		t.Errorf("%d extremities", len(got))
	}
}
