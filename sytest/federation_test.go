package sytest

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

type json = homeserver.JSON

func two(start func(o homeserver.Options) *homeserver.Server) (a, b *homeserver.Server) {
	return start(homeserver.Options{}), start(homeserver.Options{})
}

func TestFederatedRoom(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob := hs1.Register(t, "alice"), hs2.Register(t, "bob")
		alice.Must("PUT", "/v3/profile"+homeserver.Path(alice.UserID, "displayname"), json{"displayname": "Alice A"})

		if got := bob.Must("GET", "/v3/profile"+homeserver.Path(alice.UserID), nil)["displayname"]; got != "Alice A" {
			t.Errorf("the profile of a remote user: %v", got)
		}
		room := alice.CreateRoom(json{"preset": "private_chat", "invite": []string{bob.UserID}, "name": "The room"})
		bob.SyncUntilInvited(room)
		bob.Join(room)
		alice.SyncUntilJoined(room, bob.UserID)
		bob.SyncUntilEvent(room, alice.Say(room, "from alice"))
		alice.SyncUntilEvent(room, bob.Say(room, "from bob"))

		// State, redactions and edits travel.
		topic := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.name", ""), nil)["name"]
		if topic != "The room" {
			t.Errorf("the name of the room: %v", topic)
		}
		said := alice.Say(room, "a mistake")
		bob.SyncUntilEvent(room, said)
		alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "redact", said, "r1"), json{"reason": "oops"})
		bob.SyncUntil("the redaction", func(res json) bool {
			for _, e := range homeserver.Timeline(res, room) {
				if e["type"] == "m.room.redaction" && e["redacts"] == said {
					return true
				}
			}
			return false
		})
		if body := homeserver.Dig(bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", said), nil), "content", "body"); body != nil {
			t.Errorf("a redacted event still says %v", body)
		}

		// Ephemeral things, too.
		alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", alice.UserID), json{"typing": true, "timeout": 20000})
		bob.SyncUntil("alice typing", func(res json) bool {
			for _, e := range homeserver.Events(res, "rooms", "join", room, "ephemeral", "events") {
				if e["type"] == "m.typing" && fmt.Sprint(homeserver.Dig(e, "content", "user_ids")) == "["+alice.UserID+"]" {
					return true
				}
			}
			return false
		})
		last := bob.Say(room, "read this")
		alice.SyncUntilEvent(room, last)
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", "m.read", last), json{})
		bob.SyncUntil("alice's receipt", func(res json) bool {
			for _, e := range homeserver.Events(res, "rooms", "join", room, "ephemeral", "events") {
				if e["type"] == "m.receipt" && homeserver.Dig(e, "content", last, "m.read", alice.UserID) != nil {
					return true
				}
			}
			return false
		})
		bob.Must("PUT", "/v3/sendToDevice/org.example.ping/1", json{"messages": json{alice.UserID: json{alice.DeviceID: json{"hello": "alice"}}}})
		alice.SyncUntil("a to-device message", func(res json) bool {
			for _, e := range homeserver.Events(res, "to_device", "events") {
				if e["type"] == "org.example.ping" && e["sender"] == bob.UserID && homeserver.Dig(e, "content", "hello") == "alice" {
					return true
				}
			}
			return false
		})

		// Leaving, and coming back through an alias with the history that was missed.
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		alice.SyncUntil("bob leaving", func(res json) bool {
			for _, e := range homeserver.Timeline(res, room) {
				if e["type"] == "m.room.member" && e["state_key"] == bob.UserID && homeserver.Dig(e, "content", "membership") == "leave" {
					return true
				}
			}
			return false
		})
		missed := alice.Say(room, "while bob was away")
		alice.SetState(room, "m.room.join_rules", "", json{"join_rule": "public"})
		alias := "#room:" + hs1.Name
		alice.Must("PUT", "/v3/directory/room"+homeserver.Path(alias), json{"room_id": room})
		bob.Join(alias)
		alice.SyncUntilJoined(room, bob.UserID)
		page := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "messages")+"?dir=b&limit=50", nil)
		found := false
		for _, e := range homeserver.Events(page, "chunk") {
			found = found || e["event_id"] == missed
		}
		if !found {
			t.Errorf("the history that bob missed is not in /messages: %v", page)
		}
	})
}

func TestRejectedInvite(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob := hs1.Register(t, "alice"), hs2.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "private_chat"})
		alice.Invite(room, bob.UserID)
		res := bob.SyncUntilInvited(room)
		var create bool
		for _, e := range homeserver.Events(res, "rooms", "invite", room, "invite_state", "events") {
			create = create || e["type"] == "m.room.create"
		}
		if !create {
			t.Error("the invite does not show the room's m.room.create event")
		}
		// An invite to a room that nothing is known of holds nothing else up.
		carol := hs2.Register(t, "carol")
		yard := carol.CreateRoom(json{"preset": "public_chat"})
		bob.Join(yard)
		carol.Say(yard, "hello")
		bob.SyncUntil("carol's message is counted", func(res json) bool {
			return homeserver.Dig(res, "rooms", "join", yard, "unread_notifications", "notification_count") == 1.0
		})
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		bob.SyncUntil("the room among those left", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
		alice.SyncUntil("bob's refusal", func(res json) bool {
			for _, e := range homeserver.Timeline(res, room) {
				if e["state_key"] == bob.UserID && homeserver.Dig(e, "content", "membership") == "leave" {
					return true
				}
			}
			return false
		})
		bob.Refused("POST", "/v3/join"+homeserver.Path(room)+"?via="+hs1.Name, json{}, http.StatusForbidden, "M_FORBIDDEN")
	})
}

// What was sent while the other server was away arrives when it is back, also if the sender was killed in between.
func TestOutageAndKill(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob := hs1.Register(t, "alice"), hs2.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room, hs1.Name)
		alice.SyncUntilJoined(room, bob.UserID)
		bob.SyncUntilEvent(room, alice.Say(room, "before"))
		hs2.Kill()
		var sent []string
		for i := range 5 {
			sent = append(sent, alice.Say(room, fmt.Sprint("while away ", i)))
		}
		alice.Must("PUT", "/v3/sendToDevice/org.example.ping/1", json{"messages": json{bob.UserID: json{"*": json{"n": 1}}}})
		hs1.Kill()
		hs1.Start()
		hs2.Start()
		sent = append(sent, alice.Say(room, "after"))
		seen := map[any]bool{}
		pinged := 0
		bob.SyncUntil("everything", func(res json) bool {
			for _, e := range homeserver.Timeline(res, room) {
				seen[e["event_id"]] = true
			}
			for _, e := range homeserver.Events(res, "to_device", "events") {
				if e["type"] == "org.example.ping" {
					pinged++
				}
			}
			for _, id := range sent {
				if !seen[id] {
					return false
				}
			}
			return pinged > 0
		})
		bob.Sync(0)
		if again := bob.Sync(200 * time.Millisecond); len(homeserver.Events(again, "to_device", "events")) > 0 || pinged != 1 {
			t.Errorf("the to-device message came %d times, and then %v", pinged, again["to_device"])
		}
	})
}
