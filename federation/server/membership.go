package server

import (
	"github.com/go-json-experiment/json/jsontext"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// made is the answer of the make_ endpoints.
type made struct {
	Version roomversion.ID `json:"room_version"`
	Event   jsontext.Value `json:"event"`
}

// makeRequest reads what the make_ endpoints share. The user must belong to the server that asks.
func makeRequest(r *endpoint.Request) (room matrix.RoomID, user matrix.UserID, err error) {
	if room, err = roomID(r); err != nil {
		return "", "", err
	}
	if user, err = matrix.ParseUserID(r.Var("userId")); err != nil {
		return "", "", err
	}
	if user.Server() != origin(r) {
		return "", "", matrix.Forbidden("%s is not a user of %s.", user, origin(r))
	}
	return room, user, nil
}

func versions(r *endpoint.Request) []roomversion.ID {
	values := r.QueryAll("ver")
	if len(values) == 0 {
		return []roomversion.ID{"1"}
	}
	out := make([]roomversion.ID, len(values))
	for i, v := range values {
		out[i] = roomversion.ID(v)
	}
	return out
}

// spec: ss/makeJoin
func (s *Server) makeJoin(r *endpoint.Request) (any, error) {
	room, user, err := makeRequest(r)
	if err != nil {
		return nil, err
	}
	m, err := s.opts.Rooms.MakeJoin(r.Ctx(), origin(r), room, user, versions(r))
	return made{m.Version, m.Event}, err
}

// spec: ss/makeKnock
func (s *Server) makeKnock(r *endpoint.Request) (any, error) {
	room, user, err := makeRequest(r)
	if err != nil {
		return nil, err
	}
	m, err := s.opts.Rooms.MakeKnock(r.Ctx(), origin(r), room, user, versions(r))
	return made{m.Version, m.Event}, err
}

// spec: ss/makeLeave
func (s *Server) makeLeave(r *endpoint.Request) (any, error) {
	room, user, err := makeRequest(r)
	if err != nil {
		return nil, err
	}
	m, err := s.opts.Rooms.MakeLeave(r.Ctx(), origin(r), room, user)
	return made{m.Version, m.Event}, err
}

// spec: ss/sendJoinV2
func (s *Server) sendJoin(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEvent(r)
	if err != nil {
		return nil, err
	}
	omit, err := r.QueryBool("omit_members", false)
	if err != nil {
		return nil, err
	}
	pdu, err := r.Body()
	if err != nil {
		return nil, err
	}
	sent, err := s.opts.Rooms.SendJoin(r.Ctx(), origin(r), room, id, pdu, omit)
	if err != nil {
		return nil, err
	}
	return joinAnswer(s.opts.ServerName, sent), nil
}

// joinAnswer splices the events: they are canonical JSON, and may be many megabytes.
func joinAnswer(self matrix.ServerName, sent rooms.SentJoin) endpoint.Raw {
	var o objectBuilder
	o.events("auth_chain", sent.AuthChain)
	if sent.Event != nil {
		o.raw("event", sent.Event)
	}
	o.boolean("members_omitted", sent.MembersOmitted)
	o.text("origin", string(self)) // servers older than v1.1 of the specification look for it
	if sent.MembersOmitted {
		names := make([]string, len(sent.Servers))
		for i, n := range sent.Servers {
			names[i] = string(n)
		}
		o.texts("servers_in_room", names)
	}
	o.events("state", sent.State)
	return o.done()
}

// sendJoinV1 is for servers older than version 1.1 of the specification, which removed it in 1.18.
func (s *Server) sendJoinV1(r *endpoint.Request) (any, error) {
	answer, err := s.sendJoin(r)
	if err != nil {
		return nil, err
	}
	return endpoint.Raw("[200," + string(answer.(endpoint.Raw)) + "]"), nil
}

// spec: ss/sendLeaveV2
func (s *Server) sendLeave(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEvent(r)
	if err != nil {
		return nil, err
	}
	pdu, err := r.Body()
	if err != nil {
		return nil, err
	}
	return nil, s.opts.Rooms.SendLeave(r.Ctx(), origin(r), room, id, pdu)
}

// sendLeaveV1 is what sendJoinV1 is for joins.
func (s *Server) sendLeaveV1(r *endpoint.Request) (any, error) {
	if _, err := s.sendLeave(r); err != nil {
		return nil, err
	}
	return endpoint.Raw("[200,{}]"), nil
}

// spec: ss/sendKnock
func (s *Server) sendKnock(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEvent(r)
	if err != nil {
		return nil, err
	}
	pdu, err := r.Body()
	if err != nil {
		return nil, err
	}
	state, err := s.opts.Rooms.SendKnock(r.Ctx(), origin(r), room, id, pdu)
	if err != nil {
		return nil, err
	}
	var o objectBuilder
	o.events("knock_room_state", state)
	return o.done(), nil
}

// spec: ss/sendInviteV2
func (s *Server) inviteV2(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEvent(r)
	if err != nil {
		return nil, err
	}
	var body struct {
		Version roomversion.ID   `json:"room_version"`
		Event   jsontext.Value   `json:"event"`
		State   []jsontext.Value `json:"invite_room_state"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Version == "" || body.Event == nil {
		return nil, matrix.MissingParam("room_version and event are required.")
	}
	signed, err := s.opts.Rooms.ReceiveInvite(r.Ctx(), origin(r), room, id, body.Version, body.Event, raws(body.State))
	if err != nil {
		return nil, err
	}
	var o objectBuilder
	o.raw("event", signed)
	return o.done(), nil
}

// inviteV1 is for rooms of version 1 and 2 only. spec: ss/sendInviteV1
func (s *Server) inviteV1(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEvent(r)
	if err != nil {
		return nil, err
	}
	var event struct {
		Unsigned struct {
			State []jsontext.Value `json:"invite_room_state"`
		} `json:"unsigned"`
	}
	if err := r.Decode(&event); err != nil {
		return nil, err
	}
	pdu, err := r.Body()
	if err != nil {
		return nil, err
	}
	signed, err := s.opts.Rooms.ReceiveInvite(r.Ctx(), origin(r), room, id, "", pdu, raws(event.Unsigned.State))
	if err != nil {
		return nil, err
	}
	var o objectBuilder
	o.raw("event", signed)
	return endpoint.Raw("[200," + string(o.done()) + "]"), nil
}

func raws(values []jsontext.Value) [][]byte {
	out := make([][]byte, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}
