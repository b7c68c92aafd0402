package eventauth

import (
	"errors"
	"slices"
	"testing"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// watched is a State that notes what it is asked for.
type watched struct {
	Events
	asked []matrix.StateKey
}

func (w *watched) StateEvent(eventType, stateKey string) (*event.Event, error) {
	w.asked = append(w.asked, matrix.StateKey{Type: eventType, Key: stateKey})
	return w.Events.StateEvent(eventType, stateKey)
}

// FuzzCheck checks an event of any content against a room of any content, and
// what must hold whatever they are.
func FuzzCheck(f *testing.F) {
	f.Add("12", bob, typeMember, bob, `{"membership":"join"}`, `{"creator":"@alice:a"}`, `{"users":{"@bob:b":50}}`, `{"join_rule":"public"}`, "leave")
	f.Add("1", bob, typePowerLevels, "", `{"users":{"@alice:a":"100"}}`, `{"creator":"@alice:a"}`, `{"users":{"@bob:b":50.5}}`, `{}`, "join")
	f.Add("11", alice, typeMember, dave, `{"membership":"invite","third_party_invite":{"signed":{"mxid":"@dave:d","token":"t","signatures":{"a":{"ed25519:0":"x"}}}}}`,
		`{"m.federate":false}`, `{"invite":1}`, `{"join_rule":"restricted"}`, "join")
	f.Add("8", carol, typeMember, carol, `{"membership":"join","join_authorised_via_users_server":"@bob:b"}`, `{"creator":"@alice:a"}`, `{"invite":"0"}`, `{"join_rule":"restricted"}`, "")
	f.Add("12", carol, typeCreate, "", `{"additional_creators":["@a:b"]}`, `{"additional_creators":["@bob:b"]}`, `{}`, `{}`, "join")
	f.Fuzz(func(t *testing.T, version, sender, kind, stateKey, content, create, levels, rules, membership string) {
		v, ok := roomversion.Get(roomversion.ID(version))
		// Identifiers come parsed; text that is not UTF-8 would not be the same after encoding.
		if !ok || !utf8.ValidString(sender+"\n"+kind+"\n"+stateKey) {
			t.Skip()
		}
		build := func(room *event.Event, sender, kind, stateKey, content string) *event.Event {
			p := event.Proto{Sender: matrix.UserID(sender), Type: kind, Content: []byte(content), Depth: 1}
			if stateKey != "-" {
				p.StateKey = &stateKey
			}
			switch {
			case kind == typeCreate && v.RoomIDIsCreateHash:
			case room != nil:
				p.RoomID = room.RoomID()
				p.PrevEvents = []matrix.EventID{room.ID()}
			default:
				p.RoomID = "!room:a"
			}
			e, err := event.Build(v, p, p.Sender.Server())
			if err != nil {
				t.Skip()
			}
			return e
		}
		room := build(nil, alice, typeCreate, "", create)
		member := `{"membership":"` + membership + `"}`
		switch membership {
		case "join", "leave", "ban", "invite", "knock", "":
		default:
			t.Skip()
		}
		state := EventsOf(room,
			build(room, alice, typeMember, alice, `{"membership":"join"}`),
			build(room, bob, typeMember, bob, `{"membership":"join"}`),
			build(room, sender, typeMember, sender, member),
			build(room, alice, typePowerLevels, "", levels),
			build(room, alice, typeJoinRules, "", rules),
			build(room, alice, typeThirdPartyInvite, "t", `{"public_key":"Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw"}`))
		e := build(room, sender, kind, stateKey, content)

		w := &watched{Events: state}
		err := Check(e, w)
		if err != nil && !errors.As(err, new(*Rejection)) {
			t.Fatalf("neither allowed nor rejected: %v", err)
		}
		// The rules see nothing that the event does not have to name.
		selected := SelectFor(e)
		for _, key := range w.asked {
			if key != (matrix.StateKey{Type: typeCreate}) && !slices.Contains(selected, key) {
				t.Errorf("looks at %v, which is not selected", key)
			}
		}
		auth := make([]*event.Event, 0, len(selected))
		for _, key := range selected {
			if a := state[key]; a != nil {
				auth = append(auth, a)
			}
		}
		if err := CheckAuthEvents(e, auth, func(matrix.EventID) bool { return false }, room); err != nil {
			t.Errorf("the selected auth events: %v", err)
		}
		again := EventsOf(append(auth, room)...)
		if other := Check(e, again); (other == nil) != (err == nil) {
			t.Errorf("by its auth events %v, by the state %v", other, err)
		}
		if err != nil || kind == typeCreate {
			return
		}
		own, lerr := Levels(room, state[matrix.StateKey{Type: typePowerLevels}])
		joined := state[matrix.StateKey{Type: typeMember, Key: sender}].Membership() == "join"
		switch kind {
		case typeMember, typeAliases:
		default:
			if !joined {
				t.Error("allowed although the sender is not in the room")
			}
		}
		if kind == typePowerLevels {
			next, err := Levels(room, e)
			if err != nil || lerr != nil {
				t.Fatalf("allowed levels that cannot be read: %v, %v", err, lerr)
			}
			limit := own.User(e.Sender())
			for user, level := range next.Users {
				if level > limit && level != own.User(user) {
					t.Errorf("%s got level %d from a sender of %d", user, level, limit)
				}
			}
		}
	})
}
