package storage

import (
	"context"

	"hanok/matrix"
)

// AccessToken is a stored access token with the account and device it stands for.
type AccessToken struct {
	Hash        []byte
	UserID      matrix.UserID
	DeviceID    matrix.DeviceID
	ExpiresAt   *matrix.Timestamp // nil: never
	RefreshHash []byte            // the refresh token that goes with it, nil: none
	Replaces    []byte            // the refresh token it was got with, nil once it has been used
}

// TokenHolder is an access token with what every request needs to know of its account.
type TokenHolder struct {
	AccessToken
	Kind                                  string
	Admin, Deactivated, Locked, Suspended bool
}

const insertAccessToken = `INSERT INTO access_tokens (hash, user_id, device_id, expires_ts, refresh_hash, replaces)
	VALUES ($1, $2, $3, $4, $5, $6)`

// InsertAccessToken stores a new access token.
func InsertAccessToken(ctx context.Context, tx *Tx, t AccessToken) error {
	_, err := tx.Exec(ctx, insertAccessToken, t.Hash, t.UserID, t.DeviceID, t.ExpiresAt, t.RefreshHash, t.Replaces)
	return err
}

const getTokenHolder = `SELECT t.hash, t.user_id, t.device_id, t.expires_ts, t.refresh_hash, t.replaces,
	a.kind, a.admin, a.deactivated, a.locked, a.suspended
	FROM access_tokens t JOIN accounts a ON a.user_id = t.user_id WHERE t.hash = $1`

// GetTokenHolder finds an access token, ErrNotFound if there is none.
func GetTokenHolder(ctx context.Context, q Querier, hash []byte) (h TokenHolder, err error) {
	err = q.QueryRow(ctx, getTokenHolder, hash).Scan(&h.Hash, &h.UserID, &h.DeviceID, &h.ExpiresAt, &h.RefreshHash, &h.Replaces,
		&h.Kind, &h.Admin, &h.Deactivated, &h.Locked, &h.Suspended)
	return h, err
}

const (
	clearAccessReplaces   = `UPDATE access_tokens SET replaces = NULL WHERE replaces = $1`
	clearRefreshReplaces  = `UPDATE refresh_tokens SET replaces = NULL WHERE replaces = $1`
	deleteRefreshToken    = `DELETE FROM refresh_tokens WHERE hash = $1`
	deleteAccessOfRefresh = `DELETE FROM access_tokens WHERE refresh_hash = $1`
)

// RevokeRefreshToken ends a refresh token that was replaced, with the access tokens that went with it.
func RevokeRefreshToken(ctx context.Context, tx *Tx, hash []byte) error {
	for _, stmt := range []string{clearAccessReplaces, clearRefreshReplaces, deleteRefreshToken, deleteAccessOfRefresh} {
		if _, err := tx.Exec(ctx, stmt, hash); err != nil {
			return err
		}
	}
	return nil
}

const deleteReplacements = `DELETE FROM access_tokens WHERE replaces = $1`
const deleteRefreshReplacements = `DELETE FROM refresh_tokens WHERE replaces = $1`

// DropReplacements removes tokens got with a refresh token that were never used.
func DropReplacements(ctx context.Context, tx *Tx, hash []byte) error {
	if _, err := tx.Exec(ctx, deleteReplacements, hash); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, deleteRefreshReplacements, hash)
	return err
}

// RefreshToken is a stored refresh token.
type RefreshToken struct {
	Hash     []byte
	UserID   matrix.UserID
	DeviceID matrix.DeviceID
	Replaces []byte // the one before it, nil once this has been used
}

const insertRefreshToken = `INSERT INTO refresh_tokens (hash, user_id, device_id, replaces) VALUES ($1, $2, $3, $4)`

// InsertRefreshToken stores a new refresh token.
func InsertRefreshToken(ctx context.Context, tx *Tx, t RefreshToken) error {
	_, err := tx.Exec(ctx, insertRefreshToken, t.Hash, t.UserID, t.DeviceID, t.Replaces)
	return err
}

const getRefreshToken = `SELECT hash, user_id, device_id, replaces FROM refresh_tokens WHERE hash = $1`

// GetRefreshToken finds a refresh token, ErrNotFound if there is none.
func GetRefreshToken(ctx context.Context, q Querier, hash []byte) (t RefreshToken, err error) {
	err = q.QueryRow(ctx, getRefreshToken, hash).Scan(&t.Hash, &t.UserID, &t.DeviceID, &t.Replaces)
	return t, err
}

const (
	deleteAccessTokensOfDevice  = `DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2`
	deleteRefreshTokensOfDevice = `DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2`
)

// DeleteTokensOfDevice ends a device's session.
func DeleteTokensOfDevice(ctx context.Context, tx *Tx, user matrix.UserID, device matrix.DeviceID) error {
	if _, err := tx.Exec(ctx, deleteAccessTokensOfDevice, user, device); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, deleteRefreshTokensOfDevice, user, device)
	return err
}

const insertLoginToken = `INSERT INTO login_tokens (hash, user_id, expires_ts) VALUES ($1, $2, $3)`

// InsertLoginToken stores a token for m.login.token.
func InsertLoginToken(ctx context.Context, tx *Tx, hash []byte, user matrix.UserID, expires matrix.Timestamp) error {
	_, err := tx.Exec(ctx, insertLoginToken, hash, user, expires)
	return err
}

const takeLoginToken = `DELETE FROM login_tokens WHERE hash = $1 RETURNING user_id, expires_ts`

// TakeLoginToken uses a login token up, ErrNotFound if there is none.
func TakeLoginToken(ctx context.Context, tx *Tx, hash []byte) (user matrix.UserID, expires matrix.Timestamp, err error) {
	err = tx.QueryRow(ctx, takeLoginToken, hash).Scan(&user, &expires)
	return user, expires, err
}

const insertOpenIDToken = `INSERT INTO openid_tokens (hash, user_id, expires_ts) VALUES ($1, $2, $3)`

// InsertOpenIDToken stores an OpenID token.
func InsertOpenIDToken(ctx context.Context, tx *Tx, hash []byte, user matrix.UserID, expires matrix.Timestamp) error {
	_, err := tx.Exec(ctx, insertOpenIDToken, hash, user, expires)
	return err
}

const getOpenIDToken = `SELECT user_id FROM openid_tokens WHERE hash = $1 AND expires_ts > $2`

// GetOpenIDToken finds whose an OpenID token is, ErrNotFound if it is unknown or expired.
func GetOpenIDToken(ctx context.Context, q Querier, hash []byte, now matrix.Timestamp) (user matrix.UserID, err error) {
	err = q.QueryRow(ctx, getOpenIDToken, hash, now).Scan(&user)
	return user, err
}

// UIASession is a user-interactive authentication under way.
type UIASession struct {
	ID        string
	Operation string
	UserID    matrix.UserID
	Body      []byte
	Completed []byte // JSON
	ExpiresAt matrix.Timestamp
}

const putUIASession = `INSERT INTO uia_sessions (session_id, operation, user_id, body, completed, expires_ts)
	VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (session_id) DO UPDATE SET completed = excluded.completed, expires_ts = excluded.expires_ts`

// PutUIASession stores a session.
func PutUIASession(ctx context.Context, tx *Tx, s UIASession) error {
	_, err := tx.Exec(ctx, putUIASession, s.ID, []byte(s.Operation), s.UserID, s.Body, s.Completed, s.ExpiresAt)
	return err
}

const getUIASession = `SELECT operation, user_id, body, completed, expires_ts FROM uia_sessions
	WHERE session_id = $1 AND expires_ts > $2`

// GetUIASession finds a session, ErrNotFound if it is unknown or expired.
func GetUIASession(ctx context.Context, q Querier, id string, now matrix.Timestamp) (UIASession, error) {
	s := UIASession{ID: id}
	var operation []byte
	err := q.QueryRow(ctx, getUIASession, id, now).Scan(&operation, &s.UserID, &s.Body, &s.Completed, &s.ExpiresAt)
	s.Operation = string(operation)
	return s, err
}

var deleteExpired = []string{
	`DELETE FROM access_tokens WHERE expires_ts <= $1 AND refresh_hash IS NULL`,
	`DELETE FROM login_tokens WHERE expires_ts <= $1`,
	`DELETE FROM openid_tokens WHERE expires_ts <= $1`,
	`DELETE FROM uia_sessions WHERE expires_ts <= $1`,
}

// DeleteExpired removes tokens and sessions that are over. Access tokens that can be
// refreshed stay, so that their holder is told to.
func DeleteExpired(ctx context.Context, tx *Tx, now matrix.Timestamp) error {
	for _, stmt := range deleteExpired {
		if _, err := tx.Exec(ctx, stmt, now); err != nil {
			return err
		}
	}
	return nil
}
