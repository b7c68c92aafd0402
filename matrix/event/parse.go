package event

import (
	"encoding/base64"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// Limits on events, in bytes and entries.
// spec: client-server-api#size-limits, server-server-api#pdus
const (
	MaxSize       = 65536              // canonical form with signatures, without unsigned
	MaxFieldSize  = 255                // sender, room_id, type, state_key, event_id
	MaxOwnedKey   = 2*MaxFieldSize + 1 // state_key in rooms where it may have a user ID before it. spec: MSC3757
	MaxPrevEvents = 20
	MaxAuthEvents = 10
)

// Parse reads an untrusted PDU of a room version. It checks the format, sizes
// and grammar of the version, canonicalises, drops `unsigned`, computes the
// event ID and checks the content hash: on a mismatch the event comes back in
// redacted form with HashMismatch true. Other members that the specification
// does not name are covered by the content hash, so they stay until redaction.
//
// Signatures are not checked here: see RequiredSigners and SignatureCheck.
//
// An error is a *matrix.Error that names what is wrong; the event must then be
// dropped. raw is not kept.
// spec: server-server-api#checks-performed-on-receipt-of-a-pdu 1 and 3
func Parse(v *roomversion.Version, raw []byte) (*Event, error) { return parse(v, raw, false) }

// ParseHistory is Parse for what a backfill brings, in which the numbers of prev and auth events are not limited: rooms hold events
// from before they were. spec: ss/backfillRoom
func ParseHistory(v *roomversion.Version, raw []byte) (*Event, error) { return parse(v, raw, true) }

func parse(v *roomversion.Version, raw []byte, history bool) (*Event, error) {
	canonical, err := canonicaljson.Canonical(raw, v.JSON)
	if err != nil {
		return nil, malformed("event", err)
	}
	var buf [typicalMembers]member
	ms, ok := canonicaljson.Index(canonical, buf[:0])
	if !ok {
		return nil, invalid("is not an object")
	}
	e := &Event{version: v}
	if e.json, ms = without(canonical, ms, "unsigned"); len(e.json) > MaxSize {
		return nil, tooLarge("event", len(e.json), MaxSize)
	}
	seen, err := e.index(ms)
	if err != nil {
		return nil, err
	}
	if err := e.check(seen); err != nil {
		return nil, err
	}
	if !history {
		if err := e.checkReferences(); err != nil {
			return nil, err
		}
	}
	if err := e.checkSignatures(ms); err != nil {
		return nil, err
	}
	hashFits, err := e.checkContentHash(ms)
	if err != nil {
		return nil, err
	}
	e.identify(ms)
	if !hashFits {
		e = e.Redact()
		// When there was nothing to redact, e is still our own.
		e.hashMismatch = true
	}
	return e, nil
}

// FromStored wraps bytes that we wrote ourselves; nothing is checked again. The
// event keeps canonical. An error means that the bytes are damaged.
func FromStored(v *roomversion.Version, id matrix.EventID, canonical []byte) (*Event, error) {
	var buf [typicalMembers]member
	ms, ok := canonicaljson.Index(canonical, buf[:0])
	if !ok {
		return nil, fmt.Errorf("event %s: stored form is not an object", id)
	}
	e := &Event{version: v, json: canonical}
	if _, err := e.index(ms); err != nil {
		return nil, fmt.Errorf("event %s: %w", id, err)
	}
	e.setID(id)
	return e, nil
}

// RoomOf reads the room ID of an untrusted PDU whose room version is not known
// yet, for finding out which version to Parse it with. Nothing else is checked.
// A v12 create event has no room_id and gives an error, as does anything malformed.
// spec: server-server-api#checks-performed-on-receipt-of-a-pdu 1
func RoomOf(raw []byte) (matrix.RoomID, error) {
	canonical, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
	if err != nil {
		return "", malformed("event", err)
	}
	id, ok := canonicaljson.GetString(canonical, "room_id")
	if !ok {
		return "", invalid("room_id is missing or not a string")
	}
	room, err := matrix.ParseRoomID(strings.Clone(id))
	if err != nil {
		return "", invalid("room_id: %v", err)
	}
	return room, nil
}

// fields is the set of top-level members that an event has.
type fields uint16

const (
	fieldAuthEvents fields = 1 << iota
	fieldContent
	fieldDepth
	fieldEventID
	fieldHashes
	fieldOriginServerTS
	fieldPrevEvents
	fieldRoomID
	fieldSender
	fieldSignatures
	fieldType
)

var fieldNames = [...]string{
	"auth_events", "content", "depth", "event_id", "hashes", "origin_server_ts",
	"prev_events", "room_id", "sender", "signatures", "type",
}

// index reads the members of e.json into e. It refuses members of a wrong type,
// and reports which of the required ones are there.
func (e *Event) index(ms []member) (seen fields, err error) {
	var referenced [MaxPrevEvents + MaxAuthEvents]matrix.EventID
	references := referenced[:0]
	var redacts string
	for _, m := range ms {
		raw := m.Raw(e.json)
		ok := true
		switch key := m.Key(e.json); string(key) {
		case "auth_events":
			references, ok = appendReferences(references, e.version, raw)
			e.authEvents = len(references)
			seen |= fieldAuthEvents
		case "content":
			e.content, ok = raw, canonicaljson.IsObject(raw)
			seen |= fieldContent
		case "depth":
			e.depth, ok = canonicaljson.Int(raw)
			seen |= fieldDepth
		case "event_id":
			if e.version.EventIDFormat != roomversion.EventIDInEvent {
				// Synapse can read neither such an event nor any list that it is in, so it would get nothing more of the room.
				return seen, invalid("event_id is not a member of events of this room version")
			}
			var id string
			id, ok = canonicaljson.String(raw)
			e.id = matrix.EventID(id)
			seen |= fieldEventID
		case "hashes":
			ok = canonicaljson.IsObject(raw)
			seen |= fieldHashes
		case stickyKey:
			// Anything else is a member of no meaning, which no event is refused for.
			if ms, number := canonicaljson.GetInt(raw, "duration_ms"); number && ms >= 0 {
				e.stickyFor, e.isSticky = ms, true
			}
		case "origin_server_ts":
			var ts int64
			ts, ok = canonicaljson.Int(raw)
			e.timestamp = matrix.Timestamp(ts)
			seen |= fieldOriginServerTS
		case "prev_events":
			references, ok = appendReferences(references, e.version, raw)
			seen |= fieldPrevEvents
		case "redacts":
			if !e.version.RedactsInContent {
				redacts, ok = canonicaljson.String(raw)
			}
		case "room_id":
			var id string
			id, ok = canonicaljson.String(raw)
			e.roomID = matrix.RoomID(id)
			seen |= fieldRoomID
		case "sender":
			var id string
			id, ok = canonicaljson.String(raw)
			e.sender = matrix.UserID(id)
			seen |= fieldSender
		case "signatures":
			ok = canonicaljson.IsObject(raw)
			seen |= fieldSignatures
		case "state_key":
			e.stateKey, ok = canonicaljson.String(raw)
			e.isState = true
		case "type":
			e.eventType, ok = canonicaljson.String(raw)
			seen |= fieldType
		}
		if !ok {
			return seen, invalid("%s is of the wrong type", m.Key(e.json))
		}
	}
	e.references = slices.Clone(references)
	if e.content == nil {
		e.content = []byte("{}")
	}
	switch e.eventType {
	case "m.room.member":
		e.membership, _ = e.ContentString("membership")
	case "m.room.redaction":
		if e.version.RedactsInContent {
			redacts, _ = e.ContentString("redacts")
		}
		if id, err := matrix.ParseEventID(redacts); err == nil {
			e.redacts = id
		}
	}
	return seen, nil
}

// appendReferences reads prev_events or auth_events: a list of event IDs, or of
// [event ID, hashes] pairs up to v2.
func appendReferences(into []matrix.EventID, v *roomversion.Version, raw []byte) ([]matrix.EventID, bool) {
	if !canonicaljson.IsArray(raw) {
		return into, false
	}
	for element := range canonicaljson.Elements(raw) {
		if v.EventIDFormat == roomversion.EventIDInEvent {
			var ok bool
			if element, ok = firstOfPair(element); !ok {
				return into, false
			}
		}
		s, _ := canonicaljson.String(element)
		id, err := matrix.ParseEventID(s)
		if err != nil {
			return into, false
		}
		into = append(into, id)
	}
	return into, true
}

// firstOfPair reads a pair of anything and an object.
func firstOfPair(raw []byte) (first []byte, ok bool) {
	if !canonicaljson.IsArray(raw) {
		return nil, false
	}
	n := 0
	for part := range canonicaljson.Elements(raw) {
		if n++; n == 1 {
			first = part
		} else if n > 2 || !canonicaljson.IsObject(part) {
			return nil, false
		}
	}
	return first, n == 2
}

// check applies what the event format asks beyond the types of members.
func (e *Event) check(seen fields) error {
	v := e.version
	required := fieldAuthEvents | fieldContent | fieldDepth | fieldHashes | fieldOriginServerTS |
		fieldPrevEvents | fieldRoomID | fieldSender | fieldSignatures | fieldType
	if v.EventIDFormat == roomversion.EventIDInEvent {
		required |= fieldEventID
	}
	create := v.RoomIDIsCreateHash && e.eventType == "m.room.create"
	if create {
		required &^= fieldRoomID
	}
	if missing := required &^ seen; missing != 0 {
		return invalid("%s is missing", fieldNames[bits.TrailingZeros16(uint16(missing))])
	}
	maxKey := MaxFieldSize
	if v.OwnedState {
		maxKey = MaxOwnedKey
	}
	switch {
	case len(e.eventType) > MaxFieldSize:
		return tooLarge("type", len(e.eventType), MaxFieldSize)
	case len(e.stateKey) > maxKey:
		return tooLarge("state_key", len(e.stateKey), maxKey)
	case len(e.sender) > MaxFieldSize:
		return tooLarge("sender", len(e.sender), MaxFieldSize)
	case len(e.roomID) > MaxFieldSize:
		return tooLarge("room_id", len(e.roomID), MaxFieldSize)
	case len(e.id) > MaxFieldSize:
		return tooLarge("event_id", len(e.id), MaxFieldSize)
	case e.depth < 0:
		return invalid("depth is negative")
	}
	if _, err := matrix.ParseUserID(string(e.sender)); err != nil {
		return invalid("sender: %v", err)
	}
	if seen&fieldEventID != 0 {
		if _, err := matrix.ParseEventID(string(e.id)); err != nil {
			return invalid("event_id: %v", err)
		}
		if e.id.Server() == "" {
			return invalid("event_id has no domain")
		}
	}
	switch {
	case create && seen&fieldRoomID != 0:
		// As an authorisation rule this would leave behind an event whose room is
		// whatever it claims. spec: rooms/v12#authorisation-rules 1.2
		return invalid("a create event of this room version must not have a room_id")
	case create && (!e.isState || e.stateKey != ""):
		return invalid("a create event must have the empty state_key")
	case create:
		return nil
	}
	if _, err := matrix.ParseRoomID(string(e.roomID)); err != nil {
		return invalid("room_id: %v", err)
	}
	if v.RoomIDIsCreateHash {
		if id, ok := e.roomID.CreateEventID(); !ok || !id.IsHash(true) {
			return invalid("room_id is not the hash of a create event")
		}
	} else if !e.roomID.HasServer() {
		return invalid("room_id has no domain")
	}
	return nil
}

func (e *Event) checkReferences() error {
	switch {
	case len(e.AuthEvents()) > MaxAuthEvents:
		return invalid("has %d auth_events, of which %d are allowed", len(e.AuthEvents()), MaxAuthEvents)
	case len(e.PrevEvents()) > MaxPrevEvents:
		return invalid("has %d prev_events, of which %d are allowed", len(e.PrevEvents()), MaxPrevEvents)
	}
	for i, id := range e.PrevEvents() {
		if slices.Contains(e.PrevEvents()[:i], id) {
			return invalid("has a prev event twice") // Synapse cannot keep such an event, nor take anything that comes after it
		}
	}
	return nil
}

// checkSignatures checks the shape of signatures: server, key ID, string.
func (e *Event) checkSignatures(ms []member) error {
	var servers, keys [4]member
	signatures := find(e.json, ms, "signatures")
	byServer, ok := canonicaljson.Index(signatures, servers[:0])
	for _, server := range byServer {
		raw := server.Raw(signatures)
		byKey, isObject := canonicaljson.Index(raw, keys[:0])
		ok = ok && isObject
		for _, key := range byKey {
			ok = ok && raw[key.Value] == '"'
		}
	}
	if !ok {
		return invalid("signatures is of the wrong type")
	}
	return nil
}

// checkContentHash reports whether hashes.sha256 fits the event.
// spec: server-server-api#validating-hashes-and-signatures-on-received-events
func (e *Event) checkContentHash(ms []member) (fits bool, err error) {
	var buf [4]member
	hashes := find(e.json, ms, "hashes")
	inner, _ := canonicaljson.Index(hashes, buf[:0])
	stated, ok := canonicaljson.String(find(hashes, inner, "sha256"))
	if !ok {
		return false, invalid("hashes.sha256 is missing or not a string")
	}
	actual := contentHash(e.json, ms)
	var encoded [43]byte
	base64.RawStdEncoding.Encode(encoded[:], actual[:])
	if string(encoded[:]) == stated {
		return true, nil
	}
	// Padding, the other alphabet and loose last bits are all the same hash.
	decoded, err := signing.DecodeBase64(stated)
	if err != nil {
		return false, invalid("hashes.sha256 is not base64")
	}
	return string(decoded) == string(actual[:]), nil
}

// malformed says where the JSON is that canonicaljson refused, with the code that it gave.
func malformed(what string, err error) error {
	m, ok := matrix.AsError(err)
	if !ok {
		return matrix.BadJSON("%s: %v", what, err)
	}
	c := *m
	c.Message = what + ": " + c.Message
	return &c
}

// invalid is the error for an event that does not follow its format.
func invalid(format string, args ...any) error {
	return matrix.BadJSON("event: "+format, args...)
}

func tooLarge(what string, size, limit int) error {
	return matrix.TooLarge("%s has %d bytes, of which %d are allowed", what, size, limit)
}
