package rooms

import (
	"context"
	"math"
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Limits on what one event's aggregations are made of.
const (
	maxReplacements = 20  // the newest, to find one that is valid and visible
	maxReferences   = 250 // listed
	maxThreadScan   = 500 // newest events of a thread, to find one that is visible
)

// Aggregations returns unsigned.m.relations of those events that have something to aggregate, by number.
// The events may be of several rooms. omitRoomID leaves the room ID out of the events within, as /sync does.
// spec: client-server-api#aggregations-of-child-events
func (e *Engine) Aggregations(ctx context.Context, rd Reader, events []*Event, omitRoomID bool) (map[storage.EventNID][]byte, error) {
	byRoom := make(map[storage.RoomNID][]*Event)
	for _, ev := range events {
		if !ev.IsState() && ev.Pos != 0 {
			byRoom[ev.RoomNID] = append(byRoom[ev.RoomNID], ev)
		}
	}
	out := make(map[storage.EventNID][]byte)
	for room, events := range byRoom {
		v, err := e.viewer(ctx, room, rd.User)
		if err != nil {
			return nil, err
		}
		a := &aggregator{e: e, rd: rd, v: v, room: room, omitRoomID: omitRoomID}
		if err := a.aggregate(ctx, events, out); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// aggregator makes aggregations of events of one room for one reader.
type aggregator struct {
	e          *Engine
	rd         Reader
	v          *viewer
	room       storage.RoomNID
	omitRoomID bool
	inThread   bool                     // what is aggregated is the latest event of a thread
	ignored    map[storage.NameNID]bool // the reader's, by number; nil: not looked up yet
}

// until is the last position that the reader may know of.
func (a *aggregator) until() storage.Position {
	if m := a.v.member; m.Membership != storage.MembershipJoin && m.LeftPos != 0 {
		return m.LeftPos
	}
	return math.MaxInt64
}

// related says how events relate to one.
type related struct {
	count map[string]int64 // by rel_type, without those of ignored users
	own   map[string]bool  // the reader has sent one
}

// count finds out which of the events have children.
func (a *aggregator) count(ctx context.Context, events []*Event) (map[matrix.EventID]*related, error) {
	ids := make([]matrix.EventID, len(events))
	for i, ev := range events {
		ids[i] = ev.ID()
	}
	counts, err := storage.CountRelations(ctx, a.e.db, a.room, ids, a.until())
	if err != nil || len(counts) == 0 {
		return nil, err
	}
	if err := a.lookupIgnored(ctx); err != nil {
		return nil, err
	}
	self := a.e.nameOr0(ctx, a.rd.User)
	out := make(map[matrix.EventID]*related)
	for _, c := range counts {
		if a.ignored[c.Sender] {
			continue
		}
		r := out[c.Parent]
		if r == nil {
			r = &related{count: make(map[string]int64), own: make(map[string]bool)}
			out[c.Parent] = r
		}
		r.count[c.RelType] += c.Count
		if c.Sender == self {
			r.own[c.RelType] = true
		}
	}
	return out, nil
}

func (a *aggregator) lookupIgnored(ctx context.Context) error {
	if a.ignored != nil {
		return nil
	}
	a.ignored = make(map[storage.NameNID]bool, len(a.rd.Ignored))
	for u := range a.rd.Ignored {
		nid, err := a.e.db.LookupName(ctx, string(u))
		if ignoreNotFound(err) != nil {
			return err
		}
		if err == nil {
			a.ignored[nid] = true
		}
	}
	return nil
}

// aggregate adds to out what events have.
func (a *aggregator) aggregate(ctx context.Context, events []*Event, out map[storage.EventNID][]byte) error {
	found, err := a.count(ctx, events)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, ev := range events {
		r := found[ev.ID()]
		if r == nil {
			continue
		}
		raw, err := a.one(ctx, ev, r)
		if err != nil {
			return err
		}
		if raw != nil {
			out[ev.NID] = raw
		}
	}
	return nil
}

// one writes the aggregations of one event; nil if there are none.
func (a *aggregator) one(ctx context.Context, ev *Event, r *related) ([]byte, error) {
	var b []byte
	member := func(relType string, value []byte) {
		if len(value) == 0 {
			return
		}
		if b == nil {
			b = append(b, '{')
		} else {
			b = append(b, ',')
		}
		b = append(canonicaljson.AppendString(b, relType), ':')
		b = append(b, value...)
	}
	above, _ := ev.Relation()
	if r.count[relReference] > 0 {
		refs, err := a.references(ctx, ev)
		if err != nil {
			return nil, err
		}
		member(relReference, refs)
	}
	if r.count[relReplace] > 0 && ev.RedactedBy == "" && above.Type != relReplace {
		edit, err := a.replacement(ctx, ev)
		if err != nil {
			return nil, err
		}
		member(relReplace, edit)
	}
	if r.count[relThread] > 0 && above.Type == "" && !a.inThread {
		latest, err := a.latestIn(ctx, ev.ID())
		if err != nil {
			return nil, err
		}
		if latest != nil {
			thread, err := a.thread(ctx, ev, latest, r)
			if err != nil {
				return nil, err
			}
			member(relThread, thread)
		}
	}
	if b == nil {
		return nil, nil
	}
	return append(b, '}'), nil
}

// shown says whether a child counts for the reader.
func (a *aggregator) shown(ctx context.Context, ev *Event) (bool, error) {
	if ev == nil || ev.RedactedBy != "" || a.rd.ignores(ev) {
		return false, nil
	}
	return a.v.showsWhole(ctx, ev)
}

// references lists the events that refer to one. spec: client-server-api#server-side-aggregation-of-mreference
func (a *aggregator) references(ctx context.Context, parent *Event) ([]byte, error) {
	rows, err := storage.RelationsForward(ctx, a.e.db, a.room, parent.ID(), 0, math.MinInt64, maxReferences)
	if err != nil {
		return nil, err
	}
	var nids []storage.EventNID
	for _, row := range rows {
		if row.RelType == relReference {
			nids = append(nids, row.Child)
		}
	}
	events, err := a.e.eventMap(ctx, nids)
	if err != nil {
		return nil, err
	}
	var b []byte
	for _, nid := range nids {
		ok, err := a.shown(ctx, events[nid])
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if b == nil {
			b = append(b, `{"chunk":[`...)
		} else {
			b = append(b, ',')
		}
		b = append(b, `{"event_id":`...)
		b = canonicaljson.AppendString(b, string(events[nid].ID()))
		b = append(b, '}')
	}
	if b == nil {
		return nil, nil
	}
	return append(b, `]}`...), nil
}

// replacement is the most recent valid edit of an event. spec: client-server-api#validity-of-replacement-events
func (a *aggregator) replacement(ctx context.Context, original *Event) ([]byte, error) {
	nids, err := storage.RelationsBySender(ctx, a.e.db, a.room, original.ID(), relReplace, original.sender, original.typ, maxReplacements)
	if err != nil {
		return nil, err
	}
	events, err := a.e.eventMap(ctx, nids)
	if err != nil {
		return nil, err
	}
	for _, nid := range nids {
		edit := events[nid]
		ok, err := a.shown(ctx, edit)
		if err != nil {
			return nil, err
		}
		if ok && validReplacement(edit) {
			return a.render(ctx, edit, nil)
		}
	}
	return nil, nil
}

// validReplacement checks what can be told from an edit alone: its sender and type are the original's.
func validReplacement(edit *Event) bool {
	if edit.IsState() {
		return false
	}
	if edit.Type() == "m.room.encrypted" {
		return true // the new content is in the payload
	}
	_, ok := canonicaljson.GetObject(edit.Content(), "m.new_content")
	return ok
}

func (a *aggregator) render(ctx context.Context, ev *Event, relations []byte) ([]byte, error) {
	o, err := a.e.ClientOptions(ctx, ev, a.rd.User, a.rd.Device)
	if err != nil {
		return nil, err
	}
	o.OmitRoomID, o.Relations = a.omitRoomID, relations
	return ev.AppendClient(nil, o), nil
}

// latestIn is the topologically newest event of a thread that counts for the reader; nil if there is none.
func (a *aggregator) latestIn(ctx context.Context, root matrix.EventID) (*Event, error) {
	at := Token{Depth: math.MaxInt64, Pos: math.MaxInt64}
	const chunk = 10
	for scanned := 0; scanned < maxThreadScan; scanned += chunk {
		rows, err := storage.RelationsBackward(ctx, a.e.db, a.room, root, at.Depth, at.Pos, chunk)
		if err != nil || len(rows) == 0 {
			return nil, err
		}
		var nids []storage.EventNID
		for _, row := range rows {
			if row.RelType == relThread && row.Pos <= a.until() {
				nids = append(nids, row.Child)
			}
		}
		events, err := a.e.eventMap(ctx, nids)
		if err != nil {
			return nil, err
		}
		for _, nid := range nids {
			if ok, err := a.shown(ctx, events[nid]); err != nil {
				return nil, err
			} else if ok {
				return events[nid], nil
			}
		}
		last := rows[len(rows)-1]
		at = Token{Depth: last.Depth, Pos: last.Pos - 1}
	}
	return nil, nil
}

// thread writes the summary of a thread. spec: client-server-api#server-side-aggregation-of-mthread-relationships
func (a *aggregator) thread(ctx context.Context, root, latest *Event, r *related) ([]byte, error) {
	nested := *a
	nested.inThread = true
	below := make(map[storage.EventNID][]byte, 1)
	if err := nested.aggregate(ctx, []*Event{latest}, below); err != nil {
		return nil, err
	}
	event, err := a.render(ctx, latest, below[latest.NID])
	if err != nil {
		return nil, err
	}
	b := strconv.AppendInt([]byte(`{"count":`), r.count[relThread], 10)
	b = append(b, `,"current_user_participated":`...)
	b = strconv.AppendBool(b, a.participated(root, r))
	b = append(b, `,"latest_event":`...)
	return append(append(b, event...), '}'), nil
}

func (a *aggregator) participated(root *Event, r *related) bool {
	return root.Sender() == a.rd.User || r.own[relThread]
}

// ThreadsRequest asks for the threads of a room. spec: cs/getThreadRoots
type ThreadsRequest struct {
	Room         matrix.RoomID
	From         *Token
	Limit        int
	Participated bool // only those in which the reader takes part
}

// Threads lists the roots of a room's threads, that with the newest event first. Roots sent by ignored users are
// in redacted form. M_FORBIDDEN for a room that the reader may not look into.
// spec: cs/getThreadRoots
func (e *Engine) Threads(ctx context.Context, rd Reader, q ThreadsRequest) (*RelationsPage, error) {
	r, v, err := e.roomToRead(ctx, rd.User, q.Room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	q.Limit = min(max(q.Limit, 1), maxThreads)
	w := &threadWalk{aggregator: aggregator{e: e, rd: rd, v: v, room: r.nid}, q: q, latest: make(map[matrix.EventID]storage.EventNID)}
	return w.run(ctx)
}

// maxThreads bounds a page of threads: each has to be summed up.
const maxThreads = 100

// threadWalk goes through the events in threads of a room, newest first. A thread stands where its latest event is that
// counts for the reader.
type threadWalk struct {
	aggregator
	q      ThreadsRequest
	latest map[matrix.EventID]storage.EventNID // by root; 0: the thread is not shown
	page   RelationsPage
}

func (w *threadWalk) run(ctx context.Context) (*RelationsPage, error) {
	at := Token{Depth: math.MaxInt64, Pos: math.MaxInt64}
	if w.q.From != nil {
		at = *w.q.From
	}
	const chunk = 200
	for scanned := 0; scanned < maxScanned; scanned += chunk {
		rows, err := storage.RelationsOfType(ctx, w.e.db, w.room, relThread, at.Depth, at.Pos, chunk)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if len(w.page.Events) == w.q.Limit {
				w.page.Next = &at
				return &w.page, nil
			}
			if err := w.meet(ctx, row); err != nil {
				return nil, err
			}
			at = Token{Depth: row.Depth, Pos: row.Pos - 1}
		}
		if len(rows) < chunk {
			return &w.page, nil
		}
	}
	w.page.Next = &at
	return &w.page, nil
}

// meet adds a thread to the page if the event met is its latest.
func (w *threadWalk) meet(ctx context.Context, row storage.RelationRow) error {
	if nid, known := w.latest[row.Parent]; known && nid != row.Child {
		return nil
	}
	w.latest[row.Parent] = 0
	known, err := w.e.eventsByID(ctx, []matrix.EventID{row.Parent})
	if err != nil {
		return err
	}
	root := known[row.Parent]
	if root == nil || root.RoomNID != w.room {
		return nil
	}
	if above, _ := root.Relation(); above.Type != "" {
		return nil
	}
	root, err = w.v.show(ctx, root)
	if err != nil || root == nil {
		return err
	}
	latest, err := w.latestIn(ctx, row.Parent)
	if err != nil || latest == nil {
		return err
	}
	if w.q.Participated {
		found, err := w.count(ctx, []*Event{root})
		if err != nil || found[row.Parent] == nil || !w.participated(root, found[row.Parent]) {
			return err
		}
	}
	if w.latest[row.Parent] = latest.NID; latest.NID != row.Child {
		return nil
	}
	if w.rd.ignores(root) {
		root = blank(root)
	}
	w.page.Events = append(w.page.Events, root)
	return nil
}
