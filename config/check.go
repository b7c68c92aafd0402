package config

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

func cutSQLite(dsn string) (path string, ok bool) { return strings.CutPrefix(dsn, "sqlite:") }

// check finds what the types cannot: values that make no sense, alone or together.
func (c *Config) check() Problems {
	var ps Problems
	bad := func(key, hint, format string, args ...any) {
		ps = append(ps, Problem{Key: key, Text: fmt.Sprintf(format, args...), Hint: hint})
	}
	oneOf := func(key, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			bad(key, "Choose one of: "+strings.Join(allowed, ", ")+".", "%q is not known", value)
		}
	}
	file := func(key, path string) {
		if path == "" {
			return
		}
		f, err := os.Open(path)
		if err != nil {
			bad(key, "Give the path of a file that the user running hanok may read.", "%s cannot be read", path)
			return
		}
		f.Close()
	}

	switch name := c.Server.Name; {
	case name == "":
		bad("server.name", "Set it to the domain of your user IDs, as in example.org.", "is missing")
	case !validServerName(name):
		bad("server.name", "Write a host name with an optional port, as in example.org, without https:// or path.", "%q is not a server name", name)
	}
	webAddress := func(key, example, u string) {
		if parsed, err := url.Parse(u); err != nil || parsed.Host == "" || (parsed.Scheme != "https" && parsed.Scheme != "http") {
			bad(key, "Write it as in "+example+".", "%q is not an http(s) URL", u)
		}
	}
	if u := c.Server.PublicBaseURL; u != "" {
		webAddress("server.public_base_url", "https://matrix.example.org", u)
	}
	for i, u := range c.RTC.LiveKitServiceURLs {
		webAddress(fmt.Sprintf("rtc.livekit_service_urls[%d]", i), "https://matrix-rtc.example.org/livekit/jwt", u)
	}
	if n := c.Server.FederationName; n != "" && !validServerName(n) {
		bad("server.federation_name", "Write it as in matrix.example.org:443.", "%q is not a host and port", n)
	}

	if len(c.Server.Listeners) == 0 {
		bad("server.listeners", "Add one, as in '- address: 127.0.0.1:8008'.", "is missing: nothing would be served")
	} else if !slices.ContainsFunc(c.Server.Listeners, func(l Listener) bool { return l.Serves("client") }) {
		bad("server.listeners", "Add client to one listener's serve.", "none serves clients")
	}
	addresses := map[string]bool{}
	for i, l := range c.Server.Listeners {
		key := fmt.Sprintf("server.listeners[%d]", i)
		checkAddress(bad, key+".address", l.Address)
		if l.Address != "" && addresses[l.Address] {
			bad(key+".address", "Let one listener serve both: serve: [client, federation].", "%s is used by another listener", l.Address)
		}
		addresses[l.Address] = true
		for _, s := range l.Serve {
			oneOf(key+".serve", s, "client", "federation")
		}
		if (l.TLSCertificate == "") != (l.TLSKey == "") {
			bad(key, "Give both files, or none for plain HTTP.", "has only one of tls_certificate and tls_key")
		}
		if l.MaxConnections < 0 {
			bad(key+".max_connections", "Leave it out for the default.", "cannot be negative")
		}
		file(key+".tls_certificate", l.TLSCertificate)
		file(key+".tls_key", l.TLSKey)
	}
	if c.Metrics.Address != "" {
		checkAddress(bad, "metrics.address", c.Metrics.Address)
		if addresses[c.Metrics.Address] {
			bad("metrics.address", "Metrics need a port of their own, which outsiders cannot reach.", "%s is used by a listener", c.Metrics.Address)
		}
	}

	if u := c.Database.URL; !strings.HasPrefix(u, "postgres://") && !strings.HasPrefix(u, "postgresql://") {
		if path, ok := cutSQLite(u); !ok || path == "" {
			bad("database.url", "Write sqlite:PATH or postgres://USER:PASSWORD@HOST/NAME.", "%q is not a database", u)
		}
	}
	for i, t := range c.Registration.Tokens {
		if !validToken(t) {
			bad(fmt.Sprintf("registration.tokens[%d]", i), "Use 1 to 64 of A-Z a-z 0-9 . _ ~ and -.", "is not a registration token")
		}
	}
	if v, ok := roomversion.Get(roomversion.ID(c.Rooms.DefaultVersion)); !ok || !v.Stable {
		bad("rooms.default_version", "Leave it out for the one that is recommended, or write a number from 1 to 12 in quotes.", "%q is not a stable room version", c.Rooms.DefaultVersion)
	}
	oneOf("privacy.encryption", c.Privacy.Encryption, EncryptionRequired, EncryptionDefault, EncryptionAllowed)
	oneOf("push.details", c.Push.Details, PushNone, PushMetadata, PushAll)
	for i, g := range c.Push.Gateways {
		if g == "" || strings.ContainsAny(g, "/ ") {
			bad(fmt.Sprintf("push.gateways[%d]", i), "Write a host name, as in push.example.org, without https:// or path.", "%q is not a host", g)
		}
	}
	for i, name := range c.Federation.TrustedNotaries {
		if !validServerName(name) {
			bad(fmt.Sprintf("federation.trusted_notaries[%d]", i), "Write it as in matrix.org.", "%q is not a server name", name)
		}
	}
	for i, f := range c.Federation.TrustedCAFiles {
		file(fmt.Sprintf("federation.trusted_ca_files[%d]", i), f)
	}
	if c.Media.MaxPixels < 0 || c.Media.RemoteMaxDays < 0 {
		bad("media", "Leave them out for the default.", "max_pixels and remote_max_days cannot be negative")
	}
	if c.Limits.MaxDelayedEvents < 0 {
		bad("limits.max_delayed_events", "Leave it out for the default.", "cannot be negative")
	}
	if d := c.Appservices.Directory; d != "" {
		if info, err := os.Stat(d); err != nil || !info.IsDir() {
			bad("appservices.directory", "Make the folder, or leave the key out.", "%s is not a folder", d)
		} else {
			ps = append(ps, c.loadRegistrations()...)
		}
	}
	if l := c.Notices.Localpart; l != "" {
		if _, err := matrix.NewUserID(l, matrix.ServerName(c.Server.Name)); err != nil {
			bad("server_notices.localpart", "Write the part before the colon, as in _server.", "%q cannot be part of a user ID", l)
		}
	}
	if a := c.Notices.Avatar; a != "" && !strings.HasPrefix(a, "mxc://") {
		bad("server_notices.avatar", "Upload the picture with a client and write its mxc:// address.", "%q is no mxc: URI", a)
	}
	if c.TURN.SharedSecret != "" && c.TURN.Username != "" {
		bad("turn", "Keep the one that your TURN server uses.", "has both shared_secret and username")
	}
	if len(c.TURN.URIs) > 0 && c.TURN.SharedSecret == "" && c.TURN.Username == "" {
		bad("turn", "Set shared_secret to the TURN server's static-auth-secret.", "has uris but no credentials")
	}
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	if c.Log.Format != "" {
		oneOf("log.format", c.Log.Format, "json", "text")
	}
	return ps
}

func checkAddress(bad func(key, hint, format string, args ...any), key, address string) {
	const hint = "Write an IP and a port, as in 127.0.0.1:8008, or :8448 for every address."
	if address == "" {
		bad(key, hint, "is missing")
		return
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		bad(key, hint, "%q is not an address", address)
		return
	}
	if host != "" && net.ParseIP(host) == nil && host != "localhost" {
		bad(key, hint, "%q is not an IP address", host)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n > 65535 {
		bad(key, hint, "%q is not a port", port)
	}
}

func validServerName(name string) bool {
	_, err := matrix.ParseServerName(name)
	return err == nil
}

// validToken is the grammar of registration tokens.
// spec: client-server-api#token-authenticated-registration
func validToken(t string) bool {
	if t == "" || len(t) > 64 {
		return false
	}
	for _, r := range t {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._~-", r) {
			return false
		}
	}
	return true
}
