package api

import (
	"io"
	"strings"
	"time"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// maxPoll bounds how long a client may wait for news.
const maxPoll = 5 * time.Minute

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
	req.Timeout = min(time.Duration(max(0, min(timeout, 1<<40)))*time.Millisecond, maxPoll)
	switch p := r.Query("set_presence"); p {
	case "":
		a.Users.Presence.Active(r.Ctx(), who.UserID, "online")
	case "offline":
	case "online", "unavailable":
		a.Users.Presence.Active(r.Ctx(), who.UserID, p)
	default:
		return nil, matrix.InvalidParam("set_presence must be offline, online or unavailable.")
	}
	return endpoint.Stream(func(w io.Writer) error { return a.Feed.Sync(r.Ctx(), req, w) }), nil
}
