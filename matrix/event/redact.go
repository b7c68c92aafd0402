package event

import (
	"bytes"

	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// Redact returns the redacted form (itself when nothing changes); same ID,
// signatures still valid.
// spec: rooms/v1#redactions, rooms/v6#redactions, rooms/v8#redactions, rooms/v9#redactions, rooms/v11#redactions
func (e *Event) Redact() *Event {
	var buf [typicalMembers]member
	ms, _ := canonicaljson.Index(e.json, buf[:0])
	redacted := e.appendRedacted(make([]byte, 0, len(e.json)), ms, true)
	if len(redacted) == len(e.json) {
		// Redaction only takes away.
		return e
	}
	r, err := e.withJSON(bytes.Clone(redacted))
	if err != nil {
		// The members of e were valid, and r has a part of them.
		panic("event: redaction broke an event: " + err.Error())
	}
	return r
}

// withJSON returns the same event in another form: redacted, or with more signatures.
func (e *Event) withJSON(b []byte) (*Event, error) {
	r, err := FromStored(e.version, e.id, b)
	if err != nil {
		return nil, err
	}
	r.hashMismatch = e.hashMismatch
	return r, nil
}

// appendEssential appends what is signed and what the reference hash covers:
// the redacted form without signatures.
func (e *Event) appendEssential(dst []byte, ms []member) []byte {
	return e.appendRedacted(dst, ms, false)
}

func (e *Event) appendRedacted(dst []byte, ms []member, signatures bool) []byte {
	dst = append(dst, '{')
	for _, m := range ms {
		key := m.Key(e.json)
		switch {
		case string(key) == "content":
			dst = appendMember(dst, e.json[m.Start:m.Value])
			dst = e.appendRedactedContent(dst)
		case string(key) == "signatures" && !signatures:
		case keepsMember(e.version.Redaction, key):
			dst = appendMember(dst, e.json[m.Start:m.End])
		}
	}
	return append(dst, '}')
}

// keepsMember reports whether redaction keeps a member of the event.
func keepsMember(r roomversion.Redaction, key []byte) bool {
	switch string(key) {
	case "auth_events", "content", "depth", "event_id", "hashes", "origin_server_ts",
		"prev_events", "room_id", "sender", "signatures", "state_key", "type":
		return true
	case "membership", "origin", "prev_state":
		return r < roomversion.RedactionV11
	}
	return false
}

func (e *Event) appendRedactedContent(dst []byte) []byte {
	r := e.version.Redaction
	if e.eventType == "m.room.create" && r >= roomversion.RedactionV11 {
		return append(dst, e.content...)
	}
	if !keepsContent(e.eventType) {
		return append(dst, "{}"...)
	}
	var buf [typicalMembers]member
	ms, _ := canonicaljson.Index(e.content, buf[:0])
	dst = append(dst, '{')
	for _, m := range ms {
		key := m.Key(e.content)
		switch {
		case keepsContentMember(r, e.eventType, key):
			dst = appendMember(dst, e.content[m.Start:m.End])
		case r >= roomversion.RedactionV11 && e.eventType == "m.room.member" && string(key) == "third_party_invite":
			invite := m.Raw(e.content)
			if !canonicaljson.IsObject(invite) {
				continue
			}
			// An invite without `signed` stays as an empty object, as peers do it:
			// event IDs depend on it.
			dst = appendMember(dst, e.content[m.Start:m.Value])
			dst = append(dst, '{')
			var inner [8]member
			parts, _ := canonicaljson.Index(invite, inner[:0])
			for _, part := range parts {
				if string(part.Key(invite)) == "signed" {
					dst = appendMember(dst, invite[part.Start:part.End])
				}
			}
			dst = append(dst, '}')
		}
	}
	return append(dst, '}')
}

// keepsContent reports whether redaction keeps anything of the content of a type in some version.
func keepsContent(eventType string) bool {
	switch eventType {
	case "m.room.aliases", "m.room.create", "m.room.history_visibility", "m.room.join_rules", "m.room.member",
		"m.room.power_levels", "m.room.redaction":
		return true
	}
	return false
}

// keepsContentMember reports whether redaction keeps a whole member of the content.
func keepsContentMember(r roomversion.Redaction, eventType string, key []byte) bool {
	switch eventType {
	case "m.room.aliases":
		return r < roomversion.RedactionV6 && string(key) == "aliases"
	case "m.room.create":
		return string(key) == "creator"
	case "m.room.history_visibility":
		return string(key) == "history_visibility"
	case "m.room.join_rules":
		switch string(key) {
		case "join_rule":
			return true
		case "allow":
			return r >= roomversion.RedactionV8
		}
	case "m.room.member":
		switch string(key) {
		case "membership":
			return true
		case "join_authorised_via_users_server":
			return r >= roomversion.RedactionV9
		}
	case "m.room.power_levels":
		switch string(key) {
		case "ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default":
			return true
		case "invite":
			return r >= roomversion.RedactionV11
		}
	case "m.room.redaction":
		return r >= roomversion.RedactionV11 && string(key) == "redacts"
	}
	return false
}
