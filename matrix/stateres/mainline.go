package stateres

import (
	"cmp"
	"math"
	"slices"
)

// mainlineOrder sorts events by the mainline of the power levels in the
// partially resolved state.
// spec: rooms/v12#definitions "Mainline ordering"
func (r *resolution) mainlineOrder(events []int32) error {
	tip := r.cell(r.powerLevels).state
	if tip == 0 && !r.emptyStart() {
		var err error
		if tip, err = r.unconflicted(r.powerLevels); err != nil {
			return err
		}
	}
	m := mainline{r: r, positions: make(map[int32]int)}
	if tip != 0 {
		m.positions[tip-1] = 0
		m.last = tip - 1
		m.length = 1
	}
	type placed struct {
		event    int32
		position int
	}
	list := make([]placed, len(events))
	for k, i := range events {
		position, err := m.position(i)
		if err != nil {
			return err
		}
		list[k] = placed{i, position}
	}
	slices.SortFunc(list, func(a, b placed) int {
		return cmp.Or(cmp.Compare(b.position, a.position), compareAge(r.known(a.event).event, r.known(b.event).event))
	})
	for k, p := range list {
		events[k] = p.event
	}
	return nil
}

// mainline is the list of power levels events that leads to the room's first
// one, as far back as was needed so far.
type mainline struct {
	r         *resolution
	positions map[int32]int // of power levels events, on the mainline or off it
	last      int32         // the earliest one found
	length    int           // 0: there are no power levels
	complete  bool          // last has no predecessor
}

// offMainline is the position of events that do not build on the mainline.
const offMainline = math.MaxInt

// position is an event's mainline position.
func (m *mainline) position(i int32) (int, error) {
	var path []int32 // of power levels events whose position is that of the next one
	position := offMainline
	for m.length > 0 {
		p, ok, err := m.powerLevelsOf(i)
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		if err := m.extendTo(p); err != nil {
			return 0, err
		}
		if known, ok := m.positions[p]; ok {
			position = known
			break
		}
		path = append(path, p)
		i = p
	}
	for _, p := range path {
		m.positions[p] = position
	}
	return position, nil
}

// extendTo makes the mainline reach back to the number of an event, after
// which it is decided whether the event is part of it.
func (m *mainline) extendTo(i int32) error {
	for !m.complete && m.r.chains.nodes[m.last].ref > m.r.chains.nodes[i].ref {
		p, ok, err := m.powerLevelsOf(m.last)
		if err != nil {
			return err
		}
		if !ok {
			m.complete = true
			return nil
		}
		m.positions[p] = m.length
		m.length++
		m.last = p
	}
	return nil
}

// powerLevelsOf returns the m.room.power_levels event among an event's auth events.
func (m *mainline) powerLevelsOf(i int32) (p int32, ok bool, err error) {
	chains := m.r.chains
	if err := chains.fill(m.r.src, []int32{i}); err != nil {
		return 0, false, err
	}
	if err := m.r.load(chains.auth(i)); err != nil {
		return 0, false, err
	}
	for _, a := range chains.auth(i) {
		if m.r.known(a).slot == m.r.powerLevels {
			return a, true, nil
		}
	}
	return 0, false, nil
}
