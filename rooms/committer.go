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
