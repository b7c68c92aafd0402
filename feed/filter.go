package feed

import (
	"encoding/json"
	"slices"

	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/glob"
)

// Filter is what a client wants of /sync. The zero value wants everything.
// spec: cs/defineFilter, client-server-api#filtering
type Filter struct {
	EventFields []string    `json:"event_fields"`
	EventFormat string      `json:"event_format"`
	Presence    EventFilter `json:"presence"`
	AccountData EventFilter `json:"account_data"`
	Room        RoomFilter  `json:"room"`

	fields canonicaljson.Fields // nil: all
}

// RoomFilter selects among rooms and what is told of each.
type RoomFilter struct {
	Rooms        []string        `json:"rooms"`
	NotRooms     []string        `json:"not_rooms"`
	IncludeLeave bool            `json:"include_leave"`
	Ephemeral    RoomEventFilter `json:"ephemeral"`
	State        RoomEventFilter `json:"state"`
	Timeline     RoomEventFilter `json:"timeline"`
	AccountData  RoomEventFilter `json:"account_data"`
}

// EventFilter selects events by type and sender.
type EventFilter struct {
	Limit      *int     `json:"limit"`
	Types      []string `json:"types"`
	NotTypes   []string `json:"not_types"`
	Senders    []string `json:"senders"`
	NotSenders []string `json:"not_senders"`

	types, notTypes []glob.Glob
}

// RoomEventFilter selects events in rooms.
type RoomEventFilter struct {
	EventFilter
	UnreadThreadNotifications bool     `json:"unread_thread_notifications"`
	LazyLoadMembers           bool     `json:"lazy_load_members"`
	IncludeRedundantMembers   bool     `json:"include_redundant_members"`
	Rooms                     []string `json:"rooms"`
	NotRooms                  []string `json:"not_rooms"`
	ContainsURL               *bool    `json:"contains_url"`
	// spec: MSC3874: by relation type
	RelTypes    []string `json:"org.matrix.msc3874.rel_types"`
	NotRelTypes []string `json:"org.matrix.msc3874.not_rel_types"`
}

// Limits of a filter. Every event that is looked at is held against its lists.
const (
	maxFilter     = 64 << 10 // bytes
	maxFilterList = 1000     // types or senders
)

func checkFilterSize(raw []byte) error {
	if len(raw) > maxFilter {
		return matrix.TooLarge("The filter is larger than %d bytes.", maxFilter)
	}
	return nil
}

// ParseFilter reads the filter of a /sync request or a stored filter.
func ParseFilter(raw []byte) (*Filter, error) {
	if err := checkFilterSize(raw); err != nil {
		return nil, err
	}
	f := &Filter{}
	if err := strictjson.UnmarshalAs("The filter", raw, f); err != nil {
		return nil, err
	}
	switch f.EventFormat {
	case "", "client", "federation":
	default:
		return nil, matrix.BadJSON("event_format must be client or federation.")
	}
	if err := checkRooms(f.Room.Rooms, f.Room.NotRooms); err != nil {
		return nil, err
	}
	if f.EventFields != nil {
		f.fields = canonicaljson.ParseFields(f.EventFields)
	}
	for _, e := range []*EventFilter{&f.Presence, &f.AccountData} {
		if err := e.prepare(); err != nil {
			return nil, err
		}
	}
	for _, e := range []*RoomEventFilter{&f.Room.Ephemeral, &f.Room.State, &f.Room.Timeline, &f.Room.AccountData} {
		if err := e.prepare(); err != nil {
			return nil, err
		}
	}
	return f, nil
}

// ParseRoomEventFilter reads the filter of /messages, /context and /search.
func ParseRoomEventFilter(raw []byte) (*RoomEventFilter, error) {
	if err := checkFilterSize(raw); err != nil {
		return nil, err
	}
	f := &RoomEventFilter{}
	if err := strictjson.UnmarshalAs("The filter", raw, f); err != nil {
		return nil, err
	}
	if err := f.prepare(); err != nil {
		return nil, err
	}
	return f, nil
}

func checkRooms(lists ...[]string) error {
	for _, id := range slices.Concat(lists...) {
		if _, err := matrix.ParseRoomID(id); err != nil {
			return matrix.BadJSON("%q in the filter is not a room ID.", id)
		}
	}
	return nil
}

func (f *RoomEventFilter) prepare() error {
	if err := checkRooms(f.Rooms, f.NotRooms); err != nil {
		return err
	}
	return f.EventFilter.prepare()
}

func (f *EventFilter) prepare() error {
	if f.Limit != nil && *f.Limit < 0 {
		return matrix.BadJSON("limit in the filter must not be negative.")
	}
	for _, list := range [][]string{f.Types, f.NotTypes, f.Senders, f.NotSenders} {
		if len(list) > maxFilterList {
			return matrix.BadJSON("A list in the filter has more than %d elements.", maxFilterList)
		}
	}
	for _, id := range slices.Concat(f.Senders, f.NotSenders) {
		if _, err := matrix.ParseUserID(id); err != nil {
			return matrix.BadJSON("%q in the filter is not a user ID.", id)
		}
	}
	f.types, f.notTypes = globs(f.Types), globs(f.NotTypes)
	return nil
}

func globs(patterns []string) []glob.Glob {
	out := make([]glob.Glob, len(patterns))
	for i, p := range patterns {
		out[i] = glob.Compile(p, false)
	}
	return out
}

// Most is the filter's limit, def where it has none, never above the bound.
func (f *EventFilter) Most(def, bound int) int {
	if f.Limit == nil {
		return def
	}
	return min(*f.Limit, bound)
}

// newest leaves out the first of a list that is longer than the filter's limit.
func (f *EventFilter) newest(events []json.RawMessage) []json.RawMessage {
	if f.Limit == nil || len(events) <= *f.Limit {
		return events
	}
	return events[len(events)-*f.Limit:]
}

// Accepts reports whether an event of a type and sender passes; an empty sender is not looked at.
func (f *EventFilter) Accepts(eventType, sender string) bool {
	matches := func(g glob.Glob) bool { return g.Match(eventType) }
	switch {
	case slices.ContainsFunc(f.notTypes, matches):
		return false
	case f.Types != nil && !slices.ContainsFunc(f.types, matches):
		return false
	case sender == "":
		return true
	case slices.Contains(f.NotSenders, sender):
		return false
	}
	return f.Senders == nil || slices.Contains(f.Senders, sender)
}

// AcceptsRoom reports whether the filter wants anything of a room.
func (f *RoomEventFilter) AcceptsRoom(room matrix.RoomID) bool {
	return acceptsRoom(f.Rooms, f.NotRooms, room)
}

func (f *RoomFilter) acceptsRoom(room matrix.RoomID) bool {
	return acceptsRoom(f.Rooms, f.NotRooms, room)
}

func acceptsRoom(rooms, not []string, room matrix.RoomID) bool {
	return !slices.Contains(not, string(room)) && (rooms == nil || slices.Contains(rooms, string(room)))
}

// AcceptsEvent reports whether a room event passes.
func (f *RoomEventFilter) AcceptsEvent(e *event.Event) bool {
	if !f.Accepts(e.Type(), string(e.Sender())) {
		return false
	}
	if f.ContainsURL != nil {
		if _, has := canonicaljson.Get(e.Content(), "url"); has != *f.ContainsURL {
			return false
		}
	}
	if f.RelTypes == nil && f.NotRelTypes == nil {
		return true
	}
	var rel string
	if raw, ok := canonicaljson.Get(e.Content(), "m.relates_to"); ok {
		rel, _ = canonicaljson.GetString(raw, "rel_type")
	}
	return !slices.Contains(f.NotRelTypes, rel) && (f.RelTypes == nil || slices.Contains(f.RelTypes, rel))
}

// All reports that every event passes, so that callers can take whole pages unfiltered.
func (f *RoomEventFilter) All() bool {
	return f.Types == nil && len(f.NotTypes) == 0 && f.Senders == nil && len(f.NotSenders) == 0 &&
		f.ContainsURL == nil && f.RelTypes == nil && len(f.NotRelTypes) == 0
}
