package users

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
)

func TestPushers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		w.login(t, alice, "A")
		pusher := func(user matrix.UserID, key string) Pusher {
			return Pusher{UserID: user, DeviceID: "A", PushKey: key, Kind: "http", AppID: "app\x00", AppDisplayName: "App", DeviceDisplayName: "Phone", Lang: "en",
				Data: rawJSON(`{"format":"event_id_only","url":"https://push.test/_matrix/push/v1/notify"}`)}
		}
		list := func(user matrix.UserID) []Pusher {
			t.Helper()
			return mustGet[[]Pusher](t)(w.Pushers.List(ctx, w.db, user))
		}
		must(t, w.Pushers.Set(ctx, pusher(alice, "k1"), false))
		must(t, w.Pushers.Set(ctx, pusher(alice, "k2"), false))
		got := list(alice)
		if len(got) != 2 {
			t.Fatalf("pushers %+v", got)
		}
		want := pusher(alice, "k1")
		want.User, want.Gateway, want.SetAt, want.Badge = got[0].User, "https://push.test", matrix.TimestampOf(w.clock.Now()), -1
		want.LastPosition = got[0].LastPosition
		if diff := cmp.Diff(want, got[0]); diff != "" {
			t.Error(diff)
		}
		// Setting again replaces it, and keeps its place in the stream.
		step := storage.PusherStep{Key: want.Key(), Waits: true, PusherProgress: storage.PusherProgress{LastPosition: 1 << 40, Badge: 3, FailingSince: 5, RetryAt: 6, Refused: true}}
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetPusherProgress(ctx, tx, []storage.PusherStep{step}) }))
		again := pusher(alice, "k1")
		again.Lang = "ko"
		must(t, w.Pushers.Set(ctx, again, false))
		if got := list(alice)[0]; got.Lang != "ko" || got.PusherProgress != (storage.PusherProgress{LastPosition: 1 << 40, Badge: 3}) {
			t.Errorf("pusher %+v", got)
		}
		// The same app and key of another user takes it over, unless both are wanted.
		must(t, w.Pushers.Set(ctx, pusher(bob, "k1"), true))
		if len(list(alice)) != 2 || len(list(bob)) != 1 {
			t.Error("append removed a pusher")
		}
		must(t, w.Pushers.Set(ctx, pusher(bob, "k1"), false))
		if len(list(alice)) != 1 || len(list(bob)) != 1 {
			t.Error("another user's pusher stays")
		}
		must(t, w.Pushers.Delete(ctx, storage.PusherKey{UserID: bob, AppID: "app\x00", PushKey: "k1"}))
		must(t, w.Pushers.Delete(ctx, storage.PusherKey{UserID: bob, AppID: "app\x00", PushKey: "k1"}))
		if len(list(bob)) != 0 {
			t.Error("not deleted")
		}
		// A device takes its pushers with it.
		must(t, w.Sessions.Logout(ctx, alice, "A"))
		if len(list(alice)) != 0 {
			t.Error("the pusher of a device that is gone stays")
		}
		for name, change := range map[string]func(*Pusher){
			"no key":   func(p *Pusher) { p.PushKey = "" },
			"long key": func(p *Pusher) { p.PushKey = strings.Repeat("x", 513) },
			"long app": func(p *Pusher) { p.AppID = strings.Repeat("x", 65) },
			"kind":     func(p *Pusher) { p.Kind = "pigeon" },
			"no data":  func(p *Pusher) { p.Data = nil },
			"data":     func(p *Pusher) { p.Data = rawJSON(`[]`) },
			"email":    func(p *Pusher) { p.Kind = "email" },
			"http":     func(p *Pusher) { p.Data = rawJSON(`{"url":"http://push.test/_matrix/push/v1/notify"}`) },
			"path":     func(p *Pusher) { p.Data = rawJSON(`{"url":"https://push.test/_matrix/push/v1/notify/"}`) },
			"escaped":  func(p *Pusher) { p.Data = rawJSON(`{"url":"https://push.test/_matrix%2Fpush/v1/notify"}`) },
			"no host":  func(p *Pusher) { p.Data = rawJSON(`{"url":"https:///_matrix/push/v1/notify"}`) },
			"opaque":   func(p *Pusher) { p.Data = rawJSON(`{"url":"https:_matrix/push/v1/notify"}`) },
			"no url":   func(p *Pusher) { p.Data = rawJSON(`{}`) },
			"huge":     func(p *Pusher) { p.AppDisplayName = strings.Repeat("x", 100_000) },
		} {
			p := pusher(alice, "k")
			change(&p)
			if _, ok := matrix.AsError(w.Pushers.Set(ctx, p, false)); !ok {
				t.Errorf("%s: accepted", name)
			}
		}
	})
}

// What is used of the pushers that there are.
func TestUsablePushers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		set := func(key, host string) error {
			return w.Pushers.Set(ctx, Pusher{UserID: alice, DeviceID: "A", PushKey: key, Kind: "http", AppID: "app",
				Data: rawJSON(`{"url":"https://` + host + `/_matrix/push/v1/notify"}`)}, false)
		}
		usable := func(s *Service, want int) {
			t.Helper()
			if got := mustGet[[]Pusher](t)(s.Pushers.Usable(ctx, alice)); len(got) != want {
				t.Errorf("%d pushers are used, want %d", len(got), want)
			}
		}
		usable(w.Service, 0)
		must(t, set("k", "push.test"))
		must(t, set("l", "other.test:8443"))
		usable(w.Service, 2)
		must(t, w.Accounts.SetLocked(ctx, alice, true))
		usable(w.Service, 0)
		must(t, w.Accounts.SetLocked(ctx, alice, false))
		usable(w.Service, 2)
		must(t, w.Accounts.SetSuspended(ctx, alice, true)) // may still read
		usable(w.Service, 2)

		options := w.options
		options.PushGateways.Hosts = []string{"push.*"}
		strict := New(options)
		usable(strict, 1)
		w.Service = strict
		if _, ok := matrix.AsError(set("m", "other.test")); !ok {
			t.Error("a gateway that is not allowed was taken")
		}
		must(t, set("m", "PUSH.test"))
		options.PushGateways = PushGateways{Disabled: true, Insecure: true}
		off := New(options)
		usable(off, 0)
		w.Service = off
		if err := set("n", "push.test"); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Error("push is off", err)
		}
		w.Service = New(w.options)
		for key := range 97 {
			must(t, set(string(rune('a'+key%26))+strings.Repeat("x", key), "push.test"))
		}
		if err := set("one too many", "push.test"); !matrix.HasCode(err, "M_TOO_LARGE") {
			t.Error("there is no limit", err)
		}
		must(t, set("k", "new.test"))
	})
}
