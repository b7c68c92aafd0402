package rooms_test

import (
	"slices"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/rooms"
)

// Events of room versions 1 and 2 state the hashes of those that they refer to, whoever has made them.
func TestReferenceHashesOfOldRooms(t *testing.T) {
	for _, v := range []roomversion.ID{"1", "2"} {
		n, a, b, room := twoServersIn(t, v)
		alice, bob := a.user("alice"), b.user("bob")
		a.say(alice, room, "one")
		b.say(bob, room, "two") // beside it: what follows has two before it
		n.settle()
		last := a.say(alice, room, "three")
		n.settle()
		checked := 0
		for _, s := range []*server{a, b} {
			known := make(map[matrix.EventID]*rooms.Event)
			for frontier := []matrix.EventID{last}; len(frontier) > 0; frontier = frontier[1:] {
				id := frontier[0]
				if known[id] != nil {
					continue
				}
				ev, err := s.Event(ctx, id)
				if err != nil {
					continue // from before b was in the room
				}
				known[id] = ev
				frontier = append(frontier, slices.Concat(ev.PrevEvents(), ev.AuthEvents())...)
			}
			for _, ev := range known {
				for _, list := range []string{"prev_events", "auth_events"} {
					pairs, _ := canonicaljson.Get(ev.JSON(), list)
					for pair := range canonicaljson.Elements(pairs) {
						parts := slices.Collect(canonicaljson.Elements(pair))
						id, _ := canonicaljson.String(parts[0])
						stated, _ := canonicaljson.GetString(parts[1], "sha256")
						to := known[matrix.EventID(id)]
						if stated == "" {
							t.Errorf("v%s: %s of %s: no hash of %s", v, list, ev.Type(), id)
						}
						if to == nil {
							continue
						}
						checked++
						if hash := to.ReferenceHash(); stated != signing.EncodeBase64(hash[:]) {
							t.Errorf("v%s: %s of %s: %q is not the hash of %s", v, list, ev.Type(), stated, id)
						}
					}
				}
			}
		}
		if checked < 20 {
			t.Errorf("v%s: only %d references checked", v, checked)
		}
	}
}
