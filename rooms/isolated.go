package rooms

import (
	"context"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// isolated is the Remote of an engine without federation.
type isolated struct{}

var errIsolated = matrix.Forbidden("federation is off on this server")

func (isolated) Verify(_ context.Context, events []*event.Event) []error {
	out := make([]error, len(events))
	for i := range out {
		out[i] = errIsolated
	}
	return out
}
func (isolated) MakeJoin(context.Context, matrix.ServerName, matrix.RoomID, matrix.UserID, []roomversion.ID) (MadeEvent, error) {
	return MadeEvent{}, errIsolated
}
func (isolated) SendJoin(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, []byte) (SentJoin, error) {
	return SentJoin{}, errIsolated
}
func (isolated) MakeLeave(context.Context, matrix.ServerName, matrix.RoomID, matrix.UserID) (MadeEvent, error) {
	return MadeEvent{}, errIsolated
}
func (isolated) SendLeave(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, []byte) error {
	return errIsolated
}
func (isolated) MakeKnock(context.Context, matrix.ServerName, matrix.RoomID, matrix.UserID, []roomversion.ID) (MadeEvent, error) {
	return MadeEvent{}, errIsolated
}
func (isolated) SendKnock(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, []byte) ([][]byte, error) {
	return nil, errIsolated
}
func (isolated) Invite(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, roomversion.ID, []byte, [][]byte) ([]byte, error) {
	return nil, errIsolated
}
func (isolated) ExchangeThirdPartyInvite(context.Context, matrix.ServerName, matrix.RoomID, []byte) error {
	return errIsolated
}
func (isolated) Event(context.Context, matrix.ServerName, matrix.EventID) ([]byte, error) {
	return nil, errIsolated
}
func (isolated) State(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID) (state, auth [][]byte, err error) {
	return nil, nil, errIsolated
}
func (isolated) StateIDs(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID) (state, auth []matrix.EventID, err error) {
	return nil, nil, errIsolated
}
func (isolated) EventAuth(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID) ([][]byte, error) {
	return nil, errIsolated
}
func (isolated) Backfill(context.Context, matrix.ServerName, matrix.RoomID, []matrix.EventID, int) ([][]byte, error) {
	return nil, errIsolated
}
func (isolated) MissingEvents(context.Context, matrix.ServerName, matrix.RoomID, []matrix.EventID, []matrix.EventID, int, int64) ([][]byte, error) {
	return nil, errIsolated
}
func (isolated) TimestampToEvent(context.Context, matrix.ServerName, matrix.RoomID, matrix.Timestamp, string) (matrix.EventID, matrix.Timestamp, error) {
	return "", 0, errIsolated
}
func (isolated) PolicySign(context.Context, matrix.ServerName, []byte, bool) ([]byte, error) {
	return nil, errIsolated
}
func (isolated) Hierarchy(context.Context, matrix.ServerName, matrix.RoomID, bool) (*Hierarchy, error) {
	return nil, errIsolated
}
func (isolated) Directory(context.Context, matrix.ServerName, matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	return "", nil, errIsolated
}
