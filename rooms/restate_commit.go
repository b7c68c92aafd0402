package rooms

import (
	"context"
	"errors"
	"slices"

	"hanok/storage"
	"hanok/storage/statetree"
)

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
	for n := 0; len(frontier) > 0 && n < maxServedWalk; {
		nid := frontier[0]
		frontier = frontier[1:]
		if seen[nid] || followed[nid] {
			continue
		}
		seen[nid] = true
		if s := rs.done[nid]; s != nil && (s.rejected || s.softFailed) {
			frontier = append(frontier, s.prevs...) // in memory: there may be any number
			continue
		}
		n++
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
