package rooms_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// A server missed that the only one of its users who was in a room was removed. Whoever is invited then gets the invite, and joins through others.
func TestInviteAfterARemovalThatWasMissed(t *testing.T) {
	for _, who := range []string{"bob", "bella"} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprint(who, ", restart ", restart), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					n, a, b, room := twoServers(t)
					alice, bob, invited := a.user("alice"), b.user("bob"), b.user(who)
					a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"invite"}`)
					n.settle()
					n.split(a, b, true)
					a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
					a.say(alice, room, "in private")
					a.flush() // in vain
					n.split(a, b, false)
					b.expectMembership(bob, room, "join")
					a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: invited}))
					n.settle()
					if restart {
						b.restart()
					}
					time.Sleep(time.Minute)
					if invited != bob {
						b.expectMembership(bob, room, "leave")
					}
					b.expectMembership(invited, room, "invite")
					b.join(invited, room)
					n.settle()
					for _, s := range []*server{a, b} {
						s.expectMembership(invited, room, "join")
					}
					b.say(invited, room, "from b")
					n.settle()
					a.say(alice, room, "from a")
					n.settle()
					for s, user := range map[*server]matrix.UserID{a: alice, b: invited} {
						got := s.texts(user, room)
						if len(got) < 2 || got[len(got)-2] != "from b" || got[len(got)-1] != "from a" {
							t.Errorf("%s sees %q", s.name, got)
						}
					}
				})
			})
		}
	}
}

// Who could not remove the users of a server cannot have it believe that they were; nor is anybody believed whom others contradict.
func TestResidenceIsNotTalkedAway(t *testing.T) {
	for _, power := range []int{0, 100} {
		t.Run(fmt.Sprint("power ", power), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b, c, room := threeServers(t)
				alice, bob, bella, carol := a.user("alice"), b.user("bob"), b.user("bella"), c.user("carol")
				a.set(alice, room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:%d},"invite":0}`, alice, carol, power))
				n.settle()
				n.mu.Lock()
				n.hold = func(_, to matrix.ServerName, call string) error {
					switch {
					case call != "make_leave" || to == a.name:
						return nil
					case to == c.name:
						return matrix.Forbidden("the user is not in the room")
					}
					return errors.New("nobody else is asked")
				}
				n.mu.Unlock()
				if power == 0 {
					n.split(a, b, true)
				}
				for _, target := range []matrix.UserID{bob, bella} {
					key := string(target)
					invite := c.forge(room, event.Proto{Sender: carol, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`)})
					_, err := b.ReceiveInvite(ctx, c.name, room, invite.ID(), "11", invite.JSON(), nil)
					if target == bob && !matrix.HasCode(err, "M_FORBIDDEN") || target == bella && err != nil {
						t.Error(target, err)
					}
					time.Sleep(time.Hour)
				}
				b.expectMembership(bob, room, "join")
				b.expectMembership(bella, room, "")
			})
		})
	}
}
