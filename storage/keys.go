package storage

import (
	"context"

	"hanok/matrix"
)

// DeviceKeys are the identity keys of one device, local or remote.
type DeviceKeys struct {
	UserID      matrix.UserID
	DeviceID    matrix.DeviceID
	DisplayName string
	Keys        []byte // canonical JSON as uploaded, nil: the device has none
}

func scanDeviceKeys(r *Rows) (k DeviceKeys, err error) {
	var name []byte
	err = r.Scan(&k.UserID, &k.DeviceID, &name, &k.Keys)
	k.DisplayName = string(name)
	return k, err
}

const (
	localDeviceKeys  = `SELECT user_id, device_id, display_name, keys FROM devices WHERE user_id IN ($in) ORDER BY user_id, device_id`
	remoteDeviceKeys = `SELECT user_id, device_id, display_name, keys FROM remote_devices WHERE user_id IN ($in) ORDER BY user_id, device_id`
)

// ListDeviceKeys returns all devices of local users.
func ListDeviceKeys(ctx context.Context, q Querier, users []matrix.UserID) ([]DeviceKeys, error) {
	return collectIn(ctx, q, scanDeviceKeys, localDeviceKeys, nil, users)
}

// ListRemoteDeviceKeys returns the cached devices of remote users.
func ListRemoteDeviceKeys(ctx context.Context, q Querier, users []matrix.UserID) ([]DeviceKeys, error) {
	return collectIn(ctx, q, scanDeviceKeys, remoteDeviceKeys, nil, users)
}

const getDeviceKeys = `SELECT user_id, device_id, display_name, keys FROM devices WHERE user_id = $1 AND device_id = $2`

// GetDeviceKeys returns one local device, ErrNotFound if there is none; its Keys may be nil.
func GetDeviceKeys(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) (k DeviceKeys, err error) {
	var name []byte
	err = q.QueryRow(ctx, getDeviceKeys, user, device).Scan(&k.UserID, &k.DeviceID, &name, &k.Keys)
	k.DisplayName = string(name)
	return k, err
}

const setDeviceKeys = `UPDATE devices SET keys = $3 WHERE user_id = $1 AND device_id = $2`

// SetDeviceKeys reports false if there is no such device.
func SetDeviceKeys(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, keys []byte) (bool, error) {
	n, err := tx.Exec(ctx, setDeviceKeys, user, device, keys)
	return n == 1, err
}

// OneTimeKey is a one-time key.
type OneTimeKey struct {
	Algorithm string
	KeyID     string // without the algorithm
	Key       []byte
}

const listOneTimeKeys = `SELECT algorithm, key_id, key FROM one_time_keys WHERE user_id = $1 AND device_id = $2`

// ListOneTimeKeys returns a device's unclaimed keys.
func ListOneTimeKeys(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) ([]OneTimeKey, error) {
	return collect(ctx, q, func(r *Rows) (k OneTimeKey, err error) {
		return k, r.Scan(&k.Algorithm, &k.KeyID, &k.Key)
	}, listOneTimeKeys, user, device)
}

const insertOneTimeKey = `INSERT INTO one_time_keys (user_id, device_id, algorithm, upload, key_id, key) VALUES ($1, $2, $3, $4, $5, $6)`

// InsertOneTimeKeys stores new keys; uploads are given out in order.
func InsertOneTimeKeys(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, upload Position, keys []OneTimeKey) error {
	tx.note(upload, Subject{Topic: TopicKeys, User: string(user)})
	args := make([][]any, len(keys))
	for i, k := range keys {
		args[i] = []any{user, device, k.Algorithm, upload, k.KeyID, k.Key}
	}
	return tx.ExecBatch(ctx, insertOneTimeKey, args)
}

const countOneTimeKeys = `SELECT algorithm, count(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm`

// CountOneTimeKeys counts a device's unclaimed keys by algorithm.
func CountOneTimeKeys(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) (map[string]int64, error) {
	rows, err := q.Query(ctx, countOneTimeKeys, user, device)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := map[string]int64{}
	for rows.Next() {
		var algorithm string
		var n int64
		if err := rows.Scan(&algorithm, &n); err != nil {
			return nil, err
		}
		counts[algorithm] = n
	}
	return counts, rows.Err()
}

const (
	oldestOneTimeKey = `SELECT upload, key_id, key FROM one_time_keys
	WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 ORDER BY upload, key_id LIMIT 1`
	deleteOneTimeKey = `DELETE FROM one_time_keys
	WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND upload = $4 AND key_id = $5`
	useFallbackKey = `UPDATE fallback_keys SET used = 1 WHERE user_id = $1 AND device_id = $2 AND algorithm = $3
	RETURNING key_id, key`
)

// ClaimKey takes the oldest one-time key of an algorithm, or the fallback key if there is
// none; ErrNotFound if there is neither. With spare, the fallback key goes before.
func ClaimKey(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, algorithm string, spare bool) (OneTimeKey, error) {
	k := OneTimeKey{Algorithm: algorithm}
	if err := tx.noteNext(Subject{Topic: TopicKeys, User: string(user)}); err != nil {
		return k, err
	}
	if spare {
		err := tx.QueryRow(ctx, useFallbackKey, user, device, algorithm).Scan(&k.KeyID, &k.Key)
		if err != ErrNotFound {
			return k, err
		}
	}
	for {
		var upload Position
		err := tx.QueryRow(ctx, oldestOneTimeKey, user, device, algorithm).Scan(&upload, &k.KeyID, &k.Key)
		if err == ErrNotFound {
			break
		}
		if err != nil {
			return k, err
		}
		// Another process may have taken it meanwhile: then the next one.
		n, err := tx.Exec(ctx, deleteOneTimeKey, user, device, algorithm, upload, k.KeyID)
		if err != nil || n == 1 {
			return k, err
		}
	}
	return k, tx.QueryRow(ctx, useFallbackKey, user, device, algorithm).Scan(&k.KeyID, &k.Key)
}

// PutFallbackKey stores a fallback key, unused, in place of the one before.
func PutFallbackKey(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID, k OneTimeKey) error {
	if err := tx.noteNext(Subject{Topic: TopicKeys, User: string(user)}); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, putFallbackKey, user, device, k.Algorithm, k.KeyID, k.Key)
	return err
}

const putFallbackKey = `INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, key, used) VALUES ($1, $2, $3, $4, $5, 0)
	ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET
	used = CASE WHEN fallback_keys.key_id = excluded.key_id AND fallback_keys.key = excluded.key THEN fallback_keys.used ELSE 0 END,
	key_id = excluded.key_id, key = excluded.key`

const unusedFallbackKeys = `SELECT algorithm FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND used = 0 ORDER BY algorithm`

// UnusedFallbackKeys lists the algorithms with a fallback key that nobody has claimed.
func UnusedFallbackKeys(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID) ([]string, error) {
	return collect(ctx, q, func(r *Rows) (s string, err error) { return s, r.Scan(&s) }, unusedFallbackKeys, user, device)
}

const deleteOneTimeKeysOfDevice = `DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2`
const deleteFallbackKeysOfDevice = `DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2`

// DeleteClaimableKeys removes a device's one-time and fallback keys.
func DeleteClaimableKeys(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID) error {
	if err := tx.noteNext(Subject{Topic: TopicKeys, User: string(user)}); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, deleteOneTimeKeysOfDevice, user, device); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, deleteFallbackKeysOfDevice, user, device)
	return err
}

// collectIn is collect for a query with an IN list; see queryIn.
func collectIn[T, E any](ctx context.Context, q Querier, scan func(*Rows) (T, error), query string, fixed []any, list []E) ([]T, error) {
	var all []T
	err := queryIn(ctx, q, query, fixed, list, func(r *Rows) error {
		v, err := scan(r)
		all = append(all, v)
		return err
	})
	return all, err
}
