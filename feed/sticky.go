package feed

import (
	"encoding/json"
	"fmt"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// maxSticky bounds the sticky events of a response, besides those of rooms that the user has just joined, and of each of these.
const maxSticky = 100

// stickyWork finds the sticky events that came since the client was told of the last, and all live ones of rooms that are new to
// it. What does not fit is left for the next response: the token says where to go on. spec: MSC4354#current-sync
func (s *syncer) stickyWork(work map[matrix.RoomID]*roomWork, joined *joinedRooms) error {
	events, more, err := s.Rooms.StickyEventsOf(s.ctx, s.r.User, rooms.StickyRequest{Since: s.r.Since.Sticky, Until: s.until, Limit: maxSticky})
	if err != nil {
		return fmt.Errorf("sticky events: %w", err)
	}
	if more {
		s.stickyUntil = events[len(events)-1].Position
	}
	for _, ev := range events {
		if w := workOf(work, joined, ev.RoomID()); w != nil && !s.newTo(w) {
			w.sticky = append(w.sticky, ev.Event)
		}
	}
	for _, w := range work {
		if !s.newTo(w) {
			continue
		}
		events, more, err := s.Rooms.StickyEvents(s.ctx, w.nid, rooms.StickyRequest{Until: s.until, Limit: maxSticky})
		if err != nil {
			return fmt.Errorf("sticky events: %w", err)
		}
		for _, ev := range events {
			w.sticky = append(w.sticky, ev.Event)
		}
		if more {
			// Some of other rooms are told again with the rest.
			s.stickyUntil = min(s.stickyUntil, events[len(events)-1].Position)
		}
	}
	return nil
}

// newTo says whether the user has joined a room since the last response.
func (s *syncer) newTo(w *roomWork) bool {
	return w.whole && w.section == "join" && !s.r.initial() && !s.r.FullState
}

// renderSticky gives the sticky events that are not shown in the timeline.
func (s *syncer) renderSticky(w *roomWork) ([]json.RawMessage, error) {
	if len(w.sticky) == 0 {
		return nil, nil
	}
	shown := make(map[storage.EventNID]bool, len(w.timeline))
	for _, ev := range w.timeline {
		shown[ev.NID] = true
	}
	var out []json.RawMessage
	for _, ev := range w.sticky {
		if shown[ev.NID] || s.ignored[ev.Sender()] && !ev.IsState() {
			continue
		}
		raw, err := s.render(ev, nil)
		if err != nil {
			return nil, err
		}
		out = append(out, raw)
	}
	return out, nil
}
