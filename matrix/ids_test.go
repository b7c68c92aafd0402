package matrix

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// table runs a parser over what it must accept and refuse.
func table[T ~string](t *testing.T, parse func(string) (T, error), good, bad []string) {
	t.Helper()
	for _, s := range good {
		if id, err := parse(s); err != nil || string(id) != s {
			t.Errorf("%q: %q, %v", s, id, err)
		}
	}
	for _, s := range bad {
		if id, err := parse(s); !HasCode(err, "M_INVALID_PARAM") || id != "" {
			t.Errorf("%q passed: %q, %v", s, id, err)
		}
	}
}

var long = strings.Repeat("x", 300)

// spec: appendices#server-name
func TestServerName(t *testing.T) {
	table(t, ParseServerName, []string{
		"matrix.org", "matrix.org:8888", "1.2.3.4", "1.2.3.4:1234", "[1234:5678::abcd]", "[1234:5678::abcd]:5678",
		"localhost", "MATRIX.org", "a", "a-b.c", "xn--bcher-kva.example", "[::1]", "[::ffff:1.2.3.4]:1", "x:0", "x:65535", "x:00080", "1.2.3.4.5",
		"[ABCD::]", "a.org.", long[:255],
	}, []string{
		"", ".", "..", ".a", "a..b", ":", ":80", "a:", "a:123456", "a:b", "a:-1", "a:1:2", "a b", "a_b", "é.org", "a/b", "a?b", "@a", "[", "[]", "[:]", "[::1", "::1", "[::1]x", "[::1]:",
		"[1.2.3.4]", "[fe80::1%eth0]", "[g::]", "a\x00", "a\n", "[::1]]", "[0:0:0:0:0:0:0:0:0]", long[:256],
	})
	for _, v := range []struct {
		in, host string
		port     uint16
		hasPort  bool
		ip       string
	}{
		{"", "", 0, false, ""}, // the domain of an ID without one
		{"matrix.org", "matrix.org", 0, false, ""},
		{"matrix.org:8448", "matrix.org", 8448, true, ""},
		{"x:99999", "x", 0, true, ""},
		{"1.2.3.4:80", "1.2.3.4", 80, true, "1.2.3.4"},
		{"1.2.3.400", "1.2.3.400", 0, false, ""},
		{"010.0.0.1", "010.0.0.1", 0, false, "10.0.0.1"},
		{"1.2.3", "1.2.3", 0, false, ""},
		{"1.2.3.4.", "1.2.3.4.", 0, false, ""},
		{"1.2.3.", "1.2.3.", 0, false, ""},
		{"1.2.3.x", "1.2.3.x", 0, false, ""},
		{"1.2.3.-", "1.2.3.-", 0, false, ""},
		{"1.2.3.0004", "1.2.3.0004", 0, false, ""},
		{"[::1]", "[::1]", 0, false, "::1"},
		{"[2001:db8::1]:443", "[2001:db8::1]", 443, true, "2001:db8::1"},
	} {
		n := ServerName(v.in)
		port, ok := n.Port()
		ip, isIP := n.IP()
		var want netip.Addr
		if v.ip != "" {
			want = netip.MustParseAddr(v.ip)
		}
		if n.Host() != v.host || port != v.port || ok != (v.port != 0) || n.HasPort() != v.hasPort || ip != want || isIP != (v.ip != "") {
			t.Errorf("%s: host %q, port %d %v %v, IP %v %v", n, n.Host(), port, ok, n.HasPort(), ip, isIP)
		}
	}
}

// spec: appendices#user-identifiers
func TestUserID(t *testing.T) {
	table(t, ParseUserID, []string{
		"@alice:example.org", "@a.b_c=d-e/f+g:x", "@a:[::1]:80", "@Alice:x", "@a b:x", "@ü:x", "@:x", "@@:x", "@a\n:x", "@a#b!c:x", "@a:1.2.3.4",
		"@" + long[:252] + ":x",
	}, []string{
		"", "@", "@a", "a:x", "@a:", "@:", "@a:b:c", "@a\x00:x", "@\xff:x", "@\xed\xa0\x80:x", "#a:x", "@a:x y", "@a:[::1", "@" + long[:253] + ":x",
		"@" + strings.Repeat("é", 127) + ":x", // in bytes, not in characters
	})
	for _, v := range []struct {
		id                    UserID
		localpart             string
		server                ServerName
		historical, compliant bool
	}{
		{"@alice:example.org:80", "alice", "example.org:80", false, true},
		{"@a.b_c=d-e/f+g:[::1]", "a.b_c=d-e/f+g", "[::1]", false, true},
		{"@Alice:x", "Alice", "x", true, true},
		{"@a!~:x", "a!~", "x", true, true},
		{"@a b:x", "a b", "x", true, false},
		{"@ü:x", "ü", "x", true, false},
		{"@a\x7f:x", "a\x7f", "x", true, false},
		{"@:x", "", "x", true, false},
	} {
		if v.id.Localpart() != v.localpart || v.id.Server() != v.server || v.id.Historical() != v.historical || v.id.Compliant() != v.compliant {
			t.Errorf("%q: %q %q %v %v", v.id, v.id.Localpart(), v.id.Server(), v.id.Historical(), v.id.Compliant())
		}
		if id, err := NewUserID(v.localpart, v.server); (err == nil) == v.historical || err == nil && id != v.id {
			t.Errorf("NewUserID(%q): %q, %v", v.localpart, id, err)
		}
	}
	if _, err := NewUserID("a:b", "x"); err == nil {
		t.Error("a ':' in a localpart")
	}
	if _, err := NewUserID(long[:252], "x"); err != nil {
		t.Errorf("255 bytes: %v", err)
	}
	if _, err := NewUserID(long[:253], "x"); err == nil {
		t.Error("too long")
	}
}

// spec: appendices#mapping-from-other-character-sets
func TestEscapeLocalpart(t *testing.T) {
	for in, want := range map[string]string{"": "", "alice": "alice", "Alice": "alice", "#": "=23", "á": "=c3=a1", "a=b": "a=3db", "a.b_c-d/e+f": "a.b_c-d/e+f", "\x00 ": "=00=20"} {
		if got := EscapeLocalpart(in); got != want {
			t.Errorf("EscapeLocalpart(%q) = %q, want %q", in, got, want)
		}
	}
}

const hash = "Woq2vwLy8mNukf7e8oz61GxT5gpMmr_asNojhb56-wU"

// spec: appendices#room-ids
func TestRoomID(t *testing.T) {
	table(t, ParseRoomID, []string{
		"!abc:example.org", "!a b\n:x", "!é:[::1]:80", "!" + hash, "!" + long[:252] + ":x", "!opaque", "!@:x",
	}, []string{
		"", "!", "!a:", "!a:b:c", "a:x", "#a:x", "!\x00:x", "!\xff:x", "!a b", "!é", "!a\n", "!" + long[:253] + ":x", "!" + long[:255],
	})
	if r := RoomID("!a:x:80"); r.Server() != "x:80" || !r.HasServer() {
		t.Errorf("%q %v", r.Server(), r.HasServer())
	}
	if _, ok := RoomID("!a:x:80").CreateEventID(); ok {
		t.Error("a room ID with a domain does not name its create event")
	}
	r := RoomID("!" + hash)
	if e, ok := r.CreateEventID(); r.Server() != "" || r.HasServer() || !ok || e != "$"+hash || e.RoomID() != r {
		t.Errorf("%q: %q %v", r, e, ok)
	}
}

// spec: appendices#room-aliases
func TestRoomAlias(t *testing.T) {
	table(t, ParseRoomAlias, []string{"#a:x", "#a b!:x:80", "#é:x", "##a:x", "#" + long[:252] + ":x"},
		[]string{"", "#", "#a", "#:x", "#a:", "#a:b:c", "!a:x", "#a\x00:x", "#\xff:x", "#" + long[:253] + ":x"})
	if a := RoomAlias("#a b:x:80"); a.Localpart() != "a b" || a.Server() != "x:80" {
		t.Errorf("%q %q", a.Localpart(), a.Server())
	}
}

// spec: appendices#event-ids
func TestEventID(t *testing.T) {
	standard := "acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk"
	table(t, ParseEventID, []string{"$a:x", "$143273582443PhrSn:example.org", "$" + hash, "$" + standard, "$x", "$" + long[:254]},
		[]string{"", "$", "$a:", "$a:b:c", "!a:x", "a", "$a b", "$\x00", "$é", "$" + long[:255]})
	for _, v := range []struct {
		id                EventID
		standard, urlSafe bool
		server            ServerName
	}{
		{"$a:x:80", false, false, "x:80"},
		{"$" + EventID(hash), false, true, ""},
		{"$" + EventID(standard), true, false, ""},
		{"$" + EventID(hash[:42]), false, false, ""},
		{"$" + EventID(hash[:42]) + ".", false, false, ""},
		{"!" + EventID(hash), false, false, ""},
	} {
		if v.id.IsHash(false) != v.standard || v.id.IsHash(true) != v.urlSafe || v.id.Server() != v.server {
			t.Errorf("%q: %v %v %q", v.id, v.id.IsHash(false), v.id.IsHash(true), v.id.Server())
		}
	}
}

func TestDeviceAndKeyID(t *testing.T) {
	table(t, ParseDeviceID, []string{"A", "GHTYAJCE", "a b:é", long[:255]}, []string{"", "\x00", "\xff", long[:256]})
	table(t, ParseKeyID, []string{"ed25519:auto", "signed_curve25519:AAAAHQ", "ed25519:a/b+c", "ed25519:a:b", "x:y"},
		[]string{"", ":", "a", "a:", ":a", "a:\x00", "a:\xff", "a:" + long})
	for _, v := range []struct {
		id                    KeyID
		algorithm, identifier string
		server                bool
	}{
		{"ed25519:a_Z9", "ed25519", "a_Z9", true},
		{"ed25519:a-b", "ed25519", "a-b", false},
		{"ed25519:", "ed25519", "", false},
		{"ed25519", "ed25519", "", false},
		{"rsa:1", "rsa", "1", false},
		{"a:b:c", "a", "b:c", false},
	} {
		if v.id.Algorithm() != v.algorithm || v.id.Identifier() != v.identifier || v.id.ServerKey() != v.server {
			t.Errorf("%q: %q %q %v", v.id, v.id.Algorithm(), v.id.Identifier(), v.id.ServerKey())
		}
	}
}

func TestTimestamp(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 678_000_000, time.UTC)
	if ts := TimestampOf(at); ts != 1767323045678 || !ts.Time().Equal(at) {
		t.Errorf("%d %v", ts, ts.Time())
	}
}

func TestSortInTurn(t *testing.T) {
	names := []ServerName{"a.example", "b.example", "c.example", "d.example", "e.example"}
	seen := map[string]bool{}
	for _, who := range []string{"one", "two", "three", "four"} {
		sorted := slices.Clone(names)
		SortInTurn(sorted, who)
		again := slices.Clone(names)
		slices.Reverse(again)
		SortInTurn(again, who)
		if !slices.Equal(sorted, again) {
			t.Errorf("%v, and then %v", sorted, again)
		}
		seen[fmt.Sprint(sorted)] = true
	}
	if len(seen) < 3 {
		t.Errorf("everybody has the same order: %v", seen)
	}
}
