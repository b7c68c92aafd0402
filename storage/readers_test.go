package storage_test

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"hanok/storage"
	"hanok/storage/storagetest"
)

// TestNestedReads has more callers than connections that each read within a read.
func TestNestedReads(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 1, 1) }))
		var wg, all sync.WaitGroup
		all.Add(60)
		for range 60 {
			wg.Go(func() {
				rows, err := db.Query(ctx, `SELECT n FROM t`)
				all.Done()
				if err != nil {
					t.Error(err)
					return
				}
				defer rows.Close()
				all.Wait() // until everybody is in the first read
				for rows.Next() {
					var n int
					if err := db.QueryRow(ctx, `SELECT s FROM t WHERE n = $1`, 1).Scan(&n); err != nil || n != 1 {
						t.Error(n, err)
					}
				}
				if rows.Err() != nil {
					t.Error(rows.Err())
				}
			})
		}
		wg.Wait()
	})
}

// TestReadersExhausted leaves results open until there are no connections: who waits can leave, and
// the next one closed is lent at once.
func TestReadersExhausted(t *testing.T) {
	db := storagetest.Open(t)
	table(t, db)
	must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 1, 1) }))
	var open []*storage.Rows
	for {
		brief, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		rows, err := db.Query(brief, `SELECT n FROM t`)
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			break
		}
		must(t, err)
		open = append(open, rows)
		if len(open) > 1000 {
			t.Fatal("no limit")
		}
	}
	got := make(chan error)
	go func() {
		var n int
		got <- db.QueryRow(ctx, `SELECT n FROM t`).Scan(&n)
	}()
	for _, r := range open {
		must(t, r.Close())
	}
	must(t, <-got)
	if n := len(numbers(t, db)); n != 1 {
		t.Error(n)
	}
}

// TestLongReader keeps a snapshot open while the log grows beyond its limit: writes go on, the
// snapshot stays, and afterwards the log starts over.
func TestLongReader(t *testing.T) {
	db := storagetest.Open(t)
	table(t, db)
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE big (n INTEGER PRIMARY KEY, data BLOB NOT NULL)`)
		return err
	}))
	fill := func(commits int) (longest time.Duration) {
		for i := range commits {
			began := time.Now()
			must(t, db.Write(ctx, func(tx *storage.Tx) error {
				_, err := tx.Exec(ctx, `INSERT INTO big (n, data) VALUES ($1, $2) ON CONFLICT (n) DO UPDATE SET data = excluded.data`, i%50, bytes.Repeat([]byte{byte(i / 50)}, 200_000)) // a page that stays the same is not written
				return err
			}))
			longest = max(longest, time.Since(began))
		}
		return longest
	}
	must(t, db.Read(ctx, func(tx *storage.Tx) error {
		before := len(numbers(t, tx))
		if longest := fill(700); longest > 5*time.Second {
			t.Errorf("a write took %v", longest)
		}
		if n := len(numbers(t, tx)); n != before {
			t.Error("the snapshot changed")
		}
		return nil
	}))
	if size := storage.LogSize(db); size < 64<<20 {
		t.Fatalf("the log has %d bytes: nothing was tested", size)
	}
	fill(600)
	if size := storage.LogSize(db); size > 80<<20 {
		t.Errorf("the log has %d bytes", size)
	}
}
