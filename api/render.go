package api

import (
	"encoding/json"
	"slices"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// reader is the requester as somebody who is told of events.
func (a *API) reader(r *endpoint.Request) (rooms.Reader, error) {
	who := requester(r)
	ignored, err := a.Users.Accounts.Ignored(r.Ctx(), a.DB, who.UserID)
	return rooms.Reader{User: who.UserID, Device: who.DeviceID, Ignored: ignored}, err
}

// render is an event as the requester's device is told it.
func (a *API) render(r *endpoint.Request, ev *rooms.Event) (json.RawMessage, error) {
	out, err := a.renderAll(r, []*rooms.Event{ev})
	if err != nil {
		return nil, err
	}
	return out[0], nil
}

// renderAll is render for several events, with the aggregations of what relates to them.
func (a *API) renderAll(r *endpoint.Request, events []*rooms.Event) ([]json.RawMessage, error) {
	who := requester(r)
	var relations map[storage.EventNID][]byte
	if slices.ContainsFunc(events, func(ev *rooms.Event) bool { return !ev.IsState() }) {
		rd, err := a.reader(r)
		if err != nil {
			return nil, err
		}
		if relations, err = a.Rooms.Aggregations(r.Ctx(), rd, events, false); err != nil {
			return nil, err
		}
	}
	out := make([]json.RawMessage, len(events))
	for i, ev := range events {
		o, err := a.Rooms.ClientOptions(r.Ctx(), ev, who.UserID, who.DeviceID)
		if err != nil {
			return nil, err
		}
		o.Relations = relations[ev.NID]
		out[i] = ev.AppendClient(nil, o)
	}
	return out, nil
}

// lazyMembers are the membership events of the senders of a page, for clients that load members lazily.
// spec: client-server-api#lazy-loading-room-members
func (a *API) lazyMembers(r *endpoint.Request, state rooms.State, pages ...[]*rooms.Event) ([]json.RawMessage, error) {
	var keys []matrix.StateKey
	var sent []*rooms.Event // one of each sender
	seen := make(map[matrix.UserID]bool)
	for _, page := range pages {
		for _, ev := range page {
			if !seen[ev.Sender()] {
				seen[ev.Sender()] = true
				sent = append(sent, ev)
				keys = append(keys, matrix.StateKey{Type: "m.room.member", Key: string(ev.Sender())})
			}
		}
	}
	events, err := state.Events(r.Ctx(), keys...)
	if err != nil {
		return nil, err
	}
	found := events[:0]
	for i, ev := range events {
		if ev == nil && sent[i].Partial {
			if ev, err = a.Rooms.SenderMember(r.Ctx(), sent[i]); err != nil {
				return nil, err
			}
		}
		if ev != nil {
			found = append(found, ev)
		}
	}
	return a.renderAll(r, found)
}
