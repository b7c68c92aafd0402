package storage

import (
	"context"

	"hanok/matrix"
)

// Presence is what is kept of a user's presence. spec: client-server-api#presence
type Presence struct {
	UserID    matrix.UserID
	State     string
	StatusMsg string
}

const allPresences = `SELECT user_id, state, status_msg FROM presences LIMIT $1`

// ListPresences returns what was kept, at most limit.
func ListPresences(ctx context.Context, q Querier, limit int) ([]Presence, error) {
	return collect(ctx, q, func(r *Rows) (p Presence, err error) {
		var msg []byte
		err = r.Scan(&p.UserID, &p.State, &msg)
		p.StatusMsg = string(msg)
		return p, err
	}, allPresences, limit)
}

const (
	putPresence = `INSERT INTO presences (user_id, state, status_msg) VALUES ($1, $2, $3)
	ON CONFLICT (user_id) DO UPDATE SET state = excluded.state, status_msg = excluded.status_msg`
	deletePresence = `DELETE FROM presences WHERE user_id = $1`
)

// PutPresences keeps presences.
func PutPresences(ctx context.Context, tx *Tx, list []Presence) error {
	args := make([][]any, len(list))
	for i, p := range list {
		args[i] = []any{p.UserID, p.State, []byte(p.StatusMsg)}
	}
	return tx.ExecBatch(ctx, putPresence, args)
}

// DeletePresences forgets presences.
func DeletePresences(ctx context.Context, tx *Tx, list []Presence) error {
	args := make([][]any, len(list))
	for i, p := range list {
		args[i] = []any{p.UserID}
	}
	return tx.ExecBatch(ctx, deletePresence, args)
}
