package storage

import (
	"context"

	"hanok/matrix"
)

// ToDeviceMessage is a message queued for a device.
type ToDeviceMessage struct {
	UserID   matrix.UserID
	DeviceID matrix.DeviceID
	Position Position
	Event    []byte // {"content":..., "sender":..., "type":...}
}

const insertToDevice = `INSERT INTO to_device (user_id, device_id, position, event) VALUES ($1, $2, $3, $4)`

// InsertToDevice queues messages.
func InsertToDevice(ctx context.Context, tx *Tx, messages []ToDeviceMessage) error {
	args := make([][]any, len(messages))
	for i, m := range messages {
		args[i] = []any{m.UserID, m.DeviceID, m.Position, m.Event}
		tx.note(m.Position, Subject{Topic: TopicToDevice, User: string(m.UserID)})
	}
	return tx.ExecBatch(ctx, insertToDevice, args)
}

const pendingToDevice = `SELECT position, event FROM to_device
	WHERE user_id = $1 AND device_id = $2 AND position > $3 AND position <= $4 ORDER BY position LIMIT $5`

// PendingToDevice returns the first messages in (from, to].
func PendingToDevice(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID, from, to Position, limit int) ([]ToDeviceMessage, error) {
	return collect(ctx, q, func(r *Rows) (ToDeviceMessage, error) {
		m := ToDeviceMessage{UserID: user, DeviceID: device}
		return m, r.Scan(&m.Position, &m.Event)
	}, pendingToDevice, user, device, from, to, limit)
}

const oldestToDevice = `SELECT position FROM to_device WHERE user_id = $1 AND device_id = $2 ORDER BY position LIMIT 1`

// OldestToDevice returns the position of the first message of a device, ErrNotFound if there is none.
func OldestToDevice(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) (pos Position, err error) {
	return pos, q.QueryRow(ctx, oldestToDevice, user, device).Scan(&pos)
}

const deleteToDevice = `DELETE FROM to_device WHERE user_id = $1 AND device_id = $2 AND position <= $3`

// DeleteToDevice removes a device's messages up to a position.
func DeleteToDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, upTo Position) error {
	_, err := tx.Exec(ctx, deleteToDevice, user, device, upTo)
	return err
}

const overflowToDevice = `SELECT position FROM (
		SELECT position, ROW_NUMBER() OVER newest AS number, SUM(LENGTH(event)) OVER newest AS size FROM to_device
		WHERE user_id = $1 AND device_id = $2 WINDOW newest AS (ORDER BY position DESC)
	) AS queue WHERE number > $3 OR size > $4 ORDER BY position DESC LIMIT 1`

// TrimToDevice removes the oldest messages of a device beyond a number and a size in bytes.
func TrimToDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, keep int, size int64) error {
	var pos Position
	err := tx.QueryRow(ctx, overflowToDevice, user, device, keep, size).Scan(&pos)
	if err == ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	return DeleteToDevice(ctx, tx, user, device, pos)
}

const devicesOf = `SELECT device_id FROM devices WHERE user_id = $1`

// DeviceIDs lists the devices of a local user.
func DeviceIDs(ctx context.Context, q Querier, user matrix.UserID) ([]matrix.DeviceID, error) {
	return collect(ctx, q, func(r *Rows) (d matrix.DeviceID, err error) { return d, r.Scan(&d) }, devicesOf, user)
}

const insertToDeviceSent = `INSERT INTO to_device_sent (user_id, device_id, txn_id, ts) VALUES ($1, $2, $3, $4)
	ON CONFLICT (user_id, device_id, txn_id) DO NOTHING`

// NoteToDeviceSent reports false if this transaction of the device was noted before.
func NoteToDeviceSent(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, txnID string, now matrix.Timestamp) (bool, error) {
	n, err := tx.Exec(ctx, insertToDeviceSent, user, device, []byte(txnID), now)
	return n == 1, err
}

const insertToDeviceReceived = `INSERT INTO to_device_received (server, message_id, ts) VALUES ($1, $2, $3)
	ON CONFLICT (server, message_id) DO NOTHING`

// NoteToDeviceReceived reports false if this message of the server was noted before.
func NoteToDeviceReceived(ctx context.Context, tx *Tx, server matrix.ServerName, messageID string, now matrix.Timestamp) (bool, error) {
	n, err := tx.Exec(ctx, insertToDeviceReceived, server, []byte(messageID), now)
	return n == 1, err
}

const (
	overflowToDeviceReceived = `SELECT ts FROM to_device_received WHERE server = $1 ORDER BY ts DESC LIMIT 1 OFFSET $2`
	trimToDeviceReceived     = `DELETE FROM to_device_received WHERE server = $1 AND ts <= $2`
)

// TrimToDeviceReceived forgets the oldest notes about a server beyond keep.
func TrimToDeviceReceived(ctx context.Context, tx *Tx, server matrix.ServerName, keep int) error {
	var at matrix.Timestamp
	err := tx.QueryRow(ctx, overflowToDeviceReceived, server, keep).Scan(&at)
	if err == ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, trimToDeviceReceived, server, at)
	return err
}

const (
	expireToDeviceSent     = `DELETE FROM to_device_sent WHERE ts < $1`
	expireToDeviceReceived = `DELETE FROM to_device_received WHERE ts < $1`
)

// ExpireToDeviceNotes forgets notes from before a time.
func ExpireToDeviceNotes(ctx context.Context, tx *Tx, before matrix.Timestamp) error {
	if _, err := tx.Exec(ctx, expireToDeviceSent, before); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, expireToDeviceReceived, before)
	return err
}
