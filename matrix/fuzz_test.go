package matrix

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzIDs holds that whatever is accepted is text within the limits and is put
// together from its parts again.
func FuzzIDs(f *testing.F) {
	for _, s := range []string{"@alice:example.org:80", "!a:[::1]", "!" + hash, "#é:x", "$a:1.2.3.4", "$" + hash, "ed25519:auto", "@:x", "[::1]:80", "256.1.1.1",
		"mxc://a/b", "matrix:u/a:b?action=chat", "matrix:roomid/a:b/e/c?via=d", "https://matrix.to/#/!a:b/$c/d?via=x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		text := func(err error) bool {
			if err == nil && (len(s) > MaxIDLength || !utf8.ValidString(s) || strings.ContainsRune(s, 0)) {
				t.Errorf("accepted %q", s)
			}
			return err == nil
		}
		server := func(n ServerName) {
			if again, err := ParseServerName(string(n)); err != nil || again != n {
				t.Errorf("%q has the server name %q: %v", s, n, err)
			}
		}
		if n, err := ParseServerName(s); err == nil {
			port, dialable := n.Port()
			if n.HasPort() != (n.Host() != s) || dialable && !n.HasPort() || !dialable && port != 0 {
				t.Errorf("%q: host %q, port %d", s, n.Host(), port)
			}
			if ip, ok := n.IP(); ok != ip.IsValid() || n.Host()[0] == '[' && !ip.Is6() {
				t.Errorf("%q: IP %v", s, ip)
			}
			if strings.ContainsAny(n.Host(), "/\\@?#% ") || n.Host() == ".." {
				t.Errorf("host %q", n.Host())
			}
		}
		if u, err := ParseUserID(s); text(err) {
			server(u.Server())
			if "@"+u.Localpart()+":"+string(u.Server()) != s || !u.Historical() && !u.Compliant() {
				t.Errorf("user ID %q", s)
			}
			escaped, err := NewUserID(EscapeLocalpart("x"+u.Localpart()), "x")
			if err != nil && len(escaped) == 0 && 3*len(s) < MaxIDLength {
				t.Errorf("%q escaped: %v", s, err)
			}
		}
		if r, err := ParseRoomID(s); text(err) {
			if r.HasServer() {
				server(r.Server())
			} else if id, ok := r.CreateEventID(); !ok || id.RoomID() != r {
				t.Errorf("room ID %q: %q", s, id)
			}
		}
		if a, err := ParseRoomAlias(s); text(err) {
			server(a.Server())
			if "#"+a.Localpart()+":"+string(a.Server()) != s {
				t.Errorf("alias %q", s)
			}
		}
		if e, err := ParseEventID(s); text(err) && e.Server() != "" {
			server(e.Server())
		}
		if _, err := ParseDeviceID(s); text(err) && s == "" {
			t.Error("empty device ID")
		}
		if k, err := ParseKeyID(s); text(err) && k.Algorithm()+":"+k.Identifier() != s {
			t.Errorf("key ID %q", s)
		}
		if u, err := ParseContentURI(s); err == nil && u.String() != s {
			t.Errorf("content URI %q: %q", s, u)
		}
		if l, err := ParseLink(s); err == nil {
			for _, form := range []string{l.URI(), l.MatrixTo()} {
				again, err := ParseLink(form)
				if again.Action = l.Action; err != nil || again.URI() != l.URI() {
					t.Errorf("%q became %s, then %+v, %v", s, form, again, err)
				}
			}
		}
	})
}
