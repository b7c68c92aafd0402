package privacy

import (
	"context"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/matrix"
	"hanok/matrix/event"
)

// megolm is the one algorithm rooms are encrypted with.
// spec: client-server-api#mmegolmv1aes-sha2
const megolm = "m.megolm.v1.aes-sha2"

// NewRoom decides about the encryption of a room that creator is about to make. requested is
// the content of the m.room.encryption event that the creator asked for, nil if there is
// none. The answer is the content that the room gets instead; nil means that
// the room gets no m.room.encryption at all, even if one was requested.
func (p *Policy) NewRoom(creator matrix.UserID, requested []byte) (content []byte, err error) {
	algorithm := stringMember(requested, "algorithm")
	switch {
	case p.speaks(creator):
		return nil, nil
	case p.mode == Allowed:
		return requested, nil
	case p.mode == Default:
		if requested == nil {
			return []byte(`{"algorithm":"` + megolm + `"}`), nil
		}
		if algorithm == "" { // the creator's way to say no
			return nil, nil
		}
		return requested, nil
	case algorithm == megolm:
		return requested, nil
	case requested == nil:
		return []byte(`{"algorithm":"` + megolm + `"}`), nil
	}
	return nil, matrix.Forbidden("Rooms on this server are always encrypted. Leave m.room.encryption out of initial_state, or use the algorithm %s.", megolm)
}

// CheckLocal decides whether a local user's event may be sent; a refusal is a
// *matrix.Error that tells the user what to do. encrypted says whether the room is.
func (p *Policy) CheckLocal(_ context.Context, e *event.Event, encrypted bool) error {
	if p.mode != Required || p.speaks(e.Sender()) {
		return nil
	}
	if e.Is("m.room.encryption", "") {
		if algorithm, _ := e.ContentString("algorithm"); algorithm != megolm {
			return matrix.Forbidden("Encryption cannot be turned off on this server. Send m.room.encryption with the algorithm %s, or leave it as it is.", megolm)
		}
		return nil
	}
	switch {
	case p.mayTravel(e):
		return nil
	case e.Type() == "m.room.encrypted":
		return matrix.Forbidden("This m.room.encrypted event is not ciphertext. Update your client, or use another one that supports end-to-end encryption.")
	case encrypted:
		return matrix.Forbidden("This server relays encrypted messages only, and this %s was not encrypted. Use a client that supports end-to-end encryption and has it set up.", e.Type())
	}
	return matrix.Forbidden("This server relays encrypted messages only, and this room is not encrypted. Turn on encryption in the room's settings, then send it again.")
}

// speaks says whether a user is the account for server notices: the server has no keys, and could not encrypt them.
func (p *Policy) speaks(user matrix.UserID) bool { return p.notices != "" && user == p.notices }

// CheckRemote decides about an event of another server that was accepted otherwise. redact
// means: keep its redacted form only, and soft-fail it.
func (p *Policy) CheckRemote(_ context.Context, e *event.Event, _ bool) (redact bool) {
	return p.mode == Required && !p.mayTravel(e)
}

// mayTravel reports whether an event holds nothing of a conversation in the clear.
func (p *Policy) mayTravel(e *event.Event) bool {
	if e.IsState() {
		// State is about the room, and cannot be encrypted; but a message does not become state by a state key.
		return e.Type() != "m.room.message" && e.Type() != "m.sticker"
	}
	if e.IsDummy() {
		return string(e.Content()) == "{}"
	}
	if !p.allowsType(e.Type()) {
		return false
	}
	return e.Type() != "m.room.encrypted" || isCiphertext(e.Content())
}

// isCiphertext reports whether the content of an m.room.encrypted event is what
// it says: an algorithm and a ciphertext, and none of the members that clients show of a message.
func isCiphertext(content []byte) bool {
	var c struct {
		Algorithm     jsontext.Value `json:"algorithm"`
		Ciphertext    jsontext.Value `json:"ciphertext"`
		Body          jsontext.Value `json:"body"`
		FormattedBody jsontext.Value `json:"formatted_body"`
		MsgType       jsontext.Value `json:"msgtype"`
		URL           jsontext.Value `json:"url"`
		NewContent    jsontext.Value `json:"m.new_content"`
	}
	if json.Unmarshal(content, &c) != nil {
		return false
	}
	shown := c.Body != nil || c.FormattedBody != nil || c.MsgType != nil || c.URL != nil || c.NewContent != nil
	return !shown && len(c.Algorithm) > 2 && c.Algorithm.Kind() == '"' && len(c.Ciphertext) > 2
}

// onlyInsideOlm are the to-device types that carry secrets: in the clear, whoever
// runs a server on the way could read conversations with them.
var onlyInsideOlm = map[string]bool{
	"m.room_key":                         true,
	"m.forwarded_room_key":               true,
	"m.secret.send":                      true,
	"m.room_key_bundle":                  true,
	"io.element.msc4268.room_key_bundle": true,
	"m.rtc.encryption_key":               true,
	"io.element.call.encryption_keys":    true,
}

// ToDevice decides whether a to-device message may be taken from a client or
// another server as it is. spec: cs/sendToDevice, server-server-api#send-to-device-messaging
func (p *Policy) ToDevice(eventType string, content []byte) error {
	if p.mode != Required {
		return nil
	}
	if onlyInsideOlm[eventType] {
		return matrix.Forbidden("%s carries secrets and must be encrypted with Olm. Update your client.", eventType)
	}
	if eventType == "m.room.encrypted" && !isCiphertext(content) {
		return matrix.Forbidden("This m.room.encrypted message is not ciphertext. Update your client.")
	}
	return nil
}

func stringMember(object []byte, name string) string {
	var members map[string]jsontext.Value
	if object == nil || json.Unmarshal(object, &members) != nil {
		return ""
	}
	var s string
	if json.Unmarshal(members[name], &s) != nil {
		return ""
	}
	return s
}
