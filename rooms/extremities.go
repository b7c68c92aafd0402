package rooms

import (
	"context"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
	"hanok/storage/statetree"
)

// maxIdleTips is how many forward extremities a room may have before an event of ours brings them together. Every event
// that comes in costs the resolution of the states of all of them.
const maxIdleTips = 10

// mergeTips sends a dummy event to a room that other servers have made many branches of, if a local user may send one. It is not shown to
// anybody and not sent on: whoever gets the event that is built on it asks for it.
func (e *Engine) mergeTips(ctx context.Context, r *room) error {
	if e.noDummyEvents {
		return nil
	}
	for range maxTips / maxParents {
		c, err := r.current(ctx)
		if err != nil || len(c.head.tips) <= maxIdleTips {
			return err
		}
		sender, err := e.dummySender(ctx, c)
		if err != nil || sender == "" {
			return err
		}
		d := &draft{sender: sender, typ: event.DummyType, content: []byte("{}")}
		en, err := r.append(ctx, []*draft{d}, appendOptions{unchecked: true, unasked: true})
		if err != nil {
			return err
		}
		if err := en.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// dummySender finds a joined local user who may send a dummy event, "" if there is none.
func (e *Engine) dummySender(ctx context.Context, c *committed) (matrix.UserID, error) {
	if len(c.local) == 0 {
		return "", nil
	}
	levels, err := State{e, c.head.state}.PowerLevels(ctx)
	if err != nil {
		return "", err
	}
	for _, u := range c.local {
		if levels.User(u) >= levels.Event(event.DummyType, false) {
			return u, nil
		}
	}
	return "", nil
}

// maxTips bounds the forward extremities kept: those that are shallowest are let go, as if a later event had merged them.
const maxTips = 50

// extend moves the head over an accepted event; r.mu is held.
func (r *room) extend(ctx context.Context, en *entry, it *item, after statetree.Tree, unweighed bool) error {
	ev := it.ev
	before, err := r.directlyBefore(ctx, ev)
	if err != nil {
		return err
	}
	var tips []tip
	for _, t := range r.head.tips {
		if !before[t.nid] {
			tips = append(tips, t)
		}
	}
	tips = append(tips, tip{nid: ev.NID, id: ev.ID(), depth: ev.Depth(), after: after, partial: ev.Partial, unweighed: unweighed && len(tips) > 0})
	if len(tips) > maxTips {
		tips = deepest(tips, maxTips)
	}
	if it.moved, err = r.moveHead(ctx, en, tips); err != nil {
		return err
	}
	it.current = en.head.state.Ref()
	if it.moved || !ev.IsDummy() && !it.hidden { // what changes the state needs a place in the timeline
		it.timeline = forward
	}
	return nil
}

// retire lets those ends of branches go that come before the history in an entry: other ends come after both, and have taken the place of their
// state. r.mu is held.
func (r *room) retire(ctx context.Context, en *entry) error {
	gone := make(map[storage.EventNID]bool)
	for _, it := range en.items {
		if it.under == 0 || len(r.head.tips) == 1 {
			continue
		}
		before, err := r.directlyBefore(ctx, it.ev)
		if err != nil {
			return err
		}
		for _, t := range r.head.tips {
			if before[t.nid] && t.depth < it.under {
				gone[t.nid] = true
			}
		}
	}
	return r.dropTips(ctx, en, gone)
}

// dropTips lets ends of branches go, though not all.
func (r *room) dropTips(ctx context.Context, en *entry, gone map[storage.EventNID]bool) (err error) {
	if len(gone) == 0 || len(gone) == len(r.head.tips) {
		return nil
	}
	tips := slices.DeleteFunc(slices.Clone(r.head.tips), func(t tip) bool { return gone[t.nid] })
	en.moved, err = r.moveHead(ctx, en, tips)
	return err
}

// moveHead makes the head over some ends of branches the one that an entry leads to. moved says that it has another state than the present one.
func (r *room) moveHead(ctx context.Context, en *entry, tips []tip) (moved bool, err error) {
	h, next := r.head, &head{tips: tips}
	if next.state, err = r.stateOver(ctx, tips); err != nil {
		return false, fmt.Errorf("state after an event: %w", err)
	}
	if next.state.Ref() != h.state.Ref() {
		// Another tree may hold the same state.
		diff, err := statetree.Diff(ctx, h.state, next.state)
		if err != nil {
			return false, fmt.Errorf("state after an event: %w", err)
		}
		if moved = len(diff) > 0; !moved {
			next.state = h.state
		}
	}
	en.head = next
	if !moved {
		return false, nil
	}
	if err := r.takeIn(ctx, en, next.state); err != nil {
		return false, err
	}
	if en.members, err = r.memberChanges(ctx, h.state, next.state, nil); err == nil {
		en.members, err = r.withoutNewer(ctx, en.members)
	}
	return true, err
}

// withoutNewer leaves out changes of memberships of local users who were invited, or have knocked, since: while nobody of this server is in
// the room that stands beside its state, and what came before it may come after it.
func (r *room) withoutNewer(ctx context.Context, changes []memberChange) ([]memberChange, error) {
	var failed error
	changes = slices.DeleteFunc(changes, func(ch memberChange) bool {
		if ch.server != r.e.own || ch.current == "join" || failed != nil {
			return false
		}
		now, err := r.e.membershipIn(ctx, r.nid, ch.name)
		if err != nil || now.Membership != storage.MembershipInvite && now.Membership != storage.MembershipKnock {
			failed = err
			return false
		}
		apart, err := r.e.eventByNID(ctx, now.Event)
		if err != nil {
			failed = ignoreNotFound(err)
			return false
		}
		return apart.Outlier && (ch.event == nil || ch.event.NID != now.Event && !slices.Contains(ch.event.auths, now.Event))
	})
	return changes, failed
}

// stateOver resolves the states after some tips.
func (r *room) stateOver(ctx context.Context, tips []tip) (statetree.Tree, error) {
	var whole, partial []statetree.Tree
	for _, t := range tips {
		if t.partial {
			partial = append(partial, t.after)
		} else {
			whole = append(whole, t.after)
		}
	}
	return r.merge(ctx, whole, partial)
}

// maxUnaccepted bounds the walk through events that were not accepted.
const maxUnaccepted = 100

// directlyBefore finds the events that come before another with nothing accepted in between: its prev events, and what comes before those of
// them that were rejected or soft-failed. Else their parents would stay ends of branches, and their old state be resolved with what came of it.
func (r *room) directlyBefore(ctx context.Context, ev *Event) (map[storage.EventNID]bool, error) {
	before := make(map[storage.EventNID]bool, len(ev.prevs))
	isTip := func(nid storage.EventNID) bool {
		return slices.ContainsFunc(r.head.tips, func(t tip) bool { return t.nid == nid })
	}
	walked := 0
	for frontier := ev.prevs; len(frontier) > 0 && walked < maxUnaccepted; {
		var look []storage.EventNID
		for _, nid := range frontier {
			if !before[nid] && !isTip(nid) {
				look = append(look, nid)
			}
			before[nid] = true
		}
		walked += len(look)
		frontier = nil
		for _, nid := range look {
			p := r.pending.get(nid)
			if p == nil {
				stored, err := r.e.eventMap(ctx, []storage.EventNID{nid})
				if err != nil {
					return nil, err
				}
				if p = stored[nid]; p != nil {
					p = r.pending.as(p)
				}
			}
			if p != nil && (p.Rejected || p.SoftFailed) {
				prevs, err := r.prevsOf(ctx, p)
				if err != nil {
					return nil, err
				}
				frontier = append(frontier, prevs...)
			}
		}
	}
	return before, nil
}

const (
	unsettledFor    = time.Minute // until it is asked again where ends of branches belong of which nobody could tell; twice that each time nobody can
	maxUnsettledFor = time.Hour
)

// unweighed lists the ends of branches of which nobody could tell whether they come before something stored, and the least depth of those; none
// while it is too early to ask again.
func (r *room) unweighed(ctx context.Context) (ids []matrix.EventID, depth int64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, 0, err
	}
	if len(r.head.tips) == 1 || r.e.now() < r.unsettled.until {
		return nil, 0, nil
	}
	for _, t := range r.head.tips {
		if t.unweighed {
			if len(ids) == 0 || t.depth < depth {
				depth = t.depth
			}
			ids = append(ids, t.id)
		}
	}
	return ids, depth, nil
}

// doubtTips marks the ends of branches above a depth, of which it is not known whether they come before a gap there. That was asked just now.
func (r *room) doubtTips(ctx context.Context, depth int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	var ids []matrix.EventID
	for _, t := range r.head.tips {
		if t.depth < depth {
			ids = append(ids, t.id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	r.head = r.head.marked(ids, true)
	if r.unsettled.until < r.e.now() {
		r.unsettled.again(r.e.now())
	}
	return nil
}

// marked is the head with some ends of branches in doubt, or not any more.
func (h *head) marked(ids []matrix.EventID, unweighed bool) *head {
	next := *h
	next.tips = slices.Clone(h.tips)
	for i, t := range next.tips {
		if slices.Contains(ids, t.id) {
			next.tips[i].unweighed = unweighed
		}
	}
	return &next
}

// settle lets those ends of branches go, of those that were in doubt, that were found to come before something stored, given with the depth of that. If
// all was told, the others are ends. The entry is nil if nothing is to be stored.
func (r *room) settle(ctx context.Context, asked []matrix.EventID, behind map[matrix.EventID]int64, told bool) (*entry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	if told {
		r.unsettled = doubt{}
	} else {
		r.unsettled.again(r.e.now())
	}
	r.head = r.head.marked(asked, !told)
	gone := make(map[storage.EventNID]bool)
	for _, t := range r.head.tips {
		if slices.Contains(asked, t.id) && t.depth < behind[t.id] {
			gone[t.nid] = true
		}
	}
	en := &entry{room: r, line: r.line}
	if err := r.dropTips(ctx, en, gone); err != nil || en.head == nil {
		return nil, err
	}
	r.head = en.head
	r.e.committer.add(en)
	return en, nil
}

// doubt says how long a question is not asked again that nobody could answer.
type doubt struct {
	until matrix.Timestamp
	pause time.Duration
}

func (d *doubt) again(now matrix.Timestamp) {
	d.pause = min(max(2*d.pause, unsettledFor), maxUnsettledFor)
	d.until = now + matrix.Timestamp(d.pause.Milliseconds())
}
