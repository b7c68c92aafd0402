package rooms

import (
	"context"
	"errors"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
)

// Limits on the requests for one gap: what lies between the events that are known and one that came.
const (
	maxGap       = 20 // events asked for by one get_missing_events
	maxGapRounds = 10 // such requests
)

// fillGap asks for what lies between our head and an event. It matters that a gap is closed: where it stays open, what comes
// before it and what comes after it are taken for branches, and a resolution of their states may bring back what has long
// been replaced. So the ends of branches that it may come after are in doubt then. spec: ss/getMissingPreviousEvents
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
	events, _, err := in.between(ctx, earliest, []matrix.EventID{ev.ID()})
	whole := append(slices.Clone(events), ev)
	if open, err := in.openEnds(ctx, whole); err != nil {
		return err
	} else if len(open) > 0 {
		if err := r.doubtTips(ctx, ev.Depth()); err != nil {
			return err
		}
	}
	if len(events) == 0 {
		return err
	}
	sortByDepth(whole)
	if err := in.noteHistory(ctx, whole); err != nil {
		return err
	}
	in.handleGap(ctx, slices.DeleteFunc(whole, func(m *event.Event) bool { return m.ID() == ev.ID() }))
	return nil
}

// handleGap takes what was fetched of a gap into the room, in order of depth.
func (in *inbound) handleGap(ctx context.Context, events []*event.Event) {
	for _, m := range events {
		if err := in.handle(ctx, m, false); err != nil {
			in.e.log.Debug().Err(err).Str("event", string(m.ID())).Msg("an event of a gap was not accepted")
		}
	}
}

// errNothingBetween is what is wrong with an empty answer about a gap: before what is asked about lies what is missing here, so it comes from a
// server that does not know what it is asked about, or has not got it either.
var errNothingBetween = errors.New("nothing came of what lies between events")

// between fetches what lies between some events and later ones. all is false if there may be more: then the result is what
// has come so far, and the error if that is why.
func (in *inbound) between(ctx context.Context, earliest, latest []matrix.EventID) (events []*event.Event, all bool, err error) {
	gap := make(map[matrix.EventID]bool)
	for _, id := range latest {
		gap[id] = true
	}
	for range maxGapRounds {
		raw, _, err := askAround(ctx, in, func(ctx context.Context, s matrix.ServerName) ([][]byte, error) {
			between, err := in.e.remote.MissingEvents(ctx, s, in.r.id, earliest, latest, maxGap, 0)
			if err == nil && len(between) == 0 {
				err = errNothingBetween
			}
			return between, err
		})
		if err != nil {
			return events, false, err
		}
		full := len(raw) >= maxGap
		var more []*event.Event
		lost := in.away(ctx, func() { more, err = in.e.parseVerified(ctx, in.r.version, in.r.id, raw[:min(len(raw), maxGap)]) })
		if err = errors.Join(lost, err); err != nil {
			return events, false, err
		}
		more = slices.DeleteFunc(more, func(m *event.Event) bool { return gap[m.ID()] })
		for _, m := range more {
			gap[m.ID()] = true
		}
		events = append(events, more...)
		if !full || len(more) == 0 {
			return events, true, nil // there is nothing further
		}
		if latest, err = in.openEnds(ctx, events); err != nil || len(latest) == 0 {
			return events, err == nil, err
		}
	}
	return events, false, nil
}

// openEnds lists those events of a gap before which something is missing still.
func (in *inbound) openEnds(ctx context.Context, events []*event.Event) ([]matrix.EventID, error) {
	var before []matrix.EventID
	gap := make(map[matrix.EventID]bool, len(events))
	for _, m := range events {
		gap[m.ID()] = true
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

// weigh finds out whether an event that comes late has its place before a gap: an ancestor of what lies behind the gap, such as our own
// join, is history, and as the end of a branch it would bring back what has been replaced since. asked says that it took requests.
//
// What goes on where branches end now brings nothing back: its state takes the place of theirs. So those are not asked for that come one by one.
func (in *inbound) weigh(ctx context.Context, ev *event.Event) (asked bool, err error) {
	if asked, err := in.settle(ctx); asked || err != nil {
		return asked, err
	}
	in.weighed[ev.ID()] = true
	gaps, err := storage.MissingPrevs(ctx, in.e.db, in.r.nid, ev.Depth()+1, maxGap)
	if err != nil || len(gaps) == 0 {
		return false, err
	}
	if _, old, err := in.history(ctx, ev.ID()); old || err != nil {
		return false, err
	}
	switch on, doubted, err := in.r.goesOn(ctx, ev); {
	case err != nil:
		return false, err
	case doubted:
		in.doubted[ev.ID()] = true
		return false, nil
	case on:
		return false, nil
	}
	_, all, err := in.beforeGaps(ctx, []matrix.EventID{ev.ID()}, gaps)
	if !all && in.behind[ev.ID()] == 0 {
		in.doubted[ev.ID()] = true
	}
	return true, err
}

// beforeGaps has it noted in in.behind which of some events come before gaps. The result is what lies between, in order of depth; all is false if
// that could not be had, or there may be more, or if what is missing at one of the gaps was not among it: who does not have that cannot tell.
func (in *inbound) beforeGaps(ctx context.Context, ids []matrix.EventID, gaps []storage.MissingPrev) (events []*event.Event, all bool, err error) {
	var latest []matrix.EventID
	for _, g := range gaps {
		child, err := in.r.event(ctx, g.Child)
		if err != nil {
			return nil, false, err
		}
		latest = append(latest, child.ID())
	}
	events, all, err = in.between(ctx, ids, distinctIDs(latest))
	if err != nil {
		in.e.log.Debug().Err(err).Str("event", string(ids[0])).Msg("get_missing_events")
	}
	told := make(map[matrix.EventID]bool, len(events))
	for _, m := range events {
		told[m.ID()] = true
	}
	all = all && !slices.ContainsFunc(gaps, func(g storage.MissingPrev) bool { return !told[g.ID] })
	sortByDepth(events)
	return events, all, errors.Join(ctx.Err(), in.noteHistory(ctx, events))
}

// settle asks once more about the ends of branches of which it could not be told whether they come before a gap. What lies between is taken for the
// room's history, so that of a long gap less is left each time.
func (in *inbound) settle(ctx context.Context) (asked bool, err error) {
	r := in.r
	if in.settled {
		return false, nil
	}
	in.settled = true
	ids, depth, err := r.unweighed(ctx)
	if err != nil || len(ids) == 0 {
		return false, err
	}
	gaps, err := storage.MissingPrevs(ctx, in.e.db, r.nid, depth+1, maxGap)
	if err != nil {
		return false, err
	}
	told := len(gaps) == 0
	if !told {
		var events []*event.Event
		if events, told, err = in.beforeGaps(ctx, ids, gaps); err != nil {
			return false, err
		}
		in.handleGap(ctx, slices.DeleteFunc(events, func(m *event.Event) bool { return in.behind[m.ID()] == 0 }))
		if err := in.lock(ctx); err != nil {
			return false, err
		}
	}
	en, err := r.settle(ctx, ids, in.behind, told)
	if en != nil {
		in.entries = append(in.entries, en)
	}
	return true, err
}

// goesOn says whether all that an event follows on are ends of branches, and whether it is in doubt where any of those belongs.
func (r *room) goesOn(ctx context.Context, ev *event.Event) (on, doubted bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return false, false, err
	}
	for _, id := range ev.PrevEvents() {
		i := slices.IndexFunc(r.head.tips, func(t tip) bool { return t.id == id })
		if i < 0 {
			return false, false, nil
		}
		doubted = doubted || r.head.tips[i].unweighed
	}
	return true, doubted, nil
}

// noteHistory finds those events of a gap that come before something stored. They are worked on before what
// tells so: an event whose child is stored would pass for the end of a branch, and its old state for a part of the present one.
func (in *inbound) noteHistory(ctx context.Context, events []*event.Event) error {
	byID := make(map[matrix.EventID]*event.Event, len(events))
	for _, m := range events {
		byID[m.ID()] = m
	}
	for _, m := range slices.Backward(events) {
		under, old, err := in.history(ctx, m.ID())
		if err != nil {
			return err
		}
		if !old {
			continue
		}
		in.behind[m.ID()] = under
		for frontier := []*event.Event{m}; len(frontier) > 0; {
			m, frontier = frontier[0], frontier[1:]
			for _, id := range m.PrevEvents() {
				if _, known := in.behind[id]; known {
					continue
				}
				in.behind[id] = min(in.behind[m.ID()], m.Depth())
				if before := byID[id]; before != nil {
					frontier = append(frontier, before)
				}
			}
		}
	}
	return nil
}

// history says whether something stored comes after an event that is not, and at what depth.
func (in *inbound) history(ctx context.Context, id matrix.EventID) (under int64, old bool, err error) {
	if under, old = in.behind[id]; old {
		return under, true, nil
	}
	if under = in.r.pending.before(id); under != 0 {
		return under, true, nil
	}
	return storage.DepthAfterMissing(ctx, in.e.db, in.r.nid, id)
}
