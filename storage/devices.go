package storage

import (
	"context"

	"hanok/matrix"
)

// Device is a device of a local user.
type Device struct {
	UserID      matrix.UserID
	DeviceID    matrix.DeviceID
	DisplayName string
	LastSeenAt  matrix.Timestamp // 0 if never
	LastSeenIP  string           // "" unless addresses are kept
	UserAgent   string           // "" unless addresses are kept
}

const listDevices = `SELECT device_id, display_name, last_seen_ts, last_seen_ip, user_agent
	FROM devices WHERE user_id = $1 ORDER BY device_id`

// ListDevices returns a user's devices.
func ListDevices(ctx context.Context, q Querier, user matrix.UserID) ([]Device, error) {
	return collect(ctx, q, func(r *Rows) (Device, error) {
		d := Device{UserID: user}
		var name, agent []byte
		err := r.Scan(&d.DeviceID, &name, &d.LastSeenAt, &d.LastSeenIP, &agent)
		d.DisplayName, d.UserAgent = string(name), string(agent)
		return d, err
	}, listDevices, user)
}

const getDevice = `SELECT display_name, last_seen_ts, last_seen_ip, user_agent FROM devices WHERE user_id = $1 AND device_id = $2`

// GetDevice returns one device, ErrNotFound if there is none.
func GetDevice(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) (Device, error) {
	d := Device{UserID: user, DeviceID: device}
	var name, agent []byte
	err := q.QueryRow(ctx, getDevice, user, device).Scan(&name, &d.LastSeenAt, &d.LastSeenIP, &agent)
	d.DisplayName, d.UserAgent = string(name), string(agent)
	return d, err
}

const insertDevice = `INSERT INTO devices (user_id, device_id, display_name, last_seen_ts, last_seen_ip, user_agent)
	VALUES ($1, $2, $3, 0, '', $4) ON CONFLICT (user_id, device_id) DO NOTHING`

// InsertDevice makes a device and reports false if it exists, unchanged.
func InsertDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, displayName string) (bool, error) {
	n, err := tx.Exec(ctx, insertDevice, user, device, []byte(displayName), []byte{})
	return n == 1, err
}

const renameDevice = `UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2`

// RenameDevice reports false if there is no such device.
func RenameDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, displayName string) (bool, error) {
	n, err := tx.Exec(ctx, renameDevice, user, device, []byte(displayName))
	return n == 1, err
}

const setDeviceSeen = `UPDATE devices SET last_seen_ts = $3, last_seen_ip = $4, user_agent = $5 WHERE user_id = $1 AND device_id = $2`

// SetDevicesSeen stores when devices were last seen; names are ignored.
func SetDevicesSeen(ctx context.Context, tx *Tx, seen []Device) error {
	args := make([][]any, len(seen))
	for i, d := range seen {
		args[i] = []any{d.UserID, d.DeviceID, d.LastSeenAt, d.LastSeenIP, []byte(d.UserAgent)}
	}
	return tx.ExecBatch(ctx, setDeviceSeen, args)
}

var deleteDevice = []string{
	`DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM key_signatures WHERE target_user = $1 AND target_id = $2`,
	`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM to_device_sent WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM pushers WHERE user_id = $1 AND device_id = $2`,
	`DELETE FROM sliding_connections WHERE user_id = $1 AND device_id = $2`,
}

const deleteDeviceRow = `DELETE FROM devices WHERE user_id = $1 AND device_id = $2`

// DeleteDevice removes a device and all that hangs on it, and reports whether there was one.
func DeleteDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID) (bool, error) {
	if err := notePushers(tx, user); err != nil {
		return false, err
	}
	for _, stmt := range deleteDevice {
		if _, err := tx.Exec(ctx, stmt, user, device); err != nil {
			return false, err
		}
	}
	n, err := tx.Exec(ctx, deleteDeviceRow, user, device)
	return n > 0, err
}
