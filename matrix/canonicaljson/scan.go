package canonicaljson

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"unicode/utf8"
)

// scanner decides in one pass and without allocation whether a text is
// canonical. Its methods take the index where something starts and return the
// index after it, or -1 when the text is not canonical or not JSON.
type scanner struct {
	src  []byte
	mode Mode
}

func (s *scanner) value(i, depth int) int {
	if i >= len(s.src) {
		return -1
	}
	switch c := s.src[i]; c {
	case '"':
		end, _ := scanString(s.src, i)
		return end
	case '{':
		return s.object(i, depth+1)
	case '[':
		return s.array(i, depth+1)
	case 't':
		return s.literal(i, "true")
	case 'f':
		return s.literal(i, "false")
	case 'n':
		return s.literal(i, "null")
	default:
		return s.number(i)
	}
}

func (s *scanner) literal(i int, word string) int {
	if len(s.src)-i >= len(word) && string(s.src[i:i+len(word)]) == word {
		return i + len(word)
	}
	return -1
}

func (s *scanner) object(i, depth int) int {
	if depth > MaxDepth {
		return -1
	}
	src := s.src
	if i++; i < len(src) && src[i] == '}' {
		return i + 1
	}
	var previous []byte
	previousEscaped := false
	for first := true; ; first = false {
		if i >= len(src) || src[i] != '"' {
			return -1
		}
		end, escaped := scanString(src, i)
		if end < 0 || end >= len(src) || src[end] != ':' {
			return -1
		}
		key := src[i+1 : end-1]
		if !first {
			// Strictly increasing, so a duplicate shows as well.
			if escaped || previousEscaped {
				if compareEscaped(previous, key) >= 0 {
					return -1
				}
			} else if bytes.Compare(previous, key) >= 0 {
				return -1
			}
		}
		previous, previousEscaped = key, escaped
		if i = s.value(end+1, depth); i < 0 || i >= len(src) {
			return -1
		}
		switch src[i] {
		case ',':
			i++
		case '}':
			return i + 1
		default:
			return -1
		}
	}
}

func (s *scanner) array(i, depth int) int {
	if depth > MaxDepth {
		return -1
	}
	src := s.src
	if i++; i < len(src) && src[i] == ']' {
		return i + 1
	}
	for {
		if i = s.value(i, depth); i < 0 || i >= len(src) {
			return -1
		}
		switch src[i] {
		case ',':
			i++
		case ']':
			return i + 1
		default:
			return -1
		}
	}
}

// number accepts integers. In Lenient mode numbers with fraction or exponent are
// left to the parser, which knows how they are written.
func (s *scanner) number(i int) int {
	src := s.src
	negative := src[i] == '-'
	if negative {
		i++
	}
	start := i
	for i < len(src) && src[i]-'0' <= 9 {
		i++
	}
	digits := src[start:i]
	if len(digits) == 0 || digits[0] == '0' && (len(digits) > 1 || negative) {
		return -1
	}
	if i < len(src) && (src[i] == '.' || src[i] == 'e' || src[i] == 'E') {
		return -1
	}
	if !s.mode.allows(digits) {
		return -1
	}
	return i
}

const (
	maxDigits   = "9007199254740991"    // MaxInteger
	maxDigits64 = "9223372036854775807" // 2^63-1
)

// allows reports whether an integer without sign and leading zeros is in the mode's range. That of Lenient64 ends at -(2^63-1).
func (m Mode) allows(digits []byte) bool {
	most := maxDigits
	switch m {
	case Lenient:
		return true
	case Lenient64:
		most = maxDigits64
	}
	return len(digits) < len(most) || len(digits) == len(most) && string(digits) <= most
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// scanString checks a canonical string from its opening quote at i and returns
// the index after the closing one. escaped is true if it holds a backslash.
func scanString(src []byte, i int) (end int, escaped bool) {
	i++
	start := i
	var seen uint64 // all bytes seen, one over the other: is any not ASCII?
	for {
		// Eight bytes at a time. The lowest byte that is marked is a quote, a
		// backslash or a control character; bytes from 0x80 on are never marked.
		for i+8 <= len(src) {
			x := binary.LittleEndian.Uint64(src[i:])
			quote, slash := x^ones*'"', x^ones*'\\'
			mark := ((x-ones*0x20)&^x | (quote-ones)&^quote | (slash-ones)&^slash) & highs
			seen |= x
			if mark != 0 {
				i += bits.TrailingZeros64(mark) >> 3
				break
			}
			i += 8
		}
		if i >= len(src) {
			return -1, false
		}
		switch c := src[i]; {
		case c == '"':
			if seen&highs != 0 && !utf8.Valid(src[start:i]) {
				return -1, false
			}
			return i + 1, escaped
		case c == '\\':
			n := minimalEscape(src[i:])
			if n == 0 {
				return -1, false
			}
			escaped = true
			i += n
		case c < 0x20:
			return -1, false
		default:
			seen |= uint64(c)
			i++
		}
	}
}

// minimalEscape returns the length of the escape that b starts with if it is the
// one that canonical JSON uses for its character, else 0.
func minimalEscape(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) < 6 || b[2] != '0' || b[3] != '0' {
			return 0
		}
		c := b[5]
		lowHex := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		switch {
		case b[4] == '1' && lowHex:
			return 6
		case b[4] == '0' && ('0' <= c && c <= '7' || c == 'b' || c == 'e' || c == 'f'):
			return 6
		}
	}
	return 0
}

// compareEscaped compares two canonical keys, quotes left out, by code point of
// what they decode to. Each canonical escape stands for one ASCII character.
func compareEscaped(a, b []byte) int {
	for len(a) > 0 && len(b) > 0 {
		ca, na := firstByte(a)
		cb, nb := firstByte(b)
		if ca != cb {
			return int(ca) - int(cb)
		}
		a, b = a[na:], b[nb:]
	}
	return len(a) - len(b)
}

// firstByte decodes the first byte of a canonical string and says how many bytes it is written with.
func firstByte(b []byte) (c byte, n int) {
	if b[0] != '\\' {
		return b[0], 1
	}
	switch b[1] {
	case 'b':
		return '\b', 2
	case 'f':
		return '\f', 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		return hexDigit(b[4])<<4 | hexDigit(b[5]), 6
	}
	return b[1], 2
}

func hexDigit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}
