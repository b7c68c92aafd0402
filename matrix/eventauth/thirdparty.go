package eventauth

import (
	"crypto/ed25519"
	"iter"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/signing"
)

// thirdPartyInvite checks an invite that answers an m.room.third_party_invite.
// spec: rooms/v12#authorisation-rules 5.4.1
func (c *check) thirdPartyInvite(target string, invite []byte) error {
	current, err := c.membership(target)
	if err != nil {
		return err
	}
	if current == "ban" {
		return c.reject(thirdPartyBanned, "the invited user is banned")
	}
	signed, ok := signedPart(invite)
	if !ok {
		return c.reject(thirdPartySigned, "third_party_invite has no object signed")
	}
	mxid, okID := canonicaljson.GetString(signed, "mxid")
	token, okToken := canonicaljson.GetString(signed, "token")
	if !okID || !okToken {
		return c.reject(thirdPartyProperties, "third_party_invite.signed lacks mxid or token")
	}
	if mxid != target {
		return c.reject(thirdPartyTarget, "third_party_invite.signed is for another user")
	}
	promise, err := c.state.StateEvent(typeThirdPartyInvite, token)
	if err != nil {
		return err
	}
	if promise == nil {
		return c.reject(thirdPartyToken, "the room has no third-party invite with this token")
	}
	if c.e.Sender() != promise.Sender() {
		return c.reject(thirdPartySender, "the third-party invite is by another sender")
	}
	if !signedByAny(signed, promise) {
		return c.reject(thirdPartyOtherwise, "no key of the third-party invite signed it")
	}
	return nil
}

// signedPart returns third_party_invite.signed.
func signedPart(invite []byte) ([]byte, bool) {
	if !canonicaljson.IsObject(invite) {
		return nil, false
	}
	return canonicaljson.GetObject(invite, "signed")
}

// maxThirdPartyChecks bounds the signatures that one event can make us verify.
const maxThirdPartyChecks = 64

// signedByAny reports whether any signature of signed is by any key of the
// m.room.third_party_invite event.
// spec: rooms/v12#authorisation-rules 5.4.1.7
func signedByAny(signed []byte, promise *event.Event) bool {
	left := maxThirdPartyChecks
	for key := range publicKeys(promise.Content()) {
		for entity, id := range signatures(signed) {
			if left--; left < 0 {
				return false
			}
			if signing.Verify(entity, id, key, signed) == nil {
				return true
			}
		}
	}
	return false
}

// publicKeys yields content.public_key and content.public_keys[].public_key.
// spec: client-server-api#mroomthird_party_invite
func publicKeys(content []byte) iter.Seq[ed25519.PublicKey] {
	return func(yield func(ed25519.PublicKey) bool) {
		next := func(object []byte) bool {
			encoded, ok := canonicaljson.GetString(object, "public_key")
			if !ok {
				return true
			}
			key, err := signing.DecodeBase64(encoded)
			return err != nil || len(key) != ed25519.PublicKeySize || yield(key)
		}
		if !next(content) {
			return
		}
		keys, _ := canonicaljson.Get(content, "public_keys")
		for raw := range canonicaljson.Elements(keys) {
			if canonicaljson.IsObject(raw) && !next(raw) {
				return
			}
		}
	}
}

// signatures yields the names of an object's ed25519 signatures.
func signatures(signed []byte) iter.Seq2[string, matrix.KeyID] {
	return func(yield func(string, matrix.KeyID) bool) {
		byEntity, _ := canonicaljson.GetObject(signed, "signatures")
		for entity, keys := range canonicaljson.Members(byEntity) {
			if !canonicaljson.IsObject(keys) {
				continue
			}
			for id := range canonicaljson.Members(keys) {
				if strings.HasPrefix(id, "ed25519:") && !yield(entity, matrix.KeyID(id)) {
					return
				}
			}
		}
	}
}
