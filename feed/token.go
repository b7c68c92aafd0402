package feed

import (
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/storage"
)

// Token is a place in the stream up to which a client has been told everything. Its text is
// "s" and the position; where to-device messages were held back (there were too many for one
// response) their own position follows after "_".
type Token struct {
	Pos      storage.Position
	ToDevice storage.Position // Pos unless messages were held back
}

// At is the token of one position.
func At(pos storage.Position) Token { return Token{pos, pos} }

func (t Token) String() string {
	s := "s" + strconv.FormatInt(int64(t.Pos), 10)
	if t.ToDevice != t.Pos {
		s += "_" + strconv.FormatInt(int64(t.ToDevice), 10)
	}
	return s
}

// ParseToken reads a token. Anything that is not one of ours gives M_INVALID_PARAM.
func ParseToken(s string) (Token, error) {
	bad := matrix.InvalidParam("%q is not a token of /sync.", s)
	rest, ok := strings.CutPrefix(s, "s")
	if !ok {
		return Token{}, bad
	}
	first, second, two := strings.Cut(rest, "_")
	pos, err := parsePosition(first)
	if err != nil {
		return Token{}, bad
	}
	if !two {
		return At(pos), nil
	}
	dev, err := parsePosition(second)
	if err != nil || dev > pos {
		return Token{}, bad
	}
	return Token{pos, dev}, nil
}

func parsePosition(s string) (storage.Position, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	return storage.Position(n), err
}

// ParsePosition reads a token of /sync or a pos of sliding sync as the place in the stream up to which a client has been told.
func ParsePosition(s string) (storage.Position, error) {
	if pos, ok := parseSlidingPos(s); ok {
		return pos.until, nil
	}
	t, err := ParseToken(s)
	return t.Pos, err
}
