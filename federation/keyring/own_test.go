package keyring

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/storage/storagetest"
)

// A key that is replaced stays known, with the time at which the server first signed with the next.
// spec: server-server-api#publishing-keys old_verify_keys
func TestOwnKeysAreRecorded(t *testing.T) {
	db := storagetest.Open(t)
	ctx := t.Context()
	keys := make([]signing.Key, 3)
	for i := range keys {
		var err error
		if keys[i], err = signing.Generate(); err != nil {
			t.Fatal(err)
		}
	}
	record := func(k signing.Key, now matrix.Timestamp) {
		t.Helper()
		if err := Record(ctx, db, "us.example", k, now); err != nil {
			t.Fatal(err)
		}
	}
	expect := func(k signing.Key, now matrix.Timestamp, want map[matrix.KeyID]matrix.Timestamp) {
		t.Helper()
		old, err := OldKeys(ctx, db, "us.example", k, now)
		if err != nil {
			t.Fatal(err)
		}
		got := map[matrix.KeyID]matrix.Timestamp{}
		for _, o := range old {
			got[o.ID] = o.Expired
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if err := RecordFirst(ctx, db, "us.example", keys[0], 5); err != nil {
		t.Fatal(err)
	}
	record(keys[0], 10)
	expect(keys[0], 15, map[matrix.KeyID]matrix.Timestamp{})
	expect(keys[1], 15, map[matrix.KeyID]matrix.Timestamp{keys[0].ID: 15})
	if err := RecordFirst(ctx, db, "us.example", keys[1], 15); !errors.Is(err, ErrNotInUse) {
		t.Errorf("a key that is not in use was replaced: %v", err)
	}
	record(keys[1], 20)
	record(keys[1], 30)
	record(keys[2], 40)
	expect(keys[2], 50, map[matrix.KeyID]matrix.Timestamp{keys[0].ID: 20, keys[1].ID: 40})
	record(keys[1], 60) // an operator puts the old file back
	expect(keys[1], 70, map[matrix.KeyID]matrix.Timestamp{keys[0].ID: 20, keys[2].ID: 60})

	forged := signing.Key{ID: keys[1].ID, Private: keys[0].Private}
	if err := Record(ctx, db, "us.example", forged, 80); err == nil || !strings.Contains(err.Error(), "another key of the ID") {
		t.Errorf("two keys with one ID: %v", err)
	}
}
