package api

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"hanok/appservice"
	"hanok/delayed"
	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/media"
	"hanok/notices"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// Options are what the API works with. All fields without a note are required.
type Options struct {
	ServerName matrix.ServerName
	// BaseURL is where clients reach this server, without a slash at the end: for .well-known. "" leaves it out.
	BaseURL  string
	DB       *storage.DB
	Rooms    *rooms.Engine
	Users    *users.Service
	Feed     *feed.Feed
	Media    *media.Repository
	Delayed  *delayed.Scheduler
	Notices  *notices.Notices     // nil: off
	Services *appservice.Services // nil: there are none
	Previews *media.Previews      // nil: off
	Remote   Remote               // nil: federation is off

	Registration Registration
	Encryption   string // the privacy mode: required, default or allowed
	// ForgetOnLeave: rooms are forgotten by whoever leaves them. spec: client-server-api#mforget_forced_upon_leave-capability
	ForgetOnLeave bool
	TURN          TURN
	ServeOpenID   bool     // the endpoint by which third parties learn who a user is: where there is no federation, whose it is
	LiveKit       []string // where clients get access to the media server of calls, the preferred one first
	RateLimits    bool
	BehindProxy   bool // take a client's address from X-Forwarded-For
	// Observe is told of every finished request; nil for none.
	Observe func(operation, method string, status int, elapsed time.Duration)
	Log     zerolog.Logger
}

// Registration says who may make an account.
type Registration struct {
	Open          bool // anybody, with m.login.dummy
	RequireToken  bool // those with a registration token
	Guests        bool
	SharedSecret  bool // the endpoint for scripts at /_synapse/admin/v1/register
	PasswordLogin bool
}

// TURN is what GET /voip/turnServer hands out. spec: cs/getTurnServer
type TURN struct {
	URIs               []string
	Secret             string // shared with the TURN server: credentials are made from it
	Username, Password string // fixed credentials, without a secret
	TTL                time.Duration
}

// Remote is what the client API asks of other servers directly.
type Remote interface {
	// PublicRooms asks for a page of another server's directory. spec: ss/queryPublicRooms
	PublicRooms(ctx context.Context, dest matrix.ServerName, r rooms.PublicRoomsRequest) (*rooms.PublicRooms, error)
}

// API serves clients.
type API struct {
	Options
	limits *limiter
	bodies bodies
}

// New makes the API.
func New(o Options) *API {
	return &API{Options: o, limits: newLimiter(time.Now), bodies: newBodies()}
}

// Handler serves everything under /_matrix/client, /_matrix/media, /_synapse/admin/v1/register and /.well-known.
func (a *API) Handler() http.Handler {
	o := endpoint.Options{CORS: true, Authorise: a.authorise, Hold: a.holdBody, Observe: a.Observe, Log: a.Log}
	if a.RateLimits {
		o.RateLimit = a.rateLimit
	}
	mux := endpoint.NewRouter(o)
	for _, table := range a.tables() {
		o.Prefix = table.prefix
		endpoint.Mount(mux, o, table.routes)
	}
	return mux
}

// Routes lists all endpoints with their whole paths, one for each version, for tests that try every one of them.
func (a *API) Routes() []endpoint.Route {
	var all []endpoint.Route
	for _, table := range a.tables() {
		all = append(all, endpoint.Expand(table.prefix, table.routes)...)
	}
	return all
}

// Who may call a route.
const (
	user  endpoint.Auth = iota + 1 // any session of a user, guests not
	guest                          // guests, too
	maybe                          // a token is used if there is one
	admin                          // administrators of the server
	// paused is user, also while the account is suspended. spec: client-server-api#account-suspension
	paused
	// service is an application service
	service
	// locked is user, also while the account is locked. spec: client-server-api#account-locking
	locked
)

// authorise finds the session. spec: client-server-api#using-access-tokens
func (a *API) authorise(r *endpoint.Request, rt endpoint.Route) error {
	token := accessToken(r)
	if token == "" {
		if rt.Auth == maybe {
			return nil
		}
		return errMissingToken
	}
	var identity any
	var who *users.Requester
	if by := a.Services.ByToken(token); by != nil {
		acting, err := a.actingAs(r, by)
		if err != nil {
			return err
		}
		identity, who = acting, &acting.Requester
	} else {
		session, err := a.Users.Sessions.Authenticate(r.Ctx(), token)
		if err != nil {
			return err
		}
		if rt.Auth == service {
			return matrix.Forbidden("Only application services can do this.")
		}
		identity, who = session, session
	}
	switch {
	case who.Locked && rt.Auth != locked:
		return matrix.Errorf(http.StatusUnauthorized, "M_USER_LOCKED", "This account has been locked. Ask your administrator.").
			With("soft_logout", true)
	case who.Kind == users.KindGuest && rt.Auth != guest && rt.Auth != maybe && rt.Auth != locked:
		return matrix.Errorf(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guests cannot do this. Register an account first.")
	case rt.Auth == admin && !who.Admin:
		return matrix.Forbidden("Only administrators of this server can do this.")
	case who.Suspended && (rt.Auth == user || rt.Auth == admin) && r.Method != http.MethodGet:
		return matrix.Errorf(http.StatusForbidden, "M_USER_SUSPENDED", "This account is suspended. Ask your administrator.")
	}
	r.SetIdentity(identity)
	a.Users.Devices.Seen(who.UserID, who.DeviceID, a.remoteAddress(r), r.UserAgent())
	return nil
}

func accessToken(r *endpoint.Request) string {
	if h := r.Header.Get("Authorization"); h != "" {
		scheme, token, _ := strings.Cut(h, " ")
		if strings.EqualFold(scheme, "Bearer") {
			return strings.TrimSpace(token)
		}
		return ""
	}
	return r.Query("access_token")
}

func (a *API) remoteAddress(r *endpoint.Request) string { return r.RemoteAddress(a.BehindProxy) }

// requester is who makes the request; only for routes that need a token.
func requester(r *endpoint.Request) *users.Requester {
	switch who := r.Identity().(type) {
	case *users.Requester:
		return who
	case *actingService:
		return &who.Requester
	}
	return nil
}

// The identifiers in paths, parsed.

func roomVar(r *endpoint.Request) (matrix.RoomID, error) {
	id, err := matrix.ParseRoomID(r.Var("roomId"))
	if err != nil {
		return "", matrix.InvalidParam("%q is not a room ID.", r.Var("roomId"))
	}
	return id, nil
}

func roomAndEventVar(r *endpoint.Request) (matrix.RoomID, matrix.EventID, error) {
	room, err := roomVar(r)
	if err != nil {
		return "", "", err
	}
	id, err := eventVar(r)
	return room, id, err
}

func eventVar(r *endpoint.Request) (matrix.EventID, error) {
	id, err := matrix.ParseEventID(r.Var("eventId"))
	if err != nil {
		return "", matrix.InvalidParam("%q is not an event ID.", r.Var("eventId"))
	}
	return id, nil
}

func userVar(r *endpoint.Request) (matrix.UserID, error) {
	return parseUser(r.Var("userId"))
}

func parseUser(s string) (matrix.UserID, error) {
	id, err := matrix.ParseUserID(s)
	if err != nil {
		return "", matrix.InvalidParam("%q is not a user ID.", s)
	}
	return id, nil
}

// selfVar is a user in the path who must be the requester.
func selfVar(r *endpoint.Request) (matrix.UserID, error) {
	id, err := userVar(r)
	if err != nil {
		return "", err
	}
	if id != requester(r).UserID {
		return "", matrix.Forbidden("You can only do this for yourself.")
	}
	return id, nil
}

// via are the servers to try for a room: the current and the older name of the parameter.
func via(r *endpoint.Request) ([]matrix.ServerName, error) {
	names := r.QueryAll("via")
	if len(names) == 0 {
		names = r.QueryAll("server_name")
	}
	const most = 50
	out := make([]matrix.ServerName, 0, min(len(names), most))
	for _, n := range names[:min(len(names), most)] {
		s, err := matrix.ParseServerName(n)
		if err != nil {
			return nil, matrix.InvalidParam("%q is not a server name.", n)
		}
		out = append(out, s)
	}
	return out, nil
}
