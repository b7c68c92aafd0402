package feed

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// unreadCounts are a room's unread notifications: in its main timeline and in each thread.
// spec: client-server-api#receiving-notifications
type unreadCounts struct {
	main    unread
	threads map[string]unread
}

type unread struct{ notify, highlight int64 }

func (u *unread) add(highlight bool) {
	u.notify++
	if highlight {
		u.highlight++
	}
}

func (c *unreadCounts) add(n storage.Notification) {
	if n.Thread == storage.InviteThread {
		return
	}
	if n.Thread == storage.MainThread {
		c.main.add(n.Highlight)
		return
	}
	if c.threads == nil {
		c.threads = make(map[string]unread)
	}
	t := c.threads[n.Thread]
	t.add(n.Highlight)
	c.threads[n.Thread] = t
}

// unreadMemory keeps the counts of rooms that were asked for. They are counted once from what is stored, and follow
// each notification that is added; after a receipt, or when an event with a notification is redacted, they are counted again.
type unreadMemory struct {
	db    *storage.DB
	mu    sync.Mutex
	rooms *recent.Map[unreadRoom, *unreadState]
}

type unreadRoom struct {
	user storage.NameNID
	room storage.RoomNID
}

// unreadState is immutable.
type unreadState struct {
	counts  unreadCounts
	read    map[string]storage.Position
	at      storage.Position // includes all notifications up to here
	counted storage.Position // and all receipts up to here
}

const maxUnreadRooms = 50_000

func newUnreadMemory(db *storage.DB) *unreadMemory {
	return &unreadMemory{db: db, rooms: recent.NewMap[unreadRoom, *unreadState](maxUnreadRooms)}
}

// get returns the counts as of a position or later, nil if they are not known.
func (m *unreadMemory) get(key unreadRoom, user matrix.UserID, room matrix.RoomID, until storage.Position) *unreadState {
	u, ok := m.rooms.Get(key)
	if !ok || !m.db.UnchangedIn(storage.UserNotifications(key.user, key.room), u.at, until) ||
		!m.db.UnchangedIn(storage.Subject{Topic: storage.TopicOwnReceipts, User: string(user), Room: string(room)}, u.counted, until) ||
		!m.db.UnchangedIn(storage.Subject{Topic: storage.TopicRedactedNotifications}, u.counted, until) {
		return nil
	}
	return u
}

// added are notifications of one user in one room that were added at one position. Before it, and after before, there were none.
func (m *unreadMemory) added(list []storage.Notification, before storage.Position) {
	key, pos := unreadRoom{list[0].User, list[0].Room}, list[0].Pos
	m.mu.Lock()
	defer m.mu.Unlock()
	u, ok := m.rooms.Peek(key)
	if !ok || u.at < before || u.at >= pos {
		return
	}
	next := *u
	next.at = pos
	next.counts.threads = maps.Clone(u.counts.threads)
	for _, n := range list {
		if !isRead(n, u.read) {
			next.counts.add(n)
		}
	}
	m.rooms.Put(key, &next)
}

func isRead(n storage.Notification, read map[string]storage.Position) bool {
	return n.EventPos <= read[""] || n.EventPos <= read[n.Thread]
}

// unread counts what the user has not read in a room.
func (s *syncer) unread(w *roomWork) (*unreadCounts, error) {
	user, err := s.DB.Intern(s.ctx, string(s.r.User))
	if err != nil {
		return nil, err
	}
	u, err := s.unreadIn(s.ctx, unreadRoom{user[0], w.nid}, s.r.User, w.room, s.until)
	if err != nil {
		return nil, err
	}
	return &u.counts, nil
}

// unreadIn is what a user has not read in a room, as of a position or later.
func (f *Feed) unreadIn(ctx context.Context, key unreadRoom, user matrix.UserID, room matrix.RoomID, until storage.Position) (*unreadState, error) {
	if u := f.unreads.get(key, user, room, until); u != nil {
		return u, nil
	}
	at := f.DB.Current()
	receipts, err := f.Users.Receipts.OfUser(ctx, f.DB, room, user)
	if err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	read := readUpTo(receipts)
	list, err := storage.UnreadNotifications(ctx, f.DB, key.user, key.room, read[""], read[storage.MainThread])
	if err != nil {
		return nil, err
	}
	u := &unreadState{read: read, at: at, counted: at}
	for _, n := range list {
		if n.Pos <= at && !isRead(n, read) {
			u.counts.add(n)
		}
	}
	f.unreads.mu.Lock()
	defer f.unreads.mu.Unlock()
	f.unreads.rooms.Put(key, u)
	return u, nil
}

// readUpTo is how far the receipts of a user reach: by thread, and "" for those that count for all of them.
// spec: client-server-api#threaded-read-receipts
func readUpTo(receipts []users.Receipt) map[string]storage.Position {
	read := make(map[string]storage.Position)
	for _, r := range receipts {
		if r.Type != users.ReceiptFullyRead {
			read[r.Thread] = max(read[r.Thread], storage.Position(r.Order))
		}
	}
	return read
}

func (u unread) encode(e *encoder) {
	e.key("highlight_count")
	e.int(u.highlight)
	e.key("notification_count")
	e.int(u.notify)
}

// total counts the main timeline and all threads.
func (c *unreadCounts) total() unread {
	total := c.main
	for _, t := range c.threads {
		total.notify += t.notify
		total.highlight += t.highlight
	}
	return total
}

func (c *unreadCounts) encode(e *encoder, threads bool) {
	total := c.main
	if !threads {
		total = c.total()
	}
	e.object("unread_notifications", func() { total.encode(e) })
	if threads && len(c.threads) > 0 {
		e.object("unread_thread_notifications", func() {
			for _, root := range sortedKeys(c.threads) {
				e.object(root, func() { c.threads[root].encode(e) })
			}
		})
	}
}
