package sytest

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// forkedRoom is a room with two users of each server, some of whom have power.
func (c corners) forkedRoom(t *testing.T, version string) (room string, users []*homeserver.Client) {
	users = append(c.users(t, "resident"), c.users(t, "guest")...)
	room = users[0].CreateRoom(json{"preset": "public_chat", "room_version": version})
	c.chain(t, room, users)
	changePower(users[0], room, func(content json) {
		levels := json{}
		for i, user := range users {
			levels[user.UserID] = []int{100, 75, 50}[i/len(c.servers)+i%2]
		}
		levels[users[0].UserID] = 100
		if version == "12" {
			delete(levels, users[0].UserID)
		}
		content["users"] = levels
	})
	sameLevels(t, room, users)
	agree(t, room, users)
	return room, users
}

// cornersForks cuts all servers from each other, lets everybody do what they want, heals the network, and compares.
func cornersForks(t *testing.T, c corners) {
	c.versions(t, 1, func(t *testing.T, c corners, version string) {
		t.Logf("-interop-seed %d", *interopSeed)
		c = c.only("forks")
		rng := rand.New(rand.NewPCG(*interopSeed, uint64(len(version))<<8|uint64(version[len(version)-1])))
		room, users := c.forkedRoom(t, version)
		for round := range *interopRounds {
			for _, s := range c.servers {
				s.Cut()
			}
			for range 10 * len(c.servers) {
				interopRandomAct(rng, room, users, len(c.servers))
			}
			for _, s := range c.servers {
				s.Heal()
			}
			c.meet(t, room, users)
			if t.Failed() {
				t.Fatalf("after round %d", round)
			}
		}
	})
}

// cornersTurns lets only half of the servers run at a time: those that did something while the others were down do not meet them before all are back.
func cornersTurns(t *testing.T, c corners) {
	common := roomVersions(t, c.servers...)
	for i, version := range []string{common[len(common)-1], common[len(common)-3]} {
		c := c.from(1 + 2*i).only("forks")
		t.Run("version "+version, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(*interopSeed, uint64(i)))
			room, users := c.forkedRoom(t, version)
			n := len(c.servers)
			for turn := range 2 {
				var up, down []*homeserver.Server
				for j, s := range c.servers {
					if j/((n+1)/2) == turn {
						up = append(up, s)
					} else {
						down = append(down, s)
					}
				}
				for _, s := range down {
					s.Kill()
				}
				if turn > 0 {
					for _, s := range up {
						s.Start()
					}
				}
				present := slices.DeleteFunc(slices.Clone(users), func(u *homeserver.Client) bool { return !slices.Contains(up, u.Server()) })
				for range 15 * len(up) {
					interopRandomAct(rng, room, present, len(up))
				}
			}
			for j, s := range c.servers {
				if j/((n+1)/2) == 0 {
					s.Start()
				}
			}
			c.meet(t, room, users)
		})
	}
}

// meet waits until each server has heard of something that was said by the users of each other one who are in the room, and compares what they see.
func (c corners) meet(t *testing.T, room string, users []*homeserver.Client) {
	t.Helper()
	speak := func(s *homeserver.Server) string {
		for _, user := range users {
			if user.Server() != s {
				continue
			}
			status, res := user.Do("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", fmt.Sprint("meet", time.Now().UnixNano())), json{"msgtype": "m.text", "body": "healed"})
			if status == http.StatusOK {
				return fmt.Sprint(res["event_id"])
			}
		}
		return ""
	}
	reads := func(s *homeserver.Server, id string) bool {
		for _, user := range users {
			if user.Server() == s {
				if status, _ := user.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", id), nil); status == http.StatusOK {
					return true
				}
			}
		}
		return false
	}
	for _, from := range c.servers {
		eventually(t, "a message of "+from.Name, func() string {
			id := speak(from)
			if id == "" {
				return "nobody may speak"
			}
			silent := ""
			for _, to := range c.servers {
				for tries := 0; !reads(to, id); tries++ {
					if tries == 30 {
						silent = to.Name + " does not have it"
						break
					}
					time.Sleep(100 * time.Millisecond)
				}
			}
			return silent
		})
	}
	var in []*homeserver.Client
	eventually(t, "somebody of each server in the room", func() string {
		in = nil
		for _, s := range c.servers {
			for _, user := range users {
				if status, _ := user.Do("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil); user.Server() == s && status == http.StatusOK {
					in = append(in, user)
					break
				}
			}
		}
		if len(in) != len(c.servers) {
			return fmt.Sprint(len(in), " of ", len(c.servers))
		}
		return ""
	})
	if len(in) > 1 {
		agree(t, room, in)
	}
}
