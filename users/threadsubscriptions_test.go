package users

import (
	"testing"

	"hanok/matrix"
	"hanok/storage"
)

func TestThreadSubscriptions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		const room, root = matrix.RoomID("!r:here.test"), matrix.EventID("$root")
		now := func() *storage.Position {
			barrier(w.db)
			pos := w.db.Current()
			return &pos
		}
		subscribe := func(cause *storage.Position) error { return w.Threads.Subscribe(ctx, alice, room, root, cause) }
		_, err := w.Threads.Get(ctx, alice, room, root)
		wantCode(t, err, 404, "M_NOT_FOUND")
		must(t, w.Threads.Unsubscribe(ctx, alice, room, root))

		w.settle()
		from := *now()
		must(t, subscribe(now()))
		if s := mustGet[*ThreadSubscription](t)(w.Threads.Get(ctx, alice, room, root)); !s.Automatic {
			t.Errorf("%+v", s)
		}
		if woken := w.notifier.takeUsers(); len(woken) != 1 || woken[0] != alice {
			t.Errorf("woken %v", woken)
		}
		must(t, subscribe(nil))
		must(t, subscribe(now())) // does not make it automatic again
		if s := mustGet[*ThreadSubscription](t)(w.Threads.Get(ctx, alice, room, root)); s.Automatic {
			t.Errorf("%+v", s)
		}
		before := now()
		must(t, w.Threads.Unsubscribe(ctx, alice, room, root))
		_, err = w.Threads.Get(ctx, alice, room, root)
		wantCode(t, err, 404, "M_NOT_FOUND")
		changed := mustGet[[]ThreadSubscription](t)(w.Threads.Changed(ctx, w.db, alice, from, *now(), 10))
		if len(changed) != 1 || changed[0].Subscribed {
			t.Errorf("changed %+v", changed)
		}
		wantCode(t, subscribe(before), 409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
		old := storage.Position(-5) // of history
		wantCode(t, subscribe(&old), 409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
		after := *now() + 1
		must(t, subscribe(&after))
		_, err = w.Threads.Get(ctx, bob, room, root)
		wantCode(t, err, 404, "M_NOT_FOUND")
		must(t, w.Accounts.Deactivate(ctx, alice, false))
		if left := mustGet[[]ThreadSubscription](t)(w.Threads.Changed(ctx, w.db, alice, 0, *now(), 10)); len(left) != 0 {
			t.Errorf("left after deactivation: %v", left)
		}
	})
}
