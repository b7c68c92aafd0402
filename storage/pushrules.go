package storage

import (
	"context"

	"hanok/matrix"
)

const getPushRules = `SELECT changes, position FROM push_rules WHERE user_id = $1`

// GetPushRules returns a user's changes to the predefined push rules (JSON) and when they
// were made, ErrNotFound if there are none.
func GetPushRules(ctx context.Context, q Querier, user matrix.UserID) (changes []byte, pos Position, err error) {
	err = q.QueryRow(ctx, getPushRules, user).Scan(&changes, &pos)
	return changes, pos, err
}

const changedPushRules = `SELECT user_id FROM push_rules WHERE position > $1 AND position <= $2`

// ChangedPushRules lists the users who last changed their push rules in (from, to].
func ChangedPushRules(ctx context.Context, q Querier, from, to Position) ([]matrix.UserID, error) {
	return collect(ctx, q, scanUserID, changedPushRules, from, to)
}

const putPushRules = `INSERT INTO push_rules (user_id, changes, position) VALUES ($1, $2, $3)
	ON CONFLICT (user_id) DO UPDATE SET changes = excluded.changes, position = excluded.position`

// PutPushRules stores them.
func PutPushRules(ctx context.Context, tx *Tx, user matrix.UserID, changes []byte, pos Position) error {
	tx.note(pos, Subject{Topic: TopicAccountData, User: string(user)})
	_, err := tx.Exec(ctx, putPushRules, user, changes, pos)
	return err
}
