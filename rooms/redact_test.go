package rooms_test

import (
	"testing"

	"hanok/matrix/event"
)

// A redaction may come before what it redacts; it takes effect when that comes. One by somebody who may not redact never does.
func TestRedactionBeforeItsTarget(t *testing.T) {
	_, a, b, room := twoServers(t)
	b.join(b.user("ben"), room)
	bob := b.user("bob")
	target := b.forge(room, event.Proto{Sender: bob, Type: "m.room.message", Content: []byte(`{"body":"secret"}`)})
	redaction := b.forge(room, event.Proto{Sender: bob, Type: "m.room.redaction", Content: []byte(`{"redacts":"` + string(target.ID()) + `"}`)})
	for _, ev := range []*event.Event{redaction, target} {
		if r := a.receive(b, room, ev.JSON()); r[0].Err != nil {
			t.Fatal(r[0].Err)
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
