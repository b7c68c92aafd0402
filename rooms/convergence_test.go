package rooms_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// Three servers act at random, losing messages and links; in the end they agree on the state,
// and everybody has everything that anybody in the room was told was sent.
func TestConvergence(t *testing.T) {
	seeds := 4
	if testing.Short() {
		seeds = 1
	}
	for _, v := range []roomversion.ID{"1", "2", "10", "11", "12"} {
		for seed := range seeds {
			t.Run(fmt.Sprintf("v%s/%d", v, seed), func(t *testing.T) { converge(t, storagetest.SQLiteDSN, v, uint64(seed)) })
		}
	}
	t.Run("postgres", func(t *testing.T) { converge(t, storagetest.PostgresDSN, "11", 1) })
}

func converge(t *testing.T, dsn func(testing.TB) string, v roomversion.ID, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 7))
	n := newNetwork(t)
	servers := []*server{n.serverOn("a.example", dsn(t)), n.serverOn("b.example", dsn(t)), n.serverOn("c.example", dsn(t))}
	type user struct {
		s  *server
		id matrix.UserID
	}
	var users []user
	for _, s := range servers {
		for i := range 2 {
			users = append(users, user{s, s.user(fmt.Sprint("u", i))})
		}
	}
	creator := users[0]
	room := creator.s.create(creator.id, rooms.CreateRequest{Version: v, Preset: "public_chat"})
	for _, u := range users[1:] {
		u.s.join(u.id, room, creator.s)
		n.settle()
	}
	levels := func(extra string) string {
		if v == "12" {
			return `{"users":{` + extra + `},"state_default":50,"ban":50,"kick":50,"invite":0,"events":{"m.room.tombstone":150}}`
		}
		if extra != "" {
			extra = "," + extra
		}
		return `{"users":{"` + string(creator.id) + `":100` + extra + `},"state_default":50,"ban":50,"kick":50,"invite":0}`
	}
	creator.s.set(creator.id, room, "m.room.power_levels", "", levels(`"`+string(users[2].id)+`":50,"`+string(users[4].id)+`":50`))
	n.settle()
	said := make(map[string]bool)
	for step := range 60 {
		u := users[random.IntN(len(users))]
		other := users[1+random.IntN(len(users)-1)]
		key := ""
		switch random.IntN(14) {
		case 0:
			n.split(servers[random.IntN(3)], servers[random.IntN(3)], true)
		case 1:
			for i := range servers {
				n.split(servers[i], servers[(i+1)%3], false)
			}
		case 2, 3, 4:
			text := fmt.Sprint("m", step)
			if _, err := u.s.Send(ctx, message(room, u.id, "D", "", text)); err == nil {
				said[text] = true
			}
		case 5:
			u.s.Send(ctx, rooms.SendRequest{Room: room, Sender: u.id, Type: "m.room.topic", StateKey: &key, Content: fmt.Appendf(nil, `{"topic":"%d"}`, step)})
		case 6:
			u.s.Kick(ctx, rooms.MemberRequest{Room: room, Sender: u.id, Target: other.id})
		case 7:
			u.s.Ban(ctx, rooms.MemberRequest{Room: room, Sender: u.id, Target: other.id})
		case 8:
			u.s.Unban(ctx, rooms.MemberRequest{Room: room, Sender: u.id, Target: other.id})
		case 9:
			u.s.Join(ctx, rooms.MemberRequest{Room: room, Sender: u.id, Via: []matrix.ServerName{servers[0].name}})
		case 10:
			extra := fmt.Sprintf(`"%s":50`, other.id)
			creator.s.Send(ctx, rooms.SendRequest{Room: room, Sender: creator.id, Type: "m.room.power_levels", StateKey: &key, Content: []byte(levels(extra))})
		case 11:
			servers[random.IntN(3)].flush()
		case 12:
			n.settle()
		case 13:
			if random.IntN(3) == 0 {
				servers[random.IntN(3)].restart()
			}
		}
	}
	for i := range servers {
		n.split(servers[i], servers[(i+1)%3], false)
	}
	n.settle()
	// Everybody comes back and speaks, so that the branches are merged.
	for range 3 {
		for _, u := range users {
			u.s.Join(ctx, rooms.MemberRequest{Room: room, Sender: u.id, Via: []matrix.ServerName{servers[0].name}})
			u.s.Send(ctx, message(room, u.id, "D", "", "end"))
			n.settle()
		}
	}
	var resident []*server
	for _, s := range servers {
		if snap, err := s.Snapshot(ctx, room); err == nil && snap.Resident {
			resident = append(resident, s)
			if len(snap.Extremities) > 2 {
				t.Errorf("%s has %d extremities", s.name, len(snap.Extremities))
			}
		}
	}
	for _, s := range resident[1:] {
		// A server that lost the kick of its last user, and heard of nothing until it was forgotten, thinks itself
		// in the room, and cannot be told otherwise.
		if in, err := resident[0].JoinedServers(ctx, room); err != nil || !slices.Contains(in, s.name) {
			continue
		}
		if diff := cmp.Diff(resident[0].state(room), s.state(room)); diff != "" {
			t.Errorf("%s and %s disagree: %s", resident[0].name, s.name, diff)
		}
	}
	before := resident[0].state(room)
	resident[0].restart()
	if diff := cmp.Diff(before, resident[0].state(room)); diff != "" {
		t.Error("after a restart: ", diff)
	}
	// The memberships table says what the state says.
	for _, s := range resident {
		snap, err := s.Snapshot(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range users {
			want, err := snap.State.Membership(ctx, u.id)
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.MembershipOf(ctx, room, u.id)
			if err != nil || m.Membership != want {
				t.Errorf("%s: %s is %q in the table, %q in the state (%v)", s.name, u.id, m.Membership, want, err)
			}
		}
	}
}

// Both servers send at full speed while each takes what the other sends.
func TestTrafficBothWays(t *testing.T) {
	n, a, b, room := twoServers(t)
	empty := ""
	var senders, carriers sync.WaitGroup
	done := make(chan struct{})
	for _, s := range []*server{a, b} {
		carriers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					if !s.flush() {
						runtime.Gosched()
					}
				}
			}
		})
		user := a.user("alice")
		if s == b {
			user = b.user("bob")
		}
		for i := range 6 {
			senders.Go(func() {
				for j := range 15 {
					s.say(user, room, fmt.Sprint(s.name, i, j))
					if j%5 == 0 && s == a {
						if _, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: "m.room.topic", StateKey: &empty, Content: fmt.Appendf(nil, `{"topic":"%d %d"}`, i, j)}); err != nil {
							t.Error(err)
						}
					}
				}
			})
		}
	}
	senders.Wait()
	close(done)
	carriers.Wait()
	n.settle()
	a.say(a.user("alice"), room, "end")
	n.settle()
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Fatal(diff)
	}
	history := func(s *server, user matrix.UserID) map[string]bool {
		seen := make(map[string]bool)
		for from := (*rooms.Token)(nil); ; {
			page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: user, Backward: true, Limit: 100, From: from})
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range page.Events {
				if body, ok := ev.ContentString("body"); ok {
					if seen[body] {
						t.Errorf("%s is shown twice on %s", body, s.name)
					}
					seen[body] = true
				}
			}
			if from = page.End; from == nil {
				return seen
			}
		}
	}
	ha, hb := history(a, a.user("alice")), history(b, b.user("bob"))
	if len(ha) != 181 || len(hb) != 181 {
		t.Fatalf("%d and %d of 181 messages", len(ha), len(hb))
	}
}
