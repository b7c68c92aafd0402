package sytest

import (
	stdjson "encoding/json"
	"net/url"
	"strings"
	"testing"

	"hanok/sytest/homeserver"
)

// What somebody sent who asks to be erased is whole only for those who were in the room. spec: cs/deactivateAccount
func TestErasure(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	peer := n.NewPeer()
	alice, bob, carol := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "carol")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	said := alice.Say(room, "a word too many")
	peer.Join(hs, room, "visitor")
	bodies := func(c *homeserver.Client) map[string]any {
		t.Helper()
		found := map[string]any{}
		note := func(where string, events []json) {
			for _, e := range events {
				if e["event_id"] == said {
					found[where] = homeserver.Dig(e, "content", "body")
				}
			}
		}
		note("sync", homeserver.Timeline(c.Login().Sync(0, "filter", `{"room":{"timeline":{"limit":50}}}`), room))
		note("messages", homeserver.Events(c.Must("GET", "/v3/rooms"+homeserver.Path(room, "messages")+"?dir=b&limit=50", nil), "chunk"))
		note("event", []json{c.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", said), nil)})
		context := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "context", said), nil)
		note("context", []json{context["event"].(json)})
		search := c.Must("POST", "/v3/search", json{"search_categories": json{"room_events": json{"search_term": "word"}}})
		found["search"] = homeserver.Dig(search, "search_categories", "room_events", "count")
		return found
	}
	expect := func(who string, c *homeserver.Client, body any, hits float64) {
		t.Helper()
		got := bodies(c)
		if len(got) != 5 || got["search"] != hits {
			t.Errorf("%s finds %v", who, got)
		}
		for where, b := range got {
			if where != "search" && b != body {
				t.Errorf("%s reads %v in %s", who, b, where)
			}
		}
	}
	served := func() string {
		t.Helper()
		status, answer := peer.Call(hs, "GET", "/_matrix/federation/v1/event/"+url.PathEscape(said), nil)
		if status != 200 {
			t.Fatalf("event: %d %s", status, answer)
		}
		return string(answer)
	}
	carol.Join(room)
	expect("carol, who came later,", carol, "a word too many", 1)
	if !strings.Contains(served(), "too many") {
		t.Error("another server does not get the event whole")
	}
	alice.Must("POST", "/v3/account/deactivate", json{"erase": true, "auth": json{
		"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": alice.UserID}, "password": homeserver.Password,
	}})
	expect("bob, who was there,", bob, "a word too many", 1)
	expect("carol, who came later,", carol, nil, 0)
	if answer := served(); strings.Contains(answer, "too many") || !stdjson.Valid([]byte(answer)) {
		t.Errorf("another server gets %s", answer)
	}
}
