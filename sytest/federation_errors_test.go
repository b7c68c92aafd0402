package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"net/url"
	"testing"

	"hanok/sytest/homeserver"
)

// fed is a path of the server-server API.
func fed(version, endpoint string, parts ...string) string {
	return "/_matrix/federation/" + version + "/" + endpoint + homeserver.Path(parts...)
}

// askAs makes a signed request and reads the answer.
func askAs(t *testing.T, p *homeserver.Peer, hs *homeserver.Server, method, path string, body any) (int, json) {
	t.Helper()
	status, raw := p.Call(hs, method, path, encode(t, body))
	var out json
	if err := stdjson.Unmarshal(raw, &out); err != nil {
		t.Errorf("%s %s: %d %.300s", method, path, status, raw)
	}
	return status, out
}

// What endpoints for other servers answer to servers that are in a room, were in it, or never were, about what is there and what is not, as the
// pages of the specification have it.
func TestFederationEndpointErrors(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{Host: "127.0.0.1"})
	alice, closed := hs.Register(t, "alice"), hs.Register(t, "bob")
	closed.Must("POST", "/v3/account/deactivate", json{"auth": json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": closed.UserID}, "password": homeserver.Password}})
	member, stranger, gone := n.NewPeer(), n.NewPeer(), n.NewPeer()
	room := alice.CreateRoom(json{"preset": "public_chat", "name": "room"})
	first := alice.Say(room, "first")
	mallory := member.Join(hs, room, "mallory")
	gary := gone.Join(hs, room, "gary")
	saw := alice.Say(room, "seen by all")
	alice.Must("POST", "/v3"+roomPath(room, "kick"), json{"user_id": gary.User})
	later := alice.Say(room, "later")
	private := alice.CreateRoom(json{"preset": "private_chat"})
	secret := alice.Say(private, "secret")
	knock := alice.CreateRoom(json{"preset": "public_chat", "room_version": "11", "initial_state": []json{{"type": "m.room.join_rules", "content": json{"join_rule": "knock"}}}})
	oldKnock := alice.CreateRoom(json{"preset": "public_chat", "room_version": "6"})
	open := alice.CreateRoom(json{"preset": "public_chat", "initial_state": []json{{"type": "m.room.history_visibility", "content": json{"history_visibility": "world_readable"}}}})
	opened := alice.Say(open, "for all")
	local := alice.CreateRoom(json{"preset": "public_chat", "creation_content": json{"m.federate": false}})
	restricted := func(allow []json, more json) string {
		body := json{"preset": "private_chat", "room_version": "11", "initial_state": []json{{"type": "m.room.join_rules", "content": json{"join_rule": "restricted", "allow": allow}}}}
		for k, v := range more {
			body[k] = v
		}
		return alice.CreateRoom(body)
	}
	by := func(id string) json { return json{"type": "m.room_membership", "room_id": id} }
	granted, unknown, none, refused := restricted([]json{by(room)}, nil), restricted([]json{by("!unknown:example.org")}, nil), restricted([]json{}, nil), restricted([]json{by(private)}, nil)
	odd := restricted([]json{{"type": "m.other", "room_id": room}}, nil)
	powerless := restricted([]json{by(room)}, json{"power_level_content_override": json{"invite": 101}})
	banned := alice.CreateRoom(json{"preset": "public_chat"})
	alice.Must("POST", "/v3"+roomPath(banned, "ban"), json{"user_id": mallory.User})
	left := alice.CreateRoom(json{"preset": "public_chat"})
	member.Join(hs, left, "mallory")
	last := alice.Say(left, "bye")
	alice.Must("POST", "/v3"+roomPath(left, "leave"), json{})
	acl := alice.CreateRoom(json{"preset": "public_chat"})
	shut := member.Join(hs, acl, "mallory")
	alice.SetState(acl, "m.room.server_acl", "", json{"allow": []string{"*"}, "deny": []string{"localhost"}})
	const nowhere, nothing = "!nowhere:example.org", "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	m, e, g := string(mallory.User), "@eve:"+string(stranger.Name), string(gary.User)
	const all = "?ver=1&ver=6&ver=9&ver=11&ver=12"

	for _, c := range []struct {
		who          *homeserver.Peer
		method, path string
		body         any
		status       int
		code         string
	}{
		// make_join
		{stranger, "GET", fed("v1", "make_join", nowhere, e) + all, nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "make_join", private, e) + all, nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_join", room, e) + "?ver=1&ver=11", nil, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
		{stranger, "GET", fed("v1", "make_join", room, e), nil, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
		{stranger, "GET", fed("v1", "make_join", room, m) + all, nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_join", room, alice.UserID) + all, nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_join", room, "eve") + all, nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "make_join", local, e) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", left, m) + all, nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "make_join", banned, m) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", acl, m) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", granted, m) + all, nil, 200, ""},
		{stranger, "GET", fed("v1", "make_join", granted, e) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", refused, m) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", none, m) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", odd, m) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_join", unknown, m) + all, nil, 400, "M_UNABLE_TO_AUTHORISE_JOIN"},
		{member, "GET", fed("v1", "make_join", powerless, m) + all, nil, 400, "M_UNABLE_TO_GRANT_JOIN"},
		// make_knock
		{stranger, "GET", fed("v1", "make_knock", knock, e) + all, nil, 200, ""},
		{stranger, "GET", fed("v1", "make_knock", knock, e) + "?ver=7&ver=10", nil, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
		{stranger, "GET", fed("v1", "make_knock", room, e) + all, nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_knock", oldKnock, e) + all, nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_knock", nowhere, e) + all, nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "make_knock", knock, m) + all, nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "make_knock", banned, m) + all, nil, 403, "M_FORBIDDEN"},
		// make_leave
		{member, "GET", fed("v1", "make_leave", room, m), nil, 200, ""},
		{stranger, "GET", fed("v1", "make_leave", room, e), nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_leave", room, m), nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "make_leave", nowhere, e), nil, 404, "M_NOT_FOUND"},
		{gone, "GET", fed("v1", "make_leave", room, g), nil, 403, "M_FORBIDDEN"},
		// state and the like
		{member, "GET", fed("v1", "state", room) + "?event_id=" + url.QueryEscape(saw), nil, 200, ""},
		{gone, "GET", fed("v1", "state", room) + "?event_id=" + url.QueryEscape(saw), nil, 200, ""},
		{gone, "GET", fed("v1", "state", room) + "?event_id=" + url.QueryEscape(later), nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "state", room) + "?event_id=" + url.QueryEscape(saw), nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "state", open) + "?event_id=" + url.QueryEscape(opened), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "state", room), nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "state", room) + "?event_id=", nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "state", room) + "?event_id=x", nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "state", room) + "?event_id=" + nothing, nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "state", room) + "?event_id=" + url.QueryEscape(secret), nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "state", nowhere) + "?event_id=" + nothing, nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "state", acl) + "?event_id=" + url.QueryEscape(string(shut.Join.ID())), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "state_ids", room) + "?event_id=" + url.QueryEscape(saw), nil, 200, ""},
		{stranger, "GET", fed("v1", "state_ids", room) + "?event_id=" + url.QueryEscape(saw), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "state_ids", room), nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "state_ids", room) + "?event_id=" + nothing, nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "state_ids", left) + "?event_id=" + url.QueryEscape(last), nil, 200, ""},
		{stranger, "GET", fed("v1", "state_ids", left) + "?event_id=" + url.QueryEscape(last), nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "event_auth", room, saw), nil, 200, ""},
		{member, "GET", fed("v1", "event_auth", room, nothing), nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "event_auth", room, secret), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "event_auth", room, saw), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "event_auth", room, "x"), nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "event", saw), nil, 200, ""},
		{gone, "GET", fed("v1", "event", saw), nil, 200, ""},
		{gone, "GET", fed("v1", "event", later), nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "event", saw), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "event", secret), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "event", nothing), nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "event", string(shut.Join.ID())), nil, 403, "M_FORBIDDEN"},
		// history
		{member, "GET", fed("v1", "backfill", room) + "?limit=10&v=" + url.QueryEscape(saw), nil, 200, ""},
		{member, "GET", fed("v1", "backfill", room) + "?limit=10&v=" + url.QueryEscape(first) + "&v=" + url.QueryEscape(saw), nil, 200, ""},
		{stranger, "GET", fed("v1", "backfill", room) + "?limit=10&v=" + url.QueryEscape(saw), nil, 403, "M_FORBIDDEN"},
		{member, "GET", fed("v1", "backfill", room) + "?v=" + url.QueryEscape(saw), nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "backfill", room) + "?limit=10", nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "backfill", room) + "?limit=0&v=" + url.QueryEscape(saw), nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "backfill", room) + "?limit=-1&v=" + url.QueryEscape(saw), nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "backfill", room) + "?limit=x&v=" + url.QueryEscape(saw), nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "backfill", room) + "?limit=10&v=x", nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "backfill", nowhere) + "?limit=10&v=" + url.QueryEscape(saw), nil, 404, "M_NOT_FOUND"},
		{stranger, "POST", fed("v1", "get_missing_events", room), json{"earliest_events": []string{}, "latest_events": []string{saw}}, 403, "M_FORBIDDEN"},
		{member, "POST", fed("v1", "get_missing_events", nowhere), json{"earliest_events": []string{}, "latest_events": []string{saw}}, 404, "M_NOT_FOUND"},
		{member, "POST", fed("v1", "get_missing_events", room), json{"earliest_events": []string{}, "latest_events": []string{saw}}, 200, ""},
		{member, "GET", fed("v1", "timestamp_to_event", room) + "?ts=1&dir=f", nil, 200, ""},
		{member, "GET", fed("v1", "timestamp_to_event", room) + "?ts=1&dir=b", nil, 404, "M_NOT_FOUND"},
		{member, "GET", fed("v1", "timestamp_to_event", room) + "?dir=f", nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "timestamp_to_event", room) + "?ts=1", nil, 400, "M_MISSING_PARAM"},
		{member, "GET", fed("v1", "timestamp_to_event", room) + "?ts=1&dir=x", nil, 400, "M_INVALID_PARAM"},
		{member, "GET", fed("v1", "timestamp_to_event", room) + "?ts=x&dir=f", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "timestamp_to_event", room) + "?ts=1&dir=f", nil, 403, "M_FORBIDDEN"},
		{stranger, "GET", fed("v1", "timestamp_to_event", nowhere) + "?ts=1&dir=f", nil, 404, "M_NOT_FOUND"},
		// hierarchy
		{stranger, "GET", fed("v1", "hierarchy", room), nil, 200, ""},
		{stranger, "GET", fed("v1", "hierarchy", private), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "hierarchy", local), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "hierarchy", nowhere), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "hierarchy", acl), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "hierarchy", room) + "?suggested_only=x", nil, 400, "M_INVALID_PARAM"},
		// queries
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(alice.UserID), nil, 200, ""},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(alice.UserID) + "&field=displayname", nil, 200, ""},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(alice.UserID) + "&field=m.tz", nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(alice.UserID) + "&field=avatar_url", nil, 200, ""},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(alice.UserID) + "&field=No%20field", nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=@nobody:" + hs.Name + "&field=avatar_url", nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=@nobody:" + hs.Name, nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(m), nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "query/directory") + "?room_alias=%23nobody:" + hs.Name, nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "query/directory") + "?room_alias=x", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "query/other") + "?x=y", nil, 404, "M_UNRECOGNIZED"},
		{stranger, "GET", fed("v1", "publicRooms") + "?limit=x", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "publicRooms") + "?since=x", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "publicRooms") + "?include_all_networks=true&third_party_instance_id=x", nil, 400, "M_INVALID_PARAM"},
		{stranger, "POST", fed("v1", "publicRooms"), json{"filter": json{"room_types": 1}}, 400, "M_BAD_JSON"},
		{stranger, "POST", fed("v1", "publicRooms"), json{"filter": nil}, 200, ""},
		{stranger, "GET", fed("v1", "user/devices", alice.UserID), nil, 200, ""},
		{stranger, "GET", fed("v1", "user/devices", "@nobody:"+hs.Name), nil, 404, "M_NOT_FOUND"},
		// Who has closed the account has no devices any more, which others have to learn.
		{stranger, "GET", fed("v1", "user/devices", closed.UserID), nil, 200, ""},
		{stranger, "GET", fed("v1", "query/profile") + "?user_id=" + url.QueryEscape(closed.UserID), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "user/devices", m), nil, 400, "M_INVALID_PARAM"},
		{stranger, "POST", fed("v1", "user/keys/query"), json{}, 400, "M_MISSING_PARAM"},
		{stranger, "POST", fed("v1", "user/keys/query"), json{"device_keys": json{alice.UserID: "x"}}, 400, "M_BAD_JSON"},
		{stranger, "POST", fed("v1", "user/keys/query"), json{"device_keys": json{m: []string{}, "x": []string{}}}, 200, ""},
		{stranger, "POST", fed("v1", "user/keys/claim"), json{}, 400, "M_MISSING_PARAM"},
		{stranger, "POST", fed("v1", "user/keys/claim"), json{"one_time_keys": json{alice.UserID: json{"D": 1}}}, 400, "M_BAD_JSON"},
		// media
		{stranger, "GET", fed("v1", "media/download", "nothing"), nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "media/thumbnail", "nothing") + "?width=1&height=1", nil, 404, "M_NOT_FOUND"},
		{stranger, "GET", fed("v1", "media/thumbnail", "nothing"), nil, 400, "M_MISSING_PARAM"},
		{stranger, "GET", fed("v1", "media/thumbnail", "nothing") + "?width=-1&height=1", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "media/thumbnail", "nothing") + "?width=x&height=1", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "media/thumbnail", "nothing") + "?width=1&height=1&method=x", nil, 400, "M_INVALID_PARAM"},
		{stranger, "GET", fed("v1", "media/thumbnail", "nothing") + "?width=1&height=1&animated=x", nil, 400, "M_INVALID_PARAM"},
		// invites by address
		{stranger, "PUT", fed("v1", "exchange_third_party_invite", room), json{}, 400, "M_MISSING_PARAM"},
		// elsewhere
		{stranger, "POST", "/_matrix/policy/v1/sign", json{}, 404, "M_UNRECOGNIZED"},
		{stranger, "GET", "/_matrix/federation/v1/nothing", nil, 404, "M_UNRECOGNIZED"},
		{stranger, "GET", "/_matrix/federation/v3/version", nil, 404, "M_UNRECOGNIZED"},
		{stranger, "GET", "/_matrix/federation", nil, 404, "M_UNRECOGNIZED"},
		{stranger, "GET", "/_matrix/nothing", nil, 404, "M_UNRECOGNIZED"},
		{stranger, "POST", "/_matrix/federation/v1/version", json{}, 405, "M_UNRECOGNIZED"},
		{stranger, "GET", "/_matrix/federation/v1/version/", nil, 404, "M_UNRECOGNIZED"},
		{stranger, "GET", "/_matrix/federation/v1/openid/userinfo?access_token=x", nil, 401, "M_UNKNOWN_TOKEN"},
		{stranger, "GET", "/_matrix/federation/v1/openid/userinfo", nil, 401, "M_MISSING_TOKEN"},
		{stranger, "PUT", "/_matrix/federation/v1/3pid/onbind", json{}, 400, "M_MISSING_PARAM"},
		{stranger, "PUT", "/_matrix/federation/v1/3pid/onbind", json{"mxid": m, "invites": []json{}}, 400, "M_INVALID_PARAM"},
		{stranger, "POST", "/_matrix/key/v2/query", json{}, 400, "M_MISSING_PARAM"},
		{stranger, "PUT", fed("v1", "send", "1"), []string{}, 400, "M_BAD_JSON"},
		{stranger, "PUT", fed("v2", "send_join", room, nothing), json{}, 400, "M_BAD_JSON"},
		{stranger, "PUT", fed("v2", "send_leave", room, nothing), json{}, 400, "M_BAD_JSON"},
		{stranger, "PUT", fed("v1", "send_knock", room, nothing), json{}, 400, "M_BAD_JSON"},
		{stranger, "PUT", fed("v2", "invite", room, nothing), json{}, 400, "M_MISSING_PARAM"},
		{stranger, "PUT", fed("v2", "invite", room, nothing), json{"room_version": "none", "event": json{}}, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
	} {
		status, res := askAs(t, c.who, hs, c.method, c.path, c.body)
		code, _ := res["errcode"].(string)
		if status != c.status || code != c.code {
			t.Errorf("%s %s %v: %d %.200s, want %d %s", c.method, c.path, c.body, status, fmt.Sprint(res), c.status, c.code)
		}
	}
}

// A server that federates with some others only says so to the rest, without asking them anything, and shows them what everybody may see.
func TestServersThatAreNotAllowed(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{ExtraConfig: "federation: {allow_servers: [good.example]}\n"})
	room := hs.Register(t, "alice").CreateRoom(json{"preset": "public_chat", "visibility": "public"})
	peer := n.NewPeer()
	for path, want := range map[string]struct {
		status int
		code   string
	}{
		"/_matrix/federation/v1/version":                                           {200, ""},
		"/_matrix/key/v2/server":                                                   {200, ""},
		"/_matrix/key/v2/query/" + string(peer.Name):                               {200, ""}, // an empty list
		"/_matrix/federation/v1/openid/userinfo?access_token=x":                    {401, "M_UNKNOWN_TOKEN"},
		"/_matrix/federation/v1/nothing":                                           {404, "M_UNRECOGNIZED"},
		"/_matrix/federation/v1/publicRooms":                                       {403, "M_FORBIDDEN"},
		"/_matrix/federation/v1/event/$x":                                          {403, "M_FORBIDDEN"},
		fed("v1", "make_join", room, "@x:"+string(peer.Name)) + "?ver=12":          {403, "M_FORBIDDEN"},
		fed("v1", "hierarchy", room):                                               {403, "M_FORBIDDEN"},
		fed("v1", "query/profile") + "?user_id=@alice:" + url.QueryEscape(hs.Name): {403, "M_FORBIDDEN"},
	} {
		if status, res := askAs(t, peer, hs, "GET", path, nil); status != want.status || want.code != "" && res["errcode"] != want.code {
			t.Errorf("%s: %d %v, want %d %s", path, status, res, want.status, want.code)
		}
	}
	if asked := peer.Asked(); len(asked) > 0 {
		t.Errorf("it was asked for %q", asked)
	}
}
