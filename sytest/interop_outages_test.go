package sytest

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

var interopMembers = flag.Int("interop-members", 200, "how many are in the room of TestInterop/old_room")

// interopLongOutage has hundreds of events with changes of state happen on one side while the other is down.
func interopLongOutage(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	bob.SyncUntilEvent(room, alice.Say(room, "before"))
	guests := []*homeserver.Client{}
	for i := range 12 {
		guests = append(guests, p.home.Register(t, fmt.Sprint("guest", i)))
	}
	p.away.Kill()
	var said []string
	for i := range 300 {
		said = append(said, alice.Say(room, fmt.Sprint("meanwhile ", i)))
		guest := guests[i%len(guests)]
		switch i % 10 {
		case 1:
			alice.SetState(room, "m.room.name", "", json{"name": fmt.Sprint("name ", i)})
		case 2:
			guest.Do("POST", "/v3/join"+homeserver.Path(room), json{}) // may be banned
		case 4:
			alice.SetState(room, "org.example.meanwhile", fmt.Sprint(i%40), json{"i": i})
		case 6:
			guest.Do("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{}) // may not be in the room
		case 8:
			alice.Do("POST", "/v3/rooms"+homeserver.Path(room, []string{"ban", "unban"}[i/10%2]), json{"user_id": guest.UserID}) // may not be banned
		case 9:
			setPower(alice, room, guests[i/10%3].UserID, i/10%3*25)
		}
		if i == 150 {
			p.home.Kill()
			p.home.Start()
		}
	}
	p.away.Start()
	bob.Sync(0) // that he is online tells the other server that his is back
	after := p.heard(t, alice, bob, room, "after")
	sameState(t, room, alice, bob)
	wholeHistory(t, bob, room, append(said, after))
	sees(t, alice, room, bob.Say(room, "all here"))
	sameState(t, room, alice, bob)
}

// interopUnderFire kills a server time and again while several people of the other one talk, and everybody is told of everything once.
func interopUnderFire(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	talkers := []*homeserver.Client{alice}
	for i := range 2 {
		c := p.home.Register(t, fmt.Sprint("talker", i))
		c.Join(room)
		member(t, bob, room, c.UserID, "join")
		talkers = append(talkers, c)
	}
	sent := make([][]string, len(talkers))
	var all sync.WaitGroup
	for i, c := range talkers {
		all.Go(func() {
			for n := range 60 {
				sent[i] = append(sent[i], c.Say(room, fmt.Sprint("under fire ", n)))
			}
		})
	}
	seen := map[string]int{}
	look := func() {
		for _, e := range homeserver.Timeline(bob.Sync(100*time.Millisecond), room) {
			seen[fmt.Sprint(e["event_id"])]++
		}
	}
	for range 4 {
		look()
		p.away.Kill()
		p.away.Start()
	}
	all.Wait()
	last := p.heard(t, alice, bob, room, "cease fire")
	eventually(t, "the last message", func() string {
		look()
		if seen[last] == 0 {
			return "is missing"
		}
		return ""
	})
	for _, id := range slices.Concat(sent...) {
		if seen[id] > 1 {
			t.Errorf("%s came %d times", id, seen[id])
		}
		if seen[id] == 0 {
			inHistory(t, bob, room, id) // the timeline had a gap
		}
	}
	sameState(t, room, alice, bob)
}

// interopRestored puts one server back to where it was some time ago, as from a backup, while the other goes on from where they were.
func interopRestored(t *testing.T, p pair) {
	p.forgetOutages(t)
	alice, bob, room := p.sharedRoom(t)
	carol := p.home.Register(t, "carol")
	quiet := alice.CreateRoom(json{"preset": "public_chat"}) // where the first to speak afterwards is who has lost something
	bob.Join(quiet, p.home.Name)
	setPower(alice, room, bob.UserID, 100)
	sameLevels(t, room, []*homeserver.Client{alice, bob})
	bob.SyncUntilEvent(quiet, alice.Say(quiet, "before"))
	bob.SyncUntilEvent(room, alice.Say(room, "before"))
	sameState(t, room, alice, bob)
	before := upload(t, alice)
	changed(t, bob, alice.UserID)

	if err := p.home.Stop(); err != nil {
		t.Log(err) // not all software ends in peace
	}
	backup := t.TempDir()
	copyFolder(t, p.home.DataDir(), backup)
	p.home.Start()

	var lost []string
	for i := range 15 {
		lost = append(lost, alice.Say(room, fmt.Sprint("lost ", i)), bob.Say(room, fmt.Sprint("kept ", i)))
		alice.SetState(room, "org.example.lost", fmt.Sprint(i), json{"i": i})
		alice.Say(quiet, fmt.Sprint("lost ", i))
	}
	alice.SetState(room, "m.room.topic", "", json{"topic": "lost"})
	alice.SetState(quiet, "m.room.topic", "", json{"topic": "lost"})
	carol.Join(room)
	setPower(alice, room, carol.UserID, 50)
	second := upload(t, alice.Login())
	changed(t, bob, alice.UserID)
	eventually(t, "the second device", func() string {
		res := bob.Must("POST", "/v3/keys/query", json{"device_keys": json{alice.UserID: []any{}}})
		if homeserver.Dig(res, "device_keys", alice.UserID, second.DeviceID) == nil {
			return fmt.Sprint(res)
		}
		return ""
	})
	fresh := alice.CreateRoom(json{"preset": "public_chat", "name": "Fresh"})
	bob.Join(fresh, p.home.Name)
	lostThere := alice.Say(fresh, "lost too")
	sees(t, bob, fresh, lostThere)
	wholeHistory(t, bob, fresh, []string{lostThere}) // from its beginning, so that nothing is lost for good
	member(t, bob, room, carol.UserID, "join")
	sees(t, bob, room, lost[len(lost)-2])
	sameState(t, room, alice, bob)
	sameState(t, quiet, alice, bob)

	p.home.Kill()
	if err := os.RemoveAll(p.home.DataDir()); err != nil {
		t.Fatal(err)
	}
	copyFolder(t, backup, p.home.DataDir())
	p.home.Start()

	// Somebody who has everything speaks, and it comes back.
	sees(t, alice, room, bob.Say(room, "where were we?"))
	eventually(t, "what "+alice.UserID+" has lost", func() string {
		shown := map[any]bool{}
		for _, e := range p.history(alice, room, 50) {
			shown[e["event_id"]] = true
		}
		for _, id := range lost {
			if !shown[id] {
				return id + " is not there"
			}
		}
		return ""
	})
	sameState(t, room, alice, bob)
	stateIs(t, alice, room, "m.room.topic", "", "topic", "lost")
	sees(t, bob, room, alice.Say(room, "so that is what I said"))
	sameState(t, room, alice, bob)
	// Who has not speaks, as if nothing had been.
	sees(t, bob, quiet, alice.Say(quiet, "hello again"))
	sees(t, alice, quiet, bob.Say(quiet, "you said more than that"))
	sameState(t, quiet, alice, bob)
	stateIs(t, alice, quiet, "m.room.topic", "", "topic", "lost")
	// A room of which nothing is left here is one like any other on another server.
	alice.Join(fresh, p.away.Name)
	inHistory(t, alice, fresh, lostThere)
	sees(t, bob, fresh, alice.Say(fresh, "found"))
	sees(t, alice, fresh, bob.Say(fresh, "kept"))
	if p.can(bob, "second joins") {
		sameState(t, fresh, alice, bob)
	}
	// Devices are those that are left, and new ones are told of.
	third := upload(t, alice.Login())
	eventually(t, "alice's devices", func() string {
		res := bob.Must("POST", "/v3/keys/query", json{"device_keys": json{alice.UserID: []any{}}})
		devices, _ := homeserver.Dig(res, "device_keys", alice.UserID).(json)
		if devices[before.DeviceID] == nil || devices[third.DeviceID] == nil || devices[second.DeviceID] != nil {
			return fmt.Sprint(res)
		}
		return ""
	})
	for n, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		from, to := who[0], who[1]
		from.Must("PUT", "/v3/sendToDevice/org.example.ping"+homeserver.Path(fmt.Sprint(room, n)), json{"messages": json{to.UserID: json{to.DeviceID: json{"n": n}}}})
		to.SetToken("")
		to.SyncUntil("a message to a device", func(res json) bool {
			return slices.ContainsFunc(homeserver.Events(res, "to_device", "events"), func(e json) bool { return homeserver.Dig(e, "content", "n") == float64(n) })
		})
	}
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// interopOldRoom has a server join a room of the other one in which very much has happened: thousands of state events of people who came, changed
// their names and went, and branches that a third server made.
func interopOldRoom(t *testing.T, p pair) {
	third := p.home.Network().Start(homeserver.Options{Cuttable: true})
	defer third.Kill()
	alice := p.home.Register(t, "alice")
	room := alice.CreateRoom(json{"preset": "public_chat", "name": "Old", "room_version": "10"})
	users := []*homeserver.Client{alice, third.Register(t, "resident")}
	var all sync.WaitGroup
	var mu sync.Mutex
	members := []*homeserver.Client{}
	work := make(chan int)
	for range 4 {
		all.Go(func() {
			for i := range work {
				m := p.home.Register(t, "m")
				m.Join(room)
				switch i % 8 {
				case 1:
					m.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
				case 2:
					m.Must("PUT", "/v3/profile"+homeserver.Path(m.UserID, "displayname"), json{"displayname": fmt.Sprint("Member ", i)})
				case 3:
					alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "ban"), json{"user_id": m.UserID})
				case 4:
					alice.SetState(room, "org.example.old", fmt.Sprint(i), json{"i": i})
				}
				mu.Lock()
				members = append(members, m)
				mu.Unlock()
			}
		})
	}
	for i := range *interopMembers {
		work <- i
	}
	close(work)
	all.Wait()
	for i := range 6 {
		users = append(users, []*homeserver.Server{p.home, third}[i%2].Register(t, "guest"))
	}
	for _, c := range users[1:] {
		c.Join(room, p.home.Name)
		member(t, alice, room, c.UserID, "join")
	}
	changePower(alice, room, func(content json) {
		content["users"] = json{alice.UserID: 100, users[1].UserID: 100, users[2].UserID: 75, users[3].UserID: 75, users[4].UserID: 50}
	})
	sameLevels(t, room, users[:2])
	rng := rand.New(rand.NewPCG(*interopSeed, 0))
	for range 4 {
		p.home.Cut()
		third.Cut()
		for range 40 {
			interopRandomAct(rng, room, users, 2)
		}
		p.home.Heal()
		third.Heal()
		corners{servers: []*homeserver.Server{p.home, third}}.meet(t, room, users)
	}
	alice.SetState(room, "m.room.join_rules", "", json{"join_rule": "public"})

	bob := p.away.Register(t, "bob")
	started := time.Now()
	bob.Join(room, p.home.Name)
	t.Logf("%s joins a room of %d in %v", bob.UserID, *interopMembers, time.Since(started).Round(time.Millisecond))
	sees(t, alice, room, bob.Say(room, "so many of you"))
	sees(t, bob, room, alice.Say(room, "welcome"))
	sees(t, bob, room, users[1].Say(room, "welcome, too"))
	want := len(joinedMembers(alice, room))
	eventually(t, "all members", func() string {
		if got := len(joinedMembers(bob, room)); got != want {
			return fmt.Sprint(got, " of ", want)
		}
		return ""
	})
	t.Logf("all members are known after %v", time.Since(started).Round(time.Millisecond))
	agree(t, room, []*homeserver.Client{alice, bob, users[1]})
	for _, m := range members[:20] {
		m.Do("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{}) // may be out already
	}
	agree(t, room, []*homeserver.Client{alice, bob, users[1]})
}

func joinedMembers(c *homeserver.Client, room string) json {
	joined, _ := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil)["joined"].(json)
	return joined
}
