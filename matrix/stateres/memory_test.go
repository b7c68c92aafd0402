package stateres

import (
	"fmt"
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
