package rooms

import (
	"context"
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"hanok/matrix"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// room is the one owner of a room in this process.
type room struct {
	e       *Engine
	nid     storage.RoomNID
	id      matrix.RoomID
	version *roomversion.Version

	// inbound is held while remote events are worked on: a mutex that can be waited for with a context.
	inbound chan struct{}
	turns   int // how often inbound was taken; guarded by it
	lanes   lanes
	// unsettled is when those ends of branches may be asked about again of which nobody could tell where they belong.
	unsettled doubt

	mu   sync.Mutex
	head *head // the newest, perhaps not committed yet; nil: to be loaded
	line *line // the run of appends that head belongs to
	memo authMemo
	// waiting are soft-failed sticky events that another state may allow.
	waiting []waitingEvent

	checker eventauth.Checker // remembers power levels; needs no lock

	pending pendingEvents

	resolving sync.Mutex // held while states are resolved

	committed atomic.Pointer[committed]
	noted     atomic.Pointer[notedChange]
	gaps      atomic.Pointer[gapSet]
	joined    atomic.Pointer[joinedCount]
	pins      int // guarded by Engine.mu
}

// line is a run of appends, each built on the one before. When one fails to commit, all after it fail.
type line struct {
	err error // set by the committer, before it takes the room's lock to drop the head
}

// tip is a forward extremity.
type tip struct {
	nid   storage.EventNID
	id    matrix.EventID
	depth int64
	after statetree.Tree // the state after it
	// partial: that state is, see partial.go
	partial bool
	// unweighed: it may come before something stored; nobody could tell, or this server has forgotten
	unweighed bool
}

// head is where a room grows. Immutable.
type head struct {
	tips  []tip
	state statetree.Tree // resolved over all tips
}

// depth of the next event's parents.
func (h *head) depth() int64 {
	var d int64
	for _, t := range h.tips {
		d = max(d, t.depth)
	}
	return d
}

// partial reports whether the state lacks memberships that no tip knows of.
func (h *head) partial() bool {
	return hasPartial(h.tips)
}

func (h *head) nids() []storage.EventNID {
	out := make([]storage.EventNID, len(h.tips))
	for i, t := range h.tips {
		out[i] = t.nid
	}
	return out
}

// committed is what readers see of a room. Immutable.
type committed struct {
	head  *head
	pos   storage.Position
	local []matrix.UserID // joined users of this server

	tail     *tail
	statePos storage.Position // the state has not changed since, perhaps for longer
	gapsEra  int              // counts changes of where events are missing
}

// room returns the room, pinned: release it. M_NOT_FOUND.
func (e *Engine) room(ctx context.Context, id matrix.RoomID) (*room, error) {
	if r := e.pin(func() *room { return e.byID[id] }); r != nil {
		return r, nil
	}
	row, err := storage.RoomByID(ctx, e.db, id)
	return e.roomFromRow(row, err)
}

func (e *Engine) roomByNID(ctx context.Context, nid storage.RoomNID) (*room, error) {
	if r := e.pin(func() *room { return e.byNID[nid] }); r != nil {
		return r, nil
	}
	row, err := storage.RoomByNID(ctx, e.db, nid)
	return e.roomFromRow(row, err)
}

func (e *Engine) pin(find func() *room) *room {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := find()
	if r != nil {
		r.pins++
	}
	return r
}

func (e *Engine) roomFromRow(row *storage.RoomRow, err error) (*room, error) {
	if err != nil {
		return nil, notFound(err, "no such room")
	}
	return e.adopt(row.NID, row.ID, roomversion.ID(row.Version))
}

// adopt returns the owner of a room that is in the database, pinned.
func (e *Engine) adopt(nid storage.RoomNID, id matrix.RoomID, v roomversion.ID) (*room, error) {
	version, ok := roomversion.Get(v)
	if !ok {
		return nil, fmt.Errorf("room %d has unknown version %q", nid, v)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r, ok := e.byID[id]
	if !ok {
		e.evict()
		r = &room{e: e, nid: nid, id: id, version: version, inbound: make(chan struct{}, 1), line: &line{}}
		e.byID[id], e.byNID[nid] = r, r
	}
	r.pins++
	return r, nil
}

// evict makes room in the table of rooms; e.mu is held. Rooms in use stay, whatever their number.
func (e *Engine) evict() {
	if len(e.byID) < e.maxRooms {
		return
	}
	drop := len(e.byID)/8 + 1
	for id, r := range e.byID {
		if r.pins > 0 {
			continue
		}
		delete(e.byID, id)
		delete(e.byNID, r.nid)
		if drop--; drop == 0 {
			return
		}
	}
}

func (r *room) release() {
	r.e.mu.Lock()
	r.pins--
	r.e.mu.Unlock()
}

// keep pins a room once more.
func (r *room) keep() {
	r.e.mu.Lock()
	r.pins++
	r.e.mu.Unlock()
}

// lockInbound takes the room for a batch of remote events.
func (r *room) lockInbound(ctx context.Context) error {
	select {
	case r.inbound <- struct{}{}:
		r.turns++
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *room) unlockInbound() { <-r.inbound }

// currentLine is that of the head.
func (r *room) currentLine() *line {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.line
}

// lanes has the batches that a server sends for a room worked on one after the other, in the order in which they came, while those of others go on
// beside them.
type lanes struct {
	mu   sync.Mutex
	busy map[matrix.ServerName]*lane
}

type lane struct {
	taken chan struct{}
	users int // who has it, or waits for it
}

// enter waits for a server's lane; call leave in the end.
func (l *lanes) enter(ctx context.Context, server matrix.ServerName) (leave func(), err error) {
	l.mu.Lock()
	mine := l.busy[server]
	if mine == nil {
		if l.busy == nil {
			l.busy = make(map[matrix.ServerName]*lane)
		}
		mine = &lane{taken: make(chan struct{}, 1)}
		l.busy[server] = mine
	}
	mine.users++
	l.mu.Unlock()
	gone := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if mine.users--; mine.users == 0 {
			delete(l.busy, server)
		}
	}
	select {
	case mine.taken <- struct{}{}:
		return func() {
			<-mine.taken
			gone()
		}, nil
	case <-ctx.Done():
		gone()
		return nil, ctx.Err()
	}
}

// load makes r.head available; r.mu is held.
func (r *room) load(ctx context.Context) error {
	if r.head != nil {
		return nil
	}
	row, err := storage.RoomByNID(ctx, r.e.db, r.nid)
	if err != nil {
		return fmt.Errorf("load room %d: %w", r.nid, err)
	}
	h := &head{state: r.e.forest.At(statetree.Ref(row.State))}
	tips, err := r.e.eventsByNID(ctx, row.Head)
	if err != nil {
		return fmt.Errorf("load head of room %d: %w", r.nid, err)
	}
	for _, ev := range tips {
		after := h.state
		if len(tips) > 1 {
			if after, err = r.e.treeAfter(ctx, ev); err != nil {
				return fmt.Errorf("load head of room %d: %w", r.nid, err)
			}
		}
		h.tips = append(h.tips, tip{nid: ev.NID, id: ev.ID(), depth: ev.Depth(), after: after, partial: ev.Partial, unweighed: len(tips) > 1})
	}
	nids, err := storage.JoinedOfServer(ctx, r.e.db, r.nid, r.e.own)
	if err != nil {
		return fmt.Errorf("load members of room %d: %w", r.nid, err)
	}
	local, err := r.e.db.UserIDs(ctx, nids...)
	if err != nil {
		return fmt.Errorf("load members of room %d: %w", r.nid, err)
	}
	if err := r.loadWaiting(ctx); err != nil {
		return fmt.Errorf("load sticky events of room %d: %w", r.nid, err)
	}
	r.head = h
	depth, pos, err := storage.DeepestBefore(ctx, r.e.db, r.nid, -1, math.MaxInt64)
	if err = ignoreNotFound(err); err != nil {
		return fmt.Errorf("load depth of room %d: %w", r.nid, err)
	}
	for {
		before := r.committed.Load()
		now := r.e.db.Current()
		c := &committed{head: h, pos: row.Pos, local: local, statePos: max(now, row.Pos), tail: &tail{from: max(now, row.Pos), deepest: place{depth, pos}, deepestKnown: true}}
		if r.committed.CompareAndSwap(before, c) {
			return nil
		}
	}
}

// current is the room as of its last commit.
func (r *room) current(ctx context.Context) (*committed, error) {
	if c := r.committed.Load(); c != nil {
		return c, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r.committed.Load(), nil
}

// resident says whether this server gets the room's events: a local user is
// joined, or nobody else is, so that nobody can have gone on without us.
func (r *room) resident(ctx context.Context) (bool, error) {
	c, err := r.current(ctx)
	if err != nil {
		return false, err
	}
	if len(c.local) > 0 {
		return true, nil
	}
	if len(c.head.tips) == 0 || r.e.partials.get(r.nid) != nil {
		return false, nil
	}
	servers, err := storage.JoinedServers(ctx, r.e.db, r.nid)
	return len(servers) == 0, err
}

// event returns an event of the room, committed or not.
func (r *room) event(ctx context.Context, nid storage.EventNID) (*Event, error) {
	if ev := r.pending.get(nid); ev != nil {
		return ev, nil
	}
	ev, err := r.e.eventByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	return r.pending.as(ev), nil
}

// eventsByNID returns events of the room, committed or not, in the order asked for.
func (r *room) eventsByNID(ctx context.Context, nids []storage.EventNID) ([]*Event, error) {
	out := make([]*Event, len(nids))
	r.pending.mu.Lock()
	if len(r.pending.byNID) > 0 {
		for i, nid := range nids {
			out[i] = r.pending.byNID[nid].ev
		}
	}
	r.pending.mu.Unlock()
	if err := r.e.fillIn(ctx, nids, out); err != nil {
		return nil, err
	}
	r.pending.mu.Lock()
	defer r.pending.mu.Unlock()
	if r.pending.changed() {
		for i, ev := range out {
			out[i] = r.pending.now(ev)
		}
	}
	return out, nil
}

// eventsByID returns events of the room, committed or not; unknown ones and those of other rooms are missing.
func (r *room) eventsByID(ctx context.Context, ids []matrix.EventID) (map[matrix.EventID]*Event, error) {
	var pending []*Event
	var rest []matrix.EventID
	r.pending.mu.Lock()
	for _, id := range ids {
		if ev := r.pending.byID[id]; ev != nil {
			pending = append(pending, ev)
		} else {
			rest = append(rest, id)
		}
	}
	r.pending.mu.Unlock()
	out, err := r.e.eventsByID(ctx, rest)
	if err != nil {
		return nil, err
	}
	for id, ev := range out {
		if ev.RoomNID != r.nid {
			delete(out, id)
		}
	}
	for _, ev := range pending {
		out[ev.ID()] = ev
	}
	r.pending.mu.Lock()
	defer r.pending.mu.Unlock()
	if r.pending.changed() {
		for id, ev := range out {
			out[id] = r.pending.now(ev)
		}
	}
	return out, nil
}

// prevsOf lists the known events that come directly before another, also those that came later than it.
func (r *room) prevsOf(ctx context.Context, ev *Event) ([]storage.EventNID, error) {
	if len(ev.prevs) >= len(ev.PrevEvents()) {
		return ev.prevs, nil
	}
	known, err := r.eventsByID(ctx, ev.PrevEvents())
	if err != nil {
		return nil, err
	}
	out := make([]storage.EventNID, 0, len(known))
	for _, id := range distinctIDs(ev.PrevEvents()) {
		if p := known[id]; p != nil {
			out = append(out, p.NID)
		}
	}
	return out, nil
}

// treeAfter is the state after an event, committed or not.
func (r *room) treeAfter(ctx context.Context, ev *Event) (statetree.Tree, error) {
	r.pending.mu.Lock()
	found, restated := r.pending.restated[ev.NID]
	p, pending := r.pending.byNID[ev.NID]
	r.pending.mu.Unlock()
	switch {
	case restated:
		return found.after, nil
	case pending:
		return p.after, nil
	}
	return r.e.treeAfter(ctx, ev)
}
