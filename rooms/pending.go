package rooms

import (
	"slices"
	"sync"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

// pendingEvents are events built but not committed: they are in no cache, but the head refers to them.
type pendingEvents struct {
	mu    sync.Mutex
	byNID map[storage.EventNID]pendingEvent
	byID  map[matrix.EventID]*Event
	open  int // how many follow on something missing
	// restated is what restate.go is making of events, nil at most times. It counts more than what is known of them otherwise.
	restated map[storage.EventNID]verdict
	// erased are events in the form that redactions among these leave of them, which counts for what follows.
	erased map[storage.EventNID]*Event
}

type pendingEvent struct {
	ev      *Event
	after   statetree.Tree
	missing []storage.MissingPrev // that it follows on
}

// verdict is what an event is found to be once the whole state before it is known.
type verdict struct {
	before   statetree.Ref
	after    statetree.Tree
	rejected bool
}

// now is an event as it has been found to be; p.mu is held.
func (p *pendingEvents) now(ev *Event) *Event {
	if redacted := p.erased[ev.NID]; redacted != nil {
		ev = redacted
	}
	if v, ok := p.restated[ev.NID]; ok {
		found := *ev
		found.Partial, found.stateBefore, found.Rejected = false, v.before, v.rejected
		return &found
	}
	return ev
}

// changed says whether any event is other than what is known of it otherwise; p.mu is held.
func (p *pendingEvents) changed() bool { return len(p.restated)+len(p.erased) > 0 }

// list returns all, as they were before they are restated.
func (p *pendingEvents) list() []*Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*Event, 0, len(p.byNID))
	for _, ev := range p.byNID {
		out = append(out, ev.ev)
	}
	return out
}

func (p *pendingEvents) restate(nid storage.EventNID, v verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.restated == nil {
		p.restated = make(map[storage.EventNID]verdict)
	}
	p.restated[nid] = v
}

func (p *pendingEvents) dropRestated() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.restated = nil
}

// get returns an event that is not committed, nil if there is none.
func (p *pendingEvents) get(nid storage.EventNID) *Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found, ok := p.byNID[nid]; ok {
		return p.now(found.ev)
	}
	return nil
}

// as is an event that was committed as it has been found to be.
func (p *pendingEvents) as(ev *Event) *Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now(ev)
}

// placed gives an event that is committed its place in the timeline.
func (p *pendingEvents) placed(ev *Event, pos storage.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ev.Pos = pos
}

func (p *pendingEvents) add(it *item, after statetree.Tree, missing ...storage.MissingPrev) {
	p.mu.Lock()
	defer p.mu.Unlock()
	ev := it.ev
	for _, er := range it.erased {
		if p.erased == nil {
			p.erased = make(map[storage.EventNID]*Event)
		}
		p.erased[er.target.NID] = er.target
	}
	if len(missing) > 0 {
		p.open++
	}
	if p.byNID == nil {
		p.byNID = make(map[storage.EventNID]pendingEvent)
		p.byID = make(map[matrix.EventID]*Event)
	}
	p.byNID[ev.NID] = pendingEvent{ev, after, missing}
	p.byID[ev.ID()] = ev
}

func (p *pendingEvents) drop(items []*item) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range items {
		for _, er := range it.erased {
			delete(p.erased, er.target.NID)
		}
		if len(p.byNID[it.ev.NID].missing) > 0 {
			p.open--
		}
		delete(p.byNID, it.ev.NID)
		delete(p.byID, it.ev.ID())
	}
}

// addPending is pending.add; r.mu is held.
func (r *room) addPending(it *item, after statetree.Tree, missing ...storage.MissingPrev) {
	if slices.ContainsFunc(it.erased, func(er erasure) bool { return er.target.IsState() }) {
		r.memo = authMemo{}
	}
	r.pending.add(it, after, missing...)
}

// before returns the depth of an event that follows on a missing one; 0 if there is none.
func (p *pendingEvents) before(missing matrix.EventID) (depth int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == 0 {
		return 0
	}
	for _, child := range p.byNID {
		for _, m := range child.missing {
			if m.ID == missing {
				depth = max(depth, m.Depth)
			}
		}
	}
	return depth
}
