package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"

	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/sytest/homeserver"
)

// What servers send by send_join, send_leave and send_knock, and what the specification says about it.
func TestFederatedMemberships(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	peer, other := n.NewPeer(), n.NewPeer()
	for _, version := range []string{"1", "7", "10", "11", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			v, _ := roomversion.Get(roomversion.ID(version))
			alice := hs.Register(t, "alice")
			make := func(body json) string {
				body["room_version"] = version
				return alice.CreateRoom(body)
			}
			rules := func(rule string) []json {
				return []json{{"type": "m.room.join_rules", "content": json{"join_rule": rule}}}
			}
			public, private := make(json{"preset": "public_chat", "name": "A room"}), make(json{"preset": "private_chat"})
			door := private
			if v.Knock {
				door = make(json{"preset": "public_chat", "name": "A door", "initial_state": rules("knock")})
			}
			banned := make(json{"preset": "public_chat"})
			user := "@mallory:" + string(peer.Name)
			template := func(endpoint, room, user string) json {
				t.Helper()
				status, made := askAs(t, peer, hs, "GET", fed("v1", endpoint, room, user)+"?ver="+version, nil)
				if status != 200 || made["room_version"] != version {
					t.Fatalf("%s: %d %v", endpoint, status, made)
				}
				return made["event"].(json)
			}
			// submit signs an event made from a template, and sends it.
			submit := func(from *homeserver.Peer, endpoint, room string, template json, change func(json)) (int, json, string) {
				t.Helper()
				m := maps.Clone(template)
				if v.EventIDFormat == roomversion.EventIDInEvent {
					m["event_id"] = "$" + strings.ReplaceAll(t.Name(), "/", "") + fmt.Sprint(nextNumber()) + ":" + string(peer.Name)
				}
				if change != nil {
					change(m)
				}
				ev := peer.Seal(v, encode(t, m))
				id := homeserver.EventID(v, ev)
				path := fed("v2", endpoint, room, id)
				if endpoint == "send_knock" {
					path = fed("v1", endpoint, room, id)
				}
				status, raw := from.Call(hs, "PUT", path, ev)
				var res json
				if err := stdjson.Unmarshal(raw, &res); err != nil {
					t.Errorf("%s: %d %s", endpoint, status, raw)
				}
				return status, res, id
			}
			type attempt struct {
				what   string
				from   *homeserver.Peer
				room   string // in the path
				change func(json)
				status int
				code   string
			}
			common := func(room, membership string) []attempt {
				return []attempt{
					{"another type", peer, room, func(m json) { m["type"] = "m.room.message" }, 400, "M_INVALID_PARAM"},
					{"another membership", peer, room, func(m json) { m["content"] = json{"membership": "invite"} }, 400, "M_INVALID_PARAM"},
					{"no membership", peer, room, func(m json) { m["content"] = json{} }, 400, "M_INVALID_PARAM"},
					{"no state key", peer, room, func(m json) { delete(m, "state_key") }, 400, "M_INVALID_PARAM"},
					{"of another user", peer, room, func(m json) { m["state_key"] = "@eve:" + string(peer.Name) }, 400, "M_INVALID_PARAM"},
					{"of a user of ours", peer, room, func(m json) { m["state_key"], m["sender"] = alice.UserID, alice.UserID }, 403, "M_FORBIDDEN"},
					{"by another server", other, room, nil, 403, "M_FORBIDDEN"},
					{"not signed by the sender's server", peer, room, func(m json) { m["state_key"], m["sender"] = "@x:"+string(other.Name), "@x:"+string(other.Name) }, 403, "M_FORBIDDEN"},
					{"of another room", peer, private, nil, 400, "M_INVALID_PARAM"},
					{"a room that is not known", peer, "!nowhere:" + string(peer.Name), nil, 404, "M_NOT_FOUND"},
					{"no room", peer, "nowhere", nil, 400, "M_INVALID_PARAM"},
					{"no depth", peer, room, func(m json) { delete(m, "depth") }, 400, "M_BAD_JSON"},
					{"without an auth event", peer, room, func(m json) { m["auth_events"] = m["auth_events"].([]any)[:0] }, 403, "M_FORBIDDEN"},
				}
			}
			tryAll := func(endpoint string, template json, attempts []attempt) {
				t.Helper()
				for _, a := range attempts {
					if status, res, _ := submit(a.from, endpoint, a.room, template, a.change); status != a.status || res["errcode"] != a.code {
						t.Errorf("%s, %s: %d %v, want %d %s", endpoint, a.what, status, res, a.status, a.code)
					}
				}
			}
			pdus := func(list any) map[string]*event.Event {
				t.Helper()
				out := map[string]*event.Event{}
				for _, raw := range list.([]any) {
					ev, err := event.Parse(v, encode(t, raw))
					if err != nil || ev.HashMismatch() {
						t.Fatalf("%v: %v", err, raw)
					}
					key, _ := ev.StateKey()
					out[ev.Type()+"|"+key] = ev
				}
				return out
			}

			join := template("make_join", public, user)
			tryAll("send_join", join, common(public, "join"))
			status, res, joined := submit(peer, "send_join", public, join, nil)
			if status != 200 {
				t.Fatalf("send_join: %d %v", status, res)
			}
			state, chain := pdus(res["state"]), pdus(res["auth_chain"])
			for _, key := range []string{"m.room.create|", "m.room.power_levels|", "m.room.join_rules|", "m.room.member|" + alice.UserID} {
				if state[key] == nil || chain[key] == nil {
					t.Errorf("send_join: %s is in the state: %v, in the auth chain: %v", key, state[key] != nil, chain[key] != nil)
				}
			}
			if state["m.room.member|"+user] != nil || state["m.room.name|"] == nil || res["members_omitted"] != false {
				t.Errorf("send_join: %v", res)
			}
			if ev, err := event.Parse(v, encode(t, res["event"])); err != nil || string(ev.ID()) != joined {
				t.Errorf("send_join: %v %v", err, res["event"])
			}
			alice.SyncUntilJoined(public, user)
			if status, res, _ := submit(peer, "send_join", private, json(join), func(m json) { m["room_id"] = private }); status != 403 || res["errcode"] != "M_FORBIDDEN" {
				t.Errorf("a join of a private room: %d %v", status, res)
			}
			late := template("make_join", banned, user)
			alice.Must("POST", "/v3"+roomPath(banned, "ban"), json{"user_id": user})
			if status, res, _ := submit(peer, "send_join", banned, late, nil); status != 403 || res["errcode"] != "M_FORBIDDEN" {
				t.Errorf("a join that was made before a ban: %d %v", status, res)
			}

			leave := template("make_leave", public, user)
			tryAll("send_leave", leave, common(public, "leave"))
			if status, res, _ := submit(peer, "send_leave", public, leave, nil); status != 200 || len(res) > 0 {
				t.Errorf("send_leave: %d %v", status, res)
			}
			alice.SyncUntil("the leave", func(res json) bool {
				for _, e := range homeserver.Timeline(res, public) {
					if e["state_key"] == user && homeserver.Dig(e, "content", "membership") == "leave" {
						return true
					}
				}
				return false
			})

			if !v.Knock {
				if status, res := askAs(t, peer, hs, "GET", fed("v1", "make_knock", public, user)+"?ver="+version, nil); status != 403 {
					t.Errorf("make_knock in a room without knocking: %d %v", status, res)
				}
				return
			}
			knock := template("make_knock", door, user)
			tryAll("send_knock", knock, common(door, "knock"))
			if status, res, _ := submit(peer, "send_knock", public, knock, func(m json) { m["room_id"] = public }); status != 403 || res["errcode"] != "M_FORBIDDEN" {
				t.Errorf("a knock at a public room: %d %v", status, res)
			}
			status, res, _ = submit(peer, "send_knock", door, knock, nil)
			if status != 200 {
				t.Fatalf("send_knock: %d %v", status, res)
			}
			shown := pdus(res["knock_room_state"])
			for _, key := range []string{"m.room.create|", "m.room.join_rules|", "m.room.name|"} {
				if shown[key] == nil {
					t.Errorf("knock_room_state lacks %s", key)
				}
			}
			for key, ev := range shown {
				if strings.HasPrefix(key, "m.room.member|") || string(ev.RoomID()) != door {
					t.Errorf("knock_room_state shows %s", ev.JSON())
				}
			}
			// A knock is taken back by leaving, which is for who has knocked.
			if status, res, _ := submit(peer, "send_leave", door, template("make_leave", door, user), nil); status != 200 {
				t.Errorf("a knock taken back: %d %v", status, res)
			}
			if status, res := askAs(t, peer, hs, "GET", fed("v1", "make_leave", door, user), nil); status != 403 {
				t.Errorf("make_leave after it: %d %v", status, res)
			}
		})
	}
}

// A restricted room is entered by who is in a room that counts, with the signature of a server that has somebody who may invite. spec: server-server-api#restricted-rooms
func TestFederatedRestrictedJoins(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	for _, version := range []string{"8", "9", "10", "11", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			v, _ := roomversion.Get(roomversion.ID(version))
			peer := n.NewPeer()
			peer.Answer = func(w http.ResponseWriter, r *http.Request) bool { // signs invites
				var body struct {
					Event stdjson.RawMessage `json:"event"`
				}
				if !strings.Contains(r.URL.Path, "/v2/invite/") || stdjson.NewDecoder(r.Body).Decode(&body) != nil {
					return false
				}
				ev, err := event.Parse(v, body.Event)
				if err == nil {
					ev, err = ev.Sign(peer.Name, peer.Key)
				}
				if err != nil {
					t.Error(err)
					return false
				}
				_, _ = w.Write(encode(t, json{"event": stdjson.RawMessage(ev.JSON())}))
				return true
			}
			alice := hs.Register(t, "alice")
			yard := alice.CreateRoom(json{"preset": "public_chat", "room_version": version})
			rule := "restricted"
			if version == "10" {
				rule = "knock_restricted"
			}
			room := func() string {
				return alice.CreateRoom(json{"preset": "private_chat", "room_version": version, "initial_state": []json{
					{"type": "m.room.join_rules", "content": json{"join_rule": rule, "allow": []json{{"type": "m.room_membership", "room_id": yard}}}},
				}})
			}
			joined := peer.Join(hs, yard, "mallory")
			user := string(joined.User)
			submit := func(room string, template json, change func(content json)) (int, json) {
				t.Helper()
				m := maps.Clone(template)
				content := maps.Clone(m["content"].(json))
				change(content)
				m["content"] = content
				ev := peer.Seal(v, encode(t, m))
				return askAs(t, peer, hs, "PUT", fed("v2", "send_join", room, homeserver.EventID(v, ev)), stdjson.RawMessage(ev))
			}
			as := func(authoriser string) func(json) {
				return func(content json) { content["join_authorised_via_users_server"] = authoriser }
			}
			unchanged := func(json) {}
			made := func(room, user string) json {
				t.Helper()
				status, made := askAs(t, peer, hs, "GET", fed("v1", "make_join", room, user)+"?ver="+version, nil)
				if status != 200 {
					t.Fatalf("make_join: %d %v", status, made)
				}
				return made["event"].(json)
			}

			home := room()
			template := made(home, user)
			if by := homeserver.Dig(template, "content", "join_authorised_via_users_server"); by != alice.UserID {
				t.Errorf("authorised by %v", by)
			}
			for what, change := range map[string]func(json){
				"by nobody": func(content json) { delete(content, "join_authorised_via_users_server") }, "by who does not exist": as("@nobody:" + hs.Name), "by who is not in the room": as(user), "by no user": as("x"),
			} {
				if status, res := submit(home, template, change); status != 403 || res["errcode"] != "M_FORBIDDEN" {
					t.Errorf("%s: %d %v", what, status, res)
				}
			}
			status, res := submit(home, template, unchanged)
			if signed, _ := homeserver.Dig(res, "event", "signatures").(json); status != 200 || signed[hs.Name] == nil || signed[string(peer.Name)] == nil {
				t.Errorf("%d %v", status, res)
			}
			alice.SyncUntilJoined(home, user)

			// Who was invited needs nobody's word, and who left the room that counts has no right any more.
			other := room()
			late := made(other, user)
			alice.Must("POST", "/v3"+roomPath(yard, "kick"), json{"user_id": user})
			if status, res := submit(other, late, unchanged); status != 403 || res["errcode"] != "M_FORBIDDEN" {
				t.Errorf("after leaving the room that counts: %d %v", status, res)
			}
			alice.Invite(other, user)
			invited := made(other, user)
			if by := homeserver.Dig(invited, "content", "join_authorised_via_users_server"); by != nil {
				t.Errorf("invited, and authorised by %v", by)
			}
			if status, res := submit(other, invited, unchanged); status != 200 {
				t.Errorf("who was invited: %d %v", status, res)
			}
		})
	}
}

// What is said while a join is being made reaches the server that joins, though it was not in the room then, and nothing refers to it yet.
func TestMessageWhileAServerJoins(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	for visibility, shown := range map[string]bool{"shared": true, "joined": false} {
		peer := n.NewPeer()
		got := make(chan string, 10)
		peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			var txn struct {
				PDUs []json `json:"pdus"`
			}
			if !strings.Contains(r.URL.Path, "/send/") || stdjson.NewDecoder(r.Body).Decode(&txn) != nil {
				return false
			}
			for _, pdu := range txn.PDUs {
				got <- fmt.Sprint(homeserver.Dig(pdu, "content", "body"))
			}
			_, _ = w.Write([]byte(`{"pdus":{}}`))
			return true
		}
		room := alice.CreateRoom(json{"preset": "public_chat", "initial_state": []json{{"type": "m.room.history_visibility", "content": json{"history_visibility": visibility}}}})
		user := "@mallory:" + string(peer.Name)
		status, made := askAs(t, peer, hs, "GET", fed("v1", "make_join", room, user)+"?ver=12", nil)
		if status != 200 {
			t.Fatalf("make_join: %d %v", status, made)
		}
		alice.Say(room, "meanwhile")
		v, _ := roomversion.Get("12")
		join := peer.Complete(v, encode(t, made["event"]))
		if status, res := askAs(t, peer, hs, "PUT", fed("v2", "send_join", room, string(join.ID())), stdjson.RawMessage(join.JSON())); status != 200 {
			t.Fatalf("send_join: %d %v", status, res)
		}
		if shown {
			if first := <-got; first != "meanwhile" {
				t.Errorf("%s: %q comes first", visibility, first)
			}
		}
		alice.Say(room, "afterwards")
		if next := <-got; next != "afterwards" {
			t.Errorf("%s: %q comes next", visibility, next)
		}
	}
}
