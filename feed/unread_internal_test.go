package feed

import (
	"testing"

	"hanok/storage"
)

// A notification that is added late, for an event that was read meanwhile, does not count; one that follows on what is not known is not added.
func TestUnreadMemoryAdded(t *testing.T) {
	m := newUnreadMemory(nil)
	key := unreadRoom{user: 1, room: 2}
	m.rooms.Put(key, &unreadState{read: map[string]storage.Position{"": 10, "$t": 20}, at: 30, counted: 30})
	n := func(event storage.Position, thread string, highlight bool, pos storage.Position) storage.Notification {
		return storage.Notification{User: 1, Room: 2, EventPos: event, Thread: thread, Highlight: highlight, Pos: pos}
	}
	m.added([]storage.Notification{n(9, storage.MainThread, false, 31), n(11, storage.MainThread, true, 31), n(19, "$t", false, 31), n(21, "$t", false, 31)}, 25)
	m.added([]storage.Notification{n(40, storage.MainThread, false, 41)}, 35) // what came at 35 is missing
	m.added([]storage.Notification{n(12, storage.MainThread, false, 31)}, 25) // there already
	u, _ := m.rooms.Get(key)
	if u.counts.main != (unread{1, 1}) || len(u.counts.threads) != 1 || u.counts.threads["$t"] != (unread{1, 0}) || u.at != 31 {
		t.Errorf("%+v", u)
	}
}
