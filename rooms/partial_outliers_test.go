package rooms_test

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// toldWhilePartial is a room that b has joined without its members, of which it does not know that mallory has left.
type toldWhilePartial struct {
	*partialJoin
	joined  matrix.EventID // of mallory
	snap    *rooms.Snapshot
	telling atomic.Bool // c may be asked for states
}

func newToldWhilePartial(t *testing.T) *toldWhilePartial {
	w := &toldWhilePartial{}
	w.partialJoin = newPartialJoin(t, rooms.CreateRequest{}, func(p *partialJoin) {
		mallory, erin := p.a.user("mallory"), p.a.user("erin")
		p.a.join(mallory, p.room)
		p.a.join(erin, p.room)
		p.a.set(p.a.user("alice"), p.room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:100,%q:50}}`, p.a.user("alice"), mallory, erin))
		snap, err := p.a.Snapshot(ctx, p.room)
		if err != nil {
			t.Fatal(err)
		}
		w.joined = snapMember(t, snap, mallory)
		p.a.must(p.a.Leave(ctx, rooms.MemberRequest{Room: p.room, Sender: mallory}))
	})
	<-w.asked
	w.n.settle()
	w.a.join(w.a.user("fred"), w.room)
	w.n.settle()
	var err error
	if w.snap, err = w.a.Snapshot(ctx, w.room); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *toldWhilePartial) state(types ...string) (ids []matrix.EventID) {
	w.t.Helper()
	for _, typ := range types {
		ev, err := w.snap.State.Event(ctx, typ, "")
		if err != nil {
			w.t.Fatal(err)
		}
		ids = append(ids, ev.ID())
	}
	return ids
}

// tell has c send an event that follows on one which b lacks, and tell the state there: the present one with some events in place of others.
func (w *toldWhilePartial) tell(after *event.Event, events ...*event.Event) (follows *event.Event) {
	w.t.Helper()
	alice := w.a.user("alice")
	lacked := w.a.forge(w.room, event.Proto{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"lacked"}`),
		PrevEvents: []matrix.EventID{after.ID()}, Depth: after.Depth() + 1})
	follows = w.a.forge(w.room, event.Proto{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"follows"}`),
		PrevEvents: []matrix.EventID{lacked.ID()}, Depth: lacked.Depth() + 1})
	all, err := w.snap.State.All(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	slot := func(ev *event.Event) string {
		key, _ := ev.StateKey()
		return ev.Type() + "|" + key
	}
	told := map[string]matrix.EventID{}
	for _, ev := range all {
		told[slot(ev.Event)] = ev.ID()
	}
	given := map[matrix.EventID][]byte{lacked.ID(): lacked.JSON()}
	var auth []matrix.EventID
	for _, ev := range events {
		told[slot(ev)] = ev.ID()
		given[ev.ID()] = ev.JSON()
		auth = append(auth, ev.AuthEvents()...)
	}
	var ids []matrix.EventID
	for _, id := range told {
		ids = append(ids, id)
	}
	held := w.n.hold
	w.n.mu.Lock()
	w.n.hold = func(from, to matrix.ServerName, call string) error {
		if to == w.c.name && w.telling.Load() {
			return nil
		}
		return held(from, to, call)
	}
	w.n.mu.Unlock()
	w.telling.Store(true)
	w.n.stateIDs = func() (state, chain []matrix.EventID) { return ids, auth }
	w.n.event = func(id matrix.EventID) []byte { return given[id] }
	if r := w.b.receive(w.c, w.room, follows.JSON()); r[0].Err != nil {
		w.t.Fatal(r[0].Err)
	}
	w.telling.Store(false)
	w.n.stateIDs, w.n.event = nil, nil
	if !w.partial() {
		w.t.Fatal("the state is whole already")
	}
	return follows
}

// ends checks what a state has, and has not, once it is whole; also after a restart.
func (w *toldWhilePartial) ends(has map[string]matrix.EventID, hasNot ...*event.Event) {
	w.t.Helper()
	w.complete(w.b.user("bob"))
	for _, when := range []string{"when it is whole", "after a restart"} {
		state := w.b.state(w.room)
		for key, id := range has {
			if !slices.Contains(state, key+"="+string(id)) {
				w.t.Errorf("%s: %s is not %s in %v", when, key, id, state)
			}
		}
		for _, ev := range hasNot {
			if slices.ContainsFunc(state, func(s string) bool { return strings.HasSuffix(s, "="+string(ev.ID())) }) {
				w.t.Errorf("%s: %s by %s is in the state", when, ev.Type(), ev.Sender())
			}
			stored, err := w.b.Event(ctx, ev.ID())
			if err != nil {
				w.t.Fatal(err)
			}
			if !stored.Rejected || stored.Partial {
				w.t.Errorf("%s: %s by %s is rejected %v, partial %v", when, ev.Type(), ev.Sender(), stored.Rejected, stored.Partial)
			}
		}
		w.b.restart()
	}
}

// What another server tells of a state while ours is partial may build on what a partial state has rejected: that is not held against it.
func TestOutliersUponProvisionalRejection(t *testing.T) {
	w := newToldWhilePartial(t)
	mallory, erin, fred := w.a.user("mallory"), w.a.user("erin"), w.a.user("fred")
	base := w.state("m.room.create", "m.room.power_levels")
	who, whom := string(erin), string(fred)
	erinIn, fredIn := snapMember(t, w.snap, erin), snapMember(t, w.snap, fred)
	ban := w.send(w.a, event.Proto{Sender: mallory, Type: "m.room.member", StateKey: &who, Content: []byte(`{"membership":"ban"}`), AuthEvents: append(slices.Clone(base), w.joined, erinIn)})
	kick := w.send(w.a, event.Proto{Sender: erin, Type: "m.room.member", StateKey: &whom, Content: []byte(`{"membership":"leave"}`),
		PrevEvents: []matrix.EventID{ban.ID()}, Depth: ban.Depth() + 1, AuthEvents: append(slices.Clone(base), erinIn, fredIn)})
	if stored, err := w.b.Event(ctx, kick.ID()); err != nil || !stored.Rejected {
		t.Fatal(stored, err)
	}
	back := w.a.forge(w.room, event.Proto{Sender: fred, Type: "m.room.member", StateKey: &whom, Content: []byte(`{"membership":"join","displayname":"again"}`),
		PrevEvents: []matrix.EventID{kick.ID()}, Depth: kick.Depth() + 1, AuthEvents: append(w.state("m.room.create", "m.room.power_levels", "m.room.join_rules"), kick.ID())})
	follows := w.tell(back, back)
	w.ends(map[string]matrix.EventID{"m.room.member|" + whom: back.ID(), "m.room.member|" + who: erinIn}, ban)
	if !w.seen(follows.ID()) {
		t.Error("what followed is not seen")
	}
}

// And what a partial state has rejected may itself be in the state that is told.
func TestStateToldWithProvisionalRejection(t *testing.T) {
	w := newToldWhilePartial(t)
	mallory, erin := w.a.user("mallory"), w.a.user("erin")
	base := w.state("m.room.create", "m.room.power_levels")
	who := string(erin)
	erinIn := snapMember(t, w.snap, erin)
	ban := w.send(w.a, event.Proto{Sender: mallory, Type: "m.room.member", StateKey: &who, Content: []byte(`{"membership":"ban"}`), AuthEvents: append(slices.Clone(base), w.joined, erinIn)})
	topic := w.send(w.a, event.Proto{Sender: erin, Type: "m.room.topic", StateKey: new(string), Content: []byte(`{"topic":"erin's"}`),
		PrevEvents: []matrix.EventID{ban.ID()}, Depth: ban.Depth() + 1, AuthEvents: append(slices.Clone(base), erinIn)})
	follows := w.tell(topic, topic)
	w.ends(map[string]matrix.EventID{"m.room.topic|": topic.ID(), "m.room.member|" + who: erinIn}, ban)
	state, _, err := w.b.ServeStateIDs(ctx, w.c.name, w.room, follows.ID())
	if err != nil || !slices.Contains(state, topic.ID()) {
		t.Errorf("the state at what followed is %v without %s (%v)", state, topic.ID(), err)
	}
}

// What was allowed by a partial state only gives no power to anything that another server tells meanwhile.
func TestOutliersUponProvisionalAcceptance(t *testing.T) {
	w := newToldWhilePartial(t)
	alice, mallory, fred := w.a.user("alice"), w.a.user("mallory"), w.a.user("fred")
	base := w.state("m.room.create", "m.room.power_levels")
	coup := w.send(w.a, event.Proto{Sender: mallory, Type: "m.room.power_levels", StateKey: new(string), Content: fmt.Appendf(nil, `{"users":{%q:100,%q:100,%q:100}}`, alice, mallory, fred),
		AuthEvents: append(slices.Clone(base), w.joined)})
	if stored, err := w.b.Event(ctx, coup.ID()); err != nil || stored.Rejected {
		t.Fatal(stored, err)
	}
	spoils := w.a.forge(w.room, event.Proto{Sender: fred, Type: "m.room.topic", StateKey: new(string), Content: []byte(`{"topic":"mine"}`),
		PrevEvents: []matrix.EventID{coup.ID()}, Depth: coup.Depth() + 1, AuthEvents: []matrix.EventID{base[0], coup.ID(), snapMember(t, w.snap, fred)}})
	loot := w.a.forge(w.room, event.Proto{Sender: fred, Type: "m.room.power_levels", StateKey: new(string), Content: fmt.Appendf(nil, `{"users":{%q:100,%q:100,%q:100},"invite":50}`, alice, mallory, fred),
		PrevEvents: []matrix.EventID{spoils.ID()}, Depth: spoils.Depth() + 1, AuthEvents: []matrix.EventID{base[0], coup.ID(), snapMember(t, w.snap, fred)}})
	follows := w.tell(loot, spoils, loot)
	last := w.send(w.a, event.Proto{Sender: fred, Type: "m.room.name", StateKey: new(string), Content: []byte(`{"name":"mine"}`),
		PrevEvents: []matrix.EventID{follows.ID()}, Depth: follows.Depth() + 1, AuthEvents: []matrix.EventID{base[0], loot.ID(), snapMember(t, w.snap, fred)}})
	w.ends(map[string]matrix.EventID{"m.room.power_levels|": base[1]}, coup, spoils, loot, last)
	state, _, err := w.b.ServeStateIDs(ctx, w.c.name, w.room, follows.ID())
	if err != nil || slices.Contains(state, loot.ID()) || slices.Contains(state, spoils.ID()) {
		t.Errorf("the state at what followed is %v with what was rejected (%v)", state, err)
	}
}

// Any number of events that a partial state has wrongly allowed do not keep a room from becoming whole.
func TestManyEventsWronglyAllowed(t *testing.T) {
	w := newToldWhilePartial(t)
	mallory := w.a.user("mallory")
	auth := append(w.state("m.room.create", "m.room.power_levels"), w.joined)
	last := w.a.forge(w.room, event.Proto{Sender: mallory, Type: "m.room.message", AuthEvents: auth})
	var pdus [][]byte
	for range 2100 {
		pdus = append(pdus, last.JSON())
		last = w.a.forge(w.room, event.Proto{Sender: mallory, Type: "m.room.message", AuthEvents: auth, PrevEvents: []matrix.EventID{last.ID()}, Depth: last.Depth() + 1})
	}
	for batch := range slices.Chunk(pdus, 700) {
		for _, r := range w.b.receive(w.a, w.room, batch...) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
	w.complete(w.b.user("bob"))
	if w.partial() {
		t.Fatal("the state is still partial")
	}
	w.agree()
	if got, want := w.b.tips(w.room), w.a.tips(w.room); !slices.Equal(got, want) {
		t.Errorf("goes on from %v, not %v", got, want)
	}
}
