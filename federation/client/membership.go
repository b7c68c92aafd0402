package client

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// A join answers with the whole state of a room, however big.
const (
	stateMaxBytes = 192 << 20
	stateTimeout  = 5 * time.Minute
	// makeTimeout bounds a make_ request, which is little work, and may be made of another server instead.
	makeTimeout = 20 * time.Second
	// handshakeTimeout bounds a send_ request: the resident server may have to do work for it.
	handshakeTimeout = time.Minute
)

func v1(segments ...string) []string {
	return append([]string{"_matrix", "federation", "v1"}, segments...)
}

func v2(segments ...string) []string {
	return append([]string{"_matrix", "federation", "v2"}, segments...)
}

// MakeJoin asks a resident server for a join event to sign. spec: ss/makeJoin
func (c *Client) MakeJoin(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (rooms.MadeEvent, error) {
	return c.makeMembership(ctx, "makeJoin", dest, v1("make_join", string(room), string(user)), versions)
}

// MakeKnock asks a resident server for a knock event to sign. spec: ss/makeKnock
func (c *Client) MakeKnock(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (rooms.MadeEvent, error) {
	return c.makeMembership(ctx, "makeKnock", dest, v1("make_knock", string(room), string(user)), versions)
}

// MakeLeave asks a resident server for a leave event to sign. spec: ss/makeLeave
func (c *Client) MakeLeave(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, user matrix.UserID) (rooms.MadeEvent, error) {
	return c.makeMembership(ctx, "makeLeave", dest, v1("make_leave", string(room), string(user)), nil)
}

func (c *Client) makeMembership(ctx context.Context, op string, dest matrix.ServerName, path []string, versions []roomversion.ID) (rooms.MadeEvent, error) {
	query := url.Values{}
	for _, v := range versions {
		query.Add("ver", string(v))
	}
	var answer struct {
		Version *roomversion.ID `json:"room_version"`
		Event   jsontext.Value  `json:"event"`
	}
	err := c.Do(ctx, Request{
		Operation: op, Method: http.MethodGet, Destination: dest, Path: path, Query: query,
		Urgent: true, Timeout: makeTimeout,
	}, &answer)
	if err != nil {
		return rooms.MadeEvent{}, err
	}
	if answer.Event == nil {
		return rooms.MadeEvent{}, c.nonsense(dest, op, "it has no event")
	}
	made := rooms.MadeEvent{Version: "1", Event: answer.Event} // no version means 1 or 2, whose events look alike
	if answer.Version != nil {
		made.Version = *answer.Version
	}
	return made, nil
}

// joinAnswer is the answer to a signed join.
type joinAnswer struct {
	Event          jsontext.Value `json:"event"`
	State          eventList      `json:"state"`
	AuthChain      eventList      `json:"auth_chain"`
	MembersOmitted bool           `json:"members_omitted"`
	Servers        nameList       `json:"servers_in_room"`
}

// SendJoin submits a signed join and returns the room's state, from which the other server may leave the members out. spec: ss/sendJoinV2
func (c *Client) SendJoin(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) (rooms.SentJoin, error) {
	var answer joinAnswer
	request := Request{
		Operation: "sendJoinV2", Method: http.MethodPut, Destination: dest, Body: pdu, Made: true, Urgent: true, Query: url.Values{"omit_members": {"true"}},
		Path: v2("send_join", string(room), string(id)), Timeout: stateTimeout, MaxBytes: stateMaxBytes,
	}
	err := c.Do(ctx, request, &answer)
	if Unrecognised(err) {
		request.Operation, request.Path, request.Query = "sendJoinV1", v1("send_join", string(room), string(id)), nil
		err = c.doV1(ctx, request, &answer)
	}
	if err != nil {
		return rooms.SentJoin{}, err
	}
	return rooms.SentJoin{
		Event: answer.Event, State: answer.State, AuthChain: answer.AuthChain,
		MembersOmitted: answer.MembersOmitted, Servers: answer.Servers,
	}, nil
}

// SendLeave submits a signed leave. spec: ss/sendLeaveV2
func (c *Client) SendLeave(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) error {
	request := Request{
		Operation: "sendLeaveV2", Method: http.MethodPut, Destination: dest, Body: pdu, Made: true, Urgent: true,
		Path: v2("send_leave", string(room), string(id)), Timeout: handshakeTimeout,
	}
	err := c.Do(ctx, request, nil)
	if Unrecognised(err) {
		request.Operation, request.Path = "sendLeaveV1", v1("send_leave", string(room), string(id))
		err = c.Do(ctx, request, nil)
	}
	return err
}

// doV1 makes a request of the first version of an endpoint, whose answer stands in [200, {}]. Servers that know no other were
// made before version 1.1 of the specification.
func (c *Client) doV1(ctx context.Context, request Request, answer any) error {
	var pair pair
	if err := c.Do(ctx, request, &pair); err != nil {
		return err
	}
	if len(pair) != 2 || json.Unmarshal(pair[1], answer) != nil {
		return c.nonsense(request.Destination, request.Operation, "it is not [200, {}]")
	}
	return nil
}

// SendKnock submits a signed knock and returns events that describe the room. spec: ss/sendKnock
func (c *Client) SendKnock(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte) (stripped [][]byte, err error) {
	var answer struct {
		State       []jsontext.Value `json:"knock_room_state"`
		LegacyState []jsontext.Value `json:"knock_state_events"` // the name before the endpoint became stable
	}
	err = c.Do(ctx, Request{
		Operation: "sendKnock", Method: http.MethodPut, Destination: dest, Body: pdu, Made: true, Urgent: true,
		Path: v1("send_knock", string(room), string(id)), Timeout: handshakeTimeout,
	}, &answer)
	if err != nil {
		return nil, err
	}
	if answer.State == nil {
		answer.State = answer.LegacyState
	}
	return raw(answer.State), nil
}

// Invite has the invited user's server sign an invite. spec: ss/sendInviteV2, ss/sendInviteV1
func (c *Client) Invite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, version roomversion.ID, pdu []byte, stripped [][]byte) ([]byte, error) {
	state := make([]jsontext.Value, len(stripped))
	for i, s := range stripped {
		state[i] = s
	}
	body, err := json.Marshal(struct {
		Event   jsontext.Value   `json:"event"`
		Version roomversion.ID   `json:"room_version"`
		State   []jsontext.Value `json:"invite_room_state"`
	}{pdu, version, state})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Event jsontext.Value `json:"event"`
	}
	err = c.Do(ctx, Request{
		Operation: "sendInviteV2", Method: http.MethodPut, Destination: dest, Body: body, Made: true, Urgent: true,
		Path: v2("invite", string(room), string(id)), Timeout: handshakeTimeout,
	}, &answer)
	if Unrecognised(err) && (version == "1" || version == "2") {
		return c.inviteV1(ctx, dest, room, id, pdu, state)
	}
	if err != nil {
		return nil, err
	}
	if answer.Event == nil {
		return nil, c.nonsense(dest, "sendInviteV2", "it has no event")
	}
	return answer.Event, nil
}

// inviteV1 is for servers that know room versions 1 and 2 only. spec: ss/sendInviteV1
func (c *Client) inviteV1(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID, pdu []byte, state []jsontext.Value) ([]byte, error) {
	var event map[string]jsontext.Value
	if err := json.Unmarshal(pdu, &event); err != nil {
		return nil, err
	}
	unsigned, err := json.Marshal(map[string]any{"invite_room_state": state})
	if err != nil {
		return nil, err
	}
	event["unsigned"] = unsigned
	body, err := json.Marshal(event)
	if err != nil {
		return nil, err
	}
	var answer struct {
		Event jsontext.Value `json:"event"`
	}
	err = c.doV1(ctx, Request{
		Operation: "sendInviteV1", Method: http.MethodPut, Destination: dest, Body: body, Made: true, Urgent: true,
		Path: v1("invite", string(room), string(id)), Timeout: handshakeTimeout,
	}, &answer)
	if err != nil {
		return nil, err
	}
	if answer.Event == nil {
		return nil, c.nonsense(dest, "sendInviteV1", "it has no event")
	}
	return answer.Event, nil
}

// nonsense is an answer of the wrong shape.
func (c *Client) nonsense(dest matrix.ServerName, op, why string) error {
	return &Error{Destination: dest, Status: http.StatusOK, Cause: errors.New("answer to " + op + ": " + why)}
}

func raw(values []jsontext.Value) [][]byte {
	out := make([][]byte, len(values))
	for i, v := range values {
		out[i] = v
	}
	return out
}

// ExchangeThirdPartyInvite asks the server of whoever invited an address to invite the user that it belongs to.
// spec: ss/exchangeThirdPartyInvite
func (c *Client) ExchangeThirdPartyInvite(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, event []byte) error {
	return c.Do(ctx, Request{
		Operation: "exchangeThirdPartyInvite", Method: http.MethodPut, Destination: dest, Body: event, Made: true,
		Path: v1("exchange_third_party_invite", string(room)), Timeout: handshakeTimeout,
	}, nil)
}
