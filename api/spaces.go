package api

import (
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
)

// spec: cs/getSpaceHierarchy
func (a *API) hierarchy(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	req := rooms.SpaceRequest{Room: room, User: requester(r).UserID, From: r.Query("from")}
	if req.Limit, err = positiveVar(r, maxPage); err != nil {
		return nil, err
	}
	if r.HasQuery("max_depth") {
		depth, err := r.QueryInt("max_depth", 0)
		if err != nil {
			return nil, err
		}
		if depth < 0 {
			return nil, matrix.InvalidParam("max_depth must not be negative.")
		}
		n := int(min(depth, maxPage))
		req.MaxDepth = &n
	}
	if r.HasQuery("suggested_only") {
		only, err := r.QueryBool("suggested_only", false)
		if err != nil {
			return nil, err
		}
		req.SuggestedOnly = &only
	}
	return a.Rooms.Space(r.Ctx(), req)
}

// spec: cs/getRoomSummary
func (a *API) roomSummary(r *endpoint.Request) (any, error) {
	var req rooms.SummaryRequest
	if who := requester(r); who != nil {
		req.User = who.UserID
	}
	var err error
	if req.Via, err = via(r); err != nil {
		return nil, err
	}
	name := r.Var("roomIdOrAlias")
	if alias, err := matrix.ParseRoomAlias(name); err == nil {
		var servers []matrix.ServerName
		if alias.Server() != a.ServerName && req.User == "" {
			return nil, matrix.NotFound("The room is not known, or you may not see it.")
		}
		if req.Room, servers, err = a.Rooms.ResolveAlias(r.Ctx(), alias); err != nil {
			return nil, err
		}
		req.Via = append(req.Via, servers...)
	} else if req.Room, err = matrix.ParseRoomID(name); err != nil {
		return nil, matrix.InvalidParam("%q is neither a room ID nor an alias.", name)
	}
	details, err := a.Rooms.RoomDetails(r.Ctx(), req)
	if err != nil {
		return nil, err
	}
	out := struct {
		*rooms.RoomDetails
		Membership string `json:"membership,omitempty"`
	}{RoomDetails: details}
	if req.User != "" {
		m, err := a.Rooms.MembershipOf(r.Ctx(), req.Room, req.User)
		if err != nil {
			return nil, err
		}
		out.Membership = m.Membership
		if m.Membership == "" {
			out.Membership = "leave"
		}
	}
	return out, nil
}

// spec: cs/getEventByTimestamp
func (a *API) timestampToEvent(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	if !r.HasQuery("ts") || !r.HasQuery("dir") {
		return nil, matrix.MissingParam("ts and dir are required.")
	}
	ts, err := r.QueryInt("ts", 0)
	if err != nil {
		return nil, err
	}
	backward, err := dirVar(r, "")
	if err != nil {
		return nil, err
	}
	ev, err := a.Rooms.EventByTime(r.Ctx(), requester(r).UserID, room, matrix.Timestamp(ts), backward)
	if err != nil {
		return nil, err
	}
	return struct {
		ID matrix.EventID   `json:"event_id"`
		TS matrix.Timestamp `json:"origin_server_ts"`
	}{ev.ID(), ev.OriginServerTS()}, nil
}
