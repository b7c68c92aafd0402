package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"testing"

	"hanok/sytest/homeserver"
)

// ends waits until a user's client is told that an invite or a knock is over, or that the user is out of a room.
func ends(t *testing.T, c *homeserver.Client, room, what string) {
	t.Helper()
	c.SyncUntil("the end of "+what, func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
}

// act lets a moderator do something to a user.
func act(t *testing.T, who *homeserver.Client, room, action, whom string) {
	t.Helper()
	who.Must("POST", "/v3/rooms"+homeserver.Path(room, action), json{"user_id": whom, "reason": "because of " + action})
}

func leave(t *testing.T, c *homeserver.Client, room string) {
	t.Helper()
	c.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
}

// knock lets a user knock through a server.
func knock(t *testing.T, c *homeserver.Client, room string, s *homeserver.Server) {
	t.Helper()
	via := url.QueryEscape(s.Name)
	c.Must("POST", "/v3/knock"+homeserver.Path(room)+"?via="+via+"&server_name="+via, json{"reason": "let me in"})
}

// memberIsNot waits until a user is not seen with a membership.
func memberIsNot(t *testing.T, c *homeserver.Client, room, user, membership string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s does not see %s as %s", c.UserID, user, membership), func() string {
		status, content := c.Do("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.member", user), nil)
		if status == http.StatusOK && content["membership"] == membership {
			return fmt.Sprint(content)
		}
		return ""
	})
}

// interopApart changes memberships while the server of who should hear of it is down.
func interopApart(t *testing.T, p pair) {
	invited := func(t *testing.T) (alice, bob *homeserver.Client, room string) {
		t.Helper()
		alice, bob = p.home.Register(t, "alice"), p.away.Register(t, "bob")
		room = alice.CreateRoom(json{"preset": "private_chat", "name": "Apart", "invite": []string{bob.UserID}})
		bob.SyncUntilInvited(room)
		return alice, bob, room
	}
	// Whatever has become of it: a new invite comes, and is taken.
	again := func(t *testing.T, alice, bob *homeserver.Client, room string) {
		t.Helper()
		alice.Invite(room, bob.UserID)
		bob.SyncUntilInvited(room)
		bob.Join(room, p.home.Name)
		member(t, alice, room, bob.UserID, "join")
		sees(t, bob, room, alice.Say(room, "welcome"))
		sees(t, alice, room, bob.Say(room, "thanks"))
		sameState(t, room, alice, bob)
	}
	for _, restarted := range []bool{false, true} {
		p.part(t, fmt.Sprint("an invite is refused, both restarted ", restarted), func(t *testing.T) {
			alice, bob, room := invited(t)
			p.home.Kill()
			leave(t, bob, room)
			ends(t, bob, room, "the invite")
			if restarted {
				p.away.Kill()
				p.away.Start()
			}
			p.home.Start()
			alice.Do("GET", "/v3/profile"+homeserver.Path(bob.UserID), nil) // that it is asked something tells the other server that this one is back
			if p.can(bob, "late refusals") {
				member(t, alice, room, bob.UserID, "leave")
			}
			again(t, alice, bob, room)
		})
	}
	for action, known := range map[string]string{"kick": "withdrawn invites", "ban": "banned invitees"} {
		p.part(t, "an invite is taken back by a "+action, func(t *testing.T) {
			alice, bob, room := invited(t)
			p.away.Kill()
			act(t, alice, room, action, bob.UserID)
			p.away.Start()
			if p.lacks[known] == "" {
				ends(t, bob, room, "the invite")
			}
			forbidden(t, bob, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
			if action == "ban" {
				act(t, alice, room, "unban", bob.UserID)
			}
			again(t, alice, bob, room)
		})
	}
	p.part(t, "an invite cannot be delivered", func(t *testing.T) {
		alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "private_chat"})
		p.away.Kill()
		if status, res := alice.Do("POST", "/v3/rooms"+homeserver.Path(room, "invite"), json{"user_id": bob.UserID}); status == http.StatusOK {
			t.Errorf("an invite to a server that is down: %v", res)
		}
		memberIsNot(t, alice, room, bob.UserID, "invite")
		p.away.Start()
		eventually(t, "the server is asked again", func() string {
			if status, res := alice.Do("POST", "/v3/rooms"+homeserver.Path(room, "invite"), json{"user_id": bob.UserID}); status != http.StatusOK {
				return fmt.Sprint(status, res)
			}
			return ""
		})
		bob.SyncUntilInvited(room)
		bob.Join(room, p.home.Name)
		member(t, alice, room, bob.UserID, "join")
		sameState(t, room, alice, bob)
	})
	p.part(t, "bans and kicks", func(t *testing.T) {
		alice, bob, room := p.sharedRoom(t)
		carol := p.away.Register(t, "carol")
		carol.Join(room, p.home.Name)
		member(t, alice, room, carol.UserID, "join")
		bob.Sync(0)
		carol.Sync(0)
		p.away.Kill()
		act(t, alice, room, "kick", bob.UserID)
		act(t, alice, room, "ban", carol.UserID)
		p.away.Start()
		sees(t, alice, room, alice.Say(room, "they are gone"))
		ends(t, bob, room, "being in the room")
		ends(t, carol, room, "being in the room")
		forbidden(t, carol, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
		bob.Join(room, p.home.Name)
		member(t, alice, room, bob.UserID, "join")
		sameState(t, room, alice, bob)
	})
	p.part(t, "knocks", func(t *testing.T) {
		if p.lacks["knocks"] != "" {
			t.Skip(p.lacks["knocks"])
		}
		alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "private_chat", "name": "Knock", "initial_state": []json{{"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "knock"}}}})
		knock(t, bob, room, p.home)
		bob.Sync(0)
		// Taken back.
		p.home.Kill()
		leave(t, bob, room)
		ends(t, bob, room, "the knock")
		p.home.Start()
		if p.can(bob, "withdrawn knocks") {
			member(t, alice, room, bob.UserID, "leave")
		}
		// Turned down.
		knock(t, bob, room, p.home)
		member(t, alice, room, bob.UserID, "knock")
		bob.SyncUntil("the knock", func(res json) bool { return homeserver.Dig(res, "rooms", "knock", room) != nil })
		p.away.Kill()
		act(t, alice, room, "kick", bob.UserID)
		p.away.Start()
		if p.lacks["knocks that are turned down"] == "" {
			ends(t, bob, room, "the knock")
		}
		// Let in.
		knock(t, bob, room, p.home)
		member(t, alice, room, bob.UserID, "knock")
		again(t, alice, bob, room)
		// Banned.
		carol := p.away.Register(t, "carol")
		knock(t, carol, room, p.home)
		member(t, bob, room, carol.UserID, "knock")
		act(t, alice, room, "ban", carol.UserID)
		member(t, bob, room, carol.UserID, "ban")
		via := url.QueryEscape(p.home.Name)
		forbidden(t, carol, "POST", "/v3/knock"+homeserver.Path(room)+"?via="+via+"&server_name="+via, json{})
	})
}

// interopBans bans, unbans and lets in time and again, by moderators of either side.
func interopBans(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	setPower(alice, room, bob.UserID, 50)
	sameLevels(t, room, []*homeserver.Client{alice, bob})
	victims := []*homeserver.Client{p.home.Register(t, "victim"), p.away.Register(t, "victim")}
	both := []*homeserver.Client{alice, bob}
	seenAs := func(victim *homeserver.Client, membership string) {
		t.Helper()
		for _, c := range both {
			member(t, c, room, victim.UserID, membership)
		}
	}
	for round := range 4 {
		for i, victim := range victims {
			moderator := both[(round+i)%2]
			victim.Join(room, p.home.Name)
			seenAs(victim, "join")
			for _, c := range both {
				sees(t, c, room, victim.Say(room, fmt.Sprint("round ", round)))
			}
			victim.Sync(0)
			act(t, moderator, room, "ban", victim.UserID)
			seenAs(victim, "ban")
			ends(t, victim, room, "being in the room")
			for _, c := range both {
				stateIs(t, c, room, "m.room.member", victim.UserID, "reason", "because of ban")
			}
			forbidden(t, victim, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name)+"&via="+url.QueryEscape(p.away.Name), json{})
			forbidden(t, victim, "PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", fmt.Sprint("banned", round)), json{"msgtype": "m.text", "body": "still here?"})
			forbidden(t, both[round%2], "POST", "/v3/rooms"+homeserver.Path(room, "invite"), json{"user_id": victim.UserID})
			act(t, both[(round/2+i)%2], room, "unban", victim.UserID)
			seenAs(victim, "leave")
		}
	}
	// Who was never there.
	stranger := p.away.Register(t, "stranger")
	act(t, alice, room, "ban", stranger.UserID)
	member(t, bob, room, stranger.UserID, "ban")
	forbidden(t, stranger, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
	act(t, bob, room, "unban", stranger.UserID)
	member(t, alice, room, stranger.UserID, "leave")
	stranger.Join(room, p.home.Name)
	member(t, alice, room, stranger.UserID, "join")
	// Many, at once.
	var crowd []*homeserver.Client
	for i := range 10 {
		c := []*homeserver.Server{p.home, p.away}[i%2].Register(t, "crowd")
		c.Join(room, p.home.Name)
		crowd = append(crowd, c)
	}
	for i, c := range crowd {
		member(t, both[(i+1)%2], room, c.UserID, "join")
	}
	for i, c := range crowd {
		act(t, both[i/2%2], room, []string{"ban", "kick"}[i%3%2], c.UserID)
	}
	for i, c := range crowd {
		seenAs(c, []string{"ban", "leave"}[i%3%2])
	}
	allSay(t, room, both)
	if p.lacks["forks"] == "" { // they were banned on one branch while others came on another
		sameState(t, room, alice, bob)
	}
}

// interopCreators is about the power of those who made a room of version 12.
func interopCreators(t *testing.T, p pair) {
	if !slices.Contains(p.versions(t), "12") {
		t.Skip("not both have room version 12")
	}
	alice, bob, carol := p.home.Register(t, "alice"), p.away.Register(t, "bob"), p.away.Register(t, "carol")
	room := alice.CreateRoom(json{"preset": "public_chat", "room_version": "12", "name": "Made by two", "creation_content": json{"additional_creators": []string{bob.UserID}}})
	for _, c := range []*homeserver.Client{bob, carol} {
		c.Join(room, p.home.Name)
		member(t, alice, room, c.UserID, "join")
	}
	levels := func(c *homeserver.Client, change func(json)) (int, json) {
		content := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)
		if content["users"] == nil {
			content["users"] = json{}
		}
		change(content)
		return c.Do("PUT", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), content)
	}
	user := func(id string, level int) func(json) {
		return func(content json) { content["users"].(json)[id] = level }
	}
	// Who made it has a level that stands nowhere, on either server.
	if status, res := levels(bob, user(carol.UserID, 100)); status != http.StatusOK {
		t.Fatalf("the other creator gives somebody power: %d %v", status, res)
	}
	for _, c := range []*homeserver.Client{alice, carol} {
		stateIs(t, c, room, "m.room.power_levels", "", "users", json{carol.UserID: 100})
	}
	for _, c := range []*homeserver.Client{alice, bob} {
		for _, other := range []string{alice.UserID, bob.UserID} {
			if status, res := levels(c, user(other, 100)); status < 400 || status >= 500 {
				t.Errorf("%s gives the creator %s a level: %d %v", c.UserID, other, status, res)
			}
		}
	}
	for _, creator := range []string{alice.UserID, bob.UserID} {
		for _, action := range []string{"kick", "ban"} {
			forbidden(t, carol, "POST", "/v3/rooms"+homeserver.Path(room, action), json{"user_id": creator})
		}
	}
	// 100 is not enough for what the creators have to do.
	forbidden(t, carol, "POST", "/v3/rooms"+homeserver.Path(room, "upgrade"), json{"new_version": "12"})
	elsewhere := carol.CreateRoom(json{"preset": "public_chat"})
	forbidden(t, carol, "PUT", "/v3/rooms"+homeserver.Path(room, "state", "m.room.tombstone", ""), json{"body": "over", "replacement_room": elsewhere})
	dave := p.home.Register(t, "dave")
	dave.Join(room)
	member(t, bob, room, dave.UserID, "join")
	act(t, carol, room, "kick", dave.UserID)
	member(t, alice, room, dave.UserID, "leave")
	act(t, bob, room, "ban", carol.UserID)
	member(t, alice, room, carol.UserID, "ban")
	act(t, alice, room, "unban", carol.UserID)
	member(t, bob, room, carol.UserID, "leave")
	carol.Join(room, p.home.Name)
	member(t, alice, room, carol.UserID, "join")
	sameState(t, room, alice, bob)

	// The other creator moves everybody to a room of his own.
	replacement, _ := bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "upgrade"), json{"new_version": "12", "additional_creators": []string{alice.UserID}})["replacement_room"].(string)
	stateIs(t, alice, room, "m.room.tombstone", "", "replacement_room", replacement)
	joinThrough(t, alice, replacement, p.away)
	joinThrough(t, carol, replacement, p.away)
	member(t, alice, replacement, carol.UserID, "join")
	create := alice.Must("GET", "/v3/rooms"+homeserver.Path(replacement, "state", "m.room.create", ""), nil)
	if fmt.Sprint(create["additional_creators"]) != fmt.Sprint([]string{alice.UserID}) {
		t.Errorf("who made the new room: %v", create)
	}
	alice.SetState(replacement, "m.room.topic", "", json{"topic": "by who made it"})
	stateIs(t, bob, replacement, "m.room.topic", "", "topic", "by who made it")
	sameState(t, replacement, alice, bob)
}

// interopMoves upgrades rooms that not everybody may join, by who is not at home.
func interopMoves(t *testing.T, p pair) {
	common := p.versions(t)
	newest := common[len(common)-1]
	if p.lacks["invites/here/version_"+newest] != "" {
		newest = common[len(common)-2] // those who are invited could not tell what the room is
	}
	for _, rule := range []string{"public", "invite", "restricted", "knock"} {
		p.part(t, rule, func(t *testing.T) {
			from := "10"
			alice, bob, carol, dave := p.home.Register(t, "alice"), p.away.Register(t, "bob"), p.home.Register(t, "carol"), p.away.Register(t, "dave")
			space := alice.CreateRoom(json{"preset": "public_chat", "room_version": from, "creation_content": json{"type": "m.space"}})
			content := json{"join_rule": rule}
			if rule == "restricted" {
				content["allow"] = []json{{"type": "m.room_membership", "room_id": space}}
			}
			room := alice.CreateRoom(json{
				"preset": "private_chat", "room_version": from, "name": "Moving", "topic": "Boxes", "invite": []string{bob.UserID, carol.UserID},
				"initial_state": []json{
					{"type": "m.room.join_rules", "state_key": "", "content": content},
					{"type": "m.room.server_acl", "state_key": "", "content": json{"allow": []any{"*"}, "deny": []any{"evil.example.org"}, "allow_ip_literals": true}},
					{"type": "m.room.encryption", "state_key": "", "content": json{"algorithm": "m.megolm.v1.aes-sha2"}},
				},
			})
			bob.SyncUntilInvited(room)
			bob.Join(room, p.home.Name)
			carol.Join(room)
			member(t, alice, room, bob.UserID, "join")
			act(t, alice, room, "ban", dave.UserID)
			setPower(alice, room, bob.UserID, 100)
			sameLevels(t, room, []*homeserver.Client{alice, bob})
			sameState(t, room, alice, bob)

			replacement, _ := bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "upgrade"), json{"new_version": newest})["replacement_room"].(string)
			moved := bob.Say(room, "we have moved") // Dendrite tells others of a last change of state only when it must
			for _, c := range []*homeserver.Client{alice, carol} {
				stateIs(t, c, room, "m.room.tombstone", "", "replacement_room", replacement)
				sees(t, c, room, moved)
				if rule == "restricted" { // into the space, whose members may join
					c.Do("POST", "/v3/join"+homeserver.Path(space), json{})
				}
			}
			for _, c := range []*homeserver.Client{alice, carol} {
				if rule != "public" {
					bob.Invite(replacement, c.UserID)
					c.SyncUntilInvited(replacement)
				}
				joinThrough(t, c, replacement, p.away)
				member(t, bob, replacement, c.UserID, "join")
			}
			for eventType, want := range map[string]string{"m.room.name": "name", "m.room.topic": "topic", "m.room.join_rules": "join_rule", "m.room.encryption": "algorithm", "m.room.server_acl": "deny"} {
				was := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", eventType, ""), nil)
				stateIs(t, alice, replacement, eventType, "", want, was[want])
			}
			stateIs(t, alice, replacement, "m.room.member", dave.UserID, "membership", "ban")
			sees(t, alice, replacement, bob.Say(replacement, "here we are"))
			sees(t, bob, replacement, carol.Say(replacement, "nice place"))
			sameState(t, room, alice, bob)
			sameState(t, replacement, alice, bob)
			// Nobody without power speaks in the old one.
			forbidden(t, carol, "PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", "late"), json{"msgtype": "m.text", "body": "too late"})
		})
	}
}

// interopRedactions compares what is left of events of many types, in every room version.
func interopRedactions(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
			if p.lacks["redactions of version "+version] != "" {
				t.Skip(p.lacks["redactions of version "+version])
			}
			room := alice.CreateRoom(json{"preset": "public_chat", "room_version": version, "name": "Redacted"})
			early := alice.Say(room, "before bob came")
			bob.Join(room, p.home.Name)
			member(t, alice, room, bob.UserID, "join")
			levels := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)
			levels["org.example.extra"], levels["notifications"], levels["invite"] = "x", json{"room": 20}, 10
			var ids []string
			for eventType, content := range map[string]json{
				"m.room.topic": {"topic": "gone"}, "m.room.name": {"name": "gone"}, "m.room.power_levels": levels,
				"m.room.join_rules":         {"join_rule": "public", "allow": []any{}, "org.example.extra": "x"},
				"m.room.history_visibility": {"history_visibility": "shared", "org.example.extra": "x"},
				"m.room.canonical_alias":    {"org.example.extra": "x"},
				"m.room.encryption":         {"algorithm": "m.megolm.v1.aes-sha2"}, "m.room.guest_access": {"guest_access": "can_join"}, "org.example.state": {"a": 1},
				"m.room.third_party_invite": {"display_name": "x", "public_key": "abc", "key_validity_url": "https://example.org"},
			} {
				if status, res := alice.Do("PUT", "/v3/rooms"+homeserver.Path(room, "state", eventType, ""), content); status == http.StatusOK {
					ids = append(ids, fmt.Sprint(res["event_id"]))
				} else {
					t.Logf("%s takes no such %s: %d %v", p.home.Name, eventType, status, res)
				}
			}
			carol := p.away.Register(t, "carol")
			carol.Join(room, p.home.Name)
			member(t, alice, room, carol.UserID, "join")
			act(t, alice, room, "ban", carol.UserID)
			member(t, bob, room, carol.UserID, "ban")
			state, problem := stateOf(alice, room)
			if problem != "" {
				t.Fatal(problem)
			}
			ids = append(ids, early, state["m.room.member|"+carol.UserID], state["m.room.member|"+bob.UserID],
				alice.Say(room, "text"), alice.Send(room, "m.reaction", json{"m.relates_to": json{"rel_type": "m.annotation", "event_id": early, "key": "x"}}),
				alice.Send(room, "m.room.encrypted", json{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "m.relates_to": json{"rel_type": "m.thread", "event_id": early}}))
			inHistory(t, bob, room, early) // with all that came before him
			var last string
			for _, id := range ids {
				sees(t, bob, room, id)
				last, _ = alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "redact", id, "redact"+id), json{"reason": "gone"})["event_id"].(string)
			}
			// A redaction is redacted, too.
			sees(t, bob, room, last)
			alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "redact", last, "redact"+last), json{})
			ids = append(ids, last)
			for _, id := range ids {
				for _, c := range []*homeserver.Client{alice, bob} {
					eventually(t, c.UserID+" sees that "+id+" is redacted", func() string {
						e := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", id), nil)
						if homeserver.Dig(e, "unsigned", "redacted_because") == nil {
							return fmt.Sprint(e)
						}
						return ""
					})
				}
				here, there := sees(t, alice, room, id), sees(t, bob, room, id)
				for _, member := range []string{"content", "type", "sender", "state_key", "origin_server_ts"} {
					if !reflect.DeepEqual(here[member], there[member]) {
						t.Errorf("%s of the redacted %s is %v at %s and %v at %s", member, here["type"], here[member], p.home.Name, there[member], p.away.Name)
					}
				}
			}
			sameState(t, room, alice, bob)
			sees(t, bob, room, alice.Say(room, "what is left?"))
			sees(t, alice, room, bob.Say(room, "enough"))
			// Who comes now is not told what was taken away, page by page.
			dave := p.away.Register(t, "dave")
			dave.Join(room, p.home.Name)
			for _, e := range backwards(dave, room, 30) {
				if slices.Contains(ids, fmt.Sprint(e["event_id"])) && (homeserver.Dig(e, "content", "body") != nil || homeserver.Dig(e, "content", "topic") != nil) {
					t.Errorf("dave reads what was redacted: %v", e)
				}
			}
			// What one may not redact stays.
			said := alice.Say(room, "this stays")
			sees(t, bob, room, said)
			forbidden(t, dave, "PUT", "/v3/rooms"+homeserver.Path(room, "redact", said, "not mine"), json{})
		})
	}
}

// interopGaps has somebody come and go while the visibility of the history changes.
func interopGaps(t *testing.T, p pair) {
	alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	want := map[string]bool{}
	say := func(visible bool, text string) {
		t.Helper()
		for i := range 6 {
			want[alice.Say(room, fmt.Sprint(text, " ", i))] = visible
		}
	}
	visibility := func(v string) {
		t.Helper()
		alice.SetState(room, "m.room.history_visibility", "", json{"history_visibility": v})
	}
	joins := func() {
		t.Helper()
		bob.Join(room, p.home.Name)
		member(t, alice, room, bob.UserID, "join")
	}
	leaves := func() {
		t.Helper()
		leave(t, bob, room)
		member(t, alice, room, bob.UserID, "leave")
	}
	say(true, "shared before the join")
	visibility("joined")
	say(false, "joined before the join")
	visibility("invited")
	say(false, "invited before the join")
	visibility("world_readable")
	say(true, "readable before the join")
	visibility("joined")
	say(false, "joined just before the join")
	joins()
	say(true, "while there")
	leaves()
	say(false, "while away, joined")
	visibility("shared")
	say(true, "while away, shared")
	visibility("invited")
	say(false, "while away, invited")
	alice.Invite(room, bob.UserID)
	bob.SyncUntilInvited(room)
	say(true, "while invited")
	joins()
	say(true, "back again")
	last := alice.Say(room, "last")
	sees(t, bob, room, last)
	eventually(t, "what bob sees", func() string {
		got := map[string]bool{}
		for _, e := range backwards(bob, room, 25) {
			// What its server may not know is there without its content on some.
			got[fmt.Sprint(e["event_id"])] = homeserver.Dig(e, "content", "body") != nil
		}
		problem := ""
		for id, visible := range want {
			if visible != got[id] && (p.can(bob, "hidden history") || !visible) {
				e := sees(t, alice, room, id)
				problem += fmt.Sprintf("%v: seen %v, want %v\n", homeserver.Dig(e, "content", "body"), got[id], visible)
			}
		}
		return problem
	})
	for id, visible := range want {
		status, res := bob.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", id), nil)
		if body := homeserver.Dig(res, "content", "body"); !visible && status == http.StatusOK && body != nil {
			t.Errorf("bob reads an event that he may not: %v", body)
		}
	}
	sameState(t, room, alice, bob)
}
