package rooms_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
	"hanok/storage"
)

// partialJoin is a room of a.example and c.example which bob of b.example has joined without its members, and their
// fetching held up.
type partialJoin struct {
	t       testing.TB
	n       *network
	a, b, c *server
	room    matrix.RoomID
	asked   chan matrix.ServerName // gets the servers that are asked for the state
	open    chan struct{}          // closed by release
	once    sync.Once
	refuse  atomic.Bool // the state is shown to nobody of b.example
}

func (p *partialJoin) release() { p.once.Do(func() { close(p.open) }) }

// newPartialJoin has setup called before bob joins, with alice of a as creator.
func newPartialJoin(t testing.TB, q rooms.CreateRequest, setup func(p *partialJoin)) *partialJoin {
	n := newNetwork(t)
	p := &partialJoin{t: t, n: n, a: n.server("a.example"), b: n.server("b.example"), c: n.server("c.example"), asked: make(chan matrix.ServerName, 100), open: make(chan struct{})}
	q.Preset = "public_chat"
	if q.Version == "" {
		q.Version = "11"
	}
	p.room = p.a.create(p.a.user("alice"), q)
	p.c.join(p.c.user("carol"), p.room, p.a)
	n.settle()
	if setup != nil {
		setup(p)
	}
	n.settle()
	n.mu.Lock()
	n.omit = true
	n.hold = func(from, to matrix.ServerName, call string) error {
		if from == "b.example" && call == "state_ids" {
			select {
			case p.asked <- to:
			default:
			}
			<-p.open
			if p.refuse.Load() {
				return matrix.Forbidden("your server is not in the room")
			}
		}
		return nil
	}
	n.mu.Unlock()
	t.Cleanup(p.release)
	p.b.join(p.b.user("bob"), p.room, p.a)
	return p
}

func (p *partialJoin) nid() (nid int64) {
	p.t.Helper()
	n, err := p.b.RoomNID(ctx, p.room)
	if err != nil {
		p.t.Fatal(err)
	}
	return int64(n)
}

func (p *partialJoin) partial() bool {
	p.t.Helper()
	nid, err := p.b.RoomNID(ctx, p.room)
	if err != nil {
		p.t.Fatal(err)
	}
	return p.b.PartialAt(p.b.db.Current())[nid]
}

// complete lets the state be fetched and waits until it is whole.
func (p *partialJoin) complete(user matrix.UserID) []*rooms.Event {
	p.t.Helper()
	p.release()
	limited, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	members, err := p.b.Members(limited, rooms.MembersRequest{Room: p.room, User: user})
	if err != nil {
		p.t.Fatal(err)
	}
	return members
}

// agree checks that all servers have the same state.
func (p *partialJoin) agree() {
	p.t.Helper()
	p.n.settle()
	want := p.a.state(p.room)
	for _, s := range []*server{p.b, p.c} {
		if d := cmp.Diff(want, s.state(p.room)); d != "" {
			p.t.Errorf("%s: %s", s.name, d)
		}
	}
}

// send makes an event of a user of s and gives it to b.
func (p *partialJoin) send(s *server, proto event.Proto) *event.Event {
	p.t.Helper()
	ev := s.forge(p.room, proto)
	p.b.receive(s, p.room, ev.JSON())
	return ev
}

func (p *partialJoin) seen(id matrix.EventID) bool {
	p.t.Helper()
	_, err := p.b.VisibleEvent(ctx, p.b.user("bob"), p.room, id)
	if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
		p.t.Fatal(err)
	}
	return err == nil
}

func TestPartialJoin(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{Name: "big"}, func(p *partialJoin) {
		for i := range 40 {
			p.a.join(p.a.user(fmt.Sprint("u", i)), p.room)
		}
	})
	bob := p.b.user("bob")
	if !p.partial() {
		t.Fatal("the state is not partial")
	}
	// What is known is told at once, what is not has to wait.
	if name, err := p.b.VisibleStateEvent(ctx, bob, p.room, "m.room.name", ""); err != nil || name == nil {
		t.Fatal(name, err)
	}
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := p.b.Members(soon, rooms.MembersRequest{Room: p.room, User: bob}); err == nil {
		t.Error("members were told that are not known")
	}
	if _, err := p.b.VisibleStateEvent(soon, bob, p.room, "m.room.member", string(p.a.user("u1"))); err == nil {
		t.Error("a membership was told that is not known")
	}
	// Events go both ways, to all servers.
	p.n.settle()
	said := []matrix.EventID{p.b.say(bob, p.room, "from bob"), p.a.say(p.a.user("u1"), p.room, "from u1"), p.c.say(p.c.user("carol"), p.room, "from carol")}
	p.n.settle()
	for _, id := range said {
		if !p.seen(id) { // without a look into the history, which waits for the members
			t.Errorf("%s has not arrived", id)
		}
	}
	want := []string{"from bob", "from u1", "from carol"}
	slices.Sort(want)
	for s, who := range map[*server]matrix.UserID{p.a: p.a.user("alice"), p.c: p.c.user("carol")} {
		got := s.texts(who, p.room)
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", s.name, d)
		}
	}
	// Others cannot be told a state, nor be let in; where in doubt, they are in the room.
	snap, err := p.b.Snapshot(ctx, p.room)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.b.ServeStateIDs(ctx, p.c.name, p.room, snap.Extremities[0]); !matrix.HasCode(err, "M_UNABLE_DUE_TO_PARTIAL_STATE") {
		t.Error(err)
	}
	if _, err := p.b.MakeJoin(ctx, p.c.name, p.room, p.c.user("dora"), supported); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Error(err)
	}
	if _, err := p.b.ServeEvent(ctx, p.c.name, snap.Extremities[0]); err != nil {
		t.Error(err)
	}
	if ok, err := p.b.MayBeJoined(ctx, p.room, p.c.user("carol")); err != nil || !ok {
		t.Error(ok, err)
	}
	// A position from before counts the members of that time as they are known by then.
	then := p.b.db.Current()
	if got := len(p.complete(bob)); got != 43 {
		t.Errorf("%d members", got)
	}
	if p.partial() {
		t.Error("the state is still partial")
	}
	p.agree()
	members, err := p.b.Members(ctx, rooms.MembersRequest{Room: p.room, User: bob, Position: then})
	if err != nil || len(members) != 43 {
		t.Errorf("%d members before, %v", len(members), err)
	}
	nid, err := p.b.RoomNID(ctx, p.room)
	if err != nil {
		t.Fatal(err)
	}
	if !p.b.CompletedIn(then, p.b.db.Current())[nid] || p.b.CompletedIn(p.b.db.Current(), p.b.db.Current()+1)[nid] || !p.b.PartialAt(then)[nid] {
		t.Error("the time of completion is wrong")
	}
	if state, _, err := p.b.ServeStateIDs(ctx, p.c.name, p.room, snap.Extremities[0]); err != nil || len(state) < 43 {
		t.Error(len(state), err)
	}
	p.b.restart()
	if p.partial() {
		t.Error("partial again after a restart")
	}
	p.agree()
}

// In every version of the rules: auth events look different.
func TestPartialJoinVersions(t *testing.T) {
	for _, v := range supported {
		t.Run(string(v), func(t *testing.T) {
			p := newPartialJoin(t, rooms.CreateRequest{Version: v}, nil)
			p.a.say(p.a.user("alice"), p.room, "meanwhile")
			p.n.settle()
			p.complete(p.b.user("bob"))
			p.agree()
			if d := cmp.Diff([]string{"meanwhile"}, p.b.texts(p.b.user("bob"), p.room)); d != "" {
				t.Error(d)
			}
		})
	}
}

// A server that was in the room before us counts, though nothing is known of it but that.
func TestPartialServers(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{Name: "without heroes"}, nil)
	bob := p.b.user("bob")
	if _, err := p.b.db.LookupName(ctx, string(p.c.name)); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal("b knows a user of c:", err)
	}
	said, err := p.b.Event(ctx, p.b.say(bob, p.room, "to all of you"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.b.ServeMissingEvents(ctx, p.c.name, p.room, nil, []matrix.EventID{said.ID()}, 10, 0); err != nil {
		t.Errorf("what came before an event: %v", err)
	}
	if shared, err := p.b.SharedSince(ctx, bob, p.c.name, p.b.db.Current()+1); err != nil || !shared {
		t.Errorf("shares a room with bob: %v, %v", shared, err)
	}
	if _, err := p.b.ServeMissingEvents(ctx, "d.example", p.room, nil, []matrix.EventID{said.ID()}, 10, 0); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("to another one: %v", err)
	}
}

// What was checked against a partial state is checked again.
func TestPartialVerdicts(t *testing.T) {
	var left, joined matrix.EventID // of mallory
	p := newPartialJoin(t, rooms.CreateRequest{}, func(p *partialJoin) {
		mallory, erin := p.a.user("mallory"), p.a.user("erin")
		p.a.join(mallory, p.room)
		p.a.join(erin, p.room)
		p.a.set(p.a.user("alice"), p.room, "m.room.power_levels", "",
			fmt.Sprintf(`{"users":{%q:100,%q:100,%q:50},"events_default":0,"state_default":50,"ban":50,"kick":50}`, p.a.user("alice"), mallory, erin))
		snap, err := p.a.Snapshot(ctx, p.room)
		if err != nil {
			p.t.Fatal(err)
		}
		ev, err := snap.State.Event(ctx, "m.room.member", string(mallory))
		if err != nil {
			p.t.Fatal(err)
		}
		joined = ev.ID()
		if left, err = p.a.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: mallory}); err != nil {
			p.t.Fatal(err)
		}
	})
	mallory, erin, bob := p.a.user("mallory"), p.a.user("erin"), p.b.user("bob")
	p.n.settle()
	snap, err := p.a.Snapshot(ctx, p.room)
	if err != nil {
		t.Fatal(err)
	}
	base := []matrix.EventID{joined}
	for _, k := range []string{"m.room.create", "m.room.power_levels"} {
		ev, err := snap.State.Event(ctx, k, "")
		if err != nil {
			t.Fatal(err)
		}
		base = append(base, ev.ID())
	}
	erinJoined, err := snap.State.Event(ctx, "m.room.member", string(erin))
	if err != nil {
		t.Fatal(err)
	}
	empty, who := "", string(erin)
	// Mallory has left, which b does not know: what they do is taken for allowed, and keeps out what is.
	bad := p.send(p.a, event.Proto{Sender: mallory, Type: "m.room.name", StateKey: &empty, Content: []byte(`{"name":"mine"}`), AuthEvents: base})
	kick := p.send(p.a, event.Proto{Sender: mallory, Type: "m.room.member", StateKey: &who, Content: []byte(`{"membership":"ban"}`),
		PrevEvents: []matrix.EventID{bad.ID()}, Depth: bad.Depth() + 1, AuthEvents: append(slices.Clone(base), erinJoined.ID())})
	topic := p.send(p.a, event.Proto{Sender: erin, Type: "m.room.topic", StateKey: &empty, Content: []byte(`{"topic":"erin's"}`),
		PrevEvents: []matrix.EventID{kick.ID()}, Depth: kick.Depth() + 1})
	message := p.send(p.a, event.Proto{Sender: erin, Type: "m.room.message", Content: []byte(`{"body":"lost?"}`),
		PrevEvents: []matrix.EventID{topic.ID()}, Depth: topic.Depth() + 1})
	for _, check := range []struct {
		ev     *event.Event
		before bool
	}{{bad, true}, {kick, true}, {topic, false}, {message, false}} {
		if p.seen(check.ev.ID()) != check.before {
			t.Errorf("%s by %s: seen is not %v while the state is partial", check.ev.Type(), check.ev.Sender(), check.before)
		}
	}
	then := p.b.db.Current()
	p.complete(bob)
	for _, check := range []struct {
		ev    *event.Event
		after bool
	}{{bad, false}, {kick, false}, {topic, true}, {message, true}} {
		if p.seen(check.ev.ID()) != check.after {
			t.Errorf("%s by %s: seen is not %v when the state is whole", check.ev.Type(), check.ev.Sender(), check.after)
		}
	}
	state := p.b.state(p.room)
	for key, id := range map[string]matrix.EventID{"m.room.topic|": topic.ID(), "m.room.member|" + who: erinJoined.ID(), "m.room.member|" + string(mallory): left} {
		if !slices.Contains(state, key+"="+string(id)) {
			t.Errorf("%s is not %s in %v", key, id, state)
		}
	}
	if slices.Contains(state, "m.room.name|="+string(bad.ID())) {
		t.Error("the state has what is not allowed")
	}
	// What was kept out is news for clients, what was told them wrongly is taken back.
	nid, err := p.b.RoomNID(ctx, p.room)
	if err != nil {
		t.Fatal(err)
	}
	tl, err := p.b.Timeline(ctx, rooms.TimelineRequest{Room: nid, Since: then, Until: p.b.db.Current(), Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	var shown []matrix.EventID
	for _, ev := range tl.Events {
		shown = append(shown, ev.ID())
	}
	if d := cmp.Diff([]matrix.EventID{topic.ID(), message.ID()}, shown); d != "" {
		t.Error(d)
	}
	from, err := p.b.StateAtPosition(ctx, nid, then)
	if err != nil {
		t.Fatal(err)
	}
	to, err := p.b.StateAtPosition(ctx, nid, p.b.db.Current())
	if err != nil {
		t.Fatal(err)
	}
	delta, err := p.b.StateDelta(ctx, from, to)
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, d := range delta {
		told[d.Key.Type+"|"+d.Key.Key] = true
	}
	if d := cmp.Diff(map[string]bool{"m.room.name|": true, "m.room.topic|": true, "m.room.member|" + who: true}, told); d != "" {
		t.Error(d)
	}
	// The room goes on from there.
	id := p.b.say(bob, p.room, "on")
	ev, err := p.b.Event(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if got := ev.PrevEvents(); !slices.Equal(got, []matrix.EventID{message.ID()}) {
		t.Errorf("follows on %v", got)
	}
}

// Where the state does not come for long there are more events than are worked on at a time, on several branches; the states at all of them are what
// they are elsewhere, also after a restart, and what is remembered of them is what is stored.
func TestPartialJoinOfManyEvents(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, func(p *partialJoin) {
		for i := range 20 {
			p.a.join(p.a.user(fmt.Sprint("u", i)), p.room)
		}
	})
	const events = 350
	alice, carol := p.a.user("alice"), p.c.user("carol")
	var ids []matrix.EventID
	for i := range events {
		switch i % 7 {
		case 0:
			ids = append(ids, p.a.say(alice, p.room, fmt.Sprint(i)))
		case 1, 2:
			ids = append(ids, p.a.set(alice, p.room, "test.state", fmt.Sprint(i%40), fmt.Sprintf(`{"i":%d}`, i)))
		case 3:
			p.a.join(p.a.user(fmt.Sprint("late", i)), p.room)
		case 4:
			ids = append(ids, p.c.say(carol, p.room, fmt.Sprint(i)))
		case 5:
			p.b.say(p.b.user("bob"), p.room, fmt.Sprint(i))
		}
		if i%20 == 19 {
			p.n.settle()
		}
	}
	p.n.settle()
	if !p.partial() {
		t.Fatal("the state is whole already")
	}
	p.complete(p.b.user("bob"))
	p.agree()
	states := func(s *server, at matrix.EventID) []string {
		t.Helper()
		state, _, err := s.ServeStateIDs(ctx, "c.example", p.room, at)
		if err != nil {
			t.Fatal(err)
		}
		out := make([]string, len(state))
		for i, id := range state {
			out[i] = string(id)
		}
		slices.Sort(out)
		return out
	}
	same := func() {
		t.Helper()
		for i := 0; i < len(ids); i += 10 {
			if d := cmp.Diff(states(p.a, ids[i]), states(p.b, ids[i])); d != "" {
				t.Errorf("the state at event %d: %s", i, d)
			}
		}
		for _, id := range ids {
			if ev, err := p.b.Event(ctx, id); err != nil || ev.Partial {
				t.Errorf("%v still follows on a partial state (%v)", ev, err)
			}
		}
	}
	same()
	p.b.restart()
	same()
	p.agree()
}

// A rejection by a partial state is not the last word: what follows on the rejected event is not held against it.
func TestPartialRejectionIsProvisional(t *testing.T) {
	p := newToldWhilePartial(t)
	alice, mallory, erin, fred := p.a.user("alice"), p.a.user("mallory"), p.a.user("erin"), p.a.user("fred")
	base := p.state("m.room.create", "m.room.power_levels")
	who, whom := string(erin), string(fred)
	erinIn, fredIn := snapMember(t, p.snap, erin), snapMember(t, p.snap, fred)
	ban := p.send(p.a, event.Proto{Sender: mallory, Type: "m.room.member", StateKey: &who, Content: []byte(`{"membership":"ban"}`), AuthEvents: append(slices.Clone(base), p.joined, erinIn)})
	kick := p.send(p.a, event.Proto{Sender: erin, Type: "m.room.member", StateKey: &whom, Content: []byte(`{"membership":"leave"}`),
		PrevEvents: []matrix.EventID{ban.ID()}, Depth: ban.Depth() + 1, AuthEvents: append(slices.Clone(base), erinIn, fredIn)})
	back := p.send(p.a, event.Proto{Sender: fred, Type: "m.room.member", StateKey: &whom, Content: []byte(`{"membership":"join","displayname":"again"}`),
		PrevEvents: []matrix.EventID{kick.ID()}, Depth: kick.Depth() + 1, AuthEvents: append(p.state("m.room.create", "m.room.power_levels", "m.room.join_rules"), kick.ID())})
	// What was rejected gives nobody any power: it is in no state.
	coup := p.send(p.a, event.Proto{Sender: fred, Type: "m.room.power_levels", StateKey: new(string), Content: fmt.Appendf(nil, `{"users":{%q:100,%q:50}}`, alice, fred),
		PrevEvents: []matrix.EventID{back.ID()}, Depth: back.Depth() + 1, AuthEvents: append(slices.Clone(base), back.ID())})
	spoils := p.send(p.a, event.Proto{Sender: fred, Type: "m.room.topic", StateKey: new(string), Content: []byte(`{"topic":"mine"}`),
		PrevEvents: []matrix.EventID{coup.ID()}, Depth: coup.Depth() + 1, AuthEvents: []matrix.EventID{base[0], coup.ID(), back.ID()}})
	for _, when := range []struct {
		whole bool
		seen  []*event.Event
		not   []*event.Event
	}{
		{false, []*event.Event{ban, back}, []*event.Event{kick, coup, spoils}},
		{true, []*event.Event{kick, back}, []*event.Event{ban, coup, spoils}},
	} {
		if when.whole {
			p.complete(p.b.user("bob"))
		}
		for _, ev := range when.seen {
			if !p.seen(ev.ID()) {
				t.Errorf("whole %v: %s by %s is not seen", when.whole, ev.Type(), ev.Sender())
			}
		}
		for _, ev := range when.not {
			if p.seen(ev.ID()) {
				t.Errorf("whole %v: %s by %s is seen", when.whole, ev.Type(), ev.Sender())
			}
		}
	}
	if got := p.b.state(p.room); !slices.Contains(got, "m.room.member|"+whom+"="+string(back.ID())) || !slices.Contains(got, "m.room.member|"+who+"="+string(erinIn)) {
		t.Error(got)
	}
}

// The process ends while the state is fetched: the next one fetches it.
func TestPartialJoinResumes(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, nil)
	<-p.asked
	p.b.say(p.b.user("bob"), p.room, "before")
	p.release() // or the request that is held up would hold up the end
	p.n.split(p.a, p.b, true)
	p.n.split(p.c, p.b, true)
	p.b.restart()
	if !p.partial() {
		t.Fatal("the state is whole already")
	}
	p.n.split(p.a, p.b, false)
	p.n.split(p.c, p.b, false)
	p.complete(p.b.user("bob"))
	p.agree()
}

// Where the server that let us in is down, or tells nonsense, another one is asked.
func TestPartialJoinAsksOthers(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, nil)
	if first := <-p.asked; first != p.a.name {
		t.Errorf("%s is asked first", first)
	}
	p.n.settle() // c shows its state to servers in the room only
	p.n.split(p.a, p.b, true)
	p.release()
	if second := <-p.asked; second != p.c.name {
		t.Errorf("%s is asked then", second)
	}
	p.complete(p.b.user("bob"))
	p.n.split(p.a, p.b, false)
	p.agree()
}

// A server that tells another state than the one that let us in is not believed at once.
func TestPartialJoinLiedTo(t *testing.T) {
	var lie, truth []matrix.EventID
	p := newPartialJoin(t, rooms.CreateRequest{Name: "then"}, func(p *partialJoin) {
		state := func() []matrix.EventID {
			snap, err := p.a.Snapshot(ctx, p.room)
			if err != nil {
				p.t.Fatal(err)
			}
			all, err := snap.State.All(ctx)
			if err != nil {
				p.t.Fatal(err)
			}
			return idsOf(all)
		}
		lie = state()
		p.a.set(p.a.user("alice"), p.room, "m.room.name", "", `{"name":"now"}`)
		truth = state()
		p.a.say(p.a.user("alice"), p.room, "what the join follows on")
	})
	<-p.asked
	var asked atomic.Int32
	p.n.stateIDs = func() (state, auth []matrix.EventID) {
		if asked.Add(1) > 3 {
			return truth, nil
		}
		return lie, nil
	}
	p.complete(p.b.user("bob"))
	if n := asked.Load(); n != 4 {
		t.Errorf("%d states were asked for", n)
	}
	p.n.stateIDs = nil
	p.agree()
}

// Members come, go, and come back while the state is partial.
func TestPartialLeaveAndRejoin(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, nil)
	bob, bea := p.b.user("bob"), p.b.user("bea")
	<-p.asked
	// A second user is let in by a server that knows who is banned.
	p.n.settle()
	p.b.join(bea, p.room, p.a)
	p.n.settle()
	p.b.must(p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: bob}))
	p.b.must(p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: bea}))
	p.n.settle()
	if ok, err := p.a.MembershipOf(ctx, p.room, bea); err != nil || ok.Membership != "leave" {
		t.Fatal(ok, err)
	}
	p.b.join(bob, p.room, p.a)
	p.n.settle()
	p.complete(bob)
	p.agree()
	if p.partial() {
		t.Error("still partial")
	}
}

// A ban that is among what was left out holds.
func TestPartialJoinHiddenBan(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{Name: "x"}, func(p *partialJoin) {
		p.a.must(p.a.Ban(ctx, rooms.MemberRequest{Room: p.room, Sender: p.a.user("alice"), Target: p.b.user("bad")}))
	})
	if _, err := p.b.Join(ctx, rooms.MemberRequest{Room: p.room, Sender: p.b.user("bad"), Via: []matrix.ServerName{p.a.name}}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
	// Nor do we invite whom we do not know to be banned: that waits.
	soon, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := p.b.Invite(soon, rooms.MemberRequest{Room: p.room, Sender: p.b.user("bob"), Target: p.a.user("alice")}); err == nil {
		t.Error("invited without knowing whether they are in")
	}
	p.complete(p.b.user("bob"))
	p.agree()
}

// Who was put out while the state is partial is out; that they were put out by somebody who could not is found out.
func TestPartialJoinKicked(t *testing.T) {
	t.Run("rightly", func(t *testing.T) {
		p := newPartialJoin(t, rooms.CreateRequest{}, nil)
		bob := p.b.user("bob")
		<-p.asked
		p.a.must(p.a.Kick(ctx, rooms.MemberRequest{Room: p.room, Sender: p.a.user("alice"), Target: bob}))
		p.n.settle()
		m, err := p.b.MembershipOf(ctx, p.room, bob)
		if err != nil || m.Membership != "leave" {
			t.Fatal(m, err)
		}
		if _, err := p.b.Members(ctx, rooms.MembersRequest{Room: p.room, User: bob}); err != nil {
			t.Error(err)
		}
	})
	t.Run("wrongly", func(t *testing.T) {
		var joined matrix.EventID
		p := newPartialJoin(t, rooms.CreateRequest{}, func(p *partialJoin) {
			mallory := p.c.user("mallory")
			p.a.set(p.a.user("alice"), p.room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:90}}`, p.a.user("alice"), mallory))
			p.n.settle()
			p.c.join(mallory, p.room, p.a)
			p.n.settle()
			m, err := p.c.MembershipOf(ctx, p.room, mallory)
			if err != nil {
				p.t.Fatal(err)
			}
			joined = m.Event
			p.c.must(p.c.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: mallory}))
		})
		bob := p.b.user("bob")
		p.n.settle()
		snap, err := p.c.Snapshot(ctx, p.room)
		if err != nil {
			t.Fatal(err)
		}
		auth := []matrix.EventID{joined}
		for _, k := range []matrix.StateKey{{Type: "m.room.create"}, {Type: "m.room.power_levels"}, {Type: "m.room.member", Key: string(bob)}} {
			ev, err := snap.State.Event(ctx, k.Type, k.Key)
			if err != nil || ev == nil {
				t.Fatal(k, err)
			}
			auth = append(auth, ev.ID())
		}
		key := string(bob)
		p.send(p.c, event.Proto{Sender: p.c.user("mallory"), Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"leave"}`), AuthEvents: auth})
		m, err := p.b.MembershipOf(ctx, p.room, bob)
		if err != nil || m.Membership != "leave" {
			t.Fatal(m, err)
		}
		p.release()
		for deadline := time.Now().Add(20 * time.Second); p.partial(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the state is not completed")
			}
		}
		if m, err = p.b.MembershipOf(ctx, p.room, bob); err != nil || m.Membership != "join" {
			t.Fatal(m, err)
		}
		p.b.say(bob, p.room, "still here")
		p.agree()
	})
}

// Who was invited is let in: their invite is among the auth events of the join, not in the state that comes with it.
func TestPartialJoinInvited(t *testing.T) {
	for _, v := range supported {
		t.Run(string(v), func(t *testing.T) {
			n := newNetwork(t)
			n.omit = true
			a, b := n.server("a.example"), n.server("b.example")
			alice, bob := a.user("alice"), b.user("bob")
			room := a.create(alice, rooms.CreateRequest{Preset: "private_chat", Version: v, Invite: []matrix.UserID{bob}})
			b.join(bob, room, a)
			n.settle()
			if _, err := b.Members(ctx, rooms.MembersRequest{Room: room, User: bob}); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(a.state(room), b.state(room)); d != "" {
				t.Error(d)
			}
		})
	}
}

// The server that lets us in again has not heard yet that we had left.
func TestPartialRejoinAtOnce(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, nil)
	bob := p.b.user("bob")
	<-p.asked
	// Clearly before the join, as both follow on the same event.
	p.b.must(p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: bob, Timestamp: 1}))
	p.b.join(bob, p.room, p.a)
	p.complete(bob)
	p.agree()
}

// The last event before our join is of a server that is gone, so that nobody can check it.
func TestPartialJoinAfterDeadServer(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, func(p *partialJoin) {
		d := p.n.server("d.example")
		d.join(d.user("dan"), p.room, p.a)
		p.n.settle()
		p.n.mu.Lock()
		delete(p.n.servers, d.name)
		p.n.mu.Unlock()
	})
	// Dan's membership has to be left out, as in a join with all members.
	if got := len(p.complete(p.b.user("bob"))); got != 3 {
		t.Errorf("%d members", got)
	}
	p.b.say(p.b.user("bob"), p.room, "hello")
	p.n.settle()
	if d := cmp.Diff([]string{"hello"}, p.a.texts(p.a.user("alice"), p.room)); d != "" {
		t.Error(d)
	}
}

// Another user of ours joins before the server that lets them in has heard that the first one has left.
func TestRejoinByAnotherAtOnce(t *testing.T) {
	for _, omit := range []bool{true, false} {
		t.Run(fmt.Sprintf("omit %v", omit), func(t *testing.T) {
			p := newPartialJoin(t, rooms.CreateRequest{}, nil)
			bob, bea := p.b.user("bob"), p.b.user("bea")
			if !omit {
				p.n.settle()
				p.complete(bob)
				p.n.mu.Lock()
				p.n.omit = false
				p.n.mu.Unlock()
			}
			p.b.must(p.b.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: bob}))
			p.b.join(bea, p.room, p.a)
			left := func(when string) {
				t.Helper()
				if m, err := p.b.MembershipOf(ctx, p.room, bob); err != nil || m.Membership != "leave" {
					t.Errorf("%s: %q, %v", when, m.Membership, err)
				}
			}
			left("at once")
			p.complete(bea)
			left("in the end")
			p.b.say(bea, p.room, "hello")
			p.agree()
		})
	}
}

// A join that did not last, which this server has not heard of: no server of the room shows it the members. Nobody waits for them,
// and whoever joins does so anew.
func TestPartialJoinRefused(t *testing.T) {
	p := newPartialJoin(t, rooms.CreateRequest{}, nil)
	bob := p.b.user("bob")
	<-p.asked
	p.n.settle()
	for _, other := range []*server{p.a, p.c} {
		p.n.split(other, p.b, true)
	}
	p.a.must(p.a.Kick(ctx, rooms.MemberRequest{Room: p.room, Sender: p.a.user("alice"), Target: bob}))
	p.n.settle()
	for _, other := range []*server{p.a, p.c} {
		p.n.split(other, p.b, false)
	}
	// Of whom is in a room that we hear nothing of, we do not hear either.
	heard := func(when string, want bool) {
		t.Helper()
		users, err := p.b.Sharing(ctx, bob)
		if err != nil || slices.Contains(users, p.c.user("carol")) != want {
			t.Errorf("%s: %v share a room, %v", when, users, err)
		}
		local, err := p.b.LocalSharing(ctx, p.c.user("carol"))
		if err != nil || slices.Contains(local, bob) != want {
			t.Errorf("%s: %v share a room with carol, %v", when, local, err)
		}
	}
	heard("at first", true)
	p.refuse.Store(true)
	began := time.Now()
	p.release()
	// Who waits already is told, and so is who asks later.
	for range 2 {
		if _, err := p.b.Members(ctx, rooms.MembersRequest{Room: p.room, User: bob}); !matrix.HasCode(err, "M_UNKNOWN") {
			t.Fatal("the members of a room that nobody shows us:", err)
		}
	}
	if waited := time.Since(began); waited > 20*time.Second {
		t.Errorf("that took %s", waited)
	}
	heard("while nobody shows us the members", false)
	p.refuse.Store(false)
	p.b.join(bob, p.room, p.a)
	p.n.settle()
	p.complete(bob)
	heard("in the end", true)
	p.b.say(bob, p.room, "back")
	p.n.settle()
	p.agree()
	if m, err := p.a.MembershipOf(ctx, p.room, bob); err != nil || m.Membership != "join" {
		t.Error(m, err)
	}
}
