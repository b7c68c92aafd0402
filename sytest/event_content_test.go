package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"hanok/sytest/homeserver"
)

// What may not be an event is refused with the code that the specification gives.
func TestEventsThatAreRefused(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat", "room_version": "11"})
	old := alice.CreateRoom(json{"preset": "public_chat", "room_version": "5"})
	nine := alice.CreateRoom(json{"preset": "public_chat", "room_version": "9"})
	elsewhere := bob.CreateRoom(json{})
	said := alice.Say(room, "hello")
	long := strings.Repeat("x", 256)
	levels := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)
	with := func(key string, value any) json {
		c := json{}
		for k, v := range levels {
			c[k] = v
		}
		c[key] = value
		return c
	}
	send := func(room, eventType string) string {
		return "/v3/rooms" + homeserver.Path(room, "send", eventType, fmt.Sprint("refused", len(room), eventType, len(long), nextNumber()))
	}
	state := func(room, eventType, key string) string {
		return "/v3/rooms" + homeserver.Path(room, "state", eventType, key)
	}
	const ok = ""
	for _, c := range []struct {
		what, method, path string
		body               any
		status             int
		codes              string // separated by spaces; "" is any
	}{
		{"a large event", "PUT", send(room, "m.room.message"), json{"body": strings.Repeat("x", 65536)}, 413, "M_TOO_LARGE"},
		{"one that becomes large by escapes", "PUT", send(room, "m.room.message"), json{"body": strings.Repeat("\x01", 12000)}, 413, "M_TOO_LARGE"},
		{"large state", "PUT", state(room, "m.room.topic", ""), json{"topic": strings.Repeat("x", 65536)}, 413, "M_TOO_LARGE"},
		{"a large body", "PUT", send(room, "m.room.message"), json{"body": strings.Repeat("x", 2<<20)}, 413, "M_TOO_LARGE"},
		{"deep content", "PUT", send(room, "m.room.message"), `{"a":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + `}`, 400, "M_BAD_JSON M_NOT_JSON"},
		{"a float", "PUT", send(room, "m.room.message"), `{"a":1.5}`, 400, "M_BAD_JSON"},
		{"an exponent", "PUT", send(room, "m.room.message"), `{"a":1e3}`, 400, "M_BAD_JSON"},
		{"a large integer", "PUT", send(room, "m.room.message"), `{"a":9007199254740992}`, 400, "M_BAD_JSON"},
		{"the largest integer", "PUT", send(room, "m.room.message"), `{"a":9007199254740991}`, 200, ok},
		{"minus zero", "PUT", send(room, "m.room.message"), `{"a":-0}`, 400, "M_BAD_JSON"},
		{"a float in version 5", "PUT", send(old, "m.room.message"), `{"a":1.5}`, 200, ok},
		{"an array", "PUT", send(room, "m.room.message"), `[]`, 400, "M_BAD_JSON"},
		{"null", "PUT", send(room, "m.room.message"), `null`, 400, "M_BAD_JSON"},
		{"a string", "PUT", send(room, "m.room.message"), `"x"`, 400, "M_BAD_JSON"},
		{"nothing", "PUT", send(room, "m.room.message"), ``, 400, "M_NOT_JSON"},
		{"half an object", "PUT", send(room, "m.room.message"), `{"a":`, 400, "M_NOT_JSON"},
		{"two objects", "PUT", send(room, "m.room.message"), `{}{}`, 400, "M_NOT_JSON"},
		{"a key twice", "PUT", send(room, "m.room.message"), `{"a":1,"a":2}`, 400, "M_BAD_JSON"},
		{"a key twice further down", "PUT", send(room, "m.room.message"), `{"a":[{"b":1,"\u0062":2}]}`, 400, "M_BAD_JSON"},
		{"half a surrogate pair", "PUT", send(room, "m.room.message"), `{"a":"\ud800"}`, 400, "M_BAD_JSON M_NOT_JSON"},
		{"no UTF-8", "PUT", send(room, "m.room.message"), "{\"a\":\"\xff\"}", 400, "M_NOT_JSON"},
		{"NUL", "PUT", send(room, "m.room.message"), `{"a":"\u0000","\u0000":1}`, 200, ok},
		{"a long type", "PUT", send(room, long), json{}, 413, "M_TOO_LARGE"},
		{"a long state type", "PUT", state(room, long, ""), json{}, 413, "M_TOO_LARGE"},
		{"a long state key", "PUT", state(room, "org.example", long), json{}, 413, "M_TOO_LARGE"},
		{"a state key of 255 bytes", "PUT", state(room, "org.example", long[1:]), json{}, 200, ok},
		{"a state key of 129 letters of two bytes", "PUT", state(room, "org.example", strings.Repeat("é", 129)), json{}, 413, "M_TOO_LARGE"},
		{"another create event", "PUT", state(room, "m.room.create", ""), json{"room_version": "11"}, 400, "M_INVALID_PARAM"},
		{"a create event as message", "PUT", send(room, "m.room.create"), json{}, 0, ""},
		{"a member event as message", "PUT", send(room, "m.room.member"), json{"membership": "join"}, 0, ""},
		{"somebody else's state key", "PUT", state(room, "org.example", bob.UserID), json{}, 403, "M_FORBIDDEN"},
		{"a membership that is none", "PUT", state(room, "m.room.member", alice.UserID), json{"membership": "present"}, 400, "M_BAD_JSON"},
		{"no membership", "PUT", state(room, "m.room.member", alice.UserID), json{}, 400, "M_BAD_JSON"},
		{"a membership that is no string", "PUT", state(room, "m.room.member", alice.UserID), json{"membership": 5}, 400, "M_BAD_JSON"},
		{"a member that is no user", "PUT", state(room, "m.room.member", "alice"), json{"membership": "join"}, 400, "M_BAD_JSON"},
		{"joining for somebody else", "PUT", state(room, "m.room.member", bob.UserID), json{"membership": "join"}, 403, "M_FORBIDDEN"},
		{"an odd display name", "PUT", state(room, "m.room.member", alice.UserID), `{"membership":"join","displayname":["x"],"avatar_url":{"a":null}}`, 200, ok},
		{"a power level that is a string", "PUT", state(room, "m.room.power_levels", ""), with("ban", "50"), 400, "M_BAD_JSON"},
		{"a user's level that is a string", "PUT", state(room, "m.room.power_levels", ""), with("users", json{alice.UserID: "100"}), 400, "M_BAD_JSON"},
		{"levels of no user", "PUT", state(room, "m.room.power_levels", ""), with("users", json{alice.UserID: 100, "nobody": 5}), 400, "M_BAD_JSON"},
		{"levels that are no object", "PUT", state(room, "m.room.power_levels", ""), with("events", []any{}), 400, "M_BAD_JSON"},
		{"a level beyond the sender's", "PUT", state(room, "m.room.power_levels", ""), with("users", json{alice.UserID: 100, bob.UserID: 101}), 403, "M_FORBIDDEN"},
		{"levels without the sender", "PUT", state(room, "m.room.power_levels", ""), with("users", json{}), 200, ""},
		{"strings in version 9", "PUT", state(nine, "m.room.power_levels", ""), with("ban", "50"), 200, ok},
		{"an alias that is not there", "PUT", state(nine, "m.room.canonical_alias", ""), json{"alias": "#none:" + hs.Name}, 400, "M_BAD_ALIAS"},
		{"an alias that is none", "PUT", state(nine, "m.room.canonical_alias", ""), json{"alias": "none"}, 400, "M_INVALID_PARAM"},
		{"other aliases that are none", "PUT", state(nine, "m.room.canonical_alias", ""), json{"alt_aliases": []any{"none"}}, 400, "M_INVALID_PARAM"},
		{"other aliases that are no strings", "PUT", state(nine, "m.room.canonical_alias", ""), json{"alt_aliases": []any{5}}, 400, "M_INVALID_PARAM M_BAD_JSON"},
		{"an alias of another server", "PUT", "/v3/directory/room" + homeserver.Path("#x:elsewhere.example"), json{"room_id": room}, 400, "M_INVALID_PARAM"},
		{"an alias without name", "PUT", "/v3/directory/room" + homeserver.Path("#:"+hs.Name), json{"room_id": room}, 400, "M_INVALID_PARAM"},
		{"an alias without sigil", "PUT", "/v3/directory/room" + homeserver.Path("x:"+hs.Name), json{"room_id": room}, 400, "M_INVALID_PARAM"},
		{"a long alias", "PUT", "/v3/directory/room" + homeserver.Path("#"+long+":"+hs.Name), json{"room_id": room}, 400, "M_INVALID_PARAM"},
		{"an alias for no room", "PUT", "/v3/directory/room" + homeserver.Path("#x:"+hs.Name), json{"room_id": "room"}, 400, "M_INVALID_PARAM M_BAD_JSON"},
		{"an alias for a room that is not known", "PUT", "/v3/directory/room" + homeserver.Path("#x:"+hs.Name), json{"room_id": "!none:" + hs.Name}, 0, ""},
		{"redacting what is not known", "PUT", "/v3/rooms" + homeserver.Path(nine, "redact", "$none", "1"), json{}, 200, ok},
		{"redacting what is of another room", "PUT", "/v3/rooms" + homeserver.Path(nine, "redact", said, "2"), json{}, 404, "M_NOT_FOUND"},
		{"redacting in a room that one is not in", "PUT", "/v3/rooms" + homeserver.Path(elsewhere, "redact", said, "3"), json{}, 404, "M_NOT_FOUND"},
		{"redacting with a reason that is no string", "PUT", "/v3/rooms" + homeserver.Path(nine, "redact", said, "4"), json{"reason": 5}, 400, "M_BAD_JSON"},
		{"a redaction without redacts", "PUT", send(nine, "m.room.redaction"), json{}, 0, ""},
		{"a redaction of something that is no event", "PUT", send(nine, "m.room.redaction"), json{"redacts": []any{}}, 0, ""},
		{"sending where one is not", "PUT", send(elsewhere, "m.room.message"), json{}, 403, "M_FORBIDDEN"},
		{"sending where nothing is", "PUT", send("!none:"+hs.Name, "m.room.message"), json{}, 403, "M_FORBIDDEN M_NOT_FOUND"},
		{"sending to something that is no room", "PUT", send("none", "m.room.message"), json{}, 400, "M_INVALID_PARAM"},
		{"a reaction to nothing", "PUT", send(nine, "m.reaction"), json{"m.relates_to": json{"rel_type": "m.annotation"}}, 0, ""},
		{"a relation that is none", "PUT", send(nine, "m.room.message"), json{"m.relates_to": "x"}, 0, ""},
		{"a room of a version that there is not", "POST", "/v3/createRoom", json{"room_version": "x"}, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{"a room without version", "POST", "/v3/createRoom", json{"room_version": ""}, 0, ""},
		{"a room with a name of 100 kB", "POST", "/v3/createRoom", json{"name": strings.Repeat("x", 100000)}, 413, "M_TOO_LARGE"},
		{"a room of many guests", "POST", "/v3/createRoom", json{"invite": slices.Repeat([]string{"@x:" + hs.Name}, 5000)}, 0, ""},
		{"a room with bad levels", "POST", "/v3/createRoom", json{"power_level_content_override": json{"users": json{alice.UserID: "x"}}}, 400, "M_BAD_JSON M_INVALID_ROOM_STATE"},
		{"a room whose creator has no say", "POST", "/v3/createRoom", json{"power_level_content_override": json{"users": json{}}}, 0, ""},
		{"a room with another create event", "POST", "/v3/createRoom", json{"initial_state": []json{{"type": "m.room.create", "state_key": "", "content": json{}}}}, 400, "M_INVALID_ROOM_STATE M_BAD_JSON"},
		{"a room with somebody in it", "POST", "/v3/createRoom", json{"initial_state": []json{{"type": "m.room.member", "state_key": bob.UserID, "content": json{"membership": "join"}}}}, 400, "M_INVALID_ROOM_STATE M_BAD_JSON"},
		{"a room with state without content", "POST", "/v3/createRoom", json{"initial_state": []json{{"type": "x", "state_key": ""}}}, 400, "M_BAD_JSON M_INVALID_ROOM_STATE"},
		{"a room with state without type", "POST", "/v3/createRoom", json{"initial_state": []json{{"content": json{}}}}, 400, "M_BAD_JSON M_INVALID_ROOM_STATE"},
		{"a room with an alias that is none", "POST", "/v3/createRoom", json{"room_alias_name": "a:b"}, 400, "M_INVALID_PARAM"},
		{"a room with a long alias", "POST", "/v3/createRoom", json{"room_alias_name": long}, 400, "M_INVALID_PARAM"},
		{"inviting nobody", "POST", "/v3/rooms" + homeserver.Path(nine, "invite"), json{}, 400, "M_MISSING_PARAM M_BAD_JSON"},
		{"inviting what is no user", "POST", "/v3/rooms" + homeserver.Path(nine, "invite"), json{"user_id": "bob"}, 400, "M_INVALID_PARAM"},
		{"inviting a user of a server that is away", "POST", "/v3/rooms" + homeserver.Path(nine, "invite"), json{"user_id": "@x:localhost:1"}, 502, ""},
		{"banning oneself out of everything", "POST", "/v3/rooms" + homeserver.Path(nine, "unban"), json{"user_id": bob.UserID}, 403, "M_FORBIDDEN"},
		{"kicking who is not there", "POST", "/v3/rooms" + homeserver.Path(nine, "kick"), json{"user_id": bob.UserID}, 403, "M_FORBIDDEN"},
		{"joining through a server that is away", "POST", "/v3/join" + homeserver.Path("!x:localhost:1"), json{}, 502, ""},
		{"an alias of a server that is away", "POST", "/v3/join" + homeserver.Path("#x:localhost:1"), json{}, 0, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			status, raw := alice.Raw(c.method, c.path, c.body)
			var e struct {
				Code string `json:"errcode"`
			}
			if err := stdjson.Unmarshal(raw, &e); err != nil {
				t.Fatalf("%d %s: %v", status, raw, err)
			}
			if status == 500 || c.status != 0 && status != c.status || c.codes != "" && !slices.Contains(strings.Fields(c.codes), e.Code) {
				t.Errorf("%s %s: %d %s, want %d %s", c.method, short(c.path), status, raw, c.status, c.codes)
			}
		})
	}
	if status, body := alice.Raw("GET", "/v3/sync", nil); status != http.StatusOK {
		t.Errorf("sync: %d %.500s", status, body)
	}
}

var number int

func nextNumber() int { number++; return number }

// NUL can be in every string of JSON; PostgreSQL's text cannot hold it. Whoever reads what somebody
// else wrote must not stumble over it: counts, receipts and devices go on arriving.
func TestNULInWhatOthersRead(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob, carol := hs1.Register(t, "alice"), hs1.Register(t, "bob"), hs2.Register(t, "carol")
		room := alice.CreateRoom(json{"preset": "public_chat", "room_version": "10"})
		bob.Join(room)
		carol.Join(room, hs1.Name)
		alice.SyncUntilJoined(room, carol.UserID)
		const nul = "a\x00b"
		root := alice.Say(room, "root")
		for _, content := range []json{
			{"body": nul, "msgtype": nul, nul: nul},
			{"body": "x", "m.relates_to": json{"rel_type": "m.thread", "event_id": nul}},
			{"body": "x", "m.relates_to": json{"rel_type": "m.thread", "event_id": "$" + nul + ":" + hs1.Name}},
			{"body": "x", "m.relates_to": json{"rel_type": "m.thread", "event_id": strings.Repeat("x", 1000)}},
			{"body": "x", "m.relates_to": json{"rel_type": nul, "event_id": root, "key": nul}},
			{"body": "x", "m.relates_to": json{"rel_type": "m.annotation", "event_id": root, "key": nul}},
			{"body": "x", "m.relates_to": json{"rel_type": "m.replace", "event_id": nul}, "m.new_content": json{"body": nul}},
			{"body": "x", "m.relates_to": json{"m.in_reply_to": json{"event_id": nul}}},
			{"body": "x", "m.mentions": json{"user_ids": []any{nul, bob.UserID + nul}}},
			{"body": "x", "m.relates_to": json{"rel_type": "m.annotation", "event_id": nul, "key": "k"}},
			{"body": "x", "m.relates_to": json{"rel_type": "m.reference", "event_id": nul}},
			{"body": "x", "m.relates_to": []any{nul}, "m.mentions": nul},
			{"redacts": nul},
			{"redacts": "$" + nul + ":" + hs1.Name},
		} {
			for _, eventType := range []string{"m.room.message", "m.reaction", "m.room.encrypted", "m.room.redaction"} {
				if status, body := alice.Raw("PUT", "/v3/rooms"+homeserver.Path(room, "send", eventType, fmt.Sprint("nul", nextNumber())), content); status == 500 {
					t.Errorf("%q: %d %s", content, status, body)
				}
			}
		}
		for _, state := range []struct {
			eventType string
			content   json
		}{
			{"m.room.name", json{"name": nul}}, {"m.room.topic", json{"topic": nul}}, {"m.room.avatar", json{"url": nul}}, {"m.room.join_rules", json{"join_rule": nul}}, {"m.room.join_rules", json{"join_rule": "public"}},
			{"m.room.history_visibility", json{"history_visibility": nul}}, {"m.room.guest_access", json{"guest_access": nul}}, {"m.room.server_acl", json{"allow": []any{"*", nul}, "deny": []any{nul}}},
			{"m.room.tombstone", json{"replacement_room": nul, "body": nul}}, {"m.space.child", json{"via": []any{nul}, "order": nul}}, {"m.room.encryption", json{"algorithm": nul}}, {"m.room.pinned_events", json{"pinned": []any{nul}}},
			{"m.room.canonical_alias", json{"alias": nul}}, {"m.room.third_party_invite", json{"display_name": nul, "public_key": nul}},
		} {
			if status, body := alice.Raw("PUT", "/v3/rooms"+homeserver.Path(room, "state", state.eventType, ""), state.content); status == 500 {
				t.Errorf("%q: %d %s", state, status, body)
			}
		}
		for _, request := range []struct {
			method, path string
			body         any
		}{
			{"PUT", "/v3/profile" + homeserver.Path(alice.UserID, "displayname"), json{"displayname": nul}},
			{"PUT", "/v3/profile" + homeserver.Path(alice.UserID, "avatar_url"), json{"avatar_url": nul}},
			{"PUT", "/v3/profile" + homeserver.Path(alice.UserID, "org.example"), json{"org.example": nul}},
			{"PUT", "/v3/presence" + homeserver.Path(alice.UserID, "status"), json{"presence": "online", "status_msg": nul}},
			{"PUT", "/v3/devices" + homeserver.Path(alice.DeviceID), json{"display_name": nul}},
			{"PUT", "/v3/sendToDevice/org.example.ping/1", json{"messages": json{bob.UserID: json{"*": json{"a": nul}, nul: json{}}, carol.UserID: json{"*": json{"a": nul}, nul: json{}}}}},
			{"PUT", "/v3/sendToDevice/org.example.ping/2", json{"messages": json{nul: json{"*": json{}}}}},
			{"POST", "/v3/keys/query", json{"device_keys": json{bob.UserID: []any{nul}, carol.UserID: []any{nul}}}},
			{"POST", "/v3/keys/claim", json{"one_time_keys": json{bob.UserID: json{nul: nul}, carol.UserID: json{nul: nul}}}},
			{"POST", "/v3/keys/upload", json{"one_time_keys": json{"signed_curve25519:" + nul: json{"key": nul}}}},
			{"POST", "/v3/user_directory/search", json{"search_term": nul}},
			{"POST", "/v3/publicRooms", json{"filter": json{"generic_search_term": nul, "room_types": []any{nul}}, "since": nul}},
			{"POST", "/v3/rooms" + homeserver.Path(room, "receipt", "m.read", root), json{"thread_id": nul}},
			{"POST", "/v3/rooms" + homeserver.Path(room, "read_markers"), json{"m.read": nul, "m.fully_read": nul}},
			{"PUT", "/v3/pushrules/global/content/x", json{"pattern": nul, "actions": []any{"notify", json{"set_tweak": nul, "value": nul}}}},
			{"PUT", "/v3/pushrules/global/override/y", json{"conditions": []any{json{"kind": "event_match", "key": nul, "pattern": nul}, json{"kind": nul}}, "actions": []any{"notify"}}},
			{"POST", "/v3/pushers/set", json{"app_id": nul, "pushkey": nul, "kind": "http", "app_display_name": nul, "device_display_name": nul, "profile_tag": nul, "lang": nul, "data": json{"url": "http://127.0.0.1:1/_matrix/push/v1/notify"}}},
			{"POST", "/v3/user" + homeserver.Path(alice.UserID, "filter"), json{"room": json{"timeline": json{"types": []any{nul}, "senders": []any{nul}, "rooms": []any{nul}}, "rooms": []any{nul}}}},
			{"PUT", "/v3/user" + homeserver.Path(alice.UserID, "account_data", "org.example"), json{nul: nul}},
			{"PUT", "/v3/user" + homeserver.Path(alice.UserID, "rooms", room, "tags", "u.x"), json{"order": 0.5, nul: nul}},
			{"POST", "/v3/login", json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": nul}, "password": nul}},
			{"POST", "/v3/login", json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": alice.UserID}, "password": homeserver.Password, "device_id": nul, "initial_device_display_name": nul}},
			{"POST", "/v3/login", json{"type": "m.login.token", "token": nul}},
			{"POST", "/v3/refresh", json{"refresh_token": nul}},
			{"POST", "/v3/register", json{"username": nul, "password": nul, "auth": json{"type": nul, "session": nul}}},
			{"POST", "/v3/delete_devices", json{"devices": []any{nul}, "auth": json{"type": "m.login.password", "session": nul, "password": nul}}},
			{"POST", "/v3/room_keys/version", json{"algorithm": nul, "auth_data": json{nul: nul}}},
			{"POST", "/v3/rooms" + homeserver.Path(room, "invite"), json{"user_id": "@x:" + hs1.Name, "reason": nul}},
			{"POST", "/v3/createRoom", json{"name": nul, "topic": nul, "room_alias_name": nul}},
			{"POST", "/v3/createRoom", json{"name": nul, "topic": nul, "creation_content": json{"type": nul, nul: nul}, "initial_state": []any{json{"type": "x" + nul, "state_key": nul, "content": json{nul: nul}}}}},
		} {
			if status, body := alice.Raw(request.method, request.path, request.body); status == 500 {
				t.Errorf("%s %s %q: %d %s", request.method, request.path, request.body, status, body)
			}
		}
		// Names with NUL cannot be put into a path, but searching for them must work.
		last := alice.Say(room, "the last one")
		for _, other := range []*homeserver.Client{bob, carol} {
			other.SyncUntilEvent(room, last)
			for _, path := range []string{"/v3/sync", "/v3/sync?full_state=true", "/v3/rooms" + homeserver.Path(room, "messages") + "?dir=b&limit=100", "/v3/rooms" + homeserver.Path(room, "state"), "/v3/rooms" + homeserver.Path(room, "members"),
				"/v3/publicRooms", "/v3/profile" + homeserver.Path(alice.UserID), "/v3/notifications", "/v1/rooms" + homeserver.Path(room, "threads"), "/v1/rooms" + homeserver.Path(room, "relations", root), "/v1/rooms" + homeserver.Path(room, "hierarchy")} {
				if status, body := other.Raw("GET", path, nil); status == 500 {
					t.Errorf("%s %s: %d %.500s", other.UserID, path, status, body)
				}
			}
		}
		// Counting goes on.
		fresh := hs1.Register(t, "dave")
		other := alice.CreateRoom(json{"preset": "public_chat"})
		fresh.Join(other)
		alice.Say(other, "count me")
		fresh.SyncUntil("a notification count", func(res json) bool {
			n, _ := homeserver.Dig(res, "rooms", "join", other, "unread_notifications", "notification_count").(float64)
			return n >= 1
		})
	})
}
