package client

import (
	"context"
	stdjson "encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

const keysMaxBytes = 8 << 20

// Directory resolves an alias at its own server. spec: ss/queryRoomDirectory
func (c *Client) Directory(ctx context.Context, dest matrix.ServerName, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	var answer struct {
		Room    matrix.RoomID `json:"room_id"`
		Servers nameList      `json:"servers"`
	}
	err := c.Do(ctx, Request{
		Operation: "queryRoomDirectory", Method: http.MethodGet, Destination: dest, Path: v1("query", "directory"),
		Query: url.Values{"room_alias": {string(alias)}}, Urgent: true,
	}, &answer)
	if err != nil {
		return "", nil, err
	}
	if !strings.HasPrefix(string(answer.Room), "!") {
		return "", nil, c.nonsense(dest, "queryRoomDirectory", "it has no room ID")
	}
	return answer.Room, answer.Servers, nil
}

// Profile fetches a profile, or one field of it. spec: ss/queryProfile
func (c *Client) Profile(ctx context.Context, user matrix.UserID, field string) (map[string]stdjson.RawMessage, error) {
	query := url.Values{"user_id": {string(user)}}
	if field != "" {
		query.Set("field", field)
	}
	var answer map[string]stdjson.RawMessage
	err := c.Do(ctx, Request{
		Operation: "queryProfile", Method: http.MethodGet, Destination: user.Server(), Path: v1("query", "profile"),
		Query: query, MaxBytes: 128 << 10,
	}, &answer)
	return answer, err
}

// QueryKeys fetches device and cross-signing keys. spec: ss/queryUserEncryptionKeys
func (c *Client) QueryKeys(ctx context.Context, server matrix.ServerName, devices map[matrix.UserID][]matrix.DeviceID) (*users.QueryResult, error) {
	body, err := json.Marshal(map[string]any{"device_keys": devices}, json.FormatNilSliceAsNull(false))
	if err != nil {
		return nil, err
	}
	type key = wantedKey[[]matrix.DeviceID]
	var answer struct {
		DeviceKeys      wantedKeys[[]matrix.DeviceID] `json:"device_keys"`
		MasterKeys      key                           `json:"master_keys"`
		SelfSigningKeys key                           `json:"self_signing_keys"`
	}
	answer.DeviceKeys.wanted, answer.MasterKeys.wanted, answer.SelfSigningKeys.wanted = devices, devices, devices
	err = c.Do(ctx, Request{
		Operation: "queryUserEncryptionKeys", Method: http.MethodPost, Destination: server, Body: body,
		Path: v1("user", "keys", "query"), MaxBytes: keysMaxBytes,
	}, &answer)
	if err != nil {
		return nil, err
	}
	return &users.QueryResult{DeviceKeys: answer.DeviceKeys.keys, MasterKeys: answer.MasterKeys.keys, SelfSigningKeys: answer.SelfSigningKeys.keys}, nil
}

// ClaimKeys claims one-time keys. spec: ss/claimUserEncryptionKeys
func (c *Client) ClaimKeys(ctx context.Context, server matrix.ServerName, claims users.Claims) (users.ClaimedKeys, error) {
	body, err := json.Marshal(map[string]any{"one_time_keys": claims})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Keys claimed `json:"one_time_keys"`
	}
	answer.Keys.wanted = claims
	err = c.Do(ctx, Request{
		Operation: "claimUserEncryptionKeys", Method: http.MethodPost, Destination: server, Body: body,
		Path: v1("user", "keys", "claim"), MaxBytes: keysMaxBytes,
	}, &answer)
	return answer.Keys.keys, err
}

// UserDevices fetches a user's whole device list. spec: ss/getUserDevices
func (c *Client) UserDevices(ctx context.Context, user matrix.UserID) (*users.DeviceList, error) {
	var answer struct {
		users.DeviceList
		Devices deviceList `json:"devices"`
	}
	err := c.Do(ctx, Request{
		Operation: "getUserDevices", Method: http.MethodGet, Destination: user.Server(),
		Path: v1("user", "devices", string(user)), MaxBytes: keysMaxBytes,
	}, &answer)
	if err != nil {
		return nil, err
	}
	answer.DeviceList.Devices = answer.Devices
	return &answer.DeviceList, nil
}

// PublicRooms asks for a page of another server's directory. spec: ss/queryPublicRooms, ss/getPublicRooms
func (c *Client) PublicRooms(ctx context.Context, dest matrix.ServerName, r rooms.PublicRoomsRequest) (*rooms.PublicRooms, error) {
	query := url.Values{}
	if r.Limit > 0 {
		query.Set("limit", strconv.Itoa(r.Limit))
	}
	if r.Since != "" {
		query.Set("since", r.Since)
	}
	if r.AllNetworks {
		query.Set("include_all_networks", "true")
	}
	if r.Network != "" {
		query.Set("third_party_instance_id", r.Network)
	}
	req := Request{
		Operation: "getPublicRooms", Method: http.MethodGet, Destination: dest, Path: v1("publicRooms"),
		Query: query, Urgent: true, MaxBytes: 8 << 20,
	}
	if r.Search != "" || r.RoomTypes != nil {
		filter := map[string]any{}
		if r.Search != "" {
			filter["generic_search_term"] = r.Search
		}
		if r.RoomTypes != nil {
			filter["room_types"] = r.RoomTypes
		}
		doc := map[string]any{"filter": filter}
		if r.Limit > 0 {
			doc["limit"] = r.Limit
		}
		if r.Since != "" {
			doc["since"] = r.Since
		}
		if r.AllNetworks {
			doc["include_all_networks"] = true
		}
		if r.Network != "" {
			doc["third_party_instance_id"] = r.Network
		}
		body, err := json.Marshal(doc)
		if err != nil {
			return nil, err
		}
		req.Operation, req.Method, req.Query, req.Body = "queryPublicRooms", http.MethodPost, nil, body
	}
	var answer struct {
		rooms.PublicRooms
		Chunk roomList[rooms.RoomSummary] `json:"chunk"`
	}
	if err := c.Do(ctx, req, &answer); err != nil {
		return nil, err
	}
	answer.PublicRooms.Chunk = answer.Chunk
	return &answer.PublicRooms, nil
}

// Hierarchy asks about a space and its children. spec: ss/getSpaceHierarchy
func (c *Client) Hierarchy(ctx context.Context, dest matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*rooms.Hierarchy, error) {
	var answer struct {
		rooms.Hierarchy
		Children roomList[rooms.HierarchyRoom] `json:"children"`
	}
	err := c.Do(ctx, Request{
		Operation: "getSpaceHierarchy", Method: http.MethodGet, Destination: dest, Path: v1("hierarchy", string(room)),
		Query: url.Values{"suggested_only": {strconv.FormatBool(suggestedOnly)}}, MaxBytes: 8 << 20,
	}, &answer)
	if err != nil {
		return nil, err
	}
	answer.Hierarchy.Children = answer.Children
	return &answer.Hierarchy, nil
}

// Software is what a server says of itself.
type Software struct {
	Name, Version string
	Clock         time.Time // by the Date header of the answer; zero if it had none
}

// Version asks what software a server runs. spec: ss/getVersion
func (c *Client) Version(ctx context.Context, dest matrix.ServerName) (Software, error) {
	ctx, cancel := context.WithTimeout(ctx, defaultTimeout)
	defer cancel()
	const op = "getVersion"
	res, err := c.Open(ctx, Request{
		Operation: op, Method: http.MethodGet, Destination: dest, Path: v1("version"), Unsigned: true, Own: true, Urgent: true,
	})
	if err != nil {
		return Software{}, err
	}
	defer res.Body.Close()
	var answer struct {
		Server struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"server"`
	}
	body, err := io.ReadAll(newAnswer(res, defaultMaxBytes, nil))
	if err == nil {
		err = json.Unmarshal(body, &answer)
	}
	if err != nil {
		return Software{}, c.nonsense(dest, op, err.Error())
	}
	s := Software{Name: answer.Server.Name, Version: answer.Server.Version}
	if at, err := http.ParseTime(res.Header.Get("Date")); err == nil {
		s.Clock = at
	}
	return s, nil
}
