package storage

import (
	"context"

	"hanok/matrix"
)

// SlidingConnection is what a connection of sliding sync had been told when a response was given.
type SlidingConnection struct {
	Version Position
	User    matrix.UserID
	Device  matrix.DeviceID
	ConnID  string
	UsedAt  matrix.Timestamp // to the hour
	State   []byte           // as feed encodes it
}

const getSlidingConnection = `SELECT version, user_id, device_id, conn_id, used_ts, state FROM sliding_connections WHERE version = $1`

// GetSlidingConnection returns one version of a connection: ErrNotFound.
func GetSlidingConnection(ctx context.Context, q Querier, version Position) (c SlidingConnection, err error) {
	return c, q.QueryRow(ctx, getSlidingConnection, version).Scan(&c.Version, &c.User, &c.Device, &c.ConnID, &c.UsedAt, &c.State)
}

const slidingConnectionsOfDevice = `SELECT version, user_id, device_id, conn_id, used_ts FROM sliding_connections
	WHERE user_id = $1 AND device_id = $2 ORDER BY version DESC`

// SlidingConnectionsOfDevice lists all versions of a device's connections, the newest first, without their state.
func SlidingConnectionsOfDevice(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) ([]SlidingConnection, error) {
	return collect(ctx, q, func(r *Rows) (c SlidingConnection, err error) {
		return c, r.Scan(&c.Version, &c.User, &c.Device, &c.ConnID, &c.UsedAt)
	}, slidingConnectionsOfDevice, user, device)
}

const insertSlidingConnection = `INSERT INTO sliding_connections (version, user_id, device_id, conn_id, used_ts, state) VALUES ($1, $2, $3, $4, $5, $6)`

// InsertSlidingConnection stores a new version.
func InsertSlidingConnection(ctx context.Context, tx *Tx, c SlidingConnection) error {
	_, err := tx.Exec(ctx, insertSlidingConnection, c.Version, c.User, c.Device, c.ConnID, c.UsedAt, c.State)
	return err
}

const touchSlidingConnection = `UPDATE sliding_connections SET used_ts = $2 WHERE version = $1`

// TouchSlidingConnection notes that a version was continued from.
func TouchSlidingConnection(ctx context.Context, tx *Tx, version Position, at matrix.Timestamp) error {
	_, err := tx.Exec(ctx, touchSlidingConnection, version, at)
	return err
}

const deleteSlidingConnection = `DELETE FROM sliding_connections WHERE version = $1`

// DeleteSlidingConnections removes versions.
func DeleteSlidingConnections(ctx context.Context, tx *Tx, versions []Position) error {
	args := make([][]any, len(versions))
	for i, v := range versions {
		args[i] = []any{v}
	}
	if len(args) == 0 {
		return nil
	}
	return tx.ExecBatch(ctx, deleteSlidingConnection, args)
}

const expireSlidingConnections = `DELETE FROM sliding_connections WHERE used_ts < $1`

// ExpireSlidingConnections removes what was not used since a time.
func ExpireSlidingConnections(ctx context.Context, tx *Tx, before matrix.Timestamp) error {
	_, err := tx.Exec(ctx, expireSlidingConnections, before)
	return err
}
