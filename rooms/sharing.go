package rooms

import (
	"context"

	"hanok/matrix"
	"hanok/storage"
)

// Since when servers and users share rooms, for those who keep lists of devices: a server is told of changes while a room is shared, as far as the
// user's server knows, and takes what it was told for complete while one is as far as it knows itself.
// spec: server-server-api#device-management

// ReturnedUnawares says whether a server has come back into a room with a user of its own, and does not know that it was out of it: the join holds
// again because what had ended it does not, or it was made when another user of that server was still in the room, as far as the server knew.
// It was sent nothing meanwhile.
func (e *Engine) ReturnedUnawares(ctx context.Context, room matrix.RoomID, user matrix.UserID) (bool, error) {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return false, err
	}
	row, err := e.membershipIn(ctx, nid, user)
	if err != nil || row.Membership != storage.MembershipJoin {
		return false, err
	}
	if before, err := storage.ServerJoined(ctx, e.db, nid, row.Server, row.Pos); before || err != nil {
		return false, err
	}
	join, err := e.eventByNID(ctx, row.Event)
	if err != nil || join.Outlier {
		return false, ignoreNotFound(err)
	}
	if join.Pos < row.Pos {
		return true, nil
	}
	joined, err := e.servers.at(ctx, e, nid, e.treeBefore(join))
	return joined[domain(user)] > 0, err
}

// NewServer says whether a server has come into a room with a user of its own while this server was in it: it returns the local users in
// the room then, and when the join was made, as it says itself.
func (e *Engine) NewServer(ctx context.Context, room matrix.RoomID, user matrix.UserID) (local []matrix.UserID, made matrix.Timestamp, err error) {
	nid, err := e.RoomNID(ctx, room)
	if err != nil || e.isolation.has(room) {
		return nil, 0, err
	}
	row, err := e.membershipIn(ctx, nid, user)
	if err != nil || row.Membership != storage.MembershipJoin {
		return nil, 0, err
	}
	if before, err := storage.ServerJoined(ctx, e.db, nid, row.Server, row.Pos); before || err != nil {
		return nil, 0, err
	}
	if before, err := storage.ServerJoined(ctx, e.db, nid, e.own, row.Pos); !before || err != nil || e.partials.has(nid, domain(user)) {
		return nil, 0, err
	}
	join, err := e.eventByNID(ctx, row.Event)
	if err != nil || join.Outlier {
		// From a state: the whole one of a room that was joined without it tells of servers that were there before us.
		return nil, 0, ignoreNotFound(err)
	}
	nids, err := storage.JoinedOfServer(ctx, e.db, nid, e.own)
	if err != nil {
		return nil, 0, err
	}
	local, err = e.db.UserIDs(ctx, nids...)
	return local, join.OriginServerTS(), err
}

// SharedSince says whether a local user and somebody of another server have both been joined to a room since before a position. Of a room whose
// members are not known yet, all count that were in it before our join.
func (e *Engine) SharedSince(ctx context.Context, user matrix.UserID, server matrix.ServerName, pos storage.Position) (bool, error) {
	nid, err := e.serverNID(ctx, server)
	if err != nil {
		return false, err
	}
	rows, err := e.membershipRows(ctx, user, func(m storage.MembershipRow) bool { return m.Membership == storage.MembershipJoin && m.Pos < pos })
	if err == nil {
		rows, err = e.withoutSilent(ctx, rows)
	}
	if err != nil {
		return false, err
	}
	for _, m := range rows {
		if e.partials.has(m.Room, server) {
			return true, nil
		}
		if shared, err := storage.ServerJoined(ctx, e.db, m.Room, nid, pos); shared || err != nil {
			return shared, err
		}
	}
	return false, nil
}

// withoutSilent leaves out memberships of rooms of which this server hears nothing.
func (e *Engine) withoutSilent(ctx context.Context, rows []storage.MembershipRow) ([]storage.MembershipRow, error) {
	off := e.outOfTouch()
	if off == nil {
		return rows, nil
	}
	return deleteFailing(rows, func(m storage.MembershipRow) (bool, error) {
		ids, err := e.roomIDs(ctx, []storage.RoomNID{m.Room})
		return err == nil && off(ids[0]), err
	})
}

// Parting says of a user of another server when the last leave (or kick, or ban) from a room was made, as it says itself, and since when the room is
// shared with local users that is shared for longest: that is when the later of the two joins was made, as it says. It is not known if the user
// never left a room or shares none; left is 0 where the join has turned out not to hold, without any leave.
func (e *Engine) Parting(ctx context.Context, user matrix.UserID) (left, shared matrix.Timestamp, known bool, err error) {
	var last storage.MembershipRow
	joined, err := e.membershipRows(ctx, user, func(m storage.MembershipRow) bool {
		if m.LeftPos > last.LeftPos {
			last = m
		}
		return m.Membership == storage.MembershipJoin
	})
	if err != nil || last.LeftPos == 0 {
		return 0, 0, false, err
	}
	if joined, err = e.withoutSilent(ctx, joined); err != nil {
		return 0, 0, false, err
	}
	var since storage.Position
	var join storage.EventNID
	for _, m := range joined {
		ours, err := storage.OldestJoin(ctx, e.db, m.Room, e.own)
		if err != nil {
			return 0, 0, false, err
		}
		if ours.Room == 0 {
			continue
		}
		if ours.Pos < m.Pos {
			ours = m
		}
		if since == 0 || ours.Pos < since {
			since, join = ours.Pos, ours.Event
		}
	}
	if since == 0 {
		return 0, 0, false, nil
	}
	var at [2]matrix.Timestamp
	for i, nid := range []storage.EventNID{last.Event, join} {
		if nid == 0 {
			continue
		}
		ev, err := e.eventByNID(ctx, nid)
		if err != nil {
			return 0, 0, false, ignoreNotFound(err)
		}
		at[i] = ev.OriginServerTS()
	}
	return at[0], at[1], true, nil
}
