package rooms

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

var (
	errClosed    = errors.New("rooms: the engine is closed")
	errAbandoned = errors.New("rooms: the work shared with another request was abandoned")
)

// maxBatch is the number of entries committed at once: enough that the cost of
// a commit vanishes, few enough that nobody waits long behind others.
const maxBatch = 256

// item is an event to be stored.
type item struct {
	ev       *Event
	before   statetree.Tree   // the state before it, to be stored with it
	beside   []statetree.Tree // further states to be stored
	timeline placing
	promote  bool          // it is stored already, as an outlier or soft-failed
	waits    bool          // it is soft-failed, but another state may allow it: see sticky.go
	current  statetree.Ref // the room's current state after it
	moved    bool          // current differs from what it was before
	erased   []erasure     // what it redacts
	hidden   bool          // a redaction of another server that takes no effect: it has no place in the timeline
	under    int64         // depth of something stored that comes after it, for history; 0: no such is known
}

// placing says where in the stream of positions an event goes.
type placing uint8

const (
	nowhere placing = iota // outliers, rejected and soft-failed events
	forward
	backward // history
)

// erasure is an event that a redaction erases.
type erasure struct {
	target    *Event // in redacted form, RedactedBy set
	original  *Event // which may get its position only now
	redaction storage.EventNID
}

// memberChange is a user's new membership.
type memberChange struct {
	user     storage.NameNID
	server   storage.NameNID
	name     matrix.UserID
	previous string
	current  string
	event    *Event // nil: the state lost the membership, which counts as leave
}

// entry is what one operation does to one room; it is committed as a whole.
type entry struct {
	room    *room
	line    *line // the room's for entries with a head, else one of its own
	items   []*item
	head    *head // where the room stands afterwards; nil: no change
	moved   bool  // that has another state, which no event of the entry stands for in the timeline
	members []memberChange
	missing []storage.MissingPrev
	found   []matrix.EventID
	// partial begins a room's time with a partial state, whole ends it.
	partial *partialRoom
	whole   *restatement
	pos     storage.Position // of the entry's last change, known while it is stored
	// create stores the room itself first.
	create bool
	// extra stores what goes with the events, in the same transaction. It may run more than once.
	extra func(ctx context.Context, tx *storage.Tx) error
	// ready is closed when the events are signed; nil: they are.
	ready  chan struct{}
	failed error // why signing failed

	done chan error // receives the outcome once
}

// committer stores entries of all rooms in batches, in the order they were queued.
type committer struct {
	e       *Engine
	gather  func() // may be nil
	mu      sync.Mutex
	queue   []*entry
	closed  bool
	wake    chan struct{}
	stopped chan struct{}
	flying  sync.WaitGroup // batches committed but not yet visible
}

func newCommitter(e *Engine, gather func()) *committer {
	c := &committer{e: e, gather: gather, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
	go c.run()
	return c
}

// add queues an entry; for entries with a head, the room's lock is held, so that entries of one room keep their order.
func (c *committer) add(en *entry) {
	en.done = make(chan error, 1)
	en.room.keep()
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		en.finish(errClosed)
		return
	}
	c.queue = append(c.queue, en)
	c.mu.Unlock()
	wake.Up(c.wake)
}

func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	wake.Up(c.wake)
	<-c.stopped
	c.flying.Wait()
}

func (c *committer) run() {
	defer close(c.stopped)
	for {
		c.mu.Lock()
		n := min(len(c.queue), maxBatch)
		batch := c.queue[:n:n]
		c.queue = c.queue[n:]
		closed := c.closed
		c.mu.Unlock()
		if n == 0 {
			if closed {
				return
			}
			<-c.wake
			if c.gather != nil {
				c.gather()
			}
			continue
		}
		c.commit(batch)
	}
}

// commit stores a batch. When it fails, each room's part is tried by itself, so that one room cannot fail another.
func (c *committer) commit(batch []*entry) {
	live := batch[:0:0]
	for _, en := range batch {
		if en.ready != nil {
			<-en.ready
			if en.failed != nil {
				en.line.err = en.failed
			}
		}
		if en.line.err != nil {
			c.abort(en, en.line.err)
			continue
		}
		live = append(live, en)
	}
	if len(live) == 0 {
		return
	}
	err := c.store(live)
	if err == nil {
		return
	}
	var order []*line
	parts := make(map[*line][]*entry)
	for _, en := range live {
		if parts[en.line] == nil {
			order = append(order, en.line)
		}
		parts[en.line] = append(parts[en.line], en)
	}
	for _, l := range order {
		part := parts[l]
		if len(order) > 1 {
			err = c.store(part)
		}
		if err == nil {
			continue
		}
		c.e.log.Error().Err(err).Int64("room", int64(part[0].room.nid)).Int("entries", len(part)).Msg("commit failed")
		l.err = err
		for _, en := range part {
			c.abort(en, err)
		}
	}
}

// abort drops the head that an entry made, so that the room is loaded again.
func (c *committer) abort(en *entry, err error) {
	r := en.room
	r.mu.Lock()
	if r.line == en.line {
		r.line = &line{}
		r.head = nil
		r.memo = authMemo{}
	}
	r.mu.Unlock()
	r.pending.drop(en.items)
	if en.whole != nil {
		r.e.partials.completing(r.nid, 0)
	}
	en.finish(err)
}

func (en *entry) finish(err error) {
	en.done <- err
	en.room.release()
}

// wait returns when the entry is durable and visible. When ctx ends first the entry goes on.
func (en *entry) wait(ctx context.Context) error {
	select {
	case err := <-en.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// store writes entries in one transaction and publishes them when they are visible.
func (c *committer) store(entries []*entry) error {
	ctx := context.Background()
	var w *batchWrite
	var moving []matrix.UserID // local users whose memberships change
	for _, en := range entries {
		for _, m := range en.members {
			if m.server == c.e.own {
				moving = append(moving, m.name)
			}
		}
	}
	c.flying.Add(1)
	c.e.userRooms.hold(moving)
	err := c.e.db.Write(ctx, func(tx *storage.Tx) error {
		w = newBatchWrite(entries)
		tx.OnVisible(func() {
			defer c.flying.Done()
			c.e.userRooms.release(moving)
			c.publish(w)
		})
		return w.run(ctx, tx)
	})
	if err != nil {
		c.e.userRooms.release(moving)
		c.flying.Done()
		return err
	}
	c.e.forest.Saved(w.blobs)
	return nil
}

// publish makes a stored batch what readers see, tells the listener, and answers those who wait.
func (c *committer) publish(w *batchWrite) {
	slices.SortStableFunc(w.updates, func(a, b *roomUpdate) int { return cmp.Compare(a.Position, b.Position) })
	for _, u := range w.updates {
		stored := make([]*Event, 0, len(u.stored))
		for _, s := range u.stored {
			u.room.pending.placed(s.it.ev, s.pos)
			stored = append(stored, s.it.ev)
		}
		for _, s := range u.stored { // last: a page of history may have a redaction before its target
			for _, er := range s.it.erased {
				er.target.Pos = er.original.Pos
				stored = append(stored, er.target)
			}
		}
		c.e.events.put(stored...)
		if u.whole != nil {
			u.whole.publish(c.e, u)
		}
		r := u.room
		before := r.committed.Load()
		after := &committed{pos: u.pos}
		if before != nil {
			*after = *before
			after.pos = max(after.pos, u.pos)
		}
		after.tail = after.tail.after(u)
		if u.head != nil {
			if u.NewState || after.head == nil || after.head.state.Ref() != u.head.state.Ref() {
				after.statePos = u.pos
			}
			after.head = u.head
		}
		if u.gaps {
			after.gapsEra++
		}
		after.local = localAfter(after.local, u.Memberships)
		if before != nil && len(before.local) > 0 && len(after.local) == 0 {
			c.e.settleSignedInvites(r.nid)
		}
		if after.head != nil {
			r.committed.Store(after)
		}
		if u.whole != nil {
			c.e.partials.finish(r.nid) // whoever has waited for it sees the whole state
			c.e.events.forgetPartial(r.nid)
		}
		if u.created {
			c.e.directory.published(r.nid)
		} else if before == nil || before.head == nil || after.head != nil && before.head.state.Ref() != after.head.state.Ref() {
			c.e.directory.changed(r.nid)
		}
		u.Local = after.local
		if u.Position != 0 {
			c.e.listener.RoomUpdated(&u.Update)
		}
	}
	for _, en := range w.entries {
		en.room.pending.drop(en.items)
		en.finish(nil)
	}
}

// localAfter applies membership changes to a list of joined local users, without changing it.
func localAfter(local []matrix.UserID, changes []MembershipChange) []matrix.UserID {
	copied := false
	for _, ch := range changes {
		if !ch.Local || (ch.Current == "join") == (ch.Previous == "join") {
			continue
		}
		if !copied {
			local = append(make([]matrix.UserID, 0, len(local)+1), local...)
			copied = true
		}
		kept := local[:0]
		for _, u := range local {
			if u != ch.User {
				kept = append(kept, u)
			}
		}
		local = kept
		if ch.Current == "join" {
			local = append(local, ch.User)
		}
	}
	return local
}

// batchWrite is one attempt to store a batch.
type batchWrite struct {
	entries []*entry
	updates []*roomUpdate // by room, in order of their first entry
	blobs   []statetree.Blob
}

type roomUpdate struct {
	Update
	room  *room
	head  *head
	whole *restatement
	first storage.Position // of the update's positions
	pos   storage.Position

	created bool // the room begins with this update
	gaps    bool // where events are missing changed
	stored  []storedItem
}

type storedItem struct {
	it  *item
	pos storage.Position
}

func newBatchWrite(entries []*entry) *batchWrite { return &batchWrite{entries: entries} }

func (w *batchWrite) run(ctx context.Context, tx *storage.Tx) error {
	var (
		inserts []*storage.EventRow
		updates []*storage.EventRow
		states  []storage.RoomState
		heads   []storage.RoomHead
		members []storage.MembershipRow
		settled []storage.MemberKey // whose signed invites have come
		related []storage.RelationRow
		sticky  []storage.StickyRow
		seen    = make(map[int64]bool)
		byRoom  = make(map[*room]*roomUpdate)
	)
	var kept statetree.Ref
	keep := func(t statetree.Tree) {
		if t.Ref() == 0 || t.Ref() == kept {
			return
		}
		kept = t.Ref()
		for _, b := range t.Unsaved() {
			if !seen[b.ID] {
				seen[b.ID] = true
				w.blobs = append(w.blobs, b)
			}
		}
	}
	for _, en := range w.entries {
		if en.create {
			if err := storage.InsertRoom(ctx, tx, en.room.nid, en.room.id, string(en.room.version.ID)); err != nil {
				return err
			}
		}
		u := byRoom[en.room]
		if u == nil {
			u = &roomUpdate{room: en.room, Update: Update{Room: en.room.id, RoomNID: en.room.nid}}
			byRoom[en.room] = u
			w.updates = append(w.updates, u)
		}
		u.created = u.created || en.create
		var last storage.Position
		for _, it := range en.items {
			row := it.ev.row()
			if it.timeline != nowhere {
				pos, err := tx.NextPosition()
				if err != nil {
					return err
				}
				row.Pos = pos
				if it.timeline == backward {
					row.Pos = -pos
				} else {
					last = pos
					u.first = cmp.Or(u.first, pos)
					u.Events = append(u.Events, it.ev)
					if it.moved {
						u.NewState = true
						states = append(states, storage.RoomState{Room: row.Room, Pos: pos, State: int64(it.current)})
					}
				}
			}
			u.stored = append(u.stored, storedItem{it, row.Pos})
			if r, ok := relationRow(it.ev, row.Pos); ok {
				related = append(related, r)
			}
			if r, ok := en.room.e.stickyRow(it, max(row.Pos, -row.Pos)); ok {
				sticky = append(sticky, r)
				if it.timeline == backward {
					// News, though history: clients are told of it at this place in the stream.
					last = r.Pos
					u.first = cmp.Or(u.first, last)
				}
			}
			keep(it.before)
			for _, t := range it.beside {
				keep(t)
			}
			if it.promote {
				if it.ev.was != 0 {
					if err := storage.RenumberEvent(ctx, tx, row.Room, it.ev.skey, it.ev.was, it.ev.NID); err != nil {
						return err
					}
				}
				updates = append(updates, row)
			} else {
				inserts = append(inserts, row)
			}
		}
		if en.whole != nil {
			rows, err := en.whole.place(tx, u, keep)
			if err != nil {
				return err
			}
			related = append(related, rows...)
			u.whole = en.whole
		}
		if last == 0 && (len(en.members) > 0 || en.moved || en.whole != nil) {
			// An invite from afar, or a state that changed with history: no event of its own in the timeline.
			pos, err := tx.NextPosition()
			if err != nil {
				return err
			}
			last = pos
			u.first = cmp.Or(u.first, pos)
		}
		if (en.moved || en.whole != nil) && en.head != nil {
			u.NewState = true
			states = append(states, storage.RoomState{Room: en.room.nid, Pos: last, State: int64(en.head.state.Ref())})
		}
		for _, m := range en.members {
			row := storage.MembershipRow{Room: en.room.nid, User: m.user, Server: m.server, Membership: storage.ParseMembership(m.current), Pos: last}
			ch := MembershipChange{User: m.name, Local: m.server == en.room.e.own, Previous: m.previous, Current: m.current, Position: last}
			if m.event != nil {
				row.Event, row.Sender = m.event.NID, m.event.sender
				ch.Event = m.event.ID()
			}
			row.Forgotten = en.room.e.forgetOnLeave && ch.Local && (m.current == "leave" || m.current == "ban")
			members = append(members, row)
			if ch.Local && (m.current == "invite" || m.current == "join") {
				settled = append(settled, storage.MemberKey{Room: en.room.nid, User: m.user})
			}
			u.Memberships = append(u.Memberships, ch)
		}
		if last != 0 {
			u.Position, u.pos = last, last
		}
		u.gaps = u.gaps || len(en.missing)+len(en.found) > 0 || en.whole != nil
		if en.pos = last; en.whole != nil {
			en.room.e.partials.completing(en.room.nid, last)
		}
		if en.head != nil {
			u.head = en.head
			keep(en.head.state)
		}
	}
	for _, u := range w.updates {
		if u.head != nil {
			heads = append(heads, storage.RoomHead{NID: u.room.nid, Head: u.head.nids(), State: int64(u.head.state.Ref()), Pos: u.pos})
		}
	}
	w.noteChanges()
	nodes := make([]storage.StateNodes, len(w.blobs))
	for i, b := range w.blobs {
		nodes[i] = storage.StateNodes{ID: b.ID, Data: b.Data}
	}
	if err := w.step(len(nodes), func() error { return storage.InsertStateNodes(ctx, tx, nodes) }); err != nil {
		return err
	}
	if err := w.step(len(inserts), func() error { return storage.InsertEvents(ctx, tx, inserts) }); err != nil {
		return err
	}
	for _, row := range updates {
		// After the inserts: what is promoted may have been stored by an entry before.
		if err := storage.UpdateEvent(ctx, tx, row); err != nil {
			return err
		}
	}
	if err := w.step(len(related), func() error { return storage.InsertRelations(ctx, tx, related) }); err != nil {
		return err
	}
	if err := w.step(len(sticky), func() error { return storage.PutStickyEvents(ctx, tx, w.entries[0].room.e.now(), sticky) }); err != nil {
		return err
	}
	if err := w.step(len(states), func() error { return storage.InsertRoomStates(ctx, tx, states) }); err != nil {
		return err
	}
	if err := w.step(len(members), func() error { return storage.UpsertMemberships(ctx, tx, members) }); err != nil {
		return err
	}
	if err := w.step(len(settled), func() error { return storage.DropSignedInvites(ctx, tx, settled) }); err != nil {
		return err
	}
	if err := w.step(len(heads), func() error { return storage.SetRoomHeads(ctx, tx, heads) }); err != nil {
		return err
	}
	return w.runRest(ctx, tx)
}

// noteChanges tells what is about to be committed to those who look for what changed.
func (w *batchWrite) noteChanges() {
	changes := make([]recentChange, 0, len(w.updates))
	for _, u := range w.updates {
		if u.pos != 0 {
			u.room.note(u.first, u.pos)
			changes = append(changes, recentChange{room: u.room.nid, first: u.first, last: u.pos})
		}
	}
	if len(changes) > 0 {
		w.entries[0].room.e.recent.note(changes)
	}
}

// runRest stores what few entries have.
func (w *batchWrite) runRest(ctx context.Context, tx *storage.Tx) error {
	for _, en := range w.entries {
		if len(en.found) > 0 {
			if err := storage.DeleteMissingPrevs(ctx, tx, en.room.nid, en.found); err != nil {
				return err
			}
		}
		if len(en.missing) > 0 {
			if err := storage.InsertMissingPrevs(ctx, tx, en.room.nid, en.missing); err != nil {
				return err
			}
		}
		for _, it := range en.items {
			for _, er := range it.erased {
				if err := storage.EraseEvent(ctx, tx, er.target.NID, er.redaction, er.target.JSON()); err != nil {
					return err
				}
			}
		}
		if en.partial != nil {
			if err := en.partial.store(ctx, tx, en.items[0].ev.NID); err != nil {
				return err
			}
		}
		if en.whole != nil {
			if err := en.whole.store(ctx, tx, en); err != nil {
				return err
			}
		}
		if en.extra != nil {
			if err := en.extra(ctx, tx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *batchWrite) step(n int, f func() error) error {
	if n == 0 {
		return nil
	}
	return f()
}
