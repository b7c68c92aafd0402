package storage

import (
	"context"

	"hanok/matrix"
)

// Report is something that a user reported: a room, an event or a user.
type Report struct {
	ID       int64 // later reports have greater ones
	At       matrix.Timestamp
	Reporter matrix.UserID
	Room     matrix.RoomID  // of a room or an event, else ""
	Event    matrix.EventID // of an event, else ""
	User     matrix.UserID  // the user reported, or the sender of the event; "" for a room
	Reason   string
}

const (
	insertReport  = `INSERT INTO reports (id, ts, reporter, room_id, event_id, user_id, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)`
	expireReports = `DELETE FROM reports WHERE id <= (SELECT id FROM reports ORDER BY id DESC LIMIT 1 OFFSET $1)`
	deleteReport  = `DELETE FROM reports WHERE id = $1`
	listReports   = `SELECT id, ts, reporter, room_id, event_id, user_id, reason FROM reports WHERE id < $1 ORDER BY id DESC LIMIT $2`
	getReport     = `SELECT id, ts, reporter, room_id, event_id, user_id, reason FROM reports WHERE id = $1`
)

// InsertReport stores a report and forgets the oldest beyond a number.
func InsertReport(ctx context.Context, tx *Tx, r Report, most int) error {
	if _, err := tx.Exec(ctx, insertReport, r.ID, r.At, r.Reporter, r.Room, r.Event, r.User, []byte(r.Reason)); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, expireReports, int64(most))
	return err
}

func scanReport(scan func(...any) error) (r Report, err error) {
	var reason []byte
	err = scan(&r.ID, &r.At, &r.Reporter, &r.Room, &r.Event, &r.User, &reason)
	r.Reason = string(reason)
	return r, err
}

// GetReport returns a report: ErrNotFound.
func GetReport(ctx context.Context, q Querier, id int64) (Report, error) {
	return scanReport(q.QueryRow(ctx, getReport, id).Scan)
}

// ListReports returns up to limit reports before one, the newest first.
func ListReports(ctx context.Context, q Querier, before int64, limit int) ([]Report, error) {
	return collect(ctx, q, func(rows *Rows) (Report, error) { return scanReport(rows.Scan) }, listReports, before, int64(limit))
}

// DeleteReport removes a report; false if there was none.
func DeleteReport(ctx context.Context, tx *Tx, id int64) (bool, error) {
	n, err := tx.Exec(ctx, deleteReport, id)
	return n > 0, err
}
