package storage_test

import (
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"hanok/storage"
	"hanok/storage/storagetest"
)

// TestConnectionsLost ends all connections at the server between writes, as its restart does: the next
// write and the next read open new ones.
func TestConnectionsLost(t *testing.T) {
	dsn := storagetest.PostgresDSN(t)
	db := storagetest.OpenDSN(t, dsn)
	table(t, db)
	for round := range 3 {
		var wg sync.WaitGroup
		for i := range 6 { // so that all writing connections are open
			wg.Go(func() {
				if err := db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, round*10+i, 0) }); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		conn, err := pgx.Connect(ctx, dsn)
		must(t, err)
		_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hanok'`)
		must(t, err)
		must(t, conn.Close(ctx))
	}
	var n int
	for range 20 { // reads are not repeated by themselves; each error removes a connection
		if err := db.QueryRow(ctx, `SELECT COUNT(*) FROM t`).Scan(&n); err == nil {
			break
		}
	}
	if n != 18 {
		t.Errorf("%d rows", n)
	}
}
