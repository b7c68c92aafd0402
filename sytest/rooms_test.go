package sytest

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// containsBytes looks for text in all files below a folder.
func containsBytes(t *testing.T, dir, text string) bool {
	t.Helper()
	found := false
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || bytes.Contains(b, []byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestLocalRoom(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob, eve := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "eve")
		room := alice.CreateRoom(json{"preset": "private_chat", "name": "One", "topic": "Two"})
		eve.Refused("POST", "/v3/join"+homeserver.Path(room), json{}, http.StatusForbidden, "M_FORBIDDEN")
		alice.Invite(room, bob.UserID)
		bob.SyncUntilInvited(room)
		bob.Join(room)
		id := alice.Say(room, "hello")
		ev := bob.SyncUntilEvent(room, id)
		if homeserver.Dig(ev, "content", "body") != "hello" || ev["sender"] != alice.UserID || homeserver.Dig(ev, "unsigned", "transaction_id") != nil {
			t.Errorf("what bob sees: %v", ev)
		}
		if ev := alice.SyncUntilEvent(room, id); homeserver.Dig(ev, "unsigned", "transaction_id") == nil {
			t.Errorf("the sending device is not told its transaction id: %v", ev)
		}
		phone := bob.Login() // has not been told any count yet
		phone.SyncUntil("a notification count", func(res json) bool {
			return homeserver.Dig(res, "rooms", "join", room, "unread_notifications", "notification_count") == 1.0
		})
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "read_markers"), json{"m.read": id, "m.fully_read": id})
		phone.SyncUntil("the count going down", func(res json) bool {
			return homeserver.Dig(res, "rooms", "join", room, "unread_notifications", "notification_count") == 0.0
		})

		// A transaction id is good once, also after a restart.
		path := "/v3/rooms" + homeserver.Path(room, "send", "m.room.message", "same")
		first := alice.Must("PUT", path, json{"body": "once"})["event_id"]
		hs.Kill()
		hs.Start()
		if again := alice.Must("PUT", path, json{"body": "once"})["event_id"]; again != first {
			t.Errorf("the same transaction made %v and %v", first, again)
		}

		// A token from before the restart still works, and nothing is told twice.
		seen := 0
		bob.SyncUntil("the event sent before the restart", func(res json) bool {
			for _, e := range homeserver.Timeline(res, room) {
				if e["event_id"] == first {
					seen++
				}
			}
			return seen > 0
		})
		if res := bob.Sync(100 * time.Millisecond); len(homeserver.Timeline(res, room)) > 0 {
			t.Errorf("told twice: %v", res)
		}
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{"reason": "enough"})
		bob.SyncUntil("the room among those left", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
		alice.Say(room, "after bob left")
		bob.Refused("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil, http.StatusForbidden, "M_FORBIDDEN")
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "forget"), json{})
		bob.Refused("GET", "/v3/rooms"+homeserver.Path(room, "messages")+"?dir=b", nil, http.StatusForbidden, "M_FORBIDDEN")
		eve.Refused("GET", "/v3/rooms"+homeserver.Path(room, "state"), nil, http.StatusForbidden, "M_FORBIDDEN")
	})
}

// Every room version can be used.
func TestRoomVersions(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs1, hs2 := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	alice, bob := hs1.Register(t, "alice"), hs2.Register(t, "bob")
	for v := 1; v <= 12; v++ {
		room := alice.CreateRoom(json{"preset": "public_chat", "room_version": fmt.Sprint(v)})
		bob.Join(room, hs1.Name)
		alice.SyncUntilJoined(room, bob.UserID)
		bob.SyncUntilEvent(room, alice.Say(room, "hello"))
		said := bob.Say(room, "hello back")
		alice.SyncUntilEvent(room, said)
		alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "redact", said, "r"+fmt.Sprint(v)), json{})
		bob.SyncUntil(fmt.Sprint("the redaction in version ", v), func(json) bool {
			return homeserver.Dig(bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", said), nil), "content", "body") == nil
		})
	}
	alice.Refused("POST", "/v3/createRoom", json{"room_version": "99"}, http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION")
}

// A graceful stop answers long polls and finishes what is under way.
func TestGracefulStop(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	alice.Sync(0)
	answered := make(chan struct{})
	began := time.Now()
	go func() {
		defer close(answered)
		alice.Sync(60 * time.Second)
	}()
	for hs.Metric("hanok_http_requests_in_flight") < 1 {
		time.Sleep(5 * time.Millisecond) // until the poll has arrived
	}
	if err := hs.Stop(); err != nil {
		t.Errorf("the process ended with %v", err)
	}
	<-answered // with 200, or Sync has failed the test
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopping took %v", took)
	}
}
