package eventauth

import (
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// checkCreate is rule 1.
// spec: rooms/v12#authorisation-rules 1
// spec: rooms/v11#authorisation-rules 1
// spec: rooms/v10#authorisation-rules 1
func checkCreate(e *event.Event) error {
	v := e.Version()
	if len(e.PrevEvents()) > 0 {
		return reject(v, createPrevEvents, "the create event has prev_events")
	}
	if v.RoomIDIsCreateHash {
		if _, ok := canonicaljson.Get(e.JSON(), "room_id"); ok {
			return reject(v, createRoomID, "the create event has a room_id")
		}
	} else if domainOf(string(e.RoomID())) != domainOf(string(e.Sender())) {
		return reject(v, createRoomDomain, "the room ID's domain is not the sender's")
	}
	if _, ok := canonicaljson.Get(e.Content(), "room_version"); ok {
		id, _ := e.ContentString("room_version")
		if _, known := roomversion.Get(roomversion.ID(id)); !known {
			return reject(v, createVersion, "room_version is not known")
		}
	}
	if !v.ImplicitCreator {
		if _, ok := canonicaljson.Get(e.Content(), "creator"); !ok {
			return reject(v, createCreator, "creator is missing")
		}
	}
	if v.PrivilegedCreators {
		if _, ok := additionalCreators(e); !ok {
			return reject(v, createAdditionalCreators, "additional_creators must be an array of user IDs")
		}
	}
	return nil
}

// Creators are the room's creators: one before v12. The result is empty when a
// create event of before v11 names none.
func Creators(create *event.Event) []matrix.UserID {
	v := create.Version()
	if !v.ImplicitCreator {
		if creator, ok := create.ContentString("creator"); ok {
			return []matrix.UserID{matrix.UserID(creator)}
		}
		return nil
	}
	creators := []matrix.UserID{create.Sender()}
	if v.PrivilegedCreators {
		additional, _ := additionalCreators(create)
		creators = append(creators, additional...)
	}
	return creators
}

// isCreator reports whether a user is the one creator who may join first.
func isCreator(create *event.Event, user string) bool {
	if create.Version().ImplicitCreator {
		return user == string(create.Sender())
	}
	creator, ok := create.ContentString("creator")
	return ok && creator == user
}

// additionalCreators reads content.additional_creators; ok is false if it is malformed.
func additionalCreators(create *event.Event) (users []matrix.UserID, ok bool) {
	raw, present := canonicaljson.Get(create.Content(), "additional_creators")
	if !present {
		return nil, true
	}
	if !canonicaljson.IsArray(raw) {
		return nil, false
	}
	for element := range canonicaljson.Elements(raw) {
		id, ok := canonicaljson.String(element)
		if !ok {
			return nil, false
		}
		user, err := matrix.ParseUserID(id)
		if err != nil {
			return nil, false
		}
		users = append(users, user)
	}
	return users, true
}

// federates reports whether users of other servers may take part.
// spec: rooms/v12#authorisation-rules 4
func federates(create *event.Event) bool {
	raw, ok := canonicaljson.Get(create.Content(), "m.federate")
	return !ok || string(raw) != "false"
}

// domainOf is what follows the first colon of an identifier.
func domainOf(id string) string {
	_, domain, _ := strings.Cut(id, ":")
	return domain
}
