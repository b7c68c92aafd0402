package matrix

import (
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// ParseServerName checks the grammar of a server name: hostname, IPv4 or
// bracketed IPv6 literal, and an optional port of one to five digits.
// spec: appendices#server-name
func ParseServerName(s string) (ServerName, error) {
	if !validServerName(s) {
		return "", InvalidParam("Not a valid server name: a host name or IP literal is needed, with an optional port")
	}
	return ServerName(s), nil
}

// Host is the name without its port; IPv6 literals keep their brackets.
func (n ServerName) Host() string {
	host, _ := splitPort(string(n))
	return host
}

// Port is the explicit port; ok is false when there is none, or none that can be dialled.
func (n ServerName) Port() (port uint16, ok bool) {
	_, digits := splitPort(string(n))
	p, err := strconv.ParseUint(digits, 10, 16)
	if err != nil {
		return 0, false
	}
	return uint16(p), true
}

// HasPort reports whether the name has an explicit port.
func (n ServerName) HasPort() bool {
	_, port := splitPort(string(n))
	return port != ""
}

// IP returns the address if the host is an IPv4 or IPv6 literal.
func (n ServerName) IP() (addr netip.Addr, ok bool) {
	host := n.Host()
	if len(host) > 1 && host[0] == '[' {
		addr, err := netip.ParseAddr(host[1 : len(host)-1])
		return addr, err == nil
	}
	return ipv4Literal(host)
}

// ipv4Literal reads four decimal numbers of 0 to 255. Unlike netip it lets
// leading zeros pass, because the grammar does: 010.0.0.1 is an IP literal for
// ACLs, and decimal.
func ipv4Literal(s string) (netip.Addr, bool) {
	var ip [4]byte
	for i := range ip {
		part, rest, more := strings.Cut(s, ".")
		if more != (i < 3) || len(part) == 0 || len(part) > 3 {
			return netip.Addr{}, false
		}
		n := 0
		for j := range len(part) {
			if part[j] < '0' || part[j] > '9' {
				return netip.Addr{}, false
			}
			n = n*10 + int(part[j]-'0')
		}
		if n > 255 {
			return netip.Addr{}, false
		}
		ip[i] = byte(n)
		s = rest
	}
	return netip.AddrFrom4(ip), true
}

// splitPort splits at the ':' after the host; port is "" when there is none.
func splitPort(s string) (host, port string) {
	end := 0
	if len(s) > 0 && s[0] == '[' {
		end = strings.IndexByte(s, ']') + 1
	}
	if i := strings.IndexByte(s[end:], ':'); i >= 0 {
		return s[:end+i], s[end+i+1:]
	}
	return s, ""
}

func validServerName(s string) bool {
	if s == "" {
		return false
	}
	if s[0] == '[' {
		end := strings.IndexByte(s, ']')
		return end > 0 && validIPv6(s[1:end]) && validPort(s[end+1:])
	}
	i := 0
	for i < len(s) && dnsChar[s[i]] {
		i++
	}
	// Labels are not empty, except for the root's: no host is called "..".
	if i == 0 || i > 255 || s[0] == '.' || strings.Contains(s[:i], "..") {
		return false
	}
	return validPort(s[i:])
}

// validPort checks what follows the host: nothing, or ':' and one to five digits.
func validPort(s string) bool {
	if s == "" {
		return true
	}
	if s[0] != ':' || len(s) < 2 || len(s) > 6 {
		return false
	}
	for i := 1; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

func validIPv6(s string) bool {
	if len(s) < 2 || len(s) > 45 || strings.IndexByte(s, '%') >= 0 {
		return false
	}
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Is6()
}

var dnsChar = charset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-.")

// SortInTurn puts servers into an order that has to do with their names and with who asks, and about what, alone: it is the same each
// time, so that what happens can be repeated, but not everybody turns to the same ones first.
func SortInTurn(servers []ServerName, who ...string) {
	type turn struct {
		place  uint64
		server ServerName
	}
	turns := make([]turn, len(servers))
	for i, s := range servers {
		h := fnv.New64a()
		for _, part := range append(who[:len(who):len(who)], string(s)) {
			h.Write([]byte(part))
			h.Write([]byte{0})
		}
		turns[i] = turn{h.Sum64(), s}
	}
	slices.SortFunc(turns, func(a, b turn) int {
		return cmp.Or(cmp.Compare(a.place, b.place), cmp.Compare(a.server, b.server))
	})
	for i, t := range turns {
		servers[i] = t.server
	}
}
