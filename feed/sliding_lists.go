package feed

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// listedRoom is a room of the server's list for the user, and what the request wants of it.
type listedRoom struct {
	*rooms.Membership
	activity storage.Position
	sent     sentRoom // as of the request's pos
	next     sentRoom // as it will be after this response
	result   *roomResult

	passes     listSet // those whose filters it passes
	lists      listSet // those in whose window the room is
	subscribed bool
	config     *mergedConfig // nil: the request does not want the room
	touched    bool          // it is looked at, where a list is continued
}

// listSet is some of a request's lists, by their index.
type listSet [(maxLists + 63) / 64]uint64

func (l *listSet) add(i int)      { l[i/64] |= 1 << (i % 64) }
func (l *listSet) remove(i int)   { l[i/64] &^= 1 << (i % 64) }
func (l *listSet) has(i int) bool { return l[i/64]&(1<<(i%64)) != 0 }
func (l *listSet) empty() bool    { return *l == listSet{} }

// everJoined reports whether the user was ever in the room.
func (r *listedRoom) everJoined() bool {
	return r.Membership.Membership == "join" || r.LeftPosition != 0
}

// mergedConfig is what is told of a room that several rules match. spec: MSC4186#combining-room-configs
type mergedConfig struct {
	timelineLimit int
	state         *requiredState
}

// roomList is the server's list: rooms by activity, the latest first. spec: MSC4186#lists
type roomList struct {
	all    []*listedRoom
	apart  []*listedRoom // rooms that are not in the list, but subscribed to
	counts []int         // of rooms that pass the filters of each list; not changed once it is given away
	byNID  map[storage.RoomNID]*listedRoom
	merged *mergedConfigs
	// Where a list is continued, only some of its rooms are looked at.
	continued bool
	touched   []*listedRoom
	pending   []*listedRoom // rooms that the client is still to be told about
}

// each goes through the rooms to look at.
func (l *roomList) each(fn func(*listedRoom) error) error {
	parts := [][]*listedRoom{l.apart, l.all}
	if l.continued {
		parts = [][]*listedRoom{l.touched}
	}
	for _, rooms := range parts {
		for _, r := range rooms {
			if err := fn(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// roomList makes the list of the user's rooms, and finds out what the request wants of each.
func (s *slider) roomList() (*roomList, error) {
	l := &roomList{}
	memberships, err := s.memberships()
	if err != nil {
		return nil, err
	}
	l.all = make([]*listedRoom, 0, len(memberships))
	block := make([]listedRoom, len(memberships))
	joined := make([]*listedRoom, 0, len(memberships))
	nids := make([]storage.RoomNID, 0, len(memberships))
	for i, m := range memberships {
		r := &block[i]
		*r = listedRoom{Membership: m, activity: m.Position, sent: s.base.rooms[m.RoomNID]}
		r.next = r.sent
		_, r.subscribed = s.q.Subscriptions[m.Room]
		listed, err := s.isListed(r)
		if err != nil {
			return nil, err
		}
		switch {
		case listed:
			l.all = append(l.all, r)
		case r.subscribed && !m.Forgotten && r.LeftPosition != 0:
			l.apart = append(l.apart, r)
		default:
			continue
		}
		if m.Membership == "join" {
			joined, nids = append(joined, r), append(nids, m.RoomNID)
		}
	}
	last, err := s.lastPositions(s.ctx, s.r.User, nids)
	if err != nil {
		return nil, err
	}
	for i, r := range joined {
		r.activity = max(r.activity, last[i])
	}
	slices.SortFunc(l.all, compareActivity)
	if err := s.applyLists(l); err != nil {
		return nil, err
	}
	l.merged = newMergedConfigs()
	s.configure(l, l.apart)
	s.configure(l, l.all)
	l.byNID = make(map[storage.RoomNID]*listedRoom, len(l.all)+len(l.apart))
	for _, rooms := range [][]*listedRoom{l.apart, l.all} {
		for _, r := range rooms {
			l.byNID[r.RoomNID] = r
		}
	}
	return l, nil
}

// memberships are the user's as of until. One that changed since is left out: the next response tells of it.
func (s *slider) memberships() ([]*rooms.Membership, error) {
	known, err := s.Rooms.Memberships(s.ctx, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("memberships: %w", err)
	}
	out := make([]*rooms.Membership, 0, len(known))
	for i := range known {
		if m := &known[i]; m.Position <= s.until {
			out = append(out, m)
		} else {
			s.postpone(m.RoomNID)
		}
	}
	if s.r.initial() {
		return out, nil
	}
	// The client is told of a leave, also if the room was forgotten at once.
	recent, err := s.Rooms.MembershipsSince(s.ctx, s.r.User, s.since)
	if err != nil {
		return nil, fmt.Errorf("recent memberships: %w", err)
	}
	for i := range recent {
		m := &recent[i]
		if m.Position > s.until {
			s.postpone(m.RoomNID)
			continue
		}
		s.moved[m.Room] = true
		if m.Forgotten {
			out = append(out, m)
		}
	}
	return out, nil
}

// postpone leaves a room for the next response, with everything that this one would have told of it.
func (s *slider) postpone(nid storage.RoomNID) {
	s.draft.set(nid, s.base.rooms[nid].behind(s.since))
}

// isListed reports whether a room is in the server's list. spec: MSC4186#lists
func (s *slider) isListed(r *listedRoom) (bool, error) {
	sent := r.sent.events != never
	switch r.Membership.Membership {
	case "join", "knock":
		return true, nil
	case "invite":
		return s.showsInvite(r.Sender)
	case "leave":
		// Who was removed is told; who left, or was never in, knows unless this connection says otherwise.
		return sent || r.LeftPosition != 0 && r.Sender != s.r.User && r.Sender != "", nil
	case "ban":
		return sent || r.LeftPosition != 0, nil
	}
	return false, nil
}

// applyLists finds the rooms in each list's window.
func (s *slider) applyLists(l *roomList) error {
	l.counts = make([]int, len(s.q.Lists))
	for i := range s.q.Lists {
		list := &s.q.Lists[i]
		filter, err := s.newRoomFilter(list.filters)
		if err != nil {
			return err
		}
		ranges := list.ranges
		place := int64(0)
		for _, r := range l.all {
			ok, err := filter.accepts(r)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			r.passes.add(i)
			for len(ranges) > 0 && ranges[0].last < place {
				ranges = ranges[1:]
			}
			if len(ranges) > 0 && ranges[0].first <= place {
				r.lists.add(i)
			}
			place++
		}
		l.counts[i] = int(place)
	}
	return nil
}

// configCombination is which rules match a room.
type configCombination struct {
	lists listSet
	own   roomConfigKey // of a subscription, else zero
}

// mergedConfigs are what some rules are together.
type mergedConfigs struct {
	known    map[configCombination]*mergedConfig
	byDigest map[[digestSize]byte]*requiredState
}

func newMergedConfigs() *mergedConfigs {
	return &mergedConfigs{make(map[configCombination]*mergedConfig), make(map[[digestSize]byte]*requiredState)}
}

// configure combines the rules that match each room. Most rooms match the same ones.
func (s *slider) configure(l *roomList, list []*listedRoom) {
	for _, r := range list {
		r.config = nil
		if r.lists.empty() && !r.subscribed {
			continue
		}
		c := configCombination{lists: r.lists}
		if r.subscribed {
			sub := s.q.Subscriptions[r.Room]
			c.own = sub.key()
		}
		if r.config = l.merged.known[c]; r.config != nil {
			continue
		}
		m := &mergedConfig{}
		var rules []stateRule
		for n := range s.q.Lists {
			if r.lists.has(n) {
				m.timelineLimit = max(m.timelineLimit, s.q.Lists[n].timelineLimit)
				rules = append(rules, s.q.Lists[n].state)
			}
		}
		if r.subscribed {
			sub := s.q.Subscriptions[r.Room]
			m.timelineLimit = max(m.timelineLimit, sub.timelineLimit)
			rules = append(rules, sub.state)
		}
		m.state = unite(rules)
		if same := l.merged.byDigest[m.state.digest]; same != nil {
			m.state = same
		}
		l.merged.byDigest[m.state.digest] = m.state
		l.merged.known[c] = m
		r.config = m
	}
}

// roomFilter is a list's filters with what they ask for at hand.
type roomFilter struct {
	*roomFilters
	s        *slider
	children map[matrix.RoomID]bool            // of the spaces
	tags     map[matrix.RoomID]map[string]bool // the tags of tagged rooms
}

func (s *slider) newRoomFilter(f *roomFilters) (*roomFilter, error) {
	out := &roomFilter{roomFilters: f, s: s}
	if f == nil {
		return out, nil
	}
	var err error
	if f.spaces != nil {
		if out.children, err = s.spaceChildren(f.spaces); err != nil {
			return nil, err
		}
	}
	if f.tags != nil || f.notTags != nil {
		if out.tags, err = s.tags(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// accepts reports whether a room passes. spec: MSC4186#slidingroomfilter
func (f *roomFilter) accepts(r *listedRoom) (bool, error) {
	if f.roomFilters == nil {
		return true, nil
	}
	if f.isInvited != nil && *f.isInvited != (r.Membership.Membership == "invite") {
		return false, nil
	}
	if f.children != nil && !f.children[r.Room] {
		return false, nil
	}
	if f.roomFilters.tags != nil || f.notTags != nil {
		tagged := func(wanted map[string]bool) bool {
			for t := range f.tags[r.Room] {
				if wanted[t] {
					return true
				}
			}
			return false
		}
		if tagged(f.notTags) || f.roomFilters.tags != nil && !tagged(f.roomFilters.tags) {
			return false, nil
		}
	}
	if f.isDM != nil {
		direct, err := f.s.direct()
		if err != nil || *f.isDM != direct[r.Room] {
			return false, err
		}
	}
	if f.isEncrypted == nil && f.roomTypes == nil && f.notRoomTypes == nil && f.nameLike == "" {
		return true, nil
	}
	t, err := f.s.traitsFor(r)
	if err != nil {
		return false, err
	}
	switch {
	case f.isEncrypted != nil && (!t.known || *f.isEncrypted != t.encrypted),
		f.notRoomTypes != nil && (!t.known || f.notRoomTypes[t.roomType]),
		f.roomTypes != nil && (!t.known || !f.roomTypes[t.roomType]),
		!strings.Contains(t.name, f.nameLike):
		return false, nil
	}
	return true, nil
}

// traitsFor is what filters ask of a room's state, as far as the user may know it.
func (s *slider) traitsFor(r *listedRoom) (*roomTraits, error) {
	switch {
	case r.Membership.Membership == "join":
		return s.traits(s.ctx, r.RoomNID)
	case r.Membership.Membership != "invite" && r.Membership.Membership != "knock" && r.LeftPosition != 0:
		return s.pastTraits.get(traitsKey{r.RoomNID, "", r.LeftPosition}, func() (*roomTraits, error) {
			state, err := s.Rooms.StateAtPosition(s.ctx, r.RoomNID, r.LeftPosition)
			if err != nil {
				return nil, err
			}
			return traitsOf(s.ctx, state)
		})
	}
	return s.pastTraits.get(traitsKey{r.RoomNID, s.r.User, r.Position}, func() (*roomTraits, error) {
		events, err := s.Rooms.InviteState(s.ctx, s.r.User, r.Room)
		if err != nil {
			return nil, fmt.Errorf("stripped state of room %s: %w", r.Room, err)
		}
		return strippedTraits(events), nil
	})
}

// strippedTraits reads traits from stripped state.
func strippedTraits(events [][]byte) *roomTraits {
	t := &roomTraits{}
	for _, ev := range events {
		content, ok := canonicaljson.GetObject(ev, "content")
		if !ok {
			continue
		}
		switch eventType, _ := canonicaljson.GetString(ev, "type"); eventType {
		case "m.room.create":
			t.known = true
			t.roomType, _ = canonicaljson.GetString(content, "type")
		case "m.room.encryption":
			t.encrypted = true
		case "m.room.name":
			name, _ := canonicaljson.GetString(content, "name")
			t.name = strings.ToLower(name)
		}
	}
	return t
}

// spaceChildren are the rooms that some spaces list, of those spaces the user is in.
func (s *slider) spaceChildren(spaces map[matrix.RoomID]bool) (map[matrix.RoomID]bool, error) {
	children := make(map[matrix.RoomID]bool)
	memberships, err := s.Rooms.Memberships(s.ctx, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("memberships: %w", err)
	}
	for _, m := range memberships {
		if !spaces[m.Room] || m.Membership != "join" {
			continue
		}
		list, ok := s.children[m.Room] // several lists may ask for the same space
		if !ok {
			if list, err = s.childrenOf(m.RoomNID); err != nil {
				return nil, err
			}
			if s.children == nil {
				s.children = make(map[matrix.RoomID][]matrix.RoomID)
			}
			s.children[m.Room] = list
		}
		for _, child := range list {
			children[child] = true
		}
	}
	return children, nil
}

func (s *slider) childrenOf(space storage.RoomNID) ([]matrix.RoomID, error) {
	state, err := s.Rooms.StateAtPosition(s.ctx, space, s.until)
	if err != nil {
		return nil, err
	}
	events, err := state.OfType(s.ctx, "m.space.child")
	if err != nil {
		return nil, fmt.Errorf("children of a space: %w", err)
	}
	var out []matrix.RoomID
	for _, ev := range events {
		if via, ok := canonicaljson.Get(ev.Content(), "via"); ok && canonicaljson.IsArray(via) {
			key, _ := ev.StateKey()
			out = append(out, matrix.RoomID(key))
		}
	}
	return out, nil
}

// tags are the tags of the user's rooms.
func (s *slider) tags() (map[matrix.RoomID]map[string]bool, error) {
	if s.tagged != nil {
		return s.tagged, nil
	}
	data, err := s.Users.AccountData.OfType(s.ctx, s.DB, s.r.User, "m.tag")
	if err != nil {
		return nil, err
	}
	s.tagged = make(map[matrix.RoomID]map[string]bool, len(data))
	for _, d := range data {
		tags := make(map[string]bool)
		if object, ok := canonicaljson.GetObject(d.Content, "tags"); ok {
			for name := range canonicaljson.Members(object) {
				tags[strings.Clone(name)] = true
			}
		}
		s.tagged[d.Room] = tags
	}
	return s.tagged, nil
}

// direct is the set of the user's direct rooms, by their account data. spec: client-server-api#direct-messaging
func (s *slider) direct() (map[matrix.RoomID]bool, error) {
	if s.directRooms != nil {
		return s.directRooms, nil
	}
	content, err := s.Users.AccountData.Get(s.ctx, s.r.User, "", typeDirect)
	if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
		return nil, fmt.Errorf("direct rooms: %w", err)
	}
	s.directRooms = directRooms(content)
	return s.directRooms, nil
}

const typeDirect = "m.direct"

// directRooms reads m.direct: users to lists of rooms.
func directRooms(content json.RawMessage) map[matrix.RoomID]bool {
	out := make(map[matrix.RoomID]bool)
	if !canonicaljson.IsObject(content) {
		return out
	}
	for _, list := range canonicaljson.Members(content) {
		if !canonicaljson.IsArray(list) {
			continue
		}
		for el := range canonicaljson.Elements(list) {
			if id, ok := canonicaljson.String(el); ok {
				out[matrix.RoomID(id)] = true
			}
		}
	}
	return out
}

// directChanged reports whether the account data in the range of the response say anew which rooms are direct.
func directChanged(data []users.AccountDatum) bool {
	return slices.ContainsFunc(data, func(d users.AccountDatum) bool { return d.Room == "" && d.Type == typeDirect })
}
