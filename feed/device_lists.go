package feed

import (
	"context"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// FollowMembers tells device lists, after a commit, of users who joined a room and who ceased to be joined: lists are kept for those who share
// rooms only.
func FollowMembers(lists *users.DeviceLists, u *rooms.Update) {
	for _, m := range u.Memberships {
		if joined := m.Current == "join"; joined != (m.Previous == "join") {
			lists.MembershipChanged(m.User, u.Room, joined)
		}
	}
}

// deviceListChanges collects whom the user met in a room, and whom the user no longer sees in one.
type deviceListChanges struct {
	joined, gone map[matrix.UserID]bool
	invited      []matrix.UserID
}

func (d *deviceListChanges) met(user matrix.UserID) {
	if d.joined == nil {
		d.joined = make(map[matrix.UserID]bool)
	}
	d.joined[user] = true
}

func (d *deviceListChanges) parted(user matrix.UserID) {
	if d.gone == nil {
		d.gone = make(map[matrix.UserID]bool)
	}
	d.gone[user] = true
}

// DeviceChanges answers which device lists changed between two tokens. spec: cs/getKeysChanges
type DeviceChanges struct {
	Changed []matrix.UserID `json:"changed"`
	Left    []matrix.UserID `json:"left"`
}

// DeviceChanges says whose keys a client must ask for again that was last told of everything up to from.
// spec: cs/getKeysChanges
func (f *Feed) DeviceChanges(ctx context.Context, user matrix.UserID, from, to Token) (*DeviceChanges, error) {
	until := min(to.Pos, f.DB.Current())
	s := &syncer{Feed: f, ctx: ctx, r: &Request{User: user, Since: from, Filter: &Filter{}}, since: from.Pos, until: until}
	s.completed = f.Rooms.CompletedIn(s.since, s.until)
	if err := s.membersSince(); err != nil {
		return nil, err
	}
	changed, left, err := s.deviceLists()
	return &DeviceChanges{Changed: changed, Left: left}, err
}

// membersSince notes who joined and left any of the user's rooms between since and until.
func (s *syncer) membersSince() error {
	moved := make(map[matrix.RoomID]bool)
	changed, err := s.Rooms.ChangedRooms(s.ctx, s.r.User, s.since, s.until)
	if err != nil {
		return fmt.Errorf("changed rooms: %w", err)
	}
	for _, room := range changed {
		moved[room] = true
	}
	memberships, err := s.Rooms.Memberships(s.ctx, s.r.User)
	if err != nil {
		return fmt.Errorf("memberships: %w", err)
	}
	recent, err := s.Rooms.MembershipsSince(s.ctx, s.r.User, s.since)
	if err != nil {
		return fmt.Errorf("recent memberships: %w", err)
	}
	for _, m := range recent {
		delete(moved, m.Room)
		if err := s.roomMembers(m); err != nil {
			return err
		}
	}
	for _, m := range memberships {
		if !moved[m.Room] && !s.completed[m.RoomNID] {
			continue
		}
		if err := s.roomMembers(m); err != nil {
			return err
		}
	}
	return nil
}

// roomMembers notes who joined and left a room between since and until.
func (s *syncer) roomMembers(m rooms.Membership) error {
	if m.Membership != "join" && m.Position <= s.since {
		return nil
	}
	to, err := s.Rooms.StateAtPosition(s.ctx, m.RoomNID, s.until)
	if err != nil {
		return fmt.Errorf("state of %s: %w", m.Room, err)
	}
	if s.completed[m.RoomNID] && m.Membership == "join" && !s.r.Filter.Room.State.LazyLoadMembers {
		// The room is new to clients that load all members: by the states as they are known now nobody has come into sight. The
		// others saw it before, and learn of members when they meet them or ask for all.
		return eachJoined(s.ctx, to, s.lists.met)
	}
	from, err := s.Rooms.StateAtPosition(s.ctx, m.RoomNID, s.since)
	if err != nil {
		return fmt.Errorf("state of %s: %w", m.Room, err)
	}
	if from.Same(to) {
		return nil
	}
	was, err := from.Membership(s.ctx, s.r.User)
	if err != nil {
		return err
	}
	is, err := to.Membership(s.ctx, s.r.User)
	if err != nil {
		return err
	}
	return s.movedBetween(was, is, from, to)
}

// movedBetween notes who came into sight or went out of it when a room moved from one
// state to another, and the user from one membership to another.
func (s *syncer) movedBetween(was, is string, from, to rooms.State) error {
	switch {
	case was == "join" && is == "join":
		diff, err := s.Rooms.StateDelta(s.ctx, from, to)
		if err != nil {
			return err
		}
		return s.noteMembers(diff, to)
	case is == "join":
		return eachJoined(s.ctx, to, s.lists.met)
	case was == "join":
		return eachJoined(s.ctx, from, s.lists.parted)
	}
	return nil
}

func eachJoined(ctx context.Context, state rooms.State, fn func(matrix.UserID)) error {
	members, err := state.OfType(ctx, "m.room.member")
	if err != nil {
		return err
	}
	for _, ev := range members {
		if ev.Membership() == "join" {
			key, _ := ev.StateKey()
			fn(matrix.UserID(key))
		}
	}
	return nil
}

// noteMembers collects who joined and left a room that the user stayed in, for the device lists. Who was away meanwhile counts as joined:
// their server told nobody here what changed; and if that was the user, it goes for everybody in the room.
func (s *syncer) noteMembers(changes []rooms.StateChange, to rooms.State) error {
	for _, c := range changes {
		if c.Key.Type != "m.room.member" {
			continue
		}
		user := matrix.UserID(c.Key.Key)
		was, is := c.Old != nil && c.Old.Membership() == "join", c.New != nil && c.New.Membership() == "join"
		switch {
		case is && !was:
			s.lists.met(user)
		case was && !is:
			s.lists.parted(user)
		case !is && c.New != nil && c.New.Membership() == "invite":
			// Those in the room may want to share keys with who is about to come.
			s.lists.invited = append(s.lists.invited, user)
		case was && is:
			away, err := s.wasAway(c.Old, c.New)
			if err != nil {
				return err
			}
			if away && user == s.r.User {
				return eachJoined(s.ctx, to, s.lists.met)
			}
			if away {
				s.lists.met(user)
			}
		}
	}
	return nil
}

// maxMemberChanges bounds how far wasAway looks back; beyond it, somebody counts as having been away.
const maxMemberChanges = 50

// wasAway reports whether somebody left the room between two of their joins.
func (s *syncer) wasAway(from, to *rooms.Event) (bool, error) {
	key, _ := to.StateKey()
	for range maxMemberChanges {
		if to.ID() == from.ID() {
			return false, nil
		}
		before, err := s.Rooms.StateBefore(s.ctx, to)
		if err != nil {
			return false, err
		}
		previous, err := before.Event(s.ctx, "m.room.member", key)
		if err != nil {
			return false, err
		}
		if previous == nil || previous.Membership() != "join" {
			return true, nil
		}
		to = previous
	}
	return true, nil
}

// deviceLists combines changed lists of users in sight with who came into sight and who went.
// spec: client-server-api#tracking-the-device-list-for-a-user
func (s *syncer) deviceLists() (changed, left []matrix.UserID, err error) {
	changed, err = s.Users.DeviceLists.Changed(s.ctx, s.DB, s.r.User, s.shares, s.since, s.until)
	if err != nil {
		return nil, nil, fmt.Errorf("changed device lists: %w", err)
	}
	for u := range s.lists.joined {
		// The user too, on joining a room: their other devices may know nothing of it yet.
		if u == s.r.User || s.shares(u) {
			changed = append(changed, u)
		}
	}
	changed = append(changed, s.lists.invited...)
	for u := range s.lists.gone {
		if u != s.r.User && !s.shares(u) {
			left = append(left, u)
		}
	}
	slices.Sort(changed)
	slices.Sort(left)
	return slices.Compact(changed), left, s.sharingErr
}

// shares reports whether somebody is in a room with the user. Most responses never ask, so the list is read when
// the first does; a failure is kept in sharingErr, for who asked to look at.
func (s *syncer) shares(other matrix.UserID) bool {
	if s.sharing == nil {
		list, err := s.Rooms.Sharing(s.ctx, s.r.User)
		if err != nil {
			s.sharingErr = fmt.Errorf("users sharing rooms: %w", err)
		}
		s.sharing = make(map[matrix.UserID]bool, len(list))
		for _, u := range list {
			s.sharing[u] = true
		}
	}
	return s.sharing[other]
}
