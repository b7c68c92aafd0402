package stateres

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
)

// world is a room as one server sees it: all events, and the state after each,
// computed the simple way: as whole maps.
type world struct {
	version  *roomversion.Version
	room     matrix.RoomID
	entries  map[Ref]*Entry
	auth     map[Ref][]Ref
	byID     map[matrix.EventID]Ref
	after    map[Ref]state // the state after each event
	now      matrix.Timestamp
	next     func() Ref
	resolve  func(w *world, states []state) (state, error)
	resolved int          // how often there was something to resolve
	lost     map[Ref]bool // events that the server does not have
	refused  map[Ref]bool // events that did not pass the checks on receipt
	broken   string       // the rule that the oracle is to ignore, see coverage_test.go
}

// state is a whole room state.
type state map[matrix.StateKey]Ref

func newWorld(version roomversion.ID) *world {
	v, ok := roomversion.Get(version)
	if !ok {
		panic("unknown version " + version)
	}
	var last Ref
	return &world{
		version: v,
		entries: make(map[Ref]*Entry),
		auth:    make(map[Ref][]Ref),
		byID:    make(map[matrix.EventID]Ref),
		after:   make(map[Ref]state),
		now:     1_700_000_000_000,
		lost:    make(map[Ref]bool),
		refused: make(map[Ref]bool),
		next:    func() Ref { last++; return last },
		resolve: (*world).resolveDifferences,
	}
}

// draft is an event to be added to a world.
type draft struct {
	sender    matrix.UserID
	eventType string
	stateKey  *string
	content   string
	prev      []Ref
	auth      []Ref            // nil: as selected from the state before
	ts        matrix.Timestamp // 0: later than all others
	before    state            // nil: as resolved
}

func text(s string) *string { return &s }

// add builds an event, checks it against the state before it, and computes the
// state after it. A rejected event is added too: it leaves the state as it was.
func (w *world) add(d draft) (Ref, *eventauth.Rejection, error) {
	before := d.before
	if before == nil {
		states := make([]state, len(d.prev))
		for i, p := range d.prev {
			states[i] = w.after[p]
		}
		var err error
		if before, err = w.join(states); err != nil {
			return 0, nil, err
		}
	}
	e, auth, err := w.build(d, before)
	if err != nil {
		return 0, nil, err
	}
	if ref, ok := w.byID[e.ID()]; ok {
		return ref, nil, nil
	}
	rejection, err := w.check(e, auth, before)
	if err != nil {
		return 0, nil, err
	}
	ref := w.next()
	w.entries[ref] = &Entry{Event: e, Rejected: rejection != nil}
	w.auth[ref] = auth
	w.byID[e.ID()] = ref
	w.refused[ref] = rejection != nil
	after := before
	if e.IsState() && rejection == nil {
		after = maps.Clone(before)
		if after == nil {
			after = make(state)
		}
		key, _ := keyOf(w.entries[ref])
		after[key] = ref
	}
	w.after[ref] = after
	return ref, rejection, nil
}

// build makes the event of a draft.
func (w *world) build(d draft, before state) (*event.Event, []Ref, error) {
	auth := d.auth
	if auth == nil {
		auth = w.selected(d, before)
	}
	w.now += 1000
	p := event.Proto{
		RoomID: w.room, Sender: d.sender, Type: d.eventType, StateKey: d.stateKey,
		Content: []byte(d.content), OriginServerTS: w.now,
	}
	if d.ts != 0 {
		p.OriginServerTS = d.ts
	}
	for _, r := range d.prev {
		e := w.entries[r].Event
		p.PrevEvents = append(p.PrevEvents, e.ID())
		p.Depth = max(p.Depth, e.Depth()+1)
	}
	for _, r := range auth {
		p.AuthEvents = append(p.AuthEvents, w.entries[r].Event.ID())
	}
	if d.eventType == "m.room.create" && !w.version.RoomIDIsCreateHash {
		p.RoomID = "!room:" + matrix.RoomID(d.sender.Server())
	}
	e, err := event.Build(w.version, p, d.sender.Server())
	if err != nil {
		return nil, nil, err
	}
	if w.room == "" {
		w.room = e.RoomID()
	}
	return e, auth, nil
}

// selected is which events of a state are to be a draft's auth events.
func (w *world) selected(d draft, s state) []Ref {
	auth := []Ref{}
	for _, k := range w.keysFor(d) {
		if ref := s[k]; ref != 0 {
			auth = append(auth, ref)
		}
	}
	return auth
}

// keysFor are the keys of a draft's auth events.
func (w *world) keysFor(d draft) []matrix.StateKey {
	key := ""
	if d.stateKey != nil {
		key = *d.stateKey
	}
	return eventauth.Select(w.version, d.eventType, key, d.stateKey != nil, d.sender, []byte(d.content))
}

// mustAdd adds an event without any checks, and without computing the state after it.
func (w *world) mustAdd(tb testing.TB, d draft) Ref {
	tb.Helper()
	e, auth, err := w.build(d, d.before)
	if err != nil {
		tb.Fatal(err)
	}
	ref := w.next()
	w.entries[ref], w.auth[ref] = &Entry{Event: e}, auth
	return ref
}

// check runs the checks on receipt: against the auth events, then against the state before.
func (w *world) check(e *event.Event, auth []Ref, before state) (*eventauth.Rejection, error) {
	events := make([]*event.Event, len(auth))
	for i, r := range auth {
		events[i] = w.entries[r].Event
	}
	create := w.events(before)[matrix.StateKey{Type: "m.room.create"}]
	byAuth := eventauth.EventsOf(events...)
	if create != nil {
		byAuth[matrix.StateKey{Type: "m.room.create"}] = create
	}
	rejected := func(id matrix.EventID) bool { return w.entries[w.byID[id]].Rejected }
	err := eventauth.CheckAuthEvents(e, events, rejected, create)
	if err == nil {
		err = eventauth.Check(e, byAuth)
	}
	if err == nil {
		err = eventauth.Check(e, w.events(before))
	}
	if rejection := (*eventauth.Rejection)(nil); errors.As(err, &rejection) {
		return rejection, nil
	}
	return nil, err
}

func (w *world) events(s state) eventauth.Events {
	events := make(eventauth.Events, len(s))
	for key, ref := range s {
		events[key] = w.entries[ref].Event
	}
	return events
}

// join is the state before an event with these states after its prev events.
func (w *world) join(states []state) (state, error) {
	if len(states) == 0 {
		return nil, nil
	}
	for _, s := range states[1:] {
		if !maps.Equal(s, states[0]) {
			w.resolved++
			return w.resolve(w, states)
		}
	}
	return states[0], nil
}

// resolveDifferences splits states into what they share and what they do not,
// and resolves the difference.
func (w *world) resolveDifferences(states []state) (state, error) {
	conflicts, shared := split(states)
	won, err := Resolve(w.version, conflicts, nil, &source{world: w, shared: shared})
	if err != nil {
		return nil, err
	}
	return apply(shared, won), nil
}

func split(states []state) (conflicts []Conflict, shared state) {
	shared = make(state)
	keys := make(map[matrix.StateKey]bool)
	for _, s := range states {
		for key := range s {
			keys[key] = true
		}
	}
	for key := range keys {
		values := make([]Ref, len(states))
		equal := true
		for i, s := range states {
			values[i] = s[key]
			equal = equal && values[i] == values[0]
		}
		if equal {
			shared[key] = values[0]
		} else {
			conflicts = append(conflicts, Conflict{key, values})
		}
	}
	return conflicts, shared
}

func apply(shared state, won map[matrix.StateKey]Ref) state {
	result := maps.Clone(shared)
	for key, ref := range won {
		if ref != 0 {
			result[key] = ref
		}
	}
	return result
}

// source lets a world be asked by Resolve.
type source struct {
	*world
	shared state
}

var _ Source = (*source)(nil)

func (s *source) Events(refs []Ref) ([]Entry, error) {
	entries := make([]Entry, len(refs))
	for i, ref := range refs {
		if ref == 0 {
			return nil, fmt.Errorf("asked for event 0")
		}
		if e := s.entries[ref]; e != nil && !s.lost[ref] {
			entries[i] = *e
		}
	}
	return entries, nil
}

func (s *source) AuthEvents(refs []Ref) ([][]Ref, error) {
	lists := make([][]Ref, len(refs))
	for i, ref := range refs {
		if !s.lost[ref] {
			lists[i] = s.auth[ref]
		}
	}
	return lists, nil
}

func (s *source) Unconflicted(key matrix.StateKey) (Ref, error) { return s.shared[key], nil }

func (s *source) Shared(targets []Ref, yield func(Ref) bool) error {
	for _, key := range slices.SortedFunc(maps.Keys(s.shared), compareKeys) {
		if !yield(s.shared[key]) {
			break
		}
	}
	return nil
}
