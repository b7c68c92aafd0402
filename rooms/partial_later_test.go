package rooms_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// What becomes of a room joined without its members while they are fetched, and of who comes to it again.

// What an event follows on comes after it, and follows on the join itself: the state before the one is worked out from that before the other.
func TestPartialJoinPrevComesLater(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{Name: "x"}, nil)
	alice, bob, bea := p.a.user("alice"), p.b.user("bob"), p.b.user("bea")
	<-p.asked
	p.n.settle()
	p.b.join(bea, p.room, p.a)
	p.n.settle()
	key := string(bea)
	said := p.a.forge(p.room, event.Proto{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"about bea"}`)})
	kick := p.a.forge(p.room, event.Proto{Sender: alice, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`), PrevEvents: []matrix.EventID{said.ID()}, Depth: said.Depth() + 1})
	for _, ev := range []*event.Event{said, kick} {
		for _, s := range []*server{p.a, p.c} {
			if r := s.receive(p.a, p.room, ev.JSON()); r[0].Err != nil {
				t.Fatal(r[0].Err)
			}
		}
	}
	p.n.mu.Lock()
	held := p.n.hold
	p.n.missing = func() [][]byte { return nil }
	p.n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "state_ids" {
			return matrix.Forbidden("your server is not in the room")
		}
		return nil
	}
	p.n.mu.Unlock()
	for _, ev := range []*event.Event{kick, said} {
		if r := p.b.receive(p.a, p.room, ev.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	p.b.expectMembership(bea, p.room, "leave")
	if !p.partial() {
		t.Fatal("whole")
	}
	p.n.mu.Lock()
	p.n.hold, p.n.missing = held, nil
	p.n.mu.Unlock()
	p.complete(bob)
	p.agree()
}

// A user's invite, and whether one may knock, is not in a state without members: who has joined meanwhile does not keep the user from turning the
// invite down, nor from knocking.
func TestPartialJoinBesideInviteAndKnock(t *testing.T) {
	var bella matrix.UserID
	p := newPartialJoin(t, rooms.CreateRequest{Name: "x"}, func(p *partialJoin) {
		bella = p.b.user("bella")
		p.a.must(p.a.Invite(ctx, rooms.MemberRequest{Room: p.room, Sender: p.a.user("alice"), Target: bella}))
		p.a.must(p.a.Ban(ctx, rooms.MemberRequest{Room: p.room, Sender: p.a.user("alice"), Target: p.b.user("bad")}))
	})
	p.a.set(p.a.user("alice"), p.room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
	p.n.settle()
	p.b.must(p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: bella}))
	p.b.must(p.b.Knock(ctx, rooms.MemberRequest{Room: p.room, Sender: p.b.user("bea")}))
	if _, err := p.b.Knock(ctx, rooms.MemberRequest{Room: p.room, Sender: p.b.user("bad")}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error("who is banned knocks:", err)
	}
	for user, want := range map[matrix.UserID]string{bella: "leave", p.b.user("bea"): "knock", p.b.user("bad"): ""} {
		p.b.expectMembership(user, p.room, want)
	}
	p.n.split(p.a, p.b, true)
	p.n.split(p.c, p.b, true)
	if _, err := p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: p.b.user("bea")}); err != nil {
		t.Error("a knock that is known is not taken back:", err)
	}
	p.n.split(p.a, p.b, false)
	p.n.split(p.c, p.b, false)
	p.n.settle()
	p.complete(p.b.user("bob"))
	p.agree()
	for user, want := range map[matrix.UserID]string{bella: "leave", p.b.user("bea"): "leave", p.b.user("bad"): "ban"} {
		p.b.expectMembership(user, p.room, want)
	}
}

// Servers that do not know the members yet themselves do not say that we are not in the room.
func TestPartialJoinOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPartialJoin(t, rooms.CreateRequest{Name: "x"}, nil)
		bob := p.b.user("bob")
		<-p.asked
		p.n.settle()
		p.n.split(p.a, p.b, true)
		p.n.mu.Lock()
		p.n.hold = func(_, _ matrix.ServerName, call string) error {
			if call == "state_ids" {
				return matrix.Errorf(403, rooms.CodePartialState, "not yet")
			}
			return nil
		}
		p.n.mu.Unlock()
		p.release()
		time.Sleep(10 * time.Second)
		soon, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := p.b.Members(soon, rooms.MembersRequest{Room: p.room, User: bob}); !errors.Is(err, context.DeadlineExceeded) {
			t.Error("the members are not waited for:", err)
		}
		p.n.split(p.a, p.b, false)
		p.n.mu.Lock()
		p.n.hold = nil
		p.n.mu.Unlock()
		p.complete(bob)
		p.agree()
	})
}

// The server that let us in is gone before anybody has heard of it. Who joins through another one knows the members in the end.
func TestPartialRejoinOfLostJoin(t *testing.T) {
	for _, omit := range []bool{true, false} {
		t.Run(fmt.Sprint("omitting members ", omit), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				n.omit = true
				a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
				alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
				room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11", Name: "x"})
				c.join(carol, room, a)
				n.settle()
				if err := c.AwaitMembers(ctx, carol, room); err != nil {
					t.Fatal(err)
				}
				n.split(a, c, true)
				a.say(alice, room, "nobody else hears this")
				n.mu.Lock()
				n.hold = func(from, to matrix.ServerName, call string) error {
					if from == b.name && to == a.name && call == "state_ids" {
						n.split(a, b, true)
					}
					return nil
				}
				n.mu.Unlock()
				b.join(bob, room, a)
				b.say(bob, room, "lost")
				time.Sleep(time.Minute)
				n.mu.Lock()
				n.hold, n.omit = nil, omit
				n.mu.Unlock()
				b.join(bob, room, c)
				n.settle()
				limited, cancel := context.WithTimeout(ctx, time.Minute)
				defer cancel()
				members, err := b.Members(limited, rooms.MembersRequest{Room: room, User: bob})
				if err != nil || len(members) != 3 {
					t.Fatalf("%d members, %v", len(members), err)
				}
				b.say(bob, room, "there")
				c.say(carol, room, "here")
				n.settle()
				if diff := cmp.Diff(c.state(room), b.state(room)); diff != "" {
					t.Error(diff)
				}
				// The other one comes back.
				n.split(a, b, false)
				n.split(a, c, false)
				a.say(alice, room, "back")
				n.settle()
				b.say(bob, room, "all there")
				n.settle()
				for _, s := range []*server{a, b} {
					if diff := cmp.Diff(c.state(room), s.state(room)); diff != "" {
						t.Errorf("%s: %s", s.name, diff)
					}
				}
				// The state is not partial any more: it says who may not speak.
				if _, _, err := b.ServeStateIDs(ctx, c.name, room, b.tips(room)[0]); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Whom this server knew in a room when it was in it before may be there still: who invites them waits until that is known.
func TestInviteToRejoinedPartialRoom(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{Name: "one without heroes"}, func(p *partialJoin) {
		p.b.join(p.b.user("bob"), p.room, p.a)
		p.n.settle()
		p.b.must(p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: p.b.user("bob")}))
		p.n.settle()
		p.a.say(p.a.user("alice"), p.room, "without b")
	})
	bob, carol := p.b.user("bob"), p.c.user("carol")
	if !p.partial() {
		t.Fatal("b knows the members")
	}
	if may, err := p.b.MayBeJoined(ctx, p.room, carol); err != nil || !may {
		t.Error("carol is taken for gone", err)
	}
	soon, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := p.b.Invite(soon, rooms.MemberRequest{Room: p.room, Sender: bob, Target: carol}); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("the invite does not wait: ", err)
	}
	p.complete(bob)
	if _, err := p.b.Invite(ctx, rooms.MemberRequest{Room: p.room, Sender: bob, Target: carol}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
	p.b.expectMembership(carol, p.room, "join")
}
