package users

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

func openSQLite(t *testing.T) *storage.DB { return storagetest.Open(t) }

func TestPresence(t *testing.T) {
	w := newWorld(openSQLite(t))
	ctx := t.Context()
	alice := w.register(t, "alice")
	w.rooms.join("!r:here.test", alice, "@bob:here.test", carol)
	w.settle()
	if got := w.Presence.Get(alice); got.State != "offline" {
		t.Errorf("at first %+v", got)
	}
	from := w.db.Current()
	msg := "lunch"
	must(t, w.Presence.Set(ctx, alice, "online", &msg))
	sent := w.outbox.take()
	if len(sent) != 1 || !sent[0].Volatile || sent[0].Type != "m.presence" || !strings.Contains(string(sent[0].Content), `"status_msg":"lunch"`) {
		t.Errorf("sent %s", encode(sent))
	}
	if woken := w.notifier.takeUsers(); len(woken) != 2 {
		t.Errorf("woken %v", woken)
	}
	changed := w.Presence.Changed(from)
	if len(changed) != 1 || changed[0].State != "online" || changed[0].StatusMsg != "lunch" || !changed[0].Active {
		t.Errorf("changed %+v", changed)
	}
	barrier(w.db)
	if len(w.Presence.Changed(w.db.Current())) != 0 {
		t.Error("changed after now")
	}
	// Syncing on tells nobody anything new.
	for range 3 {
		w.Presence.Active(ctx, alice, "online")
	}
	if sent := w.outbox.take(); len(sent) != 0 {
		t.Errorf("sent %s", encode(sent))
	}
	wantCode(t, w.Presence.Set(ctx, alice, "asleep", nil), 400, "M_INVALID_PARAM")
	long := strings.Repeat("x", 5000)
	wantCode(t, w.Presence.Set(ctx, alice, "online", &long), 400, "M_INVALID_PARAM")

	// Clients sync on, but their user does nothing; then they do not sync, either.
	for range 6 {
		w.clock.advance(time.Minute)
		w.Presence.Active(ctx, alice, "unavailable")
		must(t, w.Presence.idle(ctx))
	}
	if got := w.Presence.Get(alice); got.State != "unavailable" || got.StatusMsg != "lunch" {
		t.Errorf("idle %+v", got)
	}
	w.Presence.Active(ctx, alice, "offline")
	w.clock.advance(2 * time.Minute)
	must(t, w.Presence.idle(ctx))
	if got := w.Presence.Get(alice); got.State != "offline" {
		t.Errorf("gone %+v", got)
	}
	w.Presence.Active(ctx, alice, "")
	if got := w.Presence.Get(alice); got.State != "online" {
		t.Errorf("back %+v", got)
	}
}

func TestReceivePresence(t *testing.T) {
	w := newWorld(openSQLite(t))
	ctx := t.Context()
	alice := w.registerWithCarol(t)
	w.settle()
	for _, bad := range []string{
		`{}`, `[]`, `{`, `{"push":[{"user_id":"@alice:here.test","presence":"online"}]}`, `{"push":[{"user_id":"nonsense","presence":"online"}]}`,
		`{"push":[{"user_id":"@carol:there.test","presence":"asleep"}]}`, `{"push":[{"user_id":"@carol:there.test","presence":1}]}`,
		`{"push":[{"user_id":"@carol:there.test","presence":"online","status_msg":"` + strings.Repeat("x", 5000) + `"}]}`,
	} {
		must(t, w.Presence.Receive(ctx, "there.test", []byte(bad)))
	}
	if got := w.Presence.Get(carol); got.State != "offline" {
		t.Errorf("after nonsense %+v", got)
	}
	must(t, w.Presence.Receive(ctx, "there.test", []byte(`{"push":[{"user_id":"@carol:there.test","presence":"online","last_active_ago":9007199254740991,"currently_active":true}]}`)))
	if got := w.Presence.Get(carol); got.State != "online" || !got.Active {
		t.Errorf("received %+v", got)
	}
	if woken := w.notifier.takeUsers(); len(woken) != 1 || woken[0] != alice {
		t.Errorf("woken %v", woken)
	}
	if sent := w.outbox.take(); len(sent) != 0 {
		t.Errorf("passed on %s", encode(sent))
	}
	// What her server says holds as long as servers hold it.
	w.clock.advance(lostAfter)
	must(t, w.Presence.idle(ctx))
	if got := w.Presence.Get(carol); got.State != "online" {
		t.Errorf("after %v %+v", lostAfter, got)
	}
}

// However many users other servers tell of, what is kept is bounded.
func TestPresenceIsBounded(t *testing.T) {
	w := newWorld(openSQLite(t))
	for i := range maxPresences {
		user := matrix.UserID("@" + strings.Repeat("x", i%50) + string(rune('a'+i%26)) + time.Duration(i).String() + ":there.test")
		w.Presence.states[user] = &PresenceState{User: user, LastActive: time.Unix(int64(i), 0)}
	}
	must(t, w.Presence.Set(t.Context(), "@alice:here.test", "online", nil))
	if n := len(w.Presence.states); n > maxPresences {
		t.Errorf("%d presences kept", n)
	}
	if w.Presence.Get("@alice:here.test").State != "online" {
		t.Error("the new one was dropped")
	}
}

// A server that makes up people displaces nobody whom somebody here knows, and writes nothing to the disk.
func TestPresenceOfStrangers(t *testing.T) {
	w := newWorld(openSQLite(t))
	ctx := t.Context()
	alice := w.registerWithCarol(t)
	must(t, w.Presence.Set(ctx, alice, "online", nil))
	must(t, w.Presence.Receive(ctx, "there.test", []byte(`{"push":[{"user_id":"@carol:there.test","presence":"online","last_active_ago":100000}]}`)))
	must(t, w.Presence.store(ctx))
	for part := range maxPresences/1000 + 10 {
		var b strings.Builder
		for i := range 1000 {
			fmt.Fprintf(&b, `,{"user_id":"@x%d-%d:evil.test","presence":"online","last_active_ago":0}`, part, i)
		}
		must(t, w.Presence.Receive(ctx, "evil.test", []byte(`{"push":[`+b.String()[1:]+`]}`)))
	}
	if n := len(w.Presence.states); n > maxStrangers+2 || w.Presence.strangers != n-2 {
		t.Errorf("%d presences kept, %d of them are said to be strangers", n, w.Presence.strangers)
	}
	for _, user := range []matrix.UserID{alice, carol} {
		if got := w.Presence.Get(user); got.State != "online" {
			t.Errorf("%s is %s", user, got.State)
		}
	}
	if n := len(w.Presence.dirty); n != 0 {
		t.Errorf("%d strangers would be stored", n)
	}
}

// Whom nobody here is known to share a room with may be in one whose members are not known yet, if their server is.
func TestPresenceInPartialRooms(t *testing.T) {
	w := newWorld(openSQLite(t))
	ctx := t.Context()
	w.register(t, "alice")
	w.rooms.partial = []matrix.ServerName{"there.test"}
	for _, server := range []matrix.ServerName{"there.test", "evil.test"} {
		must(t, w.Presence.Receive(ctx, server, fmt.Appendf(nil, `{"push":[{"user_id":"@carol:%s","presence":"online","last_active_ago":5}]}`, server)))
	}
	if !w.Presence.Get(carol).AmongPartial(w.rooms.partial) || w.Presence.Get("@carol:evil.test").AmongPartial(w.rooms.partial) {
		t.Error("it is not seen who may be in the room")
	}
	// Whoever is known to share a room is told of for that reason only.
	w.rooms.join("!r:here.test", "@bob:here.test", carol)
	must(t, w.Presence.Receive(ctx, "there.test", []byte(`{"push":[{"user_id":"@carol:there.test","presence":"unavailable"}]}`)))
	if w.Presence.Get(carol).AmongPartial(w.rooms.partial) {
		t.Error("known of another room, and taken to be in this one")
	}
}

// What people said of themselves outlasts a restart, and nobody seems to be there for good.
func TestPresenceAcrossRestart(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob, gone := w.register(t, "alice"), w.register(t, "bob"), w.register(t, "gone")
		w.rooms.join("!r:here.test", alice, bob, gone, carol)
		w.settle()
		msg := "in a meeting"
		must(t, w.Presence.Set(ctx, alice, "unavailable", &msg))
		w.Presence.Active(ctx, bob, "online")
		must(t, w.Presence.Set(ctx, gone, "online", &msg))
		must(t, w.Presence.Forget(ctx, gone))
		must(t, w.Presence.Receive(ctx, "there.test", []byte(`{"push":[{"user_id":"@carol:there.test","presence":"online","last_active_ago":5}]}`)))
		must(t, w.Presence.store(ctx))
		barrier(w.db)
		since := w.db.Current()

		again := New(w.options)
		must(t, again.Presence.load(ctx))
		barrier(w.db)
		told := map[matrix.UserID]string{}
		for _, s := range again.Presence.Changed(since) {
			told[s.User] = s.State + " " + s.StatusMsg
		}
		want := map[matrix.UserID]string{alice: "unavailable in a meeting", bob: "online ", carol: "online "}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Error(diff)
		}
		// Whoever does not come back goes: people of this server soon, those of others when they could have been heard of.
		w.clock.advance(2 * time.Minute)
		again.Presence.Active(ctx, alice, "online")
		must(t, again.Presence.idle(ctx))
		for user, want := range map[matrix.UserID]string{alice: "online", bob: "offline", carol: "online"} {
			if got := again.Presence.Get(user); got.State != want {
				t.Errorf("%s is %s", user, got.State)
			}
		}
		w.clock.advance(lostAfter)
		must(t, again.Presence.idle(ctx))
		if got := again.Presence.Get(carol); got.State != "offline" {
			t.Errorf("carol is %s", got.State)
		}
		must(t, again.Presence.store(ctx))
		rows := mustGet[[]storage.Presence](t)(storage.ListPresences(ctx, w.db, 10))
		if diff := cmp.Diff([]storage.Presence{{UserID: alice, State: "offline", StatusMsg: msg}}, rows); diff != "" {
			t.Error(diff)
		}
	})
}

// Other servers forget who they are told nothing of.
func TestPresenceIsToldAgain(t *testing.T) {
	w := newWorld(openSQLite(t))
	ctx := t.Context()
	alice := w.registerWithCarol(t)
	w.Presence.Active(ctx, alice, "online")
	w.settle()
	w.outbox.take()
	for range 2 * int(tellAgainAfter/time.Minute) {
		w.clock.advance(time.Minute)
		w.Presence.Active(ctx, alice, "online")
		must(t, w.Presence.idle(ctx))
	}
	if sent := w.outbox.take(); len(sent) != 1 || sent[0].Type != "m.presence" || !strings.Contains(string(sent[0].Content), `"presence":"online"`) {
		t.Errorf("sent %s", encode(sent))
	}
}
