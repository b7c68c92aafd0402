package feed

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// EventsRequest is a wait for events of the deprecated kind. spec: cs/getEvents, cs/peekEvents
type EventsRequest struct {
	User    matrix.UserID
	From    Token         // zero: only what comes from now on
	Room    matrix.RoomID // only this room, which the user may look into without being in it; "": all joined rooms
	Timeout time.Duration
}

// EventsPage is what came.
type EventsPage struct {
	Start, End Token
	Events     []*rooms.Event
	Beside     []json.RawMessage // what is no event of a room: presence, typing, receipts, account data
}

const maxEventsPage = 100 // of one room

// Events waits for the next events in a user's rooms, or in one room that can be peeked into. Events that do not fit into
// a page are left out, as in a timeline with a gap.
// spec: cs/getEvents, cs/peekEvents
func (f *Feed) Events(ctx context.Context, q EventsRequest) (*EventsPage, error) {
	who := q.User
	if q.Room != "" {
		who = peekers(q.Room)
	}
	woken, done := f.Hub.Register(who)
	defer done()
	if q.From == (Token{}) || q.From.Pos > f.DB.Current() { // the latter is from before a backup was restored
		q.From = At(f.DB.Current())
	}
	timer := time.NewTimer(q.Timeout)
	defer timer.Stop()
	for wait := true; ; {
		page, err := f.eventsUntil(ctx, &q, max(q.From.Pos, f.DB.Current()))
		if err != nil || !wait || len(page.Events)+len(page.Beside) > 0 || f.Hub.Stopping() {
			return page, err
		}
		select {
		case <-woken:
		case <-timer.C:
			wait = false
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (f *Feed) eventsUntil(ctx context.Context, q *EventsRequest, until storage.Position) (*EventsPage, error) {
	changed := []matrix.RoomID{q.Room}
	if q.Room == "" {
		var err error
		if changed, err = f.Rooms.ChangedRooms(ctx, q.User, q.From.Pos, until); err != nil {
			return nil, fmt.Errorf("changed rooms: %w", err)
		}
	} else if _, err := f.Rooms.VisibleState(ctx, q.User, q.Room); err != nil {
		return nil, err
	}
	ignored, err := f.Users.Accounts.Ignored(ctx, f.DB, q.User)
	if err != nil {
		return nil, err
	}
	page := &EventsPage{Start: q.From, End: At(until)}
	for _, room := range changed {
		nid, err := f.Rooms.RoomNID(ctx, room)
		if err != nil {
			return nil, err
		}
		t, err := f.Rooms.Timeline(ctx, rooms.TimelineRequest{Room: nid, Since: q.From.Pos, Until: until, Limit: maxEventsPage})
		if err != nil {
			return nil, fmt.Errorf("timeline: %w", err)
		}
		visible, err := f.Rooms.Visible(ctx, q.User, t.Events)
		if err != nil {
			return nil, fmt.Errorf("visible events: %w", err)
		}
		for _, ev := range visible {
			if ev.IsState() || !ignored[ev.Sender()] {
				page.Events = append(page.Events, ev)
			}
		}
	}
	slices.SortFunc(page.Events, func(a, b *rooms.Event) int { return cmp.Compare(a.Pos, b.Pos) })
	page.Beside, err = f.besides(ctx, q, until)
	return page, err
}

// besides is what changed that is no event of a room.
func (f *Feed) besides(ctx context.Context, q *EventsRequest, until storage.Position) ([]json.RawMessage, error) {
	var (
		joined   = &joinedRooms{}
		receipts []users.Receipt
		data     []users.AccountDatum
		err      error
	)
	if q.Room != "" {
		receipts, err = f.Users.Receipts.Changed(ctx, f.DB, []matrix.RoomID{q.Room}, q.User, q.From.Pos, until)
	} else {
		if joined.now, err = f.Rooms.UserRooms(ctx, q.User); err != nil {
			return nil, fmt.Errorf("rooms: %w", err)
		}
		if data, err = f.Users.AccountData.Changed(ctx, f.DB, q.User, q.From.Pos, until); err != nil {
			return nil, fmt.Errorf("account data: %w", err)
		}
		receipts, err = f.Users.Receipts.ChangedIn(ctx, f.DB, joined, q.User, q.From.Pos, until)
	}
	if err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	out, err := f.changedPresence(ctx, q, until)
	if err != nil {
		return nil, err
	}
	for _, room := range f.Typing.Changed(q.From.Pos) {
		typing, at := f.Typing.Users(room)
		if at > until || room != q.Room && !joined.Has(room) {
			continue
		}
		event, err := typingEvent(typing)
		if err != nil {
			return nil, err
		}
		out = append(out, inRoom(event, room))
	}
	byRoom := make(map[matrix.RoomID][]users.Receipt)
	for _, rc := range receipts {
		byRoom[rc.Room] = append(byRoom[rc.Room], rc)
	}
	for _, room := range slices.Sorted(maps.Keys(byRoom)) {
		out = append(out, receiptEvent(room, byRoom[room]))
	}
	for _, d := range data {
		event := typedContent(d.Type, d.Content)
		if d.Room != "" {
			event = inRoom(event, d.Room)
		}
		out = append(out, event)
	}
	return out, nil
}

// changedPresence is the new presence of whom the requester shares a room with, or of the members of the one room.
func (f *Feed) changedPresence(ctx context.Context, q *EventsRequest, until storage.Position) ([]json.RawMessage, error) {
	changed := f.Users.Presence.Changed(q.From.Pos)
	if len(changed) == 0 {
		return nil, nil
	}
	var seen []matrix.UserID
	var err error
	if q.Room != "" {
		seen, err = f.Rooms.JoinedUsers(ctx, q.Room)
	} else {
		seen, err = f.Rooms.Sharing(ctx, q.User)
	}
	if err != nil {
		return nil, fmt.Errorf("whose presence may be seen: %w", err)
	}
	may := make(map[matrix.UserID]bool, len(seen))
	for _, user := range seen {
		may[user] = true
	}
	may[q.User] = may[q.User] || q.Room == ""
	var of []matrix.UserID
	for _, p := range slices.Backward(changed) {
		if p.Position <= until && may[p.User] {
			of = append(of, p.User)
		}
	}
	return f.Presences(of)
}

// maxAbsent is among how many users those are told of who are offline for all that is known.
const maxAbsent = 1000

// Presences is the presence of some users in the form of the deprecated endpoints: with the user's ID in the content as well.
func (f *Feed) Presences(of []matrix.UserID) ([]json.RawMessage, error) {
	now := time.Now()
	out := []json.RawMessage{}
	for _, user := range of {
		p := f.Users.Presence.Get(user)
		if p.Position == 0 && len(of) > maxAbsent {
			continue
		}
		event, err := presenceEvent(p, now, true)
		if err != nil {
			return nil, err
		}
		out = append(out, event)
	}
	return out, nil
}

// RoomReceipts is the m.receipt event of a room for the deprecated endpoints, nil if there are no receipts.
func (f *Feed) RoomReceipts(ctx context.Context, room matrix.RoomID, user matrix.UserID) (json.RawMessage, error) {
	receipts, err := f.Users.Receipts.InRoom(ctx, f.DB, room, user)
	if err != nil || len(receipts) == 0 {
		return nil, err
	}
	return receiptEvent(room, receipts), nil
}

func receiptEvent(room matrix.RoomID, receipts []users.Receipt) json.RawMessage {
	return inRoom(typedContent("m.receipt", users.ReceiptContent(receipts)), room)
}

// inRoom adds the room to an event that /sync shows in its room's section.
func inRoom(event json.RawMessage, room matrix.RoomID) json.RawMessage {
	return canonicaljson.Set(event, "room_id", canonicaljson.AppendString(nil, string(room)))
}
