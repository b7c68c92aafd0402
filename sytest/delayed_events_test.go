package sytest

import (
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

const delayedEvents = "/unstable/org.matrix.msc4140/delayed_events"

// A client's last will outlives the client, its session and a power cut.
func TestDelayedEvents(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		bob.Sync(0)
		will := func(c *homeserver.Client, path, delay string, body any) string {
			id, _ := c.Must("PUT", "/v3/rooms"+homeserver.Path(room)+path+"?org.matrix.msc4140.delay="+delay, body)["delay_id"].(string)
			return id
		}
		lost := will(alice, "/send/m.test/1", "300", json{"n": "lost"})
		if again := will(alice, "/send/m.test/1", "300", nil); again != lost {
			t.Errorf("a repeated request: %s, before %s", again, lost)
		}
		kept, _ := alice.Must("PUT", "/unstable/org.matrix.msc4140/rooms"+homeserver.Path(room, "delayed_event", "m.test", "2"), json{"delay_ms": 3_600_000, "state_key": "k", "content": json{"n": "kept"}})["delay_id"].(string)
		gone := will(alice, "/state/m.test/gone", "3600000", json{})
		hs.Kill()
		hs.Start()
		sent := bob.SyncUntil("the event that became due", func(res json) bool { return find(res, room, "lost") != nil })
		if u := homeserver.Dig(find(sent, room, "lost"), "unsigned"); homeserver.Dig(u, "org.matrix.msc4140.delay_id") != nil {
			t.Errorf("somebody else is told the ID: %v", u)
		}
		own := alice.SyncUntil("the event that became due", func(res json) bool { return find(res, room, "lost") != nil })
		if u := homeserver.Dig(find(own, room, "lost"), "unsigned"); homeserver.Dig(u, "org.matrix.msc4140.delay_id") != lost {
			t.Errorf("the sender is not told the ID: %v", u)
		}

		// Who knows the ID needs no session.
		media := hs.Anonymous(t)
		media.Must("POST", "/v1/delayed_events"+homeserver.Path(gone, "restart"), nil)
		media.Must("POST", delayedEvents+homeserver.Path(gone), json{"action": "cancel"})
		media.Refused("POST", delayedEvents+homeserver.Path(gone, "send"), nil, 409, "M_UNKNOWN")
		media.Refused("POST", delayedEvents+homeserver.Path(kept), json{}, 400, "M_MISSING_PARAM")
		media.Refused("POST", delayedEvents+homeserver.Path(kept), json{"action": "x"}, 400, "M_INVALID_PARAM")
		media.Refused("POST", delayedEvents+homeserver.Path("x", "send"), nil, 404, "M_NOT_FOUND")
		media.Refused("GET", delayedEvents+homeserver.Path(kept), nil, 401, "M_MISSING_TOKEN")
		list := homeserver.Events(alice.Must("GET", delayedEvents, nil), "delayed_events")
		if len(list) != 1 || list[0]["delay_id"] != kept || list[0]["state_key"] != "k" || list[0]["delay_ms"] != 3.6e6 || homeserver.Dig(list[0], "content", "n") != "kept" {
			t.Errorf("what is scheduled: %v", list)
		}
		one := alice.Must("GET", "/v1/delayed_events"+homeserver.Path(lost), nil)
		if id, _ := homeserver.Dig(one, "finalised", "event_id").(string); id != find(own, room, "lost")["event_id"] {
			t.Errorf("what became of the first: %v", one)
		}
		bob.Refused("GET", delayedEvents+homeserver.Path(kept), nil, 404, "M_NOT_FOUND")
		media.Must("POST", delayedEvents+homeserver.Path(kept, "send"), nil)
		bob.SyncUntil("the event sent by hand", func(res json) bool { return find(res, room, "kept") != nil })

		// Limits, in the form that clients look for.
		path := "/v3/rooms" + homeserver.Path(room) + "/send/m.test/3?org.matrix.msc4140.delay="
		if res := alice.Refused("PUT", path+"86400001", json{}, 400, "M_UNKNOWN"); res["org.matrix.msc4140.errcode"] != "M_MAX_DELAY_EXCEEDED" || res["org.matrix.msc4140.max_delay"] != 8.64e7 {
			t.Errorf("too far ahead: %v", res)
		}
		alice.Refused("PUT", path+"0", json{}, 400, "M_INVALID_PARAM")
		alice.Refused("PUT", path+"x", json{}, 400, "M_INVALID_PARAM")
		alice.Refused("PUT", path+"5", "[]", 400, "M_BAD_JSON")
		alice.Refused("PUT", "/v3/rooms"+homeserver.Path(room, "delayed_event", "m.test", "4"), json{"content": json{}}, 400, "M_MISSING_PARAM")
		alice.Refused("PUT", "/v3/rooms"+homeserver.Path(room, "delayed_event", "m.test", "4"), json{"delay_ms": 86400001, "content": json{}}, 403, "M_FORBIDDEN")

		// Nobody speaks for a closed account.
		dead := will(bob, "/send/m.test/5", "3600000", json{})
		bob.Must("POST", "/v3/account/deactivate", json{"auth": json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": bob.UserID}, "password": homeserver.Password}})
		media.Refused("POST", delayedEvents+homeserver.Path(dead, "send"), nil, 404, "M_NOT_FOUND")
	})
}

// find is the event of a room's timeline with this n in its content, nil if there is none.
func find(res json, room, n string) json {
	for _, e := range homeserver.Timeline(res, room) {
		if homeserver.Dig(e, "content", "n") == n {
			return e
		}
	}
	return nil
}

// Plaintext that may not be sent is not stored until then either.
func TestDelayedPlaintext(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{ExtraConfig: "privacy: {encryption: required}\n"})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{})
	const secret = "the eagle will land"
	res := alice.Refused("PUT", "/v3/rooms"+homeserver.Path(room)+"/send/m.room.message/1?org.matrix.msc4140.delay=60000", json{"msgtype": "m.text", "body": secret}, 403, "M_FORBIDDEN")
	if msg, _ := res["error"].(string); !strings.Contains(msg, "encrypt") {
		t.Errorf("the refusal does not say what to do: %q", msg)
	}
	if containsBytes(t, hs.DataDir(), secret) {
		t.Error("the plaintext is on disk")
	}
	began := time.Now()
	key := "_" + alice.UserID + "_DEVICE"
	alice.Must("PUT", "/v3/rooms"+homeserver.Path(room)+"/state/org.matrix.msc3401.call.member"+homeserver.Path(key)+"?org.matrix.msc4140.delay=200", json{})
	alice.SyncUntil("the end of the call's membership", func(res json) bool {
		for _, e := range homeserver.Timeline(res, room) {
			if e["state_key"] == key {
				return true
			}
		}
		return false
	})
	if took := time.Since(began); took < 200*time.Millisecond {
		t.Errorf("sent after %v", took)
	}
}
