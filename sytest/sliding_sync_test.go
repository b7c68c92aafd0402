package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// slidingClient speaks one connection of sliding sync, in one of the dialects.
type slidingClient struct {
	*homeserver.Client
	t      *testing.T
	stable bool
	conn   string
	pos    string
}

// eachDialect runs a test in both dialects.
func eachDialect(t *testing.T, fn func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient)) {
	for name, stable := range map[string]bool{"stable": true, "unstable": false} {
		t.Run(name, func(t *testing.T) {
			fn(t, func(c *homeserver.Client, conn string) *slidingClient {
				return &slidingClient{Client: c, t: t, stable: stable, conn: conn}
			})
		})
	}
}

// list is a list's part of a request: the first rooms up to a number, or all below 0, with events and state. State is pairs as the
// unstable dialect has them.
func (c *slidingClient) list(count, timeline int, state ...[2]string) json {
	l := c.room(timeline, state...)
	if count > 0 {
		if c.stable {
			l["range"] = []int{0, count - 1}
		} else {
			l["ranges"] = [][]int{{0, count - 1}}
		}
	}
	return l
}

// room is what to tell of a room.
func (c *slidingClient) room(timeline int, state ...[2]string) json {
	if !c.stable {
		pairs := make([][]string, len(state))
		for i, s := range state {
			pairs[i] = s[:]
		}
		return json{"timeline_limit": timeline, "required_state": pairs}
	}
	var include []json
	lazy := false
	for _, s := range state {
		el := json{}
		if s[1] == "$LAZY" {
			lazy = true
			continue
		}
		if s[0] != "*" {
			el["type"] = s[0]
		}
		if s[1] == "$ME" {
			s[1] = c.UserID
		}
		if s[1] != "*" {
			el["state_key"] = s[1]
		}
		include = append(include, el)
	}
	return json{"timeline_limit": timeline, "required_state": json{"include": include, "lazy_members": lazy}}
}

// try makes one request from where the last one ended.
func (c *slidingClient) try(wait time.Duration, body json) (int, json) {
	c.t.Helper()
	all := json{"conn_id": c.conn}
	for k, v := range body {
		all[k] = v
	}
	if c.stable {
		all["timeout"] = wait.Milliseconds()
		if c.pos != "" {
			all["pos"] = c.pos
		}
		return c.Do("POST", "/v4/sync", all)
	}
	q := url.Values{"timeout": {fmt.Sprint(wait.Milliseconds())}}
	if c.pos != "" {
		q.Set("pos", c.pos)
	}
	return c.Do("POST", "/unstable/org.matrix.simplified_msc3575/sync?"+q.Encode(), all)
}

// sync is try that must succeed and moves on.
func (c *slidingClient) sync(wait time.Duration, body json) json {
	c.t.Helper()
	status, res := c.try(wait, body)
	if status != http.StatusOK {
		c.t.Fatalf("sliding sync of %s: %d %v", c.UserID, status, res)
	}
	c.pos, _ = res["pos"].(string)
	return res
}

// until syncs until the check is satisfied.
func (c *slidingClient) until(what string, body json, check func(json) bool) json {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for time.Now().Before(deadline) {
		if res := c.sync(2*time.Second, body); check(res) {
			return res
		}
	}
	c.t.Fatalf("%s has not seen %s", c.UserID, what)
	return nil
}

// own is the client's membership in a list of a room's state events; nil if they do not say.
func (c *slidingClient) own(room json, list string) any {
	for _, e := range homeserver.Events(room, list) {
		if e["type"] == "m.room.member" && e["state_key"] == c.UserID {
			return homeserver.Dig(e, "content", "membership")
		}
	}
	return nil
}

func slidRoom(res json, room string) json {
	r, _ := homeserver.Dig(res, "rooms", room).(json)
	return r
}

// onlyCounts reports whether nothing is told of a room but its counts, which come a moment after its events.
func onlyCounts(r json) bool {
	return r["initial"] == nil && len(homeserver.Events(r, "timeline")) == 0 && r["required_state"] == nil && r["bump_stamp"] == nil
}

func stateKeys(events []json) []string {
	out := []string{}
	for _, e := range events {
		out = append(out, fmt.Sprint(e["type"], "|", e["state_key"]))
	}
	slices.Sort(out)
	return out
}

func TestSlidingSyncWindow(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
			alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
			var ids []string
			for i := range 5 {
				room := alice.CreateRoom(json{"preset": "public_chat", "name": fmt.Sprint("Room ", i)})
				bob.Join(room)
				ids = append(ids, room)
			}
			c := connect(alice, "room-list")
			body := func(n int) json { return json{"lists": json{"all": c.list(n, 1)}} }
			res := c.sync(0, body(2))
			if n := homeserver.Dig(res, "lists", "all", "count"); n != 5.0 {
				t.Errorf("count %v", n)
			}
			for _, room := range ids[3:] {
				r := slidRoom(res, room)
				if r["initial"] != true || len(homeserver.Events(r, "timeline")) != 1 || r["limited"] != true || r["joined_count"] != 2.0 || r["num_live"] != 0.0 {
					t.Errorf("a room in the window: %v", r)
				}
			}
			if len(res["rooms"].(json)) != 2 {
				t.Errorf("%d rooms for a window of two", len(res["rooms"].(json)))
			}
			// A larger window brings only the rooms that are new to it.
			res = c.sync(0, body(4))
			if got := res["rooms"].(json); len(got) != 2 || got[ids[1]] == nil || got[ids[2]] == nil {
				t.Errorf("window of four: %v", got)
			}
			// Something happens in a room out of the window: it becomes the first.
			said := bob.Say(ids[0], "up")
			res = c.until("the message", body(4), func(res json) bool { return slidRoom(res, ids[0]) != nil })
			r := slidRoom(res, ids[0])
			if r["initial"] != true || r["num_live"] != 1.0 || !slices.Equal(eventIDs(r, "timeline"), []string{said}) {
				t.Errorf("a room that came into the window: %v", r)
			}
			// And in one that is known: only what is new.
			said = bob.Say(ids[4], "more")
			res = c.until("the message", body(4), func(res json) bool { return len(homeserver.Events(slidRoom(res, ids[4]), "timeline")) > 0 })
			r = slidRoom(res, ids[4])
			if r["initial"] != nil || r["limited"] != false || r["name"] != nil || r["joined_count"] != nil || !slices.Equal(eventIDs(r, "timeline"), []string{said}) {
				t.Errorf("a known room: %v", r)
			}
			if r["bump_stamp"] == nil {
				t.Error("a message bumps its room")
			}
		})
	})
}

// A pos survives a restart, a response that got lost is given again, and neither loses anything.
func TestSlidingSyncPos(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
			alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
			var ids []string
			for range 3 {
				room := alice.CreateRoom(json{"preset": "public_chat"})
				bob.Join(room)
				ids = append(ids, room)
			}
			c := connect(alice, "main")
			body := json{"lists": json{"all": c.list(0, 10)}, "extensions": json{"receipts": json{"enabled": true}}}
			c.sync(0, body)
			before := c.pos
			first := bob.Say(ids[0], "lost on the way")
			c.until("the message", body, func(res json) bool { return slidRoom(res, ids[0]) != nil })
			lost := c.pos
			c.pos = before // the client did not get the response
			second := bob.Say(ids[0], "and one more")
			fresh := alice.CreateRoom(json{"name": "new"})
			res := c.sync(time.Second, body)
			if got := eventIDs(slidRoom(res, ids[0]), "timeline"); !slices.Equal(got, []string{first, second}) {
				t.Errorf("the repeated request tells %v, not %v and %v", got, first, second)
			}
			if slidRoom(res, fresh)["initial"] != true {
				t.Error("a room made meanwhile is not told")
			}
			c.pos = before // lost again
			if res = c.sync(time.Second, body); slidRoom(res, fresh)["initial"] != true || len(homeserver.Events(slidRoom(res, ids[0]), "timeline")) != 2 {
				t.Errorf("repeated once more: %v", res["rooms"])
			}
			hs.Kill()
			hs.Start()
			third := bob.Say(ids[1], "after the restart")
			res = c.until("the message", body, func(res json) bool { return len(homeserver.Events(slidRoom(res, ids[1]), "timeline")) > 0 })
			if rooms := res["rooms"].(json); !onlyCounts(slidRoom(res, ids[0])) || slidRoom(res, fresh) != nil || slidRoom(res, ids[1])["initial"] != nil || !slices.Equal(eventIDs(slidRoom(res, ids[1]), "timeline"), []string{third}) {
				t.Errorf("after a restart: %v", rooms)
			}
			if err := hs.Stop(); err != nil {
				t.Errorf("stopping: %v", err)
			}
			hs.Start()
			for id, r := range c.sync(0, body)["rooms"].(json) {
				if !onlyCounts(r.(json)) {
					t.Errorf("nothing happened in %s while the server was stopped: %v", id, r)
				}
			}
			// The pos is a token for the history, too.
			page := alice.Must("GET", "/v3/rooms"+homeserver.Path(ids[0], "messages")+"?dir=b&limit=1&from="+url.QueryEscape(c.pos), nil)
			if got := eventIDs(page, "chunk"); !slices.Equal(got, []string{second}) {
				t.Errorf("a page before pos: %v", got)
			}

			unknown := func(who *slidingClient, pos string) {
				t.Helper()
				who.pos = pos
				if status, res := who.try(0, body); status != http.StatusBadRequest || res["errcode"] != "M_UNKNOWN_POS" {
					t.Errorf("pos %q: %d %v", pos, status, res)
				}
			}
			good := c.pos
			unknown(connect(bob, "main"), good)
			unknown(connect(alice.Login(), "main"), good)
			unknown(connect(alice, "other"), good)
			for _, bad := range []string{"nonsense", "p1", "p1_", "p_1", "p-1_1", "p1_1_1", "s1", "p99999999999_1", "p1_99999999999", "p1_9223372036854775808", lost + "0"} {
				unknown(connect(alice, "main"), bad)
			}
			c.pos = good
			c.sync(0, body)
		})
	})
}

func TestSlidingSyncState(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob, eve := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "eve")
		room := alice.CreateRoom(json{"preset": "public_chat", "name": "named", "topic": "first"})
		bob.Join(room)
		eve.Join(room)
		alice.SetState(room, "org.example.thing", "a", json{"n": 1})
		alice.SetState(room, "org.example.thing", "b", json{"n": 1})
		said := bob.Say(room, "hello")
		c := connect(alice, "main")
		member := func(user string) string { return "m.room.member|" + user }
		body := func(timeline int, state ...[2]string) json {
			return json{"lists": json{"all": c.list(20, timeline, state...)}}
		}
		keys := func(res json) []string { return stateKeys(homeserver.Events(slidRoom(res, room), "required_state")) }

		element := [][2]string{{"m.room.member", "$LAZY"}, {"m.room.member", "$ME"}, {"m.room.topic", ""}, {"org.example.thing", "*"}}
		res := c.sync(0, body(1, element...))
		want := []string{member(alice.UserID), member(bob.UserID), "m.room.topic|", "org.example.thing|a", "org.example.thing|b"}
		slices.Sort(want)
		if got := keys(res); !slices.Equal(got, want) {
			t.Errorf("required state %v, want %v", got, want)
		}
		if got := eventIDs(slidRoom(res, room), "timeline"); !slices.Equal(got, []string{said}) {
			t.Errorf("timeline %v", got)
		}
		// Bob is known; Eve is not.
		bob.Say(room, "again")
		res = c.until("bob's message", body(1, element...), func(res json) bool { return !onlyCounts(slidRoom(res, room)) })
		if got := keys(res); len(got) > 0 {
			t.Errorf("told again of %v", got)
		}
		eve.Say(room, "me too")
		res = c.until("eve's message", body(1, element...), func(res json) bool { return !onlyCounts(slidRoom(res, room)) })
		if got := keys(res); !slices.Equal(got, []string{member(eve.UserID)}) {
			t.Errorf("a sender who is new: %v", got)
		}
		// What changes is told if it is asked for.
		alice.SetState(room, "m.room.topic", "", json{"topic": "second"})
		alice.SetState(room, "m.room.history_visibility", "", json{"history_visibility": "joined"})
		alice.SetState(room, "org.example.thing", "c", json{"n": 1})
		res = c.sync(time.Second, body(10, element...))
		// (The timeline has a gap, so its senders are told anew.)
		notMembers := slices.DeleteFunc(keys(res), func(k string) bool { return strings.HasPrefix(k, "m.room.member|") })
		if got := notMembers; !slices.Equal(got, []string{"m.room.topic|", "org.example.thing|c"}) {
			t.Errorf("changes: %v", got)
		}
		// More is asked for than before: it comes at once, and only that.
		more := append(slices.Clone(element), [2]string{"m.room.create", ""}, [2]string{"m.room.history_visibility", ""})
		res = c.sync(0, body(10, more...))
		if r := slidRoom(res, room); r["initial"] != nil || len(homeserver.Events(r, "timeline")) > 0 || !slices.Equal(keys(res), []string{"m.room.create|", "m.room.history_visibility|"}) {
			t.Errorf("more state: %v", r)
		}
		// Less, and then as before: what changed meanwhile is not missed.
		c.sync(0, body(10, element...))
		alice.SetState(room, "m.room.history_visibility", "", json{"history_visibility": "shared"})
		c.until("the change in the timeline", body(10, element...), func(res json) bool { return !onlyCounts(slidRoom(res, room)) })
		res = c.sync(0, body(10, more...))
		if !slices.Contains(keys(res), "m.room.history_visibility|") {
			t.Errorf("a change that was not asked for is missing: %v", keys(res))
		}
		// Everything but members; and everything.
		c = connect(alice, "everything")
		res = c.sync(0, body(1, [2]string{"*", "*"}, [2]string{"m.room.member", "$LAZY"}))
		got := keys(res)
		if !slices.Contains(got, "m.room.power_levels|") || !slices.Contains(got, "org.example.thing|c") || slices.Contains(got, member(bob.UserID)) || !slices.Contains(got, member(alice.UserID)) {
			t.Errorf("everything but members, with alice the sender: %v", got)
		}
		c = connect(alice, "everyone")
		if got := keys(c.sync(0, body(1, [2]string{"*", "*"}))); !slices.Contains(got, member(eve.UserID)) || !slices.Contains(got, member(bob.UserID)) {
			t.Errorf("everything: %v", got)
		}
		// A name that is taken away.
		alice.SetState(room, "m.room.name", "", json{})
		res = c.until("the name going", body(1), func(res json) bool { return !onlyCounts(slidRoom(res, room)) })
		r := slidRoom(res, room)
		if name, ok := r["name"]; !ok || name != nil || len(homeserver.Events(r, "heroes")) != 2 {
			t.Errorf("a name that was removed: %v", r)
		}
	})
}

// The rules of the stable dialect that the other cannot say.
func TestSlidingSyncExclude(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{"preset": "public_chat", "name": "n", "topic": "t"})
	c := &slidingClient{Client: alice, t: t, stable: true}
	res := c.sync(0, json{
		"lists": json{"a": json{"timeline_limit": 1, "required_state": json{"include": []json{{}}, "exclude": []json{{"type": "m.room.create"}, {"state_key": alice.UserID}}}}},
		"room_subscriptions": json{
			room:            json{"timeline_limit": 3, "required_state": json{"include": []json{{"type": "m.room.create", "state_key": ""}}}},
			"!unknown:here": json{"timeline_limit": 3, "required_state": json{}},
			"nonsense":      json{"timeline_limit": 3, "required_state": json{}},
		},
	})
	got := stateKeys(homeserver.Events(slidRoom(res, room), "required_state"))
	if !slices.Contains(got, "m.room.create|") || !slices.Contains(got, "m.room.topic|") || slices.Contains(got, "m.room.member|"+alice.UserID) {
		t.Errorf("the union of a list and a subscription: %v", got)
	}
	if n := len(homeserver.Events(slidRoom(res, room), "timeline")); n != 3 {
		t.Errorf("%d events, the larger limit is 3", n)
	}
	if len(res["rooms"].(json)) != 1 || !slices.Equal(slidRoom(res, room)["lists"].([]any), []any{"a"}) || slidRoom(res, room)["membership"] != "join" {
		t.Errorf("%v", res["rooms"])
	}
}

func TestSlidingSyncTimeline(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		var said []string
		for i := range 6 {
			said = append(said, bob.Say(room, fmt.Sprint(i)))
		}
		c := connect(alice, "main")
		expanded := "expanded_timeline"
		if !c.stable {
			expanded = "unstable_expanded_timeline"
		}
		body := func(list, subscribed int) json {
			b := json{"lists": json{"all": c.list(20, list)}}
			if subscribed > 0 {
				b["room_subscriptions"] = json{room: c.room(subscribed)}
			}
			return b
		}
		expect := func(what string, res json, events []string, isExpanded, limited bool, live float64) {
			t.Helper()
			r := slidRoom(res, room)
			if got := eventIDs(r, "timeline"); !slices.Equal(got, events) || (r[expanded] == true) != isExpanded || r["limited"] != limited || r["num_live"] != live {
				t.Errorf("%s: %v, %s %v, limited %v, live %v; want %v %v %v %v", what, got, expanded, r[expanded], r["limited"], r["num_live"], events, isExpanded, limited, live)
			}
		}
		expect("first", c.sync(0, body(1, 0)), said[5:], false, true, 0)
		expect("raised", c.sync(0, body(1, 4)), said[2:], true, true, 0)
		if res := c.sync(0, body(1, 4)); !onlyCounts(slidRoom(res, room)) {
			t.Errorf("the same again: %v", slidRoom(res, room))
		}
		if res := c.sync(0, body(1, 0)); !onlyCounts(slidRoom(res, room)) {
			t.Errorf("lowered: %v", slidRoom(res, room))
		}
		if res := c.sync(0, body(3, 0)); !onlyCounts(slidRoom(res, room)) {
			t.Errorf("raised to what is known: %v", slidRoom(res, room))
		}
		said = append(said, bob.Say(room, "6"))
		expect("one more", c.sync(time.Second, body(1, 4)), said[6:], false, false, 1)
		// A gap: what was before it does not count as known any more.
		for i := range 3 {
			said = append(said, bob.Say(room, fmt.Sprint("gap ", i)))
		}
		res := c.sync(time.Second, body(1, 0))
		expect("gap", res, said[9:], false, true, 1)
		prev := slidRoom(res, room)["prev_batch"].(string)
		if got := eventIDs(alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "messages")+"?dir=b&limit=2&from="+prev, nil), "chunk"); !slices.Equal(got, []string{said[8], said[7]}) {
			t.Errorf("the page before the gap: %v", got)
		}
		said = append(said, bob.Say(room, "last"))
		expect("raised after a gap, with news", c.sync(time.Second, body(1, 4)), said[7:], true, true, 1)
		// Without a timeline: the list still moves.
		c = connect(alice, "without")
		if r := slidRoom(c.sync(0, body(0, 0)), room); r["timeline"] != nil || r["limited"] != nil || r["bump_stamp"] == nil || r["initial"] != true {
			t.Errorf("without a timeline: %v", r)
		}
		bob.Say(room, "bump")
		if r := slidRoom(c.until("the room", body(0, 0), func(res json) bool { return !onlyCounts(slidRoom(res, room)) }), room); r["bump_stamp"] == nil || r["timeline"] != nil {
			t.Errorf("a message without a timeline: %v", r)
		}
	})
}

func TestSlidingSyncMemberships(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		c := connect(bob, "main")
		stripped := "stripped_state"
		if !c.stable {
			stripped = "invite_state"
		}
		body := json{"lists": json{"all": c.list(20, 5, [2]string{"m.room.member", "$ME"})}}
		c.sync(0, body)
		told := func(room string) json {
			t.Helper()
			return slidRoom(c.until("something of "+room, body, func(res json) bool { return !onlyCounts(slidRoom(res, room)) }), room)
		}
		count := func() any { return homeserver.Dig(c.sync(0, body), "lists", "all", "count") }

		// Invited and refused.
		room := alice.CreateRoom(json{"preset": "private_chat", "name": "secret", "invite": []string{bob.UserID}})
		if r := told(room); r["initial"] != true || c.own(r, stripped) != "invite" || r["timeline"] != nil || r["required_state"] != nil || c.stable && r["membership"] != "invite" {
			t.Errorf("an invite: %v", r)
		}
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		r := told(room)
		if c.stable && (c.own(r, stripped) != "leave" || r["membership"] != "leave") || !c.stable && (c.own(r, "required_state") != "leave" || r[stripped] != nil) {
			t.Errorf("an invite refused: %v", r)
		}
		// Invited, and joined: all of the room.
		room = alice.CreateRoom(json{"preset": "private_chat", "invite": []string{bob.UserID}})
		told(room)
		bob.Join(room)
		if r := told(room); r["initial"] != true || c.own(r, "required_state") != "join" || r["joined_count"] != 2.0 || len(homeserver.Events(r, "heroes")) != 1 {
			t.Errorf("joined: %v", r)
		}
		// Kicked: up to that, and not what comes after.
		before := alice.Say(room, "before")
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "kick"), json{"user_id": bob.UserID})
		after := alice.Say(room, "after")
		seen := []string{}
		c.until("the kick", body, func(res json) bool {
			r := slidRoom(res, room)
			seen = append(seen, eventIDs(r, "timeline")...)
			return c.own(r, "required_state") == "leave"
		})
		if !slices.Contains(seen, before) || slices.Contains(seen, after) {
			t.Errorf("a kick shows %v; %v was before, %v after", seen, before, after)
		}
		// Who was kicked is told on a new connection, who left is not.
		left := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(left)
		bob.Must("POST", "/v3/rooms"+homeserver.Path(left, "leave"), json{})
		anew := connect(bob, "anew")
		res := anew.sync(0, body)
		if r := slidRoom(res, room); r == nil || c.own(r, "required_state") != "leave" || slices.Contains(eventIDs(r, "timeline"), after) {
			t.Errorf("a room that bob was kicked from: %v", r)
		}
		if slidRoom(res, left) != nil || homeserver.Dig(res, "lists", "all", "count") != 1.0 {
			t.Errorf("a room that bob left himself, on a new connection: %v", res)
		}
		// Left on a connection that knows the room; forgotten at once.
		room = alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		told(room)
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "forget"), json{})
		if r := told(room); c.own(r, "required_state") != "leave" {
			t.Errorf("left and forgotten: %v", r)
		}
		// Banned, never having been in: nothing. Having been in: told.
		room = alice.CreateRoom(json{"preset": "public_chat"})
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "ban"), json{"user_id": bob.UserID})
		n := count()
		if res := connect(bob, "banned").sync(0, body); slidRoom(res, room) != nil {
			t.Errorf("banned from a room bob never was in: %v", res)
		}
		room = alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		told(room)
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "ban"), json{"user_id": bob.UserID})
		if r := told(room); c.own(r, "required_state") != "ban" || c.stable && r["membership"] != "ban" {
			t.Errorf("banned: %v", r)
		}
		if again := count(); again == n {
			t.Errorf("a room that bob was banned from is not in the list: %v before and after", n)
		}
		// A knock.
		room = alice.CreateRoom(json{"preset": "public_chat", "initial_state": []json{{"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "knock"}}}})
		bob.Must("POST", "/v3/knock"+homeserver.Path(room), json{})
		if r := told(room); c.own(r, stripped) != "knock" {
			t.Errorf("a knock: %v", r)
		}
		// An invite by somebody who is ignored is not there, and does not count.
		before2 := count()
		bob.Must("PUT", "/v3/user"+homeserver.Path(bob.UserID, "account_data", "m.ignored_user_list"), json{"ignored_users": json{alice.UserID: json{}}})
		room = alice.CreateRoom(json{"preset": "private_chat", "invite": []string{bob.UserID}})
		if after := count(); after != before2 {
			t.Errorf("an invite of an ignored user counts: %v, then %v", before2, after)
		}
		if r := slidRoom(connect(bob, "ignoring").sync(0, body), room); r != nil {
			t.Errorf("an invite of an ignored user: %v", r)
		}
	})
}

func TestSlidingSyncFilters(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		plain := alice.CreateRoom(json{"preset": "public_chat", "name": "Kitchen"})
		secret := alice.CreateRoom(json{"preset": "private_chat", "name": "Attic", "initial_state": []json{{"type": "m.room.encryption", "state_key": "", "content": json{"algorithm": "m.megolm.v1.aes-sha2"}}}})
		space := alice.CreateRoom(json{"preset": "public_chat", "name": "House", "creation_content": json{"type": "m.space"}})
		alice.SetState(space, "m.space.child", plain, json{"via": []string{hs.Name}})
		invited := bob.CreateRoom(json{"preset": "private_chat", "name": "Cellar", "invite": []string{alice.UserID}})
		names := map[string]string{plain: "plain", secret: "secret", space: "space", invited: "invited"}
		setDirect := func(ids ...string) {
			alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "account_data", "m.direct"), json{bob.UserID: ids})
		}
		setDirect(secret)
		alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "rooms", plain, "tags", "m.favourite"), json{})
		alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "rooms", secret, "tags", "u.other"), json{})
		invites := "is_invited"
		if c := connect(alice, ""); !c.stable {
			invites = "is_invite"
		}
		for i, x := range []struct {
			filters json
			want    []string
		}{
			{json{}, []string{"invited", "plain", "secret", "space"}},
			{json{"is_dm": true}, []string{"secret"}},
			{json{"is_dm": false}, []string{"invited", "plain", "space"}},
			{json{"is_encrypted": true}, []string{"secret"}},
			{json{"is_encrypted": false}, []string{"invited", "plain", "space"}},
			{json{invites: true}, []string{"invited"}},
			{json{invites: false}, []string{"plain", "secret", "space"}},
			{json{"room_types": []any{"m.space"}}, []string{"space"}},
			{json{"room_types": []any{nil}}, []string{"invited", "plain", "secret"}},
			{json{"room_types": []any{}}, []string{}},
			{json{"not_room_types": []any{"m.space"}}, []string{"invited", "plain", "secret"}},
			{json{"room_types": []any{"m.space", nil}, "not_room_types": []any{nil}}, []string{"space"}},
			{json{"tags": []string{"m.favourite", "u.other"}}, []string{"plain", "secret"}},
			{json{"tags": []string{"m.favourite", "u.other"}, "not_tags": []string{"u.other"}}, []string{"plain"}},
			{json{"not_tags": []string{"m.favourite"}}, []string{"invited", "secret", "space"}},
			{json{"spaces": []string{space, "!unknown:here"}}, []string{"plain"}},
			{json{"spaces": []string{}}, []string{}},
			{json{"is_dm": true, "is_encrypted": false}, []string{}},
		} {
			c := connect(alice, fmt.Sprint("filters ", i%5))
			list := c.list(20, 0)
			list["filters"] = x.filters
			res := c.sync(0, json{"lists": json{"l": list}})
			got := []string{}
			for id := range res["rooms"].(json) {
				got = append(got, names[id])
			}
			slices.Sort(got)
			if !slices.Equal(got, x.want) || homeserver.Dig(res, "lists", "l", "count") != float64(len(x.want)) {
				t.Errorf("%v: %v, count %v; want %v", x.filters, got, homeserver.Dig(res, "lists", "l", "count"), x.want)
			}
		}
		c := connect(alice, "by name")
		list := c.list(20, 0)
		list["filters"] = json{"room_name_like": "TTI"}
		if res := c.sync(0, json{"lists": json{"l": list}}); !c.stable && (len(res["rooms"].(json)) != 1 || slidRoom(res, secret) == nil) {
			t.Errorf("room_name_like: %v", res["rooms"])
		}
		// Filters follow what changes, and so does is_dm.
		c = connect(alice, "changing")
		list = c.list(20, 0)
		list["filters"] = json{"is_encrypted": true}
		body := json{"lists": json{"encrypted": list, "all": c.list(20, 0)}}
		if res := c.sync(0, body); slidRoom(res, secret)["is_dm"] != true || slidRoom(res, plain)["is_dm"] != nil {
			t.Errorf("is_dm: %v", res["rooms"])
		}
		alice.SetState(plain, "m.room.encryption", "", json{"algorithm": "m.megolm.v1.aes-sha2"})
		c.until("a room that became encrypted", body, func(res json) bool { return homeserver.Dig(res, "lists", "encrypted", "count") == 2.0 })
		setDirect(plain)
		r := c.until("the change of m.direct", body, func(res json) bool { return slidRoom(res, secret) != nil })
		if slidRoom(r, secret)["is_dm"] != false || slidRoom(r, plain)["is_dm"] != true {
			t.Errorf("is_dm changed: %v", r["rooms"])
		}
		if !c.stable && slidRoom(r, secret)["notification_count"] == nil {
			t.Errorf("a room without its counts: %v", slidRoom(r, secret))
		}
	})
}

// extension is what a response tells in an extension of a room, or of nothing in particular.
func extension(res json, path ...string) json {
	x, _ := homeserver.Dig(res, append([]string{"extensions"}, path...)...).(json)
	return x
}

// The encryption sync of clients is a connection of its own, with nothing but extensions.
func TestSlidingSyncEncryption(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
			alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
			c := connect(bob, "encryption")
			since := ""
			sync := func(wait time.Duration) json {
				t.Helper()
				toDevice := json{"enabled": true}
				if since != "" {
					toDevice["since"] = since
				}
				res := c.sync(wait, json{"extensions": json{"to_device": toDevice, "e2ee": json{"enabled": true}}})
				since, _ = extension(res, "to_device")["next_batch"].(string)
				return res
			}
			send := func(n int) {
				alice.Must("PUT", "/v3/sendToDevice/org.example.n"+homeserver.Path(fmt.Sprint(c.stable, n)), json{"messages": json{bob.UserID: json{bob.DeviceID: json{"n": n}}}})
			}
			res := sync(0)
			if since == "" || extension(res, "e2ee")["device_one_time_keys_count"] == nil || extension(res, "e2ee")["device_unused_fallback_key_types"] == nil || len(res["rooms"].(json)) != 0 {
				t.Errorf("the first response: %v", res)
			}
			numbers := func(res json) (out []any) {
				for _, e := range homeserver.Events(extension(res, "to_device"), "events") {
					out = append(out, homeserver.Dig(e, "content", "n"))
				}
				return out
			}
			acknowledged := since
			send(1)
			if got := numbers(sync(5 * time.Second)); !slices.Equal(got, []any{1.0}) {
				t.Errorf("one message: %v", got)
			}
			since = acknowledged // the response was lost
			send(2)
			if got := numbers(sync(5 * time.Second)); !slices.Equal(got, []any{1.0, 2.0}) {
				t.Errorf("a message that was not acknowledged comes again: %v", got)
			}
			c.pos = "" // a new connection goes on where the messages were
			if got := numbers(sync(0)); len(got) != 0 {
				t.Errorf("acknowledged messages come again: %v", got)
			}
			since = "0"
			if got := numbers(sync(0)); len(got) != 0 {
				t.Errorf("acknowledged messages are still there: %v", got)
			}
			for n := 10; n < 115; n++ {
				send(n)
			}
			first := numbers(sync(time.Second))
			second := numbers(sync(time.Second))
			if len(first) != 100 || len(second) != 5 || first[0] != 10.0 || second[4] != 114.0 {
				t.Errorf("%d and %d of 105 messages, from %v to %v", len(first), len(second), first[0], second[len(second)-1])
			}
			// Who comes into sight and goes out of it.
			room := alice.CreateRoom(json{"preset": "public_chat"})
			bob.Join(room)
			c.until("alice's devices", json{"extensions": json{"e2ee": json{"enabled": true}}}, func(res json) bool {
				list, _ := homeserver.Dig(extension(res, "e2ee"), "device_lists", "changed").([]any)
				return slices.Contains(list, any(alice.UserID))
			})
			bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
			c.until("alice going out of sight", json{"extensions": json{"e2ee": json{"enabled": true}}}, func(res json) bool {
				list, _ := homeserver.Dig(extension(res, "e2ee"), "device_lists", "left").([]any)
				return slices.Contains(list, any(alice.UserID))
			})
		})
	})
}

func TestSlidingSyncExtensions(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
			alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
			var ids, said []string
			for range 3 {
				room := alice.CreateRoom(json{"preset": "public_chat"})
				bob.Join(room)
				ids = append(ids, room)
				said = append(said, alice.Say(room, "hello"))
			}
			low, mid, top := ids[0], ids[1], ids[2]
			read := func(c *homeserver.Client, room, event string) {
				c.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", "m.read", event), json{})
			}
			tag := func(room, tag string) {
				alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "rooms", room, "tags", tag), json{})
			}
			read(bob, top, said[2])
			read(bob, low, said[0])
			tag(top, "u.one")
			tag(low, "u.low")
			c := connect(alice, "main")
			on := json{"enabled": true}
			body := func(count int) json {
				return json{"lists": json{"all": c.list(count, 1)}, "extensions": json{
					"account_data": on, "receipts": on, "typing": on, "io.element.msc4308.thread_subscriptions": json{"enabled": true, "limit": 2},
				}}
			}
			receipt := func(res json, room, event, user string) bool {
				return homeserver.Dig(extension(res, "receipts", "rooms", room), "content", event, "m.read", user) != nil
			}
			tags := func(res json, room string) any {
				for _, e := range homeserver.Events(extension(res, "account_data", "rooms"), room) {
					if e["type"] == "m.tag" {
						return homeserver.Dig(e, "content", "tags")
					}
				}
				return nil
			}
			res := c.sync(0, body(2))
			if !receipt(res, top, said[2], bob.UserID) || receipt(res, low, said[0], bob.UserID) {
				t.Errorf("receipts of the window: %v", extension(res, "receipts"))
			}
			if tags(res, top) == nil || tags(res, low) != nil {
				t.Errorf("account data of the window: %v", extension(res, "account_data"))
			}
			rules := false
			for _, e := range homeserver.Events(extension(res, "account_data"), "global") {
				rules = rules || e["type"] == "m.push_rules"
			}
			if !rules {
				t.Error("no push rules in the global account data")
			}
			// What happens in the window comes.
			read(bob, mid, said[1])
			c.until("a receipt", body(2), func(res json) bool { return receipt(res, mid, said[1], bob.UserID) })
			bob.Must("PUT", "/v3/rooms"+homeserver.Path(mid, "typing", bob.UserID), json{"typing": true, "timeout": 60000})
			c.until("typing", body(2), func(res json) bool {
				list, _ := homeserver.Dig(extension(res, "typing", "rooms", mid), "content", "user_ids").([]any)
				return slices.Equal(list, []any{bob.UserID})
			})
			alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "account_data", "org.example.global"), json{"a": 1})
			tag(top, "u.two")
			c.until("account data", body(2), func(res json) bool { return tags(res, top) != nil })
			if res := c.sync(50*time.Millisecond, body(2)); len(extension(res, "receipts", "rooms")) > 0 || len(extension(res, "typing", "rooms")) > 0 || len(homeserver.Events(extension(res, "account_data"), "global")) > 0 {
				t.Errorf("told twice: %v", res["extensions"])
			}
			// What happened out of the window comes with the room: all of it at first ...
			res = c.sync(0, body(3))
			if !receipt(res, low, said[0], bob.UserID) || tags(res, low) == nil || receipt(res, mid, said[1], bob.UserID) {
				t.Errorf("the window grew: %v", res["extensions"])
			}
			// ... and what was missed after that.
			c.sync(0, body(2))
			tag(low, "u.missed")
			more := bob.Say(low, "back")
			alice.Say(mid, "above")
			alice.Say(top, "above")
			read(alice, low, more)
			c.sync(0, body(2))
			res = c.sync(0, body(3))
			if !receipt(res, low, more, alice.UserID) || tags(res, low) == nil || !slices.Equal(eventIDs(slidRoom(res, low), "timeline"), []string{more}) || slidRoom(res, low)["initial"] != nil {
				t.Errorf("missed out of the window: %v %v", slidRoom(res, low), res["extensions"])
			}
			// Only some lists and rooms.
			c = connect(alice, "some")
			some := json{
				"lists":              json{"one": c.list(1, 1), "two": c.list(2, 1)},
				"room_subscriptions": json{low: c.room(1)},
				"extensions":         json{"account_data": json{"enabled": true, "lists": []string{"one"}, "rooms": []string{}}, "receipts": json{"enabled": true, "lists": []string{}, "rooms": []string{low}}},
			}
			res = c.sync(0, some)
			if tags(res, top) == nil || tags(res, low) != nil || !receipt(res, low, more, alice.UserID) || len(extension(res, "receipts", "rooms")) != 1 {
				t.Errorf("some lists and rooms: %v", res["extensions"])
			}
			// Thread subscriptions, and the page of those that did not fit.
			for _, root := range said {
				room := ids[slices.Index(said, root)]
				alice.Must("PUT", "/unstable/io.element.msc4306/rooms"+homeserver.Path(room, "thread", root, "subscription"), json{})
			}
			alice.Must("DELETE", "/unstable/io.element.msc4306/rooms"+homeserver.Path(low, "thread", said[0], "subscription"), nil)
			threads := extension(connect(alice, "threads").sync(0, body(1)), "io.element.msc4308.thread_subscriptions")
			if homeserver.Dig(threads, "unsubscribed", low, said[0], "bump_stamp") == nil || homeserver.Dig(threads, "subscribed", top, said[2], "automatic") != false || threads["prev_batch"] == nil {
				t.Errorf("thread subscriptions: %v", threads)
			}
			page := alice.Must("GET", fmt.Sprint("/unstable/io.element.msc4308/thread_subscriptions?dir=b&from=", threads["prev_batch"]), nil)
			if homeserver.Dig(page, "subscribed", mid, said[1], "bump_stamp") == nil || homeserver.Dig(page, "subscribed", top) != nil || page["end"] != nil {
				t.Errorf("older thread subscriptions: %v", page)
			}
		})
	})
}

// Counts of notifications follow what is read, here and elsewhere; the stable dialect leaves counting to clients.
func TestSlidingSyncCounts(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	c := &slidingClient{Client: alice, t: t}
	body := json{"lists": json{"all": c.list(20, 1)}}
	c.sync(0, body)
	id := bob.Say(room, "hello "+alice.UserID)
	counts := func(notify float64) func(json) bool {
		return func(res json) bool { return slidRoom(res, room)["notification_count"] == notify }
	}
	c.until("a notification", body, counts(1))
	alice.Login().Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", "m.read", id), json{})
	res := c.until("it being read", body, counts(0))
	if r := slidRoom(res, room); r["highlight_count"] != 0.0 || r["initial"] != nil {
		t.Errorf("read elsewhere: %v", r)
	}
	stable := &slidingClient{Client: alice, t: t, stable: true}
	if r := slidRoom(stable.sync(0, json{"lists": json{"all": stable.list(20, 1)}}), room); r == nil || (r["notification_count"] != nil || r["highlight_count"] != nil) {
		t.Errorf("counts in the stable dialect: %v", r)
	}
}

// Requests that are wrong, or larger than anybody needs.
func TestSlidingSyncBadRequests(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	alice.CreateRoom(json{})
	many := func(n int, value any) json {
		out := json{}
		for i := range n {
			out[fmt.Sprint("k", i)] = value
		}
		return out
	}
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		c := connect(alice, "")
		ranged := func(ranges ...[]any) json {
			l := c.list(0, 1)
			if c.stable {
				l["range"] = ranges[0]
			} else {
				l["ranges"] = ranges
			}
			return json{"lists": json{"l": l}}
		}
		with := func(key string, value any) json {
			l := c.list(1, 1)
			l[key] = value
			return json{"lists": json{"l": l}}
		}
		const huge = 9223372036854775807
		for i, x := range []struct {
			body any
			code string // "" if it is fine
		}{
			{ranged([]any{0, uint64(huge)}), ""},
			{ranged([]any{5, 5}), ""},
			{ranged([]any{0, -1}), "M_INVALID_PARAM"},
			{ranged([]any{-5, 3}), "M_INVALID_PARAM"},
			{ranged([]any{7, 3}), "M_INVALID_PARAM"},
			{ranged([]any{0, uint64(huge) + 1}), "M_BAD_JSON"},
			{ranged([]any{0, 1.5}), "M_BAD_JSON"},
			{ranged([]any{0}), "M_BAD_JSON"},
			{ranged([]any{0, 1, 2}), "M_BAD_JSON"},
			{ranged([]any{"0", "1"}), "M_BAD_JSON"},
			{json{"lists": many(100, c.list(1, 1))}, ""},
			{json{"lists": many(101, c.list(1, 1))}, "M_INVALID_PARAM"},
			{json{"lists": many(5000, c.list(1, 1))}, "M_INVALID_PARAM"},
			{json{"lists": json{strings.Repeat("x", 300): c.list(1, 1)}}, "M_INVALID_PARAM"},
			{json{"room_subscriptions": many(5000, c.room(1))}, "M_INVALID_PARAM"},
			{json{"room_subscriptions": many(100, c.room(1))}, ""},
			{with("timeline_limit", -1), "M_INVALID_PARAM"},
			{with("timeline_limit", uint64(huge)), ""},
			{with("timeline_limit", "1"), "M_BAD_JSON"},
			{with("timeline_limit", nil), "M_MISSING_PARAM"},
			{with("required_state", "all"), "M_BAD_JSON"},
			{with("required_state", []any{[]string{"m.room.member"}}), "M_BAD_JSON"},
			{with("filters", json{"is_dm": "yes"}), "M_BAD_JSON"},
			{with("filters", []string{}), "M_BAD_JSON"},
			{with("filters", json{"spaces": []any{1}}), "M_BAD_JSON"},
			{with("filters", json{"tags": strings.Split(strings.Repeat("t,", 2000), ",")}), "M_INVALID_PARAM"},
			{json{"extensions": json{"to_device": json{"enabled": true, "since": "s1"}}}, "M_INVALID_PARAM"},
			{json{"extensions": json{"to_device": json{"enabled": true, "since": "9223372036854775807"}}}, ""},
			{json{"extensions": json{"to_device": json{"enabled": true, "limit": 0}}}, "M_INVALID_PARAM"},
			{json{"extensions": json{"to_device": json{"enabled": true, "limit": uint64(huge)}}}, ""},
			{json{"extensions": json{"receipts": json{"enabled": 1}}}, "M_BAD_JSON"},
			{json{"extensions": json{"org.example.unknown": json{"enabled": true}}}, ""},
			{json{"extensions": nil, "lists": nil, "room_subscriptions": nil}, ""},
			{json{"conn_id": strings.Repeat("c", 300)}, "M_INVALID_PARAM"},
			{json{"conn_id": "nul\x00"}, "M_INVALID_PARAM"},
			{json{"conn_id": 5}, "M_BAD_JSON"},
			{json{"set_presence": "asleep"}, "M_INVALID_PARAM"},
			{json{"set_presence": "offline"}, ""},
			{json{"lists": []string{}}, "M_BAD_JSON"},
		} {
			c.pos = ""
			status, res := c.try(0, x.body.(json))
			if code, _ := res["errcode"].(string); code != x.code || (status == http.StatusOK) != (x.code == "") {
				t.Errorf("%d: %.200v: %d %v, want %q", i, x.body, status, res["errcode"], x.code)
			}
		}
		path := "/unstable/org.matrix.simplified_msc3575/sync"
		if c.stable {
			path = "/v4/sync"
		}
		for body, code := range map[string]string{
			"": "M_NOT_JSON", "{": "M_NOT_JSON", "[]": "M_BAD_JSON", "null": "", `{"lists":{},"lists":{}}`: "M_BAD_JSON", `{"timeout":1e400}`: "M_BAD_JSON", `{"pos":"\ud800"}`: "M_NOT_JSON",
			"{" + strings.Repeat(`"a":{`, 20000): "M_NOT_JSON",
		} {
			status, res := c.Do("POST", path, body)
			if got, _ := res["errcode"].(string); got != code || status >= 500 {
				t.Errorf("%.50q: %d %v, want %q", body, status, res, code)
			}
		}
		if status, _ := hs.Anonymous(t).Do("POST", path, json{}); status != http.StatusUnauthorized {
			t.Errorf("without a token: %d", status)
		}
	})
	// Overlapping ranges are one.
	c := &slidingClient{Client: alice, t: t}
	l := c.list(0, 1)
	l["ranges"] = [][]int{{0, 5}, {3, 9}, {0, 0}, {5, 5}}
	if res := c.sync(0, json{"lists": json{"l": l}}); len(res["rooms"].(json)) != 1 {
		t.Errorf("overlapping ranges: %v", res["rooms"])
	}
	l["ranges"] = make([][2]int, 101)
	c.Refused("POST", "/unstable/org.matrix.simplified_msc3575/sync", json{"lists": json{"l": l}}, http.StatusBadRequest, "M_INVALID_PARAM")
}

// A device that makes ever new connections keeps the last ones; a device that is gone keeps none.
func TestSlidingSyncConnections(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	alice.CreateRoom(json{})
	phone := alice.Login()
	body := func(c *slidingClient) json { return json{"lists": json{"all": c.list(20, 1)}} }
	var all []*slidingClient
	for i := range 14 {
		c := &slidingClient{Client: phone, t: t, stable: true, conn: fmt.Sprint("c", i)}
		c.sync(0, body(c))
		all = append(all, c)
	}
	other := &slidingClient{Client: alice, t: t, stable: true}
	other.sync(0, body(other))
	if status, res := all[0].try(0, body(all[0])); res["errcode"] != "M_UNKNOWN_POS" {
		t.Errorf("the first of many connections: %d %v", status, res)
	}
	all[13].sync(0, body(all[13]))
	all[4].sync(0, body(all[4]))
	other.sync(0, body(other))
}

// An idle request is answered when something happens that concerns it, and only then.
func TestSlidingSyncLongPoll(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room, quiet := alice.CreateRoom(json{"preset": "public_chat"}), alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		bob.Join(quiet)
		alice.Say(room, "makes this the first")
		c := connect(bob, "main")
		body := json{"room_subscriptions": json{room: c.room(5)}}
		c.sync(0, body)
		const wait = 200 * time.Millisecond
		var began time.Time
		for told := true; told; { // counts come a moment after messages
			began = time.Now()
			told = len(c.sync(wait, body)["rooms"].(json)) > 0
		}
		if took := time.Since(began); took < wait {
			t.Errorf("nothing happened, and the answer came after %v", took)
		}
		got := make(chan json, 1)
		go func() { got <- c.sync(20*time.Second, body) }()
		for hs.Metric("hanok_http_requests_in_flight") < 1 {
			time.Sleep(time.Millisecond)
		}
		alice.Say(quiet, "not asked for")
		alice.Say(room, "asked for")
		if res := <-got; len(homeserver.Events(slidRoom(res, room), "timeline")) != 1 || slidRoom(res, quiet) != nil {
			t.Errorf("a long poll: %v", res)
		}
	})
}

// Invites from other servers show what came with them, and go away when they are refused or taken back.
func TestSlidingSyncRemoteInvite(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs1, hs2 := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob := hs1.Register(t, "alice"), hs2.Register(t, "bob")
		c := connect(bob, "main")
		stripped := "stripped_state"
		if !c.stable {
			stripped = "invite_state"
		}
		list := c.list(20, 5, [2]string{"m.room.member", "$ME"}, [2]string{"m.room.name", ""})
		encrypted := c.list(20, 0)
		encrypted["filters"] = json{"is_encrypted": true}
		body := json{"lists": json{"all": list, "encrypted": encrypted}}
		c.sync(0, body)
		told := func(room string) json {
			t.Helper()
			return slidRoom(c.until("something of "+room, body, func(res json) bool { return slidRoom(res, room) != nil }), room)
		}
		invite := json{"preset": "private_chat", "name": "Far", "invite": []string{bob.UserID}, "initial_state": []json{{"type": "m.room.encryption", "state_key": "", "content": json{"algorithm": "m.megolm.v1.aes-sha2"}}}}
		room := alice.CreateRoom(invite)
		r := told(room)
		if c.own(r, stripped) != "invite" || !slices.Contains(stateKeys(homeserver.Events(r, stripped)), "m.room.name|") {
			t.Errorf("an invite: %v", r)
		}
		if n := homeserver.Dig(c.sync(0, body), "lists", "encrypted", "count"); n != 1.0 {
			t.Errorf("%v encrypted rooms, the invite says it is", n)
		}
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		if r := told(room); c.stable && r["membership"] != "leave" || !c.stable && c.own(r, "required_state") != "leave" {
			t.Errorf("an invite refused: %v", r)
		}
		room = alice.CreateRoom(invite)
		told(room)
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "kick"), json{"user_id": bob.UserID})
		if r := told(room); c.stable && r["membership"] != "leave" || !c.stable && c.own(r, "required_state") != "leave" {
			t.Errorf("an invite taken back: %v", r)
		}
		room = alice.CreateRoom(invite)
		told(room)
		bob.Join(room, hs1.Name)
		if r := told(room); r["initial"] != true || c.own(r, "required_state") != "join" || r["name"] != "Far" || len(homeserver.Events(r, "timeline")) == 0 {
			t.Errorf("joined: %v", r)
		}
	})
}

func TestSlidingSyncStickyEvents(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	eachDialect(t, func(t *testing.T, connect func(c *homeserver.Client, conn string) *slidingClient) {
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room, later := alice.CreateRoom(json{"preset": "public_chat"}), alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		txn := 0
		stick := func(room string) string {
			txn++
			res := alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", fmt.Sprint("sticky", txn))+"?org.matrix.msc4354.sticky_duration_ms=600000", json{"msgtype": "m.text", "body": "here"})
			return res["event_id"].(string)
		}
		first, hidden := stick(room), stick(later)
		alice.Say(room, "above it")
		c := connect(bob, "main")
		since := ""
		sync := func(wait time.Duration) map[string][]string {
			t.Helper()
			ext := json{"enabled": true}
			if since != "" {
				ext["since"] = since
			}
			res := c.sync(wait, json{"lists": json{"all": c.list(20, 1)}, "extensions": json{"org.matrix.msc4354.sticky_events": ext}})
			x := extension(res, "org.matrix.msc4354.sticky_events")
			if next, ok := x["next_batch"].(string); ok {
				since = next
			}
			out := map[string][]string{}
			rooms, _ := x["rooms"].(json)
			for id, r := range rooms {
				out[id] = eventIDs(r, "events")
			}
			return out
		}
		if got := sync(0); len(got) != 1 || !slices.Equal(got[room], []string{first}) {
			t.Errorf("at first: %v, want %s", got, first)
		}
		stick(room) // comes in the timeline
		if got := sync(time.Second); len(got) != 0 {
			t.Errorf("in the timeline and beside it: %v", got)
		}
		bob.Join(later)
		alice.Say(later, "above it")
		if got := sync(time.Second); !slices.Equal(got[later], []string{hidden}) || len(got) != 1 {
			t.Errorf("of a room joined: %v, want %s", got, hidden)
		}
	})
}
