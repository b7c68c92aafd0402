package storage

import (
	"context"

	"hanok/matrix"
)

// Account is one local user.
type Account struct {
	UserID       matrix.UserID
	Kind         string
	PasswordHash string // "" for none
	Admin        bool
	Deactivated  bool
	Erased       bool // deactivated, and asked to be forgotten
	Locked       bool
	Suspended    bool
	LocalOnly    bool // kept to this server
	CreatedAt    matrix.Timestamp
}

const accountColumns = `user_id, kind, password_hash, admin, deactivated, erased, locked, suspended, local_only, created_ts`

func scanAccount(scan func(...any) error) (a Account, err error) {
	err = scan(&a.UserID, &a.Kind, &a.PasswordHash, &a.Admin, &a.Deactivated, &a.Erased, &a.Locked, &a.Suspended, &a.LocalOnly, &a.CreatedAt)
	return a, err
}

const insertAccount = `INSERT INTO accounts (` + accountColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
	ON CONFLICT (user_id) DO NOTHING`

// InsertAccount stores a new account and reports false if the user ID is taken.
func InsertAccount(ctx context.Context, tx *Tx, a Account) (bool, error) {
	n, err := tx.Exec(ctx, insertAccount, a.UserID, a.Kind, a.PasswordHash, a.Admin, a.Deactivated, a.Erased, a.Locked, a.Suspended, a.LocalOnly, a.CreatedAt)
	return n == 1, err
}

const getAccount = `SELECT ` + accountColumns + ` FROM accounts WHERE user_id = $1`

// GetAccount returns an account, ErrNotFound if there is none.
func GetAccount(ctx context.Context, q Querier, user matrix.UserID) (Account, error) {
	return scanAccount(q.QueryRow(ctx, getAccount, user).Scan)
}

const listAccounts = `SELECT ` + accountColumns + ` FROM accounts WHERE user_id > $1 ORDER BY user_id LIMIT $2`

// ListAccounts returns accounts in order of user ID.
func ListAccounts(ctx context.Context, q Querier, after matrix.UserID, limit int) ([]Account, error) {
	return collect(ctx, q, func(r *Rows) (Account, error) { return scanAccount(r.Scan) }, listAccounts, after, limit)
}

const updateAccount = `UPDATE accounts SET kind = $2, password_hash = $3, admin = $4, deactivated = $5, erased = $6,
	locked = $7, suspended = $8, local_only = $9 WHERE user_id = $1`

// UpdateAccount stores all of an account but its user ID and time of creation.
func UpdateAccount(ctx context.Context, tx *Tx, a Account) error {
	if err := notePushers(tx, a.UserID); err != nil { // a locked account's are not used
		return err
	}
	_, err := tx.Exec(ctx, updateAccount, a.UserID, a.Kind, a.PasswordHash, a.Admin, a.Deactivated, a.Erased, a.Locked, a.Suspended, a.LocalOnly)
	return err
}

// What deactivation removes; devices go by DeleteDevices.
var purgeUser = []string{
	`DELETE FROM account_data WHERE user_id = $1`,
	`DELETE FROM backups WHERE user_id = $1`,
	`DELETE FROM backup_keys WHERE user_id = $1`,
	`DELETE FROM cross_signing_keys WHERE user_id = $1`,
	`DELETE FROM delayed_events WHERE user_id = $1`,
	`DELETE FROM filters WHERE user_id = $1`,
	`DELETE FROM key_signatures WHERE target_user = $1`,
	`DELETE FROM key_signatures WHERE signer = $1`,
	`DELETE FROM login_tokens WHERE user_id = $1`,
	`DELETE FROM notices_rooms WHERE user_id = $1`,
	`DELETE FROM openid_tokens WHERE user_id = $1`,
	`DELETE FROM presences WHERE user_id = $1`,
	`DELETE FROM private_key_changes WHERE observer = $1`,
	`DELETE FROM profiles WHERE user_id = $1`,
	`DELETE FROM push_rules WHERE user_id = $1`,
	`DELETE FROM pushers WHERE user_id = $1`,
	`DELETE FROM sliding_connections WHERE user_id = $1`,
	`DELETE FROM thread_subscriptions WHERE user_id = $1`,
	`DELETE FROM uia_sessions WHERE user_id = $1`,
}

// PurgeUserData removes what a deactivated user leaves behind: everything but the account's row.
func PurgeUserData(ctx context.Context, tx *Tx, user matrix.UserID) error {
	if err := notePushers(tx, user); err != nil {
		return err
	}
	for _, stmt := range purgeUser {
		if _, err := tx.Exec(ctx, stmt, user); err != nil {
			return err
		}
	}
	return nil
}

// RegistrationToken is a token that allows registration.
type RegistrationToken struct {
	Token       string
	UsesAllowed *int64 // nil: without limit
	Completed   int64
	ExpiresAt   *matrix.Timestamp // nil: never
}

const insertRegistrationToken = `INSERT INTO registration_tokens (token, uses_allowed, completed, expires_ts)
	VALUES ($1, $2, $3, $4) ON CONFLICT (token) DO NOTHING`

// InsertRegistrationToken reports false if the token exists.
func InsertRegistrationToken(ctx context.Context, tx *Tx, t RegistrationToken) (bool, error) {
	n, err := tx.Exec(ctx, insertRegistrationToken, t.Token, t.UsesAllowed, t.Completed, t.ExpiresAt)
	return n == 1, err
}

const listRegistrationTokens = `SELECT token, uses_allowed, completed, expires_ts FROM registration_tokens ORDER BY token`

// ListRegistrationTokens returns all tokens.
func ListRegistrationTokens(ctx context.Context, q Querier) ([]RegistrationToken, error) {
	return collect(ctx, q, func(r *Rows) (t RegistrationToken, err error) {
		return t, r.Scan(&t.Token, &t.UsesAllowed, &t.Completed, &t.ExpiresAt)
	}, listRegistrationTokens)
}

const deleteRegistrationToken = `DELETE FROM registration_tokens WHERE token = $1`

// DeleteRegistrationToken reports whether there was one.
func DeleteRegistrationToken(ctx context.Context, tx *Tx, token string) (bool, error) {
	n, err := tx.Exec(ctx, deleteRegistrationToken, token)
	return n > 0, err
}

const validRegistrationToken = `SELECT count(*) FROM registration_tokens WHERE token = $1
	AND (uses_allowed IS NULL OR completed < uses_allowed) AND (expires_ts IS NULL OR expires_ts > $2)`

// RegistrationTokenValid reports whether a token could be used at a time.
func RegistrationTokenValid(ctx context.Context, q Querier, token string, now matrix.Timestamp) (bool, error) {
	var n int
	err := q.QueryRow(ctx, validRegistrationToken, token, now).Scan(&n)
	return n > 0, err
}

const useRegistrationToken = `UPDATE registration_tokens SET completed = completed + 1 WHERE token = $1
	AND (uses_allowed IS NULL OR completed < uses_allowed) AND (expires_ts IS NULL OR expires_ts > $2)`

// UseRegistrationToken counts one use, and reports false if none is left.
func UseRegistrationToken(ctx context.Context, tx *Tx, token string, now matrix.Timestamp) (bool, error) {
	n, err := tx.Exec(ctx, useRegistrationToken, token, now)
	return n == 1, err
}

// collect runs a query and returns what scan makes of its rows.
func collect[T any](ctx context.Context, q Querier, scan func(*Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}
