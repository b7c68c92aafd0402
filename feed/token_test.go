package feed

import (
	"testing"

	"hanok/matrix"
)

func TestToken(t *testing.T) {
	for text, want := range map[string]Token{
		"s1":                   {1, 1},
		"s0":                   {0, 0},
		"s123_45":              {123, 45},
		"s9223372036854775807": {1<<63 - 1, 1<<63 - 1},
	} {
		got, err := ParseToken(text)
		if err != nil || got != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
		if got.String() != text {
			t.Errorf("%s becomes %s", text, got)
		}
	}
	for _, text := range []string{"", "s", "1", "s-1", "s+1", "s1_", "s1_2_3", "s1_2", "t1_2", "s9223372036854775808", "s1 "} {
		if got, err := ParseToken(text); !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("%q: %v %v", text, got, err)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add("s1_2")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseToken(s)
		if err != nil {
			return
		}
		again, err := ParseToken(got.String())
		if err != nil || again != got {
			t.Fatalf("%q: %v, then %v %v", s, got, again, err)
		}
	})
}
