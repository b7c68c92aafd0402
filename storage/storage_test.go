package storage_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"hanok/storage"
	"hanok/storage/storagetest"
)

func TestSmoke(t *testing.T) { storagetest.Each(t, testSmoke) }

func testSmoke(t *testing.T, db *storage.DB) {
	ctx := context.Background()
	var wg sync.WaitGroup
	boom := errors.New("boom")
	for i := range 200 {
		wg.Go(func() {
			seen := make(chan storage.Position, 1)
			err := db.Write(ctx, func(tx *storage.Tx) error {
				p, err := tx.NextPosition()
				if err != nil {
					return err
				}
				tx.OnVisible(func() { seen <- p })
				if err := storage.SetCursor(ctx, tx, "r"+string(rune('a'+i%26)), p); err != nil {
					return err
				}
				if i%7 == 0 {
					return boom
				}
				return nil
			})
			if i%7 == 0 {
				if err != boom {
					t.Error(err)
				}
				return
			}
			if err != nil {
				t.Error(err)
			}
			if p := <-seen; db.Current() < p {
				t.Error("not visible")
			}
		})
	}
	wg.Wait()
	nids, err := db.Intern(ctx, "m.room.member", "a\x00b", "", "m.room.member")
	if err != nil || nids[0] != nids[3] || nids[1] == nids[2] {
		t.Fatal(nids, err)
	}
	got, err := db.Names(ctx, nids...)
	if err != nil || got[1] != "a\x00b" || got[2] != "" {
		t.Fatal(got, err)
	}
	if _, err := db.LookupName(ctx, "nope"); !errors.Is(err, storage.ErrNotFound) {
		t.Fatal(err)
	}
	if err := db.Write(ctx, func(tx *storage.Tx) error { panic("x") }); err == nil {
		t.Fatal("no error")
	}
	err = db.Read(ctx, func(tx *storage.Tx) error {
		p, err := storage.Cursor(ctx, tx, "ra")
		if p == 0 {
			t.Error("no cursor")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
