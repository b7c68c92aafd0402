package eventauth

import (
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// Select names the state events that an event's auth_events must be: those of
// them that exist. content is the event's content, a canonical JSON object.
// A create event has none.
// spec: server-server-api#auth-events-selection
func Select(v *roomversion.Version, eventType, stateKey string, isState bool, sender matrix.UserID, content []byte) []matrix.StateKey {
	return AppendSelect(make([]matrix.StateKey, 0, maxSelected), v, eventType, stateKey, isState, sender, content)
}

// maxSelected: create, power levels, sender, target, join rules, third-party
// invite, and the authorising user of a restricted join.
const maxSelected = 7

// AppendSelect is Select into a slice of the caller's.
func AppendSelect(dst []matrix.StateKey, v *roomversion.Version, eventType, stateKey string, isState bool, sender matrix.UserID, content []byte) []matrix.StateKey {
	if eventType == typeCreate {
		return dst
	}
	start := len(dst)
	if !v.RoomIDIsCreateHash {
		dst = append(dst, matrix.StateKey{Type: typeCreate})
	}
	dst = append(dst,
		matrix.StateKey{Type: typePowerLevels},
		matrix.StateKey{Type: typeMember, Key: string(sender)})
	if eventType != typeMember || !isState {
		return dst
	}
	add := func(eventType, stateKey string) {
		if key := (matrix.StateKey{Type: eventType, Key: stateKey}); !slices.Contains(dst[start:], key) {
			dst = append(dst, key)
		}
	}
	add(typeMember, stateKey)
	membership, _ := canonicaljson.GetString(content, "membership")
	switch membership {
	case "join", "invite", "knock":
		add(typeJoinRules, "")
	}
	if membership == "invite" {
		if invite, ok := canonicaljson.Get(content, "third_party_invite"); ok {
			if signed, ok := signedPart(invite); ok {
				if token, ok := canonicaljson.GetString(signed, "token"); ok {
					add(typeThirdPartyInvite, token)
				}
			}
		}
	}
	if membership == "join" && v.Restricted {
		if user, ok := canonicaljson.GetString(content, "join_authorised_via_users_server"); ok {
			add(typeMember, user)
		}
	}
	return dst
}

// SelectFor is Select for an existing event.
func SelectFor(e *event.Event) []matrix.StateKey {
	key, isState := e.StateKey()
	return Select(e.Version(), e.Type(), key, isState, e.Sender(), e.Content())
}

// CheckAuthEvents applies the rules about the auth_events themselves: no
// duplicates, only selected kinds, none rejected, all of the event's room, and
// the create event among them or, in v12, named by the room ID. auth are the
// events named by e.AuthEvents, all of them: an event of which one is missing
// cannot be judged. create is the room's create event (v12 needs it; else it
// may be nil). The result is nil or a *Rejection.
// spec: rooms/v12#authorisation-rules 2, 3
// spec: rooms/v11#authorisation-rules 2
func CheckAuthEvents(e *event.Event, auth []*event.Event, rejected func(matrix.EventID) bool, create *event.Event) error {
	v := e.Version()
	if e.Type() == typeCreate {
		return nil // rule 1 decides alone
	}
	if v.RoomIDIsCreateHash {
		if err := checkRoomID(e, create); err != nil {
			return err
		}
		if rejected(create.ID()) {
			return reject(v, ruleRoomID, "the room's create event was rejected")
		}
	}
	var room [maxSelected]matrix.StateKey
	key, isState := e.StateKey()
	selected := AppendSelect(room[:0], v, e.Type(), key, isState, e.Sender(), e.Content())
	var seen [maxSelected]bool
	hasCreate := false
	for _, a := range auth {
		stateKey, ok := a.StateKey()
		i := -1
		if ok {
			i = slices.Index(selected, matrix.StateKey{Type: a.Type(), Key: stateKey})
		}
		switch {
		case i >= 0 && seen[i]:
			return reject(v, authDuplicate, "auth_events has two entries for one type and state key")
		case i < 0:
			return reject(v, authNotSelected, "auth_events has an entry that does not authorise this event")
		case rejected(a.ID()):
			return reject(v, authRejected, "auth_events has an entry that was rejected")
		case a.RoomID() != e.RoomID():
			return reject(v, authOtherRoom, "auth_events has an entry of another room")
		}
		seen[i] = true
		hasCreate = hasCreate || a.Type() == typeCreate
	}
	if !v.RoomIDIsCreateHash && !hasCreate {
		return reject(v, authNoCreate, "auth_events lacks the create event")
	}
	return nil
}

// checkRoomID is rule 2 of v12, save for the create event's rejection.
// spec: rooms/v12#authorisation-rules 2
func checkRoomID(e, create *event.Event) error {
	if create == nil || len(create.ID()) == 0 || len(e.RoomID()) == 0 || e.RoomID()[1:] != matrix.RoomID(create.ID()[1:]) {
		return reject(e.Version(), ruleRoomID, "the room ID is not the ID of the room's create event")
	}
	return nil
}
