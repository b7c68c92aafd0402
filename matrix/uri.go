package matrix

import (
	"net/url"
	"strings"
)

// ContentURI is an mxc:// URI taken apart.
// spec: client-server-api#matrix-content-mxc-uris
type ContentURI struct {
	Server  ServerName
	MediaID string
}

// ParseContentURI reads "mxc://server/mediaID" and refuses what could lead a
// server to other files or hosts than meant.
// spec: client-server-api#content-repo-security-considerations
func ParseContentURI(s string) (ContentURI, error) {
	rest, ok := strings.CutPrefix(s, "mxc://")
	server, id, found := strings.Cut(rest, "/")
	if !ok || !found || !validServerName(server) || !ValidMediaID(id) {
		return ContentURI{}, InvalidParam("Not a valid mxc:// URI")
	}
	return ContentURI{ServerName(server), id}, nil
}

// ValidMediaID reports whether s has only the characters of a media ID: A-Z, a-z, 0-9, '_' and '-'.
func ValidMediaID(s string) bool {
	for i := range len(s) {
		if !mediaIDChar[s[i]] {
			return false
		}
	}
	return s != "" && len(s) <= MaxIDLength
}

var mediaIDChar = charset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")

func (u ContentURI) String() string { return "mxc://" + string(u.Server) + "/" + u.MediaID }

// Link is what a matrix: or matrix.to URI refers to: one of User, Alias and Room,
// and an event of the room perhaps. spec: appendices#uris
type Link struct {
	User   UserID
	Alias  RoomAlias
	Room   RoomID
	Event  EventID
	Via    []ServerName // servers that may know of it
	Action string       // "join", "chat", another or ""
}

const matrixTo = "https://matrix.to/#/"

// ParseLink reads a URI of either form. Unknown query items, and `via` items that
// are no server names, are left out.
// spec: appendices#matrix-uri-scheme, appendices#matrixto-navigation
func ParseLink(s string) (Link, error) {
	if len(s) > 7 && strings.EqualFold(s[:7], "matrix:") {
		return parseMatrixURI(s[7:])
	}
	if rest, ok := strings.CutPrefix(s, matrixTo); ok {
		return parseMatrixTo(rest)
	}
	return Link{}, errLink
}

var errLink = InvalidParam("Not a valid matrix: or matrix.to URI")

// parseMatrixURI reads what follows "matrix:".
func parseMatrixURI(s string) (Link, error) {
	s, _, _ = strings.Cut(s, "#") // a fragment has no meaning yet
	path, query, _ := strings.Cut(s, "?")
	if rest, ok := strings.CutPrefix(path, "//"); ok { // nor has an authority
		_, path, _ = strings.Cut(rest, "/")
	}
	segments := strings.Split(path, "/")
	if len(segments) != 2 && len(segments) != 4 {
		return Link{}, errLink
	}
	for i, segment := range segments {
		decoded, err := url.PathUnescape(segment)
		if err != nil {
			return Link{}, errLink
		}
		segments[i] = decoded
	}
	sigil := map[string]string{"u": "@", "user": "@", "r": "#", "room": "#", "roomid": "!"}[segments[0]]
	event := ""
	if len(segments) == 4 {
		if segments[2] != "e" && segments[2] != "event" {
			return Link{}, errLink
		}
		event = "$" + segments[3]
	}
	if sigil == "" {
		return Link{}, errLink
	}
	return newLink(sigil+segments[1], event, query)
}

// parseMatrixTo reads what follows "https://matrix.to/#/". Event IDs of room
// version 3 have slashes, which not every client encodes.
func parseMatrixTo(s string) (Link, error) {
	path, query, _ := strings.Cut(s, "?")
	id, event, _ := strings.Cut(path, "/")
	id, err := url.PathUnescape(id)
	if err != nil {
		return Link{}, errLink
	}
	event, err = url.PathUnescape(event)
	if err != nil {
		return Link{}, errLink
	}
	return newLink(id, event, query)
}

func newLink(id, event, query string) (l Link, err error) {
	switch id, rest := id, strings.TrimLeft(id, "@#!"); {
	case rest == id || rest == "":
		return Link{}, errLink
	case id[0] == '@':
		l.User, err = ParseUserID(id)
	case id[0] == '#':
		l.Alias, err = ParseRoomAlias(id)
	default:
		l.Room, err = ParseRoomID(id)
	}
	if err == nil && event != "" {
		if l.User != "" {
			return Link{}, errLink
		}
		l.Event, err = ParseEventID(event)
	}
	if err != nil {
		return Link{}, err
	}
	items, err := url.ParseQuery(query)
	if err != nil {
		return Link{}, errLink
	}
	l.Action = items.Get("action")
	for _, via := range items["via"] {
		if validServerName(via) {
			l.Via = append(l.Via, ServerName(via))
		}
	}
	return l, nil
}

// URI is the link as a matrix: URI.
func (l Link) URI() string {
	var path string
	switch {
	case l.User != "":
		path = "u/" + escapeSegment(string(l.User[1:]))
	case l.Alias != "":
		path = "r/" + escapeSegment(string(l.Alias[1:]))
	case l.Room != "":
		path = "roomid/" + escapeSegment(string(l.Room[1:]))
	}
	if l.Event != "" {
		path += "/e/" + escapeSegment(string(l.Event[1:]))
	}
	return "matrix:" + path + l.query(true)
}

// MatrixTo is the link as a matrix.to URI, which has no place for an action.
func (l Link) MatrixTo() string {
	path := escapeSegment(string(l.User) + string(l.Alias) + string(l.Room))
	if l.Event != "" {
		path += "/" + escapeSegment(string(l.Event))
	}
	return matrixTo + path + l.query(false)
}

func (l Link) query(action bool) string {
	var items []string
	if action && l.Action != "" {
		items = append(items, "action="+url.QueryEscape(l.Action))
	}
	for _, via := range l.Via {
		items = append(items, "via="+escapeSegment(string(via)))
	}
	if items == nil {
		return ""
	}
	return "?" + strings.Join(items, "&")
}

// escapeSegment leaves '!', '@', '$' and ':' readable, as the specification's examples have them.
func escapeSegment(s string) string {
	return strings.ReplaceAll(url.PathEscape(s), "%21", "!")
}
