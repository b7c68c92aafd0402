package api

import (
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/users"
)

// report reads the body that all reports share.
func report(r *endpoint.Request) (users.Report, error) {
	var req struct {
		Reason string `json:"reason"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return users.Report{}, err
	}
	return users.Report{Reporter: requester(r).UserID, Reason: req.Reason}, nil
}

// What does not exist is answered like what does, so that nobody finds out by reporting. spec: cs/reportRoom
func (a *API) reportRoom(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	rep, err := report(r)
	if err != nil {
		return nil, err
	}
	if _, err := a.Rooms.RoomNID(r.Ctx(), room); err != nil {
		return nil, unlessMissing(err)
	}
	rep.Room = room
	return nil, a.Users.Reports.Add(r.Ctx(), rep)
}

// spec: cs/reportEvent
func (a *API) reportEvent(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEventVar(r)
	if err != nil {
		return nil, err
	}
	rep, err := report(r)
	if err != nil {
		return nil, err
	}
	m, err := a.Rooms.MembershipOf(r.Ctx(), room, rep.Reporter)
	if err != nil {
		return nil, err
	}
	if m.Membership != "join" {
		return nil, matrix.NotFound("The event is not known, or you are not in its room.")
	}
	ev, err := a.Rooms.VisibleEvent(r.Ctx(), rep.Reporter, room, id)
	if err != nil {
		return nil, err
	}
	rep.Room, rep.Event, rep.User = room, id, ev.Sender()
	return nil, a.Users.Reports.Add(r.Ctx(), rep)
}

// spec: cs/reportUser
func (a *API) reportUser(r *endpoint.Request) (any, error) {
	id, err := userVar(r)
	if err != nil {
		return nil, err
	}
	rep, err := report(r)
	if err != nil {
		return nil, err
	}
	if id.Server() == a.ServerName {
		if _, err := a.Users.Accounts.Get(r.Ctx(), id); err != nil {
			return nil, unlessMissing(err)
		}
	}
	rep.User = id
	return nil, a.Users.Reports.Add(r.Ctx(), rep)
}

// unlessMissing drops M_NOT_FOUND.
func unlessMissing(err error) error {
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return nil
	}
	return err
}
