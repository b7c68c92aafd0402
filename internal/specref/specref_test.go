// Package specref checks the references to the specification in comments.
//
// A reference names its place by something stable: an operationId
// (cs/createRoom, ss/sendJoinV2), a heading (rooms/v11#authorisation-rules) or an MSC.
// index.txt lists what there is in the release that SPEC_VERSION names; generate.go makes it.
package specref

import (
	_ "embed"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

//go:embed index.txt
var index string

// Operation, method and path of the endpoints for clients.
//
//go:embed paths.txt
var paths string

const root = "../.."

var (
	comment   = regexp.MustCompile(`//.*\bspec: (.*)$`)
	reference = regexp.MustCompile(`\b(?:(?:cs|ss|as|push|identity)/[A-Za-z0-9_]+|(?:rooms|rooms/v[0-9]+|rooms/\*|client-server-api|server-server-api|application-service-api|push-gateway-api|identity-service-api|appendices)(?:#[A-Za-z0-9_-]+)?)`)
	msc       = regexp.MustCompile(`\bMSC[0-9]{3,5}\b`)
	constant  = regexp.MustCompile(`^\s*const (\w+) = "([^"]*)"`)
	route     = regexp.MustCompile(`Method: "(\w+)", (?:Versions: ([^,]*), )?Path: "([^"]*)", Operation: "(\w+)"`)
	variable  = regexp.MustCompile(`\{\w+\}`)
	handler   = regexp.MustCompile(`Operation:\s*"([A-Za-z0-9_]+)"`)
)

func goFiles(t *testing.T, dir string, visit func(path string, lines []string)) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "node_modules" || d.Name() == ".git" || d.Name() == "specref") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		visit(path, strings.Split(string(text), "\n"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReferences(t *testing.T) {
	known := map[string]bool{}
	for line := range strings.Lines(index) {
		line = strings.TrimSpace(line)
		known[line] = true
		if page, anchor, ok := strings.Cut(line, "#"); ok {
			known[page] = true
			if strings.HasPrefix(page, "rooms/") {
				known["rooms/*#"+anchor], known["rooms/*"] = true, true
			}
		}
	}
	count := 0
	goFiles(t, ".", func(path string, lines []string) {
		for i, line := range lines {
			m := comment.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			refs := reference.FindAllString(m[1], -1)
			if len(refs) == 0 && !msc.MatchString(m[1]) {
				t.Errorf("%s:%d: %q names no place in the specification", path, i+1, m[1])
			}
			for _, r := range refs {
				count++
				if !known[r] {
					t.Errorf("%s:%d: there is no %s in this release of the specification", path, i+1, r)
				}
			}
		}
	})
	if count < 100 {
		t.Errorf("only %d references were found", count)
	}
}

// TestHandlers prints the operations that no route table mentions: run it with -v.
func TestHandlers(t *testing.T) {
	handled := map[string]bool{}
	for prefix, dir := range map[string]string{"cs": "api", "ss": "federation"} {
		goFiles(t, dir, func(_ string, lines []string) {
			for _, line := range lines {
				if m := handler.FindStringSubmatch(line); m != nil {
					handled[prefix+"/"+m[1]] = true
				}
			}
		})
	}
	if len(handled) == 0 {
		t.Fatal("no route table was found")
	}
	var missing []string
	for line := range strings.Lines(index) {
		line = strings.TrimSpace(line)
		if (strings.HasPrefix(line, "cs/") || strings.HasPrefix(line, "ss/")) && !handled[line] {
			missing = append(missing, line)
		}
	}
	slices.Sort(missing)
	t.Logf("%d operations without handler:\n%s", len(missing), strings.Join(missing, "\n"))
}

// TestPaths finds operations for clients that have a handler, but none where the specification has them.
func TestPaths(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "api/routes.go"))
	if err != nil {
		t.Fatal(err)
	}
	constants := map[string]string{}
	handled := map[string]bool{}
	found := map[string]bool{} // operation, method, path without names of variables
	for line := range strings.Lines(string(text)) {
		if m := constant.FindStringSubmatch(line); m != nil {
			constants[m[1]] = m[2]
		}
		m := route.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		handled[m[4]] = true
		versions := []string{""}
		if m[2] != "" {
			versions = nil
			for part := range strings.SplitSeq(m[2], " + ") {
				text, ok := constants[part]
				if !ok {
					text = strings.Trim(part, `"`)
				}
				for _, v := range strings.Fields(text) {
					versions = append(versions, "/"+v)
				}
			}
		}
		for _, v := range versions {
			for _, prefix := range []string{"/_matrix/client", "/_matrix", "/.well-known/matrix"} {
				found[m[4]+" "+m[1]+" "+prefix+v+variable.ReplaceAllString(m[3], "{}")] = true
			}
		}
	}
	if len(handled) < 100 {
		t.Fatalf("only %d operations were found", len(handled))
	}
	for line := range strings.Lines(paths) {
		line = strings.TrimSpace(line)
		operation, _, _ := strings.Cut(line, " ")
		if handled[operation] && !found[variable.ReplaceAllString(line, "{}")] {
			t.Errorf("no route for %s", line)
		}
	}
}
