package event

import (
	"crypto/ed25519"
	"net/http"
	"slices"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// spec: server-server-api#validating-hashes-and-signatures-on-received-events
func TestRequiredSigners(t *testing.T) {
	member := func(content string) edit {
		return edit{"type": `"m.room.member"`, "state_key": `"@v:three.example"`, "content": content}
	}
	thirdParty := member(`{"membership":"invite","third_party_invite":{"signed":{"mxid":"@v:three.example","signatures":{},"token":"t"}}}`)
	restricted := member(`{"join_authorised_via_users_server":"@a:four.example","membership":"join"}`)
	tables := []struct {
		name, versions string
		edit           edit
		want           string
	}{
		{"message", allV, nil, "one.example"},
		{"sender elsewhere", "3 4 5 6 7 8 9 10 11 12", edit{"sender": `"@u:two.example:8448"`}, "two.example:8448"},
		{"event ID elsewhere", "1 2", edit{"event_id": `"$e:five.example"`}, "one.example five.example"},
		{"invite", allV, member(`{"membership":"invite"}`), "one.example"},
		{"third-party invite", "3 4 5 6 7 8 9 10 11 12", thirdParty, ""},
		{"third-party invite", "1 2", change2(thirdParty, "event_id", `"$e:three.example"`), "three.example"},
		{"join with a third_party_invite", allV, member(`{"membership":"join","third_party_invite":{}}`), "one.example"},
		{"restricted join before they existed", "1 2 3 4 5 6 7", restricted, "one.example"},
		{"restricted join", "8 9 10 11 12", restricted, "one.example four.example"},
		{"restricted join by the sender's server", "8 9 10 11 12", member(`{"join_authorised_via_users_server":"@a:one.example","membership":"join"}`), "one.example"},
		{"restricted join by nonsense", "8 9 10 11 12", member(`{"join_authorised_via_users_server":"four.example","membership":"join"}`), "one.example"},
		{"leave with the key", "8 9 10 11 12", member(`{"join_authorised_via_users_server":"@a:four.example","membership":"leave"}`), "one.example four.example"},
		{"message with the key", "8 9 10 11 12", edit{"content": `{"join_authorised_via_users_server":"@a:four.example"}`}, "one.example"},
	}
	for _, c := range tables {
		for _, id := range strings.Fields(c.versions) {
			v := version(t, roomversion.ID(id))
			e, err := Parse(v, applied(t, v, c.edit))
			if err != nil {
				t.Fatalf("%s in v%s: %v", c.name, id, err)
			}
			var got []string
			for _, s := range e.RequiredSigners() {
				got = append(got, string(s))
			}
			if want := strings.Fields(c.want); !slices.Equal(got, want) {
				t.Errorf("%s in v%s: %v, want %v", c.name, id, got, want)
			}
		}
	}
}

func change2(e edit, key, raw string) edit {
	out := edit{key: raw}
	for k, v := range e {
		out[k] = v
	}
	return out
}

// An event whose hash does not fit is an ordinary invite once it is redacted, so
// its sender's server has to have signed it: else anybody could invite in anybody's name.
func TestThirdPartyInviteWithWrongHash(t *testing.T) {
	v := version(t, "10")
	raw := change([]byte(typical(t, v)), edit{
		"type": `"m.room.member"`, "state_key": `"@v:three.example"`,
		"content": `{"membership":"invite","third_party_invite":{}}`,
	})
	e, err := Parse(v, raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := e.RequiredSigners(); !e.HashMismatch() || !slices.Equal(got, []matrix.ServerName{"one.example"}) {
		t.Errorf("mismatch %v, signers %v", e.HashMismatch(), got)
	}
}

func TestSignatures(t *testing.T) {
	key := specKey(t)
	public := key.Private.Public().(ed25519.PublicKey)
	other := signing.Key{ID: "ed25519:other", Private: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		once, err := Parse(v, []byte(typical(t, v)))
		if err != nil {
			t.Fatal(err)
		}
		twice, err := once.Sign("two.example", other)
		if err != nil {
			t.Fatal(err)
		}
		thrice, err := twice.WithSignature("one.example", "ed25519:z", []byte("no signature"))
		if err != nil {
			t.Fatal(err)
		}
		if got, want := thrice.SignatureKeyIDs("one.example"), []matrix.KeyID{"ed25519:1", "ed25519:z"}; !slices.Equal(got, want) {
			t.Errorf("keys %v, want %v", got, want)
		}
		if got := thrice.SignatureKeyIDs("nobody.example"); len(got) != 0 {
			t.Errorf("nobody signed with %v", got)
		}
		checks := []struct {
			server matrix.ServerName
			id     matrix.KeyID
			key    ed25519.PublicKey
			want   bool
		}{
			{"one.example", "ed25519:1", public, true},
			{"two.example", "ed25519:other", other.Private.Public().(ed25519.PublicKey), true},
			{"two.example", "ed25519:other", public, false},
			{"one.example", "ed25519:z", public, false},
		}
		for _, c := range checks {
			message, signature, ok := thrice.SignatureCheck(c.server, c.id)
			if !ok {
				t.Fatalf("%s %s: no signature", c.server, c.id)
			}
			if got := ed25519.Verify(c.key, message, signature); got != c.want {
				t.Errorf("%s %s: verifies %v, want %v", c.server, c.id, got, c.want)
			}
		}
		if _, _, ok := once.SignatureCheck("two.example", "ed25519:other"); ok {
			t.Error("signing changed the event that was signed")
		}
		if _, _, ok := thrice.SignatureCheck("one.example", "ed25519:none"); ok {
			t.Error("found a signature by a key that did not sign")
		}
		for _, signatures := range []string{"", `{}`, `{"one.example":{}}`, `{"one.example":{"ed25519:1":"?"}}`} {
			stored := change(once.JSON(), edit{"signatures": signatures})
			bare, err := FromStored(v, once.ID(), stored)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, ok := bare.SignatureCheck("one.example", "ed25519:1"); ok {
				t.Errorf("found a signature in %s", stored)
			}
		}
		if thrice.ID() != once.ID() {
			t.Errorf("ID %s, want %s", thrice.ID(), once.ID())
		}
		back, err := Parse(v, thrice.JSON())
		if err != nil {
			t.Fatal(err)
		}
		sameEvent(t, thrice, back)
	})
}

// spec: client-server-api#size-limits
func TestSizeLimits(t *testing.T) {
	v := version(t, "12")
	roomID, parent, auth := room(v)
	proto := func(bytes int) Proto {
		return Proto{
			RoomID: roomID, Sender: "@u:one.example", Type: "m.room.message",
			Content:    []byte(`{"body":"` + strings.Repeat("x", bytes) + `"}`),
			PrevEvents: []matrix.EventID{parent}, AuthEvents: []matrix.EventID{auth}, Depth: 1,
		}
	}
	overhead := len(build(t, v, proto(0)).JSON())
	most := MaxSize - signatureReserve - len("one.example") - overhead
	e := build(t, v, proto(most))
	signed, err := e.Sign("one.example", signing.Key{ID: "ed25519:a_rather_long_key_version_0123456789", Private: specKey(t).Private})
	if err != nil {
		t.Fatalf("an event that could be built cannot be signed: %v", err)
	}
	if _, err := Parse(v, signed.JSON()); err != nil {
		t.Errorf("a peer would refuse it: %v", err)
	}
	usual, err := e.Sign("one.example", specKey(t))
	if err != nil {
		t.Fatal(err)
	}
	if size := len(usual.JSON()) + len(`,"unsigned":{}`); size > MaxSize {
		t.Errorf("the largest event of ours has %d bytes with an empty unsigned, as Synapse counts", size)
	}
	tooLarge := func(what string, err error) {
		t.Helper()
		m, ok := matrix.AsError(err)
		if !ok || m.Status != http.StatusRequestEntityTooLarge || m.Code != "M_TOO_LARGE" {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = Build(v, proto(most+1), "one.example")
	tooLarge("content", err)
	shared := proto(most - signatureReserve - len("two.example"))
	shared.Signers = []matrix.ServerName{"two.example"}
	build(t, v, shared)
	shared.Content = proto(most - signatureReserve - len("two.example") + 1).Content
	_, err = Build(v, shared, "one.example")
	tooLarge("content of an event that another server will sign", err)
	_, err = signed.WithSignature(matrix.ServerName(strings.Repeat("x", 200)), "ed25519:x", make([]byte, 64))
	tooLarge("signature", err)
	almost := build(t, v, proto(most-200))
	small, err := almost.WithSignature("x", "ed25519:x", make([]byte, 64))
	if err != nil {
		t.Fatal(err)
	}
	fits := strings.Repeat("x", 1+MaxSize-len(small.JSON()))
	if _, err := almost.WithSignature(matrix.ServerName(fits), "ed25519:x", make([]byte, 64)); err != nil {
		t.Errorf("an event of %d bytes: %v", MaxSize, err)
	}
	_, err = almost.WithSignature(matrix.ServerName(fits+"x"), "ed25519:x", make([]byte, 64))
	tooLarge("one byte more", err)
	p := proto(0)
	p.Type = strings.Repeat("x", 256)
	_, err = Build(v, p, "one.example")
	tooLarge("type", err)
	p = proto(0)
	p.StateKey = ptr(strings.Repeat("x", 256))
	_, err = Build(v, p, "one.example")
	tooLarge("state key", err)

	for content, code := range map[string]string{
		``: "M_NOT_JSON", `{`: "M_NOT_JSON", `[]`: "M_BAD_JSON", `null`: "M_BAD_JSON",
		`{"a":1,"a":2}`: "M_BAD_JSON", `{"a":1.5}`: "M_BAD_JSON", `{"a":9007199254740992}`: "M_BAD_JSON",
	} {
		p := proto(0)
		p.Content = []byte(content)
		if _, err := Build(v, p, "one.example"); !matrix.HasCode(err, code) {
			t.Errorf("content %q: %v", content, err)
		}
	}
}

func TestReferenceHashes(t *testing.T) {
	v := version(t, "2")
	parent, err := Parse(v, []byte(typical(t, v)))
	if err != nil {
		t.Fatal(err)
	}
	hash := parent.ReferenceHash()
	e := build(t, v, Proto{
		RoomID: "!r:one.example", Sender: "@u:one.example", Type: "x", Content: []byte(`{}`), Depth: 1 << 62,
		PrevEvents:      []matrix.EventID{parent.ID(), "$unknown:one.example"},
		ReferenceHashes: map[matrix.EventID][32]byte{parent.ID(): hash},
	})
	want := `"prev_events":[["` + string(parent.ID()) + `",{"sha256":"` + signing.EncodeBase64(hash[:]) + `"}],["$unknown:one.example",{"sha256":""}]]`
	if !strings.Contains(string(e.JSON()), want) {
		t.Errorf("%s\nhas not %s", e.JSON(), want)
	}
	// From v3 on the same hash is the ID.
	for _, id := range roomversion.Supported()[2:] {
		v := version(t, id)
		e, err := Parse(v, []byte(typical(t, v)))
		if err != nil {
			t.Fatal(err)
		}
		hash := e.ReferenceHash()
		want := "$" + signing.EncodeBase64(hash[:])
		if id != "3" {
			want = strings.NewReplacer("+", "-", "/", "_").Replace(want)
		}
		if string(e.ID()) != want {
			t.Errorf("v%s: ID %s, reference hash %s", id, e.ID(), want)
		}
	}
}

func TestDepthIsLowered(t *testing.T) {
	const want = 1<<53 - 1
	for _, id := range []roomversion.ID{"1", "5", "6", "12"} {
		v := version(t, id)
		roomID, _, _ := room(v)
		e := build(t, v, Proto{RoomID: roomID, Sender: "@u:one.example", Type: "x", Content: []byte(`{}`), Depth: 1<<63 - 1})
		if e.Depth() != want {
			t.Errorf("v%s: depth %d, want %d", id, e.Depth(), want)
		}
	}
}

// spec: rooms/v12#event-format
func TestCreateEventNamesItsRoom(t *testing.T) {
	v := version(t, "12")
	p := Proto{Sender: "@u:one.example", Type: "m.room.create", StateKey: ptr(""), Content: []byte(`{"room_version":"12"}`), Depth: 1}
	e := build(t, v, p)
	if want := "!" + string(e.ID()[1:]); string(e.RoomID()) != want {
		t.Errorf("room %s, want %s", e.RoomID(), want)
	}
	if strings.Contains(string(e.JSON()), "room_id") {
		t.Errorf("has a room_id: %s", e.JSON())
	}
	stored, err := FromStored(v, e.ID(), e.JSON())
	if err != nil {
		t.Fatal(err)
	}
	sameEvent(t, e, stored)
	if !strings.Contains(string(e.AppendClient(nil, ClientOptions{})), `"room_id":"`+string(e.RoomID())+`"`) {
		t.Errorf("clients are not told the room: %s", e.AppendClient(nil, ClientOptions{}))
	}
	p.RoomID = e.RoomID()
	if _, err := Build(v, p, "one.example"); err == nil {
		t.Error("built a create event with a room_id")
	}
	p.RoomID, p.Type = "", "m.room.member"
	if _, err := Build(v, p, "one.example"); err == nil {
		t.Error("built a member event without a room_id")
	}
}
