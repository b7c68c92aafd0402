// Package event holds PDUs: parsing, hashing, identifying, signing, redacting,
// building, and the form that clients see.
//
// An Event is immutable and keeps the exact canonical bytes it was parsed
// from; all that is hashed, signed, stored or relayed is made by splicing them.
// Events may be shared between goroutines.
//
// Strings and slices that an Event returns share its memory: do not write to
// slices, and clone a string that has to outlive its event by much.
//
// Start reading at Parse, then Event.
// spec: server-server-api#pdus, rooms/*
package event

import (
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// Event is one PDU.
type Event struct {
	version *roomversion.Version
	json    []byte // canonical, without unsigned

	id         matrix.EventID
	roomID     matrix.RoomID
	eventType  string
	stateKey   string
	sender     matrix.UserID
	membership string
	redacts    matrix.EventID
	content    []byte           // within json
	references []matrix.EventID // auth events, then prev events
	authEvents int              // how many of the references are auth events
	timestamp  matrix.Timestamp
	depth      int64

	stickyFor int64 // milliseconds, as the sender has it
	isSticky  bool

	isState      bool
	hashMismatch bool
}

// Version is the version of the event's room.
func (e *Event) Version() *roomversion.Version { return e.version }

// ID is the event ID: as in the event up to v2, its reference hash from v3 on.
func (e *Event) ID() matrix.EventID { return e.id }

// RoomID is the room; for a v12 create event it is derived from the event ID.
func (e *Event) RoomID() matrix.RoomID { return e.roomID }

// Type is the event type.
func (e *Event) Type() string { return e.eventType }

// StateKey returns the state key; ok is false for message-like events.
func (e *Event) StateKey() (key string, ok bool) { return e.stateKey, e.isState }

// IsState reports whether the event has a state key.
func (e *Event) IsState() bool { return e.isState }

// Is reports whether the event is the state event of that name.
func (e *Event) Is(eventType, stateKey string) bool {
	return e.isState && e.eventType == eventType && e.stateKey == stateKey
}

// DummyType is the type of events that mean nothing to anybody: servers send them to bring the branches of a room together.
const DummyType = "org.matrix.dummy_event"

// IsDummy reports whether the event is one of those.
func (e *Event) IsDummy() bool { return e.eventType == DummyType && !e.isState }

// Sender is the user who sent the event.
func (e *Event) Sender() matrix.UserID { return e.sender }

// OriginServerTS is when the sender's server says that it made the event.
func (e *Event) OriginServerTS() matrix.Timestamp { return e.timestamp }

// Depth is one more than the greatest depth among the prev events, as claimed.
func (e *Event) Depth() int64 { return e.depth }

// PrevEvents are the IDs of the events before this one.
func (e *Event) PrevEvents() []matrix.EventID {
	return e.references[e.authEvents:len(e.references):len(e.references)]
}

// AuthEvents are the IDs of the events that authorise this one.
func (e *Event) AuthEvents() []matrix.EventID {
	return e.references[:e.authEvents:e.authEvents]
}

// Content is the content, a canonical JSON object.
func (e *Event) Content() []byte { return e.content }

// JSON is the exact canonical bytes of the event, without unsigned.
func (e *Event) JSON() []byte { return e.json }

// HashMismatch reports that the event arrived with a content hash that does not
// fit, and that this is therefore its redacted form.
func (e *Event) HashMismatch() bool { return e.hashMismatch }

// Redacts is the event that an m.room.redaction redacts: from the top level or
// from the content, as the room version says. ok is false if what stands there is no event ID.
func (e *Event) Redacts() (id matrix.EventID, ok bool) { return e.redacts, e.redacts != "" }

// Membership is content.membership of an m.room.member event: "" for other
// types, or if it is absent or not a string.
func (e *Event) Membership() string { return e.membership }

// MaxSticky is the longest time for which an event is sticky, in milliseconds. spec: MSC4354
const MaxSticky = 3_600_000

// Sticky returns for how many milliseconds the event is to be delivered whatever the limit of a timeline,
// at most MaxSticky; ok is false for events that are not sticky. spec: MSC4354
func (e *Event) Sticky() (ms int64, ok bool) { return min(e.stickyFor, MaxSticky), e.isSticky }

// ContentString returns a top-level member of the content that is a string.
func (e *Event) ContentString(key string) (string, bool) {
	return canonicaljson.GetString(e.content, key)
}
