// Package imports holds the test for the direction of imports, as
// docs/architecture.md gives it.
package imports

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// layers are the packages from the top down: a package may import those of lower
// layers and of its own, but see alone. A name stands for the packages below it too.
var layers = [][]string{
	{"sytest", "bench"},
	{"cmd"},
	{"api", "federation", "push"},
	{"appservice"},
	{"feed", "delayed", "notices"},
	{"rooms", "users", "media", "privacy", "config", "web"},
	{"storage"},
	{"internal"},
	{"matrix"},
}

// alone are packages of one layer that must not import each other: what they share is handed in by cmd.
var alone = []string{"api", "federation", "push", "rooms", "users", "media", "privacy", "config"}

// pure lists what matrix must do without: no I/O, no logger, no SQL. (net/http is
// there for the names of status codes.)
var pure = []string{"database/sql", "net", "os", "log", "log/slog", "github.com/rs/zerolog", "os/exec", "syscall"}

type pkg struct {
	ImportPath string
	Imports    []string
}

func TestDirection(t *testing.T) {
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "hanok/...").Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %s", exit.Stderr)
		}
		t.Fatal(err)
	}
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		from := top(p.ImportPath)
		if layer(from) < 0 {
			t.Errorf("%s stands in no layer: add it to docs/architecture.md and to layers", p.ImportPath)
		}
		for _, imported := range p.Imports {
			if from == "matrix" && slices.Contains(pure, imported) {
				t.Errorf("%s imports %s, but matrix is pure", p.ImportPath, imported)
			}
			to := top(imported)
			if to == "" || to == from {
				continue
			}
			if layer(to) < layer(from) {
				t.Errorf("%s imports %s, which is above it: declare an interface and let cmd hand it in", p.ImportPath, imported)
			}
			if slices.Contains(alone, from) && slices.Contains(alone, to) && layer(from) == layer(to) {
				t.Errorf("%s imports %s beside it: declare an interface and let cmd hand it in", p.ImportPath, imported)
			}
		}
	}
	if seen < 10 {
		t.Errorf("only %d packages were looked at", seen)
	}
}

// top is the first element of a package path of this module, "" for any other.
func top(path string) string {
	rest, ok := strings.CutPrefix(path, "hanok/")
	if !ok {
		return ""
	}
	first, _, _ := strings.Cut(rest, "/")
	return first
}

func layer(name string) int {
	return slices.IndexFunc(layers, func(names []string) bool { return slices.Contains(names, name) })
}
