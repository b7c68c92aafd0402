package storage

import (
	"sync"

	"hanok/internal/recent"
)

// Topic names a kind of data whose changes are remembered.
type Topic uint8

const (
	TopicAccountData           Topic = iota + 1 // of a user: account data and push rules
	TopicToDevice                               // messages to devices of a user
	TopicKeys                                   // one-time and fallback keys of a user
	TopicReceipts                               // of anybody
	TopicOwnReceipts                            // of a user in a room
	TopicDeviceLists                            // of anybody
	TopicPrivateKeys                            // what only one user may see of others' keys
	TopicNotified                               // notifications of a user in any room
	TopicNotifications                          // notifications of a user in a room
	TopicRedactedNotifications                  // notifications that went with their event, of anybody
	TopicSticky                                 // sticky events of any room
	TopicRoomSticky                             // sticky events of a room
	TopicInvites                                // of anybody
	TopicPushers                                // of a user
	TopicAliases                                // of any room
	TopicApart                                  // memberships of local users in rooms that this server is not in
)

// Subject is what changed: of the fields, those that its topic needs.
type Subject struct {
	Topic      Topic
	User, Room string
	UserNID    NameNID
	RoomNID    RoomNID
}

// changes remembers when what last changed, so that who follows the stream closely need not ask the database for each thing
// that did not. A change is noted by the function that stores it, before anybody can see it, so the answer "not changed"
// is always true; "changed" may be said of what was undone or forgotten.
//
// Several processes on one database will have to send their notes along with their wake-ups.
type changes struct {
	mu    sync.Mutex
	floor Position // before it, anything may have changed
	// Notes are forgotten by generation.
	young, old map[Subject]noted
	oldLast    Position // the last note in old
	youngLast  Position
}

// noted is when a subject changed last, and when before that, at the latest.
type noted struct{ last, before Position }

// maxChanges is the size of one generation of notes, of some 100 bytes each.
const maxChanges = 50_000

func (c *changes) start(floor Position) {
	c.floor, c.young, c.old = floor, make(map[Subject]noted), nil
}

func (c *changes) get(s Subject) noted {
	if n, ok := c.young[s]; ok {
		return n
	}
	if n, ok := c.old[s]; ok {
		return n
	}
	return noted{c.floor, c.floor}
}

// note remembers a change at a position and returns when the subject had changed before, at the latest.
func (c *changes) note(s Subject, pos Position, taken func() Position) (before Position) {
	c.mu.Lock()
	defer c.mu.Unlock()
	was := c.get(s)
	n := noted{pos, was.last}
	switch {
	case pos == was.last: // the same transaction
		return was.last
	case pos < was.last:
		// A transaction that began earlier and ends later: who looked in between has not seen it.
		n.last = taken() + 1
		n.before = n.last
	}
	if len(c.young) >= maxChanges {
		c.floor = max(c.floor, c.oldLast)
		c.old, c.oldLast = c.young, c.youngLast
		c.young = make(map[Subject]noted)
	}
	c.young[s] = n
	c.youngLast = max(c.youngLast, n.last)
	return was.last
}

// Unchanged reports that a subject has not changed since the stream stood at a position, and no change is under way.
func (db *DB) Unchanged(s Subject, since Position) bool {
	return db.changes.unchanged(s, since, EndOfStream)
}

// UnchangedIn reports that a subject did not change in (since, until].
func (db *DB) UnchangedIn(s Subject, since, until Position) bool {
	return db.changes.unchanged(s, since, until)
}

func (c *changes) unchanged(s Subject, since, until Position) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.get(s)
	return since >= n.last || n.last > until && since >= n.before
}

// note remembers that a transaction changes something at one of its positions.
func (tx *Tx) note(pos Position, subjects ...Subject) (before Position) {
	for _, s := range subjects {
		before = max(before, tx.stream.changes.note(s, pos, tx.stream.taken))
	}
	return before
}

// noteNext is note for changes that have no position of their own.
func (tx *Tx) noteNext(subjects ...Subject) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	tx.note(pos, subjects...)
	return nil
}

// Memo remembers values that are read from the database, each until its subject changes.
type Memo[K comparable, V any] struct {
	db      *DB
	entries *recent.Map[K, memoEntry[V]]
}

type memoEntry[V any] struct {
	value V
	at    Position // as of which it is true, or later
}

// NewMemo makes an empty memo of limited size.
func NewMemo[K comparable, V any](db *DB, size int) *Memo[K, V] {
	return &Memo[K, V]{db, recent.NewMap[K, memoEntry[V]](size)}
}

// Forget drops a value that changed without its subject.
func (m *Memo[K, V]) Forget(key K) { m.entries.Remove(key) }

// Get returns the current value, by load if it is not known. The value is shared: do not change it.
func (m *Memo[K, V]) Get(key K, subject Subject, load func() (V, error)) (V, error) {
	if e, ok := m.entries.Get(key); ok && m.db.Unchanged(subject, e.at) {
		return e.value, nil
	}
	at := m.db.Current()
	value, err := load()
	if err == nil {
		m.entries.Put(key, memoEntry[V]{value, at})
	}
	return value, err
}
