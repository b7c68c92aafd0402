package server

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"

	"hanok/internal/endpoint"
	"hanok/matrix"
)

// exchangeThirdPartyInvite turns an invite that one of our users made by address into one of a user of the asking server.
// spec: ss/exchangeThirdPartyInvite
func (s *Server) exchangeThirdPartyInvite(r *endpoint.Request) (any, error) {
	room, err := roomID(r)
	if err != nil {
		return nil, err
	}
	var event struct {
		Type     string        `json:"type"`
		Room     matrix.RoomID `json:"room_id"`
		Sender   string        `json:"sender"`
		StateKey string        `json:"state_key"`
		Content  struct {
			Membership string `json:"membership"`
			Invite     *struct {
				Signed jsontext.Value `json:"signed"`
			} `json:"third_party_invite"`
		} `json:"content"`
	}
	if err := r.Decode(&event); err != nil {
		return nil, err
	}
	if event.Type == "" || event.Room == "" || event.Sender == "" || event.StateKey == "" || event.Content.Membership == "" || event.Content.Invite == nil || event.Content.Invite.Signed == nil {
		return nil, matrix.MissingParam("X")
	}
	sender, err := s.localUser(r.Ctx(), event.Sender)
	if err != nil {
		return nil, err
	}
	target, err := matrix.ParseUserID(event.StateKey)
	if err != nil {
		return nil, err
	}
	switch {
	case event.Type != "m.room.member" || event.Content.Membership != "invite" || event.Room != room:
		return nil, matrix.InvalidParam("The event is not a third-party invite to the room.")
	case target.Server() != origin(r):
		return nil, matrix.Forbidden("%s is not a user of %s.", target, origin(r))
	}
	return nil, s.opts.Rooms.AcceptThirdPartyInvite(r.Ctx(), room, sender, target, event.Content.Invite.Signed)
}

// maxBoundInvites bounds what one call of an identity server may set off: anybody may make it.
const maxBoundInvites = 20

// onBind is called by an identity server when one of our users has proved to own an address, with the
// invites that wait for it. One that fails does not keep the others from being made.
// spec: ss/onBindThirdPartyIdentifier
func (s *Server) onBind(r *endpoint.Request) (any, error) {
	var body struct {
		User    string `json:"mxid"`
		Invites []struct {
			Room   matrix.RoomID  `json:"room_id"`
			Sender matrix.UserID  `json:"sender"`
			Signed jsontext.Value `json:"signed"`
		} `json:"invites"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.User == "" || body.Invites == nil {
		return nil, matrix.MissingParam("mxid and invites are required.")
	}
	user, err := s.localUser(r.Ctx(), body.User)
	if err != nil {
		return nil, err
	}
	if len(body.Invites) > maxBoundInvites {
		return nil, matrix.InvalidParam("At most %d invites can be given.", maxBoundInvites)
	}
	for _, in := range body.Invites {
		if err := s.bind(r.Ctx(), user, in.Room, in.Sender, in.Signed); err != nil {
			s.opts.Log.Debug().Err(err).Msg("federation: third-party invite not made")
		}
	}
	return nil, nil
}

func (s *Server) bind(ctx context.Context, user matrix.UserID, room matrix.RoomID, sender matrix.UserID, signed jsontext.Value) error {
	if _, err := matrix.ParseRoomID(string(room)); err != nil {
		return err
	}
	if _, err := matrix.ParseUserID(string(sender)); err != nil {
		return err
	}
	return s.opts.Rooms.AcceptThirdPartyInvite(ctx, room, sender, user, signed)
}
