package feed

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/users"
)

// ephemeral adds receipts and typing to a room.
func (s *syncer) ephemeral(j *joinedRoom, w *roomWork) error {
	filter := &s.r.Filter.Room.Ephemeral
	if len(w.receipts) > 0 && filter.Accepts("m.receipt", "") {
		j.ephemeral = append(j.ephemeral, typedContent("m.receipt", users.ReceiptContent(w.receipts)))
	}
	if w.typing && filter.Accepts("m.typing", "") {
		typing, _ := s.Typing.Users(w.room)
		event, err := typingEvent(typing)
		if err != nil {
			return err
		}
		j.ephemeral = append(j.ephemeral, event)
	}
	j.ephemeral = filter.newest(j.ephemeral)
	return nil
}

// typingEvent says who types. spec: client-server-api#mtyping
func typingEvent(typing []matrix.UserID) (json.RawMessage, error) {
	content, err := canonicaljson.Marshal(map[string][]matrix.UserID{"user_ids": append([]matrix.UserID{}, typing...)})
	if err != nil {
		return nil, fmt.Errorf("typing: %w", err)
	}
	return typedContent("m.typing", content), nil
}

// typedContent is an event that has nothing but a type and content.
func typedContent(eventType string, content []byte) json.RawMessage {
	out := append(make([]byte, 0, len(content)+len(eventType)+24), `{"content":`...)
	out = append(out, content...)
	out = append(out, `,"type":`...)
	out = canonicaljson.AppendString(out, eventType)
	return append(out, '}')
}

// presence adds the presence of people the user shares rooms with, and the user's own.
func (s *syncer) presence() ([]json.RawMessage, error) {
	filter := &s.r.Filter.Presence
	var out []json.RawMessage
	changed := s.Users.Presence.Changed(s.since)
	slices.Reverse(changed)
	for u := range s.lists.joined { // people who came into sight
		if p := s.Users.Presence.Get(u); p.Position != 0 && p.Position <= s.since {
			changed = append(changed, p)
		}
	}
	for _, p := range changed {
		if p.Position > s.until || !s.seesPresence(p) || !filter.Accepts("m.presence", string(p.User)) {
			continue
		}
		event, err := presenceEvent(p, time.UnixMilli(int64(s.now)), false)
		if err != nil {
			return nil, err
		}
		out = append(out, event)
	}
	return filter.newest(out), s.sharingErr
}

// seesPresence says whether the user is told of a presence.
func (s *syncer) seesPresence(p users.PresenceState) bool {
	if p.User == s.r.User || s.shares(p.User) {
		return true
	}
	if p.Unplaced && s.partialServers == nil {
		servers, err := s.Rooms.PartialServers(s.ctx, s.r.User)
		if err != nil {
			s.sharingErr = fmt.Errorf("servers sharing a room: %w", err)
		}
		s.partialServers = append([]matrix.ServerName{}, servers...)
	}
	return p.AmongPartial(s.partialServers)
}

// presenceEvent says how present somebody is; named: the content names the user, too. spec: client-server-api#mpresence
func presenceEvent(p users.PresenceState, now time.Time, named bool) (json.RawMessage, error) {
	content, err := canonicaljson.Marshal(PresenceContent(p, now))
	if err != nil {
		return nil, fmt.Errorf("presence: %w", err)
	}
	user := canonicaljson.AppendString(nil, string(p.User))
	if named {
		content = canonicaljson.Set(content, "user_id", user)
	}
	event := append([]byte(`{"content":`), content...)
	event = append(event, `,"sender":`...)
	event = append(event, user...)
	return append(event, `,"type":"m.presence"}`...), nil
}

// Presence is the content of an m.presence event, and the answer of cs/getPresence.
type Presence struct {
	Presence        string `json:"presence"`
	LastActiveAgo   *int64 `json:"last_active_ago,omitempty"` // ms
	StatusMsg       string `json:"status_msg,omitempty"`
	CurrentlyActive *bool  `json:"currently_active,omitempty"`
}

// PresenceContent shows a presence as of now. spec: client-server-api#mpresence
func PresenceContent(p users.PresenceState, now time.Time) Presence {
	out := Presence{Presence: p.State, StatusMsg: p.StatusMsg}
	if !p.LastActive.IsZero() {
		ago := max(0, now.Sub(p.LastActive).Milliseconds())
		out.LastActiveAgo = &ago
	}
	if p.State == "online" {
		active := p.Active
		out.CurrentlyActive = &active
	}
	return out
}
