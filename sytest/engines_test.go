// Package sytest holds the system tests: they run the real binary, on both
// database engines, and speak to it as clients and other servers do.
package sytest

import (
	"fmt"
	"os"
	"testing"

	"hanok/storage/storagetest"
	"hanok/sytest/homeserver"
)

// eachEngine runs a test on SQLite and on PostgreSQL. start starts a server on that engine.
func eachEngine(t *testing.T, fn func(t *testing.T, start func(o homeserver.Options) *homeserver.Server)) {
	t.Run("sqlite", func(t *testing.T) {
		fn(t, homeserver.NewNetwork(t).Start)
	})
	if os.Getenv("HANOK_TEST_SQLITE_ONLY") == "1" {
		fmt.Fprintf(os.Stderr, "HANOK_TEST_SQLITE_ONLY=1: %s is NOT TESTED on PostgreSQL\n", t.Name())
		return
	}
	t.Run("postgres", func(t *testing.T) {
		n := homeserver.NewNetwork(t)
		fn(t, func(o homeserver.Options) *homeserver.Server {
			o.Database = storagetest.PostgresDSN(t)
			return n.Start(o)
		})
	})
}
