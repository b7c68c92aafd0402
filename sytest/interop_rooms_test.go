package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"

	"hanok/sytest/homeserver"
)

// interopRooms walks through what happens in a public room, in every room version.
func interopRooms(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) { interopRoom(t, p, version) })
	}
}

func interopRoom(t *testing.T, p pair, version string) {
	alice, bob, carol := p.home.Register(t, "alice"), p.away.Register(t, "bob"), p.away.Register(t, "carol")
	room := alice.CreateRoom(json{"preset": "public_chat", "room_version": version, "name": "Version " + version})
	before := alice.Say(room, "before anybody came")
	bob.Join(room, p.home.Name)
	member(t, alice, room, bob.UserID, "join")
	sameState(t, room, alice, bob)
	bob.SyncUntilEvent(room, alice.Say(room, "hello bob"))
	alice.SyncUntilEvent(room, bob.Say(room, "hello alice"))
	inHistory(t, bob, room, before)

	// State and power.
	alice.SetState(room, "m.room.topic", "", json{"topic": "Grüße, 한옥"})
	stateIs(t, bob, room, "m.room.topic", "", "topic", "Grüße, 한옥")
	forbidden(t, bob, "PUT", "/v3/rooms"+homeserver.Path(room, "state", "m.room.name", ""), json{"name": "mine"})
	setPower(alice, room, bob.UserID, 50)
	eventually(t, "bob may set the name", func() string {
		status, body := bob.Do("PUT", "/v3/rooms"+homeserver.Path(room, "state", "m.room.name", ""), json{"name": "bob's"})
		if status != http.StatusOK {
			return fmt.Sprint(status, body)
		}
		return ""
	})
	stateIs(t, alice, room, "m.room.name", "", "name", "bob's")
	alice.SetState(room, "org.example.odd", "key with / and \u2603", json{"deep": json{"list": []any{1, nil, true, "x", json{}}}, "n": 9007199254740991, "neg": -5})
	stateIs(t, bob, room, "org.example.odd", "key with / and \u2603", "n", 9007199254740991.0)

	// Kicks and bans, by either side.
	dave := p.home.Register(t, "dave")
	carol.Join(room, p.home.Name)
	dave.Join(room)
	member(t, bob, room, dave.UserID, "join")
	member(t, alice, room, carol.UserID, "join")
	act := func(who *homeserver.Client, action string, whom *homeserver.Client) {
		t.Helper()
		body := json{"user_id": whom.UserID}
		if action == "kick" || action == "ban" {
			body["reason"] = "a reason"
		}
		who.Must("POST", "/v3/rooms"+homeserver.Path(room, action), body)
	}
	act(bob, "kick", dave)
	member(t, dave, room, dave.UserID, "leave")
	dave.Join(room)
	member(t, bob, room, dave.UserID, "join")
	carol.Sync(0)
	act(alice, "kick", carol)
	member(t, alice, room, carol.UserID, "leave")
	carol.SyncUntil("being kicked", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
	carol.Join(room, p.home.Name)
	member(t, alice, room, carol.UserID, "join")
	carol.SyncUntilJoined(room, carol.UserID)
	act(alice, "ban", carol)
	carol.SyncUntil("being banned", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
	forbidden(t, carol, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
	act(alice, "unban", carol)
	member(t, bob, room, carol.UserID, "leave")
	carol.Join(room, p.home.Name)
	act(bob, "ban", dave)
	member(t, alice, room, dave.UserID, "ban")
	forbidden(t, dave, "POST", "/v3/join"+homeserver.Path(room), json{})
	act(bob, "unban", dave)
	member(t, alice, room, dave.UserID, "leave")
	dave.Join(room)
	member(t, bob, room, dave.UserID, "join")

	// Redactions: one's own, and a moderator's.
	redact := func(who, reader *homeserver.Client, id string) {
		t.Helper()
		sees(t, reader, room, id)
		sees(t, who, room, id)
		who.Must("PUT", "/v3/rooms"+homeserver.Path(room, "redact", id, "redact"+id), json{"reason": "because"})
		for _, c := range []*homeserver.Client{who, reader} {
			if !p.can(c, "redactions of version "+version) {
				continue
			}
			eventually(t, c.UserID+" sees the redaction", func() string {
				e := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", id), nil)
				if homeserver.Dig(e, "content", "body") != nil || homeserver.Dig(e, "unsigned", "redacted_because") == nil {
					return fmt.Sprint(e)
				}
				return ""
			})
		}
	}
	redact(alice, bob, alice.Say(room, "oops"))
	redact(carol, alice, carol.Say(room, "oops too"))
	redact(bob, alice, alice.Say(room, "bob finds this rude"))
	redact(alice, bob, carol.Say(room, "alice finds this rude"))

	// Relations.
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		root := who[0].Say(room, "a rute")
		sees(t, who[1], room, root)
		edit := who[0].Send(room, "m.room.message", json{"msgtype": "m.text", "body": "* a root", "m.new_content": json{"msgtype": "m.text", "body": "a root"}, "m.relates_to": json{"rel_type": "m.replace", "event_id": root}})
		reaction := who[1].Send(room, "m.reaction", json{"m.relates_to": json{"rel_type": "m.annotation", "event_id": root, "key": "👍"}})
		threaded := who[1].Send(room, "m.room.message", json{"msgtype": "m.text", "body": "in the thread", "m.relates_to": json{"rel_type": "m.thread", "event_id": root}})
		for _, c := range who {
			eventually(t, c.UserID+" sees what relates", func() string {
				var ids []any
				for _, e := range homeserver.Events(c.Must("GET", "/v1/rooms"+homeserver.Path(room, "relations", root), nil), "chunk") {
					ids = append(ids, e["event_id"])
				}
				for _, want := range []any{edit, reaction, threaded} {
					if !slices.Contains(ids, want) {
						return fmt.Sprint(ids)
					}
				}
				if !p.can(c, "aggregations") {
					return ""
				}
				e := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", root), nil)
				if homeserver.Dig(e, "unsigned", "m.relations", "m.thread", "latest_event", "event_id") != threaded {
					return fmt.Sprint("no thread: ", e)
				}
				if homeserver.Dig(e, "unsigned", "m.relations", "m.replace", "event_id") != edit {
					return fmt.Sprint("no edit: ", e)
				}
				return ""
			})
		}
	}

	// Profiles.
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		who[0].Must("PUT", "/v3/profile"+homeserver.Path(who[0].UserID, "displayname"), json{"displayname": "Named " + version})
		stateIs(t, who[1], room, "m.room.member", who[0].UserID, "displayname", "Named "+version)
	}

	// Leaving and coming back, after the last of a server has left, too.
	for _, c := range []*homeserver.Client{carol, bob} {
		c.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		member(t, alice, room, c.UserID, "leave")
	}
	missed := alice.Say(room, "while they were away")
	alice.SetState(room, "m.room.topic", "", json{"topic": "changed meanwhile"})
	bob.Join(room, p.home.Name)
	member(t, alice, room, bob.UserID, "join")
	stateIs(t, bob, room, "m.room.topic", "", "topic", "changed meanwhile")
	inHistory(t, bob, room, missed)
	bob.SyncUntilEvent(room, alice.Say(room, "welcome back"))
	alice.SyncUntilEvent(room, bob.Say(room, "thanks"))
	sameState(t, room, alice, bob)
}

// backwards are the events of a room as /messages shows them, in pages of some length, the newest first.
func backwards(c *homeserver.Client, room string, page int) (events []json) {
	from := ""
	for range 100 {
		res := c.Must("GET", fmt.Sprint("/v3/rooms", homeserver.Path(room, "messages"), "?dir=b&limit=", page, from), nil)
		events = append(events, homeserver.Events(res, "chunk")...)
		end, _ := res["end"].(string)
		if end == "" {
			break
		}
		from = "&from=" + url.QueryEscape(end)
	}
	return events
}

// inHistory waits until /messages, walked through backwards, has an event.
func inHistory(t *testing.T, c *homeserver.Client, room, eventID string) {
	t.Helper()
	eventually(t, c.UserID+" finds "+eventID+" in the history", func() string {
		if slices.ContainsFunc(backwards(c, room, 50), func(e json) bool { return e["event_id"] == eventID }) {
			return ""
		}
		return "it is not there"
	})
}

func interopInvites(t *testing.T, p pair) {
	leave := func(c *homeserver.Client, room string) {
		t.Helper()
		c.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{"reason": "no"})
	}
	left := func(c *homeserver.Client, room string) {
		t.Helper()
		c.SyncUntil("the end of the invite", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
	}
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, carol := p.home.Register(t, "alice"), p.away.Register(t, "bob"), p.home.Register(t, "carol")
			room := alice.CreateRoom(json{"preset": "private_chat", "name": "Private", "room_version": version, "invite": []string{bob.UserID}, "is_direct": true})
			res := bob.SyncUntilInvited(room)
			shown := map[any]json{}
			for _, e := range homeserver.Events(res, "rooms", "invite", room, "invite_state", "events") {
				shown[e["type"]] = e
			}
			for _, want := range []string{"m.room.create", "m.room.name", "m.room.join_rules", "m.room.member"} {
				if shown[want] == nil {
					t.Errorf("the invite does not show %s: %v", want, shown)
				}
			}
			if shown["m.room.member"]["state_key"] == bob.UserID && homeserver.Dig(shown["m.room.member"], "content", "is_direct") != true {
				t.Errorf("the invite is not direct: %v", shown["m.room.member"])
			}
			// Refused, repeated, taken back, repeated, taken.
			leave(bob, room)
			member(t, alice, room, bob.UserID, "leave")
			alice.Invite(room, bob.UserID)
			bob.SyncUntilInvited(room)
			if p.lacks["withdrawn invites"] == "" {
				alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "kick"), json{"user_id": bob.UserID})
				left(bob, room)
				forbidden(t, bob, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
				alice.Invite(room, bob.UserID)
				bob.SyncUntilInvited(room)
			}
			bob.Join(room)
			member(t, alice, room, bob.UserID, "join")
			bob.SyncUntilEvent(room, alice.Say(room, "welcome"))
			// And an invite the other way, into a room that is already on both.
			setPower(alice, room, bob.UserID, 50)
			eventually(t, "bob may invite", func() string {
				status, body := bob.Do("POST", "/v3/rooms"+homeserver.Path(room, "invite"), json{"user_id": carol.UserID})
				if status != http.StatusOK {
					return fmt.Sprint(status, body)
				}
				return ""
			})
			carol.SyncUntilInvited(room)
			member(t, alice, room, carol.UserID, "invite") // not all take the join before the invite has come by the room, too
			carol.Join(room)
			member(t, bob, room, carol.UserID, "join")
			carol.SyncUntilEvent(room, bob.Say(room, "hello carol"))
			sameState(t, room, carol, bob)
		})
	}
}

func interopRestricted(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		if len(version) == 1 && version < "8" {
			continue
		}
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, carol := p.home.Register(t, "alice"), p.away.Register(t, "bob"), p.away.Register(t, "carol")
			space := alice.CreateRoom(json{"preset": "public_chat", "room_version": version, "creation_content": json{"type": "m.space"}})
			room := alice.CreateRoom(json{"preset": "private_chat", "room_version": version, "initial_state": []json{{
				"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "restricted", "allow": []json{{"type": "m.room_membership", "room_id": space}}},
			}}})
			via := "?via=" + url.QueryEscape(p.home.Name)
			forbidden(t, bob, "POST", "/v3/join"+homeserver.Path(room)+via, json{})
			bob.Join(space, p.home.Name)
			member(t, alice, space, bob.UserID, "join")
			bob.Join(room, p.home.Name)
			member(t, alice, room, bob.UserID, "join")
			alice.SyncUntilEvent(room, bob.Say(room, "in"))
			sameState(t, room, alice, bob)

			// Now the other server has somebody who may invite, and nobody is left here who may.
			carol.Join(space, p.home.Name)
			if version == "12" {
				// The creator's power cannot be taken away: who else may invite is enough of a difference.
				setPower(alice, room, bob.UserID, 100)
				stateIs(t, bob, room, "m.room.power_levels", "", "users", json{bob.UserID: 100})
			} else {
				changePower(alice, room, func(content json) {
					content["users"] = json{alice.UserID: 60, bob.UserID: 100}
					content["invite"] = 70
				})
				stateIs(t, bob, room, "m.room.power_levels", "", "invite", 70)
			}
			carol.Join(room, p.away.Name)
			member(t, alice, room, carol.UserID, "join")
			by := sameMember(t, alice, carol, room, carol.UserID)["join_authorised_via_users_server"]
			if version != "12" && by != bob.UserID {
				t.Errorf("carol's join is authorised by %v, not by bob", by)
			}
			dave := p.home.Register(t, "dave")
			if !p.can(dave, "joins that others authorise") {
				return
			}
			dave.Join(space)
			member(t, bob, space, dave.UserID, "join")
			dave.Join(room, p.away.Name)
			member(t, bob, room, dave.UserID, "join")
			by = sameMember(t, dave, bob, room, dave.UserID)["join_authorised_via_users_server"]
			if version != "12" && by != bob.UserID {
				t.Errorf("dave's join is authorised by %v, not by bob", by)
			}
			sameState(t, room, dave, bob)
			dave.SyncUntilEvent(room, bob.Say(room, "hello dave"))

			// Who has left the space comes in no more.
			dave.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
			dave.Must("POST", "/v3/rooms"+homeserver.Path(space, "leave"), json{})
			member(t, bob, space, dave.UserID, "leave")
			forbidden(t, dave, "POST", "/v3/join"+homeserver.Path(room), json{})
		})
	}
}

// sameMember waits until both see a user joined, and returns the content that the first sees.
func sameMember(t *testing.T, a, b *homeserver.Client, room, user string) json {
	t.Helper()
	member(t, a, room, user, "join")
	member(t, b, room, user, "join")
	return a.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.member", user), nil)
}

func interopKnocks(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		if len(version) == 1 && version < "7" {
			continue
		}
		rules := []json{{"join_rule": "knock"}}
		if version != "7" && version != "8" && version != "9" {
			rules = append(rules, json{"join_rule": "knock_restricted", "allow": []json{}})
		}
		for _, rule := range rules {
			p.part(t, fmt.Sprint("version ", version, " ", rule["join_rule"]), func(t *testing.T) {
				alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
				room := alice.CreateRoom(json{"preset": "private_chat", "name": "Knock", "room_version": version, "initial_state": []json{{"type": "m.room.join_rules", "state_key": "", "content": rule}}})
				knock := func() {
					t.Helper()
					bob.Must("POST", "/v3/knock"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name)+"&server_name="+url.QueryEscape(p.home.Name), json{"reason": "let me in"})
					bob.SyncUntil("the knock", func(res json) bool {
						events := homeserver.Events(res, "rooms", "knock", room, "knock_state", "events")
						return slices.ContainsFunc(events, func(e json) bool {
							return e["type"] == "m.room.name" && homeserver.Dig(e, "content", "name") == "Knock"
						})
					})
					member(t, alice, room, bob.UserID, "knock")
				}
				forbidden(t, bob, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
				knock()
				stateIs(t, alice, room, "m.room.member", bob.UserID, "reason", "let me in")
				bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
				bob.SyncUntil("the end of the knock", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
				if p.can(bob, "withdrawn knocks") {
					member(t, alice, room, bob.UserID, "leave")
				}
				knock()
				alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "kick"), json{"user_id": bob.UserID})
				knock()
				alice.Invite(room, bob.UserID)
				bob.SyncUntilInvited(room)
				bob.Join(room)
				member(t, alice, room, bob.UserID, "join")
				sameState(t, room, alice, bob)

				// Through the other server, too.
				carol := p.home.Register(t, "carol")
				carol.Must("POST", "/v3/knock"+homeserver.Path(room), json{})
				member(t, bob, room, carol.UserID, "knock")
				setPower(alice, room, bob.UserID, 50)
				stateIs(t, bob, room, "m.room.power_levels", "", "users", alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)["users"])
				bob.Invite(room, carol.UserID)
				carol.SyncUntilInvited(room)
				member(t, alice, room, carol.UserID, "invite")
				carol.Join(room)
				member(t, bob, room, carol.UserID, "join")
			})
		}
	}
}

func interopSpaces(t *testing.T, p pair) {
	alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
	space := alice.CreateRoom(json{"preset": "public_chat", "name": "Space", "topic": "Of things", "creation_content": json{"type": "m.space"}})
	open := alice.CreateRoom(json{"preset": "public_chat", "name": "Open"})
	hidden := alice.CreateRoom(json{"preset": "private_chat", "name": "Hidden"})
	restricted := alice.CreateRoom(json{"preset": "private_chat", "name": "Restricted", "room_version": "10", "initial_state": []json{{
		"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "restricted", "allow": []json{{"type": "m.room_membership", "room_id": space}}},
	}}})
	sub := bob.CreateRoom(json{"preset": "public_chat", "name": "Sub", "creation_content": json{"type": "m.space"}})
	far := bob.CreateRoom(json{"preset": "public_chat", "name": "Far"})
	child := func(c *homeserver.Client, parent, room, via string) {
		c.SetState(parent, "m.space.child", room, json{"via": []string{via}, "suggested": room == open})
	}
	for _, room := range []string{open, hidden, restricted} {
		child(alice, space, room, p.home.Name)
	}
	child(alice, space, sub, p.away.Name)
	child(bob, sub, far, p.away.Name)

	tree := func(c *homeserver.Client, params string) map[any]json {
		res := c.Must("GET", "/v1/rooms"+homeserver.Path(space, "hierarchy")+params, nil)
		out := map[any]json{}
		for _, r := range homeserver.Events(res, "rooms") {
			out[r["room_id"]] = r
		}
		return out
	}
	wantTree := func(c *homeserver.Client, rooms ...string) {
		t.Helper()
		eventually(t, c.UserID+"'s view of the space", func() string {
			got := tree(c, "")
			for _, r := range rooms {
				if got[r] == nil {
					return fmt.Sprintf("%s is missing: %v", r, got)
				}
			}
			if len(got) != len(rooms) {
				return fmt.Sprintf("%d rooms, not %d: %v", len(got), len(rooms), got)
			}
			return ""
		})
	}
	wantTree(alice, space, open, hidden, restricted, sub, far)
	bob.Join(space, p.home.Name)
	member(t, alice, space, bob.UserID, "join")
	wantTree(bob, space, open, restricted, sub, far)
	got := tree(bob, "?suggested_only=true")
	if len(got) != 2 || got[open] == nil {
		t.Errorf("only suggested ones: %v", got)
	}
	for member, want := range map[string]any{"name": "Open", "join_rule": "public", "num_joined_members": 1.0, "world_readable": false, "guest_can_join": false} {
		if got[open][member] != want {
			t.Errorf("%s of the open room is %v, not %v", member, got[open][member], want)
		}
	}
	if p.can(bob, "rooms of a restriction") && fmt.Sprint(tree(bob, "")[restricted]["allowed_room_ids"]) != fmt.Sprint([]string{space}) {
		t.Errorf("the restricted room: %v", tree(bob, "")[restricted])
	}

	// A summary of a room that one's server is not in.
	if !p.can(bob, "summaries") {
		return
	}
	via := "?via=" + url.QueryEscape(p.home.Name)
	summary := func(c *homeserver.Client, room string) (int, json) {
		status, res := c.Do("GET", "/v1/room_summary"+homeserver.Path(room)+via, nil)
		if status == http.StatusNotFound && res["errcode"] == "M_UNRECOGNIZED" {
			return c.Do("GET", "/unstable/im.nheko.summary/rooms"+homeserver.Path(room)+"/summary"+via, nil)
		}
		return status, res
	}
	status, res := summary(bob, open)
	if status != http.StatusOK || res["name"] != "Open" || res["num_joined_members"] != 1.0 {
		t.Errorf("the summary of the open room: %d %v", status, res)
	}
	if status, res = summary(bob, restricted); status != http.StatusOK || res["name"] != "Restricted" {
		t.Errorf("the summary of the restricted room: %d %v", status, res)
	}
	if status, res = summary(bob, hidden); status == http.StatusOK {
		t.Errorf("the summary of the hidden room: %d %v", status, res)
	}
}

func interopHistory(t *testing.T, p pair) {
	for _, visibility := range []string{"world_readable", "shared", "invited", "joined"} {
		p.part(t, visibility, func(t *testing.T) {
			alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
			room := alice.CreateRoom(json{"preset": "private_chat", "initial_state": []json{{"type": "m.room.history_visibility", "state_key": "", "content": json{"history_visibility": visibility}}}})
			var early []string
			for i := range 60 {
				early = append(early, alice.Say(room, fmt.Sprint("early ", i)))
			}
			alice.Invite(room, bob.UserID)
			bob.SyncUntilInvited(room)
			invited := alice.Say(room, "bob is invited")
			bob.Join(room)
			member(t, alice, room, bob.UserID, "join")
			late := alice.Say(room, "bob is here")
			bob.SyncUntilEvent(room, late)

			wantEarly := visibility == "world_readable" || visibility == "shared"
			wantInvited := visibility != "joined"
			seen, order := map[any]bool{}, []string{}
			for _, e := range backwards(bob, room, 20) {
				if seen[e["event_id"]] && p.can(bob, "pages without repetitions") {
					t.Errorf("%v comes twice", e["event_id"])
				}
				seen[e["event_id"]] = true
				if i := slices.Index(early, fmt.Sprint(e["event_id"])); i >= 0 {
					order = append(order, early[i])
				}
			}
			if !seen[late] {
				t.Error("what came after the join is missing")
			}
			if seen[invited] != wantInvited {
				t.Errorf("what came after the invite: seen %v, want %v", seen[invited], wantInvited)
			}
			if !wantEarly && len(order) > 0 || wantEarly && len(order) != len(early) {
				t.Errorf("%d of %d early messages are seen", len(order), len(early))
			}
			slices.Reverse(order)
			if wantEarly && !slices.Equal(order, early) {
				t.Errorf("the order of the history: %v, want %v", order, early)
			}
			if wantEarly && p.can(bob, "events by time") {
				// By time, from before what the server has at first.
				res := bob.Must("GET", "/v1/rooms"+homeserver.Path(room, "timestamp_to_event")+"?dir=f&ts=1", nil)
				first, _ := res["event_id"].(string)
				if e := sees(t, bob, room, first); e["type"] != "m.room.create" {
					t.Errorf("the first event of the room: %v", e)
				}
				context := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "context", early[30])+"?limit=4", nil)
				if homeserver.Dig(context, "event", "event_id") != early[30] || len(homeserver.Events(context, "events_before")) == 0 {
					t.Errorf("the context of an early message: %v", context)
				}
			}
		})
	}
	p.part(t, "by time without history", func(t *testing.T) {
		alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		for i := range 30 {
			alice.Say(room, fmt.Sprint("early ", i))
		}
		bob.Join(room, p.home.Name)
		if p.lacks["events by time"] != "" {
			t.Skip(p.lacks["events by time"]) // neither here nor there: it does not tell others either
		}
		res := bob.Must("GET", "/v1/rooms"+homeserver.Path(room, "timestamp_to_event")+"?dir=f&ts=1", nil)
		first, _ := res["event_id"].(string)
		want, _ := alice.Must("GET", "/v1/rooms"+homeserver.Path(room, "timestamp_to_event")+"?dir=f&ts=1", nil)["event_id"].(string)
		if first != want {
			t.Errorf("the first event is %s for bob and %s for alice", first, want)
		}
		context := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "context", first)+"?limit=4", nil)
		if homeserver.Dig(context, "event", "event_id") != first {
			t.Errorf("the context of the first event: %v", context)
		}
	})
}

func interopUpgrade(t *testing.T, p pair) {
	versions := p.versions(t)
	for i := 0; i+1 < len(versions); i += 3 {
		from, to := versions[i], versions[min(i+3, len(versions)-1)]
		p.part(t, from+" to "+to, func(t *testing.T) {
			alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
			room := alice.CreateRoom(json{"preset": "public_chat", "room_version": from, "name": "Old and new"})
			bob.Join(room, p.home.Name)
			member(t, alice, room, bob.UserID, "join")
			replacement, _ := alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "upgrade"), json{"new_version": to})["replacement_room"].(string)
			stateIs(t, bob, room, "m.room.tombstone", "", "replacement_room", replacement)
			bob.Join(replacement, p.home.Name)
			member(t, alice, replacement, bob.UserID, "join")
			stateIs(t, bob, replacement, "m.room.name", "", "name", "Old and new")
			create := bob.Must("GET", "/v3/rooms"+homeserver.Path(replacement, "state", "m.room.create", ""), nil)
			if homeserver.Dig(create, "predecessor", "room_id") != room || create["room_version"] != to {
				t.Errorf("the new room's create event: %v", create)
			}
			sees(t, bob, room, alice.Say(room, "we have moved")) // Dendrite tells others of a last change of state only when it must
			sameState(t, room, alice, bob)
			sameState(t, replacement, alice, bob)
		})
	}
}
