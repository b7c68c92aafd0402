package sytest

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// What clients ask of users, rooms and files of another server is answered with an error of the client-server
// API, whatever that other server says.
func TestClientsOfNonsense(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		peer := hs.Network().NewPeer()
		alice := hs.Register(t, "alice")
		remote := func(sigil, name string) string { return sigil + name + ":" + string(peer.Name) }
		const unsigned = `{"room_version":"11","event":{"type":"m.room.member","content":{"membership":"join"}}}`
		made := func(version, membership string) string {
			return fmt.Sprintf(`{"room_version":%q,"event":{"type":"m.room.member","state_key":%q,"sender":%q,"room_id":%q,"content":{"membership":%q},"prev_events":[],"auth_events":[],"depth":9007199254740991,"origin_server_ts":1}}`,
				version, alice.UserID, alice.UserID, remote("!", "room"), membership)
		}
		odd := []string{
			"", "null", "[]", "{}", "{", `"x"`, "\xff", strings.Repeat("[", 100000), `{"a":1,"a":2}`, unsigned, made("11", "join"), made("11", "knock"), made("11", "leave"), made("99", "join"), made("1", "join"),
			`{"room_version":5,"event":7}`, `{"room_id":"x","servers":["\u0000",""]}`, `{"room_id":"!x:` + string(peer.Name) + `","servers":["` + string(peer.Name) + `"]}`, `{"state":null,"auth_chain":null,"event":null}`, `{"state":[{}],"auth_chain":[1],"event":{}}`,
			`{"device_keys":{"` + alice.UserID + `":{}},"one_time_keys":{"` + alice.UserID + `":{}},"failures":[]}`, `{"device_keys":{"` + remote("@", "x") + `":{"\u0000":{"user_id":"\u0000"}}},"one_time_keys":{"` + remote("@", "x") + `":{"\u0000":{"\u0000":"\u0000"}}}}`,
			`{"master_keys":{"` + remote("@", "x") + `":{"keys":{"a":"b"},"usage":["master"],"user_id":"` + remote("@", "x") + `"}},"device_keys":{}}`,
			`{"user_id":"` + remote("@", "x") + `","stream_id":-1,"devices":[{"device_id":"\u0000","keys":{}},{"device_id":"","keys":null}],"master_key":{"keys":[]}}`,
			`{"displayname":"\u0000","avatar_url":["x"]}`, `{"displayname":7}`, `{"chunk":[{"room_id":"\u0000"}],"next_batch":5}`, `{"chunk":null,"total_room_count_estimate":1e400}`, `{"errcode":5}`, `{"errcode":"M_FORBIDDEN","error":"\u0000"}`, `{"errcode":"M_UNKNOWN_TOKEN","error":"x"}`,
			`{"room":null,"children":[null],"inaccessible_children":[5]}`, `{"a":"` + strings.Repeat("x", 1<<20) + `"}`,
		}
		type request struct {
			method, path string
			body         any
		}
		requests := []request{
			{"POST", "/v3/join" + homeserver.Path(remote("!", "room")), json{}},
			{"POST", "/v3/join" + homeserver.Path(remote("#", "alias")), json{}},
			{"POST", "/v3/knock" + homeserver.Path(remote("!", "room")), json{}},
			{"GET", "/v3/directory/room" + homeserver.Path(remote("#", "alias")), nil},
			{"GET", "/v3/publicRooms?server=" + string(peer.Name), nil},
			{"POST", "/v3/publicRooms?server=" + string(peer.Name), json{"filter": json{"generic_search_term": "x"}}},
			{"GET", "/v3/profile" + homeserver.Path(remote("@", "x")), nil},
			{"GET", "/v3/profile" + homeserver.Path(remote("@", "x"), "displayname"), nil},
			{"POST", "/v3/keys/query", json{"device_keys": json{remote("@", "x"): []any{}}}},
			{"POST", "/v3/keys/claim", json{"one_time_keys": json{remote("@", "x"): json{"D": "signed_curve25519"}}}},
			{"GET", "/v1/media/download" + homeserver.Path(string(peer.Name), "file"), nil},
			{"GET", "/v1/media/thumbnail" + homeserver.Path(string(peer.Name), "file") + "?width=10&height=10", nil},
			{"GET", "/v1/rooms" + homeserver.Path(remote("!", "room"), "hierarchy"), nil},
			{"GET", "/v1/room_summary" + homeserver.Path(remote("!", "room")) + "?via=" + string(peer.Name), nil},
		}
		room := alice.CreateRoom(json{})
		requests = append(requests, request{"POST", "/v3/rooms" + homeserver.Path(room, "invite"), json{"user_id": remote("@", "x")}})
		for _, status := range []int{200, 403, 404, 500, 302, 204} {
			for i, answer := range odd {
				if status != 200 && i > 4 && !strings.HasPrefix(answer, `{"errcode`) {
					continue
				}
				peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
					if strings.HasPrefix(r.URL.Path, "/_matrix/key/") {
						return false
					}
					if status == 302 {
						w.Header().Set("Location", r.URL.String())
					}
					if strings.Contains(r.URL.Path, "/media/") {
						w.Header().Set("Content-Type", []string{"multipart/mixed; boundary=x", "text/html", "", "multipart/mixed", "multipart/mixed; boundary=\x01"}[i%5])
					}
					w.WriteHeader(status)
					if status != 204 {
						_, _ = io.WriteString(w, answer)
					}
					return true
				}
				for _, q := range requests {
					began := time.Now()
					got, body := alice.Raw(q.method, q.path, q.body)
					if got == 500 || got > 504 || got == 401 || got >= 400 && !strings.Contains(string(body), `"errcode"`) {
						t.Errorf("%s %s, answered %d %s: %d %s", q.method, q.path, status, short(answer), got, body)
					}
					if took := time.Since(began); took > 10*time.Second {
						t.Errorf("%s %s, answered %d %s took %v", q.method, q.path, status, short(answer), took)
					}
				}
			}
		}
		if asked := len(peer.Asked()); asked < 200 {
			t.Errorf("the peer was asked %d times only: what did this test test?", asked)
		} else {
			t.Logf("the peer was asked %d times", asked)
		}
		alice.SyncUntilEvent(room, alice.Say(room, "still here"))
	})
}
