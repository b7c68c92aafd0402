// Package eventauth decides whether an event is allowed: the authorisation
// rules of every room version.
//
// Start reading at Check (rules.go): it runs the rules in the order of the
// specification, one function per group of rules. numbering.go names every
// rule and computes its number in each room version. The rules about the
// auth_events themselves are in authevents.go, power levels in levels.go.
//
// Signatures are not checked here: events that reach these rules have passed
// event.Event's RequiredSigners. The one signature that is a rule, that of a
// third-party invite, is checked.
// spec: rooms/*#authorisation-rules
package eventauth

import (
	"hanok/matrix"
	"hanok/matrix/event"
)

// State looks up the state that an event is checked against. It is asked only
// for the keys that the rules name: those of Select, and the create event.
type State interface {
	// StateEvent returns the event, or nil when there is none.
	StateEvent(eventType, stateKey string) (*event.Event, error)
}

// Rejection is why an event is not allowed.
type Rejection struct {
	Rule   string // the numbered rule, as in "rooms/v12 5.3.3"
	Reason string // a sentence that helps; it holds nothing personal
	// Malformed: the content is at fault, whoever sends it and when.
	Malformed bool
}

func (r *Rejection) Error() string { return r.Rule + ": " + r.Reason }

// Events is a State made of a map.
type Events map[matrix.StateKey]*event.Event

// StateEvent implements State.
func (s Events) StateEvent(eventType, stateKey string) (*event.Event, error) {
	return s[matrix.StateKey{Type: eventType, Key: stateKey}], nil
}

// EventsOf makes a State of state events; for equal keys the last one counts.
func EventsOf(events ...*event.Event) Events {
	s := make(Events, len(events))
	for _, e := range events {
		if key, ok := e.StateKey(); ok {
			s[matrix.StateKey{Type: e.Type(), Key: key}] = e
		}
	}
	return s
}

// The state event types that affect authorisation.
const (
	typeCreate           = "m.room.create"
	typeMember           = "m.room.member"
	typeJoinRules        = "m.room.join_rules"
	typePowerLevels      = "m.room.power_levels"
	typeThirdPartyInvite = "m.room.third_party_invite"
	typeAliases          = "m.room.aliases"
	typeRedaction        = "m.room.redaction"
)
