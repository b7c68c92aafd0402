package sytest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

func TestMutualRooms(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	alice.CreateRoom(json{})
	for _, path := range []string{"/v1/mutual_rooms", "/unstable/uk.half-shot.msc2666/user/mutual_rooms"} {
		res := alice.Must("GET", path+"?user_id="+url.QueryEscape(bob.UserID), nil)
		if fmt.Sprint(res) != fmt.Sprint(json{"joined": []any{room}, "count": 1.0}) {
			t.Errorf("%s: %v", path, res)
		}
	}
	res := alice.Must("GET", "/v1/mutual_rooms?user_id="+url.QueryEscape("@nobody:"+hs.Name), nil)
	if fmt.Sprint(res) != fmt.Sprint(json{"joined": []any{}, "count": 0.0}) {
		t.Errorf("nobody: %v", res)
	}
	for _, query := range []string{"", "user_id=bob", "user_id=" + url.QueryEscape(alice.UserID), "from=x&user_id=" + url.QueryEscape(bob.UserID)} {
		alice.Refused("GET", "/v1/mutual_rooms?"+query, nil, 400, "M_INVALID_PARAM")
	}
}

// Who has left sees the members of the time they left, whatever time they ask for.
func TestMembersAfterLeaving(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob, carol := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "carol")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	bob.Sync(0)
	bob.Must("POST", "/v3"+roomPath(room, "leave"), json{})
	carol.Join(room)
	since := fmt.Sprint(bob.Sync(0)["next_batch"])
	start := fmt.Sprint(alice.Must("GET", "/v3"+roomPath(room, "messages")+"?dir=b&limit=1", nil)["start"])
	joined := func(c *homeserver.Client, at string) []string {
		t.Helper()
		var out []string
		for _, ev := range homeserver.Events(c.Must("GET", "/v3"+roomPath(room, "members")+"?membership=join&at="+at, nil), "chunk") {
			out = append(out, fmt.Sprint(ev["state_key"]))
		}
		slices.Sort(out)
		return out
	}
	for _, at := range []string{"", since, start} {
		if got := joined(bob, at); !slices.Equal(got, []string{alice.UserID}) {
			t.Errorf("bob, who has left, at %q: %v", at, got)
		}
		if got := joined(alice, at); !slices.Equal(got, []string{alice.UserID, carol.UserID}) {
			t.Errorf("alice at %q: %v", at, got)
		}
	}
}

// A room that was forgotten cannot be looked into any more, unless everybody can.
func TestForgottenRoom(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	said := alice.Say(room, "hello")
	bob.Must("POST", "/v3"+roomPath(room, "leave"), json{})
	paths := map[string]string{
		"/v3" + roomPath(room, "event", said):                                    "M_NOT_FOUND",
		"/v3" + roomPath(room, "context", said):                                  "M_FORBIDDEN",
		"/v1" + roomPath(room, "relations", said):                                "M_NOT_FOUND",
		"/v3" + roomPath(room, "messages") + "?dir=b":                            "M_FORBIDDEN",
		"/v1" + roomPath(room, "threads"):                                        "M_FORBIDDEN",
		"/v3" + roomPath(room, "state", "m.room.create"):                         "M_FORBIDDEN",
		"/v1" + roomPath(room, "timestamp_to_event") + "?dir=b&ts=9000000000000": "M_FORBIDDEN",
	}
	for path := range paths {
		bob.Must("GET", path, nil)
	}
	bob.Refused("GET", "/v3"+roomPath(room, "aliases"), nil, 403, "M_FORBIDDEN")
	bob.Must("POST", "/v3"+roomPath(room, "forget"), json{})
	for path, code := range paths {
		status := http.StatusForbidden
		if code == "M_NOT_FOUND" {
			status = http.StatusNotFound
		}
		bob.Refused("GET", path, nil, status, code)
	}
	alice.SetState(room, "m.room.history_visibility", "", json{"history_visibility": "world_readable"})
	open := alice.Say(room, "to everybody")
	seen := eventIDs(bob.Must("GET", "/v3"+roomPath(room, "messages")+"?dir=b", nil), "chunk")
	if !slices.Contains(seen, open) || slices.Contains(seen, said) {
		t.Errorf("of %s and what was said before, %s, a peeker sees %v", open, said, seen)
	}
	bob.Must("GET", "/v3"+roomPath(room, "event", open), nil)
	bob.Must("GET", "/v3"+roomPath(room, "aliases"), nil)
}

func TestThreadedReceipts(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{})
	relate := func(relType, to string) string {
		return alice.Send(room, "m.room.message", json{"body": relType, "m.relates_to": json{"rel_type": relType, "event_id": to}})
	}
	root, other := alice.Say(room, "root"), alice.Say(room, "other")
	reply := relate("m.thread", root)
	inThread, ofRoot := relate("m.reference", reply), relate("m.reference", root)
	for _, c := range []struct {
		event, thread string
		ok            bool
	}{
		{reply, root, true}, {inThread, root, true}, {root, root, true}, {ofRoot, root, true}, {other, root, false}, {reply, other, false},
		{root, "main", true}, {ofRoot, "main", true}, {other, "main", true}, {reply, "main", false}, {inThread, "main", false},
	} {
		path := "/v3" + roomPath(room, "receipt", "m.read", c.event)
		if c.ok {
			alice.Must("POST", path, json{"thread_id": c.thread})
		} else {
			alice.Refused("POST", path, json{"thread_id": c.thread}, 400, "M_INVALID_PARAM")
		}
	}
	for _, bad := range []any{"", 5, []string{root}} {
		alice.Refused("POST", "/v3"+roomPath(room, "receipt", "m.read", root), json{"thread_id": bad}, 400, "M_INVALID_PARAM")
	}
}

// A change of name that was broken off before all rooms knew of it is made good by asking for it again.
func TestRepeatedDisplayName(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{})
	named := func() string {
		member := alice.Must("GET", "/v3"+roomPath(room, "state", "m.room.member", alice.UserID)+"?format=event", nil)
		return fmt.Sprint(homeserver.Dig(member, "content", "displayname"), member["event_id"])
	}
	path := "/v3/profile" + homeserver.Path(alice.UserID, "displayname")
	alice.Must("PUT", path, json{"displayname": "Alice"})
	first := named()
	alice.Must("PUT", path, json{"displayname": "Alice"})
	if again := named(); again != first {
		t.Errorf("the same name again made another event: %s, then %s", first, again)
	}
	alice.SetState(room, "m.room.member", alice.UserID, json{"membership": "join", "displayname": "not yet told"})
	alice.Must("PUT", path, json{"displayname": "Alice"})
	if got := named(); got[:5] != "Alice" {
		t.Errorf("the room shows %s", got)
	}
}

// A redaction sent like any other event redacts in every room version, wherever that one has `redacts`.
func TestRedactionSentAsEvent(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs, far := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), far.Register(t, "bob")
	for _, version := range []string{"6", "11"} {
		room := alice.CreateRoom(json{"preset": "public_chat", "room_version": version})
		bob.Join(room, hs.Name)
		said := alice.Say(room, "to be redacted")
		bob.SyncUntil("the message", func(json) bool {
			status, _ := bob.Do("GET", "/v3"+roomPath(room, "event", said), nil)
			return status == http.StatusOK
		})
		red := alice.Send(room, "m.room.redaction", json{"redacts": said})
		for _, c := range []*homeserver.Client{alice, bob} {
			c.SyncUntil("the redaction", func(json) bool {
				return homeserver.Dig(c.Must("GET", "/v3"+roomPath(room, "event", said), nil), "unsigned", "redacted_because", "event_id") == red
			})
		}
	}
}

// A server that does not answer does not keep others from being invited to a new room, even if the client does not wait.
func TestInvitesOfNewRoom(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs, far := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	silent, err := net.Listen("tcp", "127.0.0.1:0") // connections are made, and nobody takes them
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	alice, bob := hs.Register(t, "alice"), far.Register(t, "bob")
	body := fmt.Sprintf(`{"invite":["@a:localhost:%d",%q]}`, silent.Addr().(*net.TCPAddr).Port, bob.UserID)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "POST", hs.ClientURL+"/_matrix/client/v3/createRoom", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+alice.AccessToken)
	if res, err := http.DefaultClient.Do(req); err == nil {
		res.Body.Close()
		t.Fatalf("answered %s, though one server was still silent", res.Status)
	}
	bob.SyncUntil("an invite", func(res json) bool { return homeserver.Dig(res, "rooms", "invite") != nil })
}

// A ban, an invite or another membership that is there already is not made again.
func TestRepeatedMembership(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "private_chat"})
	state := "/v3" + roomPath(room, "state", "m.room.member", bob.UserID) + "?format=event"
	for _, action := range []string{"invite", "ban"} {
		request := json{"user_id": bob.UserID, "reason": "because"}
		alice.Must("POST", "/v3"+roomPath(room, action), request)
		first := alice.Must("GET", state, nil)
		alice.Must("POST", "/v3"+roomPath(room, action), request)
		if again := alice.Must("GET", state, nil); again["event_id"] != first["event_id"] {
			t.Errorf("%s made %v, then %v", action, first, again)
		}
		request["reason"] = "for another reason"
		alice.Must("POST", "/v3"+roomPath(room, action), request)
		if again := alice.Must("GET", state, nil); again["event_id"] == first["event_id"] {
			t.Errorf("%s for another reason changed nothing: %v", action, again)
		}
	}
	// What must not be done to somebody who is gone must not be done twice.
	request := json{"user_id": bob.UserID, "reason": "because"}
	alice.Must("POST", "/v3"+roomPath(room, "unban"), request)
	alice.Refused("POST", "/v3"+roomPath(room, "unban"), request, 403, "M_FORBIDDEN")
	alice.Invite(room, bob.UserID)
	alice.Must("POST", "/v3"+roomPath(room, "kick"), request)
	alice.Refused("POST", "/v3"+roomPath(room, "kick"), request, 403, "M_FORBIDDEN")
}

// A page is never longer than its limit, and the next one goes on from where it ended.
func TestMessagesLimits(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{})
	said := alice.Say(room, "hello")
	for _, filter := range []string{"", "&filter=" + url.QueryEscape(`{"limit":0}`)} {
		query := "?dir=b&limit=0"
		if filter != "" {
			query = "?dir=b" + filter
		}
		page := alice.Must("GET", "/v3"+roomPath(room, "messages")+query, nil)
		if list := homeserver.Events(page, "chunk"); len(list) != 0 || page["end"] != page["start"] {
			t.Errorf("a page of nothing: %v", page)
		}
		next := alice.Must("GET", "/v3"+roomPath(room, "messages")+"?dir=b&limit=1&from="+url.QueryEscape(page["end"].(string)), nil)
		if list := homeserver.Events(next, "chunk"); len(list) != 1 || list[0]["event_id"] != said {
			t.Errorf("the page behind it: %v", next)
		}
	}
	for filter, code := range map[string]string{"{": "M_NOT_JSON", "[]": "M_BAD_JSON", `{"a":1,"a":1}`: "M_BAD_JSON"} {
		for _, path := range []string{roomPath(room, "messages") + "?dir=b&", roomPath(room, "context", said) + "?"} {
			res := alice.Refused("GET", "/v3"+path+"filter="+url.QueryEscape(filter), nil, 400, code)
			if text, _ := res["error"].(string); !strings.Contains(text, "The filter") {
				t.Errorf("filter %s at %s: %q does not say what is wrong", filter, path, text)
			}
		}
	}
}

func TestContextFilter(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{"name": "a name"})
	said := alice.Say(room, "hello")
	res := alice.Must("GET", "/v3"+roomPath(room, "context", said)+"?filter="+url.QueryEscape(`{"types":["m.room.name"]}`), nil)
	for _, part := range []string{"events_before", "state"} {
		if list := homeserver.Events(res, part); len(list) != 1 || list[0]["type"] != "m.room.name" {
			t.Errorf("%s: %v", part, list)
		}
	}
}
