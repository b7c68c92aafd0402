package rooms

import (
	"cmp"
	"context"
	"errors"
	"math"
	"net/http"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
)

// Types of relations that the server knows something about. spec: client-server-api#relationship-types
const (
	relReplace    = "m.replace"
	relThread     = "m.thread"
	relReference  = "m.reference"
	relAnnotation = "m.annotation"
)

// maxRelType is the longest rel_type that is looked at, in bytes, as for event types: it goes into an index.
const maxRelType = 255

// relationRow is what is stored about how an event of the timeline relates to another. ok is false if it does not.
func relationRow(ev *Event, pos storage.Position) (row storage.RelationRow, ok bool) {
	if pos == 0 {
		return row, false
	}
	rel, ok := ev.Relation()
	if !ok || rel.Type == "" || len(rel.Type) > maxRelType {
		return row, false
	}
	return storage.RelationRow{
		Child: ev.NID, Room: ev.RoomNID, Parent: rel.EventID, RelType: rel.Type, Type: ev.typ, Sender: ev.sender,
		Depth: ev.Depth(), Pos: pos, Timestamp: ev.OriginServerTS(),
	}, true
}

var errDuplicateAnnotation = matrix.Errorf(http.StatusBadRequest, "M_DUPLICATE_ANNOTATION", "you have annotated that event in this way already")

// checkRelation returns what must hold for an event about to be sent because of how it relates to another; nil: nothing.
// spec: client-server-api#validation-of-mthread-relationships, client-server-api#avoiding-duplicate-annotations
func (r *room) checkRelation(ctx context.Context, q SendRequest) (func(headView) error, error) {
	content, err := canonicalContent(r.version, q.Content)
	if err != nil {
		return nil, err
	}
	rel, ok := event.RelationOf(content)
	if !ok {
		return nil, nil
	}
	switch rel.Type {
	case relThread:
		known, err := r.eventsByID(ctx, []matrix.EventID{rel.EventID})
		if err != nil {
			return nil, err
		}
		if root := known[rel.EventID]; root != nil {
			if above, _ := root.Relation(); above.Type != "" {
				return nil, matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "a thread cannot start from an event that itself relates to another")
			}
		}
	case relAnnotation:
		// Asked under the room's lock, so that of two requests at the same time one wins.
		return func(headView) error { return r.checkAnnotation(ctx, q, rel) }, nil
	}
	return nil, nil
}

// maxAnnotations is how many annotations of one sender on one event are compared.
const maxAnnotations = 100

// checkAnnotation refuses an annotation that the sender has made already. r.mu is held.
func (r *room) checkAnnotation(ctx context.Context, q SendRequest, rel event.Relation) error {
	same := func(ev *Event) bool {
		other, ok := ev.Relation()
		return ok && ev.Sender() == q.Sender && ev.Type() == q.Type && other.Type == rel.Type && other.EventID == rel.EventID && other.Key == rel.Key
	}
	if r.pending.any(same) {
		return errDuplicateAnnotation
	}
	sender, err := r.e.db.LookupName(ctx, string(q.Sender))
	if err != nil {
		return ignoreNotFound(err)
	}
	typ, err := r.e.db.LookupName(ctx, q.Type)
	if err != nil {
		return ignoreNotFound(err)
	}
	nids, err := storage.RelationsBySender(ctx, r.e.db, r.nid, rel.EventID, relAnnotation, sender, typ, maxAnnotations)
	if err != nil {
		return err
	}
	events, err := r.e.eventMap(ctx, nids)
	if err != nil {
		return err
	}
	for _, ev := range events {
		if same(ev) {
			return errDuplicateAnnotation
		}
	}
	return nil
}

func (p *pendingEvents) any(match func(*Event) bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ev := range p.byID {
		if match(ev) {
			return true
		}
	}
	return false
}

// ThreadOf is the root of the thread that an event is in, "" if it is in none: it relates to the root as part of the
// thread, or to something that does. spec: client-server-api#threaded-read-receipts
func (e *Engine) ThreadOf(ctx context.Context, ev *Event) (matrix.EventID, error) {
	root, _, err := e.threadOf(ctx, ev)
	return root, err
}

// InThread says whether a receipt for an event can be about a thread, "main" being what is in none. It can be about the thread that the
// event is in or would start, or that something it relates to would. spec: client-server-api#threaded-read-receipts
func (e *Engine) InThread(ctx context.Context, ev *Event, thread string) (bool, error) {
	root, passed, err := e.threadOf(ctx, ev)
	if err != nil || thread == "main" {
		return root == "", err
	}
	return string(root) == thread || slices.Contains(passed, matrix.EventID(thread)), nil
}

// threadOf is ThreadOf that also lists the event itself and those that led to the thread, or nowhere.
func (e *Engine) threadOf(ctx context.Context, ev *Event) (root matrix.EventID, passed []matrix.EventID, err error) {
	const maxHops = 3
	for range maxHops {
		passed = append(passed, ev.ID())
		rel, _ := ev.Relation()
		switch rel.Type {
		case relThread:
			return rel.EventID, passed, nil
		case "":
			return "", passed, nil
		}
		parents, err := e.eventsByID(ctx, []matrix.EventID{rel.EventID})
		if err != nil {
			return "", nil, err
		}
		parent := parents[rel.EventID]
		if parent == nil || parent.RoomNID != ev.RoomNID {
			return "", append(passed, rel.EventID), nil
		}
		ev = parent
	}
	return "", passed, nil
}

// Reader is somebody who is told of events.
type Reader struct {
	User    matrix.UserID
	Device  matrix.DeviceID
	Ignored map[matrix.UserID]bool // whose events, but for state, are left out
}

func (rd *Reader) ignores(ev *Event) bool { return !ev.IsState() && rd.Ignored[ev.Sender()] }

// RelationsRequest asks for events that relate to another. spec: cs/getRelatingEventsWithRelTypeAndEventType
type RelationsRequest struct {
	Room      matrix.RoomID
	Parent    matrix.EventID
	RelType   string // "": any
	EventType string // "": any
	From, To  *Token
	Backward  bool
	Limit     int
	Recurse   bool // also what relates to what relates to it, RelationDepth levels deep
}

// RelationDepth is how many levels of relations a recursing request goes down.
const RelationDepth = 3

// RelationsPage is a page of events that relate to another.
type RelationsPage struct {
	Events []*Event // in the direction asked for
	Next   *Token   // nil: there is nothing further
}

// maxRelated bounds the events looked at for a recursing request.
const maxRelated = 5000

// Relations returns a page of the events that relate to one that the reader may see; else M_NOT_FOUND.
// spec: client-server-api#relationships-api
func (e *Engine) Relations(ctx context.Context, rd Reader, q RelationsRequest) (*RelationsPage, error) {
	parent, err := e.VisibleEvent(ctx, rd.User, q.Room, q.Parent)
	if err != nil {
		return nil, err
	}
	v, err := e.viewer(ctx, parent.RoomNID, rd.User)
	if err != nil {
		return nil, err
	}
	w := &relationWalk{e: e, v: v, rd: rd, q: q, room: parent.RoomNID}
	w.q.Limit = min(max(q.Limit, 1), maxPage)
	if q.EventType != "" {
		if w.typ, err = e.db.LookupName(ctx, q.EventType); errors.Is(err, storage.ErrNotFound) {
			return &RelationsPage{}, nil
		} else if err != nil {
			return nil, err
		}
	}
	w.at = Token{Pos: math.MinInt64}
	if q.Backward {
		w.at = Token{Depth: math.MaxInt64, Pos: math.MaxInt64}
	}
	if q.From != nil {
		w.at = *q.From
	}
	if err := w.run(ctx); err != nil {
		return nil, err
	}
	page := &RelationsPage{Events: w.events}
	switch {
	case w.exhausted:
	case len(w.events) == w.q.Limit:
		page.Next = &w.end
	default: // there was too much else to go on looking
		page.Next = &w.at
	}
	return page, nil
}

// relationWalk collects a page of relations.
type relationWalk struct {
	e         *Engine
	v         *viewer
	rd        Reader
	q         RelationsRequest
	room      storage.RoomNID
	typ       storage.NameNID // 0: any
	at        Token
	end       Token
	events    []*Event
	exhausted bool
}

func (w *relationWalk) run(ctx context.Context) error {
	if w.q.Recurse {
		rows, err := w.descend(ctx)
		if err != nil {
			return err
		}
		w.exhausted = true
		return w.take(ctx, rows)
	}
	read := storage.RelationsForward
	if w.q.Backward {
		read = storage.RelationsBackward
	}
	want := w.q.Limit + 50
	for scanned := 0; !w.full() && scanned < maxScanned; scanned += want {
		rows, err := read(ctx, w.e.db, w.room, w.q.Parent, w.at.Depth, w.at.Pos, want)
		if err != nil {
			return err
		}
		w.exhausted = len(rows) < want
		if err := w.take(ctx, rows); err != nil || w.exhausted {
			return err
		}
		last := rows[len(rows)-1]
		w.at = Token{Depth: last.Depth, Pos: last.Pos}
		if w.q.Backward {
			w.at.Pos--
		}
	}
	return nil
}

// full is true once the page has its events and another one was seen, which tells that there is a further page.
func (w *relationWalk) full() bool { return len(w.events) == w.q.Limit && !w.exhausted }

func (w *relationWalk) matches(relType string, typ storage.NameNID) bool {
	return (w.q.RelType == "" || w.q.RelType == relType) && (w.typ == 0 || w.typ == typ)
}

// take adds the events of rows that the reader may see until the page is full.
func (w *relationWalk) take(ctx context.Context, rows []storage.RelationRow) error {
	nids := make([]storage.EventNID, 0, len(rows))
	for _, row := range rows {
		if w.q.To != nil && w.beyond(row) {
			w.exhausted = true
			break
		}
		if w.matches(row.RelType, row.Type) {
			nids = append(nids, row.Child)
		}
	}
	events, err := w.e.eventMap(ctx, nids)
	if err != nil {
		return err
	}
	for _, nid := range nids {
		ev := events[nid]
		if ev == nil || ev.RedactedBy != "" || w.rd.ignores(ev) {
			continue
		}
		ok, err := w.v.showsWhole(ctx, ev)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if len(w.events) == w.q.Limit {
			w.exhausted = false
			return nil
		}
		w.events = append(w.events, ev)
		w.end = ev.after()
		if w.q.Backward {
			w.end = ev.before()
		}
	}
	return nil
}

func (w *relationWalk) beyond(row storage.RelationRow) bool {
	behind := compareTokens(Token{Depth: row.Depth, Pos: row.Pos}, *w.q.To) <= 0
	return behind == w.q.Backward
}

func compareTokens(a, b Token) int {
	return cmp.Or(cmp.Compare(a.Depth, b.Depth), cmp.Compare(a.Pos, b.Pos))
}

// descend lists direct and indirect relations from the page's start on, in its direction. What does not match
// the filter is not followed.
func (w *relationWalk) descend(ctx context.Context) ([]storage.RelationRow, error) {
	seen := map[storage.EventNID]bool{}
	var out []storage.RelationRow
	frontier := []matrix.EventID{w.q.Parent}
	for level := 0; level < RelationDepth && len(frontier) > 0 && len(seen) < maxRelated; level++ {
		found, err := storage.RelationsOfAll(ctx, w.e.db, w.room, frontier, maxRelated)
		if err != nil {
			return nil, err
		}
		frontier = nil
		for _, f := range found {
			if seen[f.Child] || !w.matches(f.RelType, f.Type) || len(seen) >= maxRelated {
				continue
			}
			seen[f.Child] = true
			frontier = append(frontier, f.ID)
			if (compareTokens(Token{Depth: f.Depth, Pos: f.Pos}, w.at) <= 0) == w.q.Backward {
				out = append(out, f.RelationRow)
			}
		}
	}
	slices.SortFunc(out, func(a, b storage.RelationRow) int {
		c := compareTokens(Token{Depth: a.Depth, Pos: a.Pos}, Token{Depth: b.Depth, Pos: b.Pos})
		if w.q.Backward {
			return -c
		}
		return c
	})
	return out, nil
}
