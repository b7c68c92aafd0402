package eventauth

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// spec: client-server-api#mroompower_levels
func TestLevels(t *testing.T) {
	type view struct {
		Alice, Bob, Carol, Dave                                     int64
		Message, Topic, Name, Invite, Kick, Ban, Redact, Room, Call int64
	}
	look := func(p *PowerLevels) view {
		return view{
			p.User(alice), p.User(bob), p.User(carol), p.User(dave),
			p.Event("m.room.message", false), p.Event("m.room.topic", true), p.Event("m.room.name", true),
			p.Invite(), p.Kick(), p.Ban(), p.Redact(), p.Notification("room"), p.Notification("call"),
		}
	}
	all := `{"ban":1,"events":{"m.room.topic":2},"events_default":3,"invite":4,"kick":5,"notifications":{"room":6},
		"redact":7,"state_default":8,"users":{"@bob:b":9,"@carol:c":-10},"users_default":11}`
	stated := view{Alice: 11, Bob: 9, Carol: -10, Dave: 11, Message: 3, Topic: 2, Name: 8, Invite: 4, Kick: 5, Ban: 1, Redact: 7, Room: 6, Call: 50}
	absent := view{Topic: 50, Name: 50, Kick: 50, Ban: 50, Redact: 50, Room: 50, Call: 50}
	alone := absent
	alone.Alice = 100
	unbounded := func(v view) view { v.Alice = Infinite; return v }
	for _, tt := range []struct {
		versions []roomversion.ID
		name     string
		levels   string
		want     view
	}{
		{[]roomversion.ID{"1", "9", "10", "11"}, "no event", "", alone},
		{[]roomversion.ID{"12"}, "no event", "", unbounded(absent)},
		{[]roomversion.ID{"1", "11"}, "nothing stated", `{}`, absent},
		{[]roomversion.ID{"12"}, "nothing stated", `{}`, unbounded(absent)},
		{[]roomversion.ID{"1", "6", "10", "11"}, "everything stated", all, stated},
		{[]roomversion.ID{"12"}, "everything stated", all, unbounded(stated)},
	} {
		for _, id := range tt.versions {
			r := newRoom(t, id)
			var e *event.Event
			if tt.levels != "" {
				e = r.make(powerLevels(alice, tt.levels))
			}
			p, err := Levels(r.create, e)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, look(p)); diff != "" {
				t.Errorf("v%s %s: -want +got\n%s", id, tt.name, diff)
			}
		}
	}

	r := newRoom(t, "12")
	r.putCreate(`{"additional_creators":["@bob:b","@carol:c"]}`)
	if got := Creators(r.create); !cmp.Equal(got, []matrix.UserID{alice, bob, carol}) {
		t.Errorf("creators %v", got)
	}
	p, _ := Levels(r.create, r.make(powerLevels(alice, `{"users":{"@dave:d":1,"@erin:e":2}}`)))
	if got := look(p); got.Alice != Infinite || got.Carol != Infinite || got.Dave != 1 {
		t.Errorf("levels %+v", got)
	}
	var listed []matrix.UserID
	for user := range p.Users {
		listed = append(listed, user)
	}
	if !cmp.Equal(listed, []matrix.UserID{dave, erin}) || p.UsersDefault() != 0 {
		t.Errorf("listed %v", listed)
	}
	if _, err := Levels(r.create, r.make(powerLevels(alice, `{"ban":"x"}`))); !errors.As(err, new(*Rejection)) {
		t.Errorf("malformed levels: %v", err)
	}
}

// spec: rooms/v9#mroompower_levels-events-accept-values-as-strings
// spec: rooms/v9#mroompower_levels-events-accept-values-as-floats
func TestLaxLevels(t *testing.T) {
	for _, tt := range []struct {
		raw  string
		want int64
	}{
		{`50`, 50}, {`-50`, -50}, {`0`, 0},
		{`"100"`, 100}, {`"000100"`, 100}, {`"+100"`, 100}, {`"-100"`, -100}, {`" 100 "`, 100}, {`" 00100 "`, 100}, {`" +100 "`, 100}, {`" -100 "`, -100},
		{`"\t\n100\u2003"`, 100},
		{`50.57`, 50}, {`-50.57`, -50}, {`5.114698E4`, 51146}, {`5e1`, 50}, {`0.9e-5`, 0}, {`-0.5`, 0},
		{`1e300`, maxLevel}, {`-1e300`, -maxLevel}, {`123456789012345678901234567890`, maxLevel}, {`"-123456789012345678901234567890"`, -maxLevel},
	} {
		if got, ok := parseLaxLevel([]byte(tt.raw)); !ok || got != tt.want {
			t.Errorf("%s: %d %v, want %d", tt.raw, got, ok, tt.want)
		}
	}
	for _, raw := range []string{
		``, `""`, `" "`, `"+"`, `"1 0"`, `"+ 1"`, `"--1"`, `"1.0"`, `"1e2"`, `"0x10"`, `"1_000"`, `"ten"`, `"१"`, `null`, `true`, `{}`, `[]`, `[1]`, `1e400`, `-1e400`, `Infinity`, `NaN`,
	} {
		if got, ok := parseLaxLevel([]byte(raw)); ok {
			t.Errorf("%s: %d, want none", raw, got)
		}
	}
	// Floats reach power levels where JSON may have them: up to v5.
	r := newRoom(t, "5")
	p, err := Levels(r.create, r.make(powerLevels(alice, `{"users":{"@alice:a":100,"@bob:b":50.57},"ban":" 0070 "}`)))
	if err != nil || p.User(bob) != 50 || p.Ban() != 70 {
		t.Errorf("levels %+v, %v", p, err)
	}
}

// failing is a State that cannot look up one key.
type failing struct {
	Events
	key matrix.StateKey
}

var errLookUp = errors.New("look-up failed")

func (f failing) StateEvent(eventType, stateKey string) (*event.Event, error) {
	if f.key == (matrix.StateKey{Type: eventType, Key: stateKey}) {
		return nil, errLookUp
	}
	return f.Events.StateEvent(eventType, stateKey)
}

func TestLookUpFailure(t *testing.T) {
	r := newRoom(t, "12")
	create, levels, rules := matrix.StateKey{Type: typeCreate}, matrix.StateKey{Type: typePowerLevels}, matrix.StateKey{Type: typeJoinRules}
	of := func(user string) matrix.StateKey { return matrix.StateKey{Type: typeMember, Key: user} }
	invite := `{"membership":"invite","third_party_invite":{"signed":{"mxid":"@dave:d","token":"t"}}}`
	for _, tt := range []struct {
		spec  spec
		needs []matrix.StateKey
	}{
		{message(bob, "m.room.message"), []matrix.StateKey{create, levels, of(bob)}},
		{member(erin, erin, "join"), []matrix.StateKey{create, levels, of(erin), rules}},
		{member(bob, carol, "leave"), []matrix.StateKey{create, levels, of(bob), of(carol)}},
		{member(bob, carol, "ban"), []matrix.StateKey{create, levels, of(bob)}},
		{member(bob, dave, "invite"), []matrix.StateKey{create, levels, of(bob), of(dave)}},
		{content(member(bob, dave, "invite"), invite), []matrix.StateKey{create, levels, of(dave), {Type: typeThirdPartyInvite, Key: "t"}}},
		{member(dave, dave, "knock"), []matrix.StateKey{create, levels, rules}},
	} {
		for _, key := range tt.needs {
			if err := Check(r.make(tt.spec), failing{r.state, key}); !errors.Is(err, errLookUp) {
				t.Errorf("%s %s without %v: %v", tt.spec.kind, tt.spec.content, key, err)
			}
		}
	}
}

// A Checker answers like Check although it remembers.
func TestChecker(t *testing.T) {
	k := Checker{Budget: 20 * levelsOverhead}
	one, two := newRoom(t, "11"), newRoom(t, "12")
	two.putCreate(`{"m.federate":false}`)
	large := one.make(powerLevels(alice, `{"users":{"@alice:a":100},"x":"`+strings.Repeat("x", k.Budget)+`"}`))
	for range 2 {
		if err := k.Check(one.make(message(bob, "m.x")), one.state); err != nil {
			t.Error(err)
		}
		for range 2 {
			if err := k.Check(large, one.state); err != nil || len(k.levels) != 1 {
				t.Fatalf("keeps %d power levels, of which one is large: %v", len(k.levels), err)
			}
		}
		if err := k.Check(two.make(message(bob, "m.x")), two.state); err == nil {
			t.Error("the room does not federate")
		}
		if err := k.Check(two.make(message(alice, "m.x")), two.state); err != nil {
			t.Error(err)
		}
	}
	topic := one.make(spec{sender: carol, kind: "m.room.topic"})
	for i := range 3 * 20 {
		one.put(powerLevels(alice, `{"users":{"@alice:a":100,"@carol:c":`+[]string{"49", "50"}[i%2]+`}}`))
		if err := k.Check(topic, one.state); (err == nil) != (i%2 == 1) {
			t.Errorf("%d: %v", i, err)
		}
		if len(k.levels) > 20 || k.kept > k.Budget {
			t.Fatal("remembers too much")
		}
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if err := k.Check(topic, one.state); err != nil {
					t.Error(err)
				}
				if err := k.Check(two.make(message(alice, "m.x")), two.state); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	a, _ := k.Levels(one.create, nil)
	b, _ := k.Levels(one.create, nil)
	if a != b {
		t.Error("read the same power levels twice")
	}
}

func BenchmarkCheck(b *testing.B) {
	for _, tt := range []struct {
		name string
		spec spec
	}{
		{"message", message(bob, "m.room.encrypted")},
		{"join", member(dave, dave, "join")},
		{"levels", powerLevels(alice, `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":50}}`)},
	} {
		r := newRoom(b, "12")
		e := r.make(tt.spec)
		b.Run(tt.name, func(b *testing.B) {
			var k Checker
			b.ReportAllocs()
			for b.Loop() {
				if err := k.Check(e, r.state); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkAuthorise is what an event from a peer costs: the rules about its auth
// events, and the others against these and against the state before it.
func BenchmarkAuthorise(b *testing.B) {
	r := newRoom(b, "12")
	auth := []*event.Event{r.state[matrix.StateKey{Type: typePowerLevels}], r.state[matrix.StateKey{Type: typeMember, Key: bob}]}
	e := r.make(message(bob, "m.room.encrypted"))
	never := func(matrix.EventID) bool { return false }
	var k Checker
	b.ReportAllocs()
	for b.Loop() {
		if err := CheckAuthEvents(e, auth, never, r.create); err != nil {
			b.Fatal(err)
		}
		for range 2 {
			if err := k.Check(e, r.state); err != nil {
				b.Fatal(err)
			}
		}
	}
}
