package feed

import (
	"encoding/json"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// roomResult is what a response tells of a room. spec: MSC4186#roomresult
type roomResult struct {
	room       matrix.RoomID
	membership string
	lists      listSet
	initial    bool
	bumpStamp  storage.Position // 0: unchanged
	dm         *bool

	stripped [][]byte // of who is not and was not in the room

	// What follows is of those who are or were.
	name, avatar      changedText
	heroes            []hero
	summary           *rooms.MemberSummary // nil: unchanged
	state             []json.RawMessage
	deleted           []matrix.StateKey
	timeline          []json.RawMessage
	events            []*rooms.Event // of the timeline
	limited, expanded bool
	numLive           int
	prevBatch         string // "" if no timeline was asked for
	unread            *unreadCounts
}

// changedText is a text that may have changed, perhaps to nothing.
type changedText struct {
	changed bool
	text    string
}

// hero is a member who helps to name a room. spec: MSC4186#hero-type
type hero struct {
	user                matrix.UserID
	displayname, avatar string
}

// size is about how many bytes a room takes in the response.
func (r *roomResult) size() int {
	n := 0
	for _, list := range [][]json.RawMessage{r.timeline, r.state} {
		for _, ev := range list {
			n += len(ev)
		}
	}
	for _, ev := range r.stripped {
		n += len(ev)
	}
	return n
}

// tell makes the result of a room, nil if there is nothing to tell, and notes in the draft what the client is told by it.
func (s *slider) tell(r *listedRoom, counted bool) (*roomResult, error) {
	if s.partial[r.RoomNID] && r.sent.events == never && r.Membership.Membership == "join" && r.config.state.allMembers() {
		return nil, nil // it is new to the client when its members are known
	}
	from := r.sent.events.from(s.since)
	res := &roomResult{room: r.Room, membership: r.Membership.Membership, lists: r.lists}
	sent := r.sent
	told := false
	var err error
	switch {
	case r.Membership.Membership == "join":
		told, err = s.tellJoined(r, from, res, &sent)
		told = told || counted
	case r.Membership.Membership == "invite", r.Membership.Membership == "knock":
		told, err = s.tellStripped(r, from, res)
	case !r.everJoined():
		if told = r.Position > from; told {
			err = s.tellRefused(r, res)
		}
	default:
		told, err = s.tellLeft(r, from, res, &sent)
	}
	if err != nil {
		return nil, err
	}
	direct, err := s.direct()
	if err != nil {
		return nil, err
	}
	if dm := direct[r.Room]; dm != r.sent.dm || res.initial && dm {
		res.dm, sent.dm = &dm, dm
		told = true
	}
	if told && s.q.Dialect == Unstable && r.Membership.Membership == "join" {
		// Always: a client takes what is missing for zero.
		if res.unread, err = s.unread(&roomWork{room: r.Room, nid: r.RoomNID}); err != nil {
			return nil, err
		}
	}
	sent.events = live
	r.next = sent
	if !told {
		return nil, nil
	}
	return res, nil
}

// tellStripped tells of an invite or a knock. spec: MSC4186#inviteknockrejections
func (s *slider) tellStripped(r *listedRoom, from storage.Position, res *roomResult) (told bool, err error) {
	if r.sent.events != never && r.Position <= from {
		return false, nil
	}
	res.initial, res.bumpStamp = true, r.Position
	res.stripped, err = s.Rooms.InviteState(s.ctx, s.r.User, r.Room)
	if err != nil {
		return false, fmt.Errorf("stripped state: %w", err)
	}
	return true, nil
}

// tellRefused tells that an invite or a knock came to nothing. A client of the unstable dialect takes any stripped state for
// an invite, so it gets the event alone.
func (s *slider) tellRefused(r *listedRoom, res *roomResult) (err error) {
	res.bumpStamp = r.Position
	if s.q.Dialect == Unstable {
		return s.tellLastChange(r, res)
	}
	if res.stripped, err = s.Rooms.InviteState(s.ctx, s.r.User, r.Room); err != nil {
		return fmt.Errorf("stripped state: %w", err)
	}
	return nil
}

// tellLastChange tells nothing of a room but the event that ended the user's membership.
func (s *slider) tellLastChange(r *listedRoom, res *roomResult) error {
	if r.Event == "" {
		return nil
	}
	ev, err := s.Rooms.Event(s.ctx, r.Event)
	if err != nil {
		if matrix.HasCode(err, "M_NOT_FOUND") {
			return nil
		}
		return err
	}
	raw, err := s.render(ev, nil)
	if err != nil {
		return err
	}
	res.events, res.timeline = []*rooms.Event{ev}, []json.RawMessage{raw}
	if r.Position > s.since && !s.r.initial() {
		res.numLive = 1
	}
	if r.config.state.matches(stateKeyOf(ev)) {
		res.state = []json.RawMessage{raw}
	}
	token, err := s.Rooms.TokenAt(s.ctx, r.RoomNID, r.Position)
	res.prevBatch = token.String()
	return err
}

// tellLeft tells of a room that the user was in, up to when they left.
func (s *slider) tellLeft(r *listedRoom, from storage.Position, res *roomResult, sent *sentRoom) (told bool, err error) {
	if r.sent.events != never && r.Position <= from {
		return false, nil
	}
	res.bumpStamp = r.Position
	if r.sent.events != never && r.LeftPosition <= from {
		// The client knows the room as left, or as one it was invited to again: what is new is how that ended.
		return true, s.tellLastChange(r, res)
	}
	was := ""
	if r.sent.events != never {
		if was, err = s.membershipAt(*r.Membership, from); err != nil {
			return false, err
		}
	}
	res.initial = was != "join"
	if err := s.tellContents(r, from, r.LeftPosition, res, sent); err != nil {
		return false, err
	}
	if r.Position > r.LeftPosition && len(res.timeline) == 0 {
		return true, s.tellLastChange(r, res)
	}
	return true, nil
}

// tellJoined tells of a room that the user is in.
func (s *slider) tellJoined(r *listedRoom, from storage.Position, res *roomResult, sent *sentRoom) (told bool, err error) {
	res.initial = r.sent.events == never
	if !res.initial {
		if res.initial, err = s.membershipChanged(r.Membership, from); err != nil {
			return false, err
		}
	}
	if err := s.tellContents(r, from, s.until, res, sent); err != nil {
		return false, err
	}
	return !res.empty(), nil
}

// empty reports that nothing of a room's contents changed.
func (r *roomResult) empty() bool {
	return !r.initial && !r.expanded && !r.limited && len(r.timeline) == 0 && len(r.state) == 0 && len(r.deleted) == 0 &&
		!r.name.changed && !r.avatar.changed && r.summary == nil && r.bumpStamp == 0
}

// tellContents tells timeline and state of a room in (from, until], or all of them if the result is initial.
func (s *slider) tellContents(r *listedRoom, from, until storage.Position, res *roomResult, sent *sentRoom) error {
	if err := s.tellTimeline(r, from, until, res, sent); err != nil {
		return err
	}
	end, err := s.Rooms.StateAtPosition(s.ctx, r.RoomNID, until)
	if err != nil {
		return fmt.Errorf("state at %d: %w", until, err)
	}
	var delta []rooms.StateChange
	if !res.initial && from < until {
		start, err := s.Rooms.StateAtPosition(s.ctx, r.RoomNID, from)
		if err != nil {
			return fmt.Errorf("state at %d: %w", from, err)
		}
		if delta, err = s.Rooms.StateDelta(s.ctx, start, end); err != nil {
			return fmt.Errorf("state delta: %w", err)
		}
	}
	if err := s.tellState(r, end, delta, res, sent); err != nil {
		return err
	}
	return s.tellSummary(r, end, delta, res)
}

// tellTimeline reads the newest events, and expands what the client has when it asks for more of them than before.
// spec: MSC4186#changes-to-timeline_limit
func (s *slider) tellTimeline(r *listedRoom, from, until storage.Position, res *roomResult, sent *sentRoom) error {
	limit := r.config.timelineLimit
	if res.initial {
		sent.low, sent.limit = noEvents, 0
	}
	read := func(since storage.Position) (*rooms.Timeline, []*rooms.Event, error) {
		partly := since == 0 || r.Position > since || r.Membership.Membership != "join"
		return s.readTimeline(rooms.TimelineRequest{Room: r.RoomNID, Since: since, Until: until, Limit: limit}, partly)
	}
	since := from
	if res.initial || limit > sent.limit {
		since = 0
	}
	page, events, err := read(since)
	if err != nil {
		return err
	}
	known := sent.limit
	if since == 0 && !page.Limited {
		known = maxTimeline // there is no more to expand to
	} else if since == 0 {
		known = limit
	}
	if !res.initial && since == 0 {
		if len(page.Events) > 0 && page.Events[0].Pos < sent.low {
			res.expanded = true
		} else if page, events, err = read(from); err != nil { // the client has all of them but the new ones
			return err
		}
	}
	fresh := res.initial || res.expanded || page.Limited || sent.low == noEvents // what the client has begins with this
	if fresh {
		sent.low = noEvents
		if len(page.Events) > 0 {
			sent.low = page.Events[0].Pos
		}
	}
	if page.Limited && !res.initial && !res.expanded {
		known = limit
	}
	sent.limit = known
	if limit == 0 {
		if !page.Limited {
			return nil
		}
		return s.tellBump(r, from, nil, res)
	}
	res.events, res.limited = events, page.Limited
	if res.timeline, err = s.renderTimeline(page, events); err != nil {
		return err
	}
	page.PrevBatch.Seen = until
	res.prevBatch = page.PrevBatch.String()
	if !s.r.initial() {
		for _, ev := range events {
			if ev.Pos > s.since {
				res.numLive++
			}
		}
	}
	return s.tellBump(r, from, events, res)
}

// tellBump tells when the room was bumped last, if that may have changed.
func (s *slider) tellBump(r *listedRoom, from storage.Position, events []*rooms.Event, res *roomResult) error {
	if r.Membership.Membership != "join" {
		return nil
	}
	for _, ev := range slices.Backward(events) {
		if bumps(ev) && ev.Pos > from {
			res.bumpStamp = ev.Pos
			return nil
		}
	}
	hidden := r.config.timelineLimit == 0
	if !res.initial && !res.limited && !hidden {
		return nil
	}
	at, err := s.bumpStamp(s.ctx, r.RoomNID)
	if err != nil {
		return err
	}
	if at == 0 {
		at = r.Position
	}
	if at > from || !hidden || res.initial {
		res.bumpStamp = at
	}
	return nil
}

// tellState tells the state that is asked for: all of it, or what changed and what was not asked for before.
// spec: MSC4186#changes-to-required_state
func (s *slider) tellState(r *listedRoom, end rooms.State, delta []rooms.StateChange, res *roomResult, sent *sentRoom) error {
	wanted := r.config.state
	known := s.base.config(r.sent)
	if res.initial {
		known = nil
	}
	place := make(map[matrix.StateKey]bool)
	var state []*rooms.Event
	put := func(ev *rooms.Event) {
		if k := stateKeyOf(ev); !place[k] {
			place[k] = true
			state = append(state, ev)
		}
	}
	lazy := wanted.lazy()
	missed := false // a change that the client would have been told of by what it asked for before
	for _, c := range delta {
		member := lazy && c.Key.Type == "m.room.member" && !res.limited
		switch {
		case !wanted.matches(c.Key) && !member:
			missed = missed || known.matches(c.Key)
		case c.New != nil:
			put(c.New)
		default:
			res.deleted = append(res.deleted, c.Key)
		}
	}
	switch {
	case !s.covers(known, wanted):
		added, err := wanted.pick(s.ctx, end, known)
		if err != nil {
			return err
		}
		for _, ev := range added {
			put(ev)
		}
		sent.config = s.draft.number(wanted)
	case missed:
		sent.config = s.draft.number(wanted)
	}
	if lazy {
		if err := s.tellLazyMembers(r, end, res, place, put); err != nil {
			return err
		}
	}
	for _, ev := range state {
		raw, err := s.render(ev, nil)
		if err != nil {
			return err
		}
		res.state = append(res.state, raw)
	}
	return nil
}

// tellLazyMembers adds the members whom the timeline is about, but those that the client was told before and that have not
// changed. Where there is a gap it may have forgotten whom it knows. spec: MSC4186#lazy-loaded-memberships
func (s *slider) tellLazyMembers(r *listedRoom, end rooms.State, res *roomResult, place map[matrix.StateKey]bool, put func(*rooms.Event)) error {
	var keys []matrix.StateKey
	want := func(user string) {
		k := matrix.StateKey{Type: "m.room.member", Key: user}
		if !place[k] && !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	for _, ev := range res.events {
		want(string(ev.Sender()))
		if ev.IsState() && ev.Type() == "m.room.member" {
			key, _ := ev.StateKey()
			want(key)
		}
	}
	events, err := end.Events(s.ctx, keys...)
	if err != nil {
		return fmt.Errorf("members in the timeline: %w", err)
	}
	for _, ev := range res.events {
		i := slices.Index(keys, matrix.StateKey{Type: "m.room.member", Key: string(ev.Sender())})
		if i < 0 || events[i] != nil || !ev.Partial {
			continue
		}
		// The state is partial: a sender's event is what there is to say that they are a member.
		if events[i], err = s.Rooms.SenderMember(s.ctx, ev); err != nil {
			return err
		}
	}
	events = slices.DeleteFunc(events, func(ev *rooms.Event) bool { return ev == nil })
	room := lazyRoom{s.r.User, s.r.Device, "c" + s.q.ConnID, r.Room}
	since := s.since
	if res.initial {
		since = 0
	}
	for _, ev := range s.lazy.drop(room, since, s.until, events, res.limited) {
		put(ev)
	}
	return nil
}

// tellSummary tells what clients name and picture a room by, if it changed.
func (s *slider) tellSummary(r *listedRoom, end rooms.State, delta []rooms.StateChange, res *roomResult) error {
	changed := func(eventType string) bool {
		return slices.ContainsFunc(delta, func(c rooms.StateChange) bool {
			return c.Key.Type == eventType && (c.Key.Key == "" || eventType == "m.room.member")
		})
	}
	events, err := end.Events(s.ctx, matrix.StateKey{Type: "m.room.name"}, matrix.StateKey{Type: "m.room.avatar"})
	if err != nil {
		return fmt.Errorf("name and avatar: %w", err)
	}
	text := func(i int, key string) string {
		if events[i] == nil {
			return ""
		}
		v, _ := events[i].ContentString(key)
		return v
	}
	name, avatar := text(0, "name"), text(1, "url")
	renamed, members := changed("m.room.name"), changed("m.room.member") || s.completed[r.RoomNID]
	res.name = changedText{renamed || res.initial && name != "", name}
	res.avatar = changedText{changed("m.room.avatar") || res.initial && avatar != "", avatar}
	if r.Membership.Membership != "join" || !res.initial && !members && !renamed {
		return nil
	}
	summary, err := s.Rooms.MemberSummary(s.ctx, r.RoomNID, s.r.User)
	if err != nil {
		return fmt.Errorf("summary: %w", err)
	}
	if res.initial || members {
		res.summary = summary
	}
	if name != "" {
		return nil
	}
	keys := make([]matrix.StateKey, len(summary.Heroes))
	for i, u := range summary.Heroes {
		keys[i] = matrix.StateKey{Type: "m.room.member", Key: string(u)}
	}
	if events, err = end.Events(s.ctx, keys...); err != nil {
		return fmt.Errorf("heroes: %w", err)
	}
	for i, u := range summary.Heroes {
		h := hero{user: u}
		if events[i] != nil {
			h.displayname, _ = events[i].ContentString("displayname")
			h.avatar, _ = events[i].ContentString("avatar_url")
		}
		res.heroes = append(res.heroes, h)
	}
	return nil
}
