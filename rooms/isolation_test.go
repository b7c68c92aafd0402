package rooms_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// The operator keeps a room apart: nothing goes out, nothing comes in, its own users go on; and given back, all agree again.
func TestIsolatedRoom(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob, ann := a.user("alice"), b.user("bob"), a.user("ann")
	other := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, err error) {
		t.Helper()
		if !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("%s: %v", what, err)
		}
	}
	shared := func() bool {
		t.Helper()
		users, err := a.Sharing(ctx, alice)
		must(err)
		return slices.Contains(users, bob)
	}
	if !shared() {
		t.Fatal("they share a room")
	}
	// Of whom alone this server is asked when something is told of bob.
	if users, err := a.LocalSharing(ctx, bob); err != nil || !slices.Equal(users, []matrix.UserID{alice}) {
		t.Errorf("bob shares a room with %v, %v", users, err)
	}
	must(a.Isolate(ctx, room, true))
	if a.Federates(room) || !a.Federates(other) {
		t.Error("the wrong rooms are kept apart")
	}
	// Its own users go on, and may come in, also who may not be in rooms that federate.
	a.join(ann, room)
	said := a.say(ann, room, "among ourselves")
	ev, err := a.Event(ctx, said)
	must(err)
	if servers, err := a.ServersAt(ctx, ev); err != nil || len(servers) > 0 {
		t.Errorf("sent to %v, %v", servers, err)
	}
	if servers, err := a.JoinedServers(ctx, room); err != nil || len(servers) != 1 {
		t.Errorf("with %v, %v", servers, err)
	}
	if shared() {
		t.Error("they share no room that federates")
	}
	n.settle()
	if _, err := b.VisibleEvent(ctx, bob, room, said); err == nil {
		t.Error("it went out")
	}
	// Nothing comes in, and nothing is answered.
	outside := b.say(bob, room, "anybody there?")
	n.settle()
	if _, err := a.VisibleEvent(ctx, alice, room, outside); err == nil {
		t.Error("it came in")
	}
	forged := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"x"}`)})
	refused("an event", a.receive(b, room, forged.JSON())[0].Err)
	_, err = a.MakeJoin(ctx, b.name, room, b.user("bea"), supported)
	refused("make_join", err)
	_, err = a.MakeLeave(ctx, b.name, room, bob)
	refused("make_leave", err)
	_, err = a.MakeKnock(ctx, b.name, room, b.user("bea"), supported)
	refused("make_knock", err)
	_, _, err = a.ServeStateIDs(ctx, b.name, room, said)
	refused("state_ids", err)
	_, err = a.ServeEvent(ctx, b.name, said)
	refused("event", err)
	_, err = a.ServeBackfill(ctx, b.name, room, []matrix.EventID{said}, 10)
	refused("backfill", err)
	_, err = a.ServeMissingEvents(ctx, b.name, room, nil, []matrix.EventID{said}, 10, 0)
	refused("get_missing_events", err)
	if _, err = a.ServeHierarchy(ctx, b.name, room, false); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("hierarchy: %v", err)
	}
	_, err = a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: b.user("bea")})
	refused("an invite of a user of another server", err)
	must(a.SetPublished(ctx, alice, room, true, true))
	for _, asked := range []struct {
		server bool
		want   int
	}{{true, 0}, {false, 1}} {
		if page, err := a.PublicRooms(ctx, rooms.PublicRoomsRequest{Server: asked.server}); err != nil || len(page.Chunk) != asked.want {
			t.Errorf("%d rooms in the directory, %v", len(page.Chunk), err)
		}
	}
	// A room that nobody here is in cannot be entered, and is not asked for.
	elsewhere := b.create(bob, rooms.CreateRequest{Preset: "public_chat"})
	must(a.Isolate(ctx, elsewhere, true))
	_, err = a.Join(ctx, rooms.MemberRequest{Room: elsewhere, Sender: alice, Via: []matrix.ServerName{b.name}})
	refused("a join", err)
	_, err = b.Invite(ctx, rooms.MemberRequest{Room: elsewhere, Sender: bob, Target: alice})
	refused("an invite from elsewhere", err)
	// What replaces the room is kept apart, too.
	next, err := a.Upgrade(ctx, rooms.UpgradeRequest{Room: other, Sender: alice, Version: "12"})
	must(err)
	if !a.Federates(next) {
		t.Error("a room was kept apart for no reason")
	}
	a.restart()
	if a.Federates(room) {
		t.Error("forgotten over a restart")
	}
	must(a.Isolate(ctx, room, false))
	a.say(alice, room, "back again")
	n.settle()
	b.say(bob, room, "so are we")
	n.settle()
	for s, who := range map[*server]matrix.UserID{a: alice, b: bob} {
		if got := s.texts(who, room); !slices.Contains(got, "among ourselves") || !slices.Contains(got, "anybody there?") {
			t.Errorf("%s has %v", s.name, got)
		}
	}
	if got, want := b.state(room), a.state(room); !slices.Equal(got, want) {
		t.Errorf("the states differ: %v, %v", got, want)
	}
}

// The operator may keep a room apart that is not known here: nobody is asked about it.
func TestIsolatedRoomThatIsNotKnown(t *testing.T) {
	n, a, b, room := twoServers(t)
	c := n.server("c.example")
	carol := c.user("carol")
	if err := c.Isolate(ctx, room, true); err != nil {
		t.Fatal(err)
	}
	via := []matrix.ServerName{a.name, b.name}
	if _, err := c.RoomDetails(ctx, rooms.SummaryRequest{Room: room, User: carol, Via: via}); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Error(err)
	}
	if _, err := c.Join(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: via}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
	if _, err := c.Knock(ctx, rooms.MemberRequest{Room: room, Sender: carol, Via: via}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
	for _, call := range []string{"hierarchy", "make_join", "make_knock"} {
		if asked := n.count("c.example " + call); asked > 0 {
			t.Errorf("%s: asked %d times", call, asked)
		}
	}
	if err := c.Isolate(ctx, room, false); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RoomDetails(ctx, rooms.SummaryRequest{Room: room, User: carol, Via: via}); err != nil {
		t.Error(err)
	}
}

func TestIsolatedRoomUpgraded(t *testing.T) {
	n := newNetwork(t)
	a := n.server("a.example")
	alice := a.user("alice")
	for _, v := range []roomversion.ID{"11", "12"} {
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
		if err := a.Isolate(ctx, room, true); err != nil {
			t.Fatal(err)
		}
		next, err := a.Upgrade(ctx, rooms.UpgradeRequest{Room: room, Sender: alice, Version: v})
		if err != nil {
			t.Fatal(err)
		}
		if a.Federates(next) {
			t.Errorf("version %s: the new room is not kept apart", v)
		}
	}
}

// Who is kept to this server leaves what others can be in, if the operator wants that; what is kept apart they keep.
func TestWithdrawal(t *testing.T) {
	n, a, b, room := twoServers(t)
	ann := a.user("ann")
	var kept bool
	a.stop()
	a.mayFederate = func(context.Context, matrix.UserID) error {
		if kept {
			return matrix.Forbidden("This account is for rooms of its own server only")
		}
		return nil
	}
	a.start()
	apart := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat"})
	elsewhere := b.create(b.user("bob"), rooms.CreateRequest{Preset: "private_chat", Invite: []matrix.UserID{ann}})
	own := a.create(ann, rooms.CreateRequest{Preset: "private_chat", Content: []byte(`{"m.federate":false}`)})
	a.join(ann, room)
	a.join(ann, apart)
	n.settle()
	if err := a.Isolate(ctx, apart, true); err != nil {
		t.Fatal(err)
	}
	kept = true
	if all, err := a.FederatedRooms(ctx, ann); err != nil || len(all) != 2 || !slices.Contains(all, room) || !slices.Contains(all, elsewhere) {
		t.Fatal(all, err)
	}
	if err := a.Withdraw(ctx, ann); err != nil {
		t.Fatal(err)
	}
	a.restart() // which looks at once
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		all, err := a.FederatedRooms(ctx, ann)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still in %v", all)
		}
	}
	joined, err := a.Memberships(ctx, ann, "join")
	if err != nil {
		t.Fatal(err)
	}
	if len(joined) != 2 || !slices.ContainsFunc(joined, func(m rooms.Membership) bool { return m.Room == own }) {
		t.Errorf("in %v", joined)
	}
	n.settle()
	if m, err := b.MembershipOf(ctx, room, ann); err != nil || m.Membership != "leave" {
		t.Error(m, err)
	}
}
