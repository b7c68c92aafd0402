package matrix

import (
	"strings"
	"time"
	"unicode/utf8"
)

// The identifier types. A value of one of these types was parsed by its Parse
// function or came out of our own database; it is never an unchecked string.
// Parse functions fail with a *Error, 400 M_INVALID_PARAM, that says what is wrong.
// spec: appendices#identifier-grammar
type (
	// ServerName is a homeserver's name: hostname or IP literal, optional port.
	ServerName string
	// UserID is "@localpart:server", historical grammar included.
	UserID string
	// RoomID is "!opaque:server", or "!hash" from room version 12 on.
	RoomID string
	// RoomAlias is "#alias:server".
	RoomAlias string
	// EventID is "$opaque:server" in room versions 1 and 2, "$hash" later.
	EventID string
	// DeviceID is an opaque string chosen by the server or the client.
	DeviceID string
	// KeyID is "algorithm:identifier", as in "ed25519:auto".
	KeyID string
	// Timestamp is in milliseconds since the Unix epoch.
	Timestamp int64
)

// StateKey names one entry of a room's state.
type StateKey struct {
	Type string
	Key  string
}

// MaxIDLength is the limit of every identifier, in bytes, sigil and domain included.
const MaxIDLength = 255

// ParseUserID accepts every user ID that may occur in an event, the historical
// ones included: any code points but ':' and NUL, even none. See Historical and Compliant.
// spec: appendices#user-identifiers
func ParseUserID(s string) (UserID, error) {
	if err := checkDomained(s, '@', "user ID"); err != nil {
		return "", err
	}
	return UserID(s), nil
}

// NewUserID makes the ID of a new account: only the current grammar passes.
// spec: appendices#user-identifiers
func NewUserID(localpart string, server ServerName) (UserID, error) {
	id := UserID("@" + localpart + ":" + string(server))
	if len(id) > MaxIDLength {
		return "", tooLong("user ID")
	}
	if historical(localpart) {
		return "", Errorf(400, "M_INVALID_USERNAME",
			"A user name needs at least one character, and only a-z, 0-9, '.', '_', '=', '-', '/' and '+'")
	}
	return id, nil
}

// Localpart is what stands between '@' and the first ':'.
func (u UserID) Localpart() string { return localpart(string(u)) }

// Server is the homeserver of the account.
func (u UserID) Server() ServerName { return domain(string(u)) }

// Historical reports whether the localpart is outside the current grammar; no
// new account may have such an ID.
func (u UserID) Historical() bool { return historical(u.Localpart()) }

func historical(localpart string) bool {
	for i := range len(localpart) {
		if !userIDChar[localpart[i]] {
			return true
		}
	}
	return localpart == ""
}

// Compliant reports whether the ID may be told to clients outside the context of
// an event: historical characters pass if they are graphic ASCII.
// spec: appendices#historical-user-ids
func (u UserID) Compliant() bool {
	l := u.Localpart()
	for i := range len(l) {
		if l[i] < '!' || l[i] > '~' {
			return false
		}
	}
	return l != ""
}

// EscapeLocalpart maps any string to a localpart of the current grammar: letters
// A-Z are lowered, other bytes outside the grammar, and '=', become "=hh".
// spec: appendices#mapping-from-other-character-sets
func EscapeLocalpart(s string) string {
	const hex = "0123456789abcdef"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case 'A' <= c && c <= 'Z':
			b.WriteByte(c + 'a' - 'A')
		case c == '=' || !userIDChar[c]:
			b.WriteByte('=')
			b.WriteByte(hex[c>>4])
			b.WriteByte(hex[c&15])
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// ParseRoomID accepts room IDs with a domain and, as from room version 12,
// without. Which of the two a room must have is for its version to say.
// spec: appendices#room-ids
func ParseRoomID(s string) (RoomID, error) {
	if err := checkOpaque(s, '!', "room ID"); err != nil {
		return "", err
	}
	return RoomID(s), nil
}

// Server is the domain of the ID, "" for one without. It says nothing about
// where the room is.
func (r RoomID) Server() ServerName { return domain(string(r)) }

// HasServer reports whether the ID has a domain, as before room version 12.
func (r RoomID) HasServer() bool { return strings.IndexByte(string(r), ':') >= 0 }

// CreateEventID is the ID of the create event of a room whose ID has no domain.
func (r RoomID) CreateEventID() (id EventID, ok bool) {
	if len(r) < 2 || r.HasServer() {
		return "", false
	}
	return EventID("$" + string(r[1:])), true
}

// ParseRoomAlias checks a room alias. spec: appendices#room-aliases
func ParseRoomAlias(s string) (RoomAlias, error) {
	if err := checkDomained(s, '#', "room alias"); err != nil {
		return "", err
	}
	if s[1] == ':' {
		return "", InvalidParam("A room alias needs a name between '#' and ':'")
	}
	return RoomAlias(s), nil
}

// Localpart is what stands between '#' and the first ':'.
func (a RoomAlias) Localpart() string { return localpart(string(a)) }

// Server is the homeserver that resolves the alias.
func (a RoomAlias) Server() ServerName { return domain(string(a)) }

// ParseEventID accepts event IDs of all formats; without a domain any graphic
// ASCII passes, since clients may ask for events that do not exist.
// spec: appendices#event-ids
func ParseEventID(s string) (EventID, error) {
	if err := checkOpaque(s, '$', "event ID"); err != nil {
		return "", err
	}
	return EventID(s), nil
}

// Server is the domain of the ID, "" from room version 3 on.
func (e EventID) Server() ServerName { return domain(string(e)) }

// RoomID is the ID of the room that a create event of this ID makes, from room version 12 on.
func (e EventID) RoomID() RoomID { return RoomID("!" + strings.TrimPrefix(string(e), "$")) }

// IsHash reports whether the ID is 43 characters of base64 after the '$': the
// reference hash in the standard alphabet (room version 3) or the URL-safe one (4 and later).
func (e EventID) IsHash(urlSafe bool) bool {
	if len(e) != 44 || e[0] != '$' {
		return false
	}
	for i := 1; i < len(e); i++ {
		c := e[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case urlSafe && (c == '-' || c == '_'), !urlSafe && (c == '+' || c == '/'):
		default:
			return false
		}
	}
	return true
}

// ParseDeviceID checks the little that is asked of a device ID: 1 to 255 bytes of text.
func ParseDeviceID(s string) (DeviceID, error) {
	if s == "" {
		return "", InvalidParam("A device ID must not be empty")
	}
	if err := checkText(s, "device ID"); err != nil {
		return "", err
	}
	return DeviceID(s), nil
}

// ParseKeyID checks a key ID of any kind: server, device, one-time and
// cross-signing keys. See ServerKey for what a server's key must be.
func ParseKeyID(s string) (KeyID, error) {
	algorithm, identifier, ok := strings.Cut(s, ":")
	if !ok || algorithm == "" || identifier == "" {
		return "", InvalidParam("A key ID must have the form algorithm:identifier")
	}
	if err := checkText(s, "key ID"); err != nil {
		return "", err
	}
	return KeyID(s), nil
}

// Algorithm is what stands before the first ':'.
func (k KeyID) Algorithm() string {
	a, _, _ := strings.Cut(string(k), ":")
	return a
}

// Identifier is what stands after the first ':': a version or a device ID.
func (k KeyID) Identifier() string {
	_, id, _ := strings.Cut(string(k), ":")
	return id
}

// ServerKey reports whether the ID is that of a server's ed25519 key: the version
// is of [a-zA-Z0-9_]. spec: ss/getServerKey
func (k KeyID) ServerKey() bool {
	version, ok := strings.CutPrefix(string(k), "ed25519:")
	for i := range len(version) {
		c := version[i]
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return ok && version != ""
}

// Time converts to the standard library's type.
func (t Timestamp) Time() time.Time { return time.UnixMilli(int64(t)) }

// TimestampOf converts from the standard library's type.
func TimestampOf(t time.Time) Timestamp { return Timestamp(t.UnixMilli()) }

// Span is how much later than another a timestamp is after d.
func Span(d time.Duration) Timestamp { return Timestamp(d.Milliseconds()) }

// Add is what t is after d.
func (t Timestamp) Add(d time.Duration) Timestamp { return t + Span(d) }

// userIDChar has the characters of the current grammar of user ID localparts.
var userIDChar = charset("abcdefghijklmnopqrstuvwxyz0123456789-.=_/+")

func charset(chars string) (set [256]bool) {
	for i := range len(chars) {
		set[chars[i]] = true
	}
	return set
}

// localpart and domain rely on a localpart holding no ':'.
func localpart(s string) string {
	if i := strings.IndexByte(s, ':'); i > 0 {
		return s[1:i]
	}
	return ""
}

func domain(s string) ServerName {
	if i := strings.IndexByte(s, ':'); i >= 0 {
		return ServerName(s[i+1:])
	}
	return ""
}

func tooLong(kind string) *Error {
	return InvalidParam("The %s is longer than %d bytes", kind, MaxIDLength)
}

// checkText checks length, UTF-8 (which leaves out surrogates) and NUL.
func checkText(s, kind string) error {
	if len(s) > MaxIDLength {
		return tooLong(kind)
	}
	if strings.IndexByte(s, 0) >= 0 || !utf8.ValidString(s) {
		return InvalidParam("The %s holds bytes that are not text", kind)
	}
	return nil
}

// checkDomained checks sigil, localpart and server name.
func checkDomained(s string, sigil byte, kind string) error {
	if len(s) == 0 || s[0] != sigil {
		return InvalidParam("The %s must start with '%c'", kind, sigil)
	}
	if err := checkText(s, kind); err != nil {
		return err
	}
	i := strings.IndexByte(s, ':')
	if i < 0 {
		return InvalidParam("The %s must have a ':' and a server name after it", kind)
	}
	if !validServerName(s[i+1:]) {
		return InvalidParam("The %s does not end in a valid server name", kind)
	}
	return nil
}

// checkOpaque checks an ID that may come without domain.
func checkOpaque(s string, sigil byte, kind string) error {
	if strings.IndexByte(s, ':') >= 0 {
		return checkDomained(s, sigil, kind)
	}
	if len(s) < 2 || s[0] != sigil {
		return InvalidParam("The %s must start with '%c' and go on after it", kind, sigil)
	}
	if len(s) > MaxIDLength {
		return tooLong(kind)
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '!' || s[i] > '~' {
			return InvalidParam("The %s without a server name must be graphic ASCII", kind)
		}
	}
	return nil
}
