package client

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/matrix"
)

// Limits of answers that hold events: an event is at most 64 KiB.
const (
	oneEventMaxBytes  = 256 << 10
	authChainMaxBytes = 32 << 20
	idsMaxBytes       = 32 << 20
	eventsTimeout     = time.Minute
	policyTimeout     = 10 * time.Second
)

// someEventsMaxBytes is the limit of an answer with so many events, some more of common size, or a few that are over the limit of events.
func someEventsMaxBytes(count int) int64 { return int64(max(count, 0)+8) << 16 }

// Event fetches one event. spec: ss/getEvent
func (c *Client) Event(ctx context.Context, dest matrix.ServerName, id matrix.EventID) ([]byte, error) {
	var answer struct {
		PDUs eventList `json:"pdus"`
	}
	err := c.Do(ctx, Request{
		Operation: "getEvent", Method: http.MethodGet, Destination: dest, Path: v1("event", string(id)), MaxBytes: oneEventMaxBytes,
	}, &answer)
	if err != nil {
		return nil, err
	}
	if len(answer.PDUs) != 1 {
		return nil, c.nonsense(dest, "getEvent", "it does not hold one event")
	}
	return answer.PDUs[0], nil
}

// State fetches the state before an event and its auth chain. spec: ss/getRoomState
func (c *Client) State(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth [][]byte, err error) {
	var answer struct {
		PDUs      eventList `json:"pdus"`
		AuthChain eventList `json:"auth_chain"`
	}
	err = c.Do(ctx, Request{
		Operation: "getRoomState", Method: http.MethodGet, Destination: dest, Path: v1("state", string(room)),
		Query: url.Values{"event_id": {string(at)}}, Timeout: stateTimeout, MaxBytes: stateMaxBytes,
	}, &answer)
	if err != nil {
		return nil, nil, err
	}
	return answer.PDUs, answer.AuthChain, nil
}

// StateIDs is State with event IDs only. spec: ss/getRoomStateIds
func (c *Client) StateIDs(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, at matrix.EventID) (state, auth []matrix.EventID, err error) {
	var answer struct {
		PDUs      idList `json:"pdu_ids"`
		AuthChain idList `json:"auth_chain_ids"`
	}
	err = c.Do(ctx, Request{
		Operation: "getRoomStateIds", Method: http.MethodGet, Destination: dest, Path: v1("state_ids", string(room)),
		Query: url.Values{"event_id": {string(at)}}, Timeout: eventsTimeout, MaxBytes: idsMaxBytes,
	}, &answer)
	return answer.PDUs, answer.AuthChain, err
}

// EventAuth fetches an event's auth chain. spec: ss/getEventAuth
func (c *Client) EventAuth(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, id matrix.EventID) ([][]byte, error) {
	var answer struct {
		AuthChain eventList `json:"auth_chain"`
	}
	err := c.Do(ctx, Request{
		Operation: "getEventAuth", Method: http.MethodGet, Destination: dest, Path: v1("event_auth", string(room), string(id)),
		Timeout: eventsTimeout, MaxBytes: authChainMaxBytes,
	}, &answer)
	return answer.AuthChain, err
}

// Backfill fetches history. spec: ss/backfillRoom
func (c *Client) Backfill(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, from []matrix.EventID, limit int) ([][]byte, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, id := range from {
		query.Add("v", string(id))
	}
	var answer struct {
		PDUs eventList `json:"pdus"`
	}
	err := c.Do(ctx, Request{
		Operation: "backfillRoom", Method: http.MethodGet, Destination: dest, Path: v1("backfill", string(room)),
		Query: query, Timeout: eventsTimeout, MaxBytes: someEventsMaxBytes(limit),
	}, &answer)
	return answer.PDUs, err
}

// MissingEvents fetches the events between what we have and what we were sent. spec: ss/getMissingPreviousEvents
func (c *Client) MissingEvents(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([][]byte, error) {
	body, err := json.Marshal(struct {
		Limit    int              `json:"limit"`
		MinDepth int64            `json:"min_depth"`
		Earliest []matrix.EventID `json:"earliest_events"`
		Latest   []matrix.EventID `json:"latest_events"`
	}{limit, minDepth, earliest, latest})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Events eventList `json:"events"`
	}
	err = c.Do(ctx, Request{
		Operation: "getMissingPreviousEvents", Method: http.MethodPost, Destination: dest, Body: body,
		Path: v1("get_missing_events", string(room)), Timeout: eventsTimeout, MaxBytes: someEventsMaxBytes(limit),
	}, &answer)
	return answer.Events, err
}

// TimestampToEvent asks for the event closest to a time; dir is "f" or "b". spec: ss/getEventByTimestamp
func (c *Client) TimestampToEvent(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, ts matrix.Timestamp, dir string) (matrix.EventID, matrix.Timestamp, error) {
	var answer struct {
		ID matrix.EventID   `json:"event_id"`
		TS matrix.Timestamp `json:"origin_server_ts"`
	}
	err := c.Do(ctx, Request{
		Operation: "getEventByTimestamp", Method: http.MethodGet, Destination: dest, Path: v1("timestamp_to_event", string(room)),
		Query: url.Values{"ts": {strconv.FormatInt(int64(ts), 10)}, "dir": {dir}},
	}, &answer)
	return answer.ID, answer.TS, err
}
