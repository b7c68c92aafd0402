package stateres

import (
	"cmp"
	"crypto/sha1"
	"errors"
	"maps"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
)

// resolveWhole is state resolution v2 and v2.1 word for word, on whole states and
// whole auth chains: what Resolve is held against.
func (w *world) resolveWhole(states []state) (state, error) {
	conflicts, unconflicted := split(states)
	conflicted := make(map[Ref]bool)
	for _, c := range conflicts {
		for _, ref := range c.Values {
			if ref != 0 {
				conflicted[ref] = true
			}
		}
	}
	full := maps.Clone(conflicted)
	if w.obeys(ruleAuthDifference) {
		for ref := range w.authDifference(states) {
			full[ref] = true
		}
	}
	start, v21 := unconflicted, w.version.StateResolution == roomversion.StateResolutionV2_1
	if v21 == w.obeys(ruleStart) {
		start = state{}
	}
	if v21 && w.obeys(ruleSubgraph) {
		for ref := range w.conflictedSubgraph(conflicted) {
			full[ref] = true
		}
	}

	// 1.
	x := make(map[Ref]bool)
	for ref := range full {
		if w.isPower(w.entries[ref].Event) {
			x[ref] = true
			if w.obeys(rulePowerChains) {
				w.addWithin(x, ref, full)
			}
		}
	}
	// 2.
	partial, err := w.iterate(start, w.reverseTopological(x, unconflicted), unconflicted)
	if err != nil {
		return nil, err
	}
	// 3.
	var rest []Ref
	for ref := range full {
		if !x[ref] {
			rest = append(rest, ref)
		}
	}
	w.sortByMainline(rest, partial[matrix.StateKey{Type: "m.room.power_levels"}])
	// 4.
	resolved, err := w.iterate(partial, rest, unconflicted)
	if err != nil {
		return nil, err
	}
	// 5.
	if w.obeys(ruleUnconflicted) {
		maps.Copy(resolved, unconflicted)
	} else {
		for key, ref := range unconflicted {
			if resolved[key] == 0 {
				resolved[key] = ref
			}
		}
	}
	return resolved, nil
}

func (w *world) isPower(e *event.Event) bool {
	switch e.Type() {
	case "m.room.power_levels":
		return w.obeys(rulePowerLevels)
	case "m.room.join_rules":
		return w.obeys(rulePowerRules)
	case "m.room.member":
		target, _ := e.StateKey()
		if target == string(e.Sender()) && w.obeys(rulePowerOthers) {
			return false
		}
		return e.Membership() == "ban" && w.obeys(rulePowerBans) || e.Membership() == "leave" && w.obeys(rulePowerKicks)
	}
	return false
}

// resolveWholeV1 is state resolution v1 in the same way. The specification leaves
// open what stands if no event of a key is allowed (the first one does), and whether
// keys of one type see each other's result (they do not).
func (w *world) resolveWholeV1(states []state) (state, error) {
	r := make(state)
	conflicting := make(map[matrix.StateKey][]Ref)
	for _, s := range states {
		for key, ref := range s {
			switch list := conflicting[key]; {
			case slices.Contains(list, ref):
			default:
				conflicting[key] = append(list, ref)
			}
		}
	}
	for key, list := range conflicting {
		if len(list) == 1 {
			r[key] = list[0]
			delete(conflicting, key)
		}
	}
	sha := func(ref Ref) string {
		sum := sha1.Sum([]byte(w.entries[ref].Event.ID()))
		return string(sum[:])
	}
	allowed := func(ref Ref, s state) bool {
		return eventauth.Check(w.entries[ref].Event, w.events(s)) == nil
	}
	passes := []string{"m.room.power_levels", "m.room.join_rules", "m.room.member", ""}
	if !w.obeys(rule1Rules) {
		passes[1], passes[2] = passes[2], passes[1]
	}
	if !w.obeys(rule1Levels) {
		passes[0], passes[2] = passes[2], passes[0]
	}
	for _, pass := range passes {
		base := maps.Clone(r)
		for key, list := range conflicting {
			// By ascending depth, then descending hash.
			slices.SortFunc(list, func(a, b Ref) int {
				return cmp.Or(cmp.Compare(w.entries[a].Event.Depth(), w.entries[b].Event.Depth()), cmp.Compare(sha(b), sha(a)))
			})
			if !w.obeys(rule1Depth) {
				slices.Reverse(list)
			}
			s := maps.Clone(base)
			switch {
			case pass == "" && r[key] == 0:
				r[key] = list[0]
				for _, ref := range list {
					if allowed(ref, s) || !w.obeys(rule1Allowed) {
						r[key] = ref // the highest one stays
					}
				}
			case key.Type == pass:
				s[key] = list[0]
				for _, ref := range list[1:] {
					if allowed(ref, s) || !w.obeys(rule1Check) {
						s[key] = ref
					} else if w.obeys(rule1Stop) {
						break
					}
				}
				r[key] = s[key]
			}
		}
	}
	return r, nil
}

// chain is the auth chain of an event, without the event.
func (w *world) chain(ref Ref) map[Ref]bool {
	chain := make(map[Ref]bool)
	var walk func(Ref)
	walk = func(ref Ref) {
		for _, a := range w.auth[ref] {
			if !chain[a] {
				chain[a] = true
				walk(a)
			}
		}
	}
	walk(ref)
	return chain
}

func (w *world) authDifference(states []state) map[Ref]bool {
	in := make(map[Ref]int)
	for _, s := range states {
		chain := make(map[Ref]bool)
		for _, ref := range s {
			chain[ref] = true // see fullConflictedSet
			maps.Copy(chain, w.chain(ref))
		}
		for ref := range chain {
			in[ref]++
		}
	}
	difference := make(map[Ref]bool)
	for ref, n := range in {
		if n < len(states) {
			difference[ref] = true
		}
	}
	return difference
}

func (w *world) conflictedSubgraph(conflicted map[Ref]bool) map[Ref]bool {
	subgraph := make(map[Ref]bool)
	for from := range conflicted {
		for between := range w.chain(from) {
			for to := range w.chain(between) {
				if conflicted[to] {
					subgraph[between] = true
				}
			}
		}
	}
	return subgraph
}

// addWithin adds to x what leads to an event without leaving a set.
func (w *world) addWithin(x map[Ref]bool, ref Ref, set map[Ref]bool) {
	for _, a := range w.auth[ref] {
		if set[a] && !x[a] {
			x[a] = true
			w.addWithin(x, a, set)
		}
	}
}

func (w *world) reverseTopological(set map[Ref]bool, unconflicted state) []Ref {
	left := maps.Clone(set)
	var order []Ref
	for len(left) > 0 {
		var best Ref
	next:
		for ref := range left {
			for _, a := range w.auth[ref] {
				if left[a] && w.obeys(ruleTopological) {
					continue next
				}
			}
			if best == 0 || w.powerBefore(ref, best, unconflicted) {
				best = ref
			}
		}
		order = append(order, best)
		delete(left, best)
	}
	return order
}

func (w *world) powerBefore(a, b Ref, unconflicted state) bool {
	byPower := 0
	if w.obeys(ruleGreaterPower) {
		byPower = cmp.Compare(w.level(b, unconflicted), w.level(a, unconflicted))
	}
	return cmp.Or(byPower, w.byClock(rulePowerClock, a, b)) < 0
}

// byClock is the tie-break of an ordering.
func (w *world) byClock(rule string, a, b Ref) int {
	x, y := w.entries[a].Event, w.entries[b].Event
	clock := cmp.Compare(x.OriginServerTS(), y.OriginServerTS())
	if !w.obeys(rule) {
		clock = -clock
	}
	return cmp.Or(clock, cmp.Compare(x.ID(), y.ID()))
}

func (w *world) level(ref Ref, unconflicted state) int64 {
	create := w.entries[unconflicted[matrix.StateKey{Type: "m.room.create"}]].Event
	var powerLevels *event.Event
	for _, a := range w.auth[ref] {
		if e := w.entries[a].Event; e.Type() == "m.room.power_levels" {
			powerLevels = e
		}
	}
	levels, err := eventauth.Levels(create, powerLevels)
	if err != nil {
		return 0
	}
	return levels.User(w.entries[ref].Event.Sender())
}

func (w *world) iterate(start state, events []Ref, unconflicted state) (state, error) {
	s := maps.Clone(start)
	for _, ref := range events {
		e := w.entries[ref].Event
		view := make(eventauth.Events)
		for _, a := range w.auth[ref] {
			if entry := w.entries[a]; w.obeys(ruleAuthEvents) && (!entry.Rejected || !w.obeys(ruleRejected)) {
				key, _ := keyOf(entry)
				view[key] = entry.Event
			}
		}
		create := matrix.StateKey{Type: "m.room.create"}
		view[create] = w.entries[unconflicted[create]].Event
		maps.Copy(view, w.events(s))
		err := eventauth.Check(e, view)
		if !w.obeys(ruleCheck) {
			err = nil
		}
		if err == nil {
			key, _ := keyOf(w.entries[ref])
			s[key] = ref
		} else if rejection := (*eventauth.Rejection)(nil); !errors.As(err, &rejection) {
			return nil, err
		}
	}
	return s, nil
}

func (w *world) sortByMainline(events []Ref, tip Ref) {
	var line []Ref
	for p := tip; p != 0; p = w.previousLevels(p) {
		line = append(line, p)
		if !w.obeys(ruleMainlineBack) {
			break
		}
	}
	position := func(ref Ref) int {
		for p := w.previousLevels(ref); p != 0; p = w.previousLevels(p) {
			if i := slices.Index(line, p); i >= 0 {
				return i
			}
			if !w.obeys(ruleMainlineBranch) {
				break
			}
		}
		return 1 << 30
	}
	slices.SortFunc(events, func(a, b Ref) int {
		byLine := 0
		if w.obeys(ruleMainline) {
			byLine = cmp.Compare(position(b), position(a))
		}
		return cmp.Or(byLine, w.byClock(ruleMainlineClock, a, b))
	})
}

func (w *world) previousLevels(ref Ref) Ref {
	for _, a := range w.auth[ref] {
		if w.entries[a].Event.Type() == "m.room.power_levels" {
			return a
		}
	}
	return 0
}

func compareKeys(a, b matrix.StateKey) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Key, b.Key))
}
