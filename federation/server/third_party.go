package server

import (
	"context"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
)

// Exchanger hands a third-party invite to the server whose user made it; *client.Client does.
type Exchanger interface {
	ExchangeThirdPartyInvite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, event []byte) error
}

// thirdPartyInvite is what makes an invite of a member event out of one by e-mail address.
// spec: client-server-api#third-party-invites
type thirdPartyInvite struct {
	DisplayName string         `json:"display_name"`
	Signed      jsontext.Value `json:"signed"`
}

// signedInvite is the part of it that the identity server signed. The room's rules check the signature.
type signedInvite struct {
	User  matrix.UserID `json:"mxid"`
	Token string        `json:"token"`
}

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
			Membership string            `json:"membership"`
			Invite     *thirdPartyInvite `json:"third_party_invite"`
		} `json:"content"`
	}
	if err := r.Decode(&event); err != nil {
		return nil, err
	}
	sender, err := s.localUser(event.Sender)
	if err != nil {
		return nil, err
	}
	target, err := matrix.ParseUserID(event.StateKey)
	if err != nil {
		return nil, err
	}
	switch {
	case event.Type != "m.room.member" || event.Content.Membership != "invite" || event.Content.Invite == nil || event.Room != room:
		return nil, matrix.InvalidParam("The event is not a third-party invite to the room.")
	case target.Server() != origin(r):
		return nil, matrix.Forbidden("%s is not a user of %s.", target, origin(r))
	}
	return nil, s.inviteByThirdParty(r.Ctx(), room, sender, target, event.Content.Invite.Signed)
}

// inviteByThirdParty invites for one of our users, who made the invite by address.
func (s *Server) inviteByThirdParty(ctx context.Context, room matrix.RoomID, sender, target matrix.UserID, signed jsontext.Value) error {
	var by signedInvite
	if err := json.Unmarshal(signed, &by); err != nil || by.Token == "" || by.User != target {
		return matrix.InvalidParam("The invite is not signed for %s.", target)
	}
	snapshot, err := s.opts.Rooms.Snapshot(ctx, room)
	if err != nil {
		return err
	}
	made, err := snapshot.State.Event(ctx, "m.room.third_party_invite", by.Token)
	if err != nil {
		return err
	}
	if made == nil || made.Sender() != sender {
		return matrix.Forbidden("%s has made no such invite in the room.", sender)
	}
	// The name is the one the inviter gave: the address itself stays with the identity server.
	name, _ := made.ContentString("display_name")
	content, err := json.Marshal(map[string]any{"third_party_invite": thirdPartyInvite{name, signed}})
	if err != nil {
		return err
	}
	_, err = s.opts.Rooms.Invite(ctx, rooms.MemberRequest{Room: room, Sender: sender, Target: target, Content: content})
	return err
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
	user, err := s.localUser(body.User)
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
	if sender.Server() == s.opts.ServerName {
		return s.inviteByThirdParty(ctx, room, sender, user, signed)
	}
	if s.opts.Exchanger == nil {
		return matrix.Forbidden("This server does not talk to others.")
	}
	event, err := json.Marshal(map[string]any{
		"type": "m.room.member", "room_id": room, "sender": sender, "state_key": user,
		"content": map[string]any{"membership": "invite", "third_party_invite": thirdPartyInvite{Signed: signed}},
	})
	if err != nil {
		return err
	}
	return s.opts.Exchanger.ExchangeThirdPartyInvite(ctx, sender.Server(), room, event)
}
