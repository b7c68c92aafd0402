package sytest

import (
	"net/url"
	"slices"
	"strconv"
	"testing"

	"hanok/sytest/homeserver"
)

// What the endpoints of rooms answer to those who may not, to what is not there, and to parameters out of range, as the pages of the
// specification have it.
func TestRoomEndpointErrors(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob, eve := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "eve")
	room := alice.CreateRoom(json{"preset": "private_chat"})
	said := alice.Say(room, "hello")
	const nowhere, nothing = "!nowhere:example.org", "$nothing"
	banned := alice.CreateRoom(json{"preset": "public_chat"})
	alice.Must("POST", "/v3"+roomPath(banned, "ban"), json{"user_id": bob.UserID})
	in := func(parts ...string) string { return "/v3" + roomPath(room, parts...) }
	v1 := func(parts ...string) string { return "/v1" + roomPath(room, parts...) }
	for _, c := range []struct {
		who          *homeserver.Client
		method, path string
		body         any
		status       int
		code         string
	}{
		// Those who are not in the room.
		{eve, "GET", in("messages") + "?dir=b", nil, 403, "M_FORBIDDEN"},
		{eve, "GET", in("members"), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", in("joined_members"), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", in("state"), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", in("state", "m.room.name"), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", in("event", said), nil, 404, "M_NOT_FOUND"},
		{eve, "GET", in("context", said), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", v1("relations", said), nil, 404, "M_NOT_FOUND"},
		{eve, "GET", v1("threads"), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", v1("hierarchy"), nil, 403, "M_FORBIDDEN"},
		{eve, "GET", v1("timestamp_to_event") + "?ts=1&dir=f", nil, 403, "M_FORBIDDEN"},
		{eve, "GET", "/v1/room_summary" + homeserver.Path(room), nil, 404, "M_NOT_FOUND"},
		{eve, "PUT", in("typing", eve.UserID), json{"typing": true}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("receipt", "m.read", said), json{}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("read_markers"), json{"m.read": said}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("invite"), json{"user_id": bob.UserID}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("kick"), json{"user_id": alice.UserID}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("ban"), json{"user_id": alice.UserID}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("unban"), json{"user_id": alice.UserID}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("join"), json{}, 403, "M_FORBIDDEN"},
		{eve, "POST", "/v3/knock" + homeserver.Path(room), json{}, 403, "M_FORBIDDEN"},
		{eve, "PUT", in("redact", said, "t"), json{}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("upgrade"), json{"new_version": "11"}, 403, "M_FORBIDDEN"},
		{eve, "POST", in("report", said), json{"reason": "x"}, 404, "M_NOT_FOUND"},
		{eve, "PUT", in("send", "m.room.message", "t"), json{"body": "x", "msgtype": "m.text"}, 403, "M_FORBIDDEN"},
		{eve, "PUT", in("state", "m.room.name"), json{"name": "x"}, 403, "M_FORBIDDEN"},
		{eve, "GET", in("initialSync"), nil, 403, "M_FORBIDDEN"},
		{bob, "POST", "/v3" + roomPath(banned, "join"), json{}, 403, "M_FORBIDDEN"},
		{bob, "POST", "/v3/knock" + homeserver.Path(banned), json{}, 403, "M_FORBIDDEN"},
		{alice, "POST", "/v3" + roomPath(banned, "invite"), json{"user_id": bob.UserID}, 403, "M_FORBIDDEN"},
		{alice, "POST", in("kick"), json{"user_id": eve.UserID}, 403, "M_FORBIDDEN"},
		{alice, "POST", in("unban"), json{"user_id": eve.UserID}, 403, "M_FORBIDDEN"},
		{alice, "POST", in("forget"), json{}, 400, "M_UNKNOWN"},
		// What is not there.
		{alice, "GET", in("event", nothing), nil, 404, "M_NOT_FOUND"},
		{alice, "GET", in("context", nothing), nil, 404, "M_NOT_FOUND"},
		{alice, "GET", in("state", "m.room.topic"), nil, 404, "M_NOT_FOUND"},
		{alice, "GET", v1("relations", nothing), nil, 404, "M_NOT_FOUND"},
		{alice, "GET", v1("timestamp_to_event") + "?ts=1&dir=b", nil, 404, "M_NOT_FOUND"},
		{alice, "POST", in("report", nothing), json{"reason": "x"}, 404, "M_NOT_FOUND"},
		{alice, "PUT", "/v3/directory/list/room" + homeserver.Path(nowhere), json{"visibility": "public"}, 404, "M_NOT_FOUND"},
		{alice, "GET", "/v3/directory/list/room" + homeserver.Path(nowhere), nil, 404, "M_NOT_FOUND"},
		{alice, "GET", "/v3/directory/room/%23nobody:" + hs.Name, nil, 404, "M_NOT_FOUND"},
		{alice, "GET", "/v1/room_summary" + homeserver.Path(nowhere), nil, 404, "M_NOT_FOUND"},
		{alice, "GET", "/v3" + roomPath(nowhere, "messages") + "?dir=b", nil, 403, "M_FORBIDDEN"},
		{alice, "GET", "/v3" + roomPath(nowhere, "state"), nil, 403, "M_FORBIDDEN"},
		// Parameters.
		{alice, "GET", in("messages") + "?dir=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("messages") + "?dir=b&limit=-1", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("messages") + "?dir=b&limit=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("messages") + "?dir=b&from=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("messages") + "?dir=b&to=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("members") + "?membership=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("members") + "?not_membership=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("members") + "?at=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", in("state", "m.room.create") + "?format=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("threads") + "?include=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("threads") + "?from=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("relations", said) + "?from=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("relations", said) + "?dir=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("relations", said) + "?recurse=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("hierarchy") + "?from=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("hierarchy") + "?max_depth=-1", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("hierarchy") + "?limit=0", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("hierarchy") + "?suggested_only=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", v1("timestamp_to_event") + "?dir=f", nil, 400, "M_MISSING_PARAM"},
		{alice, "GET", v1("timestamp_to_event") + "?ts=1", nil, 400, "M_MISSING_PARAM"},
		{alice, "GET", v1("timestamp_to_event") + "?ts=1&dir=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/notifications?limit=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/notifications?from=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/publicRooms?since=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/publicRooms?limit=-1", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/publicRooms?server=" + url.QueryEscape("no name"), nil, 400, "M_INVALID_PARAM"},
		{alice, "POST", "/v3/publicRooms", json{"limit": -1}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("receipt", "m.unknown", said), json{}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("receipt", "m.read", said), json{"thread_id": ""}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("receipt", "m.read", said), json{"thread_id": 1}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("receipt", "m.fully_read", said), json{"thread_id": "main"}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("receipt", "m.read", said), json{"thread_id": said + "x"}, 400, "M_INVALID_PARAM"},
		{alice, "PUT", in("typing", bob.UserID), json{"typing": true}, 403, "M_FORBIDDEN"},
		{alice, "PUT", in("typing", alice.UserID), json{}, 400, "M_MISSING_PARAM"},
		{alice, "POST", in("invite"), json{}, 400, "M_MISSING_PARAM"},
		{alice, "POST", in("invite"), json{"user_id": "x"}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("kick"), json{}, 400, "M_MISSING_PARAM"},
		{alice, "POST", in("ban"), json{"user_id": "x"}, 400, "M_INVALID_PARAM"},
		{alice, "POST", in("upgrade"), json{"new_version": "none"}, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{alice, "POST", in("upgrade"), json{}, 400, "M_MISSING_PARAM"},
		{alice, "POST", "/v3/createRoom", json{"room_version": "none"}, 400, "M_UNSUPPORTED_ROOM_VERSION"},
		{alice, "POST", "/v3/createRoom", json{"preset": "none"}, 400, "M_INVALID_PARAM"},
		{alice, "POST", "/v3/createRoom", json{"visibility": "none"}, 400, "M_BAD_JSON"},
		{alice, "POST", "/v3/createRoom", json{"name": 1}, 400, "M_BAD_JSON"},
		{alice, "POST", "/v3/createRoom", json{"invite": []string{"x"}}, 400, "M_INVALID_PARAM"},
		{alice, "POST", "/v3/createRoom", json{"initial_state": []json{{"type": "m.room.power_levels", "content": json{"users": json{"x": 1}}}}}, 400, "M_INVALID_ROOM_STATE"},
		{alice, "POST", "/v3/search", json{}, 400, "M_MISSING_PARAM"},
		{alice, "PUT", in("state", "m.room.canonical_alias"), json{"alias": "x"}, 400, "M_INVALID_PARAM"},
		{alice, "PUT", in("state", "m.room.canonical_alias"), json{"alias": "#nobody:" + hs.Name}, 400, "M_BAD_ALIAS"},
		{alice, "GET", "/v3/sync?timeout=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/sync?full_state=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/sync?since=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/sync?set_presence=x", nil, 400, "M_INVALID_PARAM"},
		{alice, "GET", "/v3/sync?filter=99999", nil, 404, "M_NOT_FOUND"},
	} {
		if status, res := c.who.Do(c.method, c.path, c.body); status != c.status || res["errcode"] != c.code {
			t.Errorf("%s %s %v as %s: %d %v, want %d %s", c.method, c.path, c.body, c.who.UserID, status, res, c.status, c.code)
		}
	}
	// A room that all may read is none of these.
	open := alice.CreateRoom(json{"preset": "public_chat", "initial_state": []json{{"type": "m.room.history_visibility", "content": json{"history_visibility": "world_readable"}}}})
	for _, path := range []string{"/v3" + roomPath(open, "messages") + "?dir=b", "/v3" + roomPath(open, "state"), "/v3" + roomPath(open, "members"), "/v1" + roomPath(open, "threads"),
		"/v1" + roomPath(open, "hierarchy"), "/v1" + roomPath(open, "timestamp_to_event") + "?dir=f&ts=" + strconv.Itoa(1)} {
		if status, body := eve.Raw("GET", path, nil); status != 200 {
			t.Errorf("%s of a room that all may read: %d %s", path, status, body)
		}
	}
}

// membership and not_membership together select what either does.
func TestMembersOfKinds(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob, carol, dave := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "carol"), hs.Register(t, "dave")
	room := alice.CreateRoom(json{"preset": "public_chat", "invite": []string{carol.UserID}})
	bob.Join(room)
	bob.Must("POST", "/v3"+roomPath(room, "leave"), json{})
	alice.Must("POST", "/v3"+roomPath(room, "ban"), json{"user_id": dave.UserID})
	for query, want := range map[string][]string{
		"":                                       {alice.UserID, bob.UserID, carol.UserID, dave.UserID},
		"?membership=join":                       {alice.UserID},
		"?not_membership=join":                   {bob.UserID, carol.UserID, dave.UserID},
		"?membership=invite&not_membership=join": {bob.UserID, carol.UserID, dave.UserID},
		"?membership=join&not_membership=leave":  {alice.UserID, carol.UserID, dave.UserID},
		"?membership=ban&not_membership=ban":     {alice.UserID, bob.UserID, carol.UserID, dave.UserID},
	} {
		var got []string
		for _, ev := range homeserver.Events(alice.Must("GET", "/v3"+roomPath(room, "members")+query, nil), "chunk") {
			got = append(got, ev["state_key"].(string))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("members%s: %q, want %q", query, got, want)
		}
	}
}
