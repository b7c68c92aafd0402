package api

import (
	"encoding/json"
	"slices"
	"time"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
)

// The endpoints from before /sync, which some clients and bots still use to look into rooms.

// maxLegacyPoll bounds how long GET /events waits.
const maxLegacyPoll = time.Minute

// spec: cs/getEvents, cs/peekEvents
func (a *API) events(r *endpoint.Request) (any, error) {
	q := feed.EventsRequest{User: requester(r).UserID}
	var err error
	if s := r.Query("from"); s != "" {
		if q.From, err = feed.ParseToken(s); err != nil {
			return nil, err
		}
	}
	if s := r.Query("room_id"); s != "" {
		if q.Room, err = matrix.ParseRoomID(s); err != nil {
			return nil, matrix.InvalidParam("%q is not a room ID.", s)
		}
	}
	timeout, err := r.QueryInt("timeout", 0)
	if err != nil {
		return nil, err
	}
	q.Timeout = min(time.Duration(max(0, min(timeout, 1<<40)))*time.Millisecond, maxLegacyPoll)
	// Pages have a size of their own, but what is no number is a mistake.
	if limit, err := r.QueryInt("limit", 0); err != nil {
		return nil, err
	} else if limit < 0 {
		return nil, matrix.InvalidParam("limit must not be negative.")
	}
	if err := a.active(r, ""); err != nil {
		return nil, err
	}
	page, err := a.Feed.Events(r.Ctx(), q)
	if err != nil {
		return nil, err
	}
	chunk, err := a.renderOld(r, page.Events)
	if err != nil {
		return nil, err
	}
	chunk = append(chunk, page.Beside...)
	return struct {
		Start string            `json:"start"`
		End   string            `json:"end"`
		Chunk []json.RawMessage `json:"chunk"`
	}{page.Start.String(), page.End.String(), chunk}, nil
}

// renderOld is renderAll for clients that know a sender as user_id.
func (a *API) renderOld(r *endpoint.Request, events []*rooms.Event) ([]json.RawMessage, error) {
	out, err := a.renderAll(r, events)
	for i, ev := range events[:len(out)] {
		old := canonicaljson.AppendString([]byte(`{"user_id":`), string(ev.Sender()))
		out[i] = append(append(old, ','), out[i][1:]...)
	}
	return out, err
}

// spec: cs/getOneEvent
func (a *API) oneEvent(r *endpoint.Request) (any, error) {
	id, err := eventVar(r)
	if err != nil {
		return nil, err
	}
	ev, err := a.Rooms.Event(r.Ctx(), id)
	if err != nil {
		return nil, err
	}
	if ev, err = a.Rooms.VisibleEvent(r.Ctx(), requester(r).UserID, ev.RoomID(), id); err != nil {
		return nil, err
	}
	return a.render(r, ev)
}

// roomInfo is a room as the deprecated endpoints show it.
type roomInfo struct {
	RoomID      matrix.RoomID     `json:"room_id"`
	Membership  string            `json:"membership,omitempty"`
	Invite      json.RawMessage   `json:"invite,omitempty"`
	Messages    *messagesChunk    `json:"messages,omitempty"`
	State       []json.RawMessage `json:"state,omitempty"`
	Visibility  string            `json:"visibility"`
	AccountData []accountDatum    `json:"account_data"`
	Presence    []json.RawMessage `json:"presence,omitzero"`
	Receipts    []json.RawMessage `json:"receipts,omitzero"`
}

type messagesChunk struct {
	Start string            `json:"start,omitempty"`
	End   string            `json:"end"`
	Chunk []json.RawMessage `json:"chunk"`
}

type accountDatum struct {
	Type    string          `json:"type"`
	Content json.RawMessage `json:"content"`
}

const defaultLegacyLimit = 10

// spec: cs/roomInitialSync
func (a *API) roomInitialSync(r *endpoint.Request) (any, error) {
	room, err := roomVar(r)
	if err != nil {
		return nil, err
	}
	limit, err := limitVar(r, &feed.RoomEventFilter{}, defaultLegacyLimit)
	if err != nil {
		return nil, err
	}
	if err := a.Rooms.AwaitMembers(r.Ctx(), requester(r).UserID, room); err != nil {
		return nil, err
	}
	m, err := a.Rooms.MembershipOf(r.Ctx(), room, requester(r).UserID)
	if err != nil {
		return nil, err
	}
	info, err := a.roomInfo(r, room, m.Membership, limit)
	if err != nil {
		return nil, err
	}
	info.Presence, info.Receipts = []json.RawMessage{}, []json.RawMessage{}
	if m.LeftPosition != 0 {
		return info, nil // how the room was on leaving
	}
	members, err := a.Rooms.JoinedUsers(r.Ctx(), room)
	if err != nil {
		return nil, err
	}
	if info.Presence, err = a.Feed.Presences(members); err != nil {
		return nil, err
	}
	info.Receipts, err = a.roomReceipts(r, info.Receipts, room)
	return info, err
}

// roomReceipts adds the event with a room's receipts, if there are any.
func (a *API) roomReceipts(r *endpoint.Request, to []json.RawMessage, room matrix.RoomID) ([]json.RawMessage, error) {
	event, err := a.Feed.RoomReceipts(r.Ctx(), room, requester(r).UserID)
	if event != nil {
		to = append(to, event)
	}
	return to, err
}

func (a *API) roomInfo(r *endpoint.Request, room matrix.RoomID, membership string, limit int) (*roomInfo, error) {
	me := requester(r).UserID
	end := feed.At(a.DB.Current())
	state, err := a.Rooms.VisibleState(r.Ctx(), me, room)
	if err != nil {
		return nil, err
	}
	out := &roomInfo{RoomID: room, Membership: membership, Visibility: "private"}
	if public, err := a.Rooms.Published(r.Ctx(), room); err != nil {
		return nil, err
	} else if public {
		out.Visibility = "public"
	}
	page, err := a.Rooms.Messages(r.Ctx(), rooms.MessagesRequest{Room: room, User: me, Backward: true, Limit: limit})
	if err != nil {
		return nil, err
	}
	slices.Reverse(page.Events)
	out.Messages = &messagesChunk{End: end.String()}
	if page.End != nil {
		out.Messages.Start = page.End.String()
	}
	if out.Messages.Chunk, err = a.renderOld(r, page.Events); err != nil {
		return nil, err
	}
	events, err := state.All(r.Ctx())
	if err != nil {
		return nil, err
	}
	if out.State, err = a.renderOld(r, events); err != nil {
		return nil, err
	}
	data, err := a.Users.AccountData.InRoom(r.Ctx(), a.DB, me, room)
	if err != nil {
		return nil, err
	}
	for _, d := range data {
		out.AccountData = append(out.AccountData, accountDatum{d.Type, d.Content})
	}
	return out, nil
}

// spec: cs/initialSync
func (a *API) initialSync(r *endpoint.Request) (any, error) {
	me := requester(r).UserID
	limit, err := limitVar(r, &feed.RoomEventFilter{}, defaultLegacyLimit)
	if err != nil {
		return nil, err
	}
	archived, err := r.QueryBool("archived", false)
	if err != nil {
		return nil, err
	}
	if err := a.active(r, ""); err != nil {
		return nil, err
	}
	out := struct {
		End         string            `json:"end"`
		Presence    []json.RawMessage `json:"presence"`
		Receipts    []json.RawMessage `json:"receipts"`
		Rooms       []*roomInfo       `json:"rooms"`
		AccountData []accountDatum    `json:"account_data"`
	}{Receipts: []json.RawMessage{}, End: feed.At(a.DB.Current()).String()}
	kinds := []string{"join", "invite"}
	if archived {
		kinds = append(kinds, "leave", "ban")
	}
	memberships, err := a.Rooms.Memberships(r.Ctx(), me, kinds...)
	if err != nil {
		return nil, err
	}
	partial := a.Rooms.PartialAt(a.DB.Current())
	for _, m := range memberships {
		var info *roomInfo
		switch {
		case m.Membership == "join" && partial[m.RoomNID]:
			continue // whoever asks for all members is shown the room when they are known
		case m.Membership == "invite":
			info, err = a.invitedInfo(r, m)
		case m.Membership == "join" || m.LeftPosition != 0:
			if info, err = a.roomInfo(r, m.Room, m.Membership, limit); err == nil && m.Membership == "join" {
				out.Receipts, err = a.roomReceipts(r, out.Receipts, m.Room)
			}
		default:
			continue // an invite that was turned down: there was never anything to see
		}
		if err != nil {
			return nil, err
		}
		out.Rooms = append(out.Rooms, info)
	}
	seen, err := a.Rooms.Sharing(r.Ctx(), me)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(seen, me) {
		seen = append(slices.Clip(seen), me)
	}
	if out.Presence, err = a.Feed.Presences(seen); err != nil {
		return nil, err
	}
	data, err := a.Users.AccountData.Global(r.Ctx(), a.DB, me)
	if err != nil {
		return nil, err
	}
	for _, d := range data {
		if d.Type != "m.push_rules" { // it has an endpoint of its own, and comes with /events when it changes
			out.AccountData = append(out.AccountData, accountDatum{d.Type, d.Content})
		}
	}
	return out, nil
}

func (a *API) invitedInfo(r *endpoint.Request, m rooms.Membership) (*roomInfo, error) {
	out := &roomInfo{RoomID: m.Room, Membership: m.Membership, Visibility: "private"}
	ev, err := a.Rooms.Event(r.Ctx(), m.Event)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.Invite, err = a.render(r, ev)
	return out, err
}
