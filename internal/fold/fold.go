// Package fold brings text into the form in which names are searched: what people take for the same is the same bytes.
package fold

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Text is a text without differences of case, of width and of accents, decomposed, so that a syllable of Hangul begins
// with the letters it was typed with. It has neither NUL, which a TEXT column cannot hold, nor invalid UTF-8.
func Text(s string) string {
	if isASCII(s) {
		return strings.ReplaceAll(strings.ToLower(s), "\x00", "")
	}
	return norm.NFKD.String(strings.Map(foldRune, norm.NFKD.String(sharpS.Replace(strings.ToValidUTF8(s, "")))))
}

var sharpS = strings.NewReplacer("ß", "ss", "ẞ", "ss")

// foldRune goes by way of the capital: ς and σ have the same.
func foldRune(r rune) rune {
	if r == 0 || r >= '\u0300' && r <= '\u036f' { // the marks of Latin, Greek and Cyrillic letters
		return -1
	}
	return unicode.ToLower(unicode.ToUpper(r))
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// Words are the words of a folded text: what is between characters that are neither letters, digits nor marks.
func Words(folded string) []string {
	return strings.FieldsFunc(folded, func(r rune) bool { return !unicode.In(r, unicode.Letter, unicode.Number, unicode.Mark) })
}

// Cut shortens a text to a number of bytes, between characters.
func Cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
