package rooms_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// content is that of a current state event, "" if there is none.
func (s *server) content(room matrix.RoomID, typ, key string) string {
	s.t.Helper()
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	ev, err := snap.State.Event(ctx, typ, key)
	if err != nil {
		s.t.Fatal(err)
	}
	if ev == nil {
		return ""
	}
	return string(ev.Content())
}

func fields(content string) (m map[string]any) {
	json.Unmarshal([]byte(content), &m)
	return m
}

func TestUpgrade(t *testing.T) {
	for _, from := range []roomversion.ID{"1", "5", "9", "11", "12"} {
		for _, to := range []roomversion.ID{"1", "6", "11", "12"} {
			t.Run(fmt.Sprintf("%s to %s", from, to), func(t *testing.T) { testUpgrade(t, from, to) })
		}
	}
}

func testUpgrade(t *testing.T, from, to roomversion.ID) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob, carol, bad := a.user("alice"), b.user("bob"), a.user("carol"), b.user("bad")
	old := a.create(alice, rooms.CreateRequest{
		Version: from, Preset: "public_chat", Published: true, AliasLocal: "lobby", Name: "N", Topic: "T", Content: []byte(`{"type":"m.space"}`),
	})
	b.join(bob, old, a)
	n.settle()
	a.join(carol, old)
	a.set(alice, old, "m.room.server_acl", "", `{"allow":["*"]}`)
	a.set(alice, old, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
	a.set(alice, old, "m.room.join_rules", "", `{"join_rule":"public"}`)
	a.set(alice, old, "m.space.child", "!kept:x", `{"via":["x"]}`)
	a.set(alice, old, "m.space.child", "!gone:x", `{}`)
	a.set(alice, old, "org.example", "", `{"x":1}`)
	a.must(a.Ban(ctx, rooms.MemberRequest{Room: old, Sender: alice, Target: bad, Reason: "spam"}))
	users := fmt.Sprintf(`%q:100,%q:60`, alice, bob)
	if from == "12" {
		users = fmt.Sprintf(`%q:60`, bob)
	}
	a.set(alice, old, "m.room.power_levels", "", `{"users":{`+users+`},"events":{"m.room.tombstone":80},"ban":70}`)
	n.settle()

	if _, err := a.Upgrade(ctx, rooms.UpgradeRequest{Room: old, Sender: carol, Version: to}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("without the power: %v", err)
	}
	if _, err := a.Upgrade(ctx, rooms.UpgradeRequest{Room: old, Sender: alice, Version: "99"}); !matrix.HasCode(err, "M_UNSUPPORTED_ROOM_VERSION") {
		t.Errorf("an unknown version: %v", err)
	}
	room, err := a.Upgrade(ctx, rooms.UpgradeRequest{Room: old, Sender: alice, Version: to, AdditionalCreators: []matrix.UserID{carol}})
	if err != nil {
		t.Fatal(err)
	}
	create := fields(a.content(room, "m.room.create", ""))
	expect(t, "version", string(to), create["room_version"])
	expect(t, "type", "m.space", create["type"])
	expect(t, "predecessor", string(old), dig(create, "predecessor", "room_id"))
	tombstone := currentID(a, old, "m.room.tombstone")
	if to == "12" {
		expect(t, "last event", nil, dig(create, "predecessor", "event_id"))
		expect(t, "creators", []any{string(carol)}, create["additional_creators"])
	} else {
		expect(t, "last event", string(tombstone), dig(create, "predecessor", "event_id"))
		expect(t, "creators", nil, create["additional_creators"])
	}
	expect(t, "replacement", string(room), fields(a.content(old, "m.room.tombstone", ""))["replacement_room"])
	for typ, want := range map[string]string{
		"m.room.name": `{"name":"N"}`, "m.room.server_acl": `{"allow":["*"]}`, "m.room.encryption": `{"algorithm":"m.megolm.v1.aes-sha2"}`,
		"m.room.join_rules": `{"join_rule":"public"}`, "m.room.history_visibility": `{"history_visibility":"shared"}`, "org.example": "",
		"m.room.canonical_alias": `{"alias":"#lobby:a.example"}`,
	} {
		expect(t, typ, want, a.content(room, typ, ""))
	}
	if !strings.Contains(a.content(room, "m.room.topic", ""), `"topic":"T"`) {
		t.Error("no topic")
	}
	expect(t, "a child", `{"via":["x"]}`, a.content(room, "m.space.child", "!kept:x"))
	expect(t, "a child that was removed", "", a.content(room, "m.space.child", "!gone:x"))
	expect(t, "a ban", `{"membership":"ban","reason":"spam"}`, a.content(room, "m.room.member", string(bad)))
	expect(t, "a member", "", a.content(room, "m.room.member", string(carol)))
	levels := fields(a.content(room, "m.room.power_levels", ""))
	want := map[string]any{string(bob): 60.0, string(alice): 100.0}
	if to == "12" {
		delete(want, string(alice))
	}
	expect(t, "levels", want, levels["users"])
	expect(t, "level to ban", 70.0, levels["ban"])

	// The old room is closed, the directory and the aliases lead to the new one.
	oldLevels := fields(a.content(old, "m.room.power_levels", ""))
	expect(t, "closed", []any{50.0, 50.0}, []any{oldLevels["events_default"], oldLevels["invite"]})
	expect(t, "aliases left", `{}`, a.content(old, "m.room.canonical_alias", ""))
	if id, _, err := a.ResolveAlias(ctx, "#lobby:a.example"); err != nil || id != room {
		t.Errorf("the alias leads to %s, %v", id, err)
	}
	list, err := a.PublicRooms(ctx, rooms.PublicRoomsRequest{})
	if err != nil || len(list.Chunk) != 1 || list.Chunk[0].RoomID != room {
		t.Errorf("directory: %v %v", list, err)
	}

	// Others see the same, and can follow.
	n.settle()
	expect(t, "the old room elsewhere", a.state(old), b.state(old))
	b.join(bob, room, a)
	n.settle()
	expect(t, "the new room elsewhere", a.state(room), b.state(room))
	a.restart()
	a.join(carol, room)
	a.say(carol, room, "here")
}

func currentID(s *server, room matrix.RoomID, typ string) matrix.EventID {
	s.t.Helper()
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	ev, err := snap.State.Event(ctx, typ, "")
	if err != nil || ev == nil {
		s.t.Fatal(typ, err)
	}
	return ev.ID()
}

// Where power levels did not keep the next upgrade from those who may change the room, creators do from room version 12 on.
func TestUpgradeGuardsTombstone(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice := s.user("alice")
	for levels, want := range map[string]any{`{"users":{%q:100}}`: 150.0, `{"users":{%q:100},"state_default":60,"events":{"m.room.tombstone":60}}`: 150.0, `{"users":{%q:100},"events":{"m.room.tombstone":51}}`: 51.0} {
		old := s.create(alice, rooms.CreateRequest{Version: "11"})
		s.set(alice, old, "m.room.power_levels", "", fmt.Sprintf(levels, alice))
		room, err := s.Upgrade(ctx, rooms.UpgradeRequest{Room: old, Sender: alice, Version: "12"})
		if err != nil {
			t.Fatal(err)
		}
		expect(t, levels, want, dig(fields(s.content(room, "m.room.power_levels", "")), "events", "m.room.tombstone"))
	}
}

// A room goes on while it is upgraded, and of several requests at once all get the same room.
func TestUpgradeWhileTalking(t *testing.T) {
	n := newNetwork(t)
	s := n.server("a.example")
	alice, bob := s.user("alice"), s.user("bob")
	old := s.create(alice, rooms.CreateRequest{Version: "11", Preset: "public_chat"})
	s.join(bob, old)
	s.set(alice, old, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:50}}`, alice, bob))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var made []matrix.RoomID
	for range 3 {
		wg.Go(func() {
			id, err := s.Upgrade(ctx, rooms.UpgradeRequest{Room: old, Sender: alice, Version: "11"})
			mu.Lock()
			defer mu.Unlock()
			made = append(made, id)
			if err != nil {
				t.Error(err)
			}
		})
	}
	for i := range 20 {
		s.say(bob, old, fmt.Sprint(i))
	}
	wg.Wait()
	last := fields(s.content(old, "m.room.tombstone", ""))["replacement_room"]
	if !slices.ContainsFunc(made, func(id matrix.RoomID) bool { return string(id) == last }) {
		t.Errorf("made %v, the tombstone names %v", made, last)
	}
	if got := s.texts(bob, old); len(got) != 20 {
		t.Errorf("%d messages", len(got))
	}
	s.restart()
	s.say(bob, old, "after")
}

// Aliases and directory entries that we have of a room go on to lead to it when another server upgrades it, but only if both
// rooms say so.
func TestFollowUpgrade(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	old := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	b.join(bob, old, a)
	a.set(alice, old, "m.room.power_levels", "", `{"users":{"`+string(bob)+`":50}}`)
	n.settle()
	const alias = "#lobby:b.example"
	if err := b.CreateAlias(ctx, bob, alias, old, false); err != nil {
		t.Fatal(err)
	}
	if err := b.SetPublished(ctx, bob, old, true, false); err != nil {
		t.Fatal(err)
	}
	leadsTo := func(want matrix.RoomID) {
		t.Helper()
		if got, _, err := b.ResolveLocalAlias(ctx, alias); err != nil || got != want {
			t.Errorf("the alias leads to %s, want %s: %v", got, want, err)
		}
		if public, err := b.Published(ctx, want); err != nil || !public {
			t.Errorf("%s is not in the directory: %v", want, err)
		}
	}
	follow := func(to matrix.RoomID) {
		t.Helper()
		if err := b.FollowUpgrade(ctx, old, to); err != nil {
			t.Error(err)
		}
	}
	impostor := b.create(bob, rooms.CreateRequest{Content: []byte(`{"predecessor":{"room_id":"` + string(old) + `"}}`)})
	follow(impostor)
	follow("!nowhere:a.example")
	leadsTo(old)
	replacement, err := a.Upgrade(ctx, rooms.UpgradeRequest{Room: old, Sender: alice, Version: "11"})
	if err != nil {
		t.Fatal(err)
	}
	n.settle()
	follow(replacement)
	leadsTo(old) // the new room is not known here
	b.join(bob, replacement, a)
	follow(impostor)
	leadsTo(old)
	follow(replacement)
	follow(replacement)
	leadsTo(replacement)
	if public, err := b.Published(ctx, old); err != nil || public {
		t.Errorf("the old room is still in the directory: %v", err)
	}
}
