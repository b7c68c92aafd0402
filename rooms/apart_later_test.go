package rooms_test

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
	"hanok/storage"
)

// A server signs an invite while it thinks that it is in the room, and hears later that it was removed before. Nobody sends it the invite again.
func TestInviteOfServerThatWasRemoved(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b, room := twoServers(t)
				alice, bob, bella := a.user("alice"), b.user("bob"), b.user("bella")
				n.split(a, b, true)
				kick, err := a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob})
				a.must(kick, err)
				a.flush() // in vain
				n.split(a, b, false)
				a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bella}))
				n.settle()
				b.expectMembership(bob, room, "join")
				b.expectMembership(bella, room, "")
				if restart {
					b.restart()
				}
				ev, err := a.Event(ctx, kick)
				if err != nil {
					t.Fatal(err)
				}
				if r := b.receive(a, room, ev.JSON()); r[0].Err != nil {
					t.Fatal(r[0].Err)
				}
				synctest.Wait()
				b.expectMembership(bob, room, "leave")
				b.expectMembership(bella, room, "invite")
				b.join(bella, room, a)
				n.settle()
				a.expectMembership(bella, room, "join")
			})
		})
	}
}

// The same, with a server that died before it could take the invite in.
func TestInviteOfServerThatDied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		alice, bob, bella := a.user("alice"), b.user("bob"), b.user("bella")
		b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
		n.settle()
		key := string(bella)
		invite, err := a.forge(room, event.Proto{Sender: alice, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`)}).Sign(b.name, b.key)
		if err != nil {
			t.Fatal(err)
		}
		nid, err := b.RoomNID(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		nids, err := b.db.Intern(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		put := func(signed time.Time) {
			t.Helper()
			if err := b.db.Write(ctx, func(tx *storage.Tx) error {
				return storage.PutSignedInvite(ctx, tx, storage.SignedInvite{Room: nid, User: nids[0], PDU: invite.JSON(), State: []byte("[]"), TS: matrix.TimestampOf(signed)})
			}); err != nil {
				t.Fatal(err)
			}
			b.restart()
			synctest.Wait()
		}
		put(time.Now().AddDate(0, 0, -8))
		b.expectMembership(bella, room, "")
		put(time.Now())
		b.expectMembership(bella, room, "invite")
		if rest, err := storage.RoomsOfSignedInvites(ctx, b.db); err != nil || len(rest) != 0 {
			t.Error("still there:", rest, err)
		}
	})
}

// Those in a room hear of a rejected invite and of a knock that was taken back also if none of them could be reached at the time.
func TestLeaveIsToldLater(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b, room := twoServers(t)
				c := n.server("c.example")
				alice, bob, carol, cleo := a.user("alice"), b.user("bob"), c.user("carol"), c.user("cleo")
				a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
				a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100},"invite":0}`)
				n.settle()
				b.must(b.Invite(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: carol}))
				c.must(c.Knock(ctx, rooms.MemberRequest{Room: room, Sender: cleo, Via: []matrix.ServerName{a.name}}))
				n.settle()
				for _, s := range []*server{a, b} {
					n.split(c, s, true)
				}
				for _, u := range []matrix.UserID{carol, cleo} {
					c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: u}))
					c.expectMembership(u, room, "leave")
				}
				time.Sleep(10 * time.Minute)
				a.expectMembership(carol, room, "invite")
				if restart {
					c.restart()
				}
				n.split(c, a, false)
				time.Sleep(20 * time.Minute)
				n.settle()
				for _, s := range []*server{a, b, c} {
					s.expectMembership(carol, room, "leave")
					s.expectMembership(cleo, room, "leave")
				}
				before := n.count("c.example make_leave")
				time.Sleep(time.Hour)
				if again := n.count("c.example make_leave") - before; again != 0 {
					t.Errorf("told %d times more", again)
				}
			})
		})
	}
}

// A leave that could not be told does not end what the user has begun since.
func TestLeaveThatIsOutOfDate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		c := n.server("c.example")
		alice, carol := a.user("alice"), c.user("carol")
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol}))
		n.settle()
		n.split(c, a, true)
		n.split(c, b, true)
		c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
		before := n.count("c.example make_leave")
		n.split(c, a, false)
		n.split(c, b, false)
		c.join(carol, room, a)
		time.Sleep(10 * time.Minute)
		n.settle()
		for _, s := range []*server{a, b, c} {
			s.expectMembership(carol, room, "join")
		}
		if more := n.count("c.example make_leave") - before; more != 0 {
			t.Errorf("%d leaves were made", more)
		}
	})
}

// Who joins anew while servers are to be told of an earlier leave does not wait until one that is silent has answered.
func TestLeaveToldLaterGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		c := n.server("c.example")
		carol := c.user("carol")
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: a.user("alice"), Target: carol}))
		n.settle()
		quiet := n.silence(a.name)
		c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
		c.expectMembership(carol, room, "leave")
		for range 2 { // when the user leaves, and later
			<-quiet.begun
		}
		within(t, time.Second, "the join", func() { c.join(carol, room, b) })
		n.settle()
		c.expectMembership(carol, room, "join")
		quiet.stop()
		time.Sleep(24 * time.Hour)
		n.settle()
		for _, s := range []*server{a, b, c} {
			s.expectMembership(carol, room, "join")
		}
	})
}

// What others send of a room does not wait until a silent server was told of a leave.
func TestLeaveToldLaterHoldsUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		c := n.server("c.example")
		alice, bob, carol, cleo := a.user("alice"), b.user("bob"), c.user("carol"), c.user("cleo")
		a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@bob:b.example":50}}`)
		n.settle()
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol}))
		b.must(b.Invite(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: cleo}))
		n.settle()
		c.expectMembership(cleo, room, "invite")
		quiet := n.silence(a.name)
		c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
		for range 2 { // when the user leaves, and later
			<-quiet.begun
		}
		id, err := b.Kick(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: cleo})
		b.must(id, err)
		kick, err := b.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		within(t, time.Second, "an event", func() {
			if r := c.receive(b, room, kick.JSON()); r[0].Err != nil {
				t.Error(r[0].Err)
			}
		})
		c.expectMembership(cleo, room, "leave")
		quiet.stop()
		time.Sleep(10 * time.Minute)
		n.settle()
		a.expectMembership(carol, room, "leave")
	})
}

// watched is a policy that tells of the local events that are about to be built.
type watched struct{ senders chan matrix.UserID }

func (w watched) CheckLocal(_ context.Context, ev *event.Event, _ bool) error {
	w.senders <- ev.Sender()
	return nil
}
func (watched) CheckRemote(context.Context, *event.Event, bool) bool { return false }
func (watched) InitialState(context.Context, *rooms.CreateRequest) ([]rooms.StateInput, error) {
	return nil, nil
}

// holdCommits keeps everything from being committed until the result is called.
func (s *server) holdCommits() (release func()) {
	open, held, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := s.db.Write(ctx, func(*storage.Tx) error {
			close(held)
			<-open
			return nil
		}); err != nil {
			s.t.Error(err)
		}
	}()
	<-held
	return func() {
		close(open)
		<-done
	}
}

// A user knocks, takes a knock back or rejects an invite while the last user of the server is about to have left: those in the room hear of it.
func TestMembershipsWhileTheLastUserLeaves(t *testing.T) {
	for _, what := range []string{"knock", "knock taken back", "invite rejected"} {
		t.Run(what, func(t *testing.T) {
			n, a, b, room := twoServers(t)
			alice, bob, bella := a.user("alice"), b.user("bob"), b.user("bella")
			a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
			if what == "invite rejected" {
				a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bella}))
			}
			n.settle()
			if what == "knock taken back" {
				b.must(b.Knock(ctx, rooms.MemberRequest{Room: room, Sender: bella}))
				n.settle()
			}
			if _, err := b.db.Intern(ctx, string(bella)); err != nil { // or the knock would wait for the commit to do so
				t.Fatal(err)
			}
			built := watched{make(chan matrix.UserID, 10)}
			b.stop()
			b.policy = built
			b.start()
			asked := make(chan struct{}, 10)
			n.mu.Lock()
			n.hold = func(_, _ matrix.ServerName, call string) error {
				asked <- struct{}{}
				return nil
			}
			n.mu.Unlock()
			release := b.holdCommits()
			left, done := make(chan error, 1), make(chan error, 1)
			go func() {
				_, err := b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob})
				left <- err
			}()
			<-built.senders
			want := "leave"
			do := b.Leave
			if what == "knock" {
				want, do = "knock", b.Knock
			}
			go func() {
				_, err := do(ctx, rooms.MemberRequest{Room: room, Sender: bella, Via: []matrix.ServerName{a.name}})
				done <- err
			}()
			select {
			case <-built.senders:
			case <-asked:
			}
			release()
			for _, err := range []error{<-left, <-done} {
				if err != nil {
					t.Fatal(err)
				}
			}
			n.settle()
			for _, s := range []*server{a, b} {
				s.expectMembership(bob, room, "leave")
				s.expectMembership(bella, room, want)
			}
		})
	}
}

// An invite is rejected while the server that it came from cannot be reached, and another one in the room has not heard of it yet.
func TestLeaveIsToldToTheInviter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		c := n.server("c.example")
		alice, carol := a.user("alice"), c.user("carol")
		n.split(a, b, true)
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol}))
		a.flush() // in vain
		n.split(a, c, true)
		c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{b.name}}))
		c.expectMembership(carol, room, "leave")
		n.split(a, c, false)
		n.split(a, b, false)
		time.Sleep(10 * time.Minute)
		n.settle()
		a.expectMembership(carol, room, "leave")
		before := n.count("c.example make_leave")
		time.Sleep(24 * time.Hour)
		if again := n.count("c.example make_leave") - before; again != 0 {
			t.Errorf("told %d times more", again)
		}
	})
}

// Nobody waits for long to be rid of an invite of a server that does not answer.
func TestLeaveBesideSilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, _, room := twoServers(t)
		c := n.server("c.example")
		carol := c.user("carol")
		a.must(a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: a.user("alice"), Target: carol}))
		n.settle()
		quiet := n.silence(a.name)
		within(t, 10*time.Second, "the leave", func() { c.must(c.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol})) })
		c.expectMembership(carol, room, "leave")
		quiet.stop()
		time.Sleep(10 * time.Minute)
		n.settle()
		a.expectMembership(carol, room, "leave")
	})
}
