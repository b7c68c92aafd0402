package rooms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

// StateInput is a state event to be sent.
type StateInput struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// CreateRequest asks for a new room. The JSON names are those of the request body. spec: cs/createRoom
type CreateRequest struct {
	Creator matrix.UserID `json:"-"`
	// Published is true when `visibility` was "public": the room goes into the directory.
	Published     bool            `json:"-"`
	Version       roomversion.ID  `json:"room_version"` // "" means the default
	Preset        string          `json:"preset"`       // "" follows Published
	Name          string          `json:"name"`
	Topic         string          `json:"topic"`
	AliasLocal    string          `json:"room_alias_name"`
	Invite        []matrix.UserID `json:"invite"`
	IsDirect      bool            `json:"is_direct"`
	Content       json.RawMessage `json:"creation_content"`
	PowerOverride json.RawMessage `json:"power_level_content_override"`
	InitialState  []StateInput    `json:"initial_state"`

	Timestamp matrix.Timestamp `json:"-"` // 0 means now
	// Commit, unless nil, is run in the transaction that stores the room.
	Commit func(ctx context.Context, tx *storage.Tx, room matrix.RoomID) error `json:"-"`
}

// preset is what createRoom's presets set. spec: cs/createRoom
type preset struct {
	joinRule, guestAccess string
	inviteLevel           int
	trusted               bool // invited users are the creator's equals
}

var presets = map[string]preset{
	"private_chat":         {joinRule: "invite", guestAccess: "can_join"},
	"trusted_private_chat": {joinRule: "invite", guestAccess: "can_join", trusted: true},
	"public_chat":          {joinRule: "public", guestAccess: "forbidden", inviteLevel: 50},
}

// CreateRoom makes a room and returns its ID when the creator's join, all initial
// state and the invites are durable. Remote invites that fail do not fail the creation, and go on if ctx ends.
// Errors: M_UNSUPPORTED_ROOM_VERSION, M_ROOM_IN_USE, M_INVALID_ROOM_STATE, M_BAD_JSON, M_INVALID_PARAM.
// spec: cs/createRoom
func (e *Engine) CreateRoom(ctx context.Context, q CreateRequest) (matrix.RoomID, error) {
	c := &creation{e: e, q: q}
	if err := c.prepare(ctx); err != nil {
		return "", err
	}
	r, err := c.commit(ctx)
	if err != nil {
		return "", err
	}
	defer r.release()
	return r.id, c.inviteRemote(context.WithoutCancel(ctx), r.id)
}

// How the users of other servers are invited to a new room: one after the other, but a server that takes its time does not
// keep the next one waiting for longer than this, up to so many at a time.
const (
	invitePatience = time.Second
	invitesAtOnce  = 8
)

// inviteRemote invites users of other servers, and comes back when all have been asked.
func (c *creation) inviteRemote(ctx context.Context, room matrix.RoomID) error {
	var invited errgroup.Group
	invited.SetLimit(invitesAtOnce)
	for _, user := range c.invites {
		done := make(chan struct{})
		invited.Go(func() error {
			defer close(done)
			_, err := c.e.Invite(ctx, MemberRequest{Room: room, Sender: c.q.Creator, Target: user, IsDirect: c.q.IsDirect})
			if err != nil {
				c.e.log.Info().Err(err).Str("server", string(domain(user))).Msg("an invite of a new room was not delivered")
			}
			return nil
		})
		patience := time.NewTimer(invitePatience)
		select {
		case <-done:
		case <-patience.C:
		}
		patience.Stop()
	}
	return invited.Wait()
}

// commit makes the room with its first events, and returns it pinned when they are durable.
func (c *creation) commit(ctx context.Context) (*room, error) {
	r, err := c.adopt(ctx)
	if err != nil {
		return nil, err
	}
	en, err := r.append(ctx, c.drafts, appendOptions{create: true, unchecked: true, extra: c.store})
	if err != nil {
		c.e.abandon(r)
		r.release()
		return nil, invalidState(err)
	}
	if err := en.wait(ctx); err != nil {
		if _, refused := matrix.AsError(err); refused {
			c.e.abandon(r)
		}
		r.release()
		return nil, err
	}
	if c.old != nil && c.e.isolation.has(c.old.id) {
		if err := c.e.isolation.load(ctx, c.e.db); err != nil {
			r.release()
			return nil, err
		}
	}
	return r, nil
}

// invalidState says what a rejection means to somebody who creates a room.
func invalidState(err error) error {
	var rej *eventauth.Rejection
	if errors.As(err, &rej) {
		return matrix.Errorf(http.StatusBadRequest, "M_INVALID_ROOM_STATE", "the initial state is not allowed: %s", rej.Reason)
	}
	return err
}

// creation is a room being made.
type creation struct {
	e       *Engine
	q       CreateRequest
	version *roomversion.Version
	preset  preset
	alias   matrix.RoomAlias
	create  []byte // content of m.room.create
	drafts  []*draft
	invites []matrix.UserID
	room    *room
	id      matrix.RoomID // "": made up, or what the create event says
	old     *room         // the room that this one replaces; nil: none
}

func (c *creation) prepare(ctx context.Context) error {
	q := &c.q
	if q.Version == "" {
		q.Version = c.e.defaultVersion
	}
	v, ok := roomversion.Get(q.Version)
	if !ok {
		return matrix.Errorf(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "this server does not support room version %q", q.Version)
	}
	c.version = v
	if q.Preset == "" {
		q.Preset = "private_chat"
		if q.Published {
			q.Preset = "public_chat"
		}
	}
	if c.preset, ok = presets[q.Preset]; !ok {
		return matrix.InvalidParam("unknown preset %q", q.Preset)
	}
	if q.Timestamp == 0 {
		q.Timestamp = c.e.now()
	}
	slices.Sort(q.Invite)
	q.Invite = slices.DeleteFunc(slices.Compact(q.Invite), func(u matrix.UserID) bool { return u == q.Creator })
	for _, u := range q.Invite {
		if _, err := matrix.ParseUserID(string(u)); err != nil {
			return matrix.InvalidParam("invite: %q is not a user ID", u)
		}
	}
	if q.AliasLocal != "" {
		alias, err := matrix.ParseRoomAlias("#" + q.AliasLocal + ":" + string(c.e.server))
		if err != nil {
			return matrix.InvalidParam("room_alias_name is not the local part of an alias")
		}
		c.alias = alias
		if _, _, err := storage.AliasTarget(ctx, c.e.db, alias); err == nil {
			return aliasInUse
		} else if !errors.Is(err, storage.ErrNotFound) {
			return err
		}
	}
	extra, err := c.e.policy.InitialState(ctx, q)
	if err != nil {
		return err
	}
	if q.Content, err = c.e.keptLocal(ctx, q.Creator, q.Content); err != nil {
		return err
	}
	if c.create, err = c.createContent(); err != nil {
		return err
	}
	return c.events(ctx, extra)
}

var aliasInUse = matrix.Errorf(http.StatusBadRequest, "M_ROOM_IN_USE", "that room alias is taken")

// object reads an optional JSON object of the request.
func object(raw json.RawMessage, name string) (map[string]json.RawMessage, error) {
	out := make(map[string]json.RawMessage)
	if len(raw) == 0 || string(raw) == "null" {
		return out, nil
	}
	c, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
	if err != nil {
		return nil, err
	}
	if !canonicaljson.IsObject(c) {
		return nil, matrix.BadJSON("%s is not an object", name)
	}
	for k, v := range canonicaljson.Members(c) {
		out[k] = v
	}
	return out, nil
}

func rawString(s string) json.RawMessage { return canonicaljson.AppendString(nil, s) }

func (c *creation) createContent() ([]byte, error) {
	m, err := object(c.q.Content, "creation_content")
	if err != nil {
		return nil, err
	}
	m["room_version"] = rawString(string(c.version.ID))
	delete(m, "creator")
	if !c.version.ImplicitCreator {
		m["creator"] = rawString(string(c.q.Creator))
	}
	if c.version.PrivilegedCreators && c.preset.trusted && len(c.q.Invite) > 0 {
		var creators []matrix.UserID
		if raw, ok := m["additional_creators"]; ok {
			if err := json.Unmarshal(raw, &creators); err != nil {
				return nil, matrix.BadJSON("additional_creators is not a list of user IDs")
			}
		}
		creators = append(creators, c.q.Invite...)
		slices.Sort(creators)
		raw, err := canonicaljson.Marshal(slices.Compact(creators))
		if err != nil {
			return nil, err
		}
		m["additional_creators"] = raw
	}
	return canonicaljson.Marshal(m)
}

func (c *creation) powerLevels() ([]byte, error) {
	users := map[matrix.UserID]int{}
	events := map[string]int{
		"m.room.name": 50, "m.room.avatar": 50, "m.room.canonical_alias": 50, "m.room.power_levels": 100,
		"m.room.history_visibility": 100, "m.room.encryption": 100, "m.room.server_acl": 100, "m.room.tombstone": 100,
	}
	if c.version.PrivilegedCreators {
		events["m.room.tombstone"] = 150
	} else {
		users[c.q.Creator] = 100
		if c.preset.trusted {
			for _, u := range c.q.Invite {
				users[u] = 100
			}
		}
	}
	content := map[string]any{
		"users": users, "users_default": 0, "events": events, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": c.preset.inviteLevel,
	}
	override, err := object(c.q.PowerOverride, "power_level_content_override")
	if err != nil {
		return nil, err
	}
	for k, v := range override {
		content[k] = v
	}
	return canonicaljson.Marshal(content)
}

// events lists the room's first events in the order that the specification demands.
func (c *creation) events(ctx context.Context, extra []StateInput) error {
	add := func(typ, key string, content []byte) {
		c.drafts = append(c.drafts, &draft{sender: c.q.Creator, typ: typ, skey: &key, content: content, ts: c.q.Timestamp})
	}
	given := make(map[matrix.StateKey]bool)
	for _, s := range c.q.InitialState {
		given[matrix.StateKey{Type: s.Type, Key: s.StateKey}] = true
	}
	preset := func(typ, member, value string) {
		if !given[matrix.StateKey{Type: typ}] {
			add(typ, "", []byte(`{"`+member+`":"`+value+`"}`))
		}
	}
	add("m.room.create", "", c.create)
	member, err := c.e.memberContent(ctx, MemberRequest{}, "join", c.q.Creator)
	if err != nil {
		return err
	}
	add("m.room.member", string(c.q.Creator), member)
	levels, err := c.powerLevels()
	if err != nil {
		return err
	}
	add("m.room.power_levels", "", levels)
	if c.alias != "" {
		content, err := canonicaljson.Marshal(map[string]any{"alias": c.alias})
		if err != nil {
			return err
		}
		add("m.room.canonical_alias", "", content)
	}
	preset("m.room.join_rules", "join_rule", c.preset.joinRule)
	preset("m.room.history_visibility", "history_visibility", "shared")
	if c.preset.guestAccess != "forbidden" { // which is what a room without the event says
		preset("m.room.guest_access", "guest_access", c.preset.guestAccess)
	}
	for _, s := range extra {
		if !given[matrix.StateKey{Type: s.Type, Key: s.StateKey}] {
			add(s.Type, s.StateKey, s.Content)
		}
	}
	for _, s := range c.q.InitialState {
		if s.Type == "" || len(s.Content) == 0 {
			return matrix.BadJSON("initial_state: an entry lacks type or content")
		}
		if s.Type == "m.room.create" || s.Type == "m.room.member" {
			return matrix.Errorf(http.StatusBadRequest, "M_INVALID_ROOM_STATE", "initial_state cannot set %s", s.Type)
		}
		add(s.Type, s.StateKey, s.Content)
	}
	for _, text := range []struct{ typ, key, value string }{{"m.room.name", "name", c.q.Name}, {"m.room.topic", "topic", c.q.Topic}} {
		if text.value == "" {
			continue
		}
		content := map[string]any{text.key: text.value}
		if text.typ == "m.room.topic" {
			content["m.topic"] = map[string]any{"m.text": []any{map[string]any{"body": text.value}}}
		}
		raw, err := canonicaljson.Marshal(content)
		if err != nil {
			return err
		}
		add(text.typ, "", raw)
	}
	for _, u := range c.q.Invite {
		if !c.e.isLocal(u) {
			c.invites = append(c.invites, u)
			continue
		}
		err := c.e.mayInvite(ctx, u, c.q.Creator)
		if _, refused := matrix.AsError(err); refused {
			continue // the room is made without them
		}
		if err != nil {
			return err
		}
		content, err := c.e.memberContent(ctx, MemberRequest{IsDirect: c.q.IsDirect}, "invite", u)
		if err != nil {
			return err
		}
		add("m.room.member", string(u), content)
	}
	return nil
}

func (e *Engine) randomRoomID() (matrix.RoomID, error) {
	random := make([]byte, 15)
	if _, err := io.ReadFull(e.random, random); err != nil {
		return "", fmt.Errorf("random room ID: %w", err)
	}
	return matrix.RoomID("!" + base64.RawURLEncoding.EncodeToString(random) + ":" + string(e.server)), nil
}

// adopt makes the owner of the new room.
func (c *creation) adopt(ctx context.Context) (_ *room, err error) {
	if !c.version.RoomIDIsCreateHash {
		if c.id == "" {
			if c.id, err = c.e.randomRoomID(); err != nil {
				return nil, err
			}
		}
		return c.adoptAs(ctx, c.id)
	}
	// The room ID is the create event's, which append will build again from the same parts. Two rooms alike, made by one
	// user in one millisecond, would be the same room: the later one is dated a little later.
	for range 1000 {
		first := c.drafts[0]
		built, err := event.Build(c.version, event.Proto{Sender: first.sender, Type: first.typ, StateKey: first.skey, Content: first.content, Depth: 1, OriginServerTS: first.ts}, c.e.server)
		if err != nil {
			return nil, err
		}
		r, err := c.adoptAs(ctx, built.RoomID())
		if !errors.Is(err, errExists) {
			return r, err
		}
		for _, d := range c.drafts {
			d.ts++
		}
	}
	return nil, errExists
}

var errExists = errors.New("rooms: the room exists already")

func (c *creation) adoptAs(ctx context.Context, id matrix.RoomID) (*room, error) {
	if err := c.e.checkFree(ctx, id); err != nil {
		return nil, err
	}
	r, err := c.e.newRoom(id, c.version)
	if err != nil {
		return nil, err
	}
	// Again: one that was made meanwhile may have left memory before we were in it.
	if err := c.e.checkFree(ctx, id); err != nil {
		c.e.abandon(r)
		r.release()
		return nil, err
	}
	c.room = r
	return r, nil
}

// checkFree returns errExists if the database has the room.
func (e *Engine) checkFree(ctx context.Context, id matrix.RoomID) error {
	_, err := storage.RoomByID(ctx, e.db, id)
	if err == nil {
		return errExists
	}
	return ignoreNotFound(err)
}

// newRoom makes the owner of a room that is not in the database yet, pinned; its first entry must have create set.
// errExists if there is one.
func (e *Engine) newRoom(id matrix.RoomID, v *roomversion.Version) (*room, error) {
	nid, err := e.db.AllocateRoom()
	if err != nil {
		return nil, err
	}
	r, err := e.adopt(nid, id, v.ID)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.nid != nid {
		r.release()
		return nil, errExists
	}
	r.head = &head{state: e.forest.At(0)}
	r.committed.Store(&committed{head: r.head})
	return r, nil
}

// abandon forgets a room whose creation failed.
func (e *Engine) abandon(r *room) {
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(e.byID, func(_ matrix.RoomID, other *room) bool { return other == r })
	delete(e.byNID, r.nid)
}

// store keeps what goes with the first events.
func (c *creation) store(ctx context.Context, tx *storage.Tx) error {
	if c.alias != "" {
		ok, err := storage.InsertAlias(ctx, tx, c.alias, c.room.nid, c.drafts[0].names[1])
		if err != nil {
			return err
		}
		if !ok {
			return aliasInUse
		}
	}
	if c.old != nil {
		if c.e.isolation.has(c.old.id) {
			if err := storage.SetIsolated(ctx, tx, c.room.id, true, c.e.now()); err != nil {
				return err
			}
		}
		if err := c.room.e.moveEntries(ctx, tx, c.old.nid, c.room.nid, c.q.Published); err != nil {
			return err
		}
	} else if c.q.Published {
		if err := storage.SetPublished(ctx, tx, c.room.nid, true); err != nil {
			return err
		}
	}
	if c.q.Commit != nil {
		return c.q.Commit(ctx, tx, c.room.id)
	}
	return nil
}
