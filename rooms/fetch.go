package rooms

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Limits on what one received event may make us fetch.
const (
	maxMissingPrev = 10  // prev events whose state is asked for
	maxSingleFetch = 30  // events fetched singly before the whole state is asked for
	mostSingle     = 6   // of those at a time
	maxFetches     = 100 // requests per received batch

	maxFetchedEvents = 300_000 // events that those requests may bring: a state and auth chain of the biggest rooms
)

// inbound is a batch of received events being worked on. It holds room.inbound, but not while it asks other servers for something: what it
// knows by then is kept, and the event is looked at anew if somebody else has worked on the room meanwhile.
type inbound struct {
	e       *Engine
	r       *room
	origin  matrix.ServerName
	inside  bool                 // the origin is known to be in the room
	held    bool                 // room.inbound is
	turn    int                  // room.turns when it was taken
	moved   bool                 // the room may have changed since the present event was looked at
	line    *line                // of the head when the work on the present event began
	relay   bool                 // accepted events are ours to send on
	check   func(headView) error // of the head, before an event that was sent becomes a part of it; may be nil
	entries []*entry
	fetches int
	fetched int  // events that came by requests
	barred  bool // by a server ACL that came with the batch: what the origin has sent besides is not taken
	asking  sync.Mutex
	asides  int                 // requests to others than the origin; under asking
	others  []matrix.ServerName // under asking
	failure error               // of the last request for a single event, nil if none failed
	// lacking are events that cannot be had, or not with all their auth events, and why: they are not asked for again.
	lacking map[matrix.EventID]error
	// behind are events of which it is known that something stored comes after them, history and not news, with the depth of that.
	behind  map[matrix.EventID]int64
	refusal error // what the room's policy server said against the last event that it did not recommend
	lost    error // the last request for a single event that had no answer

	filled  map[matrix.EventID]bool           // events for which what lies before them was asked for
	weighed map[matrix.EventID]bool           // events of which it was asked whether they come before a gap
	doubted map[matrix.EventID]bool           // those of which nobody could tell
	settled bool                              // that was asked again of the ends of branches of which nobody could tell
	after   map[matrix.EventID]statetree.Tree // states after missing events, as told
	advice  map[matrix.EventID]advice         // of the room's policy server
}

// Why an event of another server was not taken. These are for that server to read: they are no failures of ours.
var (
	errTooMuch        = matrix.Forbidden("the event needs more events that are missing here than this server is willing to fetch")
	errRejectedBefore = matrix.Forbidden("the event was rejected before")
	errNoAuthEvents   = matrix.Forbidden("auth events of the event are missing here and cannot be had")
	errNoState        = matrix.Forbidden("the state at the event cannot be had")
)

// ErrUnjudged is in the error about an event of which it cannot be said whether the rules allow it: what it refers to cannot be had. Nothing is
// stored of it.
var ErrUnjudged = errors.New("rooms: the event cannot be judged")

// unjudged is errNoAuthEvents or errNoState, with why that cannot be had, if known.
func unjudged(kind *matrix.Error, cause error) error {
	return kind.Because(errors.Join(ErrUnjudged, cause))
}

func (r *room) newInbound(origin matrix.ServerName) *inbound {
	return &inbound{
		e: r.e, r: r, origin: origin, behind: make(map[matrix.EventID]int64), lacking: make(map[matrix.EventID]error),
		filled: make(map[matrix.EventID]bool), weighed: make(map[matrix.EventID]bool), doubted: make(map[matrix.EventID]bool), after: make(map[matrix.EventID]statetree.Tree), advice: make(map[matrix.EventID]advice),
	}
}

// lock takes the room, unless the batch has it.
func (in *inbound) lock(ctx context.Context) error {
	if in.held {
		return nil
	}
	if err := in.r.lockInbound(ctx); err != nil {
		return err
	}
	in.held = true
	if in.r.turns != in.turn+1 {
		in.moved = true
	}
	in.turn = in.r.turns
	return nil
}

func (in *inbound) unlock() {
	if in.held {
		in.held = false
		in.r.unlockInbound()
	}
}

// away runs what waits for other servers, while the room goes on.
func (in *inbound) away(ctx context.Context, request func()) error {
	if !in.held {
		request()
		return ctx.Err()
	}
	in.unlock()
	request()
	return in.lock(ctx)
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

// askAround puts a question to the origin, and to two other servers in the room if it has no answer, or none for long.
func askAround[T any](ctx context.Context, in *inbound, question func(context.Context, matrix.ServerName) (T, error)) (answer T, from matrix.ServerName, err error) {
	if err := in.fetch(); err != nil {
		return answer, "", err
	}
	lost := in.away(ctx, func() { answer, from, err = inquire(ctx, in, in.origin, question) })
	return answer, from, cmp.Or(lost, err)
}

// inquire is askAround while the room goes on, with the server that is asked first. It may run several times at once.
func inquire[T any](ctx context.Context, in *inbound, first matrix.ServerName, question func(context.Context, matrix.ServerName) (T, error)) (answer T, from matrix.ServerName, err error) {
	others := -1 // so many were asked; the first comes before them
	next := func() (matrix.ServerName, bool) {
		if others < 0 {
			others = 0
			return first, true
		}
		in.asking.Lock()
		defer in.asking.Unlock()
		if others == 2 || in.asides == maxAsides || !in.findOthers(ctx) || others == len(in.others) {
			return "", false
		}
		in.asides++
		others++
		if other := in.others[others-1]; other != first {
			return other, true
		}
		return in.origin, true
	}
	var refused error
	done, err := inquiry[T]{
		next: next, ask: question, after: overtakeState, most: mostStates,
		take: func(server matrix.ServerName, found T) error {
			answer, from = found, server
			return nil
		},
		failed: func(server matrix.ServerName, err error) {
			if server == first {
				refused = err
			}
		},
	}.run(ctx, in.e)
	if !done && err == nil {
		err = cmp.Or(refused, in.e.life.Err())
	}
	return answer, from, err
}

// findOthers makes in.others known; false if that fails.
func (in *inbound) findOthers(ctx context.Context) bool {
	if in.others == nil {
		servers, err := in.e.JoinedServers(ctx, in.r.id)
		if err != nil {
			return false
		}
		in.e.inTurn(in.r.id, servers)
		in.others = slices.DeleteFunc(in.e.answeringFirst(servers), func(s matrix.ServerName) bool { return s == in.origin || s == in.e.server })
	}
	return true
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
		raw, _, err := askAround(ctx, in, func(ctx context.Context, s matrix.ServerName) ([][]byte, error) {
			return in.e.remote.EventAuth(ctx, s, r.id, ev.ID())
		})
		if err != nil {
			if _, err := in.obtain(ctx, in.origin, ev.AuthEvents()); err != nil {
				return unjudged(errNoAuthEvents, err)
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
	return unjudged(errNoAuthEvents, in.why())
}

// store keeps events that were fetched as outliers.
func (in *inbound) store(ctx context.Context, events []*event.Event) error {
	if in.fetched += len(events); in.fetched > maxFetchedEvents {
		return errTooMuch
	}
	var kept []*event.Event
	var err error
	lost := in.away(ctx, func() { kept, err = in.r.vouched(ctx, events) })
	if err = errors.Join(lost, err); err != nil {
		return err
	}
	size := 0
	for _, ev := range kept {
		size += len(ev.JSON())
	}
	if err := in.mayStore(ctx, size); err != nil {
		return err
	}
	if !in.held {
		if err := in.lock(ctx); err != nil {
			return err
		}
		defer in.unlock()
	}
	_, err = in.r.storeOutliers(ctx, kept)
	return err
}

// remoteStateAfter asks the origin for the state after an event that we do not have, unless it is known from what follows on it.
func (in *inbound) remoteStateAfter(ctx context.Context, id matrix.EventID) (statetree.Tree, error) {
	if told, ok := in.after[id]; ok {
		return told, nil
	}
	if known, ok, err := in.stateKnownAfter(ctx, id); ok || err != nil {
		return known, err
	}
	tree, err := in.remoteStateBefore(ctx, id)
	if err != nil {
		return statetree.Tree{}, err
	}
	known, err := in.obtain(ctx, in.origin, []matrix.EventID{id})
	if err != nil {
		return statetree.Tree{}, err
	}
	after, err := in.r.apply(ctx, tree, known[id])
	if errors.Is(err, errNoState) {
		err = unjudged(errNoState, in.why())
	}
	if err == nil {
		in.after[id] = after
	}
	return after, err
}

// stateKnownAfter is the state after a missing event as it was told when something came that follows on it; or as it shows before what follows on
// nothing else, such as our own join.
func (in *inbound) stateKnownAfter(ctx context.Context, id matrix.EventID) (after statetree.Tree, ok bool, err error) {
	children, err := storage.ChildrenOfMissing(ctx, in.e.db, in.r.nid, id)
	if err != nil {
		return after, false, err
	}
	for _, c := range children {
		child, err := in.r.event(ctx, c.Child)
		switch {
		case err != nil:
			return after, false, err
		case c.State != 0:
			return in.e.forest.At(statetree.Ref(c.State)), true, nil
		case len(child.PrevEvents()) == 1 && !child.Partial && !child.Outlier:
			return in.e.treeBefore(child), true, nil
		}
	}
	return after, false, nil
}

// remoteStateBefore asks the origin for the state before an event. spec: ss/getRoomStateIds, ss/getRoomState
func (in *inbound) remoteStateBefore(ctx context.Context, id matrix.EventID) (statetree.Tree, error) {
	r := in.r
	type ids struct{ state, auth []matrix.EventID }
	told, from, err := askAround(ctx, in, func(ctx context.Context, s matrix.ServerName) (told ids, err error) {
		told.state, told.auth, err = in.e.remote.StateIDs(ctx, s, r.id, id)
		return told, err
	})
	if errors.Is(err, errTooMuch) {
		return statetree.Tree{}, err
	}
	if err != nil {
		return statetree.Tree{}, unjudged(errNoState, err)
	}
	stateIDs := told.state
	all := distinctIDs(slices.Concat(stateIDs, told.auth))
	known, err := r.eventsByID(ctx, all)
	if err != nil {
		return statetree.Tree{}, err
	}
	if len(all)-len(known) > maxSingleFetch {
		if err := in.fetch(); err != nil {
			return statetree.Tree{}, err
		}
		var state, auth [][]byte
		lost := in.away(ctx, func() { state, auth, err = in.e.remote.State(ctx, from, r.id, id) })
		if lost != nil {
			return statetree.Tree{}, lost
		}
		if err != nil {
			return statetree.Tree{}, unjudged(errNoState, err)
		}
		events, err := in.e.parseAll(r.version, r.id, append(slices.Clone(auth), state...))
		if err != nil {
			return statetree.Tree{}, err
		}
		if err := in.store(ctx, leadingTo(stateIDs, events)); err != nil {
			return statetree.Tree{}, err
		}
	} else if _, err := in.obtain(ctx, from, all); err != nil {
		return statetree.Tree{}, err
	}
	if known, err = r.eventsByID(ctx, stateIDs); err != nil {
		return statetree.Tree{}, err
	}
	if len(known) == 0 && len(stateIDs) > 0 {
		return statetree.Tree{}, unjudged(errNoState, in.why())
	}
	// What nobody gives is left out of the state: else one such event would end the room. What may be had in a minute is not, since nobody
	// looks for it again: another branch of the room would go without it for ever.
	for _, id := range stateIDs {
		if why := in.lacking[id]; known[id] == nil && why != nil && !answers(why) && !errors.Is(why, ErrUnjudged) {
			return statetree.Tree{}, unjudged(errNoState, why)
		}
	}
	return r.treeFrom(ctx, stateIDs, known)
}

// obtain returns events, fetching singly those that we do not have, from a server first that should.
func (in *inbound) obtain(ctx context.Context, first matrix.ServerName, ids []matrix.EventID) (map[matrix.EventID]*Event, error) {
	known, err := in.r.eventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	events, err := in.fetchMissing(ctx, first, ids, known)
	if err != nil {
		return nil, err
	}
	if len(events) > 0 {
		if err := in.store(ctx, events); err != nil {
			return nil, err
		}
		if known, err = in.r.eventsByID(ctx, ids); err != nil {
			return nil, err
		}
	}
	for _, id := range ids {
		if ev := known[id]; (ev == nil || ev.apart()) && in.lacking[id] == nil {
			in.lacking[id] = cmp.Or(in.why(), ErrUnjudged)
		}
	}
	return known, nil
}

// why is why single events could not be had, nil if all could: that somebody did not answer counts before that somebody does not have one.
func (in *inbound) why() error { return cmp.Or(in.lost, in.failure) }

// authLacking says that an event has auth events that were asked for in vain.
func (in *inbound) authLacking(ctx context.Context, ev *event.Event) error {
	if len(in.lacking) == 0 {
		return nil
	}
	known, err := in.r.eventsByID(ctx, ev.AuthEvents())
	if err != nil {
		return err
	}
	for _, id := range ev.AuthEvents() {
		if why := in.lacking[id]; why != nil && known[id] == nil {
			return unjudged(errNoAuthEvents, why)
		}
	}
	return nil
}

// fetchMissing fetches singly those events that are not known, with what they depend on.
func (in *inbound) fetchMissing(ctx context.Context, first matrix.ServerName, ids []matrix.EventID, known map[matrix.EventID]*Event) ([]*event.Event, error) {
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
		wanted = slices.DeleteFunc(wanted, func(id matrix.EventID) bool {
			left := known[id] != nil || asked[id]
			asked[id] = true
			why := in.lacking[id]
			in.failure = cmp.Or(why, in.failure)
			return left || why != nil
		})
		raw, err := in.fetchEach(ctx, first, wanted)
		if err != nil {
			return nil, err
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

// fetchEach fetches single events, several at a time. Those that cannot be had are missing in the result, and what depends on them is left out.
func (in *inbound) fetchEach(ctx context.Context, first matrix.ServerName, ids []matrix.EventID) ([][]byte, error) {
	pdus, failed := make([][]byte, len(ids)), make([]error, len(ids))
	for range ids {
		if err := in.fetch(); err != nil {
			return nil, err
		}
	}
	lost := in.away(ctx, func() {
		var asking errgroup.Group
		asking.SetLimit(mostSingle)
		for i, id := range ids {
			asking.Go(func() error {
				pdus[i], _, failed[i] = inquire(ctx, in, first, func(ctx context.Context, s matrix.ServerName) ([]byte, error) { return in.e.remote.Event(ctx, s, id) })
				return nil // the others may be had all the same
			})
		}
		_ = asking.Wait()
	})
	if lost != nil {
		return nil, lost
	}
	for i, err := range failed {
		if err == nil {
			continue
		}
		in.failure, in.lacking[ids[i]] = err, err
		if answer, ok := matrix.AsError(err); !ok || answer.Status >= http.StatusInternalServerError {
			in.lost = err
		}
	}
	return slices.DeleteFunc(pdus, func(pdu []byte) bool { return pdu == nil }), nil
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
