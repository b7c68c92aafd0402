package appservice

import (
	"context"
	"slices"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// interest knows which rooms a service is interested in, as of where its reader has come in the stream: so what concerned it while it was down
// still does when it is back. Of a room one member is remembered who belongs to the service; only when that one leaves is
// another looked for. The reader alone asks, forget is called from anywhere.
// spec: application-service-api#registration
type interest struct {
	service *Service
	known   *recent.Map[storage.RoomNID, *roomInterest]
	aliases *storage.Memo[storage.RoomNID, bool]

	mu    sync.Mutex
	stale map[storage.RoomNID]bool
}

type roomInterest struct {
	all    bool          // the room's ID is in a namespace
	member matrix.UserID // a joined user of the service; "": there is none
}

const (
	// maxInterests is of how many rooms is remembered whether they are interesting.
	maxInterests = 20_000
	// maxStale bounds what waits to be forgotten; beyond it all is.
	maxStale = 10_000
)

func newInterest(x *Service, db *storage.DB) *interest {
	return &interest{
		service: x, known: recent.NewMap[storage.RoomNID, *roomInterest](maxInterests),
		aliases: storage.NewMemo[storage.RoomNID, bool](db, maxInterests), stale: make(map[storage.RoomNID]bool),
	}
}

// forget has a room looked at again: who is in it may have changed without an event that says so (state resolution).
func (i *interest) forget(room storage.RoomNID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.stale) < maxStale {
		i.stale[room] = true
	}
}

// refresh drops what is to be forgotten.
func (i *interest) refresh() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.stale) == 0 {
		return
	}
	if len(i.stale) == maxStale {
		i.known.Clear()
	}
	for room := range i.stale {
		i.known.Remove(room)
	}
	clear(i.stale)
}

// concerns reports whether an event of the timeline concerns the service: its target or its sender is one of the service's users, one of
// them is in the room, or the room itself is in a namespace. Events come in order.
func (i *interest) concerns(ctx context.Context, engine *rooms.Engine, ev *rooms.Event) (bool, error) {
	known, ok := i.known.Get(ev.RoomNID)
	if !ok {
		member, err := engine.LocalMemberAt(ctx, ev, i.service.OwnsUser)
		if err != nil {
			return false, err
		}
		known = &roomInterest{all: within(i.service.Rooms, string(ev.RoomID())), member: member}
		i.known.Put(ev.RoomNID, known)
	}
	concerned := known.all || known.member != "" || i.service.OwnsUser(ev.Sender())
	if user, ok := target(ev); ok && i.service.OwnsUser(user) {
		concerned = true
		switch {
		case ev.Membership() == "join":
			known.member = user
		case known.member == user:
			i.known.Remove(ev.RoomNID) // somebody else may still be there
		}
	}
	if concerned {
		return true, nil
	}
	return i.byAlias(ctx, engine, ev.RoomNID)
}

// room reports whether what happens in a room now concerns the service.
func (i *interest) room(ctx context.Context, engine *rooms.Engine, id matrix.RoomID) (bool, error) {
	nid, err := engine.RoomNID(ctx, id)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if known, ok := i.known.Get(nid); ok && (known.all || known.member != "") {
		return true, nil
	}
	local, err := engine.LocalUsers(ctx, id)
	if err != nil {
		return false, err
	}
	if within(i.service.Rooms, string(id)) || slices.ContainsFunc(local, i.service.OwnsUser) {
		return true, nil
	}
	return i.byAlias(ctx, engine, nid)
}

// byAlias reports whether a room has an alias in the service's namespaces.
func (i *interest) byAlias(ctx context.Context, engine *rooms.Engine, room storage.RoomNID) (bool, error) {
	if len(i.service.Aliases) == 0 {
		return false, nil
	}
	return i.aliases.Get(room, storage.Subject{Topic: storage.TopicAliases}, func() (bool, error) {
		list, err := engine.LocalAliases(ctx, room)
		for _, alias := range list {
			if i.service.OwnsAlias(alias) {
				return true, nil
			}
		}
		return false, err
	})
}

// target is whose membership an event is.
func target(ev *rooms.Event) (matrix.UserID, bool) {
	key, isState := ev.StateKey()
	return matrix.UserID(key), isState && ev.Type() == "m.room.member"
}
