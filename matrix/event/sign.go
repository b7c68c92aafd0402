package event

import (
	"crypto/ed25519"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
)

// Sign returns the event with a signature added. The event ID does not change.
// An event that grows beyond the size limit by it gives *matrix.Error M_TOO_LARGE.
// spec: server-server-api#adding-hashes-and-signatures-to-outgoing-events
func (e *Event) Sign(server matrix.ServerName, key signing.Key) (*Event, error) {
	return e.WithSignature(server, key.ID, ed25519.Sign(key.Private, e.essential()))
}

// WithSignature returns the event with somebody's signature added, unchecked:
// an invited user's server, a resident server or a policy server sends one.
func (e *Event) WithSignature(server matrix.ServerName, id matrix.KeyID, signature []byte) (*Event, error) {
	all, ok := canonicaljson.Get(e.json, "signatures")
	if !ok {
		all = []byte("{}")
	}
	byKey, ok := canonicaljson.Get(all, string(server))
	if !ok {
		byKey = []byte("{}")
	}
	encoded := canonicaljson.AppendString(nil, signing.EncodeBase64(signature))
	byKey = canonicaljson.Set(byKey, string(id), encoded)
	all = canonicaljson.Set(all, string(server), byKey)
	b := canonicaljson.Set(e.json, "signatures", all)
	if len(b) > MaxSize {
		return nil, tooLarge("event", len(b), MaxSize)
	}
	return e.withJSON(b)
}

// RequiredSigners lists the servers whose signature the event must carry:
// sender, event ID's domain (v1, v2), authorising user's server (restricted
// joins), and not the sender's for a third-party invite. The list may be empty.
// spec: server-server-api#validating-hashes-and-signatures-on-received-events, rooms/v8#authorisation-rules 4.2.1
func (e *Event) RequiredSigners() []matrix.ServerName {
	servers := make([]matrix.ServerName, 0, 2)
	add := func(s matrix.ServerName) {
		if s != "" && !slices.Contains(servers, s) {
			servers = append(servers, s)
		}
	}
	if !e.isThirdPartyInvite() {
		add(e.sender.Server())
	}
	add(e.id.Server())
	if e.version.Restricted && e.eventType == "m.room.member" {
		if user, ok := e.ContentString("join_authorised_via_users_server"); ok {
			// What is not a user ID has no server; the authorisation rules refuse it.
			if id, err := matrix.ParseUserID(user); err == nil {
				add(id.Server())
			}
		}
	}
	return servers
}

func (e *Event) isThirdPartyInvite() bool {
	if e.membership != "invite" {
		return false
	}
	_, ok := canonicaljson.Get(e.content, "third_party_invite")
	return ok
}

// SignatureKeyIDs lists the keys with which a server signed the event.
func (e *Event) SignatureKeyIDs(server matrix.ServerName) []matrix.KeyID {
	return signing.KeyIDs(string(server), e.json)
}

// SignatureCheck prepares the verification of one signature: the redacted,
// stripped message and the signature bytes; ok is false if there is none by that server and key.
// spec: appendices#checking-for-a-signature
func (e *Event) SignatureCheck(server matrix.ServerName, id matrix.KeyID) (message, signature []byte, ok bool) {
	all, ok := canonicaljson.Get(e.json, "signatures")
	if !ok {
		return nil, nil, false
	}
	byKey, ok := canonicaljson.Get(all, string(server))
	if !ok {
		return nil, nil, false
	}
	encoded, ok := canonicaljson.GetString(byKey, string(id))
	if !ok {
		return nil, nil, false
	}
	signature, err := signing.DecodeBase64(encoded)
	if err != nil {
		return nil, nil, false
	}
	return e.essential(), signature, true
}

// essential is what signatures of the event cover.
func (e *Event) essential() []byte {
	var buf [typicalMembers]member
	ms, _ := canonicaljson.Index(e.json, buf[:0])
	return e.appendEssential(make([]byte, 0, len(e.json)), ms)
}
