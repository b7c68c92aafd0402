package storage

import (
	"context"

	"hanok/matrix"
)

// RelationRow is a row of relations: an event that relates to another.
type RelationRow struct {
	Child     EventNID
	Room      RoomNID
	Parent    matrix.EventID
	RelType   string
	Type      NameNID // of the child
	Sender    NameNID // of the child
	Depth     int64
	Pos       Position
	Timestamp matrix.Timestamp // origin_server_ts of the child
}

// InsertRelations stores how new events relate to others.
func InsertRelations(ctx context.Context, tx *Tx, rows []RelationRow) error {
	args := make([][]any, len(rows))
	for i, r := range rows {
		args[i] = []any{int64(r.Child), int64(r.Room), string(r.Parent), []byte(r.RelType), int64(r.Type), int64(r.Sender), r.Depth, int64(r.Pos), int64(r.Timestamp)}
	}
	return tx.ExecBatch(ctx, `INSERT INTO relations (child_nid, room_nid, parent, rel_type, type_nid, sender_nid, depth, pos, ts)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (child_nid) DO NOTHING`, args)
}

const deleteRelation = `DELETE FROM relations WHERE child_nid = $1`

const relationColumns = `child_nid, room_nid, parent, rel_type, type_nid, sender_nid, depth, pos, ts`

func scanRelation(rows *Rows) (r RelationRow, err error) {
	var relType []byte
	err = rows.Scan(&r.Child, &r.Room, &r.Parent, &relType, &r.Type, &r.Sender, &r.Depth, &r.Pos, &r.Timestamp)
	r.RelType = string(relType)
	return r, err
}

const (
	relationsBackward = `SELECT ` + relationColumns + ` FROM relations
		WHERE room_nid = $1 AND parent = $2 AND (depth, pos) <= ($3, $4) ORDER BY depth DESC, pos DESC LIMIT $5`
	relationsForward = `SELECT ` + relationColumns + ` FROM relations
		WHERE room_nid = $1 AND parent = $2 AND (depth, pos) > ($3, $4) ORDER BY depth, pos LIMIT $5`
)

// RelationsBackward returns up to limit children of an event before a place, newest first.
func RelationsBackward(ctx context.Context, q Querier, room RoomNID, parent matrix.EventID, depth int64, pos Position, limit int) ([]RelationRow, error) {
	return collect(ctx, q, scanRelation, relationsBackward, int64(room), string(parent), depth, int64(pos), int64(limit))
}

// RelationsForward returns up to limit children of an event after a place, oldest first.
func RelationsForward(ctx context.Context, q Querier, room RoomNID, parent matrix.EventID, depth int64, pos Position, limit int) ([]RelationRow, error) {
	return collect(ctx, q, scanRelation, relationsForward, int64(room), string(parent), depth, int64(pos), int64(limit))
}

const relationsOfType = `SELECT ` + relationColumns + ` FROM relations
	WHERE room_nid = $1 AND rel_type = $2 AND (depth, pos) <= ($3, $4) ORDER BY depth DESC, pos DESC LIMIT $5`

// RelationsOfType returns up to limit events of a room that relate to others in one way, before a place, newest first.
func RelationsOfType(ctx context.Context, q Querier, room RoomNID, relType string, depth int64, pos Position, limit int) ([]RelationRow, error) {
	return collect(ctx, q, scanRelation, relationsOfType, int64(room), []byte(relType), depth, int64(pos), int64(limit))
}

// RelatedEvent is a relation with the ID of its child.
type RelatedEvent struct {
	RelationRow
	ID matrix.EventID
}

// RelationsOfAll returns children of several events of a room, at most limit for every 256 of them, in no order.
func RelationsOfAll(ctx context.Context, q Querier, room RoomNID, parents []matrix.EventID, limit int) ([]RelatedEvent, error) {
	var out []RelatedEvent
	err := queryIn(ctx, q, `SELECT r.child_nid, r.parent, r.rel_type, r.type_nid, r.sender_nid, r.depth, r.pos, e.event_id
		FROM relations r JOIN events e ON e.nid = r.child_nid WHERE r.room_nid = $1 AND r.parent IN ($in) LIMIT $2`,
		[]any{int64(room), int64(limit)}, parents, func(rows *Rows) error {
			r := RelatedEvent{RelationRow: RelationRow{Room: room}}
			var relType []byte
			err := rows.Scan(&r.Child, &r.Parent, &relType, &r.Type, &r.Sender, &r.Depth, &r.Pos, &r.ID)
			r.RelType = string(relType)
			out = append(out, r)
			return err
		})
	return out, err
}

// RelationCount is how many events of one sender relate to an event in one way.
type RelationCount struct {
	Parent  matrix.EventID
	RelType string
	Sender  NameNID
	Count   int64
}

// CountRelations counts the children of events, by way and sender, up to a position.
func CountRelations(ctx context.Context, q Querier, room RoomNID, parents []matrix.EventID, until Position) ([]RelationCount, error) {
	var out []RelationCount
	err := queryIn(ctx, q, `SELECT parent, rel_type, sender_nid, count(*) FROM relations
		WHERE room_nid = $1 AND pos <= $2 AND parent IN ($in) GROUP BY parent, rel_type, sender_nid`,
		[]any{int64(room), int64(until)}, parents, func(rows *Rows) error {
			var c RelationCount
			var relType []byte
			err := rows.Scan(&c.Parent, &relType, &c.Sender, &c.Count)
			c.RelType = string(relType)
			out = append(out, c)
			return err
		})
	return out, err
}

const relationsBySender = `SELECT r.child_nid FROM relations r JOIN events e ON e.nid = r.child_nid
	WHERE r.room_nid = $1 AND r.parent = $2 AND r.rel_type = $3 AND r.sender_nid = $4 AND r.type_nid = $5
	ORDER BY r.ts DESC, e.event_id DESC LIMIT $6`

// RelationsBySender returns up to limit children of an event that are of one sender and type, the newest by
// origin_server_ts first, then the one with the greatest ID.
func RelationsBySender(ctx context.Context, q Querier, room RoomNID, parent matrix.EventID, relType string, sender, typ NameNID, limit int) ([]EventNID, error) {
	return collect(ctx, q, func(rows *Rows) (n EventNID, err error) { return n, rows.Scan(&n) },
		relationsBySender, int64(room), string(parent), []byte(relType), int64(sender), int64(typ), int64(limit))
}
