package feed

import (
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

func testEvent(t *testing.T, sender matrix.UserID, eventType, content string) *event.Event {
	t.Helper()
	v, _ := roomversion.Get("10")
	ev, err := event.Build(v, event.Proto{
		RoomID: "!r:x", Sender: sender, Type: eventType, Content: []byte(content), Depth: 1,
		PrevEvents: []matrix.EventID{"$p"}, AuthEvents: []matrix.EventID{"$a"},
	}, "x")
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func TestRoomEventFilter(t *testing.T) {
	for _, c := range []struct {
		filter, sender, eventType, content string
		want                               bool
	}{
		{`{}`, "@a:x", "m.room.message", `{}`, true},
		{`{"types":["m.room.*"]}`, "@a:x", "m.room.message", `{}`, true},
		{`{"types":["m.room.*"]}`, "@a:x", "m.reaction", `{}`, false},
		{`{"types":[]}`, "@a:x", "m.reaction", `{}`, false},
		{`{"types":["*"],"not_types":["m.re*"]}`, "@a:x", "m.reaction", `{}`, false},
		{`{"senders":["@a:x"]}`, "@b:x", "m.reaction", `{}`, false},
		{`{"senders":["@a:x"],"not_senders":["@a:x"]}`, "@a:x", "m.reaction", `{}`, false},
		{`{"not_senders":["@a:x"]}`, "@b:x", "m.reaction", `{}`, true},
		{`{"contains_url":true}`, "@a:x", "m.room.message", `{"url":"mxc://x/y"}`, true},
		{`{"contains_url":true}`, "@a:x", "m.room.message", `{}`, false},
		{`{"contains_url":false}`, "@a:x", "m.room.message", `{"url":"mxc://x/y"}`, false},
		{`{"org.matrix.msc3874.rel_types":["m.thread"]}`, "@a:x", "m.room.message", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$e"}}`, true},
		{`{"org.matrix.msc3874.rel_types":["m.thread"]}`, "@a:x", "m.room.message", `{}`, false},
		{`{"org.matrix.msc3874.not_rel_types":["m.thread"]}`, "@a:x", "m.room.message", `{"m.relates_to":{"rel_type":"m.thread","event_id":"$e"}}`, false},
	} {
		f, err := ParseRoomEventFilter([]byte(c.filter))
		if err != nil {
			t.Fatalf("%s: %v", c.filter, err)
		}
		if got := f.AcceptsEvent(testEvent(t, matrix.UserID(c.sender), c.eventType, c.content)); got != c.want {
			t.Errorf("%s on %s of %s: %v", c.filter, c.eventType, c.sender, got)
		}
	}
}

func TestParseFilter(t *testing.T) {
	f, err := ParseFilter([]byte(`{"room":{"rooms":["!a:x"],"not_rooms":["!b:x"],"timeline":{"limit":5},"state":{"lazy_load_members":true}},"future":1}`))
	if err != nil {
		t.Fatal(err)
	}
	if !f.Room.acceptsRoom("!a:x") || f.Room.acceptsRoom("!b:x") || f.Room.acceptsRoom("!c:x") || !f.Room.State.LazyLoadMembers {
		t.Errorf("%+v", f.Room)
	}
	if got := f.Room.Timeline.Most(10, 100); got != 5 {
		t.Errorf("limit %d", got)
	}
	if got := f.Room.State.Most(10, 100); got != 10 {
		t.Errorf("default limit %d", got)
	}
	for _, bad := range []string{
		`{"room":{"rooms":["x"]}}`, `{"room":{"timeline":{"senders":["bob"]}}}`, `{"event_format":"xml"}`,
		`{"room":{"state":{"lazy_load_members":"yes"}}}`, `{"room":[]}`, `{"presence":{"limit":-1}}`,
		`{"room":{"timeline":{"not_rooms":["#a:x"]}}}`, `[]`, `{"a":1,"a":2}`,
	} {
		if _, err := ParseFilter([]byte(bad)); !matrix.HasCode(err, "M_BAD_JSON") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	many := `["` + strings.Repeat(`a","`, maxFilterList) + `a"]`
	if _, err := ParseFilter([]byte(`{"room":{"timeline":{"types":` + many + `}}}`)); !matrix.HasCode(err, "M_BAD_JSON") {
		t.Errorf("a list without end: %v", err)
	}
	long := []byte(`{"x":"` + strings.Repeat("x", maxFilter) + `"}`)
	if _, err := ParseFilter(long); !matrix.HasCode(err, "M_TOO_LARGE") {
		t.Errorf("a long filter: %v", err)
	}
	if _, err := ParseRoomEventFilter(long); !matrix.HasCode(err, "M_TOO_LARGE") {
		t.Errorf("a long filter of room events: %v", err)
	}
	if _, err := ParseFilter([]byte(`{`)); !matrix.HasCode(err, "M_NOT_JSON") {
		t.Errorf("cut off: %v", err)
	}
}
