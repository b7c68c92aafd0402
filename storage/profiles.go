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

const putProfileField = `INSERT INTO profiles (user_id, field, value) VALUES ($1, $2, $3)
	ON CONFLICT (user_id, field) DO UPDATE SET value = excluded.value`

// PutProfileField sets a field.
func PutProfileField(ctx context.Context, tx *Tx, user matrix.UserID, field string, value []byte) error {
	_, err := tx.Exec(ctx, putProfileField, user, field, value)
	return err
}

const deleteProfileField = `DELETE FROM profiles WHERE user_id = $1 AND field = $2`

// DeleteProfileField reports whether there was such a field.
func DeleteProfileField(ctx context.Context, tx *Tx, user matrix.UserID, field string) (bool, error) {
	n, err := tx.Exec(ctx, deleteProfileField, user, field)
	return n > 0, err
}
