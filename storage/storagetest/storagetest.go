// Package storagetest opens databases for tests: SQLite in a temporary folder
// and a private PostgreSQL cluster that lives as long as the test binary.
//
// Each is the usual way in: it runs a test once per engine.
package storagetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rs/zerolog"

	"hanok/storage"
)

// SQLiteDSN names a new SQLite database in the test's folder.
func SQLiteDSN(t testing.TB) string {
	return "sqlite:" + filepath.Join(t.TempDir(), "hanok.db")
}

// PostgresDSN names a new empty PostgreSQL database in the private cluster, which is started
// by the first call. The test fails if there is no PostgreSQL on the machine.
func PostgresDSN(t testing.TB) string {
	t.Helper()
	dsn, err := shared.database()
	if err != nil {
		t.Fatalf("PostgreSQL for tests: %v\nInstall the server (apt-get install postgresql), or set HANOK_TEST_SQLITE_ONLY=1 to test on SQLite only.", err)
	}
	return dsn
}

// OpenDSN opens a database that is closed with the test.
func OpenDSN(t testing.TB, dsn string) *storage.DB {
	t.Helper()
	db, err := storage.Open(context.Background(), storage.Options{DSN: dsn, Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.WarnLevel)})
	if err != nil {
		t.Fatalf("open test database: %v", err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("close test database: %v", err)
		}
	})
	return db
}

// Open returns an empty SQLite database that is closed with the test.
func Open(t testing.TB) *storage.DB {
	t.Helper()
	return OpenDSN(t, SQLiteDSN(t))
}

// EachDSN runs fn once per engine as a subtest, each time with the name of an empty database.
func EachDSN(t *testing.T, fn func(t *testing.T, dsn string)) {
	t.Helper()
	t.Run("sqlite", func(t *testing.T) { fn(t, SQLiteDSN(t)) })
	if os.Getenv("HANOK_TEST_SQLITE_ONLY") == "1" {
		fmt.Fprintf(os.Stderr, "HANOK_TEST_SQLITE_ONLY=1: %s is NOT TESTED on PostgreSQL\n", t.Name())
		return
	}
	t.Run("postgres", func(t *testing.T) { fn(t, PostgresDSN(t)) })
}

// Each runs fn once per engine as a subtest, each time on an empty database.
func Each(t *testing.T, fn func(t *testing.T, db *storage.DB)) {
	t.Helper()
	EachDSN(t, func(t *testing.T, dsn string) { fn(t, OpenDSN(t, dsn)) })
}
