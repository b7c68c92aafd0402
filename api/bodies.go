package api

import (
	"hanok/internal/budget"
	"hanok/internal/endpoint"
)

// How many bytes of requests are kept at once, and how many of them one may have: a user, or an address without a session. Files are not
// counted, they go to disk as they come.
const (
	usersBodies, userBodies         = 128 << 20, 64 << 20 // a backup of keys may have 32 MB
	strangersBodies, strangerBodies = 32 << 20, 8 << 20
)

// bodies are what requests may take: those of users, and apart from them those of anybody.
type bodies struct{ users, strangers *budget.Budget }

func newBodies() bodies {
	return bodies{budget.New(usersBodies, userBodies), budget.New(strangersBodies, strangerBodies)}
}

// holdBody counts a body for who sends it. Who sends slowly keeps it as long as a body may come.
func (a *API) holdBody(r *endpoint.Request) *budget.Hold {
	if who := requester(r); who != nil {
		return a.bodies.users.Hold(string(who.UserID), nil)
	}
	return a.bodies.strangers.Hold(endpoint.Caller(r.Request, a.BehindProxy), nil)
}
