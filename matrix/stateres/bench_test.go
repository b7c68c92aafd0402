package stateres

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// bigRoom is a room of many members that two servers split into. On one side
// the power levels change and `conflicts` members rename themselves twice, on the
// other they rename themselves once: the auth difference is not empty, so that
// also the auth chains of the shared state are asked about. Before all that the
// power levels have changed `history` times.
type bigRoom struct {
	*world
	conflicts []Conflict
	shared    state
	sorted    []Ref // the shared events, by number
}

func newBigRoom(tb testing.TB, version roomversion.ID, entries, conflicts, history int) *bigRoom {
	w := newWorld(version)
	s := make(state)
	put := func(s state, d draft) Ref {
		d.before = s
		ref := w.mustAdd(tb, d)
		key, _ := keyOf(w.entries[ref])
		s[key] = ref
		return ref
	}
	member := func(i, rename int) draft {
		user := fmt.Sprintf("@member%d:server%d", i, i%100)
		return draft{sender: matrix.UserID(user), eventType: "m.room.member", stateKey: text(user),
			content: fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, rename)}
	}
	alice := users[0]
	levels := draft{sender: alice, eventType: "m.room.power_levels", stateKey: text(""), content: `{"users":{"@bob:b":50}}`}
	put(s, draft{sender: alice, eventType: "m.room.create", stateKey: text(""), content: fmt.Sprintf(`{"creator":%q}`, alice)})
	put(s, draft{sender: alice, eventType: "m.room.member", stateKey: text(string(alice)), content: `{"membership":"join"}`,
		prev: []Ref{s[matrix.StateKey{Type: "m.room.create"}]}})
	put(s, draft{sender: alice, eventType: "m.room.join_rules", stateKey: text(""), content: `{"join_rule":"public"}`})
	if version == "11" {
		levels.content = `{"users":{"@alice:a":100,"@bob:b":50}}`
	}
	put(s, levels)
	for i := range history {
		again := levels
		again.content = fmt.Sprintf(`%s,"redact":%d}`, levels.content[:len(levels.content)-1], i)
		put(s, again)
	}
	for i := range entries - len(s) {
		put(s, member(i, 0))
	}

	one, other := make(state), make(state)
	fork := func(changed state, d draft) {
		before := make(state) // of the size of what is looked at
		for _, key := range w.keysFor(d) {
			before[key] = s[key]
			if ref := changed[key]; ref != 0 {
				before[key] = ref
			}
		}
		key := matrix.StateKey{Type: d.eventType, Key: *d.stateKey}
		changed[key] = put(before, d)
	}
	levels.content = levels.content[:len(levels.content)-1] + `,"kick":60}`
	fork(one, levels)
	for i := range conflicts - 1 {
		fork(one, member(i, 1))
		fork(one, member(i, 2))
		fork(other, member(i, 3))
	}
	b := &bigRoom{world: w, shared: s}
	for _, key := range slices.SortedFunc(maps.Keys(one), compareKeys) {
		c := Conflict{key, []Ref{one[key], other[key]}}
		for i := range c.Values {
			if c.Values[i] == 0 {
				c.Values[i] = s[key]
			}
		}
		b.conflicts = append(b.conflicts, c)
		delete(s, key)
	}
	b.sorted = slices.Sorted(maps.Values(s))
	return b
}

// Shared implements Source as a server does that numbers events as it stores them.
func (b *bigRoom) Shared(targets []Ref, yield func(Ref) bool) error {
	lowest := slices.Min(targets)
	for _, ref := range b.sorted {
		if ref > lowest && !yield(ref) {
			break
		}
	}
	return nil
}

func (b *bigRoom) Events(refs []Ref) ([]Entry, error) {
	return (&source{world: b.world}).Events(refs)
}

func (b *bigRoom) AuthEvents(refs []Ref) ([][]Ref, error) {
	return (&source{world: b.world}).AuthEvents(refs)
}

func (b *bigRoom) Unconflicted(key matrix.StateKey) (Ref, error) { return b.shared[key], nil }

func benchmarkResolve(b *testing.B, version roomversion.ID, history int, warm bool) {
	for _, entries := range []int{1_000, 10_000, 100_000} {
		for _, conflicts := range []int{10, 100, 1_000} {
			b.Run(fmt.Sprintf("%d-%d", entries, conflicts), func(b *testing.B) {
				room := newBigRoom(b, version, entries, min(conflicts, entries/2), history)
				memory := NewMemory()
				b.ReportAllocs()
				for b.Loop() {
					if !warm {
						memory = nil
					}
					won, err := Resolve(room.version, room.conflicts, memory, room)
					if err != nil {
						b.Fatal(err)
					}
					for _, c := range room.conflicts {
						// The side that knows the newer power levels is the later one.
						want := c.Values[0]
						if won[c.Key] != want {
							b.Fatalf("%v: got event %d, want %d of %v", c.Key, won[c.Key], want, c.Values)
						}
					}
				}
			})
		}
	}
}

// BenchmarkResolve resolves ENTRIES-CONFLICTS with what the room's last resolution left.
func BenchmarkResolve(b *testing.B) { benchmarkResolve(b, "12", 0, true) }

// BenchmarkResolveCold has nothing in memory, in a room whose auth chains are 10,000 events long.
func BenchmarkResolveCold(b *testing.B) { benchmarkResolve(b, "12", 10_000, false) }

// BenchmarkResolveV2 is BenchmarkResolve in room version 11.
func BenchmarkResolveV2(b *testing.B) { benchmarkResolve(b, "11", 0, true) }

// What is looked up follows the size of the conflict, neither that of the room nor that of its history.
func TestWorkFollowsConflict(t *testing.T) {
	for _, version := range []roomversion.ID{"11", "12"} {
		var events, auth []int
		for _, size := range []struct{ entries, history int }{{100, 0}, {2_000, 0}, {100, 500}} {
			room := newBigRoom(t, version, size.entries, 10, size.history)
			c := &counting{Source: room}
			if _, err := Resolve(room.version, room.conflicts, nil, c); err != nil {
				t.Fatal(err)
			}
			events, auth = append(events, c.events), append(auth, c.auth)
		}
		// Nine members have three new events and one of before, there are two power levels, and a few that all need.
		for i := range events {
			if events[i] > 9*4+2+6 || auth[i] > 9*4+2+6 {
				t.Errorf("v%s: asked for %v events, for the auth events of %v", version, events, auth)
			}
		}
	}
}

// counting counts the events that are asked for.
type counting struct {
	Source
	events, auth int
}

func (c *counting) Events(refs []Ref) ([]Entry, error) {
	c.events += len(refs)
	return c.Source.Events(refs)
}

func (c *counting) AuthEvents(refs []Ref) ([][]Ref, error) {
	c.auth += len(refs)
	return c.Source.AuthEvents(refs)
}

// partition is a room in which two servers change power levels and ban people by turns, as many times as there are states of either, without hearing of each other.
// sides are the states after each event.
type partition struct {
	*world
	sides [2][]state
}

func newPartition(tb testing.TB, version roomversion.ID, length int) *partition {
	p := &partition{world: newWorld(version)}
	s := make(state)
	put := func(s state, d draft) {
		d.before = s
		ref := p.mustAdd(tb, d)
		key, _ := keyOf(p.entries[ref])
		s[key] = ref
	}
	sides := [2]matrix.UserID{users[0], users[1]}
	creator := ""
	if !p.version.PrivilegedCreators {
		creator = fmt.Sprintf("%q:100,", sides[0])
	}
	levels := func(sender matrix.UserID, n int) draft {
		return draft{sender: sender, eventType: "m.room.power_levels", stateKey: text(""),
			content: fmt.Sprintf(`{"users":{%s%q:100},"events":{"m.room.topic":%d}}`, creator, sides[1], n%50)}
	}
	member := func(sender matrix.UserID, target, membership string) draft {
		return draft{sender: sender, eventType: "m.room.member", stateKey: &target, content: fmt.Sprintf(`{"membership":%q}`, membership)}
	}
	put(s, draft{sender: sides[0], eventType: "m.room.create", stateKey: text(""), content: fmt.Sprintf(`{"creator":%q}`, sides[0])})
	put(s, draft{sender: sides[0], eventType: "m.room.member", stateKey: text(string(sides[0])), content: `{"membership":"join"}`,
		prev: []Ref{s[matrix.StateKey{Type: "m.room.create"}]}})
	put(s, draft{sender: sides[0], eventType: "m.room.join_rules", stateKey: text(""), content: `{"join_rule":"public"}`})
	put(s, levels(sides[0], 0))
	put(s, member(sides[1], string(sides[1]), "join"))
	heads := [2]state{maps.Clone(s), maps.Clone(s)}
	for n := range length {
		for side, sender := range sides {
			if n%2 == 0 {
				put(heads[side], levels(sender, 1+side+n))
			} else {
				put(heads[side], member(sender, fmt.Sprintf("@spammer%d:c", n), "ban"))
			}
			p.sides[side] = append(p.sides[side], maps.Clone(heads[side]))
		}
	}
	return p
}

// BenchmarkResolvePartition resolves the one side of a partition of that many events on each with the other, of which one event after
// the other becomes known.
func BenchmarkResolvePartition(b *testing.B) {
	for _, version := range []roomversion.ID{"1", "11", "12"} {
		for _, length := range []int{100, 400, 1600} {
			b.Run(fmt.Sprintf("v%s-%d", version, length), func(b *testing.B) {
				p := newPartition(b, version, length)
				type step struct {
					conflicts []Conflict
					source    *source
				}
				var steps []step
				for _, other := range p.sides[1][length-min(length/5, 20):] {
					conflicts, shared := split([]state{p.sides[0][length-1], other})
					slices.SortFunc(conflicts, func(a, b Conflict) int { return compareKeys(a.Key, b.Key) })
					steps = append(steps, step{conflicts, &source{world: p.world, shared: shared}})
				}
				memory := NewMemory()
				next := 0
				b.ReportAllocs()
				for b.Loop() {
					step := steps[next]
					next = (next + 1) % len(steps)
					if _, err := Resolve(p.version, step.conflicts, memory, step.source); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
