package canonicaljson

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"hanok/matrix"
)

// TestVectors are the examples of the specification.
// spec: appendices#canonical-json
func TestVectors(t *testing.T) {
	for _, v := range []struct{ in, want string }{
		{`{}`, `{}`},
		{"{\n    \"one\": 1,\n    \"two\": \"Two\"\n}", `{"one":1,"two":"Two"}`},
		{"{\n    \"b\": \"2\",\n    \"a\": \"1\"\n}", `{"a":"1","b":"2"}`},
		{`{"b":"2","a":"1"}`, `{"a":"1","b":"2"}`},
		{`{
    "auth": {
        "success": true,
        "mxid": "@john.doe:example.com",
        "profile": {
            "display_name": "John Doe",
            "three_pids": [
                {
                    "medium": "email",
                    "address": "john.doe@example.org"
                },
                {
                    "medium": "msisdn",
                    "address": "123456789"
                }
            ]
        }
    }
}`, `{"auth":{"mxid":"@john.doe:example.com","profile":{"display_name":"John Doe","three_pids":[{"address":"john.doe@example.org","medium":"email"},{"address":"123456789","medium":"msisdn"}]},"success":true}}`},
		{`{"a": "日本語"}`, `{"a":"日本語"}`},
		{`{"本": 2, "日": 1}`, `{"日":1,"本":2}`},
		{`{"a": "\u65E5"}`, `{"a":"日"}`},
		{`{"a": null}`, `{"a":null}`},
		{`{"a": -0, "b": 1e10}`, `{"a":0,"b":10000000000}`},
	} {
		got, err := Canonical([]byte(v.in), Lenient)
		if err != nil || string(got) != v.want {
			t.Errorf("Canonical(%s) = %s, %v; want %s", v.in, got, err, v.want)
		}
		if !IsCanonical([]byte(v.want), Strict) {
			t.Errorf("%s is not canonical", v.want)
		}
	}
}

func TestCanonical(t *testing.T) {
	deep := strings.Repeat("[", 1000) + strings.Repeat("]", 1000)
	good := func(in, want string) {
		t.Helper()
		for _, mode := range []Mode{Lenient, Strict} {
			got, err := Canonical([]byte(in), mode)
			if err != nil || string(got) != want {
				t.Errorf("mode %d: Canonical(%q) = %q, %v; want %q", mode, in, got, err, want)
				continue
			}
			again, err := Canonical(got, mode)
			if err != nil || &again[0] != &got[0] {
				t.Errorf("mode %d: %q is not taken for canonical: %v", mode, got, err)
			}
		}
	}
	for _, v := range []string{`0`, `-1`, `9007199254740991`, `-9007199254740991`, `true`, `false`, `null`, `""`, `[]`, `{}`,
		`[0,[],{}]`, `{"":""}`, `"\"\\\b\f\n\r\t"`, `"\u0000\u0007\u000b\u000e\u001f"`, "\"\u007f/\U0010ffff\ufffe\"", deep,
		"\"\ue000\"", `{"a":{"b":{"c":[1,2,3]}}}`, `"1234567\n"`, `"12345678"`, "\"1234567é\"",
		"{\"\\u0000\":1,\"\\t\":2,\"\\n\":3,\" \":4,\"!\":5,\"\\\"\":6,\"#\":7,\"[\":8,\"\\\\\":9,\"]\":10,\"\u007f\":11}",
		"{\"\ue000\":1,\"\uffff\":2,\"\U00010000\":3}", // by code point, where UTF-16 would put the last one first
		`{"a":1,"a\n":2,"a ":3}`,
	} {
		good(v, v)
	}
	good(" \t\r\n0 \t\r\n", "0")
	good(`[ 1 , 2 ]`, `[1,2]`)
	for _, v := range []string{`[ 1,2]`, `[1 ,2]`, `[1, 2]`, `[1,2 ]`} { // one place at a time
		good(v, `[1,2]`)
	}
	for _, v := range []string{`{ "a":1,"b":2}`, `{"a" :1,"b":2}`, `{"a": 1,"b":2}`, `{"a":1 ,"b":2}`, `{"a":1, "b":2}`, `{"a":1,"b":2 }`, `{"\u0061":1,"b":2}`} {
		good(v, `{"a":1,"b":2}`)
	}
	good(`[1 ]`, `[1]`)
	good(`{"a":1 }`, `{"a":1}`)
	good(`[ ]`, `[]`)
	good(`{ }`, `{}`)
	good(`{ "a" : 1 }`, `{"a":1}`)
	good(`[{"b":[ ],"a":{"d":1,"c":2}}]`, `[{"a":{"c":2,"d":1},"b":[]}]`)
	good(`"\/\u002f\u0041\u00e9\ud83d\ude00\uD83D\uDE00"`, `"//Aé😀😀"`)
	good(`"\u001F\u000A\u0008\u0022\u005C\u000B"`, `"\u001f\n\b\"\\\u000b"`)
	good(`"\"\\\b\f\n\r\t\/"`, `"\"\\\b\f\n\r\t/"`)
	good(`{"\u0062":1,"a":2}`, `{"a":2,"b":1}`)
	good(`{"\u0061":1,"b":2}`, `{"a":1,"b":2}`)
	good("{\"\U00010000\":3,\"\uffff\":2}", "{\"\uffff\":2,\"\U00010000\":3}")
	good(`{"b":1,"a b":"\u0061\n","a":[{"z":1,"y":[1, 2]}]}`, `{"a":[{"y":[1,2],"z":1}],"a b":"a\n","b":1}`)

	bad := func(in, code string) {
		t.Helper()
		for _, mode := range []Mode{Lenient, Strict} {
			got, err := Canonical([]byte(in), mode)
			if !matrix.HasCode(err, code) {
				t.Errorf("mode %d: Canonical(%q) = %q, %v; want %s", mode, in, got, err, code)
			}
		}
	}
	for _, v := range []string{``, ` `, `{`, `[`, `"`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `[1,]`, `[,1]`, `[1 2]`, `{"a" 1}`,
		`{a:1}`, `{1:1}`, `{null:1}`, `'a'`, `tru`, `True`, `nul`, `falsey`, `NaN`, `Infinity`, `-Infinity`, `-`, `+1`, `01`, `-01`, `1.`, `.1`, `1e`,
		`1e+`, `0x1`, `1_000`, `--1`, `"\x"`, `"\u12"`, `"\u12g4"`, `"\`, `"\u`, "\"\n\"", "\"\x00\"", "\"\x1f\"", "\"\xff\"", "\"\xc0\x80\"",
		"\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\ufeff{}", `{}{}`, `{} x`, `1 2`, `/**/1`, "{\"a\":1}\x00", "[1\v]", `"a" "b"`, "{\"\xff\":1}", `[1}`, `{"a":1]`} {
		bad(v, "M_NOT_JSON")
	}
	for _, v := range []string{`{"a":1,"a":1}`, `{"a":1,"b":2,"a":3}`, `{"a":1,"\u0061":2}`, `{"\u0061":1,"a":2}`, `{"\n":1,"\u000a":2}`, `{"\/":1,"/":1}`,
		`[{"x":{"a":1, "a":2}}]`, `{"":1,"":2}`, "{\"😀\":1,\"\\ud83d\\ude00\":2}",
		`"\ud800"`, `"\udc00"`, `"\ud800\ud800"`, `"\udc00\udc00"`, `"\ud800x"`, `"\ud800\n"`, `"\udc00\ud800"`, `{"\ud800":1}`,
		"[" + deep + "]", strings.Repeat(`{"a":`, MaxDepth+1) + "1" + strings.Repeat("}", MaxDepth+1)} {
		bad(v, "M_BAD_JSON")
	}
	bad(strings.Repeat("[", 1<<20), "M_BAD_JSON") // before it is known to be no JSON, and without exhausting the stack
}

// TestNumbers has the numbers that the modes do not agree on.
func TestNumbers(t *testing.T) {
	for _, v := range []struct{ in, lenient string }{
		{`-0`, `0`},
		{`9007199254740992`, `9007199254740992`},
		{`-9007199254740992`, `-9007199254740992`},
		{`123456789012345678901234567890`, `123456789012345678901234567890`},
		{`1e10`, `10000000000`},
		{`1E+2`, `100`},
		{`-9007199254740991e0`, `-9007199254740991`},
		{`9007199254740992e0`, `9007199254740992.0`},
		{`1.5e1`, `15`},
		{`-1e0`, `-1`},
		{`0e0`, `0`},
		{`1.0`, `1.0`},
		{`1.50`, `1.5`},
		{`-0.0`, `-0.0`},
		{`50.57`, `50.57`},
		{`0.1`, `0.1`},
		{`0.0001`, `0.0001`},
		{`0.00001`, `1e-05`},
		{`1e-7`, `1e-07`},
		{`15e-1`, `1.5`},
		{`9007199254740993.0`, `9007199254740992.0`},
		{`1e16`, `1e+16`},
		{`1.5e300`, `1.5e+300`},
		{`12345678901234567.0`, `1.2345678901234568e+16`},
		{`1e-400`, `0`},
	} {
		for _, form := range []struct{ before, after string }{{"", ""}, {"[", "]"}, {`{"a":`, "}"}} {
			in, want := form.before+v.in+form.after, form.before+v.lenient+form.after
			got, err := Canonical([]byte(in), Lenient)
			if err != nil || string(got) != want {
				t.Errorf("Canonical(%s) = %s, %v; want %s", in, got, err, want)
				continue
			}
			if again, err := Canonical(got, Lenient); err != nil || &again[0] != &got[0] {
				t.Errorf("%s is not taken for canonical: %s, %v", got, again, err)
			}
			if got, err := Canonical([]byte(in), Strict); !matrix.HasCode(err, "M_BAD_JSON") {
				t.Errorf("strict Canonical(%s) = %s, %v", in, got, err)
			}
		}
	}
	for _, v := range []string{`9223372036854775807`, `-9223372036854775807`, `[1.5,-0,1e30]`} {
		lenient, err := Canonical([]byte(v), Lenient)
		if got, err2 := Canonical([]byte(v), Lenient64); err != nil || err2 != nil || string(got) != string(lenient) {
			t.Errorf("Canonical(%s) = %s, %v with 64 bits, %s, %v without", v, got, err2, lenient, err)
		}
	}
	for _, v := range []string{`9223372036854775808`, `-9223372036854775808`, `[10000000000000000000]`, `1e400`} {
		if got, err := Canonical([]byte(v), Lenient64); !matrix.HasCode(err, "M_BAD_JSON") || IsCanonical([]byte(v), Lenient64) {
			t.Errorf("Canonical(%s) = %s, %v with 64 bits", v, got, err)
		}
	}
	for _, v := range []string{`1e400`, `-1e400`, `1.0e999999999`} {
		if got, err := Canonical([]byte(v), Lenient); !matrix.HasCode(err, "M_BAD_JSON") {
			t.Errorf("Canonical(%s) = %s, %v", v, got, err)
		}
	}
}

func TestErrorIsSafeAndExact(t *testing.T) {
	_, err := Canonical([]byte(`{"secret": "x" "y"}`), Strict)
	var e *matrix.Error
	if !errors.As(err, &e) || e.Status != 400 || e.Message != "Not valid JSON: expected ',' or the closing bracket at byte 15" {
		t.Errorf("%v", err)
	}
}

func TestMarshal(t *testing.T) {
	got, err := Marshal(struct {
		B string         `json:"b"`
		A map[string]any `json:"a"`
		C []string       `json:"c"`
	}{"<\u2028>", map[string]any{"z": 1, "y": true}, nil})
	if want := "{\"a\":{\"y\":true,\"z\":1},\"b\":\"<\u2028>\",\"c\":[]}"; err != nil || string(got) != want {
		t.Errorf("got %s, %v; want %s", got, err, want)
	}
	if got, err := Marshal(1.5); !matrix.HasCode(err, "M_BAD_JSON") {
		t.Errorf("a fraction passed: %s, %v", got, err)
	}
	if got, err := Marshal(func() {}); err == nil {
		t.Errorf("a function passed: %s", got)
	}
}

func TestAccess(t *testing.T) {
	doc := []byte(`{"\n":"x","\"":1,"a":"1","b":{"c":[1,"}]",{"d":"\\"}],"e":"\\\""},"n":-5,"t":true,"z":null}`)
	if !IsCanonical(doc, Strict) {
		t.Fatal("the document of the test is not canonical")
	}
	var got []string
	for k, v := range Members(doc) {
		got = append(got, k+"="+string(v))
	}
	want := "\n=\"x\" \"=1 a=\"1\" b={\"c\":[1,\"}]\",{\"d\":\"\\\\\"}],\"e\":\"\\\\\\\"\"} n=-5 t=true z=null"
	if strings.Join(got, " ") != want {
		t.Errorf("Members: %s\nwant: %s", strings.Join(got, " "), want)
	}
	for k, v := range Members(doc) {
		if raw, ok := Get(doc, k); !ok || string(raw) != string(v) {
			t.Errorf("Get(%q) = %s, %v", k, raw, ok)
		}
	}
	for _, k := range []string{"", "A", "aa", "zz", "é"} {
		if raw, ok := Get(doc, k); ok {
			t.Errorf("Get(%q) = %s", k, raw)
		}
	}
	b, _ := GetObject(doc, "b")
	if s, ok := GetString(b, "e"); !ok || s != `\"` {
		t.Errorf("GetString: %q %v", s, ok)
	}
	if s, ok := String([]byte(`""`)); !ok || s != "" {
		t.Errorf("String: %q %v", s, ok)
	}
	if _, ok := GetString(doc, "n"); ok {
		t.Error("a number is not a string")
	}
	if n, ok := GetInt(doc, "n"); !ok || n != -5 {
		t.Errorf("GetInt: %d %v", n, ok)
	}
	if _, ok := GetInt(doc, "a"); ok {
		t.Error("a string is not a number")
	}
	if v, ok := GetBool(doc, "t"); !ok || !v {
		t.Errorf("GetBool: %v %v", v, ok)
	}
	if _, ok := GetBool(doc, "z"); ok {
		t.Error("null is not a boolean")
	}
	if _, ok := GetObject(doc, "a"); ok {
		t.Error("a string is not an object")
	}
	c, _ := Get(b, "c")
	got = nil
	for v := range Elements(c) {
		got = append(got, string(v))
	}
	if strings.Join(got, " ") != `1 "}]" {"d":"\\"}` {
		t.Errorf("Elements: %q", got)
	}
	if IsObject(nil) || IsArray(nil) || IsObject(c) || !IsArray(c) || !IsObject(b) {
		t.Error("IsObject or IsArray")
	}
	for v := range Elements([]byte("[]")) {
		t.Errorf("an element of nothing: %q", v)
	}
	for k := range Members([]byte("{}")) {
		t.Errorf("a member of nothing: %q", k)
	}
	if _, ok := Int([]byte("9223372036854775808")); ok {
		t.Error("an integer that is too large")
	}
}

func TestSet(t *testing.T) {
	for _, v := range []struct{ in, key, want string }{
		{``, "a", `{"a":0}`},
		{`{}`, "a", `{"a":0}`},
		{`{}`, "\"\n", `{"\"\n":0}`},
		{`{"b":1}`, "a", `{"a":0,"b":1}`},
		{`{"b":1}`, "b", `{"b":0}`},
		{`{"b":1}`, "c", `{"b":1,"c":0}`},
		{`{"b":1,"d":"x"}`, "a", `{"a":0,"b":1,"d":"x"}`},
		{`{"b":1,"d":"x"}`, "b", `{"b":0,"d":"x"}`},
		{`{"b":1,"d":"x"}`, "c", `{"b":1,"c":0,"d":"x"}`},
		{`{"b":1,"d":"x"}`, "d", `{"b":1,"d":0}`},
		{`{"b":1,"d":"x"}`, "e", `{"b":1,"d":"x","e":0}`},
		{`{"\n":1," ":2}`, "\t", `{"\t":0,"\n":1," ":2}`},
		{`{"\n":1," ":2}`, "\u000b", `{"\n":1,"\u000b":0," ":2}`},
	} {
		in := []byte(v.in)
		if got := Set(in, v.key, []byte("0")); string(got) != v.want || string(in) != v.in {
			t.Errorf("Set(%s, %q) = %s, want %s", v.in, v.key, got, v.want)
		}
	}
}

func TestDelete(t *testing.T) {
	const doc = `{"a":1,"b":[2],"c":"3","d":{}}`
	for bits := range 16 {
		var keys, rest []string
		for i, m := range []string{`"a":1`, `"b":[2]`, `"c":"3"`, `"d":{}`} {
			if bits>>i&1 == 1 {
				keys = append(keys, m[1:2])
			} else {
				rest = append(rest, m)
			}
		}
		in := []byte(doc)
		got := Delete(in, append(keys, "x")...)
		if want := "{" + strings.Join(rest, ",") + "}"; string(got) != want || string(in) != doc {
			t.Errorf("Delete %v: %s, want %s", keys, got, want)
		}
		if bits == 0 && &got[0] != &in[0] {
			t.Error("Delete of nothing copies")
		}
	}
}

func TestAppendString(t *testing.T) {
	for r := range rune(0x3000) {
		s := "x" + string(r) + "y"
		b := AppendString(nil, s)
		if !IsCanonical(b, Strict) {
			t.Errorf("%q is not canonical", b)
		}
		if back, ok := String(b); !ok || back != s {
			t.Errorf("%q came back as %q", s, back)
		}
		escaped := `"x\u` + strconv.FormatInt(0x10000+int64(r), 16)[1:] + `y"`
		if got, err := Canonical([]byte(escaped), Strict); err != nil || string(got) != string(b) {
			t.Errorf("%s became %s, %v; want %s", escaped, got, err, b)
		}
	}
	if got := AppendString(nil, "a\xffb\xc3"); string(got) != "\"a\uFFFDb\uFFFD\"" {
		t.Errorf("%q", got)
	}
}
