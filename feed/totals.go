package feed

import (
	"context"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// totals remembers in which rooms users have unread messages, so that to count them takes as long as there are such rooms.
type totals struct {
	users *recent.Map[storage.NameNID, *total]
}

type total struct {
	mu    sync.Mutex
	known bool
	at    storage.Position         // up to here rooms has all that it should
	rooms map[storage.RoomNID]bool // those that may have something unread
}

const maxTotals = 50_000

func newTotals() *totals {
	return &totals{recent.NewMap[storage.NameNID, *total](maxTotals)}
}

func (t *totals) of(user storage.NameNID) *total {
	return t.users.GetOrPut(user, func() *total { return &total{rooms: make(map[storage.RoomNID]bool)} })
}

// UnreadTotal is the number of unread messages that a user has in all rooms they are in, by the same counts as each room's.
// spec: push/notify counts.unread
func (f *Feed) UnreadTotal(ctx context.Context, user matrix.UserID) (int64, error) {
	nids, err := f.DB.Intern(ctx, string(user))
	if err != nil {
		return 0, err
	}
	joined, err := f.Rooms.UserRooms(ctx, user)
	if err != nil {
		return 0, err
	}
	t := f.totals.of(nids[0])
	t.mu.Lock()
	defer t.mu.Unlock()
	until := f.DB.Current()
	if err := f.addNotifiedRooms(ctx, t, nids[0], until); err != nil {
		return 0, err
	}
	var sum int64
	for nid := range t.rooms {
		room := joined.RoomID(nid)
		if room == "" {
			continue // left; what is unread there counts again after a return
		}
		u, err := f.unreadIn(ctx, unreadRoom{nids[0], nid}, user, room, until)
		if err != nil {
			return 0, err
		}
		n := u.counts.total().notify
		if n == 0 {
			delete(t.rooms, nid)
		}
		sum += n
	}
	return sum, nil
}

// addNotifiedRooms brings the rooms that may have something unread up to date.
func (f *Feed) addNotifiedRooms(ctx context.Context, t *total, user storage.NameNID, until storage.Position) (err error) {
	var found []storage.RoomNID
	switch {
	case !t.known:
		found, err = storage.RoomsWithNotifications(ctx, f.DB, user)
	case !f.DB.UnchangedIn(storage.Subject{Topic: storage.TopicNotified, UserNID: user}, t.at, until):
		found, err = storage.NotifiedRooms(ctx, f.DB, user, t.at, until)
	}
	if err != nil {
		return err
	}
	for _, nid := range found {
		t.rooms[nid] = true
	}
	t.known, t.at = true, max(t.at, until)
	return nil
}

// ToPush returns the event of a notification if it is still worth telling its user of: not read, not redacted, in a room that the
// user is still in or still invited to. Otherwise nil.
func (f *Feed) ToPush(ctx context.Context, user matrix.UserID, n storage.Notification) (*rooms.Event, error) {
	events, err := f.Rooms.EventsByNumber(ctx, n.Event)
	if err != nil || len(events) == 0 || events[0].RedactedBy != "" {
		return nil, err
	}
	ev := events[0]
	if n.Thread == storage.InviteThread {
		if over, err := f.inviteIsOver(ctx, user, ev); over || err != nil {
			return nil, err
		}
		return ev, nil
	}
	joined, err := f.Rooms.UserRooms(ctx, user)
	if err != nil || joined.RoomID(n.Room) == "" {
		return nil, err
	}
	u, err := f.unreadIn(ctx, unreadRoom{n.User, n.Room}, user, ev.RoomID(), f.DB.Current())
	if err != nil || isRead(n, u.read) {
		return nil, err
	}
	return ev, nil
}
