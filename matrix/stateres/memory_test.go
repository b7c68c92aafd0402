package stateres

import (
	"fmt"
	"runtime"
	"testing"

	"hanok/matrix"
)

// What was allowed upon an event is not remembered when that event is in its redacted form.
func TestMemoryOfRedactedEvent(t *testing.T) {
	w := newWorld("6") // whose redactions of power levels leave no level for invites
	s := make(state)
	put := func(d draft) Ref {
		d.before = s
		ref := w.mustAdd(t, d)
		key, _ := keyOf(w.entries[ref])
		s[key] = ref
		return ref
	}
	alice, bob, carol := users[0], users[1], users[2]
	join := func(user matrix.UserID) draft {
		return draft{sender: user, eventType: "m.room.member", stateKey: text(string(user)), content: `{"membership":"join"}`}
	}
	put(draft{sender: alice, eventType: "m.room.create", stateKey: text(""), content: fmt.Sprintf(`{"creator":%q}`, alice)})
	put(join(alice))
	levels := put(draft{sender: alice, eventType: "m.room.power_levels", stateKey: text(""), content: fmt.Sprintf(`{"invite":50,"users":{%q:100}}`, alice)})
	put(join(bob))
	key := matrix.StateKey{Type: "m.room.member", Key: string(carol)}
	invite := put(draft{sender: bob, eventType: key.Type, stateKey: &key.Key, content: `{"membership":"invite"}`})
	delete(s, key)
	memory := NewMemory()
	expect := func(what string, want Ref) {
		t.Helper()
		for range 2 {
			won, err := Resolve(w.version, []Conflict{{key, []Ref{invite, 0}}}, memory, &source{world: w, shared: s})
			if err != nil || won[key] != want {
				t.Errorf("%s: %v, %v", what, won, err)
			}
		}
	}
	expect("as sent", 0)
	e := w.entries[levels]
	sent, again := e.Event, *e.Event
	e.Event = &again
	era := memory.era
	if expect("read again", 0); memory.era != era {
		t.Error("an event that was read again voids what is remembered")
	}
	e.Event = sent.Redact()
	expect("redacted", invite)
	e.Event = nil
	expect("not known", invite)
	e.Event = sent
	expect("known again", 0)
	for _, n := range memory.chains.nodes {
		if n.fact != nil && n.fact.event != nil {
			t.Errorf("event %d itself is kept", n.ref)
		}
	}
}

// What a memory says of its size holds.
func TestMemorySize(t *testing.T) {
	p := newPartition(t, "11", 500)
	conflicts, shared := split([]state{p.sides[0][499], p.sides[1][499]})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	memory := NewMemory()
	if _, err := Resolve(p.version, conflicts, memory, &source{world: p.world, shared: shared}); err != nil {
		t.Fatal(err)
	}
	takes := int(heap() - before)
	t.Logf("%d events take %d bytes, and are said to take %d", len(memory.chains.nodes), takes, memory.Size())
	if said := memory.Size(); takes > said || takes < said/2 {
		t.Errorf("%d bytes are said to be %d", takes, said)
	}
	runtime.KeepAlive(p)
	runtime.KeepAlive(conflicts)
}
