package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hanok/storage"
	"hanok/storage/storagetest"
)

func has(t *testing.T, db *storage.DB, table string) bool {
	t.Helper()
	var n int
	err := db.QueryRow(ctx, `SELECT COUNT(*) FROM `+table).Scan(&n)
	return err == nil
}

// TestUpgrade adds migrations to an existing database.
func TestUpgrade(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		db, err := storage.Open(ctx, storage.Options{DSN: dsn})
		must(t, err)
		nids, err := db.Intern(ctx, "kept")
		must(t, err)

		one := "CREATE TABLE one (a INTEGER NOT NULL PRIMARY KEY, b TEXT) STRICT; -- a comment; with a semicolon\nCREATE INDEX one_b ON one (b);"
		must(t, db.Migrate(ctx, one))
		must(t, db.Migrate(ctx, one)) // nothing to do

		// A step that fails leaves nothing, and the one before it stays.
		if err := db.Migrate(ctx, one, "CREATE TABLE two (a INTEGER) STRICT; CREATE TABLE one (a INTEGER) STRICT"); err == nil {
			t.Error("a bad migration was applied")
		}
		if has(t, db, "two") || !has(t, db, "one") {
			t.Error("half a migration is there")
		}
		must(t, db.Migrate(ctx, one, "CREATE TABLE two (a INTEGER) STRICT"))
		if !has(t, db, "two") {
			t.Error("the corrected migration is not there")
		}
		if err := db.Migrate(ctx, one+" ", "CREATE TABLE two (a INTEGER) STRICT"); err == nil || errors.Is(err, storage.ErrNewer) {
			t.Errorf("a changed migration: %v", err)
		}
		must(t, db.Close())

		// This program does not know 9001.
		if _, err := storage.Open(ctx, storage.Options{DSN: dsn}); !errors.Is(err, storage.ErrNewer) {
			t.Errorf("a newer database: %v", err)
		}

		path, ok := strings.CutPrefix(dsn, "sqlite:")
		if !ok {
			return
		}
		copies, err := filepath.Glob(path + ".before-*")
		must(t, err)
		if len(copies) != 2 || copies[0] != path+".before-9001" {
			t.Fatalf("copies: %v", copies)
		}
		// The copy is the database as it was.
		before := storagetest.OpenDSN(t, "sqlite:"+copies[0])
		if nid, err := before.LookupName(ctx, "kept"); err != nil || nid != nids[0] {
			t.Error(nid, err)
		}
		if has(t, before, "one") {
			t.Error("the copy was made after the upgrade")
		}
		if info, err := os.Stat(copies[0]); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("the copy can be read by others: %v %v", info.Mode(), err)
		}
	})
}

func TestToPostgres(t *testing.T) {
	for in, want := range map[string]string{
		"CREATE TABLE t (\n\ta INTEGER NOT NULL PRIMARY KEY,\n\tb TEXT,\n\tc BLOB,\n\td REAL\n) STRICT": "CREATE TABLE t (\n\ta BIGINT NOT NULL PRIMARY KEY,\n\tb TEXT COLLATE \"C\",\n\tc BYTEA,\n\td DOUBLE PRECISION\n)",
		"CREATE TABLE t (a INTEGER PRIMARY KEY) STRICT, WITHOUT ROWID":                                  "CREATE TABLE t (a BIGINT PRIMARY KEY)",
		"CREATE INDEX i ON t (a) WHERE a IS NOT NULL":                                                   "CREATE INDEX i ON t (a) WHERE a IS NOT NULL",
	} {
		if got := storage.ToPostgres(in); got != want {
			t.Errorf("%s\nbecame\n%s", in, got)
		}
	}
}
