package rooms

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// CreateAlias points an alias of this server at a room. 409 M_UNKNOWN if it is taken. admin: the user need not be in the room. spec: cs/setRoomAlias
func (e *Engine) CreateAlias(ctx context.Context, user matrix.UserID, alias matrix.RoomAlias, room matrix.RoomID, admin bool) error {
	if domain(alias) != e.server {
		return matrix.InvalidParam("the alias is of another server")
	}
	r, err := e.room(ctx, room)
	if err != nil {
		return err
	}
	defer r.release()
	if m, err := e.membershipIn(ctx, r.nid, user); err != nil {
		return err
	} else if m.Membership != storage.MembershipJoin && !admin {
		return matrix.Forbidden("you are not in this room")
	}
	nids, err := e.db.Intern(ctx, string(user))
	if err != nil {
		return err
	}
	return e.db.Write(ctx, func(tx *storage.Tx) error {
		ok, err := storage.InsertAlias(ctx, tx, alias, r.nid, nids[0])
		if err == nil && !ok {
			err = matrix.Errorf(http.StatusConflict, "M_UNKNOWN", "that alias is taken")
		}
		return err
	})
}

// DeleteAlias removes an alias; its maker and those who may send m.room.canonical_alias can. admin: no check. spec: cs/deleteRoomAlias
func (e *Engine) DeleteAlias(ctx context.Context, user matrix.UserID, alias matrix.RoomAlias, admin bool) error {
	room, creator, err := storage.AliasTarget(ctx, e.db, alias)
	if err != nil {
		return notFound(err, "no such alias")
	}
	if !admin {
		nid, err := e.db.LookupName(ctx, string(user))
		if ignoreNotFound(err) != nil {
			return err
		}
		if nid != creator || err != nil {
			if err := e.maySetAliases(ctx, user, room); err != nil {
				return err
			}
		}
	}
	if err := e.db.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteAlias(ctx, tx, alias) }); err != nil {
		return err
	}
	return e.dropCanonicalAlias(ctx, user, room, alias)
}

// dropCanonicalAlias takes a deleted alias out of the room's m.room.canonical_alias, where the user may.
func (e *Engine) dropCanonicalAlias(ctx context.Context, user matrix.UserID, nid storage.RoomNID, alias matrix.RoomAlias) error {
	id, err := e.RoomID(ctx, nid)
	if err != nil {
		return err
	}
	snap, err := e.Snapshot(ctx, id)
	if err != nil {
		return err
	}
	ev, err := snap.State.Event(ctx, "m.room.canonical_alias", "")
	if err != nil || ev == nil {
		return err
	}
	content := ev.Content()
	if name, _ := canonicaljson.GetString(content, "alias"); name == string(alias) {
		content = canonicaljson.Delete(content, "alias")
	}
	var alternatives struct {
		List []string `json:"alt_aliases"`
	}
	if json.Unmarshal(content, &alternatives) == nil && slices.Contains(alternatives.List, string(alias)) {
		rest, err := canonicaljson.Marshal(slices.DeleteFunc(alternatives.List, func(a string) bool { return a == string(alias) }))
		if err != nil {
			return err
		}
		content = canonicaljson.Set(content, "alt_aliases", rest)
	}
	if string(content) == string(ev.Content()) {
		return nil
	}
	key := ""
	_, err = e.Send(ctx, SendRequest{Room: id, Sender: user, Type: "m.room.canonical_alias", StateKey: &key, Content: content})
	if _, refused := matrix.AsError(err); refused {
		return nil // the alias is gone; somebody with more power may tidy up
	}
	return err
}

func (e *Engine) maySetAliases(ctx context.Context, user matrix.UserID, room storage.RoomNID) error {
	return e.mayDo(ctx, user, room, "m.room.canonical_alias")
}

// mayDo checks that a user is joined and has the power for a kind of state event.
func (e *Engine) mayDo(ctx context.Context, user matrix.UserID, nid storage.RoomNID, eventType string) error {
	r, err := e.roomByNID(ctx, nid)
	if err != nil {
		return err
	}
	defer r.release()
	state, err := r.stateOf(ctx, user)
	if err != nil {
		return err
	}
	levels, err := state.PowerLevels(ctx)
	if err != nil {
		return err
	}
	if levels.User(user) < levels.Event(eventType, true) {
		return matrix.Forbidden("your power level in the room is too low")
	}
	return nil
}

// Aliases lists a room's aliases on this server for someone who may see them. spec: cs/getLocalAliases
func (e *Engine) Aliases(ctx context.Context, user matrix.UserID, room matrix.RoomID) ([]matrix.RoomAlias, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return nil, hideRoom(err)
	}
	defer r.release()
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return nil, err
	}
	if m.Membership != storage.MembershipJoin {
		if err := r.mayPeek(ctx); err != nil {
			return nil, err
		}
	}
	return e.LocalAliases(ctx, r.nid)
}

// LocalAliases lists a room's aliases on this server, without any access check.
func (e *Engine) LocalAliases(ctx context.Context, room storage.RoomNID) ([]matrix.RoomAlias, error) {
	return storage.AliasesOf(ctx, e.db, room)
}

// ResolveAlias finds an alias's room and servers in it, asking the alias's server if it is another. spec: cs/getRoomIdByAlias
func (e *Engine) ResolveAlias(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	if domain(alias) == e.server {
		return e.ResolveLocalAlias(ctx, alias)
	}
	id, servers, err := e.remote.Directory(ctx, domain(alias), alias)
	if err != nil {
		if _, ok := matrix.AsError(err); !ok {
			err = matrix.Errorf(http.StatusNotFound, "M_NOT_FOUND", "the alias's server cannot be asked").Because(err)
		}
		return "", nil, err
	}
	if !slices.Contains(servers, domain(alias)) {
		servers = append(servers, domain(alias))
	}
	return id, servers, nil
}

// ResolveLocalAlias is ResolveAlias for another server's query: M_NOT_FOUND if we do not have it, and who could make it did not.
// spec: ss/queryRoomDirectory, as/queryRoomByAlias
func (e *Engine) ResolveLocalAlias(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, []matrix.ServerName, error) {
	nid, _, err := storage.AliasTarget(ctx, e.db, alias)
	if errors.Is(err, storage.ErrNotFound) {
		if err := e.makeAlias(ctx, alias); err != nil {
			return "", nil, err
		}
		nid, _, err = storage.AliasTarget(ctx, e.db, alias)
	}
	if err != nil {
		return "", nil, notFound(err, "no such alias")
	}
	id, err := e.RoomID(ctx, nid)
	if err != nil {
		return "", nil, err
	}
	servers, err := e.JoinedServers(ctx, id)
	if err != nil {
		return "", nil, err
	}
	// We first, if we are in the room: who asks begins at the front.
	if i := slices.Index(servers, e.server); i >= 0 || len(servers) == 0 {
		servers = slices.Concat([]matrix.ServerName{e.server}, servers[:max(i, 0)], servers[i+1:])
	}
	return id, servers, nil
}

// checkCanonicalAlias refuses aliases that do not lead to the room. Those that were there before need not be checked.
// spec: client-server-api#mroomcanonical_alias, cs/setRoomStateWithKey M_BAD_ALIAS
func (e *Engine) checkCanonicalAlias(ctx context.Context, r *room, content []byte) error {
	c, err := canonicaljson.Canonical(content, canonicaljson.Lenient)
	if err != nil {
		return err
	}
	now, err := r.current(ctx)
	if err != nil {
		return err
	}
	old, err := State{e, now.head.state}.Event(ctx, "m.room.canonical_alias", "")
	if err != nil {
		return err
	}
	var before []string
	if old != nil {
		before, _ = canonicalAliases(old.Content())
	}
	aliases, err := canonicalAliases(c)
	if err != nil {
		return err
	}
	for _, a := range aliases {
		if slices.Contains(before, a) {
			continue
		}
		alias, err := matrix.ParseRoomAlias(a)
		if err != nil {
			return matrix.InvalidParam("%q is not a room alias", a)
		}
		id, err := e.aliasTarget(ctx, alias)
		if err != nil || id != r.id {
			if _, ok := matrix.AsError(err); err != nil && !ok && !errors.Is(err, errElsewhere) {
				return err
			}
			return matrix.Errorf(http.StatusBadRequest, "M_BAD_ALIAS", "the alias %s does not lead to this room", a)
		}
	}
	return nil
}

// aliasTarget is ResolveAlias for an alias that should be there already: nobody is asked to make it.
func (e *Engine) aliasTarget(ctx context.Context, alias matrix.RoomAlias) (matrix.RoomID, error) {
	if domain(alias) != e.server {
		id, _, err := e.ResolveAlias(ctx, alias)
		return id, err
	}
	nid, _, err := storage.AliasTarget(ctx, e.db, alias)
	if err != nil {
		return "", notFound(err, "no such alias")
	}
	return e.RoomID(ctx, nid)
}

func canonicalAliases(content []byte) ([]string, error) {
	var out []string
	bad := matrix.BadJSON("an alias is not a string")
	if raw, ok := canonicaljson.Get(content, "alias"); ok && string(raw) != "null" {
		s, ok := canonicaljson.String(raw)
		if !ok {
			return nil, bad
		}
		if s != "" {
			out = append(out, s)
		}
	}
	alt, ok := canonicaljson.Get(content, "alt_aliases")
	if !ok || string(alt) == "null" {
		return out, nil
	}
	if !canonicaljson.IsArray(alt) {
		return nil, matrix.BadJSON("alt_aliases is not a list")
	}
	for el := range canonicaljson.Elements(alt) {
		s, ok := canonicaljson.String(el)
		if !ok {
			return nil, bad
		}
		out = append(out, s)
	}
	return out, nil
}
