package server

import (
	"context"
	"encoding/json"

	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// errOffline is what a server with federation turned off has to say about others.
var errOffline = matrix.Forbidden("This server does not talk to other servers.")

// noOutbox drops what is for other servers, when federation is off.
type noOutbox struct{}

func (noOutbox) QueueEDU(context.Context, *storage.Tx, []matrix.ServerName, string, []byte) error {
	return nil
}

func (noOutbox) SendVolatile([]matrix.ServerName, string, []byte) {}

// noRemote knows no other server.
type noRemote struct{}

func (noRemote) QueryKeys(context.Context, matrix.ServerName, map[matrix.UserID][]matrix.DeviceID) (*users.QueryResult, error) {
	return nil, errOffline
}

func (noRemote) Answers(matrix.ServerName) bool { return false }

func (noRemote) ClaimKeys(context.Context, matrix.ServerName, users.Claims) (users.ClaimedKeys, error) {
	return nil, errOffline
}

func (noRemote) UserDevices(context.Context, matrix.UserID) (*users.DeviceList, error) {
	return nil, errOffline
}

func (noRemote) Profile(context.Context, matrix.UserID, string) (map[string]json.RawMessage, error) {
	return nil, errOffline
}
