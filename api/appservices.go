package api

import (
	"errors"
	"net/http"
	"net/url"

	"hanok/appservice"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// actingService is an application service that acts as a user: the identity behind a request with an as_token.
type actingService struct {
	users.Requester
	service *appservice.Service
}

// actingAs finds as whom, and as which device, a service makes a request. M_FORBIDDEN for a user who is not its own or not registered, M_UNKNOWN_DEVICE.
// spec: application-service-api#identity-assertion
func (a *API) actingAs(r *endpoint.Request, service *appservice.Service) (*actingService, error) {
	user := service.Sender
	if name := r.Query("user_id"); name != "" {
		id, err := matrix.ParseUserID(name)
		if err != nil || !service.OwnsUser(id) {
			return nil, matrix.Forbidden("This application service cannot act as %q: no namespace of its registration has that user.", name)
		}
		user = id
	}
	account, err := a.Users.Accounts.Get(r.Ctx(), user)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.Forbidden("This application service has not registered %s.", user)
	}
	if err != nil {
		return nil, err
	}
	if account.Deactivated {
		return nil, matrix.Errorf(http.StatusForbidden, "M_USER_DEACTIVATED", "The account of %s has been deactivated.", user)
	}
	device := matrix.DeviceID(r.Query("device_id"))
	if device == "" {
		device = matrix.DeviceID(r.Query("org.matrix.msc3202.device_id")) // what services write that are older than v1.17
	}
	if device != "" {
		if _, err := a.Users.Devices.Get(r.Ctx(), user, device); matrix.HasCode(err, "M_NOT_FOUND") {
			return nil, matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN_DEVICE", "%s has no device %q.", user, device)
		} else if err != nil {
			return nil, err
		}
	}
	return &actingService{users.Requester{
		UserID: user, DeviceID: device, Kind: account.Kind, Admin: account.Admin, Locked: account.Locked, Suspended: account.Suspended,
	}, service}, nil
}

// serviceOf is the application service that makes the request; nil for anybody else.
func serviceOf(r *endpoint.Request) *appservice.Service {
	if who, ok := r.Identity().(*actingService); ok {
		return who.service
	}
	return nil
}

// appservice is the service whose as_token comes with a request to a route without authorisation.
// M_MISSING_TOKEN, M_UNKNOWN_TOKEN, or M_FORBIDDEN for the token of a user.
// spec: application-service-api#server-admin-style-permissions, client-server-api#appservice-login
func (a *API) appservice(r *endpoint.Request) (*appservice.Service, error) {
	token := accessToken(r)
	if token == "" {
		return nil, errMissingToken
	}
	if service := a.Services.ByToken(token); service != nil {
		return service, nil
	}
	if _, err := a.Users.Sessions.Authenticate(r.Ctx(), token); err != nil {
		return nil, err
	}
	return nil, matrix.Forbidden("The access token is not that of an application service.")
}

var (
	errMissingToken = matrix.Errorf(http.StatusUnauthorized, "M_MISSING_TOKEN", "Missing access token.")
	errOutside      = matrix.Errorf(http.StatusBadRequest, "M_EXCLUSIVE", "This is not in the namespaces of the application service.")
	errReserved     = matrix.Errorf(http.StatusBadRequest, "M_EXCLUSIVE", "This is reserved for an application service.")
)

// registerService makes an account for a service. spec: cs/register, application-service-api#server-admin-style-permissions
func (a *API) registerService(r *endpoint.Request, req registerRequest) (any, error) {
	service, err := a.appservice(r)
	if err != nil {
		return nil, err
	}
	if req.Username == nil {
		return nil, matrix.MissingParam("username is missing.")
	}
	// Services map names of other networks: what was once allowed in user IDs is good enough for them.
	user, err := a.Users.Accounts.UserID(*req.Username)
	switch {
	case err != nil:
		return nil, err
	case !service.OwnsUser(user):
		return nil, errOutside
	case a.Services.UserReserved(user, service):
		return nil, errReserved
	}
	return a.createAccount(r, users.Registration{Localpart: user.Localpart(), Kind: users.KindService, Historical: true}, req)
}

// loginService logs a service in as one of its users. spec: client-server-api#appservice-login
func (a *API) loginService(r *endpoint.Request, req loginRequest) (matrix.UserID, error) {
	service, err := a.appservice(r)
	if err != nil {
		return "", err
	}
	user, err := a.loginUser(r, req)
	if err != nil {
		return "", err
	}
	if !service.OwnsUser(user) {
		return "", errOutside
	}
	if _, err := a.Users.Accounts.Get(r.Ctx(), user); errors.Is(err, storage.ErrNotFound) {
		return "", matrix.Forbidden("This application service has not registered %s.", user)
	} else if err != nil {
		return "", err
	}
	return user, nil
}

// checkAlias refuses an alias that is another service's, and one that is not the service's own.
// spec: application-service-api#server-admin-style-permissions
func (a *API) checkAlias(r *endpoint.Request, alias matrix.RoomAlias) error {
	service := serviceOf(r)
	switch {
	case service != nil && !service.OwnsAlias(alias):
		return errOutside
	case a.Services.AliasReserved(alias, service):
		return errReserved
	}
	return nil
}

// massaged is the time that a service gives an event that it sends; 0 for now. spec: application-service-api#timestamp-massaging
func massaged(r *endpoint.Request) (matrix.Timestamp, error) {
	if serviceOf(r) == nil || !r.HasQuery("ts") {
		return 0, nil
	}
	ts, err := r.QueryInt("ts", -1)
	if err != nil {
		return 0, err
	}
	if ts <= 0 || ts >= 1<<53 {
		return 0, matrix.InvalidParam("ts must be a time in milliseconds since 1970.")
	}
	return matrix.Timestamp(ts), nil
}

// spec: cs/pingAppservice
func (a *API) pingAppservice(r *endpoint.Request) (any, error) {
	service := serviceOf(r)
	if service.ID != r.Var("appserviceId") {
		return nil, matrix.Forbidden("The access token is that of another application service.")
	}
	var req struct {
		Transaction string `json:"transaction_id"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	took, err := service.Ping(r.Ctx(), req.Transaction)
	if err != nil {
		return nil, err
	}
	return map[string]int64{"duration_ms": took.Milliseconds()}, nil
}

// spec: cs/updateAppserviceRoomDirectoryVisibility
func (a *API) setPublishedIn(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Visibility string `json:"visibility"`
	}
	public := false
	if r.Method != http.MethodDelete { // which services have long used for private
		if err := r.Decode(&req); err != nil {
			return nil, err
		}
		if req.Visibility != "public" && req.Visibility != "private" {
			return nil, matrix.BadJSON("visibility must be public or private.")
		}
		public = req.Visibility == "public"
	}
	return nil, a.Rooms.SetPublishedIn(r.Ctx(), serviceOf(r).Instance(r.Var("networkId")), room, public)
}

// spec: cs/getProtocols
func (a *API) thirdPartyProtocols(r *endpoint.Request) (any, error) {
	return a.Services.AllProtocols(r.Ctx()), nil
}

// spec: cs/getProtocolMetadata
func (a *API) thirdPartyProtocol(r *endpoint.Request) (any, error) {
	protocol := a.Services.Protocol(r.Ctx(), r.Var("protocol"))
	if protocol == nil {
		return nil, matrix.NotFound("This server knows no such protocol.")
	}
	return protocol, nil
}

// lookUp makes the handler that looks for things of a third-party network, by its fields or, where the path names no protocol, by a Matrix ID.
// spec: cs/queryUserByProtocol, cs/queryLocationByProtocol, cs/queryUserByID, cs/queryLocationByAlias
func (a *API) lookUp(kind, parameter string) endpoint.Handler {
	return func(r *endpoint.Request) (any, error) {
		fields := url.Values{}
		protocol := r.Var("protocol")
		if protocol == "" {
			if r.Query(parameter) == "" {
				return nil, matrix.MissingParam("%s is missing.", parameter)
			}
			fields.Set(parameter, r.Query(parameter))
		} else {
			for name, values := range r.URL.Query() {
				if name != "access_token" && (serviceOf(r) == nil || name != "user_id" && name != "device_id") {
					fields[name] = values
				}
			}
		}
		found := a.Services.LookUp(r.Ctx(), kind, protocol, fields)
		if len(found) == 0 {
			return nil, matrix.NotFound("No application service found such a %s.", kind)
		}
		return found, nil
	}
}
