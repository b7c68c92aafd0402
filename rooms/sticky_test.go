package rooms_test

import (
	"slices"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage"
)

const hour = int64(3_600_000)

// stick sends a sticky event.
func (s *server) stick(user matrix.UserID, room matrix.RoomID, ms int64) matrix.EventID {
	s.t.Helper()
	id, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: "m.rtc.member", Content: []byte(`{}`), Sticky: &ms})
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

// sticky lists the live sticky events of a room in (since, now].
func (s *server) sticky(room matrix.RoomID, since storage.Position) (ids []matrix.EventID) {
	s.t.Helper()
	nid, err := s.RoomNID(ctx, room)
	if err != nil {
		s.t.Fatal(err)
	}
	events, more, err := s.StickyEvents(ctx, nid, rooms.StickyRequest{Since: since, Until: s.db.Current(), Limit: 100})
	if err != nil || more {
		s.t.Fatal(more, err)
	}
	for _, ev := range events {
		if ev.Position <= since || ev.Position > s.db.Current() {
			s.t.Errorf("%s stands at %d, not after %d", ev.ID(), ev.Position, since)
		}
		ids = append(ids, ev.ID())
	}
	return ids
}

func (s *server) expectSticky(what string, room matrix.RoomID, since storage.Position, want ...matrix.EventID) {
	s.t.Helper()
	if got := s.sticky(room, since); !slices.Equal(got, want) {
		s.t.Errorf("%s: %v are sticky, want %v", what, got, want)
	}
}

func TestStickyEvents(t *testing.T) {
	eachVersion(t, func(t *testing.T, v roomversion.ID) {
		n := newNetwork(t)
		clock := n.stoppedClock(1_700_000_000_000)
		a, b := n.server("a.example"), n.server("b.example")
		alice, bob := a.user("alice"), b.user("bob")
		room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: v})
		b.join(bob, room, a)
		n.settle()

		first, second := a.stick(alice, room, hour), a.stick(alice, room, 1000)
		a.say(alice, room, "not sticky")
		zero := a.stick(alice, room, 0)
		n.settle()
		for _, s := range []*server{a, b} {
			s.expectSticky("two were sent", room, 0, first, second)
			s.restart()
			s.expectSticky("after a restart", room, 0, first, second)
		}
		ev, err := b.Event(ctx, first)
		if err != nil {
			t.Fatal(err)
		}
		b.expectSticky("only the later one", room, ev.Pos, second)
		o, err := b.ClientOptions(ctx, ev, bob, "")
		if err != nil || o.StickyFor != hour {
			t.Errorf("what a client is told: %+v %v", o, err)
		}
		now := matrix.Timestamp(clock.Add(1000))
		a.expectSticky("one has expired", room, 0, first)
		if o, err := b.ClientOptions(ctx, ev, bob, ""); err != nil || o.StickyFor != hour-1000 {
			t.Errorf("what a client is told later: %+v %v", o, err)
		}
		if ev, err = a.Event(ctx, zero); err != nil || ev.StickyUntil() != now-1000 {
			t.Errorf("no duration: %v %v", ev, err)
		}

		// A clock that is ahead, and more than an hour, prolong nothing. One that is behind shortens it.
		forged := func(ts matrix.Timestamp, ms int64) *event.Event {
			return b.forge(room, event.Proto{Sender: bob, Type: "m.rtc.member", Content: []byte(`{}`), Sticky: &ms, OriginServerTS: ts})
		}
		ahead, behind, long := forged(now+hour2, hour), forged(now-hour2, hour), forged(now, 10*hour)
		for _, ev := range []*event.Event{ahead, behind, long} {
			if r := a.receive(b, room, ev.JSON()); r[0].Err != nil {
				t.Fatal(r[0].Err)
			}
		}
		a.expectSticky("of other clocks", room, 0, first, ahead.ID(), long.ID())

		// A redaction ends it.
		if _, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: first}, ""); err != nil {
			t.Fatal(err)
		}
		a.expectSticky("redacted", room, 0, ahead.ID(), long.ID())
		clock.Add(hour)
		a.expectSticky("expired", room, 0)
		last := a.stick(alice, room, hour)
		var rows int
		if err := a.db.QueryRow(ctx, `SELECT COUNT(*) FROM sticky_events`).Scan(&rows); err != nil || rows != 1 {
			t.Errorf("%d rows, %v", rows, err)
		}
		a.expectSticky("a new one", room, 0, last)
	})
}

const hour2 = matrix.Timestamp(2 * hour)

// A sticky event of somebody who was removed meanwhile is taken in once the room's state allows it.
func TestStickySoftFailure(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	ms := hour
	late := b.forge(room, event.Proto{Sender: bob, Type: "m.rtc.member", Content: []byte(`{}`), Sticky: &ms, OriginServerTS: matrix.Timestamp(time.Now().UnixMilli())})
	plain := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{}`)})
	a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	for _, ev := range []*event.Event{late, plain} {
		if r := a.receive(b, room, ev.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
		}
	}
	a.expectSticky("soft-failed", room, 0)
	a.set(alice, room, "m.room.topic", "", `{"topic":"a state that does not allow it either"}`)
	a.restart()
	before := a.db.Current()
	a.expectSticky("still soft-failed", room, 0)
	n.settle()
	b.join(bob, room, a)
	n.settle()
	a.expectSticky("allowed again", room, before, late.ID())
	a.restart()
	a.expectSticky("after a restart", room, before, late.ID())
	for _, id := range []matrix.EventID{late.ID(), plain.ID()} {
		ev, err := a.Event(ctx, id)
		if err != nil || ev.SoftFailed != (id == plain.ID()) || ev.Outlier || ev.Pos > 0 {
			t.Errorf("%s: soft-failed %v at %d, %v", id, ev.SoftFailed, ev.Pos, err)
		}
	}
	if _, err := a.VisibleEvent(ctx, alice, room, late.ID()); err != nil {
		t.Errorf("it cannot be had: %v", err)
	}
}

// What comes before a sticky event that is taken in late is fetched like all history.
func TestHistoryBeforeWhatWasSoftFailed(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	n.split(a, b, true)
	b.say(bob, room, "missed")
	sticky, err := b.Event(ctx, b.stick(bob, room, hour))
	if err != nil {
		t.Fatal(err)
	}
	n.settle()
	a.must(a.Kick(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	n.split(a, b, false)
	n.unanswered("get_missing_events", true)
	if r := a.receive(b, room, sticky.JSON()); r[0].Err != nil {
		t.Fatal(r[0].Err)
	}
	n.unanswered("get_missing_events", false)
	a.expectSticky("soft-failed", room, 0)
	n.settle()
	b.join(bob, room, a)
	n.settle()
	a.expectSticky("taken in", room, 0, sticky.ID())
	if got := a.texts(alice, room); !slices.Equal(got, []string{"missed"}) {
		t.Errorf("alice reads %q", got)
	}
}

// Who joins sees what is sticky, whatever the history visibility.
func TestStickyVisibility(t *testing.T) {
	n := newNetwork(t)
	clock := n.stoppedClock(time.Now().UnixMilli())
	a, b := n.server("a.example"), n.server("b.example")
	alice, carol, bob := a.user("alice"), a.user("carol"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", InitialState: []rooms.StateInput{{Type: "m.room.history_visibility", Content: []byte(`{"history_visibility":"joined"}`)}}})
	sticky, plain := a.stick(alice, room, hour), a.say(alice, room, "hidden")
	sees := func(what string, id matrix.EventID, want bool) {
		t.Helper()
		_, err := a.VisibleEvent(ctx, carol, room, id)
		if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Fatal(err)
		}
		if (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	sees("not joined", sticky, false)
	a.join(carol, room)
	sees("joined", sticky, true)
	sees("what is not sticky", plain, false)
	b.join(bob, room, a)
	for id, want := range map[matrix.EventID]bool{sticky: true, plain: false} {
		pdu, err := a.ServeEvent(ctx, "b.example", id)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := event.Parse(roomVersionOf(t, a, room), pdu)
		if _, whole := parsed.Sticky(); err != nil || id == sticky && whole != want {
			t.Errorf("served to a server that came later: %s %v", pdu, err)
		}
	}

	// A server that comes in with a join is owed what is sticky.
	joins := func() (list []*rooms.Event) {
		events, err := a.EventsAfter(ctx, 0, a.db.Current(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			if ev.Membership() == "join" {
				list = append(list, ev)
			}
		}
		return list
	}
	b.join(b.user("ben"), room)
	n.settle()
	for _, join := range joins() {
		owed, err := a.MissedBy(ctx, join)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := len(owed), map[matrix.UserID]int{bob: 1}[join.Sender()]; got != want {
			t.Errorf("with the join of %s: %d events, want %d", join.Sender(), got, want)
		}
	}
	clock.Add(hour)
	sees("expired", sticky, false)
}

func roomVersionOf(t *testing.T, s *server, room matrix.RoomID) *roomversion.Version {
	snap, err := s.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	return snap.Version
}
