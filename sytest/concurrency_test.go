package sytest

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// at runs n calls at once and returns what each gave.
func at[T any](n int, call func(i int) T) []T {
	out := make([]T, n)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			<-start
			out[i] = call(i)
		})
	}
	close(start)
	wg.Wait()
	return out
}

type result struct {
	status int
	body   json
}

func do(c *homeserver.Client, method, path string, body any) result {
	status, out := c.Do(method, path, body)
	return result{status, out}
}

// What must be given to one only is given to one only, however many ask at the same time.
func TestOneOfMany(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob, carol := hs1.Register(t, "alice"), hs1.Register(t, "bob"), hs2.Register(t, "carol")
		const n = 12

		name := fmt.Sprint("race", time.Now().UnixNano())
		count := map[string]int{}
		for _, r := range at(n, func(int) result {
			return do(hs1.Anonymous(t), "POST", "/v3/register", json{"username": name, "password": homeserver.Password, "auth": json{"type": "m.login.dummy"}})
		}) {
			count[fmt.Sprintf("%d %v", r.status, r.body["errcode"])]++
		}
		if count["200 <nil>"] != 1 || count["400 M_USER_IN_USE"] != n-1 {
			t.Errorf("one name registered %d times at once: %v", n, count)
		}

		count = map[string]int{}
		for _, r := range at(n, func(int) result {
			return do(alice, "POST", "/v3/createRoom", json{"room_alias_name": name})
		}) {
			count[fmt.Sprintf("%d %v", r.status, r.body["errcode"])]++
		}
		if count["200 <nil>"] != 1 || count["400 M_ROOM_IN_USE"] != n-1 {
			t.Errorf("rooms of one alias made at once: %v", count)
		}
		room := alice.CreateRoom(json{"preset": "public_chat"})
		count = map[string]int{}
		for _, r := range at(n, func(int) result {
			return do(alice, "PUT", "/v3/directory/room"+homeserver.Path("#"+name+"-2:"+hs1.Name), json{"room_id": room})
		}) {
			count[fmt.Sprintf("%d %v", r.status, r.body["errcode"])]++
		}
		if count["200 <nil>"] != 1 || count["409 M_UNKNOWN"] != n-1 {
			t.Errorf("one alias set at once: %v", count)
		}

		// The same transaction makes one event, the same to-device transaction one message.
		events := map[any]int{}
		for _, r := range at(n, func(int) result {
			return do(alice, "PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", "same"), json{"body": "once"})
		}) {
			events[r.body["event_id"]]++
		}
		if len(events) != 1 || events[nil] != 0 {
			t.Errorf("one transaction at once made %v", events)
		}
		at(n, func(int) result {
			return do(alice, "PUT", "/v3/sendToDevice/org.example.ping/same", json{"messages": json{bob.UserID: json{"*": json{}}, carol.UserID: json{"*": json{}}}})
		})
		for _, c := range []*homeserver.Client{bob, carol} {
			pings := 0
			look := func(res json) bool {
				for _, e := range homeserver.Events(res, "to_device", "events") {
					if e["type"] == "org.example.ping" {
						pings++
					}
				}
				return pings > 0
			}
			c.SyncUntil("a ping", look)
			look(c.Sync(300 * time.Millisecond))
			if pings != 1 {
				t.Errorf("%s got one to-device message %d times", c.UserID, pings)
			}
		}

		// Each one-time key is handed out once, to users of both servers; then the fallback key.
		const keys = 40
		otks := json{}
		for i := range keys {
			otks[fmt.Sprintf("signed_curve25519:AAAA%02d", i)] = json{"key": fmt.Sprintf("key%02d", i), "signatures": json{bob.UserID: json{"ed25519:" + bob.DeviceID: "sig"}}}
		}
		bob.Must("POST", "/v3/keys/upload", json{"one_time_keys": otks, "fallback_keys": json{"signed_curve25519:fallback": json{"key": "fallback", "fallback": true, "signatures": json{}}}})
		given := map[string]int{}
		for _, r := range at(keys+6, func(i int) result {
			who := alice
			if i%3 == 0 {
				who = carol
			}
			return do(who, "POST", "/v3/keys/claim", json{"one_time_keys": json{bob.UserID: json{bob.DeviceID: "signed_curve25519"}}, "timeout": 20000})
		}) {
			one, _ := homeserver.Dig(r.body, "one_time_keys", bob.UserID, bob.DeviceID).(json)
			if len(one) != 1 {
				t.Errorf("a claim gave %d %v", r.status, r.body)
			}
			for id := range one {
				given[id]++
			}
		}
		if given["signed_curve25519:fallback"] != 6 || len(given) != keys+1 {
			t.Errorf("%d keys given, the fallback key %d times: %v", len(given)-1, given["signed_curve25519:fallback"], given)
		}
		for id, times := range given {
			if id != "signed_curve25519:fallback" && times != 1 {
				t.Errorf("%s was given out %d times", id, times)
			}
		}

		// A login token and a refresh token are good for one.
		session := hs1.Anonymous(t).Must("POST", "/v3/login", json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": alice.UserID}, "password": homeserver.Password, "refresh_token": true})
		tokens := map[any]int{}
		for _, r := range at(n, func(int) result {
			return do(hs1.Anonymous(t), "POST", "/v3/refresh", json{"refresh_token": session["refresh_token"]})
		}) {
			if r.status != 200 && r.status != 401 {
				t.Errorf("refresh: %d %v", r.status, r.body)
			}
			tokens[r.body["access_token"]]++
		}
		delete(tokens, nil)
		working := 0
		for token := range tokens {
			c := hs1.Anonymous(t)
			c.AccessToken, _ = token.(string)
			if r := do(c, "GET", "/v3/account/whoami", nil); r.status == 200 {
				working++
			}
		}
		if working > 1 {
			t.Errorf("one refresh token at once gave %d access tokens of which %d work", len(tokens), working)
		}
		auth := json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": bob.UserID}, "password": homeserver.Password}
		token := bob.Must("POST", "/v1/login/get_token", json{"auth": auth})["login_token"]
		good := 0
		for _, r := range at(n, func(int) result {
			return do(hs1.Anonymous(t), "POST", "/v3/login", json{"type": "m.login.token", "token": token})
		}) {
			if r.status == 200 {
				good++
			}
		}
		if good != 1 {
			t.Errorf("one login token was good for %d logins", good)
		}
	})
}

// One user does everything at once, others do things to that user; afterwards all agree on what came of it.
func TestConflictingMemberships(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob, carol := hs1.Register(t, "alice"), hs1.Register(t, "bob"), hs2.Register(t, "carol")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		base := "/v3/rooms" + homeserver.Path(room)
		for round := range 3 {
			for _, victim := range []*homeserver.Client{bob, carol} {
				victim.Do("POST", "/v3/join"+homeserver.Path(room)+"?via="+hs1.Name, json{})
				at(24, func(i int) result {
					var r result
					switch i % 8 {
					case 0:
						r = do(victim, "POST", "/v3/join"+homeserver.Path(room)+"?via="+hs1.Name, json{})
					case 1:
						r = do(victim, "POST", base+"/leave", json{})
					case 2:
						r = do(alice, "POST", base+"/ban", json{"user_id": victim.UserID})
					case 3:
						r = do(alice, "POST", base+"/unban", json{"user_id": victim.UserID})
					case 4:
						r = do(alice, "POST", base+"/kick", json{"user_id": victim.UserID})
					case 5:
						r = do(alice, "POST", base+"/invite", json{"user_id": victim.UserID})
					case 6:
						r = do(victim, "PUT", base+homeserver.Path("send", "m.room.message", fmt.Sprint(round, i)), json{"body": "x"})
					case 7:
						r = do(victim, "PUT", "/v3/profile"+homeserver.Path(victim.UserID, "displayname"), json{"displayname": fmt.Sprint("name", round, i)})
					}
					if r.status == 500 || r.status >= 400 && r.body["errcode"] == nil {
						t.Errorf("%d: %d %v", i%8, r.status, r.body)
					}
					return r
				})
			}
		}
		alice.Must("PUT", base+homeserver.Path("send", "m.room.message", "still"), json{"body": "works"})
		// Both can join again, and then both servers say so. What happened before may take its time to
		// reach the other server, and undo a join that was made without knowing of it.
		for _, victim := range []*homeserver.Client{bob, carol} {
			alice.Do("POST", base+"/unban", json{"user_id": victim.UserID})
		}
		joined := func(who, whom *homeserver.Client) bool {
			_, members := who.Do("GET", base+"/joined_members", nil)
			list, _ := members["joined"].(json)
			return list[whom.UserID] != nil
		}
		deadline := time.Now().Add(20 * time.Second)
		for {
			for _, victim := range []*homeserver.Client{bob, carol} {
				victim.Do("POST", "/v3/join"+homeserver.Path(room)+"?via="+hs1.Name, json{})
			}
			if joined(alice, bob) && joined(alice, carol) && joined(carol, bob) && joined(carol, carol) {
				break
			}
			if time.Now().After(deadline) {
				for _, who := range []*homeserver.Client{alice, carol} {
					for _, whom := range []*homeserver.Client{bob, carol} {
						_, ev := who.Raw("GET", base+homeserver.Path("state", "m.room.member", whom.UserID)+"?format=event", nil)
						t.Logf("%s on %s: %.300s", who.UserID, whom.UserID, ev)
					}
				}
				t.Fatal("the servers do not agree on who is joined")
			}
			time.Sleep(100 * time.Millisecond)
		}
		last := carol.Say(room, "hello")
		alice.SyncUntilEvent(room, last)
	})
}

// Many requests of all kinds by one user at once: no failure of the server's own.
func TestEverythingAtOnce(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		event := alice.Say(room, "root")
		base := "/v3/rooms" + homeserver.Path(room)
		me := "/v3/user" + homeserver.Path(alice.UserID)
		backup, _ := alice.Must("POST", "/v3/room_keys/version", json{"algorithm": "a", "auth_data": json{}})["version"].(string)
		requests := []func(i int) (method, path string, body any){
			func(i int) (string, string, any) {
				return "PUT", base + homeserver.Path("send", "m.room.message", fmt.Sprint("all", i)), json{"body": "x"}
			},
			func(i int) (string, string, any) {
				return "PUT", base + homeserver.Path("state", "m.room.topic", ""), json{"topic": fmt.Sprint(i)}
			},
			func(i int) (string, string, any) {
				return "PUT", "/v3/profile" + homeserver.Path(alice.UserID, "displayname"), json{"displayname": fmt.Sprint(i)}
			},
			func(i int) (string, string, any) { return "GET", "/v3/sync", nil },
			func(i int) (string, string, any) { return "GET", base + "/messages?dir=b", nil },
			func(i int) (string, string, any) {
				return "POST", base + homeserver.Path("receipt", "m.read", event), json{}
			},
			func(i int) (string, string, any) {
				return "PUT", base + homeserver.Path("typing", alice.UserID), json{"typing": i%2 == 0, "timeout": 1000}
			},
			func(i int) (string, string, any) {
				return "PUT", me + homeserver.Path("account_data", "org.example"), json{"i": i}
			},
			func(i int) (string, string, any) {
				return "PUT", me + homeserver.Path("rooms", room, "tags", "u.x"), json{"order": 0.5}
			},
			func(i int) (string, string, any) {
				return "DELETE", me + homeserver.Path("rooms", room, "tags", "u.x"), nil
			},
			func(i int) (string, string, any) {
				return "PUT", "/v3/pushrules/global/override/x", json{"conditions": []any{}, "actions": []any{"notify"}}
			},
			func(i int) (string, string, any) { return "DELETE", "/v3/pushrules/global/override/x", nil },
			func(i int) (string, string, any) {
				return "POST", "/v3/keys/upload", json{"one_time_keys": json{fmt.Sprint("signed_curve25519:", i): json{"key": "k"}}}
			},
			func(i int) (string, string, any) {
				return "PUT", "/v3/sendToDevice" + homeserver.Path("t", fmt.Sprint(i)), json{"messages": json{alice.UserID: json{"*": json{}}}}
			},
			func(i int) (string, string, any) {
				return "PUT", "/v3/devices" + homeserver.Path(alice.DeviceID), json{"display_name": fmt.Sprint(i)}
			},
			func(i int) (string, string, any) {
				return "PUT", "/v3/room_keys/keys" + homeserver.Path(room, "session") + "?version=" + backup, json{"first_message_index": i, "forwarded_count": 0, "is_verified": false, "session_data": json{}}
			},
			func(i int) (string, string, any) {
				return "PUT", "/v3/presence" + homeserver.Path(alice.UserID, "status"), json{"presence": "online"}
			},
			func(i int) (string, string, any) {
				return "POST", me + "/filter", json{"room": json{"timeline": json{"limit": i}}}
			},
			func(i int) (string, string, any) { return "POST", "/v3/createRoom", json{} },
			func(i int) (string, string, any) {
				return "PUT", base + homeserver.Path("redact", event, fmt.Sprint("r", i)), json{}
			},
		}
		at(len(requests)*6, func(i int) result {
			method, path, body := requests[i%len(requests)](i)
			r := do(alice, method, path, body)
			if r.status != http.StatusOK && r.status != http.StatusNotFound || strings.Contains(fmt.Sprint(r.body), "panic") {
				t.Errorf("%s %s: %d %v", method, path, r.status, r.body)
			}
			return r
		})
		alice.SyncUntilEvent(room, alice.Say(room, "after all"))
	})
}
