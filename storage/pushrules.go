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

// Pusher is a user's pusher.
type Pusher struct {
	UserID       matrix.UserID
	AppID        string
	PushKey      string
	DeviceID     matrix.DeviceID
	JSON         []byte // as clients see it
	LastPosition Position
	FailingSince matrix.Timestamp // 0: not failing
}

const putPusher = `INSERT INTO pushers (user_id, app_id, pushkey, device_id, pusher, last_position, failing_since)
	VALUES ($1, $2, $3, $4, $5, $6, $7)
	ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, pusher = excluded.pusher, failing_since = 0`

// PutPusher stores a pusher; one that exists keeps its place in the stream.
func PutPusher(ctx context.Context, tx *Tx, p Pusher) error {
	_, err := tx.Exec(ctx, putPusher, p.UserID, []byte(p.AppID), []byte(p.PushKey), p.DeviceID, p.JSON, p.LastPosition, p.FailingSince)
	return err
}

const listPushers = `SELECT user_id, app_id, pushkey, device_id, pusher, last_position, failing_since FROM pushers
	WHERE user_id = $1 ORDER BY app_id, pushkey`

// ListPushers returns a user's pushers.
func ListPushers(ctx context.Context, q Querier, user matrix.UserID) ([]Pusher, error) {
	return collect(ctx, q, func(r *Rows) (p Pusher, err error) {
		var app, key []byte
		err = r.Scan(&p.UserID, &app, &key, &p.DeviceID, &p.JSON, &p.LastPosition, &p.FailingSince)
		p.AppID, p.PushKey = string(app), string(key)
		return p, err
	}, listPushers, user)
}

const (
	deletePusher          = `DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`
	deletePushersOfOthers = `DELETE FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3`
	setPusherProgress     = `UPDATE pushers SET last_position = $4, failing_since = $5 WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`
)

// DeletePusher removes a pusher.
func DeletePusher(ctx context.Context, tx *Tx, user matrix.UserID, appID, pushKey string) error {
	_, err := tx.Exec(ctx, deletePusher, user, []byte(appID), []byte(pushKey))
	return err
}

// DeletePushersOfOthers removes other users' pushers with the same key.
func DeletePushersOfOthers(ctx context.Context, tx *Tx, appID, pushKey string, except matrix.UserID) error {
	_, err := tx.Exec(ctx, deletePushersOfOthers, []byte(appID), []byte(pushKey), except)
	return err
}

// SetPusherProgress stores how far a pusher has come.
func SetPusherProgress(ctx context.Context, tx *Tx, user matrix.UserID, appID, pushKey string, last Position, failingSince matrix.Timestamp) error {
	_, err := tx.Exec(ctx, setPusherProgress, user, []byte(appID), []byte(pushKey), last, failingSince)
	return err
}
