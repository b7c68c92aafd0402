package api

import (
	"encoding/json"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
)

const (
	defaultNotifications = 20
	maxNotifications     = 100
)

// spec: cs/getNotifications
func (a *API) notifications(r *endpoint.Request) (any, error) {
	who := requester(r)
	limit, err := positiveVar(r, defaultNotifications)
	if err != nil {
		return nil, err
	}
	found, next, err := a.Feed.Notifications(r.Ctx(), feed.NotifiedRequest{
		User: who.UserID, From: r.Query("from"), Limit: min(limit, maxNotifications), Highlights: r.Query("only") == "highlight",
	})
	if err != nil {
		return nil, err
	}
	type notification struct {
		Actions []json.RawMessage `json:"actions"`
		Event   json.RawMessage   `json:"event"`
		Read    bool              `json:"read"`
		RoomID  matrix.RoomID     `json:"room_id"`
		TS      matrix.Timestamp  `json:"ts"`
	}
	list := make([]notification, len(found))
	for i, n := range found {
		o, err := a.Rooms.ClientOptions(r.Ctx(), n.Event, who.UserID, who.DeviceID)
		if err != nil {
			return nil, err
		}
		o.OmitRoomID = true
		list[i] = notification{n.Actions, n.Event.AppendClient(nil, o), n.Read, n.Event.RoomID(), n.Event.ReceivedTS}
	}
	return struct {
		Next string         `json:"next_token,omitempty"`
		List []notification `json:"notifications"`
	}{next, list}, nil
}
