package api

import (
	"encoding/json"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
	"hanok/users"
)

// spec: cs/getUserProfile
func (a *API) profile(r *endpoint.Request) (any, error) {
	id, err := userVar(r)
	if err != nil {
		return nil, err
	}
	return a.Users.Profiles.Get(r.Ctx(), id)
}

// spec: cs/getProfileField
func (a *API) profileField(r *endpoint.Request) (any, error) {
	id, err := userVar(r)
	if err != nil {
		return nil, err
	}
	name := r.Var("keyName")
	value, err := a.Users.Profiles.Field(r.Ctx(), id, name)
	if matrix.HasCode(err, "M_NOT_FOUND") && (name == users.FieldDisplayName || name == users.FieldAvatarURL) && id.Server() == a.ServerName {
		// A user of ours without name or picture: clients take an empty answer for that, not an error.
		if _, unknown := a.Users.Profiles.Get(r.Ctx(), id); unknown == nil {
			return struct{}{}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	return map[string]json.RawMessage{name: value}, nil
}

// spec: cs/setProfileField
func (a *API) setProfileField(r *endpoint.Request) (any, error) {
	me, name, err := ownProfile(r)
	if err != nil {
		return nil, err
	}
	var body map[string]json.RawMessage
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	value, ok := body[name]
	if !ok {
		return nil, matrix.MissingParam("The body must have the member %q.", name)
	}
	changed, err := a.Users.Profiles.Set(r.Ctx(), me, name, value)
	if err != nil {
		return nil, err
	}
	return nil, a.showProfile(r, me, name, changed)
}

// spec: cs/deleteProfileField
func (a *API) deleteProfileField(r *endpoint.Request) (any, error) {
	me, name, err := ownProfile(r)
	if err != nil {
		return nil, err
	}
	changed, err := a.Users.Profiles.Delete(r.Ctx(), me, name)
	if err != nil {
		return nil, err
	}
	return nil, a.showProfile(r, me, name, changed)
}

// showProfile renews the user's membership events, which carry the name and the avatar.
// spec: client-server-api#events-on-change-of-profile-information
func (a *API) showProfile(r *endpoint.Request, me matrix.UserID, field string, changed bool) error {
	if !changed || field != users.FieldDisplayName && field != users.FieldAvatarURL {
		return nil
	}
	joined, err := a.Rooms.JoinedRooms(r.Ctx(), me)
	if err != nil {
		return err
	}
	name, avatar, err := a.Users.Profiles.Local(r.Ctx(), me)
	if err != nil {
		return err
	}
	content, err := canonicaljson.Marshal(struct {
		DisplayName string `json:"displayname,omitempty"`
		AvatarURL   string `json:"avatar_url,omitempty"`
	}{name, avatar})
	if err != nil {
		return err
	}
	for _, room := range joined {
		_, err := a.Rooms.Join(r.Ctx(), rooms.MemberRequest{Room: room, Sender: me, Content: content, ProfileInContent: true, Renew: true})
		// A room that refuses the change keeps the old name; the profile itself is changed.
		if _, refused := matrix.AsError(err); err != nil && !refused {
			return err
		}
	}
	return nil
}
