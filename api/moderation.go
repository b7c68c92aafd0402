package api

import (
	"context"
	"errors"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// moderated is the account in the path; that the requester is an administrator was checked before it was looked for, so
// that nobody else finds out who is here. M_INVALID_PARAM for a user of another server, M_NOT_FOUND for one who is not here
// (any more), M_FORBIDDEN for another administrator.
func (a *API) moderated(r *endpoint.Request) (*users.Account, error) {
	id, err := userVar(r)
	if err != nil {
		return nil, err
	}
	if id.Server() != a.ServerName {
		return nil, matrix.InvalidParam("%s is not a user of this server.", id)
	}
	account, err := a.Users.Accounts.Get(r.Ctx(), id)
	if errors.Is(err, storage.ErrNotFound) || err == nil && account.Deactivated {
		return nil, matrix.NotFound("There is no account %s.", id)
	}
	if err == nil && account.Admin && id != requester(r).UserID {
		return nil, matrix.Forbidden("%s is an administrator, too.", id)
	}
	return account, err
}

// moderate sets what an administrator may set of somebody else's account.
func (a *API) moderate(r *endpoint.Request, on *bool, set func(context.Context, matrix.UserID, bool) error) error {
	account, err := a.moderated(r)
	switch {
	case err != nil:
		return err
	case account.UserID == requester(r).UserID:
		return matrix.Forbidden("You cannot do that to your own account.")
	case on == nil:
		return matrix.BadJSON("The body must say true or false.")
	}
	return set(r.Ctx(), account.UserID, *on)
}

type suspension struct {
	Suspended *bool `json:"suspended"`
}

// spec: cs/getAdminSuspendUser
func (a *API) suspended(r *endpoint.Request) (any, error) {
	account, err := a.moderated(r)
	if err != nil {
		return nil, err
	}
	return suspension{&account.Suspended}, nil
}

// spec: cs/setAdminSuspendUser
func (a *API) suspend(r *endpoint.Request) (any, error) {
	var req suspension
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	return req, a.moderate(r, req.Suspended, a.Users.Accounts.SetSuspended)
}

type locking struct {
	Locked *bool `json:"locked"`
}

// spec: cs/getAdminLockUser
func (a *API) locked(r *endpoint.Request) (any, error) {
	account, err := a.moderated(r)
	if err != nil {
		return nil, err
	}
	return locking{&account.Locked}, nil
}

// spec: cs/setAdminLockUser
func (a *API) lock(r *endpoint.Request) (any, error) {
	var req locking
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	return req, a.moderate(r, req.Locked, a.Users.Accounts.SetLocked)
}

// whoIs tells when the devices of a user were last seen; from where, only if the operator keeps addresses. Users may ask
// about themselves. spec: cs/getWhoIs
func (a *API) whoIs(r *endpoint.Request) (any, error) {
	id, err := userVar(r)
	if err != nil {
		return nil, err
	}
	if who := requester(r); !who.Admin && who.UserID != id {
		return nil, matrix.Forbidden("Only administrators of this server can ask about others.")
	}
	devices, err := a.Users.Devices.List(r.Ctx(), id)
	if err != nil {
		return nil, err
	}
	type connection struct {
		IP        string           `json:"ip,omitempty"`
		LastSeen  matrix.Timestamp `json:"last_seen,omitempty"`
		UserAgent string           `json:"user_agent,omitempty"`
	}
	type session struct {
		Connections []connection `json:"connections"`
	}
	type device struct {
		Sessions []session `json:"sessions"`
	}
	seen := make(map[matrix.DeviceID]device, len(devices))
	for _, d := range devices {
		seen[d.DeviceID] = device{[]session{{[]connection{{d.LastSeenIP, d.LastSeenAt, d.UserAgent}}}}}
	}
	return map[string]any{"user_id": id, "devices": seen}, nil
}
