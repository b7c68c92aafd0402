package api

import (
	"hanok/feed"
	"hanok/internal/endpoint"
)

// spec: cs/defineFilter
func (a *API) defineFilter(r *endpoint.Request) (any, error) {
	me, err := selfVar(r)
	if err != nil {
		return nil, err
	}
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	if _, err := feed.ParseFilter(body); err != nil {
		return nil, err
	}
	id, err := a.Users.Filters.Create(r.Ctx(), me, body)
	if err != nil {
		return nil, err
	}
	return map[string]string{"filter_id": id}, nil
}

// spec: cs/getFilter
func (a *API) getFilter(r *endpoint.Request) (any, error) {
	me, err := selfVar(r)
	if err != nil {
		return nil, err
	}
	f, err := a.Users.Filters.Get(r.Ctx(), me, r.Var("filterId"))
	return endpoint.Raw(f), err
}
