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
		content, err := canonicaljson.Marshal(receiptContent(w.receipts))
		if err != nil {
			return fmt.Errorf("receipts: %w", err)
		}
		j.ephemeral = append(j.ephemeral, typedContent("m.receipt", content))
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

// receiptContent is the content of an m.receipt event: event, type, user. spec: client-server-api#mreceipt
func receiptContent(receipts []users.Receipt) map[matrix.EventID]map[string]map[matrix.UserID]any {
	type data struct {
		TS     matrix.Timestamp `json:"ts"`
		Thread string           `json:"thread_id,omitempty"`
	}
	content := make(map[matrix.EventID]map[string]map[matrix.UserID]any)
	for _, r := range receipts {
		types := content[r.EventID]
		if types == nil {
			types = make(map[string]map[matrix.UserID]any)
			content[r.EventID] = types
		}
		if types[r.Type] == nil {
			types[r.Type] = make(map[matrix.UserID]any)
		}
		// One user may have several receipts on one event; the unthreaded one says the most.
		if old, ok := types[r.Type][r.User].(data); ok && old.Thread == "" {
			continue
		}
		types[r.Type][r.User] = data{r.At, r.Thread}
	}
	return content
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
		if p.Position > s.until || p.User != s.r.User && !s.shares(p.User) || !filter.Accepts("m.presence", string(p.User)) {
			continue
		}
		content, err := canonicaljson.Marshal(PresenceContent(p, time.UnixMilli(int64(s.now))))
		if err != nil {
			return nil, fmt.Errorf("presence: %w", err)
		}
		ev := append([]byte(`{"content":`), content...)
		ev = append(ev, `,"sender":`...)
		ev = canonicaljson.AppendString(ev, string(p.User))
		out = append(out, append(ev, `,"type":"m.presence"}`...))
	}
	return filter.newest(out), s.sharingErr
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
