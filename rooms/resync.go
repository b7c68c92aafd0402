package rooms

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"hanok/internal/budget"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
	"hanok/storage/statetree"
)

// Limits on the fetching of whole states.
const (
	maxResyncs       = 16          // rooms at a time that are tried for the first time
	maxResyncsAgain  = 8           // and of others: rooms whose servers do not answer must not keep the others waiting
	resyncFirstTime  = time.Minute // for the first try
	resyncServers    = 8           // servers asked before pausing
	resyncFirstPause = time.Second
	resyncLastPause  = 10 * time.Minute
	// resyncWantedPause is the last pause where somebody waits for the members.
	resyncWantedPause = 5 * time.Second
	// resyncStrict is how many rounds insist on being given every event of the state, and on a state as that which came with our join.
	resyncStrict = 2
	// resyncDoubts is how many rounds it takes until those that answer are believed that we are not in the room, though others do not answer.
	resyncDoubts = 5
	resyncTries  = 5 // to find no further event that needs a state of its own
)

// Run fetches the whole states of rooms that were joined without their members, tells rooms of leaves that they could not be told of, also
// those that a run before left, and does what the operator asks for, until ctx ends.
func (e *Engine) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { e.followOperator(ctx) })
	all.Go(func() { e.tellLeaves(ctx) })
	if err := e.settleAllSignedInvites(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("invites that came before the start: %w", err)
	}
	first, again := make(chan struct{}, maxResyncs), make(chan struct{}, maxResyncsAgain)
	running := make(map[*partialRoom]bool)
	ended := make(chan *partialRoom)
	for {
		for _, pr := range e.partials.all() {
			if running[pr] {
				continue
			}
			running[pr] = true
			all.Go(func() {
				e.resync(ctx, pr, first, again)
				select {
				case ended <- pr:
				case <-ctx.Done():
				}
			})
		}
		select {
		case <-e.partials.news:
		case pr := <-ended:
			// One that has given up stays known, so as not to begin again; it is gone once its room is whole, or joined anew.
			if e.partials.get(pr.nid) != pr {
				delete(running, pr)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// errParted: this server is not in the room any more, and nobody who is shows it the state.
var errParted = errors.New("rooms: this server has left the room")

// resync fetches a room's state until it is whole, joined anew, or out of reach.
func (e *Engine) resync(ctx context.Context, pr *partialRoom, first, again chan struct{}) {
	s := &resync{e: e, pr: pr, servers: slices.Clone(pr.servers), told: make(map[storage.EventNID]statetree.Tree), worked: make(map[storage.EventNID]bool)}
	if len(s.servers) > 0 {
		s.first = s.servers[0]
		e.inTurn(pr.id, s.servers[1:])
	}
	slots := first
	for pause := resyncFirstPause; ; pause = min(2*pause, resyncLastPause) {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		trying, cancel := ctx, context.CancelFunc(func() {})
		if slots == first {
			trying, cancel = context.WithTimeout(ctx, resyncFirstTime)
		}
		err := s.once(trying, ctx)
		cancel()
		<-slots
		slots = again
		if err == nil || ctx.Err() != nil || e.partials.get(pr.nid) != pr {
			return
		}
		if errors.Is(err, errParted) {
			e.log.Info().Int64("room", int64(pr.nid)).Msg("the members of a room that we are not in any more stay unknown")
			return
		}
		e.log.Warn().Err(err).Int64("room", int64(pr.nid)).Dur("pause", pause).Msg("the whole state of a room could not be fetched, another try follows")
		pr.wait(ctx, pause)
	}
}

// wait waits until a room's state is tried again: a while, or a tenth of it from when one of its servers is heard of, or a few seconds from when
// somebody waits for it.
func (pr *partialRoom) wait(ctx context.Context, pause time.Duration) {
	select {
	case <-pr.heard: // before the last try
	default:
	}
	until := time.Now().Add(pause)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	sooner := func(wait time.Duration) {
		if at := time.Now().Add(wait); at.Before(until) {
			until = at
			timer.Reset(wait)
		}
	}
	heard, wanted := pr.heard, pr.wanted
	for {
		select {
		case <-timer.C:
			return
		case <-heard:
			sooner(pause / 10)
			heard = nil
		case <-wanted:
			sooner(resyncWantedPause)
			wanted = nil
		case <-pr.done:
			return
		case <-ctx.Done():
			return
		}
	}
}

// resync is the fetching of one room's state.
type resync struct {
	e       *Engine
	pr      *partialRoom
	first   matrix.ServerName   // who has let us in, or told the state lately: asked each time
	servers []matrix.ServerName // all, in the order in which they are asked
	round   int
	told    map[storage.EventNID]statetree.Tree // what was fetched, by the event before which it is the state
	worked  map[storage.EventNID]bool           // events of which the state before them follows from that of others
}

// once asks some servers, and makes the room's state whole if one of them answers. What that stores ahead would stay for ever if it failed: so it is not
// begun before all is known that it needs, and ends with life only.
func (s *resync) once(ctx, life context.Context) error {
	ctx, over := budget.Keep(ctx)
	defer over()
	r, err := s.e.roomByNID(ctx, s.pr.nid)
	if err != nil {
		return err
	}
	defer r.release()
	s.round++
	for range resyncTries {
		if err := s.fetch(ctx, r); err != nil {
			return err
		}
		if err := r.lockInbound(ctx); err != nil {
			return err
		}
		untold, err := s.untold(ctx, r)
		switch {
		case err != nil:
		case slices.ContainsFunc(untold, func(ev *Event) bool { _, ok := s.told[ev.NID]; return !ok }):
			err = errUntold
		default:
			err = r.restate(life, s.pr, s.told)
		}
		r.unlockInbound()
		if !errors.Is(err, errUntold) {
			return err
		}
		// An event came meanwhile of which the state has to be fetched, too.
	}
	return errUntold
}

// untold lists the events of which the state before them has to be asked for.
func (s *resync) untold(ctx context.Context, r *room) (untold []*Event, err error) {
	nids, err := r.partialEvents(ctx)
	if err != nil {
		return nil, err
	}
	for batch := range slices.Chunk(slices.DeleteFunc(nids, func(nid storage.EventNID) bool { return s.worked[nid] }), restateBatch) {
		events, err := r.eventsByNID(ctx, batch)
		if err != nil {
			return nil, err
		}
		some, err := r.untold(ctx, events)
		if err != nil {
			return nil, err
		}
		untold = append(untold, some...)
		for _, ev := range events {
			s.worked[ev.NID] = !ev.Outlier && !slices.Contains(some, ev)
		}
	}
	return untold, nil
}

// fetch fetches the states that cannot be worked out: the one before our join, as a rule.
func (s *resync) fetch(ctx context.Context, r *room) error {
	untold, err := s.untold(ctx, r)
	if err != nil {
		return err
	}
	slices.SortFunc(untold, func(a, b *Event) int { return cmp.Or(cmp.Compare(a.Depth(), b.Depth()), cmp.Compare(a.NID, b.NID)) })
	var failed error
	for i, ev := range slices.Backward(untold) { // the last one first, which others know if any
		if _, ok := s.told[ev.NID]; ok {
			continue
		}
		if err := s.fetchBefore(ctx, r, ev, i == len(untold)-1); err != nil {
			failed = cmp.Or(failed, err)
		}
	}
	if failed == nil || s.round <= resyncStrict || ctx.Err() != nil {
		return failed
	}
	return s.makeDo(ctx, r, untold, failed)
}

// makeDo has the members of a later time count before those of our joins of which nobody can tell the state any more: who let us in then is gone, and
// others may never have heard of it. It fails, with the failure given, if those of no later time are known either.
func (s *resync) makeDo(ctx context.Context, r *room, untold []*Event, failed error) error {
	var known []statetree.Tree
	for _, ev := range untold {
		if t, ok := s.told[ev.NID]; ok {
			known = append(known, t)
		}
	}
	if len(known) == 0 {
		c, err := r.current(ctx)
		if err != nil || c.head.partial() {
			return cmp.Or(err, failed)
		}
		known = append(known, c.head.state)
	}
	for _, ev := range untold {
		if _, ok := s.told[ev.NID]; ok {
			continue
		}
		t, err := overlay(ctx, known[len(known)-1], s.e.treeBefore(ev))
		if err != nil {
			return err
		}
		s.told[ev.NID] = t
	}
	return nil
}

// fetchBefore asks one server after the other for the state before an event. last says that there is none after it of which the state has to be asked for:
// if we are in the room, it is by that one.
func (s *resync) fetchBefore(ctx context.Context, r *room, ev *Event, last bool) error {
	if s.e.isolation.has(r.id) {
		return errIsolatedRoom
	}
	var failed error
	refused, answered, silent := true, false, false
	done, err := inquiry[*toldState]{
		next: listed(s.turn()),
		ask: func(ctx context.Context, server matrix.ServerName) (*toldState, error) {
			return s.tell(ctx, r, server, ev)
		},
		take: func(server matrix.ServerName, told *toldState) error {
			tree, err := s.take(ctx, r, ev, told)
			if errors.Is(err, errNoState) && told.prev != "" {
				if told, err = s.ask(ctx, r, server, ev, ""); err == nil {
					tree, err = s.take(ctx, r, ev, told)
				}
			}
			if err == nil {
				s.told[ev.NID] = tree
				s.first = server
			}
			refused = false // whatever that state is worth
			return err
		},
		failed: func(server matrix.ServerName, err error) {
			s.e.log.Debug().Err(err).Str("server", string(server)).Int64("room", int64(r.nid)).Msg("no whole state")
			if !answers(err) {
				silent = true
			} else {
				answer, _ := matrix.AsError(err)
				answered = true
				refused = refused && (answer.Status == http.StatusForbidden && answer.Code != CodePartialState || answer.Status == http.StatusNotFound)
			}
			failed = err
		},
		after: overtakeState, most: mostStates,
	}.run(ctx, s.e)
	c, lost := r.current(ctx)
	if lost != nil {
		return lost
	}
	last = last && c.head.partial()
	if done || err != nil {
		if last {
			s.pr.setRefused(false)
		}
		return err
	}
	if failed == nil {
		return errors.New("no server of the room is known")
	}
	// Who let us in, and does not answer, may be the only one that knows. It is given a while.
	refused = refused && last && answered && (!silent || s.round > resyncDoubts)
	if last && s.pr.setRefused(refused) {
		if err := s.e.lostTouch(ctx, r); err != nil {
			return err
		}
	}
	if resident, err := r.resident(ctx); err != nil {
		return err
	} else if refused && !silent && !resident {
		return errParted
	}
	return failed
}

// turn lists whom to ask now: who let us in, and those that have sent something since the last time, because they work; and some of the others, of
// which most may be gone.
func (s *resync) turn() []matrix.ServerName {
	var out []matrix.ServerName
	add := func(server matrix.ServerName) {
		if server != "" && len(out) < resyncServers && !slices.Contains(out, server) {
			out = append(out, server)
		}
	}
	add(s.first)
	for _, server := range s.pr.lately.take() {
		add(server)
	}
	for range len(s.servers) {
		if len(out) == resyncServers {
			break
		}
		server := s.servers[0]
		s.servers = append(s.servers[1:], server)
		add(server)
	}
	return out
}

// lostTouch makes known that we do not hear any more of the users of other servers who are in a room: their servers say that we are not in it.
func (e *Engine) lostTouch(ctx context.Context, r *room) error {
	members, err := e.JoinedUsers(ctx, r.id)
	if err != nil {
		return err
	}
	c := &Completion{Room: r.id, Since: e.db.Current()}
	for _, u := range members {
		if e.isLocal(u) {
			c.Local = append(c.Local, u)
		} else {
			c.Misled = append(c.Misled, u)
		}
	}
	return e.db.Write(ctx, func(tx *storage.Tx) error { return e.completed(ctx, tx, c) })
}

// tell asks a server for the state before an event.
//
// Of a single prev event the state is asked for first, and not of the event itself: that one may be known to few servers yet. The
// prev event is of no use where its signature cannot be checked, because its server is gone, and where the server that let us in has come
// into the room after it.
func (s *resync) tell(ctx context.Context, r *room, server matrix.ServerName, ev *Event) (*toldState, error) {
	if prevs := ev.PrevEvents(); len(prevs) == 1 {
		if told, err := s.ask(ctx, r, server, ev, prevs[0]); !errors.Is(err, errNoState) && !matrix.HasCode(err, "M_NOT_FOUND") {
			return told, err
		}
	}
	return s.ask(ctx, r, server, ev, "")
}

// toldState is what a server says of a state, its signatures checked.
type toldState struct {
	ids    []matrix.EventID
	events []*event.Event // those of it and of its auth chain that were not known
	prev   matrix.EventID // the state is the one before this event, not before the one in question
	lacks  int            // events of the state that were not given
}

// ask asks a server for the state before an event, or before its prev event. Nothing is stored yet: meanwhile the room takes events.
// spec: ss/getRoomStateIds, ss/getRoomState
func (s *resync) ask(ctx context.Context, r *room, server matrix.ServerName, ev *Event, prev matrix.EventID) (*toldState, error) {
	in := r.newInbound(server)
	told := &toldState{prev: prev}
	at := ev.ID()
	if prev != "" {
		at = prev
	}
	var auth []matrix.EventID
	var err error
	if told.ids, auth, err = s.e.remote.StateIDs(ctx, server, r.id, at); err != nil {
		return nil, err
	}
	if len(told.ids) == 0 {
		return nil, nonsense("the state is empty")
	}
	wanted := distinctIDs(slices.Concat(told.ids, auth))
	known, err := r.eventsByID(ctx, wanted)
	if err != nil {
		return nil, err
	}
	if len(wanted)-len(known) > maxSingleFetch {
		state, chain, err := s.e.remote.State(ctx, server, r.id, at)
		if err != nil {
			return nil, err
		}
		all, err := s.e.parseAll(r.version, r.id, append(chain, state...))
		if err != nil {
			return nil, err
		}
		told.events = slices.DeleteFunc(all, func(ev *event.Event) bool { return known[ev.ID()] != nil })
		wanted = nil
	}
	if told.prev != "" {
		wanted = append(wanted, told.prev)
	}
	if known, err = r.eventsByID(ctx, wanted); err != nil {
		return nil, err
	}
	single, err := in.fetchMissing(ctx, server, wanted, known)
	if err == nil {
		err = in.lost
	}
	if err != nil {
		return nil, err
	}
	told.events = leadingTo(append(slices.Clone(told.ids), told.prev), append(told.events, single...))
	if len(told.events) > maxFetchedEvents {
		return nil, errTooMuch
	}
	if known, err = r.eventsByID(ctx, told.ids); err != nil {
		return nil, err
	}
	given := make(map[matrix.EventID]bool, len(told.events))
	for _, ev := range told.events {
		given[ev.ID()] = true
	}
	for _, id := range distinctIDs(told.ids) {
		if known[id] == nil && !given[id] {
			told.lacks++
		}
	}
	told.events = s.e.verified(ctx, told.events)
	return told, nil
}

// take stores what a server said, and makes the state before the event of it.
func (s *resync) take(ctx context.Context, r *room, ev *Event, told *toldState) (none statetree.Tree, err error) {
	if told.lacks > 0 && s.round <= resyncStrict {
		return none, nonsense("%d events of the state are missing", told.lacks)
	}
	if err := r.lockInbound(ctx); err != nil {
		return none, err
	}
	defer r.unlockInbound()
	if _, err := r.storeOutliers(ctx, told.events); err != nil {
		return none, err
	}
	known, err := r.eventsByID(ctx, told.ids)
	if err != nil {
		return none, err
	}
	tree, err := r.treeFrom(ctx, told.ids, known)
	if err != nil {
		return none, err
	}
	if told.prev != "" {
		if known, err = r.eventsByID(ctx, []matrix.EventID{told.prev}); err != nil {
			return none, err
		}
		if tree, err = r.apply(ctx, tree, known[told.prev]); err != nil {
			return none, err
		}
	}
	// Everybody in the room has accepted our join, so a state that does not allow it is not the one before it.
	if s.e.isLocal(ev.Sender()) {
		if s.round <= resyncStrict {
			if err := s.agrees(ctx, ev, tree); err != nil {
				return none, err
			}
		}
		if rejection, err := r.checkEvent(ctx, ev.Event, tree, false); err != nil {
			return none, err
		} else if rejection != nil {
			return none, fmt.Errorf("the state does not allow our join: %w", rejection)
		}
	}
	return tree, nil
}

// agrees checks that the state before our join is, but for members, what the server told us that let us in. One of the two that differ lies, and any
// server may be asked; who goes on to tell the same is believed in the end.
func (s *resync) agrees(ctx context.Context, join *Event, told statetree.Tree) error {
	diffs, err := statetree.Diff(ctx, s.e.treeBefore(join), told)
	if err != nil {
		return err
	}
	for _, d := range diffs {
		if d.Type != int64(join.typ) {
			return nonsense("the state is not the one that came with our join")
		}
	}
	return nil
}
