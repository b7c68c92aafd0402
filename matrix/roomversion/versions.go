package roomversion

import (
	"slices"

	"hanok/matrix/canonicaljson"
)

// The table is built by letting each version change its predecessor, in the
// order of the specification, as the specification itself is written.
// spec: rooms#complete-list-of-room-versions
var versions, order = table([]step{
	{"1", func(v *Version) {
		v.Stable = true
		v.JSON = canonicaljson.Lenient
		v.EventIDFormat = EventIDInEvent
		v.StateResolution = StateResolutionV1
		v.Redaction = RedactionV1
		v.AliasesAuth = true
		v.RedactionAuth = true
	}},
	{"2", func(v *Version) { v.StateResolution = StateResolutionV2 }},
	{"3", func(v *Version) { v.EventIDFormat, v.RedactionAuth = EventIDHash, false }},
	{"4", func(v *Version) { v.EventIDFormat = EventIDHashURLSafe }},
	{"5", func(v *Version) { v.EnforceKeyValidity = true }},
	{"6", func(v *Version) {
		v.JSON = canonicaljson.Strict
		v.Redaction = RedactionV6
		v.AliasesAuth = false
		v.NotificationLevels = true
	}},
	{"7", func(v *Version) { v.Knock = true }},
	{"8", func(v *Version) { v.Restricted, v.Redaction = true, RedactionV8 }},
	{"9", func(v *Version) { v.Redaction = RedactionV9 }},
	{"10", func(v *Version) { v.KnockRestricted, v.IntegerPowerLevels = true, true }},
	{"11", func(v *Version) {
		v.Redaction = RedactionV11
		v.ImplicitCreator = true
		v.RedactsInContent = true
	}},
	{"12", func(v *Version) {
		v.StateResolution = StateResolutionV2_1
		v.PrivilegedCreators = true
		v.RoomIDIsCreateHash = true
	}},
})

// experiments are versions of proposals, each made from one of the specification.
var experiments = []experiment{
	{"org.matrix.msc3757.10", "10", func(v *Version) { v.OwnedState = true }}, // spec: MSC3757
	{"org.matrix.msc3757.11", "11", func(v *Version) { v.OwnedState = true }},
}

type experiment struct {
	id, base ID
	change   func(*Version)
}

// step is what one version changes in the one before it.
type step struct {
	id     ID
	change func(*Version)
}

func table(steps []step) (map[ID]*Version, []ID) {
	byID := make(map[ID]*Version, len(steps))
	ids := make([]ID, 0, len(steps))
	var v Version
	for _, s := range steps {
		s.change(&v)
		v.ID = s.id
		each := v
		byID[s.id] = &each
		ids = append(ids, s.id)
	}
	for _, e := range experiments {
		each := *byID[e.base]
		each.ID, each.Stable = e.id, false
		e.change(&each)
		byID[e.id] = &each
	}
	return byID, ids
}

// Get returns a version. ok is false for a version we do not know.
func Get(id ID) (v *Version, ok bool) {
	v, ok = versions[id]
	return v, ok
}

// Supported lists the versions of the specification, in order.
func Supported() []ID { return slices.Clone(order) }

// Experimental lists the versions of proposals. They work, but rooms of them may have no future.
func Experimental() []ID {
	ids := make([]ID, len(experiments))
	for i, e := range experiments {
		ids[i] = e.id
	}
	return ids
}

// ValidID reports whether s is a room version identifier by its grammar,
// known or not.
// spec: rooms#room-version-grammar
func ValidID(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}
