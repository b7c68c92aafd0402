package event

import (
	"bytes"
	"crypto/ed25519"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// The top-level members that redaction keeps, as the room version pages list them.
// spec: rooms/v1#redactions, rooms/v11#redactions
func TestRedactionOfMembers(t *testing.T) {
	since1 := strings.Fields(`auth_events content depth event_id hashes membership origin origin_server_ts
		prev_events prev_state room_id sender signatures state_key type`)
	since11 := strings.Fields(`auth_events content depth event_id hashes origin_server_ts
		prev_events room_id sender signatures state_key type`)
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		want := since1
		if v.ID == "11" || v.ID == "12" {
			want = since11
		}
		b := change([]byte(typical(t, v)), edit{
			"state_key": `""`, "origin": `"one.example"`, "membership": `"join"`, "prev_state": `[]`,
			"redacts": `"$x:one.example"`, "age_ts": `1`, "org.example.x": `{}`,
		})
		if v.EventIDFormat != roomversion.EventIDInEvent {
			want = slices.DeleteFunc(slices.Clone(want), func(key string) bool { return key == "event_id" }) // which its events do not have
		}
		e, err := Parse(v, rehash(t, b))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for key := range canonicaljson.Members(e.Redact().JSON()) {
			got = append(got, key)
		}
		if !slices.Equal(got, want) {
			t.Errorf("kept %v\nwant %v", got, want)
		}
	})
}

// The content that redaction keeps, by type and version, as the pages list it.
// spec: rooms/v1#redactions, rooms/v6#redactions, rooms/v8#redactions, rooms/v9#redactions, rooms/v11#redactions
func TestRedactionOfContent(t *testing.T) {
	const levels = `"ban":1,"events":{"a":2},"events_default":3,"invite":4,"kick":5,"notifications":{"room":6},"redact":7,"state_default":8,"users":{"@u:x":9},"users_default":10`
	const keptLevels = `"ban":1,"events":{"a":2},"events_default":3,"kick":5,"redact":7,"state_default":8,"users":{"@u:x":9},"users_default":10`
	const keptLevels11 = `"ban":1,"events":{"a":2},"events_default":3,"invite":4,"kick":5,"redact":7,"state_default":8,"users":{"@u:x":9},"users_default":10`
	tables := []struct{ eventType, versions, content, want string }{
		{"m.room.message", allV, `{"body":"x","membership":"join"}`, `{}`},
		{"m.room.topic", allV, `{"topic":"x"}`, `{}`},
		{"m.room.encryption", allV, `{"algorithm":"m.megolm.v1.aes-sha2"}`, `{}`},
		{"m.room.third_party_invite", allV, `{"public_key":"x"}`, `{}`},

		{"m.room.member", "1 2 3 4 5 6 7 8", `{"displayname":"U","join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"signed":{}}}`, `{"membership":"join"}`},
		{"m.room.member", "9 10", `{"displayname":"U","join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"signed":{}}}`, `{"join_authorised_via_users_server":"@a:b","membership":"join"}`},
		{"m.room.member", "11 12", `{"displayname":"U","join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"display_name":"V","signed":{"mxid":"@v:x","signatures":{},"token":"t"},"z":1}}`, `{"join_authorised_via_users_server":"@a:b","membership":"join","third_party_invite":{"signed":{"mxid":"@v:x","signatures":{},"token":"t"}}}`},
		{"m.room.member", "11 12", `{"membership":"invite","third_party_invite":{"display_name":"V"}}`, `{"membership":"invite","third_party_invite":{}}`},
		{"m.room.member", "11 12", `{"membership":"invite","third_party_invite":"x"}`, `{"membership":"invite"}`},
		{"m.room.member", allV, `{"displayname":"U"}`, `{}`},

		{"m.room.create", "1 2 3 4 5 6 7 8 9 10", `{"creator":"@u:x","m.federate":false,"predecessor":{},"room_version":"5"}`, `{"creator":"@u:x"}`},
		{"m.room.create", "11 12", `{"creator":"@u:x","m.federate":false,"org.example":[1,{"a":2}],"room_version":"11"}`, `{"creator":"@u:x","m.federate":false,"org.example":[1,{"a":2}],"room_version":"11"}`},

		{"m.room.join_rules", "1 2 3 4 5 6 7", `{"allow":[],"join_rule":"public","x":1}`, `{"join_rule":"public"}`},
		{"m.room.join_rules", "8 9 10 11 12", `{"allow":[{"room_id":"!x:y"}],"join_rule":"restricted","x":1}`, `{"allow":[{"room_id":"!x:y"}],"join_rule":"restricted"}`},

		{"m.room.power_levels", "1 2 3 4 5 6 7 8 9 10", `{` + levels + `}`, `{` + keptLevels + `}`},
		{"m.room.power_levels", "11 12", `{` + levels + `}`, `{` + keptLevels11 + `}`},

		{"m.room.aliases", "1 2 3 4 5", `{"aliases":["#a:b"],"x":1}`, `{"aliases":["#a:b"]}`},
		{"m.room.aliases", "6 7 8 9 10 11 12", `{"aliases":["#a:b"],"x":1}`, `{}`},

		{"m.room.history_visibility", allV, `{"history_visibility":"shared","x":1}`, `{"history_visibility":"shared"}`},

		{"m.room.redaction", "1 2 3 4 5 6 7 8 9 10", `{"reason":"x","redacts":"$a"}`, `{}`},
		{"m.room.redaction", "11 12", `{"reason":"x","redacts":"$a"}`, `{"redacts":"$a"}`},
	}
	for _, c := range tables {
		for _, id := range strings.Fields(c.versions) {
			v := version(t, roomversion.ID(id))
			changes := edit{"type": `"` + c.eventType + `"`, "state_key": `""`, "content": c.content}
			if v.RoomIDIsCreateHash && c.eventType == "m.room.create" {
				changes["room_id"] = ""
			}
			e, err := Parse(v, applied(t, v, changes))
			if err != nil {
				t.Fatalf("%s in v%s: %v", c.eventType, id, err)
			}
			if got := string(e.Redact().Content()); got != c.want {
				t.Errorf("%s in v%s: content %s\nredacted to %s\nwant %s", c.eventType, id, c.content, got, c.want)
			}
		}
	}
}

// drawObject draws a canonical JSON object with keys that matter to redaction among them.
func drawObject(t *rapid.T, depth int) []byte {
	keys := rapid.SliceOfNDistinct(rapid.OneOf(
		rapid.SampledFrom(strings.Fields(`membership join_authorised_via_users_server third_party_invite signed creator
			join_rule allow ban events users invite redacts aliases history_visibility m.relates_to body`)),
		rapid.String(),
	), 0, 8, rapid.ID[string]).Draw(t, "keys")
	object := []byte(`{}`)
	for _, key := range keys {
		var raw []byte
		switch kind := rapid.IntRange(0, 4).Draw(t, "kind"); {
		case kind == 0:
			raw = canonicaljson.AppendString(nil, rapid.String().Draw(t, "string"))
		case kind == 1 && depth > 0:
			raw = drawObject(t, depth-1)
		case kind == 2 && depth > 0:
			raw = append(append([]byte(`[null,`), drawObject(t, depth-1)...), ']')
		case kind == 3:
			raw = []byte(`true`)
		default:
			raw = []byte(`-12`)
		}
		object = canonicaljson.Set(object, key, raw)
	}
	return object
}

func drawProto(t *rapid.T, v *roomversion.Version) Proto {
	roomID, parent, auth := room(v)
	p := Proto{
		RoomID: roomID,
		Sender: matrix.UserID("@" + rapid.StringMatching(`[a-z0-9._=/+-]{1,20}`).Draw(t, "localpart") + ":one.example"),
		Type: rapid.OneOf(rapid.SampledFrom(strings.Fields(`m.room.message m.room.member m.room.create m.room.join_rules
			m.room.power_levels m.room.aliases m.room.history_visibility m.room.redaction`)), rapid.StringN(0, 60, 255)).Draw(t, "type"),
		Content:        drawObject(t, 3),
		Redacts:        rapid.SampledFrom([]matrix.EventID{"", parent}).Draw(t, "redacts"),
		PrevEvents:     rapid.SliceOfN(rapid.Just(parent), 0, 1).Draw(t, "prev"),
		AuthEvents:     rapid.SliceOfN(rapid.Just(auth), 0, MaxAuthEvents).Draw(t, "auth"),
		Depth:          rapid.Int64Min(0).Draw(t, "depth"),
		OriginServerTS: matrix.Timestamp(rapid.Int64Range(0, 1<<53-1).Draw(t, "ts")),
	}
	if rapid.Bool().Draw(t, "state") {
		p.StateKey = ptr(rapid.StringN(0, 60, 255).Draw(t, "state key"))
	}
	if p.Type == "m.room.create" && v.RoomIDIsCreateHash {
		p.RoomID, p.StateKey = "", ptr("")
	}
	return p
}

// Whatever an event holds: it comes back from its bytes, and its redacted form
// has the same ID and signatures, and is its own redacted form.
func TestProperties(t *testing.T) {
	key := specKey(t)
	public := key.Private.Public().(ed25519.PublicKey)
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		rapid.Check(t, func(t *rapid.T) {
			p := drawProto(t, v)
			built, err := Build(v, p, "one.example")
			if err != nil {
				t.Fatal(err)
			}
			e, err := built.Sign("one.example", key)
			if err != nil {
				t.Fatal(err)
			}
			if e.ID() != built.ID() || e.RoomID() != built.RoomID() {
				t.Fatalf("signing changed %s in %s to %s in %s", built.ID(), built.RoomID(), e.ID(), e.RoomID())
			}
			parsed, err := Parse(v, e.JSON())
			if err != nil {
				t.Fatal(err)
			}
			if parsed.HashMismatch() || parsed.ID() != e.ID() || !bytes.Equal(parsed.JSON(), e.JSON()) {
				t.Fatalf("%s came back as %s", e.JSON(), parsed.JSON())
			}
			sameEvent(t, e, parsed)

			redacted := parsed.Redact()
			if redacted.ID() != e.ID() || redacted.RoomID() != e.RoomID() {
				t.Fatalf("redaction changed %s in %s to %s in %s", e.ID(), e.RoomID(), redacted.ID(), redacted.RoomID())
			}
			if again := redacted.Redact(); again != redacted {
				t.Fatalf("%s redacted again is %s", redacted.JSON(), again.JSON())
			}
			message, signature, ok := redacted.SignatureCheck("one.example", key.ID)
			if !ok || !ed25519.Verify(public, message, signature) {
				t.Fatalf("the signature of %s does not verify", redacted.JSON())
			}
			// A peer that gets the redacted form sees the same event.
			received, err := Parse(v, redacted.JSON())
			if err != nil {
				t.Fatal(err)
			}
			if received.ID() != e.ID() || !bytes.Equal(received.JSON(), redacted.JSON()) {
				t.Fatalf("%s arrived as %s, %s", redacted.JSON(), received.ID(), received.JSON())
			}
			if received.HashMismatch() != (redacted != parsed) {
				t.Fatalf("%s: hash mismatch %v", redacted.JSON(), received.HashMismatch())
			}
			client := parsed.AppendClient(nil, ClientOptions{Now: 1, TransactionID: "\"", Relations: []byte(`{}`)})
			if c, err := canonicaljson.Canonical(client, canonicaljson.Lenient); err != nil || !bytes.Equal(c, client) {
				t.Fatalf("client form is not canonical (%v): %s", err, client)
			}
		})
	})
}
