package rooms_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

func message(room matrix.RoomID, user matrix.UserID, device matrix.DeviceID, txn, text string) rooms.SendRequest {
	return rooms.SendRequest{Room: room, Sender: user, Type: "m.room.message", Device: device, TxnID: txn, Content: []byte(`{"body":"` + text + `"}`)}
}

func TestTransactionIDs(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		s := newNetwork(t).serverOn("a.example", dsn)
		alice := s.user("alice")
		room, other := s.create(alice, rooms.CreateRequest{}), s.create(alice, rooms.CreateRequest{Name: "other"})
		var wg sync.WaitGroup
		ids := make([]matrix.EventID, 20)
		for i := range ids {
			wg.Go(func() {
				var err error
				if ids[i], err = s.Send(ctx, message(room, alice, "D1", "t1", "x")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(slices.Compact(ids)) != 1 {
			t.Fatalf("one transaction made several events: %v", ids)
		}
		s.restart()
		send := func(q rooms.SendRequest) matrix.EventID {
			t.Helper()
			id, err := s.Send(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			return id
		}
		if id := send(message(room, alice, "D1", "t1", "x")); id != ids[0] {
			t.Error("repeated after a restart")
		}
		if id := send(message(room, alice, "D2", "t1", "x")); id == ids[0] {
			t.Error("another device's transaction is the same")
		}
		if id := send(message(other, alice, "D1", "t1", "x")); id == ids[0] {
			t.Error("another room's transaction is the same")
		}
		ev, err := s.Event(ctx, ids[0])
		if err != nil {
			t.Fatal(err)
		}
		o, err := s.ClientOptions(ctx, ev, alice, "D1")
		if err != nil || o.TransactionID != "t1" {
			t.Errorf("transaction id %q for its device, %v", o.TransactionID, err)
		}
		if o, _ := s.ClientOptions(ctx, ev, alice, "D2"); o.TransactionID != "" {
			t.Error("transaction id shown to another device")
		}
	})
}

// A commit fails in the middle of many appends built one upon the other: those that depend on it fail, too, what was
// acknowledged stays, other rooms do not notice, and the room goes on.
func TestFailedCommit(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice := s.user("alice")
	room, other := s.create(alice, rooms.CreateRequest{}), s.create(alice, rooms.CreateRequest{Name: "other"})
	exec := func(statement string) {
		t.Helper()
		err := s.db.Write(ctx, func(tx *storage.Tx) error { _, err := tx.Exec(ctx, statement); return err })
		if err != nil {
			t.Fatal(err)
		}
	}
	exec(`CREATE TRIGGER fail BEFORE INSERT ON events WHEN NEW.txn_id = 'bad' BEGIN SELECT RAISE(ABORT, 'injected'); END`)
	var mu sync.Mutex
	var kept []string
	failed := 0
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			txn := fmt.Sprint("t", i)
			if i%40 == 20 {
				txn = "bad"
			}
			_, err := s.Send(ctx, message(room, alice, matrix.DeviceID(fmt.Sprint(i)), txn, fmt.Sprint("m", i)))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed++
			} else if txn == "bad" {
				t.Error("an event that was not stored was acknowledged")
			} else {
				kept = append(kept, fmt.Sprint("m", i))
			}
			if _, err := s.Send(ctx, message(other, alice, "D", fmt.Sprint("o", i), "x")); err != nil {
				t.Errorf("another room was hit: %v", err)
			}
		})
	}
	wg.Wait()
	if failed < 5 {
		t.Fatalf("%d failed", failed)
	}
	exec(`DROP TRIGGER fail`)
	s.say(alice, room, "after")
	kept = append(kept, "after")
	check := func() {
		t.Helper()
		got := []string{}
		var from *rooms.Token
		for {
			page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: alice, Backward: true, From: from, Limit: 50})
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range page.Events {
				if body, ok := ev.ContentString("body"); ok {
					got = append(got, body)
				}
			}
			if from = page.End; from == nil {
				break
			}
		}
		slices.Sort(got)
		want := slices.Clone(kept)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
	}
	check()
	s.restart()
	check()
	s.say(alice, room, "later")
}

// Positions are handed to the listener in order, without gaps in a room's events, and Timeline gives the same.
func TestListenerOrder(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		s := newNetwork(t).serverOn("a.example", dsn)
		alice := s.user("alice")
		ids := []matrix.RoomID{s.create(alice, rooms.CreateRequest{}), s.create(alice, rooms.CreateRequest{Name: "x"})}
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() { s.say(alice, ids[i%2], fmt.Sprint(i)) })
		}
		wg.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		var last storage.Position
		heard := make(map[matrix.RoomID][]matrix.EventID)
		for _, u := range s.updates {
			if u.Position < last {
				t.Fatalf("position %d after %d", u.Position, last)
			}
			last = u.Position
			if len(u.Local) != 1 && len(u.Memberships) == 0 {
				t.Fatalf("local users %v", u.Local)
			}
			for _, ev := range u.Events {
				heard[u.Room] = append(heard[u.Room], ev.ID())
			}
		}
		for _, id := range ids {
			nid, err := s.RoomNID(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			tl, err := s.Timeline(ctx, rooms.TimelineRequest{Room: nid, Until: s.db.Current(), Limit: 1000})
			if err != nil {
				t.Fatal(err)
			}
			var stored []matrix.EventID
			for _, ev := range tl.Events {
				stored = append(stored, ev.ID())
			}
			if diff := cmp.Diff(stored, heard[id]); diff != "" || tl.Limited {
				t.Fatal(diff, tl.Limited)
			}
			short, err := s.Timeline(ctx, rooms.TimelineRequest{Room: nid, Until: s.db.Current(), Limit: 5})
			if err != nil || !short.Limited || len(short.Events) != 5 {
				t.Fatal(short, err)
			}
			page, err := s.Messages(ctx, rooms.MessagesRequest{Room: id, User: alice, Backward: true, From: &short.PrevBatch, Limit: 3})
			if err != nil || page.Events[0].ID() != stored[len(stored)-6] {
				t.Fatal("prev_batch does not continue where the timeline begins", err)
			}
		}
	})
}

// Users of one server who join a room of another at the same time cost one remote join.
func TestJoinsCollapse(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	room := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat"})
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() { b.join(b.user(fmt.Sprint("u", i)), room, a) })
	}
	wg.Wait()
	n.settle()
	if got := n.count("b.example send_join"); got != 1 {
		t.Errorf("%d remote joins", got)
	}
	users, err := a.JoinedUsers(ctx, room)
	if err != nil || len(users) != 11 {
		t.Fatal(users, err)
	}
	if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
		t.Fatal(diff)
	}
}

func TestCreateRoom(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice, bob := s.user("alice"), s.user("bob")
	bad := func(code string, q rooms.CreateRequest) {
		t.Helper()
		q.Creator = alice
		if _, err := s.CreateRoom(ctx, q); !matrix.HasCode(err, code) {
			t.Errorf("want %s, got %v", code, err)
		}
	}
	bad("M_UNSUPPORTED_ROOM_VERSION", rooms.CreateRequest{Version: "999"})
	bad("M_INVALID_PARAM", rooms.CreateRequest{Preset: "nonsense"})
	bad("M_INVALID_PARAM", rooms.CreateRequest{Invite: []matrix.UserID{"nobody"}})
	bad("M_BAD_JSON", rooms.CreateRequest{PowerOverride: []byte(`[]`)})
	bad("M_BAD_JSON", rooms.CreateRequest{InitialState: []rooms.StateInput{{Type: "m.room.topic"}}})
	bad("M_INVALID_ROOM_STATE", rooms.CreateRequest{PowerOverride: []byte(`{"events_default":100,"state_default":100,"users":{"@bob:a.example":100},"users_default":0,"events":{"m.room.topic":1000}}`), Version: "11", Topic: "x"})
	s.create(alice, rooms.CreateRequest{AliasLocal: "one"})
	bad("M_ROOM_IN_USE", rooms.CreateRequest{AliasLocal: "one"})

	room := s.create(alice, rooms.CreateRequest{
		Version: "11", Preset: "trusted_private_chat", Invite: []matrix.UserID{bob}, IsDirect: true, Name: "N", Topic: "T", AliasLocal: "two",
		Content:      []byte(`{"m.federate":false,"type":"m.space","creator":"@evil:x"}`),
		InitialState: []rooms.StateInput{{Type: "m.room.encryption", Content: []byte(`{"algorithm":"m.megolm.v1.aes-sha2"}`)}, {Type: "m.room.history_visibility", Content: []byte(`{"history_visibility":"joined"}`)}},
	})
	nid, _ := s.RoomNID(ctx, room)
	tl, err := s.Timeline(ctx, rooms.TimelineRequest{Room: nid, Until: s.db.Current(), Limit: 50})
	if err != nil {
		t.Fatal(err)
	}
	var order []string
	for _, ev := range tl.Events {
		order = append(order, ev.Type())
	}
	want := []string{"m.room.create", "m.room.member", "m.room.power_levels", "m.room.canonical_alias", "m.room.join_rules", "m.room.guest_access",
		"m.room.encryption", "m.room.history_visibility", "m.room.name", "m.room.topic", "m.room.member"}
	if diff := cmp.Diff(want, order); diff != "" {
		t.Error(diff)
	}
	if got := string(tl.Events[0].Content()); got != `{"m.federate":false,"room_version":"11","type":"m.space"}` {
		t.Error(got)
	}
	if invite := tl.Events[len(tl.Events)-1]; !strings.Contains(string(invite.Content()), `"is_direct":true`) {
		t.Error(string(invite.Content()))
	}
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	levels, err := snap.State.PowerLevels(ctx)
	if err != nil || levels.User(bob) != 100 {
		t.Error("an invited user of a trusted_private_chat is not the creator's equal", err)
	}
	v12 := s.create(alice, rooms.CreateRequest{Preset: "trusted_private_chat", Invite: []matrix.UserID{bob}})
	snap, err = s.Snapshot(ctx, v12)
	if err != nil || snap.Version.ID != "12" {
		t.Fatal(err)
	}
	if levels, err = snap.State.PowerLevels(ctx); err != nil || levels.User(bob) != levels.User(alice) || levels.Event("m.room.tombstone", true) <= 100 {
		t.Error("v12 creators", err)
	}
}

// A user of a room that counts may join a restricted one, here and over federation.
func TestRestrictedJoin(t *testing.T) {
	for _, version := range []string{"8", "9", "10", "11", "12"} {
		t.Run("v"+version, func(t *testing.T) {
			n := newNetwork(t)
			a, b := n.server("a.example"), n.server("b.example")
			alice, dave, bob, carol := a.user("alice"), a.user("dave"), b.user("bob"), b.user("carol")
			club := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
			room := a.create(alice, rooms.CreateRequest{Version: roomversion.ID(version)})
			a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"`+string(club)+`"}]}`)
			for s, user := range map[*server]matrix.UserID{a: dave, b: bob} {
				if _, err := s.Join(ctx, rooms.MemberRequest{Room: room, Sender: user, Via: []matrix.ServerName{"a.example"}}); !matrix.HasCode(err, "M_FORBIDDEN") {
					t.Fatalf("%s: %v", user, err)
				}
			}
			a.join(dave, club)
			a.join(dave, room)
			b.join(bob, club, a)
			n.settle()
			b.join(bob, room, a)
			n.settle()
			// carol's server is in the room, but has nobody who may let her in.
			b.join(carol, club, a)
			n.settle()
			b.join(carol, room, a)
			n.settle()
			if diff := cmp.Diff(a.state(room), b.state(room)); diff != "" {
				t.Fatal(diff)
			}
			users, err := a.JoinedUsers(ctx, room)
			if err != nil || len(users) != 4 {
				t.Fatal(users, err)
			}
		})
	}
}

// Who is let into a room that their server is in by one that has not heard yet that they are banned is told that they are not in it.
func TestRestrictedJoinOfBannedUser(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.server("a.example"), n.server("b.example"), n.server("c.example")
	alice, bob, bella, carol := a.user("alice"), b.user("bob"), b.user("bella"), c.user("carol")
	club := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	room := a.create(alice, rooms.CreateRequest{Version: "11", PowerOverride: []byte(`{"invite":50,"users":{"@alice:a.example":100,"@carol:c.example":50}}`)})
	a.set(alice, room, "m.room.join_rules", "", `{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":"`+string(club)+`"}]}`)
	for s, user := range map[*server]matrix.UserID{b: bob, c: carol} {
		s.join(user, club, a)
		n.settle()
		s.join(user, room, a)
		n.settle()
	}
	b.join(bella, club)
	n.settle()
	n.hold = func(_, _ matrix.ServerName, call string) error {
		if call == "send_join" {
			n.split(a, c, true)
			c.must(c.Ban(ctx, rooms.MemberRequest{Room: room, Sender: carol, Target: bella}))
			c.flush()
		}
		return nil
	}
	if _, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: bella, Via: []matrix.ServerName{a.name}}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error("joined, and banned:", err)
	}
	b.expectMembership(bella, room, "ban")
}

// More rooms than the engine keeps, and caches that hold next to nothing.
func TestEvictionAndReload(t *testing.T) {
	n := newNetwork(t)
	s := n.server("a.example")
	s.stop()
	var err error
	if s.db, err = storage.Open(ctx, storage.Options{DSN: s.dsn}); err != nil {
		t.Fatal(err)
	}
	if s.Engine, err = rooms.New(rooms.Options{DB: s.db, ServerName: s.name, Key: s.key, Remote: peer{s}, CacheRooms: 4, CacheBytes: 64 << 10}); err != nil {
		t.Fatal(err)
	}
	alice := s.user("alice")
	var ids []matrix.RoomID
	for i := range 20 {
		ids = append(ids, s.create(alice, rooms.CreateRequest{Name: fmt.Sprint(i)}))
	}
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() { s.say(alice, ids[i%len(ids)], fmt.Sprint(i)) })
	}
	wg.Wait()
	for _, id := range ids {
		if got := s.texts(alice, id); len(got) != 10 {
			t.Fatalf("%d messages", len(got))
		}
		snap, err := s.Snapshot(ctx, id)
		if err != nil || len(snap.Extremities) != 1 {
			t.Fatalf("extremities %v, %v", snap.Extremities, err)
		}
	}
}

func TestSendExplicitTimestamp(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice := s.user("alice")
	room := s.create(alice, rooms.CreateRequest{})
	q := message(room, alice, "", "", "old")
	q.Timestamp = matrix.Timestamp(time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli())
	id, err := s.Send(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	ev, err := s.Event(ctx, id)
	if err != nil || ev.OriginServerTS() != q.Timestamp {
		t.Fatal(ev, err)
	}
}
