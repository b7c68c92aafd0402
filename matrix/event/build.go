package event

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// Proto is an event to be built.
type Proto struct {
	RoomID         matrix.RoomID // empty for a v12 create event
	Sender         matrix.UserID
	Type           string
	StateKey       *string
	Content        []byte         // JSON object, not necessarily canonical
	Redacts        matrix.EventID // of an m.room.redaction; placed as the room version says
	Sticky         *int64         // milliseconds for which the event is sticky; nil: it is not. spec: MSC4354
	PrevEvents     []matrix.EventID
	AuthEvents     []matrix.EventID
	Depth          int64 // is lowered to MaxDepth
	OriginServerTS matrix.Timestamp
	Signers        []matrix.ServerName // other servers that will sign it after us: room is left for them

	// ReferenceHashes of the prev and auth events, which v1 and v2 events state
	// beside the IDs. What is not here is left empty.
	ReferenceHashes map[matrix.EventID][sha256.Size]byte
}

// signatureReserve is kept free, beside the server's name, for our own signature and each that is to follow when the size of a new
// event is checked, so that the signature cannot be what makes it too large: 86 bytes of base64, a key ID, punctuation. What is left of it holds the 14 bytes of an
// empty "unsigned", which Synapse counts in: it takes no event of more than 65,522 bytes, and nothing that comes after one.
const signatureReserve = 86 + 64

// MaxDepth is the greatest depth of events that are made here. Others may have up to 2^63-1 in room versions up to 5, but Synapse
// takes none above this, and nothing that comes after it.
// spec: server-server-api#pdus, rooms/v6#event-format
const MaxDepth = 1<<53 - 1

// Build makes a hashed, identified, not yet signed event. origin is our server
// name (it is part of v1/v2 event IDs). Size limits give *matrix.Error M_TOO_LARGE,
// content that is no JSON object of the version gives M_NOT_JSON or M_BAD_JSON. Equal arguments give the same event.
// spec: server-server-api#adding-hashes-and-signatures-to-outgoing-events
func Build(v *roomversion.Version, p Proto, origin matrix.ServerName) (*Event, error) {
	mode := v.JSON
	if mode == canonicaljson.Lenient {
		mode = canonicaljson.Lenient64
	}
	content, err := canonicaljson.Canonical(p.Content, mode)
	if err != nil {
		return nil, malformed("content", err)
	}
	if !canonicaljson.IsObject(content) {
		return nil, matrix.BadJSON("content is not an object")
	}
	if p.Redacts != "" && v.RedactsInContent {
		content = canonicaljson.Set(content, "redacts", canonicaljson.AppendString(nil, string(p.Redacts)))
	}
	d := draft{version: v, proto: &p, content: content}
	scratch := make([]byte, 0, len(content)+1024)
	if v.EventIDFormat == roomversion.EventIDInEvent {
		// Any ID will do that nobody else takes. The hash of all the rest needs no source of randomness.
		hash := sha256.Sum256(d.append(scratch))
		d.eventID = matrix.EventID("$" + base64.RawURLEncoding.EncodeToString(hash[:]) + ":" + string(origin))
	}
	hash := sha256.Sum256(d.append(scratch))
	d.hash = base64.RawStdEncoding.EncodeToString(hash[:])
	b := d.append(make([]byte, 0, len(content)+1024))
	limit := MaxSize - signatureReserve - len(origin)
	for _, s := range p.Signers {
		limit -= signatureReserve + len(s)
	}
	if len(b) > limit {
		return nil, tooLarge("event", len(b), limit)
	}

	var buf [typicalMembers]member
	ms, ok := canonicaljson.Index(b, buf[:0])
	if !ok {
		return nil, fmt.Errorf("build event: not an object")
	}
	e := &Event{version: v, json: b}
	seen, err := e.index(ms)
	if err != nil {
		return nil, err
	}
	if err := e.check(seen); err != nil {
		return nil, err
	}
	if err := e.checkReferences(); err != nil {
		return nil, err
	}
	e.identify(ms)
	return e, nil
}

// draft is an event that is being built. As long as hash is empty it has
// neither hashes nor signatures, which is the form that is hashed.
type draft struct {
	version *roomversion.Version
	proto   *Proto
	content []byte
	eventID matrix.EventID
	hash    string
}

// append appends the draft in canonical form: its members in order.
func (d *draft) append(b []byte) []byte {
	p := d.proto
	b = append(b, `{"auth_events":`...)
	b = d.appendReferences(b, p.AuthEvents)
	b = append(b, `,"content":`...)
	b = append(b, d.content...)
	b = append(b, `,"depth":`...)
	b = strconv.AppendInt(b, min(p.Depth, MaxDepth), 10)
	if d.eventID != "" {
		b = appendStringMember(b, "event_id", string(d.eventID))
	}
	if d.hash != "" {
		b = append(b, `,"hashes":{"sha256":"`...)
		b = append(b, d.hash...)
		b = append(b, `"}`...)
	}
	if p.Sticky != nil {
		b = appendSticky(b, *p.Sticky)
	}
	b = append(b, `,"origin_server_ts":`...)
	b = strconv.AppendInt(b, int64(p.OriginServerTS), 10)
	b = append(b, `,"prev_events":`...)
	b = d.appendReferences(b, p.PrevEvents)
	if p.Redacts != "" && !d.version.RedactsInContent {
		b = appendStringMember(b, "redacts", string(p.Redacts))
	}
	if p.RoomID != "" {
		b = appendStringMember(b, "room_id", string(p.RoomID))
	}
	b = appendStringMember(b, "sender", string(p.Sender))
	if d.hash != "" {
		b = append(b, `,"signatures":{}`...)
	}
	if p.StateKey != nil {
		b = appendStringMember(b, "state_key", *p.StateKey)
	}
	b = appendStringMember(b, "type", p.Type)
	return append(b, '}')
}

// stickyKey is the member that makes an event sticky, as long as the proposal is not accepted. spec: MSC4354#unstable-prefix
const stickyKey = "msc4354_sticky"

func appendSticky(b []byte, ms int64) []byte {
	b = append(b, `,"`+stickyKey+`":{"duration_ms":`...)
	b = strconv.AppendInt(b, ms, 10)
	return append(b, '}')
}

func (d *draft) appendReferences(b []byte, ids []matrix.EventID) []byte {
	b = append(b, '[')
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		if d.version.EventIDFormat != roomversion.EventIDInEvent {
			b = canonicaljson.AppendString(b, string(id))
			continue
		}
		b = append(b, '[')
		b = canonicaljson.AppendString(b, string(id))
		b = append(b, `,{"sha256":"`...)
		if hash, ok := d.proto.ReferenceHashes[id]; ok {
			b = base64.RawStdEncoding.AppendEncode(b, hash[:])
		}
		b = append(b, `"}]`...)
	}
	return append(b, ']')
}

// appendStringMember appends a member whose key needs no escaping, after another member.
func appendStringMember(b []byte, key, value string) []byte {
	b = append(b, ',', '"')
	b = append(b, key...)
	b = append(b, '"', ':')
	return canonicaljson.AppendString(b, value)
}
