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

// finish takes the room's lock, restates what came last, moves the head and queues the commit.
func (rs *restatement) finish(ctx context.Context, pr *partialRoom) (*entry, error) {
	r := rs.room
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	if err := rs.pass(ctx, later); err != nil {
		return nil, err
	}
	h, err := rs.head(ctx)
	if err != nil {
		return nil, err
	}
	en := &entry{room: r, line: r.line, head: h, whole: rs}
	if en.members, err = r.memberChanges(ctx, r.head.state, h.state, nil); err != nil {
		return nil, err
	}
	if en.members, err = r.settleApart(ctx, h.state, en.members); err != nil {
		return nil, err
	}
	if err := rs.history(ctx, later); err != nil {
		return nil, err
	}
	rs.completion.Since = rs.since
	rs.completion.Local = r.committed.Load().local
	for _, m := range en.members {
		if m.current == "join" && m.previous != "join" && m.server != r.e.own {
			rs.completion.Learned = append(rs.completion.Learned, m.name)
		}
	}
	for _, s := range rs.events {
		if s.misled != "" {
			rs.completion.Misled = append(rs.completion.Misled, s.misled)
		}
	}
	if r.e.partials.get(r.nid) != pr {
		return nil, errors.New("the room was joined anew")
	}
	r.head = h
	r.e.committer.add(en)
	return en, nil
}

// head moves the head by the new verdicts: what is rejected now gives way to what it followed on, what was before is merged.
func (rs *restatement) head(ctx context.Context) (*head, error) {
	r := rs.room
	followed := make(map[storage.EventNID]bool) // by an accepted event
	var frontier []storage.EventNID
	for _, t := range r.head.tips {
		frontier = append(frontier, t.nid)
	}
	for _, s := range rs.events {
		if s.rejected || s.softFailed {
			continue
		}
		for _, p := range s.prevs {
			followed[p] = true
		}
		if s.appears() {
			frontier = append(frontier, s.nid)
		}
	}
	next := &head{}
	seen := make(map[storage.EventNID]bool)
	for n := 0; len(frontier) > 0 && n < maxServedWalk; n++ {
		nid := frontier[0]
		frontier = frontier[1:]
		if seen[nid] || followed[nid] {
			continue
		}
		seen[nid] = true
		ev, err := r.event(ctx, nid)
		if err != nil {
			return nil, err
		}
		switch {
		case ev.Outlier:
			continue
		case ev.Rejected || ev.SoftFailed:
			prevs, err := r.prevsOf(ctx, ev)
			if err != nil {
				return nil, err
			}
			frontier = append(frontier, prevs...)
			continue
		}
		after, err := r.treeAfter(ctx, ev)
		if err != nil {
			return nil, err
		}
		weighed := slices.ContainsFunc(r.head.tips, func(t tip) bool { return t.nid == nid && !t.unweighed })
		next.tips = append(next.tips, tip{nid: nid, id: ev.ID(), depth: ev.Depth(), after: after, partial: ev.Partial, unweighed: !weighed})
	}
	if len(next.tips) == 0 {
		return nil, errors.New("no event of the room is left to follow on")
	}
	if len(next.tips) > maxTips {
		next.tips = deepest(next.tips, maxTips)
	}
	var err error
	next.state, err = r.stateOver(ctx, next.tips)
	return next, err
}

// history makes good for the states logged since our join. They have the members that were unknown then, so that those are not
// taken for people who came or went; and they keep what clients were told, wrong or not, so that what is different from it now is told them.
// Called again it goes on with those that were logged meanwhile. enough is called after each batch.
func (rs *restatement) history(ctx context.Context, enough func(context.Context) error) error {
	r := rs.room
	first := rs.events[0]
	from := rs.since
	if n := len(rs.states); n > 0 {
		from = rs.states[n-1].Pos + 1
	} else {
		rs.good, rs.logged = first.after, r.e.forest.At(0)
	}
	logged, err := storage.RoomStatesFrom(ctx, r.e.db, r.nid, from)
	if err != nil {
		return err
	}
	for batch := range slices.Chunk(logged, restateBatch) {
		for _, row := range batch {
			told := r.e.forest.At(statetree.Ref(row.State))
			if rs.good, err = follow(ctx, rs.good, rs.logged, told); err != nil {
				return err
			}
			rs.logged = told
			rs.loose = append(rs.loose, rs.good)
			rs.states = append(rs.states, storage.RoomState{Room: r.nid, Pos: row.Pos, State: int64(rs.good.Ref())})
		}
		if err := enough(ctx); err != nil {
			return err
		}
	}
	return nil
}

// follow applies to a state what changed from one state to another, but for what was taken away.
func follow(ctx context.Context, base, from, to statetree.Tree) (statetree.Tree, error) {
	diffs, err := statetree.Diff(ctx, from, to)
	if err != nil {
		return statetree.Tree{}, err
	}
	var changes []statetree.Entry
	for _, d := range diffs {
		if d.Events[1] != 0 {
			changes = append(changes, statetree.Entry{Key: d.Key, Event: d.Events[1]})
		}
	}
	return base.With(ctx, changes...)
}

// place gives events that appear their positions, in the transaction.
func (rs *restatement) place(tx *storage.Tx, u *roomUpdate, keep func(statetree.Tree)) ([]storage.RelationRow, error) {
	var related []storage.RelationRow
	for _, t := range rs.loose {
		keep(t)
	}
	for _, s := range rs.events {
		if !s.appears() {
			continue
		}
		pos, err := tx.NextPosition()
		if err != nil {
			return nil, err
		}
		s.pos = pos
		if u.first == 0 {
			u.first = pos
		}
		u.Events = append(u.Events, s.new)
		if row, ok := relationRow(s.new, pos); ok {
			related = append(related, row)
		}
	}
	return related, nil
}

// store writes all that changes but the head and the members.
func (rs *restatement) store(ctx context.Context, tx *storage.Tx, en *entry) error {
	rows := make([]storage.RestatedEvent, 0, len(rs.events)+len(rs.outliers))
	for _, s := range rs.outliers {
		rows = append(rows, storage.RestatedEvent{NID: s.nid, Flags: s.flags})
	}
	for _, s := range rs.events {
		rows = append(rows, storage.RestatedEvent{NID: s.nid, Flags: s.flags, State: int64(s.before.Ref()), Moved: s.appears() || s.vanishes(), Pos: s.pos})
		if s.rejected {
			// What comes before it is no history of the room.
			if err := storage.DeleteMissingPrevsOf(ctx, tx, rs.room.nid, s.nid); err != nil {
				return err
			}
		}
		if s.vanishes() {
			if _, err := storage.DropEventNotifications(ctx, tx, s.nid); err != nil {
				return err
			}
		}
		for _, er := range s.erased {
			if err := storage.EraseEvent(ctx, tx, er.target.NID, er.redaction, er.target.JSON()); err != nil {
				return err
			}
		}
	}
	if err := storage.RestateEvents(ctx, tx, rows); err != nil {
		return err
	}
	if err := storage.UpdateMissingPrevs(ctx, tx, rs.room.nid, rs.retold); err != nil {
		return err
	}
	if err := storage.UpdateRoomStates(ctx, tx, rs.states); err != nil {
		return err
	}
	if err := storage.SetRoomFull(ctx, tx, rs.room.nid, en.pos); err != nil {
		return err
	}
	if rs.completion == nil {
		return nil
	}
	return rs.room.e.completed(ctx, tx, rs.completion)
}

// publish replaces what is cached of the events. What was stored by a commit just before has been put into the cache by now; what
// is not in it is read from the database, as it is now (see eventCache.forgetPartial).
func (rs *restatement) publish(e *Engine, u *roomUpdate) {
	at := make(map[*Event]int)
	for i, ev := range u.Events {
		at[ev] = i
	}
	for _, s := range rs.outliers {
		if latest := e.events.byNumber(s.nid); latest != nil {
			ev := *latest
			ev.Partial, ev.Rejected = false, s.rejected
			e.events.put(&ev)
		}
	}
	for _, s := range rs.events {
		latest := e.events.byNumber(s.nid)
		if latest == nil {
			latest = s.new
		}
		for _, er := range s.erased {
			e.events.put(er.target)
		}
		if latest == nil {
			continue
		}
		ev := *latest
		ev.Partial, ev.stateBefore, ev.Rejected = false, s.before.Ref(), s.rejected
		switch {
		case s.appears():
			ev.Pos = s.pos
			u.Events[at[s.new]] = &ev
		case s.vanishes():
			ev.Pos = 0
		}
		e.events.put(&ev)
	}
}
