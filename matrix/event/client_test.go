package event

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// spec: client-server-api#room-event-format
func TestAppendClient(t *testing.T) {
	v := version(t, "11")
	roomID, parent, _ := room(v)
	state := build(t, v, Proto{
		RoomID: roomID, Sender: "@u:one.example", Type: "m.room.topic", StateKey: ptr("k\"ey"), Content: []byte(`{"topic":"\u00e9"}`), OriginServerTS: 1000,
	})
	message := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "m.room.message", Content: []byte(`{}`), OriginServerTS: 2000})
	tables := []struct {
		name    string
		event   *Event
		options ClientOptions
		want    string
	}{
		{"bare", message, ClientOptions{},
			`{"content":{},"event_id":"` + string(message.ID()) + `","origin_server_ts":2000,"room_id":"!room:one.example","sender":"@u:one.example","type":"m.room.message"}`},
		{"without room", message, ClientOptions{OmitRoomID: true, Now: 1500},
			`{"content":{},"event_id":"` + string(message.ID()) + `","origin_server_ts":2000,"sender":"@u:one.example","type":"m.room.message","unsigned":{"age":-500}}`},
		{"everything", state, ClientOptions{
			TransactionID: "t\"", Now: 1001, PrevContent: []byte(`{"topic":"old"}`), ReplacesState: parent, PrevSender: "@v:one.example",
			RedactedBecause: []byte(`{"type":"m.room.redaction"}`), RedactedBy: "$r", Membership: "join", Relations: []byte(`{"m.replace":{}}`),
		},
			`{"content":{"topic":"é"},"event_id":"` + string(state.ID()) + `","origin_server_ts":1000,"room_id":"!room:one.example","sender":"@u:one.example","state_key":"k\"ey","type":"m.room.topic",` +
				`"unsigned":{"age":1,"m.relations":{"m.replace":{}},"membership":"join","prev_content":{"topic":"old"},"prev_sender":"@v:one.example",` +
				`"redacted_because":{"type":"m.room.redaction"},"redacted_by":"$r","replaces_state":"` + string(parent) + `","transaction_id":"t\""}}`},
	}
	for _, c := range tables {
		if diff := cmp.Diff(c.want, string(c.event.AppendClient(nil, c.options))); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
	if got, want := string(state.AppendStripped([]byte("["))), `[{"content":{"topic":"é"},"sender":"@u:one.example","state_key":"k\"ey","type":"m.room.topic"}`; got != want {
		t.Errorf("stripped %s, want %s", got, want)
	}
}

// Clients old and new find redacts where they look for it.
// spec: rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
func TestRedactsForClients(t *testing.T) {
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		roomID, parent, _ := room(v)
		e := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "m.room.redaction", Redacts: parent, Content: []byte(`{"reason":"spam"}`)})
		if id, ok := e.Redacts(); !ok || id != parent {
			t.Errorf("redacts %q, %v", id, ok)
		}
		want := `{"content":{"reason":"spam","redacts":"` + string(parent) + `"},"event_id":"` + string(e.ID()) +
			`","origin_server_ts":0,"redacts":"` + string(parent) + `","sender":"@u:one.example","type":"m.room.redaction"}`
		if diff := cmp.Diff(want, string(e.AppendClient(nil, ClientOptions{OmitRoomID: true}))); diff != "" {
			t.Error(diff)
		}
		_, kept := e.Redact().Redacts()
		if kept != v.RedactsInContent {
			t.Errorf("after redaction redacts is there: %v", kept)
		}
		nonsense, err := Parse(v, applied(t, v, edit{
			"type": `"m.room.redaction"`, "redacts": `"nonsense"`, "content": `{"redacts":"nonsense"}`,
		}))
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := nonsense.Redacts(); ok {
			t.Errorf("redacts %q", id)
		}
		// Where another version has it, it means nothing.
		elsewhere := edit{"type": `"m.room.redaction"`, "redacts": `"` + string(parent) + `"`}
		if !v.RedactsInContent {
			elsewhere = edit{"type": `"m.room.redaction"`, "content": `{"redacts":"` + string(parent) + `"}`}
		}
		other, err := Parse(v, applied(t, v, elsewhere))
		if err != nil {
			t.Fatal(err)
		}
		if id, ok := other.Redacts(); ok {
			t.Errorf("redacts %q from the wrong place", id)
		}
	})
}

// spec: client-server-api#forming-relationships-between-events
func TestRelation(t *testing.T) {
	v := version(t, "12")
	tables := []struct {
		content string
		want    Relation
		ok      bool
	}{
		{`{}`, Relation{}, false},
		{`{"m.relates_to":5}`, Relation{}, false},
		{`{"m.relates_to":{}}`, Relation{}, false},
		{`{"m.relates_to":{"rel_type":"m.reference"}}`, Relation{}, false},
		{`{"m.relates_to":{"event_id":"$a"}}`, Relation{}, false},
		{`{"m.relates_to":{"event_id":"a","rel_type":"m.reference"}}`, Relation{}, false},
		{`{"m.relates_to":{"event_id":5,"rel_type":"m.reference"}}`, Relation{}, false},
		{`{"m.relates_to":{"event_id":"$a","rel_type":"m.reference"}}`, Relation{Type: "m.reference", EventID: "$a"}, true},
		{`{"m.relates_to":{"event_id":"$a","key":"👍","rel_type":"m.annotation"}}`, Relation{Type: "m.annotation", EventID: "$a", Key: "👍"}, true},
		{`{"m.relates_to":{"event_id":"$a","key":5,"rel_type":"m.annotation"}}`, Relation{Type: "m.annotation", EventID: "$a"}, true},
		{`{"m.relates_to":{"m.in_reply_to":{"event_id":"$b"}}}`, Relation{InReplyTo: "$b"}, true},
		{`{"m.relates_to":{"m.in_reply_to":"$b"}}`, Relation{}, false},
		{`{"m.relates_to":{"event_id":"$a","is_falling_back":true,"m.in_reply_to":{"event_id":"$b"},"rel_type":"m.thread"}}`,
			Relation{Type: "m.thread", EventID: "$a", IsFallingBack: true, InReplyTo: "$b"}, true},
		{`{"m.relates_to":{"event_id":"$a","is_falling_back":"true","rel_type":"m.thread"}}`, Relation{Type: "m.thread", EventID: "$a"}, true},
	}
	for _, c := range tables {
		roomID, _, _ := room(v)
		e := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "m.room.message", Content: []byte(c.content)})
		got, ok := e.Relation()
		if diff := cmp.Diff(c.want, got); diff != "" || ok != c.ok {
			t.Errorf("%s: ok %v, %s", c.content, ok, diff)
		}
	}
}

func TestAccessors(t *testing.T) {
	v := version(t, "12")
	roomID, _, _ := room(v)
	member := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "m.room.member", StateKey: ptr("@u:one.example"), Content: []byte(`{"displayname":"U","membership":"join","n":5}`)})
	if member.Membership() != "join" || !member.IsState() || !member.Is("m.room.member", "@u:one.example") {
		t.Errorf("membership %q, state %v", member.Membership(), member.IsState())
	}
	if member.Is("m.room.member", "") || member.Is("m.room.name", "@u:one.example") {
		t.Error("is something that it is not")
	}
	if name, ok := member.ContentString("displayname"); !ok || name != "U" {
		t.Errorf("displayname %q, %v", name, ok)
	}
	if n, ok := member.ContentString("n"); ok {
		t.Errorf("a number as string %q", n)
	}
	message := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "m.room.message", Content: []byte(`{"membership":"join"}`)})
	if message.Membership() != "" || message.IsState() || message.Is("m.room.message", "") {
		t.Error("a message is taken for state")
	}
	// What a caller appends to one list must not run into the other.
	two := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "x", Content: []byte(`{}`),
		AuthEvents: []matrix.EventID{"$a"}, PrevEvents: []matrix.EventID{"$p"}})
	_ = append(two.AuthEvents(), "$other")
	if diff := cmp.Diff([]matrix.EventID{"$p"}, two.PrevEvents()); diff != "" {
		t.Error(diff)
	}
}
