package feed

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
)

// stateRule is a RequiredStateRequest. spec: MSC4186#requiredstaterequest
type stateRule struct {
	Include     []stateElement `json:"include,omitempty"`
	Exclude     []stateElement `json:"exclude,omitempty"`
	LazyMembers bool           `json:"lazy_members,omitempty"`
}

// stateElement matches state by type and key; nil matches all.
type stateElement struct {
	Type     *string `json:"type,omitzero"`
	StateKey *string `json:"state_key,omitzero"`
}

func (e stateElement) compare(o stateElement) int {
	return cmp.Or(comparePointers(e.Type, o.Type), comparePointers(e.StateKey, o.StateKey))
}

func comparePointers(a, b *string) int {
	switch {
	case a == nil && b == nil:
		return 0
	case a == nil:
		return -1
	case b == nil:
		return 1
	}
	return cmp.Compare(*a, *b)
}

const digestSize = 16

// requiredState is the union of the rules that apply to a room, prepared for matching. Immutable.
type requiredState struct {
	rules  []preparedRule
	text   []byte // the rules as JSON, in a canonical order
	digest [digestSize]byte
}

type preparedRule struct {
	stateRule
	include, exclude stateSet
}

// stateSet answers whether one of many elements matches without looking at each.
type stateSet struct {
	all      bool
	keys     map[matrix.StateKey]bool
	types    map[string]bool // with any key
	anywhere map[string]bool // keys with any type
}

func newStateSet(elements []stateElement) stateSet {
	s := stateSet{keys: make(map[matrix.StateKey]bool), types: make(map[string]bool), anywhere: make(map[string]bool)}
	for _, e := range elements {
		switch {
		case e.Type == nil && e.StateKey == nil:
			s.all = true
		case e.StateKey == nil:
			s.types[*e.Type] = true
		case e.Type == nil:
			s.anywhere[*e.StateKey] = true
		default:
			s.keys[matrix.StateKey{Type: *e.Type, Key: *e.StateKey}] = true
		}
	}
	return s
}

func (s *stateSet) empty() bool {
	return !s.all && len(s.keys) == 0 && len(s.types) == 0 && len(s.anywhere) == 0
}

func (s *stateSet) has(k matrix.StateKey) bool {
	return s.all || s.types[k.Type] || s.keys[k] || s.anywhere[k.Key]
}

// matches reports whether a rule asks for a state event. One that loads members lazily asks only for those that it names.
func (r *preparedRule) matches(k matrix.StateKey) bool {
	if r.LazyMembers && k.Type == "m.room.member" {
		return (r.include.keys[k] || r.include.anywhere[k.Key]) && !r.exclude.has(k)
	}
	return r.include.has(k) && !r.exclude.has(k)
}

// unite makes the superset of rules. spec: MSC4186#combining-required_state
func unite(rules []stateRule) *requiredState {
	// Rules that only differ in what they include become one.
	var merged []stateRule
	for _, r := range rules {
		r.Exclude = sortedElements(r.Exclude)
		i := slices.IndexFunc(merged, func(m stateRule) bool {
			return m.LazyMembers == r.LazyMembers && slices.EqualFunc(m.Exclude, r.Exclude, func(a, b stateElement) bool { return a.compare(b) == 0 })
		})
		if i < 0 {
			i = len(merged)
			merged = append(merged, stateRule{Exclude: r.Exclude, LazyMembers: r.LazyMembers})
		}
		merged[i].Include = append(merged[i].Include, r.Include...)
	}
	texts := make([][]byte, len(merged))
	for i := range merged {
		merged[i].Include = sortedElements(merged[i].Include)
		texts[i], _ = canonicaljson.Marshal(merged[i]) // strings in objects: it cannot fail
	}
	slices.SortFunc(texts, slices.Compare[[]byte])
	text := []byte{'['}
	for i, t := range texts {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, t...)
	}
	text = append(text, ']')
	u := &requiredState{text: text}
	for _, r := range merged {
		u.add(r)
	}
	sum := sha256.Sum256(text)
	copy(u.digest[:], sum[:])
	return u
}

func (s *requiredState) add(r stateRule) {
	s.rules = append(s.rules, preparedRule{r, newStateSet(r.Include), newStateSet(r.Exclude)})
}

func sortedElements(list []stateElement) []stateElement {
	list = slices.SortedFunc(slices.Values(list), stateElement.compare)
	return slices.CompactFunc(list, func(a, b stateElement) bool { return a.compare(b) == 0 })
}

// parseRequiredState reads the text of rules; an empty one stands for rules that are not known any more. The caller sets the digest.
func parseRequiredState(text []byte) (*requiredState, error) {
	s := &requiredState{}
	if len(text) == 0 {
		return s, nil
	}
	var rules []stateRule
	if err := strictjson.Unmarshal(text, &rules); err != nil {
		return nil, err
	}
	s.text = json.RawMessage(slices.Clone(text))
	for _, r := range rules {
		s.add(r)
	}
	return s, nil
}

// matches reports whether a state event is asked for by its type and key; a nil s asks for nothing.
func (s *requiredState) matches(k matrix.StateKey) bool {
	if s == nil {
		return false
	}
	for i := range s.rules {
		if s.rules[i].matches(k) {
			return true
		}
	}
	return false
}

// lazy reports whether members are loaded lazily: a rule says so, and none asks for all of them.
func (s *requiredState) lazy() bool {
	lazy := false
	for i := range s.rules {
		r := &s.rules[i]
		switch {
		case r.LazyMembers:
			lazy = true
		case (r.include.all || r.include.types["m.room.member"]) && len(r.Exclude) == 0:
			return false
		}
	}
	return lazy
}

// allMembers reports whether a rule asks for the memberships of everybody.
func (s *requiredState) allMembers() bool {
	return slices.ContainsFunc(s.rules, func(r preparedRule) bool {
		return !r.LazyMembers && (r.include.all || r.include.types["m.room.member"])
	})
}

// covers reports whether everything that o asks for is surely asked for by s too; a nil s covers nothing.
func (s *requiredState) covers(o *requiredState) bool {
	switch {
	case s == nil:
		return false
	case s.digest == o.digest:
		return true
	}
	for i := range o.rules {
		r := &o.rules[i]
		for _, e := range r.Include {
			if e.Type != nil && e.StateKey != nil {
				if k := (matrix.StateKey{Type: *e.Type, Key: *e.StateKey}); r.matches(k) && !s.matches(k) {
					return false
				}
				continue
			}
			if !slices.ContainsFunc(s.rules, func(have preparedRule) bool { return have.coversWildcard(e, r.LazyMembers) }) {
				return false
			}
		}
	}
	return true
}

// coversWildcard reports whether a rule surely asks for all that an element with a wildcard does.
func (r *preparedRule) coversWildcard(e stateElement, lazy bool) bool {
	if !r.exclude.empty() || r.LazyMembers && !lazy {
		return false
	}
	// A rule that loads members lazily asks for those whose keys it names, not for those that match everything.
	all := r.include.all && !(r.LazyMembers && e.StateKey != nil)
	return all || e.Type != nil && r.include.types[*e.Type] || e.StateKey != nil && r.include.anywhere[*e.StateKey]
}

// pick returns the state events that are asked for, but not those that known asks for too.
func (s *requiredState) pick(ctx context.Context, state rooms.State, known *requiredState) ([]*rooms.Event, error) {
	wanted := func(k matrix.StateKey) bool { return s.matches(k) && !known.matches(k) }
	keys := make(map[matrix.StateKey]bool)
	types := make(map[string]bool)
	everywhere, allMembers := false, false
	for i := range s.rules {
		in := &s.rules[i].include
		for k := range in.keys {
			if wanted(k) {
				keys[k] = true
			}
		}
		for t := range in.types {
			if t != "m.room.member" || !s.rules[i].LazyMembers {
				types[t] = true
			}
		}
		for k := range in.anywhere {
			everywhere = true
			if member := (matrix.StateKey{Type: "m.room.member", Key: k}); wanted(member) {
				keys[member] = true
			}
		}
		everywhere = everywhere || in.all
		allMembers = allMembers || in.all && !s.rules[i].LazyMembers
	}
	out := make([]*rooms.Event, 0, len(keys))
	list := make([]matrix.StateKey, 0, len(keys))
	for k := range keys {
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b matrix.StateKey) int { return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Key, b.Key)) })
	named, err := state.Events(ctx, list...)
	if err != nil {
		return nil, fmt.Errorf("required state: %w", err)
	}
	for _, ev := range named {
		if ev != nil {
			out = append(out, ev)
		}
	}
	if everywhere {
		// A room may have very many members: they are not even looked at where they are loaded lazily.
		rest, err := state.Matching(ctx, func(eventType string) bool {
			return eventType != "m.room.member" || allMembers || types[eventType]
		}, func(k matrix.StateKey) bool { return !keys[k] && wanted(k) })
		if err != nil {
			return nil, fmt.Errorf("required state: %w", err)
		}
		return append(out, rest...), nil
	}
	for _, t := range slices.Sorted(maps.Keys(types)) {
		events, err := state.OfType(ctx, t)
		if err != nil {
			return nil, fmt.Errorf("required state: %w", err)
		}
		for _, ev := range events {
			if k := stateKeyOf(ev); !keys[k] && wanted(k) {
				out = append(out, ev)
			}
		}
	}
	return out, nil
}

func stateKeyOf(ev *rooms.Event) matrix.StateKey {
	key, _ := ev.StateKey()
	return matrix.StateKey{Type: ev.Type(), Key: key}
}
