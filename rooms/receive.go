package rooms

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"hanok/internal/budget"
	"hanok/matrix"
	"hanok/matrix/acl"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Received is what became of one received PDU.
type Received struct {
	ID  matrix.EventID // "" if the PDU could not be parsed
	Err error          // nil: processed (a soft-failed event, too); the text goes into the transaction's answer
}

// Rejected reports that the event was rejected by the authorisation rules, now or earlier: it is dealt with.
func (r Received) Rejected() bool {
	var rej *eventauth.Rejection
	return errors.As(r.Err, &rej) || errors.Is(r.Err, errRejectedBefore)
}

// awaitJoin waits for a join under way that makes this server resident: once a server has let our user in it sends what happens from
// then on, also before its answer is stored here. A room that we are in already goes on meanwhile; who may authorise the join may be
// among the news.
func (e *Engine) awaitJoin(ctx context.Context, room matrix.RoomID) error {
	r, err := e.room(ctx, room)
	switch {
	case matrix.HasCode(err, "M_NOT_FOUND"):
	case err != nil:
		return err
	default:
		defer r.release()
		if resident, err := r.resident(ctx); resident || err != nil {
			return err
		}
	}
	e.joins.Wait(ctx, room)
	return nil
}

// Receive processes PDUs of one room sent by origin; result i belongs to pdus[i]. It waits until they are durable. spec: ss/sendTransaction
func (e *Engine) Receive(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, pdus [][]byte) []Received {
	out := make([]Received, len(pdus))
	fail := func(err error) []Received {
		for i := range out {
			if out[i].Err == nil {
				out[i].Err = err
			}
		}
		return out
	}
	if err := e.awaitJoin(ctx, room); err != nil {
		return fail(err)
	}
	r, err := e.room(ctx, room)
	if err != nil {
		return fail(hideRoom(err))
	}
	defer r.release()
	events := make([]*event.Event, 0, len(pdus))
	index := make([]int, 0, len(pdus))
	for i, pdu := range pdus {
		ev, err := event.Parse(r.version, pdu)
		if err != nil {
			out[i].Err = err
			continue
		}
		out[i].ID = ev.ID()
		if ev.RoomID() != room {
			out[i].Err = matrix.BadJSON("the event is of another room")
			continue
		}
		events = append(events, ev)
		index = append(index, i)
	}
	resident, err := r.resident(ctx)
	if err != nil {
		return fail(err)
	}
	if !resident {
		removed, err := r.removed(ctx)
		if err != nil {
			return fail(err)
		}
		var left []*event.Event
		var indexLeft []int
		for i, err := range e.receiveApart(ctx, r, events) {
			if removed && errors.Is(err, ErrNotInRoom) {
				left, indexLeft = append(left, events[i]), append(indexLeft, index[i])
			} else {
				out[index[i]].Err = err
			}
		}
		if len(left) == 0 {
			return out
		}
		events, index = left, indexLeft
	}
	if err := r.allowsServer(ctx, origin); err != nil {
		return fail(err)
	}
	e.partials.nudge(r.nid, origin)
	for i, err := range e.verify(ctx, events) {
		if err != nil {
			out[index[i]].Err = matrix.Forbidden("the event is not properly signed").Because(err)
			events[i] = nil
		}
	}
	for i, err := range e.receive(ctx, origin, r, events) {
		if err != nil && out[index[i]].Err == nil {
			out[index[i]].Err = err
		}
	}
	return out
}

func (e *Engine) verify(ctx context.Context, events []*event.Event) []error {
	if len(events) == 0 {
		return nil
	}
	return e.remote.Verify(ctx, events)
}

// receive works on verified events of one room (nil entries are left out) and waits for the commits.
func (e *Engine) receive(ctx context.Context, origin matrix.ServerName, r *room, events []*event.Event) []error {
	out := e.receiveBatch(ctx, origin, r, events)
	if err := e.mergeTips(ctx, r); err != nil {
		e.log.Debug().Err(err).Int64("room", int64(r.nid)).Msg("branches are not merged")
	}
	return out
}

func (e *Engine) receiveBatch(ctx context.Context, origin matrix.ServerName, r *room, events []*event.Event) []error {
	out := make([]error, len(events))
	leave, err := r.lanes.enter(ctx, origin)
	if err != nil {
		for i := range out {
			out[i] = err
		}
		return out
	}
	defer leave()
	ctx, over := budget.Keep(ctx)
	defer over()
	in := r.newInbound(origin)
	defer in.unlock()
	order := make([]int, 0, len(events))
	for i, ev := range events {
		if ev != nil {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(events[a].Depth(), events[b].Depth()) })
	for _, i := range order {
		out[i] = in.handle(ctx, events[i], true)
	}
	in.unlock() // the next batch builds on what is about to be committed
	for _, en := range in.entries {
		if err := en.wait(ctx); err != nil {
			for i := range out {
				if out[i] == nil {
					out[i] = err
				}
			}
		}
	}
	return out
}

// handle takes one event through all checks. gaps says whether missing events may be asked for.
// The result is nil also for a soft-failed event.
// spec: server-server-api#checks-performed-on-receipt-of-a-pdu
func (in *inbound) handle(ctx context.Context, ev *event.Event, gaps bool) error {
	// Another event may be under work, which this one comes before: it has to know, too, whether the room has changed.
	moved := in.moved
	defer func() { in.moved = in.moved || moved }()
	for {
		// Each request is made once, and only requests let others at the room, so that comes to an end.
		if again, err := in.attempt(ctx, ev, gaps); !again {
			return err
		}
		moved = moved || in.moved
	}
}

// attempt is one look at an event; again: the room has changed since it began.
func (in *inbound) attempt(ctx context.Context, ev *event.Event, gaps bool) (again bool, err error) {
	r := in.r
	if err := in.lock(ctx); err != nil {
		return false, err
	}
	in.moved, in.line = false, r.currentLine()
	known, err := r.eventsByID(ctx, append(ev.PrevEvents(), ev.ID()))
	if err != nil {
		return false, err
	}
	if old := known[ev.ID()]; old != nil && !old.Outlier {
		if old.Rejected && !old.Partial {
			return false, errRejectedBefore
		}
		return false, nil
	}
	if in.e.dropped.Has(ev.ID()) {
		return false, errRejectedBefore
	}
	if gaps && in.barred {
		return false, errBarred
	}
	ev = withContent(ev, known)
	if gaps && !in.weighed[ev.ID()] {
		if asked, err := in.weigh(ctx, ev); asked || err != nil {
			return err == nil, err
		}
	}
	missing := missingPrevs(ev, known)
	if len(missing) > 0 && gaps && !in.filled[ev.ID()] {
		in.filled[ev.ID()] = true
		if err := in.fillGap(ctx, ev); err != nil {
			in.e.log.Debug().Err(err).Str("event", string(ev.ID())).Msg("get_missing_events")
		}
		return true, nil
	}
	if err := in.authLacking(ctx, ev); err != nil {
		return false, err
	}
	// The state first: where it has to be fetched, its auth chain comes with it.
	p := &placement{ev: ev, line: in.line, relay: in.relay && gaps, mayStore: in.mayStore, unweighed: in.doubted[ev.ID()]}
	if gaps {
		p.check = in.check
	}
	if err := in.stateBefore(ctx, p, known, missing); err != nil {
		why := errors.Unwrap(err)
		if !in.e.putsOut(ev) || !matrix.HasCode(why, "M_FORBIDDEN") && !matrix.HasCode(why, "M_NOT_FOUND") {
			return false, err
		}
		if err := in.stateNow(ctx, p, missing); err != nil {
			return false, err
		}
		p.untold = true
	}
	if err := in.ensureAuth(ctx, ev); err != nil {
		return false, err
	}
	if p.untold {
		if p.before, err = r.withAuth(ctx, p.before, ev.AuthEvents()); err != nil {
			return false, err
		}
	}
	if p.partial, err = r.provisional(ctx, p); err != nil {
		return false, err
	}
	if p.rejection, err = r.checkEvent(ctx, ev, p.before, p.partial); err != nil {
		return false, err
	}
	if p.rejection != nil && !p.partial && !in.moved {
		if outside, err := in.outside(ctx); err != nil {
			return false, err
		} else if outside {
			in.e.dropped.Add(ev.ID())
			return false, rejection(p.rejection)
		}
	}
	if p.under, p.found, err = in.history(ctx, ev.ID()); err != nil {
		return false, err
	}
	if err := in.heedPolicyServer(ctx, p); err != nil {
		return false, err
	}
	if in.moved {
		return true, nil
	}
	en, err := r.place(ctx, p)
	if err != nil {
		return false, err
	}
	in.entries = append(in.entries, en)
	if ev.Is("m.room.server_acl", "") && en.head != nil {
		in.barred = !acl.Compile(ev.Content()).Allows(in.origin)
	}
	if p.partial {
		if p.rejection != nil {
			in.e.log.Debug().Err(p.rejection).Str("event", string(ev.ID())).Msg("rejected as far as a partial state says")
		}
		return false, nil // that is not the last word
	}
	return false, rejection(p.rejection)
}

func missingPrevs(ev *event.Event, known map[matrix.EventID]*Event) []matrix.EventID {
	var out []matrix.EventID
	for _, id := range ev.PrevEvents() {
		if p := known[id]; p == nil || p.Outlier {
			out = append(out, id)
		}
	}
	return out
}

// stateBefore resolves the states after an event's prev events. That of a missing one is asked of the origin.
func (in *inbound) stateBefore(ctx context.Context, p *placement, known map[matrix.EventID]*Event, missing []matrix.EventID) error {
	if len(missing) > maxMissingPrev {
		return errTooMuch
	}
	missing = slices.Clone(missing)
	var whole, partial []statetree.Tree
	for _, id := range p.ev.PrevEvents() {
		prev := known[id]
		if slices.Contains(missing, id) {
			var err error
			if prev, err = in.promote(ctx, prev); err != nil {
				return err
			}
		}
		if prev == nil || prev.Outlier {
			continue
		}
		missing = slices.DeleteFunc(missing, func(m matrix.EventID) bool { return m == id })
		t, err := in.r.treeAfter(ctx, prev)
		if err != nil {
			return err
		}
		if prev.Partial {
			partial = append(partial, t)
		} else {
			whole = append(whole, t)
		}
	}
	for _, id := range missing {
		t, err := in.remoteStateAfter(ctx, id)
		if err != nil {
			return err
		}
		p.missing = append(p.missing, missingPrev{id, t})
		whole = append(whole, t)
	}
	p.partial = len(partial) > 0
	var err error
	p.before, err = in.r.merge(ctx, whole, partial)
	return err
}

// putsOut says whether an event of another server removes a local user from the room.
func (e *Engine) putsOut(ev *event.Event) bool {
	key, _ := ev.StateKey()
	return ev.Type() == "m.room.member" && e.isLocal(matrix.UserID(key)) && !e.isLocal(ev.Sender()) && (ev.Membership() == "leave" || ev.Membership() == "ban")
}

// stateNow takes the room's current state for the one before an event that puts a local user out. Those who know of it may not tell us
// any more what came before it: we are not in the room, or who did it has left. If its sender may do so by what we know, it is done.
func (in *inbound) stateNow(ctx context.Context, p *placement, missing []matrix.EventID) error {
	r := in.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	p.before, p.partial, p.missing = r.head.state, r.head.partial(), nil
	for _, id := range missing {
		p.missing = append(p.missing, missingPrev{id: id})
	}
	return nil
}

// removalStands is after what time a removal is not doubted any more. Else whoever was once in a room with us could have us keep its events for ever.
const removalStands = 30 * 24 * time.Hour

// removed says whether this server takes no part in a room though not all of its users left by themselves: somebody removed one lately, or there is a
// branch on which one is in the room, and which lost against others. With further branches that may turn out not to hold: who goes on to send
// us events knows already.
func (r *room) removed(ctx context.Context) (bool, error) {
	c, err := r.current(ctx)
	if err != nil {
		return false, err
	}
	if was, err := storage.WasRemoved(ctx, r.e.db, r.nid, r.e.own, r.e.now().Add(-removalStands)); was || err != nil {
		return was, err
	}
	for _, t := range c.head.tips {
		changes, err := r.memberChanges(ctx, c.head.state, t.after, nil)
		if err != nil {
			return false, err
		}
		if slices.ContainsFunc(changes, func(ch memberChange) bool { return ch.server == r.e.own && ch.current == "join" }) {
			return true, nil
		}
	}
	return false, nil
}

// promote puts an event into the room that was known by reference only, if all that comes before it is in the room. The result is nil
// if it is not.
func (in *inbound) promote(ctx context.Context, outlier *Event) (*Event, error) {
	if outlier == nil || len(outlier.PrevEvents()) == 0 {
		return nil, nil
	}
	known, err := in.r.eventsByID(ctx, outlier.PrevEvents())
	if err != nil || len(missingPrevs(outlier.Event, known)) > 0 {
		return nil, err
	}
	if err := in.handle(ctx, outlier.Event, false); err != nil {
		in.e.log.Debug().Err(err).Str("event", string(outlier.ID())).Msg("a missing event was not accepted")
	}
	known, err = in.r.eventsByID(ctx, []matrix.EventID{outlier.ID()})
	if ev := known[outlier.ID()]; err == nil && ev != nil && !ev.Outlier {
		return ev, nil
	}
	return nil, err
}

// apply returns the state after an event, known if at all by reference only, given the one before it.
func (r *room) apply(ctx context.Context, before statetree.Tree, ev *Event) (statetree.Tree, error) {
	if ev == nil || ev.apart() {
		return statetree.Tree{}, errNoState
	}
	if ev.skey == 0 || ev.Rejected {
		return before, nil
	}
	if rejection, err := split(r.checker.Check(ev.Event, treeState{ctx, r, before})); rejection != nil || err != nil {
		return before, err
	}
	return before.With(ctx, ev.entry())
}

// sortByDepth puts events before those that follow on them, and redactions behind others that may be their targets: one that comes before
// its target is shown to nobody.
func sortByDepth(events []*event.Event) {
	slices.SortStableFunc(events, func(a, b *event.Event) int {
		if c := cmp.Compare(a.Depth(), b.Depth()); c != 0 {
			return c
		}
		_, aRedacts := a.Redacts()
		_, bRedacts := b.Redacts()
		switch {
		case aRedacts == bRedacts:
			return 0
		case aRedacts:
			return 1
		}
		return -1
	})
}

// parseAll parses PDUs of a room, leaving out what is malformed or of another room.
func (e *Engine) parseAll(v *roomversion.Version, room matrix.RoomID, raw [][]byte) ([]*event.Event, error) {
	return parseBy(event.Parse, v, room, raw), nil
}

func parseBy(parse func(*roomversion.Version, []byte) (*event.Event, error), v *roomversion.Version, room matrix.RoomID, raw [][]byte) []*event.Event {
	out := make([]*event.Event, 0, len(raw))
	seen := make(map[matrix.EventID]bool, len(raw))
	for _, pdu := range raw {
		ev, err := parse(v, pdu)
		if err != nil || ev.RoomID() != room || seen[ev.ID()] {
			continue
		}
		seen[ev.ID()] = true
		out = append(out, ev)
	}
	return out
}

// parseVerified is parseAll that leaves out what is not properly signed, too.
func (e *Engine) parseVerified(ctx context.Context, v *roomversion.Version, room matrix.RoomID, raw [][]byte) ([]*event.Event, error) {
	events, err := e.parseAll(v, room, raw)
	if err != nil {
		return nil, err
	}
	return e.verified(ctx, events), nil
}

func (e *Engine) verified(ctx context.Context, events []*event.Event) []*event.Event {
	kept := make([]*event.Event, 0, len(events))
	for i, err := range e.verify(ctx, events) {
		if err == nil {
			kept = append(kept, events[i])
		}
	}
	return kept
}

// leadingTo leaves out of events what is in nobody's auth chain: a server may answer with more than was asked for, and
// all that is stored stays. roots are the IDs to start from.
func leadingTo(roots []matrix.EventID, events []*event.Event) []*event.Event {
	byID := make(map[matrix.EventID]*event.Event, len(events))
	for _, ev := range events {
		byID[ev.ID()] = ev
	}
	var out []*event.Event
	for frontier := roots; len(frontier) > 0; {
		var next []matrix.EventID
		for _, id := range frontier {
			if ev := byID[id]; ev != nil {
				delete(byID, id)
				out = append(out, ev)
				next = append(next, ev.AuthEvents()...)
			}
		}
		frontier = next
	}
	// The room ID of newer versions stands for the create event among the auth events.
	for _, ev := range byID {
		if ev.Is("m.room.create", "") {
			out = append(out, ev)
		}
	}
	return out
}

func distinctIDs(ids []matrix.EventID) []matrix.EventID {
	out := slices.Clone(ids)
	slices.Sort(out)
	return slices.Compact(out)
}
