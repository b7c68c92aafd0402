package rooms

import (
	"context"
	"math"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// Filter keeps an event in a page; nil keeps all.
type Filter func(*Event) bool

func (f Filter) keeps(ev *Event) bool { return f == nil || f(ev) }

// MessagesRequest asks for a page of history. spec: cs/getRoomEvents
type MessagesRequest struct {
	Room     matrix.RoomID
	User     matrix.UserID
	From     *Token // nil: the end (backward) or the beginning (forward) of what the user may see
	To       *Token
	Backward bool
	Limit    int
	Filter   Filter
}

// Page is a page of history.
type Page struct {
	Events []*Event // in the direction asked for
	Start  Token
	End    *Token // nil: there is nothing further
}

// Limits on one page.
const (
	maxPage    = 1000
	maxScanned = 10_000 // events looked at for one page, when a filter or the visibility lets few through
	maxFills   = 3      // backfills for one page
)

// Messages returns a page, fetching missing history from other servers first.
func (e *Engine) Messages(ctx context.Context, q MessagesRequest) (*Page, error) {
	r, v, err := e.roomToRead(ctx, q.User, q.Room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	q.Limit = min(max(q.Limit, 0), maxPage)
	start, err := r.startOf(ctx, v, q)
	if err != nil {
		return nil, err
	}
	w := &historyWalk{r: r, v: v, q: q, at: start}
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	page := &Page{Events: w.events, Start: start}
	// After a page with events there may be others by the time the client asks again; only an empty one ends the search.
	if !w.exhausted || len(w.events) > 0 {
		end := w.at
		page.End = &end
	}
	return page, nil
}

// roomToRead returns a room, pinned, with what a user may see of it: M_FORBIDDEN if that is nothing.
func (e *Engine) roomToRead(ctx context.Context, user matrix.UserID, id matrix.RoomID) (*room, *viewer, error) {
	r, err := e.room(ctx, id)
	if err != nil {
		return nil, nil, hideRoom(err)
	}
	v, err := e.viewer(ctx, r.nid, user)
	if err == nil {
		err = r.mayRead(ctx, v)
	}
	if err != nil {
		r.release()
		return nil, nil, err
	}
	return r, v, nil
}

// mayRead refuses those who see nothing of a room: never joined, or forgotten, and not world-readable.
func (r *room) mayRead(ctx context.Context, v *viewer) error {
	if v.member.Membership == storage.MembershipJoin || v.member.LeftPos != 0 && !v.member.Forgotten {
		return nil
	}
	v.stranger = v.member.Forgotten
	return r.mayPeek(ctx)
}

// mayPeek refuses those who are not in a room unless everybody may look into it.
func (r *room) mayPeek(ctx context.Context) error {
	c, err := r.current(ctx)
	if err != nil {
		return err
	}
	ev, err := State{r.e, c.head.state}.Event(ctx, "m.room.history_visibility", "")
	if err != nil {
		return err
	}
	if visibility(ev) != "world_readable" {
		return matrix.Forbidden("you are not in this room")
	}
	return nil
}

func (r *room) startOf(ctx context.Context, v *viewer, q MessagesRequest) (Token, error) {
	switch {
	case q.From != nil:
		return *q.From, nil
	case !q.Backward:
		return Token{Pos: math.MinInt64}, nil
	case v.member.Membership != storage.MembershipJoin && v.member.LeftPos != 0 && !v.stranger:
		return r.e.TokenAt(ctx, r.nid, v.member.LeftPos)
	}
	return Token{Depth: math.MaxInt64, Pos: math.MaxInt64}, nil
}

// historyWalk collects a page.
type historyWalk struct {
	r         *room
	v         *viewer
	q         MessagesRequest
	at        Token
	events    []*Event
	exhausted bool
	fills     int
	waited    time.Duration // for fills
}

func (w *historyWalk) run(ctx context.Context) error {
	for scanned := 0; len(w.events) < w.q.Limit && scanned < maxScanned && !w.exhausted; {
		want := min(w.q.Limit-len(w.events)+10, maxPage)
		chunk, err := w.read(ctx, want)
		if err != nil {
			return err
		}
		if w.q.Backward && w.fills < maxFills && w.waited < historyPatience {
			filled, err := w.fill(ctx, chunk, want)
			if err != nil {
				return err
			}
			if filled {
				continue
			}
		}
		if len(chunk) < want {
			w.exhausted = true
		}
		scanned += len(chunk)
		if err := w.take(ctx, chunk); err != nil {
			return err
		}
	}
	return nil
}

func (w *historyWalk) read(ctx context.Context, n int) ([]*Event, error) {
	e := w.r.e
	read := storage.HistoryForward
	if w.q.Backward {
		read = storage.HistoryBackward
	}
	nids, err := read(ctx, e.db, w.r.nid, w.at.Depth, w.at.Pos, n)
	if err != nil {
		return nil, err
	}
	return e.eventsByNID(ctx, nids)
}

// fill fetches history that is missing within a chunk about to be shown, or right behind it.
func (w *historyWalk) fill(ctx context.Context, chunk []*Event, want int) (bool, error) {
	low := int64(0)
	if len(chunk) == want {
		low = chunk[len(chunk)-1].Depth()
	}
	missing, err := storage.MissingPrevs(ctx, w.r.e.db, w.r.nid, low, 20)
	if err != nil {
		return false, err
	}
	missing = slices.DeleteFunc(missing, func(m storage.MissingPrev) bool { return m.Depth > w.at.Depth })
	if len(missing) == 0 {
		return false, nil
	}
	w.fills++
	began := time.Now()
	defer func() { w.waited += time.Since(began) }()
	return w.r.e.backfill(ctx, w.r, missing, want, historyPatience-w.waited)
}

// take adds what may be seen and passes the filter, up to the limit and the place to stop at.
func (w *historyWalk) take(ctx context.Context, chunk []*Event) error {
	for _, ev := range chunk {
		if w.q.To != nil && w.beyond(ev, *w.q.To) {
			w.exhausted = true
			return nil
		}
		bound := w.at.Bound
		if w.q.Backward {
			w.at = ev.before()
			w.at.Bound = bound
		} else {
			w.at = ev.after()
		}
		if w.q.Backward && bound != 0 && ev.Pos > bound {
			continue
		}
		shown, err := w.v.show(ctx, ev)
		if err != nil {
			return err
		}
		if shown == nil || !w.q.Filter.keeps(shown) {
			continue
		}
		w.events = append(w.events, shown)
		if len(w.events) == w.q.Limit {
			w.exhausted = false
			return nil
		}
	}
	return nil
}

func (w *historyWalk) beyond(ev *Event, to Token) bool {
	behind := ev.Depth() < to.Depth || ev.Depth() == to.Depth && ev.Pos <= to.Pos
	return behind == w.q.Backward
}

// ContextPage is an event with what surrounds it.
type ContextPage struct {
	Event      *Event
	Before     []*Event // newest first
	After      []*Event
	Start, End Token
	State      State // at the last event of the page
}

// Context returns an event and up to limit events around it. spec: cs/getEventContext
func (e *Engine) Context(ctx context.Context, user matrix.UserID, room matrix.RoomID, id matrix.EventID, limit int, f Filter) (*ContextPage, error) {
	ev, err := e.VisibleEvent(ctx, user, room, id)
	if err != nil {
		return nil, err
	}
	limit = min(max(limit, 0), maxPage)
	return e.Surroundings(ctx, user, ev, limit/2, limit-limit/2, f)
}

// Surroundings are some events before and after one that the user may see. spec: cs/search event_context
func (e *Engine) Surroundings(ctx context.Context, user matrix.UserID, ev *Event, before, after int, f Filter) (*ContextPage, error) {
	r, err := e.roomByNID(ctx, ev.RoomNID)
	if err != nil {
		return nil, err
	}
	defer r.release()
	v, err := e.viewer(ctx, r.nid, user)
	if err != nil {
		return nil, err
	}
	p := &ContextPage{Event: ev, Start: ev.before(), End: ev.after()}
	if before > 0 {
		w := &historyWalk{r: r, v: v, at: p.Start, q: MessagesRequest{Backward: true, Limit: min(before, maxPage), Filter: f}}
		if e.partials.get(r.nid) != nil {
			w.waited = historyPatience - guestPatience // history is not fetched before the members are known, and what is around the event is there
		}
		if err := w.run(ctx); err != nil {
			return nil, err
		}
		p.Before, p.Start = w.events, w.at
	}
	if after > 0 {
		w := &historyWalk{r: r, v: v, at: p.End, q: MessagesRequest{Limit: min(after, maxPage), Filter: f}}
		if err := w.run(ctx); err != nil {
			return nil, err
		}
		p.After, p.End = w.events, w.at
	}
	last := ev
	if n := len(p.After); n > 0 {
		last = p.After[n-1]
	}
	p.State, err = e.StateAfter(ctx, last)
	return p, err
}

// TimelineRequest asks for the events of a room in (Since, Until], the newest Limit of them.
type TimelineRequest struct {
	Room         storage.RoomNID
	Since, Until storage.Position
	Limit        int
	Filter       Filter // applied before the limit
}

// Timeline is a room's part of a sync.
type Timeline struct {
	Events    []*Event // oldest first
	Limited   bool     // there were more after Since
	PrevBatch Token    // the place before the first event
}

// Timeline reads a room's timeline for sync. It does not check visibility: see Visible.
func (e *Engine) Timeline(ctx context.Context, q TimelineRequest) (*Timeline, error) {
	q.Limit = min(max(q.Limit, 0), maxPage)
	t := &Timeline{}
	until := q.Until
	gaps, err := e.gaps(ctx, q.Room)
	if err != nil {
		return nil, err
	}
scan:
	for scanned := 0; ; {
		want := q.Limit - len(t.Events) + 1
		nids, err := e.timelineBackward(ctx, q.Room, q.Since, until, want)
		if err != nil {
			return nil, err
		}
		events, err := e.eventsByNID(ctx, nids)
		if err != nil {
			return nil, err
		}
		for _, ev := range events {
			if !q.Filter.keeps(ev) {
				until = ev.Pos - 1
				continue
			}
			if len(t.Events) == q.Limit {
				t.Limited = true
				break
			}
			until = ev.Pos - 1
			t.Events = append(t.Events, ev)
			if gaps[ev.NID] {
				t.Limited = true
				break scan
			}
		}
		scanned += len(events)
		if t.Limited || len(events) < want {
			break
		}
		if scanned > maxScanned {
			t.Limited = true
			break
		}
	}
	slices.Reverse(t.Events)
	if len(t.Events) > 0 {
		t.PrevBatch, err = e.placeBefore(ctx, t.Events[0])
	} else {
		t.PrevBatch, err = e.TokenAt(ctx, q.Room, until)
	}
	return t, err
}
