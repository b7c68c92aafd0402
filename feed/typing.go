package feed

import (
	"slices"
	"sync"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// MaxTyping bounds how long one typing notice lasts, whatever the client asks for.
const MaxTyping = 2 * time.Minute

// Positions gives a place in the stream to what lives in memory only; *storage.DB does.
type Positions interface {
	EphemeralPosition(place func(storage.Position), onVisible func())
}

// Typing knows who is typing where. It lives in memory: after a restart nobody types.
// spec: client-server-api#typing-notifications
type Typing struct {
	positions Positions
	wakeRoom  func(matrix.RoomID)

	mu     sync.Mutex
	rooms  map[matrix.RoomID]*typingRoom
	recent storage.Recency[matrix.RoomID]
}

// maxTypingRooms is of how many rooms is remembered that somebody typed. Those where somebody does are kept whatever their number.
const maxTypingRooms = 10_000

// maxTypists is of how many users in one room it is told that they type: nobody reads more names, and everybody there is told of all of
// them whenever one begins or ends.
const maxTypists = 100

type typingRoom struct {
	users   map[matrix.UserID]*time.Timer
	changed storage.Position // of the last change
}

// NewTyping makes the tracker; wakeRoom is called after each visible change.
func NewTyping(p Positions, wakeRoom func(matrix.RoomID)) *Typing {
	return &Typing{positions: p, wakeRoom: wakeRoom, rooms: make(map[matrix.RoomID]*typingRoom)}
}

// Start says that a user types for a while; again prolongs it. It reports whether the user was not typing before.
func (t *Typing) Start(room matrix.RoomID, user matrix.UserID, d time.Duration) (changed bool) {
	r, changed := t.start(room, user, min(d, MaxTyping))
	if changed {
		t.publish(room, r)
	}
	return changed
}

func (t *Typing) start(room matrix.RoomID, user matrix.UserID, d time.Duration) (*typingRoom, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[room]
	if r == nil {
		r = &typingRoom{users: make(map[matrix.UserID]*time.Timer)}
		t.rooms[room] = r
	}
	timer, typing := r.users[user]
	if typing && timer.Stop() {
		timer.Reset(d)
		return r, false
	}
	if !typing && len(r.users) == maxTypists {
		return r, false
	}
	timer = time.AfterFunc(d, func() { t.end(room, user, &timer) })
	r.users[user] = timer
	return r, true
}

// Stop says that a user no longer types. It reports whether the user was typing.
func (t *Typing) Stop(room matrix.RoomID, user matrix.UserID) (changed bool) {
	return t.end(room, user, nil)
}

// end ends a user's notice; with a timer, only if it is still that timer's: it may have been
// replaced while it fired.
func (t *Typing) end(room matrix.RoomID, user matrix.UserID, only **time.Timer) bool {
	t.mu.Lock()
	r := t.rooms[room]
	if r == nil || r.users[user] == nil || only != nil && r.users[user] != *only {
		t.mu.Unlock()
		return false
	}
	r.users[user].Stop()
	delete(r.users, user)
	t.mu.Unlock()
	t.publish(room, r)
	return true
}

// publish runs without the lock: the position may become visible at once.
func (t *Typing) publish(room matrix.RoomID, r *typingRoom) {
	t.positions.EphemeralPosition(func(pos storage.Position) {
		t.mu.Lock()
		defer t.mu.Unlock()
		r.changed = pos
		t.rooms[room] = r
		t.recent.Touch(room, pos)
		if t.recent.Len() > maxTypingRooms {
			if oldest, _ := t.recent.Oldest(); len(t.rooms[oldest].users) == 0 {
				t.recent.Forget(oldest)
				delete(t.rooms, oldest)
			}
		}
	}, func() { t.wakeRoom(room) })
}

// Changed lists the rooms where somebody began or ceased to type after a position.
func (t *Typing) Changed(since storage.Position) []matrix.RoomID {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.recent.Since(since)
}

// Users lists who types in a room, sorted, and since which position that is so.
func (t *Typing) Users(room matrix.RoomID) ([]matrix.UserID, storage.Position) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r := t.rooms[room]
	if r == nil {
		return nil, 0
	}
	out := make([]matrix.UserID, 0, len(r.users))
	for u := range r.users {
		out = append(out, u)
	}
	slices.Sort(out)
	return out, r.changed
}
