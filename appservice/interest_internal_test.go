package appservice

import (
	"regexp"
	"testing"

	"github.com/rs/zerolog"

	"hanok/config"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// A membership that changes without an event in the stream (by state resolution) has the room looked at again; one with an event is met there, in order.
func TestMembershipsThatChangeWithoutAnEvent(t *testing.T) {
	const ghost = matrix.UserID("@_x_ghost:here.test")
	s := New(Options{
		ServerName: "here.test", DB: storagetest.Open(t), Log: zerolog.Nop(),
		Registrations: []config.Appservice{{ID: "x", URL: "http://unused", Users: []config.Namespace{{Pattern: regexp.MustCompile("^@_x_")}}}},
	})
	v, _ := roomversion.Get("11")
	key := string(ghost)
	built, err := event.Build(v, event.Proto{
		RoomID: "!r:here.test", Sender: ghost, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`), Depth: 1,
	}, "here.test")
	if err != nil {
		t.Fatal(err)
	}
	leave := &rooms.Event{Event: built, RoomNID: 1}
	x := s.All()[0]
	for name, tt := range map[string]struct {
		user   matrix.UserID
		events []*rooms.Event
		want   bool // the room is still known
	}{
		"with an event":    {ghost, []*rooms.Event{leave}, true},
		"without":          {ghost, nil, false},
		"of somebody else": {"@alice:here.test", nil, true},
	} {
		x.interest.known.Put(1, &roomInterest{member: ghost})
		s.RoomUpdated(&rooms.Update{RoomNID: 1, Events: tt.events, Memberships: []rooms.MembershipChange{
			{User: tt.user, Local: true, Previous: "join", Current: "leave", Event: leave.ID()},
		}})
		x.interest.refresh()
		if _, known := x.interest.known.Get(1); known != tt.want {
			t.Errorf("%s: the room is still known: %v", name, known)
		}
	}
}
