package users

import (
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"hanok/matrix"
	"hanok/storage"
)

func TestRegister(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		a, err := w.Accounts.Register(t.Context(), Registration{Localpart: "Alice", Password: "secret"})
		must(t, err)
		if a.UserID != "@alice:here.test" || !a.HasPassword || a.Admin {
			t.Errorf("registered %+v", a)
		}
		_, err = w.Accounts.Register(t.Context(), Registration{Localpart: "alice", Password: "other"})
		wantCode(t, err, 400, "M_USER_IN_USE")
		wantCode(t, w.Accounts.Available(t.Context(), "ALICE"), 400, "M_USER_IN_USE")
		must(t, w.Accounts.Available(t.Context(), "bob"))

		name, _, err := w.Profiles.Local(t.Context(), a.UserID)
		must(t, err)
		if name != "alice" {
			t.Errorf("display name after registration %q", name)
		}

		one := mustGet[*Account](t)(w.Accounts.Register(t.Context(), Registration{}))
		two := mustGet[*Account](t)(w.Accounts.Register(t.Context(), Registration{Kind: KindGuest}))
		if one.UserID == two.UserID || two.Kind != KindGuest || one.HasPassword {
			t.Errorf("chosen accounts %+v and %+v", one, two)
		}

		all := mustGet[[]Account](t)(w.Accounts.List(t.Context(), "", 10))
		if len(all) != 3 {
			t.Errorf("listed %d accounts", len(all))
		}
		next := mustGet[[]Account](t)(w.Accounts.List(t.Context(), all[0].UserID, 1))
		if len(next) != 1 || next[0].UserID != all[1].UserID {
			t.Errorf("second page %+v", next)
		}
	})
}

func TestLocalparts(t *testing.T) {
	a := &Accounts{core: &core{Options{ServerName: here}}}
	for _, good := range []string{"a", "a.b-c_d=e/f+g", "0", strings.Repeat("a", 244)} {
		if err := a.CheckLocalpart(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "a b", "ä", "a:b", "@a", "a\x00", "a!", "a\n", strings.Repeat("a", 245), "a\xff"} {
		err := a.CheckLocalpart(bad)
		if !matrix.HasCode(err, "M_INVALID_USERNAME") {
			t.Errorf("%q: got %v", bad, err)
		}
	}
	if _, err := a.parseLocalpart("Old!User", true); err != nil {
		t.Errorf("historical: %v", err)
	}
	for _, bad := range []string{"", "a:b", "ä", "a\x00"} {
		if _, err := a.parseLocalpart(bad, true); !matrix.HasCode(err, "M_INVALID_USERNAME") {
			t.Errorf("historical %q: got %v", bad, err)
		}
	}
}

// Of many who want one name at the same time, one gets it.
func TestRegisterRace(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		var wg sync.WaitGroup
		results := make(chan error, 10)
		for range 10 {
			wg.Go(func() {
				_, err := w.Accounts.Register(context.Background(), Registration{Localpart: "same", Password: "x"})
				results <- err
			})
		}
		wg.Wait()
		close(results)
		won := 0
		for err := range results {
			if err == nil {
				won++
			} else {
				wantCode(t, err, 400, "M_USER_IN_USE")
			}
		}
		if won != 1 {
			t.Errorf("%d registrations succeeded", won)
		}
	})
}

// A session makes one account, however often and at what time its client asks.
func TestRegisterOncePerSession(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		op := Operation{Name: "register", Flows: [][]string{{StageDummy}}}
		session := func() string {
			_, err := w.UIA.Authenticate(ctx, op, nil)
			id, _, _ := challenged(t, err)
			return id
		}
		register := func(session, name string) (*Account, error) {
			if _, err := w.UIA.Authenticate(ctx, op, encode(map[string]string{"type": StageDummy, "session": session})); err != nil {
				return nil, err
			}
			return w.Accounts.Register(ctx, Registration{Localpart: name, Password: "x", Session: session})
		}
		for _, name := range []string{"", "chosen"} {
			id := session()
			var wg sync.WaitGroup
			made := make([]*Account, 8)
			for i := range made {
				wg.Go(func() {
					var err error
					if made[i], err = register(id, name); err != nil {
						t.Errorf("%q: %v", name, err)
					}
				})
			}
			wg.Wait()
			for _, a := range made {
				if a == nil || a.UserID != made[0].UserID {
					t.Fatalf("one session made %+v and %+v", made[0], a)
				}
			}
			_, err := register(id, "another")
			wantCode(t, err, 403, "M_FORBIDDEN")
		}
		ended := session()
		w.clock.advance(time.Hour)
		_, err := w.Accounts.Register(ctx, Registration{Session: ended})
		wantCode(t, err, 403, "M_FORBIDDEN")
	})
}

func TestPasswords(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		got, err := w.Accounts.CheckPassword(ctx, alice, "password of alice")
		must(t, err)
		if got.UserID != alice {
			t.Errorf("checked %v", got.UserID)
		}
		for _, bad := range []string{"", "wrong", "password of alice ", strings.Repeat("x", 5000)} {
			_, err := w.Accounts.CheckPassword(ctx, alice, bad)
			wantCode(t, err, 403, "M_FORBIDDEN")
		}
		_, err = w.Accounts.CheckPassword(ctx, "@nobody:here.test", "x")
		wantCode(t, err, 403, "M_FORBIDDEN")

		must(t, w.Accounts.SetPassword(ctx, alice, "new", nil))
		_, err = w.Accounts.CheckPassword(ctx, alice, "password of alice")
		wantCode(t, err, 403, "M_FORBIDDEN")
		_, err = w.Accounts.CheckPassword(ctx, alice, "new")
		must(t, err)
		wantCode(t, w.Accounts.SetPassword(ctx, alice, "", nil), 400, "M_WEAK_PASSWORD")
		wantCode(t, w.Accounts.SetPassword(ctx, alice, strings.Repeat("x", 1025), nil), 400, "M_INVALID_PARAM")
	})
}

func TestPasswordLength(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w = newWorld(w.db, func(o *Options) { o.MinPasswordLength = 8 })
		_, err := w.Accounts.Register(t.Context(), Registration{Localpart: "a", Password: "sieben7"})
		wantCode(t, err, 400, "M_WEAK_PASSWORD")
		_, err = w.Accounts.Register(t.Context(), Registration{Localpart: "a", Password: "acht8888"})
		must(t, err)
	})
}

// An imported bcrypt hash is accepted, and replaced by argon2id at the first login.
func TestBcryptIsReplaced(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		hash, err := bcrypt.GenerateFromPassword([]byte("imported"), bcrypt.MinCost)
		must(t, err)
		must(t, w.Accounts.update(ctx, alice, func(s *storage.Account) { s.PasswordHash = string(hash) }))
		_, err = w.Accounts.CheckPassword(ctx, alice, "wrong")
		wantCode(t, err, 403, "M_FORBIDDEN")
		for range 2 {
			_, err = w.Accounts.CheckPassword(ctx, alice, "imported")
			must(t, err)
			stored := mustGet[storage.Account](t)(storage.GetAccount(ctx, w.db, alice))
			if !strings.HasPrefix(stored.PasswordHash, "$argon2id$") {
				t.Errorf("hash after login: %.10s", stored.PasswordHash)
			}
		}
	})
}

func TestStoredHashes(t *testing.T) {
	h := newHasher(CheapHashing)
	for _, bad := range []string{
		"plain", "$argon2i$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$aaaa", "$argon2id$v=18$m=64,t=1,p=1$c2FsdHNhbHQ$aaaa",
		"$argon2id$v=19$m=99999999,t=1,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=0,p=1$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=1,p=0$c2FsdHNhbHQ$AAAAAAAAAAAAAAAAAAAAAA", "$argon2id$v=19$m=64,t=1,p=1$!!$AAAAAAAAAAAAAAAAAAAAAA",
		"$argon2id$v=19$m=64,t=1,p=1$c2FsdHNhbHQ$AA", "$argon2id$v=19$$$",
	} {
		if ok, _, err := h.verify(t.Context(), bad, "x"); err == nil || ok {
			t.Errorf("%s: ok=%v err=%v", bad, ok, err)
		}
	}
}

// Hashing waits for a slot, and gives up with its request.
func TestHashingIsBounded(t *testing.T) {
	h := newHasher(HashCost{Time: 1, Memory: 64, Parallel: 1})
	must(t, h.acquire(t.Context()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.hash(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("hash without a slot: %v", err)
	}
	h.release()
	if _, err := h.hash(t.Context(), "x"); err != nil {
		t.Errorf("hash with a slot: %v", err)
	}
}

func TestDeactivate(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		s := w.login(t, alice, "A")
		w.login(t, bob, "B")
		_, err := w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: deviceKeys(t, alice, "A", newKeypair("a")), OneTimeKeys: oneTimeKeys("a", 3)})
		must(t, err)
		must(t, w.AccountData.Set(ctx, alice, "", "m.direct", rawJSON(`{}`)))
		must(t, w.ToDevice.Send(ctx, bob, "B", "1", "m.x", Messages{alice: {"*": rawJSON(`{}`)}}))
		w.rooms.join("!r:here.test", alice, bob, "@carol:there.test")
		w.settle()

		must(t, w.Accounts.Deactivate(ctx, alice, true))
		_, err = w.Sessions.Authenticate(ctx, s.AccessToken)
		wantCode(t, err, 401, "M_UNKNOWN_TOKEN")
		_, err = w.Accounts.CheckPassword(ctx, alice, "password of alice")
		wantCode(t, err, 403, "M_USER_DEACTIVATED")
		_, err = w.Sessions.Create(ctx, NewSession{UserID: alice})
		wantCode(t, err, 403, "M_USER_DEACTIVATED")
		wantCode(t, w.Accounts.Available(ctx, "alice"), 400, "M_USER_IN_USE")
		_, err = w.Profiles.Get(ctx, alice)
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.AccountData.Get(ctx, alice, "", "m.direct")
		wantCode(t, err, 404, "M_NOT_FOUND")
		wantCode(t, w.Accounts.SetPassword(ctx, alice, "x", nil), 403, "M_USER_DEACTIVATED")
		got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, bob, Wanted{alice: nil}))
		if len(got.DeviceKeys[alice]) != 0 {
			t.Errorf("device keys after deactivation: %v", got.DeviceKeys)
		}
		sent := w.outbox.take()
		if len(sent) != 1 || sent[0].Type != "m.device_list_update" || !strings.Contains(string(sent[0].Content), `"deleted":true`) {
			t.Errorf("sent %+v", sent)
		}
		a := mustGet[*Account](t)(w.Accounts.Get(ctx, alice))
		if !a.Deactivated || !a.Erased || a.HasPassword {
			t.Errorf("account %+v", a)
		}
	})
}

func TestAccountFlags(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		s := w.login(t, alice, "A")
		must(t, w.Accounts.SetAdmin(ctx, alice, true))
		must(t, w.Accounts.SetSuspended(ctx, alice, true))
		must(t, w.Accounts.SetLocked(ctx, alice, true))
		who := mustGet[*Requester](t)(w.Sessions.Authenticate(ctx, s.AccessToken))
		if !who.Admin || !who.Suspended || !who.Locked {
			t.Errorf("requester %+v", who)
		}
		if err := w.Accounts.SetAdmin(ctx, "@nobody:here.test", true); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("unknown user: %v", err)
		}
	})
}

func secretMAC(secret string, parts ...string) string {
	m := hmac.New(sha1.New, []byte(secret))
	m.Write([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(m.Sum(nil))
}

func TestSharedSecret(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		_, err := w.Accounts.SharedSecretNonce()
		wantCode(t, err, 404, "M_UNRECOGNIZED")
		_, err = w.Accounts.RegisterWithSecret(ctx, SharedSecretRequest{})
		wantCode(t, err, 404, "M_UNRECOGNIZED")

		w = newWorld(w.db, func(o *Options) { o.RegistrationSecret = "shh" })
		nonce := mustGet[string](t)(w.Accounts.SharedSecretNonce())
		good := SharedSecretRequest{Nonce: nonce, Username: "root", Password: "pw", Admin: true, MAC: secretMAC("shh", nonce, "root", "pw", "admin")}

		for name, change := range map[string]func(*SharedSecretRequest){
			"wrong secret": func(r *SharedSecretRequest) { r.MAC = secretMAC("no", nonce, "root", "pw", "admin") },
			"not admin":    func(r *SharedSecretRequest) { r.Admin = false },
			"user type":    func(r *SharedSecretRequest) { r.UserType = "bot" },
			"no hex":       func(r *SharedSecretRequest) { r.MAC = "zz" },
			"empty mac":    func(r *SharedSecretRequest) { r.MAC = "" },
		} {
			r := good
			change(&r)
			_, err := w.Accounts.RegisterWithSecret(ctx, r)
			if !matrix.HasCode(err, "M_FORBIDDEN") {
				t.Errorf("%s: %v", name, err)
			}
		}
		for name, change := range map[string]func(*SharedSecretRequest){
			"own nonce": func(r *SharedSecretRequest) { r.Nonce = strings.Repeat("00", 32) },
			"no nonce":  func(r *SharedSecretRequest) { r.Nonce = "" },
			"nul":       func(r *SharedSecretRequest) { r.Username = "ro\x00ot" },
		} {
			r := good
			change(&r)
			_, err := w.Accounts.RegisterWithSecret(ctx, r)
			if !matrix.HasCode(err, "M_INVALID_PARAM") {
				t.Errorf("%s: %v", name, err)
			}
		}
		a := mustGet[*Account](t)(w.Accounts.RegisterWithSecret(ctx, good))
		if !a.Admin || a.UserID != "@root:here.test" {
			t.Errorf("account %+v", a)
		}
		_, err = w.Accounts.RegisterWithSecret(ctx, good)
		wantCode(t, err, 400, "M_USER_IN_USE")

		w.clock.advance(61 * time.Second)
		late := good
		late.Username, late.MAC = "late", secretMAC("shh", nonce, "late", "pw", "admin")
		_, err = w.Accounts.RegisterWithSecret(ctx, late)
		wantCode(t, err, 400, "M_INVALID_PARAM")
	})
}

func TestRegistrationTokens(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		one := int64(1)
		soon := w.RegistrationTokens.now() + 1000
		for _, tok := range []RegistrationToken{{Token: "once", UsesAllowed: &one}, {Token: "soon", ExpiresAt: &soon}, {Token: "always"}} {
			_, err := w.RegistrationTokens.Create(ctx, tok)
			must(t, err)
		}
		_, err := w.RegistrationTokens.Create(ctx, RegistrationToken{Token: "once"})
		wantCode(t, err, 400, "M_INVALID_PARAM")
		for _, bad := range []string{"with space", strings.Repeat("x", 65), "nul\x00", "ä"} {
			_, err := w.RegistrationTokens.Create(ctx, RegistrationToken{Token: bad})
			wantCode(t, err, 400, "M_INVALID_PARAM")
			if ok, err := w.RegistrationTokens.Valid(ctx, bad); ok || err != nil {
				t.Errorf("%q valid: %v %v", bad, ok, err)
			}
		}
		random := mustGet[*RegistrationToken](t)(w.RegistrationTokens.Create(ctx, RegistrationToken{}))
		if len(random.Token) < 16 {
			t.Errorf("random token %q", random.Token)
		}
		valid := func(token string, want bool) {
			t.Helper()
			if got := mustGet[bool](t)(w.RegistrationTokens.Valid(ctx, token)); got != want {
				t.Errorf("token %s valid: %v", token, got)
			}
		}
		valid("once", true)
		valid("nope", false)
		_, err = w.Accounts.Register(ctx, Registration{Localpart: "a", Token: "once"})
		must(t, err)
		valid("once", false)
		_, err = w.Accounts.Register(ctx, Registration{Localpart: "b", Token: "once"})
		wantCode(t, err, 403, "M_FORBIDDEN")
		must(t, w.Accounts.Available(ctx, "b"))
		// A registration that fails does not use the token up.
		_, err = w.Accounts.Register(ctx, Registration{Localpart: "a", Token: "always"})
		wantCode(t, err, 400, "M_USER_IN_USE")
		w.clock.advance(2 * time.Second)
		valid("soon", false)
		valid("always", true)
		must(t, w.RegistrationTokens.Delete(ctx, "always"))
		if err := w.RegistrationTokens.Delete(ctx, "always"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("second delete: %v", err)
		}
		if list := mustGet[[]RegistrationToken](t)(w.RegistrationTokens.List(ctx)); len(list) != 3 {
			t.Errorf("list %+v", list)
		}
	})
}

func TestIgnored(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		ignored := func() map[matrix.UserID]bool {
			t.Helper()
			return mustGet[map[matrix.UserID]bool](t)(w.Accounts.Ignored(ctx, w.db, alice))
		}
		if len(ignored()) != 0 {
			t.Error("ignores somebody from the start")
		}
		for content, want := range map[string]int{
			`{"ignored_users":{"@bob:here.test":{},"@alice:here.test":{},"nonsense":{}}}`: 1,
			`{"ignored_users":[]}`: 0, `{"ignored_users":"x"}`: 0, `{}`: 0,
		} {
			must(t, w.AccountData.Set(ctx, alice, "", "m.ignored_user_list", json.RawMessage(content)))
			if got := ignored(); len(got) != want || want == 1 && !got["@bob:here.test"] {
				t.Errorf("%s: %v", content, got)
			}
		}
		must(t, w.AccountData.Delete(ctx, alice, "", "m.ignored_user_list"))
		if len(ignored()) != 0 {
			t.Error("ignores somebody after deletion")
		}
	})
}
