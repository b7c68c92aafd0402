// Package acl evaluates m.room.server_acl.
// spec: client-server-api#server-access-control-lists-acls-for-rooms
package acl

import (
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/glob"
)

// ACL is a compiled m.room.server_acl; nil allows every server.
type ACL struct {
	denyIPLiterals bool
	deny, allow    list
}

// Compile reads the content of an m.room.server_acl event, as canonical JSON. What
// has the wrong type counts as absent, entry by entry: a content without a
// usable `allow` denies everyone.
// spec: client-server-api#mroomserver_acl
func Compile(content []byte) *ACL {
	ipLiterals, isBool := canonicaljson.GetBool(content, "allow_ip_literals")
	return &ACL{
		denyIPLiterals: isBool && !ipLiterals,
		deny:           compileList(content, "deny"),
		allow:          compileList(content, "allow"),
	}
}

// Allows reports whether a server may take part in the room. Its port does not count.
func (a *ACL) Allows(server matrix.ServerName) bool {
	if a == nil {
		return true
	}
	if a.denyIPLiterals {
		if _, ip := server.IP(); ip {
			return false
		}
	}
	host := strings.ToLower(server.Host()) // MSC4436
	return !a.deny.matches(host) && a.allow.matches(host)
}

// list is one of the two lists. Real deny lists have thousands of entries, nearly
// all of them plain names or "*.name": these are looked up, the rest is tried in turn.
type list struct {
	all      bool                // "*"
	names    map[string]struct{} // without wildcards
	suffixes map[string]struct{} // "*.example.org" as ".example.org"
	globs    []glob.Glob
}

func compileList(content []byte, key string) list {
	l := list{names: map[string]struct{}{}, suffixes: map[string]struct{}{}}
	raw, _ := canonicaljson.Get(content, key)
	for element := range canonicaljson.Elements(raw) {
		pattern, ok := canonicaljson.String(element)
		if !ok {
			continue
		}
		pattern = strings.Clone(strings.ToLower(pattern)) // not to keep the event alive
		switch {
		case pattern == "*":
			l.all = true
		case !strings.ContainsAny(pattern, "*?"):
			l.names[pattern] = struct{}{}
		case strings.HasPrefix(pattern, "*.") && !strings.ContainsAny(pattern[1:], "*?"):
			l.suffixes[pattern[1:]] = struct{}{}
		default:
			l.globs = append(l.globs, glob.Compile(pattern, true))
		}
	}
	return l
}

// matches looks up a host in lower case.
func (l *list) matches(host string) bool {
	if l.all {
		return true
	}
	if _, ok := l.names[host]; ok {
		return true
	}
	if len(l.suffixes) > 0 {
		for i := range len(host) {
			if host[i] != '.' {
				continue
			}
			if _, ok := l.suffixes[host[i:]]; ok {
				return true
			}
		}
	}
	for _, g := range l.globs {
		if g.Match(host) {
			return true
		}
	}
	return false
}
