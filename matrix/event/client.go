package event

import (
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// ClientOptions say what a client is told besides the event itself.
type ClientOptions struct {
	OmitRoomID      bool             // /sync leaves room_id out
	TransactionID   string           // unsigned.transaction_id, for the sending device only
	DelayID         string           // unsigned.org.matrix.msc4140.delay_id, for the sender only. spec: MSC4140
	Now             matrix.Timestamp // for unsigned.age; 0 leaves age out
	PrevContent     []byte           // unsigned.prev_content, canonical JSON
	ReplacesState   matrix.EventID   // unsigned.replaces_state
	PrevSender      matrix.UserID    // unsigned.prev_sender
	RedactedBecause []byte           // unsigned.redacted_because, a client-format event
	RedactedBy      matrix.EventID   // unsigned.redacted_by, its ID: not specified, but older than redacted_because
	Membership      string           // unsigned.membership, the reader's membership at the event
	Relations       []byte           // unsigned.m.relations, canonical JSON
}

// AppendClient appends the event in the client format (ClientEvent, or
// ClientEventWithoutRoomID), spliced from the stored bytes. `redacts` appears
// both at the top level and in content, whatever the version.
// spec: client-server-api#room-event-format, rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
func (e *Event) AppendClient(dst []byte, o ClientOptions) []byte {
	dst = append(dst, `{"content":`...)
	dst = append(dst, e.clientContent()...)
	dst = appendStringMember(dst, "event_id", string(e.id))
	dst = append(dst, `,"origin_server_ts":`...)
	dst = strconv.AppendInt(dst, int64(e.timestamp), 10)
	if e.redacts != "" {
		dst = appendStringMember(dst, "redacts", string(e.redacts))
	}
	if !o.OmitRoomID {
		dst = appendStringMember(dst, "room_id", string(e.roomID))
	}
	dst = appendStringMember(dst, "sender", string(e.sender))
	if e.isState {
		dst = appendStringMember(dst, "state_key", e.stateKey)
	}
	dst = appendStringMember(dst, "type", e.eventType)
	dst = e.appendUnsigned(dst, o)
	return append(dst, '}')
}

// clientContent is the content with redacts in it, also before v11.
func (e *Event) clientContent() []byte {
	if e.redacts == "" || e.version.RedactsInContent {
		return e.content
	}
	return canonicaljson.Set(e.content, "redacts", canonicaljson.AppendString(nil, string(e.redacts)))
}

// appendUnsigned appends the member unsigned unless it would be empty.
func (e *Event) appendUnsigned(dst []byte, o ClientOptions) []byte {
	before := len(dst)
	dst = append(dst, `,"unsigned":{`...)
	empty := len(dst)
	member := func(key string) {
		if len(dst) > empty {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, key...)
		dst = append(dst, '"', ':')
	}
	raw := func(key string, value []byte) {
		if len(value) > 0 {
			member(key)
			dst = append(dst, value...)
		}
	}
	text := func(key, value string) {
		if value != "" {
			member(key)
			dst = canonicaljson.AppendString(dst, value)
		}
	}
	if o.Now != 0 {
		member("age")
		dst = strconv.AppendInt(dst, int64(o.Now-e.timestamp), 10)
	}
	raw("m.relations", o.Relations)
	text("membership", o.Membership)
	text("org.matrix.msc4140.delay_id", o.DelayID)
	raw("prev_content", o.PrevContent)
	text("prev_sender", string(o.PrevSender))
	raw("redacted_because", o.RedactedBecause)
	text("redacted_by", string(o.RedactedBy))
	text("replaces_state", string(o.ReplacesState))
	text("transaction_id", o.TransactionID)
	if len(dst) == empty {
		return dst[:before]
	}
	return append(dst, '}')
}

// AppendStripped appends the stripped state form: content, sender, state_key, type.
// spec: client-server-api#stripped-state
func (e *Event) AppendStripped(dst []byte) []byte {
	dst = append(dst, `{"content":`...)
	dst = append(dst, e.content...)
	dst = appendStringMember(dst, "sender", string(e.sender))
	dst = appendStringMember(dst, "state_key", e.stateKey)
	dst = appendStringMember(dst, "type", e.eventType)
	return append(dst, '}')
}
