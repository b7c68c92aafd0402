package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"hanok/matrix"
)

// EventFlags say what became of an event.
type EventFlags int64

const (
	// EventOutlier: known only as part of an auth chain or of a state; no state of its own.
	EventOutlier EventFlags = 1 << iota
	// EventRejected failed its auth checks. spec: server-server-api#rejection
	EventRejected
	// EventSoftFailed was not allowed by the current state when it came. spec: server-server-api#soft-failure
	EventSoftFailed
	// EventRelay: this server sends it to the others: made here, or taken for the room by send_join and its like.
	EventRelay
	// EventDelayed: a local user had scheduled it; txn_id is the ID of the delayed event. spec: MSC4140
	EventDelayed
	// EventPartial: the state before it lacks memberships, as the room was joined without them.
	EventPartial
)

// EventRow is a row of events.
type EventRow struct {
	NID        EventNID
	ID         matrix.EventID
	Room       RoomNID
	Type       NameNID
	StateKey   NameNID // 0: not a state event
	Sender     NameNID
	Depth      int64
	Pos        Position // 0: not in the timeline; negative: backfilled
	ReceivedTS matrix.Timestamp
	OriginTS   matrix.Timestamp // origin_server_ts; written only, the JSON has it
	Flags      EventFlags
	State      int64 // tree of the state before it; 0 for outliers
	Prev, Auth []EventNID
	RedactedBy EventNID // 0: not redacted
	TxnDevice  matrix.DeviceID
	TxnID      string
	JSON       []byte
}

// packRefs encodes event numbers as differences to a base, which makes most of them one or two bytes.
func packRefs(base EventNID, prev, auth []EventNID) []byte {
	b := make([]byte, 0, 2+2*(len(prev)+len(auth)))
	b = binary.AppendUvarint(b, uint64(len(prev)))
	for _, n := range prev {
		b = binary.AppendVarint(b, int64(base-n))
	}
	for _, n := range auth {
		b = binary.AppendVarint(b, int64(base-n))
	}
	return b
}

var errPacked = errors.New("storage: packed event numbers are damaged")

func unpackRefs(base EventNID, b []byte) (prev, auth []EventNID, err error) {
	n, k := binary.Uvarint(b)
	if k <= 0 || n > uint64(len(b)) {
		return nil, nil, errPacked
	}
	b = b[k:]
	all := make([]EventNID, 0, len(b))
	for len(b) > 0 {
		d, k := binary.Varint(b)
		if k <= 0 {
			return nil, nil, errPacked
		}
		b = b[k:]
		all = append(all, base-EventNID(d))
	}
	if n > uint64(len(all)) {
		return nil, nil, errPacked
	}
	return all[:n:n], all[n:], nil
}

func nullable[T ~int64](v T) any {
	if v == 0 {
		return nil
	}
	return int64(v)
}

func nullableText[T ~string](v T) any {
	if v == "" {
		return nil
	}
	return string(v)
}

const insertEventSQL = `INSERT INTO events (nid, event_id, room_nid, type_nid, skey_nid, sender_nid, depth, pos, ts, flags, state_before, refs, redacted_by, txn_device, txn_id, json, origin_ts)
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)`

// InsertEvents stores new events.
func InsertEvents(ctx context.Context, tx *Tx, rows []*EventRow) error {
	args := make([][]any, len(rows))
	flat := make([]any, 0, 17*len(rows))
	for i, r := range rows {
		var device any
		if r.TxnID != "" {
			device = string(r.TxnDevice)
		}
		flat = append(flat, int64(r.NID), string(r.ID), int64(r.Room), int64(r.Type), nullable(r.StateKey), int64(r.Sender), r.Depth,
			nullable(r.Pos), int64(r.ReceivedTS), int64(r.Flags), r.State, packRefs(r.NID, r.Prev, r.Auth), nullable(r.RedactedBy),
			device, nullableText(r.TxnID), r.JSON, int64(r.OriginTS))
		args[i] = flat[17*i : 17*i+17 : 17*i+17]
	}
	return tx.ExecBatch(ctx, insertEventSQL, args)
}

// UpdateEvent gives an event that was an outlier its place in the room, with the bytes it has now.
func UpdateEvent(ctx context.Context, tx *Tx, r *EventRow) error {
	_, err := tx.Exec(ctx, `UPDATE events SET pos = $2, flags = $3, state_before = $4, refs = $5, depth = $6, json = $7, redacted_by = $8 WHERE nid = $1`,
		int64(r.NID), nullable(r.Pos), int64(r.Flags), r.State, packRefs(r.NID, r.Prev, r.Auth), r.Depth, r.JSON, nullable(r.RedactedBy))
	return err
}

// RenumberEvent gives a membership event that no state holds another number, wherever the old one is.
func RenumberEvent(ctx context.Context, tx *Tx, room RoomNID, user NameNID, from, to EventNID) error {
	if _, err := tx.Exec(ctx, `UPDATE events SET nid = $2 WHERE nid = $1`, int64(from), int64(to)); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, `UPDATE memberships SET event_nid = $2 WHERE room_nid = $3 AND user_nid = $4 AND event_nid = $1`,
		int64(from), int64(to), int64(room), int64(user)); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE notifications SET event_nid = $2 WHERE event_nid = $1`, int64(from), int64(to))
	return err
}

// EraseEvent replaces an event's bytes by its redacted form, in which it relates to nothing and is not sticky.
func EraseEvent(ctx context.Context, tx *Tx, nid, redaction EventNID, redacted []byte) error {
	if _, err := tx.Exec(ctx, `UPDATE events SET json = $2, redacted_by = $3 WHERE nid = $1`, int64(nid), redacted, nullable(redaction)); err != nil {
		return err
	}
	if _, err := tx.Exec(ctx, deleteRelation, int64(nid)); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, deleteStickyEvent, int64(nid))
	return err
}

const eventColumns = `nid, event_id, room_nid, type_nid, skey_nid, sender_nid, depth, pos, ts, flags, state_before, refs, redacted_by, txn_device, txn_id, json`

func scanEvent(rows *Rows) (*EventRow, error) {
	var r EventRow
	var skey *NameNID
	var pos *Position
	var redactedBy *EventNID
	var device, txn *string
	var refs []byte
	if err := rows.Scan(&r.NID, &r.ID, &r.Room, &r.Type, &skey, &r.Sender, &r.Depth, &pos, &r.ReceivedTS, &r.Flags, &r.State, &refs, &redactedBy, &device, &txn, &r.JSON); err != nil {
		return nil, err
	}
	if skey != nil {
		r.StateKey = *skey
	}
	if pos != nil {
		r.Pos = *pos
	}
	if redactedBy != nil {
		r.RedactedBy = *redactedBy
	}
	if device != nil {
		r.TxnDevice = matrix.DeviceID(*device)
	}
	if txn != nil {
		r.TxnID = *txn
	}
	var err error
	if r.Prev, r.Auth, err = unpackRefs(r.NID, refs); err != nil {
		return nil, fmt.Errorf("event %d: %w", r.NID, err)
	}
	return &r, nil
}

// EventsByNID returns the events of these numbers, in no order; those unknown are missing.
func EventsByNID(ctx context.Context, q Querier, nids []EventNID) ([]*EventRow, error) {
	var out []*EventRow
	err := queryIn(ctx, q, `SELECT `+eventColumns+` FROM events WHERE nid IN ($in)`, nil, nids, func(rows *Rows) error {
		r, err := scanEvent(rows)
		out = append(out, r)
		return err
	})
	return out, err
}

// EventsByID returns the events of these IDs, in no order; those unknown are missing.
func EventsByID(ctx context.Context, q Querier, ids []matrix.EventID) ([]*EventRow, error) {
	var out []*EventRow
	err := queryIn(ctx, q, `SELECT `+eventColumns+` FROM events WHERE event_id IN ($in)`, nil, ids, func(rows *Rows) error {
		r, err := scanEvent(rows)
		out = append(out, r)
		return err
	})
	return out, err
}

// EventIDs returns the IDs of these events.
func EventIDs(ctx context.Context, q Querier, nids []EventNID) (map[EventNID]matrix.EventID, error) {
	out := make(map[EventNID]matrix.EventID, len(nids))
	err := queryIn(ctx, q, `SELECT nid, event_id FROM events WHERE nid IN ($in)`, nil, nids, func(rows *Rows) error {
		var nid EventNID
		var id matrix.EventID
		if err := rows.Scan(&nid, &id); err != nil {
			return err
		}
		out[nid] = id
		return nil
	})
	return out, err
}

// EventEdges is an event's place in the graph, without its bytes.
type EventEdges struct {
	NID   EventNID
	Depth int64
	Flags EventFlags
	Prev  []EventNID
	Auth  []EventNID
}

// EdgesByNID returns the edges of these events, in no order.
func EdgesByNID(ctx context.Context, q Querier, nids []EventNID) ([]EventEdges, error) {
	out := make([]EventEdges, 0, len(nids))
	err := queryIn(ctx, q, `SELECT nid, depth, flags, refs FROM events WHERE nid IN ($in)`, nil, nids, func(rows *Rows) error {
		var e EventEdges
		var refs []byte
		if err := rows.Scan(&e.NID, &e.Depth, &e.Flags, &refs); err != nil {
			return err
		}
		var err error
		e.Prev, e.Auth, err = unpackRefs(e.NID, refs)
		out = append(out, e)
		return err
	})
	return out, err
}

// The pages below are lists of event numbers, which the indexes hold: most events of a page are in the caller's cache.

// TimelineBackward returns up to limit events of a room with since < pos <= until, newest first.
func TimelineBackward(ctx context.Context, q Querier, room RoomNID, since, until Position, limit int) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT nid FROM events WHERE room_nid = $1 AND pos > $2 AND pos <= $3 ORDER BY pos DESC LIMIT $4`,
		int64(room), int64(since), int64(until), int64(limit)))
}

// HistoryBackward returns up to limit events of a room before a place, newest first.
func HistoryBackward(ctx context.Context, q Querier, room RoomNID, depth int64, pos Position, limit int) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT nid FROM events WHERE room_nid = $1 AND (depth, pos) <= ($2, $3) AND pos IS NOT NULL ORDER BY depth DESC, pos DESC LIMIT $4`,
		int64(room), depth, int64(pos), int64(limit)))
}

// HistoryForward returns up to limit events of a room after a place, oldest first.
func HistoryForward(ctx context.Context, q Querier, room RoomNID, depth int64, pos Position, limit int) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT nid FROM events WHERE room_nid = $1 AND (depth, pos) > ($2, $3) AND pos IS NOT NULL ORDER BY depth, pos LIMIT $4`,
		int64(room), depth, int64(pos), int64(limit)))
}

// EventsAfter returns up to limit timeline events of all rooms with since < pos <= until, in order.
func EventsAfter(ctx context.Context, q Querier, since, until Position, limit int) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT nid FROM events WHERE pos > 0 AND pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3`,
		int64(since), int64(until), int64(limit)))
}

const newestSent = `
SELECT nid FROM (SELECT nid, pos, flags FROM events WHERE room_nid = $1 AND pos > $2 ORDER BY pos DESC LIMIT $3) AS recent
WHERE (flags & $4) <> 0 ORDER BY pos DESC LIMIT $5`

// NewestSent lists the newest events of a room after a position that this server sends to others, newest first, among so many events.
func NewestSent(ctx context.Context, q Querier, room RoomNID, after Position, among, limit int) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, newestSent, int64(room), int64(after), int64(among), int64(EventRelay), int64(limit)))
}

const (
	eventsFromTime = `SELECT nid FROM events WHERE room_nid = $1 AND origin_ts >= $2 AND pos IS NOT NULL ORDER BY origin_ts, depth, pos LIMIT $3 OFFSET $4`
	eventsToTime   = `SELECT nid FROM events WHERE room_nid = $1 AND origin_ts <= $2 AND pos IS NOT NULL ORDER BY origin_ts DESC, depth DESC, pos DESC LIMIT $3 OFFSET $4`
)

// EventsByTime lists timeline events of a room by origin_server_ts, then place: from a time on, or
// from a time backwards.
func EventsByTime(ctx context.Context, q Querier, room RoomNID, ts matrix.Timestamp, backward bool, limit, skip int) ([]EventNID, error) {
	query := eventsFromTime
	if backward {
		query = eventsToTime
	}
	return collect(ctx, q, func(rows *Rows) (n EventNID, err error) { return n, rows.Scan(&n) }, query, int64(room), int64(ts), int64(limit), int64(skip))
}

// EventByTxn finds the event that a device sent with a transaction id: ErrNotFound if it sent none.
func EventByTxn(ctx context.Context, q Querier, sender NameNID, txn string, device matrix.DeviceID, room RoomNID, typ NameNID) (matrix.EventID, error) {
	var id matrix.EventID
	err := q.QueryRow(ctx, `SELECT event_id FROM events WHERE sender_nid = $1 AND txn_id = $2 AND txn_device = $3 AND room_nid = $4 AND type_nid = $5 AND txn_id IS NOT NULL`,
		int64(sender), txn, string(device), int64(room), int64(typ)).Scan(&id)
	return id, err
}

// PlaceAt returns the depth and position of the last event of a room at or before a position: ErrNotFound if there is none.
func PlaceAt(ctx context.Context, q Querier, room RoomNID, pos Position) (depth int64, at Position, err error) {
	err = q.QueryRow(ctx, `SELECT depth, pos FROM events WHERE room_nid = $1 AND pos <= $2 ORDER BY pos DESC LIMIT 1`, int64(room), int64(pos)).Scan(&depth, &at)
	return depth, at, err
}

// LastOfTypes returns the position of the newest event of some types in a room, at or before a position: ErrNotFound if there is none.
func LastOfTypes(ctx context.Context, q Querier, room RoomNID, types []NameNID, pos Position) (at Position, err error) {
	var newest Position
	err = queryIn(ctx, q, `SELECT pos FROM events WHERE room_nid = $1 AND pos > 0 AND pos <= $2 AND type_nid IN ($in) ORDER BY pos DESC LIMIT 1`,
		[]any{int64(room), int64(pos)}, types, func(r *Rows) error {
			err := r.Scan(&at)
			newest = max(newest, at)
			return err
		})
	if err == nil && newest == 0 {
		err = ErrNotFound
	}
	return newest, err
}

// DeepestBefore returns the place of the deepest event of a room that is deeper than a depth and came before a position:
// ErrNotFound if there is none.
func DeepestBefore(ctx context.Context, q Querier, room RoomNID, depth int64, pos Position) (at int64, place Position, err error) {
	err = q.QueryRow(ctx, `SELECT depth, pos FROM events WHERE room_nid = $1 AND depth > $2 AND pos < $3 ORDER BY depth DESC, pos DESC LIMIT 1`,
		int64(room), depth, int64(pos)).Scan(&at, &place)
	return at, place, err
}

// MissingPrev is a prev event that we do not have.
type MissingPrev struct {
	ID    matrix.EventID
	Child EventNID
	Depth int64 // of the child
	State int64 // tree after the missing event, as a server told it; 0: it was not asked for
}

// InsertMissingPrevs remembers prev events that we do not have.
func InsertMissingPrevs(ctx context.Context, tx *Tx, room RoomNID, missing []MissingPrev) error {
	args := make([][]any, len(missing))
	for i, m := range missing {
		args[i] = []any{int64(room), string(m.ID), int64(m.Child), m.Depth, m.State}
	}
	return tx.ExecBatch(ctx, `INSERT INTO missing_prevs (room_nid, event_id, child_nid, depth, state) VALUES ($1, $2, $3, $4, $5) ON CONFLICT (room_nid, event_id, child_nid) DO NOTHING`, args)
}

// DeleteMissingPrevs forgets prev events that came.
func DeleteMissingPrevs(ctx context.Context, tx *Tx, room RoomNID, ids []matrix.EventID) error {
	args := make([][]any, len(ids))
	for i, id := range ids {
		args[i] = []any{int64(room), string(id)}
	}
	return tx.ExecBatch(ctx, `DELETE FROM missing_prevs WHERE room_nid = $1 AND event_id = $2`, args)
}

// MissingPrevs returns missing prev events of children at least as deep as minDepth, deepest first.
func MissingPrevs(ctx context.Context, q Querier, room RoomNID, minDepth int64, limit int) ([]MissingPrev, error) {
	rows, err := q.Query(ctx, `SELECT event_id, child_nid, depth FROM missing_prevs WHERE room_nid = $1 AND depth >= $2 ORDER BY depth DESC LIMIT $3`,
		int64(room), minDepth, int64(limit))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []MissingPrev
	for rows.Next() {
		var m MissingPrev
		if err := rows.Scan(&m.ID, &m.Child, &m.Depth); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, rows.Err()
}

// ChildrenOfMissing returns the children of a missing prev event, with the states after it that are known, the oldest child first.
func ChildrenOfMissing(ctx context.Context, q Querier, room RoomNID, id matrix.EventID) ([]MissingPrev, error) {
	return collect(ctx, q, func(r *Rows) (MissingPrev, error) {
		m := MissingPrev{ID: id}
		return m, r.Scan(&m.Child, &m.Depth, &m.State)
	}, `SELECT child_nid, depth, state FROM missing_prevs WHERE room_nid = $1 AND event_id = $2 ORDER BY child_nid LIMIT 10`, int64(room), string(id))
}

// DepthAfterMissing returns the depth of the deepest event of which another is known as a missing prev event; ok is false if there is none.
func DepthAfterMissing(ctx context.Context, q Querier, room RoomNID, id matrix.EventID) (depth int64, ok bool, err error) {
	err = q.QueryRow(ctx, `SELECT depth FROM missing_prevs WHERE room_nid = $1 AND event_id = $2 ORDER BY depth DESC LIMIT 1`, int64(room), string(id)).Scan(&depth)
	if errors.Is(err, ErrNotFound) {
		return 0, false, nil
	}
	return depth, err == nil, err
}

// InsertEarlyRedaction remembers a redaction whose target we do not have yet.
func InsertEarlyRedaction(ctx context.Context, tx *Tx, target matrix.EventID, redaction EventNID) error {
	_, err := tx.Exec(ctx, `INSERT INTO early_redactions (event_id, redaction_nid) VALUES ($1, $2) ON CONFLICT (event_id, redaction_nid) DO NOTHING`, string(target), int64(redaction))
	return err
}

// EarlyRedactions returns the redactions that came before their target.
func EarlyRedactions(ctx context.Context, q Querier, target matrix.EventID) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT redaction_nid FROM early_redactions WHERE event_id = $1 ORDER BY redaction_nid LIMIT 100`, string(target)))
}

// EventsAfterGaps lists the events of a room of which a prev event is missing.
func EventsAfterGaps(ctx context.Context, q Querier, room RoomNID) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT DISTINCT child_nid FROM missing_prevs WHERE room_nid = $1`, int64(room)))
}
