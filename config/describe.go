package config

import (
	"encoding"
	"fmt"
	"io"
	"reflect"
	"strings"
)

// Describe writes the annotated file: every key with its documentation, those
// that may be left out commented.
func Describe(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# Hanok configuration. Keys that are commented out show an example or stand for their default.\n")
	describe(&b, reflect.TypeFor[Config](), "", false)
	_, err := io.WriteString(w, b.String())
	return err
}

// describe writes one struct's keys. In a list, the first key gets the dash.
func describe(b *strings.Builder, t reflect.Type, indent string, inList bool) {
	for i := range t.NumField() {
		f := t.Field(i)
		key, example := f.Tag.Get("yaml"), f.Tag.Get("example")
		if key == "-" {
			continue
		}
		if indent == "" {
			b.WriteByte('\n')
		}
		comment(b, indent, f.Tag.Get("doc"))
		lead := indent
		if inList && i == 0 {
			lead = strings.TrimSuffix(indent, "  ") + "- "
		}
		switch f.Type.Kind() {
		case reflect.Struct:
			fmt.Fprintf(b, "%s%s:\n", lead, key)
			describe(b, f.Type, indent+"  ", false)
		case reflect.Slice:
			if f.Type.Elem().Kind() == reflect.Struct {
				fmt.Fprintf(b, "%s%s:\n", lead, key)
				describe(b, f.Type.Elem(), indent+"    ", true)
				continue
			}
			fmt.Fprintf(b, "%s# %s: [%s]\n", indent, key, quoteIfNeeded(example))
		default:
			hide := "# "
			if key == "name" || key == "address" && inList { // what nobody can leave out
				hide = ""
			}
			fmt.Fprintf(b, "%s%s%s: %s\n", lead, hide, key, zeroExample(f.Type, example))
		}
	}
}

func comment(b *strings.Builder, indent, text string) {
	const width = 100
	line := indent + "#"
	for word := range strings.FieldsSeq(text) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = indent + "#"
		}
		line += " " + word
	}
	b.WriteString(line + "\n")
}

func zeroExample(t reflect.Type, example string) string {
	if example != "" {
		return quoteIfNeeded(example)
	}
	if _, ok := reflect.New(t).Interface().(encoding.TextUnmarshaler); ok {
		return `""`
	}
	switch t.Kind() {
	case reflect.Bool:
		return "false"
	case reflect.Int, reflect.Int64:
		return "0"
	}
	return `""`
}

func quoteIfNeeded(s string) string {
	if strings.ContainsAny(s, ":#*?{}[],&!|>'\"%@`") {
		return fmt.Sprintf("%q", s)
	}
	return s
}
