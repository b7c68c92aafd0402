package api

import (
	"net/http"
	"time"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/users"
)

// spec: cs/setTyping
func (a *API) typing(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	me, err := selfVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Typing  *bool `json:"typing"`
		Timeout int64 `json:"timeout"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.Typing == nil {
		return nil, matrix.MissingParam("typing is missing.")
	}
	if err := a.mustBeJoined(r, room); err != nil {
		return nil, err
	}
	timeout := 30 * time.Second
	if req.Timeout > 0 {
		timeout = time.Duration(min(req.Timeout, 1<<32)) * time.Millisecond
	}
	return nil, a.Feed.SetTyping(r.Ctx(), room, me, *req.Typing, timeout)
}

func (a *API) mustBeJoined(r *endpoint.Request, room matrix.RoomID) error {
	m, err := a.Rooms.MembershipOf(r.Ctx(), room, requester(r).UserID)
	if err != nil {
		return err
	}
	if m.Membership != "join" {
		return matrix.Forbidden("You are not in this room.")
	}
	return nil
}

// spec: cs/postReceipt
func (a *API) receipt(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEventVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		ThreadID any `json:"thread_id"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	kind := r.Var("receiptType")
	switch kind {
	case users.ReceiptRead, users.ReceiptReadPrivate, users.ReceiptFullyRead:
	default:
		return nil, matrix.InvalidParam("Unknown receipt type %q.", kind)
	}
	thread, ok := req.ThreadID.(string)
	if req.ThreadID != nil {
		if !ok || thread == "" {
			return nil, matrix.InvalidParam("thread_id must be a string that is not empty.")
		}
		if kind == users.ReceiptFullyRead {
			return nil, matrix.InvalidParam("The fully-read marker has no thread.")
		}
	}
	if err := a.mustBeJoined(r, room); err != nil {
		return nil, err
	}
	return nil, a.setReceipts(r, room, map[string]matrix.EventID{kind: id}, thread)
}

func (a *API) setReceipts(r *endpoint.Request, room matrix.RoomID, marks map[string]matrix.EventID, thread string) error {
	me := requester(r).UserID
	var list []users.Receipt
	for kind, id := range marks {
		ev, err := a.Rooms.Event(r.Ctx(), id)
		if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
			return err
		}
		if err != nil || ev.RoomID() != room {
			return matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "There is no event %s in this room.", id)
		}
		if thread != "" {
			if in, err := a.Rooms.InThread(r.Ctx(), ev, thread); err != nil {
				return err
			} else if !in {
				return matrix.InvalidParam("The event %s is not in the thread %s.", id, thread)
			}
		}
		list = append(list, users.Receipt{
			Room: room, User: me, Type: kind, EventID: id, Thread: thread,
			At: matrix.Timestamp(time.Now().UnixMilli()), Order: int64(ev.Pos),
		})
	}
	return a.Users.Receipts.Set(r.Ctx(), list...)
}

// spec: cs/setReadMarker
func (a *API) readMarkers(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		FullyRead   *string `json:"m.fully_read"`
		Read        *string `json:"m.read"`
		ReadPrivate *string `json:"m.read.private"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	if err := a.mustBeJoined(r, room); err != nil {
		return nil, err
	}
	marks := make(map[string]matrix.EventID)
	for kind, id := range map[string]*string{
		users.ReceiptFullyRead: req.FullyRead, users.ReceiptRead: req.Read, users.ReceiptReadPrivate: req.ReadPrivate,
	} {
		if id == nil {
			continue
		}
		if marks[kind], err = matrix.ParseEventID(*id); err != nil {
			return nil, matrix.InvalidParam("%s must be an event ID.", kind)
		}
	}
	return nil, a.setReceipts(r, room, marks, "")
}
