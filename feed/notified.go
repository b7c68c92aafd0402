package feed

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/matrix/pushrules"
	"hanok/rooms"
	"hanok/storage"
)

// NotifiedRequest asks for events that a user was notified about. spec: cs/getNotifications
type NotifiedRequest struct {
	User       matrix.UserID
	From       string // a token of the page before, "" for the first
	Limit      int
	Highlights bool // only those
}

// Notified is an event that a user was notified about.
type Notified struct {
	Event   *rooms.Event
	Actions []json.RawMessage // of the rule that matches it now
	Read    bool
}

// Notifications lists events that a user was notified about, the newest first, and the token of the next page, "" on the last.
// spec: cs/getNotifications
func (f *Feed) Notifications(ctx context.Context, q NotifiedRequest) ([]Notified, string, error) {
	at, err := parseNotificationToken(q.From)
	if err != nil {
		return nil, "", err
	}
	user, err := f.DB.Intern(ctx, string(q.User))
	if err != nil {
		return nil, "", err
	}
	list, err := storage.NotificationsBefore(ctx, f.DB, user[0], at[0], at[1], q.Highlights, q.Limit+1)
	if err != nil {
		return nil, "", err
	}
	next := ""
	if len(list) > q.Limit {
		list = list[:q.Limit]
		last := list[len(list)-1]
		next = notificationToken{last.Pos, last.EventPos}.String()
	}
	read := make(map[storage.RoomNID]map[string]storage.Position)
	var out []Notified
	for _, n := range list {
		ev, err := f.notifiedEvent(ctx, q.User, n)
		if err != nil {
			return nil, "", err
		}
		if ev == nil {
			continue
		}
		upTo := read[n.Room]
		if upTo == nil {
			receipts, err := f.Users.Receipts.OfUser(ctx, f.DB, ev.RoomID(), q.User)
			if err != nil {
				return nil, "", fmt.Errorf("receipts: %w", err)
			}
			upTo = readUpTo(receipts)
			read[n.Room] = upTo
		}
		actions, err := f.actions(ctx, q.User, ev, n.Highlight)
		if err != nil {
			return nil, "", err
		}
		out = append(out, Notified{ev, actions, n.EventPos <= upTo[""] || n.EventPos <= upTo[n.Thread]})
	}
	return out, next, nil
}

// notificationToken is a place in a user's notifications: when one was added, and for which event.
type notificationToken [2]storage.Position

func (t notificationToken) String() string {
	return "n" + strconv.FormatInt(int64(t[0]), 10) + "_" + strconv.FormatInt(int64(t[1]), 10)
}

func parseNotificationToken(s string) (t notificationToken, err error) {
	if s == "" {
		return notificationToken{math.MaxInt64, math.MaxInt64}, nil
	}
	rest, ok := strings.CutPrefix(s, "n")
	a, b, ok2 := strings.Cut(rest, "_")
	if ok && ok2 {
		if t[0], err = parsePosition(a); err == nil {
			t[1], err = parsePosition(b)
		}
	}
	if !ok || !ok2 || err != nil {
		return t, matrix.InvalidParam("%q is not a token of this list.", s)
	}
	return t, nil
}

// notifiedEvent is the event of a notification if the user may still see it, else nil.
func (f *Feed) notifiedEvent(ctx context.Context, user matrix.UserID, n storage.Notification) (*rooms.Event, error) {
	events, err := f.Rooms.EventsByNumber(ctx, n.Event)
	if err != nil || len(events) == 0 || events[0].RedactedBy != "" {
		return nil, err
	}
	visible, err := f.Rooms.Visible(ctx, user, events)
	if err != nil || len(visible) == 0 {
		return nil, err
	}
	return visible[0], nil
}

// actions are those of the rule that matches an event, or what is known of them if none does any more.
func (f *Feed) actions(ctx context.Context, user matrix.UserID, ev *rooms.Event, highlight bool) ([]json.RawMessage, error) {
	rules, err := f.Users.PushRules.Compiled(ctx, user)
	if err != nil {
		return nil, err
	}
	room, state, err := f.pushRoom(ctx, ev)
	if err != nil {
		return nil, err
	}
	member, err := state.Event(ctx, "m.room.member", string(user))
	if err != nil {
		return nil, err
	}
	if member != nil {
		room.DisplayName, _ = member.ContentString("displayname")
	}
	if outcome := rules.Evaluate(pushrules.Flatten(ev.Event), *room); outcome.Notify {
		return outcome.Actions, nil
	}
	out := []json.RawMessage{json.RawMessage(`"notify"`)}
	if highlight {
		out = append(out, json.RawMessage(`{"set_tweak":"highlight"}`))
	}
	return out, nil
}
