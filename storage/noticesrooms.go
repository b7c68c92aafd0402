package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

const getNoticesRoom = `SELECT room_id FROM notices_rooms WHERE user_id = $1`

// GetNoticesRoom returns the room in which the server speaks to a user, ErrNotFound if there is none.
func GetNoticesRoom(ctx context.Context, q Querier, user matrix.UserID) (room matrix.RoomID, err error) {
	if err := q.QueryRow(ctx, getNoticesRoom, user).Scan(&room); err != nil {
		return "", fmt.Errorf("notices room: %w", err)
	}
	return room, nil
}

const insertNoticesRoom = `INSERT INTO notices_rooms (user_id, room_id) VALUES ($1, $2) ON CONFLICT (user_id) DO NOTHING`

// InsertNoticesRoom stores it, and reports false if the user has one.
func InsertNoticesRoom(ctx context.Context, tx *Tx, user matrix.UserID, room matrix.RoomID) (bool, error) {
	n, err := tx.Exec(ctx, insertNoticesRoom, user, room)
	return n == 1, err
}
