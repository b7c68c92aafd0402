package storage_test

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/storage"
	"hanok/storage/storagetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestSchema compares the schema that the migrations make with the golden files: a look at
// their diff shows what a change of the migrations does on each engine.
func TestSchema(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		got, err := db.Schema(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join("testdata", "schema."+strings.TrimPrefix(t.Name(), "TestSchema/")+".txt")
		if *update {
			if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), got); d != "" {
			t.Errorf("the schema changed; if it should, run go test ./storage -run TestSchema -update\n%s", d)
		}
	})
}
