package rooms

import (
	"context"
	"errors"
	"math"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
)

// Limits on the search for an event by time.
const (
	timeChunk      = 50
	maxTimeScanned = 1000 // events looked at until one may be seen
	maxTimeServers = 3    // asked for a closer event
)

// byTime returns the first event of a room from a time on, or backwards, that keep accepts; nil if there is none.
func (r *room) byTime(ctx context.Context, ts matrix.Timestamp, backward bool, keep func(*Event) (bool, error)) (*Event, error) {
	for skip := 0; skip < maxTimeScanned; skip += timeChunk {
		nids, err := storage.EventsByTime(ctx, r.e.db, r.nid, ts, backward, timeChunk, skip)
		if err != nil {
			return nil, err
		}
		events, err := r.e.eventsByNID(ctx, nids)
		if err != nil {
			return nil, err
		}
		for _, ev := range events {
			if ok, err := keep(ev); err != nil || ok {
				return ev, err
			}
		}
		if len(nids) < timeChunk {
			break
		}
	}
	return nil, nil
}

// EventByTime returns the event closest to a time, before or after it, that a user may see. Where history is missing
// other servers are asked, and what they know is fetched. M_NOT_FOUND, M_FORBIDDEN. spec: cs/getEventByTimestamp
func (e *Engine) EventByTime(ctx context.Context, user matrix.UserID, id matrix.RoomID, ts matrix.Timestamp, backward bool) (*Event, error) {
	r, v, err := e.roomToRead(ctx, user, id)
	if err != nil {
		return nil, err
	}
	defer r.release()
	sees := func(ev *Event) (bool, error) { return v.sees(ctx, ev) }
	found, err := r.byTime(ctx, ts, backward, sees)
	if err != nil {
		return nil, err
	}
	if gap, err := r.gapBeside(ctx, found, backward); err != nil {
		return nil, err
	} else if gap && r.fetchByTime(ctx, ts, backward, found) {
		if found, err = r.byTime(ctx, ts, backward, sees); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, matrix.NotFound("there is no event on that side of the time")
	}
	return found, nil
}

// gapBeside says whether history is missing on the side of an event on which one closer to the time could be: looking
// backwards after it, looking forwards before it.
func (r *room) gapBeside(ctx context.Context, found *Event, backward bool) (bool, error) {
	least, most := int64(0), int64(math.MaxInt64) // depth of the children of what is missing
	if found != nil && backward {
		least = found.Depth() + 1
	} else if found != nil {
		most = found.Depth()
	}
	missing, err := storage.MissingPrevs(ctx, r.e.db, r.nid, least, maxServedWalk)
	return slices.ContainsFunc(missing, func(m storage.MissingPrev) bool { return m.Depth <= most }), err
}

// fetchByTime asks servers in the room for an event closer than the one found, and stores it with the history before it. false: nothing came.
func (r *room) fetchByTime(ctx context.Context, ts matrix.Timestamp, backward bool, found *Event) bool {
	e := r.e
	dir := "f"
	if backward {
		dir = "b"
	}
	return e.fetchingHistory(ctx, r, historyPatience, func(ctx context.Context) (bool, error) {
		servers, err := e.JoinedServers(ctx, r.id)
		if err != nil {
			return false, err
		}
		servers = slices.DeleteFunc(servers, func(s matrix.ServerName) bool { return s == e.server })
		got, _ := inquiry[[]*event.Event]{
			next: listed(e.answeringFirst(servers)[:min(len(servers), maxTimeServers)]),
			ask: func(ctx context.Context, server matrix.ServerName) ([]*event.Event, error) {
				id, at, err := e.remote.TimestampToEvent(ctx, server, r.id, ts, dir)
				if err != nil {
					return nil, err
				}
				known, err := r.eventsByID(ctx, []matrix.EventID{id})
				if err != nil {
					return nil, err
				}
				if known[id] != nil && !known[id].Outlier || !closer(at, ts, backward, found) {
					return nil, errors.New("the server knows of none that is closer")
				}
				return e.askHistory(ctx, server, r, []matrix.EventID{id}, maxBackfill)
			},
			take: func(server matrix.ServerName, events []*event.Event) error {
				return r.storeHistory(ctx, server, events)
			},
			failed: func(server matrix.ServerName, err error) {
				e.log.Debug().Err(err).Str("server", string(server)).Msg("an event by time")
			},
			after: overtakeQuestion, most: mostQuestions,
		}.run(ctx, e)
		return got, nil
	})
}

// closer says whether an event of a time is on the right side of ts and no further from it than the one found: of
// events of one time the order in the room decides, which is known once the event is here.
func closer(at, ts matrix.Timestamp, backward bool, found *Event) bool {
	if backward {
		return at <= ts && (found == nil || at >= found.OriginServerTS())
	}
	return at >= ts && (found == nil || at <= found.OriginServerTS())
}

// ServeEventByTime is EventByTime for another server, from what is known here. spec: ss/getEventByTimestamp
func (e *Engine) ServeEventByTime(ctx context.Context, origin matrix.ServerName, id matrix.RoomID, ts matrix.Timestamp, backward bool) (*Event, error) {
	r, err := e.served(ctx, origin, id)
	if err != nil {
		return nil, err
	}
	defer r.release()
	v := &serverView{e: e, server: origin}
	found, err := r.byTime(ctx, ts, backward, func(ev *Event) (bool, error) { return v.sees(ctx, ev) })
	if err == nil && found == nil {
		err = matrix.NotFound("there is no event on that side of the time")
	}
	return found, err
}
