package users

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
)

const backupAlgorithm = "m.megolm_backup.v1.curve25519-aes-sha2"

func backedUp(first, forwarded int64, verified bool, data string) BackedUpKey {
	return BackedUpKey{first, forwarded, verified, rawJSON(data)}
}

func TestBackupVersions(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		_, err := w.Backups.Get(ctx, alice, "")
		wantCode(t, err, 404, "M_NOT_FOUND")
		v1 := mustGet[string](t)(w.Backups.Create(ctx, alice, backupAlgorithm, rawJSON(`{"public_key":"one"}`)))
		v2 := mustGet[string](t)(w.Backups.Create(ctx, alice, backupAlgorithm, rawJSON(`{"public_key":"two"}`)))
		want := &BackupVersion{Algorithm: backupAlgorithm, AuthData: rawJSON(`{"public_key":"two"}`), ETag: "0", Version: v2}
		for _, version := range []string{"", v2} {
			if diff := cmp.Diff(want, mustGet[*BackupVersion](t)(w.Backups.Get(ctx, alice, version))); diff != "" {
				t.Error(diff)
			}
		}
		for _, bad := range []string{"99", "x", "-1", "1\x00", "99999999999999999999"} {
			_, err := w.Backups.Get(ctx, alice, bad)
			wantCode(t, err, 404, "M_NOT_FOUND")
			_, err = w.Backups.GetKeys(ctx, alice, BackupSelection{Version: bad})
			wantCode(t, err, 404, "M_NOT_FOUND")
			wantCode(t, w.Backups.Delete(ctx, alice, bad), 404, "M_NOT_FOUND")
		}
		_, err = w.Backups.Get(ctx, bob, v1)
		wantCode(t, err, 404, "M_NOT_FOUND")

		must(t, w.Backups.Update(ctx, alice, v2, v2, backupAlgorithm, rawJSON(`{"public_key":"new"}`)))
		if got := mustGet[*BackupVersion](t)(w.Backups.Get(ctx, alice, "")); string(got.AuthData) != `{"public_key":"new"}` {
			t.Errorf("auth data %s", got.AuthData)
		}
		wantCode(t, w.Backups.Update(ctx, alice, v2, "", "other", rawJSON(`{}`)), 400, "M_INVALID_PARAM")
		wantCode(t, w.Backups.Update(ctx, alice, v2, v1, backupAlgorithm, rawJSON(`{}`)), 400, "M_INVALID_PARAM")
		wantCode(t, w.Backups.Update(ctx, alice, "7", "", backupAlgorithm, rawJSON(`{}`)), 404, "M_NOT_FOUND")
		wantCode(t, w.Backups.Update(ctx, alice, v2, "", backupAlgorithm, rawJSON(`[]`)), 400, "M_BAD_JSON")

		for range 2 {
			must(t, w.Backups.Delete(ctx, alice, v2))
		}
		_, err = w.Backups.Get(ctx, alice, v2)
		wantCode(t, err, 404, "M_NOT_FOUND")
		if got := mustGet[*BackupVersion](t)(w.Backups.Get(ctx, alice, "")); got.Version != v1 {
			t.Errorf("current after deletion: %s", got.Version)
		}
		if v3 := mustGet[string](t)(w.Backups.Create(ctx, alice, backupAlgorithm, rawJSON(`{}`))); v3 == v2 || v3 == v1 {
			t.Errorf("version %s used again", v3)
		}
		_, err = w.Backups.Create(ctx, alice, "", rawJSON(`{}`))
		wantCode(t, err, 400, "M_INVALID_PARAM")
		_, err = w.Backups.Create(ctx, alice, backupAlgorithm, nil)
		wantCode(t, err, 400, "M_NOT_JSON")
	})
}

func TestBackupKeys(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		const r1, r2 = matrix.RoomID("!one:here.test"), matrix.RoomID("!two:here.test")
		_, err := w.Backups.PutKeys(ctx, alice, "1", RoomKeys{})
		wantCode(t, err, 404, "M_NOT_FOUND")
		old := mustGet[string](t)(w.Backups.Create(ctx, alice, backupAlgorithm, rawJSON(`{}`)))
		v := mustGet[string](t)(w.Backups.Create(ctx, alice, backupAlgorithm, rawJSON(`{}`)))
		_, err = w.Backups.PutKeys(ctx, alice, old, RoomKeys{})
		wantCode(t, err, 403, "M_WRONG_ROOM_KEYS_VERSION")
		if e, _ := matrix.AsError(err); e.Extra["current_version"] != v {
			t.Errorf("current_version %v", e.Extra)
		}

		put := func(keys RoomKeys, count int64) string {
			t.Helper()
			got := mustGet[*BackupCount](t)(w.Backups.PutKeys(ctx, alice, v, keys))
			if got.Count != count {
				t.Errorf("count %d, want %d", got.Count, count)
			}
			return got.ETag
		}
		all := RoomKeys{r1: {"s1": backedUp(1, 1, false, `{"a":1}`), "s2": backedUp(2, 0, true, `{}`)}, r2: {"s1": backedUp(0, 0, false, `{}`)}}
		etag := put(all, 3)
		get := func(s BackupSelection) RoomKeys {
			t.Helper()
			s.Version = v
			return mustGet[RoomKeys](t)(w.Backups.GetKeys(ctx, alice, s))
		}
		if diff := cmp.Diff(all, get(BackupSelection{})); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(RoomKeys{r1: all[r1]}, get(BackupSelection{Room: r1})); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(RoomKeys{r1: {"s2": all[r1]["s2"]}}, get(BackupSelection{Room: r1, Session: "s2"})); diff != "" {
			t.Error(diff)
		}
		if got := get(BackupSelection{Room: "!none:here.test"}); len(got) != 0 || got == nil {
			t.Errorf("keys of an unknown room: %v", got)
		}
		_, err = w.Backups.GetKeys(ctx, alice, BackupSelection{Version: v, Room: r1, Session: "none"})
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.Backups.GetKeys(ctx, alice, BackupSelection{})
		wantCode(t, err, 400, "M_MISSING_PARAM")

		// The worse key changes nothing, alone or among others.
		if again := put(all, 3); again != etag {
			t.Error("the same keys changed the etag")
		}
		put(RoomKeys{r1: {"s1": backedUp(2, 0, false, `{"worse":1}`)}}, 3)
		if diff := cmp.Diff(all, get(BackupSelection{})); diff != "" {
			t.Error(diff)
		}
		put(RoomKeys{r1: {"s1": backedUp(9, 9, true, `{"better":1}`)}}, 3)
		if got := get(BackupSelection{Room: r1, Session: "s1"}); string(got[r1]["s1"].SessionData) != `{"better":1}` {
			t.Errorf("verified key not taken: %v", got)
		}

		for name, c := range map[string]struct {
			keys RoomKeys
			code string
		}{
			"room":     {RoomKeys{"nonsense": {"s": backedUp(0, 0, false, `{}`)}}, "M_INVALID_PARAM"},
			"session":  {RoomKeys{r1: {"\x00": backedUp(0, 0, false, `{}`)}}, "M_INVALID_PARAM"},
			"negative": {RoomKeys{r1: {"s": backedUp(-1, 0, false, `{}`)}}, "M_INVALID_PARAM"},
			"data":     {RoomKeys{r1: {"s": backedUp(0, 0, false, `1`)}}, "M_BAD_JSON"},
			"big":      {RoomKeys{r1: {"s": backedUp(0, 0, false, `"`+strings.Repeat("x", maxSessionData)+`"`)}}, "M_TOO_LARGE"},
			"no data":  {RoomKeys{r1: {"s": {}}}, "M_NOT_JSON"},
		} {
			if _, err := w.Backups.PutKeys(ctx, alice, v, c.keys); !matrix.HasCode(err, c.code) {
				t.Errorf("%s: got %v, want %s", name, err, c.code)
			}
		}

		// What an algorithm keeps is its own business.
		put(RoomKeys{"!opaque": {"s": backedUp(0, 0, false, `"text"`)}}, 4)
		mustGet[*BackupCount](t)(w.Backups.DeleteKeys(ctx, alice, BackupSelection{Version: v, Room: "!opaque"}))

		remove := func(s BackupSelection, count int64) {
			t.Helper()
			s.Version = v
			if got := mustGet[*BackupCount](t)(w.Backups.DeleteKeys(ctx, alice, s)); got.Count != count {
				t.Errorf("count %d after deletion, want %d", got.Count, count)
			}
		}
		remove(BackupSelection{Room: r1, Session: "none"}, 3)
		remove(BackupSelection{Room: r1, Session: "s1"}, 2)
		remove(BackupSelection{Room: r1}, 1)
		remove(BackupSelection{}, 0)
		_, err = w.Backups.DeleteKeys(ctx, alice, BackupSelection{Version: "99"})
		wantCode(t, err, 404, "M_NOT_FOUND")

		put(all, 3)
		must(t, w.Backups.Delete(ctx, alice, v))
		var n int
		must(t, w.db.QueryRow(ctx, `SELECT count(*) FROM backup_keys`).Scan(&n))
		if n != 0 {
			t.Errorf("%d keys left of a deleted version", n)
		}
	})
}

// spec: client-server-api#server-side-key-backups
func TestBetterBackupKey(t *testing.T) {
	key := func(verified bool, first, forwarded int64) storage.BackupKey {
		return storage.BackupKey{IsVerified: verified, FirstMessageIndex: first, ForwardedCount: forwarded}
	}
	// Each is better than all after it.
	order := []storage.BackupKey{
		key(true, 0, 0), key(true, 0, 5), key(true, 3, 1), key(true, 3, 2), key(false, 0, 0), key(false, 0, 1), key(false, 7, 0),
	}
	for i, a := range order {
		for j, b := range order {
			if got := better(a, b); got != (i < j) {
				t.Errorf("better(%+v, %+v) = %v", a, b, got)
			}
		}
	}
}
