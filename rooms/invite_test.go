package rooms_test

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

func TestReceiveInvite(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	for _, version := range []roomversion.ID{"10", "12"} {
		room, other := a.create(alice, rooms.CreateRequest{Version: version}), a.create(alice, rooms.CreateRequest{Version: version, Name: "other"})
		invite := func(p event.Proto) *event.Event {
			if p.Type == "" {
				p.Type = "m.room.member"
			}
			if p.Sender == "" {
				p.Sender = alice
			}
			if p.StateKey == nil {
				key := string(bob)
				p.StateKey = &key
			}
			if p.Content == nil {
				p.Content = []byte(`{"membership":"invite"}`)
			}
			return a.forge(room, p)
		}
		state := func(room matrix.RoomID, types ...string) (out [][]byte) {
			snap, err := a.Snapshot(ctx, room)
			if err != nil {
				t.Fatal(err)
			}
			for _, typ := range types {
				ev, err := snap.State.Event(ctx, typ, "")
				if err != nil || ev == nil {
					t.Fatal(ev, err)
				}
				out = append(out, ev.JSON())
			}
			return out
		}
		good := invite(event.Proto{})
		receive := func(ev *event.Event, origin matrix.ServerName, v roomversion.ID, stripped [][]byte) error {
			_, err := b.ReceiveInvite(ctx, origin, room, ev.ID(), v, ev.JSON(), stripped)
			return err
		}
		shown := state(room, "m.room.create", "m.room.join_rules")
		carol := "@carol:c.example"
		unsigned, err := event.Build(good.Version(), event.Proto{RoomID: room, Type: "m.room.member", Sender: alice, StateKey: &[]string{string(bob)}[0], Content: []byte(`{"membership":"invite"}`),
			PrevEvents: good.PrevEvents(), AuthEvents: good.AuthEvents(), Depth: 9, OriginServerTS: 1}, a.name)
		if err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct {
			err  error
			code string
		}{
			"unknown version":     {receive(good, a.name, "99", shown), "M_INCOMPATIBLE_ROOM_VERSION"},
			"from another server": {receive(good, "c.example", version, shown), "M_INVALID_PARAM"},
			"not ours":            {receive(invite(event.Proto{StateKey: &carol}), a.name, version, shown), "M_INVALID_PARAM"},
			"no invite":           {receive(invite(event.Proto{Content: []byte(`{"membership":"ban"}`)}), a.name, version, shown), "M_INVALID_PARAM"},
			"not signed":          {receive(unsigned, a.name, version, shown), "M_FORBIDDEN"},
		} {
			if !matrix.HasCode(c.err, c.code) {
				t.Errorf("v%s, %s: want %s, got %v", version, what, c.code, c.err)
			}
		}
		if version == "12" {
			for what, err := range map[string]error{
				"no create event":        receive(good, a.name, version, state(room, "m.room.join_rules")),
				"another room's":         receive(good, a.name, version, state(other, "m.room.create")),
				"stripped, no events":    receive(good, a.name, version, [][]byte{[]byte(`{"type":"m.room.create","state_key":"","sender":"@a:a.example","content":{}}`)}),
				"nothing":                receive(good, a.name, version, nil),
				"something that is junk": receive(good, a.name, version, append(shown, []byte(`{`))),
			} {
				if !matrix.HasCode(err, "M_INVALID_PARAM") {
					t.Errorf("%s: %v", what, err)
				}
			}
		}
		if m, err := b.MembershipOf(ctx, room, bob); err != nil || m.Membership != "" {
			t.Fatalf("a refused invite left %q, %v", m.Membership, err)
		}
		if err := receive(good, a.name, version, shown); err != nil {
			t.Fatal(err)
		}
		if err := receive(good, a.name, version, shown); err != nil {
			t.Fatal("the same invite again: ", err)
		}
		m, err := b.MembershipOf(ctx, room, bob)
		if err != nil || m.Membership != "invite" || m.Event != good.ID() {
			t.Fatal(m, err)
		}
		got, err := b.InviteState(ctx, bob, room)
		if err != nil || len(got) != 3 {
			t.Fatalf("%q, %v", got, err)
		}
	}
}

// What comes with an invite says what the room is: it must have been said by who is named. spec: ss/sendInviteV2
func TestSignaturesOfInviteState(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "private_chat", Name: "Garden", Topic: "Flowers", Version: "12"})
	snapshot, err := a.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	state := func(typ string) []byte {
		t.Helper()
		ev, err := snapshot.State.Event(ctx, typ, "")
		if err != nil || ev == nil {
			t.Fatal(typ, err)
		}
		return ev.JSON()
	}
	create, name, topic := state("m.room.create"), state("m.room.name"), state("m.room.topic")
	forged := bytes.Replace(name, []byte("Garden"), []byte("Prison"), 1) // the hash goes wrong, so the event is redacted
	resigned := regexp.MustCompile(`"ed25519:[^}]*`).ReplaceAll(name, []byte(`"`+string(a.key.ID)+`":"`+strings.Repeat("A", 86)+`"`))
	empty := ""
	foreign := a.forge(room, event.Proto{Sender: "@x:gone.example", Type: "m.room.avatar", StateKey: &empty, Content: []byte(`{"url":"mxc://avatar"}`)}).JSON() // a server without keys
	invite := func(stripped ...[]byte) (shown string, err error) {
		key := string(bob)
		ev := a.forge(room, event.Proto{Sender: alice, Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"invite"}`)})
		if _, err = b.ReceiveInvite(ctx, "a.example", room, ev.ID(), "12", ev.JSON(), stripped); err != nil {
			return "", err
		}
		events, err := b.InviteState(ctx, bob, room)
		if err != nil {
			t.Fatal(err)
		}
		return string(bytes.Join(events, nil)), nil
	}
	if _, err := invite(create, resigned); !matrix.HasCode(err, "M_INVALID_PARAM") {
		t.Errorf("a bad signature: %v", err)
	}
	if _, err := invite(name); !matrix.HasCode(err, "M_INVALID_PARAM") {
		t.Errorf("no create event: %v", err)
	}
	shown, err := invite(create, forged, topic, foreign)
	if err != nil || !strings.Contains(shown, "Flowers") || strings.Contains(shown, "Prison") || strings.Contains(shown, "avatar") {
		t.Errorf("%v %s", err, shown)
	}
	// Synapse strips all but the create event.
	stripped := func(eventType string) []byte {
		return []byte(`{"type":"` + eventType + `","state_key":"","sender":"@alice:a.example","content":{"name":"Greenhouse"}}`)
	}
	if shown, err := invite(create, stripped("m.room.name")); err != nil || !strings.Contains(shown, "Greenhouse") {
		t.Errorf("%v %s", err, shown)
	}
	if _, err := invite(create, stripped("m.room.create")); !matrix.HasCode(err, "M_INVALID_PARAM") {
		t.Errorf("a second, stripped create event: %v", err)
	}
	if _, err := invite(stripped("m.room.name")); !matrix.HasCode(err, "M_INVALID_PARAM") {
		t.Errorf("no create event, and the name stripped: %v", err)
	}
}

// What comes with the answer to a knock is shown if it was said by who is named. The knock counts in any case. spec: ss/sendKnock
func TestStateShownToWhoKnocks(t *testing.T) {
	for _, version := range []roomversion.ID{"11", "12"} {
		n := newNetwork(t)
		a, b := n.server("a.example"), n.server("b.example")
		alice, bob := a.user("alice"), b.user("bob")
		room := a.create(alice, rooms.CreateRequest{Preset: "private_chat", Name: "Garden", Topic: "Flowers", Version: version})
		a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"knock"}`)
		empty := ""
		foreign := a.forge(room, event.Proto{Sender: "@x:gone.example", Type: "m.room.avatar", StateKey: &empty, Content: []byte(`{"url":"mxc://avatar"}`)}).JSON()
		another := a.create(alice, rooms.CreateRequest{Name: "Elsewhere", Version: version})
		snapshot, err := a.Snapshot(ctx, another)
		if err != nil {
			t.Fatal(err)
		}
		elsewhere, err := snapshot.State.Event(ctx, "m.room.name", "")
		if err != nil {
			t.Fatal(err)
		}
		n.knocked = func(state [][]byte) (out [][]byte) {
			for _, raw := range state {
				if bytes.Contains(raw, []byte("Garden")) {
					raw = regexp.MustCompile(`"ed25519:[^}]*`).ReplaceAll(raw, []byte(`"`+string(a.key.ID)+`":"`+strings.Repeat("A", 86)+`"`))
				}
				out = append(out, raw)
			}
			return append(out, foreign, []byte(`{`), []byte(`{"type":"m.room.create","state_key":"","sender":"@mallory:evil.example","content":{}}`),
				[]byte(`{"type":"m.room.guest_access","state_key":"","sender":"@alice:a.example","content":{"guest_access":"forbidden"}}`), elsewhere.JSON())
		}
		b.must(b.Knock(ctx, rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{"a.example"}}))
		events, err := b.InviteState(ctx, bob, room)
		if err != nil {
			t.Fatal(err)
		}
		shown := string(bytes.Join(events, nil))
		for what, want := range map[string]bool{
			"Flowers": true, `"membership":"knock"`: true, "guest_access": true, "m.room.create": true,
			"Garden": false, "avatar": false, "Elsewhere": false, "mallory": version == "11",
		} {
			if strings.Contains(shown, what) != want {
				t.Errorf("version %s: %q is shown: %v\n%s", version, what, !want, shown)
			}
		}
	}
}

// Our join may be signed by the server that lets us in, and is otherwise as we made it.
func TestJoinThatComesBackChanged(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	join := func() error {
		_, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{"a.example"}, Content: []byte(`{"reason":"mine"}`)})
		return err
	}
	signature := regexp.MustCompile(`"ed25519:[^"]*":"[^"]*"`)
	for what, change := range map[string]func([]byte) []byte{
		"other content": func(b []byte) []byte { return bytes.Replace(b, []byte("mine"), []byte("yours"), 1) },
		"not our hash":  func(b []byte) []byte { return bytes.Replace(b, []byte(`"reason":"mine"`), []byte(`"reason":"x"`), 1) },
		"a bad signature": func(raw []byte) []byte {
			return signature.ReplaceAll(raw, []byte(`"`+string(b.key.ID)+`":"`+strings.Repeat("A", 86)+`"`))
		},
	} {
		n.lie = func(s *rooms.SentJoin) { s.Event = change(s.Event) }
		if err := join(); err == nil {
			t.Errorf("%s: taken for our join", what)
		}
	}
	n.lie = nil
	if err := join(); err != nil {
		t.Error(err)
	}
}

// A server that invites somebody to one made-up room after the other is refused after a while, and others are not.
func TestInvitesWithoutEnd(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	a.user("alice")
	c.user("carol")
	bob, ben := b.user("bob"), b.user("ben")
	v, _ := roomversion.Get("11")
	made := 0
	invite := func(s *server, who matrix.UserID) error {
		made++
		key, room := string(who), matrix.RoomID(fmt.Sprintf("!r%d:%s", made, s.name))
		ev := s.build(v, event.Proto{
			RoomID: room, Type: "m.room.member", Sender: matrix.UserID("@m:" + string(s.name)), StateKey: &key, Content: []byte(`{"membership":"invite"}`),
			PrevEvents: []matrix.EventID{nowhere(made)}, AuthEvents: []matrix.EventID{nowhere(made)}, Depth: 1 << 53, OriginServerTS: 1,
		})
		_, err := b.ReceiveInvite(ctx, s.name, room, ev.ID(), v.ID, ev.JSON(), [][]byte{[]byte(`{"type":"m.room.name","state_key":"","sender":"` + string(ev.Sender()) + `","content":{"name":"x"}}`)})
		return err
	}
	const many = 310
	accepted := 0
	for range many {
		if err := invite(a, bob); err == nil {
			accepted++
		} else if !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Fatal(err)
		}
	}
	if accepted != 300 {
		t.Errorf("%d invites were taken", accepted)
	}
	for _, other := range []error{invite(c, bob), invite(a, ben)} {
		if other != nil {
			t.Errorf("another invite: %v", other)
		}
	}
	// Who answers gets more of them.
	waiting, err := b.Memberships(ctx, bob, "invite")
	if err != nil || len(waiting) != 301 {
		t.Fatalf("%d invites wait, %v", len(waiting), err)
	}
	n.hold = func(_, _ matrix.ServerName, call string) error { return errUnreachable }
	if _, err := b.Leave(ctx, rooms.MemberRequest{Room: waiting[1].Room, Sender: bob}); err != nil {
		t.Fatal(err)
	}
	if err := invite(a, bob); err != nil {
		t.Errorf("after an answer: %v", err)
	}
}
