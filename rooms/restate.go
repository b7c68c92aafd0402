package rooms

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Completion says what is known when the whole state of a room is that was joined without its members.
type Completion struct {
	Room    matrix.RoomID
	Since   storage.Position    // of our join
	Local   []matrix.UserID     // joined users of this server
	Learned []matrix.UserID     // joined users of other servers who were not known to be
	Servers []matrix.ServerName // those that were in the room at some time since our join and are not among those we were told of
	Misled  []matrix.UserID     // users of other servers of whom we believed wrongly that they were in the room, or that they were not, for a while
}

// restatement gives all events of a room that follow on a partial state the whole state before them, judges them again by
// it, and moves the head accordingly: as one commit, so that the room's state is either partial or whole.
//
// Events of other servers wait meanwhile (room.inbound is held), local ones go on until the last step. There may be any number of events, if
// nobody gives the state for days: they are worked on some at a time, and of each only a few numbers are kept. The nodes of their states are stored
// ahead, where nothing refers to them until the commit.
type restatement struct {
	room       *room
	told       map[storage.EventNID]statetree.Tree // states before events that cannot be worked out, as another server told them
	events     []*restated                         // in topological order
	outliers   []*restated                         // those that were authorised by some of them
	done       map[storage.EventNID]*restated
	all        map[storage.EventNID]bool  // those to be done
	first      storage.EventNID           // of them
	rejected   map[storage.EventNID]bool  // of all that were done
	retold     []storage.MissingPrev      // states that another server told with rejected events in them, without those
	joined     map[matrix.ServerName]bool // servers of which somebody joined
	states     []storage.RoomState        // what was logged of the room's state, made good
	good       statetree.Tree             // the last of them,
	logged     statetree.Tree             // and what was logged
	loose      []statetree.Tree           // of which nodes may not be stored yet
	since      storage.Position           // of the first event in the timeline
	completion *Completion
	changed    bool // a verdict is another one
}

type restated struct {
	nid                                      storage.EventNID
	prevs                                    []storage.EventNID
	before, after                            statetree.Tree
	flags                                    storage.EventFlags // from now on
	wasRejected, rejected, softFailed, dummy bool
	misled                                   matrix.UserID    // of another server, whose membership it is that appears or vanishes
	new                                      *Event           // if it appears
	erased                                   []erasure        // by a redaction that was rejected before
	pos                                      storage.Position // new in the timeline; 0: stays as it is, or goes if it is rejected now
	stored                                   bool             // the states are, and not in memory
}

// appears: an event that was rejected by the partial state. It is new in the timeline, as if it had come late.
func (s *restated) appears() bool { return s.wasRejected && !s.rejected && !s.softFailed && !s.dummy }

// vanishes: an event that the partial state allowed, wrongly.
func (s *restated) vanishes() bool { return s.rejected && !s.wasRejected }

// errUntold: the state before an event cannot be worked out, and is not among those that were told.
var errUntold = errors.New("rooms: the state at an event has to be asked for")

// restateBatch is how many events are worked on at a time.
const restateBatch = 100

// untold lists those of some events of which the state before them has to be asked for: our joins, as a rule. Others that follow on a
// missing event have the state after that with them, or make do with their other prev events.
func (r *room) untold(ctx context.Context, events []*Event) ([]*Event, error) {
	var out []*Event
	for _, ev := range events {
		if ev.Outlier {
			continue
		}
		known, err := r.eventsByID(ctx, ev.PrevEvents())
		if err != nil {
			return nil, err
		}
		missing := missingPrevs(ev.Event, known)
		if len(missing) == 0 {
			continue
		}
		states, err := r.toldAfter(ctx, ev)
		if err != nil {
			return nil, err
		}
		alone := len(missing) == len(distinctIDs(ev.PrevEvents()))
		if (alone || r.e.isLocal(ev.Sender())) && slices.ContainsFunc(missing, func(id matrix.EventID) bool { return states[id] == 0 }) {
			out = append(out, ev)
		}
	}
	return out, nil
}

// toldAfter returns the states after an event's missing prev events, as other servers told them when the event came.
func (r *room) toldAfter(ctx context.Context, ev *Event) (map[matrix.EventID]statetree.Ref, error) {
	rows, err := storage.MissingPrevsOf(ctx, r.e.db, r.nid, ev.NID)
	if err != nil {
		return nil, err
	}
	out := make(map[matrix.EventID]statetree.Ref, len(rows))
	for _, m := range rows {
		out[m.ID] = statetree.Ref(m.State)
	}
	return out, nil
}

// restate does it. told are states before events that untold lists; it fails with errUntold if one is missing by now.
// room.inbound is held.
func (r *room) restate(ctx context.Context, pr *partialRoom, told map[storage.EventNID]statetree.Tree) error {
	rs := &restatement{room: r, told: told, done: make(map[storage.EventNID]*restated), rejected: make(map[storage.EventNID]bool), joined: make(map[matrix.ServerName]bool)}
	defer func() {
		r.pending.dropRestated()
		if rs.changed { // others may have resolved something by the old verdicts meanwhile, or this by new ones that do not come to count
			r.e.resolved.Clear()
		}
	}()
	// First what there is, while local events go on; then, with the lock, the few that came meanwhile.
	if err := rs.pass(ctx, rs.flush); err != nil {
		return err
	}
	if len(rs.events) == 0 {
		return errors.New("a room with partial state has no event that follows on it")
	}
	if err := rs.history(ctx, rs.flush); err != nil {
		return err
	}
	rs.completion = &Completion{Room: r.id}
	if err := rs.findServers(ctx, pr); err != nil {
		return err
	}
	en, err := rs.finish(ctx, pr)
	if err != nil {
		return err
	}
	return en.wait(context.WithoutCancel(ctx))
}

// pass restates all events that are not yet. enough is called after each batch.
func (rs *restatement) pass(ctx context.Context, enough func(context.Context) error) error {
	nids, err := rs.room.partialEvents(ctx)
	if err != nil {
		return err
	}
	rs.all = setOf(nids)
	if len(nids) > 0 {
		rs.first = slices.Min(nids)
	}
	var order []following
	for batch := range slices.Chunk(slices.DeleteFunc(nids, func(nid storage.EventNID) bool { return rs.done[nid] != nil }), restateBatch) {
		events, err := rs.room.eventsByNID(ctx, batch)
		if err != nil {
			return err
		}
		for _, ev := range events {
			f, err := rs.following(ctx, ev)
			if err != nil {
				return err
			}
			order = append(order, f)
		}
	}
	for batch := range slices.Chunk(topological(order), restateBatch) {
		events, err := rs.room.eventsByNID(ctx, batch)
		if err != nil {
			return err
		}
		for _, ev := range events {
			judge := rs.one
			if ev.Outlier {
				judge = rs.outlier
			}
			if err := judge(ctx, ev); err != nil {
				return fmt.Errorf("event %d: %w", ev.NID, err)
			}
		}
		if err := enough(ctx); err != nil {
			return err
		}
	}
	return nil
}

// later leaves storing nodes to the commit.
func later(context.Context) error { return nil }

// flush stores the nodes of the states that were made lately, so that they need not be in memory.
func (rs *restatement) flush(ctx context.Context) error {
	if len(rs.loose) < restateBatch {
		return nil // few: the commit stores them
	}
	var blobs []statetree.Blob
	var nodes []storage.StateNodes
	seen := make(map[int64]bool)
	for _, t := range rs.loose {
		for _, b := range t.Unsaved() {
			if !seen[b.ID] {
				seen[b.ID] = true
				blobs = append(blobs, b)
				nodes = append(nodes, storage.StateNodes{ID: b.ID, Data: b.Data})
			}
		}
	}
	if len(nodes) > 0 {
		if err := rs.room.e.db.Write(ctx, func(tx *storage.Tx) error { return storage.InsertStateNodes(ctx, tx, nodes) }); err != nil {
			return err
		}
	}
	forest := rs.room.e.forest
	forest.Saved(blobs)
	rs.loose = nil
	stored := func(t statetree.Tree) statetree.Tree { return forest.At(t.Ref()) }
	rs.good = stored(rs.good)
	for i := len(rs.events) - 1; i >= 0 && !rs.events[i].stored; i-- {
		s := rs.events[i]
		s.before, s.after, s.stored = stored(s.before), stored(s.after), true
		rs.room.pending.restate(s.nid, verdict{s.before.Ref(), s.after, s.rejected})
	}
	return nil
}

// one works out the state before an event, those before its prev events being known, and judges it again.
func (rs *restatement) one(ctx context.Context, was *Event) error {
	r := rs.room
	before, ok := rs.told[was.NID]
	var err error
	if ok {
		before, err = rs.without(ctx, before)
	} else {
		before, err = rs.before(ctx, was)
	}
	if err != nil {
		return err
	}
	rejection, err := r.checkEvent(ctx, was.Event, before, false)
	if err != nil {
		return err
	}
	ev := *was
	ev.Partial, ev.stateBefore, ev.Rejected = false, before.Ref(), rejection != nil
	prevs, err := r.prevsOf(ctx, was)
	if err != nil {
		return err
	}
	s := &restated{
		nid: ev.NID, prevs: prevs, before: before, after: before, flags: ev.flags(),
		wasRejected: was.Rejected, rejected: ev.Rejected, softFailed: ev.SoftFailed, dummy: ev.IsDummy(),
	}
	if ev.skey != 0 && !ev.Rejected {
		if s.after, err = before.With(ctx, ev.entry()); err != nil {
			return err
		}
	}
	if s.appears() {
		it := &item{ev: &ev}
		if _, err := r.applyRedaction(ctx, it, State{r.e, before}); err != nil {
			return err
		}
		s.new, s.erased = &ev, it.erased
	}
	if key, ok := ev.StateKey(); ok && ev.Type() == "m.room.member" {
		if user := matrix.UserID(key); (s.appears() || s.vanishes()) && !r.e.isLocal(user) {
			s.misled = user
		}
		if !ev.Rejected && ev.Membership() == "join" {
			rs.joined[domain(key)] = true
		}
	}
	if was.Pos > 0 && (rs.since == 0 || was.Pos < rs.since) {
		rs.since = was.Pos
	}
	rs.events = append(rs.events, s)
	rs.loose = append(rs.loose, s.before, s.after)
	rs.judged(s)
	return nil
}

// judged makes a verdict count for what is worked on from now on.
func (rs *restatement) judged(s *restated) {
	rs.done[s.nid] = s
	rs.room.pending.restate(s.nid, verdict{s.before.Ref(), s.after, s.rejected})
	if s.rejected {
		rs.rejected[s.nid] = true
	}
	if s.rejected != s.wasRejected {
		rs.changed = true
		rs.room.e.resolved.Clear()
	}
}

func (rs *restatement) before(ctx context.Context, ev *Event) (statetree.Tree, error) {
	r := rs.room
	known, err := r.eventsByID(ctx, ev.PrevEvents())
	if err != nil {
		return statetree.Tree{}, err
	}
	var told map[matrix.EventID]statetree.Ref
	untold := false
	var trees []statetree.Tree
	for _, id := range ev.PrevEvents() {
		var t statetree.Tree
		if p := known[id]; p != nil && !p.Outlier {
			if p.Partial && rs.all[p.NID] {
				continue // a circle
			}
			if p.Partial {
				return t, errUntold
			}
			t, err = r.treeAfter(ctx, p)
		} else {
			if told == nil {
				if told, err = r.toldAfter(ctx, ev); err != nil {
					return t, err
				}
			}
			if told[id] == 0 {
				untold = true
				continue
			}
			if t, err = rs.without(ctx, r.e.forest.At(told[id])); err == nil && t.Ref() != told[id] {
				rs.loose = append(rs.loose, t)
				rs.retold = append(rs.retold, storage.MissingPrev{ID: id, Child: ev.NID, State: int64(t.Ref())})
			}
		}
		if err != nil {
			return t, err
		}
		trees = append(trees, t)
	}
	if untold && (len(trees) == 0 || r.e.isLocal(ev.Sender())) {
		return statetree.Tree{}, errUntold
	}
	return r.resolve(ctx, trees)
}

// findServers lists the servers that were in the room before our join, or joined since, and that we were not told of.
func (rs *restatement) findServers(ctx context.Context, pr *partialRoom) error {
	known := make(map[matrix.ServerName]bool, len(pr.servers))
	known[rs.room.e.server] = true
	for _, s := range pr.servers {
		known[s] = true
	}
	add := func(s matrix.ServerName) {
		if !known[s] {
			known[s] = true
			rs.completion.Servers = append(rs.completion.Servers, s)
		}
	}
	// This state is not stored yet, so serverCounts must not remember it.
	members, err := State{rs.room.e, rs.events[0].before}.OfType(ctx, "m.room.member")
	if err != nil {
		return err
	}
	for _, m := range members {
		if key, _ := m.StateKey(); m.Membership() == "join" {
			add(domain(key))
		}
	}
	for _, s := range slices.Sorted(maps.Keys(rs.joined)) {
		add(s)
	}
	return nil
}
