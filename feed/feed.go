package feed

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"hanok/internal/recent"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Options are what a Feed works with. All fields are required unless noted.
type Options struct {
	DB    *storage.DB
	Rooms *rooms.Engine
	Users *users.Service
	Hub   *Hub
	// SendTyping tells other servers that a local user types or stops; nil without federation. It must not block.
	SendTyping func(ctx context.Context, room matrix.RoomID, user matrix.UserID, typing bool)
	// Notified is told, after the commit, of users who have new notifications, and Recounted of those who may have fewer unread
	// messages because events were redacted; nil for nobody. They must not block.
	Notified  func(users ...matrix.UserID)
	Recounted func(users ...storage.NameNID)
	Log       zerolog.Logger
}

// Feed makes what clients are told.
type Feed struct {
	Options
	// Typing knows who is typing; federation feeds it too.
	Typing  *Typing
	lazy    *lazyMemory
	unreads *unreadMemory
	totals  *totals
	// connections are those of sliding sync.
	connections *connections
	pastTraits  *traitsCache
	lists       *recent.Map[connectionOwner, *keptList]
}

// New makes a feed.
func New(o Options) *Feed {
	if o.Notified == nil {
		o.Notified = func(...matrix.UserID) {}
	}
	if o.Recounted == nil {
		o.Recounted = func(...storage.NameNID) {}
	}
	f := &Feed{Options: o, lazy: newLazyMemory(), unreads: newUnreadMemory(o.DB), totals: newTotals(), connections: newConnections(o.DB), pastTraits: newTraitsCache(), lists: newListMemory()}
	f.Typing = NewTyping(o.DB, f.wakeRoom)
	return f
}

// Hub wakes long polls. It exists before the engine and the services that call it:
// it is the Listener of rooms and the Notifier of users.
type Hub struct {
	*Waiters
	activity *activity
	members  func(room matrix.RoomID) []matrix.UserID
	others   func()
	news     chan struct{} // holds a token when there are events that Feed.Run has not seen
	states   chan struct{} // the same of states of rooms and Feed.FollowDirectory
}

// NewHub makes a hub; members lists the local members of a room when an update names only the room. others wakes who follows what happens besides
// events without a long poll, and must not block; nil for nobody.
func NewHub(members func(room matrix.RoomID) []matrix.UserID, others func()) *Hub {
	if others == nil {
		others = func() {}
	}
	return &Hub{Waiters: NewWaiters(), activity: newActivity(), members: members, others: others, news: make(chan struct{}, 1), states: make(chan struct{}, 1)}
}

// RoomUpdated wakes who is told of a commit: local members, and users whose membership it changed.
func (h *Hub) RoomUpdated(u *rooms.Update) {
	h.activity.note(u)
	h.Wake(u.Local...)
	h.Wake(peekers(u.Room))
	for _, m := range u.Memberships {
		if m.Local {
			h.Wake(m.User)
		}
	}
	wake.Up(h.news)
	if u.NewState {
		wake.Up(h.states)
	}
}

// peekers stands for those who wait for a room without being in it. No user has the ID of a room.
func peekers(room matrix.RoomID) matrix.UserID { return matrix.UserID(room) }

// WakeUsers wakes users.
func (h *Hub) WakeUsers(users ...matrix.UserID) {
	h.Wake(users...)
	h.others()
}

// WakeRoom wakes the local members of a room, and who looks into it.
func (h *Hub) WakeRoom(room matrix.RoomID) {
	h.Wake(h.members(room)...)
	h.Wake(peekers(room))
	h.others()
}

func (f *Feed) wakeRoom(room matrix.RoomID) { f.Hub.WakeRoom(room) }

// SetTyping starts or stops a local user's typing notice in a room; the caller has checked that the user is in it.
// spec: cs/setTyping
func (f *Feed) SetTyping(ctx context.Context, room matrix.RoomID, user matrix.UserID, typing bool, d time.Duration) error {
	var changed bool
	if typing {
		f.Typing.Start(room, user, d)
		changed = true // other servers time notices out by themselves: repeat them
	} else {
		changed = f.Typing.Stop(room, user)
	}
	if changed && f.SendTyping != nil {
		f.SendTyping(ctx, room, user, typing)
	}
	return nil
}
