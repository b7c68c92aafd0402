package rooms

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
	"hanok/storage/statetree"
)

const (
	maxBackfill        = 100  // events asked for at once
	maxBackfillServers = 8    // servers tried for one gap
	maxDry             = 5000 // servers remembered that had nothing to add to a room's history
	maxWitnesses       = 1000 // members looked at to find who was in the room at a gap
)

// historyPatience is how long a page of history waits for what is missing. The work goes on: the next page may show more.
const historyPatience = 15 * time.Second

// maxBackfillTime bounds that work.
const maxBackfillTime = 5 * time.Minute

// backfill asks servers in the room for history that is missing. true: something came.
// Failing to get any is no error: the client then sees what there is. spec: ss/backfillRoom
func (e *Engine) backfill(ctx context.Context, r *room, missing []storage.MissingPrev, limit int, patience time.Duration) (bool, error) {
	got := e.fetchingHistory(ctx, r, patience, func(ctx context.Context) (bool, error) { return e.backfillNow(ctx, r, missing, limit) })
	return got, ctx.Err()
}

// fetchingHistory runs work that asks other servers for a room's history, unless such work is under way, and reports whether it has brought any
// within the time for which somebody waits for that.
func (e *Engine) fetchingHistory(ctx context.Context, r *room, patience time.Duration, work func(context.Context) (bool, error)) bool {
	done := make(chan bool, 1)
	r.keep()
	started := e.background(func() {
		defer r.release()
		waiting, cancel := context.WithTimeout(e.life, patience)
		defer cancel()
		got, shared, err := e.fills.Do(waiting, r.nid, func() (bool, error) {
			ctx, cancel := context.WithTimeout(e.life, maxBackfillTime)
			defer cancel()
			return work(ctx)
		})
		if err != nil && waiting.Err() == nil {
			e.log.Error().Err(err).Int64("room", int64(r.nid)).Msg("history could not be fetched")
		}
		done <- got || shared && err == nil
	})
	if !started {
		r.release()
		return false
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case got := <-done:
		return got
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (e *Engine) backfillNow(ctx context.Context, r *room, missing []storage.MissingPrev, limit int) (bool, error) {
	if e.isolation.has(r.id) {
		return false, nil
	}
	// History is checked against the states before it, which differ little from one that is known, and are as big as the room for
	// who knows none.
	if err := e.awaitWanted(ctx, r.nid); err != nil {
		return false, nil
	}
	servers, err := e.JoinedServers(ctx, r.id)
	if err != nil {
		return false, err
	}
	if s := domain(r.id); s != "" && !slices.Contains(servers, s) {
		servers = append(servers, s)
	}
	if servers, err = e.witnessesFirst(ctx, missing, servers); err != nil {
		return false, err
	}
	servers = slices.DeleteFunc(servers, func(s matrix.ServerName) bool { return s == e.server })
	// Each time others are asked than those that had nothing the last time.
	servers = sortedLast(servers, func(s matrix.ServerName) bool { return e.dry.Has(dryServer{r.nid, s}) })
	var from []matrix.EventID
	for _, m := range missing {
		if !slices.Contains(from, m.ID) {
			from = append(from, m.ID)
		}
	}
	// A server that has not heard of our join shows us what was said before in redacted form. That is taken if nobody has more.
	var second func() error
	got, _ := inquiry[[]*event.Event]{
		next: listed(e.answeringFirst(servers)[:min(len(servers), maxBackfillServers)]),
		ask: func(ctx context.Context, server matrix.ServerName) ([]*event.Event, error) {
			return e.askHistory(ctx, server, r, from, min(max(limit, 20), maxBackfill))
		},
		take: func(server matrix.ServerName, events []*event.Event) error {
			store := func() error { return r.storeHistory(ctx, server, events) }
			if !veiled(events) {
				e.dry.Remove(dryServer{r.nid, server})
				return store()
			}
			if second == nil {
				second = store
			}
			return errVeiled
		},
		failed: func(server matrix.ServerName, err error) {
			if errors.Is(err, errNothingNew) || answers(err) {
				e.dry.Add(dryServer{r.nid, server})
			}
			e.log.Debug().Err(err).Str("server", string(server)).Msg("backfill")
		},
		after: overtakeQuestion, most: mostQuestions,
	}.run(ctx, e)
	if !got && second != nil && ctx.Err() == nil {
		got = second() == nil
	}
	return got, nil
}

// witnessesFirst puts servers first that had members in the room when what is missing was sent: others may have come later, and
// have it as little as we do. Those of them that are in the room no more come last: they may be the only ones to have it.
func (e *Engine) witnessesFirst(ctx context.Context, missing []storage.MissingPrev, servers []matrix.ServerName) ([]matrix.ServerName, error) {
	if len(missing) == 0 {
		return servers, nil
	}
	earliest := slices.MinFunc(missing, func(a, b storage.MissingPrev) int { return cmp.Compare(a.Depth, b.Depth) })
	child, err := e.eventByNID(ctx, earliest.Child)
	if err != nil {
		return nil, err
	}
	typ, err := e.db.LookupName(ctx, "m.room.member")
	if err != nil {
		return nil, err
	}
	var members []storage.NameNID
	err = e.treeBefore(child).OfType(ctx, int64(typ), func(en statetree.Entry) bool {
		members = append(members, storage.NameNID(en.Key.StateKey))
		return len(members) < maxWitnesses
	})
	if err != nil {
		return nil, err
	}
	names, err := e.db.Names(ctx, members...)
	if err != nil {
		return nil, err
	}
	were := make(map[matrix.ServerName]bool)
	for _, user := range names {
		were[domain(user)] = true
	}
	sorted := sortedLast(servers, func(s matrix.ServerName) bool { return !were[s] })
	for _, s := range servers {
		delete(were, s)
	}
	return append(sorted, slices.Sorted(maps.Keys(were))...), nil
}

// askHistory asks one server for events and what comes before them, in order of depth.
func (e *Engine) askHistory(ctx context.Context, server matrix.ServerName, r *room, from []matrix.EventID, limit int) ([]*event.Event, error) {
	raw, err := e.remote.Backfill(ctx, server, r.id, from, limit)
	if err != nil {
		return nil, err
	}
	events := e.verified(ctx, parseBy(event.ParseHistory, r.version, r.id, raw[:min(len(raw), maxBackfill)]))
	sortByDepth(events)
	return events, nil
}

// dryServer is a server that had nothing to add to a room's history.
type dryServer struct {
	room   storage.RoomNID
	server matrix.ServerName
}

var errNothingNew = errors.New("nothing new came")

// storeHistory stores what a server gave of a room's history. It is an error if nothing of it was new.
func (r *room) storeHistory(ctx context.Context, server matrix.ServerName, events []*event.Event) error {
	in := r.newInbound(server)
	defer in.unlock()
	told, err := in.fetchAround(ctx, events)
	if err != nil {
		return err
	}
	if err := in.lock(ctx); err != nil {
		return err
	}
	whole, err := in.placeHistory(ctx, events, told)
	if err != nil {
		r.pending.drop(whole.items)
		return err
	}
	if len(whole.items) == 0 {
		return errNothingNew
	}
	// Positions of history count downwards, so the newest event takes the first.
	slices.Reverse(whole.items)
	if err := r.addHistory(ctx, whole); err != nil {
		r.pending.drop(whole.items)
		return err
	}
	in.unlock()
	return whole.wait(context.WithoutCancel(ctx))
}

// addHistory queues a page of history, and lets go those ends of branches that come before it.
func (r *room) addHistory(ctx context.Context, whole *entry) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	if whole.line != r.line {
		return errHeadLost
	}
	if err := r.retire(ctx, whole); err != nil {
		return err
	}
	if whole.head != nil {
		r.head = whole.head
	}
	r.e.committer.add(whole)
	return nil
}

// fetchAround fetches what the events of a page of history need, in order of depth, and neither we have nor the page. The result are the states before those
// that follow on something else. Nothing is placed yet, and the room goes on.
func (in *inbound) fetchAround(ctx context.Context, events []*event.Event) (map[matrix.EventID]statetree.Tree, error) {
	told := make(map[matrix.EventID]statetree.Tree)
	page := make(map[matrix.EventID]bool, len(events))
	for _, ev := range events {
		known, err := in.r.eventsByID(ctx, slices.Concat(ev.PrevEvents(), ev.AuthEvents(), []matrix.EventID{ev.ID()}))
		if err != nil {
			return nil, err
		}
		if old := known[ev.ID()]; old != nil && !old.Outlier {
			continue
		}
		ours := func(id matrix.EventID) bool { return page[id] }
		if len(slices.DeleteFunc(missingPrevs(ev, known), ours)) > 0 {
			tree, err := in.remoteStateBefore(ctx, ev.ID())
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				in.e.log.Debug().Err(err).Str("event", string(ev.ID())).Msg("backfill: no state")
				continue
			}
			told[ev.ID()] = tree
		}
		if slices.ContainsFunc(ev.AuthEvents(), func(id matrix.EventID) bool { return known[id] == nil && !page[id] }) {
			if err := in.ensureAuth(ctx, ev); err != nil {
				in.e.log.Debug().Err(err).Str("event", string(ev.ID())).Msg("backfill: left out")
				continue
			}
		}
		page[ev.ID()] = true
	}
	return told, nil
}

// placeHistory puts a page of history into the room as one entry, to be committed. What lacks the state before it or auth events is left out.
func (in *inbound) placeHistory(ctx context.Context, events []*event.Event, told map[matrix.EventID]statetree.Tree) (*entry, error) {
	r := in.r
	line := r.currentLine()
	whole := &entry{room: r, line: line}
	if err := in.noteHistory(ctx, events); err != nil {
		return whole, err
	}
	for _, ev := range events {
		known, err := r.eventsByID(ctx, slices.Concat(ev.PrevEvents(), ev.AuthEvents(), []matrix.EventID{ev.ID()}))
		if err != nil {
			return whole, err
		}
		if old := known[ev.ID()]; old != nil && !old.Outlier {
			continue
		}
		if slices.ContainsFunc(ev.AuthEvents(), func(id matrix.EventID) bool { return known[id] == nil }) {
			continue
		}
		ev = withContent(ev, known)
		p := &placement{ev: ev, history: true, line: line}
		if missing := missingPrevs(ev, known); len(missing) > 0 {
			for _, id := range missing {
				p.missing = append(p.missing, missingPrev{id: id})
			}
			var ok bool
			if p.before, ok = told[ev.ID()]; !ok {
				continue
			}
		} else if err := in.stateBefore(ctx, p, known, nil); err != nil {
			return whole, err
		}
		if p.rejection, err = r.checkEvent(ctx, ev, p.before, p.partial); err != nil {
			return whole, err
		}
		if p.under, p.found, err = in.history(ctx, ev.ID()); err != nil {
			return whole, err
		}
		en, err := r.place(ctx, p)
		if errors.Is(err, errIDTaken) {
			continue
		}
		if err != nil {
			return whole, err
		}
		whole.items = append(whole.items, en.items...)
		whole.missing = append(whole.missing, en.missing...)
		whole.found = append(whole.found, ev.ID())
		whole.extra = both(whole.extra, en.extra)
	}
	return whole, nil
}

// withContent is an event as it is known by reference, if it came without its content: a server that thinks that we are not in the room, or has
// erased it, takes nothing away from what we have.
func withContent(ev *event.Event, known map[matrix.EventID]*Event) *event.Event {
	if old := known[ev.ID()]; old != nil && ev.HashMismatch() {
		return old.Event
	}
	return ev
}

// veiled reports whether there is none among some events that has content which goes with a redaction, and one that had.
func veiled(events []*event.Event) bool {
	some := false
	for _, ev := range events {
		switch {
		case ev.HashMismatch():
			some = true
		case ev.Redact() != ev:
			return false
		}
	}
	return some
}

// errVeiled is what is wrong with a page of history that may be had better elsewhere.
var errVeiled = errors.New("all came in redacted form")

// both runs two parts of a transaction, either of which may be nil.
func both(a, b func(context.Context, *storage.Tx) error) func(context.Context, *storage.Tx) error {
	if a == nil || b == nil {
		if a == nil {
			return b
		}
		return a
	}
	return func(ctx context.Context, tx *storage.Tx) error {
		if err := a(ctx, tx); err != nil {
			return err
		}
		return b(ctx, tx)
	}
}
