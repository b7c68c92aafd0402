// Package roomversion says what each room version changes, as data.
// spec: rooms#feature-matrix
package roomversion

import "hanok/matrix/canonicaljson"

// ID is a room version identifier, as in "11".
type ID string

// Default is the version of new rooms. spec: rooms#room-version-grammar
const Default ID = "12"

// Version is what a room version does. Values come from Get and are shared: do not change them.
type Version struct {
	ID     ID
	Stable bool

	JSON               canonicaljson.Mode
	EventIDFormat      EventIDFormat
	StateResolution    StateResolution
	Redaction          Redaction
	EnforceKeyValidity bool // v5
	AliasesAuth        bool // v1-5: special rule for m.room.aliases
	RedactionAuth      bool // v1-2: the redact level is an auth rule
	NotificationLevels bool // v6: notifications checked in m.room.power_levels
	Knock              bool // v7
	Restricted         bool // v8
	KnockRestricted    bool // v10
	IntegerPowerLevels bool // v10
	ImplicitCreator    bool // v11: no content.creator, the sender is the creator
	RedactsInContent   bool // v11: redacts moved from the top level into content
	PrivilegedCreators bool // v12: creators have infinite power; additional_creators
	RoomIDIsCreateHash bool // v12: room ID is the create event's ID; no create in auth_events
	OwnedState         bool // MSC3757: a state key that begins with a user ID and "_" is that user's
}

// EventIDFormat says how events are identified.
type EventIDFormat uint8

const (
	EventIDInEvent     EventIDFormat = iota + 1 // v1, v2: event_id is a member of the event
	EventIDHash                                 // v3: reference hash, standard alphabet
	EventIDHashURLSafe                          // v4: reference hash, URL-safe alphabet
)

// StateResolution names an algorithm.
type StateResolution uint8

const (
	StateResolutionV1   StateResolution = iota + 1 // v1
	StateResolutionV2                              // v2 to v11
	StateResolutionV2_1                            // v12
)

// Redaction names the set of keys that redaction keeps.
type Redaction uint8

const (
	RedactionV1  Redaction = iota + 1
	RedactionV6            // m.room.aliases no longer special
	RedactionV8            // keeps join_rules.allow
	RedactionV9            // keeps member.join_authorised_via_users_server
	RedactionV11           // keeps all of create, power_levels.invite, redacts; drops origin, membership, prev_state
)
