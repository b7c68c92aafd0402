package feed

import (
	"context"
	"fmt"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// stateChanges are the state events that go beside a timeline, so that a client which
// applies them, and then the timeline, has the room's current state.
//
// With StateAfter it is the whole difference between what the client knows and the end of the
// timeline. Without, it is the difference up to the start of the timeline, and
// what state resolution changed since without an event in the timeline saying so.
// spec: cs/sync state, state_after
func (s *syncer) stateChanges(w *roomWork, since, until storage.Position, page *rooms.Timeline, timeline []*rooms.Event, summary *roomSummary) ([]*rooms.Event, error) {
	end, err := s.Rooms.StateAtPosition(s.ctx, w.nid, until)
	if err != nil {
		return nil, fmt.Errorf("state at %d: %w", until, err)
	}
	var known rooms.State
	if !w.whole && since > 0 {
		if known, err = s.Rooms.StateAtPosition(s.ctx, w.nid, since); err != nil {
			return nil, fmt.Errorf("state at %d: %w", since, err)
		}
	}
	start := end
	if len(timeline) > 0 && !s.r.StateAfter {
		if start, err = s.Rooms.StateBefore(s.ctx, timeline[0]); err != nil {
			return nil, fmt.Errorf("state before the timeline: %w", err)
		}
	}
	lazy := s.r.Filter.Room.State.LazyLoadMembers
	var wanted map[matrix.UserID]bool
	if lazy {
		wanted = s.lazyMembers(w, timeline, summary)
	}
	// A gap hides changes of members: they are told whoever they are about.
	gap := page.Limited && !w.whole
	keep := func(key matrix.StateKey) bool {
		return !lazy || key.Type != "m.room.member" || gap || wanted[matrix.UserID(key.Key)]
	}

	delta := s.Rooms.StateDelta
	if lazy && !gap {
		delta = func(ctx context.Context, from, to rooms.State) ([]rooms.StateChange, error) {
			return s.Rooms.StateDeltaLazy(ctx, from, to, wanted)
		}
	}
	diff, err := delta(s.ctx, known, start)
	if err != nil {
		return nil, fmt.Errorf("state delta: %w", err)
	}
	out := make([]*rooms.Event, 0, len(diff))
	place := make(map[matrix.StateKey]int, len(diff))
	put := func(key matrix.StateKey, ev *rooms.Event) {
		if ev == nil || !keep(key) {
			return
		}
		if i, ok := place[key]; ok {
			out[i] = ev
			return
		}
		place[key] = len(out)
		out = append(out, ev)
	}
	for _, c := range diff {
		put(c.Key, c.New)
	}
	if start != end {
		shown := make(map[matrix.StateKey]bool)
		for _, ev := range timeline {
			if key, ok := ev.StateKey(); ok {
				shown[matrix.StateKey{Type: ev.Type(), Key: key}] = true
			}
		}
		diff, err := delta(s.ctx, start, end)
		if err != nil {
			return nil, fmt.Errorf("state delta: %w", err)
		}
		for _, c := range diff {
			if !shown[c.Key] {
				put(c.Key, c.New)
			}
		}
	}
	if lazy && !w.whole {
		// Senders whose membership did not change, but whom the client may never have been told of.
		for user := range wanted {
			key := matrix.StateKey{Type: "m.room.member", Key: string(user)}
			if _, ok := place[key]; ok {
				continue
			}
			ev, err := start.Event(s.ctx, key.Type, key.Key)
			if err != nil {
				return nil, err
			}
			put(key, ev)
		}
	}
	if lazy {
		// Where the state is partial, a sender's event is what there is to say that they are a member.
		for _, ev := range timeline {
			key := matrix.StateKey{Type: "m.room.member", Key: string(ev.Sender())}
			if _, ok := place[key]; ok || !ev.Partial {
				continue
			}
			member, err := s.Rooms.SenderMember(s.ctx, ev)
			if err != nil {
				return nil, err
			}
			put(key, member)
		}
	}
	if lazy && !s.r.Filter.Room.State.IncludeRedundantMembers {
		out = s.lazy.drop(lazyRoom{user: s.r.User, device: s.r.Device, room: w.room}, s.since, s.until, out, gap || s.r.FullState)
	}
	return out, nil
}

// lazyMembers are the users whose membership a client that loads members lazily must be told:
// the senders in the timeline, the heroes if the client is told some, and the user itself in a room that is new to it.
// spec: client-server-api#lazy-loading-room-members
func (s *syncer) lazyMembers(w *roomWork, timeline []*rooms.Event, summary *roomSummary) map[matrix.UserID]bool {
	wanted := make(map[matrix.UserID]bool)
	for _, ev := range timeline {
		wanted[ev.Sender()] = true
	}
	if w.whole {
		wanted[s.r.User] = true
	}
	if summary != nil && !summary.named {
		for _, u := range summary.Heroes {
			wanted[u] = true
		}
	}
	return wanted
}
