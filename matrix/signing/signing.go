// Package signing signs and verifies JSON with ed25519.
//
// Sign and Verify work on whole objects; Payload and Signature give the two
// parts of a verification, for callers that collect many of them for VerifyBatch.
// spec: appendices#signing-json
package signing

import (
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

var (
	// ErrMissing is for an object that has no readable signature by the entity with the key.
	ErrMissing = errors.New("signature missing")
	// ErrBad is for a signature that does not verify.
	ErrBad = errors.New("signature does not verify")
)

// Key is a server's signing key.
type Key struct {
	ID      matrix.KeyID // "ed25519:" and a version of [a-zA-Z0-9_]
	Private ed25519.PrivateKey
}

// Generate makes a key with a random version.
func Generate() (Key, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("generate signing key: %w", err)
	}
	return Key{matrix.KeyID("ed25519:" + rand.Text()[:8]), private}, nil
}

// NewKey makes a key from its seed of 32 bytes.
func NewKey(id matrix.KeyID, seed []byte) (Key, error) {
	if !id.ServerKey() {
		return Key{}, fmt.Errorf("signing key ID %q is not ed25519: and a version of letters, digits and _", id)
	}
	if len(seed) != ed25519.SeedSize {
		return Key{}, fmt.Errorf("signing key seed has %d bytes, not %d", len(seed), ed25519.SeedSize)
	}
	return Key{id, ed25519.NewKeyFromSeed(seed)}, nil
}

// Public is the key that others verify with.
func (k Key) Public() ed25519.PublicKey { return k.Private.Public().(ed25519.PublicKey) }

// Seed is what NewKey takes.
func (k Key) Seed() []byte { return k.Private.Seed() }

// SignPayload signs bytes and returns the signature in unpadded base64.
func (k Key) SignPayload(payload []byte) string {
	return EncodeBase64(ed25519.Sign(k.Private, payload))
}

// Sign returns the canonical object with this key's signature added under
// signatures.entity.keyID. `signatures` and `unsigned` are not part of what is
// signed. It fails when what is signed or `signatures` is not an object.
func (k Key) Sign(entity string, canonical []byte) ([]byte, error) {
	if !canonicaljson.IsObject(canonical) {
		return nil, errors.New("sign: not an object")
	}
	return AddSignature(canonical, entity, k.ID, k.SignPayload(Payload(canonical)))
}

// AddSignature returns the canonical object with a signature, in base64, put under
// signatures.entity.id. It fails when `signatures` or the entity's part is there and not an object.
func AddSignature(canonical []byte, entity string, id matrix.KeyID, signature string) ([]byte, error) {
	all, err := object(canonical, "signatures")
	if err != nil {
		return nil, err
	}
	own, err := object(all, entity)
	if err != nil {
		return nil, err
	}
	own = canonicaljson.Set(own, string(id), canonicaljson.AppendString(nil, signature))
	return canonicaljson.Set(canonical, "signatures", canonicaljson.Set(all, entity, own)), nil
}

func object(parent []byte, key string) ([]byte, error) {
	raw, ok := canonicaljson.Get(parent, key)
	if !ok {
		return []byte("{}"), nil
	}
	if !canonicaljson.IsObject(raw) {
		return nil, fmt.Errorf("sign: %s is not an object", key)
	}
	return raw, nil
}

// Verify checks one signature of a canonical object: ErrMissing when there is
// no signature by entity with that key, ErrBad when it does not verify.
func Verify(entity string, id matrix.KeyID, pub ed25519.PublicKey, canonical []byte) error {
	signature, ok := Signature(entity, id, canonical)
	if !ok {
		return ErrMissing
	}
	if !(Check{pub, Payload(canonical), signature}).verify() {
		return ErrBad
	}
	return nil
}

// Payload is what is signed of a canonical object: all but `signatures` and `unsigned`.
func Payload(canonical []byte) []byte {
	return canonicaljson.Delete(canonical, "signatures", "unsigned")
}

// Signature reads signatures.entity.id of a canonical object. ok is false if it
// is not there or is not base64 of 64 bytes.
func Signature(entity string, id matrix.KeyID, canonical []byte) (signature []byte, ok bool) {
	all, _ := canonicaljson.Get(canonical, "signatures")
	own, _ := canonicaljson.Get(all, entity)
	text, ok := canonicaljson.GetString(own, string(id))
	if !ok {
		return nil, false
	}
	signature, err := DecodeBase64(text)
	return signature, err == nil && len(signature) == ed25519.SignatureSize
}

// KeyIDs lists the ed25519 keys with which entity signed the canonical object.
func KeyIDs(entity string, canonical []byte) []matrix.KeyID {
	all, _ := canonicaljson.Get(canonical, "signatures")
	own, _ := canonicaljson.Get(all, entity)
	var ids []matrix.KeyID
	for key := range canonicaljson.Members(own) {
		if id := matrix.KeyID(key); id.Algorithm() == "ed25519" && id.Identifier() != "" {
			ids = append(ids, id)
		}
	}
	return ids
}

// Entities lists who signed the canonical object: the keys of `signatures`.
func Entities(canonical []byte) []string {
	all, _ := canonicaljson.Get(canonical, "signatures")
	var names []string
	for name := range canonicaljson.Members(all) {
		names = append(names, name)
	}
	return names
}
