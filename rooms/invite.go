package rooms

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/storage"
)

// Invite invites Target; a remote user's server countersigns first. spec: cs/inviteUser
func (e *Engine) Invite(ctx context.Context, q MemberRequest) (matrix.EventID, error) {
	target := q.target()
	allow := func(current string) error {
		if current == "join" {
			return matrix.Forbidden("the user is in the room already")
		}
		return nil
	}
	if e.isLocal(target) {
		if err := e.mayInvite(ctx, target, q.Sender); err != nil {
			return "", err
		}
		if err := e.mayEnter(ctx, target, q.Room); err != nil {
			return "", err
		}
		return e.changeMember(ctx, q, "invite", allow)
	}
	if e.isolation.has(q.Room) {
		return "", errIsolatedRoom
	}
	if err := e.awaitMember(ctx, q.Room, q.Sender, target); err != nil {
		return "", err
	}
	r, err := e.joinedRoom(ctx, q.Room, q.Sender)
	if err != nil {
		return "", err
	}
	defer r.release()
	content, err := e.memberContent(ctx, q, "invite", target)
	if err != nil {
		return "", err
	}
	policy, err := r.currentPolicyServer(ctx)
	if err != nil {
		return "", err
	}
	signers := []matrix.ServerName{domain(target)}
	if policy != nil {
		signers = append(signers, policy.Name)
	}
	invite, err := r.composeMember(ctx, q, content, appendOptions{signers: signers, check: func(v headView) error {
		current, err := v.membership(target)
		if err != nil {
			return err
		}
		return allow(current)
	}})
	if err != nil {
		return "", err
	}
	if invite, err = invite.Sign(e.server, e.key); err != nil {
		return "", err
	}
	if invite, err = e.recommended(ctx, policy, invite, true); err != nil {
		return "", err
	}
	stripped, err := r.invitePDUs(ctx, q.Sender)
	if err != nil {
		return "", err
	}
	raw, err := e.remote.Invite(ctx, domain(target), q.Room, invite.ID(), r.version.ID, invite.JSON(), stripped)
	if err != nil {
		return "", err
	}
	signed, err := event.Parse(r.version, raw)
	if err != nil || signed.ID() != invite.ID() || signed.HashMismatch() {
		return "", nonsense("another event came back")
	}
	// The invited server has the invite now: finish even if the client has gone away.
	ctx = context.WithoutCancel(ctx)
	_, err = e.admit(ctx, e.server, r, signed, nil)
	return invite.ID(), err
}

// composeMember builds a membership event on the head without appending it.
func (r *room) composeMember(ctx context.Context, q MemberRequest, content []byte, o appendOptions) (*event.Event, error) {
	target := string(q.target())
	d := &draft{sender: q.Sender, typ: "m.room.member", skey: &target, content: content, ts: q.Timestamp}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	if o.check != nil {
		if err := o.check(headView{ctx, r, r.head.state}); err != nil {
			return nil, err
		}
	}
	c, err := r.compose(ctx, r.head, d, o)
	if err != nil {
		return nil, err
	}
	return c.event, nil
}

// strippedKeys is the state shown to those who are not in a room. spec: client-server-api#stripped-state
var strippedKeys = []matrix.StateKey{
	{Type: "m.room.create"}, {Type: "m.room.name"}, {Type: "m.room.avatar"}, {Type: "m.room.topic"},
	{Type: "m.room.join_rules"}, {Type: "m.room.canonical_alias"}, {Type: "m.room.encryption"},
}

// shownState returns the current state that outsiders are shown, with the membership of some users.
func (r *room) shownState(ctx context.Context, users ...matrix.UserID) ([]*Event, error) {
	c, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	keys := append([]matrix.StateKey(nil), strippedKeys...)
	for _, u := range users {
		keys = append(keys, matrix.StateKey{Type: "m.room.member", Key: string(u)})
	}
	events, err := State{r.e, c.head.state}.Events(ctx, keys...)
	if err != nil {
		return nil, err
	}
	out := events[:0]
	for _, ev := range events {
		if ev != nil {
			out = append(out, ev)
		}
	}
	return out, nil
}

// invitePDUs is the state that goes with an invite to another server, as whole events. spec: ss/sendInviteV2
func (r *room) invitePDUs(ctx context.Context, sender matrix.UserID) ([][]byte, error) {
	events, err := r.shownState(ctx, sender)
	if err != nil {
		return nil, err
	}
	return pdusOf(events), nil
}

// InviteState returns the stripped state shown with an invite or knock of a local user, the
// membership event included, each a stripped state event. spec: client-server-api#stripped-state
func (e *Engine) InviteState(ctx context.Context, user matrix.UserID, room matrix.RoomID) ([][]byte, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return nil, err
	}
	var out [][]byte
	var events []*Event
	resident, err := r.resident(ctx)
	if err != nil {
		return nil, err
	}
	if resident {
		sender, err := e.db.UserIDs(ctx, nonZero(m.Sender)...)
		if err != nil {
			return nil, err
		}
		if events, err = r.shownState(ctx, sender...); err != nil {
			return nil, err
		}
	} else {
		raw, err := storage.StrippedState(ctx, e.db, r.nid, e.nameOr0(ctx, user))
		if ignoreNotFound(err) != nil {
			return nil, err
		}
		if len(raw) > 0 {
			for el := range canonicaljson.Elements(raw) {
				out = append(out, el)
			}
		}
	}
	for _, ev := range events {
		if !ev.Is("m.room.member", string(user)) {
			out = append(out, ev.AppendStripped(nil))
		}
	}
	if m.Event != 0 {
		own, err := e.eventByNID(ctx, m.Event)
		if err != nil {
			return nil, err
		}
		out = append(out, own.AppendStripped(nil))
	}
	return out, nil
}

func nonZero(nids ...storage.NameNID) []storage.NameNID {
	out := nids[:0]
	for _, n := range nids {
		if n != 0 {
			out = append(out, n)
		}
	}
	return out
}

func (e *Engine) nameOr0(ctx context.Context, name matrix.UserID) storage.NameNID {
	nid, err := e.db.LookupName(ctx, string(name))
	if err != nil {
		return 0
	}
	return nid
}

// maxStripped bounds the state kept with an invite, in events and bytes.
const (
	maxStripped      = 50
	maxStrippedBytes = 32 << 10
)

// strippedJSON makes the JSON array that is stored of what another server says about a room.
func strippedJSON(events [][]byte) []byte {
	out := []byte{'['}
	n := 0
	for _, raw := range events {
		s, ok := readStripped(raw)
		if !ok || n == maxStripped || len(out)+len(s.whole) > maxStrippedBytes {
			continue
		}
		if n++; n > 1 {
			out = append(out, ',')
		}
		out = append(out, `{"content":`...)
		out = append(out, s.content...)
		out = append(out, `,"sender":`...)
		out = canonicaljson.AppendString(out, s.sender)
		out = append(out, `,"state_key":`...)
		out = canonicaljson.AppendString(out, s.stateKey)
		out = append(out, `,"type":`...)
		out = canonicaljson.AppendString(out, s.eventType)
		out = append(out, '}')
	}
	return append(out, ']')
}

// strippedEvent is what makes a stripped state event, whatever else comes with it. spec: client-server-api#stripped-state
type strippedEvent struct {
	whole                       []byte // canonical
	content                     []byte
	sender, stateKey, eventType string
}

func readStripped(raw []byte) (s strippedEvent, ok bool) {
	c, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
	if err != nil || !canonicaljson.IsObject(c) {
		return s, false
	}
	s.whole = c
	var has [4]bool
	s.content, has[0] = canonicaljson.GetObject(c, "content")
	s.sender, has[1] = canonicaljson.GetString(c, "sender")
	s.stateKey, has[2] = canonicaljson.GetString(c, "state_key")
	s.eventType, has[3] = canonicaljson.GetString(c, "type")
	return s, has == [4]bool{true, true, true, true}
}

// ReceiveInvite takes an invite of a local user, and returns it with our signature. version "" is 1 or 2, whose events look the same.
// M_INCOMPATIBLE_ROOM_VERSION, M_INVALID_PARAM, M_FORBIDDEN. spec: ss/sendInviteV2, ss/sendInviteV1
func (e *Engine) ReceiveInvite(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, id matrix.EventID, version roomversion.ID, pdu []byte, stripped [][]byte) ([]byte, error) {
	if version == "" {
		version = "1"
		if r, err := e.room(ctx, room); err == nil {
			if r.version.ID == "2" {
				version = "2"
			}
			r.release()
		}
	}
	v, ok := roomversion.Get(version)
	if !ok {
		return nil, matrix.Errorf(400, "M_INCOMPATIBLE_ROOM_VERSION", "this server does not support room version %q", version).With("room_version", string(version))
	}
	ev, err := event.Parse(v, pdu)
	if err != nil {
		return nil, err
	}
	key, _ := ev.StateKey()
	user := matrix.UserID(key)
	switch {
	case ev.RoomID() != room || ev.ID() != id || ev.HashMismatch():
		return nil, matrix.InvalidParam("the event is not the one named in the path")
	case ev.Type() != "m.room.member" || ev.Membership() != "invite" || !e.isLocal(user):
		return nil, matrix.InvalidParam("the event is no invite of a user of this server")
	case domain(ev.Sender()) != origin:
		return nil, matrix.InvalidParam("the inviting user is of another server")
	}
	if stripped, err = e.checkInviteState(ctx, v, room, stripped); err != nil {
		return nil, err
	}
	if err := e.verify(ctx, []*event.Event{ev})[0]; err != nil {
		return nil, matrix.Forbidden("the invite is not properly signed").Because(err)
	}
	refused := e.mayInvite(ctx, user, ev.Sender())
	// In a room that we are in, that nobody has the name is for the room to find out: nothing is kept here.
	unknown := matrix.HasCode(refused, "M_FORBIDDEN") && e.residentIn(ctx, room)
	if refused != nil && !unknown {
		return nil, refused
	}
	if err := e.mayFederate(ctx, user); err != nil {
		return nil, err
	}
	signed, err := ev.Sign(e.server, e.key)
	if err != nil {
		return nil, err
	}
	r, err := e.ensureRoom(ctx, room, v)
	if errors.Is(err, errOtherVersion) && e.provesVersion(ctx, v, room, stripped) {
		r, err = e.claimRoom(ctx, room, v)
	}
	if err != nil {
		return nil, err
	}
	defer r.release()
	if err := e.AllowsServer(ctx, room, origin); err != nil {
		return nil, err
	}
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil {
		return nil, err
	}
	resident, err := r.resident(ctx)
	if err != nil {
		return nil, err
	}
	resident = resident && !e.refusedHere(r.nid)
	if resident && m.Membership == storage.MembershipJoin {
		said, err := e.settleResidence(ctx, r, origin)
		if err != nil {
			return nil, err
		}
		if said != residenceOver {
			return nil, matrix.Forbidden("the user is in the room already")
		}
		if m, err = e.membershipIn(ctx, r.nid, user); err != nil {
			return nil, err
		}
		resident = false
	}
	if resident {
		// The invite reaches the room as any other event does.
		if unknown {
			return signed.JSON(), nil
		}
		if err := r.keepSigned(ctx, signed, user, stripped); err != nil {
			return nil, fmt.Errorf("store invite: %w", err)
		}
		return signed.JSON(), nil
	}
	if unknown { // we have just left the room
		return nil, refused
	}
	if m.Membership != storage.MembershipInvite {
		if err := e.fewInvites(ctx, user, origin); err != nil {
			return nil, err
		}
	}
	if err := r.setApart(ctx, signed, user, m.Membership, stripped, nil); err != nil {
		return nil, fmt.Errorf("store invite: %w", err)
	}
	return signed.JSON(), nil
}

// residentIn says whether this server is in a room.
func (e *Engine) residentIn(ctx context.Context, id matrix.RoomID) bool {
	r, err := e.room(ctx, id)
	if err != nil {
		return false
	}
	defer r.release()
	resident, err := r.resident(ctx)
	return resident && err == nil
}

// How many invites of a user may wait for an answer: those from one server, and all.
const (
	maxInvitesOfServer = 300
	maxInvites         = 2000
)

// fewInvites refuses one more invite of a user who has many that wait for an answer: rooms to invite into can be made up.
func (e *Engine) fewInvites(ctx context.Context, user matrix.UserID, origin matrix.ServerName) error {
	waiting, err := e.Memberships(ctx, user, "invite")
	if err != nil {
		return err
	}
	same := 0
	for _, m := range waiting {
		if domain(m.Sender) == origin {
			same++
		}
	}
	if same >= maxInvitesOfServer || len(waiting) >= maxInvites {
		return matrix.Forbidden("%s has too many invites that wait for an answer", user)
	}
	return nil
}

// provesVersion says whether the create event of a room, signed by the server in whose name the room ID is, or of the hash that it is, comes with an invite and
// names a version. Somebody else's invite can have claimed another one before: it must not keep all others out.
func (e *Engine) provesVersion(ctx context.Context, v *roomversion.Version, room matrix.RoomID, stripped [][]byte) bool {
	for _, raw := range stripped {
		ev, err := event.Parse(v, raw)
		if err != nil || !ev.Is("m.room.create", "") || ev.RoomID() != room || ev.HashMismatch() {
			continue
		}
		stated, ok := ev.ContentString("room_version")
		if !ok {
			stated = "1"
		}
		if roomversion.ID(stated) != v.ID {
			continue
		}
		if v.RoomIDIsCreateHash || domain(ev.Sender()) == room.Server() && e.verify(ctx, []*event.Event{ev})[0] == nil {
			return true
		}
	}
	return false
}

// checkInviteState looks at the state that comes with an invite. From room version 12 on it has to be events with the
// create event among them, whose hash the room ID is: so nobody can pass off one room as another. Stripped events are let pass for
// others than the create event, though the specification wants whole ones: Synapse sends them. Older servers send stripped
// events only in older rooms. An event is left out if the key that it is signed with cannot be had now. M_INVALID_PARAM. spec: ss/sendInviteV2
func (e *Engine) checkInviteState(ctx context.Context, v *roomversion.Version, room matrix.RoomID, stripped [][]byte) ([][]byte, error) {
	if !v.RoomIDIsCreateHash {
		return stripped, nil
	}
	if len(stripped) > maxStripped {
		stripped = stripped[:maxStripped]
	}
	kept := make([][]byte, 0, len(stripped))
	var events []*event.Event
	created := false
	for _, raw := range stripped {
		if isStripped(raw) {
			kept = append(kept, raw)
			continue
		}
		ev, err := event.Parse(v, raw)
		if err != nil {
			return nil, matrix.InvalidParam("invite_room_state holds what is no event of room version %s", v.ID)
		}
		if ev.RoomID() != room {
			return nil, matrix.InvalidParam("invite_room_state holds an event of another room")
		}
		created = created || ev.Is("m.room.create", "")
		events = append(events, ev)
	}
	if !created {
		return nil, matrix.InvalidParam("invite_room_state lacks m.room.create")
	}
	vouched, err := e.vouchedState(ctx, v, events)
	if err != nil {
		return nil, matrix.InvalidParam("invite_room_state holds an event whose signature is not valid").Because(err)
	}
	return append(kept, vouched...), nil
}

// vouchedState keeps of the events that describe a room those that are known to be whose they say; an error means that one is known not to be.
func (e *Engine) vouchedState(ctx context.Context, v *roomversion.Version, events []*event.Event) (kept [][]byte, bad error) {
	for i, err := range e.verify(ctx, events) {
		switch {
		case errors.Is(err, signing.ErrBad):
			bad = err
		case err == nil || v.RoomIDIsCreateHash && events[i].Is("m.room.create", ""): // the room ID vouches for the latter
			kept = append(kept, events[i].JSON()) // redacted where its hash is wrong
		}
	}
	return kept, bad
}

// knockState is what may be shown of the state that comes with the answer to a knock. Nobody takes the knock back, so what is not as it
// should be is left out. Stripped events pass as with invites, in older rooms that of m.room.create too. spec: ss/sendKnock
func (e *Engine) knockState(ctx context.Context, v *roomversion.Version, room matrix.RoomID, stripped [][]byte) [][]byte {
	kept := make([][]byte, 0, len(stripped))
	var events []*event.Event
	for _, raw := range stripped[:min(len(stripped), maxStripped)] {
		if s, ok := readStripped(raw); ok && !s.signed() && (s.eventType != "m.room.create" || !v.RoomIDIsCreateHash) {
			kept = append(kept, raw)
		} else if ev, err := event.Parse(v, raw); err == nil && ev.RoomID() == room {
			events = append(events, ev)
		}
	}
	vouched, err := e.vouchedState(ctx, v, events)
	if err != nil {
		e.log.Debug().Err(err).Str("room", string(room)).Msg("the state that came with a knock holds a bad signature")
	}
	return append(kept, vouched...)
}

// isStripped reports whether raw is a stripped state event, and nothing that passes for an event. Nobody vouches for one, so it
// must not tell what the create event tells. spec: client-server-api#stripped-state
func isStripped(raw []byte) bool {
	s, ok := readStripped(raw)
	return ok && s.eventType != "m.room.create" && !s.signed()
}

// signed reports whether it passes for a whole event.
func (s strippedEvent) signed() bool {
	_, signed := canonicaljson.Get(s.whole, "signatures")
	_, hashed := canonicaljson.Get(s.whole, "hashes")
	return signed || hashed
}

// setApart stores a local user's membership in a room in which this server does not take part, and whatever else goes into the same transaction; also may be nil.
func (r *room) setApart(ctx context.Context, parsed *event.Event, user matrix.UserID, previous storage.Membership, stripped [][]byte, also func(context.Context, *storage.Tx, *Event) error) error {
	// One at a time: the same event may come by two ways at once, and a join may have made this server resident by now.
	if err := r.lockInbound(ctx); err != nil {
		return err
	}
	defer r.unlockInbound()
	if in, err := r.inside(ctx); err != nil || in {
		return err
	}
	known, err := r.eventsByID(ctx, []matrix.EventID{parsed.ID()})
	if err != nil {
		return err
	}
	if old := known[parsed.ID()]; old != nil && !old.Outlier {
		return nil // from when we were in the room: it has had its effect
	} else if old != nil && old.Membership() == "invite" {
		if over, err := r.wentOn(ctx, user, old.ID()); over || err != nil {
			return err
		}
	}
	ev, stored, err := r.newEvent(ctx, parsed)
	if err != nil {
		return err
	}
	ev.Outlier = true
	ch, err := r.e.memberChange(ctx, user, previous.String(), ev)
	if err != nil {
		return err
	}
	en := &entry{room: r, line: &line{}, items: []*item{{ev: ev, promote: stored, before: r.e.forest.At(0)}}, members: []memberChange{ch}}
	en.extra = func(ctx context.Context, tx *storage.Tx) error {
		if err := storage.PutApartMembership(ctx, tx, r.nid, ev.skey, ev.ID()); err != nil {
			return err
		}
		if stripped != nil {
			if err := storage.SetStrippedState(ctx, tx, r.nid, ev.skey, strippedJSON(stripped)); err != nil {
				return err
			}
		}
		if also != nil {
			return also(ctx, tx, ev)
		}
		return nil
	}
	r.e.committer.add(en)
	return en.wait(ctx)
}

// maxWentOn bounds the memberships of a user that are looked at, from the present one back.
const maxWentOn = 100

// wentOn says whether a local user's membership in a room came of an invite, and is another one by now. The request with the invite may come
// again, because its sender has not got the answer or the network repeats it, and must not bring back what was turned down or taken back.
func (r *room) wentOn(ctx context.Context, user matrix.UserID, invite matrix.EventID) (bool, error) {
	m, err := r.e.membershipIn(ctx, r.nid, user)
	if err != nil || m.Event == 0 {
		return false, err
	}
	ev, err := r.e.eventByNID(ctx, m.Event)
	for range maxWentOn {
		if err != nil || ev == nil || ev.ID() == invite {
			return false, err
		}
		if slices.Contains(ev.AuthEvents(), invite) {
			return true, nil
		}
		var known map[matrix.EventID]*Event
		known, err = r.eventsByID(ctx, ev.AuthEvents())
		ev = nil
		for _, a := range known {
			if a.Is("m.room.member", string(user)) {
				ev = a
			}
		}
	}
	return false, err
}

// Invited is a local user's invite that still stands.
type Invited struct {
	User     matrix.UserID
	Event    *Event
	Position storage.Position // when it came
}

// InvitesBetween lists the invites of local users that came in (since, until] and still stand, in order: also those to rooms
// that this server is not in, whose events are in no timeline.
func (e *Engine) InvitesBetween(ctx context.Context, since, until storage.Position) ([]Invited, error) {
	if e.db.UnchangedIn(storage.Subject{Topic: storage.TopicInvites}, since, until) {
		return nil, nil
	}
	rows, err := storage.InvitesBetween(ctx, e.db, since, until)
	if err != nil {
		return nil, fmt.Errorf("invites: %w", err)
	}
	var out []Invited
	for _, row := range rows {
		if row.Server != e.own {
			continue
		}
		users, err := e.db.UserIDs(ctx, row.User)
		if err != nil {
			return nil, err
		}
		ev, err := e.eventByNID(ctx, row.Event)
		if err != nil {
			return nil, err
		}
		out = append(out, Invited{users[0], ev, row.Pos})
	}
	return out, nil
}
