package rooms

import (
	"cmp"
	"context"
	"slices"

	"hanok/storage"
)

// tail is the end of a room's timeline in memory, so that those who follow the room are told of an event without the
// database being asked for each of them. Immutable.
type tail struct {
	from   storage.Position // every event of the timeline after this is in the list
	events []tailEvent      // oldest first
	// deepest is the deepest event of all that are stored; deepestKnown: it is the deepest of all there ever were.
	deepest      place
	deepestKnown bool
}

type tailEvent struct {
	nid    storage.EventNID
	at     place
	before place // the deepest of those that came earlier
}

// place orders a room's events for /messages.
type place struct {
	depth int64
	pos   storage.Position
}

func (p place) less(q place) bool { return p.depth < q.depth || p.depth == q.depth && p.pos < q.pos }

// maxTail is how many events of a room's timeline are remembered.
const maxTail = 64

// after is the tail with the events of one update, which were stored in this order. Of a nil tail nothing is known.
func (t *tail) after(u *roomUpdate) *tail {
	if u.whole != nil {
		// Events of before may have come or gone.
		return &tail{from: u.pos}
	}
	first, stored := cmp.Or(u.first, u.pos), u.stored
	next := &tail{from: first - 1, deepestKnown: u.created}
	if t != nil {
		*next = *t
	}
	next.events = slices.Clip(next.events)
	for _, s := range stored {
		at := place{s.it.ev.Depth(), s.pos}
		switch {
		case s.pos < 0:
			// History may be deeper than what came later.
			next.from, next.events = max(next.from, first), nil
			for _, other := range stored {
				next.from = max(next.from, other.pos)
			}
		case s.pos > 0:
			next.events = append(next.events, tailEvent{s.it.ev.NID, at, next.deepest})
		default:
			continue
		}
		if next.deepest.less(at) {
			next.deepest = at
		}
	}
	if n := len(next.events) - maxTail; n > 0 {
		next.from = next.events[n-1].at.pos
		next.events = slices.Clone(next.events[n:])
	}
	return next
}

// backward lists up to limit events with since < position <= until, the newest first; false if the tail does not reach that far.
func (t *tail) backward(since, until storage.Position, limit int) ([]storage.EventNID, bool) {
	if t == nil || since < t.from {
		return nil, false
	}
	var nids []storage.EventNID
	for i := len(t.events) - 1; i >= 0 && t.events[i].at.pos > since && len(nids) < limit; i-- {
		if t.events[i].at.pos <= until {
			nids = append(nids, t.events[i].nid)
		}
	}
	return nids, true
}

// deepestBefore is the deepest event that came before one of the tail.
func (t *tail) deepestBefore(pos storage.Position) (place, bool) {
	if t == nil || !t.deepestKnown {
		return place{}, false
	}
	i, ok := slices.BinarySearchFunc(t.events, pos, func(e tailEvent, pos storage.Position) int { return int(e.at.pos - pos) })
	if !ok {
		return place{}, false
	}
	return t.events[i].before, true
}

// gapSet are the events of a room before which some are missing.
type gapSet struct {
	era    int // of committed
	events map[storage.EventNID]bool
}

// notedChange is the last change of a room, committed or on its way, and the one before.
type notedChange struct{ first, last, before storage.Position }

// note remembers a change that is about to be committed. Only the committer notes.
func (r *room) note(first, last storage.Position) {
	n := &notedChange{first: first, last: last}
	if was := r.noted.Load(); was != nil {
		n.before = was.last
	}
	r.noted.Store(n)
}

// settled is a room as readers see it if it is in memory as it was at a position or later; else nil: a change is on its way to
// those who look at what is in memory.
func (e *Engine) settled(nid storage.RoomNID, at storage.Position) (*room, *committed) {
	e.mu.Lock()
	r := e.byNID[nid]
	e.mu.Unlock()
	if r == nil {
		return nil, nil
	}
	noted := r.noted.Load() // before what is committed, which may go on meanwhile
	c := r.committed.Load()
	if c == nil {
		return nil, nil
	}
	if noted == nil || c.pos >= at || noted.last <= c.pos || noted.first > at && noted.before <= c.pos {
		return r, c
	}
	return nil, nil
}

func (e *Engine) timelineBackward(ctx context.Context, room storage.RoomNID, since, until storage.Position, limit int) ([]storage.EventNID, error) {
	if _, c := e.settled(room, until); c != nil {
		if nids, ok := c.tail.backward(since, until, limit); ok {
			return nids, nil
		}
	}
	return storage.TimelineBackward(ctx, e.db, room, since, until, limit)
}

// gaps are the events of a room before which some are missing here: what is stored from before
// them is not what came just before, so a timeline must not run across.
func (e *Engine) gaps(ctx context.Context, room storage.RoomNID) (map[storage.EventNID]bool, error) {
	r, c := e.settled(room, e.db.Current())
	if c != nil {
		if g := r.gaps.Load(); g != nil && g.era == c.gapsEra {
			return g.events, nil
		}
	}
	nids, err := storage.EventsAfterGaps(ctx, e.db, room)
	if err != nil {
		return nil, err
	}
	gaps := make(map[storage.EventNID]bool, len(nids))
	for _, nid := range nids {
		gaps[nid] = true
	}
	if c != nil {
		r.gaps.Store(&gapSet{c.gapsEra, gaps})
	}
	return gaps, nil
}
