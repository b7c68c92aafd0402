package api

import (
	"io"
	"strings"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// spec: cs/sync
func (a *API) sync(r *endpoint.Request) (any, error) {
	who := requester(r)
	req := feed.Request{User: who.UserID, Device: who.DeviceID, Filter: &feed.Filter{}}
	var err error
	if f := r.Query("filter"); f != "" {
		raw := []byte(f)
		if !strings.HasPrefix(f, "{") {
			if raw, err = a.Users.Filters.Get(r.Ctx(), who.UserID, f); err != nil {
				return nil, err
			}
		}
		if req.Filter, err = feed.ParseFilter(raw); err != nil {
			return nil, err
		}
	}
	if s := r.Query("since"); s != "" {
		if req.Since, err = feed.ParseToken(s); err != nil {
			return nil, err
		}
	}
	if req.FullState, err = r.QueryBool("full_state", false); err != nil {
		return nil, err
	}
	if req.StateAfter, err = r.QueryBool("use_state_after", false); err != nil {
		return nil, err
	}
	if !req.StateAfter {
		if req.StateAfter, err = r.QueryBool("org.matrix.msc4222.use_state_after", false); err != nil {
			return nil, err
		}
		req.UnstableStateAfter = req.StateAfter
	}
	timeout, err := r.QueryInt("timeout", 0)
	if err != nil {
		return nil, err
	}
	req.Timeout = feed.PollTimeout(timeout)
	if err := a.active(r, r.Query("set_presence")); err != nil {
		return nil, err
	}
	return endpoint.Stream(func(w io.Writer) error { return a.Feed.Sync(r.Ctx(), req, w) }), nil
}

// active says what a request for news says of its user, who is online if it says nothing. spec: cs/sync set_presence
func (a *API) active(r *endpoint.Request, presence string) error {
	switch presence {
	case "":
		presence = "online"
	case "offline":
		return nil
	case "online", "unavailable":
	default:
		return matrix.InvalidParam("set_presence must be offline, online or unavailable.")
	}
	a.Users.Presence.Active(r.Ctx(), requester(r).UserID, presence)
	return nil
}
