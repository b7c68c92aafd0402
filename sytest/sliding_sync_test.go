package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
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

func slidRoom(res json, room string) json {
	r, _ := homeserver.Dig(res, "rooms", room).(json)
	return r
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
