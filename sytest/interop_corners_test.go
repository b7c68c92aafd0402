package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"hanok/sytest/homeserver"
)

// corners are servers that meet in one room: two of ours and one of each other software.
type corners struct {
	servers []*homeserver.Server // the first is where most scenarios make their room
	others  map[*homeserver.Server]map[string]string
}

// TestInteropCorners lets servers of all software that is there meet in one room.
func TestInteropCorners(t *testing.T) {
	launches := foreignSoftware(t)
	n := homeserver.NewNetwork(t)
	c := corners{servers: []*homeserver.Server{n.Start(homeserver.Options{Cuttable: true})}, others: map[*homeserver.Server]map[string]string{}}
	for i, launch := range launches {
		host := "127.0.0.1"
		if i > 0 {
			host = fmt.Sprintf("127.0.0.%d", i+1) // an access list shuts out a host
		}
		s := n.Start(homeserver.Options{Cuttable: true, Launch: launch, Host: host})
		c.servers = append(c.servers, s)
		c.others[s] = shortcomings(t, s)
		t.Logf("%s is started by %s", s.Name, filepath.Base(launch))
	}
	c.servers = append(c.servers, n.Start(homeserver.Options{Cuttable: true}))
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, corners)
	}{
		{"rooms", cornersRooms},
		{"restricted rooms", cornersRestricted},
		{"knocks", cornersKnocks},
		{"upgrade", cornersUpgrade},
		{"access lists", cornersAccessLists},
		{"spaces", cornersSpaces},
		{"history", cornersHistory},
		{"media", cornersMedia},
		{"ephemeral", cornersEphemeral},
		{"devices", cornersDevices},
		{"forks", cornersForks},
		{"turns", cornersTurns},
	} {
		t.Run(scenario.name, func(t *testing.T) { scenario.run(t, c) })
	}
	for _, s := range c.servers {
		reportComplaints(t, "corners-"+strings.ReplaceAll(s.Name, ":", "-"), s)
	}
}

// from is the same servers with another one as the first.
func (c corners) from(first int) corners {
	first %= len(c.servers)
	return corners{servers: slices.Concat(c.servers[first:], c.servers[:first]), others: c.others}
}

// only leaves out the servers whose software lacks something.
func (c corners) only(what string) corners {
	return corners{others: c.others, servers: slices.DeleteFunc(slices.Clone(c.servers), func(s *homeserver.Server) bool { return c.others[s][what] != "" })}
}

// can reports whether something may be asked of a user's server.
func (c corners) can(user *homeserver.Client, what string) bool {
	return c.others[user.Server()][what] == ""
}

// users registers a user on each server.
func (c corners) users(t *testing.T, name string) (out []*homeserver.Client) {
	for _, s := range c.servers {
		out = append(out, s.Register(t, name))
	}
	return out
}

// versions runs something with each room version that all servers have, each time from another one of them.
func (c corners) versions(t *testing.T, least int, run func(*testing.T, corners, string)) {
	common := roomVersions(t, c.servers...)
	for _, version := range common {
		if !atLeast(version, least) {
			continue
		}
		home := c.from(slices.Index(common, version))
		t.Run("version "+version, func(t *testing.T) { run(t, home, version) })
	}
}

// newest is the newest room version in which all can cope with branches.
func (c corners) newest(t *testing.T) string {
	t.Helper()
	common := roomVersions(t, c.servers...)
	for _, version := range slices.Backward(common) {
		if len(c.only("forks of version "+version).servers) == len(c.servers) {
			return version
		}
	}
	return common[0]
}

// chain lets users who are not in a room join it one after the other, each through the server of the one before.
func (c corners) chain(t *testing.T, room string, users []*homeserver.Client) {
	t.Helper()
	for i, user := range users {
		if i == 0 {
			continue
		}
		if status, _ := user.Do("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil); status == http.StatusOK {
			continue
		}
		joinThrough(t, user, room, users[i-1].Server())
		for _, before := range users[:i] {
			member(t, before, room, user.UserID, "join")
		}
	}
}

// joinThrough lets a user join through a server that may not know all members yet, and will not help anybody in until it does.
func joinThrough(t *testing.T, user *homeserver.Client, room string, s *homeserver.Server) {
	t.Helper()
	eventually(t, user.UserID+" joins through "+s.Name, func() string {
		if status, res := user.Do("POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(s.Name), json{}); status != http.StatusOK {
			return fmt.Sprint(status, res)
		}
		return ""
	})
}

// allSay lets each user say something that all others read.
func allSay(t *testing.T, room string, users []*homeserver.Client) {
	t.Helper()
	var said []string
	for _, from := range users {
		said = append(said, from.Say(room, "from "+from.UserID))
	}
	for _, to := range users {
		for _, id := range said {
			sees(t, to, room, id)
		}
	}
}

// agree waits until all users see the same state of a room.
func agree(t *testing.T, room string, users []*homeserver.Client) {
	t.Helper()
	for _, user := range users[1:] {
		sameState(t, room, users[0], user)
	}
}

// sameLevels waits until all see the power levels that the first one sees.
func sameLevels(t *testing.T, room string, users []*homeserver.Client) {
	t.Helper()
	want := users[0].Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)["users"]
	for _, c := range users[1:] {
		stateIs(t, c, room, "m.room.power_levels", "", "users", want)
	}
}

func cornersRooms(t *testing.T, c corners) {
	c.versions(t, 1, func(t *testing.T, c corners, version string) {
		c = c.only("forks of version " + version)
		users := c.users(t, "resident")
		alice := users[0]
		room := alice.CreateRoom(json{"preset": "public_chat", "room_version": version, "name": "Corners"})
		before := alice.Say(room, "before anybody came")
		for i, user := range users[1:] {
			c.chain(t, room, users[:i+2])    // the next one
			inHistory(t, user, room, before) // before others come, who have no more of it: Synapse asks no second server
		}
		allSay(t, room, users)
		agree(t, room, users)

		// Everybody changes something at the same time, and people of everywhere are banned and kicked by everybody else.
		for _, user := range users[1:] {
			setPower(alice, room, user.UserID, 80)
			sameLevels(t, room, users)
		}
		victims := c.users(t, "victim")
		for i, victim := range victims {
			joinThrough(t, victim, room, alice.Server())
			member(t, users[i], room, victim.UserID, "join")
		}
		agree(t, room, users)
		var all sync.WaitGroup
		for i, user := range users {
			all.Go(func() {
				next := victims[(i+1)%len(victims)]
				user.SetState(room, "m.room.topic", "", json{"topic": "by " + user.UserID})
				user.Must("POST", "/v3/rooms"+homeserver.Path(room, []string{"ban", "kick"}[i%2]), json{"user_id": next.UserID})
				user.Do("PUT", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), withLevel(user, room, next.UserID, 10))
				user.Must("PUT", "/v3/profile"+homeserver.Path(user.UserID, "displayname"), json{"displayname": "Resident " + version})
			})
		}
		all.Wait()
		allSay(t, room, users)
		agree(t, room, users)

		// What one says another redacts, and a third sees that.
		for i, user := range users {
			by, other := users[(i+1)%len(users)], users[(i+2)%len(users)]
			rude := user.Say(room, "rude")
			sees(t, by, room, rude)
			sees(t, other, room, rude)
			by.Must("PUT", "/v3/rooms"+homeserver.Path(room, "redact", rude, "redact"+rude), json{"reason": "rude"})
			for _, reader := range users {
				if !c.can(reader, "redactions of version "+version) {
					continue
				}
				eventually(t, reader.UserID+" sees the redaction", func() string {
					status, e := reader.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", rude), nil)
					if status != http.StatusOK || homeserver.Dig(e, "content", "body") != nil {
						return fmt.Sprint(status, e)
					}
					return ""
				})
			}
		}

		// A server leaves altogether, misses something, and comes back through another.
		for i, user := range users[1:] {
			for _, gone := range []*homeserver.Client{user, victims[i+1]} {
				gone.Do("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{}) // the victim may be out already
			}
			member(t, alice, room, user.UserID, "leave")
			missed := alice.Say(room, "while you were away")
			alice.SetState(room, "org.example.meanwhile", "", json{"i": i})
			rest := slices.DeleteFunc(slices.Clone(users), func(c *homeserver.Client) bool { return c == user })
			agree(t, room, rest)
			joinThrough(t, user, room, rest[(i+1)%len(rest)].Server())
			inHistory(t, user, room, missed)
			agree(t, room, users)
		}
		allSay(t, room, users)
	})
}

func withLevel(c *homeserver.Client, room, user string, level int) json {
	_, content := c.Do("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)
	if users, ok := content["users"].(json); ok {
		users[user] = level
	}
	return content
}

func cornersRestricted(t *testing.T, c corners) {
	c.versions(t, 8, func(t *testing.T, c corners, version string) {
		users := c.users(t, "resident")
		alice, last := users[0], users[len(users)-1]
		space := alice.CreateRoom(json{"preset": "public_chat", "room_version": version, "creation_content": json{"type": "m.space"}})
		room := alice.CreateRoom(json{"preset": "private_chat", "room_version": version, "initial_state": []json{{
			"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "restricted", "allow": []json{{"type": "m.room_membership", "room_id": space}}},
		}}})
		c.chain(t, space, users)
		// Each is let in by the server of the one before, whose user may invite.
		for i, user := range users[1:] {
			joinThrough(t, user, room, users[i].Server())
			for _, before := range users[:i+1] {
				member(t, before, room, user.UserID, "join")
			}
			setPower(alice, room, user.UserID, 60)
			sameLevels(t, room, users[:i+2])
		}
		allSay(t, room, users)
		agree(t, room, users)
		// Who is not in the space is let in by nobody.
		stranger := last.Server().Register(t, "stranger")
		for _, user := range users {
			status, res := stranger.Do("POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(user.Server().Name), json{})
			if status == http.StatusOK || status != http.StatusForbidden && c.can(stranger, "refused joins") {
				t.Errorf("%s joins through %s: %d %v", stranger.UserID, user.Server().Name, status, res)
			}
		}
	})
}

func cornersKnocks(t *testing.T, c corners) {
	c = c.only("knocks")
	c.versions(t, 7, func(t *testing.T, c corners, version string) {
		users := c.users(t, "resident")
		alice := users[0]
		room := alice.CreateRoom(json{"preset": "private_chat", "room_version": version, "initial_state": []json{{"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "knock"}}}})
		// Each knocks at the server of the one before, and is let in by the first.
		for i, user := range users[1:] {
			via := url.QueryEscape(users[i].Server().Name)
			eventually(t, user.UserID+" knocks", func() string { // at a server that may not know all members yet
				if status, res := user.Do("POST", "/v3/knock"+homeserver.Path(room)+"?via="+via+"&server_name="+via, json{"reason": "let me in"}); status != http.StatusOK {
					return fmt.Sprint(status, res)
				}
				return ""
			})
			for _, before := range users[:i+1] {
				member(t, before, room, user.UserID, "knock")
			}
			alice.Invite(room, user.UserID)
			user.SyncUntilInvited(room)
			for _, before := range users[:i+1] {
				member(t, before, room, user.UserID, "invite")
			}
			joinThrough(t, user, room, users[i].Server())
			for _, before := range users[:i+1] {
				member(t, before, room, user.UserID, "join")
			}
		}
		allSay(t, room, users)
		agree(t, room, users)
	})
}

func cornersUpgrade(t *testing.T, c corners) {
	common := roomVersions(t, c.servers...)
	for i := range c.servers {
		c := c.from(i)
		users := c.users(t, "resident")
		alice, bob := users[0], users[1]
		from, to := common[i%len(common)], c.newest(t)
		room := alice.CreateRoom(json{"preset": "public_chat", "room_version": from, "name": "Old and new"})
		c.chain(t, room, users)
		setPower(alice, room, bob.UserID, 100)
		sameLevels(t, room, users)
		replacement, _ := bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "upgrade"), json{"new_version": to})["replacement_room"].(string)
		for _, user := range users {
			stateIs(t, user, room, "m.room.tombstone", "", "replacement_room", replacement)
		}
		said := bob.Say(room, "we have moved")
		for _, user := range users {
			sees(t, user, room, said)
		}
		agree(t, room, users)
		for _, user := range users {
			if user != bob {
				joinThrough(t, user, replacement, bob.Server())
			}
		}
		allSay(t, replacement, users)
		agree(t, replacement, users)
	}
}

func cornersAccessLists(t *testing.T, c corners) {
	c = c.only("branches after a gap")
	version := c.newest(t)
	for i := range c.servers {
		c := c.from(i)
		users := c.users(t, "resident")
		alice := users[0]
		room := alice.CreateRoom(json{"preset": "public_chat", "room_version": version})
		c.chain(t, room, users)
		acl := func(deny ...string) {
			t.Helper()
			alice.SetState(room, "m.room.server_acl", "", json{"allow": []any{"*"}, "deny": deny, "allow_ip_literals": true})
			for _, user := range users {
				stateIs(t, user, room, "m.room.server_acl", "", "deny", deny)
			}
		}
		host := func(s *homeserver.Server) string { name, _, _ := strings.Cut(s.Name, ":"); return name }
		for _, shut := range users[1:] {
			if host(shut.Server()) == host(alice.Server()) {
				continue // access lists know no ports
			}
			in := slices.DeleteFunc(slices.Clone(users), func(c *homeserver.Client) bool { return host(c.Server()) == host(shut.Server()) })
			acl(host(shut.Server()))
			unheard := shut.Say(room, "is anybody there?")
			allSay(t, room, in)
			for _, user := range in {
				if status, _ := user.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", unheard), nil); status != http.StatusNotFound {
					t.Errorf("%s reads a message of %s, which is shut out: %d", user.UserID, shut.Server().Name, status)
				}
			}
			agree(t, room, in)
			acl("evil.example.org")
			allSay(t, room, users)
			for _, user := range in {
				sees(t, user, room, unheard)
			}
			agree(t, room, users)
		}
	}
}

func cornersSpaces(t *testing.T, c corners) {
	for i := range c.servers {
		c := c.from(i)
		users := c.users(t, "resident")
		alice := users[0]
		space := alice.CreateRoom(json{"preset": "public_chat", "name": "Space", "creation_content": json{"type": "m.space"}})
		want := []string{space}
		// A space on each server, each in the one of the server before, and a room in each.
		parent, owner := space, alice
		for _, user := range users[1:] {
			sub := user.CreateRoom(json{"preset": "public_chat", "name": "Sub", "creation_content": json{"type": "m.space"}})
			leaf := user.CreateRoom(json{"preset": "public_chat", "name": "Leaf"})
			via := json{"via": []string{user.Server().Name}}
			owner.SetState(parent, "m.space.child", sub, via)
			user.SetState(sub, "m.space.child", leaf, via)
			want = append(want, sub, leaf)
			parent, owner = sub, user
		}
		slices.Sort(want)
		for _, user := range users {
			if user != alice {
				joinThrough(t, user, space, alice.Server())
			}
			if !c.can(user, "deep spaces") {
				continue
			}
			eventually(t, user.UserID+"'s view of the space", func() string {
				var got []string
				from := ""
				for range 10 {
					res := user.Must("GET", "/v1/rooms"+homeserver.Path(space, "hierarchy")+"?limit=4"+from, nil)
					for _, r := range homeserver.Events(res, "rooms") {
						got = append(got, fmt.Sprint(r["room_id"]))
					}
					next, _ := res["next_batch"].(string)
					if next == "" {
						break
					}
					from = "&from=" + url.QueryEscape(next)
				}
				slices.Sort(got)
				if !slices.Equal(got, want) {
					return fmt.Sprintf("%v, want %v", got, want)
				}
				return ""
			})
		}
	}
}

// cornersHistory has each server come to know a room late, after people of all earlier ones have spoken, and find all of it.
func cornersHistory(t *testing.T, c corners) {
	version := c.newest(t)
	for i := range c.servers {
		c := c.from(i)
		users := c.users(t, "resident")
		room := users[0].CreateRoom(json{"preset": "public_chat", "room_version": version})
		var said []string
		for j, user := range users {
			if j > 0 {
				joinThrough(t, user, room, users[j-1].Server())
				for _, before := range users[:j] {
					member(t, before, room, user.UserID, "join")
				}
				wholeHistory(t, user, room, said)
			}
			for k := range 25 {
				said = append(said, user.Say(room, fmt.Sprint(j, " says ", k)))
			}
			for _, reader := range users[:j+1] {
				sees(t, reader, room, said[len(said)-1])
			}
		}
		all := backwards(users[0], room, 100)
		first := all[len(all)-1]["event_id"] // m.room.create
		for _, user := range users {
			wholeHistory(t, user, room, said)
			if !c.can(user, "events by time") {
				continue
			}
			got := user.Must("GET", "/v1/rooms"+homeserver.Path(room, "timestamp_to_event")+"?dir=f&ts=1", nil)
			if got["event_id"] != first {
				t.Errorf("the first event is %v for %s, not %v", got, user.UserID, first)
			}
		}
		agree(t, room, users)
	}
}

// wholeHistory waits until /messages shows a user all of some messages, in their order.
func wholeHistory(t *testing.T, user *homeserver.Client, room string, said []string) {
	t.Helper()
	eventually(t, "the history for "+user.UserID, func() string {
		var order []string
		for _, e := range backwards(user, room, 60) {
			if id := fmt.Sprint(e["event_id"]); slices.Contains(said, id) {
				order = append(order, id)
			}
		}
		slices.Reverse(order)
		if !slices.Equal(order, said) {
			return fmt.Sprintf("%d messages of %d, or in another order", len(order), len(said))
		}
		return ""
	})
}
