package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// StickyRow is an event that clients are told of whatever the limit of a timeline. spec: MSC4354
type StickyRow struct {
	Event   EventNID
	Room    RoomNID
	Pos     Position // where clients meet it; 0: soft-failed
	Own     bool     // of this server
	Expires matrix.Timestamp
}

const (
	upsertStickyEvent = `INSERT INTO sticky_events (event_nid, room_nid, pos, own, expires_ts) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (event_nid) DO UPDATE SET pos = excluded.pos`
	deleteStickyEvent  = `DELETE FROM sticky_events WHERE event_nid = $1`
	expireStickyEvents = `DELETE FROM sticky_events WHERE expires_ts <= $1`
)

// PutStickyEvents stores sticky events, new ones or ones that are no longer soft-failed, and drops those that have expired: so
// there are never many more rows than live events.
func PutStickyEvents(ctx context.Context, tx *Tx, now matrix.Timestamp, rows []StickyRow) error {
	if _, err := tx.Exec(ctx, expireStickyEvents, now); err != nil {
		return fmt.Errorf("expire sticky events: %w", err)
	}
	args := make([][]any, len(rows))
	for i, r := range rows {
		if r.Pos != 0 {
			tx.note(r.Pos, Subject{Topic: TopicSticky}, Subject{Topic: TopicRoomSticky, RoomNID: r.Room})
		}
		args[i] = []any{int64(r.Event), int64(r.Room), nullable(r.Pos), r.Own, int64(r.Expires)}
	}
	if err := tx.ExecBatch(ctx, upsertStickyEvent, args); err != nil {
		return fmt.Errorf("store sticky events: %w", err)
	}
	return nil
}

const (
	stickyColumns = `s.event_nid, s.room_nid, s.pos, s.own, s.expires_ts`
	stickyInRoom  = `SELECT ` + stickyColumns + ` FROM sticky_events s
		WHERE s.room_nid = $1 AND s.pos > $2 AND s.pos <= $3 AND s.expires_ts > $4 ORDER BY s.pos LIMIT $5`
	stickyOfUser = `SELECT ` + stickyColumns + ` FROM sticky_events s
		JOIN memberships m ON m.room_nid = s.room_nid AND m.user_nid = $1 AND m.membership = $2
		WHERE s.pos > $3 AND s.pos <= $4 AND s.expires_ts > $5 ORDER BY s.pos LIMIT $6`
	stickyOwn     = `SELECT ` + stickyColumns + ` FROM sticky_events s WHERE s.room_nid = $1 AND s.own = 1 AND s.pos <= $2 AND s.expires_ts > $3 ORDER BY s.pos LIMIT $4`
	stickyWaiting = `SELECT ` + stickyColumns + ` FROM sticky_events s WHERE s.room_nid = $1 AND s.pos IS NULL AND s.expires_ts > $2 ORDER BY s.event_nid LIMIT $3`
)

func scanSticky(r *Rows) (s StickyRow, err error) {
	var pos *Position
	err = r.Scan(&s.Event, &s.Room, &pos, &s.Own, &s.Expires)
	if pos != nil {
		s.Pos = *pos
	}
	return s, err
}

// StickyEventsIn returns the first live sticky events of a room with since < Pos <= until, in order.
func StickyEventsIn(ctx context.Context, q Querier, room RoomNID, since, until Position, now matrix.Timestamp, limit int) ([]StickyRow, error) {
	return collect(ctx, q, scanSticky, stickyInRoom, room, since, until, now, limit)
}

// StickyEventsOf is StickyEventsIn for all rooms that a user is joined to.
func StickyEventsOf(ctx context.Context, q Querier, user NameNID, since, until Position, now matrix.Timestamp, limit int) ([]StickyRow, error) {
	return collect(ctx, q, scanSticky, stickyOfUser, user, MembershipJoin, since, until, now, limit)
}

// OwnStickyEvents returns live sticky events of this server in a room up to a position, in order.
func OwnStickyEvents(ctx context.Context, q Querier, room RoomNID, until Position, now matrix.Timestamp, limit int) ([]StickyRow, error) {
	return collect(ctx, q, scanSticky, stickyOwn, room, until, now, limit)
}

// WaitingStickyEvents returns live sticky events of a room that are soft-failed for now.
func WaitingStickyEvents(ctx context.Context, q Querier, room RoomNID, now matrix.Timestamp, limit int) ([]StickyRow, error) {
	return collect(ctx, q, scanSticky, stickyWaiting, room, now, limit)
}
