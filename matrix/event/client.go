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
	StickyFor       int64            // unsigned.msc4354_sticky_duration_ttl_ms, 0 leaves it out. spec: MSC4354
	Membership      string           // unsigned.membership, the reader's membership at the event
	Relations       []byte           // unsigned.m.relations, canonical JSON
}

// AppendClient appends the event in the client format (ClientEvent, or
// ClientEventWithoutRoomID), spliced from the stored bytes. `redacts` appears
// both at the top level and in content, whatever the version.
// spec: client-server-api#room-event-format, rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
func (e *Event) AppendClient(dst []byte, o ClientOptions) []byte {
	dst = e.appendBody(dst, o.OmitRoomID)
	return append(o.appendUnsigned(dst, e.timestamp, o.appendShared(nil)), '}')
}

// ClientForm is an event in the client format as far as it is the same for all its readers.
type ClientForm struct {
	body      []byte
	shared    []byte // members of unsigned
	timestamp matrix.Timestamp
}

// ClientForm serialises the event once for many readers: of the options, OmitRoomID, PrevContent, PrevSender,
// RedactedBecause, RedactedBy and ReplacesState.
func (e *Event) ClientForm(o ClientOptions) *ClientForm {
	return &ClientForm{e.appendBody(nil, o.OmitRoomID), o.appendShared(nil), e.timestamp}
}

// Append appends the event for one reader: of the options, Now, Relations, Membership, StickyFor, DelayID and TransactionID.
func (f *ClientForm) Append(dst []byte, o ClientOptions) []byte {
	dst = append(dst, f.body...)
	return append(o.appendUnsigned(dst, f.timestamp, f.shared), '}')
}

// Size is about what the form takes in memory, in bytes.
func (f *ClientForm) Size() int { return len(f.body) + len(f.shared) }

// appendBody appends all but unsigned and the closing brace.
func (e *Event) appendBody(dst []byte, omitRoomID bool) []byte {
	dst = append(dst, `{"content":`...)
	dst = append(dst, e.clientContent()...)
	dst = appendStringMember(dst, "event_id", string(e.id))
	if e.isSticky {
		dst = appendSticky(dst, e.stickyFor)
	}
	dst = append(dst, `,"origin_server_ts":`...)
	dst = strconv.AppendInt(dst, int64(e.timestamp), 10)
	if e.redacts != "" {
		dst = appendStringMember(dst, "redacts", string(e.redacts))
	}
	if !omitRoomID {
		dst = appendStringMember(dst, "room_id", string(e.roomID))
	}
	dst = appendStringMember(dst, "sender", string(e.sender))
	if e.isState {
		dst = appendStringMember(dst, "state_key", e.stateKey)
	}
	return appendStringMember(dst, "type", e.eventType)
}

// clientContent is the content with redacts in it, also before v11.
func (e *Event) clientContent() []byte {
	if e.redacts == "" || e.version.RedactsInContent {
		return e.content
	}
	return canonicaljson.Set(e.content, "redacts", canonicaljson.AppendString(nil, string(e.redacts)))
}

// members appends members of an object, each with a comma in front of it.
type members []byte

func (m *members) raw(key string, value []byte) {
	if len(value) > 0 {
		m.key(key)
		*m = append(*m, value...)
	}
}

func (m *members) text(key, value string) {
	if value != "" {
		m.key(key)
		*m = canonicaljson.AppendString(*m, value)
	}
}

func (m *members) key(key string) {
	*m = append(*m, ',', '"')
	*m = append(*m, key...)
	*m = append(*m, '"', ':')
}

// appendShared appends the members of unsigned that are the same for all readers.
func (o *ClientOptions) appendShared(dst []byte) []byte {
	m := (*members)(&dst)
	m.raw("prev_content", o.PrevContent)
	m.text("prev_sender", string(o.PrevSender))
	m.raw("redacted_because", o.RedactedBecause)
	m.text("redacted_by", string(o.RedactedBy))
	m.text("replaces_state", string(o.ReplacesState))
	return dst
}

// appendUnsigned appends the member unsigned, of an event of some time, unless it would be empty.
func (o *ClientOptions) appendUnsigned(dst []byte, timestamp matrix.Timestamp, shared []byte) []byte {
	const open = `,"unsigned":{`
	before := len(dst)
	dst = append(dst, open...)
	m := (*members)(&dst)
	if o.Now != 0 {
		m.key("age")
		dst = strconv.AppendInt(dst, int64(o.Now-timestamp), 10)
	}
	m.raw("m.relations", o.Relations)
	m.text("membership", o.Membership)
	if o.StickyFor > 0 {
		m.key("msc4354_sticky_duration_ttl_ms")
		dst = strconv.AppendInt(dst, o.StickyFor, 10)
	}
	m.text("org.matrix.msc4140.delay_id", o.DelayID)
	dst = append(dst, shared...)
	m.text("transaction_id", o.TransactionID)
	first := before + len(open)
	if len(dst) == first {
		return dst[:before]
	}
	return append(append(dst[:first], dst[first+1:]...), '}') // without the first comma
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
