package storage

import (
	"context"
	"errors"
	"fmt"

	"hanok/matrix"
)

// DelayedEvent is an event to be sent later, or one that is done with. spec: MSC4140
type DelayedEvent struct {
	ID       string
	User     matrix.UserID
	Device   matrix.DeviceID
	TxnID    string // "" means the request was not idempotent
	Room     matrix.RoomID
	Type     string
	StateKey *string // nil: not a state event
	Content  []byte
	Sticky   *int64 // milliseconds; nil: not sticky
	Delay    int64  // milliseconds
	Since    matrix.Timestamp
	SendAt   matrix.Timestamp // 0: it is done with
	// What became of it; FinalisedAt is 0 while it is scheduled.
	FinalisedAt matrix.Timestamp
	EventID     matrix.EventID // "" if it was not sent
	Error       []byte         // JSON, nil if nothing went wrong
}

const insertDelayedEvent = `INSERT INTO delayed_events (delay_id, user_id, device_id, txn_id, room_id, type, state_key, content, sticky, delay, since_ts, send_ts)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`

// InsertDelayedEvent stores a scheduled event.
func InsertDelayedEvent(ctx context.Context, tx *Tx, d DelayedEvent) error {
	var key any
	if d.StateKey != nil {
		key = []byte(*d.StateKey)
	}
	if _, err := tx.Exec(ctx, insertDelayedEvent, d.ID, d.User, d.Device, nullableText(d.TxnID), d.Room, []byte(d.Type), key, d.Content, d.Sticky, d.Delay, d.Since, d.SendAt); err != nil {
		return fmt.Errorf("store delayed event: %w", err)
	}
	return nil
}

const (
	delayedEventColumns = `delay_id, user_id, device_id, txn_id, room_id, type, state_key, content, sticky, delay, since_ts, send_ts, finalised_ts, event_id, error`
	getDelayedEvent     = `SELECT ` + delayedEventColumns + ` FROM delayed_events WHERE delay_id = $1`
	dueDelayedEvents    = `SELECT ` + delayedEventColumns + ` FROM delayed_events WHERE send_ts IS NOT NULL AND send_ts <= $1 ORDER BY send_ts, delay_id LIMIT $2`
	delayedEventsOf     = `SELECT ` + delayedEventColumns + ` FROM delayed_events
		WHERE user_id = $1 AND send_ts IS NOT NULL AND (send_ts, delay_id) > ($2, $3) ORDER BY send_ts, delay_id LIMIT $4`
	delayedEventByTxn  = `SELECT delay_id FROM delayed_events WHERE user_id = $1 AND txn_id = $2 AND device_id = $3 AND room_id = $4 AND type = $5 AND txn_id IS NOT NULL`
	countDelayedEvents = `SELECT COUNT(*), COALESCE(MIN(send_ts), 0) FROM delayed_events WHERE user_id = $1 AND send_ts IS NOT NULL`
	nextDelayedEvent   = `SELECT send_ts FROM delayed_events WHERE send_ts IS NOT NULL ORDER BY send_ts, delay_id LIMIT 1`
)

func scanDelayedEvent(r *Rows) (d DelayedEvent, err error) {
	var txn, event *string
	var eventType, key []byte
	var sendAt, finalisedAt *matrix.Timestamp
	err = r.Scan(&d.ID, &d.User, &d.Device, &txn, &d.Room, &eventType, &key, &d.Content, &d.Sticky, &d.Delay, &d.Since, &sendAt, &finalisedAt, &event, &d.Error)
	d.Type = string(eventType)
	if txn != nil {
		d.TxnID = *txn
	}
	if key != nil {
		s := string(key)
		d.StateKey = &s
	}
	if sendAt != nil {
		d.SendAt = *sendAt
	}
	if finalisedAt != nil {
		d.FinalisedAt = *finalisedAt
	}
	if event != nil {
		d.EventID = matrix.EventID(*event)
	}
	return d, err
}

// GetDelayedEvent returns a delayed event, ErrNotFound if there is none.
func GetDelayedEvent(ctx context.Context, q Querier, id string) (DelayedEvent, error) {
	found, err := collect(ctx, q, scanDelayedEvent, getDelayedEvent, id)
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return DelayedEvent{}, fmt.Errorf("delayed event: %w", err)
	}
	return found[0], nil
}

// DueDelayedEvents returns the events that are to be sent by now, those due first coming first.
func DueDelayedEvents(ctx context.Context, q Querier, now matrix.Timestamp, limit int) ([]DelayedEvent, error) {
	found, err := collect(ctx, q, scanDelayedEvent, dueDelayedEvents, now, limit)
	if err != nil {
		return nil, fmt.Errorf("due delayed events: %w", err)
	}
	return found, nil
}

// DelayedEventsOf returns scheduled events of a user in the order in which they are to be sent, after a place in it.
func DelayedEventsOf(ctx context.Context, q Querier, user matrix.UserID, afterTS matrix.Timestamp, afterID string, limit int) ([]DelayedEvent, error) {
	found, err := collect(ctx, q, scanDelayedEvent, delayedEventsOf, user, afterTS, afterID, limit)
	if err != nil {
		return nil, fmt.Errorf("delayed events of a user: %w", err)
	}
	return found, nil
}

// DelayedEventByTxn finds what a device scheduled with a transaction ID: ErrNotFound if nothing.
func DelayedEventByTxn(ctx context.Context, q Querier, user matrix.UserID, device matrix.DeviceID, room matrix.RoomID, eventType, txn string) (id string, err error) {
	return id, q.QueryRow(ctx, delayedEventByTxn, user, txn, device, room, []byte(eventType)).Scan(&id)
}

// CountDelayedEvents counts a user's scheduled events, and tells when the first is due: 0 if there is none.
func CountDelayedEvents(ctx context.Context, q Querier, user matrix.UserID) (n int, first matrix.Timestamp, err error) {
	return n, first, q.QueryRow(ctx, countDelayedEvents, user).Scan(&n, &first)
}

// NextDelayedEvent tells when the first of all scheduled events is due: 0 if there is none.
func NextDelayedEvent(ctx context.Context, q Querier) (at matrix.Timestamp, err error) {
	if err = q.QueryRow(ctx, nextDelayedEvent).Scan(&at); errors.Is(err, ErrNotFound) {
		return 0, nil
	}
	return at, err
}

const restartDelayedEvent = `UPDATE delayed_events SET since_ts = $2, send_ts = $2 + delay WHERE delay_id = $1 AND send_ts IS NOT NULL`

// RestartDelayedEvent lets an event's delay begin anew, and reports whether it was scheduled.
func RestartDelayedEvent(ctx context.Context, tx *Tx, id string, now matrix.Timestamp) (bool, error) {
	n, err := tx.Exec(ctx, restartDelayedEvent, id, now)
	return n == 1, err
}

const postponeDelayedEvent = `UPDATE delayed_events SET send_ts = $2 WHERE delay_id = $1 AND send_ts IS NOT NULL`

// PostponeDelayedEvent tries a due event again later. Its delay stays what it was.
func PostponeDelayedEvent(ctx context.Context, tx *Tx, id string, until matrix.Timestamp) error {
	_, err := tx.Exec(ctx, postponeDelayedEvent, id, until)
	return err
}

const finaliseDelayedEvent = `UPDATE delayed_events SET send_ts = NULL, finalised_ts = $2, event_id = $3, error = $4 WHERE delay_id = $1 AND send_ts IS NOT NULL`

// FinaliseDelayedEvent notes what became of an event, and reports whether it was scheduled until then. event is ""
// if it was not sent, failure nil unless an error was the reason.
func FinaliseDelayedEvent(ctx context.Context, tx *Tx, id string, now matrix.Timestamp, event matrix.EventID, failure []byte) (bool, error) {
	n, err := tx.Exec(ctx, finaliseDelayedEvent, id, now, nullableText(event), failure)
	return n == 1, err
}

const (
	forgetDelayedEvents = `DELETE FROM delayed_events WHERE finalised_ts IS NOT NULL AND finalised_ts <= $1`
	trimDelayedEvents   = `DELETE FROM delayed_events WHERE user_id = $1 AND send_ts IS NULL AND finalised_ts <= (
		SELECT finalised_ts FROM delayed_events WHERE user_id = $1 AND send_ts IS NULL ORDER BY finalised_ts DESC LIMIT 1 OFFSET $2)`
)

// ForgetDelayedEvents removes what was done with before a time, and of one user all but the newest.
func ForgetDelayedEvents(ctx context.Context, tx *Tx, before matrix.Timestamp, user matrix.UserID, keep int) error {
	if _, err := tx.Exec(ctx, forgetDelayedEvents, before); err != nil {
		return fmt.Errorf("forget delayed events: %w", err)
	}
	if _, err := tx.Exec(ctx, trimDelayedEvents, user, keep); err != nil {
		return fmt.Errorf("trim delayed events: %w", err)
	}
	return nil
}
