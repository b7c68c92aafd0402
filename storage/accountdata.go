package storage

import (
	"context"

	"hanok/matrix"
)

// AccountDatum is one account data event of a user.
type AccountDatum struct {
	Room     matrix.RoomID // "" if global
	Type     string
	Content  []byte // nil: deleted
	Position Position
}

func scanAccountDatum(r *Rows) (d AccountDatum, err error) {
	return d, r.Scan(&d.Room, &d.Type, &d.Content, &d.Position)
}

const putAccountData = `INSERT INTO account_data (user_id, room_id, type, content, position) VALUES ($1, $2, $3, $4, $5)
	ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content, position = excluded.position`

// PutAccountData stores account data; Content nil deletes it and keeps the place for followers.
func PutAccountData(ctx context.Context, tx *Tx, user matrix.UserID, d AccountDatum) error {
	tx.note(d.Position, Subject{Topic: TopicAccountData, User: string(user)})
	_, err := tx.Exec(ctx, putAccountData, user, d.Room, d.Type, d.Content, d.Position)
	return err
}

const getAccountData = `SELECT room_id, type, content, position FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = $3`

// GetAccountData returns account data, ErrNotFound if there never was any; Content is nil if it was deleted.
func GetAccountData(ctx context.Context, q Querier, user matrix.UserID, room matrix.RoomID, dataType string) (d AccountDatum, err error) {
	return d, q.QueryRow(ctx, getAccountData, user, room, dataType).Scan(&d.Room, &d.Type, &d.Content, &d.Position)
}

const (
	roomAccountData    = `SELECT room_id, type, content, position FROM account_data WHERE user_id = $1 AND room_id = $2 AND content IS NOT NULL ORDER BY type`
	typedAccountData   = `SELECT room_id, type, content, position FROM account_data WHERE user_id = $1 AND type = $2 AND content IS NOT NULL`
	changedAccountData = `SELECT room_id, type, content, position FROM account_data WHERE user_id = $1 AND position > $2 AND position <= $3 ORDER BY position`
	countAccountData   = `SELECT count(*) FROM account_data WHERE user_id = $1 AND room_id = $2`
)

// RoomAccountData returns what is set for one room, or globally for "".
func RoomAccountData(ctx context.Context, q Querier, user matrix.UserID, room matrix.RoomID) ([]AccountDatum, error) {
	return collect(ctx, q, scanAccountDatum, roomAccountData, user, room)
}

// TypedAccountData returns what is set of one type, in all rooms.
func TypedAccountData(ctx context.Context, q Querier, user matrix.UserID, dataType string) ([]AccountDatum, error) {
	return collect(ctx, q, scanAccountDatum, typedAccountData, user, dataType)
}

// ChangedAccountData returns what was set or deleted in (from, to].
func ChangedAccountData(ctx context.Context, q Querier, user matrix.UserID, from, to Position) ([]AccountDatum, error) {
	return collect(ctx, q, scanAccountDatum, changedAccountData, user, from, to)
}

const dropDeletedAccountData = `DELETE FROM account_data WHERE user_id = $1 AND room_id = $2 AND type = (SELECT type FROM account_data
	WHERE user_id = $1 AND room_id = $2 AND content IS NULL ORDER BY position LIMIT 1)`

// DropDeletedAccountData forgets that the type deleted longest ago was ever set, and says whether there was one.
func DropDeletedAccountData(ctx context.Context, tx *Tx, user matrix.UserID, room matrix.RoomID) (bool, error) {
	n, err := tx.Exec(ctx, dropDeletedAccountData, user, room)
	return n > 0, err
}

// CountAccountData counts the types a user has used in a room, or globally, those deleted included.
func CountAccountData(ctx context.Context, q Querier, user matrix.UserID, room matrix.RoomID) (n int, err error) {
	return n, q.QueryRow(ctx, countAccountData, user, room).Scan(&n)
}
