package rooms_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/signing"
	"hanok/rooms"
)

// An event that was rejected stands in the graph all the same: other servers get it, and what comes before it. The state at it is nobody's business.
func TestServingRejectedEvents(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	before := a.say(alice, room, "before")
	n.settle()
	coup := b.forge(room, event.Proto{Sender: bob, Type: "m.room.name", StateKey: new(string), Content: []byte(`{"name":"coup"}`)})
	next := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", PrevEvents: []matrix.EventID{coup.ID()}, Depth: 50, Content: []byte(`{"body":"after"}`)})
	if r := a.receive(b, room, coup.JSON(), next.JSON()); !r[0].Rejected() || r[1].Err != nil {
		t.Fatalf("%+v", r)
	}
	snap, err := a.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	idsOf := func(pdus [][]byte, err error) []matrix.EventID {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		var ids []matrix.EventID
		for _, pdu := range pdus {
			ev, err := event.Parse(snap.Version, pdu)
			if err != nil {
				t.Fatal(err)
			}
			ids = append(ids, ev.ID())
		}
		return ids
	}
	for what, got := range map[string][]matrix.EventID{
		"backfill":                       idsOf(a.ServeBackfill(ctx, b.name, room, []matrix.EventID{next.ID()}, 3)),
		"backfill from the rejected one": append([]matrix.EventID{next.ID()}, idsOf(a.ServeBackfill(ctx, b.name, room, []matrix.EventID{coup.ID()}, 2))...),
	} {
		if want := []matrix.EventID{next.ID(), coup.ID(), before}; !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	got := idsOf(a.ServeMissingEvents(ctx, b.name, room, []matrix.EventID{before}, []matrix.EventID{next.ID()}, 10, 0))
	if want := []matrix.EventID{coup.ID()}; !slices.Equal(got, want) {
		t.Errorf("get_missing_events: %v, want %v", got, want)
	}
	if _, err := a.ServeBackfill(ctx, b.name, room, []matrix.EventID{"$unknown", "$unknown2"}, 3); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("backfill from nowhere: %v", err)
	}
	elsewhere := a.create(a.user("alice"), rooms.CreateRequest{Version: "11"})
	if pdus, err := a.ServeBackfill(ctx, b.name, room, a.tips(elsewhere), 3); err != nil || len(pdus) != 0 {
		t.Errorf("backfill from an event of another room: %d events, %v", len(pdus), err)
	}
	if got := idsOf(a.ServeMissingEvents(ctx, b.name, room, nil, []matrix.EventID{next.ID()}, 0, 0)); len(got) > 0 {
		t.Errorf("get_missing_events with the limit 0: %v", got)
	}
	if pdu, err := a.ServeEvent(ctx, b.name, coup.ID()); err != nil || !bytes.Equal(pdu, coup.JSON()) {
		t.Errorf("event: %s, %v", pdu, err)
	}
	if _, _, err := a.ServeStateIDs(ctx, b.name, room, coup.ID()); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("state_ids: %v", err)
	}
}

// Who joins and leaves again at once may ask what was there before the join, as it was about to be told; of what came earlier or later it may not.
func TestLeftBeforeAskingForTheState(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	earlier := a.say(alice, room, "earlier")
	before := a.say(alice, room, "before")
	b.join(bob, room, a)
	n.settle()
	if _, err := b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}); err != nil {
		t.Fatal(err)
	}
	n.settle()
	later := a.say(alice, room, "later")
	for _, asked := range []struct {
		by    matrix.ServerName
		about matrix.EventID
		may   bool
	}{{b.name, before, true}, {b.name, earlier, false}, {b.name, later, false}, {c.name, before, false}} {
		_, err := a.ServeEvent(ctx, asked.by, asked.about)
		_, _, err2 := a.ServeStateIDs(ctx, asked.by, room, asked.about)
		for _, err := range []error{err, err2} {
			if (err == nil) != asked.may || err != nil && !matrix.HasCode(err, "M_FORBIDDEN") {
				t.Errorf("%s asks about %s: %v", asked.by, asked.about, err)
			}
		}
	}
}

// What the access list of a room said when the last local user left is no reason to keep a server's invites out.
func TestAccessListOfRoomThatWasLeft(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100,"@bob:b.example":100}}`)
	a.set(alice, room, "m.room.server_acl", "", `{"allow":["*"],"deny":["b.example"]}`)
	n.settle()
	if err := a.AllowsServer(ctx, room, b.name); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Fatal(err)
	}
	if _, err := a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}); err != nil {
		t.Fatal(err)
	}
	if err := a.AllowsServer(ctx, room, b.name); err != nil {
		t.Errorf("after the last leave: %v", err)
	}
	n.settle()
	if _, err := b.Invite(ctx, rooms.MemberRequest{Room: room, Sender: bob, Target: alice}); err != nil {
		t.Fatal(err)
	}
	a.expectMembership(alice, room, "invite")
	// The history from before stays closed to it.
	if _, _, err := a.ServeStateIDs(ctx, b.name, room, b.say(bob, room, "x")); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("state_ids: %v", err)
	}
	if err := a.Isolate(ctx, room, true); err != nil {
		t.Fatal(err)
	}
	if err := a.AllowsServer(ctx, room, b.name); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("a room that is kept apart: %v", err)
	}
}

// All children of a space are told of that the asking server's users could get into; those of a child that is a space, too, as long as that is little.
func TestServingABigSpace(t *testing.T) {
	n := newNetwork(t)
	a := n.server("a.example")
	alice := a.user("alice")
	space := func() matrix.RoomID {
		return a.create(alice, rooms.CreateRequest{Preset: "public_chat", Content: []byte(`{"type":"m.space"}`)})
	}
	root, big, small := space(), space(), space()
	add := func(parent, child matrix.RoomID, more string) {
		a.set(alice, parent, "m.space.child", string(child), `{"via":["a.example"]`+more+`}`)
	}
	for i := range 60 {
		add(root, a.create(alice, rooms.CreateRequest{Preset: "public_chat"}), fmt.Sprintf(`,"order":"%02d"`, i))
	}
	private := a.create(alice, rooms.CreateRequest{Preset: "private_chat"})
	own := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Content: []byte(`{"m.federate":false}`)})
	for _, child := range []matrix.RoomID{small, big, private, own, "!unknown:b.example"} {
		add(root, child, "")
	}
	add(small, big, "")
	for range 20 {
		add(big, a.create(alice, rooms.CreateRequest{}), `,"x":"`+strings.Repeat("x", 60_000)+`"`)
	}
	h, err := a.ServeHierarchy(ctx, "c.example", root, false)
	if err != nil {
		t.Fatal(err)
	}
	if len(h.Room.ChildrenState) != 65 || len(h.Children) != 62 {
		t.Errorf("%d children, %d of them described", len(h.Room.ChildrenState), len(h.Children))
	}
	slices.Sort(h.Inaccessible)
	closed := []matrix.RoomID{private, own}
	slices.Sort(closed)
	if !slices.Equal(h.Inaccessible, closed) {
		t.Errorf("inaccessible: %v, want %v", h.Inaccessible, closed)
	}
	for _, c := range h.Children {
		if c.RoomID == small && len(c.ChildrenState) != 1 || c.RoomID == big && len(c.ChildrenState) > 0 {
			t.Errorf("%s has %d children", c.RoomID, len(c.ChildrenState))
		}
	}
	for _, room := range closed {
		if _, err := a.ServeHierarchy(ctx, "c.example", room, false); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Errorf("a room that is closed: %v", err)
		}
	}
}

// What another server gets of a room's history: whole what its users could see, the rest in redacted form.
func TestServingHistoryByVisibility(t *testing.T) {
	for _, c := range []struct {
		visibility  string
		hiddenFromB []string
		hiddenFromC []string
	}{
		{"world_readable", nil, nil},
		{"shared", nil, nil},
		{"invited", []string{"before"}, []string{"before", "invite", "invited", "join", "joined"}},
		{"joined", []string{"before", "invite", "invited"}, []string{"before", "invite", "invited", "join", "joined"}},
	} {
		n := newNetwork(t)
		a, b, d := n.server("a.example"), n.server("b.example"), n.server("c.example")
		alice, bob, carol := a.user("alice"), b.user("bob"), d.user("carol")
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", InitialState: []rooms.StateInput{
			{Type: "m.room.history_visibility", Content: []byte(`{"history_visibility":"` + c.visibility + `"}`)},
		}})
		body := func(text string) []byte { return []byte(`{"body":"` + text + `","msgtype":"m.text"}`) }
		say := func(text string) matrix.EventID {
			t.Helper()
			id, err := a.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.message", Content: body(text)})
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		names := map[matrix.EventID]string{say("before"): "before"}
		invite, err := a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob, Reason: "a reason"})
		if err != nil {
			t.Fatal(err)
		}
		names[invite], names[say("invited")] = "invite", "invited"
		join, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: bob, Reason: "a reason", Via: []matrix.ServerName{a.name}})
		if err != nil {
			t.Fatal(err)
		}
		n.settle()
		names[join], names[say("joined")] = "join", "joined"
		if c.visibility == "joined" || c.visibility == "invited" {
			names[a.set(alice, room, "m.room.history_visibility", "", `{"history_visibility":"shared"}`)] = "opened"
		}
		d.join(carol, room, a)
		last := say("last")
		names[last] = "last"
		n.settle()
		snap, err := a.Snapshot(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		for server, want := range map[matrix.ServerName][]string{b.name: c.hiddenFromB, d.name: c.hiddenFromC} {
			pdus, err := a.ServeBackfill(ctx, server, room, []matrix.EventID{last}, 50)
			if err != nil {
				t.Fatal(err)
			}
			var hidden []string
			found := 0
			for _, pdu := range pdus {
				ev, err := event.Parse(snap.Version, pdu)
				if err != nil {
					t.Fatal(err)
				}
				name := names[ev.ID()]
				if name == "" {
					continue // how the room was made
				}
				found++
				if ev.HashMismatch() {
					hidden = append(hidden, name)
				}
				one, err := a.ServeEvent(ctx, server, ev.ID())
				if err != nil || !bytes.Equal(one, pdu) {
					t.Errorf("%s, %s to %s: alone it is %s, %v", c.visibility, name, server, one, err)
				}
			}
			slices.Sort(hidden)
			slices.Sort(want)
			if found != len(names) || !slices.Equal(hidden, want) {
				t.Errorf("%s: hidden from %s: %v, want %v; %d of %d found", c.visibility, server, hidden, want, found, len(names))
			}
		}
	}
}

// Rooms hold events from before the numbers of their prev events were limited: history has them, and nothing else.
func TestHistoryWithManyPrevEvents(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	at := a.say(alice, room, "before")
	old := a.forge(room, event.Proto{Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"of old","msgtype":"m.text"}`)})
	var prevs []string
	for i := range 25 {
		prevs = append(prevs, fmt.Sprintf("$%043d", i))
	}
	list, err := canonicaljson.Marshal(prevs)
	if err != nil {
		t.Fatal(err)
	}
	raw := canonicaljson.Delete(canonicaljson.Set(old.JSON(), "prev_events", list), "hashes", "signatures")
	hash := sha256.Sum256(raw)
	raw = canonicaljson.Set(canonicaljson.Set(raw, "hashes", []byte(`{"sha256":"`+signing.EncodeBase64(hash[:])+`"}`)), "signatures", []byte(`{}`))
	if _, err := event.Parse(old.Version(), raw); !matrix.HasCode(err, "M_BAD_JSON") {
		t.Fatalf("25 prev events: %v", err)
	}
	if old, err = event.ParseHistory(old.Version(), raw); err == nil {
		old, err = old.Sign(a.name, a.key)
	}
	if err != nil {
		t.Fatal(err)
	}
	b.join(bob, room, a)
	n.settle()
	if r := b.receive(a, room, old.JSON()); r[0].ID != "" || r[0].Err == nil {
		t.Errorf("as news: %+v", r)
	}
	n.backfill = func(_ matrix.ServerName, pdus [][]byte) [][]byte { return append(pdus, old.JSON()) }
	n.stateIDs = func() (state, auth []matrix.EventID) {
		state, auth, err := a.ServeStateIDs(ctx, b.name, room, at)
		if err != nil {
			t.Error(err)
		}
		return state, auth
	}
	if texts := b.texts(bob, room); !slices.Contains(texts, "before") || !slices.Contains(texts, "of old") {
		t.Errorf("as history: %q", texts)
	}
}

// Who asks for an alias begins with the first server named: that is this one as long as it is in the room.
func TestServersOfAnAlias(t *testing.T) {
	n, a, b, _ := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", AliasLocal: "here"})
	b.join(bob, room, a)
	n.settle()
	servers := func() []matrix.ServerName {
		t.Helper()
		id, servers, err := a.ResolveLocalAlias(ctx, "#here:a.example")
		if err != nil || id != room {
			t.Fatal(id, err)
		}
		return servers
	}
	if got := servers(); !slices.Equal(got, []matrix.ServerName{a.name, b.name}) {
		t.Errorf("with alice in the room: %v", got)
	}
	if _, err := a.Leave(ctx, rooms.MemberRequest{Room: room, Sender: alice}); err != nil {
		t.Fatal(err)
	}
	n.settle()
	if got := servers(); !slices.Equal(got, []matrix.ServerName{b.name}) {
		t.Errorf("after she left: %v", got)
	}
}

// What came before our own join, and was fetched since, is shown to others who come from behind it.
func TestServingHistoryFromBeforeOurJoin(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	a.say(alice, room, "first")
	b.join(bob, room, a)
	n.settle()
	c.join(c.user("carol"), room, a)
	n.settle()
	tips := a.tips(room)
	want, err := a.ServeBackfill(ctx, c.name, room, tips, 100)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.texts(bob, room); len(got) != 1 {
		t.Fatal(got)
	}
	for _, restart := range []bool{false, true} {
		if restart {
			b.restart()
		}
		if got, err := b.ServeBackfill(ctx, c.name, room, tips, 100); err != nil || len(got) != len(want) {
			t.Errorf("restarted %v: %d events are shown of %d: %v", restart, len(got), len(want), err)
		}
		if got, err := b.ServeMissingEvents(ctx, c.name, room, nil, tips, 100, 0); err != nil || len(got) != len(want)-1 {
			t.Errorf("restarted %v: %d events are shown between of %d: %v", restart, len(got), len(want)-1, err)
		}
	}
}
