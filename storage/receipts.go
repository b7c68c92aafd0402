package storage

import (
	"context"

	"hanok/matrix"
)

// Receipt says how far a user has read.
type Receipt struct {
	Room     matrix.RoomID
	User     matrix.UserID
	Type     string // "m.read", "m.read.private" or "m.fully_read"
	EventID  matrix.EventID
	Thread   string // "" unthreaded, "main", or the event ID of a thread's root
	At       matrix.Timestamp
	Position Position

	// Order is the place of the event in the room's order; a receipt with a lower one than
	// what is stored is ignored. 0 if not known.
	Order int64
}

const putReceipt = `INSERT INTO receipts (room_id, user_id, type, thread, event_id, ts, sort_order, position)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
	ON CONFLICT (room_id, user_id, type, thread) DO UPDATE SET event_id = excluded.event_id, ts = excluded.ts,
	sort_order = excluded.sort_order, position = excluded.position
	WHERE receipts.event_id <> excluded.event_id
	AND (excluded.sort_order = 0 OR receipts.sort_order = 0 OR excluded.sort_order > receipts.sort_order)`

// PutReceipt stores a receipt and reports whether it moved forward.
func PutReceipt(ctx context.Context, tx *Tx, r Receipt) (bool, error) {
	tx.note(r.Position, Subject{Topic: TopicReceipts}, Subject{Topic: TopicOwnReceipts, User: string(r.User), Room: string(r.Room)})
	n, err := tx.Exec(ctx, putReceipt, r.Room, r.User, r.Type, r.Thread, r.EventID, r.At, r.Order, r.Position)
	return n == 1, err
}

const (
	overflowThreads = `SELECT position FROM receipts WHERE room_id = $1 AND user_id = $2 AND type = $3 AND thread NOT IN ('', 'main')
	ORDER BY position DESC LIMIT 1 OFFSET $4`
	deleteThreads = `DELETE FROM receipts WHERE room_id = $1 AND user_id = $2 AND type = $3 AND thread NOT IN ('', 'main') AND position <= $4`
)

// TrimThreadReceipts removes a user's oldest receipts for threads of a room beyond keep.
func TrimThreadReceipts(ctx context.Context, tx *Tx, room matrix.RoomID, user matrix.UserID, receiptType string, keep int) error {
	var pos Position
	err := tx.QueryRow(ctx, overflowThreads, room, user, receiptType, keep).Scan(&pos)
	if err == ErrNotFound {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, deleteThreads, room, user, receiptType, pos)
	return err
}

const receiptColumns = `room_id, user_id, type, thread, event_id, ts, sort_order, position`

func scanReceipt(r *Rows) (x Receipt, err error) {
	return x, r.Scan(&x.Room, &x.User, &x.Type, &x.Thread, &x.EventID, &x.At, &x.Order, &x.Position)
}

const (
	receiptsInRoom = `SELECT ` + receiptColumns + ` FROM receipts
	WHERE room_id = $1 AND (type = 'm.read' OR type = 'm.read.private' AND user_id = $2) ORDER BY position`
	receiptsOfUser  = `SELECT ` + receiptColumns + ` FROM receipts WHERE room_id = $1 AND user_id = $2 AND type <> 'm.fully_read' ORDER BY position`
	receiptsChanged = `SELECT ` + receiptColumns + ` FROM receipts
	WHERE position > $1 AND position <= $2 AND (type = 'm.read' OR type = 'm.read.private' AND user_id = $3) ORDER BY position LIMIT $4`
	receiptsAfter = `SELECT ` + receiptColumns + ` FROM receipts
	WHERE position > $1 AND position <= $2 AND type <> 'm.fully_read' ORDER BY position LIMIT $3`
	receiptsChangedInRooms = `SELECT ` + receiptColumns + ` FROM receipts
	WHERE position > $1 AND position <= $2 AND (type = 'm.read' OR type = 'm.read.private' AND user_id = $3) AND room_id IN ($in)`
)

// ReceiptsInRoom returns a room's receipts that observer may see.
func ReceiptsInRoom(ctx context.Context, q Querier, room matrix.RoomID, observer matrix.UserID) ([]Receipt, error) {
	return collect(ctx, q, scanReceipt, receiptsInRoom, room, observer)
}

// ReceiptsOfUser returns a user's own receipts in a room.
func ReceiptsOfUser(ctx context.Context, q Querier, room matrix.RoomID, user matrix.UserID) ([]Receipt, error) {
	return collect(ctx, q, scanReceipt, receiptsOfUser, room, user)
}

// ReceiptsChanged returns the first receipts of all rooms in (from, to] that are public or observer's.
func ReceiptsChanged(ctx context.Context, q Querier, observer matrix.UserID, from, to Position, limit int) ([]Receipt, error) {
	return collect(ctx, q, scanReceipt, receiptsChanged, from, to, observer, limit)
}

// ReceiptsChangedInRooms is ReceiptsChanged for some rooms.
func ReceiptsChangedInRooms(ctx context.Context, q Querier, rooms []matrix.RoomID, observer matrix.UserID, from, to Position) ([]Receipt, error) {
	return collectIn(ctx, q, scanReceipt, receiptsChangedInRooms, []any{from, to, observer}, rooms)
}

// Reader is somebody who has read further.
type Reader struct {
	User     matrix.UserID
	Position Position
}

const readersBetween = `SELECT user_id, position FROM receipts WHERE position > $1 AND position <= $2 AND type <> 'm.fully_read' ORDER BY position LIMIT $3`

// ReadersBetween lists the users of the first receipts in (from, to].
func ReadersBetween(ctx context.Context, q Querier, from, to Position, limit int) ([]Reader, error) {
	return collect(ctx, q, func(r *Rows) (x Reader, err error) { return x, r.Scan(&x.User, &x.Position) }, readersBetween, from, to, limit)
}

// ReceiptsAfter returns the first receipts of all rooms in (from, to], private ones included, in order.
func ReceiptsAfter(ctx context.Context, q Querier, from, to Position, limit int) ([]Receipt, error) {
	return collect(ctx, q, scanReceipt, receiptsAfter, from, to, limit)
}
