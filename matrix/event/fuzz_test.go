package event

import (
	"bytes"
	"testing"

	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// Whatever bytes arrive: no panic, and what is accepted is stable.
func FuzzParse(f *testing.F) {
	versions := roomversion.Supported()
	for i, id := range versions {
		f.Add(uint8(i), []byte(typical(f, version(f, id))))
	}
	f.Fuzz(func(t *testing.T, number uint8, raw []byte) {
		checkParse(t, version(t, versions[int(number)%len(versions)]), raw)
	})
}

// Random bytes hardly ever are an event with the right hash; a valid event with two
// members set to whatever the fuzzer finds, and hashed again, is one more often.
func FuzzParseEdited(f *testing.F) {
	versions := roomversion.Supported()
	bases := make([][]byte, len(versions))
	for i, id := range versions {
		bases[i] = []byte(typical(f, version(f, id)))
	}
	seeds := []struct{ eventType, key, value, content string }{
		{"m.room.member", "state_key", `"@u:one.example"`, `{"membership":"invite","third_party_invite":{"display_name":"x","signed":{"mxid":"@a:b","signatures":{},"token":"t"}}}`},
		{"m.room.member", "state_key", `"@u:one.example"`, `{"join_authorised_via_users_server":"@a:b","membership":"join"}`},
		{"m.room.create", "room_id", ``, `{"creator":"@u:one.example","room_version":"12"}`},
		{"m.room.redaction", "redacts", `"$x:one.example"`, `{"redacts":"$y"}`},
		{"m.room.message", "prev_events", `[["$x:one.example",{"sha256":""}],"$z"]`, `{"m.relates_to":{"event_id":"$a","rel_type":"m.thread","m.in_reply_to":{"event_id":"$b"}}}`},
		{"m.room.power_levels", "depth", `9007199254740991`, `{"invite":"1","notifications":{"room":50.5},"users":{"@a:b":1e3}}`},
		{"x", "signatures", `{"one.example":{"ed25519:1":"x"}}`, `{}`},
		{"x", "unsigned", `{"age":1}`, `{}`},
	}
	for i, s := range seeds {
		f.Add(uint8(i), s.eventType, s.key, []byte(s.value), []byte(s.content))
		f.Add(uint8(11-i), s.eventType, s.key, []byte(s.value), []byte(s.content))
	}
	f.Fuzz(func(t *testing.T, number uint8, eventType, key string, value, content []byte) {
		i := int(number) % len(versions)
		eventType = string(bytes.ToValidUTF8([]byte(eventType), nil))
		key = string(bytes.ToValidUTF8([]byte(key), nil))
		b := canonicaljson.Set(bases[i], "type", canonicaljson.AppendString(nil, eventType))
		if c, err := canonicaljson.Canonical(content, canonicaljson.Lenient); err == nil {
			b = canonicaljson.Set(b, "content", c)
		}
		if c, err := canonicaljson.Canonical(value, canonicaljson.Lenient); err == nil {
			b = canonicaljson.Set(b, key, c)
		} else {
			b = canonicaljson.Delete(b, key)
		}
		checkParse(t, version(t, versions[i]), rehash(t, b))
	})
}

// checkParse checks what holds for any input: an accepted event parses again to
// itself, its redacted form is the same event, and clients get valid JSON.
func checkParse(t *testing.T, v *roomversion.Version, raw []byte) {
	e, err := Parse(v, raw)
	if err != nil {
		return
	}
	again, err := Parse(v, e.JSON())
	if err != nil {
		t.Fatalf("%s does not parse again: %v", e.JSON(), err)
	}
	sameEvent(t, e, again)
	stored, err := FromStored(v, e.ID(), e.JSON())
	if err != nil {
		t.Fatalf("%s cannot be stored: %v", e.JSON(), err)
	}
	stored.hashMismatch = e.hashMismatch
	sameEvent(t, e, stored)

	redacted := e.Redact()
	if redacted.ID() != e.ID() || redacted.RoomID() != e.RoomID() || redacted.Redact() != redacted {
		t.Fatalf("%s redacted is %s", e.JSON(), redacted.JSON())
	}
	if e.HashMismatch() && redacted != e {
		t.Fatalf("%s should be redacted already", e.JSON())
	}
	if redacted.ReferenceHash() != e.ReferenceHash() {
		t.Fatalf("%s has another reference hash than %s", redacted.JSON(), e.JSON())
	}
	received, err := Parse(v, redacted.JSON())
	if err != nil || received.ID() != e.ID() || !bytes.Equal(received.JSON(), redacted.JSON()) {
		t.Fatalf("%s does not survive being sent: %v", redacted.JSON(), err)
	}
	client := e.AppendClient(nil, ClientOptions{Now: 1, OmitRoomID: true})
	if c, err := canonicaljson.Canonical(client, canonicaljson.Lenient); err != nil || !bytes.Equal(c, client) {
		t.Fatalf("client form %s: %v", client, err)
	}
	stripped := e.AppendStripped(nil)
	if _, err := canonicaljson.Canonical(stripped, canonicaljson.Lenient); err != nil {
		t.Fatalf("stripped form %s: %v", stripped, err)
	}
	e.Relation()
	for _, server := range e.RequiredSigners() {
		for _, id := range e.SignatureKeyIDs(server) {
			e.SignatureCheck(server, id)
		}
	}
}
