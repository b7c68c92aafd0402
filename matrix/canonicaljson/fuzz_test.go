package canonicaljson

import (
	"bytes"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/matrix"
)

var seeds = []string{
	`{}`, `[]`, `{"a":1,"b":[true,false,null,"x"]}`, `{"b":1,"a":2}`, `{"a":1,"\u0061":2}`, `"\ud83d\ude00\n\u001f\/"`, `"\ud800"`, `-0`, `1e10`, `1.5`, `-1.25e-7`,
	`9007199254740992`, "\"\xff\"", `[[[[]]]]`, ` { "a" : [ 1 , 2 ] } `, `{"a":{"c":1,"b":"\u00e9"},"\"":{}}`, "{\"\ue000\":1,\"\U00010000\":2}", `{"a":1}x`, `12e`, `[1,]`,
	`{"a":"日本語","z":[{"y":1,"x":2},{"x":2,"y":1}]}`,
}

// FuzzCanonical compares with the JSON package of the standard library to be: the
// same texts are valid, and the result means the same as the source.
func FuzzCanonical(f *testing.F) {
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		before := bytes.Clone(src)
		lenient, lenientErr := Canonical(src, Lenient)
		strict, strictErr := Canonical(src, Strict)
		if !bytes.Equal(src, before) {
			t.Fatalf("changed its input %q to %q", before, src)
		}
		reference := jsontext.Value(bytes.Clone(src))
		valid := reference.IsValid() // refuses duplicate keys and bad UTF-8 as well
		for _, err := range []error{lenientErr, strictErr} {
			if err != nil && !matrix.HasCode(err, "M_NOT_JSON") && !matrix.HasCode(err, "M_BAD_JSON") {
				t.Fatalf("%q: %v", src, err)
			}
		}
		if lenientErr == nil && !valid {
			t.Fatalf("accepted %q, which is not valid", src)
		}
		if lenientErr != nil {
			// Valid and yet refused: only too deep, or a number beyond float64.
			if valid && !strings.Contains(lenientErr.Error(), "deeply") && !strings.Contains(lenientErr.Error(), "out of range") {
				t.Fatalf("refused %q: %v", src, lenientErr)
			}
			if strictErr == nil {
				t.Fatalf("strict accepted %q and lenient did not: %v", src, lenientErr)
			}
			return
		}
		for mode, out := range map[Mode][]byte{Lenient: lenient, Strict: strict} {
			if mode == Strict && strictErr != nil {
				continue
			}
			again, err := Canonical(out, mode)
			if err != nil || &again[0] != &out[0] {
				t.Fatalf("mode %d: %q became %q, which is not canonical: %q, %v", mode, src, out, again, err)
			}
			rewritten, err := rewrite(out, mode)
			if err != nil || !bytes.Equal(rewritten, out) {
				t.Fatalf("mode %d: scan and parser differ on %q: %q, %v", mode, out, rewritten, err)
			}
		}
		// The reference's canonical form (RFC 8785) has other numbers and another order;
		// what both mean must be the same.
		var a, b any
		if err := json.Unmarshal(src, &a); err != nil {
			return // a number beyond float64
		}
		if err := json.Unmarshal(lenient, &b); err != nil {
			t.Fatalf("%q became %q: %v", src, lenient, err)
		}
		x, _ := json.Marshal(a, json.Deterministic(true))
		y, _ := json.Marshal(b, json.Deterministic(true))
		if strings.ReplaceAll(string(x), "-0", "0") != strings.ReplaceAll(string(y), "-0", "0") {
			t.Fatalf("%q became %q: %s is not %s", src, lenient, x, y)
		}
		if strictErr == nil && !bytes.Equal(strict, lenient) {
			t.Fatalf("%q is %q and %q", src, strict, lenient)
		}
		checkAccess(t, lenient)
	})
}

// checkAccess takes a canonical text apart and puts it together again.
func checkAccess(t *testing.T, canonical []byte) {
	switch {
	case IsObject(canonical):
		built, rest := []byte("{}"), canonical
		index, ok := Index(canonical, nil)
		if !ok {
			t.Fatalf("Index of %q", canonical)
		}
		n := 0
		for key, raw := range Members(canonical) {
			if got, ok := Get(canonical, key); !ok || !bytes.Equal(got, raw) {
				t.Fatalf("Get(%q, %q) = %q, %v", canonical, key, got, ok)
			}
			if !bytes.Equal(index[n].Raw(canonical), raw) {
				t.Fatalf("Index of %q: %v", canonical, index)
			}
			n++
			if same := Set(canonical, key, raw); !bytes.Equal(same, canonical) {
				t.Fatalf("Set of what is there: %q became %q", canonical, same)
			}
			if without := Delete(canonical, key); !bytes.Equal(Set(without, key, raw), canonical) {
				t.Fatalf("%q without %q is %q", canonical, key, without)
			}
			built = Set(built, key, raw)
			rest = Delete(rest, key)
			checkAccess(t, raw)
		}
		if n != len(index) || !bytes.Equal(built, canonical) || string(rest) != "{}" {
			t.Fatalf("%q was built as %q and taken down to %q", canonical, built, rest)
		}
	case IsArray(canonical):
		built := []byte("[")
		for raw := range Elements(canonical) {
			if len(built) > 1 {
				built = append(built, ',')
			}
			built = append(built, raw...)
			checkAccess(t, raw)
		}
		if built = append(built, ']'); !bytes.Equal(built, canonical) {
			t.Fatalf("%q was built as %q", canonical, built)
		}
	case canonical[0] == '"':
		s, ok := String(canonical)
		if !ok || !bytes.Equal(AppendString(nil, s), canonical) {
			t.Fatalf("%q decodes to %q", canonical, s)
		}
	}
}

// FuzzAccess holds that nothing panics on bytes that are not canonical at all.
func FuzzAccess(f *testing.F) {
	for _, s := range append(seeds, `{"a":"`, `{"a`, `{"`, `{"a"`, `{"a":`, `["`, `[1`, `{"a":1`, `{"\`, `"\u`, `{"\u00":1}`, `{"\ud800":1}`, "", `{"a":1}"b":2`) {
		f.Add([]byte(s), "a")
	}
	f.Fuzz(func(t *testing.T, raw []byte, key string) {
		before := bytes.Clone(raw)
		for range Members(raw) {
		}
		for range Elements(raw) {
		}
		Get(raw, key)
		GetString(raw, key)
		GetInt(raw, key)
		GetBool(raw, key)
		Index(raw, nil)
		Set(raw, key, []byte("1"))
		Delete(raw, key)
		String(raw)
		Int(raw)
		if !bytes.Equal(raw, before) {
			t.Fatalf("changed its input %q to %q", before, raw)
		}
	})
}
