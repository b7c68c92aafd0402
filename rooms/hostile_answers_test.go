package rooms_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// nowhere is the ID of an event that nobody has.
func nowhere(i int) matrix.EventID { return matrix.EventID(fmt.Sprintf("$%043d", i)) }

// askedOf is how many requests a server has made.
func (n *network) askedOf(s *server) (sum int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for call, k := range n.calls {
		if strings.HasPrefix(call, string(s.name)) {
			sum += k
		}
	}
	return sum
}

// A server that answers every request with what makes another one necessary is asked a bounded number of times, and gets nothing into the room.
func TestAnswersWithoutEnd(t *testing.T) {
	setUp := func(t *testing.T) (n *network, a, b *server, room matrix.RoomID, dangling *event.Event) {
		n, a, b, room = twoServers(t)
		dangling = b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message", PrevEvents: []matrix.EventID{nowhere(0)}, Content: []byte(`{"body":"x"}`)})
		return n, a, b, room, dangling
	}
	const most = 150
	t.Run("an auth chain", func(t *testing.T) {
		n, a, b, room, _ := setUp(t)
		bob := b.user("bob")
		key := string(bob)
		made := 0
		member := func(auth ...matrix.EventID) *event.Event {
			made++
			return b.forge(room, event.Proto{Sender: bob, Type: "m.room.member", StateKey: &key, AuthEvents: auth, Content: fmt.Appendf(nil, `{"membership":"join","displayname":"%d"}`, made)})
		}
		n.event = func(id matrix.EventID) []byte { return member(nowhere(2*made+1), nowhere(2*made+2)).JSON() }
		n.eventAuth = func() [][]byte { return nil }
		before := n.askedOf(a)
		if r := a.receive(b, room, member(nowhere(1)).JSON()); r[0].Err == nil {
			t.Error("accepted")
		}
		if got := n.askedOf(a) - before; got > most {
			t.Errorf("%d requests", got)
		}
	})
	t.Run("a gap", func(t *testing.T) {
		n, a, b, room, dangling := setUp(t)
		made := 0
		n.missing = func() (out [][]byte) {
			for range 20 {
				made++
				out = append(out, b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message", PrevEvents: []matrix.EventID{nowhere(made)}, Content: fmt.Appendf(nil, `{"body":"%d"}`, made)}).JSON())
			}
			return out
		}
		n.stateIDs = func() (state, auth []matrix.EventID) { return nil, nil }
		before := n.askedOf(a)
		if r := a.receive(b, room, dangling.JSON()); r[0].Err == nil {
			t.Error("accepted")
		}
		if got := n.askedOf(a) - before; got > most {
			t.Errorf("%d requests", got)
		}
	})
	t.Run("a state of events that nobody has", func(t *testing.T) {
		n, a, b, room, dangling := setUp(t)
		n.missing = func() [][]byte { return nil }
		n.stateIDs = func() (state, auth []matrix.EventID) {
			for i := range 29 {
				state = append(state, nowhere(i+1))
			}
			return state, slices.Clone(state)
		}
		n.event = func(matrix.EventID) []byte { return []byte(`{}`) }
		before := n.askedOf(a)
		if r := a.receive(b, room, dangling.JSON()); r[0].Err == nil {
			t.Error("accepted")
		}
		if got := n.askedOf(a) - before; got > most {
			t.Errorf("%d requests", got)
		}
	})
	t.Run("a state without the room's creation", func(t *testing.T) {
		n, a, b, room, dangling := setUp(t)
		n.missing = func() [][]byte { return nil }
		other := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "11"})
		snap, err := a.Snapshot(ctx, other)
		if err != nil {
			t.Fatal(err)
		}
		foreign, err := snap.State.All(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for name, state := range map[string][]matrix.EventID{"none": nil, "of another room": idsOf(foreign), "doubled": append(idsOf(foreign), idsOf(foreign)...)} {
			n.stateIDs = func() ([]matrix.EventID, []matrix.EventID) { return state, state }
			n.event = func(id matrix.EventID) []byte {
				if id == nowhere(0) {
					return []byte(`[]`)
				}
				ev, err := a.Event(ctx, id)
				if err != nil {
					return nil
				}
				return ev.JSON()
			}
			if r := a.receive(b, room, dangling.JSON()); r[0].Err == nil {
				t.Errorf("%s: accepted", name)
			}
		}
		a.say(a.user("alice"), room, "all is well")
	})
}

// An event from the end of time, at the greatest depth there is, ends nothing: people go on behind it.
func TestEventAtTheEndOfTime(t *testing.T) {
	for _, v := range supported {
		t.Run(string(v), func(t *testing.T) {
			n := newNetwork(t)
			a, b := n.server("a.example"), n.server("b.example")
			alice, bob := a.user("alice"), b.user("bob")
			room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: v})
			b.join(bob, room, a)
			n.settle()
			a.say(alice, room, "before")
			n.settle()
			last := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Depth: 1 << 62, OriginServerTS: 1<<53 - 1, Content: []byte(`{"msgtype":"m.text","body":"the end"}`)})
			if r := a.receive(b, room, last.JSON()); r[0].Err != nil {
				t.Fatal(r[0].Err)
			}
			b.receive(b, room, last.JSON())
			for i := range 3 {
				a.say(alice, room, fmt.Sprint(i))
			}
			n.settle()
			b.say(bob, room, "me too")
			n.settle()
			want := []string{"before", "the end", "0", "1", "2", "me too"}
			for s, who := range map[*server]matrix.UserID{a: alice, b: bob} {
				if got := s.texts(who, room); !slices.Equal(got, want) {
					t.Errorf("%s shows %v", s.name, got)
				}
			}
			if got, want := b.state(room), a.state(room); !slices.Equal(got, want) {
				t.Error("the states differ")
			}
		})
	}
}

// A server that lets us in names thousands of others that have nothing to do with the room: they are not all sent to.
func TestServersMadeUp(t *testing.T) {
	n, a, _, room := twoServers(t)
	c := n.server("c.example")
	carol := c.user("carol")
	n.omit = true
	n.lie = func(s *rooms.SentJoin) {
		for i := range 60_000 {
			s.Servers = append(s.Servers, matrix.ServerName(fmt.Sprintf("victim%d.example", i)))
		}
	}
	n.hold = func(from, _ matrix.ServerName, call string) error {
		if from == c.name && call == "state_ids" {
			return errUnreachable
		}
		return nil
	}
	c.join(carol, room, a)
	ev, err := c.Event(ctx, c.say(carol, room, "hello"))
	if err != nil {
		t.Fatal(err)
	}
	servers, err := c.ServersAt(ctx, ev)
	if err != nil || len(servers) > 2000 || !slices.Contains(servers, a.name) {
		t.Errorf("%d servers, %v", len(servers), err)
	}
}

// What is missing in an auth chain is asked for once, also where several events of a transaction depend on it.
func TestHoleInAnAuthChain(t *testing.T) {
	n, a, b, room := twoServers(t)
	bob := b.user("bob")
	key := string(bob)
	snap, err := b.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	var base []matrix.EventID
	for _, typ := range []string{"m.room.create", "m.room.power_levels", "m.room.join_rules"} {
		ev, err := snap.State.Event(ctx, typ, "")
		if err != nil {
			t.Fatal(err)
		}
		base = append(base, ev.ID())
	}
	state, err := snap.State.All(ctx)
	if err != nil {
		t.Fatal(err)
	}
	hole := nowhere(1)
	member := b.forge(room, event.Proto{Sender: bob, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join","displayname":"B"}`), AuthEvents: append(slices.Clone(base), hole)})
	said := func(prev matrix.EventID, text string) *event.Event {
		return b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{prev}, Content: fmt.Appendf(nil, `{"body":%q}`, text), AuthEvents: append(slices.Clone(base[:2]), member.ID())})
	}
	first := said(member.ID(), "first")
	second := said(first.ID(), "second")
	third := said(second.ID(), "third")
	n.missing = func() [][]byte { return [][]byte{second.JSON()} }
	n.stateIDs = func() ([]matrix.EventID, []matrix.EventID) {
		ids := slices.DeleteFunc(idsOf(state), func(id matrix.EventID) bool { return id == snapMember(t, snap, bob) })
		return append(ids, member.ID()), []matrix.EventID{hole}
	}
	var mu sync.Mutex // single events are asked for beside each other
	asked := make(map[matrix.EventID]int)
	n.event = func(id matrix.EventID) []byte {
		mu.Lock()
		asked[id]++
		mu.Unlock()
		for _, ev := range []*event.Event{member, first, second} {
			if ev.ID() == id {
				return ev.JSON()
			}
		}
		return []byte(`{}`)
	}
	r := a.receive(b, room, third.JSON())
	if !errors.Is(r[0].Err, rooms.ErrUnjudged) || r[0].Rejected() {
		t.Errorf("%+v", r[0])
	}
	if states := n.count("a.example state_ids"); states != 1 || asked[hole] != 1 {
		t.Errorf("the state was asked for %d times, the missing event %d times", states, asked[hole])
	}
	n.missing, n.stateIDs, n.event = nil, nil, nil
	b.say(bob, room, "on")
	n.settle()
	if d := cmp.Diff(b.state(room), a.state(room)); d != "" {
		t.Error(d)
	}
}

func snapMember(t testing.TB, snap *rooms.Snapshot, user matrix.UserID) matrix.EventID {
	t.Helper()
	ev, err := snap.State.Event(ctx, "m.room.member", string(user))
	if err != nil {
		t.Fatal(err)
	}
	return ev.ID()
}

// Up to room version 2 servers name events, and so can have them refer to each other in a circle. That ends, and takes nobody anything.
func TestEventsInACircle(t *testing.T) {
	for _, version := range []roomversion.ID{"1", "2"} {
		n, a, b, room := twoServersIn(t, version)
		alice, bob := a.user("alice"), b.user("bob")
		id := func(i int) matrix.EventID { return matrix.EventID(fmt.Sprintf("$circle%d:b.example", i)) }
		// circle makes events of which each follows on the next, and the last one on the first.
		circle := func(length int, prevs, auths bool) (events []*event.Event) {
			key := string(bob)
			for i := range length {
				p := event.Proto{Sender: bob, Type: "m.room.member", StateKey: &key, Content: fmt.Appendf(nil, `{"membership":"join","displayname":"%d"}`, i)}
				next := []matrix.EventID{id((i + 1) % length)}
				if prevs {
					p.PrevEvents = next
				}
				if auths {
					p.AuthEvents = next
				}
				events = append(events, b.named(b.forge(room, p), id(i)))
			}
			return events
		}
		for _, length := range []int{1, 2, 15} {
			for _, c := range []struct{ prevs, auths bool }{{true, false}, {false, true}, {true, true}} {
				events := circle(length, c.prevs, c.auths)
				all := make([][]byte, len(events))
				for i, ev := range events {
					all[i] = ev.JSON()
				}
				n.missing, n.eventAuth = func() [][]byte { return all }, func() [][]byte { return all }
				n.event = func(id matrix.EventID) []byte {
					for _, ev := range events {
						if ev.ID() == id {
							return ev.JSON()
						}
					}
					return []byte(`{}`)
				}
				n.stateIDs = func() (state, auth []matrix.EventID) { return nil, nil }
				before := n.askedOf(a)
				for i, r := range a.receive(b, room, all...) {
					if r.Err == nil {
						t.Errorf("version %s, %d in a circle, %+v: number %d was accepted", version, length, c, i)
					}
				}
				if asked := n.askedOf(a) - before; asked > 150 {
					t.Errorf("version %s, %d in a circle, %+v: %d requests", version, length, c, asked)
				}
			}
		}
		n.missing, n.eventAuth, n.event, n.stateIDs = nil, nil, nil, nil
		a.say(alice, room, "all is well")
		b.say(bob, room, "here, too")
		n.settle()
		if got, want := b.state(room), a.state(room); !slices.Equal(got, want) {
			t.Error("the states differ")
		}
	}
}

// What lets us into a room comes with thousands of copies, with events of other rooms, and with an auth chain as deep as anybody likes.
func TestJoinWithMoreThanAState(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	bob := b.user("bob")
	key := string(bob)
	other := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	foreign := a.allState(other)
	// bob changes his name again and again: each time is authorised by the time before.
	var chain [][]byte
	snap, err := b.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	member, err := snap.State.Event(ctx, "m.room.member", key)
	if err != nil {
		t.Fatal(err)
	}
	last := member.Event
	for i := range 2000 {
		var auth []matrix.EventID
		for _, typ := range []string{"m.room.create", "m.room.power_levels", "m.room.join_rules"} {
			if ev, err := snap.State.Event(ctx, typ, ""); err != nil {
				t.Fatal(err)
			} else if ev != nil {
				auth = append(auth, ev.ID())
			}
		}
		last = b.forge(room, event.Proto{Sender: bob, Type: "m.room.member", StateKey: &key, AuthEvents: append(auth, last.ID()), Content: fmt.Appendf(nil, `{"membership":"join","displayname":"%d"}`, i)})
		chain = append(chain, last.JSON())
	}
	n.lie = func(s *rooms.SentJoin) {
		s.State = slices.DeleteFunc(s.State, func(raw []byte) bool { return string(raw) == string(member.JSON()) })
		s.State = append(s.State, last.JSON())
		for range 1000 {
			s.State = append(s.State, s.State[0], foreign[len(foreign)-1])
		}
		s.AuthChain = append(s.AuthChain, foreign...)
		slices.Reverse(chain)
		s.AuthChain = append(append(s.AuthChain, chain...), member.JSON())
	}
	c.join(c.user("carol"), room, a)
	n.lie = nil
	got, err := c.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := got.State.Event(ctx, "m.room.member", key); err != nil || ev == nil || ev.ID() != last.ID() {
		t.Errorf("bob's membership is %v, %v", ev, err)
	}
	for _, raw := range foreign {
		ev, err := event.Parse(last.Version(), raw)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Event(ctx, ev.ID()); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Fatalf("an event of another room is kept: %v", err)
		}
	}
}

// allState is the whole current state of a room.
func (s *server) allState(room matrix.RoomID) (out [][]byte) {
	s.t.Helper()
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	all, err := snap.State.All(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, ev := range all {
		out = append(out, ev.JSON())
	}
	return out
}
