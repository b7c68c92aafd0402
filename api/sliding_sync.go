package api

import (
	"hanok/feed"
	"hanok/internal/endpoint"
)

// spec: MSC4186
func (a *API) slidingSync(r *endpoint.Request) (any, error) {
	return a.slidingSyncIn(feed.Stable, r)
}

// The dialect from before MSC4186 was accepted, in which pos, timeout and set_presence are parameters of the query. Some
// clients put them into the body there too. spec: MSC4186#unstable-prefix
func (a *API) unstableSlidingSync(r *endpoint.Request) (any, error) {
	return a.slidingSyncIn(feed.Unstable, r)
}

func (a *API) slidingSyncIn(dialect feed.Dialect, r *endpoint.Request) (any, error) {
	who := requester(r)
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	req, err := feed.ParseSlidingRequest(dialect, who.UserID, body)
	if err != nil {
		return nil, err
	}
	r.DropBody()
	req.Device = who.DeviceID
	if dialect == feed.Unstable {
		if r.HasQuery("pos") {
			req.Pos = r.Query("pos")
		}
		if r.HasQuery("set_presence") {
			req.SetPresence = r.Query("set_presence")
		}
		if r.HasQuery("timeout") {
			timeout, err := r.QueryInt("timeout", 0)
			if err != nil {
				return nil, err
			}
			req.Timeout = feed.PollTimeout(timeout)
		}
	}
	if err := a.active(r, req.SetPresence); err != nil {
		return nil, err
	}
	answer, err := a.Feed.SlidingSync(r.Ctx(), req)
	if err != nil {
		return nil, err
	}
	return endpoint.Raw(answer), nil
}
