package users

import (
	"context"
	"encoding/json"

	"hanok/matrix"
	"hanok/storage"
)

// errOffline is what a server with federation turned off has to say about others.
var errOffline = matrix.Forbidden("This server does not talk to other servers.")

// offlineOutbox drops what is for other servers, where there are none.
type offlineOutbox struct{}

func (offlineOutbox) QueueEDU(context.Context, *storage.Tx, []matrix.ServerName, string, []byte) error {
	return nil
}

func (offlineOutbox) SendVolatile([]matrix.ServerName, string, []byte) {}

// offlineRemote knows no other server.
type offlineRemote struct{}

func (offlineRemote) QueryKeys(context.Context, matrix.ServerName, map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error) {
	return nil, errOffline
}

func (offlineRemote) Answers(matrix.ServerName) bool { return false }

func (offlineRemote) ClaimKeys(context.Context, matrix.ServerName, Claims) (ClaimedKeys, error) {
	return nil, errOffline
}

func (offlineRemote) UserDevices(context.Context, matrix.UserID) (*DeviceList, error) {
	return nil, errOffline
}

func (offlineRemote) Profile(context.Context, matrix.UserID, string) (map[string]json.RawMessage, error) {
	return nil, errOffline
}
