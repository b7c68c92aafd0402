package rooms

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

// UpgradeRequest asks for a room to be replaced by one of another version. spec: cs/upgradeRoom
type UpgradeRequest struct {
	Room    matrix.RoomID
	Sender  matrix.UserID
	Version roomversion.ID
	// AdditionalCreators of the new room; without effect in versions that have none.
	AdditionalCreators []matrix.UserID
}

// Upgrade replaces a room by a new one, and returns it when that and the tombstone in the old one are durable.
// A request for a room that is being upgraded gets the result of the one under way.
// Errors: M_UNSUPPORTED_ROOM_VERSION, M_FORBIDDEN, M_INVALID_PARAM. spec: client-server-api#room-upgrades
func (e *Engine) Upgrade(ctx context.Context, q UpgradeRequest) (matrix.RoomID, error) {
	version, ok := roomversion.Get(q.Version)
	if !ok {
		return "", matrix.Errorf(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "this server does not support room version %q", q.Version)
	}
	if !version.PrivilegedCreators {
		q.AdditionalCreators = nil
	}
	for _, u := range q.AdditionalCreators {
		if _, err := matrix.ParseUserID(string(u)); err != nil {
			return "", matrix.InvalidParam("additional_creators: %q is not a user ID", u)
		}
	}
	r, err := e.joinedRoom(ctx, q.Room, q.Sender)
	if err != nil {
		return "", err
	}
	defer r.release()
	if err := e.mayDo(ctx, q.Sender, r.nid, "m.room.tombstone"); err != nil {
		return "", err
	}
	// Bans move into the new room: they must be known.
	if err := e.AwaitMembers(ctx, q.Sender, q.Room); err != nil {
		return "", err
	}
	id, _, err := e.upgrades.Do(ctx, q.Room, func() (matrix.RoomID, error) {
		u := &upgrade{e: e, q: q, old: r, version: version}
		return u.run(ctx)
	})
	return id, err
}

// upgrade is an upgrade under way.
//
// The new room is made first, with all that moves into it in one transaction; then the old one gets its
// tombstone. Broken off in between, it leaves a room that nobody knows of. But before room version 12 the new room's create event names the
// tombstone. So that is built first, on the head of that moment, and put in its place afterwards like an event that
// came from elsewhere.
type upgrade struct {
	e       *Engine
	q       UpgradeRequest
	version *roomversion.Version // of the new room
	old     *room
	state   State // of the old room
}

func (u *upgrade) run(ctx context.Context) (matrix.RoomID, error) {
	c, err := u.old.current(ctx)
	if err != nil {
		return "", err
	}
	u.state = State{u.e, c.head.state}
	cr := &creation{e: u.e, version: u.version, old: u.old, q: CreateRequest{Creator: u.q.Sender, Version: u.version.ID, Timestamp: u.e.now()}}
	if cr.q.Published, err = u.e.Published(ctx, u.old.id); err != nil {
		return "", err
	}
	predecessor := map[string]any{"room_id": u.old.id}
	var stone *placement
	if !u.version.RoomIDIsCreateHash {
		if cr.id, err = u.e.randomRoomID(); err != nil {
			return "", err
		}
		if stone, err = u.buildTombstone(ctx, cr.id); err != nil {
			return "", err
		}
		predecessor["event_id"] = stone.ev.ID()
	}
	if err := u.describe(ctx, cr, predecessor); err != nil {
		return "", err
	}
	created, err := cr.commit(ctx)
	if err != nil {
		return "", err
	}
	defer created.release()
	if err := u.bury(ctx, stone, created.id); err != nil {
		return "", err
	}
	u.closeOld(ctx)
	return created.id, nil
}

func (u *upgrade) tombstone(replacement matrix.RoomID) (*draft, error) {
	content, err := canonicaljson.Marshal(map[string]any{"body": "This room has been replaced", "replacement_room": replacement})
	key := ""
	return &draft{sender: u.q.Sender, typ: "m.room.tombstone", skey: &key, content: content}, err
}

// buildTombstone makes the event without sending it.
func (u *upgrade) buildTombstone(ctx context.Context, replacement matrix.RoomID) (*placement, error) {
	d, err := u.tombstone(replacement)
	if err != nil {
		return nil, err
	}
	p, err := u.old.draw(ctx, d)
	if err != nil {
		return nil, err
	}
	p.ev, err = p.ev.Sign(u.e.server, u.e.key)
	return p, err
}

// draw composes an event on the head as it is now, and leaves the head alone.
func (r *room) draw(ctx context.Context, d *draft) (*placement, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	c, err := r.compose(ctx, r.head, d, appendOptions{})
	if err != nil {
		return nil, err
	}
	return &placement{ev: c.event, before: r.head.state, partial: r.head.partial()}, nil
}

// bury puts the tombstone into the old room.
func (u *upgrade) bury(ctx context.Context, built *placement, replacement matrix.RoomID) error {
	var en *entry
	if built != nil {
		if err := u.old.lockInbound(ctx); err != nil {
			return err
		}
		defer u.old.unlockInbound()
		var err error
		if en, err = u.old.place(ctx, built); err != nil {
			return err
		}
	} else {
		d, err := u.tombstone(replacement)
		if err != nil {
			return err
		}
		if en, err = u.old.append(ctx, []*draft{d}, appendOptions{}); err != nil {
			return err
		}
	}
	return en.wait(ctx)
}

// closeOld keeps people from going on in the old room, as far as the sender may. What fails is left: the
// tombstone stands. spec: client-server-api#room-upgrades 6
func (u *upgrade) closeOld(ctx context.Context) {
	set := func(typ string, content func() (map[string]json.RawMessage, error)) {
		err := func() error {
			m, err := content()
			if err != nil || m == nil {
				return err
			}
			raw, err := canonicaljson.Marshal(m)
			if err != nil {
				return err
			}
			key := ""
			_, err = u.e.Send(ctx, SendRequest{Room: u.old.id, Sender: u.q.Sender, Type: typ, StateKey: &key, Content: raw})
			return err
		}()
		if err != nil {
			u.e.log.Info().Err(err).Int64("room", int64(u.old.nid)).Str("type", typ).Msg("an upgraded room was not changed")
		}
	}
	set("m.room.canonical_alias", func() (map[string]json.RawMessage, error) { return u.aliasesLeft(ctx) })
	set("m.room.power_levels", func() (map[string]json.RawMessage, error) { return u.levelsLeft(ctx) })
}

// aliasesLeft is the old room's m.room.canonical_alias without the aliases of this server, which lead to the new room; nil: no change.
func (u *upgrade) aliasesLeft(ctx context.Context) (map[string]json.RawMessage, error) {
	ev, err := u.state.Event(ctx, "m.room.canonical_alias", "")
	if err != nil || ev == nil {
		return nil, err
	}
	aliases, err := canonicalAliases(ev.Content())
	if err != nil || !slices.ContainsFunc(aliases, func(a string) bool { return domain(matrix.RoomAlias(a)) == u.e.server }) {
		return nil, nil //nolint:nilerr // what cannot be read is left alone
	}
	out := make(map[string]json.RawMessage)
	main, _ := ev.ContentString("alias")
	var others []string
	for _, a := range aliases {
		switch {
		case domain(matrix.RoomAlias(a)) == u.e.server:
		case a == main:
			out["alias"] = rawString(a)
		default:
			others = append(others, a)
		}
	}
	if len(others) > 0 {
		if out["alt_aliases"], err = canonicaljson.Marshal(others); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// levelsLeft are the old room's power levels so that only moderators can send and invite; nil: they are so already.
func (u *upgrade) levelsLeft(ctx context.Context) (map[string]json.RawMessage, error) {
	ev, err := u.state.Event(ctx, "m.room.power_levels", "")
	if err != nil || ev == nil {
		return nil, err
	}
	levels, err := u.state.PowerLevels(ctx)
	if err != nil {
		return nil, err
	}
	content := make(map[string]json.RawMessage)
	for k, v := range canonicaljson.Members(ev.Content()) {
		content[k] = v
	}
	least := max(50, levels.UsersDefault()+1)
	changed := false
	for key, now := range map[string]int64{"events_default": levels.EventsDefault(), "invite": levels.Invite()} {
		if now < least {
			content[key] = strconv.AppendInt(nil, least, 10)
			changed = true
		}
	}
	if !changed {
		return nil, nil
	}
	return content, nil
}

// FollowUpgrade moves this server's aliases and directory entry of a room that another server upgraded to the room that
// replaces it. Both rooms must say that it does; else, or while one of them is not known, nothing happens.
// spec: client-server-api#room-upgrades
func (e *Engine) FollowUpgrade(ctx context.Context, old, replacement matrix.RoomID) error {
	from, to, err := e.replaced(ctx, old, replacement)
	if err != nil || to == 0 {
		return ignoreRefusal(err)
	}
	row, err := storage.RoomByID(ctx, e.db, old)
	if err != nil {
		return err
	}
	aliases, err := storage.AliasesOf(ctx, e.db, from)
	if err != nil || len(aliases) == 0 && !row.Published {
		return err
	}
	err = e.db.Write(ctx, func(tx *storage.Tx) error { return e.moveEntries(ctx, tx, from, to, row.Published) })
	e.directory.published(from)
	e.directory.published(to)
	return err
}

// replaced returns the numbers of two rooms, 0 if the second does not replace the first.
func (e *Engine) replaced(ctx context.Context, old, replacement matrix.RoomID) (from, to storage.RoomNID, err error) {
	says := func(id matrix.RoomID, typ string, names func(*Event) string, other matrix.RoomID) (storage.RoomNID, error) {
		r, err := e.room(ctx, id)
		if err != nil {
			return 0, err
		}
		defer r.release()
		c, err := r.current(ctx)
		if err != nil {
			return 0, err
		}
		ev, err := (State{e, c.head.state}).Event(ctx, typ, "")
		if err != nil || ev == nil || names(ev) != string(other) {
			return 0, err
		}
		return r.nid, nil
	}
	from, err = says(old, "m.room.tombstone", func(ev *Event) string {
		id, _ := ev.ContentString("replacement_room")
		return id
	}, replacement)
	if err != nil || from == 0 {
		return 0, 0, err
	}
	to, err = says(replacement, "m.room.create", func(ev *Event) string {
		predecessor, _ := canonicaljson.GetObject(ev.Content(), "predecessor")
		id, _ := canonicaljson.GetString(predecessor, "room_id")
		return id
	}, old)
	return from, to, err
}

// moveEntries points the aliases of a room at the one that replaces it, and takes it out of the directory for that one.
func (e *Engine) moveEntries(ctx context.Context, tx *storage.Tx, from, to storage.RoomNID, published bool) error {
	tx.OnVisible(func() { e.directory.published(from) })
	if err := storage.MoveAliases(ctx, tx, from, to); err != nil {
		return err
	}
	if err := storage.SetPublished(ctx, tx, from, false); err != nil || !published {
		return err
	}
	return storage.SetPublished(ctx, tx, to, true)
}

// transferable are the types of state that move, in the order in which they are set in the new room.
// spec: client-server-api#room-upgrades 3
var transferable = []string{
	"m.room.join_rules", "m.room.history_visibility", "m.room.guest_access", "m.room.server_acl", "m.room.encryption",
	"m.room.name", "m.room.topic", "m.room.avatar", "m.room.canonical_alias",
}

// describe fills in the new room's first events.
func (u *upgrade) describe(ctx context.Context, cr *creation, predecessor map[string]any) error {
	create, err := u.state.Event(ctx, "m.room.create", "")
	if err != nil {
		return err
	}
	content := map[string]any{"predecessor": predecessor}
	if t, ok := create.ContentString("type"); ok {
		content["type"] = t
	}
	if f, ok := canonicaljson.GetBool(create.Content(), "m.federate"); ok && !f {
		content["m.federate"] = false
	}
	if len(u.q.AdditionalCreators) > 0 {
		creators := slices.Clone(u.q.AdditionalCreators)
		slices.Sort(creators)
		content["additional_creators"] = slices.Compact(creators)
	}
	if cr.q.Content, err = canonicaljson.Marshal(content); err != nil {
		return err
	}
	moved, err := u.moved(ctx)
	if err != nil {
		return err
	}
	cr.q.InitialState = moved
	extra, err := u.e.policy.InitialState(ctx, &cr.q)
	if err != nil {
		return err
	}
	if cr.create, err = cr.createContent(); err != nil {
		return err
	}
	add := func(typ, key string, content []byte) {
		cr.drafts = append(cr.drafts, &draft{sender: u.q.Sender, typ: typ, skey: &key, content: content, ts: cr.q.Timestamp})
	}
	member, err := u.e.memberContent(ctx, MemberRequest{}, "join", u.q.Sender)
	if err != nil {
		return err
	}
	during, after, err := u.powerLevels(ctx, create)
	if err != nil {
		return err
	}
	add("m.room.create", "", cr.create)
	add("m.room.member", string(u.q.Sender), member)
	add("m.room.power_levels", "", during)
	for _, s := range slices.Concat(extra, cr.q.InitialState) {
		add(s.Type, s.StateKey, s.Content)
	}
	if err := u.bans(ctx, add); err != nil {
		return err
	}
	if string(after) != string(during) {
		add("m.room.power_levels", "", after)
	}
	return nil
}

// moved lists the state that moves into the new room.
func (u *upgrade) moved(ctx context.Context) ([]StateInput, error) {
	var out []StateInput
	for _, typ := range transferable {
		ev, err := u.state.Event(ctx, typ, "")
		if err != nil {
			return nil, err
		}
		switch {
		case ev != nil:
			out = append(out, StateInput{Type: typ, Content: ev.Content()})
		case typ == "m.room.guest_access":
			// What holds in the old room without being said: a preset of the new one must not let guests in.
			out = append(out, StateInput{Type: typ, Content: []byte(`{"guest_access":"forbidden"}`)})
		}
	}
	// The rooms of a space; a child that was taken out has no via.
	children, err := u.state.OfType(ctx, "m.space.child")
	if err != nil {
		return nil, err
	}
	for _, ev := range children {
		if _, ok := canonicaljson.Get(ev.Content(), "via"); ok {
			key, _ := ev.StateKey()
			out = append(out, StateInput{Type: ev.Type(), StateKey: key, Content: ev.Content()})
		}
	}
	return out, nil
}

// bans adds those who are banned: they shall not come in by the new room.
func (u *upgrade) bans(ctx context.Context, add func(typ, key string, content []byte)) error {
	members, err := u.state.OfType(ctx, "m.room.member")
	if err != nil {
		return err
	}
	for _, ev := range members {
		key, _ := ev.StateKey()
		if ev.Membership() != "ban" || key == string(u.q.Sender) {
			continue
		}
		content := map[string]string{"membership": "ban"}
		if reason, ok := ev.ContentString("reason"); ok {
			content["reason"] = reason
		}
		raw, err := canonicaljson.Marshal(content)
		if err != nil {
			return err
		}
		add(ev.Type(), key, raw)
	}
	return nil
}

// powerLevels are the new room's: during its creation, in which the sender can do everything, and after it.
func (u *upgrade) powerLevels(ctx context.Context, create *Event) (during, after []byte, err error) {
	ev, err := u.state.Event(ctx, "m.room.power_levels", "")
	if err != nil {
		return nil, nil, err
	}
	content := &levelsContent{members: map[string]json.RawMessage{}, users: map[string]int64{}}
	if ev != nil {
		content.read(ev.Content())
	}
	if u.version.PrivilegedCreators {
		// Creators are above all levels and must not have one.
		delete(content.users, string(u.q.Sender))
		for _, c := range u.q.AdditionalCreators {
			delete(content.users, string(c))
		}
		if err := content.guardTombstone(); err != nil {
			return nil, nil, err
		}
		after, err = content.marshal()
		return after, after, err
	}
	if u.old.version.PrivilegedCreators || ev == nil {
		// Who was above all levels without having one is given the highest.
		for _, c := range eventauth.Creators(create.Event) {
			content.users[string(c)] = max(100, content.highest)
		}
	}
	if after, err = content.marshal(); err != nil {
		return nil, nil, err
	}
	content.users[string(u.q.Sender)] = max(100, content.highest)
	during, err = content.marshal()
	return during, after, err
}

// levelsContent is the content of m.room.power_levels, all levels as integers, as every room version takes them.
type levelsContent struct {
	members map[string]json.RawMessage // but users
	users   map[string]int64
	highest int64
}

func (l *levelsContent) read(content []byte) {
	for key, raw := range canonicaljson.Members(content) {
		switch key {
		case "users":
			l.users = l.levels(raw)
			for id := range l.users {
				if _, err := matrix.ParseUserID(id); err != nil {
					delete(l.users, id)
				}
			}
		case "events", "notifications":
			if b, err := canonicaljson.Marshal(l.levels(raw)); err == nil {
				l.members[key] = b
			}
		default:
			if n, ok := l.level(raw); ok {
				l.members[key] = strconv.AppendInt(nil, n, 10)
			}
		}
	}
}

func (l *levelsContent) levels(object []byte) map[string]int64 {
	out := map[string]int64{}
	if !canonicaljson.IsObject(object) {
		return out
	}
	for key, raw := range canonicaljson.Members(object) {
		if n, ok := l.level(raw); ok {
			out[key] = n
		}
	}
	return out
}

// guardTombstone makes another upgrade a matter of the creators where the levels let everybody do it who may change the room.
// spec: cs/createRoom
func (l *levelsContent) guardTombstone() error {
	const tombstone = "m.room.tombstone"
	events := l.levels(l.members["events"])
	least := int64(50)
	if n, ok := l.level(l.members["state_default"]); ok {
		least = n
	}
	if n, ok := events[tombstone]; ok && n > least {
		return nil
	}
	events[tombstone] = max(150, least+1)
	raw, err := canonicaljson.Marshal(events)
	l.members["events"] = raw
	return err
}

// level reads a level, which was allowed to be a string before room version 10.
func (l *levelsContent) level(raw []byte) (int64, bool) {
	n, ok := canonicaljson.Int(raw)
	if text, isText := canonicaljson.String(raw); isText {
		var err error
		n, err = strconv.ParseInt(text, 10, 64)
		ok = err == nil
	}
	const limit = 1<<53 - 1
	if !ok || n > limit || n < -limit {
		return 0, false
	}
	l.highest = max(l.highest, n)
	return n, true
}

func (l *levelsContent) marshal() ([]byte, error) {
	users, err := canonicaljson.Marshal(l.users)
	if err != nil {
		return nil, err
	}
	l.members["users"] = users
	return canonicaljson.Marshal(l.members)
}
