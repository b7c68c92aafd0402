package rooms_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

func eachVersion(t *testing.T, fn func(t *testing.T, v roomversion.ID)) {
	for _, v := range roomversion.Supported() {
		t.Run("v"+string(v), func(t *testing.T) { fn(t, v) })
	}
}

func TestLocalRoom(t *testing.T) {
	eachVersion(t, func(t *testing.T, v roomversion.ID) {
		n := newNetwork(t)
		s := n.server("a.example")
		alice, bob := s.user("alice"), s.user("bob")
		room := s.create(alice, rooms.CreateRequest{Version: v, Name: "R", Topic: "T", Invite: []matrix.UserID{bob}})
		if _, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: bob, Type: "m.room.message", Content: []byte(`{}`)}); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Fatalf("an invited user can send: %v", err)
		}
		s.join(bob, room)
		for _, text := range []string{"one", "two"} {
			s.say(bob, room, text)
		}
		if diff := cmp.Diff([]string{"one", "two"}, s.texts(alice, room)); diff != "" {
			t.Fatal(diff)
		}
		before := s.state(room)
		s.restart()
		if diff := cmp.Diff(before, s.state(room)); diff != "" {
			t.Fatalf("state after restart: %s", diff)
		}
		s.say(alice, room, "three")
		if diff := cmp.Diff([]string{"one", "two", "three"}, s.texts(bob, room)); diff != "" {
			t.Fatal(diff)
		}
		joined, err := s.JoinedRooms(ctx, bob)
		if err != nil || len(joined) != 1 || joined[0] != room {
			t.Fatal(joined, err)
		}
	})
}

func TestEngines(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		n := newNetwork(t)
		s := n.serverOn("a.example", dsn)
		alice := s.user("alice")
		room := s.create(alice, rooms.CreateRequest{Preset: "public_chat", Published: true, AliasLocal: "lobby"})
		for range 20 {
			s.say(alice, room, "x")
		}
		s.restart()
		if got := s.texts(alice, room); len(got) != 20 {
			t.Fatalf("%d messages", len(got))
		}
		id, _, err := s.ResolveAlias(ctx, "#lobby:a.example")
		if err != nil || id != room {
			t.Fatal(id, err)
		}
		list, err := s.PublicRooms(ctx, rooms.PublicRoomsRequest{})
		if err != nil || len(list.Chunk) != 1 || list.Chunk[0].NumJoined != 1 {
			t.Fatal(list, err)
		}
	})
}

func TestRemoteJoin(t *testing.T) {
	eachVersion(t, func(t *testing.T, v roomversion.ID) {
		n := newNetwork(t)
		a, b := n.server("a.example"), n.server("b.example")
		alice, bob := a.user("alice"), b.user("bob")
		room := a.create(alice, rooms.CreateRequest{Version: v, Preset: "public_chat"})
		a.say(alice, room, "before")
		b.join(bob, room, a)
		n.settle()
		if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
			t.Fatal(diff)
		}
		b.say(bob, room, "hello")
		n.settle()
		a.say(alice, room, "hi")
		n.settle()
		if diff := cmp.Diff([]string{"before", "hello", "hi"}, a.texts(alice, room)); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff([]string{"before", "hello", "hi"}, b.texts(bob, room)); diff != "" {
			t.Fatal("with backfill: ", diff)
		}
	})
}

func TestRemoteInvite(t *testing.T) {
	eachVersion(t, func(t *testing.T, v roomversion.ID) {
		n := newNetwork(t)
		a, b := n.server("a.example"), n.server("b.example")
		alice, bob, carol := a.user("alice"), b.user("bob"), b.user("carol")
		room := a.create(alice, rooms.CreateRequest{Version: v, Name: "secret", Invite: []matrix.UserID{bob, carol}})
		n.settle()
		m, err := b.MembershipOf(ctx, room, bob)
		if err != nil || m.Membership != "invite" || m.Sender != alice || m.Position == 0 {
			t.Fatal(m, err)
		}
		state, err := b.InviteState(ctx, bob, room)
		if err != nil || len(state) < 4 {
			t.Fatalf("%q %v", state, err)
		}
		b.join(bob, room)
		b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: carol}))
		n.settle()
		if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
			t.Fatal(diff)
		}
		m, err = a.MembershipOf(ctx, room, carol)
		if err != nil || m.Membership != "leave" {
			t.Fatal(m, err)
		}
	})
}

func TestRejectInviteOfUnreachableServer(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Invite: []matrix.UserID{bob}})
	n.split(a, b, true)
	b.must(b.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
	m, err := b.MembershipOf(ctx, room, bob)
	if err != nil || m.Membership != "leave" {
		t.Fatal(m, err)
	}
}

// The directory can be walked in both directions.
func TestPublicRoomsPages(t *testing.T) {
	a := newNetwork(t).server("a.example")
	const count = 5
	for range count {
		a.create(a.user("alice"), rooms.CreateRequest{Published: true})
	}
	var seen []matrix.RoomID
	q := rooms.PublicRoomsRequest{Limit: 2}
	var back string
	for {
		page, err := a.PublicRooms(ctx, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range page.Chunk {
			if slices.Contains(seen, r.RoomID) {
				t.Fatalf("%s comes twice", r.RoomID)
			}
			seen = append(seen, r.RoomID)
		}
		if q.Since, back = page.NextBatch, page.PrevBatch; q.Since == "" {
			break
		}
	}
	pages := 0
	for ; back != ""; pages++ {
		page, err := a.PublicRooms(ctx, rooms.PublicRoomsRequest{Limit: 2, Since: back})
		if err != nil {
			t.Fatal(err)
		}
		if at := slices.Index(seen, page.Chunk[0].RoomID); at != 2-2*pages {
			t.Errorf("page %d before the last begins with room %d", pages+1, at)
		}
		back = page.PrevBatch
	}
	if len(seen) != count || pages != 2 {
		t.Errorf("%d rooms, and %d pages back from the last", len(seen), pages)
	}
	for _, bad := range []string{"x", "p", "-1", "p-1", "3x", "n1_", "n_!a:b", "n-1_!a:b", "p1_x"} {
		if _, err := a.PublicRooms(ctx, rooms.PublicRoomsRequest{Since: bad}); !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("since=%s: %v", bad, err)
		}
	}
}

// A change of a room's state is logged where there is one: not by what people say, on this server or another, after a join through it.
func TestLoggedStates(t *testing.T) {
	for _, omit := range []bool{false, true} {
		n, a, _, room := twoServers(t)
		n.omit = omit
		c := n.server("c.example")
		alice, carol := a.user("alice"), c.user("carol")
		c.join(carol, room, a)
		if _, err := c.Members(ctx, rooms.MembersRequest{Room: room, User: carol}); err != nil {
			t.Fatal(err)
		}
		nid, err := c.RoomNID(ctx, room)
		if err != nil {
			t.Fatal(err)
		}
		logged := func() int {
			t.Helper()
			rows, err := storage.RoomStatesFrom(ctx, c.db, nid, 0)
			if err != nil {
				t.Fatal(err)
			}
			return len(rows)
		}
		before := logged()
		for i := range 3 {
			a.say(alice, room, fmt.Sprint("a", i))
			n.settle()
			c.say(carol, room, fmt.Sprint("c", i))
			a.say(alice, room, fmt.Sprint("beside", i))
			n.settle()
		}
		if got := logged() - before; got != 0 {
			t.Errorf("%d changes of the state are logged for messages (members left out: %v)", got, omit)
		}
		a.set(alice, room, "m.room.topic", "", `{"topic":"x"}`)
		n.settle()
		if got := logged() - before; got != 1 {
			t.Errorf("%d changes of the state are logged for one", got)
		}
	}
}
