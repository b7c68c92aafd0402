package api

import (
	"context"
	"slices"
	"strings"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/users"
)

// Bounds of one search.
const (
	directoryLimit   = 50   // results
	directoryPage    = 100  // local matches looked at together
	directoryTried   = 1000 // local matches looked at
	directoryRemotes = 500  // remote users whose names are looked at
	directoryRooms   = 200  // rooms of one user looked at
)

// spec: cs/searchUserDirectory
func (a *API) userDirectory(r *endpoint.Request) (any, error) {
	var req struct {
		SearchTerm *string `json:"search_term"`
		Limit      *int    `json:"limit"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.SearchTerm == nil {
		return nil, matrix.MissingParam("search_term is missing.")
	}
	limit := 10
	if req.Limit != nil {
		limit = *req.Limit
	}
	if limit < 1 {
		return nil, matrix.InvalidParam("limit must be positive.")
	}
	// One more than asked for tells whether the list is cut.
	limit = min(limit, directoryLimit)
	s := directorySearch{api: a, term: *req.SearchTerm, limit: limit + 1, public: map[matrix.RoomID]bool{}}
	if err := s.run(r.Ctx(), requester(r).UserID); err != nil {
		return nil, err
	}
	return map[string]any{"results": s.results[:min(len(s.results), limit)], "limited": len(s.results) > limit}, nil
}

// directorySearch finds users who are visible to the one who searches: those who share a
// room with them, and those in a room that anybody can join or read.
type directorySearch struct {
	api     *API
	term    string
	limit   int
	results []users.ProfileMatch
	public  map[matrix.RoomID]bool // what is known of rooms
}

func (s *directorySearch) run(ctx context.Context, me matrix.UserID) error {
	sharing, err := s.api.Rooms.Sharing(ctx, me)
	if err != nil {
		return err
	}
	s.results = []users.ProfileMatch{}
	if err := s.local(ctx, me, sharing); err != nil {
		return err
	}
	return s.remote(ctx, me, sharing)
}

// local adds users of this server.
func (s *directorySearch) local(ctx context.Context, me matrix.UserID, sharing []matrix.UserID) error {
	shares := make(map[matrix.UserID]bool, len(sharing))
	for _, u := range sharing {
		shares[u] = true
	}
	after := matrix.UserID("")
	for tried := 0; tried < directoryTried && len(s.results) < s.limit; tried += directoryPage {
		page, err := s.api.Users.Profiles.Search(ctx, s.term, after, directoryPage)
		if err != nil {
			return err
		}
		for _, match := range page {
			after = match.UserID
			visible := match.UserID != me && shares[match.UserID]
			if !visible {
				if visible, err = s.inPublicRoom(ctx, match.UserID); err != nil {
					return err
				}
			}
			if visible && len(s.results) < s.limit {
				s.results = append(s.results, match)
			}
		}
		if len(page) < directoryPage {
			break
		}
	}
	return nil
}

// inPublicRoom reports whether a user is joined to a room that is visible to everybody.
func (s *directorySearch) inPublicRoom(ctx context.Context, user matrix.UserID) (bool, error) {
	joined, err := s.api.Rooms.JoinedRooms(ctx, user)
	if err != nil {
		return false, err
	}
	for _, room := range joined[:min(len(joined), directoryRooms)] {
		public, known := s.public[room]
		if !known {
			if public, err = s.isPublic(ctx, room); err != nil {
				return false, err
			}
			s.public[room] = public
		}
		if public {
			return true, nil
		}
	}
	return false, nil
}

func (s *directorySearch) isPublic(ctx context.Context, room matrix.RoomID) (bool, error) {
	snapshot, err := s.api.Rooms.Snapshot(ctx, room)
	if err != nil {
		return false, err
	}
	events, err := snapshot.State.Events(ctx, matrix.StateKey{Type: "m.room.join_rules"}, matrix.StateKey{Type: "m.room.history_visibility"})
	if err != nil {
		return false, err
	}
	for i, open := range []struct{ member, value string }{{"join_rule", "public"}, {"history_visibility", "world_readable"}} {
		if events[i] == nil {
			continue
		}
		if value, _ := canonicaljson.GetString(events[i].Content(), open.member); value == open.value {
			return true, nil
		}
	}
	return false, nil
}

// remote adds users of other servers who share a room, found by their ID or their name in that room.
func (s *directorySearch) remote(ctx context.Context, me matrix.UserID, sharing []matrix.UserID) error {
	term := strings.ToLower(s.term)
	if term == "" {
		return nil
	}
	slices.Sort(sharing)
	tried := 0
	for _, user := range sharing {
		if user.Server() == s.api.ServerName || len(s.results) >= s.limit {
			continue
		}
		if tried++; tried > directoryRemotes {
			break
		}
		shared, err := s.api.Rooms.SharedRooms(ctx, me, user)
		if err != nil {
			return err
		}
		if len(shared) == 0 {
			continue // left meanwhile
		}
		snapshot, err := s.api.Rooms.Snapshot(ctx, shared[0])
		if err != nil {
			return err
		}
		member, err := snapshot.State.Event(ctx, "m.room.member", string(user))
		if err != nil {
			return err
		}
		match := users.ProfileMatch{UserID: user}
		if member != nil {
			match.DisplayName, _ = canonicaljson.GetString(member.Content(), "displayname")
			match.AvatarURL, _ = canonicaljson.GetString(member.Content(), "avatar_url")
		}
		if strings.Contains(strings.ToLower(string(user)), term) || strings.Contains(strings.ToLower(match.DisplayName), term) {
			s.results = append(s.results, match)
		}
	}
	return nil
}
