//go:build ignore

// Generate writes index.txt, or with -paths the list of endpoints, paths.txt, from a checkout of the specification:
//
//	go run generate.go PATH > index.txt
//	go run generate.go -paths PATH > paths.txt
package main

import (
	"bufio"
	"fmt"
	"io/fs"
	"log"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

var (
	operation = regexp.MustCompile(`^\s+operationId:\s*"?([A-Za-z0-9_]+)`)
	basePath  = regexp.MustCompile(`^\s+default:\s*(/\S*)`)
	path      = regexp.MustCompile(`^  "?(/[^":]*)"?:`)
	method    = regexp.MustCompile(`^    (get|put|post|delete|options):`)
	heading   = regexp.MustCompile(`^#+\s+(.*?)\s*(?:\{id="([^"]+)"\})?\s*$`)
	include   = regexp.MustCompile(`\{\{[%<]\s*(rver-fragment|cs-module)\s.*?(?:filename|name)="([^"]+)"\s*[%>]\}\}`)
)

func main() {
	spec := os.Args[1]
	if spec == "-paths" {
		paths(os.Args[2])
		return
	}
	refs := map[string]bool{}
	for prefix, dir := range map[string]string{"cs": "client-server", "ss": "server-server", "as": "application-service", "push": "push-gateway", "identity": "identity"} {
		files, err := filepath.Glob(filepath.Join(spec, "data/api", dir, "*.yaml"))
		check(err)
		for _, f := range files {
			for _, line := range lines(f) {
				if m := operation.FindStringSubmatch(line); m != nil {
					refs[prefix+"/"+m[1]] = true
				}
			}
		}
	}
	content := filepath.Join(spec, "content")
	check(filepath.WalkDir(content, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".md") {
			return err
		}
		page, err := filepath.Rel(content, path)
		check(err)
		page = strings.TrimSuffix(strings.TrimSuffix(page, ".md"), "/_index")
		if strings.Contains(page, "fragments") || strings.Contains(page, "changelog") || strings.Contains(page, "modules") {
			return nil
		}
		seen := map[string]int{}
		anchors(refs, seen, content, page, path)
		return nil
	}))
	// An event's schema is a heading of the client-server page.
	schemas, err := filepath.Glob(filepath.Join(spec, "data/event-schemas/schema/*.yaml"))
	check(err)
	for _, s := range schemas {
		refs["client-server-api#"+slug(strings.TrimSuffix(filepath.Base(s), ".yaml"))] = true
	}
	sorted := make([]string, 0, len(refs))
	for r := range refs {
		sorted = append(sorted, r)
	}
	slices.Sort(sorted)
	for _, r := range sorted {
		fmt.Println(r)
	}
}

// paths prints operation, method and path of every endpoint for clients.
func paths(spec string) {
	files, err := filepath.Glob(filepath.Join(spec, "data/api/client-server/*.yaml"))
	check(err)
	var out []string
	for _, f := range files {
		base, at, verb := "", "", ""
		for _, line := range lines(f) {
			if m := basePath.FindStringSubmatch(line); m != nil {
				base = m[1]
			}
		}
		for _, line := range lines(f) {
			if m := path.FindStringSubmatch(line); m != nil {
				at = strings.TrimSpace(m[1])
			} else if m := method.FindStringSubmatch(line); m != nil {
				verb = strings.ToUpper(m[1])
			} else if m := operation.FindStringSubmatch(line); m != nil {
				out = append(out, fmt.Sprintf("%s %s %s%s", m[1], verb, base, at))
			}
		}
	}
	slices.Sort(out)
	for _, line := range out {
		fmt.Println(line)
	}
}

func anchors(refs map[string]bool, seen map[string]int, content, page, path string) {
	for _, line := range lines(path) {
		if m := include.FindStringSubmatch(line); m != nil {
			file := filepath.Join(content, "client-server-api/modules", m[2]+".md")
			if m[1] == "rver-fragment" {
				file = filepath.Join(content, "rooms/fragments", m[2]+".md")
			} else if i := strings.Index(line, `filename="`); i >= 0 {
				name, _, _ := strings.Cut(line[i+len(`filename="`):], `"`)
				file = filepath.Join(content, "client-server-api/modules", name+".md")
			}
			anchors(refs, seen, content, page, file)
			continue
		}
		m := heading.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		anchor := m[2]
		if anchor == "" {
			anchor = slug(m[1])
			if n := seen[anchor]; n > 0 {
				seen[anchor]++
				anchor = fmt.Sprintf("%s-%d", anchor, n)
			} else {
				seen[anchor] = 1
			}
		}
		refs[page+"#"+anchor] = true
	}
}

// slug is how the specification's site names a heading.
func slug(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' || r == '-':
			return unicode.ToLower(r)
		case r == ' ':
			return '-'
		}
		return -1
	}, s)
}

func lines(path string) (all []string) {
	f, err := os.Open(path)
	check(err)
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		all = append(all, s.Text())
	}
	return all
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
