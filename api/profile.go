package api

import (
	"context"
	"encoding/json"

	"golang.org/x/sync/errgroup"

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
	if _, err := a.Users.Profiles.Set(r.Ctx(), me, name, value); err != nil {
		return nil, err
	}
	return nil, a.showProfile(r, me, name)
}

// spec: cs/deleteProfileField
func (a *API) deleteProfileField(r *endpoint.Request) (any, error) {
	me, name, err := ownProfile(r)
	if err != nil {
		return nil, err
	}
	if _, err := a.Users.Profiles.Delete(r.Ctx(), me, name); err != nil {
		return nil, err
	}
	return nil, a.showProfile(r, me, name)
}

// profileRooms is how many rooms are told of a new name or avatar at a time.
const profileRooms = 16

// showProfile renews the user's membership events, which carry the name and the avatar. Rooms that show them already are left
// alone; so a request that was broken off in between is made good by repeating it, though the profile is changed by then.
// spec: client-server-api#events-on-change-of-profile-information
func (a *API) showProfile(r *endpoint.Request, me matrix.UserID, field string) error {
	if field != users.FieldDisplayName && field != users.FieldAvatarURL {
		return nil
	}
	ctx := context.WithoutCancel(r.Ctx()) // in all rooms, even if the client has given up
	joined, err := a.Rooms.JoinedRooms(ctx, me)
	if err != nil {
		return err
	}
	name, avatar, err := a.Users.Profiles.Local(ctx, me)
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
	var g errgroup.Group
	g.SetLimit(profileRooms)
	for _, room := range joined {
		g.Go(func() error {
			_, err := a.Rooms.Join(ctx, rooms.MemberRequest{Room: room, Sender: me, Content: content, ProfileInContent: true, Renew: true})
			// A room that refuses the change keeps the old name; the profile itself is changed.
			if _, refused := matrix.AsError(err); refused {
				return nil
			}
			return err
		})
	}
	return g.Wait()
}
