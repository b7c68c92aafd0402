package event

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// edit is one change to a valid event: members set to raw JSON, or removed where the value is "".
type edit map[string]string

func change(b []byte, changes edit) []byte {
	for key, raw := range changes {
		if raw == "" {
			b = canonicaljson.Delete(b, key)
		} else {
			b = canonicaljson.Set(b, key, []byte(raw))
		}
	}
	return b
}

// rehash makes hashes.sha256 right, if there is one to be made right.
func rehash(t testing.TB, b []byte) []byte {
	t.Helper()
	hashes, ok := canonicaljson.Get(b, "hashes")
	if !ok {
		return b
	}
	if _, ok := canonicaljson.GetString(hashes, "sha256"); !ok {
		return b
	}
	ms, ok := canonicaljson.Index(b, nil)
	if !ok {
		t.Fatalf("not an object: %s", b)
	}
	hash := contentHash(b, ms)
	return canonicaljson.Set(b, "hashes", []byte(`{"sha256":"`+signing.EncodeBase64(hash[:])+`"}`))
}

// typical is a valid message event of a version.
func typical(t testing.TB, v *roomversion.Version) string {
	t.Helper()
	roomID, parent, auth := room(v)
	e := build(t, v, Proto{
		RoomID: roomID, Sender: "@u:one.example", Type: "m.room.message", Content: []byte(`{"body":"hi"}`),
		PrevEvents: []matrix.EventID{parent}, AuthEvents: []matrix.EventID{auth}, Depth: 7, OriginServerTS: 1234567890123,
	})
	signed, err := e.Sign("one.example", specKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return string(signed.JSON())
}

// references is a list of n prev or auth events in the format of a version.
func references(v *roomversion.Version, n int) string {
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprintf(`"$%043d"`, i)
		if v.EventIDFormat == roomversion.EventIDInEvent {
			ids[i] = fmt.Sprintf(`["$%d:one.example",{"sha256":"aaaa"}]`, i)
		}
	}
	return "[" + strings.Join(ids, ",") + "]"
}

func long(prefix, suffix string, size int) string {
	return `"` + prefix + strings.Repeat("x", size-len(prefix)-len(suffix)) + suffix + `"`
}

const allV = "1 2 3 4 5 6 7 8 9 10 11 12"

func TestParseGood(t *testing.T) {
	good := []struct {
		name, versions string
		edit           edit
	}{
		{"as it is", allV, nil},
		{"unsigned dropped", allV, edit{"unsigned": `{"age":1,"redacted_because":{}}`}},
		{"unsigned of a wrong type dropped", allV, edit{"unsigned": `5`}},
		{"empty type", allV, edit{"type": `""`}},
		{"type of 255 bytes", allV, edit{"type": long("", "", 255)}},
		{"state key of 255 bytes", allV, edit{"state_key": long("", "", 255)}},
		{"sender of 255 bytes", allV, edit{"sender": long("@", ":one.example", 255)}},
		{"room ID of 255 bytes", "1 2 3 4 5 6 7 8 9 10 11", edit{"room_id": long("!", ":one.example", 255)}},
		{"historical sender", allV, edit{"sender": `"@Ünï cödé!:one.example"`}},
		{"empty localpart", allV, edit{"sender": `"@:one.example"`}},
		{"sender at IPv6 address", allV, edit{"sender": `"@u:[1234:5678::abcd]:5678"`}},
		{"20 prev_events", allV, edit{"prev_events": "20"}},
		{"10 auth_events", allV, edit{"auth_events": "10"}},
		{"no prev_events", allV, edit{"prev_events": `[]`}},
		{"depth 0", allV, edit{"depth": `0`}},
		{"depth 2^53-1", allV, edit{"depth": `9007199254740991`}},
		{"depth 2^63-1", "1 2 3 4 5", edit{"depth": `9223372036854775807`}},
		{"a float in content", "1 2 3 4 5", edit{"content": `{"f":1.5}`}},
		{"a great number in content", "1 2 3 4 5", edit{"content": `{"f":9223372036854775808}`}},
		{"no signatures yet", allV, edit{"signatures": `{}`}},
		{"unknown members", allV, edit{"origin": `"one.example"`, "prev_state": `[]`, "org.example.x": `{"y":null}`}},
		{"top-level redacts is nothing from v11 on", "11 12", edit{"redacts": `5`}},
		{"event ID of 255 bytes", "1 2", edit{"event_id": long("$", ":one.example", 255)}},
		{"a create event without room ID", "12", edit{"type": `"m.room.create"`, "state_key": `""`, "room_id": ""}},
		{"the hash padded", allV, edit{"pad": "hash"}},
	}
	for _, c := range good {
		for _, id := range strings.Fields(c.versions) {
			t.Run(c.name+"/v"+id, func(t *testing.T) {
				v := version(t, roomversion.ID(id))
				raw := applied(t, v, c.edit)
				e, err := Parse(v, raw)
				if err != nil {
					t.Fatalf("refused: %v\n%s", err, raw)
				}
				if e.HashMismatch() {
					t.Errorf("hash mismatch: %s", raw)
				}
				if want := canonicaljson.Delete(raw, "unsigned"); !bytes.Equal(e.JSON(), want) {
					t.Errorf("kept %s\nwant %s", e.JSON(), want)
				}
			})
		}
	}
}

func TestParseBad(t *testing.T) {
	bad := []struct {
		name, versions string
		edit           edit
		want           string // part of the message
	}{
		{"no auth_events", allV, edit{"auth_events": ""}, "auth_events is missing"},
		{"no content", allV, edit{"content": ""}, "content is missing"},
		{"no depth", allV, edit{"depth": ""}, "depth is missing"},
		{"no hashes", allV, edit{"hashes": ""}, "hashes is missing"},
		{"no origin_server_ts", allV, edit{"origin_server_ts": ""}, "origin_server_ts is missing"},
		{"no prev_events", allV, edit{"prev_events": ""}, "prev_events is missing"},
		{"no room_id", allV, edit{"room_id": ""}, "room_id is missing"},
		{"no sender", allV, edit{"sender": ""}, "sender is missing"},
		{"no signatures", allV, edit{"signatures": ""}, "signatures is missing"},
		{"no type", allV, edit{"type": ""}, "type is missing"},
		{"an event_id", "3 4 5 6 7 8 9 10 11 12", edit{"event_id": `"$1:one.example"`}, "event_id is not a member"},
		{"no event_id", "1 2", edit{"event_id": ""}, "event_id is missing"},

		{"content a list", allV, edit{"content": `[]`}, "content is of the wrong type"},
		{"content null", allV, edit{"content": `null`}, "content is of the wrong type"},
		{"hashes a string", allV, edit{"hashes": `"x"`}, "hashes is of the wrong type"},
		{"no sha256", allV, edit{"hashes": `{"md5":"x"}`}, "hashes.sha256"},
		{"sha256 a number", allV, edit{"hashes": `{"sha256":5}`}, "hashes.sha256"},
		{"sha256 no base64", allV, edit{"keep": "hash", "hashes": `{"sha256":"?"}`}, "hashes.sha256 is not base64"},
		{"signatures a list", allV, edit{"signatures": `[]`}, "signatures is of the wrong type"},
		{"signatures of a server a string", allV, edit{"signatures": `{"one.example":"x"}`}, "signatures is of the wrong type"},
		{"a signature a number", allV, edit{"signatures": `{"one.example":{"ed25519:1":1}}`}, "signatures is of the wrong type"},
		{"type a number", allV, edit{"type": `1`}, "type is of the wrong type"},
		{"state_key null", allV, edit{"state_key": `null`}, "state_key is of the wrong type"},
		{"sender null", allV, edit{"sender": `null`}, "sender is of the wrong type"},
		{"room_id a list", allV, edit{"room_id": `["!r:one.example"]`}, "room_id is of the wrong type"},
		{"depth a string", allV, edit{"depth": `"7"`}, "depth is of the wrong type"},
		{"depth with fraction", "1 2 3 4 5", edit{"depth": `7.5`}, "depth is of the wrong type"},
		{"depth 2^63", "1 2 3 4 5", edit{"depth": `9223372036854775808`}, "depth is of the wrong type"},
		{"depth 2^53", "6 7 8 9 10 11 12", edit{"depth": `9007199254740992`}, ""},
		{"depth negative", allV, edit{"depth": `-1`}, "depth is negative"},
		{"time a string", allV, edit{"origin_server_ts": `"1"`}, "origin_server_ts is of the wrong type"},
		{"time true", allV, edit{"origin_server_ts": `true`}, "origin_server_ts is of the wrong type"},
		{"redacts a number", "1 2 3 4 5 6 7 8 9 10", edit{"redacts": `5`}, "redacts is of the wrong type"},
		{"a float in content", "6 7 8 9 10 11 12", edit{"content": `{"f":1.5}`}, ""},
		{"a great number in content", "6 7 8 9 10 11 12", edit{"content": `{"f":9007199254740992}`}, ""},

		{"21 prev_events", allV, edit{"prev_events": "21"}, "21 prev_events"},
		{"11 auth_events", allV, edit{"auth_events": "11"}, "11 auth_events"},
		{"1,000 prev_events", "3 12", edit{"prev_events": "1000"}, "1000 prev_events"},
		{"a prev event twice", "1 2", edit{"prev_events": `[["$1:one.example",{}],["$2:one.example",{}],["$1:one.example",{"sha256":""}]]`}, "a prev event twice"},
		{"a prev event twice", "3 4 5 6 7 8 9 10 11 12", edit{"prev_events": `["$1:one.example","$2:one.example","$1:one.example"]`}, "a prev event twice"},
		{"prev_events an object", allV, edit{"prev_events": `{}`}, "prev_events is of the wrong type"},
		{"an ID a number", allV, edit{"prev_events": `[5]`}, "prev_events is of the wrong type"},
		{"pairs", "3 4 5 6 7 8 9 10 11 12", edit{"prev_events": `[["$1:one.example",{"sha256":"aaaa"}]]`}, "prev_events is of the wrong type"},
		{"plain IDs", "1 2", edit{"auth_events": `["$1:one.example"]`}, "auth_events is of the wrong type"},
		{"pair of one", "1 2", edit{"auth_events": `[["$1:one.example"]]`}, "auth_events is of the wrong type"},
		{"pair of three", "1 2", edit{"auth_events": `[["$1:one.example",{},{}]]`}, "auth_events is of the wrong type"},
		{"pair the wrong way round", "1 2", edit{"auth_events": `[[{"sha256":"aaaa"},"$1:one.example"]]`}, "auth_events is of the wrong type"},
		{"an ID without sigil", "3 12", edit{"auth_events": `["abc"]`}, "auth_events is of the wrong type"},
		{"an empty ID", "3 12", edit{"auth_events": `[""]`}, "auth_events is of the wrong type"},
		{"an ID with NUL", "3 12", edit{"prev_events": `["$a\u0000"]`}, "prev_events is of the wrong type"},
		{"a long ID", "3 12", edit{"prev_events": `[` + long("$", "", 256) + `]`}, "prev_events is of the wrong type"},

		{"type of 256 bytes", allV, edit{"type": long("", "", 256)}, "type has 256 bytes"},
		{"type of 256 bytes but 86 characters", allV, edit{"type": `"` + strings.Repeat("한", 85) + `x"`}, "type has 256 bytes"},
		{"state key of 256 bytes", allV, edit{"state_key": long("", "", 256)}, "state_key has 256 bytes"},
		{"sender of 256 bytes", allV, edit{"sender": long("@", ":one.example", 256)}, "sender has 256 bytes"},
		{"room ID of 256 bytes", allV, edit{"room_id": long("!", ":one.example", 256)}, "room_id has 256 bytes"},
		{"event ID of 256 bytes", "1 2", edit{"event_id": long("$", ":one.example", 256)}, "event_id has 256 bytes"},
		{"event too large", allV, edit{"content": `{"b":` + long("", "", 65536) + `}`}, "65536 are allowed"},

		{"sender without domain", allV, edit{"sender": `"@u"`}, "sender"},
		{"sender without sigil", allV, edit{"sender": `"u:one.example"`}, "sender"},
		{"sender with a bad domain", allV, edit{"sender": `"@u:one/example"`}, "sender"},
		{"room ID without sigil", allV, edit{"room_id": `"room:one.example"`}, "room_id"},
		{"room ID without domain", "1 2 3 4 5 6 7 8 9 10 11", edit{"room_id": `"!Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"`}, "room_id"},
		{"room ID with domain", "12", edit{"room_id": `"!room:one.example"`}, "room_id"},
		{"room ID that is no hash", "12", edit{"room_id": `"!short"`}, "room_id"},
		{"event ID without domain", "1 2", edit{"event_id": `"$abc"`}, "event_id"},
		{"event ID without sigil", "1 2", edit{"event_id": `"abc:one.example"`}, "event_id"},
		{"create with room ID", "12", edit{"type": `"m.room.create"`, "state_key": `""`}, "must not have a room_id"},
		{"create that is no state", "12", edit{"type": `"m.room.create"`, "room_id": ""}, "empty state_key"},
		{"create with a state key", "12", edit{"type": `"m.room.create"`, "room_id": "", "state_key": `"x"`}, "empty state_key"},
	}
	for _, c := range bad {
		for _, id := range strings.Fields(c.versions) {
			t.Run(c.name+"/v"+id, func(t *testing.T) {
				v := version(t, roomversion.ID(id))
				raw := applied(t, v, c.edit)
				e, err := Parse(v, raw)
				if err == nil {
					t.Fatalf("accepted: %s", e.JSON())
				}
				if _, ok := matrix.AsError(err); !ok {
					t.Errorf("%T is not for a peer: %v", err, err)
				}
				if !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v does not say %q", err, c.want)
				}
			})
		}
	}
	for _, raw := range []string{``, ` `, `null`, `[]`, `"x"`, `{}`, `{`, `{"type":"a","type":"b"}`, "{\"a\":\"\xff\"}"} {
		if e, err := Parse(version(t, "12"), []byte(raw)); err == nil {
			t.Errorf("accepted %q as %s", raw, e.JSON())
		}
	}
}

// applied is the typical event of a version with an edit. Numbers as prev_events
// or auth_events stand for that many; "pad" and "keep" change what is done with the hash.
func applied(t testing.TB, v *roomversion.Version, changes edit) []byte {
	t.Helper()
	expanded := edit{}
	for key, raw := range changes {
		var n int
		switch _, err := fmt.Sscanf(raw, "%d", &n); {
		case key == "pad" || key == "keep":
			continue
		case err == nil && (key == "prev_events" || key == "auth_events"):
			raw = references(v, n)
		}
		expanded[key] = raw
	}
	b := change([]byte(typical(t, v)), expanded)
	if changes["keep"] == "" {
		b = rehash(t, b)
	}
	if changes["pad"] != "" {
		hashes, _ := canonicaljson.Get(b, "hashes")
		b = canonicaljson.Set(b, "hashes", bytes.Replace(hashes, []byte(`"}`), []byte(`="}`), 1))
	}
	return b
}

// What is not canonical as sent is the same event: same bytes kept, same ID.
// History may have what is refused as news.
func TestParseHistory(t *testing.T) {
	for _, id := range roomversion.Supported() {
		v := version(t, id)
		for _, e := range []edit{{"prev_events": "21"}, {"auth_events": "11"}} {
			raw := applied(t, v, e)
			if ev, err := ParseHistory(v, raw); err != nil || ev.HashMismatch() {
				t.Errorf("v%s, %v: %v", id, e, err)
			}
		}
		if _, err := ParseHistory(v, applied(t, v, edit{"depth": `-1`})); err == nil {
			t.Errorf("v%s: a negative depth is taken", id)
		}
	}
}

func TestParseCanonicalises(t *testing.T) {
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		want, err := Parse(v, []byte(typical(t, v)))
		if err != nil {
			t.Fatal(err)
		}
		var reversed []string
		for key, raw := range canonicaljson.Members(want.JSON()) {
			reversed = append([]string{fmt.Sprintf(" %q :\t%s\n", key, raw)}, reversed...)
		}
		sent := strings.Replace("{"+strings.Join(reversed, ",")+"}", `"hi"`, `"\u0068i"`, 1)
		got, err := Parse(v, []byte(sent))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got.JSON(), want.JSON()) || got.ID() != want.ID() || got.HashMismatch() {
			t.Errorf("%s\nbecame %s\nwant %s", sent, got.JSON(), want.JSON())
		}
	})
}

// spec: server-server-api#validating-hashes-and-signatures-on-received-events
func TestHashMismatchRedacts(t *testing.T) {
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		original, err := Parse(v, []byte(typical(t, v)))
		if err != nil {
			t.Fatal(err)
		}
		for name, hashes := range map[string]string{
			"content changed": "",
			"hash too short":  `{"sha256":"aaaa"}`,
		} {
			raw := change(original.JSON(), edit{"content": `{"body":"forged"}`})
			if hashes != "" {
				raw = change(original.JSON(), edit{"hashes": hashes})
			}
			got, err := Parse(v, raw)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if !got.HashMismatch() || string(got.Content()) != `{}` {
				t.Errorf("%s: mismatch %v, content %s", name, got.HashMismatch(), got.Content())
			}
			if hashes == "" && got.ID() != original.ID() {
				t.Errorf("%s: ID %s, want %s", name, got.ID(), original.ID())
			}
		}
		// A redacted event carries the hash of its old content.
		redacted, err := Parse(v, original.Redact().JSON())
		if err != nil {
			t.Fatal(err)
		}
		if !redacted.HashMismatch() || redacted.ID() != original.ID() {
			t.Errorf("redacted: mismatch %v, ID %s, want %s", redacted.HashMismatch(), redacted.ID(), original.ID())
		}
	})
}

func TestRoomOf(t *testing.T) {
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		want, _, _ := room(v)
		if got, err := RoomOf([]byte(typical(t, v))); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	})
	for _, raw := range []string{``, `[]`, `{}`, `{"room_id":5}`, `{"room_id":"x"}`, `{"room_id":"!a:b","room_id":"!c:d"}`} {
		got, err := RoomOf([]byte(raw))
		if _, ok := matrix.AsError(err); !ok {
			t.Errorf("%s gave %q, %v", raw, got, err)
		}
	}
}

func TestParseDoesNotKeepItsInput(t *testing.T) {
	v := version(t, "12")
	raw := []byte(typical(t, v))
	e, err := Parse(v, raw)
	if err != nil {
		t.Fatal(err)
	}
	before := string(e.JSON()) + string(e.Sender()) + string(e.ID())
	for i := range raw {
		raw[i] = 'x'
	}
	if after := string(e.JSON()) + string(e.Sender()) + string(e.ID()); after != before {
		t.Errorf("the event changed with its input: %s", after)
	}
}

func TestFromStored(t *testing.T) {
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		want, err := Parse(v, []byte(typical(t, v)))
		if err != nil {
			t.Fatal(err)
		}
		got, err := FromStored(v, want.ID(), want.JSON())
		if err != nil {
			t.Fatal(err)
		}
		sameEvent(t, want, got)
		for i := range want.JSON() {
			// Damaged bytes give an error or something odd, but no panic.
			if e, err := FromStored(v, want.ID(), want.JSON()[:i]); err == nil {
				t.Errorf("accepted the first %d bytes as %s", i, e.JSON())
			}
		}
	})
}
