package rooms

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/storage"
)

// Join joins a room, by itself or through a resident server. Who is joined already stays so. spec: cs/joinRoomById
func (e *Engine) Join(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	if q.Renew {
		return e.renew(ctx, q)
	}
	if err := e.mayEnter(ctx, q.Sender, q.Room); err != nil {
		return "", err
	}
	content, err := e.memberContent(ctx, q, "join", q.Sender)
	if err != nil {
		return "", err
	}
	return e.hereOrElsewhere(ctx, q.Room,
		func(ctx context.Context) (matrix.EventID, error) { return e.joinHere(ctx, q, content) },
		func(ctx context.Context) (matrix.EventID, error) { return e.joinAnywhere(ctx, q, content) })
}

// hereOrElsewhere changes a membership of a local user, here or, if that fails with errElsewhere, through other servers. Of a room that is done by
// one at a time, joins, knocks and leaves alike: what it did to the room is seen by those who waited, who try here first, too. A user
// who joins and knocks at once must not end up as both.
func (e *Engine) hereOrElsewhere(ctx context.Context, room matrix.RoomID, here, elsewhere func(context.Context) (matrix.EventID, error)) (matrix.EventID, error) {
	id, err := here(ctx)
	for errors.Is(err, errElsewhere) {
		_, shared, flightErr := e.joins.Do(ctx, room, func() (struct{}, error) {
			// It is finished even if the client has given it up.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), maxJoinTime)
			defer cancel()
			id, err = elsewhere(ctx)
			return struct{}{}, err
		})
		if !shared {
			return id, flightErr
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		id, err = here(ctx)
	}
	return id, err
}

// renew changes the name and the avatar that a room shows of a user who is in it, unless it shows them already.
func (e *Engine) renew(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	absent := matrix.Forbidden("you are not in this room")
	snap, err := e.Snapshot(ctx, q.Room)
	if err != nil {
		return "", hideRoom(err)
	}
	now, err := snap.State.Event(ctx, "m.room.member", string(q.Sender))
	if err != nil {
		return "", err
	}
	if now == nil || now.Membership() != "join" {
		return "", absent
	}
	same := true
	for _, field := range []string{"displayname", "avatar_url"} {
		shown, _ := now.ContentString(field)
		wanted, _ := canonicaljson.GetString(q.Content, field)
		same = same && shown == wanted
	}
	if same {
		return now.ID(), nil
	}
	return e.changeMember(ctx, q, "join", func(current string) error {
		if current != "join" {
			return absent
		}
		return nil
	})
}

// joinAnywhere joins a room by itself, or else through other servers.
func (e *Engine) joinAnywhere(ctx context.Context, q MemberRequest, content []byte) (id matrix.EventID, err error) {
	for attempt, pause := range []time.Duration{100 * time.Millisecond, 500 * time.Millisecond, 0} {
		var here error
		if id, here = e.joinHere(ctx, q, content); !errors.Is(here, errElsewhere) {
			return id, here
		}
		// The user is in a room that counts. That they are, or who may let them in, may be news that is on its way here, or to the
		// servers that are asked: it is waited for a moment before another server is asked, and again if that refuses.
		unauthorised := errors.Is(here, errNoAuthoriser)
		if !unauthorised || attempt > 0 {
			id, err = e.joinThrough(ctx, q, content)
			if err == nil || !unauthorised || pause == 0 {
				return id, err
			}
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(pause):
		}
	}
	return id, err
}

// maxJoinTime bounds a join through other servers.
const maxJoinTime = 5 * time.Minute

// errElsewhere means that an operation needs a server that is in the room.
var errElsewhere = errors.New("rooms: this server cannot do it alone")

// roomHere returns a room in which this server takes part, pinned; errElsewhere.
func (e *Engine) roomHere(ctx context.Context, id matrix.RoomID) (*room, error) {
	r, err := e.room(ctx, id)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return nil, errElsewhere
	}
	if err != nil {
		return nil, err
	}
	resident, err := r.resident(ctx)
	if err == nil && (!resident || e.refusedHere(r.nid)) {
		err = errElsewhere
	}
	if err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// joinHere joins a room in which this server takes part.
func (e *Engine) joinHere(ctx context.Context, q MemberRequest, content []byte) (matrix.EventID, error) {
	r, err := e.roomHere(ctx, q.Room)
	if err != nil {
		return "", err
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return "", err
	}
	state := State{e, c.head.state}
	member, err := state.Event(ctx, "m.room.member", string(q.Sender))
	if err != nil {
		return "", err
	}
	if member != nil && member.Membership() == "join" && !q.ProfileInContent && q.Content == nil {
		return member.ID(), nil
	}
	if member != nil && member.Membership() == "join" && string(member.Content()) == string(content) {
		return member.ID(), nil
	}
	if member == nil && c.head.partial() {
		return "", errElsewhere // whether the user is banned is known there
	}
	if content, err = e.authorise(ctx, r, state, q.Sender, content); err != nil {
		return "", err
	}
	return r.appendMember(ctx, q, content, func(v headView, current string) error {
		if current == "join" {
			return nil
		}
		return r.stillHere(v)
	})
}

// stillHere is asked under the room's lock: errElsewhere if the last user of this server has left by now, so that a
// join that is made here would never reach the others.
func (r *room) stillHere(v headView) error {
	for _, u := range r.committed.Load().local {
		if m, err := v.membership(u); err != nil || m == "join" {
			return err
		}
	}
	servers, err := storage.JoinedServers(v.ctx, r.e.db, r.nid)
	if err != nil {
		return err
	}
	if r.e.partials.get(r.nid) != nil {
		return errElsewhere
	}
	if slices.ContainsFunc(servers, func(s storage.NameNID) bool { return s != r.e.own }) {
		return errElsewhere
	}
	return nil
}

// Why this server cannot let a user into a restricted room; another one may be able to.
var (
	errNoAuthoriser  = fmt.Errorf("no local user can authorise the join: %w", errElsewhere)
	errUnknownMember = fmt.Errorf("the members of the rooms that count are not known here: %w", errElsewhere)
)

// authorise adds to a join what a restricted room asks for.
// spec: client-server-api#restricted-rooms, rooms/v8#authorisation-rules 4.3.5
func (e *Engine) authorise(ctx context.Context, r *room, state State, user matrix.UserID, content []byte) ([]byte, error) {
	if !r.version.Restricted {
		return content, nil
	}
	rules, err := state.Event(ctx, "m.room.join_rules", "")
	if err != nil || rules == nil {
		return content, err
	}
	if rule, _ := rules.ContentString("join_rule"); rule != "restricted" && rule != "knock_restricted" {
		return content, nil
	}
	membership, err := state.Membership(ctx, user)
	if err != nil {
		return nil, err
	}
	if membership == "join" || membership == "invite" {
		return content, nil
	}
	if membership == "ban" {
		return nil, matrix.Forbidden("you are banned from this room")
	}
	authoriser, err := e.authoriser(ctx, r, state, rules, user)
	if err != nil {
		return nil, err
	}
	return canonicaljson.Set(content, "join_authorised_via_users_server", canonicaljson.AppendString(nil, string(authoriser))), nil
}

// authoriser finds a local user who lets somebody into a restricted room: M_FORBIDDEN when the user is in none of
// the rooms that count, errUnknownMember when that cannot be told here, errNoAuthoriser when nobody here may invite.
func (e *Engine) authoriser(ctx context.Context, r *room, state State, rules *Event, user matrix.UserID) (matrix.UserID, error) {
	member, unknown := false, false
	for _, id := range allowedRooms(rules) {
		other, err := e.room(ctx, id)
		if matrix.HasCode(err, "M_NOT_FOUND") {
			unknown = true
			continue
		}
		if err != nil {
			return "", err
		}
		resident, err := other.resident(ctx)
		if err == nil && resident {
			var row storage.MembershipRow
			row, err = e.membershipIn(ctx, other.nid, user)
			member = member || row.Membership == storage.MembershipJoin
			unknown = unknown || row.Membership == 0 && e.partials.get(other.nid) != nil
		} else {
			unknown = true
		}
		other.release()
		if err != nil {
			return "", err
		}
		if member {
			break
		}
	}
	if !member {
		if unknown {
			return "", errUnknownMember
		}
		return "", matrix.Forbidden("you are in none of the rooms whose members may join this one")
	}
	levels, err := state.PowerLevels(ctx)
	if err != nil {
		return "", err
	}
	c, err := r.current(ctx)
	if err != nil {
		return "", err
	}
	for _, u := range c.local {
		if levels.User(u) >= levels.Invite() {
			if m, err := state.Membership(ctx, u); err != nil {
				return "", err
			} else if m == "join" {
				return u, nil
			}
		}
	}
	return "", errNoAuthoriser
}

// allowedRooms lists the rooms whose members may join. spec: client-server-api#restricted-rooms
func allowedRooms(rules *Event) []matrix.RoomID {
	allow, ok := canonicaljson.Get(rules.Content(), "allow")
	if !ok || !canonicaljson.IsArray(allow) {
		return nil
	}
	var out []matrix.RoomID
	for el := range canonicaljson.Elements(allow) {
		if !canonicaljson.IsObject(el) {
			continue
		}
		if t, _ := canonicaljson.GetString(el, "type"); t != "m.room_membership" {
			continue
		}
		s, _ := canonicaljson.GetString(el, "room_id")
		if id, err := matrix.ParseRoomID(s); err == nil && len(out) < 100 {
			out = append(out, id)
		}
	}
	return out
}

// maxVia is how many servers are tried for one operation.
const maxVia = 10

// serversToTry lists servers that may be in a room: those named by the request and the inviter's; and apart from them, those
// that we know to be in it. The domain of the room ID is no address, but better than nothing. spec: appendices#routing
func (e *Engine) serversToTry(ctx context.Context, q MemberRequest) (named, known []matrix.ServerName, err error) {
	add := func(list, seen []matrix.ServerName, s matrix.ServerName) []matrix.ServerName {
		if s == "" || s == e.server || slices.Contains(list, s) || slices.Contains(seen, s) || len(list)+len(seen) >= maxVia {
			return list
		}
		return append(list, s)
	}
	for _, s := range q.Via {
		named = add(named, nil, s)
	}
	m, err := e.MembershipOf(ctx, q.Room, q.Sender)
	if err != nil {
		return nil, nil, err
	}
	if m.Membership == "invite" {
		named = add(named, nil, domain(m.Sender))
	}
	joined, err := e.JoinedServers(ctx, q.Room)
	if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
		return nil, nil, err
	}
	for _, s := range joined {
		known = add(known, named, s)
	}
	if m.Membership == "knock" || m.Membership == "invite" {
		// Those who set up the room, as we were told with the membership.
		shown, err := e.InviteState(ctx, q.Sender, q.Room)
		if err != nil {
			return nil, nil, err
		}
		for _, raw := range shown {
			sender, _ := canonicaljson.GetString(raw, "sender")
			known = add(known, named, domain(sender))
		}
	}
	if len(named) == 0 {
		known = add(known, nil, domain(q.Room))
	}
	return named, known, nil
}

// throughServers has one server after the other make an event for a user until one of the events is taken, which send sees to. Servers that were not named by the
// request are only asked where none of the named ones has an answer: an answer of theirs, even a refusal, is what was asked for.
func throughServers[T any](ctx context.Context, e *Engine, q MemberRequest, made func(context.Context, matrix.ServerName) (T, error), send func(s *wayIn, made T) error) error {
	if e.isolation.has(q.Room) {
		return errIsolatedRoom
	}
	named, known, err := e.serversToTry(ctx, q)
	if err != nil {
		return err
	}
	w := &wayIn{servers: slices.Concat(e.answeringFirst(named), e.answeringFirst(known)), named: len(named)}
	done, err := inquiry[T]{
		next: w.next, ask: made, after: overtakeQuestion, most: mostQuestions,
		take: func(server matrix.ServerName, made T) error {
			w.server = server
			return send(w, made)
		},
		failed: func(server matrix.ServerName, err error) {
			e.log.Debug().Err(err).Str("server", string(server)).Msg("a server refused, or could not be asked")
			w.failed = append(w.failed, server)
			w.refused = worse(w.refused, err)
			w.answered = w.answered || decides(err)
		},
	}.run(ctx, e)
	switch {
	case done || err != nil:
		return err
	case w.refused == nil:
		return matrix.NotFound("no server that is in the room is known")
	}
	return w.refused
}

// wayIn is where a search for a server stands through which a user enters or leaves a room.
type wayIn struct {
	servers  []matrix.ServerName // in the order in which they are asked
	named    int                 // so many of them were named by the request
	asked    int
	server   matrix.ServerName // that made the event which is being sent
	failed   []matrix.ServerName
	answered bool
	refused  error
}

func (w *wayIn) next() (matrix.ServerName, bool) {
	if w.asked == len(w.servers) || w.named > 0 && w.asked >= w.named && w.answered {
		return "", false
	}
	w.asked++
	return w.servers[w.asked-1], true
}

// decides says whether a failure is an answer to what was asked. That a server does not know the room is none: it may have left it.
func decides(err error) bool {
	answer, ok := matrix.AsError(err)
	return ok && answers(err) && answer.Status != http.StatusNotFound
}

// answers says whether a failure is what a server that works has to say.
func answers(err error) bool {
	answer, ok := matrix.AsError(err)
	return ok && answer.Status < http.StatusInternalServerError
}

// answeringFirst puts servers that did not answer lately behind the others: each of them may cost a long wait.
func (e *Engine) answeringFirst(servers []matrix.ServerName) []matrix.ServerName {
	return sortedLast(servers, func(s matrix.ServerName) bool { return !e.answers(s) })
}

// worse picks of two failures the one that tells the client more.
func worse(a, b error) error {
	if a == nil {
		return b
	}
	ae, aok := matrix.AsError(a)
	be, bok := matrix.AsError(b)
	if bok && (!aok || be.Status == http.StatusForbidden && ae.Status != http.StatusForbidden) {
		return b
	}
	return a
}

// supportedVersions is what we tell a server that makes an event for us.
func supportedVersions() []roomversion.ID {
	return append(roomversion.Supported(), roomversion.Experimental()...)
}

// template is an event made by another server for our user, checked.
type template struct {
	version *roomversion.Version
	proto   event.Proto
}

// readTemplate checks a made event and keeps what is needed of it.
func readTemplate(m MadeEvent, room matrix.RoomID, user matrix.UserID, membership string) (*template, error) {
	if m.Version == "" {
		m.Version = "1"
	}
	v, ok := roomversion.Get(m.Version)
	if !ok {
		return nil, matrix.Errorf(http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION", "this server does not support room version %q", m.Version)
	}
	raw, err := canonicaljson.Canonical(m.Event, v.JSON)
	if err != nil {
		return nil, nonsense("the event made for us is malformed").Because(err)
	}
	text := func(key string) string { s, _ := canonicaljson.GetString(raw, key); return s }
	content, _ := canonicaljson.GetObject(raw, "content")
	got, _ := canonicaljson.GetString(content, "membership")
	if text("type") != "m.room.member" || text("state_key") != string(user) || text("sender") != string(user) || text("room_id") != string(room) || got != membership {
		return nil, nonsense("the event made for us is not what we asked for")
	}
	depth, _ := canonicaljson.GetInt(raw, "depth")
	key := string(user)
	t := &template{version: v, proto: event.Proto{RoomID: room, Sender: user, Type: "m.room.member", StateKey: &key, Content: content, Depth: min(max(depth, 1), event.MaxDepth), ReferenceHashes: make(map[matrix.EventID][sha256.Size]byte)}}
	if t.proto.PrevEvents, err = references(raw, "prev_events", t.proto.ReferenceHashes); err != nil {
		return nil, err
	}
	if t.proto.AuthEvents, err = references(raw, "auth_events", t.proto.ReferenceHashes); err != nil {
		return nil, err
	}
	return t, nil
}

// nonsense is the error for an answer of another server that cannot be used.
func nonsense(format string, args ...any) *matrix.Error {
	return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The other server's answer cannot be used: "+format+".", args...)
}

// references reads references to events: strings, or up to v2 pairs of ID and hashes, of which it notes the SHA-256.
func references(raw []byte, key string, hashes map[matrix.EventID][sha256.Size]byte) ([]matrix.EventID, error) {
	list, ok := canonicaljson.Get(raw, key)
	if !ok || !canonicaljson.IsArray(list) {
		return nil, nonsense("the event made for us has no %s", key)
	}
	var out []matrix.EventID
	for el := range canonicaljson.Elements(list) {
		var pair [][]byte
		if canonicaljson.IsArray(el) {
			if pair = slices.Collect(canonicaljson.Elements(el)); len(pair) > 0 {
				el = pair[0]
			}
		}
		s, ok := canonicaljson.String(el)
		if !ok {
			return nil, nonsense("the event made for us has a bad entry in %s", key)
		}
		id, err := matrix.ParseEventID(s)
		if err != nil {
			return nil, nonsense("the event made for us has a bad entry in %s", key).Because(err)
		}
		if len(pair) == 2 {
			stated, _ := canonicaljson.GetString(pair[1], "sha256")
			if hash, err := signing.DecodeBase64(stated); err == nil && len(hash) == sha256.Size {
				hashes[id] = [sha256.Size]byte(hash)
			}
		}
		out = append(out, id)
	}
	return out, nil
}

// complete turns a template into our signed event: the content is ours but for what the template's server vouches for.
func (e *Engine) complete(t *template, content []byte, ts matrix.Timestamp) (*event.Event, error) {
	if raw, ok := canonicaljson.Get(t.proto.Content, "join_authorised_via_users_server"); ok {
		content = canonicaljson.Set(content, "join_authorised_via_users_server", raw)
	}
	p := t.proto
	p.Content = content
	if by, ok := canonicaljson.GetString(content, "join_authorised_via_users_server"); ok {
		p.Signers = []matrix.ServerName{domain(by)}
	}
	if p.OriginServerTS = ts; ts == 0 {
		p.OriginServerTS = e.now()
	}
	built, err := event.Build(t.version, p, e.server)
	if err != nil {
		return nil, err
	}
	return built.Sign(e.server, e.key)
}
