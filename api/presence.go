package api

import (
	"time"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// spec: cs/getPresence
func (a *API) presence(r *endpoint.Request) (any, error) {
	id, err := userVar(r)
	if err != nil {
		return nil, err
	}
	p := a.Users.Presence.Get(id)
	if me := requester(r).UserID; id != me {
		shared, err := a.Rooms.SharedRooms(r.Ctx(), me, id)
		if err != nil {
			return nil, err
		}
		servers, err := a.Rooms.PartialServers(r.Ctx(), me)
		if err != nil {
			return nil, err
		}
		if len(shared) == 0 && !p.AmongPartial(servers) {
			return nil, matrix.Forbidden("You can only see the presence of people you share a room with.")
		}
	}
	return feed.PresenceContent(p, time.Now()), nil
}

// spec: cs/setPresence
func (a *API) setPresence(r *endpoint.Request) (any, error) {
	me, err := selfVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Presence  string  `json:"presence"`
		StatusMsg *string `json:"status_msg"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	return nil, a.Users.Presence.Set(r.Ctx(), me, req.Presence, req.StatusMsg)
}
