package api

import (
	"net/http"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
)

func aliasVar(r *endpoint.Request) (matrix.RoomAlias, error) {
	alias, err := matrix.ParseRoomAlias(r.Var("roomAlias"))
	if err != nil {
		return "", matrix.InvalidParam("%q is not a room alias.", r.Var("roomAlias"))
	}
	return alias, nil
}

// spec: cs/getLocalAliases
func (a *API) localAliases(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	list, err := a.Rooms.Aliases(r.Ctx(), requester(r).UserID, room)
	if err != nil {
		return nil, err
	}
	return map[string]any{"aliases": list}, nil
}

// spec: cs/setRoomAlias
func (a *API) setAlias(r *endpoint.Request) (any, error) {
	alias, err := aliasVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		RoomID string `json:"room_id"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	room, err := matrix.ParseRoomID(req.RoomID)
	if err != nil {
		return nil, matrix.InvalidParam("room_id must be a room ID.")
	}
	if err := a.checkAlias(r, alias); err != nil {
		return nil, err
	}
	return nil, a.Rooms.CreateAlias(r.Ctx(), requester(r).UserID, alias, room, serviceOf(r) != nil)
}

// spec: cs/getRoomIdByAlias
func (a *API) resolveAlias(r *endpoint.Request) (any, error) {
	alias, err := aliasVar(r)
	if err != nil {
		return nil, err
	}
	room, servers, err := a.Rooms.ResolveAlias(r.Ctx(), alias)
	if err != nil {
		return nil, err
	}
	return map[string]any{"room_id": room, "servers": servers}, nil
}

// spec: cs/deleteRoomAlias
func (a *API) deleteAlias(r *endpoint.Request) (any, error) {
	alias, err := aliasVar(r)
	if err != nil {
		return nil, err
	}
	who := requester(r)
	if err := a.checkAlias(r, alias); err != nil && !(who.Admin && serviceOf(r) == nil) {
		return nil, err
	}
	return nil, a.Rooms.DeleteAlias(r.Ctx(), who.UserID, alias, who.Admin || serviceOf(r) != nil)
}

// spec: cs/getRoomVisibilityOnDirectory
func (a *API) published(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	public, err := a.Rooms.Published(r.Ctx(), room)
	if err != nil {
		return nil, err
	}
	if public {
		return map[string]string{"visibility": "public"}, nil
	}
	return map[string]string{"visibility": "private"}, nil
}

// spec: cs/setRoomVisibilityOnDirectory
func (a *API) setPublished(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Visibility string `json:"visibility"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	switch req.Visibility {
	case "", "public", "private":
	default:
		return nil, matrix.BadJSON("visibility must be public or private.")
	}
	who := requester(r)
	return nil, a.Rooms.SetPublished(r.Ctx(), who.UserID, room, req.Visibility != "private", who.Admin)
}

// publicRoomsQuery is the body of a directory query. spec: cs/queryPublicRooms
type publicRoomsQuery struct {
	Limit  int    `json:"limit"`
	Since  string `json:"since"`
	Filter struct {
		Term      string    `json:"generic_search_term"`
		RoomTypes []*string `json:"room_types"`
	} `json:"filter"`
	AllNetworks bool   `json:"include_all_networks"`
	Network     string `json:"third_party_instance_id"`
}

// spec: cs/getPublicRooms, cs/queryPublicRooms
func (a *API) publicRooms(r *endpoint.Request) (any, error) {
	var q publicRoomsQuery
	if r.Method == http.MethodPost {
		if err := r.DecodeOptional(&q); err != nil {
			return nil, err
		}
	} else {
		limit, err := r.QueryInt("limit", 0)
		if err != nil {
			return nil, err
		}
		q.Limit, q.Since = int(max(-1, min(limit, maxPage))), r.Query("since")
	}
	if q.Limit < 0 {
		return nil, matrix.InvalidParam("limit must not be negative.")
	}
	q.Limit = min(q.Limit, maxPage)
	req := rooms.PublicRoomsRequest{Limit: q.Limit, Since: q.Since, Search: q.Filter.Term, RoomTypes: q.Filter.RoomTypes, AllNetworks: q.AllNetworks, Network: q.Network}
	if name := r.Query("server"); name != "" {
		server, err := matrix.ParseServerName(name)
		if err != nil {
			return nil, matrix.InvalidParam("%q is not a server name.", name)
		}
		if server != a.ServerName {
			if a.Remote == nil {
				return nil, matrix.Forbidden("Federation is off on this server.")
			}
			return a.Remote.PublicRooms(r.Ctx(), server, req)
		}
	}
	return a.Rooms.PublicRooms(r.Ctx(), req)
}
