package config

import (
	"encoding"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Problem is one mistake in a configuration file.
type Problem struct {
	File string // as given to Load, "" if the mistake is in no one place
	Line int    // 0 if unknown
	Key  string // as in "server.listeners[0].address"
	Text string // what is wrong
	Hint string // what to do about it
}

func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.Text)
	if p.Hint != "" {
		b.WriteString("\n    " + p.Hint)
	}
	return b.String()
}

// Problems is the error that Load returns: all mistakes together.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Load reads a file, merges the others over it (lists are replaced, not
// appended), fills in what was left out and checks everything. Its error is a
// Problems. Relative paths start at the first file's folder.
func Load(file string, over ...string) (*Config, error) {
	var c Config
	var problems Problems
	for _, name := range append([]string{file}, over...) {
		data, err := os.ReadFile(name)
		if err != nil {
			hint := "Make one with 'hanok quickstart', or name another with --config."
			if !errors.Is(err, os.ErrNotExist) {
				hint = "Let the user that runs hanok read it."
			}
			var pathErr *os.PathError
			if errors.As(err, &pathErr) {
				err = pathErr.Err
			}
			problems = append(problems, Problem{File: name, Text: "cannot be read: " + err.Error(), Hint: hint})
			continue
		}
		problems = append(problems, c.merge(name, data)...)
	}
	if len(problems) > 0 {
		// The rest would only complain about what could not be read.
		return nil, problems
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, fmt.Errorf("find the folder of %s: %w", file, err)
	}
	c.fill(dir)
	if problems = c.check(); len(problems) > 0 {
		for i := range problems {
			if problems[i].File == "" {
				problems[i].File = file
			}
		}
		return nil, problems
	}
	return &c, nil
}

// merge decodes one YAML document over what is there already.
func (c *Config) merge(file string, data []byte) Problems {
	d := decoder{file: file}
	d.document(data, c)
	return d.problems
}

// decoder walks a YAML tree along a Go type. It goes on after a mistake, so
// that all are found, which yaml's own decoder does not do with unknown keys.
type decoder struct {
	file     string
	lenient  bool // unknown keys are passed over
	problems Problems
}

// document decodes a YAML document over the struct that v points to.
func (d *decoder) document(data []byte, v any) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		d.problem(nil, "", "is not YAML: "+strings.TrimPrefix(err.Error(), "yaml: "), "Look at the indentation, and put values with ':' or '#' in quotes.")
		return
	}
	if len(doc.Content) > 0 { // else the file is empty, which the checks will speak about
		d.value(doc.Content[0], reflect.ValueOf(v).Elem(), "")
	}
}

func (d *decoder) problem(n *yaml.Node, key, text, hint string) {
	p := Problem{File: d.file, Key: key, Text: text, Hint: hint}
	if n != nil {
		p.Line = n.Line
	}
	d.problems = append(d.problems, p)
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "key:" with nothing after it leaves what is there
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if n.Kind != yaml.ScalarNode {
			d.problem(n, key, "must be a single value", "")
		} else if err := u.UnmarshalText([]byte(n.Value)); err != nil {
			d.problem(n, key, err.Error(), "")
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.section(n, v, key)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.problem(n, key, "must be a list", "Write it as [a, b], or one item per line, each after '- '.")
			return
		}
		items := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			d.value(item, items.Index(i), fmt.Sprintf("%s[%d]", key, i))
		}
		v.Set(items)
	case reflect.String:
		if n.Kind != yaml.ScalarNode {
			d.problem(n, key, "must be a single text", "")
			return
		}
		v.SetString(n.Value)
	default:
		if err := n.Decode(v.Addr().Interface()); err != nil {
			want, hint := "a whole number", "Write digits only, without quotes."
			if v.Kind() == reflect.Bool {
				want, hint = "true or false", ""
			}
			d.problem(n, key, fmt.Sprintf("must be %s, not %q", want, n.Value), hint)
		}
	}
}

func (d *decoder) section(n *yaml.Node, v reflect.Value, key string) {
	if n.Kind != yaml.MappingNode {
		d.problem(n, key, "must hold keys and values", "Put each key on a line of its own, indented, as in 'name: value'.")
		return
	}
	fields := map[string]reflect.Value{}
	var known []string
	for i := range v.NumField() {
		name := v.Type().Field(i).Tag.Get("yaml")
		if name == "-" {
			continue
		}
		fields[name] = v.Field(i)
		known = append(known, name)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		full := strings.TrimPrefix(key+"."+k.Value, ".")
		field, ok := fields[k.Value]
		switch {
		case !ok && d.lenient:
		case !ok:
			d.problem(k, full, "is not a known key", unknownHint(k.Value, known))
		case seen[k.Value]:
			d.problem(k, full, "stands here twice", "Keep one of the two.")
		default:
			seen[k.Value] = true
			d.value(n.Content[i+1], field, full)
		}
	}
}

func unknownHint(key string, known []string) string {
	best, distance := "", 1+len(key)/3
	for _, k := range known {
		if n := editDistance(key, k); n <= distance && (best == "" || n < distance) {
			best, distance = k, n
		}
	}
	if best != "" {
		return fmt.Sprintf("Did you mean %q?", best)
	}
	return "Known here: " + strings.Join(known, ", ") + ". See 'hanok config describe'."
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
