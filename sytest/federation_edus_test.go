package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/sytest/homeserver"
)

// edus sends EDUs of a peer in one transaction.
func edus(t *testing.T, p *homeserver.Peer, hs *homeserver.Server, list ...json) {
	t.Helper()
	status, res := askAs(t, p, hs, "PUT", fed("v1", "send", fmt.Sprint("edus", nextNumber())), json{"origin": p.Name, "origin_server_ts": 1, "pdus": []any{}, "edus": list})
	if status != 200 || len(res["pdus"].(json)) > 0 {
		t.Fatalf("%d %v", status, res)
	}
}

func edu(kind string, content json) json { return json{"edu_type": kind, "content": content} }

// Every kind of EDU with every member that the specification gives it, and what must not count: users of other servers, strangers to the
// room, servers that its access list excludes, and what is malformed beside what is not.
func TestEDUsOfOtherServers(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{Host: "127.0.0.1"})
	alice := hs.Register(t, "alice")
	peer, other := n.NewPeer(), n.NewPeer()
	room, shut := alice.CreateRoom(json{"preset": "public_chat"}), alice.CreateRoom(json{"preset": "public_chat"})
	joined := peer.Join(hs, room, "mallory")
	peer.Join(hs, shut, "mallory")
	said, shutSaid := alice.Say(room, "read this"), alice.Say(shut, "read this")
	alice.SetState(shut, "m.room.server_acl", "", json{"allow": []string{"*"}, "deny": []string{"localhost"}})
	me, stranger, foreign := string(joined.User), "@stranger:"+string(peer.Name), "@x:"+string(other.Name)
	alice.Sync(0)
	ephemeral := func(res json, in, kind string) []json {
		var out []json
		for _, e := range homeserver.Events(res, "rooms", "join", in, "ephemeral", "events") {
			if e["type"] == kind {
				out = append(out, e["content"].(json))
			}
		}
		return out
	}

	t.Run("typing", func(t *testing.T) {
		notice := func(room, user string, on any) json {
			return edu("m.typing", json{"room_id": room, "user_id": user, "typing": on})
		}
		edus(t, peer, hs, notice(shut, me, true), notice(room, stranger, true), notice(room, foreign, true), notice(room, alice.UserID, true), notice("!none:x", me, true), notice(room, me, "yes"), notice(room, me, true))
		typing := func(want string) {
			alice.SyncUntil(want, func(res json) bool {
				if got := ephemeral(res, shut, "m.typing"); got != nil {
					t.Errorf("typing in a room that excludes the server: %v", got)
				}
				for _, c := range ephemeral(res, room, "m.typing") {
					got := fmt.Sprint(c["user_ids"])
					if got != "["+me+"]" && got != "[]" {
						t.Errorf("typing: %v", got)
					}
					if got == want {
						return true
					}
				}
				return false
			})
		}
		typing("[" + me + "]")
		edus(t, peer, hs, notice(room, me, false))
		typing("[]")
	})

	t.Run("receipts", func(t *testing.T) {
		receipt := func(event any, data json) json { return json{"event_ids": event, "data": data} }
		edus(t, peer, hs,
			edu("m.receipt", json{shut: json{"m.read": json{me: receipt([]any{shutSaid}, json{"ts": 5})}}}),
			edu("m.receipt", json{room: json{"m.read": json{foreign: receipt([]any{said}, json{"ts": 5}), stranger: receipt([]any{said}, json{"ts": 5}), alice.UserID: receipt([]any{said}, json{"ts": 5})}}}),
			edu("m.receipt", json{room: json{"m.read": json{me: receipt([]any{said, said}, json{"ts": 6})}}}),
			edu("m.receipt", json{room: json{"m.read": json{me: receipt([]any{}, json{"ts": 6})}}}),
			edu("m.receipt", json{room: json{"m.read.private": json{me: receipt([]any{said}, json{"ts": 6})}, "m.fully_read": json{me: receipt([]any{said}, json{"ts": 6})}}}),
			edu("m.receipt", json{room: json{"m.read": json{me: receipt([]any{said}, json{"ts": 6, "thread_id": "nonsense"})}}}),
			edu("m.receipt", json{room: json{"m.read": json{me: receipt([]any{said}, json{"ts": 7, "thread_id": "main", "more": 1})}, "org.example.seen": json{me: receipt([]any{said}, json{"ts": 6})}}}),
		)
		alice.SyncUntil("the receipt", func(res json) bool {
			if got := ephemeral(res, shut, "m.receipt"); got != nil {
				t.Errorf("receipts in a room that excludes the server: %v", got)
			}
			for _, c := range ephemeral(res, room, "m.receipt") {
				got, err := stdjson.Marshal(c)
				want := fmt.Sprintf(`{%q:{"m.read":{%q:{"thread_id":"main","ts":7}}}}`, said, me)
				if err != nil || string(got) != want {
					t.Errorf("receipts: %s, want %s", got, want)
				}
				return true
			}
			return false
		})
	})

	t.Run("presence", func(t *testing.T) {
		edus(t, peer, hs, edu("m.presence", json{"push": []any{
			json{"user_id": foreign, "presence": "online", "last_active_ago": 1}, json{"user_id": alice.UserID, "presence": "unavailable", "status_msg": "forged", "last_active_ago": 1},
			json{"user_id": me, "presence": "nonsense", "last_active_ago": 1}, json{"user_id": "x", "presence": "online"},
			json{"user_id": me, "presence": "online", "status_msg": "Making cupcakes", "last_active_ago": 60000, "currently_active": true, "more": json{}},
		}}))
		alice.SyncUntil("the presence", func(res json) bool {
			for _, e := range homeserver.Events(res, "presence", "events") {
				c := e["content"].(json)
				ago, _ := c["last_active_ago"].(float64)
				switch e["sender"] {
				case alice.UserID:
					if c["status_msg"] == "forged" {
						t.Errorf("alice: %v", e)
					}
				case me:
					if c["presence"] != "online" || c["status_msg"] != "Making cupcakes" || c["currently_active"] != true || ago < 59000 || ago > 120000 {
						t.Errorf("mallory: %v", e)
					}
					return true
				default:
					t.Errorf("a presence: %v", e)
				}
			}
			return false
		})
	})

	t.Run("to-device messages", func(t *testing.T) {
		message := func(sender, id string, messages any) json {
			return edu("m.direct_to_device", json{"sender": sender, "type": "org.example.ping", "message_id": id, "messages": messages})
		}
		to := func(device, text string) json { return json{alice.UserID: json{device: json{"text": text}}} }
		edus(t, peer, hs, message(foreign, "1", to("*", "forged")), message(alice.UserID, "2", to("*", "forged")), message(me, "", to("*", "without an ID")), message(me, strings.Repeat("é", 33), to("*", "with a long ID")),
			message(me, "3", json{foreign: json{"*": json{"text": "for others"}}}), message(me, "4", to("OTHER", "for another device")), message(me, "5", to(alice.DeviceID, "one")), message(me, strings.Repeat("é", 32), to("*", "two")),
			message(me, "5", to(alice.DeviceID, "again")), message(me, "6", to(alice.DeviceID, "three")))
		var got []string
		alice.SyncUntil("the messages", func(res json) bool {
			for _, e := range homeserver.Events(res, "to_device", "events") {
				if e["sender"] != me || e["type"] != "org.example.ping" {
					t.Errorf("%v", e)
				}
				got = append(got, fmt.Sprint(homeserver.Dig(e, "content", "text")))
			}
			return len(got) >= 3
		})
		if fmt.Sprint(got) != "[one two three]" {
			t.Errorf("%q", got)
		}
	})

	t.Run("devices", func(t *testing.T) { receiveDevices(t, hs, alice, peer, me, foreign) })
}

// receiveDevices follows a device list: from the first look at it, by updates, over a gap, to cross-signing keys.
func receiveDevices(t *testing.T, hs *homeserver.Server, alice *homeserver.Client, peer *homeserver.Peer, me, foreign string) {
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	keys := func(device string) json {
		return json{"user_id": me, "device_id": device, "algorithms": []any{"m.olm.v1.curve25519-aes-sha2"}, "keys": json{"ed25519:" + device: key}, "signatures": json{me: json{"ed25519:" + device: strings.Repeat("A", 86)}}}
	}
	fetches := func() (count int) {
		for _, path := range peer.Asked() {
			if strings.Contains(path, "/user/devices/") {
				count++
			}
		}
		return count
	}
	list := make(chan json, 1)
	answer := json{"user_id": me, "stream_id": 10, "devices": []any{json{"device_id": "ONE", "device_display_name": "First", "keys": keys("ONE")}}}
	list <- answer
	peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/user/devices/") {
			return false
		}
		now := <-list
		list <- now
		_, _ = w.Write(encode(t, now))
		return true
	}
	now := func(list chan json, next json) { <-list; list <- next }
	devices := func() string {
		t.Helper()
		res := alice.Must("POST", "/v3/keys/query", json{"device_keys": json{me: []any{}}})
		out := json{}
		for id, d := range homeserver.Dig(res, "device_keys", me).(json) {
			out[id] = homeserver.Dig(d, "unsigned", "device_display_name")
		}
		if m := homeserver.Dig(res, "master_keys", me, "usage"); m != nil {
			out["master"] = true
		}
		return string(encode(t, out))
	}
	changed := func() {
		t.Helper()
		alice.SyncUntil("a changed device list", func(res json) bool {
			for _, user := range asList(homeserver.Dig(res, "device_lists", "changed")) {
				if user == foreign {
					t.Errorf("%s is not %s's to change", foreign, peer.Name)
				}
				if user == me {
					return true
				}
			}
			return false
		})
	}
	expect := func(what, want string, wantFetches int) {
		t.Helper()
		until := time.Now().Add(10 * time.Second)
		got := devices()
		for ; got != want && time.Now().Before(until); got = devices() { // a list may be fetched in the background
			time.Sleep(10 * time.Millisecond)
		}
		if got != want || fetches() != wantFetches {
			t.Errorf("%s: %s after %d fetches, want %s after %d", what, got, fetches(), want, wantFetches)
		}
	}
	update := func(user, device string, stream int, prev []any, more json) json {
		content := json{"user_id": user, "device_id": device, "stream_id": stream, "prev_id": prev}
		for k, v := range more {
			content[k] = v
		}
		return edu("m.device_list_update", content)
	}
	expect("at first", `{"ONE":"First"}`, 1)
	edus(t, peer, hs, update(foreign, "X", 1, []any{}, nil), update(me, "TWO", 11, []any{10}, json{"device_display_name": "Second", "keys": keys("TWO")}))
	changed()
	expect("a new device", `{"ONE":"First","TWO":"Second"}`, 1)
	edus(t, peer, hs, update(me, "ONE", 12, []any{11}, json{"device_display_name": "Renamed", "keys": keys("ONE")}), update(me, "TWO", 13, []any{12}, json{"deleted": true}))
	changed()
	expect("a name, and a device that went", `{"ONE":"Renamed"}`, 1)
	// The keys of another device are nobody's to give.
	edus(t, peer, hs, update(me, "ONE", 14, []any{13}, json{"keys": keys("TWO")}))
	expect("keys of another device", `{"ONE":"Renamed"}`, 1)
	// Something before it was missed: the list is fetched.
	now(list, json{"user_id": me, "stream_id": 20, "devices": []any{json{"device_id": "THREE", "device_display_name": "Third", "keys": keys("THREE")}}})
	edus(t, peer, hs, update(me, "THREE", 20, []any{19}, json{"device_display_name": "Third", "keys": keys("THREE")}))
	changed()
	expect("after a gap", `{"THREE":"Third"}`, 2)
	edus(t, peer, hs, update(me, "FOUR", 21, []any{20}, json{"keys": keys("FOUR")}))
	changed()
	expect("after that", `{"FOUR":null,"THREE":"Third"}`, 2)

	cross, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	public := signing.EncodeBase64(cross.Public())
	master, err := canonicaljson.Marshal(json{"user_id": me, "usage": []any{"master"}, "keys": json{"ed25519:" + public: public}})
	if err != nil {
		t.Fatal(err)
	}
	edus(t, peer, hs, edu("m.signing_key_update", json{"user_id": foreign, "master_key": stdjson.RawMessage(master)}), edu("m.signing_key_update", json{"user_id": me, "master_key": stdjson.RawMessage(master)}))
	changed()
	expect("a master key", `{"FOUR":null,"THREE":"Third","master":true}`, 2)
}

func asList(v any) []any { list, _ := v.([]any); return list }
