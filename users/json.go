package users

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// object returns a JSON object in canonical form: M_NOT_JSON or M_BAD_JSON unless it is one, M_TOO_LARGE beyond limit bytes.
func object(raw []byte, mode canonicaljson.Mode, limit int, what string) ([]byte, error) {
	if len(raw) > limit {
		return nil, matrix.TooLarge("%s is larger than %d bytes", what, limit)
	}
	canonical, err := canonicaljson.Canonical(raw, mode)
	if err != nil {
		return nil, err
	}
	if !canonicaljson.IsObject(canonical) {
		return nil, matrix.BadJSON("%s must be a JSON object", what)
	}
	return canonical, nil
}

// decode reads JSON into a Go value, strictly.
func decode(raw []byte, v any, what string) error {
	if err := jsonv2.Unmarshal(raw, v); err != nil {
		return matrix.BadJSON("%s does not have the expected form", what).Because(err)
	}
	return nil
}

// encode makes JSON of our own values; they always can be encoded.
func encode(v any) []byte {
	b, err := jsonv2.Marshal(v, jsonv2.Deterministic(true))
	if err != nil {
		panic("users: encode: " + err.Error())
	}
	return b
}

// checkName checks a name chosen by a client that becomes a key in the database: 1 to 255 bytes of text.
func checkName(s, what string) error {
	switch {
	case s == "":
		return matrix.InvalidParam("%s must not be empty", what)
	case len(s) > matrix.MaxIDLength:
		return matrix.InvalidParam("%s is longer than %d bytes", what, matrix.MaxIDLength)
	case strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s):
		return matrix.InvalidParam("%s holds bytes that are not text", what)
	}
	return nil
}

// rawJSON is JSON that is passed on as it is.
type rawJSON = json.RawMessage
