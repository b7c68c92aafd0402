package api

import (
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// directoryLimit bounds the results of one search.
const directoryLimit = 50

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
	found, limited, err := a.Users.Directory.Search(r.Ctx(), requester(r).UserID, *req.SearchTerm, min(limit, directoryLimit))
	if err != nil {
		return nil, err
	}
	return map[string]any{"results": found, "limited": limited}, nil
}
