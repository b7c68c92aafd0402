package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// loadWith loads a configuration with registration files.
func loadWith(t *testing.T, files map[string]string) (*Config, error) {
	t.Helper()
	file := write(t, "hanok.yaml", minimal+"appservices: {directory: services}\nserver_notices: {localpart: _server}\n")
	dir := filepath.Join(filepath.Dir(file), "services")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return Load(file)
}

// registration is a file without mistakes.
const registration = `
id: irc
url: http://127.0.0.1:1234/path/
as_token: as
hs_token: hs
sender_localpart: _irc_bot
rate_limited: true
protocols: [irc]
receive_ephemeral: true
io.example.setting: {of: [somebody, else]}
namespaces:
  users:
    - {exclusive: true, regex: '@_irc_.*', group_id: "+x:y"}
    - {regex: '@a|@b'}
  rooms: null
`

func TestRegistrations(t *testing.T) {
	c, err := loadWith(t, map[string]string{
		"irc.yaml": registration,
		"mute.yml": "id: 7\nurl: null\nas_token: 8\nhs_token: 9\nsender_localpart: Mute\nnamespaces: {}\nde.sorunome.msc2409.push_ephemeral: true\n",
		"notes.md": "not one",
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Appservices.Registrations) != 2 {
		t.Fatalf("%d registrations", len(c.Appservices.Registrations))
	}
	irc, mute := c.Appservices.Registrations[0], c.Appservices.Registrations[1]
	if irc.ID != "irc" || irc.URL != "http://127.0.0.1:1234/path" || irc.ASToken != "as" || irc.HSToken != "hs" || irc.Sender != "@_irc_bot:example.org" ||
		!irc.RateLimited || len(irc.Protocols) != 1 || irc.Ephemeral != EphemeralStable || len(irc.Users) != 2 || !irc.Users[0].Exclusive || irc.Users[1].Exclusive {
		t.Errorf("%+v", irc)
	}
	// A match begins where the ID does, and need not end there.
	for id, want := range map[string]bool{"@_irc_x:example.org": true, "x@_irc_x:example.org": false} {
		if irc.Users[0].Pattern.MatchString(id) != want {
			t.Errorf("%s matches: %v", id, !want)
		}
	}
	if irc.Users[1].Pattern.MatchString("x@b:example.org") || !irc.Users[1].Pattern.MatchString("@b:example.org") {
		t.Error("only the first alternative is bound to the beginning")
	}
	if mute.ID != "7" || mute.URL != "" || mute.ASToken != "8" || mute.Sender != "@Mute:example.org" || mute.RateLimited || mute.Ephemeral != EphemeralUnstable {
		t.Errorf("%+v", mute)
	}
}

// TestBadRegistrations holds mistakes that must be reported, all of a set of files at once.
func TestBadRegistrations(t *testing.T) {
	change := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(registration) }
	for name, tt := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"no yaml":   {map[string]string{"a.yaml": "id: ["}, []string{"a.yaml: is not YAML"}},
		"no object": {map[string]string{"a.yaml": "[]"}, []string{"must hold keys and values"}},
		"wrong shape": {map[string]string{"a.yaml": change("receive_ephemeral: true", "receive_ephemeral: sometimes", "[irc]", "irc")},
			[]string{"a.yaml:9: receive_ephemeral: must be true or false", "protocols: must be a list"}},
		"empty": {map[string]string{"a.yaml": ""}, []string{"id: is missing", "as_token: is missing", "hs_token: is missing", "sender_localpart: is missing", "namespaces: is missing"}},
		"values": {map[string]string{"a.yaml": change("http://127.0.0.1:1234/path/", "ftp://x", "_irc_bot", "'a b'", "as_token: as", "as_token: 'a s'")},
			[]string{`url: "ftp://x" is not an http(s) URL`, `sender_localpart: "a b" cannot be part`, "as_token: has characters"}},
		"notices": {map[string]string{"a.yaml": change("_irc_bot", "_server")}, []string{"sender_localpart: is the account of server_notices"}},
		"all":     {map[string]string{"a.yaml": change("@_irc_.*", "@.*")}, []string{"namespaces.users: take in the account of server_notices"}},
		"regex": {map[string]string{"a.yaml": change("@_irc_.*", "@(?!x)", "@a|@b", strings.Repeat("x", 3000))},
			[]string{"namespaces.users[0].regex: is not a regular expression: invalid or unsupported Perl syntax", "RE2", "namespaces.users[1].regex: is longer than 2000 bytes"}},
		"huge regex": {map[string]string{"a.yaml": change("@_irc_.*", "(x{1000}){1000}")}, []string{"namespaces.users[0].regex: is not a regular expression"}},
		"no regex":   {map[string]string{"a.yaml": change("regex: '@a|@b'", "exclusive: true")}, []string{"namespaces.users[1].regex: is missing"}},
		"twice": {map[string]string{"a.yaml": registration, "b.yaml": registration},
			[]string{"b.yaml: id: is the same as in ", "b.yaml: as_token: is the same", "b.yaml: sender_localpart: is the same"}},
		"several": {map[string]string{"a.yaml": change("id: irc", ""), "b.yaml": change("hs_token: hs", "", "id: irc", "id: other")}, []string{"a.yaml: id: is missing", "b.yaml: hs_token: is missing"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadWith(t, tt.files)
			if err == nil {
				t.Fatal("no mistake was found")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is missing from:\n%v", want, err)
				}
			}
		})
	}
}
