package event

import (
	"crypto/ed25519"
	"encoding/base64"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// specKey is the key of the specification's test vectors.
// spec: appendices#signing-key
func specKey(t testing.TB) signing.Key {
	t.Helper()
	seed, err := base64.RawStdEncoding.DecodeString("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	return signing.Key{ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(seed)}
}

func version(t testing.TB, id roomversion.ID) *roomversion.Version {
	t.Helper()
	v, ok := roomversion.Get(id)
	if !ok {
		t.Fatalf("no room version %s", id)
	}
	return v
}

// The vectors are no whole events (the second has no depth), so they enter
// below Parse: hash, sign, and compare with what the specification prints.
// spec: appendices#event-signing
func TestSpecVectors(t *testing.T) {
	vectors := []struct{ name, event, hash, signature string }{
		{
			name: "minimal",
			event: `{"room_id":"!x:domain","sender":"@a:domain","origin":"domain","origin_server_ts":1000000,
				"signatures":{},"hashes":{},"type":"X","content":{},"prev_events":[],"auth_events":[],"depth":3,
				"unsigned":{"age_ts":1000000}}`,
			hash:      "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos",
			signature: "KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg",
		},
		{
			name: "redactable content",
			event: `{"content":{"body":"Here is the message content"},"event_id":"$0:domain","origin":"domain",
				"origin_server_ts":1000000,"type":"m.room.message","room_id":"!r:domain","sender":"@u:domain",
				"signatures":{},"unsigned":{"age_ts":1000000}}`,
			hash:      "onLKD1bGljeBWQhWZ1kaP9SorVmRQNdN5aM2JYU2n/g",
			signature: "Wm+VzmOUOz08Ds+0NTWb1d4CZrVsJSikkeRxh6aCcUwu6pNC78FunoD7KNWzqFn241eYHYMGCA5McEiVPdhzBA",
		},
	}
	for _, vector := range vectors {
		t.Run(vector.name, func(t *testing.T) {
			v := version(t, "1")
			canonical, err := canonicaljson.Canonical([]byte(vector.event), v.JSON)
			if err != nil {
				t.Fatal(err)
			}
			ms, ok := canonicaljson.Index(canonical, nil)
			if !ok {
				t.Fatal("not an object")
			}
			hash := contentHash(canonical, ms)
			encoded := base64.RawStdEncoding.EncodeToString(hash[:])
			if encoded != vector.hash {
				t.Fatalf("content hash %s, want %s", encoded, vector.hash)
			}
			hashed := canonicaljson.Set(canonicaljson.Delete(canonical, "unsigned"), "hashes", []byte(`{"sha256":"`+encoded+`"}`))
			e, err := FromStored(v, "$0:domain", hashed)
			if err != nil {
				t.Fatal(err)
			}
			key := specKey(t)
			signed, err := e.Sign("domain", key)
			if err != nil {
				t.Fatal(err)
			}
			message, signature, ok := signed.SignatureCheck("domain", "ed25519:1")
			if !ok {
				t.Fatal("no signature")
			}
			if got := base64.RawStdEncoding.EncodeToString(signature); got != vector.signature {
				t.Errorf("signature %s, want %s", got, vector.signature)
			}
			if !ed25519.Verify(key.Private.Public().(ed25519.PublicKey), message, signature) {
				t.Error("the signature does not verify")
			}
			if got := signed.RequiredSigners(); len(got) != 1 || got[0] != matrix.ServerName("domain") {
				t.Errorf("required signers %v", got)
			}
		})
	}
}
