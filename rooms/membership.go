package rooms

import (
	"context"
	"encoding/json"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// MemberRequest is a change of a membership by a local user.
type MemberRequest struct {
	Room   matrix.RoomID
	Sender matrix.UserID
	Target matrix.UserID // empty means Sender
	Reason string
	// Content holds further members of the event's content (JSON object), may be nil. If it has a
	// displayname or avatar_url, or ProfileInContent is true, the user's profile is not added.
	Content          []byte
	ProfileInContent bool
	// Renew is a join that only changes the name and the avatar of one that there is: M_FORBIDDEN for those who are not in the room.
	Renew bool
	// Via are servers to try when this server is not in the room.
	Via       []matrix.ServerName
	IsDirect  bool
	Device    matrix.DeviceID // of the sender
	Timestamp matrix.Timestamp
}

func (q *MemberRequest) target() matrix.UserID {
	if q.Target == "" {
		return q.Sender
	}
	return q.Target
}

// memberContent makes the content of a membership event.
func (e *Engine) memberContent(ctx context.Context, q MemberRequest, membership string, user matrix.UserID) ([]byte, error) {
	content, err := object(q.Content, "the content")
	if err != nil {
		return nil, err
	}
	content["membership"] = rawString(membership)
	if q.Reason != "" {
		content["reason"] = rawString(q.Reason)
	}
	if q.IsDirect && membership == "invite" {
		content["is_direct"] = json.RawMessage("true")
	}
	delete(content, "join_authorised_via_users_server")
	_, named := content["displayname"]
	_, pictured := content["avatar_url"]
	carriesProfile := membership == "join" || membership == "invite" || membership == "knock"
	if carriesProfile && !named && !pictured && !q.ProfileInContent && e.isLocal(user) {
		name, avatar, err := e.profile(ctx, user)
		if err != nil {
			return nil, err
		}
		if name != "" {
			content["displayname"] = rawString(name)
		}
		if avatar != "" {
			content["avatar_url"] = rawString(avatar)
		}
	}
	return canonicaljson.Marshal(content)
}

// sendMember routes a membership event sent as state to its operation.
func (e *Engine) sendMember(ctx context.Context, r SendRequest) (matrix.EventID, error) {
	content, err := canonicaljson.Canonical(r.Content, canonicaljson.Lenient)
	if err != nil {
		return "", err
	}
	if _, err := matrix.ParseUserID(*r.StateKey); err != nil {
		return "", matrix.BadJSON("the state key is not a user ID")
	}
	membership, _ := canonicaljson.GetString(content, "membership")
	q := MemberRequest{Room: r.Room, Sender: r.Sender, Target: matrix.UserID(*r.StateKey), Content: content, ProfileInContent: true, Timestamp: r.Timestamp}
	switch membership {
	case "join":
		if q.Target != q.Sender {
			return "", matrix.Forbidden("nobody can join for somebody else")
		}
		return e.Join(ctx, q)
	case "invite":
		return e.Invite(ctx, q)
	case "knock":
		return e.Knock(ctx, q)
	case "ban":
		return e.Ban(ctx, q)
	case "leave":
		if q.Target == q.Sender {
			return e.Leave(ctx, q)
		}
		return e.changeMember(ctx, q, "leave", nil)
	}
	return "", matrix.BadJSON("content.membership is none that is known")
}

// changeMember appends a membership event to a room of this server. allow is asked about the target's membership.
func (e *Engine) changeMember(ctx context.Context, q MemberRequest, membership string, allow func(current string) error) (matrix.EventID, error) {
	if err := e.awaitMember(ctx, q.Room, q.Sender, q.target()); err != nil {
		return "", err
	}
	r, err := e.joinedRoom(ctx, q.Room, q.Sender)
	if err != nil {
		return "", err
	}
	defer r.release()
	content, err := e.memberContent(ctx, q, membership, q.target())
	if err != nil {
		return "", err
	}
	key := matrix.StateKey{Type: "m.room.member", Key: string(q.target())}
	same, err := r.sameState(ctx, q.Sender, key, content)
	if err != nil {
		return "", err
	}
	if same != "" {
		if allow == nil {
			return same, nil
		}
		return same, allow(membership)
	}
	return r.appendMember(ctx, q, content, func(_ headView, current string) error {
		if allow == nil {
			return nil
		}
		return allow(current)
	})
}

func (r *room) appendMember(ctx context.Context, q MemberRequest, content []byte, allow func(v headView, current string) error) (matrix.EventID, error) {
	target := string(q.target())
	d := &draft{sender: q.Sender, typ: "m.room.member", skey: &target, content: content, ts: q.Timestamp}
	en, err := r.append(ctx, []*draft{d}, appendOptions{check: func(v headView) error {
		if allow == nil {
			return nil
		}
		current, err := v.membership(q.target())
		if err != nil {
			return err
		}
		return allow(v, current)
	}})
	if err != nil {
		return "", err
	}
	return en.items[0].ev.ID(), en.wait(ctx)
}

// Kick removes Target. spec: cs/kick
func (e *Engine) Kick(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	return e.changeMember(ctx, q, "leave", func(current string) error {
		if current != "join" && current != "invite" && current != "knock" {
			return matrix.Forbidden("the user is not in the room")
		}
		return nil
	})
}

// Ban bans Target. spec: cs/ban
func (e *Engine) Ban(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	return e.changeMember(ctx, q, "ban", nil)
}

// Unban lifts a ban. spec: cs/unban
func (e *Engine) Unban(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	return e.changeMember(ctx, q, "leave", func(current string) error {
		if current != "ban" {
			return matrix.Forbidden("the user is not banned")
		}
		return nil
	})
}

// Forget hides a room the user has left. M_UNKNOWN while they are in it. spec: cs/forgetRoom
func (e *Engine) Forget(ctx context.Context, user matrix.UserID, id matrix.RoomID) error {
	m, err := e.MembershipOf(ctx, id, user)
	if err != nil {
		return err
	}
	switch m.Membership {
	case "leave", "ban":
	case "":
		return matrix.Errorf(400, "M_UNKNOWN", "you were never in this room")
	default:
		return matrix.Errorf(400, "M_UNKNOWN", "leave the room before you forget it")
	}
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return err
	}
	e.userRooms.hold([]matrix.UserID{user})
	defer e.userRooms.release([]matrix.UserID{user})
	return e.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetForgotten(ctx, tx, m.RoomNID, nid) })
}

// Membership is a user's place in a room as of the last commit.
type Membership struct {
	Room       matrix.RoomID
	RoomNID    storage.RoomNID
	User       matrix.UserID
	Membership string // "" if the user never had any
	Event      matrix.EventID
	Sender     matrix.UserID    // who made the event
	Position   storage.Position // when it came
	// LeftPosition is when the user last ceased to be joined, 0 if never or joined now.
	LeftPosition storage.Position
	Forgotten    bool
}

// membershipIn returns the row of a user in a room, the zero row if there is none.
func (e *Engine) membershipIn(ctx context.Context, room storage.RoomNID, user matrix.UserID) (storage.MembershipRow, error) {
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return storage.MembershipRow{}, ignoreNotFound(err)
	}
	row, err := storage.MembershipOf(ctx, e.db, room, nid)
	return row, ignoreNotFound(err)
}

// MembershipOf returns a user's membership in a room; Membership "" if none, never ErrNotFound.
func (e *Engine) MembershipOf(ctx context.Context, room matrix.RoomID, user matrix.UserID) (Membership, error) {
	none := Membership{Room: room, User: user}
	r, err := e.room(ctx, room)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return none, nil
	}
	if err != nil {
		return none, err
	}
	nid := r.nid
	r.release()
	row, err := e.membershipIn(ctx, nid, user)
	if err != nil || row.Membership == 0 {
		return none, err
	}
	out, err := e.memberships(ctx, []storage.MembershipRow{row})
	if err != nil {
		return none, err
	}
	return out[0], nil
}

// memberships spells out rows.
func (e *Engine) memberships(ctx context.Context, rows []storage.MembershipRow) ([]Membership, error) {
	names := make([]storage.NameNID, 0, 2*len(rows))
	events := make([]storage.EventNID, 0, len(rows))
	for _, row := range rows {
		names = append(names, row.User, row.Sender)
		events = append(events, row.Event)
	}
	known := names[:0:0]
	for _, n := range names {
		if n != 0 {
			known = append(known, n)
		}
	}
	spelt, err := e.db.Names(ctx, known...)
	if err != nil {
		return nil, err
	}
	byName := make(map[storage.NameNID]matrix.UserID, len(known))
	for i, n := range known {
		byName[n] = matrix.UserID(spelt[i])
	}
	ids, err := storage.EventIDs(ctx, e.db, events)
	if err != nil {
		return nil, err
	}
	out := make([]Membership, len(rows))
	for i, row := range rows {
		id, err := e.RoomID(ctx, row.Room)
		if err != nil {
			return nil, err
		}
		out[i] = Membership{
			Room: id, RoomNID: row.Room, User: byName[row.User], Membership: row.Membership.String(), Event: ids[row.Event],
			Sender: byName[row.Sender], Position: row.Pos, LeftPosition: row.LeftPos, Forgotten: row.Forgotten,
		}
	}
	return out, nil
}

func (e *Engine) membershipRows(ctx context.Context, user matrix.UserID, keep func(storage.MembershipRow) bool) ([]storage.MembershipRow, error) {
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	rows, err := storage.MembershipsOfUser(ctx, e.db, nid)
	if err != nil {
		return nil, err
	}
	kept := rows[:0]
	for _, row := range rows {
		if keep(row) {
			kept = append(kept, row)
		}
	}
	return kept, nil
}

func (e *Engine) roomIDs(ctx context.Context, nids []storage.RoomNID) ([]matrix.RoomID, error) {
	out := make([]matrix.RoomID, len(nids))
	for i, nid := range nids {
		var err error
		if out[i], err = e.RoomID(ctx, nid); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// RoomID and RoomNID translate; M_NOT_FOUND for unknown rooms.
func (e *Engine) RoomID(ctx context.Context, nid storage.RoomNID) (matrix.RoomID, error) {
	r, err := e.roomByNID(ctx, nid)
	if err != nil {
		return "", err
	}
	defer r.release()
	return r.id, nil
}

// RoomNID returns a room's number.
func (e *Engine) RoomNID(ctx context.Context, id matrix.RoomID) (storage.RoomNID, error) {
	r, err := e.room(ctx, id)
	if err != nil {
		return 0, err
	}
	defer r.release()
	return r.nid, nil
}

// JoinedUsers lists all joined users of a room.
func (e *Engine) JoinedUsers(ctx context.Context, room matrix.RoomID) ([]matrix.UserID, error) {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return nil, err
	}
	rows, err := storage.MembershipsIn(ctx, e.db, nid, storage.MembershipJoin)
	if err != nil {
		return nil, err
	}
	nids := make([]storage.NameNID, len(rows))
	for i, row := range rows {
		nids[i] = row.User
	}
	return e.db.UserIDs(ctx, nids...)
}

// LocalUsers lists the joined users of this server. Shared: do not change it.
func (e *Engine) LocalUsers(ctx context.Context, room matrix.RoomID) ([]matrix.UserID, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	return c.local, nil
}

// JoinedServers lists the servers with a joined user, this one included. While the room's state is partial, those that were in the room
// before our join are in it, too. Of a room that the operator keeps apart, this server is the only one.
func (e *Engine) JoinedServers(ctx context.Context, room matrix.RoomID) ([]matrix.ServerName, error) {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return nil, err
	}
	nids, err := storage.JoinedServers(ctx, e.db, nid)
	if err != nil {
		return nil, err
	}
	names, err := e.db.Names(ctx, nids...)
	if err != nil {
		return nil, err
	}
	out := make([]matrix.ServerName, len(names))
	for i, n := range names {
		out[i] = matrix.ServerName(n)
	}
	if e.isolation.has(room) {
		return slices.DeleteFunc(out, func(s matrix.ServerName) bool { return s != e.server }), nil
	}
	if pr := e.partials.get(nid); pr != nil {
		out = append(out, pr.servers...)
		slices.Sort(out)
		out = slices.Compact(out)
	}
	return out, nil
}

// Sharing lists the users who share a joined room with a user, that user included.
func (e *Engine) Sharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	nids, err := storage.SharingUsers(ctx, e.db, nid)
	if err != nil {
		return nil, err
	}
	users, err := e.db.UserIDs(ctx, nids...)
	if err != nil {
		return nil, err
	}
	return e.sharing(ctx, user, users)
}

// LocalSharing lists the local users who share a room with a user of another server. Whatever tells of such a user asks for them, and may
// come by the thousand: those of other servers in big rooms are not read.
func (e *Engine) LocalSharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	nid, err := e.db.LookupName(ctx, string(user))
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	nids, err := storage.SharingUsersOf(ctx, e.db, nid, e.own)
	if err != nil {
		return nil, err
	}
	local, err := e.db.UserIDs(ctx, nids...)
	if err != nil {
		return nil, err
	}
	return e.localSharing(ctx, user, local)
}

// SharedRooms lists the rooms to which both are joined.
func (e *Engine) SharedRooms(ctx context.Context, a, b matrix.UserID) ([]matrix.RoomID, error) {
	na, err := e.db.LookupName(ctx, string(a))
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	nb, err := e.db.LookupName(ctx, string(b))
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	nids, err := storage.SharedRooms(ctx, e.db, na, nb)
	if err != nil {
		return nil, err
	}
	return e.roomIDs(ctx, nids)
}
