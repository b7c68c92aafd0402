package canonicaljson

import "testing"

func TestFields(t *testing.T) {
	const object = `{"a":{"b":1,"c":{"d":2,"e":[3]}},"f.g":"h","i":null,"j\\k":{}}`
	for _, c := range []struct {
		paths []string
		want  string
	}{
		{nil, `{}`},
		{[]string{"a"}, `{"a":{"b":1,"c":{"d":2,"e":[3]}}}`},
		{[]string{"a.c.d", "i"}, `{"a":{"c":{"d":2}},"i":null}`},
		{[]string{"a.c", "a.c.d"}, `{"a":{"c":{"d":2,"e":[3]}}}`},
		{[]string{"a.c.d", "a"}, object[:len(`{"a":{"b":1,"c":{"d":2,"e":[3]}}`)] + "}"},
		{[]string{`f\.g`, "f.g"}, `{"f.g":"h"}`},
		{[]string{`j\\k`}, `{"j\\k":{}}`},
		{[]string{"a.x"}, `{"a":{}}`},
		{[]string{"i.x", "a.b.x", "", "."}, `{"a":{}}`},
	} {
		if got := string(ParseFields(c.paths).Append(nil, []byte(object))); got != c.want {
			t.Errorf("%q: %s, want %s", c.paths, got, c.want)
		}
	}
}
