package strictjson

import (
	"errors"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/matrix"
)

// few are three elements at most.
type few []string

func (f *few) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return EachElement(dec, 3, func(v jsontext.Value) error {
		*f = append(*f, string(v))
		return nil
	})
}

func TestEachElement(t *testing.T) {
	for in, want := range map[string]string{`null`: "", `[]`: "", `[1]`: "1", `["a",{"b":[1]},null]`: `"a" {"b":[1]} null`} {
		var out struct{ A few }
		if err := json.Unmarshal([]byte(`{"A":`+in+`}`), &out); err != nil || strings.Join(out.A, " ") != want {
			t.Errorf("%s: %q %v", in, out.A, err)
		}
	}
	for in, code := range map[string]string{`{"A":[1,2,3,4]}`: "M_INVALID_PARAM", `{"A":{}}`: "M_BAD_JSON", `{"A":1}`: "M_BAD_JSON", `{"A":[1,}`: "M_NOT_JSON", `{"A":[`: "M_NOT_JSON", `{"A":`: "M_NOT_JSON", `{"A":[{"a":1,"a":2}]}`: "M_BAD_JSON"} {
		var out struct{ A few }
		if err := Unmarshal([]byte(in), &out); !matrix.HasCode(err, code) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

type members map[string]string

func (m members) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return EachMember(dec, func(name string) error {
		if strings.HasPrefix(name, "skip") {
			return nil
		}
		if name == "bad" {
			return errors.New("bad")
		}
		v, err := dec.ReadValue()
		m[name] = string(v)
		return err
	})
}

func TestEachMember(t *testing.T) {
	got := members{}
	if err := json.Unmarshal([]byte(`{"a":1,"skip":{"x":[{}]},"b":{"c":[2]},"skip2":null}`), &got); err != nil || len(got) != 2 || got["a"] != "1" || got["b"] != `{"c":[2]}` {
		t.Errorf("%v %v", got, err)
	}
	if err := json.Unmarshal([]byte(`null`), &got); err != nil {
		t.Error(err)
	}
	for _, in := range []string{`[]`, `{"a":1,"bad":2}`, `{"a"`, `{"a":1,"a":2}`, `{"skip":1,"skip":2}`, `{"skip":[}`, ``, `1`} {
		if err := json.Unmarshal([]byte(in), &members{}); err == nil {
			t.Errorf("%s: accepted", in)
		}
	}
}
