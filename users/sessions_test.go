package users

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
)

func TestSessions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		s := w.login(t, alice, "PHONE")
		who := mustGet[*Requester](t)(w.Sessions.Authenticate(ctx, s.AccessToken))
		if diff := cmp.Diff(&Requester{UserID: alice, DeviceID: "PHONE"}, who); diff != "" {
			t.Error(diff)
		}
		for _, bad := range []string{"", "x", s.AccessToken + "x", "\x00"} {
			_, err := w.Sessions.Authenticate(ctx, bad)
			wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		}
		// The database has no token that could be used.
		var n int
		must(t, w.db.QueryRow(ctx, `SELECT count(*) FROM access_tokens WHERE hash = $1`, []byte(s.AccessToken)).Scan(&n))
		if n != 0 {
			t.Error("a token is stored in the clear")
		}

		// Logging in on the same device ends the session before.
		again := w.login(t, alice, "PHONE")
		_, err := w.Sessions.Authenticate(ctx, s.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		other := w.login(t, alice, "")
		if other.DeviceID == "" || other.DeviceID == "PHONE" {
			t.Errorf("made up device %q", other.DeviceID)
		}
		if len(mustGet[[]Device](t)(w.Devices.List(ctx, alice))) != 2 {
			t.Error("not two devices")
		}

		must(t, w.Sessions.Logout(ctx, alice, "PHONE"))
		_, err = w.Sessions.Authenticate(ctx, again.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		_, err = w.Devices.Get(ctx, alice, "PHONE")
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.Sessions.Authenticate(ctx, other.AccessToken)
		must(t, err)
		must(t, w.Sessions.LogoutAll(ctx, alice))
		_, err = w.Sessions.Authenticate(ctx, other.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")

		for _, bad := range hostileNames[1:] {
			_, err := w.Sessions.Create(ctx, NewSession{UserID: alice, DeviceID: matrix.DeviceID(bad)})
			wantCode(t, err, 400, "M_INVALID_PARAM")
		}
		// A device name is any text.
		named := mustGet[*Session](t)(w.Sessions.Create(ctx, NewSession{UserID: alice, DisplayName: "nul\x00 name"}))
		if d := mustGet[*Device](t)(w.Devices.Get(ctx, alice, named.DeviceID)); d.DisplayName != "nul\x00 name" {
			t.Errorf("device name %q", d.DisplayName)
		}
	})
}

func TestRefresh(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		first := mustGet[*Session](t)(w.Sessions.Create(ctx, NewSession{UserID: alice, DeviceID: "D", Refreshable: true}))
		if first.RefreshToken == "" || first.ExpiresIn != 5*time.Minute {
			t.Fatalf("session %+v", first)
		}
		w.clock.advance(6 * time.Minute)
		_, err := w.Sessions.Authenticate(ctx, first.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		if e, _ := matrix.AsError(err); e.Extra["soft_logout"] != true {
			t.Error("no soft logout of a token that can be refreshed")
		}
		// The answer may get lost: until a new token is used, the old one refreshes.
		lost := mustGet[*Session](t)(w.Sessions.Refresh(ctx, first.RefreshToken))
		second := mustGet[*Session](t)(w.Sessions.Refresh(ctx, first.RefreshToken))
		_, err = w.Sessions.Authenticate(ctx, lost.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		_, err = w.Sessions.Refresh(ctx, lost.RefreshToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		who := mustGet[*Requester](t)(w.Sessions.Authenticate(ctx, second.AccessToken))
		if who.DeviceID != "D" {
			t.Errorf("refreshed as %+v", who)
		}
		// Now the first is over, and the second goes on to work.
		_, err = w.Sessions.Refresh(ctx, first.RefreshToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		_, err = w.Sessions.Authenticate(ctx, second.AccessToken)
		must(t, err)
		// Using the new refresh token ends the old one, too.
		third := mustGet[*Session](t)(w.Sessions.Refresh(ctx, second.RefreshToken))
		fourth := mustGet[*Session](t)(w.Sessions.Refresh(ctx, third.RefreshToken))
		_, err = w.Sessions.Refresh(ctx, second.RefreshToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		must(t, w.core.expire(ctx))
		_, err = w.Sessions.Authenticate(ctx, fourth.AccessToken)
		must(t, err)

		must(t, w.Accounts.SetLocked(ctx, alice, true))
		_, err = w.Sessions.Refresh(ctx, fourth.RefreshToken)
		wantCode(t, err, 401, "M_USER_LOCKED")
		must(t, w.Accounts.SetLocked(ctx, alice, false))
		must(t, w.Sessions.Logout(ctx, alice, "D"))
		_, err = w.Sessions.Refresh(ctx, fourth.RefreshToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
	})
}

func TestLoginTokens(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		token, life, err := w.Sessions.LoginToken(ctx, alice)
		must(t, err)
		if life != 2*time.Minute {
			t.Errorf("life %v", life)
		}
		if user := mustGet[matrix.UserID](t)(w.Sessions.RedeemLoginToken(ctx, token)); user != alice {
			t.Errorf("redeemed for %s", user)
		}
		_, err = w.Sessions.RedeemLoginToken(ctx, token)
		wantCode(t, err, 403, "M_FORBIDDEN")
		late, _, err := w.Sessions.LoginToken(ctx, alice)
		must(t, err)
		w.clock.advance(3 * time.Minute)
		_, err = w.Sessions.RedeemLoginToken(ctx, late)
		wantCode(t, err, 403, "M_FORBIDDEN")

		openID, _, err := w.Sessions.OpenIDToken(ctx, alice)
		must(t, err)
		for range 2 {
			if user := mustGet[matrix.UserID](t)(w.Sessions.OpenIDUser(ctx, openID)); user != alice {
				t.Errorf("openid user %s", user)
			}
		}
		_, err = w.Sessions.OpenIDUser(ctx, token)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		w.clock.advance(2 * time.Hour)
		_, err = w.Sessions.OpenIDUser(ctx, openID)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		must(t, w.core.expire(ctx))
	})
}

// challenged returns what a client reads of a 401.
func challenged(t *testing.T, err error) (session string, completed []string, code string) {
	t.Helper()
	e, ok := matrix.AsError(err)
	if !ok || e.Status != 401 || e.Extra["flows"] == nil || e.Extra["params"] == nil {
		t.Fatalf("no challenge: %v", err)
	}
	session, _ = e.Extra["session"].(string)
	completed, _ = e.Extra["completed"].([]string)
	if session == "" {
		t.Fatal("challenge without session")
	}
	return session, completed, e.Code
}

func auth(members map[string]any) json.RawMessage { return encode(members) }

func TestUIA(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, _ := w.register(t, "alice"), w.register(t, "bob")
		op := Operation{Name: "DELETE /devices/A", User: alice, Flows: [][]string{{StagePassword}}, Body: []byte(`{"x":1}`)}

		_, err := w.UIA.Authenticate(ctx, op, nil)
		session, _, code := challenged(t, err)
		if code != "" {
			t.Errorf("first challenge has errcode %s", code)
		}
		password := func(session, user, password string) json.RawMessage {
			return auth(map[string]any{"type": StagePassword, "session": session, "password": password,
				"identifier": map[string]string{"type": "m.id.user", "user": user}})
		}
		_, err = w.UIA.Authenticate(ctx, op, password(session, "alice", "wrong"))
		if _, _, code := challenged(t, err); code != "M_FORBIDDEN" {
			t.Errorf("wrong password: %s", code)
		}
		_, err = w.UIA.Authenticate(ctx, op, password(session, "bob", "password of bob"))
		wantCode(t, err, 403, "M_FORBIDDEN")

		other := op
		other.Name = "DELETE /devices/B"
		_, err = w.UIA.Authenticate(ctx, other, password(session, "alice", "password of alice"))
		wantCode(t, err, 403, "M_FORBIDDEN")
		stranger := op
		stranger.User = "@bob:here.test"
		_, err = w.UIA.Authenticate(ctx, stranger, password(session, "bob", "password of bob"))
		wantCode(t, err, 403, "M_FORBIDDEN")

		bare := op
		bare.Body = nil
		done := mustGet[*Authenticated](t)(w.UIA.Authenticate(ctx, bare, password(session, "@alice:here.test", "password of alice")))
		if string(done.Body) != `{"x":1}` || !cmp.Equal(done.Completed, []string{StagePassword}) {
			t.Errorf("done %+v", done)
		}
		// The request may be repeated for a while, with the session alone.
		_, err = w.UIA.Authenticate(ctx, op, auth(map[string]any{"session": session}))
		must(t, err)
		w.clock.advance(2 * time.Minute)
		_, err = w.UIA.Authenticate(ctx, op, auth(map[string]any{"session": session}))
		if fresh, _, _ := challenged(t, err); fresh == session {
			t.Error("an ended session lives on")
		}

		// Old clients send all at once, without session.
		_, err = w.UIA.Authenticate(ctx, op, auth(map[string]any{"type": StagePassword, "user": "alice", "password": "password of alice"}))
		must(t, err)

		once := op
		once.Once = true
		_, err = w.UIA.Authenticate(ctx, once, nil)
		session, _, _ = challenged(t, err)
		_, err = w.UIA.Authenticate(ctx, once, password(session, "alice", "password of alice"))
		must(t, err)
		_, err = w.UIA.Authenticate(ctx, once, auth(map[string]any{"session": session}))
		challenged(t, err)

		for _, bad := range []string{`1`, `"x"`, `[]`, `{"type":1}`, `{"session":{}}`, `{"identifier":"x"}`, `{"type":"a","type":"b"}`} {
			_, err := w.UIA.Authenticate(ctx, op, json.RawMessage(bad))
			wantCode(t, err, 400, "M_BAD_JSON")
		}
		for _, strange := range []string{`{"session":"\u0000"}`, `{"session":"` + string(make([]byte, 0)) + `nope"}`, `{"type":"m.login.\u0000"}`} {
			_, err := w.UIA.Authenticate(ctx, op, json.RawMessage(strange))
			challenged(t, err)
		}
	})
}

func TestUIAFlows(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		_, err := w.RegistrationTokens.Create(ctx, RegistrationToken{Token: "tok"})
		must(t, err)
		op := Operation{Name: "register", Flows: [][]string{{StageRegistrationToken, StageDummy}, {StageRegistrationToken, "m.login.terms"}}}
		_, err = w.UIA.Authenticate(ctx, op, nil)
		session, _, _ := challenged(t, err)
		step := func(members map[string]any) error {
			members["session"] = session
			_, err := w.UIA.Authenticate(ctx, op, auth(members))
			return err
		}
		if _, completed, code := challenged(t, step(map[string]any{"type": StageDummy})); code != "M_UNRECOGNIZED" || completed == nil || len(completed) != 0 {
			t.Errorf("stage out of order: %s %v", code, completed)
		}
		if _, _, code := challenged(t, step(map[string]any{"type": StageRegistrationToken, "token": "bad"})); code != "M_UNAUTHORIZED" {
			t.Errorf("bad token: %s", code)
		}
		if _, completed, code := challenged(t, step(map[string]any{"type": StageRegistrationToken, "token": "tok"})); code != "" || len(completed) != 1 {
			t.Errorf("first stage: %s %v", code, completed)
		}
		// A completed stage is not tried again.
		if _, completed, _ := challenged(t, step(map[string]any{"type": StageRegistrationToken, "token": "bad"})); len(completed) != 1 {
			t.Errorf("repeated stage: %v", completed)
		}
		if _, _, code := challenged(t, step(map[string]any{"type": "m.login.terms"})); code != "M_UNRECOGNIZED" {
			t.Errorf("stage for elsewhere: %s", code)
		}
		must(t, w.UIA.Complete(ctx, session, "m.login.terms"))
		done, err := w.UIA.Authenticate(ctx, op, auth(map[string]any{"session": session}))
		must(t, err)
		if done.RegistrationToken != "tok" {
			t.Errorf("token %q", done.RegistrationToken)
		}
		if err := w.UIA.Complete(ctx, "unknown", "x"); err == nil {
			t.Error("completed a stage of no session")
		}
		w.clock.advance(time.Hour)
		must(t, w.core.expire(ctx))
		var n int
		must(t, w.db.QueryRow(ctx, `SELECT count(*) FROM uia_sessions`).Scan(&n))
		if n != 0 {
			t.Errorf("%d sessions left", n)
		}
	})
}

func TestDevices(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		w.rooms.join("!r:here.test", alice, "@bob:here.test", "@carol:there.test")
		w.settle()
		name := "Laptop"
		_, err := w.Devices.Put(ctx, alice, "NONE", &name, false)
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.Devices.Put(ctx, alice, "A", &name, false)
		must(t, err)
		if d := mustGet[*Device](t)(w.Devices.Get(ctx, alice, "A")); d.DisplayName != name {
			t.Errorf("device %+v", d)
		}
		sent := w.outbox.take()
		if len(sent) != 1 || !cmp.Equal(sent[0].To, []matrix.ServerName{"there.test"}) {
			t.Fatalf("sent %+v", sent)
		}
		if diff := cmp.Diff([]matrix.UserID{alice, "@bob:here.test"}, w.notifier.takeUsers()); diff != "" {
			t.Error(diff)
		}
		// The same name again, or none, changes nothing.
		for _, n := range []*string{&name, nil} {
			_, err = w.Devices.Put(ctx, alice, "A", n, false)
			must(t, err)
		}
		if sent := w.outbox.take(); len(sent) != 0 {
			t.Errorf("sent %+v", sent)
		}
		created := mustGet[bool](t)(w.Devices.Put(ctx, alice, "NEW", nil, true))
		if !created {
			t.Error("not created")
		}
		created = mustGet[bool](t)(w.Devices.Put(ctx, alice, "NEW", &name, true))
		if created {
			t.Error("created twice")
		}
		const settings = "org.matrix.msc3890.local_notification_settings."
		must(t, w.AccountData.Set(ctx, alice, "", settings+"A", rawJSON(`{"is_silenced":true}`)))
		must(t, w.AccountData.Set(ctx, alice, "", settings+"NEW", rawJSON(`{"is_silenced":true}`)))
		must(t, w.Devices.Delete(ctx, alice, "A", "UNKNOWN"))
		_, err = w.AccountData.Get(ctx, alice, "", settings+"A")
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.AccountData.Get(ctx, alice, "", settings+"NEW")
		must(t, err)
		list := mustGet[[]Device](t)(w.Devices.List(ctx, alice))
		if len(list) != 1 || list[0].DeviceID != "NEW" {
			t.Errorf("devices %+v", list)
		}
		long := string(make([]byte, 5000))
		_, err = w.Devices.Put(ctx, alice, "NEW", &long, false)
		wantCode(t, err, 413, "M_TOO_LARGE")
	})
}

func TestDevicesSeen(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		for _, keep := range []bool{false, true} {
			w := newWorld(w.db, func(o *Options) { o.KeepAddresses = keep })
			user := w.register(t, map[bool]string{false: "private", true: "kept"}[keep])
			w.login(t, user, "A")
			w.Devices.Seen(user, "A", "192.0.2.1", "Agent/1")
			// Shown at once, stored later.
			if d := mustGet[*Device](t)(w.Devices.Get(ctx, user, "A")); d.LastSeenAt != w.core.now() {
				t.Errorf("last seen %d before it is stored", d.LastSeenAt)
			}
			must(t, w.Devices.flush(ctx, false))
			d := mustGet[storage.Device](t)(storage.GetDevice(ctx, w.db, user, "A"))
			if d.LastSeenAt != w.core.now() || (d.LastSeenIP == "192.0.2.1") != keep || (d.UserAgent == "Agent/1") != keep {
				t.Errorf("keep=%v: %+v", keep, d)
			}
			// A busy device is stored once per interval.
			w.clock.advance(time.Minute)
			w.Devices.Seen(user, "A", "", "")
			must(t, w.Devices.flush(ctx, false))
			if again := mustGet[storage.Device](t)(storage.GetDevice(ctx, w.db, user, "A")); again.LastSeenAt != d.LastSeenAt {
				t.Error("stored too soon")
			}
			must(t, w.Devices.flush(ctx, true))
			if again := mustGet[storage.Device](t)(storage.GetDevice(ctx, w.db, user, "A")); again.LastSeenAt == d.LastSeenAt {
				t.Error("not stored at the end")
			}
		}
	})
}

func TestChangePasswordEndsSessions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		kept, gone := w.login(t, alice, "KEPT"), w.login(t, alice, "GONE")
		device := matrix.DeviceID("KEPT")
		must(t, w.Accounts.SetPassword(ctx, alice, "new", &device))
		_, err := w.Sessions.Authenticate(ctx, kept.AccessToken)
		must(t, err)
		_, err = w.Sessions.Authenticate(ctx, gone.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
	})
}
