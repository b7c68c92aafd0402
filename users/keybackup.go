package users

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Backups are server-side key backups. spec: client-server-api#server-side-key-backups
type Backups struct{ *core }

// BackupVersion describes one backup; it is the body of GET /room_keys/version.
type BackupVersion struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int64           `json:"count"`
	ETag      string          `json:"etag"`
	Version   string          `json:"version"`
}

// BackedUpKey is one room key in a backup. spec: cs/putRoomKeys
type BackedUpKey struct {
	FirstMessageIndex int64           `json:"first_message_index"`
	ForwardedCount    int64           `json:"forwarded_count"`
	IsVerified        bool            `json:"is_verified"`
	SessionData       json.RawMessage `json:"session_data"`
}

// RoomKeys are backed up keys by room and session.
type RoomKeys map[matrix.RoomID]map[string]BackedUpKey

// BackupSelection picks keys of a backup: all of them, one room's, or one session's.
type BackupSelection struct {
	Version string
	Room    matrix.RoomID // "" for all
	Session string        // "" for all
}

// check refuses a selection that no key can be in.
func (s BackupSelection) check() error {
	if s.Version == "" {
		return matrix.MissingParam("version is required")
	}
	if s.Session != "" && checkName(s.Session, "The session ID") != nil {
		return errNoBackupKey
	}
	return checkRoom(s.Room)
}

// BackupCount is the answer to every change of a backup's keys.
type BackupCount struct {
	Count int64  `json:"count"`
	ETag  string `json:"etag"`
}

// Limits of a backup.
const (
	maxBackupAuthData = 64 << 10  // bytes
	maxSessionData    = 16 << 10  // bytes
	maxBackupKeys     = 2_000_000 // per version
)

var (
	errNoBackup    = matrix.NotFound("There is no such backup")
	errNoBackupKey = matrix.NotFound("There is no such key in the backup")
)

// Create makes a new backup version, the current one from then on. spec: cs/postRoomKeysVersion
func (b *Backups) Create(ctx context.Context, user matrix.UserID, algorithm string, authData json.RawMessage) (version string, err error) {
	if err := checkName(algorithm, "The algorithm"); err != nil {
		return "", err
	}
	auth, err := opaque(authData, maxBackupAuthData, "auth_data")
	if err != nil {
		return "", err
	}
	var number int64
	err = b.DB.Write(ctx, func(tx *storage.Tx) (err error) {
		number, err = storage.InsertBackup(ctx, tx, user, storage.Backup{Algorithm: algorithm, AuthData: auth})
		return err
	})
	if err != nil {
		return "", fmt.Errorf("create backup: %w", err)
	}
	return strconv.FormatInt(number, 10), nil
}

// opaque returns data that only clients understand in canonical form: an object for the algorithms of the
// specification, a string for others. M_BAD_JSON, M_TOO_LARGE.
func opaque(raw []byte, limit int, what string) ([]byte, error) {
	if len(raw) > limit {
		return nil, matrix.TooLarge("%s is larger than %d bytes", what, limit)
	}
	canonical, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
	if err != nil {
		return nil, err
	}
	if _, isString := canonicaljson.String(canonical); !isString && !canonicaljson.IsObject(canonical) {
		return nil, matrix.BadJSON("%s must be an object", what)
	}
	return canonical, nil
}

// find returns a version that is not deleted, the current one for "": M_NOT_FOUND.
func (b *Backups) find(ctx context.Context, q storage.Querier, user matrix.UserID, version string) (storage.Backup, error) {
	var found storage.Backup
	var err error
	if version == "" {
		found, err = storage.CurrentBackup(ctx, q, user)
	} else {
		number, bad := strconv.ParseInt(version, 10, 64)
		if bad != nil {
			return found, errNoBackup
		}
		found, err = storage.GetBackup(ctx, q, user, number)
	}
	if errors.Is(err, storage.ErrNotFound) || err == nil && found.Deleted {
		return found, errNoBackup
	}
	return found, err
}

// Get returns a version, the current one for "": M_NOT_FOUND if there is none. spec: cs/getRoomKeysVersion
func (b *Backups) Get(ctx context.Context, user matrix.UserID, version string) (*BackupVersion, error) {
	found, err := b.find(ctx, b.DB, user, version)
	if err != nil {
		return nil, fmt.Errorf("get backup: %w", err)
	}
	return &BackupVersion{
		Algorithm: found.Algorithm, AuthData: found.AuthData, Count: found.Keys,
		ETag: strconv.FormatInt(found.ETag, 10), Version: strconv.FormatInt(found.Version, 10),
	}, nil
}

// Update replaces auth_data; algorithm, and bodyVersion unless empty, must match: M_INVALID_PARAM. spec: cs/putRoomKeysVersion
func (b *Backups) Update(ctx context.Context, user matrix.UserID, version, bodyVersion, algorithm string, authData json.RawMessage) error {
	auth, err := opaque(authData, maxBackupAuthData, "auth_data")
	if err != nil {
		return err
	}
	if bodyVersion != "" && bodyVersion != version {
		return matrix.InvalidParam("The version in the body is not the one in the path")
	}
	err = b.DB.Write(ctx, func(tx *storage.Tx) error {
		found, err := b.find(ctx, tx, user, version)
		if err != nil {
			return err
		}
		if found.Algorithm != algorithm {
			return matrix.InvalidParam("The algorithm of a backup cannot be changed")
		}
		found.AuthData = auth
		return storage.UpdateBackup(ctx, tx, user, found)
	})
	if err != nil {
		return fmt.Errorf("update backup: %w", err)
	}
	return nil
}

// Delete removes a version and its keys; deleting it twice is no error, M_NOT_FOUND if there never was one. spec: cs/deleteRoomKeysVersion
func (b *Backups) Delete(ctx context.Context, user matrix.UserID, version string) error {
	number, bad := strconv.ParseInt(version, 10, 64)
	if bad != nil {
		return errNoBackup
	}
	err := b.DB.Write(ctx, func(tx *storage.Tx) error {
		found, err := storage.GetBackup(ctx, tx, user, number)
		if errors.Is(err, storage.ErrNotFound) {
			return errNoBackup
		}
		if err != nil || found.Deleted {
			return err
		}
		if _, err := storage.DeleteBackupKeys(ctx, tx, user, number, "", ""); err != nil {
			return err
		}
		found.Deleted, found.Keys, found.AuthData = true, 0, []byte("{}")
		return storage.UpdateBackup(ctx, tx, user, found)
	})
	if err != nil {
		return fmt.Errorf("delete backup: %w", err)
	}
	return nil
}

// checkRoomKeys puts the data into canonical form and refuses what cannot be stored.
func checkRoomKeys(keys RoomKeys) ([]storage.BackupKey, error) {
	var rows []storage.BackupKey
	for room, sessions := range keys {
		if _, err := matrix.ParseRoomID(string(room)); err != nil {
			return nil, err
		}
		for session, k := range sessions {
			if err := checkName(session, "The session ID"); err != nil {
				return nil, err
			}
			if k.FirstMessageIndex < 0 || k.ForwardedCount < 0 {
				return nil, matrix.InvalidParam("first_message_index and forwarded_count must not be negative")
			}
			data, err := opaque(k.SessionData, maxSessionData, "session_data")
			if err != nil {
				return nil, err
			}
			rows = append(rows, storage.BackupKey{Room: room, Session: session, FirstMessageIndex: k.FirstMessageIndex,
				ForwardedCount: k.ForwardedCount, IsVerified: k.IsVerified, SessionData: data})
		}
	}
	return rows, nil
}

// better reports whether a key is to replace the stored one. spec: client-server-api#server-side-key-backups
func better(k, stored storage.BackupKey) bool {
	switch {
	case k.IsVerified != stored.IsVerified:
		return k.IsVerified
	case k.FirstMessageIndex != stored.FirstMessageIndex:
		return k.FirstMessageIndex < stored.FirstMessageIndex
	}
	return k.ForwardedCount < stored.ForwardedCount
}

// PutKeys adds keys to the current version, keeping the better of two for the same session:
// M_WRONG_ROOM_KEYS_VERSION (403) with current_version if version is not current, M_NOT_FOUND if there is no backup. spec: cs/putRoomKeys
func (b *Backups) PutKeys(ctx context.Context, user matrix.UserID, version string, keys RoomKeys) (*BackupCount, error) {
	rows, err := checkRoomKeys(keys)
	if err != nil {
		return nil, err
	}
	var count *BackupCount
	err = b.DB.Write(ctx, func(tx *storage.Tx) error {
		current, err := b.find(ctx, tx, user, "")
		if err != nil {
			return err
		}
		if strconv.FormatInt(current.Version, 10) != version {
			return matrix.Errorf(http.StatusForbidden, "M_WRONG_ROOM_KEYS_VERSION", "This is not the current backup").
				With("current_version", strconv.FormatInt(current.Version, 10))
		}
		var stored []storage.BackupKey
		if len(rows) == 1 {
			stored, err = storage.BackupKeys(ctx, tx, user, current.Version, rows[0].Room, rows[0].Session)
			if err != nil {
				return err
			}
		} else {
			for room := range keys {
				inRoom, err := storage.BackupKeys(ctx, tx, user, current.Version, room, "")
				if err != nil {
					return err
				}
				stored = append(stored, inRoom...)
			}
		}
		type id struct {
			room    matrix.RoomID
			session string
		}
		existing := map[id]storage.BackupKey{}
		for _, s := range stored {
			existing[id{s.Room, s.Session}] = s
		}
		var put []storage.BackupKey
		for _, k := range rows {
			old, ok := existing[id{k.Room, k.Session}]
			if ok && !better(k, old) {
				continue
			}
			if !ok {
				current.Keys++
			}
			put = append(put, k)
		}
		if current.Keys > maxBackupKeys {
			return matrix.TooLarge("The backup holds as many keys as it may")
		}
		if len(put) > 0 {
			current.ETag++
			if err := storage.PutBackupKeys(ctx, tx, user, current.Version, put); err != nil {
				return err
			}
			if err := storage.UpdateBackup(ctx, tx, user, current); err != nil {
				return err
			}
		}
		count = &BackupCount{Count: current.Keys, ETag: strconv.FormatInt(current.ETag, 10)}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("put backup keys: %w", err)
	}
	return count, nil
}

// GetKeys returns keys of any version: M_NOT_FOUND for an unknown version, or session if one is selected. spec: cs/getRoomKeys
func (b *Backups) GetKeys(ctx context.Context, user matrix.UserID, s BackupSelection) (RoomKeys, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	out := RoomKeys{}
	err := b.DB.Read(ctx, func(tx *storage.Tx) error {
		found, err := b.find(ctx, tx, user, s.Version)
		if err != nil {
			return err
		}
		rows, err := storage.BackupKeys(ctx, tx, user, found.Version, s.Room, s.Session)
		if err != nil {
			return err
		}
		if s.Session != "" && len(rows) == 0 {
			return errNoBackupKey
		}
		for _, k := range rows {
			if out[k.Room] == nil {
				out[k.Room] = map[string]BackedUpKey{}
			}
			out[k.Room][k.Session] = BackedUpKey{k.FirstMessageIndex, k.ForwardedCount, k.IsVerified, k.SessionData}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("get backup keys: %w", err)
	}
	return out, nil
}

// DeleteKeys removes keys; none is no error. spec: cs/deleteRoomKeys
func (b *Backups) DeleteKeys(ctx context.Context, user matrix.UserID, s BackupSelection) (*BackupCount, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	var count *BackupCount
	err := b.DB.Write(ctx, func(tx *storage.Tx) error {
		found, err := b.find(ctx, tx, user, s.Version)
		if err != nil {
			return err
		}
		n, err := storage.DeleteBackupKeys(ctx, tx, user, found.Version, s.Room, s.Session)
		if err != nil {
			return err
		}
		if n > 0 {
			found.Keys -= n
			found.ETag++
			if err := storage.UpdateBackup(ctx, tx, user, found); err != nil {
				return err
			}
		}
		count = &BackupCount{Count: found.Keys, ETag: strconv.FormatInt(found.ETag, 10)}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("delete backup keys: %w", err)
	}
	return count, nil
}
