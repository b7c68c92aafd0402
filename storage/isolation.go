package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// IsolatedRoom is a room that the operator keeps apart from other servers.
type IsolatedRoom struct {
	ID    matrix.RoomID
	Since matrix.Timestamp
}

// SetIsolated keeps a room apart, or gives it back.
func SetIsolated(ctx context.Context, tx *Tx, room matrix.RoomID, isolated bool, now matrix.Timestamp) error {
	var err error
	if isolated {
		_, err = tx.Exec(ctx, `INSERT INTO isolated_rooms (room_id, since_ts) VALUES ($1, $2) ON CONFLICT (room_id) DO NOTHING`, string(room), int64(now))
	} else {
		_, err = tx.Exec(ctx, `DELETE FROM isolated_rooms WHERE room_id = $1`, string(room))
	}
	if err != nil {
		return fmt.Errorf("isolate a room: %w", err)
	}
	return nil
}

// IsolatedRooms lists all rooms that are kept apart.
func IsolatedRooms(ctx context.Context, q Querier) ([]IsolatedRoom, error) {
	rows, err := q.Query(ctx, `SELECT room_id, since_ts FROM isolated_rooms ORDER BY room_id`)
	if err != nil {
		return nil, fmt.Errorf("isolated rooms: %w", err)
	}
	defer rows.Close()
	var out []IsolatedRoom
	for rows.Next() {
		var r IsolatedRoom
		if err := rows.Scan(&r.ID, &r.Since); err != nil {
			return nil, fmt.Errorf("isolated rooms: %w", err)
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// RequestWithdrawal notes that a user is to leave all rooms that other servers can be in.
func RequestWithdrawal(ctx context.Context, tx *Tx, user matrix.UserID) error {
	if _, err := tx.Exec(ctx, `INSERT INTO withdrawals (user_id) VALUES ($1) ON CONFLICT (user_id) DO NOTHING`, string(user)); err != nil {
		return fmt.Errorf("request a withdrawal: %w", err)
	}
	return nil
}

// EndWithdrawal notes that this is done, or not wanted any more.
func EndWithdrawal(ctx context.Context, tx *Tx, user matrix.UserID) error {
	if _, err := tx.Exec(ctx, `DELETE FROM withdrawals WHERE user_id = $1`, string(user)); err != nil {
		return fmt.Errorf("end a withdrawal: %w", err)
	}
	return nil
}

// FindWithdrawals lists the users for whom it is to be done.
func FindWithdrawals(ctx context.Context, q Querier) ([]matrix.UserID, error) {
	rows, err := q.Query(ctx, `SELECT user_id FROM withdrawals ORDER BY user_id LIMIT 1000`)
	if err != nil {
		return nil, fmt.Errorf("withdrawals: %w", err)
	}
	defer rows.Close()
	var out []matrix.UserID
	for rows.Next() {
		var user matrix.UserID
		if err := rows.Scan(&user); err != nil {
			return nil, fmt.Errorf("withdrawals: %w", err)
		}
		out = append(out, user)
	}
	return out, rows.Err()
}
