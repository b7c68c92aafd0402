package api

import (
	"encoding/json"
	"slices"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
)

// maxPage bounds the events of one page of history.
const maxPage = 1000

// roomFilter reads the filter parameter of /messages and /context.
func roomFilter(r *endpoint.Request, room matrix.RoomID) (*feed.RoomEventFilter, rooms.Filter, error) {
	raw := r.Query("filter")
	if raw == "" {
		return &feed.RoomEventFilter{}, nil, nil
	}
	f, err := feed.ParseRoomEventFilter([]byte(raw))
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !f.AcceptsRoom(room):
		return f, func(*rooms.Event) bool { return false }, nil
	case f.All():
		return f, nil, nil
	}
	return f, func(ev *rooms.Event) bool { return f.AcceptsEvent(ev.Event) }, nil
}

// limitVar is the limit of a page: the query's, or the filter's, or the default, bounded.
func limitVar(r *endpoint.Request, f *feed.RoomEventFilter, def int) (int, error) {
	n, err := r.QueryInt("limit", int64(f.Most(def, maxPage)))
	if err != nil {
		return 0, err
	}
	if n < 0 {
		return 0, matrix.InvalidParam("limit must not be negative.")
	}
	return int(min(n, maxPage)), nil
}

func tokenVar(r *endpoint.Request, name string, a *API, room matrix.RoomID) (*rooms.Token, error) {
	s := r.Query(name)
	if s == "" {
		return nil, nil
	}
	if at, err := feed.ParsePosition(s); err == nil { // a next_batch of /sync
		nid, err := a.Rooms.RoomNID(r.Ctx(), room)
		if err != nil {
			return nil, err
		}
		t, err := a.Rooms.TokenAt(r.Ctx(), nid, at)
		return &t, err
	}
	t, err := rooms.ParseToken(s)
	return &t, err
}

// spec: cs/getRoomEvents
func (a *API) messages(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	req := rooms.MessagesRequest{Room: room, User: requester(r).UserID}
	switch r.Query("dir") {
	case "b":
		req.Backward = true
	case "f", "": // clients that leave it out expect the older servers' default
	default:
		return nil, matrix.InvalidParam("dir must be b or f.")
	}
	f, keep, err := roomFilter(r, room)
	if err != nil {
		return nil, err
	}
	req.Filter = keep
	if req.Limit, err = limitVar(r, f, 10); err != nil {
		return nil, err
	}
	if req.From, err = tokenVar(r, "from", a, room); err != nil {
		return nil, err
	}
	if req.To, err = tokenVar(r, "to", a, room); err != nil {
		return nil, err
	}
	page, err := a.Rooms.Messages(r.Ctx(), req)
	if err != nil {
		return nil, err
	}
	out := struct {
		Chunk []json.RawMessage `json:"chunk"`
		Start string            `json:"start"`
		End   string            `json:"end,omitempty"`
		State []json.RawMessage `json:"state,omitempty"`
	}{Start: page.Start.String()}
	if page.End != nil {
		out.End = page.End.String()
	}
	if out.Chunk, err = a.renderAll(r, page.Events); err != nil {
		return nil, err
	}
	if f.LazyLoadMembers && len(page.Events) > 0 {
		state, err := a.Rooms.VisibleState(r.Ctx(), req.User, room)
		if err != nil {
			return nil, err
		}
		if out.State, err = a.lazyMembers(r, state, page.Events); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// spec: cs/getOneRoomEvent
func (a *API) event(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEventVar(r)
	if err != nil {
		return nil, err
	}
	ev, err := a.Rooms.VisibleEvent(r.Ctx(), requester(r).UserID, room, id)
	if err != nil {
		return nil, err
	}
	return a.render(r, ev)
}

// spec: cs/getEventContext
func (a *API) context(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEventVar(r)
	if err != nil {
		return nil, err
	}
	f, keep, err := roomFilter(r, room)
	if err != nil {
		return nil, err
	}
	limit, err := limitVar(r, f, 10)
	if err != nil {
		return nil, err
	}
	if !f.LazyLoadMembers {
		if err := a.Rooms.AwaitMembers(r.Ctx(), requester(r).UserID, room); err != nil {
			return nil, err
		}
	}
	page, err := a.Rooms.Context(r.Ctx(), requester(r).UserID, room, id, limit, keep)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		// Who may not look into the room at all is told so, rather than that there is no such event.
		if _, hidden := a.Rooms.VisibleState(r.Ctx(), requester(r).UserID, room); hidden != nil {
			return nil, hidden
		}
	}
	if err != nil {
		return nil, err
	}
	out := struct {
		Event  json.RawMessage   `json:"event"`
		Before []json.RawMessage `json:"events_before"`
		After  []json.RawMessage `json:"events_after"`
		Start  string            `json:"start"`
		End    string            `json:"end"`
		State  []json.RawMessage `json:"state"`
	}{Start: page.Start.String(), End: page.End.String()}
	if out.Event, err = a.render(r, page.Event); err != nil {
		return nil, err
	}
	if out.Before, err = a.renderAll(r, page.Before); err != nil {
		return nil, err
	}
	if out.After, err = a.renderAll(r, page.After); err != nil {
		return nil, err
	}
	if f.LazyLoadMembers {
		out.State, err = a.lazyMembers(r, page.State, page.Before, []*rooms.Event{page.Event}, page.After)
		return out, err
	}
	state, err := page.State.All(r.Ctx())
	if err != nil {
		return nil, err
	}
	if keep != nil {
		state = slices.DeleteFunc(state, func(ev *rooms.Event) bool { return !keep(ev) })
	}
	out.State, err = a.renderAll(r, state)
	return out, err
}
