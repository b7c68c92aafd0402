package push

import (
	"context"
	"fmt"
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Details is what gateways are told of events beside their IDs, by pushers that ask for all there is.
type Details string

const (
	DetailsNone     Details = "none"     // nothing, as if the pusher had the format event_id_only
	DetailsMetadata Details = "metadata" // who and where, but not the content
	DetailsAll      Details = "all"      // the content too
)

const formatIDOnly = "event_id_only"

// composed is what a notification says about an event, the same for all receivers.
type composed struct {
	ids  []byte // members of the notification: what goes to pushers with the format event_id_only
	rest []byte // further members, "" or beginning with a comma
	high bool
}

// maxComposed is of how many events the composed form is kept; most go to many people at once.
const maxComposed = 256

// notification is the body of a request about an event. spec: push/notify
func (s *Sender) notification(ctx context.Context, p *users.Pusher, n storage.Notification, ev *rooms.Event, unread int64) ([]byte, error) {
	c, err := s.compose(ctx, p.UserID, n, ev)
	if err != nil {
		return nil, err
	}
	format, _ := canonicaljson.GetString(p.Data, "format")
	full := format != formatIDOnly && s.opts.Details != DetailsNone
	body := make([]byte, 0, 512+len(c.rest)+len(p.Data))
	body = append(body, `{"notification":{`...)
	body = append(body, c.ids...)
	if full {
		body = append(body, c.rest...)
		if ev.Is("m.room.member", string(p.UserID)) {
			body = append(body, `,"user_is_target":true`...)
		}
	}
	body = append(body, ',')
	body = appendPriority(body, c.high || len(n.Tweaks) > 0)
	body = appendCounts(body, unread)
	var tweaks []byte
	if full {
		if tweaks = n.Tweaks; tweaks == nil {
			tweaks = []byte("{}")
		}
	}
	return appendDevice(body, p, tweaks), nil
}

// countsOnly is the body of a request that sets the number shown at the app. spec: push/notify
func countsOnly(p *users.Pusher, unread int64) []byte {
	body := appendPriority([]byte(`{"notification":{`), false)
	return appendDevice(appendCounts(body, unread), p, nil)
}

func appendPriority(dst []byte, high bool) []byte {
	if high {
		return append(dst, `"prio":"high"`...)
	}
	return append(dst, `"prio":"low"`...)
}

// appendCounts tells zero too: gateways leave the number at the app as it is if there is none.
func appendCounts(dst []byte, unread int64) []byte {
	return append(strconv.AppendInt(append(dst, `,"counts":{"unread":`...), unread, 10), '}')
}

// appendDevice adds the device and closes the body. The tweaks are left out if they are nil.
func appendDevice(dst []byte, p *users.Pusher, tweaks []byte) []byte {
	dst = append(dst, `,"devices":[{"app_id":`...)
	dst = canonicaljson.AppendString(dst, p.AppID)
	dst = append(dst, `,"data":`...)
	dst = append(dst, canonicaljson.Delete(p.Data, "url")...)
	dst = append(dst, `,"pushkey":`...)
	dst = canonicaljson.AppendString(dst, p.PushKey)
	dst = append(dst, `,"pushkey_ts":`...)
	dst = strconv.AppendInt(dst, int64(p.SetAt)/1000, 10)
	if tweaks != nil {
		dst = append(append(dst, `,"tweaks":`...), tweaks...)
	}
	return append(dst, `}]}}`...)
}

func (s *Sender) compose(ctx context.Context, user matrix.UserID, n storage.Notification, ev *rooms.Event) (*composed, error) {
	invite := n.Thread == storage.InviteThread
	if c, ok := s.composed.Get(ev); ok && !invite {
		return c, nil
	}
	c := &composed{high: !ev.IsState()}
	members := func(dst []byte, first bool, pairs ...string) []byte {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i+1] == "" {
				continue
			}
			if !first {
				dst = append(dst, ',')
			}
			first = false
			dst = append(canonicaljson.AppendString(dst, pairs[i]), ':')
			dst = canonicaljson.AppendString(dst, pairs[i+1])
		}
		return dst
	}
	c.ids = members(nil, true, "event_id", string(ev.ID()), "room_id", string(ev.RoomID()))
	if s.opts.Details != DetailsNone {
		about, err := s.about(ctx, user, ev, invite)
		if err != nil {
			return nil, fmt.Errorf("compose a notification: %w", err)
		}
		name := about.name
		if name == "" {
			name = about.alias
		}
		// "id" is what "event_id" was called before.
		c.rest = members(nil, false, "id", string(ev.ID()), "type", ev.Type(), "sender", string(ev.Sender()), "sender_display_name", about.sender,
			"room_name", name, "room_alias", about.alias, "membership", ev.Membership())
		// Nobody on the way can read what is encrypted, and how it is is nobody's business.
		if s.opts.Details == DetailsAll && ev.Type() != "m.room.encrypted" {
			c.rest = append(append(c.rest, `,"content":`...), ev.Content()...)
		}
	}
	if !invite {
		s.composed.Put(ev, c)
	}
	return c, nil
}

// about is what a notification says about the room of an event.
type about struct{ name, alias, sender string }

// about reads the names of a room and of an event's sender: of an invite, those that came with it.
func (s *Sender) about(ctx context.Context, user matrix.UserID, ev *rooms.Event, invite bool) (a about, err error) {
	if invite {
		return s.aboutInvite(ctx, user, ev)
	}
	state, err := s.opts.Rooms.StateAtPosition(ctx, ev.RoomNID, s.opts.DB.Current())
	if err != nil {
		return a, err
	}
	events, err := state.Events(ctx, matrix.StateKey{Type: "m.room.name"}, matrix.StateKey{Type: "m.room.canonical_alias"},
		matrix.StateKey{Type: "m.room.member", Key: string(ev.Sender())})
	if err != nil {
		return a, err
	}
	for i, into := range []struct {
		text *string
		key  string
	}{{&a.name, "name"}, {&a.alias, "alias"}, {&a.sender, "displayname"}} {
		if events[i] != nil {
			*into.text, _ = events[i].ContentString(into.key)
		}
	}
	return a, nil
}

func (s *Sender) aboutInvite(ctx context.Context, user matrix.UserID, ev *rooms.Event) (a about, err error) {
	shown, err := s.opts.Rooms.InviteState(ctx, user, ev.RoomID())
	if err != nil {
		return a, err
	}
	for _, raw := range shown {
		stripped, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
		if err != nil {
			continue
		}
		content, _ := canonicaljson.GetObject(stripped, "content")
		key, _ := canonicaljson.GetString(stripped, "state_key")
		switch t, _ := canonicaljson.GetString(stripped, "type"); {
		case t == "m.room.name" && key == "":
			a.name, _ = canonicaljson.GetString(content, "name")
		case t == "m.room.canonical_alias" && key == "":
			a.alias, _ = canonicaljson.GetString(content, "alias")
		case t == "m.room.member" && key == string(ev.Sender()):
			a.sender, _ = canonicaljson.GetString(content, "displayname")
		}
	}
	return a, nil
}
