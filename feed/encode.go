package feed

import (
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/users"
)

// encoder appends JSON to a buffer: events are JSON already and are copied once.
type encoder struct {
	b     []byte
	comma bool
}

func (e *encoder) sep() {
	if e.comma {
		e.b = append(e.b, ',')
	}
	e.comma = true
}

func (e *encoder) key(k string) {
	e.sep()
	e.b = append(canonicaljson.AppendString(e.b, k), ':')
	e.comma = false
}

func (e *encoder) open(c byte)  { e.b, e.comma = append(e.b, c), false }
func (e *encoder) close(c byte) { e.b, e.comma = append(e.b, c), true }

func (e *encoder) raw(v []byte) { e.sep(); e.b = append(e.b, v...) }

func (e *encoder) str(s string) { e.sep(); e.b = canonicaljson.AppendString(e.b, s) }

func (e *encoder) int(n int64) { e.sep(); e.b = strconv.AppendInt(e.b, n, 10) }

// object writes a member that is an object.
func (e *encoder) object(key string, fill func()) {
	e.key(key)
	e.open('{')
	fill()
	e.close('}')
}

// encodeEvents writes a member of the form {"events": [...]}.
func encodeEvents[E ~[]byte](e *encoder, key string, events []E) {
	e.object(key, func() { encodeList(e, "events", events) })
}

// encodeList writes a member that is a list.
func encodeList[E ~[]byte](e *encoder, key string, items []E) {
	e.key(key)
	e.open('[')
	for _, item := range items {
		e.raw(item)
	}
	e.close(']')
}

func (e *encoder) flag(key string, v bool) {
	e.key(key)
	e.b, e.comma = strconv.AppendBool(e.b, v), true
}

// keyCounts writes how many keys a device has left. spec: client-server-api#extensions-to-sync
func (e *encoder) keyCounts(keys *users.KeyCounts) {
	e.object("device_one_time_keys_count", func() {
		for _, alg := range sortedKeys(keys.OneTime) {
			e.key(alg)
			e.int(keys.OneTime[alg])
		}
	})
	e.key("device_unused_fallback_key_types")
	e.open('[')
	for _, alg := range keys.UnusedFallback {
		e.str(alg)
	}
	e.close(']')
}

func (e *encoder) users(key string, list []matrix.UserID) {
	e.key(key)
	e.open('[')
	for _, u := range list {
		e.str(string(u))
	}
	e.close(']')
}

// response writes the body of a /sync as it is made.
type response struct {
	e       encoder
	request *Request
	w       io.Writer
	begun   bool   // something was told
	section string // the open section of rooms, "" if there is none
}

// chunk is from how many bytes on the response is handed on.
const chunk = 16 << 10

func newResponse(r *Request, w io.Writer) *response {
	return &response{e: encoder{b: make([]byte, 0, 1024)}, request: r, w: w}
}

// in makes sure that a section of rooms is open. Rooms come section by section.
func (s *response) in(section string) {
	switch {
	case s.section == section:
		return
	case s.section != "":
		s.e.close('}')
	default:
		s.begin()
		s.e.key("rooms")
		s.e.open('{')
	}
	s.e.key(section)
	s.e.open('{')
	s.section = section
}

func (s *response) begin() {
	if !s.begun {
		s.begun = true
		s.e.open('{')
	}
}

// joined writes a room of the sections join or leave.
func (s *response) joined(section string, j *joinedRoom) error {
	s.in(section)
	j.encode(&s.e, s.request, section == "leave")
	return s.flush(chunk)
}

// stripped writes a room of the sections invite or knock.
func (s *response) stripped(section string, room matrix.RoomID, events [][]byte) error {
	s.in(section)
	s.e.object(string(room), func() { encodeEvents(&s.e, section+"_state", events) })
	return s.flush(chunk)
}

func (s *response) flush(from int) error {
	if len(s.e.b) < from {
		return nil
	}
	_, err := s.w.Write(s.e.b)
	s.e.b = s.e.b[:0]
	return err
}

// tail is what a response tells beside rooms.
type tail struct {
	next        Token
	presence    []json.RawMessage
	accountData []json.RawMessage
	toDevice    []json.RawMessage
	changed     []matrix.UserID // device_lists
	left        []matrix.UserID
	keys        *users.KeyCounts
}

// empty reports that the client would learn nothing; key counts alone do not count.
func (t *tail) empty() bool {
	return len(t.presence)+len(t.accountData)+len(t.toDevice)+len(t.changed)+len(t.left) == 0
}

// finish writes the end of the response. Empty sections are left out, as the specification allows.
func (s *response) finish(t *tail) error {
	e := &s.e
	s.begin()
	if s.section != "" {
		e.close('}')
		e.close('}')
	}
	if t.keys != nil {
		e.keyCounts(t.keys)
	}
	if len(t.changed)+len(t.left) > 0 {
		e.object("device_lists", func() {
			for _, list := range []struct {
				key   string
				users []matrix.UserID
			}{{"changed", t.changed}, {"left", t.left}} {
				if len(list.users) > 0 {
					e.users(list.key, list.users)
				}
			}
		})
	}
	for _, section := range []struct {
		key    string
		events []json.RawMessage
	}{{"account_data", t.accountData}, {"presence", t.presence}, {"to_device", t.toDevice}} {
		if len(section.events) > 0 {
			encodeEvents(e, section.key, section.events)
		}
	}
	e.key("next_batch")
	e.str(t.next.String())
	e.close('}')
	return s.flush(0)
}

func (j *joinedRoom) encode(e *encoder, r *Request, left bool) {
	e.object(string(j.room), func() {
		encodeEvents(e, "account_data", j.accountData)
		if !left {
			encodeEvents(e, "ephemeral", j.ephemeral)
		}
		state := "state"
		if r.StateAfter {
			state = "state_after"
			if r.UnstableStateAfter {
				state = "org.matrix.msc4222.state_after"
			}
		}
		encodeEvents(e, state, j.state)
		if len(j.sticky) > 0 {
			encodeEvents(e, "msc4354_sticky", j.sticky)
		}
		if !left {
			j.encodeSummary(e)
		}
		e.object("timeline", func() {
			encodeList(e, "events", j.timeline)
			e.flag("limited", j.limited)
			if j.prevBatch != "" {
				e.key("prev_batch")
				e.str(j.prevBatch)
			}
		})
		if j.notification != nil {
			j.notification.encode(e, r.Filter.Room.Timeline.UnreadThreadNotifications)
		}
	})
}

func (j *joinedRoom) encodeSummary(e *encoder) {
	e.object("summary", func() {
		if j.summary == nil {
			return
		}
		if !j.summary.named {
			e.users("m.heroes", j.summary.Heroes)
		}
		e.key("m.invited_member_count")
		e.int(int64(j.summary.Invited))
		e.key("m.joined_member_count")
		e.int(int64(j.summary.Joined))
	})
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, strings.Compare)
	return keys
}
