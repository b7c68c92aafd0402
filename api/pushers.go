package api

import (
	"encoding/json"
	"strings"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// spec: cs/getPushers
func (a *API) pushers(r *endpoint.Request) (any, error) {
	list, err := a.Users.Pushers.List(r.Ctx(), a.DB, requester(r).UserID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"pushers": list}, nil
}

// spec: cs/postPusher
func (a *API) setPusher(r *endpoint.Request) (any, error) {
	var req struct {
		AppID             string          `json:"app_id"`
		PushKey           string          `json:"pushkey"`
		Kind              *string         `json:"kind"` // null deletes
		AppDisplayName    *string         `json:"app_display_name"`
		DeviceDisplayName *string         `json:"device_display_name"`
		ProfileTag        string          `json:"profile_tag"`
		Lang              *string         `json:"lang"`
		Data              json.RawMessage `json:"data"`
		Append            bool            `json:"append"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	who := requester(r)
	if req.AppID == "" || req.PushKey == "" {
		return nil, matrix.MissingParam("app_id and pushkey are needed.")
	}
	if req.Kind == nil {
		return nil, a.Users.Pushers.Delete(r.Ctx(), storage.PusherKey{UserID: who.UserID, AppID: req.AppID, PushKey: req.PushKey})
	}
	var missing []string
	text := func(name string, value *string) string {
		if value == nil {
			missing = append(missing, name)
			return ""
		}
		return *value
	}
	p := users.Pusher{
		UserID: who.UserID, DeviceID: who.DeviceID, AppID: req.AppID, PushKey: req.PushKey, Kind: *req.Kind, ProfileTag: req.ProfileTag,
		AppDisplayName: text("app_display_name", req.AppDisplayName), DeviceDisplayName: text("device_display_name", req.DeviceDisplayName),
		Lang: text("lang", req.Lang), Data: req.Data,
	}
	if len(req.Data) == 0 || string(req.Data) == "null" {
		missing = append(missing, "data")
	}
	if len(missing) > 0 {
		return nil, matrix.MissingParam("Missing parameters: %s", strings.Join(missing, ", "))
	}
	return nil, a.Users.Pushers.Set(r.Ctx(), p, req.Append)
}
