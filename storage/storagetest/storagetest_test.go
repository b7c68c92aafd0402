package storagetest

import (
	"context"
	"testing"

	"hanok/storage"
)

func TestEach(t *testing.T) {
	Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		nids, err := db.Intern(ctx, "a", "b\x00", "a")
		if err != nil || nids[0] != nids[2] || nids[0] == nids[1] {
			t.Fatal(nids, err)
		}
		names, err := db.Names(ctx, nids...)
		if err != nil || names[1] != "b\x00" {
			t.Fatal(names, err)
		}
	})
}
