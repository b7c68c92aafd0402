package rooms

import (
	"context"
	"errors"
	"slices"

	"hanok/matrix"
	"hanok/storage"
)

const (
	maxBackfill        = 100 // events asked for at once
	maxBackfillServers = 3   // servers tried for one gap
)

// backfill asks servers in the room for history that is missing. true: something came.
// Failing to get any is no error: the client then sees what there is. spec: ss/backfillRoom
func (e *Engine) backfill(ctx context.Context, r *room, missing []storage.MissingPrev, limit int) (bool, error) {
	got := false
	_, shared, err := e.fills.Do(ctx, r.nid, func() (struct{}, error) {
		var err error
		got, err = e.backfillNow(ctx, r, missing, limit)
		return struct{}{}, err
	})
	return got || shared, err
}

func (e *Engine) backfillNow(ctx context.Context, r *room, missing []storage.MissingPrev, limit int) (bool, error) {
	servers, err := e.JoinedServers(ctx, r.id)
	if err != nil {
		return false, err
	}
	if s := domain(r.id); s != "" && !slices.Contains(servers, s) {
		servers = append(servers, s)
	}
	var from []matrix.EventID
	for _, m := range missing {
		if !slices.Contains(from, m.ID) {
			from = append(from, m.ID)
		}
	}
	tried := 0
	for _, s := range e.answeringFirst(servers) {
		if s == e.server {
			continue
		}
		if tried++; tried > maxBackfillServers || ctx.Err() != nil {
			break
		}
		n, err := e.backfillFrom(ctx, s, r, from, min(max(limit, 20), maxBackfill))
		if err != nil {
			e.log.Debug().Err(err).Str("server", string(s)).Msg("backfill")
		}
		if n > 0 {
			return true, nil
		}
	}
	return false, ctx.Err()
}

// backfillFrom stores what one server knows, and returns how many events were new.
func (e *Engine) backfillFrom(ctx context.Context, server matrix.ServerName, r *room, from []matrix.EventID, limit int) (int, error) {
	raw, err := e.remote.Backfill(ctx, server, r.id, from, limit)
	if err != nil {
		return 0, err
	}
	if len(raw) > maxBackfill {
		raw = raw[:maxBackfill]
	}
	events, err := e.parseVerified(ctx, r.version, r.id, raw)
	if err != nil {
		return 0, err
	}
	sortByDepth(events)
	if err := r.lockInbound(ctx); err != nil {
		return 0, err
	}
	defer r.unlockInbound()
	in := r.newInbound(server)
	whole := &entry{room: r, line: in.line}
	queued := false
	defer func() {
		if !queued {
			r.pending.drop(whole.items)
		}
	}()
	for _, ev := range events {
		known, err := r.eventsByID(ctx, append(ev.PrevEvents(), ev.ID()))
		if err != nil {
			return 0, err
		}
		if old := known[ev.ID()]; old != nil && !old.Outlier {
			continue
		}
		p := &placement{ev: ev, history: true, line: in.line}
		if missing := missingPrevs(ev, known); len(missing) > 0 {
			for _, id := range missing {
				p.missing = append(p.missing, missingPrev{id: id})
			}
			p.before, err = in.remoteStateBefore(ctx, ev.ID())
		} else {
			err = in.stateBefore(ctx, p, known, nil)
		}
		if err != nil {
			e.log.Debug().Err(err).Str("event", string(ev.ID())).Msg("backfill: no state")
			continue
		}
		if err := in.ensureAuth(ctx, ev); err != nil {
			e.log.Debug().Err(err).Str("event", string(ev.ID())).Msg("backfill: left out")
			continue
		}
		if p.rejection, err = r.checkEvent(ctx, ev, p.before, p.partial); err != nil {
			return 0, err
		}
		if p.found, err = storage.IsMissingPrev(ctx, e.db, r.nid, ev.ID()); err != nil {
			return 0, err
		}
		en, err := r.place(ctx, p)
		if errors.Is(err, errIDTaken) {
			continue
		}
		if err != nil {
			return 0, err
		}
		whole.items = append(whole.items, en.items...)
		whole.missing = append(whole.missing, en.missing...)
		whole.found = append(whole.found, ev.ID())
		whole.extra = both(whole.extra, en.extra)
	}
	if len(whole.items) == 0 {
		return 0, errors.New("nothing new came")
	}
	// Positions of history count downwards, so the newest event takes the first.
	n := len(whole.items)
	slices.Reverse(whole.items)
	queued = true
	e.committer.add(whole)
	return n, whole.wait(context.WithoutCancel(ctx))
}

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
