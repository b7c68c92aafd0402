package glob

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestMatch(t *testing.T) {
	for _, v := range []struct {
		pattern string
		fold    bool
		yes, no []string
	}{
		{"", false, []string{""}, []string{"a", " "}},
		{"*", false, []string{"", "a", "a\nb", "日本"}, nil},
		{"**", false, []string{"", "a"}, nil},
		{"?", false, []string{"a", "日", "\n", "😀"}, []string{"", "ab"}},
		{"*?", false, []string{"a", "ab"}, []string{""}},
		{"?*?", false, []string{"ab", "axb"}, []string{"", "a"}},
		{"a", false, []string{"a"}, []string{"", "A", "aa", "b"}},
		{"a*", false, []string{"a", "ab"}, []string{"", "ba"}},
		{"*a", false, []string{"a", "ba", "aa"}, []string{"", "ab"}},
		{"a*a", false, []string{"aa", "aba", "aaa"}, []string{"a", "ab"}},
		{"*ab*ab*", false, []string{"abab", "xabxabx"}, []string{"ab", "aab", "aba"}},
		{"a*b?c*d", false, []string{"abxcd", "aXbbcYd", "a日b日c日d"}, []string{"abcd", "abxc"}},
		{"lunc?*", true, []string{"Lunch plans", "LUNCH", "lunch"}, []string{" lunch", "lunc"}},
		{"*.EVIL.com", true, []string{"a.evil.COM", ".evil.com"}, []string{"evil.com", "aevil.com", "a.evil.com.org"}},
		{"straße", true, []string{"STRAßE", "Straße"}, []string{"strasse"}},
		{"ΣΑΣ", true, []string{"σας", "σασ", "ΣΑΣ"}, nil},
		{"\u212a", true, []string{"k", "K"}, []string{"x"}},
		{"É", true, []string{"é"}, []string{"e"}},
		{"É", false, []string{"É"}, []string{"é"}},
		{"[a].+\\", false, []string{"[a].+\\"}, []string{"a"}},
	} {
		g := Compile(v.pattern, v.fold)
		for _, s := range v.yes {
			if !g.Match(s) {
				t.Errorf("%q does not match %q", v.pattern, s)
			}
		}
		for _, s := range v.no {
			if g.Match(s) {
				t.Errorf("%q matches %q", v.pattern, s)
			}
		}
	}
	if g := Literal("a*?", true); !g.Match("A*?") || g.Match("abc") || g.Match("a*b") {
		t.Error("Literal")
	}
	if g := (Glob{}); !g.Match("") || g.Match("a") || !g.MatchWords("a") {
		t.Error("the zero value")
	}
}

func TestMatchWords(t *testing.T) {
	for _, v := range []struct {
		pattern string
		yes, no []string
	}{
		// The examples of the specification.
		{"ex*ple", []string{"An example event.", "exple", "An exciting triple-whammy"}, []string{"An exempled event", "complexples", "ex", "apple"}},
		{"cake", []string{"cake", "CAKE!", "a cake", "-cake-", "pan.cake", "日cake本", "x cakes cake", "cake@", "cake[", "`cake", "{cake", "/cake:"},
			[]string{"", "cakes", "pancake", "cake_", "_cake", "cak", "cakea", "cakez", "Acake", "Zcake", "cake0", "cake9"}},
		{"cake*lie", []string{"the cake is a lie", "cakelie", "cake, no liexlie lie"}, []string{"the cake is a lies", "pancake is a lie", "lie cake"}},
		{"*cake", []string{"pancake", "cake"}, []string{"pancakes"}},
		{"cake*", []string{"cakes", "a cake"}, []string{"pancakes"}},
		{"*ak*", []string{"pancakes", "ak"}, []string{"a k"}},
		{"*", []string{"", "x"}, nil},
		{"", []string{"", "x"}, nil},
		{"@room", []string{"@room", "hey @room!", "x@room"}, []string{"@rooms", "room"}},
		{"c?ke", []string{"my coke"}, []string{"cooke", "cokes"}},
		{"?", []string{"a", "a b", "-"}, []string{""}},
		{"a?b", []string{"x a b", "a-b"}, []string{"xa b", "a bx"}},
	} {
		g := Compile(v.pattern, true)
		for _, s := range v.yes {
			if !g.MatchWords(s) {
				t.Errorf("%q does not match in %q", v.pattern, s)
			}
		}
		for _, s := range v.no {
			if g.MatchWords(s) {
				t.Errorf("%q matches in %q", v.pattern, s)
			}
		}
	}
}

// TestNoBlowUp has the patterns that make matchers with backtracking exponential.
func TestNoBlowUp(t *testing.T) {
	pattern := strings.Repeat("*a", 200) + "*b"
	text := strings.Repeat("a", 20_000)
	start := time.Now()
	for _, g := range []Glob{Compile(pattern, true), Compile(strings.Repeat("a*", 200)+"b", true), Compile(strings.Repeat("?*", 200)+"b", true)} {
		if g.Match(text) || g.MatchWords(text) {
			t.Error("matches")
		}
	}
	if d := time.Since(start); d > 2*time.Second {
		t.Errorf("took %v", d)
	}
}

// FuzzMatch compares with the regular expressions that the globs stand for.
func FuzzMatch(f *testing.F) {
	for _, p := range []string{"", "*", "a*b?c", "?*?", "**", "É*", "ex*ple", "*a*a*"} {
		for _, s := range []string{"", "abc", "An example event.", "aéÉ日\n", "\xff", "a_a a"} {
			f.Add(p, s, true)
		}
	}
	f.Fuzz(func(t *testing.T, pattern, s string, fold bool) {
		pattern, s = strings.ToValidUTF8(pattern, "?"), strings.ToValidUTF8(s, "?")
		if len(pattern) > 200 || len(s) > 100 {
			return
		}
		re := strings.NewReplacer(`\*`, `.*`, `\?`, `.`).Replace(regexp.QuoteMeta(pattern))
		flags := "(?s)"
		if fold {
			flags = "(?si)"
		}
		g := Compile(pattern, fold)
		if got, want := g.Match(s), regexp.MustCompile(flags+"^(?:"+re+")$").MatchString(s); got != want {
			t.Errorf("Compile(%q, %v).Match(%q) = %v", pattern, fold, s, got)
		}
		if got, want := g.MatchWords(s), wordsReference(regexp.MustCompile(flags+"^(?:"+re+")$"), s); got != want {
			t.Errorf("Compile(%q, %v).MatchWords(%q) = %v", pattern, fold, s, got)
		}
	})
}

// wordsReference tries every part of s between two boundaries.
func wordsReference(re *regexp.Regexp, s string) bool {
	var at []int
	for i := range s {
		if boundary(s, i) {
			at = append(at, i)
		}
	}
	at = append(at, len(s))
	for n, i := range at {
		for _, j := range at[n:] {
			if re.MatchString(s[i:j]) {
				return true
			}
		}
	}
	return false
}

func BenchmarkMatch(b *testing.B) {
	g := Compile("*.evil*.example.com", true)
	b.ReportAllocs()
	for b.Loop() {
		g.Match("matrix.evil-twin.example.com")
	}
}

func BenchmarkMatchWords(b *testing.B) {
	g := Compile("alice", true)
	body := strings.Repeat("Some words that a person might send. ", 5)
	b.ReportAllocs()
	for b.Loop() {
		g.MatchWords(body)
	}
}

func Example() {
	g := Compile("*.example.com", true)
	fmt.Println(g.Match("Matrix.Example.com"), g.Match("example.com"))
	fmt.Println(Compile("ex*ple", true).MatchWords("An exciting triple-whammy"))
	// Output:
	// true false
	// true
}
