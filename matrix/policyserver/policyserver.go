// Package policyserver reads m.room.policy and checks the signatures that a
// room's policy server puts on events.
//
// Whether the room uses the server also takes one joined user of it, which is for
// the caller to know; so is asking for a signature that is missing.
// spec: server-server-api#policy-servers
package policyserver

import (
	"crypto/ed25519"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/signing"
)

const (
	// EventType is the type of the state event, with an empty state key, that names the policy server.
	EventType = "m.room.policy"
	// KeyID is the ID of every policy server's key. No server publishes a key of this ID.
	KeyID matrix.KeyID = "ed25519:policy_server"
)

// Server is a room's policy server.
type Server struct {
	Name matrix.ServerName // its users must be looked for in the room
	Key  ed25519.PublicKey // nil when what is given is no key: no signature will do
}

// Parse reads the content of the m.room.policy event, as canonical JSON. ok is
// false when it names no server and key: the room uses no policy server then.
// spec: server-server-api#determining-if-a-policy-server-is-enabled-in-a-room
func Parse(content []byte) (s Server, ok bool) {
	via, _ := canonicaljson.GetString(content, "via")
	keys, _ := canonicaljson.Get(content, "public_keys")
	encoded, ok := canonicaljson.GetString(keys, "ed25519")
	if !ok {
		return Server{}, false
	}
	name, err := matrix.ParseServerName(via)
	if err != nil {
		return Server{}, false
	}
	s.Name = name
	if key, err := signing.DecodeBase64(encoded); err == nil && len(key) == ed25519.PublicKeySize {
		s.Key = key
	}
	return s, true
}

// Exempt reports whether the event needs no policy server's signature: the one
// that names the server, so that a room can always get rid of it.
func Exempt(e *event.Event) bool { return e.Is(EventType, "") }

// Signed reports whether the event carries the server's valid signature.
// spec: server-server-api#validating-policy-server-signatures
func (s Server) Signed(e *event.Event) bool {
	message, signature, ok := e.SignatureCheck(s.Name, KeyID)
	return ok && signing.VerifyBatch([]signing.Check{{Public: s.Key, Message: message, Signature: signature}})[0]
}
