package canonicaljson

import (
	"bytes"
	"unicode/utf8"
	"unsafe"
)

// AppendString appends s as a canonical JSON string, quotes included. Bytes of
// s that are not UTF-8 become U+FFFD.
func AppendString(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(dst, s[from:i]...)
				dst = append(dst, "\uFFFD"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c >= 0x20 && c != '"' && c != '\\' {
			i++
			continue
		}
		dst = append(dst, s[from:i]...)
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\b':
			dst = append(dst, '\\', 'b')
		case '\f':
			dst = append(dst, '\\', 'f')
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		from = i
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

// decode returns what a valid string, given without its quotes, stands for. Without
// escapes the result shares the memory of raw.
func decode(raw []byte) string {
	i := bytes.IndexByte(raw, '\\')
	if i < 0 {
		return unsafe.String(unsafe.SliceData(raw), len(raw))
	}
	out := make([]byte, 0, len(raw))
	for i >= 0 && i+1 < len(raw) {
		out = append(out, raw[:i]...)
		switch raw[i+1] {
		case 'u':
			r, n := decodeUnicode(raw[i:])
			out = utf8.AppendRune(out, r)
			i += n
		default:
			c, n := firstByte(raw[i:])
			out = append(out, c)
			i += n
		}
		raw = raw[i:]
		i = bytes.IndexByte(raw, '\\')
	}
	out = append(out, raw...)
	return unsafe.String(unsafe.SliceData(out), len(out))
}

// decodeUnicode reads a \u escape or a surrogate pair of them.
func decodeUnicode(b []byte) (r rune, n int) {
	r, ok := codeUnit(b)
	if !ok {
		return utf8.RuneError, min(len(b), 2)
	}
	if 0xd800 <= r && r <= 0xdbff {
		if low, ok := codeUnit(b[6:]); ok {
			return 0x10000 + (r-0xd800)<<10 + (low - 0xdc00), 12
		}
	}
	return r, 6
}
