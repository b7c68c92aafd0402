package storage

import (
	"context"

	"hanok/matrix"
)

// SignedInvite is an invite of a local user that was signed while this server was in the room, and has not come as an event yet.
type SignedInvite struct {
	Room  RoomNID
	User  NameNID
	PDU   []byte
	State []byte // stripped, JSON array
	TS    matrix.Timestamp
}

// PutSignedInvite stores an invite, in place of an earlier one of the user.
func PutSignedInvite(ctx context.Context, tx *Tx, i SignedInvite) error {
	_, err := tx.Exec(ctx, `INSERT INTO signed_invites (room_nid, user_nid, invite, state, ts) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (room_nid, user_nid) DO UPDATE SET invite = excluded.invite, state = excluded.state, ts = excluded.ts`,
		int64(i.Room), int64(i.User), i.PDU, i.State, int64(i.TS))
	return err
}

// SignedInvites lists those to a room.
func SignedInvites(ctx context.Context, q Querier, room RoomNID) ([]SignedInvite, error) {
	return collect(ctx, q, func(r *Rows) (i SignedInvite, err error) {
		return i, r.Scan(&i.Room, &i.User, &i.PDU, &i.State, &i.TS)
	}, `SELECT room_nid, user_nid, invite, state, ts FROM signed_invites WHERE room_nid = $1 ORDER BY user_nid`, int64(room))
}

// RoomsOfSignedInvites lists the rooms to which there are any.
func RoomsOfSignedInvites(ctx context.Context, q Querier) ([]RoomNID, error) {
	return collectNumbers[RoomNID](q.Query(ctx, `SELECT DISTINCT room_nid FROM signed_invites ORDER BY room_nid`))
}

// MemberKey names a membership.
type MemberKey struct {
	Room RoomNID
	User NameNID
}

// DropSignedInvites forgets the invites of some users.
func DropSignedInvites(ctx context.Context, tx *Tx, keys []MemberKey) error {
	args := make([][]any, len(keys))
	for i, k := range keys {
		args[i] = []any{int64(k.Room), int64(k.User)}
	}
	return tx.ExecBatch(ctx, `DELETE FROM signed_invites WHERE room_nid = $1 AND user_nid = $2`, args)
}

// DropSignedInvitesBefore forgets those that were signed before a time.
func DropSignedInvitesBefore(ctx context.Context, tx *Tx, ts matrix.Timestamp) error {
	_, err := tx.Exec(ctx, `DELETE FROM signed_invites WHERE ts < $1`, int64(ts))
	return err
}

// UntoldLeave is a leave that no server in the room was told of yet.
type UntoldLeave struct {
	Room    RoomNID
	User    NameNID
	Event   EventNID // which stayed on this server
	Servers []byte   // JSON array: those to tell
	Since   matrix.Timestamp
	Tries   int
	Next    matrix.Timestamp // when to try again
}

// PutUntoldLeave stores a leave, or when it is to be tried again.
func PutUntoldLeave(ctx context.Context, tx *Tx, l UntoldLeave) error {
	_, err := tx.Exec(ctx, `INSERT INTO untold_leaves (room_nid, user_nid, event_nid, servers, since_ts, tries, next_ts) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (room_nid, user_nid) DO UPDATE SET event_nid = excluded.event_nid, servers = excluded.servers, since_ts = excluded.since_ts,
		tries = excluded.tries, next_ts = excluded.next_ts`,
		int64(l.Room), int64(l.User), int64(l.Event), l.Servers, int64(l.Since), l.Tries, int64(l.Next))
	return err
}

// UntoldLeaves lists those that are to be tried until a time, up to limit of them, the next one first.
func UntoldLeaves(ctx context.Context, q Querier, until matrix.Timestamp, limit int) ([]UntoldLeave, error) {
	return collect(ctx, q, func(r *Rows) (l UntoldLeave, err error) {
		return l, r.Scan(&l.Room, &l.User, &l.Event, &l.Servers, &l.Since, &l.Tries, &l.Next)
	}, `SELECT room_nid, user_nid, event_nid, servers, since_ts, tries, next_ts FROM untold_leaves WHERE next_ts <= $1 ORDER BY next_ts LIMIT $2`, int64(until), limit)
}

// DropUntoldLeave forgets a leave that was told, or need not be any more.
func DropUntoldLeave(ctx context.Context, tx *Tx, l UntoldLeave) error {
	_, err := tx.Exec(ctx, `DELETE FROM untold_leaves WHERE room_nid = $1 AND user_nid = $2 AND event_nid = $3`, int64(l.Room), int64(l.User), int64(l.Event))
	return err
}
