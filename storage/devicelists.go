package storage

import (
	"context"

	"hanok/matrix"
)

const getDeviceListStream = `SELECT stream_id FROM device_list_changes WHERE user_id = $1`

// DeviceListStreamID returns the stream_id of a local user's last m.device_list_update, 0 if there was none.
func DeviceListStreamID(ctx context.Context, q Querier, user matrix.UserID) (id int64, err error) {
	err = q.QueryRow(ctx, getDeviceListStream, user).Scan(&id)
	if err == ErrNotFound {
		err = nil
	}
	return id, err
}

const getDeviceListPosition = `SELECT position FROM device_list_changes WHERE user_id = $1`

// DeviceListPosition returns when a user's devices or keys last changed, 0 if never.
func DeviceListPosition(ctx context.Context, q Querier, user matrix.UserID) (pos Position, err error) {
	err = q.QueryRow(ctx, getDeviceListPosition, user).Scan(&pos)
	if err == ErrNotFound {
		err = nil
	}
	return pos, err
}

const putDeviceListChange = `INSERT INTO device_list_changes (user_id, position, ts, stream_id) VALUES ($1, $2, $3, $4)
	ON CONFLICT (user_id) DO UPDATE SET position = excluded.position, ts = excluded.ts,
	stream_id = CASE WHEN excluded.stream_id = 0 THEN device_list_changes.stream_id ELSE excluded.stream_id END`

// SetDeviceListChange notes that a user's devices or keys changed; streamID 0 keeps the one before.
func SetDeviceListChange(ctx context.Context, tx *Tx, user matrix.UserID, pos Position, at matrix.Timestamp, streamID int64) error {
	tx.note(pos, Subject{Topic: TopicDeviceLists})
	_, err := tx.Exec(ctx, putDeviceListChange, user, pos, at, streamID)
	return err
}

const putDeviceListStream = `INSERT INTO device_list_changes (user_id, position, ts, stream_id) VALUES ($1, 0, 0, $2)
	ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id`

// SetDeviceListStreamID notes a local user's last m.device_list_update, which told of no change.
func SetDeviceListStreamID(ctx context.Context, tx *Tx, user matrix.UserID, streamID int64) error {
	_, err := tx.Exec(ctx, putDeviceListStream, user, streamID)
	return err
}

// DeviceListChange is when a user's devices or keys last changed.
type DeviceListChange struct {
	UserID matrix.UserID
	Pos    Position
}

const deviceListsChangedSince = `SELECT user_id, position FROM device_list_changes WHERE ts >= $1 AND user_id IN ($in)`

// DeviceListsChangedSince returns those of users whose devices or keys have changed since a time.
func DeviceListsChangedSince(ctx context.Context, q Querier, users []matrix.UserID, since matrix.Timestamp) ([]DeviceListChange, error) {
	scan := func(r *Rows) (c DeviceListChange, err error) { return c, r.Scan(&c.UserID, &c.Pos) }
	return collectIn(ctx, q, scan, deviceListsChangedSince, []any{since}, users)
}

// UnannouncedJoin is the last join of a local user of which other servers were not told yet in an update of the user's devices.
type UnannouncedJoin struct {
	UserID matrix.UserID
	Pos    Position
}

const (
	putUnannouncedJoin = `INSERT INTO unannounced_joins (user_id, position) VALUES ($1, $2)
	ON CONFLICT (user_id) DO UPDATE SET position = excluded.position`
	getUnannouncedJoin    = `SELECT position FROM unannounced_joins WHERE user_id = $1`
	listUnannouncedJoins  = `SELECT user_id, position FROM unannounced_joins WHERE user_id > $1 ORDER BY user_id LIMIT $2`
	deleteUnannouncedJoin = `DELETE FROM unannounced_joins WHERE user_id = $1 AND position <= $2`
)

// PutUnannouncedJoins notes joins of local users, to be announced.
func PutUnannouncedJoins(ctx context.Context, tx *Tx, joins []UnannouncedJoin) error {
	args := make([][]any, len(joins))
	for i, j := range joins {
		args[i] = []any{j.UserID, j.Pos}
	}
	return tx.ExecBatch(ctx, putUnannouncedJoin, args)
}

// UnannouncedJoinOf returns the position of a user's last join that is to be announced, 0 if there is none.
func UnannouncedJoinOf(ctx context.Context, q Querier, user matrix.UserID) (pos Position, err error) {
	err = q.QueryRow(ctx, getUnannouncedJoin, user).Scan(&pos)
	if err == ErrNotFound {
		err = nil
	}
	return pos, err
}

// ListUnannouncedJoins returns those that are to be announced, in the order of users.
func ListUnannouncedJoins(ctx context.Context, q Querier, after matrix.UserID, limit int) ([]UnannouncedJoin, error) {
	scan := func(r *Rows) (j UnannouncedJoin, err error) { return j, r.Scan(&j.UserID, &j.Pos) }
	return collect(ctx, q, scan, listUnannouncedJoins, after, limit)
}

// DeleteUnannouncedJoin notes that a user's joins up to a position were announced.
func DeleteUnannouncedJoin(ctx context.Context, tx *Tx, user matrix.UserID, until Position) error {
	_, err := tx.Exec(ctx, deleteUnannouncedJoin, user, until)
	return err
}

const putPrivateKeyChange = `INSERT INTO private_key_changes (observer, user_id, position) VALUES ($1, $2, $3)
	ON CONFLICT (observer, user_id) DO UPDATE SET position = excluded.position`

// SetPrivateKeyChange notes a change of user's keys that only observer may see.
func SetPrivateKeyChange(ctx context.Context, tx *Tx, observer, user matrix.UserID, pos Position) error {
	tx.note(pos, Subject{Topic: TopicPrivateKeys, User: string(observer)})
	_, err := tx.Exec(ctx, putPrivateKeyChange, observer, user, pos)
	return err
}

const (
	deviceListChanges = `SELECT user_id FROM device_list_changes WHERE position > $1 AND position <= $2`
	privateKeyChanges = `SELECT user_id FROM private_key_changes WHERE observer = $1 AND position > $2 AND position <= $3`
)

// DeviceListChanges lists the users whose device lists last changed in (from, to].
func DeviceListChanges(ctx context.Context, q Querier, from, to Position) ([]matrix.UserID, error) {
	return collect(ctx, q, scanUserID, deviceListChanges, from, to)
}

// PrivateKeyChanges lists the users with changes that only observer may see.
func PrivateKeyChanges(ctx context.Context, q Querier, observer matrix.UserID, from, to Position) ([]matrix.UserID, error) {
	return collect(ctx, q, scanUserID, privateKeyChanges, observer, from, to)
}

func scanUserID(r *Rows) (u matrix.UserID, err error) { return u, r.Scan(&u) }

// RemoteDeviceList says what is known of a remote user's device list.
type RemoteDeviceList struct {
	UserID   matrix.UserID
	StreamID int64
	Seen     []byte // JSON, the latest stream_ids applied
	Stale    bool   // must be fetched again before it is used
	Failures int64  // of fetching it
	RetryAt  matrix.Timestamp
}

func scanRemoteDeviceList(r *Rows) (l RemoteDeviceList, err error) {
	return l, r.Scan(&l.UserID, &l.StreamID, &l.Seen, &l.Stale, &l.Failures, &l.RetryAt)
}

const remoteDeviceListColumns = `user_id, stream_id, seen, stale, failures, retry_ts`

const listRemoteDeviceLists = `SELECT ` + remoteDeviceListColumns + ` FROM remote_device_lists WHERE user_id IN ($in)`

// ListRemoteDeviceLists returns what is known of users' lists; unknown ones are left out.
func ListRemoteDeviceLists(ctx context.Context, q Querier, users []matrix.UserID) ([]RemoteDeviceList, error) {
	return collectIn(ctx, q, scanRemoteDeviceList, listRemoteDeviceLists, nil, users)
}

const trackedUsers = `SELECT user_id FROM remote_device_lists WHERE user_id > $1 ORDER BY user_id LIMIT $2`

// TrackedUsers lists the remote users whose devices are cached, in order.
func TrackedUsers(ctx context.Context, q Querier, after matrix.UserID, limit int) ([]matrix.UserID, error) {
	return collect(ctx, q, scanUserID, trackedUsers, after, limit)
}

const staleDeviceLists = `SELECT ` + remoteDeviceListColumns + ` FROM remote_device_lists
	WHERE stale = 1 AND retry_ts <= $1 ORDER BY retry_ts LIMIT $2`

// StaleDeviceLists returns lists that are due to be fetched.
func StaleDeviceLists(ctx context.Context, q Querier, now matrix.Timestamp, limit int) ([]RemoteDeviceList, error) {
	return collect(ctx, q, scanRemoteDeviceList, staleDeviceLists, now, limit)
}

const nextStaleDeviceList = `SELECT retry_ts FROM remote_device_lists WHERE stale = 1 ORDER BY retry_ts LIMIT 1`

// NextStaleDeviceList returns when the next list is due, ErrNotFound if none is stale.
func NextStaleDeviceList(ctx context.Context, q Querier) (at matrix.Timestamp, err error) {
	return at, q.QueryRow(ctx, nextStaleDeviceList).Scan(&at)
}

const putRemoteDeviceList = `INSERT INTO remote_device_lists (` + remoteDeviceListColumns + `) VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id, seen = excluded.seen, stale = excluded.stale,
	failures = excluded.failures, retry_ts = excluded.retry_ts`

// PutRemoteDeviceList stores what is known of a list.
func PutRemoteDeviceList(ctx context.Context, tx *Tx, l RemoteDeviceList) error {
	_, err := tx.Exec(ctx, putRemoteDeviceList, l.UserID, l.StreamID, l.Seen, l.Stale, l.Failures, l.RetryAt)
	return err
}

const putRemoteDevice = `INSERT INTO remote_devices (user_id, device_id, display_name, keys) VALUES ($1, $2, $3, $4)
	ON CONFLICT (user_id, device_id) DO UPDATE SET display_name = excluded.display_name, keys = excluded.keys`

// PutRemoteDevices caches devices.
func PutRemoteDevices(ctx context.Context, tx *Tx, devices []DeviceKeys) error {
	args := make([][]any, len(devices))
	for i, d := range devices {
		args[i] = []any{d.UserID, d.DeviceID, []byte(d.DisplayName), d.Keys}
	}
	return tx.ExecBatch(ctx, putRemoteDevice, args)
}

const (
	getRemoteDevice   = `SELECT user_id, device_id, display_name, keys FROM remote_devices WHERE user_id = $1 AND device_id = $2`
	sizeRemoteDevices = `SELECT COUNT(*), COALESCE(SUM(LENGTH(keys)), 0) FROM remote_devices WHERE user_id = $1`
)

// GetRemoteDevice returns one cached device, ErrNotFound if there is none.
func GetRemoteDevice(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) (k DeviceKeys, err error) {
	var name []byte
	err = q.QueryRow(ctx, getRemoteDevice, user, device).Scan(&k.UserID, &k.DeviceID, &name, &k.Keys)
	k.DisplayName = string(name)
	return k, err
}

// RemoteDevicesSize returns how many devices of a user are cached, and how many bytes their keys have.
func RemoteDevicesSize(ctx context.Context, q Querier, user matrix.UserID) (count, bytes int64, err error) {
	return count, bytes, q.QueryRow(ctx, sizeRemoteDevices, user).Scan(&count, &bytes)
}

const (
	deleteRemoteDevice     = `DELETE FROM remote_devices WHERE user_id = $1 AND device_id = $2`
	deleteRemoteDevices    = `DELETE FROM remote_devices WHERE user_id = $1`
	deleteRemoteDeviceList = `DELETE FROM remote_device_lists WHERE user_id = $1`
	deleteCrossSigning     = `DELETE FROM cross_signing_keys WHERE user_id = $1`
)

// DeleteRemoteDevice removes one device from the cache.
func DeleteRemoteDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID) error {
	_, err := tx.Exec(ctx, deleteRemoteDevice, user, device)
	return err
}

// DeleteRemoteDevices removes all devices of a user from the cache, to be replaced.
func DeleteRemoteDevices(ctx context.Context, tx *Tx, user matrix.UserID) error {
	_, err := tx.Exec(ctx, deleteRemoteDevices, user)
	return err
}

// ForgetRemoteDeviceList removes all that is cached of a remote user's devices and keys.
func ForgetRemoteDeviceList(ctx context.Context, tx *Tx, user matrix.UserID) error {
	for _, stmt := range []string{deleteRemoteDevices, deleteRemoteDeviceList, deleteCrossSigning} {
		if _, err := tx.Exec(ctx, stmt, user); err != nil {
			return err
		}
	}
	return nil
}
