package stateres

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// A chooser decides: it returns a number in [0, n).
type chooser func(n int) int

var users = []matrix.UserID{"@alice:a", "@bob:b", "@carol:c", "@dave:b"}

// grow makes a room of random events with forks, merges, clocks that are wrong, states
// that are out of date, auth events of long ago or rejected.
func grow(w *world, steps int, choose chooser) ([]Ref, error) {
	var all []Ref
	add := func(d draft) error {
		ref, _, err := w.add(d)
		if err == nil && !slices.Contains(all, ref) {
			all = append(all, ref)
		}
		return err
	}
	last := func() []Ref { return all[len(all)-1:] }
	alice := users[0]
	if err := add(draft{sender: alice, eventType: "m.room.create", stateKey: text(""),
		content: fmt.Sprintf(`{"creator":%q,"room_version":%q}`, alice, w.version.ID)}); err != nil {
		return nil, err
	}
	if err := add(draft{sender: alice, eventType: "m.room.member", stateKey: text(string(alice)),
		content: `{"membership":"join"}`, prev: last()}); err != nil {
		return nil, err
	}
	for range steps {
		d := randomEvent(w, choose)
		switch choose(8) {
		case 0: // anywhere
			d.prev = []Ref{all[choose(len(all))]}
		case 1, 2: // merge the newest with any
			d.prev = []Ref{all[len(all)-1], all[choose(len(all))]}
		case 3: // merge three
			d.prev = []Ref{all[len(all)-1], all[choose(len(all))], all[choose(len(all))]}
		case 4: // fork near the end
			d.prev = []Ref{all[max(0, len(all)-1-choose(4))]}
		default:
			d.prev = last()
		}
		slices.Sort(d.prev)
		d.prev = slices.Compact(d.prev)
		if choose(8) == 0 { // an old clock
			d.ts = w.now - matrix.Timestamp(choose(20)*1000)
		}
		if choose(6) == 0 { // a state that was got from a server that is behind
			var err error
			if d.before, err = outdated(w, d.prev, all, choose); err != nil {
				return nil, err
			}
		}
		if choose(6) == 0 { // auth events of long ago
			d.auth = w.selected(d, w.after[all[choose(len(all))]])
		}
		if err := add(d); err != nil {
			return nil, err
		}
		if choose(10) == 0 { // other servers accepted what we reject
			w.entries[all[choose(len(all))]].Rejected = true
		}
		if choose(10) == 0 { // redacted, or read from the database once more
			e := w.entries[all[choose(len(all))]]
			if choose(2) == 0 {
				e.Event = e.Event.Redact()
			} else {
				again := *e.Event
				e.Event = &again
			}
		}
	}
	return all, nil
}

// outdated is the state before an event, with some entries of an older event's.
func outdated(w *world, prev, all []Ref, choose chooser) (state, error) {
	states := make([]state, len(prev))
	for i, p := range prev {
		states[i] = w.after[p]
	}
	s, err := w.join(states)
	if err != nil {
		return nil, err
	}
	s = maps.Clone(s)
	old := w.after[all[choose(len(all))]]
	for _, key := range slices.SortedFunc(maps.Keys(old), compareKeys) {
		if choose(2) == 0 {
			s[key] = old[key]
		}
	}
	return s, nil
}

func randomEvent(w *world, choose chooser) draft {
	sender := users[choose(len(users))]
	target := users[choose(len(users))]
	switch choose(10) {
	case 0, 1:
		return draft{sender: sender, eventType: "m.room.member", stateKey: text(string(sender)),
			content: fmt.Sprintf(`{"membership":"join","displayname":"%d"}`, choose(3))}
	case 2:
		return draft{sender: sender, eventType: "m.room.member", stateKey: text(string(target)),
			content: fmt.Sprintf(`{"membership":%q}`, []string{"leave", "ban", "invite", "knock"}[choose(4)])}
	case 3, 4:
		levels := ""
		for _, u := range users {
			if u == users[0] && w.version.PrivilegedCreators {
				continue
			}
			if level := choose(4) * 50; level > 0 || u == users[0] {
				levels += fmt.Sprintf(`,%q:%d`, u, max(level, 50))
			}
		}
		if levels == "" {
			levels = `,"@x:x":0`
		}
		return draft{sender: sender, eventType: "m.room.power_levels", stateKey: text(""),
			content: fmt.Sprintf(`{"users":{%s},"ban":%d,"invite":%d}`, levels[1:], choose(2)*50, choose(3)*50)}
	case 5:
		return draft{sender: sender, eventType: "m.room.join_rules", stateKey: text(""),
			content: fmt.Sprintf(`{"join_rule":%q}`, []string{"public", "public", "invite", "knock"}[choose(4)])}
	case 6:
		return draft{sender: sender, eventType: "m.room.message", content: fmt.Sprintf(`{"n":%d}`, choose(1000))}
	default:
		return draft{sender: sender, eventType: []string{"m.room.topic", "m.room.name"}[choose(2)], stateKey: text(""),
			content: fmt.Sprintf(`{"n":%d}`, choose(1000))}
	}
}

// bothWays resolves with Resolve and word for word as the specification has it,
// in any order, with any numbers, with and without what earlier resolutions left.
func bothWays(choose chooser) func(w *world, states []state) (state, error) {
	memory := NewMemory()
	return func(w *world, states []state) (state, error) {
		got, err := w.resolveDifferences(states)
		if err != nil {
			return nil, err
		}
		for range 2 {
			conflicts, shared := split(states)
			won, err := Resolve(w.version, conflicts, memory, &source{world: w, shared: shared})
			if err != nil {
				return nil, err
			}
			if remembered := apply(shared, won); !maps.Equal(got, remembered) {
				return nil, fmt.Errorf("resolved state depends on what was resolved before: -without +with\n%s",
					cmp.Diff(w.describe(got), w.describe(remembered)))
			}
		}
		if len(w.lost) == 0 {
			whole := w.resolveWhole
			if w.version.StateResolution == roomversion.StateResolutionV1 {
				whole = w.resolveWholeV1
			}
			want, err := whole(states)
			if err != nil {
				return nil, err
			}
			if !maps.Equal(got, want) {
				return nil, fmt.Errorf("resolved state differs from the specification's: -want +got\n%s",
					cmp.Diff(w.describe(want), w.describe(got)))
			}
		}

		if self, err := w.resolveDifferences([]state{got, got}); err != nil || !maps.Equal(self, got) {
			return nil, fmt.Errorf("a resolved state is not its own resolution: %v\n%s", err, cmp.Diff(w.describe(got), w.describe(self)))
		}
		shuffled := slices.Clone(states)
		shuffle(shuffled, choose)
		shuffled = append(shuffled, states[choose(len(states))]) // once more changes nothing
		again, err := w.renumbered(choose).resolveShuffled(shuffled, choose)
		if err != nil {
			return nil, err
		}
		if !maps.Equal(got, again) {
			return nil, fmt.Errorf("resolved state depends on the order: -one +other\n%s",
				cmp.Diff(w.describe(got), w.describe(again)))
		}
		return got, w.checkOrigin(states, got)
	}
}

// checkOrigin: only events of the states and of their auth chains can come out, and none that was not allowed when it came.
func (w *world) checkOrigin(states []state, resolved state) error {
	possible := make(map[Ref]bool)
	for _, s := range states {
		for _, ref := range s {
			possible[ref] = true
			maps.Copy(possible, w.chain(ref))
		}
	}
	for key, ref := range resolved {
		if !possible[ref] {
			return fmt.Errorf("%v: event %d is of neither state nor auth chain", key, ref)
		}
		if w.refused[ref] {
			return fmt.Errorf("%v: event %d was not allowed", key, ref)
		}
		if got, _ := keyOf(w.entries[ref]); got != key {
			return fmt.Errorf("%v: event %d is for %v", key, ref, got)
		}
	}
	return nil
}

func shuffle[T any](list []T, choose chooser) {
	for i := len(list) - 1; i > 0; i-- {
		j := choose(i + 1)
		list[i], list[j] = list[j], list[i]
	}
}

// numbered is a world under other numbers: that of a server which learned of the events in another order.
type numbered struct {
	*world
	to, from map[Ref]Ref
}

func (w *world) renumbered(choose chooser) numbered {
	refs := slices.Sorted(maps.Keys(w.entries))
	others := w.anyOrder(refs, choose)
	n := numbered{
		world: &world{version: w.version, entries: make(map[Ref]*Entry), auth: make(map[Ref][]Ref), lost: make(map[Ref]bool)},
		to:    make(map[Ref]Ref), from: make(map[Ref]Ref),
	}
	for i, ref := range refs {
		// The event that comes at this place gets the number of the one that stood there.
		n.to[others[i]], n.from[ref] = ref, others[i]
	}
	for ref, e := range w.entries {
		n.entries[n.to[ref]] = e
		n.lost[n.to[ref]] = w.lost[ref]
		for _, a := range w.auth[ref] {
			n.auth[n.to[ref]] = append(n.auth[n.to[ref]], n.to[a])
		}
		shuffle(n.auth[n.to[ref]], choose)
	}
	return n
}

// anyOrder is the events in an order in which a server could have accepted them.
func (w *world) anyOrder(refs []Ref, choose chooser) []Ref {
	waiting := make(map[Ref]int)
	followers := make(map[Ref][]Ref)
	var free, order []Ref
	for _, ref := range refs {
		for _, a := range w.auth[ref] {
			waiting[ref]++
			followers[a] = append(followers[a], ref)
		}
		if waiting[ref] == 0 {
			free = append(free, ref)
		}
	}
	for len(free) > 0 {
		i := choose(len(free))
		ref := free[i]
		free[i] = free[len(free)-1]
		free = free[:len(free)-1]
		order = append(order, ref)
		for _, f := range followers[ref] {
			if waiting[f]--; waiting[f] == 0 {
				free = append(free, f)
			}
		}
	}
	return order
}

func (n numbered) resolveShuffled(states []state, choose chooser) (state, error) {
	translated := make([]state, len(states))
	for i, s := range states {
		translated[i] = make(state, len(s))
		for key, ref := range s {
			translated[i][key] = n.to[ref]
		}
	}
	conflicts, shared := split(translated)
	shuffle(conflicts, choose)
	won, err := Resolve(n.version, conflicts, NewMemory(), &source{world: n.world, shared: shared})
	if err != nil {
		return nil, err
	}
	result := apply(shared, won)
	for key, ref := range result {
		result[key] = n.from[ref]
	}
	return result, nil
}

// describe makes a state readable.
func (w *world) describe(s state) map[string]string {
	out := make(map[string]string)
	for key, ref := range s {
		e := w.entries[ref].Event
		out[key.Type+" "+key.Key] = fmt.Sprintf("%d by %s at %d: %s", ref, e.Sender(), e.OriginServerTS(), e.Content())
	}
	return out
}

func TestRandomRooms(t *testing.T) {
	for _, id := range []roomversion.ID{"1", "2", "6", "11", "12"} {
		t.Run(string(id), func(t *testing.T) {
			resolved := 0
			rapid.Check(t, func(t *rapid.T) {
				choose := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "choice") }
				w := newWorld(id)
				w.resolve = bothWays(choose)
				if _, err := grow(w, rapid.IntRange(1, 40).Draw(t, "steps"), choose); err != nil {
					t.Fatal(err)
				}
				resolved += w.resolved
			})
			if resolved == 0 {
				t.Error("no room had anything to resolve")
			}
		})
	}
}

// FuzzResolve is the same with choices by the fuzzer.
func FuzzResolve(f *testing.F) {
	f.Add("12", []byte("a room with a fork"))
	f.Add("2", []byte{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6})
	f.Fuzz(func(t *testing.T, version string, choices []byte) {
		if _, ok := roomversion.Get(roomversion.ID(version)); !ok || len(choices) > 4096 {
			t.Skip()
		}
		// When the bytes run out, the choices go on as a fixed mixture of what was.
		i, mixed := 0, uint32(2166136261)
		choose := func(n int) int {
			if i < len(choices) {
				mixed = (mixed ^ uint32(choices[i])) * 16777619
				i++
				return int(choices[i-1]) % n
			}
			mixed = mixed*1664525 + 1013904223
			return int(mixed>>8) % n
		}
		w := newWorld(roomversion.ID(version))
		w.resolve = bothWays(choose)
		if _, err := grow(w, 10+len(choices)/8%50, choose); err != nil {
			t.Fatal(err)
		}
	})
}
