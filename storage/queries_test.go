package storage_test

import (
	"context"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hanok/storage"
	"hanok/storage/storagetest"
)

// mayScan names the constants and functions whose queries may read a whole table or index, and why.
var mayScan = map[string]string{
	"purgeUser":                "deactivation; the tables without an index by user hold what lives minutes",
	"PartialRooms":             "at the start, a short row for each room joined through another server",
	"RoomsOfSignedInvites":     "at the start, invites that are on their way",
	"IsolatedRooms":            "the few rooms that the operator has named",
	"FindWithdrawals":          "users who are leaving rooms at this moment",
	"allPresences":             "once, on starting",
	"publishedAnywhere":        "the whole directory, which is asked for",
	"listRegistrationTokens":   "the administrator's list",
	"deleteOutboxOrphans":      "now and then, over what is queued",
	"selectOutboxDestinations": "at the start, over what is queued",
	"selectOutboxSizes":        "the operator's list",
	"gatewayUses":              "the operator's list",
	"selectInboundRooms":       "at the start, over what was received and not worked off",
	"selectServerBackoffs":     "at the start, only servers that fail",
	"deleteExpired":            "now and then",
	"expireReports":            "when somebody reports, over no more than are kept",
}

// sqlText is a query found in the source of the package.
type sqlText struct {
	in   string // the function or constant it stands in
	at   string
	text string
}

var verb = regexp.MustCompile(`^\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\s`)

// queries finds every SQL text in the package: string constants, also joined from parts, that begin with a verb.
func queries(t *testing.T) []sqlText {
	t.Helper()
	fset := token.NewFileSet()
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	consts := map[string]ast.Expr{}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") ||
			strings.HasPrefix(e.Name(), "sqlite") || strings.HasPrefix(e.Name(), "postgres") || e.Name() == "migrate.go" {
			continue
		}
		f, err := parser.ParseFile(fset, e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.CONST {
				for _, s := range g.Specs {
					v := s.(*ast.ValueSpec)
					for i, name := range v.Names {
						if i < len(v.Values) {
							consts[name.Name] = v.Values[i]
						}
					}
				}
			}
		}
	}
	var fold func(ast.Expr) (string, bool)
	fold = func(e ast.Expr) (string, bool) {
		switch e := e.(type) {
		case *ast.BasicLit:
			if e.Kind == token.STRING {
				s, err := strconv.Unquote(e.Value)
				return s, err == nil
			}
		case *ast.ParenExpr:
			return fold(e.X)
		case *ast.Ident:
			if c, ok := consts[e.Name]; ok {
				return fold(c)
			}
		case *ast.BinaryExpr:
			a, ok := fold(e.X)
			b, ok2 := fold(e.Y)
			return a + b, ok && ok2 && e.Op == token.ADD
		}
		return "", false
	}
	var out []sqlText
	seen := map[string]bool{}
	for _, f := range files {
		for _, d := range f.Decls {
			name := ""
			if fn, ok := d.(*ast.FuncDecl); ok {
				name = fn.Name.Name
			}
			ast.Inspect(d, func(n ast.Node) bool {
				if v, ok := n.(*ast.ValueSpec); ok && len(v.Names) == 1 {
					if _, ok := d.(*ast.GenDecl); ok {
						name = v.Names[0].Name
					}
				}
				e, ok := n.(ast.Expr)
				if !ok {
					return true
				}
				if s, ok := fold(e); ok && verb.MatchString(s) {
					if !seen[s] {
						seen[s] = true
						out = append(out, sqlText{name, fset.Position(e.Pos()).String(), s})
					}
					return false
				}
				return true
			})
		}
	}
	if len(out) < 10 {
		t.Fatalf("only %d queries found", len(out))
	}
	return out
}

var parameter = regexp.MustCompile(`\$(\d+)`)

// TestQueries plans every query of the package on both engines: each is understood by both,
// and none on SQLite reads a whole table but those in mayScan.
func TestQueries(t *testing.T) {
	all := queries(t)
	used := map[string]bool{}
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		for _, q := range all {
			text := q.text
			if strings.Contains(text, "$in") {
				n := 0
				for _, m := range parameter.FindAllStringSubmatch(text, -1) {
					i, _ := strconv.Atoi(m[1])
					n = max(n, i)
				}
				text = storage.InQuery(text, n, 4)
			}
			plan, err := db.Explain(context.Background(), text)
			if err != nil {
				t.Errorf("%s: %s: %v", q.at, q.in, err)
				continue
			}
			scan := fullScan(plan)
			if scan != "" && mayScan[q.in] == "" {
				t.Errorf("%s: %s reads all: %s\n%s\nplan:\n%s", q.at, q.in, scan, text, plan)
			}
			used[q.in] = used[q.in] || scan != ""
		}
	})
	for name := range mayScan {
		if !used[name] {
			t.Errorf("mayScan[%q] is not needed", name)
		}
	}
}

var scanned = regexp.MustCompile(`^(SCAN (?:TABLE )?(\w+)|.*Seq Scan on (\w+))`)

// fullScan returns the step of a plan that reads a whole table.
func fullScan(plan string) string {
	for line := range strings.Lines(plan) {
		line = strings.TrimSpace(line)
		// Constant rows, and common table expressions (which are named in lower case like tables but listed in the plan).
		if scanned.MatchString(line) && !strings.Contains(line, "CONSTANT ROW") && !slices.Contains(temporary(plan), scanned.FindStringSubmatch(line)[2]) {
			return line
		}
	}
	return ""
}

var materialised = regexp.MustCompile(`(?m)(?:MATERIALIZE|CO-ROUTINE) (\w+)`)

func temporary(plan string) []string {
	var out []string
	for _, m := range materialised.FindAllStringSubmatch(plan, -1) {
		out = append(out, m[1])
	}
	return out
}
