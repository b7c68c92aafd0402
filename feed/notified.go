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
	Actions []json.RawMessage // of the rule that matched it
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
		isRead := isRead(n, upTo)
		if n.Thread == storage.InviteThread {
			if isRead, err = f.inviteIsOver(ctx, q.User, ev); err != nil {
				return nil, "", err
			}
		}
		out = append(out, Notified{ev, pushrules.Actions(n.Tweaks), isRead})
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
	if n.Thread == storage.InviteThread {
		return events[0], nil // the room's history may well be hidden
	}
	visible, err := f.Rooms.Visible(ctx, user, events)
	if err != nil || len(visible) == 0 {
		return nil, err
	}
	return visible[0], nil
}

// inviteIsOver says whether an invite has been accepted, refused or taken back.
func (f *Feed) inviteIsOver(ctx context.Context, user matrix.UserID, invite *rooms.Event) (bool, error) {
	all, err := f.Rooms.UserRooms(ctx, user)
	if err != nil {
		return false, err
	}
	m, _ := all.In(invite.RoomID())
	return m.Membership != "invite" || m.Event != invite.ID(), nil
}
