package feed

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
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

// events writes a member of the form {"events": [...]}.
func (e *encoder) events(key string, events []json.RawMessage) {
	e.object(key, func() {
		e.key("events")
		e.open('[')
		for _, ev := range events {
			e.raw(ev)
		}
		e.close(']')
	})
}

func (e *encoder) users(key string, list []matrix.UserID) {
	e.key(key)
	e.open('[')
	for _, u := range list {
		e.str(string(u))
	}
	e.close(']')
}

// encode writes the response. Empty sections are left out, as the specification allows.
func (s *response) encode() []byte {
	e := &encoder{b: make([]byte, 0, 1024)}
	e.open('{')
	if s.keys != nil {
		e.object("device_one_time_keys_count", func() {
			for _, alg := range sortedKeys(s.keys.OneTime) {
				e.key(alg)
				e.int(s.keys.OneTime[alg])
			}
		})
		e.key("device_unused_fallback_key_types")
		e.open('[')
		for _, alg := range s.keys.UnusedFallback {
			e.str(alg)
		}
		e.close(']')
	}
	if len(s.changed)+len(s.left) > 0 {
		e.object("device_lists", func() {
			e.users("changed", s.changed)
			e.users("left", s.left)
		})
	}
	for _, section := range []struct {
		key    string
		events []json.RawMessage
	}{{"account_data", s.accountData}, {"presence", s.presence}, {"to_device", s.toDevice}} {
		if len(section.events) > 0 {
			e.events(section.key, section.events)
		}
	}
	e.key("next_batch")
	e.str(s.next.String())
	if len(s.join)+len(s.invite)+len(s.knock)+len(s.leave) > 0 {
		e.object("rooms", func() { s.encodeRooms(e) })
	}
	e.close('}')
	return e.b
}

func (s *response) encodeRooms(e *encoder) {
	if len(s.join) > 0 {
		e.object("join", func() {
			for i := range s.join {
				s.join[i].encode(e, s.request, false)
			}
		})
	}
	if len(s.leave) > 0 {
		e.object("leave", func() {
			for i := range s.leave {
				s.leave[i].encode(e, s.request, true)
			}
		})
	}
	for _, section := range []struct {
		key, state string
		rooms      []strippedRoom
	}{{"invite", "invite_state", s.invite}, {"knock", "knock_state", s.knock}} {
		if len(section.rooms) == 0 {
			continue
		}
		e.object(section.key, func() {
			for _, r := range section.rooms {
				e.object(string(r.room), func() {
					events := make([]json.RawMessage, len(r.events))
					for i, ev := range r.events {
						events[i] = ev
					}
					e.events(section.state, events)
				})
			}
		})
	}
}

func (j *joinedRoom) encode(e *encoder, r *Request, left bool) {
	e.object(string(j.room), func() {
		e.events("account_data", j.accountData)
		if !left {
			e.events("ephemeral", j.ephemeral)
		}
		state := "state"
		if r.StateAfter {
			state = "state_after"
			if r.UnstableStateAfter {
				state = "org.matrix.msc4222.state_after"
			}
		}
		e.events(state, j.state)
		if !left {
			j.encodeSummary(e)
		}
		e.object("timeline", func() {
			e.key("events")
			e.open('[')
			for _, ev := range j.timeline {
				e.raw(ev)
			}
			e.close(']')
			e.key("limited")
			e.raw(strconv.AppendBool(nil, j.limited))
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
		e.users("m.heroes", j.summary.Heroes)
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
