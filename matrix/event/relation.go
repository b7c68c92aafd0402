package event

import (
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// Relation is how an event relates to another: content.m.relates_to, which
// encrypted events have in the clear. Members that are absent or of a wrong type are zero.
// spec: client-server-api#forming-relationships-between-events
type Relation struct {
	Type          string         // rel_type: "m.annotation", "m.replace", "m.thread", "m.reference" ...
	EventID       matrix.EventID // the parent, set when Type is
	Key           string         // of an annotation
	IsFallingBack bool           // InReplyTo is there only for clients without threads
	InReplyTo     matrix.EventID // m.in_reply_to.event_id
}

// Relation reads how the event relates to another. ok is false if it does not: a relation has
// a type and a parent, or replies to something.
func (e *Event) Relation() (r Relation, ok bool) { return RelationOf(e.content) }

// RelationOf is Event.Relation for the canonical content of an event that is not made yet.
func RelationOf(content []byte) (r Relation, ok bool) {
	raw, ok := canonicaljson.GetObject(content, "m.relates_to")
	if !ok {
		return Relation{}, false
	}
	r.Type, _ = canonicaljson.GetString(raw, "rel_type")
	parent, _ := canonicaljson.GetString(raw, "event_id")
	if id, err := matrix.ParseEventID(parent); err == nil && r.Type != "" {
		r.EventID = id
		r.Key, _ = canonicaljson.GetString(raw, "key")
		r.IsFallingBack, _ = canonicaljson.GetBool(raw, "is_falling_back")
	} else {
		r.Type = ""
	}
	if reply, ok := canonicaljson.GetObject(raw, "m.in_reply_to"); ok {
		parent, _ := canonicaljson.GetString(reply, "event_id")
		if id, err := matrix.ParseEventID(parent); err == nil {
			r.InReplyTo = id
		}
	}
	return r, r.Type != "" || r.InReplyTo != ""
}
