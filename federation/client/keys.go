package client

import (
	"context"
	"net/http"

	"github.com/go-json-experiment/json"

	"hanok/matrix"
)

const (
	serverKeyMaxBytes = 64 << 10
	notaryMaxBytes    = 8 << 20
)

// ServerKeys fetches a server's own key document. urgent: it was just heard from. spec: ss/getServerKey
func (c *Client) ServerKeys(ctx context.Context, server matrix.ServerName, urgent bool) ([]byte, error) {
	return c.Raw(ctx, Request{
		Operation: "getServerKey", Method: http.MethodGet, Destination: server, Path: []string{"_matrix", "key", "v2", "server"},
		Unsigned: true, Own: true, Urgent: urgent, MaxBytes: serverKeyMaxBytes,
	})
}

// KeyCriteria says which keys a notary is asked for: by server, then by key ID ("" or none: all), the time until which they should be valid.
type KeyCriteria map[matrix.ServerName]map[matrix.KeyID]matrix.Timestamp

// QueryNotary asks a notary for key documents of other servers. spec: ss/bulkPerspectivesKeyQuery
func (c *Client) QueryNotary(ctx context.Context, notary matrix.ServerName, criteria KeyCriteria) ([][]byte, error) {
	type minimum struct {
		ValidUntil matrix.Timestamp `json:"minimum_valid_until_ts"`
	}
	wanted := make(map[matrix.ServerName]map[matrix.KeyID]minimum, len(criteria))
	for server, keys := range criteria {
		wanted[server] = map[matrix.KeyID]minimum{}
		for id, until := range keys {
			wanted[server][id] = minimum{until}
		}
	}
	body, err := json.Marshal(map[string]any{"server_keys": wanted})
	if err != nil {
		return nil, err
	}
	var answer struct {
		Keys eventList `json:"server_keys"`
	}
	err = c.Do(ctx, Request{
		Operation: "bulkPerspectivesKeyQuery", Method: http.MethodPost, Destination: notary, Body: body,
		Path: []string{"_matrix", "key", "v2", "query"}, MaxBytes: notaryMaxBytes,
	}, &answer)
	return answer.Keys, err
}
