package api

import (
	"encoding/json"
	"net/http"
	"time"

	"hanok/delayed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
)

const (
	// delayParam makes the endpoints that send events schedule them instead: the form before the proposal was accepted.
	delayParam = "org.matrix.msc4140.delay"
	// delayedPage is how many delayed events a list shows at once.
	delayedPage = 100
)

// sendLater schedules what the request would send. spec: MSC4140#reusing-the-sendstate-endpoints
func (a *API) sendLater(r *endpoint.Request, q rooms.SendRequest) (any, error) {
	ms, err := r.QueryInt(delayParam, 0)
	if err != nil {
		return nil, err
	}
	answer, err := a.schedule(r, q, ms, func() ([]byte, error) { return contentOf(r) })
	if e, ok := matrix.AsError(err); ok && e.Extra["org.matrix.msc4140.errcode"] != nil {
		// Clients that schedule in this way look for the limit in an error of this kind.
		old := *e
		old.Status, old.Code = http.StatusBadRequest, "M_UNKNOWN"
		return nil, &old
	}
	return answer, err
}

// scheduleEvent schedules an event. spec: MSC4140#scheduling-a-delayed-event
func (a *API) scheduleEvent(r *endpoint.Request) (any, error) {
	q, err := sendRequest(r, nil)
	if err != nil {
		return nil, err
	}
	var req struct {
		Delay    *int64          `json:"delay_ms"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	switch {
	case req.Delay == nil:
		return nil, matrix.MissingParam("delay_ms is missing.")
	case req.Content == nil:
		return nil, matrix.MissingParam("content is missing.")
	}
	q.StateKey = req.StateKey
	if err := checkSticky(q); err != nil {
		return nil, err
	}
	return a.schedule(r, q, *req.Delay, func() ([]byte, error) { return req.Content, checkObject(req.Content) })
}

// schedule schedules an event. A repeated request is answered as the first one, whatever its body.
func (a *API) schedule(r *endpoint.Request, q rooms.SendRequest, ms int64, content func() ([]byte, error)) (any, error) {
	id, err := a.Delayed.Scheduled(r.Ctx(), q)
	if err != nil {
		return nil, err
	}
	if id == "" {
		if q.Content, err = content(); err != nil {
			return nil, err
		}
		const most = int64(1) << 40 // milliseconds: beyond any limit, and no overflow
		if id, err = a.Delayed.Schedule(r.Ctx(), delayed.Request{Event: q, Delay: time.Duration(min(max(ms, 0), most)) * time.Millisecond}); err != nil {
			return nil, err
		}
	}
	return map[string]string{"delay_id": id}, nil
}

// delayedEvent is an event as its sender looks it up.
type delayedEvent struct {
	ID       string           `json:"delay_id"`
	Room     matrix.RoomID    `json:"room_id"`
	Type     string           `json:"type"`
	StateKey *string          `json:"state_key,omitzero"`
	Delay    int64            `json:"delay_ms"`
	Since    matrix.Timestamp `json:"delayed_since_ts"`
	Content  json.RawMessage  `json:"content"`
	// The same as above, as clients of the proposal's drafts read it.
	DraftDelay int64            `json:"delay"`
	DraftSince matrix.Timestamp `json:"running_since"`

	Finalised *finalisedEvent `json:"finalised,omitzero"`
}

type finalisedEvent struct {
	At    matrix.Timestamp `json:"finalised_ts"`
	Event matrix.EventID   `json:"event_id,omitzero"`
	Error json.RawMessage  `json:"error,omitzero"`
}

func answerDelayed(ev *delayed.Event) delayedEvent {
	d := delayedEvent{
		ID: ev.ID, Room: ev.Room, Type: ev.Type, StateKey: ev.StateKey, Content: ev.Content,
		Delay: ev.Delay, DraftDelay: ev.Delay, Since: ev.Since, DraftSince: ev.Since,
	}
	if ev.FinalisedAt != 0 {
		d.Finalised = &finalisedEvent{At: ev.FinalisedAt, Event: ev.EventID, Error: ev.Error}
	}
	return d
}

// spec: MSC4140#getting-a-single-delayed-event
func (a *API) delayedEvent(r *endpoint.Request) (any, error) {
	ev, err := a.Delayed.Get(r.Ctx(), requester(r).UserID, r.Var("delayId"))
	if err != nil {
		return nil, err
	}
	return answerDelayed(ev), nil
}

// Pages follow the convention for lists; the proposal has none yet. spec: MSC4140#getting-a-list-of-delayed-events
func (a *API) delayedEvents(r *endpoint.Request) (any, error) {
	limit, err := r.QueryInt("limit", delayedPage)
	if err != nil {
		return nil, err
	}
	page, next, err := a.Delayed.List(r.Ctx(), requester(r).UserID, r.Query("from"), int(min(max(limit, 1), delayedPage)))
	if err != nil {
		return nil, err
	}
	list := make([]delayedEvent, len(page))
	for i := range page {
		list[i] = answerDelayed(&page[i])
	}
	return struct {
		Events []delayedEvent `json:"delayed_events"`
		Next   string         `json:"next_batch,omitzero"`
	}{list, next}, nil
}

// Whoever knows its ID may act on a delayed event: a call's media server ends the membership of a client that it has lost.
// spec: MSC4140#managing-scheduled-delayed-events

func (a *API) cancelDelayed(r *endpoint.Request) (any, error) {
	return nil, a.Delayed.Cancel(r.Ctx(), r.Var("delayId"))
}

func (a *API) restartDelayed(r *endpoint.Request) (any, error) {
	return nil, a.Delayed.Restart(r.Ctx(), r.Var("delayId"))
}

func (a *API) sendDelayed(r *endpoint.Request) (any, error) {
	return nil, a.Delayed.Send(r.Ctx(), r.Var("delayId"))
}

// manageDelayed takes the action from the body. spec: MSC4140#management-endpoint-action-in-request-body
func (a *API) manageDelayed(r *endpoint.Request) (any, error) {
	var req struct {
		Action *string `json:"action"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.Action == nil {
		return nil, matrix.MissingParam("action is missing.")
	}
	switch *req.Action {
	case "cancel":
		return a.cancelDelayed(r)
	case "restart":
		return a.restartDelayed(r)
	case "send":
		return a.sendDelayed(r)
	}
	return nil, matrix.InvalidParam("action must be cancel, restart or send.")
}
