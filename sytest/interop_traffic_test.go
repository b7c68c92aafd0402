package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// interopCrashes kills both servers time and again while people on both talk, who send again what was not answered.
func interopCrashes(t *testing.T, p pair) {
	t.Logf("-interop-seed %d", *interopSeed)
	alice, bob, room := p.sharedRoom(t)
	bob.SyncUntilEvent(room, alice.Say(room, "before"))
	talkers := []*homeserver.Client{alice, bob, p.home.Register(t, "talker"), p.away.Register(t, "talker")}
	for _, c := range talkers[2:] {
		c.Join(room, p.home.Name)
		member(t, alice, room, c.UserID, "join")
		member(t, bob, room, c.UserID, "join")
	}
	const messages = 40
	said := make([][messages]string, len(talkers))
	var all sync.WaitGroup
	for i, c := range talkers {
		all.Go(func() {
			for n := range messages {
				body := json{"msgtype": "m.text", "body": fmt.Sprint("message ", n, " of ", c.UserID)}
				path := "/v3/rooms" + homeserver.Path(room, "send", "m.room.message", fmt.Sprint("crash", n))
				for deadline := time.Now().Add(2 * time.Minute); said[i][n] == ""; {
					status, raw, err := c.Try("PUT", path, body)
					var answer struct {
						EventID string `json:"event_id"`
					}
					if err == nil && status == http.StatusOK && stdjson.Unmarshal(raw, &answer) == nil {
						said[i][n] = answer.EventID
					} else if time.Now().After(deadline) {
						t.Errorf("%s cannot send: %d %s %v", c.UserID, status, raw, err)
						return
					} else {
						time.Sleep(50 * time.Millisecond) // until the server is up again
					}
				}
			}
		})
	}
	rng := rand.New(rand.NewPCG(*interopSeed, 7))
	for range 6 {
		s := []*homeserver.Server{p.home, p.away}[rng.IntN(2)]
		sent := time.Duration(rng.IntN(400)) * time.Millisecond
		time.Sleep(sent) // the moment is to be any
		s.Kill()
		s.Start()
	}
	all.Wait()
	p.heard(t, alice, bob, room, "all quiet here")
	p.heard(t, bob, alice, room, "here, too")
	for _, c := range talkers[:2] {
		eventually(t, "all of it for "+c.UserID, func() string {
			count := map[any]int{}
			for _, e := range p.history(c, room, 100) {
				count[homeserver.Dig(e, "content", "body")]++
			}
			problem := ""
			for _, talker := range talkers {
				for n := range messages {
					body := fmt.Sprint("message ", n, " of ", talker.UserID)
					if count[body] == 0 || count[body] > 1 && p.can(talker, "repeated sends") {
						problem += fmt.Sprintf("%q is there %d times\n", body, count[body])
					}
				}
			}
			return problem
		})
		for i := range talkers {
			for _, id := range said[i] {
				sees(t, c, room, id)
			}
		}
	}
	sameState(t, room, alice, bob)
}

// interopHalfJoined has people join rooms of many and do things before their server can know all who are in it.
func interopHalfJoined(t *testing.T, p pair) {
	const members = 150
	crowd := make([]*homeserver.Client, members)
	for i := range crowd {
		crowd[i] = p.home.Register(t, "m")
	}
	full := func(t *testing.T) (alice, bob *homeserver.Client, room string) {
		t.Helper()
		alice, bob = p.home.Register(t, "alice"), p.away.Register(t, "bob")
		room = alice.CreateRoom(json{"preset": "public_chat", "name": "Full"})
		for _, c := range crowd {
			c.Join(room)
		}
		return alice, bob, room
	}
	known := func(t *testing.T, alice, bob *homeserver.Client, room string) {
		t.Helper()
		eventually(t, bob.UserID+" knows all members", func() string {
			status, raw := bob.Raw("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil)
			var answer struct{ Joined json }
			if err := stdjson.Unmarshal(raw, &answer); err != nil || status != http.StatusOK || len(answer.Joined) != len(joinedMembers(alice, room)) {
				return fmt.Sprint(status, len(answer.Joined))
			}
			return ""
		})
		sees(t, bob, room, alice.Say(room, "welcome"))
		sees(t, alice, room, bob.Say(room, "thanks"))
		sameState(t, room, alice, bob)
	}
	p.part(t, "the other server is out of reach", func(t *testing.T) {
		alice, bob, room := full(t)
		bob.Join(room, p.home.Name)
		p.home.Cut()
		said := bob.Say(room, "is anybody there?")
		bob.SetState(bob.CreateRoom(json{}), "m.room.topic", "", json{"topic": "elsewhere"}) // other rooms are not held up
		meanwhile := alice.Say(room, "we are cut off")
		p.home.Heal()
		sees(t, alice, room, said)
		sees(t, bob, room, meanwhile)
		known(t, alice, bob, room)
	})
	p.part(t, "killed", func(t *testing.T) {
		alice, bob, room := full(t)
		bob.Join(room, p.home.Name)
		p.away.Kill()
		crowd[0].Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		p.away.Start()
		alice.Say(room, "are you back?")
		known(t, alice, bob, room)
		member(t, bob, room, crowd[0].UserID, "leave")
		crowd[0].Join(room)
	})
	p.part(t, "left at once, and others come", func(t *testing.T) {
		alice, bob, room := full(t)
		carol := p.away.Register(t, "carol")
		bob.Join(room, p.home.Name)
		leave(t, bob, room)
		member(t, alice, room, bob.UserID, "leave")
		joinThrough(t, carol, room, p.home)
		joinThrough(t, bob, room, p.home)
		member(t, alice, room, carol.UserID, "join")
		member(t, alice, room, bob.UserID, "join")
		known(t, alice, bob, room)
	})
	p.part(t, "banned at once", func(t *testing.T) {
		alice, bob, room := full(t)
		bob.Join(room, p.home.Name)
		act(t, alice, room, "ban", bob.UserID)
		ends(t, bob, room, "being in the room")
		forbidden(t, bob, "POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{})
		act(t, alice, room, "unban", bob.UserID)
		joinThrough(t, bob, room, p.home)
		member(t, alice, room, bob.UserID, "join")
		known(t, alice, bob, room)
	})
	p.part(t, "state and devices", func(t *testing.T) {
		alice, bob, room := full(t)
		bob.Join(room, p.home.Name)
		alice.SetState(room, "m.room.topic", "", json{"topic": "changed while you came"})
		setPower(alice, room, bob.UserID, 50)
		d := upload(t, crowd[1].Login())
		stateIs(t, bob, room, "m.room.topic", "", "topic", "changed while you came")
		known(t, alice, bob, room)
		eventually(t, "a device of somebody in the room", func() string {
			res := bob.Must("POST", "/v3/keys/query", json{"device_keys": json{crowd[1].UserID: []any{}}})
			if homeserver.Dig(res, "device_keys", crowd[1].UserID, d.DeviceID) == nil {
				return fmt.Sprint(res)
			}
			return ""
		})
		bob.SetState(room, "m.room.name", "", json{"name": "bob's"})
		stateIs(t, alice, room, "m.room.name", "", "name", "bob's")
		sameState(t, room, alice, bob)
	})
}

// interopElsewhere has a room to which somebody may come through a server that its home cannot speak for: only that one knows who is in the space.
func interopElsewhere(t *testing.T, p pair) {
	third := p.home.Network().Start(homeserver.Options{Cuttable: true})
	defer third.Kill()
	for _, version := range p.versions(t) {
		if !atLeast(version, 8) {
			continue
		}
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, tom := p.home.Register(t, "alice"), p.away.Register(t, "bob"), third.Register(t, "tom")
			if !p.can(bob, "joins that others authorise") {
				t.Skip(p.lacks["joins that others authorise"])
			}
			space := tom.CreateRoom(json{"preset": "public_chat", "room_version": version, "creation_content": json{"type": "m.space"}})
			room := alice.CreateRoom(json{"preset": "private_chat", "room_version": version, "invite": []string{tom.UserID}, "initial_state": []json{{
				"type": "m.room.join_rules", "state_key": "", "content": json{"join_rule": "restricted", "allow": []json{{"type": "m.room_membership", "room_id": space}}},
			}}})
			tom.SyncUntilInvited(room)
			tom.Join(room, p.home.Name)
			member(t, alice, room, tom.UserID, "join")
			both := "?via=" + url.QueryEscape(p.home.Name) + "&via=" + url.QueryEscape(third.Name)
			status, res := bob.Do("POST", "/v3/join"+homeserver.Path(room)+both, json{})
			if status == http.StatusOK {
				t.Fatalf("bob joins, who is not in the space: %v", res)
			}
			joinThrough(t, bob, space, third)
			member(t, tom, space, bob.UserID, "join")
			// Its home does not know the space, and says so.
			if status, res := bob.Do("POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{}); status == http.StatusOK {
				t.Fatalf("bob joins through a server that does not know the space: %v", res)
			}
			bob.Must("POST", "/v3/join"+homeserver.Path(room)+both, json{})
			for _, c := range []*homeserver.Client{alice, tom} {
				member(t, c, room, bob.UserID, "join")
			}
			allSay(t, room, []*homeserver.Client{alice, bob, tom})
			agree(t, room, []*homeserver.Client{alice, bob, tom})
			// Out of the space, out of the room, and not in again.
			leave(t, bob, space)
			leave(t, bob, room)
			member(t, tom, space, bob.UserID, "leave")
			member(t, tom, room, bob.UserID, "leave")
			if status, res := bob.Do("POST", "/v3/join"+homeserver.Path(room)+both, json{}); status == http.StatusOK {
				t.Errorf("bob joins, who has left the space: %v", res)
			}
		})
	}
}
