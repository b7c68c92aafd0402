package storage

import (
	"context"

	"hanok/matrix"
)

const getProfile = `SELECT field, value FROM profiles WHERE user_id = $1`

// GetProfile returns all fields of a local user's profile: field to JSON value.
func GetProfile(ctx context.Context, q Querier, user matrix.UserID) (map[string][]byte, error) {
	rows, err := q.Query(ctx, getProfile, user)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	fields := map[string][]byte{}
	for rows.Next() {
		var field string
		var value []byte
		if err := rows.Scan(&field, &value); err != nil {
			return nil, err
		}
		fields[field] = value
	}
	return fields, rows.Err()
}

const putProfileField = `INSERT INTO profiles (user_id, field, value, search) VALUES ($1, $2, $3, $4)
	ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value, search = excluded.search`

// PutProfileField sets a field; search is what users are found by.
func PutProfileField(ctx context.Context, tx *Tx, user matrix.UserID, field string, value []byte, search string) error {
	_, err := tx.Exec(ctx, putProfileField, user, field, value, search)
	return err
}

const deleteProfileField = `DELETE FROM profiles WHERE user_id = $1 AND field = $2`

// DeleteProfileField reports whether there was such a field.
func DeleteProfileField(ctx context.Context, tx *Tx, user matrix.UserID, field string) (bool, error) {
	n, err := tx.Exec(ctx, deleteProfileField, user, field)
	return n > 0, err
}

const searchUsers = `SELECT a.user_id FROM accounts a
	LEFT JOIN profiles p ON p.user_id = a.user_id AND p.field = 'displayname'
	WHERE a.user_id > $3 AND a.deactivated = 0 AND (a.user_id LIKE $1 ESCAPE '\' OR p.search LIKE $1 ESCAPE '\')
	ORDER BY a.user_id LIMIT $2`

// SearchUsers finds local users whose ID or display name matches a LIKE pattern in lower case, in order of ID.
func SearchUsers(ctx context.Context, q Querier, pattern string, after matrix.UserID, limit int) ([]matrix.UserID, error) {
	return collect(ctx, q, scanUserID, searchUsers, pattern, limit, after)
}
