package storage

import (
	"context"
	"os"
	"strconv"
)

// InQuery is the text that queryIn runs for a list of n.
var InQuery = inQuery

// QueryIn is queryIn for numbers.
func QueryIn(ctx context.Context, q Querier, query string, fixed []any, list []int64, scan func(*Rows) error) error {
	return queryIn(ctx, q, query, fixed, list, scan)
}

// LimitPages makes the disk of a SQLite database full at a number of pages.
func LimitPages(db *DB, n int) {
	err := db.Write(context.Background(), func(tx *Tx) error {
		var got int
		return tx.QueryRow(context.Background(), "PRAGMA max_page_count = "+strconv.Itoa(n)).Scan(&got)
	})
	if err != nil {
		panic(err)
	}
}

// Migrate applies the embedded migrations and further ones, numbered from 9001.
func (db *DB) Migrate(ctx context.Context, further ...string) error {
	all, err := migrations()
	if err != nil {
		return err
	}
	for i, text := range further {
		all = append(all, migration{int64(9001 + i), "further", text})
	}
	return db.engine.migrate(ctx, all)
}

// ToPostgres translates a statement.
var ToPostgres = toPostgres

// LogSize is the size of the write-ahead log of a SQLite database, in bytes.
func LogSize(db *DB) int64 {
	info, err := os.Stat(db.engine.(*sqliteEngine).file.path + "-wal")
	if err != nil {
		panic(err)
	}
	return info.Size()
}
