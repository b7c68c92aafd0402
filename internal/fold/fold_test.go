package fold_test

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"hanok/internal/fold"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"Alice":        "alice",
		"a\x00B":       "ab",
		"José":         "jose",
		"JOSE\u0301":   "jose",
		"Ａｄａ":          "ada",
		"STRASSE":      "strasse",
		"Straße":       "strasse",
		"ℍanok":        "hanok",
		"ΣΊΣΥΦΟΣ":      "σισυφοσ",
		"bad\xffbytes": "badbytes",
		"ﬁn":           "fin",
		"":             "",
	} {
		if got := fold.Text(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if name, typed := fold.Text("한옥"), fold.Text("하"); !strings.HasPrefix(name, typed) {
		t.Errorf("%q does not begin with %q", name, typed)
	}
}

func TestWords(t *testing.T) {
	if got := fold.Words(fold.Text("@Anna-Maria.B_2:x (Müller)")); !slices.Equal(got, []string{"anna", "maria", "b", "2", "x", "muller"}) {
		t.Errorf("%q", got)
	}
	if got := fold.Words(" …! "); len(got) != 0 {
		t.Errorf("%q", got)
	}
}

func TestCut(t *testing.T) {
	for n, want := range []string{"", "", "é", "éx", "éx"} {
		if got := fold.Cut("éx", n); got != want {
			t.Errorf("%d bytes: %q, want %q", n, got, want)
		}
	}
}

// What is folded stays as it is.
func FuzzText(f *testing.F) {
	for _, s := range []string{"José", "한옥", "ͅΑ", "İstanbul", "ſ", "\xff\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		once := fold.Text(s)
		if !utf8.ValidString(once) || strings.IndexByte(once, 0) >= 0 {
			t.Errorf("%q: %q", s, once)
		}
		if twice := fold.Text(once); twice != once {
			t.Errorf("%q: %q, then %q", s, once, twice)
		}
	})
}
