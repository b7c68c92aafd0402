package rooms

import (
	"context"

	"hanok/matrix"
	"hanok/storage"
)

// What readers of the stream ask who follow many users at once: application services.

// LocalMemberAt finds a local user who was joined to the room of an event before it, and whom match accepts; "" if there is none. The usual case, an
// event that came just now, costs a look at the list of local members.
func (e *Engine) LocalMemberAt(ctx context.Context, ev *Event, match func(matrix.UserID) bool) (matrix.UserID, error) {
	local, err := e.LocalUsers(ctx, ev.RoomID())
	if err != nil {
		return "", err
	}
	state := State{e, e.treeBefore(ev)}
	find := func(users []matrix.UserID) (matrix.UserID, error) {
		for _, user := range users {
			if !match(user) {
				continue
			}
			if membership, err := state.Membership(ctx, user); err != nil || membership == "join" {
				return user, err
			}
		}
		return "", nil
	}
	if user, err := find(local); user != "" || err != nil {
		return user, err
	}
	nids, err := storage.LeftOfServer(ctx, e.db, ev.RoomNID, e.own, ev.Pos)
	if err != nil || len(nids) == 0 {
		return "", err
	}
	left, err := e.db.UserIDs(ctx, nids...)
	if err != nil {
		return "", err
	}
	return find(left)
}

// ApartEvent is a membership event of a local user in a room in which this server did not take part.
type ApartEvent struct {
	*Event
	Position storage.Position // Event.Pos is 0: it has no place in the timeline
}

// ApartAfter returns the first such events in (since, until], in order. Of a user's memberships in one room only the newest is there.
func (e *Engine) ApartAfter(ctx context.Context, since, until storage.Position, limit int) ([]ApartEvent, error) {
	if e.db.UnchangedIn(storage.Subject{Topic: storage.TopicApart}, since, until) {
		return nil, nil
	}
	rows, err := storage.ApartMemberships(ctx, e.db, since, until, limit)
	if err != nil {
		return nil, err
	}
	out := make([]ApartEvent, 0, len(rows))
	for _, row := range rows {
		ev, err := e.Event(ctx, row.Event)
		if err != nil {
			return nil, err
		}
		out = append(out, ApartEvent{ev, row.Position})
	}
	return out, nil
}

// EventsByID returns stored events in the order asked for, without any access check; unknown ones are left out.
func (e *Engine) EventsByID(ctx context.Context, ids ...matrix.EventID) ([]*Event, error) {
	found, err := e.eventsByID(ctx, ids)
	if err != nil {
		return nil, err
	}
	out := make([]*Event, 0, len(ids))
	for _, id := range ids {
		if ev := found[id]; ev != nil {
			out = append(out, ev)
		}
	}
	return out, nil
}

// AppendForService appends an event as an application service is told it: as clients are, but for what concerns one reader only. Its age is as of now.
func (e *Engine) AppendForService(ctx context.Context, dst []byte, ev *Event, now matrix.Timestamp) ([]byte, error) {
	o, _, err := e.sharedOptions(ctx, ev, now)
	if err != nil {
		return dst, err
	}
	return ev.AppendClient(dst, o), nil
}

// RoomsWith lists the rooms to which a user of any server is joined. (JoinedRooms remembers its answers, which holds for local users only.)
func (e *Engine) RoomsWith(ctx context.Context, user matrix.UserID) ([]matrix.RoomID, error) {
	rows, err := e.membershipRows(ctx, user, func(m storage.MembershipRow) bool { return m.Membership == storage.MembershipJoin })
	if err != nil {
		return nil, err
	}
	nids := make([]storage.RoomNID, len(rows))
	for i, row := range rows {
		nids[i] = row.Room
	}
	return e.roomIDs(ctx, nids)
}
