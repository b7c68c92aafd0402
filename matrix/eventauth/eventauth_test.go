package eventauth

import (
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

func TestNumbering(t *testing.T) {
	for _, tt := range []struct {
		version roomversion.ID
		rule    rule
		want    string
	}{
		{"1", createCreator, "1.4"},
		{"1", aliasesDomain, "4.2"},
		{"1", joinOtherwise, "5.2.6"},
		{"1", thirdPartySignature, "5.3.1.7"},
		{"1", memberUnknown, "5.6"},
		{"1", userNew, "10.7.1"},
		{"1", redactionOtherwise, "11.3"},
		{"1", ruleAllow, "12"},
		{"3", ruleAllow, "11"},
		{"6", memberUnknown, "4.6"},
		{"6", eventCurrent, "9.4.1"},
		{"6", ruleAllow, "10"},
		{"7", knockOtherwise, "4.6.4"},
		{"8", memberAuthorisedSignature, "4.2.1"},
		{"8", restrictedAuthoriser, "4.3.5.2"},
		{"8", knockJoinRule, "4.7.1"},
		{"10", levelsMaps, "9.2"},
		{"10", userCurrent, "9.8.1"},
		{"11", joinCreator, "4.3.1"},
		{"12", createAdditionalCreators, "1.4"},
		{"12", ruleRoomID, "2"},
		{"12", authRejected, "3.3"},
		{"12", ruleFederate, "4"},
		{"12", restrictedAuthoriser, "5.3.5.2"},
		{"12", levelsCreators, "10.4"},
		{"12", userNew, "10.10.1"},
		{"12", ruleAllow, "11"},
	} {
		v, _ := roomversion.Get(tt.version)
		if got := tt.rule.number(v); got != tt.want {
			t.Errorf("v%s: number %s, want %s", tt.version, got, tt.want)
		}
	}
}

func TestSmoke(t *testing.T) {
	for _, id := range roomversion.Supported() {
		v, _ := roomversion.Get(id)
		empty := ""
		build := func(p event.Proto) *event.Event {
			t.Helper()
			e, err := event.Build(v, p, "a")
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		create := build(event.Proto{Sender: "@alice:a", Type: "m.room.create", StateKey: &empty, Content: []byte(`{"creator":"@alice:a"}`),
			RoomID: map[bool]matrix.RoomID{false: "!r:a"}[v.RoomIDIsCreateHash]})
		if err := Check(create, Events{}); err != nil {
			t.Fatal(id, err)
		}
		alice := "@alice:a"
		join := build(event.Proto{Sender: "@alice:a", Type: "m.room.member", StateKey: &alice, Content: []byte(`{"membership":"join"}`),
			RoomID: create.RoomID(), PrevEvents: []matrix.EventID{create.ID()}, Depth: 1})
		if err := Check(join, EventsOf(create)); err != nil {
			t.Fatal(id, err)
		}
		message := build(event.Proto{Sender: "@alice:a", Type: "m.room.message", Content: []byte(`{}`), RoomID: create.RoomID(), PrevEvents: []matrix.EventID{join.ID()}, Depth: 2})
		if err := Check(message, EventsOf(create, join)); err != nil {
			t.Fatal(id, err)
		}
		if err := Check(message, EventsOf(create)); err == nil {
			t.Fatal(id, "not joined")
		} else {
			t.Log(err)
		}
	}
}
