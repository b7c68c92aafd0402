package feed

import (
	"fmt"

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

// unread counts what the user has not read in a room.
func (s *syncer) unread(w *roomWork) (*unreadCounts, error) {
	user, err := s.DB.Intern(s.ctx, string(s.r.User))
	if err != nil {
		return nil, err
	}
	receipts, err := s.Users.Receipts.OfUser(s.ctx, s.DB, w.room, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	read := readUpTo(receipts)
	list, err := storage.UnreadNotifications(s.ctx, s.DB, user[0], w.nid, read[""], read[mainThread])
	if err != nil {
		return nil, err
	}
	counts := &unreadCounts{}
	for _, n := range list {
		if n.Pos > s.until || n.EventPos <= read[""] || n.EventPos <= read[n.Thread] {
			continue
		}
		if n.Thread == mainThread {
			counts.main.add(n.Highlight)
			continue
		}
		if counts.threads == nil {
			counts.threads = make(map[string]unread)
		}
		t := counts.threads[n.Thread]
		t.add(n.Highlight)
		counts.threads[n.Thread] = t
	}
	return counts, nil
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
