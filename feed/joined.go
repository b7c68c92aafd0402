package feed

import (
	"encoding/json"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// joinedRoom is a room's part of a response, in join or in leave.
type joinedRoom struct {
	room         matrix.RoomID
	timeline     []json.RawMessage
	sticky       []json.RawMessage
	limited      bool
	prevBatch    string // "" if no timeline is shown
	state        []json.RawMessage
	ephemeral    []json.RawMessage
	accountData  []json.RawMessage
	summary      *roomSummary
	notification *unreadCounts
}

func (j *joinedRoom) empty() bool {
	return len(j.timeline) == 0 && len(j.sticky) == 0 && len(j.state) == 0 && len(j.ephemeral) == 0 && len(j.accountData) == 0
}

// joined tells of a room the user is in.
func (s *syncer) joined(w *roomWork) (*joinedRoom, error) {
	j := &joinedRoom{room: w.room}
	filter := &s.r.Filter.Room
	if w.events {
		since := s.since
		if w.whole && !s.r.FullState {
			since = 0
		}
		if err := s.timelineAndState(j, w, since, s.until); err != nil {
			return nil, err
		}
	}
	var err error
	if j.sticky, err = s.renderSticky(w); err != nil {
		return nil, err
	}
	s.roomAccountData(j, w)
	if filter.Ephemeral.AcceptsRoom(w.room) {
		if err := s.ephemeral(j, w); err != nil {
			return nil, err
		}
	}
	if w.events || w.notified || len(w.receipts) > 0 {
		counts, err := s.unread(w)
		if err != nil {
			return nil, err
		}
		j.notification = counts
	}
	return j, nil
}

// roomAccountData adds the user's data of a room.
func (s *syncer) roomAccountData(j *joinedRoom, w *roomWork) {
	filter := &s.r.Filter.Room.AccountData
	if !filter.AcceptsRoom(w.room) {
		return
	}
	for _, d := range w.accountData {
		if filter.Accepts(d.Type, string(s.r.User)) {
			j.accountData = append(j.accountData, accountDataEvent(d))
		}
	}
	j.accountData = filter.newest(j.accountData)
}

// left tells of a room the user has left, up to the moment they did; nil if there is nothing to tell.
func (s *syncer) left(w *roomWork) (*joinedRoom, error) {
	was := "join"
	if !w.whole {
		var err error
		if was, err = s.membershipAt(w.membership, s.since); err != nil {
			return nil, err
		}
	}
	j := &joinedRoom{room: w.room}
	if was != "join" {
		if w.membership.LeftPosition <= s.since {
			// An invite that was turned down, or a ban after a leave: the user saw nothing else of the room.
			return s.lastChange(j, w)
		}
		w.whole = true // came and went between two syncs
	}
	until := min(s.until, w.membership.Position)
	since := s.since
	if w.whole {
		since = 0
		if w.membership.LeftPosition > 0 {
			until = min(until, w.membership.LeftPosition)
		}
	}
	if err := s.timelineAndState(j, w, since, until); err != nil {
		return nil, err
	}
	if len(j.timeline) == 0 && len(j.state) == 0 {
		return s.lastChange(j, w)
	}
	return j, nil
}

// lastChange shows nothing of a room but the event that ended the user's membership.
func (s *syncer) lastChange(j *joinedRoom, w *roomWork) (*joinedRoom, error) {
	if w.membership.Event == "" {
		return j, nil
	}
	ev, err := s.Rooms.Event(s.ctx, w.membership.Event)
	if err != nil {
		if matrix.HasCode(err, "M_NOT_FOUND") {
			return j, nil
		}
		return nil, err
	}
	raw, err := s.render(ev, nil)
	if err != nil {
		return nil, err
	}
	filter := &s.r.Filter.Room
	if s.r.StateAfter && filter.State.AcceptsRoom(w.room) && filter.State.AcceptsEvent(ev.Event) {
		j.state = append(j.state, raw)
	}
	if filter.Timeline.AcceptsRoom(w.room) && filter.Timeline.AcceptsEvent(ev.Event) && filter.Timeline.Most(1, 1) > 0 {
		j.timeline = append(j.timeline, raw)
	}
	token, err := s.Rooms.TokenAt(s.ctx, w.nid, w.membership.Position)
	if err != nil {
		return nil, err
	}
	j.prevBatch = token.String()
	return j, nil
}

// timelineAndState reads the newest events in (since, until] and the state that goes with them.
func (s *syncer) timelineAndState(j *joinedRoom, w *roomWork, since, until storage.Position) error {
	filter := &s.r.Filter.Room
	var keep rooms.Filter
	switch {
	case !filter.Timeline.AcceptsRoom(w.room):
		keep = func(*rooms.Event) bool { return false }
	case !filter.Timeline.All():
		keep = func(ev *rooms.Event) bool { return filter.Timeline.AcceptsEvent(ev.Event) }
	}
	page, events, err := s.readTimeline(rooms.TimelineRequest{
		Room: w.nid, Since: since, Until: until, Limit: filter.Timeline.Most(defaultTimeline, maxTimeline), Filter: keep,
	}, w.whole || w.membership.Position > s.since)
	if err != nil {
		return err
	}
	if w.whole && !s.r.initial() && !s.r.FullState {
		page.Limited = true // new to the client: there is history that it has not seen
	}
	if w.section == "join" && (w.whole || page.Limited || s.completed[w.nid] || slices.ContainsFunc(events, inSummary)) {
		if j.summary, err = s.summary(w, until); err != nil {
			return err
		}
	}
	w.timeline = events
	state, err := s.stateChanges(w, since, until, page, events, j.summary)
	if err != nil {
		return err
	}
	if w.section == "join" && j.summary == nil && slices.ContainsFunc(state, inSummary) {
		// State resolution changed a membership that the timeline does not show.
		if j.summary, err = s.summary(w, until); err != nil {
			return err
		}
		if state, err = s.stateChanges(w, since, until, page, events, j.summary); err != nil {
			return err
		}
	}
	if j.timeline, err = s.renderTimeline(page, events); err != nil {
		return err
	}
	for _, ev := range state {
		if !filter.State.AcceptsEvent(ev.Event) || !filter.State.AcceptsRoom(w.room) {
			continue
		}
		raw, err := s.render(ev, nil)
		if err != nil {
			return err
		}
		j.state = append(j.state, raw)
	}
	if len(j.timeline) > 0 || page.Limited || w.whole {
		page.PrevBatch.Seen = until
		j.limited, j.prevBatch = page.Limited, page.PrevBatch.String()
	}
	return nil
}

// readTimeline reads the newest events in a range of positions, and of these what the user may see and wants to. Who was
// not in the room all the time does not see all of it.
func (s *syncer) readTimeline(q rooms.TimelineRequest, partly bool) (*rooms.Timeline, []*rooms.Event, error) {
	page, err := s.Rooms.Timeline(s.ctx, q)
	if err != nil {
		return nil, nil, fmt.Errorf("timeline: %w", err)
	}
	events := page.Events
	if partly {
		if events, err = s.Rooms.Visible(s.ctx, s.r.User, events); err != nil {
			return nil, nil, fmt.Errorf("visible events: %w", err)
		}
		if len(events) < len(page.Events) && q.Since == 0 {
			page.Limited = true // what is hidden may be visible further back
		}
	}
	if len(s.ignored) > 0 {
		events = slices.DeleteFunc(slices.Clone(events), func(ev *rooms.Event) bool { return !ev.IsState() && s.ignored[ev.Sender()] })
	}
	return page, events, nil
}

// renderTimeline is what clients get of a timeline's events.
func (s *syncer) renderTimeline(page *rooms.Timeline, events []*rooms.Event) ([]json.RawMessage, error) {
	var relations map[storage.EventNID][]byte
	if page.Limited {
		// A client that has seen everything aggregates by itself. spec: client-server-api#aggregations-of-child-events
		reader := rooms.Reader{User: s.r.User, Device: s.r.Device, Ignored: s.ignored}
		var err error
		if relations, err = s.Rooms.Aggregations(s.ctx, reader, events, true); err != nil {
			return nil, fmt.Errorf("aggregations: %w", err)
		}
	}
	out := make([]json.RawMessage, 0, len(events))
	for _, ev := range events {
		raw, err := s.render(ev, relations[ev.NID])
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}

// inSummary reports whether an event may change the summary of a room.
func inSummary(ev *rooms.Event) bool {
	switch ev.Type() {
	case "m.room.member", "m.room.name", "m.room.canonical_alias":
		return ev.IsState()
	}
	return false
}

// roomSummary is the member summary of a room; heroes are for rooms that have no name.
type roomSummary struct {
	*rooms.MemberSummary
	named bool
}

func (s *syncer) summary(w *roomWork, until storage.Position) (*roomSummary, error) {
	members, err := s.Rooms.MemberSummary(s.ctx, w.nid, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("summary: %w", err)
	}
	state, err := s.Rooms.StateAtPosition(s.ctx, w.nid, until)
	if err != nil {
		return nil, fmt.Errorf("state at %d: %w", until, err)
	}
	named, err := state.Named(s.ctx)
	return &roomSummary{members, named}, err
}

// render is an event as the requesting device is told it, with its aggregations, which may be nil.
func (s *syncer) render(ev *rooms.Event, relations []byte) (json.RawMessage, error) {
	fields := s.r.Filter.fields
	if s.r.Filter.EventFormat == "federation" {
		// The event as servers exchange it, with its ID, which room versions since 3 leave to be computed.
		return fields.Append(nil, canonicaljson.Set(ev.JSON(), "event_id", canonicaljson.AppendString(nil, string(ev.ID())))), nil
	}
	raw, err := s.Rooms.AppendForSync(s.ctx, nil, ev, s.r.User, s.r.Device, s.now, relations)
	if err != nil {
		return nil, err
	}
	if fields != nil {
		raw = fields.Append(nil, raw)
	}
	return raw, nil
}

func accountDataEvent(d users.AccountDatum) json.RawMessage {
	return typedContent(d.Type, d.Content)
}
