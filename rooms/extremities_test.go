package rooms_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// branch makes events of bob side by side, numbered from first, and has a take them.
func branch(t *testing.T, a, b *server, room matrix.RoomID, first, n int) {
	t.Helper()
	var pdus [][]byte
	for i := first; i < first+n; i++ {
		pdus = append(pdus, b.forge(room, event.Proto{Sender: b.user("bob"), Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":"%d"}`, i)}).JSON())
	}
	for i, r := range a.receive(b, room, pdus...) {
		if r.Err != nil {
			t.Fatal(i, r.Err)
		}
	}
}

// everything is what a user is shown of a room, by type.
func everything(t *testing.T, s *server, user matrix.UserID, room matrix.RoomID) (dummies, messages int) {
	t.Helper()
	page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: user, Backward: true, Limit: 500})
	if err != nil {
		t.Fatal(err)
	}
	for _, ev := range page.Events {
		switch ev.Type() {
		case event.DummyType:
			dummies++
		case "m.room.message":
			messages++
		}
	}
	return dummies, messages
}

// A room with many branches is brought together without anybody noticing.
func TestBranchesAreMerged(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	branch(t, a, b, room, 0, 40)
	if got := a.tips(room); len(got) > 10 {
		t.Fatalf("%d extremities", len(got))
	}
	a.restart()
	if got := a.tips(room); len(got) > 10 {
		t.Fatalf("%d extremities after a restart", len(got))
	}
	if dummies, messages := everything(t, a, alice, room); dummies != 0 || messages != 40 {
		t.Errorf("alice sees %d dummy events and %d messages", dummies, messages)
	}
	for range 3 {
		a.say(alice, room, "hello")
	}
	a.restart()
	for _, u := range a.updates {
		for _, ev := range u.Events {
			if ev.IsDummy() {
				t.Error("a dummy event is announced")
			}
		}
	}
	n.settle()
	if got := b.tips(room); !cmp.Equal(got, a.tips(room)) || len(got) != 1 {
		t.Errorf("extremities at b: %v", got)
	}
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Error(diff)
	}
	if dummies, messages := everything(t, b, bob, room); dummies != 0 || messages != 43 {
		t.Errorf("bob sees %d dummy events and %d messages", dummies, messages)
	}
}

// Without anybody here who may speak, the room waits for somebody who may.
func TestBranchesOfARoomInWhichNobodyMaySpeak(t *testing.T) {
	_, a, b, room := twoServers(t)
	a.set(a.user("alice"), room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:100},"events_default":0,"events":{%q:100,"m.room.power_levels":50}}`, b.user("bob"), a.user("alice"), event.DummyType))
	a.flush()
	a.set(a.user("alice"), room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100},"events_default":0,"events":{%q:100,"m.room.power_levels":50}}`, b.user("bob"), event.DummyType))
	a.flush()
	branch(t, a, b, room, 0, 20)
	if got := a.tips(room); len(got) != 20 {
		t.Errorf("%d extremities", len(got))
	}
}

// aheadOfJoin is a room that b has joined after alice said two things, of which it got the first from a beside its join, while nobody could tell where
// that belongs.
func aheadOfJoin(t *testing.T, version roomversion.ID) (n *network, a, b *server, room matrix.RoomID, second *rooms.Event) {
	t.Helper()
	n = newNetwork(t)
	a, b = n.server("a.example"), n.server("b.example")
	alice := a.user("alice")
	room = a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: version})
	first, err := a.Event(ctx, a.set(alice, room, "m.room.topic", "", `{"topic":"first"}`))
	if err == nil {
		second, err = a.Event(ctx, a.set(alice, room, "m.room.topic", "", `{"topic":"second"}`))
	}
	if err != nil {
		t.Fatal(err)
	}
	b.join(b.user("bob"), room, a)
	n.settle()
	n.unanswered("get_missing_events", true)
	if r := b.receive(a, room, first.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	n.unanswered("get_missing_events", false)
	if got := b.tips(room); len(got) != 2 {
		t.Fatal("b does not take what came late for the end of a branch:", got)
	}
	return n, a, b, room, second
}

// unanswered has a question that servers ask each other answered by nobody.
func (n *network) unanswered(question string, on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.hold = nil; on {
		n.hold = func(_, _ matrix.ServerName, call string) error {
			if call == question {
				return errUnreachable
			}
			return nil
		}
	}
}

// What was taken for the end of a branch is none any more when it shows that our join comes after it.
func TestHistoryEndsNoBranch(t *testing.T) {
	for _, version := range []roomversion.ID{"1", "11", "12"} {
		for what, show := range map[string]func(b, a *server, room matrix.RoomID, second *rooms.Event) error{
			"sent": func(b, a *server, room matrix.RoomID, second *rooms.Event) error {
				return b.receive(a, room, second.JSON())[0].Err
			},
			"fetched": func(b, _ *server, room matrix.RoomID, _ *rooms.Event) error {
				_, err := b.Messages(ctx, rooms.MessagesRequest{Room: room, User: b.user("bob"), Backward: true, Limit: 50})
				return err
			},
		} {
			t.Run(fmt.Sprint(what, " in version ", version), func(t *testing.T) {
				n, a, b, room, second := aheadOfJoin(t, version)
				if err := show(b, a, room, second); err != nil {
					t.Fatal(err)
				}
				expect := func() {
					t.Helper()
					if d := cmp.Diff(a.tips(room), b.tips(room)); d != "" {
						t.Error(d)
					}
					if d := cmp.Diff(a.state(room), b.state(room)); d != "" {
						t.Error(d)
					}
				}
				expect()
				b.restart()
				expect()
				b.say(b.user("bob"), room, "on")
				n.settle()
				expect()
			})
		}
	}
}

// Where an event belongs of which nobody could tell is asked again with what comes next: some time later, or after a restart.
func TestDoubtIsSettled(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprint("restart ", restart), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n, a, b, room, _ := aheadOfJoin(t, "11")
				ask := func(wait time.Duration, asked, tips int) {
					t.Helper()
					time.Sleep(wait)
					before := n.count("b.example get_missing_events")
					a.say(a.user("alice"), room, fmt.Sprint("after ", wait))
					n.settle()
					if got := n.count("b.example get_missing_events") - before; got != asked {
						t.Errorf("asked %d times, not %d", got, asked)
					}
					if got := b.tips(room); len(got) != tips {
						t.Errorf("%d ends, not %d: %v", len(got), tips, got)
					}
				}
				n.unanswered("get_missing_events", true)
				ask(0, 1, 2)
				ask(time.Second, 0, 2)
				ask(2*time.Minute, 1, 2)
				ask(time.Minute, 0, 2)
				n.unanswered("get_missing_events", false)
				if restart {
					b.restart()
				} else {
					time.Sleep(time.Hour)
				}
				ask(0, 1, 1)
				ask(time.Hour, 0, 1)
				if d := cmp.Diff(a.state(room), b.state(room)); d != "" {
					t.Error(d)
				}
			})
		})
	}
}

// A branch that is one is asked about until somebody can tell, and stays.
func TestDoubtIsUnfounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, b := n.server("a.example"), n.server("b.example")
		alice := a.user("alice")
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
		beside := a.forge(room, event.Proto{Sender: alice, Type: "m.room.message"})
		a.say(alice, room, "before the join")
		b.join(b.user("bob"), room, a)
		n.settle()
		n.unanswered("get_missing_events", true)
		if r := b.receive(a, room, beside.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
		n.unanswered("get_missing_events", false)
		for _, asked := range []int{1, 0} {
			before := n.count("b.example get_missing_events")
			a.say(alice, room, "after the join")
			n.settle()
			if got := n.count("b.example get_missing_events") - before; got != asked {
				t.Errorf("asked %d times, not %d", got, asked)
			}
			if got := b.tips(room); len(got) != 2 || !slices.Contains(got, beside.ID()) {
				t.Errorf("ends: %v", got)
			}
		}
	})
}

// Who came into the room after us does not know what lies before our join, and says that there is nothing: others are asked then.
func TestDoubtIsSettledByWhoKnows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room, _ := aheadOfJoin(t, "11")
		c := n.server("c.example")
		c.join(c.user("carol"), room, a)
		a.mu.Lock()
		a.outbox = nil
		a.mu.Unlock()
		time.Sleep(time.Hour)
		join, err := c.Event(ctx, c.tips(room)[0])
		if err != nil {
			t.Fatal(err)
		}
		if r := b.receive(c, room, join.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
		if got := b.tips(room); len(got) != 1 || got[0] != join.ID() {
			t.Errorf("ends: %v", got)
		}
	})
}

// An event comes while another is about to be stored that follows on it: it is history as if that were stored.
func TestHistoryOfWhatIsNotStoredYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, c, room := threeServers(t)
		alice := a.user("alice")
		var last [2]*rooms.Event
		for i := range last {
			ev, err := a.Event(ctx, a.set(alice, room, "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, i)))
			if err != nil {
				t.Fatal(err)
			}
			last[i] = ev
		}
		n.missing = func() [][]byte { return nil }
		release := b.holdCommits()
		done := make(chan []rooms.Received, 2)
		for i, from := range []*server{a, c} { // the later one first
			go func() { done <- b.receive(from, room, last[1-i].JSON()) }()
			synctest.Wait()
		}
		release()
		for range 2 {
			if r := <-done; r[0].Err != nil {
				t.Error(r[0].Err)
			}
		}
		if d := cmp.Diff([]matrix.EventID{last[1].ID()}, b.tips(room)); d != "" {
			t.Error(d)
		}
	})
}

// In room versions in which servers name their events themselves, one can claim to come before what it follows on. It takes nothing away.
func TestEndIsNoHistoryOfItself(t *testing.T) {
	n, a, b, room := twoServersIn(t, "1")
	alice, bob := a.user("alice"), b.user("bob")
	before := a.tips(room)
	n.forged = b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{"$nowhere:b.example"}})
	loop := n.forged.ID()
	child := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: append(before, loop)})
	var state []matrix.EventID
	for _, ev := range a.state(room) {
		_, id, _ := strings.Cut(ev, "=")
		state = append(state, matrix.EventID(id))
	}
	n.missing = func() [][]byte { return nil }
	n.stateIDs = func() (ids, auth []matrix.EventID) { return state, nil }
	if r := a.receive(b, room, child.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	topic := a.set(alice, room, "m.room.topic", "", `{"topic":"stays"}`)
	beside := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: before})
	closed := b.named(b.forgeAt(a, room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{topic}}), loop)
	for _, ev := range []*event.Event{beside, closed} {
		if r := a.receive(b, room, ev.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	if got := a.tips(room); !slices.Contains(got, topic) || slices.Contains(got, loop) || !slices.Contains(got, beside.ID()) {
		t.Errorf("ends: %v, without %s", got, topic)
	}
}

// A gap that is longer than what is asked for at once closes bit by bit, though nobody here says anything. Until then what was the end of the room before
// it stands beside what comes after it.
func TestGapThatIsClosedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, room := twoServers(t)
		alice := a.user("alice")
		n.split(a, b, true)
		for i := range 500 {
			a.say(alice, room, fmt.Sprint("missed ", i))
		}
		n.settle()
		a.mu.Lock()
		a.outbox = nil
		a.mu.Unlock()
		n.split(a, b, false)
		for i, tips := range []int{2, 2, 1} { // 200 events at a time
			a.say(alice, room, fmt.Sprint("heard ", i))
			n.settle()
			if got := b.tips(room); len(got) != tips {
				t.Errorf("%d: %d ends, not %d", i, len(got), tips)
			}
			time.Sleep(10 * time.Minute)
		}
		if d := cmp.Diff(a.state(room), b.state(room)); d != "" {
			t.Error(d)
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, u := range b.updates {
			for _, ev := range u.Events {
				body, _ := ev.ContentString("body")
				if i := 0; strings.HasPrefix(body, "missed") {
					if _, err := fmt.Sscanf(body, "missed %d", &i); err != nil || i < 290 {
						t.Fatal("what came late is told as news: ", body, err)
					}
				}
			}
		}
	})
}
