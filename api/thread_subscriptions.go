package api

import (
	"math"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// threadRoot is the root of the thread in the path, if the user sees it.
func (a *API) threadRoot(r *endpoint.Request) (*rooms.Event, error) {
	room, id, err := roomAndEventVar(r)
	if err != nil {
		return nil, err
	}
	return a.Rooms.VisibleEvent(r.Ctx(), requester(r).UserID, room, id)
}

// spec: MSC4306
func (a *API) threadSubscription(r *endpoint.Request) (any, error) {
	root, err := a.threadRoot(r)
	if err != nil {
		return nil, err
	}
	s, err := a.Users.Threads.Get(r.Ctx(), requester(r).UserID, root.RoomID(), root.ID())
	if err != nil {
		return nil, err
	}
	return map[string]bool{"automatic": s.Automatic}, nil
}

// spec: MSC4306
func (a *API) subscribeThread(r *endpoint.Request) (any, error) {
	var req struct {
		Automatic *matrix.EventID `json:"automatic"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	root, err := a.threadRoot(r)
	if err != nil {
		return nil, err
	}
	me := requester(r).UserID
	var cause *storage.Position
	if req.Automatic != nil {
		elsewhere := matrix.Errorf(400, "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD", "The event is not in this thread.")
		ev, err := a.Rooms.VisibleEvent(r.Ctx(), me, root.RoomID(), *req.Automatic)
		if matrix.HasCode(err, "M_NOT_FOUND") {
			return nil, elsewhere
		}
		if err != nil {
			return nil, err
		}
		thread, err := a.Rooms.ThreadOf(r.Ctx(), ev)
		if err != nil {
			return nil, err
		}
		if thread != root.ID() {
			return nil, elsewhere
		}
		cause = &ev.Pos
	}
	return nil, a.Users.Threads.Subscribe(r.Ctx(), me, root.RoomID(), root.ID(), cause)
}

// spec: MSC4306
func (a *API) unsubscribeThread(r *endpoint.Request) (any, error) {
	root, err := a.threadRoot(r)
	if err != nil {
		return nil, err
	}
	return nil, a.Users.Threads.Unsubscribe(r.Ctx(), requester(r).UserID, root.RoomID(), root.ID())
}

// threadSubscriptions pages back through changes that did not fit into a response of sliding sync. spec: MSC4308
func (a *API) threadSubscriptions(r *endpoint.Request) (any, error) {
	if r.Query("dir") != "b" {
		return nil, matrix.InvalidParam("dir must be b.")
	}
	limit, err := r.QueryInt("limit", 100)
	if err != nil {
		return nil, err
	}
	if limit < 1 {
		return nil, matrix.InvalidParam("limit must be positive.")
	}
	newest, oldest := storage.Position(math.MaxInt64), storage.Position(0)
	for name, place := range map[string]*storage.Position{"from": &newest, "to": &oldest} {
		if s := r.Query(name); s != "" {
			if *place, err = feed.ParsePosition(s); err != nil {
				return nil, err
			}
		}
	}
	changes, err := a.Feed.ThreadChanges(r.Ctx(), requester(r).UserID, oldest, newest, int(min(limit, feed.MaxThreadChanges)))
	if err != nil {
		return nil, err
	}
	return struct {
		Subscribed   map[matrix.RoomID]map[matrix.EventID]feed.ThreadSubscription   `json:"subscribed,omitempty"`
		Unsubscribed map[matrix.RoomID]map[matrix.EventID]feed.ThreadUnsubscription `json:"unsubscribed,omitempty"`
		End          string                                                         `json:"end,omitempty"`
	}{changes.Subscribed, changes.Unsubscribed, changes.PrevBatch}, nil
}
