package rooms_test

import (
	"fmt"
	"testing"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// tree lists the rooms of a space, page by page.
func (s *server) tree(q rooms.SpaceRequest) []matrix.RoomID {
	s.t.Helper()
	var out []matrix.RoomID
	for range 100 {
		page, err := s.Space(ctx, q)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, r := range page.Rooms {
			out = append(out, r.RoomID)
		}
		if page.Next == "" {
			return out
		}
		q.From = page.Next
	}
	s.t.Fatal("paging does not end")
	return nil
}

func (s *server) child(user matrix.UserID, space, room matrix.RoomID, via, more string) {
	s.t.Helper()
	s.set(user, space, "m.space.child", string(room), fmt.Sprintf(`{%s"via":[%q]}`, more, via))
}

type roomIDs = []matrix.RoomID

func TestSpace(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob, eve := a.user("alice"), b.user("bob"), a.user("eve")
	build := func(s *server, user matrix.UserID, preset, kind string) matrix.RoomID {
		q := rooms.CreateRequest{Preset: preset, Version: "10"}
		if kind != "" {
			q.Content = fmt.Appendf(nil, `{"type":%q}`, kind)
		}
		return s.create(user, q)
	}
	root, sub := build(a, alice, "public_chat", "m.space"), build(a, alice, "public_chat", "m.space")
	open, closed := build(a, alice, "public_chat", ""), build(a, alice, "private_chat", "")
	far, farSpace, farRoom, farClosed := build(b, bob, "public_chat", ""), build(b, bob, "public_chat", "m.space"), build(b, bob, "public_chat", ""), build(b, bob, "private_chat", "")
	a.child(alice, root, sub, "a.example", `"order":"b",`)
	a.child(alice, root, open, "a.example", `"order":"a","suggested":true,`)
	a.child(alice, root, closed, "a.example", "")
	a.child(alice, sub, far, "b.example", `"order":"1",`)
	a.child(alice, sub, farSpace, "b.example", `"order":"2",`)
	a.child(alice, sub, root, "a.example", "") // a cycle
	a.child(alice, sub, open, "a.example", "") // a second way
	a.set(alice, root, "m.space.child", string(farRoom), `{}`)
	// Without an order two children made in the same millisecond would go by room ID.
	b.child(bob, farSpace, farRoom, "b.example", `"order":"1",`)
	b.child(bob, farSpace, farClosed, "b.example", `"order":"2",`)
	b.child(bob, farSpace, root, "a.example", `"order":"3",`)
	// A room that is not a space has no children.
	a.child(alice, open, far, "b.example", "")

	q := rooms.SpaceRequest{Room: root, User: alice}
	all := roomIDs{root, open, sub, far, farSpace, farRoom, closed}
	expect(t, "all", all, a.tree(q))
	for limit := 1; limit <= len(all)+1; limit++ {
		q.Limit = limit
		expect(t, fmt.Sprint("pages of ", limit), all, a.tree(q))
	}
	asked := n.count("hierarchy")
	a.tree(q)
	expect(t, "answers of other servers are kept", asked, n.count("hierarchy"))
	expect(t, "for a stranger", roomIDs{root, open, sub, far, farSpace, farRoom}, a.tree(rooms.SpaceRequest{Room: root, User: eve}))
	expect(t, "from elsewhere", roomIDs{root, open, sub, far, farSpace, farRoom, farClosed}, b.tree(rooms.SpaceRequest{Room: root, User: bob}))
	one, yes := 1, true
	expect(t, "one level", roomIDs{root, open, sub, closed}, a.tree(rooms.SpaceRequest{Room: root, User: alice, MaxDepth: &one, Limit: 2}))
	expect(t, "suggested", roomIDs{root, open}, a.tree(rooms.SpaceRequest{Room: root, User: alice, SuggestedOnly: &yes}))
	page, err := a.Space(ctx, rooms.SpaceRequest{Room: root, User: alice, MaxDepth: &one, Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	two := 2
	for _, bad := range []rooms.SpaceRequest{{From: page.Next, MaxDepth: &two}, {From: page.Next, SuggestedOnly: &yes}, {From: "nonsense"}, {From: "e30"}} {
		bad.Room, bad.User = root, alice
		if _, err := a.Space(ctx, bad); !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	for _, room := range []matrix.RoomID{closed, "!unknown:a.example"} {
		if _, err := a.Space(ctx, rooms.SpaceRequest{Room: room, User: eve}); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("%s: %v", room, err)
		}
	}
}

func TestRoomDetails(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob, carol := a.user("alice"), b.user("bob"), b.user("carol")
	open := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "10", Name: "Open"})
	restricted := a.create(alice, rooms.CreateRequest{Version: "10", InitialState: []rooms.StateInput{
		{Type: "m.room.join_rules", Content: fmt.Appendf(nil, `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, open)},
	}})
	private := a.create(alice, rooms.CreateRequest{Version: "10", Name: "Private", Invite: []matrix.UserID{bob}})
	n.settle()
	ask := func(s *server, user matrix.UserID, room matrix.RoomID) *rooms.RoomDetails {
		t.Helper()
		d, err := s.RoomDetails(ctx, rooms.SummaryRequest{Room: room, User: user})
		if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Fatal(err)
		}
		return d
	}
	for what, d := range map[string]*rooms.RoomDetails{
		"a member": ask(a, alice, open), "nobody": ask(a, "", open), "somebody elsewhere": ask(b, bob, open),
	} {
		if d == nil || d.Name != "Open" || d.RoomVersion != "10" || d.NumJoined != 1 || d.AllowedRooms != nil {
			t.Errorf("%s: %+v", what, d)
		}
	}
	if d := ask(b, bob, private); d == nil || d.Name != "Private" {
		t.Errorf("invited: %+v", d)
	}
	a.must(a.Ban(ctx, rooms.MemberRequest{Room: open, Sender: alice, Target: carol}))
	b.join(bob, open, a)
	n.settle()
	if d := ask(b, carol, open); d != nil {
		t.Errorf("banned: %+v", d)
	}
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: open, Sender: bob}))
	n.settle()
	n.split(a, b, true)
	if d := ask(b, bob, private); d == nil || d.Name != "Private" {
		t.Errorf("invited, and nobody to ask: %+v", d)
	}
	n.split(a, b, false)
	for what, d := range map[string]*rooms.RoomDetails{
		"not invited": ask(b, carol, private), "nobody, closed": ask(a, "", private), "restricted": ask(b, bob, restricted), "nobody elsewhere": ask(b, "", open),
	} {
		if d != nil {
			t.Errorf("%s: %+v", what, d)
		}
	}
	b.join(bob, open, a)
	n.settle()
	if d := ask(a, alice, restricted); d == nil || len(d.AllowedRooms) != 1 {
		t.Errorf("restricted, a member: %+v", d)
	}
	if d := ask(b, bob, restricted); d == nil || d.JoinRule != "restricted" {
		t.Errorf("restricted, in the room that counts: %+v", d)
	}
}

func TestEventByTime(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		n := newNetwork(t)
		a, b := n.serverOn("a.example", dsn), n.server("b.example")
		alice, bob := a.user("alice"), b.user("bob")
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Timestamp: 1000})
		say := func(ts matrix.Timestamp) matrix.EventID {
			t.Helper()
			id, err := a.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.message", Content: []byte(`{"body":"x"}`), Timestamp: ts})
			a.must(id, err)
			return id
		}
		first, second, third, imported, last := say(2000), say(3000), say(3000), say(500), say(4000)
		find := func(s *server, user matrix.UserID, ts matrix.Timestamp, backward bool) matrix.EventID {
			t.Helper()
			ev, err := s.EventByTime(ctx, user, room, ts, backward)
			if matrix.HasCode(err, "M_NOT_FOUND") {
				return ""
			}
			if err != nil {
				t.Fatal(err)
			}
			return ev.ID()
		}
		const none = matrix.EventID("")
		check := func(s *server, user matrix.UserID) {
			t.Helper()
			expect(t, "after", first, find(s, user, 1500, false))
			expect(t, "at", first, find(s, user, 2000, false))
			expect(t, "the first of two", second, find(s, user, 2500, false))
			expect(t, "the second of two", third, find(s, user, 3500, true))
			expect(t, "out of order", imported, find(s, user, 900, true))
			expect(t, "before the beginning", none, find(s, user, 400, true))
		}
		check(a, alice)
		expect(t, "after the end", none, find(a, alice, 1<<50, false))
		expect(t, "the newest", last, find(a, alice, 1<<50, true))
		if _, err := a.EventByTime(ctx, a.user("eve"), room, 1, false); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("a stranger: %v", err)
		}
		// Elsewhere nothing of this is known yet.
		b.join(bob, room, a)
		n.settle()
		check(b, bob)
		// What was fetched can be read on from.
		page, err := b.Context(ctx, bob, room, third, 10, nil)
		if err != nil || len(page.Before) < 3 || page.Before[0].ID() != second {
			t.Errorf("%v %v", page, err)
		}
	})
}
