package sytest

import (
	"cmp"
	stdjson "encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

var (
	interopSeed   = flag.Uint64("interop-seed", 1, "what TestInterop/forks draws from")
	interopRounds = flag.Int("interop-rounds", 3, "forks of a room in TestInterop/forks")
)

func decodeList(raw []byte) (out []json, err error) {
	err = stdjson.Unmarshal(raw, &out)
	return out, err
}

func interopAccessLists(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	other := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(other, p.home.Name)
	acl := func(deny ...string) {
		t.Helper()
		alice.SetState(room, "m.room.server_acl", "", json{"allow": []any{"*"}, "deny": deny, "allow_ip_literals": true})
		stateIs(t, bob, room, "m.room.server_acl", "", "deny", deny)
	}
	host, _, _ := strings.Cut(p.away.Name, ":") // access lists know no ports
	acl(host)
	shut := bob.Say(room, "is anybody there?")
	sees(t, alice, other, bob.Say(other, "they do not hear me"))
	if status, _ := alice.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", shut), nil); status != http.StatusNotFound {
		t.Errorf("a message of a server that is shut out: %d", status)
	}
	carol := p.away.Register(t, "carol")
	if status, res := carol.Do("POST", "/v3/join"+homeserver.Path(room)+"?via="+url.QueryEscape(p.home.Name), json{}); status == http.StatusOK {
		member(t, bob, room, carol.UserID, "join") // her own server lets her in, and nobody else hears of it
		if _, content := alice.Do("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.member", carol.UserID), nil); content["membership"] != nil {
			t.Errorf("carol's join through a server that is shut out: %v", content)
		}
	} else if status != http.StatusForbidden {
		t.Errorf("a join through a server that is shut out: %d %v", status, res)
	}
	acl("evil.example.org")
	sees(t, alice, room, bob.Say(room, "and now?"))
	sees(t, alice, room, shut)
	sameState(t, room, alice, bob)
}

func interopOutages(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	bob.SyncUntilEvent(room, alice.Say(room, "before"))
	d := bob.DeviceID
	ping := func(n int) {
		alice.Must("PUT", "/v3/sendToDevice/org.example.ping"+homeserver.Path(fmt.Sprint(room, n)), json{"messages": json{bob.UserID: json{d: json{"n": n}}}})
	}
	arrives := func(sent []string, pings int) {
		t.Helper()
		seen, pinged := map[any]bool{}, map[any]int{}
		eventually(t, "what was sent meanwhile", func() string {
			res := bob.Sync(time.Second)
			for _, e := range homeserver.Timeline(res, room) {
				seen[e["event_id"]] = true
			}
			for _, e := range homeserver.Events(res, "to_device", "events") {
				pinged[homeserver.Dig(e, "content", "n")]++
			}
			if len(sent) > 0 && !seen[sent[len(sent)-1]] {
				return "the last message is missing"
			}
			if len(pinged) != pings {
				return fmt.Sprintf("%v to-device messages, not %d", pinged, pings)
			}
			return ""
		})
		for n, count := range pinged {
			if count != 1 {
				t.Errorf("message %v came %d times", n, count)
			}
		}
		for _, id := range sent {
			if !seen[id] {
				inHistory(t, bob, room, id)
			}
		}
		sameState(t, room, alice, bob)
	}
	for round, count := range []int{5, 120} {
		p.away.Kill()
		var sent []string
		for i := range count {
			sent = append(sent, alice.Say(room, fmt.Sprint("while away ", i)))
		}
		alice.SetState(room, "m.room.topic", "", json{"topic": fmt.Sprint("changed while away ", round)})
		ping(round)
		p.home.Kill() // what waits for the other survives
		p.home.Start()
		p.away.Start()
		sent = append(sent, alice.Say(room, "after"))
		arrives(sent, 1)
		alice.SyncUntilEvent(room, bob.Say(room, "all here"))
	}
	// Killed in the midst of it all, and straight up again.
	var sent []string
	for i := range 20 {
		sent = append(sent, alice.Say(room, fmt.Sprint("under fire ", i)))
		if i == 7 {
			p.away.Kill()
			p.away.Start()
		}
		if i == 13 {
			p.home.Kill()
			p.home.Start()
		}
	}
	arrives(sent, 0)
}

// interopKeyRotation gives Hanok a new signing key: what it signs then is believed, and so is what it signed before.
func interopKeyRotation(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	old := alice.CreateRoom(json{"preset": "public_chat"})
	said := alice.Say(old, "signed with the key of that time")
	if err := p.ours.Stop(); err != nil {
		t.Fatal(err)
	}
	binary := cmp.Or(os.Getenv("HANOK_BINARY"), "../bin/hanok")
	if out, err := exec.Command(binary, "key", "rotate", "--config", filepath.Join(p.ours.DataDir(), "hanok.yaml")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	p.ours.Start()
	sees(t, bob, room, alice.Say(room, "with the new key, or to who has it"))
	sees(t, alice, room, bob.Say(room, "and back"))
	// A server that has to check events of before and after.
	bob.Join(old, p.home.Name)
	member(t, alice, old, bob.UserID, "join")
	inHistory(t, bob, old, said)
	sameState(t, old, alice, bob)
}

// interopForks cuts the network, lets both sides do what the other would not allow, heals it, and compares what the
// servers make of it.
func interopForks(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) { interopFork(t, p, version) })
	}
}

func interopFork(t *testing.T, p pair, version string) {
	t.Logf("-interop-seed %d", *interopSeed)
	rng := rand.New(rand.NewPCG(*interopSeed, uint64(len(version))<<8|uint64(version[len(version)-1])))
	alice, bob, room := p.home.Register(t, "alice"), p.away.Register(t, "bob"), ""
	room = alice.CreateRoom(json{"preset": "public_chat", "room_version": version})
	users := []*homeserver.Client{alice, bob}
	for i := range 4 {
		users = append(users, []*homeserver.Server{p.home, p.away}[i%2].Register(t, fmt.Sprint("user", i)))
	}
	for _, c := range users[1:] {
		c.Join(room, p.home.Name)
		member(t, alice, room, c.UserID, "join")
	}
	changePower(alice, room, func(content json) {
		levels := json{alice.UserID: 100, bob.UserID: 100, users[2].UserID: 75, users[3].UserID: 75, users[4].UserID: 50}
		if version == "12" {
			delete(levels, alice.UserID)
		}
		content["users"] = levels
	})
	sameState(t, room, alice, bob)
	for round := range *interopRounds {
		if round%2 == 0 {
			p.home.Cut()
			p.away.Cut()
			for range 24 {
				interopRandomAct(rng, room, users, 2)
			}
			p.home.Heal()
			p.away.Heal()
		} else { // everybody at once, and nothing cut
			var all sync.WaitGroup
			for range 4 {
				own := rand.New(rand.NewPCG(rng.Uint64(), rng.Uint64()))
				all.Go(func() {
					for range 10 {
						interopRandomAct(own, room, users, 2)
					}
				})
			}
			all.Wait()
		}
		// Whoever is still in the room says something, so that each server hears of the other's branch.
		speaks := func(from, to int) {
			eventually(t, "a message after the cut", func() string {
				for i, c := range users {
					if i%2 != from {
						continue
					}
					status, res := c.Do("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", fmt.Sprint(round, rng.Uint64())), json{"msgtype": "m.text", "body": "healed"})
					if status == http.StatusOK {
						for range 30 {
							for j, reader := range users {
								if j%2 != to {
									continue
								}
								if status, _ := reader.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", fmt.Sprint(res["event_id"])), nil); status == http.StatusOK {
									return ""
								}
							}
							time.Sleep(100 * time.Millisecond)
						}
					}
				}
				return "none arrives"
			})
		}
		speaks(0, 1)
		speaks(1, 0)
		sameFork(t, room, users)
		if t.Failed() {
			t.Fatalf("after round %d", round)
		}
	}
}

// sameFork compares what one member of each server sees.
func sameFork(t *testing.T, room string, users []*homeserver.Client) {
	t.Helper()
	var in [2]*homeserver.Client
	eventually(t, "somebody of each server in the room", func() string {
		for i, c := range users {
			if status, _ := c.Do("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil); status == http.StatusOK {
				in[i%2] = c
			}
		}
		if in[0] == nil || in[1] == nil {
			return "there is none"
		}
		return ""
	})
	if in[0] != nil && in[1] != nil {
		sameState(t, room, in[0], in[1])
	}
}

// interopRandomAct lets a user do something, which may be refused. The first ones stay in the room.
func interopRandomAct(rng *rand.Rand, room string, users []*homeserver.Client, stay int) {
	who := users[rng.IntN(len(users))]
	whom := users[stay+rng.IntN(len(users)-stay)]
	path := "/v3/rooms" + homeserver.Path(room)
	state := func(eventType string, content json) {
		who.Do("PUT", "/v3/rooms"+homeserver.Path(room, "state", eventType, ""), content)
	}
	n := rng.IntN(1000)
	switch rng.IntN(10) {
	case 0:
		state("m.room.name", json{"name": fmt.Sprint("name ", n)})
	case 1:
		state("m.room.topic", json{"topic": fmt.Sprint("topic ", n)})
	case 2, 3:
		status, content := who.Do("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)
		levels, _ := content["users"].(json)
		if status == http.StatusOK && levels != nil {
			levels[whom.UserID] = []int{0, 25, 50, 75, 100}[n%5]
			if n%7 == 0 {
				content["ban"] = []int{50, 75}[n%2]
			}
			state("m.room.power_levels", content)
		}
	case 4:
		who.Do("POST", path+"/kick", json{"user_id": whom.UserID})
	case 5:
		who.Do("POST", path+"/ban", json{"user_id": whom.UserID})
	case 6:
		who.Do("POST", path+"/unban", json{"user_id": whom.UserID})
	case 7:
		if slices.Index(users, who) >= stay {
			who.Do("POST", path+"/leave", json{})
		}
	case 8:
		whom.Do("POST", path+"/join", json{})
	case 9:
		state("m.room.join_rules", json{"join_rule": []string{"public", "public", "invite"}[n%3]})
	}
}

func interopLargeRoom(t *testing.T, p pair) {
	const members = 210
	alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat", "name": "Large"})
	var last *homeserver.Client
	for range members - 1 {
		last = p.home.Register(t, "m")
		last.Join(room)
	}
	started := time.Now()
	bob.Join(room, p.home.Name)
	t.Logf("%s joins a room of %d in %v", bob.UserID, members, time.Since(started).Round(time.Millisecond))
	// Even before all is known.
	said := bob.Say(room, "so many of you")
	sees(t, alice, room, said)
	sees(t, bob, room, alice.Say(room, "welcome"))
	eventually(t, "all members", func() string {
		joined, _ := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil)["joined"].(json)
		if len(joined) != members+1 {
			return fmt.Sprint(len(joined))
		}
		return ""
	})
	t.Logf("all members are known after %v", time.Since(started).Round(time.Millisecond))
	sameState(t, room, alice, bob)
	last.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
	member(t, bob, room, last.UserID, "leave")
	alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "kick"), json{"user_id": bob.UserID})
	bob.SyncUntil("being kicked", func(res json) bool { return homeserver.Dig(res, "rooms", "leave", room) != nil })
	bob.Join(room, p.home.Name)
	sameState(t, room, alice, bob)
}
