package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// eventIDs lists the IDs of a list of events.
func eventIDs(v any, path ...string) []string {
	var out []string
	for _, ev := range homeserver.Events(v, path...) {
		out = append(out, fmt.Sprint(ev["event_id"]))
	}
	return out
}

func roomPath(room string, rest ...string) string {
	return "/rooms" + homeserver.Path(append([]string{room}, rest...)...)
}

func TestAggregations(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		root := alice.Say(room, "root")
		relate := func(c *homeserver.Client, relType string, more json) string {
			content := json{"body": relType, "m.relates_to": json{"rel_type": relType, "event_id": root}}
			for k, v := range more {
				content[k] = v
			}
			return c.Send(room, "m.room.message", content)
		}
		relate(bob, "m.thread", nil)
		last := relate(bob, "m.thread", nil)
		edit := relate(alice, "m.replace", json{"m.new_content": json{"body": "edited"}})
		ref := relate(bob, "m.reference", nil)
		check := func(where string, ev any) {
			t.Helper()
			rel := []any{
				homeserver.Dig(ev, "unsigned", "m.relations", "m.thread", "latest_event", "event_id"),
				homeserver.Dig(ev, "unsigned", "m.relations", "m.thread", "count"),
				homeserver.Dig(ev, "unsigned", "m.relations", "m.thread", "current_user_participated"),
				homeserver.Dig(ev, "unsigned", "m.relations", "m.replace", "event_id"),
				fmt.Sprint(eventIDs(ev, "unsigned", "m.relations", "m.reference", "chunk")),
			}
			if want := []any{last, 2.0, true, edit, fmt.Sprint([]string{ref})}; fmt.Sprint(rel) != fmt.Sprint(want) {
				t.Errorf("%s: %v, want %v", where, rel, want)
			}
		}
		find := func(where string, list []json) {
			t.Helper()
			for _, ev := range list {
				if ev["event_id"] == root {
					check(where, ev)
					return
				}
			}
			t.Errorf("%s lacks the event", where)
		}
		check("event", alice.Must("GET", "/v3"+roomPath(room, "event", root), nil))
		context := alice.Must("GET", "/v3"+roomPath(room, "context", root), nil)
		check("context", context["event"])
		find("messages", homeserver.Events(alice.Must("GET", "/v3"+roomPath(room, "messages")+"?dir=b&limit=50", nil), "chunk"))
		find("threads", homeserver.Events(alice.Must("GET", "/v1"+roomPath(room, "threads"), nil), "chunk"))
		find("context of a child", homeserver.Events(alice.Must("GET", "/v3"+roomPath(room, "context", last), nil), "events_before"))
		// /sync has them where there is a gap only.
		find("sync with a gap", homeserver.Timeline(alice.Sync(0, "filter", `{"room":{"timeline":{"limit":5}}}`), room))
		found := alice.Must("POST", "/v3/search", json{"search_categories": json{"room_events": json{"search_term": "root"}}})
		results := homeserver.Events(found, "search_categories", "room_events", "results")
		if len(results) != 1 {
			t.Fatalf("search: %v", found)
		}
		check("search", results[0]["result"])

		page := alice.Must("GET", "/v1"+roomPath(room, "relations", root, "m.thread", "m.room.message")+"?limit=1&recurse=true", nil)
		if got := eventIDs(page, "chunk"); len(got) != 1 || got[0] != last || page["next_batch"] == nil || page["recursion_depth"] != 3.0 {
			t.Errorf("relations: %v", page)
		}
		alice.Refused("GET", "/v1"+roomPath(room, "relations", "$none"), nil, http.StatusNotFound, "M_NOT_FOUND")
		alice.Refused("GET", "/v1"+roomPath(room, "relations", root)+"?limit=0", nil, http.StatusBadRequest, "M_INVALID_PARAM")
		alice.Refused("PUT", "/v3"+roomPath(room, "send", "m.room.message", "x"), json{
			"m.relates_to": json{"rel_type": "m.thread", "event_id": last},
		}, http.StatusBadRequest, "M_UNKNOWN")
	})
}

func TestSearchPages(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room, other := alice.CreateRoom(json{"preset": "public_chat"}), alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	for i := range 5 {
		alice.Say(room, fmt.Sprint("needle ", i))
		bob.Say(room, fmt.Sprint("needle of bob ", i))
		alice.Say(other, fmt.Sprint("needle elsewhere ", i))
	}
	search := func(token string) json {
		path := "/v3/search"
		if token != "" {
			path += "?next_batch=" + url.QueryEscape(token)
		}
		res := alice.Must("POST", path, json{"search_categories": json{"room_events": json{
			"search_term": "needle", "order_by": "recent", "filter": json{"limit": 4}, "include_state": true,
			"groupings":     json{"group_by": []json{{"key": "room_id"}, {"key": "sender"}}},
			"event_context": json{"before_limit": 1, "after_limit": 1, "include_profile": true},
		}}})
		out, _ := homeserver.Dig(res, "search_categories", "room_events").(json)
		return out
	}
	walk := func(token string) (n int) {
		for range 10 {
			res := search(token)
			n += len(homeserver.Events(res, "results"))
			token, _ = res["next_batch"].(string)
			if token == "" {
				return n
			}
		}
		t.Fatal("paging does not end")
		return 0
	}
	first := search("")
	if first["count"] != 15.0 || len(homeserver.Events(first, "results")) != 4 || len(homeserver.Events(first, "state", room)) < 5 {
		t.Errorf("%v", first)
	}
	context, _ := homeserver.Events(first, "results")[1]["context"].(json)
	if len(homeserver.Events(context, "events_before")) != 1 || homeserver.Dig(context, "profile_info", alice.UserID) == nil {
		t.Errorf("context: %v", context)
	}
	if n := walk(""); n != 15 {
		t.Errorf("%d over all pages", n)
	}
	group, _ := homeserver.Dig(first, "groups", "sender", bob.UserID).(json)
	given, _ := group["results"].([]any)
	next, _ := group["next_batch"].(string)
	if n := walk(next); len(given) == 0 || n+len(given) != 5 {
		t.Errorf("bob's: %d and %d", len(given), n)
	}
}

func TestLegacyEvents(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob, eve := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "eve")
		room := alice.CreateRoom(json{"preset": "public_chat", "invite": []string{bob.UserID}})
		before := alice.Say(room, "before")
		all := alice.Must("GET", "/v3/initialSync?limit=2", nil)
		list := homeserver.Events(all, "rooms")
		if len(list) != 1 || list[0]["membership"] != "join" || len(homeserver.Events(list[0], "messages", "chunk")) != 2 || len(homeserver.Events(list[0], "state")) < 5 {
			t.Errorf("%v", all)
		}
		if invited := homeserver.Events(bob.Must("GET", "/v3/initialSync", nil), "rooms"); len(invited) != 1 || homeserver.Dig(invited[0], "invite", "sender") != alice.UserID {
			t.Errorf("%v", invited)
		}
		if ev := alice.Must("GET", "/v3/events"+homeserver.Path(before), nil); homeserver.Dig(ev, "content", "body") != "before" {
			t.Errorf("%v", ev)
		}
		eve.Refused("GET", "/v3/events"+homeserver.Path(before), nil, http.StatusNotFound, "M_NOT_FOUND")
		none := alice.Must("GET", "/v3"+roomPath(room, "initialSync")+"?limit=0", nil)
		if len(homeserver.Events(none, "messages", "chunk")) != 0 || len(homeserver.Events(none, "state")) == 0 || homeserver.Dig(none, "messages", "start") == nil {
			t.Errorf("initialSync without messages: %v", none["messages"])
		}
		eve.Refused("GET", "/v3"+roomPath(room, "initialSync"), nil, http.StatusForbidden, "M_FORBIDDEN")
		eve.Refused("GET", "/v3/events?room_id="+url.QueryEscape(room), nil, http.StatusForbidden, "M_FORBIDDEN")

		// A room that is world readable can be listened to without joining.
		alice.SetState(room, "m.room.history_visibility", "", json{"history_visibility": "world_readable"})
		peek := eve.Must("GET", "/v3"+roomPath(room, "initialSync"), nil)
		from := fmt.Sprint(homeserver.Dig(peek, "messages", "end"))
		got := make(chan json, 1)
		go func() {
			got <- eve.Must("GET", "/v3/events?timeout=20000&room_id="+url.QueryEscape(room)+"&from="+url.QueryEscape(from), nil)
		}()
		said := alice.Say(room, "to whom it may concern")
		select {
		case page := <-got:
			if ids := eventIDs(page, "chunk"); len(ids) != 1 || ids[0] != said {
				t.Errorf("%v", page)
			}
		case <-time.After(15 * time.Second):
			t.Error("nobody was woken")
		}
	})
}

func TestReportsNotificationsAndOpenID(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	said := alice.Say(room, "hello")
	loud := alice.Send(room, "m.room.message", json{"msgtype": "m.text", "body": "hello bob", "m.mentions": json{"user_ids": []string{bob.UserID}}})
	bob.SyncUntil("both notifications", func(res json) bool {
		return homeserver.Dig(res, "rooms", "join", room, "unread_notifications", "notification_count") == 2.0
	})
	list := func(query string) []json {
		return homeserver.Events(bob.Must("GET", "/v3/notifications"+query, nil), "notifications")
	}
	if all := list(""); len(all) != 2 || homeserver.Dig(all[0], "event", "event_id") != loud || all[0]["room_id"] != room || all[1]["read"] != false {
		t.Errorf("%v", all)
	}
	if highlights := list("?only=highlight"); len(highlights) != 1 {
		t.Errorf("%v", highlights)
	}
	page := bob.Must("GET", "/v3/notifications?limit=1", nil)
	if second := list("?limit=1&from=" + fmt.Sprint(page["next_token"])); len(second) != 1 || homeserver.Dig(second[0], "event", "event_id") != said {
		t.Errorf("%v", second)
	}

	bob.Must("POST", "/v3"+roomPath(room, "report", said), json{"reason": "rude"})
	bob.Must("POST", "/v3"+roomPath(room, "report"), json{"reason": ""})
	bob.Must("POST", "/v3/users"+homeserver.Path(alice.UserID, "report"), json{"reason": "rude"})
	bob.Refused("POST", "/v3"+roomPath(room, "report", "$none"), json{"reason": "x"}, http.StatusNotFound, "M_NOT_FOUND")
	hs.Register(t, "eve").Refused("POST", "/v3"+roomPath(room, "report", said), json{"reason": "x"}, http.StatusNotFound, "M_NOT_FOUND")

	token := bob.Must("POST", "/v3/user"+homeserver.Path(bob.UserID, "openid", "request_token"), json{})
	if token["token_type"] != "Bearer" || token["matrix_server_name"] == "" || token["access_token"] == nil {
		t.Errorf("%v", token)
	}
	bob.Refused("POST", "/v3/user"+homeserver.Path(alice.UserID, "openid", "request_token"), json{}, http.StatusForbidden, "M_FORBIDDEN")
}

// What a member set for a room is there in the one that replaces it, also on another server than the upgrader's.
func TestUpgradeFollows(t *testing.T) {
	net := homeserver.NewNetwork(t)
	a, b := net.Start(homeserver.Options{}), net.Start(homeserver.Options{})
	alice, bob := a.Register(t, "alice"), b.Register(t, "bob")
	old := alice.CreateRoom(json{"preset": "public_chat", "room_version": "11"})
	bob.Join(old, a.Name)
	bob.SyncUntilJoined(old, bob.UserID)
	bob.Must("PUT", "/v3/user"+homeserver.Path(bob.UserID, "rooms", old, "tags", "m.favourite"), json{"order": 0.1})
	bob.Must("PUT", "/v3/user"+homeserver.Path(bob.UserID, "account_data", "m.direct"), json{alice.UserID: []string{old}})
	bob.Must("PUT", "/v3/pushrules/global/room"+homeserver.Path(old), json{"actions": []string{}})
	alice.Refused("POST", "/v3"+roomPath(old, "upgrade"), json{"new_version": "nonsense"}, http.StatusBadRequest, "M_UNSUPPORTED_ROOM_VERSION")
	bob.Refused("POST", "/v3"+roomPath(old, "upgrade"), json{"new_version": "12"}, http.StatusForbidden, "M_FORBIDDEN")
	room := fmt.Sprint(alice.Must("POST", "/v3"+roomPath(old, "upgrade"), json{"new_version": "12"})["replacement_room"])
	bob.SyncUntil("the tombstone", func(res json) bool {
		for _, ev := range homeserver.Timeline(res, old) {
			if ev["type"] == "m.room.tombstone" && homeserver.Dig(ev, "content", "replacement_room") == room {
				return true
			}
		}
		return false
	})
	bob.Join(room, a.Name)
	tagged, direct, silent := false, false, false
	bob.SyncUntil("tag, direct chat and push rule of the new room", func(res json) bool {
		for _, d := range homeserver.Events(res, "rooms", "join", room, "account_data", "events") {
			tagged = tagged || homeserver.Dig(d, "content", "tags", "m.favourite", "order") == 0.1
		}
		for _, d := range homeserver.Events(res, "account_data", "events") {
			list, _ := homeserver.Dig(d, "content", alice.UserID).([]any)
			direct = direct || len(list) == 2 && list[1] == room
			rules := homeserver.Events(d, "content", "global", "room")
			silent = silent || len(rules) == 2 && rules[1]["rule_id"] == room
		}
		return tagged && direct && silent
	})
}
