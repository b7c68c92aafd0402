package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// InboundTransaction is what is kept of a transaction of another server. spec: ss/sendTransaction
type InboundTransaction struct {
	Origin   matrix.ServerName
	ID       string
	Digest   []byte // of what was in it
	Response []byte
	Received matrix.Timestamp
}

const selectInboundTransaction = `SELECT digest, response, received_at FROM inbound_transactions WHERE origin = $1 AND txn_id = $2`

// GetInboundTransaction returns the transaction that another server sent last under an ID.
func GetInboundTransaction(ctx context.Context, q Querier, origin matrix.ServerName, id string) (InboundTransaction, error) {
	t := InboundTransaction{Origin: origin, ID: id}
	var received int64
	if err := q.QueryRow(ctx, selectInboundTransaction, string(origin), id).Scan(&t.Digest, &t.Response, &received); err != nil {
		return InboundTransaction{}, fmt.Errorf("inbound transaction: %w", err)
	}
	t.Received = matrix.Timestamp(received)
	return t, nil
}

const upsertInboundTransaction = `
INSERT INTO inbound_transactions (origin, txn_id, digest, response, received_at) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (origin, txn_id) DO UPDATE SET digest = excluded.digest, response = excluded.response, received_at = excluded.received_at`

// PutInboundTransaction remembers a transaction and its answer, in place of another with its ID.
func PutInboundTransaction(ctx context.Context, tx *Tx, t InboundTransaction) error {
	if _, err := tx.Exec(ctx, upsertInboundTransaction, string(t.Origin), t.ID, t.Digest, t.Response, int64(t.Received)); err != nil {
		return fmt.Errorf("store inbound transaction: %w", err)
	}
	return nil
}

const deleteInboundTransactions = `DELETE FROM inbound_transactions WHERE received_at < $1`

// DeleteInboundTransactions forgets answers older than a time.
func DeleteInboundTransactions(ctx context.Context, tx *Tx, before matrix.Timestamp) error {
	if _, err := tx.Exec(ctx, deleteInboundTransactions, int64(before)); err != nil {
		return fmt.Errorf("forget inbound transactions: %w", err)
	}
	return nil
}

const (
	overflowInboundTransactions = `SELECT received_at FROM inbound_transactions WHERE origin = $1 ORDER BY received_at DESC LIMIT 1 OFFSET $2`
	trimInboundTransactions     = `DELETE FROM inbound_transactions WHERE origin = $1 AND received_at <= $2`
)

// TrimInboundTransactions forgets the oldest answers to a server beyond keep.
func TrimInboundTransactions(ctx context.Context, tx *Tx, origin matrix.ServerName, keep int) error {
	var at int64
	err := tx.QueryRow(ctx, overflowInboundTransactions, string(origin), int64(keep)).Scan(&at)
	if err == ErrNotFound {
		return nil
	}
	if err == nil {
		_, err = tx.Exec(ctx, trimInboundTransactions, string(origin), at)
	}
	if err != nil {
		return fmt.Errorf("trim inbound transactions: %w", err)
	}
	return nil
}

// InboundPDU is an event of another server that was acknowledged and not yet processed.
type InboundPDU struct {
	ID     Position
	Origin matrix.ServerName
	Room   matrix.RoomID
	PDU    []byte
}

const insertInboundPDU = `INSERT INTO inbound_pdus (pdu_id, origin, room, pdu) VALUES ($1, $2, $3, $4)`

// AddInboundPDUs stores events to be processed; their IDs are positions taken by the same transaction.
func AddInboundPDUs(ctx context.Context, tx *Tx, pdus []InboundPDU) error {
	args := make([][]any, len(pdus))
	for i, p := range pdus {
		args[i] = []any{int64(p.ID), string(p.Origin), string(p.Room), p.PDU}
	}
	if err := tx.ExecBatch(ctx, insertInboundPDU, args); err != nil {
		return fmt.Errorf("store inbound events: %w", err)
	}
	return nil
}

const selectInboundRooms = `SELECT DISTINCT room FROM inbound_pdus`

// FindInboundRooms lists the rooms for which events are still to be processed.
func FindInboundRooms(ctx context.Context, q Querier) ([]matrix.RoomID, error) {
	rows, err := q.Query(ctx, selectInboundRooms)
	if err != nil {
		return nil, fmt.Errorf("rooms of inbound events: %w", err)
	}
	defer rows.Close()
	var out []matrix.RoomID
	for rows.Next() {
		var room string
		if err := rows.Scan(&room); err != nil {
			return nil, fmt.Errorf("rooms of inbound events: %w", err)
		}
		out = append(out, matrix.RoomID(room))
	}
	return out, rows.Err()
}

const selectInboundPDUs = `
SELECT pdu_id, origin, pdu FROM inbound_pdus WHERE room = $1 AND pdu_id > $2 ORDER BY pdu_id LIMIT $3`

// FindInboundPDUs returns events of a room still to be processed, in the order they came, after a given one.
func FindInboundPDUs(ctx context.Context, q Querier, room matrix.RoomID, after Position, limit int) ([]InboundPDU, error) {
	rows, err := q.Query(ctx, selectInboundPDUs, string(room), int64(after), int64(limit))
	if err != nil {
		return nil, fmt.Errorf("inbound events: %w", err)
	}
	defer rows.Close()
	var out []InboundPDU
	for rows.Next() {
		p := InboundPDU{Room: room}
		var id int64
		var origin string
		if err := rows.Scan(&id, &origin, &p.PDU); err != nil {
			return nil, fmt.Errorf("inbound events: %w", err)
		}
		p.ID, p.Origin = Position(id), matrix.ServerName(origin)
		out = append(out, p)
	}
	return out, rows.Err()
}

const deleteInboundPDU = `DELETE FROM inbound_pdus WHERE pdu_id = $1`

// DeleteInboundPDUs removes events that were processed.
func DeleteInboundPDUs(ctx context.Context, tx *Tx, ids []Position) error {
	args := make([][]any, len(ids))
	for i, id := range ids {
		args[i] = []any{int64(id)}
	}
	if err := tx.ExecBatch(ctx, deleteInboundPDU, args); err != nil {
		return fmt.Errorf("remove inbound events: %w", err)
	}
	return nil
}
