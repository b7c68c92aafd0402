package signing

import (
	"bytes"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// FuzzSign signs any object: the result verifies, keeps what was there, and
// reading signatures of any shape does not panic.
func FuzzSign(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":1,"unsigned":{}}`, `{"signatures":{"d":{"ed25519:1":"x"}}}`, `{"signatures":{"d":[]}}`, `{"signatures":[]}`, `[]`, `{"signatures":{"e":{"ed25519:2":"AAAA"}},"z":1}`} {
		f.Add([]byte(s), "d")
	}
	key := specKey(f)
	f.Fuzz(func(t *testing.T, doc []byte, entity string) {
		doc, err := canonicaljson.Canonical(doc, canonicaljson.Lenient)
		if err != nil {
			return
		}
		for _, name := range append(Entities(doc), entity) {
			for _, id := range append(KeyIDs(name, doc), key.ID) {
				if signature, ok := Signature(name, id, doc); ok && len(signature) != 64 {
					t.Errorf("a signature of %d bytes", len(signature))
				}
			}
		}
		name, err := matrix.ParseServerName(entity)
		if err != nil {
			return
		}
		signed, err := key.Sign(string(name), doc)
		if err != nil {
			return
		}
		if !canonicaljson.IsCanonical(signed, canonicaljson.Strict) && canonicaljson.IsCanonical(doc, canonicaljson.Strict) {
			t.Errorf("%s signed is %s", doc, signed)
		}
		if err := Verify(string(name), key.ID, key.Public(), signed); err != nil {
			t.Errorf("%s: %v", signed, err)
		}
		if !bytes.Equal(Payload(signed), Payload(doc)) {
			t.Errorf("%s became %s", doc, signed)
		}
	})
}

// FuzzDecodeBase64 holds that what is decoded encodes to the same text, but for
// alphabet, padding and the bits left over.
func FuzzDecodeBase64(f *testing.F) {
	for _, s := range []string{"", "Zg", "Zg==", "-_-_", "+/+/", "Zm9v\n", "Zh", "===="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b, err := DecodeBase64(s)
		if err != nil {
			return
		}
		again, err := DecodeBase64(EncodeBase64(b))
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%q: %x, %x, %v", s, b, again, err)
		}
		if len(s)*3 < len(b)*4 || len(s) > (len(b)+2)/3*4 {
			t.Errorf("%q has %d bytes", s, len(b))
		}
	})
}
