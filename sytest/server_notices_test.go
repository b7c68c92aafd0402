package sytest

import (
	"slices"
	"sync"
	"testing"

	"hanok/sytest/homeserver"
)

const sendNotice = "/_synapse/admin/v1/send_server_notice"

// What the operator has to say reaches a user whatever they think of invites, and is plain text on a server that relays ciphertext only.
func TestServerNotices(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{ExtraConfig: "privacy: {encryption: required}\n"})
	root, alice := hs.RegisterAdmin(t, "root"), hs.Register(t, "alice")
	notice := func(text string) json {
		return json{"user_id": alice.UserID, "content": json{"msgtype": "m.server_notice", "server_notice_type": "m.x", "body": text}}
	}
	alice.Refused("POST", sendNotice, notice("x"), 403, "M_FORBIDDEN")
	root.Refused("POST", sendNotice, json{"content": json{}}, 400, "M_MISSING_PARAM")
	root.Refused("POST", sendNotice, json{"user_id": alice.UserID}, 400, "M_MISSING_PARAM")
	root.Refused("POST", sendNotice, json{"user_id": alice.UserID, "content": []int{}}, 400, "M_BAD_JSON")
	root.Refused("POST", sendNotice, json{"user_id": "alice", "content": json{}}, 400, "M_INVALID_PARAM")
	root.Refused("POST", sendNotice, json{"user_id": "@a:elsewhere.test", "content": json{}}, 400, "M_INVALID_PARAM")
	root.Refused("POST", sendNotice, json{"user_id": "@nobody:" + hs.Name, "content": json{}}, 404, "M_NOT_FOUND")
	alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "account_data", "m.invite_permission_config"), json{"default_action": "block"})

	// Several at once make one room.
	var sent sync.WaitGroup
	ids := make([]string, 4)
	for i := range ids {
		sent.Go(func() { ids[i], _ = root.Must("POST", sendNotice, notice("hello"))["event_id"].(string) })
	}
	sent.Wait()
	var room string
	alice.SyncUntil("the invite", func(res json) bool {
		invites, _ := homeserver.Dig(res, "rooms", "invite").(json)
		if len(invites) > 1 {
			t.Errorf("%d rooms for notices", len(invites))
		}
		for id := range invites {
			room = id
		}
		return room != ""
	})
	path := "/v3/rooms" + homeserver.Path(room)
	alice.Refused("POST", path+"/leave", json{}, 403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")
	alice.Refused("PUT", path+"/state/m.room.member"+homeserver.Path(alice.UserID), json{"membership": "leave"}, 403, "M_CANNOT_LEAVE_SERVER_NOTICE_ROOM")
	alice.Join(room)
	var seen []string
	tagged := false
	alice.SyncUntil("the notices", func(res json) bool {
		for _, e := range homeserver.Timeline(res, room) {
			if homeserver.Dig(e, "content", "body") == "hello" {
				seen = append(seen, e["event_id"].(string))
			}
		}
		for _, d := range homeserver.Events(res, "rooms", "join", room, "account_data", "events") {
			tagged = tagged || homeserver.Dig(d, "content", "tags", "m.server_notice") != nil
		}
		return len(seen) >= len(ids)
	})
	slices.Sort(seen)
	slices.Sort(ids)
	if !slices.Equal(seen, ids) || !tagged {
		t.Errorf("saw %v of %v, tagged: %v", seen, ids, tagged)
	}
	alice.Refused("PUT", path+"/send/m.room.message/1", json{"body": "x"}, 403, "M_FORBIDDEN")
	alice.Refused("POST", path+"/invite", json{"user_id": root.UserID}, 403, "M_FORBIDDEN")

	// Whoever leaves is invited again, to the same room, after a restart too.
	alice.Must("POST", path+"/leave", json{})
	hs.Kill()
	hs.Start()
	first, _ := root.Must("PUT", sendNotice+"/1", notice("again"))["event_id"].(string)
	second, _ := root.Must("PUT", sendNotice+"/1", notice("again"))["event_id"].(string)
	if first != second || first == "" {
		t.Errorf("the same notice is sent as %s and %s", first, second)
	}
	alice.SyncUntilInvited(room)
	alice.Join(room)
	alice.SyncUntilEvent(room, first)

	// Nobody else speaks with that voice.
	hs.Anonymous(t).Refused("POST", "/v3/login", json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": "_server"}, "password": ""}, 403, "M_FORBIDDEN")
	alice.Refused("PUT", "/v3/rooms"+homeserver.Path(alice.CreateRoom(json{}))+"/send/m.room.message/1", json{"msgtype": "m.server_notice", "body": "x"}, 403, "M_FORBIDDEN")

	off := homeserver.NewNetwork(t).Start(homeserver.Options{ExtraConfig: "server_notices: {localpart: \"\"}\n"})
	off.RegisterAdmin(t, "root").Refused("POST", sendNotice, notice("x"), 400, "M_UNKNOWN")
}
