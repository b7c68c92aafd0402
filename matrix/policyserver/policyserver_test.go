package policyserver

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

func TestParse(t *testing.T) {
	key := bytes.Repeat([]byte{7}, 32)
	encoded := signing.EncodeBase64(key)
	for _, v := range []struct {
		content string
		ok      bool
		key     ed25519.PublicKey
	}{
		{`{"via":"policy.example.org","public_keys":{"ed25519":"` + encoded + `"}}`, true, key},
		{`{"via":"policy.example.org","public_keys":{"ed25519":"` + encoded + `","x":1},"y":2}`, true, key},
		{`{"via":"policy.example.org","public_keys":{"ed25519":"AAAA"}}`, true, nil},
		{`{"via":"policy.example.org","public_keys":{"ed25519":"?"}}`, true, nil},
		{`{}`, false, nil},
		{`{"via":"policy.example.org"}`, false, nil},
		{`{"via":"policy.example.org","public_keys":{}}`, false, nil},
		{`{"via":"policy.example.org","public_keys":{"ed25519":1}}`, false, nil},
		{`{"via":"policy.example.org","public_keys":["ed25519"]}`, false, nil},
		{`{"via":"policy.example.org","public_keys":"ed25519"}`, false, nil},
		{`{"public_keys":{"ed25519":"` + encoded + `"}}`, false, nil},
		{`{"via":1,"public_keys":{"ed25519":"` + encoded + `"}}`, false, nil},
		{`{"via":"not a name","public_keys":{"ed25519":"` + encoded + `"}}`, false, nil},
	} {
		content, err := canonicaljson.Canonical([]byte(v.content), canonicaljson.Strict)
		if err != nil {
			t.Fatal(err)
		}
		s, ok := Parse(content)
		if ok != v.ok || !bytes.Equal(s.Key, v.key) || ok != (s.Name == "policy.example.org") {
			t.Errorf("%s: %+v, %v", v.content, s, ok)
		}
	}
}

func build(t *testing.T, eventType string, stateKey *string) *event.Event {
	t.Helper()
	v, _ := roomversion.Get("11")
	e, err := event.Build(v, event.Proto{
		RoomID: "!room:example.org", Sender: "@alice:example.org", Type: eventType, StateKey: stateKey, Content: []byte(`{"body":"x"}`),
	}, "example.org")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExempt(t *testing.T) {
	empty, other := "", "x"
	if !Exempt(build(t, EventType, &empty)) {
		t.Error("the state event with an empty state key needs a signature")
	}
	for _, e := range []*event.Event{build(t, EventType, nil), build(t, EventType, &other), build(t, "m.room.name", &empty)} {
		if Exempt(e) {
			t.Errorf("%s needs no signature", e.JSON())
		}
	}
}

func TestSigned(t *testing.T) {
	key := func(id matrix.KeyID, seed byte) signing.Key {
		k, err := signing.NewKey(id, bytes.Repeat([]byte{seed}, 32))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	sign := func(e *event.Event, server matrix.ServerName, k signing.Key) *event.Event {
		signed, err := e.Sign(server, k)
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	policy := key(KeyID, 1)
	s := Server{"policy.example.org", policy.Public()}
	plain := sign(build(t, "m.room.message", nil), "example.org", key("ed25519:auto", 2))
	good := sign(plain, s.Name, policy)
	if !s.Signed(good) || !s.Signed(good.Redact()) {
		t.Error("a good signature is refused")
	}
	for what, bad := range map[string]bool{
		"no signature":           s.Signed(plain),
		"another key":            s.Signed(sign(plain, s.Name, key(KeyID, 3))),
		"another key ID":         s.Signed(sign(plain, s.Name, key("ed25519:1", 1))),
		"another server":         s.Signed(sign(plain, "example.org", policy)),
		"a server without a key": Server{Name: s.Name}.Signed(good),
	} {
		if bad {
			t.Errorf("%s passes", what)
		}
	}
}
