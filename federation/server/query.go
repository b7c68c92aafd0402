package server

import (
	"context"
	stdjson "encoding/json"
	"net/http"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// spec: ss/getVersion
func (s *Server) getVersion(*endpoint.Request) (any, error) {
	type software struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	return map[string]software{"server": {"Hanok", s.opts.Version}}, nil
}

// spec: ss/exchangeOpenIdToken
func (s *Server) exchangeOpenIDToken(r *endpoint.Request) (any, error) {
	token := r.Query("access_token")
	if token == "" {
		return nil, matrix.Errorf(http.StatusUnauthorized, "M_MISSING_TOKEN", "access_token is missing.")
	}
	user, err := s.opts.Users.Sessions.OpenIDUser(r.Ctx(), token)
	if err != nil {
		return nil, err
	}
	return map[string]matrix.UserID{"sub": user}, nil
}

// spec: ss/queryRoomDirectory
func (s *Server) queryDirectory(r *endpoint.Request) (any, error) {
	text := r.Query("room_alias")
	if text == "" {
		return nil, matrix.MissingParam("room_alias is missing.")
	}
	alias, err := matrix.ParseRoomAlias(text)
	if err != nil {
		return nil, err
	}
	if alias.Server() != s.opts.ServerName {
		return nil, matrix.InvalidParam("%s is not an alias of this server.", alias)
	}
	room, servers, err := s.opts.Rooms.ResolveLocalAlias(r.Ctx(), alias)
	if err == nil && !s.opts.Rooms.Federates(room) {
		return nil, matrix.NotFound("There is no such alias.")
	}
	return struct {
		Room    matrix.RoomID       `json:"room_id"`
		Servers []matrix.ServerName `json:"servers"`
	}{room, servers}, err
}

// spec: ss/queryProfile
func (s *Server) queryProfile(r *endpoint.Request) (any, error) {
	if !r.HasQuery("user_id") {
		return nil, matrix.MissingParam("user_id is missing.")
	}
	user, err := s.localUser(r.Ctx(), r.Query("user_id"))
	if err != nil {
		return nil, err
	}
	profile, err := s.opts.Users.Profiles.Get(r.Ctx(), user)
	field := r.Query("field")
	if err != nil || field == "" {
		return profile, err
	}
	value, set := profile[field]
	switch {
	case set:
		return map[string]stdjson.RawMessage{field: value}, nil
	case field == users.FieldDisplayName || field == users.FieldAvatarURL:
		return nil, nil // everybody has these, if only empty: servers take a 404 for a user who does not exist
	}
	return nil, matrix.NotFound("The user's profile has no such field.")
}

// spec: ss/getPublicRooms
func (s *Server) getPublicRooms(r *endpoint.Request) (any, error) {
	limit, err := r.QueryInt("limit", 0)
	if err != nil {
		return nil, err
	}
	all, err := r.QueryBool("include_all_networks", false)
	if err != nil {
		return nil, err
	}
	return s.opts.Rooms.PublicRooms(r.Ctx(), rooms.PublicRoomsRequest{
		Limit: pageSize(limit), Since: r.Query("since"), AllNetworks: all, Network: r.Query("third_party_instance_id"), Server: true,
	})
}

// spec: ss/queryPublicRooms
func (s *Server) queryPublicRooms(r *endpoint.Request) (any, error) {
	var body struct {
		Limit  int64  `json:"limit"`
		Since  string `json:"since"`
		Filter struct {
			Search    string    `json:"generic_search_term"`
			RoomTypes []*string `json:"room_types"`
		} `json:"filter"`
		AllNetworks bool   `json:"include_all_networks"`
		Network     string `json:"third_party_instance_id"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	return s.opts.Rooms.PublicRooms(r.Ctx(), rooms.PublicRoomsRequest{
		Limit: pageSize(body.Limit), Since: body.Since, Search: body.Filter.Search, RoomTypes: body.Filter.RoomTypes,
		AllNetworks: body.AllNetworks, Network: body.Network, Server: true,
	})
}

// pageSize bounds a page of the directory; 0 and less leave the choice to us.
func pageSize(limit int64) int { return int(min(max(limit, 0), 500)) }

// spec: ss/getUserDevices
func (s *Server) getUserDevices(r *endpoint.Request) (any, error) {
	user, err := s.localUser(r.Ctx(), r.Var("userId"))
	if err != nil {
		return nil, err
	}
	return s.opts.Users.DeviceLists.List(r.Ctx(), user)
}

// spec: ss/queryUserEncryptionKeys
func (s *Server) queryKeys(r *endpoint.Request) (any, error) {
	var body struct {
		Devices map[matrix.UserID][]matrix.DeviceID `json:"device_keys"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Devices == nil {
		return nil, matrix.MissingParam("device_keys is missing.")
	}
	if err := withoutLocal(r.Ctx(), s, body.Devices); err != nil {
		return nil, err
	}
	found, err := s.opts.Users.Keys.QueryLocal(r.Ctx(), body.Devices)
	if err != nil {
		return nil, err
	}
	// Without what is for clients: there is nobody further whom we could have failed to ask.
	return struct {
		DeviceKeys      map[matrix.UserID]map[matrix.DeviceID]stdjson.RawMessage `json:"device_keys"`
		MasterKeys      map[matrix.UserID]stdjson.RawMessage                     `json:"master_keys"`
		SelfSigningKeys map[matrix.UserID]stdjson.RawMessage                     `json:"self_signing_keys"`
	}{found.DeviceKeys, found.MasterKeys, found.SelfSigningKeys}, nil
}

// spec: ss/claimUserEncryptionKeys
func (s *Server) claimKeys(r *endpoint.Request) (any, error) {
	var body struct {
		Keys users.Claims `json:"one_time_keys"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Keys == nil {
		return nil, matrix.MissingParam("one_time_keys is missing.")
	}
	if err := withoutLocal(r.Ctx(), s, body.Keys); err != nil {
		return nil, err
	}
	claimed, err := s.opts.Users.Keys.ClaimFor(r.Ctx(), origin(r), body.Keys)
	return map[string]users.ClaimedKeys{"one_time_keys": claimed}, err
}

// maxAsked bounds how many users one request may ask about.
const maxAsked = 10_000

// withoutLocal leaves out of a question about many users those who are kept to this server.
func withoutLocal[V any](ctx context.Context, s *Server, asked map[matrix.UserID]V) error {
	if len(asked) > maxAsked {
		return matrix.TooLarge("Too many users are asked for at once.")
	}
	for user := range asked {
		if user.Server() != s.opts.ServerName {
			continue
		}
		err := s.opts.Users.Accounts.CheckFederates(ctx, user)
		if matrix.HasCode(err, "M_FORBIDDEN") {
			delete(asked, user)
		} else if err != nil {
			return err
		}
	}
	return nil
}
