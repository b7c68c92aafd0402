package storage

import (
	"context"
	"errors"

	"hanok/matrix"
)

// RoomRow is a row of rooms.
type RoomRow struct {
	NID       RoomNID
	ID        matrix.RoomID
	Version   string
	Head      []EventNID // forward extremities; empty: this server was never joined
	State     int64      // tree of the current state
	Pos       Position
	Published bool
}

const roomColumns = `nid, room_id, version, head, state, pos, published`

func scanRoom(scan func(...any) error) (*RoomRow, error) {
	var r RoomRow
	var head []byte
	if err := scan(&r.NID, &r.ID, &r.Version, &head, &r.State, &r.Pos, &r.Published); err != nil {
		return nil, err
	}
	if len(head) > 0 {
		var err error
		if r.Head, _, err = unpackRefs(0, head); err != nil {
			return nil, err
		}
	}
	return &r, nil
}

// RoomByID returns a room: ErrNotFound.
func RoomByID(ctx context.Context, q Querier, id matrix.RoomID) (*RoomRow, error) {
	return scanRoom(q.QueryRow(ctx, `SELECT `+roomColumns+` FROM rooms WHERE room_id = $1`, string(id)).Scan)
}

// RoomByNID returns a room: ErrNotFound.
func RoomByNID(ctx context.Context, q Querier, nid RoomNID) (*RoomRow, error) {
	return scanRoom(q.QueryRow(ctx, `SELECT `+roomColumns+` FROM rooms WHERE nid = $1`, int64(nid)).Scan)
}

// InsertRoom stores a new room without a head; it does nothing if the room ID is known.
func InsertRoom(ctx context.Context, tx *Tx, nid RoomNID, id matrix.RoomID, version string) error {
	_, err := tx.Exec(ctx, `INSERT INTO rooms (nid, room_id, version, head, state, pos, published) VALUES ($1, $2, $3, $4, 0, 0, 0) ON CONFLICT (room_id) DO NOTHING`,
		int64(nid), string(id), version, []byte{})
	return err
}

// AbandonRoom makes the ID of a room free that this server was never joined to, and forgets its members. Its events
// stay, under its number. ErrNotFound if the server was joined after all.
func AbandonRoom(ctx context.Context, tx *Tx, nid RoomNID) error {
	var found int64
	err := tx.QueryRow(ctx, `UPDATE rooms SET room_id = room_id || '#' || CAST(nid AS TEXT) WHERE nid = $1 AND length(head) = 0 RETURNING nid`, int64(nid)).Scan(&found)
	if err != nil {
		return err
	}
	failure := func(_ int64, err error) error { return err }
	return errors.Join(
		failure(tx.Exec(ctx, `DELETE FROM memberships WHERE room_nid = $1`, int64(nid))),
		failure(tx.Exec(ctx, `DELETE FROM apart_memberships WHERE room_nid = $1`, int64(nid))),
		failure(tx.Exec(ctx, `DELETE FROM stripped_states WHERE room_nid = $1`, int64(nid))),
		failure(tx.Exec(ctx, `DELETE FROM untold_leaves WHERE room_nid = $1`, int64(nid))),
	)
}

// RoomHead is what changes when a room's head moves.
type RoomHead struct {
	NID   RoomNID
	Head  []EventNID
	State int64
	Pos   Position
}

// SetRoomHeads moves heads.
func SetRoomHeads(ctx context.Context, tx *Tx, heads []RoomHead) error {
	args := make([][]any, len(heads))
	for i, h := range heads {
		args[i] = []any{int64(h.NID), packRefs(0, h.Head, nil), h.State, int64(h.Pos)}
	}
	return tx.ExecBatch(ctx, `UPDATE rooms SET head = $2, state = $3, pos = CASE WHEN $4 > pos THEN $4 ELSE pos END WHERE nid = $1`, args)
}

// SetPublished puts a room into the directory or takes it out.
func SetPublished(ctx context.Context, tx *Tx, room RoomNID, published bool) error {
	p := int64(0)
	if published {
		p = 1
	}
	_, err := tx.Exec(ctx, `UPDATE rooms SET published = $2 WHERE nid = $1`, int64(room), p)
	return err
}

// RoomState is the current state of a room from a position on.
type RoomState struct {
	Room  RoomNID
	Pos   Position
	State int64
}

// InsertRoomStates logs changes of current states.
func InsertRoomStates(ctx context.Context, tx *Tx, states []RoomState) error {
	args := make([][]any, len(states))
	for i, s := range states {
		args[i] = []any{int64(s.Room), int64(s.Pos), s.State}
	}
	return tx.ExecBatch(ctx, `INSERT INTO room_states (room_nid, pos, state) VALUES ($1, $2, $3)`, args)
}

const roomStatesAfter = `SELECT room_nid, pos, state FROM room_states WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3`

// RoomStatesAfter lists changes of current states in (since, until], in order of position.
func RoomStatesAfter(ctx context.Context, q Querier, since, until Position, limit int) ([]RoomState, error) {
	return collect(ctx, q, func(r *Rows) (s RoomState, err error) {
		return s, r.Scan(&s.Room, &s.Pos, &s.State)
	}, roomStatesAfter, int64(since), int64(until), int64(limit))
}

// RoomStateAt returns the tree of the current state as it was at a position: ErrNotFound before the room began.
func RoomStateAt(ctx context.Context, q Querier, room RoomNID, pos Position) (int64, error) {
	var state int64
	err := q.QueryRow(ctx, `SELECT state FROM room_states WHERE room_nid = $1 AND pos <= $2 ORDER BY pos DESC LIMIT 1`, int64(room), int64(pos)).Scan(&state)
	return state, err
}

// StateNodes is a row of state_nodes.
type StateNodes struct {
	ID   int64
	Data []byte
}

// InsertStateNodes stores the nodes of state trees.
func InsertStateNodes(ctx context.Context, tx *Tx, nodes []StateNodes) error {
	args := make([][]any, len(nodes))
	for i, n := range nodes {
		args[i] = []any{n.ID, n.Data}
	}
	return tx.ExecBatch(ctx, `INSERT INTO state_nodes (id, data) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING`, args)
}

// LoadStateNodes returns the bytes stored under a number: ErrNotFound.
func LoadStateNodes(ctx context.Context, q Querier, id int64) ([]byte, error) {
	var data []byte
	err := q.QueryRow(ctx, `SELECT data FROM state_nodes WHERE id = $1`, id).Scan(&data)
	return data, err
}

// InsertAlias stores an alias; false if it is taken.
func InsertAlias(ctx context.Context, tx *Tx, alias matrix.RoomAlias, room RoomNID, creator NameNID) (bool, error) {
	if err := tx.noteNext(Subject{Topic: TopicAliases}); err != nil {
		return false, err
	}
	n, err := tx.Exec(ctx, `INSERT INTO aliases (alias, room_nid, creator_nid) VALUES ($1, $2, $3) ON CONFLICT (alias) DO NOTHING`, string(alias), int64(room), int64(creator))
	return n == 1, err
}

// DeleteAlias removes an alias.
func DeleteAlias(ctx context.Context, tx *Tx, alias matrix.RoomAlias) error {
	if err := tx.noteNext(Subject{Topic: TopicAliases}); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `DELETE FROM aliases WHERE alias = $1`, string(alias))
	return err
}

// MoveAliases points all aliases of a room at another.
func MoveAliases(ctx context.Context, tx *Tx, from, to RoomNID) error {
	if err := tx.noteNext(Subject{Topic: TopicAliases}); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE aliases SET room_nid = $2 WHERE room_nid = $1`, int64(from), int64(to))
	return err
}

// AliasTarget returns an alias's room and maker: ErrNotFound.
func AliasTarget(ctx context.Context, q Querier, alias matrix.RoomAlias) (room RoomNID, creator NameNID, err error) {
	err = q.QueryRow(ctx, `SELECT room_nid, creator_nid FROM aliases WHERE alias = $1`, string(alias)).Scan(&room, &creator)
	return room, creator, err
}

// AliasesOf lists a room's aliases.
func AliasesOf(ctx context.Context, q Querier, room RoomNID) ([]matrix.RoomAlias, error) {
	rows, err := q.Query(ctx, `SELECT alias FROM aliases WHERE room_nid = $1 ORDER BY alias`, int64(room))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []matrix.RoomAlias
	for rows.Next() {
		var a matrix.RoomAlias
		if err := rows.Scan(&a); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, rows.Err()
}
