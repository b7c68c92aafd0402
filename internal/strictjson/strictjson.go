// Package strictjson decodes JSON that a client or a peer sent: duplicate keys
// are refused, unknown members ignored, and the error is the one to answer with.
package strictjson

import (
	"errors"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/matrix"
)

// Unmarshal decodes a body into v. Anything that is not JSON gives M_NOT_JSON, JSON of the wrong shape
// M_BAD_JSON.
func Unmarshal(b []byte, v any) error { return UnmarshalAs("The body", b, v) }

// UnmarshalAs is Unmarshal for JSON that stands elsewhere; the message begins with what it is, as in "The filter".
func UnmarshalAs(what string, b []byte, v any) error {
	err := json.Unmarshal(b, v)
	if err == nil {
		return nil
	}
	var semantic *json.SemanticError
	if errors.Is(err, ErrTooMany) {
		if errors.As(err, &semantic) && semantic.JSONPointer != "" {
			what = string(semantic.JSONPointer)
		}
		return matrix.InvalidParam("%s has too many elements.", what).Because(err)
	}
	if errors.As(err, &semantic) {
		at := string(semantic.JSONPointer)
		if at == "" {
			return matrix.BadJSON("%s has the wrong type.", what).Because(err)
		}
		return matrix.BadJSON("%s has the wrong type.", at).Because(err)
	}
	if errors.Is(err, jsontext.ErrDuplicateName) {
		return matrix.BadJSON("%s has an object in which a key occurs twice.", what).Because(err)
	}
	return matrix.NotJSON("%s is not valid JSON.", what).Because(err)
}
