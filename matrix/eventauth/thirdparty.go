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
	if _, _, ok := ThirdPartyKey(signed, promise); !ok {
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

// ThirdPartyKey finds the key of an m.room.third_party_invite event by which signed, the object of that name
// in an invite, is signed: in unpadded base64, as it stands in the event, with its key_validity_url ("" for none).
// spec: rooms/v12#authorisation-rules 5.4.1.7
func ThirdPartyKey(signed []byte, promise *event.Event) (key, validityURL string, ok bool) {
	left := maxThirdPartyChecks
	for object := range keyObjects(promise.Content()) {
		encoded, _ := canonicaljson.GetString(object, "public_key")
		public, err := signing.DecodeBase64(encoded)
		if err != nil || len(public) != ed25519.PublicKeySize {
			continue
		}
		for entity, id := range signatures(signed) {
			if left--; left < 0 {
				return "", "", false
			}
			if signing.Verify(entity, id, public, signed) == nil {
				validityURL, _ = canonicaljson.GetString(object, "key_validity_url")
				return encoded, validityURL, true
			}
		}
	}
	return "", "", false
}

// keyObjects yields what may hold a public_key: the content and the elements of content.public_keys.
// spec: client-server-api#mroomthird_party_invite
func keyObjects(content []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if !yield(content) {
			return
		}
		keys, _ := canonicaljson.Get(content, "public_keys")
		for raw := range canonicaljson.Elements(keys) {
			if canonicaljson.IsObject(raw) && !yield(raw) {
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
