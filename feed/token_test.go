package feed

import (
	"testing"

	"hanok/matrix"
)

func TestToken(t *testing.T) {
	for text, want := range map[string]Token{
		"s1":                   At(1),
		"s0":                   At(0),
		"s123_45":              {123, 45, 123},
		"s9223372036854775807": At(1<<63 - 1),
		"s123_45_6":            {123, 45, 6},
		"s123_123_6":           {123, 123, 6},
	} {
		got, err := ParseToken(text)
		if err != nil || got != want {
			t.Errorf("%s: %v %v", text, got, err)
		}
		if got.String() != text {
			t.Errorf("%s becomes %s", text, got)
		}
	}
	for _, text := range []string{"", "s", "1", "s-1", "s+1", "s1_", "s3_2_1_1", "s1_1_", "s1_1_2", "s1_2", "t1_2", "s9223372036854775808", "s1 "} {
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
