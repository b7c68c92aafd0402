package api

import (
	"encoding/json"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
)

// Sizes of a page of relations or threads where the client gives none.
const (
	defaultRelations = 10
	defaultThreads   = 20
)

// dirVar reads which way a page goes; def where it is not given, "" if it must be.
func dirVar(r *endpoint.Request, def string) (backward bool, err error) {
	dir := r.Query("dir")
	if dir == "" {
		dir = def
	}
	switch dir {
	case "b":
		return true, nil
	case "f":
		return false, nil
	}
	return false, matrix.InvalidParam("dir must be b or f.")
}

// positiveVar is the limit of a page that must not be empty.
func positiveVar(r *endpoint.Request, def int64) (int, error) {
	n, err := r.QueryInt("limit", def)
	if err != nil {
		return 0, err
	}
	if n <= 0 {
		return 0, matrix.InvalidParam("limit must be above 0.")
	}
	return int(min(n, maxPage)), nil
}

// spec: cs/getRelatingEvents, cs/getRelatingEventsWithRelType, cs/getRelatingEventsWithRelTypeAndEventType
func (a *API) relations(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	parent, err := eventVar(r)
	if err != nil {
		return nil, err
	}
	req := rooms.RelationsRequest{Room: room, Parent: parent, RelType: r.Var("relType"), EventType: r.Var("eventType")}
	if req.Backward, err = dirVar(r, "b"); err != nil {
		return nil, err
	}
	if req.Limit, err = positiveVar(r, defaultRelations); err != nil {
		return nil, err
	}
	if req.Recurse, err = r.QueryBool("recurse", false); err != nil {
		return nil, err
	}
	if req.From, err = tokenVar(r, "from", a, room); err != nil {
		return nil, err
	}
	if req.To, err = tokenVar(r, "to", a, room); err != nil {
		return nil, err
	}
	rd, err := a.reader(r)
	if err != nil {
		return nil, err
	}
	page, err := a.Rooms.Relations(r.Ctx(), rd, req)
	if err != nil {
		return nil, err
	}
	out, err := a.relationsPage(r, page)
	if err != nil {
		return nil, err
	}
	out.PrevBatch = r.Query("from")
	if r.HasQuery("recurse") {
		depth := 0
		if req.Recurse {
			depth = rooms.RelationDepth
		}
		out.RecursionDepth = &depth
	}
	return out, nil
}

// relationsAnswer is a page of events that the server found by their relations.
type relationsAnswer struct {
	Chunk          []json.RawMessage `json:"chunk"`
	NextBatch      string            `json:"next_batch,omitempty"`
	PrevBatch      string            `json:"prev_batch,omitempty"`
	RecursionDepth *int              `json:"recursion_depth,omitempty"`
}

func (a *API) relationsPage(r *endpoint.Request, page *rooms.RelationsPage) (*relationsAnswer, error) {
	chunk, err := a.renderAll(r, page.Events)
	if err != nil {
		return nil, err
	}
	out := &relationsAnswer{Chunk: chunk}
	if page.Next != nil {
		out.NextBatch = page.Next.String()
	}
	return out, nil
}

// spec: cs/getThreadRoots
func (a *API) threads(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	req := rooms.ThreadsRequest{Room: room}
	switch r.Query("include") {
	case "", "all":
	case "participated":
		req.Participated = true
	default:
		return nil, matrix.InvalidParam("include must be all or participated.")
	}
	if req.Limit, err = positiveVar(r, defaultThreads); err != nil {
		return nil, err
	}
	if req.From, err = tokenVar(r, "from", a, room); err != nil {
		return nil, err
	}
	rd, err := a.reader(r)
	if err != nil {
		return nil, err
	}
	page, err := a.Rooms.Threads(r.Ctx(), rd, req)
	if err != nil {
		return nil, err
	}
	return a.relationsPage(r, page)
}
