package rooms

import (
	"context"
	"errors"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// placement is an event of another server that has passed its checks, or has been rejected by them, on its way into the room.
type placement struct {
	ev        *event.Event
	before    statetree.Tree
	partial   bool          // before is
	missing   []missingPrev // prev events that we do not have
	rejection error
	found     bool                 // it comes before something stored: history, not news
	under     int64                // depth of that; 0: it is not found
	history   bool                 // it was fetched by backfill
	untold    bool                 // nobody tells what before was: it is the present state, resolved with the auth events
	unweighed bool                 // nobody could tell whether it comes before something stored
	line      *line                // what before was worked out on; nil: on what is committed
	relay     bool                 // we took it for the room and have to send it on
	unwanted  bool                 // the room's policy server does not recommend it
	check     func(headView) error // of the head, before it is moved; may be nil
	// mayStore is asked before so many bytes of an event are stored that is soft-failed; may be nil.
	mayStore func(ctx context.Context, n int) error
	local    *local
}

// local is what goes with an event of our own that takes the way of those of other servers.
type local struct {
	*draft
	appendOptions
}

// missingPrev is a prev event that we do not have, and the state after it as another server told it; none if that was not asked for.
type missingPrev struct {
	id    matrix.EventID
	after statetree.Tree
}

// apart says whether an event was stored without what authorises it: an invite to a room that this server is not in, and the like.
func (ev *Event) apart() bool {
	return ev.Outlier && len(ev.auths) < len(distinctIDs(ev.AuthEvents()))
}

// renumber gives an event that was stored apart a number above those of its auth events, which resolutions of states go by. It
// has to be done before the event becomes part of a state.
func (r *room) renumber(ev, old *Event) (err error) {
	if !old.apart() || !slices.ContainsFunc(ev.auths, func(a storage.EventNID) bool { return a > old.NID }) {
		return nil
	}
	ev.was = old.NID
	ev.NID, err = r.e.db.AllocateEvent(ev.auths...)
	return err
}

// newEvent gives a parsed event its numbers. stored is true if it is in the database already, as an outlier: then its number stays.
func (r *room) newEvent(ctx context.Context, parsed *event.Event) (ev *Event, stored bool, err error) {
	e := r.e
	ev = &Event{Event: parsed, RoomNID: r.nid, ReceivedTS: e.now()}
	if ev.typ, ev.skey, ev.sender, err = e.internEvent(ctx, parsed); err != nil {
		return nil, false, err
	}
	refs, err := r.eventsByID(ctx, slices.Concat(parsed.PrevEvents(), parsed.AuthEvents(), []matrix.EventID{parsed.ID()}))
	if err != nil {
		return nil, false, err
	}
	for _, id := range parsed.PrevEvents() {
		if p := refs[id]; p != nil {
			ev.prevs = append(ev.prevs, p.NID)
		}
	}
	for _, id := range parsed.AuthEvents() {
		if a := refs[id]; a != nil {
			ev.auths = append(ev.auths, a.NID)
		}
	}
	if old := refs[parsed.ID()]; old != nil {
		ev.NID, ev.ReceivedTS, ev.RedactedBy, ev.redactedBy = old.NID, old.ReceivedTS, old.RedactedBy, old.redactedBy
		if old.RedactedBy != "" {
			ev.Event = old.Event
		}
		return ev, true, r.renumber(ev, old)
	}
	if taken, err := r.takenElsewhere(ctx, parsed); err != nil {
		return nil, false, err
	} else if len(taken) > 0 {
		return nil, false, errIDTaken
	}
	ev.NID, err = e.db.AllocateEvent(ev.auths...)
	return ev, false, err
}

var errIDTaken = matrix.Forbidden("an event of another room has this event ID")

// takenElsewhere says which of some events have the ID of an event of another room. Servers name their events themselves
// up to room version 2; later, the ID says what the event is and in which room.
func (r *room) takenElsewhere(ctx context.Context, events ...*event.Event) (map[matrix.EventID]bool, error) {
	if r.version.EventIDFormat != roomversion.EventIDInEvent {
		return nil, nil
	}
	ids := make([]matrix.EventID, len(events))
	for i, ev := range events {
		ids[i] = ev.ID()
	}
	found, err := r.e.eventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	taken := make(map[matrix.EventID]bool)
	for id, ev := range found {
		if ev.RoomNID != r.nid {
			taken[id] = true
		}
	}
	return taken, nil
}

// errHeadLost: a commit failed while a remote event was worked on, and what the event was checked against may not exist.
var errHeadLost = errors.New("rooms: the room was loaded again, the event has to be sent again")

// place puts an event into the room: it decides about soft failure, moves the head and queues the commit.
func (r *room) place(ctx context.Context, p *placement) (*entry, error) {
	en, after, err := r.prepare(ctx, p)
	if err != nil {
		return nil, err
	}
	it := en.items[0]
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	if p.line != nil && p.line != r.line {
		return nil, errHeadLost
	}
	if p.check != nil {
		if err := p.check(headView{ctx, r, r.head.state}); err != nil {
			return nil, err
		}
	}
	// On the line of the head even if the head stays: later events may be checked against a state with this one.
	en.line = r.line
	if it.ev.SoftFailed {
		if err := p.mayKeep(ctx, it.ev); err != nil {
			return nil, err
		}
	}
	accepted := !it.ev.Rejected && !it.ev.SoftFailed && !p.found && !p.history
	// Nobody can be told by a partial state that they may not send: it does not say who is in the room.
	if accepted && p.before.Ref() != r.head.state.Ref() && !p.untold && !p.partial && !r.head.partial() {
		reason, err := split(r.checker.Check(p.ev, headView{ctx, r, r.head.state}))
		if err != nil {
			return nil, err
		}
		if reason != nil && p.local != nil {
			return nil, rejection(reason) // nobody has it yet: what the room does not allow any more is not sent
		}
		if reason != nil {
			if err := p.mayKeep(ctx, it.ev); err != nil {
				return nil, err
			}
			r.e.log.Debug().Str("event", string(it.ev.ID())).Msg("soft-failed")
			it.ev.SoftFailed, accepted = true, false
			r.await(it)
		}
	}
	if it.ev.SoftFailed {
		it.erased = nil // who may not speak any more may not silence others either
		en.missing = nil
	}
	r.addPending(it, after, en.missing...)
	if p.history {
		return en, nil // a page of history is stored as one entry
	}
	if accepted {
		err = r.extend(ctx, en, it, after, p.unweighed)
	} else {
		err = r.retire(ctx, en)
	}
	if err != nil {
		r.pending.drop(en.items)
		return nil, err
	}
	if en.head != nil {
		r.head = en.head
	}
	r.e.committer.add(en)
	return en, nil
}

// mayKeep says whether an event that is soft-failed may be stored.
func (p *placement) mayKeep(ctx context.Context, ev *Event) error {
	if p.mayStore == nil {
		return nil
	}
	return p.mayStore(ctx, len(ev.JSON()))
}

// prepare makes what is to be stored of an event, and the state after it.
func (r *room) prepare(ctx context.Context, p *placement) (en *entry, after statetree.Tree, err error) {
	e := r.e
	encryption, err := e.lookup(ctx, p.before, "m.room.encryption", "")
	if err != nil {
		return nil, after, err
	}
	redact := p.rejection == nil && p.local == nil && e.policy.CheckRemote(ctx, p.ev, encryption != 0)
	if redact {
		p.ev = p.ev.Redact()
	}
	ev, stored, err := r.newEvent(ctx, p.ev)
	if err != nil {
		return nil, after, err
	}
	ev.stateBefore, ev.Partial = p.before.Ref(), p.partial
	ev.Rejected = p.rejection != nil
	ev.SoftFailed = redact || p.unwanted
	ev.Relay = p.relay && !ev.IsDummy()
	if err := r.redactedEarly(ctx, ev); err != nil {
		return nil, after, err
	}
	it := &item{ev: ev, before: p.before, promote: stored, under: p.under}
	en = &entry{room: r, items: []*item{it}}
	if p.local != nil {
		ev.TxnDevice, ev.TxnID, ev.Delayed = p.local.device, p.local.txn, p.local.delayed
		en.extra = both(p.local.extra, p.local.committing(ev.ID()))
	}
	if !ev.Rejected && !ev.SoftFailed || ev.Partial { // else what comes before it is no history of the room yet
		for _, m := range p.missing {
			en.missing = append(en.missing, storage.MissingPrev{ID: m.id, Child: ev.NID, Depth: ev.Depth(), State: int64(m.after.Ref())})
			it.beside = append(it.beside, m.after)
		}
	}
	if p.found {
		en.found = []matrix.EventID{ev.ID()}
	}
	if !ev.Rejected && !redact {
		early, err := r.applyRedaction(ctx, it, State{e, p.before})
		if err != nil {
			return nil, after, err
		}
		if early != "" {
			en.extra = both(en.extra, func(ctx context.Context, tx *storage.Tx) error {
				return storage.InsertEarlyRedaction(ctx, tx, early, ev.NID)
			})
		}
	}
	if (p.found || p.history) && !ev.Rejected && !redact && !ev.IsDummy() && !it.hidden {
		it.timeline = backward
	}
	after = p.before
	if ev.skey != 0 && !ev.Rejected {
		after, err = p.before.With(ctx, ev.entry())
	}
	return en, after, err
}

// memberChanges lists the memberships in which two states differ. extra is an event not in any cache yet.
func (r *room) memberChanges(ctx context.Context, from, to statetree.Tree, extra *Event) ([]memberChange, error) {
	e := r.e
	diffs, err := statetree.Diff(ctx, from, to)
	if err != nil {
		return nil, err
	}
	typ, err := e.db.LookupName(ctx, "m.room.member")
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	diffs = slices.DeleteFunc(diffs, func(d statetree.Difference) bool { return d.Type != int64(typ) })
	if len(diffs) == 0 {
		return nil, nil
	}
	nids := make([]storage.EventNID, 0, 2*len(diffs))
	for _, d := range diffs {
		nids = append(nids, storage.EventNID(d.Events[0]), storage.EventNID(d.Events[1]))
	}
	found := make(map[storage.EventNID]*Event)
	var load []storage.EventNID
	for _, nid := range nids {
		if extra != nil && nid == extra.NID {
			found[nid] = extra
		} else if ev := r.pending.get(nid); ev != nil {
			found[nid] = ev
		} else if nid != 0 {
			load = append(load, nid)
		}
	}
	stored, err := e.eventMap(ctx, load)
	if err != nil {
		return nil, err
	}
	get := func(nid int64) *Event {
		if ev := found[storage.EventNID(nid)]; ev != nil {
			return ev
		}
		return stored[storage.EventNID(nid)]
	}
	names, err := e.diffNames(ctx, diffs)
	if err != nil {
		return nil, err
	}
	domains := make([]string, len(names))
	for i, n := range names {
		domains[i] = string(domain(n.Key))
	}
	servers, err := e.db.Intern(ctx, domains...)
	if err != nil {
		return nil, err
	}
	out := make([]memberChange, 0, len(diffs))
	for i, d := range diffs {
		ch := memberChange{user: storage.NameNID(d.StateKey), server: servers[i], name: matrix.UserID(names[i].Key), current: "leave"}
		if old := get(d.Events[0]); old != nil {
			ch.previous = old.Membership()
		}
		if ev := get(d.Events[1]); ev != nil {
			ch.current, ch.event = ev.Membership(), ev
		}
		out = append(out, ch)
	}
	return out, nil
}

// vouched leaves out of events what is neither stored nor properly signed. It may ask other servers for keys.
func (r *room) vouched(ctx context.Context, events []*event.Event) ([]*event.Event, error) {
	ids := make([]matrix.EventID, len(events))
	for i, ev := range events {
		ids[i] = ev.ID()
	}
	known, err := r.eventsByID(ctx, distinctIDs(ids))
	if err != nil {
		return nil, err
	}
	kept := make([]*event.Event, 0, len(events))
	var fresh []*event.Event
	for _, ev := range events {
		if old := known[ev.ID()]; old == nil || old.apart() {
			fresh = append(fresh, ev)
		} else {
			kept = append(kept, ev)
		}
	}
	return append(kept, r.e.verified(ctx, fresh)...), nil
}

// storeOutliers checks and stores events that are known only by reference, auth chains and states, whose signatures were
// checked. Auth events come before the events they authorise, and what fails its own auth events is stored as
// rejected, so that nothing built on it passes. What lacks auth events is left out.
// The result holds all of them that are known now, with what was known before. room.inbound is held.
// They are committed some at a time, so that those of a big room do not hold up all others.
func (r *room) storeOutliers(ctx context.Context, events []*event.Event) (map[matrix.EventID]*Event, error) {
	e := r.e
	ids := make([]matrix.EventID, 0, 2*len(events))
	for _, ev := range events {
		ids = append(ids, ev.ID())
		ids = append(ids, ev.AuthEvents()...)
	}
	known, err := r.eventsByID(ctx, distinctIDs(ids))
	if err != nil {
		return nil, err
	}
	fresh := make([]*event.Event, 0, len(events))
	listed := make(map[matrix.EventID]bool, len(events))
	for _, ev := range events {
		if old := known[ev.ID()]; (old == nil || old.apart()) && !listed[ev.ID()] {
			listed[ev.ID()] = true
			fresh = append(fresh, ev)
		}
	}
	taken, err := r.takenElsewhere(ctx, fresh...)
	if err != nil {
		return nil, err
	}
	fresh = slices.DeleteFunc(fresh, func(ev *event.Event) bool { return taken[ev.ID()] })
	fresh = byAuth(fresh)
	if len(fresh) == 0 {
		return known, nil
	}
	if err := e.internAll(ctx, fresh); err != nil {
		return nil, err
	}
	var create *event.Event
	if r.version.RoomIDIsCreateHash {
		if create, err = r.findCreate(ctx, fresh); err != nil {
			return nil, err
		}
	}
	en := &entry{room: r, line: &line{}}
	for _, parsed := range fresh {
		if len(en.items) == maxOutliers {
			// Auth events come first: what is stored is whole, whatever becomes of the rest.
			e.committer.add(en)
			if err := en.wait(ctx); err != nil {
				return nil, err
			}
			en = &entry{room: r, line: &line{}}
		}
		rejection, err := r.judgeOutlier(ctx, parsed, known, create)
		if errors.Is(err, errIncomplete) {
			continue
		}
		if err != nil {
			return nil, err
		}
		ev := &Event{Event: parsed, RoomNID: r.nid, ReceivedTS: e.now(), Outlier: true, Rejected: rejection != nil}
		if ev.typ, ev.skey, ev.sender, err = e.internEvent(ctx, parsed); err != nil {
			return nil, err
		}
		for _, id := range parsed.AuthEvents() {
			ev.auths = append(ev.auths, known[id].NID)
			ev.Partial = ev.Partial || known[id].Partial && !ev.Rejected
		}
		old := known[ev.ID()]
		if old != nil {
			ev.NID, ev.ReceivedTS = old.NID, old.ReceivedTS
			err = r.renumber(ev, old)
		} else {
			ev.NID, err = e.db.AllocateEvent(ev.auths...)
		}
		if err != nil {
			return nil, err
		}
		known[ev.ID()] = ev
		en.items = append(en.items, &item{ev: ev, before: e.forest.At(0), promote: old != nil})
	}
	if len(en.items) == 0 {
		return known, nil
	}
	e.committer.add(en)
	return known, en.wait(ctx)
}

// maxOutliers is how many outliers are committed at once.
const maxOutliers = 1000

var errIncomplete = errors.New("auth events are missing")

func (r *room) judgeOutlier(ctx context.Context, ev *event.Event, known map[matrix.EventID]*Event, create *event.Event) (rejection, err error) {
	for _, id := range ev.AuthEvents() {
		if known[id] == nil {
			return nil, errIncomplete
		}
	}
	if r.version.RoomIDIsCreateHash && !ev.Is("m.room.create", "") && create == nil {
		return nil, errIncomplete
	}
	if rejection, err = r.checkOnlyCreate(ctx, ev); rejection != nil || err != nil {
		return rejection, err
	}
	return r.checkAgainst(ev, known, create, true)
}

// findCreate returns the create event of a room whose ID is that event's.
func (r *room) findCreate(ctx context.Context, fresh []*event.Event) (*event.Event, error) {
	for _, ev := range fresh {
		if ev.Is("m.room.create", "") && ev.RoomID() == r.id {
			return ev, nil
		}
	}
	id := matrix.EventID("$" + string(r.id)[1:])
	known, err := r.eventsByID(ctx, []matrix.EventID{id})
	if err != nil || known[id] == nil {
		return nil, err
	}
	return known[id].Event, nil
}

// internAll makes sure that all names in events have numbers, in one go.
func (e *Engine) internAll(ctx context.Context, events []*event.Event) error {
	seen := make(map[string]bool)
	var names []string
	add := func(s string) {
		if !seen[s] {
			seen[s] = true
			names = append(names, s)
		}
	}
	for _, ev := range events {
		add(ev.Type())
		add(string(ev.Sender()))
		if key, ok := ev.StateKey(); ok {
			add(key)
			if ev.Type() == "m.room.member" {
				add(string(domain(key)))
			}
		}
	}
	if len(names) == 0 {
		return nil
	}
	_, err := e.db.Intern(ctx, names...)
	return err
}

// byAuth orders events so that auth events come before what they authorise. Members of a cycle are left out.
func byAuth(events []*event.Event) []*event.Event {
	byID := make(map[matrix.EventID]*event.Event, len(events))
	waits := make(map[matrix.EventID]int, len(events))
	children := make(map[matrix.EventID][]*event.Event)
	for _, ev := range events {
		byID[ev.ID()] = ev
	}
	var ready []*event.Event
	for _, ev := range events {
		n := 0
		for _, a := range distinctIDs(ev.AuthEvents()) {
			if byID[a] != nil {
				n++
				children[a] = append(children[a], ev)
			}
		}
		if waits[ev.ID()] = n; n == 0 {
			ready = append(ready, ev)
		}
	}
	out := make([]*event.Event, 0, len(events))
	for len(ready) > 0 {
		ev := ready[0]
		ready = ready[1:]
		out = append(out, ev)
		for _, c := range children[ev.ID()] {
			if waits[c.ID()]--; waits[c.ID()] == 0 {
				ready = append(ready, c)
			}
		}
	}
	return out
}

// treeOf makes a state of parsed events, using those that are known and were not rejected for good.
func (r *room) treeOf(ctx context.Context, events []*event.Event, known map[matrix.EventID]*Event) (statetree.Tree, error) {
	ids := make([]matrix.EventID, len(events))
	for i, ev := range events {
		ids[i] = ev.ID()
	}
	return r.treeFrom(ctx, ids, known)
}

// treeFrom makes a state of events by ID. Two for one key, or one that is no state event, are an error: the sender is at fault.
func (r *room) treeFrom(ctx context.Context, ids []matrix.EventID, known map[matrix.EventID]*Event) (statetree.Tree, error) {
	entries := make([]statetree.Entry, 0, len(ids))
	seen := make(map[statetree.Key]int64, len(ids))
	for _, id := range ids {
		ev := known[id]
		if ev == nil || ev.Rejected && !ev.Partial || ev.apart() {
			continue
		}
		if ev.skey == 0 {
			return statetree.Tree{}, nonsense("a state holds an event that is no state event")
		}
		en := ev.entry()
		if other, ok := seen[en.Key]; ok {
			if other == en.Event {
				continue
			}
			return statetree.Tree{}, nonsense("a state holds two events for one key")
		}
		seen[en.Key] = en.Event
		entries = append(entries, en)
	}
	return r.e.forest.At(0).With(ctx, entries...)
}
