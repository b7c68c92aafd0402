package storage

import (
	"context"

	"hanok/matrix"
)

// ThreadSubscription is a thread that a user follows, or ceased to follow.
type ThreadSubscription struct {
	Room       matrix.RoomID
	Root       matrix.EventID
	Subscribed bool
	Automatic  bool // by the client, when the user took part; false: by the user's choice
	Position   Position
}

const putThreadSubscription = `INSERT INTO thread_subscriptions (user_id, room_id, root, subscribed, automatic, position)
	VALUES ($1, $2, $3, $4, $5, $6)
	ON CONFLICT (user_id, room_id, root) DO UPDATE SET subscribed = excluded.subscribed, automatic = excluded.automatic, position = excluded.position`

// PutThreadSubscription stores a subscription.
func PutThreadSubscription(ctx context.Context, tx *Tx, user matrix.UserID, s ThreadSubscription) error {
	_, err := tx.Exec(ctx, putThreadSubscription, user, s.Room, s.Root, s.Subscribed, s.Automatic, s.Position)
	return err
}

const (
	threadSubscriptionColumns  = `room_id, root, subscribed, automatic, position`
	getThreadSubscription      = `SELECT ` + threadSubscriptionColumns + ` FROM thread_subscriptions WHERE user_id = $1 AND room_id = $2 AND root = $3`
	changedThreadSubscriptions = `SELECT ` + threadSubscriptionColumns + ` FROM thread_subscriptions WHERE user_id = $1 AND position > $2 AND position <= $3 ORDER BY position DESC LIMIT $4`
	countThreadSubscriptions   = `SELECT count(*) FROM thread_subscriptions WHERE user_id = $1`
)

func scanThreadSubscription(scan func(...any) error) (s ThreadSubscription, err error) {
	return s, scan(&s.Room, &s.Root, &s.Subscribed, &s.Automatic, &s.Position)
}

// GetThreadSubscription returns a subscription, ended ones too; ErrNotFound if there never was one.
func GetThreadSubscription(ctx context.Context, q Querier, user matrix.UserID, room matrix.RoomID, root matrix.EventID) (ThreadSubscription, error) {
	return scanThreadSubscription(q.QueryRow(ctx, getThreadSubscription, user, room, root).Scan)
}

// ChangedThreadSubscriptions returns the last subscriptions that changed in (from, to], the newest first.
func ChangedThreadSubscriptions(ctx context.Context, q Querier, user matrix.UserID, from, to Position, limit int) ([]ThreadSubscription, error) {
	return collect(ctx, q, func(r *Rows) (ThreadSubscription, error) { return scanThreadSubscription(r.Scan) }, changedThreadSubscriptions, user, from, to, limit)
}

// CountThreadSubscriptions counts a user's subscriptions, ended ones too.
func CountThreadSubscriptions(ctx context.Context, q Querier, user matrix.UserID) (n int, err error) {
	return n, q.QueryRow(ctx, countThreadSubscriptions, user).Scan(&n)
}
