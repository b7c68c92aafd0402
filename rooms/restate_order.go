package rooms

import (
	"context"
	"maps"
	"slices"

	"hanok/storage"
	"hanok/storage/statetree"
)

// partialEvents lists the events of a room that follow on a partial state, committed or not, in no order.
func (r *room) partialEvents(ctx context.Context) ([]storage.EventNID, error) {
	seen := make(map[storage.EventNID]bool)
	for _, ev := range r.pending.list() { // before the database is asked: an event is in one or the other
		if ev.Partial {
			seen[ev.NID] = true
		}
	}
	stored, err := storage.PartialEvents(ctx, r.e.db, r.nid)
	for _, nid := range stored {
		seen[nid] = true
	}
	return slices.Collect(maps.Keys(seen)), err
}

// following is an event and what has to be judged before it: prev events, auth events, and those in states that were told.
type following struct {
	nid   storage.EventNID
	prevs []storage.EventNID
}

// topological orders events so that what comes before an event is worked on first. Where they follow on one another in a circle, which up to room
// version 2 they can, the one that came first is the first.
func topological(events []following) []storage.EventNID {
	waits := make(map[storage.EventNID]int, len(events))
	children := make(map[storage.EventNID][]storage.EventNID)
	byNumber := make([]storage.EventNID, len(events))
	for i, ev := range events {
		waits[ev.nid] = 0
		byNumber[i] = ev.nid
	}
	slices.Sort(byNumber)
	for _, ev := range events {
		for _, p := range ev.prevs {
			if _, ok := waits[p]; ok {
				waits[ev.nid]++
				children[p] = append(children[p], ev.nid)
			}
		}
	}
	var ready []storage.EventNID
	for _, nid := range byNumber {
		if waits[nid] == 0 {
			ready = append(ready, nid)
		}
	}
	out := make([]storage.EventNID, 0, len(events))
	for left := byNumber; len(out) < len(events); {
		if len(ready) == 0 {
			for waits[left[0]] <= 0 {
				left = left[1:]
			}
			waits[left[0]] = 0
			ready = append(ready, left[0])
		}
		nid := ready[0]
		ready = ready[1:]
		out = append(out, nid)
		for _, c := range children[nid] {
			if waits[c]--; waits[c] == 0 {
				ready = append(ready, c)
			}
		}
	}
	return out
}

// following lists what has to be judged before an event.
func (rs *restatement) following(ctx context.Context, ev *Event) (following, error) {
	f := following{nid: ev.NID, prevs: slices.Clone(ev.auths)}
	if ev.Outlier {
		return f, nil
	}
	known, err := rs.room.eventsByID(ctx, ev.PrevEvents())
	if err != nil {
		return f, err
	}
	for _, p := range known {
		f.prevs = append(f.prevs, p.NID)
	}
	states := []statetree.Tree{rs.told[ev.NID]}
	if len(missingPrevs(ev.Event, known)) > 0 {
		told, err := rs.room.toldAfter(ctx, ev)
		if err != nil {
			return f, err
		}
		for _, ref := range told {
			states = append(states, rs.room.e.forest.At(ref))
		}
	}
	for _, t := range states {
		if t.Ref() == 0 {
			continue
		}
		found, err := among(ctx, t, rs.all, rs.first)
		if err != nil {
			return f, err
		}
		for _, en := range found {
			f.prevs = append(f.prevs, storage.EventNID(en.Event))
		}
	}
	slices.Sort(f.prevs)
	f.prevs = slices.Compact(f.prevs)
	return f, nil
}
