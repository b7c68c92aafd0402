package storage

import (
	"context"

	"hanok/matrix"
)

const insertFilter = `INSERT INTO filters (user_id, filter_id, filter, created_ts) VALUES ($1, $2, $3, $4)
	ON CONFLICT (user_id, filter_id) DO UPDATE SET created_ts = excluded.created_ts`

const trimFilters = `DELETE FROM filters WHERE user_id = $1 AND filter_id IN
	(SELECT filter_id FROM filters WHERE user_id = $1 ORDER BY created_ts DESC, filter_id LIMIT 1000 OFFSET $2)`

// PutFilter stores a filter; the oldest beyond keep go.
func PutFilter(ctx context.Context, tx *Tx, user matrix.UserID, id string, filter []byte, now matrix.Timestamp, keep int) error {
	if _, err := tx.Exec(ctx, insertFilter, user, id, filter, now); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, trimFilters, user, keep)
	return err
}

const getFilter = `SELECT filter FROM filters WHERE user_id = $1 AND filter_id = $2`

// GetFilter returns a filter, ErrNotFound if there is none.
func GetFilter(ctx context.Context, q Querier, user matrix.UserID, id string) (filter []byte, err error) {
	return filter, q.QueryRow(ctx, getFilter, user, id).Scan(&filter)
}
