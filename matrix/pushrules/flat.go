package pushrules

import (
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
)

// Flat is an event prepared for evaluation against many users' rules. It may be
// used by several goroutines.
type Flat struct {
	sender matrix.UserID
	room   matrix.RoomID
	// known has the properties that the predefined and most other rules ask for.
	known [len(knownPaths)]property
	event []byte // for all other paths
}

// property is a property's raw canonical value, nil when absent, and its text if it is a string.
type property struct {
	raw  []byte
	text string
}

func (p property) isString() bool { return len(p.raw) > 0 && p.raw[0] == '"' }

const bodyPath = "content.body"

var (
	knownPaths = [...]string{
		"type", "sender", "state_key", "room_id", "event_id", bodyPath, "content.msgtype", "content.membership",
		`content.m\.mentions.user_ids`, `content.m\.mentions.room`, `content.m\.relates_to.rel_type`,
	}
	knownNames = splitAll(knownPaths[:])
	bodyIndex  = slices.Index(knownPaths[:], bodyPath)
)

func splitAll(paths []string) [][]string {
	names := make([][]string, len(paths))
	for i, path := range paths {
		names[i] = canonicaljson.SplitPath(path)
	}
	return names
}

// Flatten prepares an event once for all its receivers.
func Flatten(e *event.Event) *Flat {
	return flatten(e.JSON(), e.ID(), e.RoomID(), e.Sender())
}

// flatten adds to the event what is not in the JSON of every room version.
func flatten(json []byte, id matrix.EventID, room matrix.RoomID, sender matrix.UserID) *Flat {
	f := &Flat{sender: sender, room: room, event: json}
	content, _ := canonicaljson.Get(json, "content") // most paths begin there: walk to it once
	for i, names := range knownNames {
		switch {
		case names[0] == "room_id":
			f.known[i] = property{canonicaljson.AppendString(nil, string(room)), string(room)}
		case names[0] == "event_id":
			f.known[i] = property{canonicaljson.AppendString(nil, string(id)), string(id)}
		case names[0] == "content":
			f.known[i] = lookUp(content, names[1:])
		default:
			f.known[i] = lookUp(json, names)
		}
	}
	return f
}

func (f *Flat) body() property { return f.known[bodyIndex] }

func lookUp(object []byte, path []string) property {
	raw := object
	for _, key := range path {
		value, ok := canonicaljson.Get(raw, key)
		if !ok {
			return property{}
		}
		raw = value
	}
	text, _ := canonicaljson.String(raw)
	return property{raw, text}
}
