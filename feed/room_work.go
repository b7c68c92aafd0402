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

// roomWork finds the rooms that the response must say something about, section by section, in order of room ID.
func (s *syncer) roomWork() ([]*roomWork, error) {
	work := make(map[matrix.RoomID]*roomWork)
	add := func(m rooms.Membership, section string, whole bool) *roomWork {
		w := &roomWork{room: m.Room, nid: m.RoomNID, section: section, whole: whole, membership: m, events: true}
		work[m.Room] = w
		return w
	}
	memberships, err := s.Rooms.Memberships(s.ctx, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("memberships: %w", err)
	}
	if !s.r.initial() {
		// The user's other devices are told of a leave, also if the room was forgotten at once.
		recent, err := s.Rooms.MembershipsSince(s.ctx, s.r.User, s.since)
		if err != nil {
			return nil, fmt.Errorf("recent memberships: %w", err)
		}
		for _, m := range recent {
			if m.Forgotten {
				memberships = append(memberships, m)
			}
		}
	}
	joined := make(map[matrix.RoomID]rooms.Membership)
	for _, m := range memberships {
		if m.Position > s.until {
			// Changed again after what this response is about: what counts is the membership as of then.
			if m.Membership, err = s.membershipAt(m, s.until); err != nil {
				return nil, err
			}
			m.Position = s.until
		}
		changed := m.Position > s.since
		switch m.Membership {
		case "join":
			joined[m.Room] = m
			if s.r.initial() || s.r.FullState {
				add(m, "join", true)
			} else if changed {
				was, err := s.membershipAt(m, s.since)
				if err != nil {
					return nil, err
				}
				add(m, "join", was != "join")
			}
		case "invite", "knock":
			if s.r.initial() || changed || s.r.FullState {
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
	if s.r.initial() {
		return s.dressWork(work, joined)
	}
	changed, err := s.Rooms.ChangedRooms(s.ctx, s.r.User, s.since, s.until)
	if err != nil {
		return nil, fmt.Errorf("changed rooms: %w", err)
	}
	for _, room := range changed {
		if m, ok := joined[room]; ok && work[room] == nil {
			add(m, "join", false)
		}
	}
	return s.dressWork(work, joined)
}

// dressWork adds what lives beside the events: account data, receipts, typing.
func (s *syncer) dressWork(work map[matrix.RoomID]*roomWork, joined map[matrix.RoomID]rooms.Membership) ([]*roomWork, error) {
	of := func(room matrix.RoomID) *roomWork {
		if w := work[room]; w != nil {
			return w
		}
		m, ok := joined[room]
		if !ok {
			return nil
		}
		w := &roomWork{room: room, nid: m.RoomNID, section: "join", membership: m}
		work[room] = w
		return w
	}
	for _, d := range s.data {
		if d.Room != "" {
			if w := of(d.Room); w != nil {
				w.accountData = append(w.accountData, d)
			}
		}
	}
	if !s.r.initial() {
		ids := make([]matrix.RoomID, 0, len(joined))
		for id := range joined {
			ids = append(ids, id)
		}
		receipts, err := s.Users.Receipts.Changed(s.ctx, s.DB, ids, s.r.User, s.since, s.until)
		if err != nil {
			return nil, fmt.Errorf("receipts: %w", err)
		}
		for _, rc := range receipts {
			if w := of(rc.Room); w != nil {
				w.receipts = append(w.receipts, rc)
			}
		}
	}
	if !s.r.initial() {
		if err := s.notifiedRooms(of, joined); err != nil {
			return nil, err
		}
	}
	for id := range joined {
		if typing, since := s.Typing.Users(id); since > s.since && since <= s.until && (len(typing) > 0 || !s.r.initial()) {
			of(id).typing = true
		}
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

// notifiedRooms marks the rooms whose notification counts changed.
func (s *syncer) notifiedRooms(of func(matrix.RoomID) *roomWork, joined map[matrix.RoomID]rooms.Membership) error {
	user, err := s.DB.Intern(s.ctx, string(s.r.User))
	if err != nil {
		return err
	}
	if s.DB.Unchanged(storage.Subject{Topic: storage.TopicNotified, UserNID: user[0]}, s.since) {
		return nil
	}
	list, err := storage.NotifiedRooms(s.ctx, s.DB, user[0], s.since, s.until)
	if err != nil || len(list) == 0 {
		return err
	}
	byNID := make(map[storage.RoomNID]matrix.RoomID, len(joined))
	for id, m := range joined {
		byNID[m.RoomNID] = id
	}
	for _, nid := range list {
		if w := of(byNID[nid]); w != nil {
			w.notified = true
		}
	}
	return nil
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
	typing, _ := s.Typing.Users(w.room)
	w.typing = len(typing) > 0
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
