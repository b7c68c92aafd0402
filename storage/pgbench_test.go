package storage_test

import (
	"bytes"
	"sync/atomic"
	"testing"

	"hanok/storage"
	"hanok/storage/storagetest"
)

// BenchmarkWritePostgres is BenchmarkWrite on PostgreSQL, without fsync: what the client side and the round trips cost.
func BenchmarkWritePostgres(b *testing.B) {
	db := storagetest.OpenDSN(b, storagetest.PostgresDSN(b))
	err := db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE bench (id BIGINT NOT NULL PRIMARY KEY, room BIGINT NOT NULL, data BYTEA NOT NULL)`)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	row := bytes.Repeat([]byte("x"), 600)
	var id, runs atomic.Int64
	insert := func() func(*storage.Tx) error {
		n := id.Add(1)
		return func(tx *storage.Tx) error {
			runs.Add(1)
			if _, err := tx.NextPosition(); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO bench (id, room, data) VALUES ($1, $2, $3)`, n, n%16, row)
			return err
		}
	}
	b.Run("Sync", func(b *testing.B) {
		runs.Store(0)
		b.SetParallelism(64)
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if err := db.Write(ctx, insert()); err != nil {
					b.Error(err)
					return
				}
			}
		})
		b.ReportMetric(float64(runs.Load())/float64(b.N), "runs/op")
	})
	b.Run("Async", func(b *testing.B) {
		runs.Store(0)
		done := make(chan error, 1024)
		slots := make(chan bool, 512)
		for range b.N {
			slots <- true
			db.WriteAsync(insert(), func(err error) {
				<-slots
				if err != nil {
					done <- err
				}
			})
		}
		for range cap(slots) {
			slots <- true
		}
		for range cap(slots) {
			<-slots
		}
		if len(done) > 0 {
			b.Fatal(<-done)
		}
		b.ReportMetric(float64(runs.Load())/float64(b.N), "runs/op")
	})
}
