package storage

import (
	"context"
	"errors"

	"hanok/matrix"
)

// Membership is a current membership as stored; 0 means there never was one.
type Membership int64

const (
	MembershipInvite Membership = iota + 1
	MembershipJoin
	MembershipLeave
	MembershipBan
	MembershipKnock
)

var membershipNames = [...]string{"", "invite", "join", "leave", "ban", "knock"}

// ParseMembership reads content.membership; 0 for anything unknown.
func ParseMembership(s string) Membership {
	for i, n := range membershipNames {
		if n == s {
			return Membership(i)
		}
	}
	return 0
}

func (m Membership) String() string { return membershipNames[m] }

// MembershipRow is a row of memberships.
type MembershipRow struct {
	Room       RoomNID
	User       NameNID
	Server     NameNID // the user's server
	Membership Membership
	Event      EventNID
	Sender     NameNID
	Pos        Position
	LeftPos    Position // when the user last ceased to be joined, 0 if never or joined now
	Forgotten  bool
}

const upsertMembershipSQL = `INSERT INTO memberships (room_nid, user_nid, server_nid, membership, event_nid, sender_nid, pos, left_pos, forgotten)
	VALUES ($1, $2, $3, $4, $5, $6, $7, NULL, $8)
	ON CONFLICT (room_nid, user_nid) DO UPDATE SET
		left_pos = CASE WHEN excluded.membership = 2 THEN NULL WHEN memberships.membership = 2 THEN excluded.pos ELSE memberships.left_pos END,
		membership = excluded.membership, event_nid = excluded.event_nid, sender_nid = excluded.sender_nid, pos = excluded.pos, forgotten = excluded.forgotten`

// UpsertMemberships stores current memberships; left positions follow from what was there before.
func UpsertMemberships(ctx context.Context, tx *Tx, rows []MembershipRow) error {
	args := make([][]any, len(rows))
	for i, r := range rows {
		if r.Membership == MembershipInvite {
			tx.note(r.Pos, Subject{Topic: TopicInvites})
		}
		args[i] = []any{int64(r.Room), int64(r.User), int64(r.Server), int64(r.Membership), int64(r.Event), int64(r.Sender), int64(r.Pos), r.Forgotten}
	}
	return tx.ExecBatch(ctx, upsertMembershipSQL, args)
}

// SetForgotten marks a membership as forgotten.
func SetForgotten(ctx context.Context, tx *Tx, room RoomNID, user NameNID) error {
	_, err := tx.Exec(ctx, `UPDATE memberships SET forgotten = 1 WHERE room_nid = $1 AND user_nid = $2`, int64(room), int64(user))
	return err
}

const membershipColumns = `room_nid, user_nid, server_nid, membership, event_nid, sender_nid, pos, left_pos, forgotten`

func scanMembership(scan func(...any) error) (MembershipRow, error) {
	var r MembershipRow
	var left *Position
	err := scan(&r.Room, &r.User, &r.Server, &r.Membership, &r.Event, &r.Sender, &r.Pos, &left, &r.Forgotten)
	if left != nil {
		r.LeftPos = *left
	}
	return r, err
}

func collectMemberships(rows *Rows, err error) ([]MembershipRow, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []MembershipRow
	for rows.Next() {
		r, err := scanMembership(rows.Scan)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// MembershipOf returns one membership: ErrNotFound.
func MembershipOf(ctx context.Context, q Querier, room RoomNID, user NameNID) (MembershipRow, error) {
	return scanMembership(q.QueryRow(ctx, `SELECT `+membershipColumns+` FROM memberships WHERE room_nid = $1 AND user_nid = $2`, int64(room), int64(user)).Scan)
}

// MembershipsOfUser lists all memberships of a user.
func MembershipsOfUser(ctx context.Context, q Querier, user NameNID) ([]MembershipRow, error) {
	return collectMemberships(q.Query(ctx, `SELECT `+membershipColumns+` FROM memberships WHERE user_nid = $1`, int64(user)))
}

// MembershipsIn lists the memberships of one kind in a room.
func MembershipsIn(ctx context.Context, q Querier, room RoomNID, m Membership) ([]MembershipRow, error) {
	return collectMemberships(q.Query(ctx, `SELECT `+membershipColumns+` FROM memberships WHERE room_nid = $1 AND membership = $2`, int64(room), int64(m)))
}

// InvitesBetween lists the invites in (since, until] that still stand, in order.
func InvitesBetween(ctx context.Context, q Querier, since, until Position) ([]MembershipRow, error) {
	return collectMemberships(q.Query(ctx, `SELECT `+membershipColumns+` FROM memberships WHERE membership = 1 AND pos > $1 AND pos <= $2 ORDER BY pos`, int64(since), int64(until)))
}

// JoinedOfServer lists the users of a server joined to a room.
func JoinedOfServer(ctx context.Context, q Querier, room RoomNID, server NameNID) ([]NameNID, error) {
	return collectNumbers[NameNID](q.Query(ctx, `SELECT user_nid FROM memberships WHERE room_nid = $1 AND membership = 2 AND server_nid = $2`, int64(room), int64(server)))
}

// LeftOfServer lists the users of a server who ceased to be joined to a room after a position, and are not now.
func LeftOfServer(ctx context.Context, q Querier, room RoomNID, server NameNID, since Position) ([]NameNID, error) {
	return collectNumbers[NameNID](q.Query(ctx, `SELECT user_nid FROM memberships WHERE room_nid = $1 AND membership IN (1, 3, 4, 5) AND server_nid = $2 AND left_pos > $3`,
		int64(room), int64(server), int64(since)))
}

// WasRemoved says whether a user of a server who was in a room was removed from it or banned, by whomever, of which this server heard after a time.
func WasRemoved(ctx context.Context, q Querier, room RoomNID, server NameNID, since matrix.Timestamp) (bool, error) {
	return exists(ctx, q, `SELECT 1 FROM memberships m JOIN events e ON e.nid = m.event_nid
		WHERE m.room_nid = $1 AND m.membership IN (3, 4) AND m.server_nid = $2 AND m.sender_nid <> m.user_nid AND m.left_pos IS NOT NULL AND e.ts > $3 LIMIT 1`,
		int64(room), int64(server), int64(since))
}

// ServerJoined says whether a server has a user joined to a room whose membership is older than a position: EndOfStream for any.
func ServerJoined(ctx context.Context, q Querier, room RoomNID, server NameNID, before Position) (bool, error) {
	return exists(ctx, q, `SELECT 1 FROM memberships WHERE room_nid = $1 AND membership = 2 AND server_nid = $2 AND pos < $3 LIMIT 1`,
		int64(room), int64(server), int64(before))
}

// exists says whether a query that selects one number has a result.
func exists(ctx context.Context, q Querier, query string, args ...any) (bool, error) {
	var one int
	err := q.QueryRow(ctx, query, args...).Scan(&one)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// OldestJoin returns the membership of the user of a server who is joined to a room for longest, the zero value if there is none.
func OldestJoin(ctx context.Context, q Querier, room RoomNID, server NameNID) (MembershipRow, error) {
	row, err := scanMembership(q.QueryRow(ctx, `SELECT `+membershipColumns+` FROM memberships WHERE room_nid = $1 AND membership = 2 AND server_nid = $2 ORDER BY pos LIMIT 1`,
		int64(room), int64(server)).Scan)
	if errors.Is(err, ErrNotFound) {
		return MembershipRow{}, nil
	}
	return row, err
}

// JoinedServers lists the servers with a user joined to a room.
func JoinedServers(ctx context.Context, q Querier, room RoomNID) ([]NameNID, error) {
	return collectNumbers[NameNID](q.Query(ctx, `SELECT DISTINCT server_nid FROM memberships WHERE room_nid = $1 AND membership = 2`, int64(room)))
}

// SharingUsers lists the users joined to a room to which a user is joined, that user included.
func SharingUsers(ctx context.Context, q Querier, user NameNID) ([]NameNID, error) {
	return collectNumbers[NameNID](q.Query(ctx, `SELECT DISTINCT o.user_nid FROM memberships m JOIN memberships o ON o.room_nid = m.room_nid AND o.membership = 2
		WHERE m.user_nid = $1 AND m.membership = 2`, int64(user)))
}

// SharingUsersOf lists those of SharingUsers who are of one server.
func SharingUsersOf(ctx context.Context, q Querier, user, server NameNID) ([]NameNID, error) {
	return collectNumbers[NameNID](q.Query(ctx, `SELECT DISTINCT o.user_nid FROM memberships m JOIN memberships o ON o.room_nid = m.room_nid AND o.membership = 2 AND o.server_nid = $2
		WHERE m.user_nid = $1 AND m.membership = 2`, int64(user), int64(server)))
}

// SharedRooms lists the rooms to which both users are joined.
func SharedRooms(ctx context.Context, q Querier, a, b NameNID) ([]RoomNID, error) {
	return collectNumbers[RoomNID](q.Query(ctx, `SELECT m.room_nid FROM memberships m JOIN memberships o ON o.room_nid = m.room_nid AND o.user_nid = $2 AND o.membership = 2
		WHERE m.user_nid = $1 AND m.membership = 2 ORDER BY m.room_nid`, int64(a), int64(b)))
}

// ChangedRooms lists the rooms a user is joined to whose newest event came after a position.
func ChangedRooms(ctx context.Context, q Querier, user NameNID, since Position) ([]RoomNID, error) {
	return collectNumbers[RoomNID](q.Query(ctx, `SELECT r.nid FROM memberships m JOIN rooms r ON r.nid = m.room_nid WHERE m.user_nid = $1 AND m.membership = 2 AND r.pos > $2`, int64(user), int64(since)))
}

// RoomPlace is how far a room's timeline has come.
type RoomPlace struct {
	Room RoomNID
	Pos  Position
}

// JoinedPlaces lists the rooms a user is joined to with the positions of their newest events.
func JoinedPlaces(ctx context.Context, q Querier, user NameNID) ([]RoomPlace, error) {
	return collect(ctx, q, func(r *Rows) (p RoomPlace, err error) { return p, r.Scan(&p.Room, &p.Pos) },
		`SELECT r.nid, r.pos FROM memberships m JOIN rooms r ON r.nid = m.room_nid WHERE m.user_nid = $1 AND m.membership = 2`, int64(user))
}

// collectNumbers reads a result of one column of numbers.
func collectNumbers[T ~int64](rows *Rows, err error) ([]T, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []T
	for rows.Next() {
		var n T
		if err := rows.Scan(&n); err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, rows.Err()
}

// SetStrippedState stores the stripped state that came with an invite or a knock, a JSON array.
func SetStrippedState(ctx context.Context, tx *Tx, room RoomNID, user NameNID, state []byte) error {
	_, err := tx.Exec(ctx, `INSERT INTO stripped_states (room_nid, user_nid, state) VALUES ($1, $2, $3) ON CONFLICT (room_nid, user_nid) DO UPDATE SET state = excluded.state`,
		int64(room), int64(user), state)
	return err
}

// StrippedState returns it: ErrNotFound.
func StrippedState(ctx context.Context, q Querier, room RoomNID, user NameNID) ([]byte, error) {
	var state []byte
	err := q.QueryRow(ctx, `SELECT state FROM stripped_states WHERE room_nid = $1 AND user_nid = $2`, int64(room), int64(user)).Scan(&state)
	return state, err
}

// CountMembers counts the users of a room with a membership.
func CountMembers(ctx context.Context, q Querier, room RoomNID, m Membership) (int, error) {
	var n int
	err := q.QueryRow(ctx, `SELECT count(*) FROM memberships WHERE room_nid = $1 AND membership = $2`, int64(room), int64(m)).Scan(&n)
	return n, err
}

// FirstMembers lists users with one of two memberships but for one of them, in the order in which they got it.
func FirstMembers(ctx context.Context, q Querier, room RoomNID, a, b Membership, except NameNID, limit int) ([]NameNID, error) {
	return collectNumbers[NameNID](q.Query(ctx, `SELECT user_nid FROM memberships WHERE room_nid = $1 AND membership IN ($2, $3) AND user_nid <> $4 ORDER BY pos, user_nid LIMIT $5`,
		int64(room), int64(a), int64(b), int64(except), int64(limit)))
}
