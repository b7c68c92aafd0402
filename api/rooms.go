package api

import (
	"context"
	"encoding/json"
	"slices"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// maxAddressInvites bounds how many people createRoom may have identity servers write to.
const maxAddressInvites = 20

// spec: cs/createRoom
func (a *API) createRoom(r *endpoint.Request) (any, error) {
	var req struct {
		rooms.CreateRequest
		Visibility string                `json:"visibility"`
		Invite3PID []rooms.AddressInvite `json:"invite_3pid"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	switch req.Visibility {
	case "public":
		req.Published = true
	case "", "private":
	default:
		return nil, matrix.BadJSON("visibility must be public or private.")
	}
	if len(req.Invite3PID) > maxAddressInvites {
		return nil, matrix.InvalidParam("A new room can have at most %d invite_3pid.", maxAddressInvites)
	}
	for _, id := range req.Invite {
		if _, err := parseUser(string(id)); err != nil {
			return nil, err
		}
	}
	req.Creator = requester(r).UserID
	if name := req.AliasLocal; name != "" {
		if err := a.checkAlias(r, matrix.RoomAlias("#"+name+":"+string(a.ServerName))); err != nil {
			return nil, err
		}
	}
	room, err := a.Rooms.CreateRoom(r.Ctx(), req.CreateRequest)
	if err != nil {
		return nil, err
	}
	for _, invite := range req.Invite3PID {
		invite.Room, invite.Sender = room, req.Creator
		if err := a.Rooms.InviteByAddress(r.Ctx(), invite); err != nil { // the room is there: as with other invites, it is kept
			a.Log.Info().Err(err).Msg("an invite by address of a new room was not made")
		}
	}
	return map[string]matrix.RoomID{"room_id": room}, nil
}

// spec: cs/upgradeRoom
func (a *API) upgrade(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Version            *roomversion.ID `json:"new_version"`
		AdditionalCreators []matrix.UserID `json:"additional_creators"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.Version == nil {
		return nil, matrix.MissingParam("new_version is missing.")
	}
	id, err := a.Rooms.Upgrade(r.Ctx(), rooms.UpgradeRequest{
		Room: room, Sender: requester(r).UserID, Version: *req.Version, AdditionalCreators: req.AdditionalCreators,
	})
	if err != nil {
		return nil, err
	}
	return map[string]matrix.RoomID{"replacement_room": id}, nil
}

// spec: cs/getJoinedRooms
func (a *API) joinedRooms(r *endpoint.Request) (any, error) {
	list, err := a.Rooms.JoinedRooms(r.Ctx(), requester(r).UserID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"joined_rooms": list}, nil
}

// spec: cs/getMutualRooms
func (a *API) mutualRooms(r *endpoint.Request) (any, error) {
	other, err := parseUser(r.Query("user_id"))
	if err != nil {
		return nil, err
	}
	me := requester(r).UserID
	if other == me {
		return nil, matrix.InvalidParam("Ask for another user than yourself.")
	}
	if r.Query("from") != "" {
		return nil, matrix.InvalidParam("from is not a token of this list, which comes as a whole.")
	}
	shared, err := a.Rooms.SharedRooms(r.Ctx(), me, other)
	if err != nil {
		return nil, err
	}
	return map[string]any{"joined": shared, "count": len(shared)}, nil
}

// membershipRequest is the body that all membership endpoints share.
type membershipRequest struct {
	UserID *string `json:"user_id"`
	Reason string  `json:"reason"`
}

// target reads the body of an endpoint that changes somebody else's membership.
func target(r *endpoint.Request) (rooms.MemberRequest, error) {
	room, err := roomVar(r)
	if err != nil {
		return rooms.MemberRequest{}, err
	}
	var req membershipRequest
	if err := r.Decode(&req); err != nil {
		return rooms.MemberRequest{}, err
	}
	if req.UserID == nil {
		return rooms.MemberRequest{}, matrix.MissingParam("user_id is missing.")
	}
	id, err := parseUser(*req.UserID)
	if err != nil {
		return rooms.MemberRequest{}, err
	}
	return rooms.MemberRequest{Room: room, Sender: requester(r).UserID, Target: id, Reason: req.Reason}, nil
}

// changeOf makes the handler of an endpoint that changes somebody else's membership.
// spec: cs/kick, cs/ban, cs/unban
func changeOf(change func(context.Context, rooms.MemberRequest) (matrix.EventID, error)) endpoint.Handler {
	return func(r *endpoint.Request) (any, error) {
		req, err := target(r)
		if err != nil {
			return nil, err
		}
		_, err = change(r.Ctx(), req)
		return nil, err
	}
}

// invite invites a user by ID, or by an address. spec: cs/inviteUser, cs/inviteBy3PID
func (a *API) invite(r *endpoint.Request) (any, error) {
	var req struct {
		UserID *string `json:"user_id"`
		rooms.AddressInvite
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.UserID != nil || req.IdentityServer == "" && req.Medium == "" && req.Address == "" {
		return changeOf(a.Rooms.Invite)(r)
	}
	if req.IdentityServer == "" || req.AccessToken == "" || req.Medium == "" || req.Address == "" {
		return nil, matrix.MissingParam("An invite by address needs id_server, id_access_token, medium and address.")
	}
	var err error
	if req.Room, err = roomVar(r); err != nil {
		return nil, err
	}
	req.Sender = requester(r).UserID
	return nil, a.Rooms.InviteByAddress(r.Ctx(), req.AddressInvite)
}

// own reads the body of an endpoint that changes the requester's own membership.
func own(r *endpoint.Request, room matrix.RoomID) (rooms.MemberRequest, error) {
	var req membershipRequest
	if err := r.DecodeOptional(&req); err != nil {
		return rooms.MemberRequest{}, err
	}
	servers, err := via(r)
	if err != nil {
		return rooms.MemberRequest{}, err
	}
	return rooms.MemberRequest{Room: room, Sender: requester(r).UserID, Reason: req.Reason, Via: servers}, nil
}

// ownByAlias is own for endpoints whose path names a room by ID or alias.
func (a *API) ownByAlias(r *endpoint.Request) (rooms.MemberRequest, error) {
	name := r.Var("roomIdOrAlias")
	var room matrix.RoomID
	var servers []matrix.ServerName
	if alias, err := matrix.ParseRoomAlias(name); err == nil {
		if room, servers, err = a.Rooms.ResolveAlias(r.Ctx(), alias); err != nil {
			return rooms.MemberRequest{}, err
		}
	} else if room, err = matrix.ParseRoomID(name); err != nil {
		return rooms.MemberRequest{}, matrix.InvalidParam("%q is neither a room ID nor an alias.", name)
	}
	req, err := own(r, room)
	for _, s := range servers {
		if !slices.Contains(req.Via, s) {
			req.Via = append(req.Via, s)
		}
	}
	return req, err
}

func (a *API) joinRequest(r *endpoint.Request, req rooms.MemberRequest, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	// Further members of the body go into the join's content, as clients of other servers are used to.
	var extra map[string]json.RawMessage
	if err := r.DecodeOptional(&extra); err != nil {
		return nil, err
	}
	if signed, ok := extra["third_party_signed"]; ok {
		if err := a.acceptInvite(r, req.Room, signed); err != nil {
			return nil, err
		}
	}
	for _, known := range []string{"reason", "third_party_signed", "membership", "join_authorised_via_users_server"} {
		delete(extra, known)
	}
	if len(extra) > 0 {
		if req.Content, err = canonicaljson.Marshal(extra); err != nil {
			return nil, err
		}
	}
	if err := a.admitGuest(r, req); err != nil {
		return nil, err
	}
	if _, err := a.Rooms.Join(r.Ctx(), req); err != nil {
		return nil, err
	}
	return map[string]matrix.RoomID{"room_id": req.Room}, nil
}

// acceptInvite makes an invite by address one of the requester, who shows what an identity server signed.
// spec: cs/joinRoom third_party_signed
func (a *API) acceptInvite(r *endpoint.Request, room matrix.RoomID, signed json.RawMessage) error {
	var by struct {
		Sender string `json:"sender"`
	}
	if err := json.Unmarshal(signed, &by); err != nil {
		return matrix.BadJSON("third_party_signed is not an object with a sender.")
	}
	sender, err := parseUser(by.Sender)
	if err != nil {
		return err
	}
	return a.Rooms.AcceptThirdPartyInvite(r.Ctx(), room, sender, requester(r).UserID, signed)
}

// spec: cs/joinRoom
func (a *API) join(r *endpoint.Request) (any, error) {
	req, err := a.ownByAlias(r)
	return a.joinRequest(r, req, err)
}

// spec: cs/joinRoomById
func (a *API) joinByID(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	req, err := own(r, room)
	return a.joinRequest(r, req, err)
}

// spec: cs/knockRoom
func (a *API) knock(r *endpoint.Request) (any, error) {
	req, err := a.ownByAlias(r)
	if err != nil {
		return nil, err
	}
	if _, err := a.Rooms.Knock(r.Ctx(), req); err != nil {
		return nil, err
	}
	return map[string]matrix.RoomID{"room_id": req.Room}, nil
}

// spec: cs/leaveRoom
func (a *API) leave(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	req, err := own(r, room)
	if err != nil {
		return nil, err
	}
	_, err = a.Rooms.Leave(r.Ctx(), req)
	return nil, err
}

// spec: cs/forgetRoom
func (a *API) forget(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	return nil, a.Rooms.Forget(r.Ctx(), requester(r).UserID, room)
}

// spec: cs/getRoomState
func (a *API) state(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	state, err := a.Rooms.WholeState(r.Ctx(), requester(r).UserID, room)
	if err != nil {
		return nil, err
	}
	events, err := state.All(r.Ctx())
	if err != nil {
		return nil, err
	}
	return a.renderAll(r, events)
}

// spec: cs/getRoomStateWithKey
func (a *API) stateEvent(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	ev, err := a.Rooms.VisibleStateEvent(r.Ctx(), requester(r).UserID, room, r.Var("eventType"), r.Var("stateKey"))
	if err != nil {
		return nil, err
	}
	if ev == nil {
		return nil, matrix.NotFound("The room has no such state.")
	}
	switch r.Query("format") {
	case "", "content":
		return endpoint.Raw(ev.Content()), nil
	case "event":
		return a.render(r, ev)
	}
	return nil, matrix.InvalidParam("format must be content or event.")
}

// spec: cs/setRoomStateWithKey
func (a *API) setState(r *endpoint.Request) (any, error) {
	key := r.Var("stateKey")
	return a.send(r, &key)
}

// spec: cs/sendMessage
func (a *API) sendMessage(r *endpoint.Request) (any, error) { return a.send(r, nil) }

func (a *API) send(r *endpoint.Request, stateKey *string) (any, error) {
	q, err := sendRequest(r, stateKey)
	if err != nil {
		return nil, err
	}
	if r.HasQuery(delayParam) {
		return a.sendLater(r, q)
	}
	if q.Content, err = contentOf(r); err != nil {
		return nil, err
	}
	if q.Timestamp, err = massaged(r); err != nil {
		return nil, err
	}
	id, err := a.Rooms.Send(r.Ctx(), q)
	if err != nil {
		return nil, err
	}
	return map[string]matrix.EventID{"event_id": id}, nil
}

// sendRequest is what the path says of an event to be sent.
func sendRequest(r *endpoint.Request, stateKey *string) (rooms.SendRequest, error) {
	room, err := roomVar(r)
	if err != nil {
		return rooms.SendRequest{}, err
	}
	who := requester(r)
	q := rooms.SendRequest{
		Room: room, Sender: who.UserID, Type: r.Var("eventType"), StateKey: stateKey, Device: who.DeviceID, TxnID: r.Var("txnId"),
	}
	if r.HasQuery(stickyParam) {
		ms, err := r.QueryInt(stickyParam, -1)
		if err != nil {
			return q, err
		}
		if ms < 0 || ms > event.MaxSticky {
			return q, matrix.InvalidParam("%s must be from 0 to %d.", stickyParam, int64(event.MaxSticky))
		}
		q.Sticky = &ms
	}
	return q, checkSticky(q)
}

// stickyParam makes an event sticky for so many milliseconds. spec: MSC4354
const stickyParam = "org.matrix.msc4354.sticky_duration_ms"

func checkSticky(q rooms.SendRequest) error {
	if q.Sticky != nil && q.StateKey != nil {
		return matrix.InvalidParam("State events cannot be sticky.")
	}
	return nil
}

// contentOf is the body as the content of an event.
func contentOf(r *endpoint.Request) ([]byte, error) {
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	return body, checkObject(body)
}

func checkObject(content []byte) error {
	var object map[string]json.RawMessage
	if err := strictjson.Unmarshal(content, &object); err != nil {
		return err
	}
	if object == nil {
		return matrix.BadJSON("The content must be an object.")
	}
	return nil
}

// spec: cs/redactEvent
func (a *API) redact(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEventVar(r)
	if err != nil {
		return nil, err
	}
	var req struct {
		Reason string `json:"reason"`
	}
	if err := r.DecodeOptional(&req); err != nil {
		return nil, err
	}
	who := requester(r)
	sent, err := a.Rooms.Redact(r.Ctx(), rooms.SendRequest{
		Room: room, Sender: who.UserID, Redacts: id, Device: who.DeviceID, TxnID: r.Var("txnId"),
	}, req.Reason)
	if err != nil {
		return nil, err
	}
	return map[string]matrix.EventID{"event_id": sent}, nil
}

// spec: cs/getMembersByRoom
func (a *API) members(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	req := rooms.MembersRequest{
		Room: room, User: requester(r).UserID, Membership: r.Query("membership"), NotMembership: r.Query("not_membership"),
	}
	for name, m := range map[string]string{"membership": req.Membership, "not_membership": req.NotMembership} {
		switch m {
		case "", "join", "invite", "knock", "leave", "ban":
		default:
			return nil, matrix.InvalidParam("%s must be join, invite, knock, leave or ban.", name)
		}
	}
	if at := r.Query("at"); at != "" {
		if pos, err := feed.ParsePosition(at); err == nil {
			req.Position = pos
		} else if t, err := rooms.ParseToken(at); err == nil {
			req.Place = &t
		} else {
			return nil, err
		}
	}
	events, err := a.Rooms.Members(r.Ctx(), req)
	if err != nil {
		return nil, err
	}
	chunk, err := a.renderAll(r, events)
	if err != nil {
		return nil, err
	}
	return map[string]any{"chunk": chunk}, nil
}

// memberToAsk is a joined member as whom the requester may look at a room: of a service any of its users. M_FORBIDDEN.
func (a *API) memberToAsk(r *endpoint.Request, room matrix.RoomID) (matrix.UserID, error) {
	err := a.mustBeJoined(r, room)
	if service := serviceOf(r); service != nil && matrix.HasCode(err, "M_FORBIDDEN") {
		local, unknown := a.Rooms.LocalUsers(r.Ctx(), room)
		if unknown != nil && !matrix.HasCode(unknown, "M_NOT_FOUND") {
			return "", unknown
		}
		if i := slices.IndexFunc(local, service.OwnsUser); i >= 0 {
			return local[i], nil
		}
	}
	return requester(r).UserID, err
}

// spec: cs/getJoinedMembersByRoom
func (a *API) joinedMembers(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	me, err := a.memberToAsk(r, room)
	if err != nil {
		return nil, err
	}
	events, err := a.Rooms.Members(r.Ctx(), rooms.MembersRequest{Room: room, User: me, Membership: "join"})
	if err != nil {
		return nil, err
	}
	type member struct {
		DisplayName *string `json:"display_name"` // null if unset: clients look for the key
		AvatarURL   *string `json:"avatar_url"`
	}
	joined := make(map[string]member, len(events))
	for _, ev := range events {
		var m member
		if name, ok := ev.ContentString("displayname"); ok {
			m.DisplayName = &name
		}
		if avatar, ok := ev.ContentString("avatar_url"); ok {
			m.AvatarURL = &avatar
		}
		key, _ := ev.StateKey()
		joined[key] = m
	}
	return map[string]any{"joined": joined}, nil
}
