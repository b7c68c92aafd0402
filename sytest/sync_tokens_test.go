package sytest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// A token means the same after the server was killed and started again, and what had not been acknowledged comes once more.
func TestSyncTokensOutliveRestarts(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		bob.SyncUntilEvent(room, alice.Say(room, "before"))
		var sent []any
		for i := range 3 {
			sent = append(sent, alice.Say(room, fmt.Sprint("after ", i)))
		}
		alice.Must("PUT", "/v3/sendToDevice/org.example.hello/1", json{"messages": json{bob.UserID: json{"*": json{"n": 1}}}})
		alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "account_data", "org.example.x"), json{"n": 1})
		bob.Must("PUT", "/v3/user"+homeserver.Path(bob.UserID, "account_data", "org.example.x"), json{"n": 2})
		hs.Kill()
		hs.Start()
		token := bob.Token()
		res := bob.Sync(time.Second)
		var got []any
		for _, e := range homeserver.Timeline(res, room) {
			got = append(got, e["event_id"])
		}
		if !slices.Equal(got, sent) || homeserver.Dig(res, "rooms", "join", room, "timeline", "limited") != false {
			t.Errorf("events %v, want %v: %v", got, sent, res)
		}
		if data := homeserver.Events(res, "account_data", "events"); len(data) != 1 || homeserver.Dig(data[0], "content", "n") != float64(2) {
			t.Errorf("account data: %v", data)
		}
		if len(homeserver.Events(res, "to_device", "events")) != 1 {
			t.Errorf("to-device messages: %v", res["to_device"])
		}
		// The response was lost on its way: the same token gives the same again.
		next := bob.Token()
		bob.SetToken(token)
		if res := bob.Sync(time.Second); len(homeserver.Events(res, "to_device", "events")) != 1 || len(homeserver.Timeline(res, room)) != 3 {
			t.Errorf("asked again: %v", res)
		}
		// Coming back with the next token acknowledges, also over another restart.
		bob.SetToken(next)
		bob.Sync(0)
		hs.Kill()
		hs.Start()
		bob.SetToken(token)
		if res := bob.Sync(time.Second); res["to_device"] != nil || len(homeserver.Timeline(res, room)) != 3 {
			t.Errorf("acknowledged, and yet: %v", res)
		}
	})
}

// The device that sent an event is told its transaction, no other.
func TestSyncTransactionIDs(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	other := alice.Login()
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	id, _ := alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", "my-txn"), json{"msgtype": "m.text", "body": "x"})["event_id"].(string)
	for _, c := range []struct {
		who  *homeserver.Client
		want any
	}{{alice, "my-txn"}, {other, nil}, {bob, nil}} {
		ev := c.who.SyncUntilEvent(room, id)
		if got := homeserver.Dig(ev, "unsigned", "transaction_id"); got != c.want {
			t.Errorf("%s on %s is told transaction %v", c.who.UserID, c.who.DeviceID, got)
		}
	}
}

// spec: client-server-api#stripped-state
func TestSyncStrippedState(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob, carol := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "carol")
	room := alice.CreateRoom(json{"preset": "private_chat", "name": "Quiet room", "topic": "Nothing", "initial_state": []json{{"type": "m.room.join_rules", "content": json{"join_rule": "knock"}}}})
	alice.Invite(room, bob.UserID)
	carol.Must("POST", "/v3/knock"+homeserver.Path(room), json{"reason": "please"})
	for section, who := range map[string]*homeserver.Client{"invite": bob, "knock": carol} {
		res := who.SyncUntil(section, func(res json) bool { return homeserver.Dig(res, "rooms", section, room) != nil })
		found := map[any]bool{}
		for _, ev := range homeserver.Events(res, "rooms", section, room, section+"_state", "events") {
			found[ev["type"]] = true
			if ev["type"] == "m.room.member" && ev["state_key"] == who.UserID && homeserver.Dig(ev, "content", "membership") != section {
				t.Errorf("%s: own membership %v", section, ev)
			}
			for key := range ev {
				if !slices.Contains([]string{"content", "sender", "state_key", "type"}, key) {
					t.Errorf("%s: %s has %s", section, ev["type"], key)
				}
			}
		}
		for _, want := range []string{"m.room.create", "m.room.name", "m.room.topic", "m.room.join_rules", "m.room.member"} {
			if !found[want] {
				t.Errorf("%s: no %s in %v", section, want, found)
			}
		}
		if res := who.Login().Sync(0); homeserver.Dig(res, "rooms", section, room) == nil {
			t.Errorf("%s: not in an initial sync", section)
		}
	}
}

// spec: cs/sync device_one_time_keys_count
func TestSyncKeyCounts(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	count := func() any { return homeserver.Dig(bob.Sync(0), "device_one_time_keys_count", "signed_curve25519") }
	unused := func() any { return bob.Sync(0)["device_unused_fallback_key_types"] }
	if got := count(); got != float64(0) {
		t.Errorf("no keys are %v", got)
	}
	key := func(n int) json {
		return json{"key": fmt.Sprintf("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA%02d", n), "signatures": json{}}
	}
	keys := json{}
	for i := range 2 {
		keys[fmt.Sprint("signed_curve25519:", i)] = key(i)
	}
	fallback := key(9)
	fallback["fallback"] = true
	bob.Must("POST", "/v3/keys/upload", json{"one_time_keys": keys, "fallback_keys": json{"signed_curve25519:f": fallback}})
	if got := count(); got != float64(2) {
		t.Errorf("two keys are %v", got)
	}
	if got := fmt.Sprint(unused()); got != "[signed_curve25519]" {
		t.Errorf("unused fallback keys %s", got)
	}
	for want := range 3 {
		alice.Must("POST", "/v3/keys/claim", json{"one_time_keys": json{bob.UserID: json{bob.DeviceID: "signed_curve25519"}}})
		if got := count(); got != float64(max(0, 1-want)) {
			t.Errorf("after %d claims %v are left", want+1, got)
		}
	}
	if got := fmt.Sprint(unused()); got != "[]" {
		t.Errorf("the fallback key was claimed, and yet %s", got)
	}
}
