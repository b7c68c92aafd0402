package canonicaljson

import (
	"bytes"
	"iter"
	"strconv"
	"strings"
	"unsafe"
)

// The functions below read canonical bytes. Given anything else they return
// something useless, but do not panic.

// Members yields the members of a canonical object in order: the decoded key
// and the raw value. Keys without escapes are not copied: they share the memory of the object.
func Members(canonical []byte) iter.Seq2[string, []byte] {
	return func(yield func(string, []byte) bool) {
		for m, i := first(canonical); m.ok; m, i = next(canonical, i) {
			if !yield(decode(m.key), canonical[m.value:m.end]) {
				return
			}
		}
	}
}

// Elements yields the raw values of a canonical array in order.
func Elements(canonical []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if len(canonical) < 2 || canonical[0] != '[' || canonical[1] == ']' {
			return
		}
		for i := 1; i < len(canonical); {
			end := skip(canonical, i)
			if !yield(canonical[i:end]) {
				return
			}
			i = end + 1
		}
	}
}

// Get returns the raw value of a member of a canonical object.
func Get(canonical []byte, key string) (raw []byte, ok bool) {
	for m, i := first(canonical); m.ok; m, i = next(canonical, i) {
		switch c := compareKey(m.key, key); {
		case c == 0:
			return canonical[m.value:m.end], true
		case c > 0:
			return nil, false
		}
	}
	return nil, false
}

// GetString returns a member that is a string, decoded. Without escapes the
// result shares the memory of the object.
func GetString(canonical []byte, key string) (value string, ok bool) {
	raw, _ := Get(canonical, key)
	return String(raw)
}

// GetInt returns a member that is an integer without fraction or exponent.
func GetInt(canonical []byte, key string) (value int64, ok bool) {
	raw, _ := Get(canonical, key)
	return Int(raw)
}

// GetBool returns a member that is true or false.
func GetBool(canonical []byte, key string) (value, ok bool) {
	raw, _ := Get(canonical, key)
	value = string(raw) == "true"
	return value, value || string(raw) == "false"
}

// GetObject returns a member that is an object.
func GetObject(canonical []byte, key string) (object []byte, ok bool) {
	raw, _ := Get(canonical, key)
	return raw, IsObject(raw)
}

// String decodes a raw value that is a string. Without escapes the result shares
// the memory of raw.
func String(raw []byte) (value string, ok bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	return decode(raw[1 : len(raw)-1]), true
}

// Int decodes a raw value that is an integer; ok is false if it does not fit an int64.
func Int(raw []byte) (value int64, ok bool) {
	if len(raw) == 0 || raw[0] != '-' && raw[0]-'0' > 9 {
		return 0, false
	}
	value, err := strconv.ParseInt(unsafe.String(unsafe.SliceData(raw), len(raw)), 10, 64)
	return value, err == nil
}

// IsObject reports whether a raw value is an object.
func IsObject(raw []byte) bool { return len(raw) > 0 && raw[0] == '{' }

// IsArray reports whether a raw value is an array.
func IsArray(raw []byte) bool { return len(raw) > 0 && raw[0] == '[' }

// at is where a member stands in its object.
type at struct {
	ok         bool
	key        []byte // without quotes, not decoded
	start      int    // of the key, at its quote
	value, end int    // the value is [value:end]
}

func first(object []byte) (m at, i int) {
	if len(object) < 2 || object[0] != '{' || object[1] != '"' {
		return at{}, 0
	}
	return next(object, 0)
}

// next reads the member after the '{' or ',' at i; the second result is where to go on.
func next(object []byte, i int) (at, int) {
	start := i + 1
	if start >= len(object) || object[start] != '"' {
		return at{}, 0
	}
	keyEnd := skipString(object, start)
	value := keyEnd + 1
	if value >= len(object) {
		return at{}, 0
	}
	end := skip(object, value)
	return at{true, object[start+1 : keyEnd-1], start, value, end}, end
}

// skip returns the index after the value at i.
func skip(b []byte, i int) int {
	if i >= len(b) {
		return len(b)
	}
	switch b[i] {
	case '"':
		return skipString(b, i)
	case '{', '[':
		depth := 0
		for i < len(b) {
			switch b[i] {
			case '"':
				i = skipString(b, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return len(b)
	}
	for i < len(b) && b[i] != ',' && b[i] != '}' && b[i] != ']' {
		i++
	}
	return i
}

// skipString returns the index after the string at i.
func skipString(b []byte, i int) int {
	for j := i + 1; ; {
		n := bytes.IndexByte(b[j:], '"')
		if n < 0 {
			return len(b)
		}
		j += n
		backslashes := 0
		for b[j-1-backslashes] == '\\' {
			backslashes++
		}
		if j++; backslashes%2 == 0 {
			return j
		}
	}
}

// compareKey compares an encoded canonical key with a decoded one.
func compareKey(encoded []byte, key string) int {
	if bytes.IndexByte(encoded, '\\') >= 0 {
		return strings.Compare(decode(encoded), key)
	}
	return strings.Compare(unsafe.String(unsafe.SliceData(encoded), len(encoded)), key)
}
