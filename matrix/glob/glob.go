// Package glob matches the globs of the specification ('*' and '?') in time
// at most proportional to pattern times text.
//
// A pattern is cut at its stars. Between two stars the leftmost place where a part
// fits is always a right one, so nothing is ever tried twice.
// spec: appendices#glob-style-matching
package glob

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Glob is a compiled pattern. The zero value matches only the empty string.
type Glob struct {
	parts [][]rune // what stands between the stars, at least one unless zero
	fold  bool
}

// one stands for '?' in a part: any one character.
const one rune = -1

// Compile prepares a pattern; fold makes it ignore case (Unicode simple folding).
func Compile(pattern string, fold bool) Glob {
	pieces := strings.Split(pattern, "*")
	g := Glob{fold: fold}
	for i, piece := range pieces {
		if piece == "" && i > 0 && i < len(pieces)-1 {
			continue // "**" is "*"
		}
		g.parts = append(g.parts, part(piece, fold, true))
	}
	return g
}

// Literal prepares a text in which '*' and '?' stand for themselves.
func Literal(text string, fold bool) Glob {
	return Glob{[][]rune{part(text, fold, false)}, fold}
}

func part(s string, fold, wild bool) []rune {
	runes := make([]rune, 0, len(s))
	for _, r := range s {
		switch {
		case wild && r == '?':
			r = one
		case fold:
			r = foldRune(r)
		}
		runes = append(runes, r)
	}
	return runes
}

// Match reports whether all of s matches.
func (g Glob) Match(s string) bool {
	if len(g.parts) == 0 {
		return s == ""
	}
	i, ok := g.prefix(g.parts[0], s)
	if !ok || len(g.parts) == 1 {
		return ok && i == len(s)
	}
	last := g.parts[len(g.parts)-1]
	end := len(s)
	for range last {
		if end <= i {
			return false
		}
		_, n := utf8.DecodeLastRuneInString(s[i:end])
		end -= n
	}
	if _, ok := g.prefix(last, s[end:]); !ok {
		return false
	}
	_, ok = g.middle(s[:end], i)
	return ok
}

// MatchWords reports whether some part of s matches that starts and ends at a
// word boundary: the start or end of s, or next to a character other than [A-Za-z0-9_].
// spec: client-server-api#conditions-1
func (g Glob) MatchWords(s string) bool {
	if len(g.parts) == 0 {
		return true
	}
	first, last := g.parts[0], g.parts[len(g.parts)-1]
	single := len(g.parts) == 1
	i := 0
	if len(first) > 0 || single {
		if i = g.find(first, s, 0, true, single); i < 0 || single {
			return i >= 0
		}
	}
	i, ok := g.middle(s, i)
	return ok && (len(last) == 0 || g.find(last, s, i, false, true) >= 0)
}

// middle finds the parts between the first and the last, one after the other
// from i, and returns the index after them.
func (g Glob) middle(s string, i int) (int, bool) {
	for n := 1; n < len(g.parts)-1; n++ {
		if i = g.find(g.parts[n], s, i, false, false); i < 0 {
			return 0, false
		}
	}
	return i, true
}

// find returns the index after the leftmost place from i on where the part
// stands, at a word boundary where asked, or -1.
func (g Glob) find(part []rune, s string, i int, atStart, atEnd bool) int {
	for {
		if !atStart || boundary(s, i) {
			n, ok := g.prefix(part, s[i:])
			if ok && (!atEnd || boundary(s, i+n)) {
				return i + n
			}
		}
		if i >= len(s) {
			return -1
		}
		if s[i] < utf8.RuneSelf {
			i++
		} else {
			_, n := utf8.DecodeRuneInString(s[i:])
			i += n
		}
	}
}

// prefix matches the part at the start of s and returns the length of what it matched.
func (g Glob) prefix(part []rune, s string) (int, bool) {
	i := 0
	for _, want := range part {
		if i >= len(s) {
			return 0, false
		}
		r, n := rune(s[i]), 1
		if r >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(s[i:])
		}
		i += n
		if r != want && want != one && (!g.fold || foldRune(r) != want) {
			return 0, false
		}
	}
	return i, true
}

// boundary reports whether one side of i is no word character.
func boundary(s string, i int) bool {
	return i == 0 || i == len(s) || !word(s[i-1]) || !word(s[i])
}

func word(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_'
}

// foldRune maps all characters that differ only in case to one of them.
func foldRune(r rune) rune {
	if r < utf8.RuneSelf {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}
	least := r
	for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	if 'A' <= least && least <= 'Z' { // the Kelvin sign is a k
		return least + 'a' - 'A'
	}
	return least
}
