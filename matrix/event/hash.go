package event

import (
	"crypto/sha256"
	"encoding/base64"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// typicalSize is up to which size an event is hashed without allocating.
const typicalSize = 2048

// contentHash hashes an event without unsigned, signatures and hashes.
// spec: server-server-api#calculating-the-content-hash-for-an-event
func contentHash(b []byte, ms []member) [sha256.Size]byte {
	var buf [typicalSize]byte
	dst := append(buf[:0], '{')
	for _, m := range ms {
		switch string(m.Key(b)) {
		case "hashes", "signatures", "unsigned":
			continue
		}
		dst = appendMember(dst, b[m.Start:m.End])
	}
	dst = append(dst, '}')
	return sha256.Sum256(dst)
}

// referenceHash hashes the redacted form without signatures.
// spec: server-server-api#calculating-the-reference-hash-for-an-event
func (e *Event) referenceHash(ms []member) [sha256.Size]byte {
	var buf [typicalSize]byte
	return sha256.Sum256(e.appendEssential(buf[:0], ms))
}

// ReferenceHash is the hash of the redacted form: the event ID from v3 on, and
// what v1 and v2 events state beside the ID of an event that they refer to.
func (e *Event) ReferenceHash() [sha256.Size]byte {
	var buf [typicalMembers]member
	ms, _ := canonicaljson.Index(e.json, buf[:0])
	return e.referenceHash(ms)
}

// identify computes the event ID, unless index found it in the event.
// spec: rooms/v1#event-ids, rooms/v3#event-ids, rooms/v4#event-ids
func (e *Event) identify(ms []member) {
	encoding := base64.RawURLEncoding
	switch e.version.EventIDFormat {
	case roomversion.EventIDInEvent:
		return
	case roomversion.EventIDHash:
		encoding = base64.RawStdEncoding
	}
	hash := e.referenceHash(ms)
	var id [44]byte
	id[0] = '$'
	encoding.Encode(id[1:], hash[:])
	e.setID(matrix.EventID(id[:]))
}

// setID sets the event ID and, where it follows from it, the room ID.
func (e *Event) setID(id matrix.EventID) {
	e.id = id
	if e.version.RoomIDIsCreateHash && e.eventType == "m.room.create" && id != "" {
		e.roomID = id.RoomID()
	}
}

// appendMember appends a member (or an element) to the inside of an object that was begun at
// the start of dst.
func appendMember(dst, member []byte) []byte {
	if last := dst[len(dst)-1]; last != '{' {
		dst = append(dst, ',')
	}
	return append(dst, member...)
}
