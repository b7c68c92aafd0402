package eventauth

import (
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// room is a state to check events against, the same in each room version:
// @alice:a created it and has level 100 (in v12, as its creator, any level), @bob:b
// has 50, @carol:c has none, and all three are in it; @erin:e is invited, @frank:f
// is banned, @gina:g knocked (from v7 on), @hugo:h left; anybody may join.
type room struct {
	tb     testing.TB
	v      *roomversion.Version
	create *event.Event
	state  Events
}

const (
	alice = "@alice:a"
	bob   = "@bob:b"
	carol = "@carol:c"
	dave  = "@dave:d"
	erin  = "@erin:e"
	frank = "@frank:f"
	gina  = "@gina:g"
	hugo  = "@hugo:h"
)

// spec is an event to be made in a room.
type spec struct {
	sender   string
	kind     string
	stateKey string // "-": none
	content  string
	prev     []matrix.EventID // nil: some event
	auth     []*event.Event
	redacts  matrix.EventID
	roomID   matrix.RoomID // "": the room's
}

func member(sender, target, membership string) spec {
	return spec{sender: sender, kind: typeMember, stateKey: target, content: `{"membership":"` + membership + `"}`}
}

// levels are power levels. Before v12 they have to state alice's.
func powerLevels(sender, content string) spec {
	return spec{sender: sender, kind: typePowerLevels, content: content}
}

func joinRules(rule string) spec {
	return spec{sender: alice, kind: typeJoinRules, content: `{"join_rule":"` + rule + `"}`}
}

func message(sender, kind string) spec { return spec{sender: sender, kind: kind, stateKey: "-"} }

func newRoom(tb testing.TB, id roomversion.ID) *room {
	v, ok := roomversion.Get(id)
	if !ok {
		tb.Fatalf("no version %s", id)
	}
	r := &room{tb: tb, v: v, state: make(Events)}
	r.putCreate(`{"creator":"@alice:a","room_version":"` + string(id) + `"}`)
	r.put(member(alice, alice, "join"))
	r.put(powerLevels(alice, `{"users":{"@alice:a":100,"@bob:b":50}}`))
	r.put(joinRules("public"))
	r.put(member(bob, bob, "join"))
	r.put(member(carol, carol, "join"))
	r.put(member(alice, erin, "invite"))
	r.put(member(alice, frank, "ban"))
	if v.Knock {
		r.put(member(gina, gina, "knock"))
	}
	r.put(member(hugo, hugo, "leave"))
	return r
}

// putCreate begins the room anew with a create event.
func (r *room) putCreate(content string) {
	s := spec{sender: alice, kind: typeCreate, content: content, prev: []matrix.EventID{}}
	if !r.v.RoomIDIsCreateHash {
		s.roomID = "!room:a"
	}
	r.create = nil
	r.create = r.put(s)
}

// put makes an event part of the state, unchecked.
func (r *room) put(s spec) *event.Event {
	r.tb.Helper()
	e := r.make(s)
	r.state[matrix.StateKey{Type: s.kind, Key: s.stateKey}] = e
	return e
}

// drop takes an event out of the state.
func (r *room) drop(kind, stateKey string) {
	delete(r.state, matrix.StateKey{Type: kind, Key: stateKey})
}

func (r *room) make(s spec) *event.Event {
	r.tb.Helper()
	p := event.Proto{
		RoomID: s.roomID, Sender: matrix.UserID(s.sender), Type: s.kind, Content: []byte(s.content),
		PrevEvents: s.prev, Redacts: s.redacts, Depth: 10, OriginServerTS: 1,
	}
	if p.RoomID == "" && r.create != nil {
		p.RoomID = r.create.RoomID()
	}
	if s.stateKey != "-" {
		p.StateKey = &s.stateKey
	}
	if s.content == "" {
		p.Content = []byte(`{}`)
	}
	if s.kind == typePowerLevels && r.v.PrivilegedCreators {
		p.Content = []byte(strings.Replace(s.content, `"@alice:a":100,`, ``, 1))
	}
	if s.prev == nil && r.create != nil {
		p.PrevEvents = []matrix.EventID{r.some()}
	}
	for _, a := range s.auth {
		p.AuthEvents = append(p.AuthEvents, a.ID())
	}
	e, err := event.Build(r.v, p, matrix.UserID(s.sender).Server())
	if err != nil {
		r.tb.Fatalf("%+v: %v", s, err)
	}
	return e
}

// some is the ID of some event of before.
func (r *room) some() matrix.EventID {
	if r.v.EventIDFormat == roomversion.EventIDInEvent {
		return "$some:a"
	}
	return matrix.EventID("$" + strings.Repeat("A", 43))
}
