package rooms_test

import (
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
)

// A redaction may come before what it redacts; it takes effect when that comes. One by somebody who may not redact never does.
func TestRedactionBeforeItsTarget(t *testing.T) {
	for _, size := range []int{1, 2} {
		t.Run(fmt.Sprint("at a time ", size), func(t *testing.T) { redactionBeforeItsTarget(t, size) })
	}
}

func redactionBeforeItsTarget(t *testing.T, size int) {
	_, a, b, room := twoServers(t)
	b.join(b.user("ben"), room)
	bob := b.user("bob")
	target := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"secret"}`)})
	redaction := b.forge(room, event.Proto{Sender: bob, Type: "m.room.redaction", Content: []byte(`{"redacts":"` + string(target.ID()) + `"}`)})
	for pdus := range slices.Chunk([][]byte{redaction.JSON(), target.JSON()}, size) {
		for _, r := range a.receive(b, room, pdus...) {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		}
	}
	ev, err := a.Event(ctx, target.ID())
	if err != nil || string(ev.Content()) != `{}` || ev.RedactedBy != redaction.ID() {
		t.Fatalf("%s redacted by %q, %v", ev.Content(), ev.RedactedBy, err)
	}
	a.restart()
	if ev, err = a.Event(ctx, target.ID()); err != nil || string(ev.Content()) != `{}` || ev.RedactedBy != redaction.ID() {
		t.Fatalf("after a restart: %s, %v", ev.Content(), err)
	}
	alices := a.say(a.user("alice"), room, "kept")
	forbidden := b.forge(room, event.Proto{Sender: bob, Type: "m.room.redaction", Content: []byte(`{"redacts":"` + string(alices) + `"}`)})
	if r := a.receive(b, room, forbidden.JSON()); r[0].Err != nil {
		t.Fatal("the auth rules allow it", r[0].Err)
	}
	if ev, err = a.Event(ctx, alices); err != nil || ev.RedactedBy != "" {
		t.Fatal("redacted by somebody without the power for it", err)
	}
	// Its client form tells of the redaction.
	if ev, err = a.Event(ctx, target.ID()); err != nil {
		t.Fatal(err)
	}
	o, err := a.ClientOptions(ctx, ev, a.user("alice"), "D")
	if err != nil || len(o.RedactedBecause) == 0 || o.RedactedBy == "" || o.Membership != "join" {
		t.Fatal(o, err)
	}
}

// So does one that is not stored yet when its target comes, and neither is the state that gave the power to redact.
func TestRedactionThatIsNotStoredYet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, c, room := aModeratorOnC(t)
		bob, carol := b.user("bob"), c.user("carol")
		target := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"secret"}`), Depth: 100}) // the last in order of depth
		n.split(a, c, true)
		topic, err := c.Event(ctx, c.set(carol, room, "m.room.topic", "", `{"topic":"no secrets"}`))
		if err != nil {
			t.Fatal(err)
		}
		n.settle()
		n.split(a, c, false)
		redaction := c.forge(room, event.Proto{Sender: carol, Type: "m.room.redaction", Content: []byte(`{"redacts":"` + string(target.ID()) + `"}`)})
		release := a.holdCommits()
		done := make(chan []rooms.Received)
		go func() { done <- a.receive(c, room, topic.JSON(), redaction.JSON(), target.JSON()) }()
		synctest.Wait()
		release()
		for _, r := range <-done {
			if r.Err != nil {
				t.Error(r.Err)
			}
		}
		if ev, err := a.Event(ctx, target.ID()); err != nil || ev.RedactedBy != redaction.ID() {
			t.Errorf("%+v, %v", ev, err)
		}
	})
}

// An access list without content shuts everybody out, those included who could send another.
func TestAccessListsAreNotRedacted(t *testing.T) {
	a := newNetwork(t).server("a.example")
	alice := a.user("alice")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	acl := a.set(alice, room, "m.room.server_acl", "", `{"allow":["*"]}`)
	if _, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: acl}, ""); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error(err)
	}
	if _, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: a.say(alice, room, "oops")}, ""); err != nil {
		t.Error(err)
	}
}

// A redaction that comes in one transaction with what it redacts takes effect, and is shown. One that takes no effect is not shown.
func TestRedactionsShown(t *testing.T) {
	_, a, b, room := twoServers(t)
	bob := b.user("bob")
	shown := func(id matrix.EventID) bool {
		t.Helper()
		page, err := a.Messages(ctx, rooms.MessagesRequest{Room: room, User: a.user("alice"), Backward: true, Limit: 50})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(page.Events, func(ev *rooms.Event) bool { return ev.ID() == id })
	}
	redact := func(id matrix.EventID) *event.Event {
		return b.forge(room, event.Proto{Sender: bob, Type: "m.room.redaction", Content: []byte(`{"redacts":"` + string(id) + `"}`)})
	}
	elsewhere := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat"})
	void := redact(a.say(a.user("alice"), elsewhere, "kept"))
	if r := a.receive(b, room, void.JSON()); r[0].Err != nil || shown(void.ID()) {
		t.Errorf("a redaction of an event of another room: %v, shown %v", r[0].Err, shown(void.ID()))
	}
	target := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"secret"}`)})
	redaction := redact(target.ID())
	for _, r := range a.receive(b, room, target.JSON(), redaction.JSON()) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if ev, err := a.Event(ctx, target.ID()); err != nil || string(ev.Content()) != `{}` || ev.RedactedBy != redaction.ID() {
		t.Fatalf("%s redacted by %q, %v", ev.Content(), ev.RedactedBy, err)
	}
	if !shown(redaction.ID()) || !shown(target.ID()) {
		t.Error("a redaction that took effect is not shown, or what it redacted is not")
	}
	for what, id := range map[string]matrix.EventID{
		"of an event that may not be redacted": a.say(a.user("alice"), room, "kept"),
		"of an event that is not known":        "$nowhere",
	} {
		void := redact(id)
		if r := a.receive(b, room, void.JSON()); r[0].Err != nil {
			t.Fatal(what, r[0].Err)
		}
		if shown(void.ID()) {
			t.Errorf("a redaction %s is shown", what)
		}
	}
}

// A message and its redaction that come in one page of history are known as what they are at once, not after the next start only.
func TestRedactionInAPageOfHistory(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: "11"})
	said := a.say(alice, room, "secret")
	redaction, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: said}, "")
	a.must(redaction, err)
	a.say(alice, room, "after")
	n.settle()
	b.join(bob, room, a)
	b.texts(bob, room)
	for range 2 {
		ev, err := b.Event(ctx, said)
		if err != nil {
			t.Fatal(err)
		}
		if ev.RedactedBy != redaction {
			t.Errorf("redacted by %q, want %s", ev.RedactedBy, redaction)
		}
		b.restart()
	}
}

// What a redaction leaves of a state event decides about what follows, also before it is stored: in room versions before 11 a redacted
// m.room.power_levels lets everybody invite.
func TestRedactionOfPowerLevels(t *testing.T) {
	n, a, b, room := twoServersIn(t, "10")
	alice, adam := a.user("alice"), a.user("adam")
	a.join(adam, room)
	levels := a.set(alice, room, "m.room.power_levels", "", `{"users":{"@alice:a.example":100},"invite":50}`)
	n.settle()
	invite := rooms.MemberRequest{Room: room, Sender: adam, Target: a.user("anna")}
	if _, err := a.Invite(ctx, invite); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Fatal(err)
	}
	redaction, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: levels}, "")
	a.must(redaction, err)
	invited, err := a.Invite(ctx, invite)
	a.must(invited, err)
	var pdus [][]byte
	for _, id := range []matrix.EventID{redaction, invited} {
		ev, err := a.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		pdus = append(pdus, ev.JSON())
	}
	for _, r := range b.receive(a, room, pdus...) {
		if r.Err != nil {
			t.Error(r.Err)
		}
	}
	if d := cmp.Diff(a.state(room), b.state(room)); d != "" {
		t.Error(d)
	}
}
