package feed

import (
	"context"
	"fmt"
	"time"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// SlidingSync answers a request of sliding sync with a JSON body: at once if there is news or the connection is new,
// else when there is, or after the timeout with next to nothing. M_UNKNOWN_POS for a pos that was not given to this
// connection of this device, or is no longer known.
// spec: MSC4186
func (f *Feed) SlidingSync(ctx context.Context, q *SlidingRequest) ([]byte, error) {
	woken, done := f.Hub.Register(q.User)
	defer done()
	owner := connectionOwner{q.User, q.Device, q.ConnID}
	base, since, err := f.continued(ctx, q, owner)
	if err != nil {
		return nil, err
	}
	if err := f.acknowledge(ctx, q); err != nil {
		return nil, err
	}
	timer := time.NewTimer(q.Timeout)
	defer timer.Stop()
	stored := base
	kept, _ := f.lists.Take(owner)
	for wait := q.Pos != "" && q.Timeout > 0; ; {
		res, err := f.buildSliding(ctx, q, base, since, kept)
		if err != nil {
			return nil, err
		}
		// What was found out about rooms without anything to tell need not be found out again at the next wake-up.
		if len(res.draft.changed) > 0 {
			base = res.draft.connection()
		}
		if !wait || !res.empty() || f.Hub.Stopping() {
			version := stored.version
			if base != stored || version == 0 {
				if base == stored {
					base = res.draft.connection()
				}
				if err := f.connections.put(ctx, owner, stored.version, base, nowMS()); err != nil {
					return nil, err
				}
				version = base.version
			}
			if kept = res.keep(base); kept != nil {
				f.lists.Put(owner, kept)
			}
			return res.encode(slidingPos{res.until, version})
		}
		kept = res.keep(base)
		select {
		case <-woken:
		case <-timer.C:
			wait = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func nowMS() matrix.Timestamp { return matrix.Timestamp(time.Now().UnixMilli()) }

// continued finds what the client was told before, and up to where.
func (f *Feed) continued(ctx context.Context, q *SlidingRequest, owner connectionOwner) (*connection, storage.Position, error) {
	if q.Pos == "" {
		return &connection{}, 0, nil
	}
	pos, ok := parseSlidingPos(q.Pos)
	if !ok || pos.until > f.DB.Current() { // the latter is from before a backup was restored
		return nil, 0, errUnknownPos()
	}
	base, err := f.connections.get(ctx, owner, pos.version, nowMS())
	return base, pos.until, err
}

// slider holds what one build of a response needs in several places. Its syncer stands at the request's pos.
type slider struct {
	*syncer
	q     *SlidingRequest
	base  *connection
	draft *draft
	moved map[matrix.RoomID]bool // rooms with events, or a membership of the user, in (since, until]

	list         *roomList
	directRooms  map[matrix.RoomID]bool            // loaded by direct
	children     map[matrix.RoomID][]matrix.RoomID // of spaces, filled by spaceChildren
	tagged       map[matrix.RoomID]map[string]bool // loaded by tags
	userRooms    *rooms.UserRooms                  // loaded by joined
	partial      map[storage.RoomNID]bool          // rooms whose members are not known yet
	receipts     []users.Receipt                   // loaded by changedReceipts
	receiptsRead bool
	covered      map[[2]*requiredState]bool // filled by covers
}

// slidingResponse is a response before it is written.
type slidingResponse struct {
	q          *SlidingRequest
	until      storage.Position
	draft      *draft
	counts     []int     // of the rooms in each list
	list       *roomList // nil: the request was about no rooms
	rooms      []*roomResult
	extensions extensionResults
}

// empty reports that the client would learn nothing.
func (r *slidingResponse) empty() bool { return len(r.rooms) == 0 && r.extensions.empty() }

// buildSliding makes the response for what the connection has not been told.
func (f *Feed) buildSliding(ctx context.Context, q *SlidingRequest, base *connection, since storage.Position, kept *keptList) (*slidingResponse, error) {
	ignored, err := f.Users.Accounts.Ignored(ctx, f.DB, q.User)
	if err != nil {
		return nil, fmt.Errorf("ignored users: %w", err)
	}
	until := max(f.DB.Current(), since)
	r := &Request{User: q.User, Device: q.Device, Since: At(since), Filter: &Filter{}}
	s := &slider{
		syncer: &syncer{Feed: f, ctx: ctx, r: r, since: since, until: until, now: nowMS(), ignored: ignored},
		q:      q, base: base, draft: newDraft(base), list: &roomList{},
		moved: make(map[matrix.RoomID]bool),
	}
	s.partial = f.Rooms.PartialAt(until)
	if !r.initial() {
		s.completed = f.Rooms.CompletedIn(since, until)
	}
	if s.data, err = s.accountData(); err != nil {
		return nil, err
	}
	res := &slidingResponse{q: q, until: until, draft: s.draft}
	if !r.initial() {
		changed, err := f.Rooms.ChangedRooms(ctx, q.User, since, until)
		if err != nil {
			return nil, fmt.Errorf("changed rooms: %w", err)
		}
		for _, room := range changed {
			s.moved[room] = true
		}
	}
	if len(q.Lists) > 0 || len(q.Subscriptions) > 0 || len(base.rooms) > 0 { // in the last case, to note what falls behind
		if s.list, err = s.continueList(kept); err == nil && s.list == nil {
			s.list, err = s.roomList()
		}
		if err != nil {
			return nil, err
		}
		if err := s.rooms(res); err != nil {
			return nil, err
		}
		res.list, res.counts = s.list, s.list.counts
	}
	if err := s.extensions(&res.extensions); err != nil {
		return nil, err
	}
	s.list.pending = nil
	return res, s.list.each(func(r *listedRoom) error {
		if r.next != r.sent {
			s.draft.changed[r.RoomNID] = r.next
		}
		if r.config != nil && r.next.events != live {
			s.list.pending = append(s.list.pending, r)
		}
		return nil
	})
}

// maxSlidingResponse is from how many bytes of events on a response is full. The rooms that do not fit are told by the next one, for which
// the client need not wait.
const maxSlidingResponse = 8 << 20

// rooms tells of rooms that the request asks for and about which there is something to tell. A room whose part cannot be
// made is left out of this response, and stays behind for the next; the others are told.
func (s *slider) rooms(res *slidingResponse) error {
	counted, err := s.countedRooms()
	if err != nil {
		return err
	}
	if s.list.continued {
		if err := s.touchChanged(counted); err != nil {
			return err
		}
	}
	if directChanged(s.data) {
		if _, err := s.direct(); err != nil {
			return err
		}
	}
	size := 0
	return s.list.each(func(r *listedRoom) error {
		switch {
		case r.config == nil:
			s.leaveBehind(r, counted)
			return nil
		case !s.due(r, counted):
			return nil
		case size > maxSlidingResponse:
			r.next = r.sent.behind(s.since)
			return nil
		}
		result, err := s.tell(r, counted[r.RoomNID])
		if err != nil {
			if s.ctx.Err() != nil {
				return s.ctx.Err()
			}
			s.Log.Error().Err(err).Str("room", string(r.Room)).Msg("sliding sync of a room")
			r.next = r.sent.behind(s.since)
			return nil
		}
		if result != nil {
			r.result = result
			res.rooms = append(res.rooms, result)
			size += result.size()
		}
		return nil
	})
}

// countedRooms are the rooms whose notification counts changed, which only the unstable dialect tells.
func (s *slider) countedRooms() (map[storage.RoomNID]bool, error) {
	if s.q.Dialect != Unstable || s.r.initial() {
		return nil, nil
	}
	list, err := s.notifiedIn()
	if err != nil {
		return nil, err
	}
	counted := make(map[storage.RoomNID]bool, len(list))
	for _, nid := range list {
		counted[nid] = true
	}
	receipts, err := s.changedReceipts()
	if err != nil {
		return nil, err
	}
	joined, err := s.joined()
	if err != nil {
		return nil, err
	}
	for _, rc := range receipts {
		if m, ok := joined.In(rc.Room); ok && rc.User == s.r.User {
			counted[m.RoomNID] = true
		}
	}
	return counted, nil
}

// due reports whether there may be something to tell of a room.
func (s *slider) due(r *listedRoom, counted map[storage.RoomNID]bool) bool {
	switch {
	case r.sent.events != live, s.moved[r.Room], counted[r.RoomNID] && r.Membership.Membership == "join":
		return true
	case s.directRooms != nil && s.directRooms[r.Room] != r.sent.dm:
		return true
	case r.Membership.Membership != "join":
		return false
	}
	return r.config.timelineLimit > r.sent.limit || !s.covers(s.base.config(r.sent), r.config.state)
}

// covers is requiredState.covers, once for each pair.
func (s *slider) covers(known, wanted *requiredState) bool {
	pair := [2]*requiredState{known, wanted}
	c, ok := s.covered[pair]
	if !ok {
		c = known.covers(wanted)
		if s.covered == nil {
			s.covered = make(map[[2]*requiredState]bool)
		}
		s.covered[pair] = c
	}
	return c
}

// leaveBehind notes if something happened in a room that the client knows and the request does not ask for.
func (s *slider) leaveBehind(r *listedRoom, counted map[storage.RoomNID]bool) {
	if s.moved[r.Room] || counted[r.RoomNID] || s.directRooms != nil && s.directRooms[r.Room] != r.sent.dm {
		r.next.events = r.sent.events.behind(s.since)
	}
}

// joined are the user's rooms as of now.
func (s *slider) joined() (*rooms.UserRooms, error) {
	if s.userRooms == nil {
		all, err := s.Rooms.UserRooms(s.ctx, s.r.User)
		if err != nil {
			return nil, fmt.Errorf("memberships: %w", err)
		}
		s.userRooms = &all
	}
	return s.userRooms, nil
}

// membershipChanged reports whether the user's place in a room is another one than at a position.
func (s *slider) membershipChanged(m *rooms.Membership, from storage.Position) (bool, error) {
	if m.Position <= from {
		return false, nil
	}
	was, err := s.membershipAt(*m, from)
	return was != m.Membership, err
}
