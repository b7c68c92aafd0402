package canonicaljson

import "testing"

func TestIndex(t *testing.T) {
	object := []byte(`{"a":1,"b\"":"x\\","c":{"d":[{}, "}"]},"e":[]}`)
	want := [][2]string{{`a`, `1`}, {`b\"`, `"x\\"`}, {`c`, `{"d":[{}, "}"]}`}, {`e`, `[]`}}
	ms, ok := Index(object, nil)
	if !ok || len(ms) != len(want) {
		t.Fatalf("%v, %v", ms, ok)
	}
	for i, m := range ms {
		if got := [2]string{string(m.Key(object)), string(m.Raw(object))}; got != want[i] {
			t.Errorf("member %d is %q, want %q", i, got, want[i])
		}
		if span := string(object[m.Start:m.End]); span != `"`+want[i][0]+`":`+want[i][1] {
			t.Errorf("member %d spans %q", i, span)
		}
	}
	if ms, ok := Index([]byte(`{}`), nil); !ok || len(ms) != 0 {
		t.Errorf("{} has %v, %v", ms, ok)
	}
	for i := range object {
		if _, ok := Index(object[:i], nil); ok {
			t.Errorf("accepted %q", object[:i])
		}
	}
	for _, s := range []string{`[]`, `{}x`, `{"a":1}x`, `{"a":1,}`, `{,}`, `{"a"}`, `null`} {
		if _, ok := Index([]byte(s), nil); ok {
			t.Errorf("accepted %q", s)
		}
	}
}
