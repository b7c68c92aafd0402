package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"hanok/internal/endpoint"
	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// spec: cs/getLoginFlows
func (a *API) loginFlows(*endpoint.Request) (any, error) {
	type flow struct {
		Type          string `json:"type"`
		GetLoginToken bool   `json:"get_login_token,omitzero"`
	}
	var flows []flow
	if a.Registration.PasswordLogin {
		flows = append(flows, flow{Type: "m.login.password"}, flow{Type: "m.login.token", GetLoginToken: true})
	}
	if !a.Services.None() {
		flows = append(flows, flow{Type: loginAppservice})
	}
	return map[string]any{"flows": flows}, nil
}

// loginAppservice is the type by which application services register and log in.
const loginAppservice = "m.login.application_service"

type loginRequest struct {
	Type       string           `json:"type"`
	Identifier *loginIdentifier `json:"identifier"`
	User       string           `json:"user"` // before identifiers existed
	Password   *string          `json:"password"`
	Token      string           `json:"token"`
	newDevice
}

type loginIdentifier struct {
	Type string `json:"type"`
	User string `json:"user"`
}

// newDevice is what login and register share.
type newDevice struct {
	DeviceID     matrix.DeviceID `json:"device_id"`
	DisplayName  string          `json:"initial_device_display_name"`
	RefreshToken bool            `json:"refresh_token"`
}

// session is the answer of login and register. spec: cs/login, cs/register
type session struct {
	UserID       matrix.UserID     `json:"user_id"`
	AccessToken  string            `json:"access_token,omitempty"`
	DeviceID     matrix.DeviceID   `json:"device_id,omitempty"`
	HomeServer   matrix.ServerName `json:"home_server"`
	RefreshToken string            `json:"refresh_token,omitempty"`
	ExpiresInMS  int64             `json:"expires_in_ms,omitzero"`
	WellKnown    any               `json:"well_known,omitempty"`
}

// spec: cs/login
func (a *API) login(r *endpoint.Request) (any, error) {
	var req loginRequest
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	var who matrix.UserID
	switch req.Type {
	case "m.login.password":
		if !a.Registration.PasswordLogin {
			return nil, matrix.Forbidden("This server does not take passwords.")
		}
		id, err := a.loginUser(r, req)
		if err != nil {
			return nil, err
		}
		if req.Password == nil {
			return nil, matrix.MissingParam("password is missing.")
		}
		account, err := a.Users.Accounts.CheckPassword(r.Ctx(), id, *req.Password)
		if err != nil {
			return nil, err
		}
		who = account.UserID
	case "m.login.token":
		if req.Token == "" {
			return nil, matrix.MissingParam("token is missing.")
		}
		id, err := a.Users.Sessions.RedeemLoginToken(r.Ctx(), req.Token)
		if err != nil {
			return nil, err
		}
		who = id
	case loginAppservice:
		id, err := a.loginService(r, req)
		if err != nil {
			return nil, err
		}
		who = id
	case "":
		return nil, matrix.MissingParam("type is missing.")
	default:
		return nil, matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "This server does not know the login type %q.", req.Type)
	}
	return a.newSession(r, who, req.newDevice)
}

// loginUser finds out who wants to log in: a full user ID or a localpart.
func (a *API) loginUser(r *endpoint.Request, req loginRequest) (matrix.UserID, error) {
	name := req.User
	if req.Identifier != nil {
		switch req.Identifier.Type {
		case "m.id.user":
			name = req.Identifier.User
		case "m.id.thirdparty", "m.id.phone":
			return "", matrix.Forbidden("Log in with your user name: this server does not know e-mail addresses or phone numbers.")
		default:
			return "", matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "Unknown identifier type %q.", req.Identifier.Type)
		}
	}
	if name == "" {
		return "", matrix.MissingParam("The user is missing.")
	}
	id, err := a.localUser(name)
	if err != nil {
		return "", err
	}
	if lower := matrix.UserID(strings.ToLower(string(id))); lower != id {
		// People type their name as they like; accounts are registered in lower case, but for old ones.
		if _, err := a.Users.Accounts.Get(r.Ctx(), id); errors.Is(err, storage.ErrNotFound) {
			return lower, nil
		}
	}
	return id, nil
}

// localUser is a user of this server by localpart or full ID.
func (a *API) localUser(name string) (matrix.UserID, error) {
	if name[0] != '@' {
		name = "@" + name + ":" + string(a.ServerName)
	}
	id, err := matrix.ParseUserID(name)
	if err != nil || id.Server() != a.ServerName {
		return "", matrix.Forbidden("Wrong user name or password.")
	}
	return id, nil
}

func (a *API) newSession(r *endpoint.Request, who matrix.UserID, d newDevice) (any, error) {
	s, err := a.Users.Sessions.Create(r.Ctx(), users.NewSession{
		UserID: who, DeviceID: d.DeviceID, DisplayName: d.DisplayName, Refreshable: d.RefreshToken,
	})
	if err != nil {
		return nil, err
	}
	out := session{
		UserID: s.UserID, AccessToken: s.AccessToken, DeviceID: s.DeviceID, HomeServer: a.ServerName,
		RefreshToken: s.RefreshToken, ExpiresInMS: s.ExpiresIn.Milliseconds(),
	}
	if a.BaseURL != "" {
		out.WellKnown = map[string]any{"m.homeserver": map[string]string{"base_url": a.BaseURL}}
	}
	return out, nil
}

// spec: cs/generateLoginToken
func (a *API) generateLoginToken(r *endpoint.Request) (any, error) {
	me := requester(r).UserID
	if _, err := a.interactive(r, users.Operation{Name: "get_token", User: me, Flows: [][]string{{users.StagePassword}}}); err != nil {
		return nil, err
	}
	token, expires, err := a.Users.Sessions.LoginToken(r.Ctx(), me)
	if err != nil {
		return nil, err
	}
	return map[string]any{"login_token": token, "expires_in_ms": expires.Milliseconds()}, nil
}

// spec: cs/refresh
func (a *API) refresh(r *endpoint.Request) (any, error) {
	var req struct {
		RefreshToken string `json:"refresh_token"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.RefreshToken == "" {
		return nil, matrix.MissingParam("refresh_token is missing.")
	}
	s, err := a.Users.Sessions.Refresh(r.Ctx(), req.RefreshToken)
	if err != nil {
		return nil, err
	}
	return struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token,omitempty"`
		ExpiresInMS  int64  `json:"expires_in_ms,omitzero"`
	}{s.AccessToken, s.RefreshToken, s.ExpiresIn.Milliseconds()}, nil
}

// spec: cs/logout
func (a *API) logout(r *endpoint.Request) (any, error) {
	who := requester(r)
	return nil, a.Users.Sessions.Logout(r.Ctx(), who.UserID, who.DeviceID)
}

// spec: cs/logout_all
func (a *API) logoutAll(r *endpoint.Request) (any, error) {
	return nil, a.Users.Sessions.LogoutAll(r.Ctx(), requester(r).UserID)
}

// interactive takes one step of user-interactive authentication with the `auth` member of the body.
// spec: client-server-api#user-interactive-authentication-api
func (a *API) interactive(r *endpoint.Request, op users.Operation) (*users.Authenticated, error) {
	var req struct {
		Auth json.RawMessage `json:"auth"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	op.Body = body
	return a.Users.UIA.Authenticate(r.Ctx(), op, req.Auth)
}

type registerRequest struct {
	Username     *string `json:"username"`
	Password     *string `json:"password"`
	InhibitLogin bool    `json:"inhibit_login"`
	Type         string  `json:"type"`
	GuestToken   string  `json:"guest_access_token"`
	newDevice
}

// spec: cs/register
func (a *API) register(r *endpoint.Request) (any, error) {
	var req registerRequest
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	if req.Type == loginAppservice {
		return a.registerService(r, req)
	}
	switch r.Query("kind") {
	case "", "user":
	case "guest":
		return a.registerGuest(r, req)
	default:
		return nil, matrix.InvalidParam("kind must be user or guest.")
	}
	var flows [][]string
	switch {
	case a.Registration.RequireToken:
		flows = [][]string{{users.StageRegistrationToken}}
	case a.Registration.Open:
		flows = [][]string{{users.StageDummy}}
	default:
		return nil, matrix.Forbidden("Registration is closed on this server. Ask its administrator for an account.")
	}
	// A name that cannot be had is said before anybody goes through the stages.
	guest, err := a.guestToUpgrade(r, req)
	if err != nil {
		return nil, err
	}
	var taken error
	if req.Username != nil && guest == "" {
		if taken = a.Users.Accounts.Available(r.Ctx(), *req.Username); taken != nil && !matrix.HasCode(taken, "M_USER_IN_USE") {
			return nil, taken
		}
	}
	done, err := a.interactive(r, users.Operation{Name: "register", Flows: flows})
	if err == nil && done.Registered != "" && (req.Username == nil || strings.EqualFold(*req.Username, done.Registered.Localpart())) {
		// The client did not get the answer to its request, and repeats it.
		return a.registered(r, done.Registered, req)
	}
	if taken != nil {
		return nil, taken
	}
	if err != nil {
		return nil, err
	}
	// Clients may complete the stages with a body that holds nothing else.
	if req.Username == nil && req.Password == nil && len(done.Body) > 0 {
		if err := strictjson.Unmarshal(done.Body, &req); err != nil {
			return nil, err
		}
		if guest, err = a.guestToUpgrade(r, req); err != nil {
			return nil, err
		}
	}
	reg := users.Registration{Token: done.RegistrationToken, Session: done.Session}
	if req.Username != nil {
		reg.Localpart = *req.Username
	}
	if req.Password != nil {
		reg.Password = *req.Password
	}
	if guest != "" {
		if err := a.Users.Accounts.UpgradeGuest(r.Ctx(), guest, reg); err != nil {
			return nil, err
		}
		return a.registered(r, guest, req)
	}
	return a.createAccount(r, reg, req)
}

func (a *API) registerGuest(r *endpoint.Request, req registerRequest) (any, error) {
	if !a.Registration.Guests {
		return nil, matrix.Errorf(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "This server has no guests.")
	}
	return a.createAccount(r, users.Registration{Kind: users.KindGuest}, registerRequest{newDevice: newDevice{DisplayName: req.DisplayName}})
}

func (a *API) createAccount(r *endpoint.Request, reg users.Registration, req registerRequest) (any, error) {
	account, err := a.Users.Accounts.Register(r.Ctx(), reg)
	if err != nil {
		return nil, err
	}
	return a.registered(r, account.UserID, req)
}

// registered is the answer to a registration.
func (a *API) registered(r *endpoint.Request, who matrix.UserID, req registerRequest) (any, error) {
	if req.InhibitLogin {
		return session{UserID: who, HomeServer: a.ServerName}, nil
	}
	return a.newSession(r, who, req.newDevice)
}

// spec: cs/checkUsernameAvailability
func (a *API) registerAvailable(r *endpoint.Request) (any, error) {
	if !r.HasQuery("username") {
		return nil, matrix.MissingParam("username is missing.")
	}
	if err := a.Users.Accounts.Available(r.Ctx(), r.Query("username")); err != nil {
		return nil, err
	}
	return map[string]bool{"available": true}, nil
}

// spec: cs/registrationTokenValidity
func (a *API) registrationTokenValidity(r *endpoint.Request) (any, error) {
	if !r.HasQuery("token") {
		return nil, matrix.MissingParam("token is missing.")
	}
	valid, err := a.Users.RegistrationTokens.Valid(r.Ctx(), r.Query("token"))
	if err != nil {
		return nil, err
	}
	return map[string]bool{"valid": valid}, nil
}

func (a *API) sharedSecretNonce(*endpoint.Request) (any, error) {
	nonce, err := a.Users.Accounts.SharedSecretNonce()
	if err != nil {
		return nil, err
	}
	return map[string]string{"nonce": nonce}, nil
}

// sharedSecretRegister makes accounts for scripts that hold the registration secret; the
// endpoint is the one that Synapse's tools use.
func (a *API) sharedSecretRegister(r *endpoint.Request) (any, error) {
	var req users.SharedSecretRequest
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	account, err := a.Users.Accounts.RegisterWithSecret(r.Ctx(), req)
	if err != nil {
		return nil, err
	}
	return a.newSession(r, account.UserID, newDevice{})
}

// spec: cs/getTokenOwner
func (a *API) whoami(r *endpoint.Request) (any, error) {
	who := requester(r)
	return struct {
		UserID   matrix.UserID   `json:"user_id"`
		DeviceID matrix.DeviceID `json:"device_id,omitempty"`
		IsGuest  bool            `json:"is_guest"`
	}{who.UserID, who.DeviceID, who.Kind == users.KindGuest}, nil
}

// spec: cs/changePassword
func (a *API) changePassword(r *endpoint.Request) (any, error) {
	who := requester(r)
	var req struct {
		NewPassword   string `json:"new_password"`
		LogoutDevices *bool  `json:"logout_devices"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	done, err := a.interactive(r, users.Operation{Name: "password", User: who.UserID, Flows: [][]string{{users.StagePassword}}})
	if err != nil {
		return nil, err
	}
	if req.NewPassword == "" && len(done.Body) > 0 {
		if err := strictjson.Unmarshal(done.Body, &req); err != nil {
			return nil, err
		}
	}
	if req.NewPassword == "" {
		return nil, matrix.MissingParam("new_password is missing.")
	}
	var keep *matrix.DeviceID
	if req.LogoutDevices == nil || *req.LogoutDevices {
		keep = &who.DeviceID
	}
	return nil, a.Users.Accounts.SetPassword(r.Ctx(), who.UserID, req.NewPassword, keep)
}

// spec: cs/deactivateAccount
func (a *API) deactivate(r *endpoint.Request) (any, error) {
	me := requester(r).UserID
	var req struct {
		Erase bool `json:"erase"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	if serviceOf(r) == nil {
		if _, err := a.interactive(r, users.Operation{Name: "deactivate", User: me, Flows: [][]string{{users.StagePassword}}}); err != nil {
			return nil, err
		}
	}
	if err := a.Users.Accounts.Deactivate(r.Ctx(), me, req.Erase); err != nil {
		return nil, err
	}
	if err := a.Users.Presence.Forget(r.Ctx(), me); err != nil { // while it is known who saw it
		return nil, err
	}
	memberships, err := a.Rooms.Memberships(r.Ctx(), me, "join", "invite", "knock")
	if err != nil {
		return nil, err
	}
	for _, m := range memberships {
		_, err := a.Rooms.Leave(r.Ctx(), rooms.MemberRequest{Room: m.Room, Sender: me, Reason: ""})
		// The account is closed already: a room that cannot be left (its other servers are gone) must not fail that.
		if _, ok := matrix.AsError(err); err != nil && !ok {
			return nil, errors.Join(errors.New("leave rooms of a deactivated account"), err)
		}
	}
	return map[string]string{"id_server_unbind_result": "no-support"}, nil
}

// This server keeps no third-party identifiers. spec: cs/getAccount3PIDs
func (a *API) threePIDs(*endpoint.Request) (any, error) {
	return map[string]any{"threepids": []string{}}, nil
}

type deviceAnswer struct {
	DeviceID    matrix.DeviceID  `json:"device_id"`
	DisplayName string           `json:"display_name,omitempty"`
	LastSeenIP  string           `json:"last_seen_ip,omitempty"`
	LastSeenTS  matrix.Timestamp `json:"last_seen_ts,omitzero"`
}

func answerDevice(d *users.Device) deviceAnswer {
	return deviceAnswer{d.DeviceID, d.DisplayName, d.LastSeenIP, d.LastSeenAt}
}

// spec: cs/getDevices
func (a *API) devices(r *endpoint.Request) (any, error) {
	list, err := a.Users.Devices.List(r.Ctx(), requester(r).UserID)
	if err != nil {
		return nil, err
	}
	out := make([]deviceAnswer, len(list))
	for i := range list {
		out[i] = answerDevice(&list[i])
	}
	return map[string]any{"devices": out}, nil
}

// spec: cs/getDevice
func (a *API) device(r *endpoint.Request) (any, error) {
	d, err := a.Users.Devices.Get(r.Ctx(), requester(r).UserID, matrix.DeviceID(r.Var("deviceId")))
	if err != nil {
		return nil, err
	}
	return answerDevice(d), nil
}

// Application services may make devices. spec: cs/updateDevice, application-service-api#creating-devices
func (a *API) updateDevice(r *endpoint.Request) (any, error) {
	var req struct {
		DisplayName *string `json:"display_name"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	created, err := a.Users.Devices.Put(r.Ctx(), requester(r).UserID, matrix.DeviceID(r.Var("deviceId")), req.DisplayName, serviceOf(r) != nil)
	if err != nil || !created {
		return nil, err
	}
	return endpoint.Status{Code: http.StatusCreated, Body: struct{}{}}, nil
}

// spec: cs/deleteDevice
func (a *API) deleteDevice(r *endpoint.Request) (any, error) {
	id := matrix.DeviceID(r.Var("deviceId"))
	return a.removeDevices(r, "DELETE device "+string(id), func([]byte) ([]matrix.DeviceID, error) {
		return []matrix.DeviceID{id}, nil
	})
}

// spec: cs/deleteDevices
func (a *API) deleteDevices(r *endpoint.Request) (any, error) {
	return a.removeDevices(r, "delete_devices", func(body []byte) ([]matrix.DeviceID, error) {
		var req struct {
			Devices []matrix.DeviceID `json:"devices"`
		}
		if err := strictjson.Unmarshal(body, &req); err != nil {
			return nil, err
		}
		return req.Devices, nil
	})
}

func (a *API) removeDevices(r *endpoint.Request, name string, which func(body []byte) ([]matrix.DeviceID, error)) (any, error) {
	me := requester(r).UserID
	body, err := r.Body()
	if err == nil && serviceOf(r) == nil { // spec: application-service-api#deleting-devices
		var done *users.Authenticated
		if done, err = a.interactive(r, users.Operation{Name: name, User: me, Flows: [][]string{{users.StagePassword}}}); err == nil {
			body = done.Body
		}
	}
	if err != nil {
		return nil, err
	}
	ids, err := which(body)
	if err != nil {
		return nil, err
	}
	return nil, a.Users.Devices.Delete(r.Ctx(), me, ids...)
}
