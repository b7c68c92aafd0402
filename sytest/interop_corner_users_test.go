package sytest

import (
	"bytes"
	"fmt"
	"image"
	"net/http"
	"slices"
	"strings"
	"testing"

	"hanok/sytest/homeserver"
)

func cornersMedia(t *testing.T, c corners) {
	file := picture(t)
	users := c.users(t, "resident")
	ours := func(user *homeserver.Client) bool { return c.others[user.Server()] == nil }
	for _, from := range users {
		uri, _ := from.Must("POST", "/_matrix/media/v3/upload?filename=k%C3%A4tzchen.png", string(file))["content_uri"].(string)
		id := strings.TrimPrefix(uri, "mxc://")
		for _, to := range users {
			if from != to && !ours(from) && !ours(to) {
				continue // what others have from each other is theirs
			}
			status, got := to.Raw("GET", "/v1/media/download/"+id, nil)
			if status != http.StatusOK || !bytes.Equal(got, file) {
				t.Errorf("the file of %s for %s: %d, %d bytes of %d", from.UserID, to.UserID, status, len(got), len(file))
			}
			status, got = to.Raw("GET", "/v1/media/thumbnail/"+id+"?width=96&height=96&method=crop", nil)
			if thumbnail, _, err := image.DecodeConfig(bytes.NewReader(got)); status != http.StatusOK || err != nil || thumbnail.Width != 96 && c.can(to, "thumbnails") {
				t.Errorf("the thumbnail of %s for %s: %d %v %v", from.UserID, to.UserID, status, thumbnail, err)
			}
		}
	}
}

// cornersEphemeral has one after the other type, read, and be busy, and all others told of it.
func cornersEphemeral(t *testing.T, c corners) {
	version, users := c.newest(t), c.users(t, "resident")
	room := users[0].CreateRoom(json{"preset": "public_chat", "room_version": version})
	c.chain(t, room, users)
	for _, user := range users {
		user.Sync(0)
	}
	for i, from := range users {
		id := users[(i+1)%len(users)].Say(room, "read this")
		sees(t, from, room, id)
		from.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", from.UserID), json{"typing": true, "timeout": 20000})
		from.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", "m.read", id), json{})
		from.Must("PUT", "/v3/presence"+homeserver.Path(from.UserID, "status"), json{"presence": "online", "status_msg": "busy with " + id})
		for _, to := range users {
			if to == from {
				continue
			}
			got := map[string]bool{}
			to.SyncUntil("what "+from.UserID+" does", func(res json) bool {
				for _, e := range homeserver.Events(res, "rooms", "join", room, "ephemeral", "events") {
					typing, _ := homeserver.Dig(e, "content", "user_ids").([]any)
					got["typing"] = got["typing"] || slices.Contains(typing, any(from.UserID))
					got["receipt"] = got["receipt"] || homeserver.Dig(e, "content", id, "m.read", from.UserID) != nil
				}
				for _, e := range homeserver.Events(res, "presence", "events") {
					got["presence"] = got["presence"] || e["sender"] == from.UserID && homeserver.Dig(e, "content", "status_msg") == "busy with "+id
				}
				return got["typing"] && got["receipt"] && got["presence"]
			})
		}
		from.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", from.UserID), json{"typing": false})
	}
}

// cornersDevices has a new device of each told to all others, its keys asked for and claimed, and a message sent to it.
func cornersDevices(t *testing.T, c corners) {
	version, users := c.newest(t), c.users(t, "resident")
	room := users[0].CreateRoom(json{"preset": "public_chat", "room_version": version})
	c.chain(t, room, users)
	for _, user := range users {
		user.Sync(0)
	}
	for _, from := range users {
		d := upload(t, from)
		for i, to := range users {
			if to == from {
				continue
			}
			changed(t, to, from.UserID)
			eventually(t, "the keys of "+from.UserID+" for "+to.UserID, func() string {
				res := to.Must("POST", "/v3/keys/query", json{"device_keys": json{from.UserID: []any{}}})
				if homeserver.Dig(res, "device_keys", from.UserID, from.DeviceID, "keys", "ed25519:"+from.DeviceID) != public(d.key) {
					return fmt.Sprint(res)
				}
				return ""
			})
			ping := fmt.Sprint(from.UserID, i)
			to.Must("PUT", "/v3/sendToDevice/org.example.ping"+homeserver.Path(ping), json{"messages": json{from.UserID: json{from.DeviceID: json{"ping": ping}}}})
			from.SyncUntil("a message of "+to.UserID, func(res json) bool {
				return slices.ContainsFunc(homeserver.Events(res, "to_device", "events"), func(e json) bool { return homeserver.Dig(e, "content", "ping") == ping })
			})
		}
		// One of them gets the only one-time key, whoever comes first.
		claimed := 0
		for _, to := range users {
			res := to.Must("POST", "/v3/keys/claim", json{"one_time_keys": json{from.UserID: json{from.DeviceID: "signed_curve25519"}}})
			if key, _ := homeserver.Dig(res, "one_time_keys", from.UserID, from.DeviceID).(json); key["signed_curve25519:AAAA"] != nil {
				claimed++
			}
		}
		if claimed != 1 {
			t.Errorf("the one-time key of %s was claimed %d times", from.UserID, claimed)
		}
	}
}
