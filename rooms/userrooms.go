package rooms

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"hanok/matrix"
	"hanok/storage"
)

// userRooms remembers the memberships of users who sync, which ask for them again and again.
//
// A list must never be older than the stream position that its reader believes to see. So a user whose membership is about
// to change is held from before the commit until the change is published: while held, their list is read from the database.
type userRooms struct {
	mu     sync.Mutex
	size   int // memberships in lists
	byUser map[matrix.UserID]*userList
	held   map[matrix.UserID]int
}

// userList is all memberships of one user. Immutable once it is ready.
type userList struct {
	ready  bool
	all    []Membership // forgotten rooms included, the last changed first
	known  []Membership // without them
	joined map[storage.RoomNID]matrix.RoomID
	byRoom map[matrix.RoomID]int // in all
}

// maxUserRooms bounds the memberships remembered, of some 200 bytes each.
const maxUserRooms = 100_000

func newUserRooms() *userRooms {
	return &userRooms{byUser: make(map[matrix.UserID]*userList), held: make(map[matrix.UserID]int)}
}

func (c *userRooms) drop(user matrix.UserID) {
	if l := c.byUser[user]; l != nil {
		c.size -= len(l.all)
		delete(c.byUser, user)
	}
}

func (c *userRooms) hold(users []matrix.UserID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range users {
		c.held[u]++
		c.drop(u)
	}
}

func (c *userRooms) release(users []matrix.UserID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range users {
		if c.held[u]--; c.held[u] == 0 {
			delete(c.held, u)
		}
	}
}

// get returns a user's list, by load if it is not known.
func (c *userRooms) get(user matrix.UserID, load func() (*userList, error)) (*userList, error) {
	c.mu.Lock()
	known := c.byUser[user]
	if known != nil && known.ready {
		c.mu.Unlock()
		return known, nil
	}
	var place *userList
	if known == nil && c.held[user] == 0 {
		place = &userList{}
		c.byUser[user] = place
	}
	c.mu.Unlock()
	list, err := load()
	if place == nil {
		return list, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byUser[user] != place {
		return list, err // the user was held meanwhile
	}
	delete(c.byUser, user)
	if err != nil {
		return nil, err
	}
	if c.size += len(list.all); c.size > maxUserRooms {
		clear(c.byUser)
		c.size = len(list.all)
	}
	c.byUser[user] = list
	return list, nil
}

// userList reads all memberships of a user.
func (e *Engine) userList(ctx context.Context, user matrix.UserID) (*userList, error) {
	return e.userRooms.get(user, func() (*userList, error) {
		rows, err := e.membershipRows(ctx, user, func(storage.MembershipRow) bool { return true })
		if err != nil {
			return nil, err
		}
		all, err := e.memberships(ctx, rows)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(all, func(a, b Membership) int { return cmp.Compare(b.Position, a.Position) })
		l := &userList{ready: true, all: all, known: all, joined: make(map[storage.RoomNID]matrix.RoomID), byRoom: make(map[matrix.RoomID]int, len(all))}
		if slices.ContainsFunc(all, func(m Membership) bool { return m.Forgotten }) {
			l.known = slices.DeleteFunc(slices.Clone(all), func(m Membership) bool { return m.Forgotten })
		}
		for i, m := range all {
			l.byRoom[m.Room] = i
			if m.Membership == "join" {
				l.joined[m.RoomNID] = m.Room
			}
		}
		return l, nil
	})
}

// Memberships lists a local user's rooms; with no filter every membership. Forgotten rooms are left out.
// The list is shared: do not change it.
func (e *Engine) Memberships(ctx context.Context, user matrix.UserID, memberships ...string) ([]Membership, error) {
	l, err := e.userList(ctx, user)
	if err != nil {
		return nil, err
	}
	if len(memberships) == 0 {
		return slices.Clip(l.known), nil
	}
	var out []Membership
	for _, m := range l.known {
		if slices.Contains(memberships, m.Membership) {
			out = append(out, m)
		}
	}
	return out, nil
}

// UserRooms are a local user's memberships at one moment. They are shared: do not change them.
type UserRooms struct{ list *userList }

// UserRooms returns a user's memberships.
func (e *Engine) UserRooms(ctx context.Context, user matrix.UserID) (UserRooms, error) {
	l, err := e.userList(ctx, user)
	return UserRooms{l}, err
}

// All are the memberships without those of forgotten rooms, the last changed first.
func (u UserRooms) All() []Membership { return slices.Clip(u.list.known) }

// Since are the memberships that changed after a position, those of forgotten rooms included.
func (u UserRooms) Since(pos storage.Position) []Membership {
	n := 0
	for n < len(u.list.all) && u.list.all[n].Position > pos {
		n++
	}
	return u.list.all[:n:n]
}

// MembershipsSince lists those that changed after a position, forgotten rooms included.
func (e *Engine) MembershipsSince(ctx context.Context, user matrix.UserID, since storage.Position) ([]Membership, error) {
	all, err := e.UserRooms(ctx, user)
	if err != nil {
		return nil, err
	}
	return all.Since(since), nil
}

// In is the membership in one room.
func (u UserRooms) In(room matrix.RoomID) (Membership, bool) {
	i, ok := u.list.byRoom[room]
	if !ok {
		return Membership{}, false
	}
	return u.list.all[i], true
}

// RoomID names a joined room; "" if the user is not joined to it.
func (u UserRooms) RoomID(nid storage.RoomNID) matrix.RoomID { return u.list.joined[nid] }

// JoinedRooms lists the rooms a user is joined to. spec: cs/getJoinedRooms
func (e *Engine) JoinedRooms(ctx context.Context, user matrix.UserID) ([]matrix.RoomID, error) {
	l, err := e.userList(ctx, user)
	if err != nil {
		return nil, err
	}
	out := make([]matrix.RoomID, 0, len(l.joined))
	for _, m := range l.all {
		if m.Membership == "join" {
			out = append(out, m.Room)
		}
	}
	return out, nil
}

// ChangedRooms lists the rooms a user is joined to that changed in (since, until], in no order. It may list a few that did not.
func (e *Engine) ChangedRooms(ctx context.Context, user matrix.UserID, since, until storage.Position) ([]matrix.RoomID, error) {
	l, err := e.userList(ctx, user)
	if err != nil {
		return nil, err
	}
	out := []matrix.RoomID{}
	if e.recent.changed(since, until, func(nid storage.RoomNID) {
		if id, ok := l.joined[nid]; ok {
			out = append(out, id)
		}
	}) {
		return out, nil
	}
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	nids, err := storage.ChangedRooms(ctx, e.db, nid, since)
	if err != nil {
		return nil, err
	}
	return e.roomIDs(ctx, nids)
}

// recentChanges remembers which rooms changed last, so that who follows the stream closely does not have to look at all their rooms.
// What is about to be committed is noted before: a change is never missing from here once it is visible.
type recentChanges struct {
	mu    sync.Mutex
	since storage.Position // everything after this is in the list
	list  []recentChange   // batch by batch
}

// recentChange is one batch's changes of one room. Batches follow one another: the positions of one are all below those of the next.
type recentChange struct {
	room        storage.RoomNID
	first, last storage.Position
	batchLast   storage.Position // the last of the whole batch
}

// maxRecent is how many changes are remembered.
const maxRecent = 16_384

func (c *recentChanges) note(changes []recentChange) {
	var last storage.Position
	for _, ch := range changes {
		last = max(last, ch.last)
	}
	for i := range changes {
		changes[i].batchLast = last
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, changes...)
	if len(c.list) > maxRecent {
		n := len(c.list) - maxRecent/2
		for _, ch := range c.list[:n] {
			c.since = max(c.since, ch.last)
		}
		c.list = slices.Clone(c.list[n:])
	}
}

// changed calls fn once for each room that changed in (since, until]; false if it does not go back that far.
func (c *recentChanges) changed(since, until storage.Position, fn func(storage.RoomNID)) bool {
	c.mu.Lock()
	if since < c.since {
		c.mu.Unlock()
		return false
	}
	list := c.list[:len(c.list):len(c.list)]
	c.mu.Unlock()
	seen := make(map[storage.RoomNID]bool)
	for i := len(list) - 1; i >= 0 && list[i].batchLast > since; i-- {
		if ch := list[i]; ch.last > since && ch.first <= until && !seen[ch.room] {
			seen[ch.room] = true
			fn(ch.room)
		}
	}
	return true
}
