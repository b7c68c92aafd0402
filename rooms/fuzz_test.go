package rooms

import (
	"encoding/json"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// What another server makes for us either is refused or names the room, user and membership that we asked for.
func FuzzReadTemplate(f *testing.F) {
	for _, s := range []string{
		`{"type":"m.room.member","state_key":"@u:x","sender":"@u:x","room_id":"!r:x","content":{"membership":"join"},"prev_events":["$a"],"auth_events":[],"depth":3}`,
		`{"type":"m.room.member","state_key":"@u:x","sender":"@u:x","room_id":"!r:x","content":{"membership":"join"},"prev_events":[["$a:x",{"sha256":"x"}]],"auth_events":[[]],"depth":-1}`,
		`{"prev_events":[1]}`, `[]`, `{`,
	} {
		f.Add("11", []byte(s))
		f.Add("1", []byte(s))
	}
	f.Fuzz(func(t *testing.T, version string, raw []byte) {
		tpl, err := readTemplate(MadeEvent{Version: roomversion.ID(version), Event: raw}, "!r:x", "@u:x", "join")
		if err != nil {
			return
		}
		if m, _ := canonicaljson.GetString(tpl.proto.Content, "membership"); m != "join" || tpl.proto.RoomID != "!r:x" || *tpl.proto.StateKey != "@u:x" || tpl.proto.Depth < 1 {
			t.Fatalf("%+v", tpl.proto)
		}
		for _, id := range append(tpl.proto.PrevEvents, tpl.proto.AuthEvents...) {
			if _, err := matrix.ParseEventID(string(id)); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Whatever comes as stripped state, a bounded JSON array of stripped events is kept.
func FuzzStrippedJSON(f *testing.F) {
	f.Add([]byte(`{"type":"m.room.name","state_key":"","sender":"@a:x","content":{"name":"n"},"unsigned":{"x":1}}`))
	f.Add([]byte(`{"type":1}`))
	f.Add([]byte("\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		many := make([][]byte, 60)
		for i := range many {
			many[i] = raw
		}
		out := strippedJSON(many)
		var events []map[string]json.RawMessage
		if err := json.Unmarshal(out, &events); err != nil {
			t.Fatal(err)
		}
		if len(events) > maxStripped || len(out) > maxStrippedBytes+1000 {
			t.Fatalf("%d events, %d bytes", len(events), len(out))
		}
		for _, ev := range events {
			if len(ev) != 4 {
				t.Fatalf("%v", ev)
			}
		}
	})
}

// Tokens survive the way to a client and back.
func FuzzParseToken(f *testing.F) {
	f.Add("t1_2")
	f.Add("t0_-5")
	f.Add("s1")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !matrix.HasCode(err, "M_INVALID_PARAM") {
				t.Fatal(err)
			}
			return
		}
		if again, err := ParseToken(tok.String()); err != nil || again != tok {
			t.Fatal(again, err)
		}
	})
}
