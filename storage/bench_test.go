package storage

import (
	"bytes"
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

const (
	benchTable  = `CREATE TABLE bench (id INTEGER NOT NULL PRIMARY KEY, room INTEGER NOT NULL, data BLOB NOT NULL) STRICT`
	benchIndex  = `CREATE INDEX bench_room ON bench (room, id)`
	benchInsert = `INSERT INTO bench (id, room, data) VALUES ($1, $2, $3)`
)

var benchRow = bytes.Repeat([]byte("x"), 600)

func benchDB(b *testing.B) *DB {
	db, err := Open(context.Background(), Options{DSN: "sqlite:" + filepath.Join(b.TempDir(), "db"), Log: zerolog.Nop()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { db.Close() })
	err = db.Write(context.Background(), func(tx *Tx) error {
		if _, err := tx.Exec(context.Background(), benchTable); err != nil {
			return err
		}
		_, err := tx.Exec(context.Background(), benchIndex)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return db
}

// rawRate is rows per second of a bare loop on the connection, in durable batches of 50.
func rawRate(b *testing.B, rows int) float64 {
	db := benchDB(b)
	ctx := context.Background()
	c, err := db.engine.(*sqliteEngine).file.open(false)
	if err != nil {
		b.Fatal(err)
	}
	defer c.close()
	for _, q := range []string{`PRAGMA synchronous = FULL`, `PRAGMA temp_store = MEMORY`, `PRAGMA cache_size = -16000`} {
		if err := c.pragma(q); err != nil {
			b.Fatal(err)
		}
	}
	began := time.Now()
	for i := 0; i < rows; {
		if err := c.pragma(`BEGIN IMMEDIATE`); err != nil {
			b.Fatal(err)
		}
		for range 50 {
			i++
			if _, err := c.exec(ctx, benchInsert, []any{int64(i), int64(i % 16), benchRow}); err != nil {
				b.Fatal(err)
			}
		}
		if err := c.pragma(`COMMIT`); err != nil {
			b.Fatal(err)
		}
	}
	return float64(rows) / time.Since(began).Seconds()
}

// BenchmarkWrite is many goroutines that each make small durable writes of one row.
func BenchmarkWrite(b *testing.B) {
	for _, mode := range []string{"Sync", "Async"} {
		b.Run(mode, func(b *testing.B) {
			db := benchDB(b)
			ctx := context.Background()
			var id atomic.Int64
			insert := func() func(*Tx) error {
				n := id.Add(1)
				return func(tx *Tx) error {
					if _, err := tx.NextPosition(); err != nil {
						return err
					}
					_, err := tx.Exec(ctx, benchInsert, n, n%16, benchRow)
					return err
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			if mode == "Sync" {
				b.SetParallelism(64)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := db.Write(ctx, insert()); err != nil {
							b.Error(err)
							return
						}
					}
				})
			} else {
				done := make(chan error, 1024)
				open := 0
				for range b.N {
					if open == 512 {
						if err := <-done; err != nil {
							b.Fatal(err)
						}
						open--
					}
					open++
					db.WriteAsync(insert(), func(err error) { done <- err })
				}
				for range open {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
			}
			b.StopTimer()
			rate := float64(b.N) / b.Elapsed().Seconds()
			b.ReportMetric(rate, "writes/s")
			if b.N > 1000 {
				b.ReportMetric(rate/rawRate(b, 20_000), "x-raw")
			}
		})
	}
}

// BenchmarkRead is a point read of a row of 600 bytes, and a walk over 100 of them.
func BenchmarkRead(b *testing.B) {
	db := benchDB(b)
	ctx := context.Background()
	const rows = 20_000
	err := db.Write(ctx, func(tx *Tx) error {
		for i := range rows {
			if _, err := tx.Exec(ctx, benchInsert, i, i%16, benchRow); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("Point", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		var data []byte
		for b.Loop() {
			i = (i + 7919) % rows
			if err := db.QueryRow(ctx, `SELECT data FROM bench WHERE id = $1`, i).Scan(&data); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Walk100", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i = (i + 1) % 16
			r, err := db.Query(ctx, `SELECT id, data FROM bench WHERE room = $1 ORDER BY id LIMIT 100`, i)
			if err != nil {
				b.Fatal(err)
			}
			n := 0
			for r.Next() {
				var id int64
				var data []byte
				if err := r.Scan(&id, &data); err != nil {
					b.Fatal(err)
				}
				n++
			}
			if n != 100 || r.Err() != nil {
				b.Fatal(n, r.Err())
			}
		}
	})
}
