package signing

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"testing"

	"hanok/matrix/canonicaljson"
)

// specKey is the key of the specification's test vectors.
// spec: appendices#cryptographic-test-vectors
func specKey(t testing.TB) Key {
	seed, err := DecodeBase64("YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1")
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey("ed25519:1", seed)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func canonical(t testing.TB, s string) []byte {
	b, err := canonicaljson.Canonical([]byte(s), canonicaljson.Strict)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// spec: appendices#json-signing
func TestVectors(t *testing.T) {
	key := specKey(t)
	for _, v := range []struct{ in, want string }{
		{`{}`, `{
    "signatures": {
        "domain": {
            "ed25519:1": "K8280/U9SSy9IVtjBuVeLr+HpOB4BQFWbg+UZaADMtTdGYI7Geitb76LTrr5QV/7Xg4ahLwYGYZzuHGZKM5ZAQ"
        }
    }
}`},
		{`{"one": 1, "two": "Two"}`, `{
    "one": 1,
    "signatures": {
        "domain": {
            "ed25519:1": "KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"
        }
    },
    "two": "Two"
}`},
	} {
		got, err := key.Sign("domain", canonical(t, v.in))
		if want := canonical(t, v.want); err != nil || !bytes.Equal(got, want) {
			t.Errorf("Sign(%s) = %s, %v; want %s", v.in, got, err, want)
		}
		if err := Verify("domain", key.ID, key.Public(), got); err != nil {
			t.Errorf("Verify(%s): %v", got, err)
		}
	}
}

func TestSignAndVerify(t *testing.T) {
	one, err := Generate()
	if err != nil || !one.ID.ServerKey() {
		t.Fatal(one.ID, err)
	}
	two, _ := Generate()
	doc := canonical(t, `{"a":1,"unsigned":{"age":1}}`)
	signed, err := one.Sign("a.org", doc)
	if err != nil {
		t.Fatal(err)
	}
	signed, err = two.Sign("a.org", signed)
	if err != nil {
		t.Fatal(err)
	}
	signed, err = two.Sign("B.org:8448", signed)
	if err != nil {
		t.Fatal(err)
	}
	if !canonicaljson.IsCanonical(signed, canonicaljson.Strict) {
		t.Errorf("not canonical: %s", signed)
	}
	signed = canonicaljson.Set(signed, "unsigned", []byte(`{"age":2}`)) // anybody may
	if got := Entities(signed); len(got) != 2 || got[0] != "B.org:8448" || got[1] != "a.org" {
		t.Errorf("Entities: %v", got)
	}
	if got := KeyIDs("a.org", signed); len(got) != 2 {
		t.Errorf("KeyIDs: %v", got)
	}
	for _, err := range []error{
		Verify("a.org", one.ID, one.Public(), signed),
		Verify("a.org", two.ID, two.Public(), signed),
		Verify("B.org:8448", two.ID, two.Public(), signed),
	} {
		if err != nil {
			t.Error(err)
		}
	}
	for what, err := range map[string]error{
		"another's key":        Verify("a.org", one.ID, two.Public(), signed),
		"no key":               Verify("a.org", one.ID, nil, signed),
		"a changed object":     Verify("a.org", one.ID, one.Public(), canonicaljson.Set(signed, "a", []byte("2"))),
		"an additional member": Verify("a.org", one.ID, one.Public(), canonicaljson.Set(signed, "b", []byte("2"))),
	} {
		if !errors.Is(err, ErrBad) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"another entity":     Verify("c.org", one.ID, one.Public(), signed),
		"entity in capitals": Verify("b.org:8448", two.ID, two.Public(), signed),
		"another key ID":     Verify("B.org:8448", one.ID, one.Public(), signed),
		"nothing signed":     Verify("a.org", one.ID, one.Public(), doc),
	} {
		if !errors.Is(err, ErrMissing) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestOddSignatures(t *testing.T) {
	key := specKey(t)
	good := key.SignPayload([]byte(`{}`))
	for _, v := range []struct {
		signatures string
		want       error
	}{
		{`{"d":{"ed25519:1":"` + good + `"}}`, nil},
		{`{"d":{"ed25519:1":"` + good + `=="}}`, nil},
		{`{"d":{"ed25519:1":"` + strings.NewReplacer("+", "-", "/", "_").Replace(good) + `"}}`, nil},
		{`{"d":{"ed25519:1":"` + good + `="}}`, ErrMissing},
		{`{"d":{"ed25519:1":"` + good[:84] + `"}}`, ErrMissing},
		{`{"d":{"ed25519:1":"` + good + `AAAA"}}`, ErrMissing},
		{`{"d":{"ed25519:1":"` + good[:40] + `\n` + good[40:] + `"}}`, ErrMissing},
		{`{"d":{"ed25519:1":" ` + good + `"}}`, ErrMissing},
		{`{"d":{"ed25519:1":""}}`, ErrMissing},
		{`{"d":{"ed25519:1":1}}`, ErrMissing},
		{`{"d":{"ed25519:1":null}}`, ErrMissing},
		{`{"d":["ed25519:1"]}`, ErrMissing},
		{`{"d":null}`, ErrMissing},
		{`[]`, ErrMissing},
		{`"d"`, ErrMissing},
		{`null`, ErrMissing},
		{`{"d":{"ed25519:1":"` + strings.Repeat("A", 86) + `"}}`, ErrBad},
		{`{"d":{"ed25519:1":"` + strings.Repeat("_", 86) + `"}}`, ErrBad},
	} {
		doc := canonical(t, `{"signatures":`+v.signatures+`}`)
		if err := Verify("d", key.ID, key.Public(), doc); !errors.Is(err, v.want) {
			t.Errorf("%s: %v, want %v", v.signatures, err, v.want)
		}
		KeyIDs("d", doc)
		Entities(doc)
	}
	for _, v := range []string{`[]`, `"x"`, `{"signatures":[]}`, `{"signatures":{"d":"x"}}`} {
		if got, err := key.Sign("d", []byte(v)); err == nil {
			t.Errorf("signed %s: %s", v, got)
		}
	}
	ids := KeyIDs("d", canonical(t, `{"signatures":{"d":{"ed25519:1":"","rsa:1":"","ed25519":"","ed25519:":"","ed25519:a":1}}}`))
	if fmt.Sprint(ids) != "[ed25519:1 ed25519:a]" {
		t.Errorf("KeyIDs: %v", ids)
	}
}

func TestNewKey(t *testing.T) {
	if _, err := NewKey("ed25519:a-b", make([]byte, 32)); err == nil {
		t.Error("key ID out of grammar")
	}
	if _, err := NewKey("ed25519:a", make([]byte, 31)); err == nil {
		t.Error("short seed")
	}
	key := specKey(t)
	if again, err := NewKey(key.ID, key.Seed()); err != nil || !again.Private.Equal(key.Private) {
		t.Error(err)
	}
}

func TestVerifyBatch(t *testing.T) {
	key := specKey(t)
	var checks []Check
	var want []bool
	for i := range 100 {
		m := fmt.Appendf(nil, "message %d", i)
		c := Check{key.Public(), m, ed25519.Sign(key.Private, m)}
		switch i % 5 {
		case 1:
			c.Message = append(c.Message, '!')
		case 2:
			c.Public = c.Public[:31]
		case 3:
			c.Signature = c.Signature[:63]
		}
		checks = append(checks, c)
		want = append(want, i%5 == 0 || i%5 == 4)
	}
	for n := range len(checks) {
		got := VerifyBatch(checks[:n])
		if len(got) != n {
			t.Fatalf("%d results for %d checks", len(got), n)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("check %d of %d: %v", i, n, got[i])
			}
		}
	}
}

// spec: appendices#unpadded-base64
func TestBase64(t *testing.T) {
	for _, v := range []struct{ plain, encoded string }{
		{"", ""}, {"f", "Zg"}, {"fo", "Zm8"}, {"foo", "Zm9v"}, {"foob", "Zm9vYg"}, {"fooba", "Zm9vYmE"}, {"foobar", "Zm9vYmFy"},
		{"\xfb\xff\xbf", "+/+/"},
	} {
		if got := EncodeBase64([]byte(v.plain)); got != v.encoded {
			t.Errorf("EncodeBase64(%q) = %q, want %q", v.plain, got, v.encoded)
		}
		urlSafe := strings.NewReplacer("+", "-", "/", "_").Replace(v.encoded)
		if got := EncodeBase64URL([]byte(v.plain)); got != urlSafe {
			t.Errorf("EncodeBase64URL(%q) = %q, want %q", v.plain, got, urlSafe)
		}
		for _, s := range []string{v.encoded, urlSafe, v.encoded + "==="[:(4-len(v.encoded)%4)%4]} {
			if got, err := DecodeBase64(s); err != nil || string(got) != v.plain {
				t.Errorf("DecodeBase64(%q) = %q, %v", s, got, err)
			}
		}
	}
	for _, s := range []string{"Z", "Zg=", "Zg===", "Z===", "=", "====", "Zm9v=", "Zm9v====", "Zm 9v", "Zm9v\n", "\nZm9v", "Zg\r\n==", "+_", "Zm9*", "Zm=9", "Zé"} {
		if got, err := DecodeBase64(s); err == nil {
			t.Errorf("DecodeBase64(%q) = %q", s, got)
		}
	}
}
