package storage

import (
	"context"

	"hanok/matrix"
)

// PartialRoom is a room that was joined without its members.
type PartialRoom struct {
	Room    RoomNID
	ID      matrix.RoomID
	Join    EventNID // our join
	JoinPos Position
	Servers []byte   // JSON array: those in the room before the join
	FullPos Position // when the whole state was known; 0: not yet
}

// PutPartialRoom stores that a room was joined without its members.
func PutPartialRoom(ctx context.Context, tx *Tx, room RoomNID, join EventNID, servers []byte) error {
	_, err := tx.Exec(ctx, `INSERT INTO partial_rooms (room_nid, join_nid, servers, full_pos) VALUES ($1, $2, $3, NULL)
		ON CONFLICT (room_nid) DO UPDATE SET join_nid = excluded.join_nid, servers = excluded.servers, full_pos = NULL`, int64(room), int64(join), servers)
	return err
}

// SetRoomFull stores that the whole state of such a room is known from a position on.
func SetRoomFull(ctx context.Context, tx *Tx, room RoomNID, pos Position) error {
	_, err := tx.Exec(ctx, `UPDATE partial_rooms SET full_pos = $2, servers = $3 WHERE room_nid = $1`, int64(room), int64(pos), []byte(`[]`))
	return err
}

// PartialRooms lists all rooms that were joined without their members, those whose state is whole by now included.
func PartialRooms(ctx context.Context, q Querier) ([]PartialRoom, error) {
	rows, err := q.Query(ctx, `SELECT p.room_nid, r.room_id, p.join_nid, e.pos, p.servers, p.full_pos FROM partial_rooms p
		JOIN rooms r ON r.nid = p.room_nid JOIN events e ON e.nid = p.join_nid`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []PartialRoom
	for rows.Next() {
		var p PartialRoom
		var joined, full *Position
		if err := rows.Scan(&p.Room, &p.ID, &p.Join, &joined, &p.Servers, &full); err != nil {
			return nil, err
		}
		if joined != nil {
			p.JoinPos = *joined
		}
		if full != nil {
			p.FullPos = *full
		}
		out = append(out, p)
	}
	return out, rows.Err()
}

// PartialEvents lists the events of a room of which not the whole state is known, and the outliers that some of them authorise.
func PartialEvents(ctx context.Context, q Querier, room RoomNID) ([]EventNID, error) {
	return collectNumbers[EventNID](q.Query(ctx, `SELECT nid FROM events WHERE room_nid = $1 AND (flags & 32) <> 0`, int64(room)))
}

// MissingPrevsOf returns the missing prev events of one event.
func MissingPrevsOf(ctx context.Context, q Querier, room RoomNID, child EventNID) ([]MissingPrev, error) {
	rows, err := q.Query(ctx, `SELECT event_id, child_nid, depth, state FROM missing_prevs WHERE room_nid = $1 AND child_nid = $2`, int64(room), int64(child))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []MissingPrev
	for rows.Next() {
		var m MissingPrev
		if err := rows.Scan(&m.ID, &m.Child, &m.Depth, &m.State); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, rows.Err()
}

// DeleteMissingPrevsOf forgets the missing prev events of one event.
func DeleteMissingPrevsOf(ctx context.Context, tx *Tx, room RoomNID, child EventNID) error {
	_, err := tx.Exec(ctx, `DELETE FROM missing_prevs WHERE room_nid = $1 AND child_nid = $2`, int64(room), int64(child))
	return err
}

// UpdateMissingPrevs replaces the states that were told of missing prev events.
func UpdateMissingPrevs(ctx context.Context, tx *Tx, room RoomNID, rows []MissingPrev) error {
	args := make([][]any, len(rows))
	for i, m := range rows {
		args[i] = []any{int64(room), string(m.ID), int64(m.Child), m.State}
	}
	return tx.ExecBatch(ctx, `UPDATE missing_prevs SET state = $4 WHERE room_nid = $1 AND event_id = $2 AND child_nid = $3`, args)
}

// RestatedEvent is what becomes of an event once the whole state before it is known.
type RestatedEvent struct {
	NID   EventNID
	Flags EventFlags
	State int64
	// Moved: it goes to Pos, or out of the timeline if that is 0. Else it stays where it is.
	Moved bool
	Pos   Position
}

// RestateEvents gives events the whole state before them, and the verdict that follows from it.
func RestateEvents(ctx context.Context, tx *Tx, events []RestatedEvent) error {
	stay := make([][]any, 0, len(events))
	for _, e := range events {
		if !e.Moved {
			stay = append(stay, []any{int64(e.NID), int64(e.Flags), e.State})
			continue
		}
		_, err := tx.Exec(ctx, `UPDATE events SET flags = $2, state_before = $3, pos = $4 WHERE nid = $1`, int64(e.NID), int64(e.Flags), e.State, nullable(e.Pos))
		if err != nil {
			return err
		}
		if e.Pos == 0 {
			if _, err := tx.Exec(ctx, deleteRelation, int64(e.NID)); err != nil {
				return err
			}
		}
	}
	return tx.ExecBatch(ctx, `UPDATE events SET flags = $2, state_before = $3 WHERE nid = $1`, stay)
}

// RoomStatesFrom lists the changes of a room's current state from a position on, in order.
func RoomStatesFrom(ctx context.Context, q Querier, room RoomNID, from Position) ([]RoomState, error) {
	rows, err := q.Query(ctx, `SELECT pos, state FROM room_states WHERE room_nid = $1 AND pos >= $2 ORDER BY pos`, int64(room), int64(from))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []RoomState
	for rows.Next() {
		s := RoomState{Room: room}
		if err := rows.Scan(&s.Pos, &s.State); err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, rows.Err()
}

// UpdateRoomStates replaces states that were logged.
func UpdateRoomStates(ctx context.Context, tx *Tx, states []RoomState) error {
	args := make([][]any, len(states))
	for i, s := range states {
		args[i] = []any{int64(s.Room), int64(s.Pos), s.State}
	}
	return tx.ExecBatch(ctx, `UPDATE room_states SET state = $3 WHERE room_nid = $1 AND pos = $2`, args)
}
