package feed

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"hanok/internal/recent"
	"hanok/storage"
)

// The list of rooms that a response was made from is kept in memory until the connection's next request, which continues it: what has moved
// since goes to the front, and only rooms that something happened to, or that came into a window, are looked at. Where more than that may have
// changed, a membership, the rules of the request, what filters go by, the list is made anew.

// keptList is the list of a response, as the client knows it after that.
type keptList struct {
	*roomList
	q     *SlidingRequest
	base  *connection
	until storage.Position
}

// keep makes of a response what the next one may continue from, where base is the connection after it; nil if there is no list.
func (r *slidingResponse) keep(base *connection) *keptList {
	if r.list == nil {
		return nil
	}
	_ = r.list.each(func(room *listedRoom) error { // fn does not fail
		room.result, room.touched = nil, false
		return nil
	})
	if base != r.draft.base { // its rules may be numbered anew
		for nid, room := range r.list.byNID {
			room.sent = base.rooms[nid]
			room.next = room.sent
		}
	}
	r.list.touched = nil
	return &keptList{r.list, r.q, base, r.until}
}

// maxKeptRooms bounds the rooms of all lists in memory, of some 250 bytes each; maxKeptLists the lists.
const (
	maxKeptRooms = 100_000
	maxKeptLists = 10_000
)

// newListMemory is for the lists of the connections used last. Who takes one has it alone.
func newListMemory() *recent.Map[connectionOwner, *keptList] {
	return recent.NewWeighedMap[connectionOwner](maxKeptLists, maxKeptRooms, func(k *keptList) int { return len(k.byNID) })
}

// sameShape reports whether two requests ask for the same rooms, and the same of them.
func sameShape(a, b *SlidingRequest) bool {
	x, y := &a.extensions, &b.extensions
	return a == b || reflect.DeepEqual(a.Lists, b.Lists) && reflect.DeepEqual(a.Subscriptions, b.Subscriptions) && a.Dialect == b.Dialect &&
		reflect.DeepEqual(x.accountData, y.accountData) && reflect.DeepEqual(x.receipts, y.receipts) && reflect.DeepEqual(x.typing, y.typing)
}

// continuable reports whether nothing but what continueList looks at has changed since the list was made.
func (s *slider) continuable(k *keptList) (bool, error) {
	if k == nil || s.r.initial() || k.base != s.base || k.until < s.since || len(s.partial)+len(s.completed) > 0 || !sameShape(k.q, s.q) {
		return false, nil
	}
	for _, l := range s.q.Lists {
		if l.filters != nil && l.filters.spaces != nil { // the children of a space change without the rooms that are listed
			return false, nil
		}
	}
	for _, d := range s.data {
		if d.Room == "" || d.Type == "m.tag" { // direct rooms, ignored users, refused invites
			return false, nil
		}
	}
	recent, err := s.Rooms.MembershipsSince(s.ctx, s.r.User, s.since)
	if err != nil {
		return false, fmt.Errorf("recent memberships: %w", err)
	}
	return len(recent) == 0, nil
}

// continueList brings the list of an earlier response up to date; nil if it has to be made anew.
func (s *slider) continueList(k *keptList) (*roomList, error) {
	if ok, err := s.continuable(k); err != nil || !ok {
		return nil, err
	}
	l := k.roomList
	joined, err := s.joined()
	if err != nil {
		return nil, err
	}
	moved := make([]*listedRoom, 0, len(s.moved))
	for id := range s.moved {
		m, ok := joined.In(id)
		r := l.byNID[m.RoomNID]
		if !ok || r == nil {
			return nil, nil
		}
		moved = append(moved, r)
	}
	l.continued = true
	for _, r := range l.pending {
		l.touch(r)
	}
	if len(moved) == 0 {
		return l, nil
	}
	nids := make([]storage.RoomNID, len(moved))
	for i, r := range moved {
		nids[i] = r.RoomNID
		l.touch(r)
	}
	last, err := s.lastPositions(s.ctx, s.r.User, nids)
	if err != nil {
		return nil, err
	}
	for i, r := range moved {
		r.activity = max(r.activity, last[i])
	}
	l.toFront(moved)
	l.counts = slices.Clone(l.counts)
	for i := range s.q.Lists {
		if err := s.moveInList(l, i, moved); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(l.touched, func(a, b *listedRoom) int { return cmp.Compare(b.activity, a.activity) })
	s.configure(l, l.touched)
	return l, nil
}

// touch has a room looked at.
func (l *roomList) touch(r *listedRoom) {
	if !r.touched {
		r.touched = true
		l.touched = append(l.touched, r)
	}
}

// toFront brings the list into order after rooms have moved.
func (l *roomList) toFront(moved []*listedRoom) {
	const few = 16
	if len(moved) > few {
		slices.SortFunc(l.all, compareActivity)
		return
	}
	slices.SortFunc(moved, func(a, b *listedRoom) int { return compareActivity(b, a) })
	for _, r := range moved {
		at := slices.Index(l.all, r)
		if at < 0 {
			continue // one that is told apart
		}
		copy(l.all[1:at+1], l.all[:at])
		l.all[0] = r
	}
}

func compareActivity(a, b *listedRoom) int {
	return cmp.Or(cmp.Compare(b.activity, a.activity), cmp.Compare(b.RoomNID, a.RoomNID))
}

// moveInList finds out which of the moved rooms pass the filters of a list now, and which rooms are in its window. Beyond the window nothing changes.
func (s *slider) moveInList(l *roomList, i int, moved []*listedRoom) error {
	list := &s.q.Lists[i]
	filter, err := s.newRoomFilter(list.filters)
	if err != nil {
		return err
	}
	for _, r := range moved {
		if slices.Contains(l.apart, r) {
			continue
		}
		ok, err := filter.accepts(r)
		switch was := r.passes.has(i); {
		case err != nil:
			return err
		case ok && !was:
			r.passes.add(i)
			l.counts[i]++
		case !ok && was:
			r.passes.remove(i)
			r.lists.remove(i)
			l.counts[i]--
		}
	}
	if len(list.ranges) == 0 {
		return nil
	}
	ranges := list.ranges
	end := ranges[len(ranges)-1].last + int64(len(moved)) // no room moves further than others moved
	place := int64(0)
	for _, r := range l.all {
		if !r.passes.has(i) {
			continue
		}
		for len(ranges) > 0 && ranges[0].last < place {
			ranges = ranges[1:]
		}
		in := len(ranges) > 0 && ranges[0].first <= place
		if in != r.lists.has(i) {
			if in {
				r.lists.add(i)
			} else {
				r.lists.remove(i)
			}
			l.touch(r)
		}
		if place++; place > end {
			break
		}
	}
	return nil
}

// touchChanged has those rooms looked at to which something else happened than events: counts, receipts, account data, typing.
func (s *slider) touchChanged(counted map[storage.RoomNID]bool) error {
	l := s.list
	touch := func(nid storage.RoomNID) {
		if r := l.byNID[nid]; r != nil {
			l.touch(r)
		}
	}
	for nid := range counted {
		touch(nid)
	}
	joined, err := s.joined()
	if err != nil {
		return err
	}
	receipts, err := s.changedReceipts()
	if err != nil {
		return err
	}
	for _, rc := range receipts {
		m, _ := joined.In(rc.Room)
		touch(m.RoomNID)
	}
	for _, d := range s.data {
		m, _ := joined.In(d.Room)
		touch(m.RoomNID)
	}
	if s.q.extensions.typing != nil {
		for _, room := range s.Typing.Changed(s.since) {
			m, _ := joined.In(room)
			touch(m.RoomNID)
		}
	}
	return nil
}
