package storage

import (
	"context"

	"hanok/matrix"
)

// Backup is one version of a user's key backup.
type Backup struct {
	Version   int64
	Algorithm string
	AuthData  []byte // JSON
	ETag      int64  // grows with every change
	Keys      int64  // how many keys it holds
	Deleted   bool
}

const backupColumns = `version, algorithm, auth_data, etag, key_count, deleted`

func scanBackup(scan func(...any) error) (b Backup, err error) {
	return b, scan(&b.Version, &b.Algorithm, &b.AuthData, &b.ETag, &b.Keys, &b.Deleted)
}

const (
	insertBackup = `INSERT INTO backups (user_id, ` + backupColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7)`
	lastBackup   = `SELECT coalesce(max(version), 0) FROM backups WHERE user_id = $1`
	getBackup    = `SELECT ` + backupColumns + ` FROM backups WHERE user_id = $1 AND version = $2`
	newestBackup = `SELECT ` + backupColumns + ` FROM backups WHERE user_id = $1 AND deleted = 0 ORDER BY version DESC LIMIT 1`
	updateBackup = `UPDATE backups SET auth_data = $3, etag = $4, key_count = $5, deleted = $6 WHERE user_id = $1 AND version = $2`
)

// InsertBackup makes a new version; its number is returned.
func InsertBackup(ctx context.Context, tx *Tx, user matrix.UserID, b Backup) (version int64, err error) {
	if err := tx.QueryRow(ctx, lastBackup, user).Scan(&version); err != nil {
		return 0, err
	}
	version++
	_, err = tx.Exec(ctx, insertBackup, user, version, b.Algorithm, b.AuthData, b.ETag, b.Keys, b.Deleted)
	return version, err
}

// GetBackup returns a version, deleted ones too, ErrNotFound if there never was one.
func GetBackup(ctx context.Context, q Querier, user matrix.UserID, version int64) (Backup, error) {
	return scanBackup(q.QueryRow(ctx, getBackup, user, version).Scan)
}

// CurrentBackup returns the newest version, ErrNotFound if there is none.
func CurrentBackup(ctx context.Context, q Querier, user matrix.UserID) (Backup, error) {
	return scanBackup(q.QueryRow(ctx, newestBackup, user).Scan)
}

// UpdateBackup stores all of a version but its algorithm.
func UpdateBackup(ctx context.Context, tx *Tx, user matrix.UserID, b Backup) error {
	_, err := tx.Exec(ctx, updateBackup, user, b.Version, b.AuthData, b.ETag, b.Keys, b.Deleted)
	return err
}

// BackupKey is one room key in a backup.
type BackupKey struct {
	Room              matrix.RoomID
	Session           string
	FirstMessageIndex int64
	ForwardedCount    int64
	IsVerified        bool
	SessionData       []byte // JSON
}

const backupKeyColumns = `room_id, session_id, first_message_index, forwarded_count, is_verified, session_data`

func scanBackupKey(r *Rows) (k BackupKey, err error) {
	return k, r.Scan(&k.Room, &k.Session, &k.FirstMessageIndex, &k.ForwardedCount, &k.IsVerified, &k.SessionData)
}

const (
	allBackupKeys     = `SELECT ` + backupKeyColumns + ` FROM backup_keys WHERE user_id = $1 AND version = $2 ORDER BY room_id, session_id`
	roomBackupKeys    = `SELECT ` + backupKeyColumns + ` FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 ORDER BY session_id`
	sessionBackupKeys = `SELECT ` + backupKeyColumns + ` FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4`
	putBackupKey      = `INSERT INTO backup_keys (user_id, version, ` + backupKeyColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
	ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index,
	forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, session_data = excluded.session_data`
	deleteAllBackupKeys    = `DELETE FROM backup_keys WHERE user_id = $1 AND version = $2`
	deleteRoomBackupKeys   = `DELETE FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3`
	deleteSessionBackupKey = `DELETE FROM backup_keys WHERE user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4`
)

// BackupKeys returns the keys of a version: all, one room's, or one session's.
func BackupKeys(ctx context.Context, q Querier, user matrix.UserID, version int64, room matrix.RoomID, session string) ([]BackupKey, error) {
	switch {
	case room == "":
		return collect(ctx, q, scanBackupKey, allBackupKeys, user, version)
	case session == "":
		return collect(ctx, q, scanBackupKey, roomBackupKeys, user, version, room)
	}
	return collect(ctx, q, scanBackupKey, sessionBackupKeys, user, version, room, session)
}

// PutBackupKeys stores keys.
func PutBackupKeys(ctx context.Context, tx *Tx, user matrix.UserID, version int64, keys []BackupKey) error {
	args := make([][]any, len(keys))
	for i, k := range keys {
		args[i] = []any{user, version, k.Room, k.Session, k.FirstMessageIndex, k.ForwardedCount, k.IsVerified, k.SessionData}
	}
	return tx.ExecBatch(ctx, putBackupKey, args)
}

// DeleteBackupKeys removes keys as BackupKeys selects them, and returns how many.
func DeleteBackupKeys(ctx context.Context, tx *Tx, user matrix.UserID, version int64, room matrix.RoomID, session string) (int64, error) {
	switch {
	case room == "":
		return tx.Exec(ctx, deleteAllBackupKeys, user, version)
	case session == "":
		return tx.Exec(ctx, deleteRoomBackupKeys, user, version, room)
	}
	return tx.Exec(ctx, deleteSessionBackupKey, user, version, room, session)
}
