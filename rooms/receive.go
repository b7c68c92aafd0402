package rooms

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"

	"hanok/matrix"
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

// Rejected reports that the event is stored and was rejected by the authorisation rules, now or earlier: it is dealt with.
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
			if removed && errors.Is(err, errNotInRoom) {
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
	e.partials.nudge(r.nid)
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
	if err := r.lockInbound(ctx); err != nil {
		for i := range out {
			out[i] = err
		}
		return out
	}
	defer r.unlockInbound()
	in := r.newInbound(origin)
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

// Limits on what one received event may make us fetch.
const (
	maxGap         = 20  // events asked for by one get_missing_events
	maxGapRounds   = 10  // such requests for one gap
	maxMissingPrev = 10  // prev events whose state is asked for
	maxSingleFetch = 30  // events fetched one by one before the whole state is asked for
	maxFetches     = 100 // requests per received batch

	maxFetchedEvents = 300_000 // events that those requests may bring: a state and auth chain of the biggest rooms
)

// inbound is a batch of received events being worked on; room.inbound is held.
type inbound struct {
	e       *Engine
	r       *room
	origin  matrix.ServerName
	line    *line                // of the head when the work began
	relay   bool                 // accepted events are ours to send on
	check   func(headView) error // of the head, before an event that was sent becomes a part of it; may be nil
	entries []*entry
	fetches int
	fetched int // events that came by requests
	asides  int // requests to others than the origin
	others  []matrix.ServerName
	failure error // of the last request for a single event, nil if none failed
	// behind are events of which it is known that something stored comes after them: history, not news.
	behind  map[matrix.EventID]bool
	refusal error // what the room's policy server said against the last event that it did not recommend
	lost    error // the last request for a single event that had no answer
}

// Why an event of another server was not taken. These are for that server to read: they are no failures of ours.
var (
	errTooMuch        = matrix.Forbidden("the event needs more events that are missing here than this server is willing to fetch")
	errRejectedBefore = matrix.Forbidden("the event was rejected before")
	errNoAuthEvents   = matrix.Forbidden("auth events of the event are missing here and cannot be had")
	errNoState        = matrix.Forbidden("the state at the event cannot be had")
)

func (r *room) newInbound(origin matrix.ServerName) *inbound {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &inbound{e: r.e, r: r, origin: origin, line: r.line, behind: make(map[matrix.EventID]bool)}
}

func (in *inbound) fetch() error {
	if in.fetches++; in.fetches > maxFetches {
		return errTooMuch
	}
	return nil
}

// maxAsides is how often a batch may have us ask servers that did not send it, for what its sender does not have. They
// must not be made to answer for a server that sends nonsense.
const maxAsides = 5

// ask puts a question to the origin, and to two other servers in the room if it has no answer.
func (in *inbound) ask(ctx context.Context, question func(matrix.ServerName) error) error {
	if err := in.fetch(); err != nil {
		return err
	}
	err := question(in.origin)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if in.others == nil {
		servers, listErr := in.e.JoinedServers(ctx, in.r.id)
		if listErr != nil {
			return listErr
		}
		in.e.inTurn(in.r.id, servers)
		in.others = slices.DeleteFunc(in.e.answeringFirst(servers), func(s matrix.ServerName) bool { return s == in.origin || s == in.e.server })
	}
	for _, s := range in.others[:min(2, len(in.others))] {
		if in.asides++; in.asides > maxAsides {
			break
		}
		if question(s) == nil {
			return nil
		}
	}
	return err
}

// handle takes one event through all checks. gaps says whether missing events may be asked for.
// The result is nil also for a soft-failed event.
// spec: server-server-api#checks-performed-on-receipt-of-a-pdu
func (in *inbound) handle(ctx context.Context, ev *event.Event, gaps bool) error {
	r := in.r
	known, err := r.eventsByID(ctx, append(ev.PrevEvents(), ev.ID()))
	if err != nil {
		return err
	}
	if old := known[ev.ID()]; old != nil && !old.Outlier {
		if old.Rejected && !old.Partial {
			return errRejectedBefore
		}
		return nil
	}
	missing := missingPrevs(ev, known)
	if len(missing) > 0 && gaps {
		if err := in.fillGap(ctx, ev); err != nil {
			in.e.log.Debug().Err(err).Str("event", string(ev.ID())).Msg("get_missing_events")
		}
		if known, err = r.eventsByID(ctx, ev.PrevEvents()); err != nil {
			return err
		}
		missing = missingPrevs(ev, known)
	}
	// The state first: where it has to be fetched, its auth chain comes with it.
	p := &placement{ev: ev, line: in.line, relay: in.relay && gaps}
	if gaps {
		p.check = in.check
	}
	if err := in.stateBefore(ctx, p, known, missing); err != nil {
		if !in.e.putsOut(ev) || !matrix.HasCode(errors.Unwrap(err), "M_FORBIDDEN") {
			return err
		}
		if err := in.stateNow(ctx, p, missing); err != nil {
			return err
		}
	}
	if err := in.ensureAuth(ctx, ev); err != nil {
		return err
	}
	if p.rejection, err = r.checkEvent(ctx, ev, p.before, p.partial); err != nil {
		return err
	}
	if p.found, err = in.history(ctx, ev.ID()); err != nil {
		return err
	}
	if err := in.heedPolicyServer(ctx, p); err != nil {
		return err
	}
	en, err := r.place(ctx, p)
	if err != nil {
		return err
	}
	in.entries = append(in.entries, en)
	if p.partial {
		return nil // that is not the last word
	}
	return rejection(p.rejection)
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

// fillGap asks for what lies between our head and an event. It matters that a gap is closed: where it stays open, what comes
// before it and what comes after it are taken for branches, and a resolution of their states may bring back what has long
// been replaced. spec: ss/getMissingPreviousEvents
func (in *inbound) fillGap(ctx context.Context, ev *event.Event) error {
	r := in.r
	r.mu.Lock()
	err := r.load(ctx)
	var earliest []matrix.EventID
	if err == nil {
		for _, t := range deepest(r.head.tips, min(len(r.head.tips), maxGap)) {
			earliest = append(earliest, t.id)
		}
	}
	r.mu.Unlock()
	if err != nil {
		return err
	}
	events, err := in.between(ctx, earliest, ev)
	if len(events) == 0 {
		return err
	}
	sortByDepth(events)
	if err := in.noteHistory(ctx, events); err != nil {
		return err
	}
	for _, m := range events {
		if m.ID() == ev.ID() {
			continue
		}
		if err := in.handle(ctx, m, false); err != nil {
			in.e.log.Debug().Err(err).Str("event", string(m.ID())).Msg("an event of a gap was not accepted")
		}
	}
	return nil
}

// between fetches what lies between some events that we have and one that has come. If that fails on the way, the result is what
// has come so far, and the error.
func (in *inbound) between(ctx context.Context, earliest []matrix.EventID, ev *event.Event) ([]*event.Event, error) {
	gap := map[matrix.EventID]bool{ev.ID(): true}
	var events []*event.Event
	latest := []matrix.EventID{ev.ID()}
	for range maxGapRounds {
		var raw [][]byte
		err := in.ask(ctx, func(s matrix.ServerName) (err error) {
			raw, err = in.e.remote.MissingEvents(ctx, s, in.r.id, earliest, latest, maxGap, 0)
			return err
		})
		if err != nil {
			return events, err
		}
		full := len(raw) >= maxGap
		more, err := in.e.parseVerified(ctx, in.r.version, in.r.id, raw[:min(len(raw), maxGap)])
		if err != nil {
			return events, err
		}
		more = slices.DeleteFunc(more, func(m *event.Event) bool { return gap[m.ID()] })
		for _, m := range more {
			gap[m.ID()] = true
		}
		events = append(events, more...)
		if !full || len(more) == 0 {
			break // there is nothing further
		}
		if latest, err = in.openEnds(ctx, events, gap); err != nil || len(latest) == 0 {
			return events, err
		}
	}
	return events, nil
}

// openEnds lists those events of a gap before which something is missing still.
func (in *inbound) openEnds(ctx context.Context, events []*event.Event, gap map[matrix.EventID]bool) ([]matrix.EventID, error) {
	var before []matrix.EventID
	for _, m := range events {
		before = append(before, m.PrevEvents()...)
	}
	known, err := in.r.eventsByID(ctx, distinctIDs(before))
	if err != nil {
		return nil, err
	}
	var ends []matrix.EventID
	for _, m := range events {
		if slices.ContainsFunc(missingPrevs(m, known), func(id matrix.EventID) bool { return !gap[id] }) && len(ends) < maxGap {
			ends = append(ends, m.ID())
		}
	}
	return ends, nil
}

// noteHistory finds those events of a gap, in order of depth, that come before something stored. They are worked on before what
// tells so: an event whose child is stored would pass for the end of a branch, and its old state for a part of the present one.
func (in *inbound) noteHistory(ctx context.Context, events []*event.Event) error {
	for _, m := range slices.Backward(events) {
		old, err := in.history(ctx, m.ID())
		if err != nil {
			return err
		}
		if !old {
			continue
		}
		for _, id := range m.PrevEvents() {
			in.behind[id] = true
		}
	}
	return nil
}

// history says whether something stored comes after an event that is not.
func (in *inbound) history(ctx context.Context, id matrix.EventID) (bool, error) {
	if in.behind[id] {
		return true, nil
	}
	return storage.IsMissingPrev(ctx, in.e.db, in.r.nid, id)
}

func sortByDepth(events []*event.Event) {
	slices.SortStableFunc(events, func(a, b *event.Event) int { return cmp.Compare(a.Depth(), b.Depth()) })
}

// parseAll parses PDUs of a room, leaving out what is malformed or of another room.
func (e *Engine) parseAll(v *roomversion.Version, room matrix.RoomID, raw [][]byte) ([]*event.Event, error) {
	out := make([]*event.Event, 0, len(raw))
	seen := make(map[matrix.EventID]bool, len(raw))
	for _, pdu := range raw {
		ev, err := event.Parse(v, pdu)
		if err != nil || ev.RoomID() != room || seen[ev.ID()] {
			continue
		}
		seen[ev.ID()] = true
		out = append(out, ev)
	}
	return out, nil
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

// ensureAuth makes the auth events of an event known, fetching its auth chain when one is missing.
func (in *inbound) ensureAuth(ctx context.Context, ev *event.Event) error {
	r := in.r
	for attempt := range 2 {
		known, err := r.eventsByID(ctx, ev.AuthEvents())
		if err != nil {
			return err
		}
		if len(known) == len(distinctIDs(ev.AuthEvents())) {
			return nil
		}
		if attempt == 1 {
			break
		}
		var raw [][]byte
		err = in.ask(ctx, func(s matrix.ServerName) (err error) {
			raw, err = in.e.remote.EventAuth(ctx, s, r.id, ev.ID())
			return err
		})
		if err != nil {
			if _, err := in.obtain(ctx, ev.AuthEvents()); err != nil {
				return errNoAuthEvents.Because(err)
			}
			continue
		}
		events, err := in.e.parseAll(r.version, r.id, raw)
		if err != nil {
			return err
		}
		if err := in.store(ctx, leadingTo(ev.AuthEvents(), events)); err != nil {
			return err
		}
	}
	return errNoAuthEvents.Because(in.failure)
}

// store keeps events that were fetched as outliers.
func (in *inbound) store(ctx context.Context, events []*event.Event) error {
	if in.fetched += len(events); in.fetched > maxFetchedEvents {
		return errTooMuch
	}
	_, err := in.r.storeOutliers(ctx, events)
	return err
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
// any more what came before it: we are not in the room. If its sender may do so by what we know, it is done.
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

// removed says whether this server takes no part in a room because another removed its last user. It may turn out, when the states of
// branches are resolved, that this was not allowed: who goes on to send us events knows already.
func (r *room) removed(ctx context.Context) (bool, error) {
	c, err := r.current(ctx)
	if err != nil {
		return false, err
	}
	for _, t := range c.head.tips {
		ev, err := r.event(ctx, t.nid)
		if err != nil {
			return false, err
		}
		if r.e.putsOut(ev.Event) {
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

// remoteStateAfter asks the origin for the state after an event that we do not have.
func (in *inbound) remoteStateAfter(ctx context.Context, id matrix.EventID) (statetree.Tree, error) {
	tree, err := in.remoteStateBefore(ctx, id)
	if err != nil {
		return statetree.Tree{}, err
	}
	known, err := in.obtain(ctx, []matrix.EventID{id})
	if err != nil {
		return statetree.Tree{}, err
	}
	after, err := in.r.apply(ctx, tree, known[id])
	if errors.Is(err, errNoState) {
		err = errNoState.Because(in.failure)
	}
	return after, err
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

// remoteStateBefore asks the origin for the state before an event. spec: ss/getRoomStateIds, ss/getRoomState
func (in *inbound) remoteStateBefore(ctx context.Context, id matrix.EventID) (statetree.Tree, error) {
	r := in.r
	var stateIDs, authIDs []matrix.EventID
	from := in.origin
	err := in.ask(ctx, func(s matrix.ServerName) (err error) {
		from = s
		stateIDs, authIDs, err = in.e.remote.StateIDs(ctx, s, r.id, id)
		return err
	})
	if errors.Is(err, errTooMuch) {
		return statetree.Tree{}, err
	}
	if err != nil {
		return statetree.Tree{}, errNoState.Because(err)
	}
	all := distinctIDs(append(slices.Clone(stateIDs), authIDs...))
	known, err := r.eventsByID(ctx, all)
	if err != nil {
		return statetree.Tree{}, err
	}
	if len(all)-len(known) > maxSingleFetch {
		if err := in.fetch(); err != nil {
			return statetree.Tree{}, err
		}
		state, auth, err := in.e.remote.State(ctx, from, r.id, id)
		if err != nil {
			return statetree.Tree{}, errNoState.Because(err)
		}
		events, err := in.e.parseAll(r.version, r.id, append(slices.Clone(auth), state...))
		if err != nil {
			return statetree.Tree{}, err
		}
		if err := in.store(ctx, leadingTo(stateIDs, events)); err != nil {
			return statetree.Tree{}, err
		}
	} else if _, err := in.obtain(ctx, all); err != nil {
		return statetree.Tree{}, err
	}
	if known, err = r.eventsByID(ctx, stateIDs); err != nil {
		return statetree.Tree{}, err
	}
	if len(known) == 0 && len(stateIDs) > 0 {
		return statetree.Tree{}, errNoState.Because(in.failure)
	}
	return r.treeFrom(ctx, stateIDs, known)
}

// obtain returns events, fetching one by one those that we do not have.
func (in *inbound) obtain(ctx context.Context, ids []matrix.EventID) (map[matrix.EventID]*Event, error) {
	known, err := in.r.eventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	events, err := in.fetchMissing(ctx, ids, known)
	if err != nil || len(events) == 0 {
		return known, err
	}
	if err := in.store(ctx, events); err != nil {
		return nil, err
	}
	return in.r.eventsByID(ctx, ids)
}

// fetchMissing fetches one by one those events that are not known, with what they depend on.
func (in *inbound) fetchMissing(ctx context.Context, ids []matrix.EventID, known map[matrix.EventID]*Event) ([]*event.Event, error) {
	// What was stored apart gets its auth events now, and its place among them.
	var events []*event.Event
	for _, id := range ids {
		if ev := known[id]; ev != nil && ev.apart() {
			events = append(events, ev.Event)
		}
	}
	asked := make(map[matrix.EventID]bool)
	more, err := in.unknownAuth(ctx, events, asked)
	if err != nil {
		return nil, err
	}
	for wanted := append(slices.Clone(ids), more...); len(wanted) > 0; {
		var raw [][]byte
		for _, id := range wanted {
			if known[id] != nil || asked[id] {
				continue
			}
			asked[id] = true
			var pdu []byte
			err := in.ask(ctx, func(s matrix.ServerName) (err error) {
				pdu, err = in.e.remote.Event(ctx, s, id)
				return err
			})
			if errors.Is(err, errTooMuch) {
				return nil, err
			}
			if err != nil {
				in.failure = err
				if answer, ok := matrix.AsError(err); !ok || answer.Status >= http.StatusInternalServerError {
					in.lost = err
				}
				continue // what depends on it is left out
			}
			raw = append(raw, pdu)
		}
		more, err := in.e.parseAll(in.r.version, in.r.id, raw)
		if err != nil {
			return nil, err
		}
		events = append(events, more...)
		if wanted, err = in.unknownAuth(ctx, more, asked); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// unknownAuth lists the auth events of some events that are neither stored nor asked for.
func (in *inbound) unknownAuth(ctx context.Context, events []*event.Event, asked map[matrix.EventID]bool) ([]matrix.EventID, error) {
	var ids []matrix.EventID
	for _, ev := range events {
		for _, id := range ev.AuthEvents() {
			if !asked[id] {
				ids = append(ids, id)
			}
		}
	}
	ids = distinctIDs(ids)
	known, err := in.r.eventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(ids, func(id matrix.EventID) bool { return known[id] != nil }), nil
}

// checkEvent runs the auth rules against the event's auth events and the state before it, or what there is of that.
// The rejection is nil when it passes.
func (r *room) checkEvent(ctx context.Context, ev *event.Event, before statetree.Tree, partial bool) (rejection, err error) {
	if rejection, err = r.checkOnlyCreate(ctx, ev); rejection != nil || err != nil {
		return rejection, err
	}
	rejection, err = r.checkAuthEvents(ctx, ev, before)
	if rejection != nil || err != nil {
		return rejection, err
	}
	if partial {
		if before, err = r.withAuth(ctx, before, ev.AuthEvents()); err != nil {
			return nil, err
		}
	}
	return split(r.checker.Check(ev, treeState{ctx, r, before}))
}

var errSecondCreate = matrix.Forbidden("the room has another create event")

// checkOnlyCreate rejects a second create event: the rules allow it to the server whose name is in the room ID, and it
// would bring everything into conflict that was ever set in the room.
func (r *room) checkOnlyCreate(ctx context.Context, ev *event.Event) (rejection, err error) {
	if ev.Type() != "m.room.create" {
		return nil, nil
	}
	r.mu.Lock()
	if err = r.load(ctx); err != nil {
		r.mu.Unlock()
		if errors.Is(err, storage.ErrNotFound) { // about to be joined
			err = nil
		}
		return nil, err
	}
	state := r.head.state
	r.mu.Unlock()
	create, err := treeState{ctx, r, state}.StateEvent("m.room.create", "")
	if err != nil || create == nil || create.ID() == ev.ID() {
		return nil, err
	}
	return errSecondCreate, nil
}

// checkAuthEvents checks an event against its own auth events, which are all stored.
func (r *room) checkAuthEvents(ctx context.Context, ev *event.Event, before statetree.Tree) (rejection, err error) {
	known, err := r.eventsByID(ctx, ev.AuthEvents())
	if err != nil {
		return nil, err
	}
	create, err := treeState{ctx, r, before}.StateEvent("m.room.create", "")
	if err != nil {
		return nil, err
	}
	return r.checkAgainst(ev, known, create)
}

// checkAgainst runs the rules on an event's auth events, given all of them.
func (r *room) checkAgainst(ev *event.Event, known map[matrix.EventID]*Event, create *event.Event) (rejection, err error) {
	auth := make([]*event.Event, 0, len(ev.AuthEvents()))
	for _, id := range ev.AuthEvents() {
		a := known[id]
		if a == nil {
			return errNoAuthEvents, nil
		}
		auth = append(auth, a.Event)
	}
	rejected := func(id matrix.EventID) bool { a := known[id]; return a != nil && a.Rejected }
	if rejection, err = split(eventauth.CheckAuthEvents(ev, auth, rejected, create)); rejection != nil || err != nil {
		return rejection, err
	}
	state := eventauth.EventsOf(auth...)
	if create != nil && ev.Version().RoomIDIsCreateHash {
		state[matrix.StateKey{Type: "m.room.create"}] = create
	}
	return split(r.checker.Check(ev, state))
}

// split tells a rejection from a failure.
func split(result error) (rejection, err error) {
	var rej *eventauth.Rejection
	if errors.As(result, &rej) {
		return rej, nil
	}
	return nil, result
}
