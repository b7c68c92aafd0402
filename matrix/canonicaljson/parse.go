package canonicaljson

import (
	"bytes"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"hanok/matrix"
)

// parser reads any JSON text. It keeps of it only what has to be rewritten: a
// value whose text is canonical already becomes one leaf, whatever is in it.
type parser struct {
	src  []byte
	mode Mode
	err  error
	// open holds the members of the containers being read, innermost last;
	// closed those of containers that have been read and must be rewritten.
	open, closed []member
}

type member struct {
	key string // decoded; "" in arrays
	val value
}

// value is a leaf, string or number at src[start:end], or a container whose members are closed[start:end].
type value struct {
	start, end int32
	kind       kind
}

type kind uint8

const (
	leaf   kind = iota // canonical text, copied
	str                // a string with other escapes than canonical ones
	num                // a number written otherwise
	object             // sorted members
	array
)

// rewrite parses src and returns its canonical form in new memory.
func rewrite(src []byte, mode Mode) ([]byte, error) {
	if len(src) > math.MaxInt32 {
		return nil, matrix.TooLarge("The JSON text is too large")
	}
	p := parser{src: src, mode: mode}
	v, i := p.value(p.space(0), 0)
	if p.err == nil && p.space(i) != len(src) {
		p.notJSON(p.space(i), "something follows the value")
	}
	if p.err != nil {
		return nil, p.err
	}
	return p.appendValue(make([]byte, 0, len(src)), v), nil
}

func (p *parser) notJSON(i int, what string) {
	if p.err == nil {
		p.err = matrix.NotJSON("Not valid JSON: %s at byte %d", what, i)
	}
}

func (p *parser) badJSON(i int, what string) {
	if p.err == nil {
		p.err = matrix.BadJSON("JSON not accepted: %s at byte %d", what, i)
	}
}

func (p *parser) space(i int) int {
	for i < len(p.src) && (p.src[i] == ' ' || p.src[i] == '\n' || p.src[i] == '\t' || p.src[i] == '\r') {
		i++
	}
	return i
}

// at returns the byte at i, 0 at the end; NUL is nowhere valid outside of strings.
func (p *parser) at(i int) byte {
	if i < len(p.src) {
		return p.src[i]
	}
	return 0
}

// value reads the value at i and returns the index after it. After an error,
// which p.err tells, what it returns means nothing.
func (p *parser) value(i, depth int) (value, int) {
	switch c := p.at(i); {
	case c == '{' || c == '[':
		if depth == MaxDepth {
			p.badJSON(i, "nested too deeply")
			return value{}, i
		}
		if c == '{' {
			return p.object(i, depth+1)
		}
		return p.array(i, depth+1)
	case c == '"':
		end, canonical := p.string(i)
		if canonical {
			return p.leaf(i, end), end
		}
		return value{int32(i), int32(end), str}, end
	case c == '-' || '0' <= c && c <= '9':
		return p.number(i)
	case c == 't':
		return p.literal(i, "true")
	case c == 'f':
		return p.literal(i, "false")
	case c == 'n':
		return p.literal(i, "null")
	}
	if i >= len(p.src) {
		p.notJSON(i, "unexpected end")
	} else {
		p.notJSON(i, "unexpected character")
	}
	return value{}, i
}

func (p *parser) leaf(i, end int) value { return value{int32(i), int32(end), leaf} }

func (p *parser) literal(i int, word string) (value, int) {
	if !bytes.HasPrefix(p.src[i:], []byte(word)) {
		p.notJSON(i, "unexpected character")
	}
	return p.leaf(i, i+len(word)), i + len(word)
}

func (p *parser) object(start, depth int) (value, int) {
	base := len(p.open)
	canonical, sorted := true, true
	end := p.container(start, '}', func(i int) (member, int) {
		if p.at(i) != '"' {
			p.notJSON(i, "expected a key")
			return member{}, i
		}
		keyEnd, plain := p.string(i)
		if p.err != nil {
			return member{}, i
		}
		key := decode(p.src[i+1 : keyEnd-1])
		if n := len(p.open); n > base && key <= p.open[n-1].key {
			sorted = false
		}
		colon := p.space(keyEnd)
		if p.at(colon) != ':' {
			p.notJSON(colon, "expected ':'")
			return member{}, i
		}
		start := p.space(colon + 1)
		if !plain || start != keyEnd+1 {
			canonical = false
		}
		v, next := p.value(start, depth)
		return member{key, v}, next
	}, &canonical)
	if p.err != nil {
		return value{}, end
	}
	if canonical && sorted {
		p.open = p.open[:base]
		return p.leaf(start, end), end
	}
	if !sorted {
		members := p.open[base:]
		slices.SortFunc(members, func(a, b member) int { return strings.Compare(a.key, b.key) })
		for i := 1; i < len(members); i++ {
			if members[i].key == members[i-1].key {
				p.badJSON(start, "duplicate key in the object")
				return value{}, end
			}
		}
	}
	return p.close(base, object), end
}

func (p *parser) array(start, depth int) (value, int) {
	base := len(p.open)
	canonical := true
	end := p.container(start, ']', func(i int) (member, int) {
		v, next := p.value(i, depth)
		return member{val: v}, next
	}, &canonical)
	if p.err != nil {
		return value{}, end
	}
	if canonical {
		p.open = p.open[:base]
		return p.leaf(start, end), end
	}
	return p.close(base, array), end
}

// container reads what stands between brackets, item by item, onto p.open.
// canonical becomes false when the text has white space or an item to be rewritten.
func (p *parser) container(start int, closing byte, item func(i int) (member, int), canonical *bool) (end int) {
	i := p.space(start + 1)
	if p.at(i) == closing {
		if i != start+1 {
			*canonical = false
		}
		return i + 1
	}
	if i != start+1 {
		*canonical = false
	}
	for {
		m, next := item(i)
		if p.err != nil {
			return i
		}
		if m.val.kind != leaf {
			*canonical = false
		}
		p.open = append(p.open, m)
		comma := p.space(next)
		if comma != next {
			*canonical = false
		}
		switch p.at(comma) {
		case closing:
			return comma + 1
		case ',':
			i = p.space(comma + 1)
			if i != comma+1 {
				*canonical = false
			}
		default:
			p.notJSON(comma, "expected ',' or the closing bracket")
			return i
		}
	}
}

// close moves the members above base to p.closed.
func (p *parser) close(base int, k kind) value {
	from := len(p.closed)
	p.closed = append(p.closed, p.open[base:]...)
	p.open = p.open[:base]
	return value{int32(from), int32(len(p.closed)), k}
}

// string reads a string from its opening quote; canonical is false when it has
// to be written with other escapes.
func (p *parser) string(i int) (end int, canonical bool) {
	if end, _ := scanString(p.src, i); end >= 0 {
		return end, true
	}
	start := i
	for i++; i < len(p.src); {
		switch c := p.src[i]; {
		case c == '"':
			return i + 1, false
		case c == '\\':
			n := p.escape(i)
			if n == 0 {
				return i, false
			}
			i += n
		case c < 0x20:
			p.notJSON(i, "control character in a string")
			return i, false
		case c < utf8.RuneSelf:
			i++
		default:
			r, n := utf8.DecodeRune(p.src[i:])
			if r == utf8.RuneError && n == 1 {
				p.notJSON(i, "invalid UTF-8")
				return i, false
			}
			i += n
		}
	}
	p.notJSON(start, "unclosed string")
	return i, false
}

// escape checks the escape at i and returns its length. A surrogate must be one
// of a pair: alone it has no UTF-8 encoding, so no canonical form.
func (p *parser) escape(i int) int {
	b := p.src[i:]
	if len(b) > 1 && strings.IndexByte(`"\/bfnrt`, b[1]) >= 0 {
		return 2
	}
	unit, ok := codeUnit(b)
	if !ok {
		p.notJSON(i, "invalid escape")
		return 0
	}
	if unit < 0xd800 || unit > 0xdfff {
		return 6
	}
	low, ok := codeUnit(b[6:])
	if unit > 0xdbff || !ok || low < 0xdc00 || low > 0xdfff {
		p.badJSON(i, "lone surrogate in a string")
		return 0
	}
	return 12
}

// codeUnit reads the four hexadecimal digits of a \u escape.
func codeUnit(b []byte) (unit rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		d := hexDigit(c)
		if d > 15 {
			return 0, false
		}
		unit = unit<<4 | rune(d)
	}
	return unit, true
}

// number reads a number and checks that the mode accepts it.
func (p *parser) number(start int) (value, int) {
	i := start
	digits := func() int {
		from := i
		for p.at(i)-'0' <= 9 {
			i++
		}
		return i - from
	}
	if p.at(i) == '-' {
		i++
	}
	intStart := i
	n := digits()
	if n == 0 || n > 1 && p.src[intStart] == '0' {
		p.notJSON(start, "malformed number")
		return value{}, start
	}
	integer := true
	if p.at(i) == '.' {
		integer = false
		i++
		if digits() == 0 {
			p.notJSON(start, "malformed number")
			return value{}, start
		}
	}
	if c := p.at(i); c == 'e' || c == 'E' {
		integer = false
		i++
		if c := p.at(i); c == '+' || c == '-' {
			i++
		}
		if digits() == 0 {
			p.notJSON(start, "malformed number")
			return value{}, start
		}
	}
	text := p.src[start:i]
	switch {
	case integer && string(text) != "-0":
		if !p.mode.allows(p.src[intStart:i]) {
			p.badJSON(start, "integer out of range")
		}
		return p.leaf(start, i), i
	case p.mode == Strict:
		p.badJSON(start, "number with fraction or exponent, or negative zero,")
		return value{}, start
	}
	if f, err := strconv.ParseFloat(string(text), 64); err != nil || math.IsInf(f, 0) {
		p.badJSON(start, "number out of range")
		return value{}, start
	}
	return value{int32(start), int32(i), num}, i
}

func (p *parser) appendValue(dst []byte, v value) []byte {
	switch v.kind {
	case str:
		return AppendString(dst, decode(p.src[v.start+1:v.end-1]))
	case num:
		return appendNumber(dst, p.src[v.start:v.end])
	case object:
		dst = append(dst, '{')
		for i, m := range p.closed[v.start:v.end] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = AppendString(dst, m.key)
			dst = append(dst, ':')
			dst = p.appendValue(dst, m.val)
		}
		return append(dst, '}')
	case array:
		dst = append(dst, '[')
		for i, m := range p.closed[v.start:v.end] {
			if i > 0 {
				dst = append(dst, ',')
			}
			dst = p.appendValue(dst, m.val)
		}
		return append(dst, ']')
	default:
		return append(dst, p.src[v.start:v.end]...)
	}
}

// appendNumber writes a number that is no plain integer as Lenient says.
func appendNumber(dst, text []byte) []byte {
	if string(text) == "-0" {
		return append(dst, '0')
	}
	f, _ := strconv.ParseFloat(string(text), 64)
	exponent := slices.ContainsFunc(text, func(c byte) bool { return c == 'e' || c == 'E' })
	if exponent && f == math.Trunc(f) && math.Abs(f) <= MaxInteger {
		return strconv.AppendInt(dst, int64(f), 10)
	}
	// Python's repr: an exponent below 1e-4 and from 1e16 on, else always a fraction.
	if abs := math.Abs(f); abs != 0 && (abs < 1e-4 || abs >= 1e16) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	from := len(dst)
	dst = strconv.AppendFloat(dst, f, 'f', -1, 64)
	if !slices.Contains(dst[from:], '.') {
		dst = append(dst, ".0"...)
	}
	return dst
}
