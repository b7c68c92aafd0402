// Package canonicaljson is the one strict JSON parser for everything remote,
// and the canonical form that is hashed and signed.
//
// Everything that has passed Canonical is UTF-8, has no duplicate keys, has its
// keys sorted by code point and no insignificant white space; the functions
// that take "canonical" bytes (access.go, splice.go) rely on that and do not look again.
//
// Canonical first runs a scan that only says yes (scan.go); what is not canonical
// yet, or not valid, goes through the parser (parse.go), which rewrites it or says
// what is wrong. Other servers send canonical JSON nearly always, so the scan is the hot path.
// spec: appendices#canonical-json
package canonicaljson

import (
	"bytes"
	"fmt"

	"github.com/go-json-experiment/json"
)

// Mode says which numbers a document may hold.
type Mode uint8

const (
	// Lenient is for room versions 1 to 5: any JSON number passes. Integers of any
	// size keep their digits, -0 becomes 0, a number with an exponent that is an
	// integer in the strict range becomes that integer, and other numbers take the
	// shortest form that reads back as the same float64, written as Python does,
	// because those rooms were made by a server that hashed what Python wrote.
	Lenient Mode = iota
	// Strict is for room versions 6 and later: integers in [-(2^53)+1, (2^53)-1]
	// only, without fraction or exponent, and no -0.
	Strict
	// Lenient64 is Lenient for what is made here: integers have to fit into 64 bits with sign, because not all servers can read others.
	Lenient64
)

const (
	// MaxDepth is the deepest nesting of objects and arrays that is accepted.
	MaxDepth = 1000
	// MaxInteger and MinInteger bound the integers of Strict.
	MaxInteger = 1<<53 - 1
	MinInteger = -MaxInteger
)

// Canonical parses src strictly (one JSON value, no duplicate keys, valid
// UTF-8 and no lone surrogates, depth at most MaxDepth) and returns its canonical
// form. When src is canonical already, src itself is returned and nothing is allocated.
//
// Errors are *matrix.Error: M_NOT_JSON for what is not JSON at all, M_BAD_JSON for
// JSON that has no canonical form or that the mode refuses.
func Canonical(src []byte, mode Mode) ([]byte, error) {
	if IsCanonical(src, mode) {
		return src, nil
	}
	out, err := rewrite(src, mode)
	if err != nil {
		return nil, err
	}
	if bytes.Equal(out, src) {
		return src, nil // the scan does not judge floats
	}
	return out, nil
}

// IsCanonical reports whether src is canonical JSON. It may say no to a canonical
// document with fractions in Lenient mode; Canonical knows better.
func IsCanonical(src []byte, mode Mode) bool {
	s := scanner{src, mode}
	return s.value(0, 0) == len(src)
}

// Marshal encodes a Go value (struct, map, ...) as canonical JSON of the strict kind.
func Marshal(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode canonical JSON: %w", err)
	}
	return Canonical(b, Strict)
}
