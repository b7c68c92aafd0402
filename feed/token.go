package feed

import (
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/storage"
)

// Token is a place in the stream up to which a client has been told everything. Its text is
// "s" and the position; where to-device messages were held back (there were too many for one
// response) their own position follows after "_", and where sticky events were, theirs after a second one.
type Token struct {
	Pos      storage.Position
	ToDevice storage.Position // Pos unless messages were held back
	Sticky   storage.Position // Pos unless sticky events were held back
}

// At is the token of one position.
func At(pos storage.Position) Token { return Token{pos, pos, pos} }

func (t Token) String() string {
	s := "s" + strconv.FormatInt(int64(t.Pos), 10)
	if t.ToDevice != t.Pos || t.Sticky != t.Pos {
		s += "_" + strconv.FormatInt(int64(t.ToDevice), 10)
	}
	if t.Sticky != t.Pos {
		s += "_" + strconv.FormatInt(int64(t.Sticky), 10)
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
	parts := strings.Split(rest, "_")
	pos, err := parsePosition(parts[0])
	if err != nil || len(parts) > 3 {
		return Token{}, bad
	}
	t := At(pos)
	for i, held := range []*storage.Position{&t.ToDevice, &t.Sticky}[:len(parts)-1] {
		if *held, err = parsePosition(parts[i+1]); err != nil || *held > pos {
			return Token{}, bad
		}
	}
	return t, nil
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
