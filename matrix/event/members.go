package event

import (
	"bytes"

	"hanok/matrix/canonicaljson"
)

// member is one top-level member of an event, as offsets into its bytes.
type member = canonicaljson.Member

// typicalMembers is how many members are indexed without allocating.
const typicalMembers = 24

// find returns the raw value of a member of b, nil if there is none.
func find(b []byte, ms []member, key string) []byte {
	for _, m := range ms {
		if string(m.Key(b)) == key {
			return m.Raw(b)
		}
	}
	return nil
}

// without copies b without one member, and gives the members of the copy. ms is overwritten.
func without(b []byte, ms []member, key string) ([]byte, []member) {
	for i, m := range ms {
		if string(m.Key(b)) != key {
			continue
		}
		// Of the commas around the member, one goes with it.
		from, to := m.Start, m.End
		switch {
		case i > 0:
			from = ms[i-1].End
		case len(ms) > 1:
			to = ms[1].Start
		}
		out := make([]byte, 0, uint32(len(b))-(to-from))
		out = append(append(out, b[:from]...), b[to:]...)
		ms = append(ms[:i], ms[i+1:]...)
		for j := i; j < len(ms); j++ {
			ms[j].Start -= to - from
			ms[j].Value -= to - from
			ms[j].End -= to - from
		}
		return out, ms
	}
	return bytes.Clone(b), ms
}
