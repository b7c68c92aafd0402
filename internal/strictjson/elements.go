package strictjson

import (
	"errors"
	"fmt"

	"github.com/go-json-experiment/json/jsontext"
)

// Decoded at once, an array or object of tiny values takes many times the memory that it has bytes. What others may send without
// end is read value by value, so that it can be left out or refused before it takes any.

// ErrTooMany is returned for an array with more elements than are taken.
var ErrTooMany = errors.New("too many elements")

// EachElement reads an array, or null, with at most so many elements: ErrTooMany. A value lives until each returns.
func EachElement(dec *jsontext.Decoder, most int, each func(v jsontext.Value) error) error {
	if open, err := enter(dec, '['); err != nil || !open {
		return err
	}
	for n := 0; dec.PeekKind() != ']'; n++ {
		if n == most {
			return ErrTooMany
		}
		v, err := dec.ReadValue()
		if err != nil {
			return err
		}
		if err := each(v); err != nil {
			return err
		}
	}
	_, err := dec.ReadToken()
	return err
}

// EachMember reads an object, or null. each reads the value from the decoder; what it leaves is skipped.
func EachMember(dec *jsontext.Decoder, each func(name string) error) error {
	if open, err := enter(dec, '{'); err != nil || !open {
		return err
	}
	for dec.PeekKind() != '}' {
		name, err := dec.ReadToken()
		if err != nil {
			return err
		}
		key := name.String()
		at := dec.InputOffset()
		if err := each(key); err != nil {
			return err
		}
		if dec.InputOffset() == at {
			if err := dec.SkipValue(); err != nil {
				return err
			}
		}
	}
	_, err := dec.ReadToken()
	return err
}

// enter reads the beginning of an array or object; false for null.
func enter(dec *jsontext.Decoder, kind jsontext.Kind) (bool, error) {
	switch got := dec.PeekKind(); got {
	case 'n', kind:
		_, err := dec.ReadToken()
		return got == kind, err
	case 0:
		_, err := dec.ReadToken() // says what is wrong
		return false, err
	default:
		return false, fmt.Errorf("%s in place of %s", got, kind)
	}
}
