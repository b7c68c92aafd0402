package feed

import (
	"cmp"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// joinedRooms are the rooms a user was joined to when the stream stood at until.
type joinedRooms struct {
	now    rooms.UserRooms
	recent map[matrix.RoomID]*rooms.Membership // as of then, where the membership changed since; nil: not joined
	hidden map[storage.RoomNID]bool            // not to be shown, as if the user were not in them
}

func (j *joinedRooms) in(room matrix.RoomID) (rooms.Membership, bool) {
	if m, ok := j.recent[room]; ok {
		if m == nil || j.hidden[m.RoomNID] {
			return rooms.Membership{}, false
		}
		return *m, true
	}
	m, ok := j.now.In(room)
	return m, ok && m.Membership == "join" && !j.hidden[m.RoomNID]
}

// Has reports whether the user was joined to a room.
func (j *joinedRooms) Has(room matrix.RoomID) bool {
	_, ok := j.in(room)
	return ok
}

// All lists the rooms.
func (j *joinedRooms) All() []matrix.RoomID {
	var ids []matrix.RoomID
	for _, m := range j.now.All() {
		if j.Has(m.Room) {
			ids = append(ids, m.Room)
		}
	}
	return ids
}

// roomWork finds the rooms that the response must say something about, section by section, in order of room ID. But for
// a full state it looks at what changed only, however many rooms the user is in.
func (s *syncer) roomWork() ([]*roomWork, error) {
	work := make(map[matrix.RoomID]*roomWork)
	add := func(m rooms.Membership, section string, whole bool) {
		work[m.Room] = &roomWork{room: m.Room, nid: m.RoomNID, section: section, whole: whole, membership: m, events: true}
	}
	all, err := s.Rooms.UserRooms(s.ctx, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("memberships: %w", err)
	}
	joined := &joinedRooms{now: all, recent: make(map[matrix.RoomID]*rooms.Membership)}
	// A client that loads all members is not shown a room before they are known; then the room is new to it. Others see it
	// at once. spec: client-server-api#lazy-loading-room-members
	eager := !s.r.Filter.Room.State.LazyLoadMembers
	if eager {
		joined.hidden = s.Rooms.PartialAt(s.until)
	}
	if !s.r.initial() {
		s.completed = s.Rooms.CompletedIn(s.since, s.until)
	}
	if s.r.initial() || s.r.FullState {
		for _, m := range all.All() {
			if m.Membership == "join" && joined.hidden[m.RoomNID] {
				continue
			}
			if m.Position <= s.since && (m.Membership == "join" || m.Membership == "invite" || m.Membership == "knock") {
				add(m, m.Membership, true)
			}
		}
	}
	for _, m := range all.Since(s.since) {
		if m.Forgotten && s.r.initial() {
			continue // else the user's other devices are told of the leave, also if the room was forgotten at once
		}
		if m.Position > s.until {
			// Changed again after what this response is about: what counts is the membership as of then.
			if m.Membership, err = s.membershipAt(m, s.until); err != nil {
				return nil, err
			}
			m.Position = s.until
		}
		joined.recent[m.Room] = nil
		if m.Membership == "join" {
			joined.recent[m.Room] = &m
		}
		changed := m.Position > s.since
		switch m.Membership {
		case "join":
			if joined.hidden[m.RoomNID] {
				continue
			}
			switch {
			case s.r.initial() || s.r.FullState:
				add(m, "join", true)
			case changed:
				was, err := s.membershipAt(m, s.since)
				if err != nil {
					return nil, err
				}
				add(m, "join", was != "join" || eager && s.completed[m.RoomNID])
			}
		case "invite", "knock":
			if changed || s.r.FullState {
				add(m, m.Membership, true)
			}
		case "leave", "ban":
			switch {
			case s.r.initial():
				if s.r.Filter.Room.IncludeLeave {
					add(m, "leave", true)
				}
			case changed:
				add(m, "leave", false)
			}
		}
	}
	if !s.r.initial() {
		changed, err := s.Rooms.ChangedRooms(s.ctx, s.r.User, s.since, s.until)
		if err != nil {
			return nil, fmt.Errorf("changed rooms: %w", err)
		}
		for _, room := range changed {
			if m, ok := joined.in(room); ok && work[room] == nil {
				add(m, "join", eager && s.completed[m.RoomNID])
			}
		}
		if err := s.dressWork(work, joined); err != nil {
			return nil, err
		}
	}
	if err := s.stickyWork(work, joined); err != nil {
		return nil, err
	}
	out := make([]*roomWork, 0, len(work))
	for _, w := range work {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *roomWork) int {
		return cmp.Or(cmp.Compare(a.section, b.section), cmp.Compare(a.room, b.room))
	})
	return out, nil
}

// workOf is the work on a joined room, added if there is none; nil for rooms that are not joined.
func workOf(work map[matrix.RoomID]*roomWork, joined *joinedRooms, room matrix.RoomID) *roomWork {
	if w := work[room]; w != nil {
		return w
	}
	m, ok := joined.in(room)
	if !ok {
		return nil
	}
	w := &roomWork{room: room, nid: m.RoomNID, section: "join", membership: m}
	work[room] = w
	return w
}

// dressWork adds what changed beside the events: account data, receipts, typing, counts of notifications.
func (s *syncer) dressWork(work map[matrix.RoomID]*roomWork, joined *joinedRooms) error {
	of := func(room matrix.RoomID) *roomWork { return workOf(work, joined, room) }
	for _, d := range s.data {
		if d.Room != "" {
			if w := of(d.Room); w != nil {
				w.accountData = append(w.accountData, d)
			}
		}
	}
	receipts, err := s.Users.Receipts.ChangedIn(s.ctx, s.DB, joined, s.r.User, s.since, s.until)
	if err != nil {
		return fmt.Errorf("receipts: %w", err)
	}
	for _, rc := range receipts {
		if w := of(rc.Room); w != nil {
			w.receipts = append(w.receipts, rc)
		}
	}
	for _, room := range s.Typing.Changed(s.since) {
		if _, changed := s.Typing.Users(room); changed > s.until {
			continue
		}
		if w := of(room); w != nil {
			w.typing = true
		}
	}
	return s.notifiedRooms(of, joined)
}

// notifiedRooms marks the rooms whose notification counts changed.
func (s *syncer) notifiedRooms(of func(matrix.RoomID) *roomWork, joined *joinedRooms) error {
	list, err := s.notifiedIn()
	if err != nil {
		return err
	}
	for _, nid := range list {
		if room := joined.now.RoomID(nid); room != "" {
			if w := of(room); w != nil {
				w.notified = true
			}
		}
	}
	return nil
}

// notifiedIn lists the rooms in which the user got notifications in (since, until].
func (s *syncer) notifiedIn() ([]storage.RoomNID, error) {
	user, err := s.DB.Intern(s.ctx, string(s.r.User))
	if err != nil {
		return nil, err
	}
	if s.DB.UnchangedIn(storage.Subject{Topic: storage.TopicNotified, UserNID: user[0]}, s.since, s.until) {
		return nil, nil
	}
	return storage.NotifiedRooms(s.ctx, s.DB, user[0], s.since, s.until)
}

// wholeRoom collects what a client that is new to the room must know besides its events.
func (s *syncer) wholeRoom(w *roomWork) error {
	var err error
	if w.receipts, err = s.Users.Receipts.InRoom(s.ctx, s.DB, w.room, s.r.User); err != nil {
		return fmt.Errorf("receipts: %w", err)
	}
	w.receipts = slices.DeleteFunc(w.receipts, func(rc users.Receipt) bool { return rc.Position > s.until })
	if w.accountData, err = s.Users.AccountData.InRoom(s.ctx, s.DB, s.r.User, w.room); err != nil {
		return fmt.Errorf("room account data: %w", err)
	}
	// That nobody types any more is said, too: some clients wait for it.
	_, changed := s.Typing.Users(w.room)
	w.typing = changed > 0 && changed <= s.until
	return nil
}

// membershipAt is the user's membership in a room when the stream stood at a position.
func (s *syncer) membershipAt(m rooms.Membership, pos storage.Position) (string, error) {
	state, err := s.Rooms.StateAtPosition(s.ctx, m.RoomNID, pos)
	if err != nil {
		return "", fmt.Errorf("state at %d: %w", pos, err)
	}
	return state.Membership(s.ctx, s.r.User)
}
