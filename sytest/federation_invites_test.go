package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"strings"
	"testing"

	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/sytest/homeserver"
)

// foreignRoom is a room that only a peer is in, with @mallory as its creator.
type foreignRoom struct {
	t       *testing.T
	peer    *homeserver.Peer
	version *roomversion.Version
	id      string
	creator string
	create  *event.Event
	join    *event.Event
}

func newForeignRoom(t *testing.T, p *homeserver.Peer, version string) *foreignRoom {
	t.Helper()
	v, ok := roomversion.Get(roomversion.ID(version))
	if !ok {
		t.Fatalf("room version %q", version)
	}
	r := &foreignRoom{t: t, peer: p, version: v, creator: "@mallory:" + string(p.Name), id: fmt.Sprintf("!foreign%d:%s", nextNumber(), p.Name)}
	r.create = r.parse(r.event("m.room.create", "", json{"creator": r.creator, "room_version": version}, func(m json) {
		m["prev_events"], m["auth_events"], m["depth"] = []any{}, []any{}, 1
		if v.RoomIDIsCreateHash {
			delete(m, "room_id")
		}
	}))
	r.id = string(r.create.RoomID())
	r.join = r.parse(r.event("m.room.member", r.creator, json{"membership": "join"}, nil))
	return r
}

func (r *foreignRoom) parse(raw []byte) *event.Event {
	r.t.Helper()
	ev, err := event.Parse(r.version, raw)
	if err != nil {
		r.t.Fatalf("%v: %s", err, raw)
	}
	return ev
}

func (r *foreignRoom) event(eventType, key string, content json, change func(json)) []byte {
	r.t.Helper()
	ref := func(ev *event.Event) any {
		if r.version.EventIDFormat == roomversion.EventIDInEvent {
			return []any{ev.ID(), json{"sha256": ""}}
		}
		return ev.ID()
	}
	m := json{"type": eventType, "state_key": key, "content": content, "sender": r.creator, "room_id": r.id, "depth": 5, "origin_server_ts": 1}
	if r.version.EventIDFormat == roomversion.EventIDInEvent {
		m["event_id"] = fmt.Sprintf("$%d:%s", nextNumber(), r.peer.Name)
	}
	if r.create != nil {
		m["prev_events"] = []any{ref(r.create)}
		m["auth_events"] = []any{}
		if !r.version.RoomIDIsCreateHash {
			m["auth_events"] = []any{ref(r.create)}
		}
	}
	if change != nil {
		change(m)
	}
	return r.peer.Seal(r.version, encode(r.t, m))
}

// stripped is an event as clients see it who are not in the room.
func stripped(ev *event.Event) stdjson.RawMessage { return ev.AppendStripped(nil) }

// What comes to the invite endpoints, and what the specification says about it.
func TestFederatedInvites(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	peer, other := n.NewPeer(), n.NewPeer()
	for _, version := range []string{"1", "2", "6", "11", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			alice, blocking := hs.Register(t, "alice"), hs.Register(t, "bob")
			blocking.Must("PUT", "/v3/user"+homeserver.Path(blocking.UserID, "account_data", "m.invite_permission_config"), json{"default_action": "block"})
			r := newForeignRoom(t, peer, version)
			elsewhere := newForeignRoom(t, other, version)
			state := []any{stdjson.RawMessage(r.create.JSON()), stdjson.RawMessage(r.join.JSON())}
			hashed := r.version.RoomIDIsCreateHash
			forged := strings.Replace(string(r.join.JSON()), `"signatures":{"`+string(peer.Name)+`":{"`+string(peer.Key.ID)+`":"`, `"signatures":{"`+string(peer.Name)+`":{"`+string(peer.Key.ID)+`":"AAAA`, 1)
			for _, c := range []struct {
				what   string
				from   *homeserver.Peer
				key    string
				change func(event json)             // of the event
				wrap   func(body json)              // of the body of v2
				path   func(room, id string) string // "": the right one
				status int
				code   string
			}{
				{what: "a good one", status: 200},
				{what: "whole state", wrap: func(b json) { b["invite_room_state"] = append(state, stripped(r.join)) }, status: 200},
				{what: "no state", wrap: func(b json) { delete(b, "invite_room_state") }, status: 200, code: "create"},
				{what: "empty state", wrap: func(b json) { b["invite_room_state"] = []any{} }, status: 200, code: "create"},
				{what: "stripped create event", wrap: func(b json) { b["invite_room_state"] = []any{stripped(r.create)} }, status: 200, code: "create"},
				{what: "create event of another room", wrap: func(b json) { b["invite_room_state"] = []any{stdjson.RawMessage(elsewhere.create.JSON())} }, status: 200, code: "create"},
				{what: "further event of another room", wrap: func(b json) { b["invite_room_state"] = append(state, stdjson.RawMessage(elsewhere.join.JSON())) }, status: 200, code: "create"},
				{what: "forged state", wrap: func(b json) { b["invite_room_state"] = []any{state[0], stdjson.RawMessage(forged)} }, status: 200, code: "create"},
				{what: "state that is none", wrap: func(b json) { b["invite_room_state"] = append(state, 1, "x", nil) }, status: 200, code: "create"},
				{what: "state of the wrong type", wrap: func(b json) { b["invite_room_state"] = json{} }, status: 400, code: "M_BAD_JSON"},
				{what: "no room version", wrap: func(b json) { delete(b, "room_version") }, status: 400, code: "M_MISSING_PARAM"},
				{what: "unknown room version", wrap: func(b json) { b["room_version"] = "none" }, status: 400, code: "M_INCOMPATIBLE_ROOM_VERSION"},
				{what: "room version of the wrong type", wrap: func(b json) { b["room_version"] = 11 }, status: 400, code: "M_BAD_JSON"},
				{what: "no event", wrap: func(b json) { delete(b, "event") }, status: 400, code: "M_MISSING_PARAM"},
				{what: "event of the wrong type", wrap: func(b json) { b["event"] = []any{} }, status: 400, code: "M_BAD_JSON"},
				{what: "another type", change: func(m json) { m["type"] = "m.room.message" }, status: 400, code: "M_INVALID_PARAM"},
				{what: "a join", change: func(m json) { m["content"] = json{"membership": "join"} }, status: 400, code: "M_INVALID_PARAM"},
				{what: "no membership", change: func(m json) { m["content"] = json{} }, status: 400, code: "M_INVALID_PARAM"},
				{what: "no state key", change: func(m json) { delete(m, "state_key") }, status: 400, code: "M_INVALID_PARAM"},
				{what: "a user of another server", key: "@x:" + string(other.Name), status: 400, code: "M_INVALID_PARAM"},
				{what: "no user", key: "x", status: 400, code: "M_INVALID_PARAM"},
				{what: "from another server", from: other, status: 400, code: "M_INVALID_PARAM"},
				{what: "sender of another server", change: func(m json) { m["sender"] = "@x:" + string(other.Name) }, status: 400, code: "M_INVALID_PARAM"},
				{what: "another room in the path", path: func(_, id string) string { return homeserver.Path(elsewhere.id, id) }, status: 400, code: "M_INVALID_PARAM"},
				{what: "another event in the path", path: func(room, _ string) string { return homeserver.Path(room, "$x:"+string(peer.Name)) }, status: 400, code: "M_INVALID_PARAM"},
				{what: "no event ID in the path", path: func(room, _ string) string { return homeserver.Path(room, "x") }, status: 400, code: "M_INVALID_PARAM"},
				{what: "no depth", change: func(m json) { delete(m, "depth") }, status: 400, code: "M_BAD_JSON"},
				{what: "who blocks invites", key: blocking.UserID, status: 403, code: "M_INVITE_BLOCKED"},
			} {
				from, key := c.from, c.key
				if from == nil {
					from = peer
				}
				if key == "" {
					key = alice.UserID
				}
				invite := r.event("m.room.member", key, json{"membership": "invite"}, c.change)
				id := homeserver.EventID(r.version, invite)
				body := json{"room_version": version, "event": stdjson.RawMessage(invite), "invite_room_state": state}
				if c.wrap != nil {
					c.wrap(body)
				}
				path := homeserver.Path(r.id, id)
				if c.path != nil {
					path = c.path(r.id, id)
				}
				status, code := c.status, c.code
				if code == "create" { // is looked at only where the room ID says which create event it has to be
					code = ""
					if hashed {
						status, code = 400, "M_INVALID_PARAM"
					}
				}
				got, res := askAs(t, from, hs, "PUT", "/_matrix/federation/v2/invite"+path, body)
				if gotCode, _ := res["errcode"].(string); got != status || gotCode != code {
					t.Errorf("%s: %d %v, want %d %s", c.what, got, res, status, code)
				}
				if got == 200 {
					signed := homeserver.Dig(res, "event", "signatures").(json)
					if signed[hs.Name] == nil || signed[string(peer.Name)] == nil {
						t.Errorf("%s: signed by %v", c.what, signed)
					}
				}
			}
			// The first form of the endpoint is for the first two room versions.
			invite := r.event("m.room.member", alice.UserID, json{"membership": "invite"}, nil)
			raw := strings.TrimSuffix(string(invite), "}") + `,"unsigned":{"invite_room_state":[` + string(r.create.JSON()) + `]}}`
			status, answer := peer.Call(hs, "PUT", "/_matrix/federation/v1/invite"+homeserver.Path(r.id, homeserver.EventID(r.version, invite)), []byte(raw))
			switch version {
			case "1", "2":
				var pair []stdjson.RawMessage
				if err := stdjson.Unmarshal(answer, &pair); err != nil || status != 200 || len(pair) != 2 || string(pair[0]) != "200" || !strings.Contains(string(pair[1]), hs.Name) {
					t.Errorf("v1: %d %s", status, answer)
				}
			default:
				if status != 400 {
					t.Errorf("v1 with an event of room version %s: %d %s", version, status, answer)
				}
			}
			alice.SyncUntilInvited(r.id)
		})
	}
}

// Anybody may claim anything of a room that is not known here. The invite that proves of which version the room is stands against that.
func TestInviteAfterAFalseOne(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	peer, liar := n.NewPeer(), n.NewPeer()
	for _, version := range []string{"6", "11"} { // later, the room ID says which create event the room has
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		r := newForeignRoom(t, peer, version)
		lied := newForeignRoom(t, liar, "1")
		lied.id = r.id
		send := func(r *foreignRoom, victim *homeserver.Client, state ...any) (int, json) {
			t.Helper()
			invite := r.event("m.room.member", victim.UserID, json{"membership": "invite"}, nil)
			body := json{"room_version": string(r.version.ID), "event": stdjson.RawMessage(invite), "invite_room_state": state}
			return askAs(t, r.peer, hs, "PUT", "/_matrix/federation/v2/invite"+homeserver.Path(r.id, homeserver.EventID(r.version, invite)), body)
		}
		lie := stdjson.RawMessage(lied.event("m.room.create", "", json{"creator": lied.creator}, nil))
		create := stdjson.RawMessage(r.create.JSON())
		if status, res := send(lied, bob, lie); status != 200 {
			t.Fatalf("v%s, a false invite: %d %v", version, status, res)
		}
		if status, res := send(r, alice, stripped(r.create)); status != 400 || res["errcode"] != "M_INVALID_PARAM" {
			t.Errorf("v%s, without proof: %d %v", version, status, res)
		}
		if status, res := send(r, alice, create); status != 200 {
			t.Errorf("v%s, with proof: %d %v", version, status, res)
		}
		alice.SyncUntilInvited(r.id)
		if status, res := send(lied, bob, lie); status != 400 || res["errcode"] != "M_INVALID_PARAM" {
			t.Errorf("v%s, a false invite afterwards: %d %v", version, status, res)
		}
		if res := bob.Sync(0); homeserver.Dig(res, "rooms", "invite", r.id) != nil {
			t.Errorf("v%s: the false invite is still shown", version)
		}
		if status, res := send(r, bob, create); status != 200 {
			t.Errorf("v%s, once more: %d %v", version, status, res)
		}
		bob.SyncUntilInvited(r.id)
	}
}
