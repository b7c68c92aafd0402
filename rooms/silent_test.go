package rooms_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"hanok/matrix"
	"hanok/rooms"
)

// silence makes some servers take requests without ever answering, until the test ends.
type silence struct {
	mu     sync.Mutex
	silent map[matrix.ServerName]bool
	asked  map[string]int // "call server"
	begun  chan string    // the calls that are not answered
	end    chan struct{}
	once   sync.Once
}

func (n *network) silence(names ...matrix.ServerName) *silence {
	s := &silence{silent: make(map[matrix.ServerName]bool), asked: make(map[string]int), begun: make(chan string, 100), end: make(chan struct{})}
	for _, name := range names {
		s.silent[name] = true
	}
	n.mu.Lock()
	n.hold = func(_, to matrix.ServerName, call string) error {
		s.mu.Lock()
		s.asked[call+" "+string(to)]++
		silent := s.silent[to]
		s.mu.Unlock()
		if silent {
			s.begun <- call + " " + string(to)
			<-s.end
			return context.DeadlineExceeded
		}
		return nil
	}
	n.mu.Unlock()
	n.t.Cleanup(s.stop)
	return s
}

// stop has requests that are not answered fail, and all others answered.
func (s *silence) stop() {
	s.once.Do(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		clear(s.silent)
		close(s.end)
	})
}

func (s *silence) count(call string, to matrix.ServerName) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[call+" "+string(to)]
}

// within fails the test if something takes longer than a silent server may hold it up.
func within(t *testing.T, limit time.Duration, what string, do func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s is held up", what)
	}
}

// A server that sends an event and does not say what comes before it holds up nothing but its own events.
func TestSilentServerHoldsUpItself(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	c.join(c.user("carol"), room, a)
	n.settle()
	alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
	n.split(a, b, true)
	b.say(bob, room, "lost on the way")
	late := b.say(bob, room, "late")
	n.settle()
	n.split(a, b, false)
	quiet := n.silence("b.example")
	stuck := make(chan []rooms.Received, 1)
	pdu, err := b.Event(ctx, late)
	if err != nil {
		t.Fatal(err)
	}
	go func() { stuck <- a.Receive(ctx, b.name, room, [][]byte{pdu.JSON()}) }()
	<-quiet.begun
	within(t, 10*time.Second, "another server's event", func() {
		said := c.say(carol, room, "hello")
		n.settle()
		if _, err := a.VisibleEvent(ctx, alice, room, said); err != nil {
			t.Error(err)
		}
	})
	within(t, 10*time.Second, "a join through the room", func() {
		d := n.server("d.example")
		d.join(d.user("dora"), room, a)
	})
	// The silent server comes back: nothing is lost, and what came meanwhile is counted.
	quiet.stop()
	<-stuck
	if r := a.Receive(ctx, b.name, room, [][]byte{pdu.JSON()}); r[0].Err != nil {
		t.Error(r[0].Err)
	}
	n.settle()
	a.say(alice, room, "all there")
	n.settle()
	for _, s := range []*server{b, c} {
		if got, want := fmt.Sprint(s.state(room)), fmt.Sprint(a.state(room)); got != want {
			t.Errorf("%s has another state", s.name)
		}
	}
}

// Two servers send the same events at the same time, and each is asked for what comes before them.
func TestSameEventsFromTwoServers(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	c.join(c.user("carol"), room, a)
	n.settle()
	bob := b.user("bob")
	n.split(a, b, true)
	n.split(a, c, true)
	var pdus [][]byte
	for i := range 30 {
		id := b.say(bob, room, fmt.Sprint(i))
		if i < 25 {
			continue
		}
		ev, err := b.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		pdus = append(pdus, ev.JSON())
	}
	n.settle() // c has them
	n.split(a, b, false)
	n.split(a, c, false)
	var both sync.WaitGroup
	for _, s := range []*server{b, c} {
		both.Go(func() {
			for _, r := range a.Receive(ctx, s.name, room, pdus) {
				if r.Err != nil {
					t.Errorf("%s: %v", s.name, r.Err)
				}
			}
		})
	}
	both.Wait()
	seen := make(map[matrix.EventID]bool)
	for _, u := range a.updates {
		for _, ev := range u.Events {
			if seen[ev.ID()] {
				t.Errorf("%s was taken twice", ev.ID())
			}
			seen[ev.ID()] = true
		}
	}
	a.say(a.user("alice"), room, "last")
	n.settle()
	if got, want := fmt.Sprint(b.state(room)), fmt.Sprint(a.state(room)); got != want {
		t.Error("the states differ")
	}
}

// A join is held up by silent servers for an instant each, and there is one join in the room in the end.
func TestJoinBesideSilentServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		c := n.server("c.example")
		quiet := n.silence("b.example", "x.example", "y.example")
		carol := c.user("carol")
		within(t, 20*time.Second, "the join", func() {
			c.must(c.Join(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{"x.example", "b.example", "y.example", "a.example"}}))
		})
		if got := quiet.count("send_join", b.name) + quiet.count("send_join", a.name); got != 1 {
			t.Errorf("%d joins were sent", got)
		}
		quiet.stop()
		n.settle()
		if m, err := a.MembershipOf(ctx, room, carol); err != nil || m.Membership != "join" {
			t.Error(m, err)
		}
	})
}

// The server that made a join does not say what became of it: another one is given the same join, not a second one.
func TestJoinThatIsNotAnswered(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	carol := c.user("carol")
	n.mu.Lock()
	n.hold = func(_, to matrix.ServerName, call string) error {
		if call == "send_join" && to == b.name {
			return context.DeadlineExceeded
		}
		return nil
	}
	n.mu.Unlock()
	c.must(c.Join(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{"b.example", "a.example"}}))
	if n.count("c.example make_join") != 1 || n.count("c.example send_join") != 2 {
		t.Errorf("%d joins made, %d sent", n.count("c.example make_join"), n.count("c.example send_join"))
	}
	n.settle()
	for _, s := range []*server{a, b} {
		if m, err := s.MembershipOf(ctx, room, carol); err != nil || m.Membership != "join" {
			t.Error(s.name, m, err)
		}
	}
}

// The server that made a join refuses it: nobody else is given that one. Another server may make one of its own.
func TestJoinThatIsRefused(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	carol := c.user("carol")
	n.mu.Lock()
	n.hold = func(_, to matrix.ServerName, call string) error {
		if call == "send_join" && to == a.name {
			return matrix.Forbidden("not here")
		}
		return nil
	}
	n.mu.Unlock()
	c.must(c.Join(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: []matrix.ServerName{a.name, b.name}}))
	if n.count("c.example make_join") != 2 || n.count("c.example send_join") != 2 {
		t.Errorf("%d joins made, %d sent", n.count("c.example make_join"), n.count("c.example send_join"))
	}
	n.settle()
	for _, s := range []*server{a, b} {
		s.expectMembership(carol, room, "join")
	}
}

// Rooms whose servers let us in and never say who is in them do not keep those of others from becoming whole.
func TestResyncBesideSilentServers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		n.omit = true
		a, b, x := n.server("a.example"), n.server("b.example"), n.server("x.example")
		bob := b.user("bob")
		n.mu.Lock()
		n.hold = func(_, to matrix.ServerName, call string) error {
			if to == x.name && call == "state_ids" {
				time.Sleep(time.Hour)
				return errUnreachable
			}
			return nil
		}
		n.mu.Unlock()
		for range 20 {
			b.join(bob, x.create(x.user("mallory"), rooms.CreateRequest{Preset: "public_chat", Version: "11"}), x)
		}
		room := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "11"})
		b.join(bob, room, a)
		members, err := b.Members(ctx, rooms.MembersRequest{Room: room, User: bob})
		if err != nil || len(members) != 2 {
			t.Errorf("%d members, %v", len(members), err)
		}
	})
}

// Backfill that has to ask for a state lets the room go on meanwhile.
func TestBackfillLetsTheRoomGoOn(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	for i := range 120 {
		a.say(alice, room, fmt.Sprint(i))
	}
	n.settle()
	c := n.server("c.example")
	carol := c.user("carol")
	c.join(carol, room, a)
	n.settle()
	begun, open := make(chan struct{}), make(chan struct{})
	var once sync.Once
	n.mu.Lock()
	n.hold = func(from, _ matrix.ServerName, call string) error {
		if from == c.name && call == "state_ids" {
			once.Do(func() { close(begun) })
			<-open
		}
		return nil
	}
	n.mu.Unlock()
	page := make(chan []string, 1)
	go func() { page <- c.texts(carol, room) }()
	<-begun
	within(t, 10*time.Second, "an event", func() {
		said := b.say(bob, room, "meanwhile")
		n.settle()
		if _, err := c.VisibleEvent(ctx, carol, room, said); err != nil {
			t.Error(err)
		}
	})
	close(open)
	if got := <-page; len(got) < 100 {
		t.Errorf("%d events of history", len(got))
	}
}

// Events that are missing one by one are fetched several at a time: another server may be far away.
func TestSingleEventsAreFetchedTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		alice := a.user("alice")
		n.split(a, b, true)
		for i := range 12 {
			a.set(alice, room, fmt.Sprint("org.example.", i), "", `{}`)
		}
		a.say(alice, room, "all set")
		late := a.say(alice, room, "late")
		n.settle()
		n.split(a, b, false)
		n.mu.Lock()
		n.hold = func(_, _ matrix.ServerName, call string) error {
			time.Sleep(time.Second)
			if call == "get_missing_events" {
				return matrix.Forbidden("no")
			}
			return nil
		}
		n.mu.Unlock()
		pdu, err := a.Event(ctx, late)
		if err != nil {
			t.Fatal(err)
		}
		before, began := n.count("b.example event"), time.Now()
		if r := b.receive(a, room, pdu.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
		asked, took := n.count("b.example event")-before, time.Since(began)
		if asked < 12 || took > 8*time.Second {
			t.Errorf("%d requests of a second each took %s", asked, took)
		}
		if got, want := fmt.Sprint(b.state(room)), fmt.Sprint(a.state(room)); got != want {
			t.Errorf("%s\nwant %s", got, want)
		}
	})
}

// A state of which an event cannot be had at the moment is not taken without it, and one of which nobody gives an event is: else that event
// would end the room.
func TestStateWithAnEventThatCannotBeHad(t *testing.T) {
	for _, c := range []struct {
		name    string
		failure error
		taken   bool
	}{
		{"no answer", errUnreachable, false},
		{"refused", matrix.Forbidden("no"), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, a, b, room := twoServers(t)
			alice := a.user("alice")
			n.split(a, b, true)
			topic := a.set(alice, room, "m.room.topic", "", `{"topic":"apples"}`)
			a.say(alice, room, "about that")
			late := a.say(alice, room, "late")
			n.settle()
			n.split(a, b, false)
			n.hold = func(_, _ matrix.ServerName, call string) error {
				if call == "get_missing_events" {
					return matrix.Forbidden("no")
				}
				return nil
			}
			n.eventFails = func(id matrix.EventID) error {
				if id == topic {
					return c.failure
				}
				return nil
			}
			receive := func() error {
				pdu, err := a.Event(ctx, late)
				if err != nil {
					t.Fatal(err)
				}
				return b.receive(a, room, pdu.JSON())[0].Err
			}
			if err := receive(); (err == nil) != c.taken {
				t.Fatal(err)
			}
			if c.taken {
				return
			}
			n.eventFails = nil
			if err := receive(); err != nil {
				t.Fatal(err)
			}
			if got := b.content(room, "m.room.topic", ""); got != `{"topic":"apples"}` {
				t.Errorf("the topic is %s", got)
			}
		})
	}
}
