package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// OutboxPDU is an event that waits to be sent to a destination.
type OutboxPDU struct {
	Destination matrix.ServerName
	Position    Position
	Room        RoomNID
	EventID     matrix.EventID
	// KeepUntil is until when it is delivered even if newer events of its room make it superfluous.
	KeepUntil matrix.Timestamp
	// Newest says that it stands for the newest event of its room when the destination can be reached again.
	Newest bool
}

const insertOutboxPDU = `
INSERT INTO outbox_pdus (destination, position, room_nid, event_id, keep_until, newest) VALUES ($1, $2, $3, $4, $5, $6)
ON CONFLICT (destination, position) DO NOTHING`

// AddOutboxPDUs queues events.
func AddOutboxPDUs(ctx context.Context, tx *Tx, pdus []OutboxPDU) error {
	args := make([][]any, len(pdus))
	for i, p := range pdus {
		newest := int64(0)
		if p.Newest {
			newest = 1
		}
		args[i] = []any{string(p.Destination), int64(p.Position), int64(p.Room), string(p.EventID), int64(p.KeepUntil), newest}
	}
	if err := tx.ExecBatch(ctx, insertOutboxPDU, args); err != nil {
		return fmt.Errorf("queue events: %w", err)
	}
	return nil
}

const selectOutboxPDUs = `
SELECT position, room_nid, event_id, keep_until, newest FROM outbox_pdus
WHERE destination = $1 AND position <= $2 ORDER BY position LIMIT $3`

// FindOutboxPDUs returns the oldest events queued for a destination, up to a position.
func FindOutboxPDUs(ctx context.Context, q Querier, dest matrix.ServerName, upTo Position, limit int) ([]OutboxPDU, error) {
	rows, err := q.Query(ctx, selectOutboxPDUs, string(dest), int64(upTo), int64(limit))
	if err != nil {
		return nil, fmt.Errorf("queued events: %w", err)
	}
	defer rows.Close()
	var out []OutboxPDU
	for rows.Next() {
		var pos, room, keep, newest int64
		var id string
		if err := rows.Scan(&pos, &room, &id, &keep, &newest); err != nil {
			return nil, fmt.Errorf("queued events: %w", err)
		}
		out = append(out, OutboxPDU{dest, Position(pos), RoomNID(room), matrix.EventID(id), matrix.Timestamp(keep), newest != 0})
	}
	return out, rows.Err()
}

const (
	deleteOutboxPDU = `DELETE FROM outbox_pdus WHERE destination = $1 AND position = $2`
	settleOutboxPDU = `UPDATE outbox_pdus SET newest = 0 WHERE destination = $1 AND position = $2`
)

// ReplaceOutboxPDU puts an event in the place of one that stands for the newest of its room; nil: it is the newest itself.
func ReplaceOutboxPDU(ctx context.Context, tx *Tx, standing OutboxPDU, newest *OutboxPDU) error {
	query := settleOutboxPDU
	if newest != nil {
		query = deleteOutboxPDU
	}
	if _, err := tx.Exec(ctx, query, string(standing.Destination), int64(standing.Position)); err != nil {
		return fmt.Errorf("replace a queued event: %w", err)
	}
	if newest == nil {
		return nil
	}
	return AddOutboxPDUs(ctx, tx, []OutboxPDU{*newest})
}

// OutboxEDU is an EDU that waits to be sent.
type OutboxEDU struct {
	ID        Position
	Type      string
	Content   []byte
	ExpiresAt matrix.Timestamp // 0: never
}

const insertOutboxEDUBody = `
INSERT INTO outbox_edu_bodies (edu_id, edu_type, content, expires_at) VALUES ($1, $2, $3, $4)`

const insertOutboxEDU = `INSERT INTO outbox_edus (destination, edu_id) VALUES ($1, $2)`

// AddOutboxEDU queues an EDU for destinations; its ID is a position taken by the same transaction.
func AddOutboxEDU(ctx context.Context, tx *Tx, destinations []matrix.ServerName, e OutboxEDU) error {
	if _, err := tx.Exec(ctx, insertOutboxEDUBody, int64(e.ID), e.Type, e.Content, int64(e.ExpiresAt)); err != nil {
		return fmt.Errorf("queue EDU: %w", err)
	}
	args := make([][]any, len(destinations))
	for i, d := range destinations {
		args[i] = []any{string(d), int64(e.ID)}
	}
	if err := tx.ExecBatch(ctx, insertOutboxEDU, args); err != nil {
		return fmt.Errorf("queue EDU: %w", err)
	}
	return nil
}

const selectOutboxEDUs = `
SELECT b.edu_id, b.edu_type, b.content, b.expires_at
FROM outbox_edus o JOIN outbox_edu_bodies b ON b.edu_id = o.edu_id
WHERE o.destination = $1 AND o.edu_id <= $2 ORDER BY o.edu_id LIMIT $3`

// FindOutboxEDUs returns the oldest EDUs queued for a destination, up to an ID.
func FindOutboxEDUs(ctx context.Context, q Querier, dest matrix.ServerName, upTo Position, limit int) ([]OutboxEDU, error) {
	return findOutboxEDUs(ctx, q, selectOutboxEDUs, dest, upTo, limit)
}

func findOutboxEDUs(ctx context.Context, q Querier, query string, dest matrix.ServerName, at Position, limit int) ([]OutboxEDU, error) {
	rows, err := q.Query(ctx, query, string(dest), int64(at), int64(limit))
	if err != nil {
		return nil, fmt.Errorf("queued EDUs: %w", err)
	}
	defer rows.Close()
	var out []OutboxEDU
	for rows.Next() {
		var e OutboxEDU
		var id, expires int64
		if err := rows.Scan(&id, &e.Type, &e.Content, &expires); err != nil {
			return nil, fmt.Errorf("queued EDUs: %w", err)
		}
		e.ID, e.ExpiresAt = Position(id), matrix.Timestamp(expires)
		out = append(out, e)
	}
	return out, rows.Err()
}

// OutboxTransaction is the transaction under way to a destination: what was queued up to two positions.
type OutboxTransaction struct {
	Destination matrix.ServerName
	ID          string
	LastPDU     Position // 0: no events
	LastEDU     Position // 0: no EDUs
}

const selectOutboxTransaction = `
SELECT txn_id, last_pdu, last_edu FROM outbox_transactions WHERE destination = $1`

// GetOutboxTransaction returns the transaction under way, ErrNotFound if there is none.
func GetOutboxTransaction(ctx context.Context, q Querier, dest matrix.ServerName) (OutboxTransaction, error) {
	t := OutboxTransaction{Destination: dest}
	var pdu, edu int64
	if err := q.QueryRow(ctx, selectOutboxTransaction, string(dest)).Scan(&t.ID, &pdu, &edu); err != nil {
		return t, fmt.Errorf("transaction under way: %w", err)
	}
	t.LastPDU, t.LastEDU = Position(pdu), Position(edu)
	return t, nil
}

const insertOutboxTransaction = `
INSERT INTO outbox_transactions (destination, txn_id, last_pdu, last_edu) VALUES ($1, $2, $3, $4)
ON CONFLICT (destination) DO UPDATE SET
    txn_id = excluded.txn_id, last_pdu = excluded.last_pdu, last_edu = excluded.last_edu`

// PutOutboxTransaction stores a transaction before it is sent.
func PutOutboxTransaction(ctx context.Context, tx *Tx, t OutboxTransaction) error {
	if _, err := tx.Exec(ctx, insertOutboxTransaction, string(t.Destination), t.ID, int64(t.LastPDU), int64(t.LastEDU)); err != nil {
		return fmt.Errorf("store transaction: %w", err)
	}
	return nil
}

const insertFirstOutboxTransaction = `
INSERT INTO outbox_transactions (destination, txn_id, last_pdu, last_edu) VALUES ($1, $2, $3, $4)
ON CONFLICT (destination) DO NOTHING`

// AddOutboxTransactions stores transactions to destinations that have none under way.
func AddOutboxTransactions(ctx context.Context, tx *Tx, txns []OutboxTransaction) error {
	args := make([][]any, len(txns))
	for i, t := range txns {
		args[i] = []any{string(t.Destination), t.ID, int64(t.LastPDU), int64(t.LastEDU)}
	}
	if err := tx.ExecBatch(ctx, insertFirstOutboxTransaction, args); err != nil {
		return fmt.Errorf("store transactions: %w", err)
	}
	return nil
}

const (
	deleteOutboxTransaction = `DELETE FROM outbox_transactions WHERE destination = $1`
	deleteOutboxPDUs        = `DELETE FROM outbox_pdus WHERE destination = $1 AND position <= $2`
	deleteOutboxEDUs        = `DELETE FROM outbox_edus WHERE destination = $1 AND edu_id <= $2`
)

// FinishOutboxTransaction removes a delivered transaction with all it held.
func FinishOutboxTransaction(ctx context.Context, tx *Tx, t OutboxTransaction) error {
	if _, err := tx.Exec(ctx, deleteOutboxTransaction, string(t.Destination)); err != nil {
		return fmt.Errorf("finish transaction: %w", err)
	}
	if t.LastPDU > 0 {
		if _, err := tx.Exec(ctx, deleteOutboxPDUs, string(t.Destination), int64(t.LastPDU)); err != nil {
			return fmt.Errorf("finish transaction: %w", err)
		}
	}
	if t.LastEDU > 0 {
		if _, err := tx.Exec(ctx, deleteOutboxEDUs, string(t.Destination), int64(t.LastEDU)); err != nil {
			return fmt.Errorf("finish transaction: %w", err)
		}
	}
	return nil
}

const deleteOutboxOrphans = `
DELETE FROM outbox_edu_bodies WHERE NOT EXISTS (SELECT 1 FROM outbox_edus o WHERE o.edu_id = outbox_edu_bodies.edu_id)`

// DeleteDeliveredEDUs removes EDU bodies that nobody waits for any more.
func DeleteDeliveredEDUs(ctx context.Context, tx *Tx) error {
	if _, err := tx.Exec(ctx, deleteOutboxOrphans); err != nil {
		return fmt.Errorf("remove delivered EDUs: %w", err)
	}
	return nil
}

// OutboxNewcomer is a server that has come into a room through this one, and what it is still to be sent of what others say who have not heard of that.
type OutboxNewcomer struct {
	Room   RoomNID
	Server matrix.ServerName
	Since  Position // of the join
	Until  matrix.Timestamp
	Events int // how many more
}

// PutOutboxNewcomers stores them, in place of what was known of the same.
func PutOutboxNewcomers(ctx context.Context, tx *Tx, rows []OutboxNewcomer) error {
	args := make([][]any, len(rows))
	for i, n := range rows {
		args[i] = []any{int64(n.Room), string(n.Server), int64(n.Since), int64(n.Until), int64(n.Events)}
	}
	return tx.ExecBatch(ctx, `INSERT INTO outbox_newcomers (room_nid, server, since, until_ts, events) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (room_nid, server) DO UPDATE SET since = excluded.since, until_ts = excluded.until_ts, events = excluded.events`, args)
}

// OutboxNewcomers lists those whose time is not over.
func OutboxNewcomers(ctx context.Context, q Querier, now matrix.Timestamp) ([]OutboxNewcomer, error) {
	rows, err := q.Query(ctx, `SELECT room_nid, server, since, until_ts, events FROM outbox_newcomers WHERE until_ts > $1`, int64(now))
	if err != nil {
		return nil, fmt.Errorf("newcomers: %w", err)
	}
	defer rows.Close()
	var out []OutboxNewcomer
	for rows.Next() {
		var n OutboxNewcomer
		if err := rows.Scan(&n.Room, &n.Server, &n.Since, &n.Until, &n.Events); err != nil {
			return nil, fmt.Errorf("newcomers: %w", err)
		}
		out = append(out, n)
	}
	return out, rows.Err()
}

// DropOutboxNewcomers forgets those whose time is over.
func DropOutboxNewcomers(ctx context.Context, tx *Tx, now matrix.Timestamp) error {
	_, err := tx.Exec(ctx, `DELETE FROM outbox_newcomers WHERE until_ts <= $1`, int64(now))
	return err
}

const collapseOutbox = `
DELETE FROM outbox_pdus WHERE destination = $1 AND keep_until <= $3 AND position > $2 AND position < (
    SELECT MAX(newer.position) FROM outbox_pdus newer
    WHERE newer.destination = $1 AND newer.room_nid = outbox_pdus.room_nid)`

// CollapseOutbox leaves only the newest event of each room (and those to be kept) after a
// position: the destination fetches what it missed between through get_missing_events.
func CollapseOutbox(ctx context.Context, tx *Tx, dest matrix.ServerName, after Position, now matrix.Timestamp) error {
	if _, err := tx.Exec(ctx, collapseOutbox, string(dest), int64(after), int64(now)); err != nil {
		return fmt.Errorf("collapse outbox: %w", err)
	}
	return nil
}

const collapseOutboxRoom = `
DELETE FROM outbox_pdus WHERE destination = $1 AND room_nid = $2 AND keep_until <= $4 AND position < $3 AND position > COALESCE(
    (SELECT last_pdu FROM outbox_transactions t WHERE t.destination = $1), 0)`

// SupersedeOutboxPDUs removes, for each event, the older ones of its room and destination that need not be kept and are not under way.
func SupersedeOutboxPDUs(ctx context.Context, tx *Tx, newest []OutboxPDU, now matrix.Timestamp) error {
	args := make([][]any, len(newest))
	for i, p := range newest {
		args[i] = []any{string(p.Destination), int64(p.Room), int64(p.Position), int64(now)}
	}
	if err := tx.ExecBatch(ctx, collapseOutboxRoom, args); err != nil {
		return fmt.Errorf("collapse outbox: %w", err)
	}
	return nil
}

const selectOutboxEDUsAfter = `
SELECT b.edu_id, b.edu_type, b.content, b.expires_at
FROM outbox_edus o JOIN outbox_edu_bodies b ON b.edu_id = o.edu_id
WHERE o.destination = $1 AND o.edu_id > $2 ORDER BY o.edu_id LIMIT $3`

// FindOutboxEDUsAfter returns the oldest EDUs queued for a destination after an ID.
func FindOutboxEDUsAfter(ctx context.Context, q Querier, dest matrix.ServerName, after Position, limit int) ([]OutboxEDU, error) {
	return findOutboxEDUs(ctx, q, selectOutboxEDUsAfter, dest, after, limit)
}

const deleteOutboxEDU = `DELETE FROM outbox_edus WHERE destination = $1 AND edu_id = $2`

// DeleteOutboxEDUs removes EDUs that need not be delivered any more.
func DeleteOutboxEDUs(ctx context.Context, tx *Tx, dest matrix.ServerName, ids []Position) error {
	args := make([][]any, len(ids))
	for i, id := range ids {
		args[i] = []any{string(dest), int64(id)}
	}
	if err := tx.ExecBatch(ctx, deleteOutboxEDU, args); err != nil {
		return fmt.Errorf("remove EDUs: %w", err)
	}
	return nil
}

const countOutboxPDUs = `SELECT COUNT(*) FROM (SELECT 1 AS one FROM outbox_pdus WHERE destination = $1 LIMIT $2) AS queued`

// CountOutboxPDUs counts the events queued for a destination, up to limit.
func CountOutboxPDUs(ctx context.Context, q Querier, dest matrix.ServerName, limit int) (int, error) {
	var n int64
	if err := q.QueryRow(ctx, countOutboxPDUs, string(dest), int64(limit)).Scan(&n); err != nil {
		return 0, fmt.Errorf("count queued events: %w", err)
	}
	return int(n), nil
}

const selectOutboxDestinations = `
SELECT destination FROM outbox_pdus UNION
SELECT destination FROM outbox_edus UNION
SELECT destination FROM outbox_transactions`

// FindOutboxDestinations lists the destinations for which something is queued.
func FindOutboxDestinations(ctx context.Context, q Querier) ([]matrix.ServerName, error) {
	rows, err := q.Query(ctx, selectOutboxDestinations)
	if err != nil {
		return nil, fmt.Errorf("outbox destinations: %w", err)
	}
	defer rows.Close()
	var out []matrix.ServerName
	for rows.Next() {
		var d string
		if err := rows.Scan(&d); err != nil {
			return nil, fmt.Errorf("outbox destinations: %w", err)
		}
		out = append(out, matrix.ServerName(d))
	}
	return out, rows.Err()
}

// OutboxSize is how much waits for a destination.
type OutboxSize struct {
	Destination matrix.ServerName
	PDUs, EDUs  int64
}

const selectOutboxSizes = `
SELECT destination, SUM(pdus), SUM(edus) FROM (
    SELECT destination, COUNT(*) AS pdus, 0 AS edus FROM outbox_pdus GROUP BY destination
    UNION ALL
    SELECT destination, 0 AS pdus, COUNT(*) AS edus FROM outbox_edus GROUP BY destination
) AS sizes GROUP BY destination ORDER BY destination`

// FindOutboxSizes counts what waits for each destination.
func FindOutboxSizes(ctx context.Context, q Querier) ([]OutboxSize, error) {
	rows, err := q.Query(ctx, selectOutboxSizes)
	if err != nil {
		return nil, fmt.Errorf("outbox sizes: %w", err)
	}
	defer rows.Close()
	var out []OutboxSize
	for rows.Next() {
		var d string
		var s OutboxSize
		if err := rows.Scan(&d, &s.PDUs, &s.EDUs); err != nil {
			return nil, fmt.Errorf("outbox sizes: %w", err)
		}
		s.Destination = matrix.ServerName(d)
		out = append(out, s)
	}
	return out, rows.Err()
}

// ServerBackoff says that a server did not answer lately.
type ServerBackoff struct {
	Server       matrix.ServerName
	FailingSince matrix.Timestamp
	RetryAt      matrix.Timestamp
	Attempts     int
	Reason       string // how the last attempt failed, for people
}

const selectServerBackoffs = `SELECT server, failing_since, retry_at, attempts, reason FROM server_backoff`

// FindServerBackoffs lists all servers that did not answer lately.
func FindServerBackoffs(ctx context.Context, q Querier) ([]ServerBackoff, error) {
	rows, err := q.Query(ctx, selectServerBackoffs)
	if err != nil {
		return nil, fmt.Errorf("server back-off: %w", err)
	}
	defer rows.Close()
	var out []ServerBackoff
	for rows.Next() {
		var server, reason string
		var since, at, attempts int64
		if err := rows.Scan(&server, &since, &at, &attempts, &reason); err != nil {
			return nil, fmt.Errorf("server back-off: %w", err)
		}
		out = append(out, ServerBackoff{matrix.ServerName(server), matrix.Timestamp(since), matrix.Timestamp(at), int(attempts), reason})
	}
	return out, rows.Err()
}

const upsertServerBackoff = `
INSERT INTO server_backoff (server, failing_since, retry_at, attempts, reason) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (server) DO UPDATE SET
    failing_since = excluded.failing_since, retry_at = excluded.retry_at, attempts = excluded.attempts, reason = excluded.reason`

// PutServerBackoff stores a server's back-off.
func PutServerBackoff(ctx context.Context, tx *Tx, b ServerBackoff) error {
	if _, err := tx.Exec(ctx, upsertServerBackoff, string(b.Server), int64(b.FailingSince), int64(b.RetryAt), int64(b.Attempts), b.Reason); err != nil {
		return fmt.Errorf("store back-off: %w", err)
	}
	return nil
}

const (
	requestRetry     = `UPDATE server_backoff SET retry_at = 0 WHERE server = $1`
	requestRetries   = `UPDATE server_backoff SET retry_at = 0 WHERE retry_at > 0`
	selectRetryAsked = `SELECT server FROM server_backoff WHERE retry_at = 0 ORDER BY server`
)

// RequestRetry asks the running server to try a server again at once, or all if none is named; n says how many there were.
func RequestRetry(ctx context.Context, tx *Tx, server matrix.ServerName) (n int64, err error) {
	if server == "" {
		n, err = tx.Exec(ctx, requestRetries)
	} else {
		n, err = tx.Exec(ctx, requestRetry, string(server))
	}
	if err != nil {
		return 0, fmt.Errorf("ask for a retry: %w", err)
	}
	return n, nil
}

// FindRequestedRetries lists the servers that are to be tried again at once.
func FindRequestedRetries(ctx context.Context, q Querier) ([]matrix.ServerName, error) {
	rows, err := q.Query(ctx, selectRetryAsked)
	if err != nil {
		return nil, fmt.Errorf("requested retries: %w", err)
	}
	defer rows.Close()
	var out []matrix.ServerName
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return nil, fmt.Errorf("requested retries: %w", err)
		}
		out = append(out, matrix.ServerName(s))
	}
	return out, rows.Err()
}

const deleteServerBackoff = `DELETE FROM server_backoff WHERE server = $1`

// DeleteServerBackoff notes that a server answers again.
func DeleteServerBackoff(ctx context.Context, tx *Tx, server matrix.ServerName) error {
	if _, err := tx.Exec(ctx, deleteServerBackoff, string(server)); err != nil {
		return fmt.Errorf("end back-off: %w", err)
	}
	return nil
}
