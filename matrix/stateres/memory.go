package stateres

import (
	"hash/maphash"
	"strings"

	"hanok/matrix"
	"hanok/matrix/event"
)

// Memory is what the resolutions of one room leave for the next one: auth chains, and which events were allowed upon
// what. Where two branches of a room grow, they are resolved anew with every event, and most of it is as it was the time before: an event whose
// checks would look up the very same events again need not be checked again.
//
// A resolution asks its Source for all events all the same, and where one is not what it was (it was redacted, or is rejected now), all verdicts are void.
// What is remembered for good is what cannot change: the auth events of an event.
//
// It is a cache: drop it at any time, and when the known auth events of an event change. Not safe for concurrent use.
type Memory struct {
	chains *authChains
	slots  map[matrix.StateKey]int32 // short names of state entries
	keys   []matrix.StateKey         // by slot
	facts  []fact                    // to be given out: they are made many at a time
	looks  []look                    // the same
	seed   maphash.Seed              // of forms
	loaded []int32                   // events loaded by the resolution that is going on
	run    int64                     // counts resolutions
	era    int64                     // counts how often an event was not what it had been
}

// NewMemory makes an empty memory.
func NewMemory() *Memory {
	return &Memory{chains: newAuthChains(), slots: make(map[matrix.StateKey]int32), seed: maphash.MakeSeed(), era: 1}
}

// Size is about how many bytes it takes. It keeps none of the events themselves.
func (m *Memory) Size() int { return 10_000 + 400*len(m.chains.nodes) }

// fact is what is known of an event.
type fact struct {
	event    *event.Event // during a resolution; nil: not known
	form     uint64       // a hash of the event as it was last, such as in its redacted form; 0: not known
	rejected bool
	power    bool  // see isPowerEvent
	learned  bool  // the source has told of it
	slot     int32 // of the state entry that it is for; noSlot: unknown or no state event
	run      int64 // when the source was asked last; 0: never
	verdict  verdict
	level    level
}

const noSlot = -1

// verdict is whether an event was allowed when its checks looked up certain events.
type verdict struct {
	era     int64 // 0: never checked
	allowed bool
	looked  []look
}

// look is a look-up and what came of it, an auth chain index plus one.
type look struct{ slot, found int32 }

// level is the power level that an event's sender has by the event's auth events.
type level struct {
	era    int64 // 0: not known
	create int32 // by which create event, an auth chain index plus one
	value  int64
}

// slot returns the short name of a state entry.
func (m *Memory) slot(key matrix.StateKey) int32 {
	slot, ok := m.slots[key]
	if !ok {
		// An event that is erased must not stay in memory for the sake of its names.
		key = matrix.StateKey{Type: strings.Clone(key.Type), Key: strings.Clone(key.Key)}
		slot = int32(len(m.keys))
		m.slots[key] = slot
		m.keys = append(m.keys, key)
	}
	return slot
}

// fact returns what is known of an event, if only that it is not.
func (m *Memory) fact(i int32) *fact {
	n := &m.chains.nodes[i]
	if n.fact == nil {
		if len(m.facts) == 0 {
			m.facts = make([]fact, slab)
		}
		n.fact, m.facts = &m.facts[0], m.facts[1:]
		n.fact.slot = noSlot
	}
	return n.fact
}

// slab is how many of something are made at a time.
const slab = 64

// note remembers what an event's checks came to.
func (m *Memory) note(f *fact, allowed bool, looked []look) {
	v := &f.verdict
	if cap(v.looked) < len(looked) {
		if len(m.looks) < len(looked) {
			m.looks = make([]look, slab*len(looked))
		}
		v.looked, m.looks = m.looks[:0:len(looked)], m.looks[len(looked):]
	}
	v.era, v.allowed, v.looked = m.era, allowed, append(v.looked[:0], looked...)
}

// learn takes in what the source says of an event.
func (m *Memory) learn(i int32, e Entry) {
	f := m.fact(i)
	var form uint64
	if e.Event != nil {
		form = maphash.Bytes(m.seed, e.Event.JSON())
	}
	if !f.learned || f.rejected != e.Rejected || f.form != form {
		if f.learned {
			m.era++
		}
		f.learned, f.form, f.rejected, f.slot, f.power = true, form, e.Rejected, noSlot, false
		if key, ok := keyOf(&e); ok {
			f.slot, f.power = m.slot(key), isPowerEvent(e.Event)
		}
	}
	f.event = e.Event
	m.loaded = append(m.loaded, i)
}

// forget lets go of the events.
func (m *Memory) forget() {
	for _, i := range m.loaded {
		m.fact(i).event = nil
	}
	m.loaded = m.loaded[:0]
}

// keyOf is the state entry that an event is for; ok is false for one that is
// unknown or no state event.
func keyOf(e *Entry) (key matrix.StateKey, ok bool) {
	if e.Event == nil {
		return key, false
	}
	stateKey, ok := e.Event.StateKey()
	return matrix.StateKey{Type: e.Event.Type(), Key: stateKey}, ok
}

// indexSet is a set of auth chain indices.
type indexSet struct {
	in   []bool
	list []int32 // in the order in which they came
}

func (s *indexSet) has(i int32) bool { return int(i) < len(s.in) && s.in[i] }

// add reports whether an index is new.
func (s *indexSet) add(i int32) bool {
	s.in = grown(s.in, i)
	if s.in[i] {
		return false
	}
	s.in[i] = true
	s.list = append(s.list, i)
	return true
}

// grown makes a list by auth chain index reach to an index.
func grown[T any](list []T, i int32) []T {
	if n := int(i) + 1; n > len(list) {
		list = append(list, make([]T, n-len(list))...)
	}
	return list
}
