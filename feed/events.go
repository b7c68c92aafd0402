package feed

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
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
	if q.From == (Token{}) {
		q.From = At(f.DB.Current())
	}
	timer := time.NewTimer(q.Timeout)
	defer timer.Stop()
	for wait := true; ; {
		page, err := f.eventsUntil(ctx, &q, max(q.From.Pos, f.DB.Current()))
		if err != nil || !wait || len(page.Events) > 0 || f.Hub.Stopping() {
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
	return page, nil
}
