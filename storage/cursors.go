package storage

import (
	"context"
	"errors"
	"fmt"
)

const (
	cursorQuery    = `SELECT position FROM cursors WHERE reader = $1`
	setCursorQuery = `INSERT INTO cursors (reader, position) VALUES ($1, $2)
		ON CONFLICT (reader) DO UPDATE SET position = excluded.position`
)

// Cursor returns how far a durable stream reader has come, 0 if it is new.
func Cursor(ctx context.Context, q Querier, reader string) (Position, error) {
	var pos Position
	err := q.QueryRow(ctx, cursorQuery, reader).Scan(&pos)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return 0, fmt.Errorf("cursor %s: %w", reader, err)
	}
	return pos, nil
}

// SetCursor stores it, in the transaction that holds the reader's effects.
func SetCursor(ctx context.Context, tx *Tx, reader string, pos Position) error {
	if _, err := tx.Exec(ctx, setCursorQuery, reader, pos); err != nil {
		return fmt.Errorf("set cursor %s: %w", reader, err)
	}
	return nil
}
