package config

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const minimal = "server:\n  name: example.org\n  listeners:\n    - address: 127.0.0.1:8008\n"

func TestDefaults(t *testing.T) {
	file := write(t, "hanok.yaml", minimal)
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(file)
	want := &Config{
		Server: Server{
			Name: "example.org", DataDir: filepath.Join(dir, "data"), SigningKey: filepath.Join(dir, "data", "signing.key"),
			Listeners: []Listener{{Address: "127.0.0.1:8008", MaxConnections: 10_000}},
		},
		Database: Database{URL: "sqlite:" + filepath.Join(dir, "data", "hanok.db")},
		Rooms:    Rooms{DefaultVersion: "12"},
		Privacy:  Privacy{Encryption: "required", UnencryptedUpload: 512 << 10},
		Push:     Push{Details: "none"},
		Media:    Media{MaxUpload: 100 << 20, MaxRemote: 100 << 20, MaxPixels: 40_000_000, RemoteMaxDays: 30},
		Notices:  Notices{Name: "Server Notices"},
		Limits:   Limits{MaxDelay: Duration(24 * time.Hour), MaxDelayedEvents: 100},
		TURN:     TURN{Lifetime: Duration(24 * time.Hour)},
		Log:      Log{Level: "info"},
	}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Error(diff)
	}
	if !c.Server.Listeners[0].Serves("client") || !c.Server.Listeners[0].Serves("federation") {
		t.Error("a listener without serve must serve both APIs")
	}
}

func TestMerge(t *testing.T) {
	file := write(t, "hanok.yaml", minimal+"registration:\n  open: true\n  tokens: [a, b]\n")
	over := write(t, "over.yaml", "registration:\n  tokens: [c]\nprivacy: {encryption: allowed}\nmedia: {max_upload: 3 MiB}\n")
	c, err := Load(file, over)
	if err != nil {
		t.Fatal(err)
	}
	if c.Push.Details != PushAll {
		t.Errorf("push.details: %q where encryption is not required", c.Push.Details)
	}
	if c.Server.Name != "example.org" || !c.Registration.Open || c.Privacy.Encryption != "allowed" || c.Media.MaxUpload != 3<<20 {
		t.Errorf("merged wrongly: %+v", c)
	}
	if diff := cmp.Diff([]string{"c"}, c.Registration.Tokens); diff != "" {
		t.Error("a list in the second file replaces that of the first:", diff)
	}
}

// TestBad holds a corpus of mistakes; each must be reported with its line and a way out.
func TestBad(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		want []string // parts of the message, all of which must appear
	}{
		"empty":        {"", []string{"server.name: is missing", "server.listeners: is missing", "as in example.org"}},
		"not yaml":     {"server: [", []string{"is not YAML"}},
		"typo":         {minimal + "registraton: {}\n", []string{"hanok.yaml:5: registraton: is not a known key", `Did you mean "registration"?`}},
		"stranger":     {minimal + "zzz: 1\n", []string{"zzz: is not a known key", "hanok config describe"}},
		"inner typo":   {minimal + "privacy:\n  log_ipp: true\n", []string{"hanok.yaml:6: privacy.log_ipp", `"log_ip"`}},
		"twice":        {minimal + "log: {}\nlog: {}\n", []string{"log: stands here twice"}},
		"bool":         {minimal + "registration: {open: maybe}\n", []string{`registration.open: must be true or false, not "maybe"`}},
		"number":       {minimal + "media: {max_pixels: many}\n", []string{`must be a whole number, not "many"`}},
		"size":         {minimal + "media: {max_upload: 5 bananas}\n", []string{`"5 bananas" is not a size`}},
		"duration":     {minimal + "turn: {lifetime: soon}\n", []string{`"soon" is not a time span`}},
		"list":         {minimal + "registration: {tokens: a}\n", []string{"registration.tokens: must be a list"}},
		"section":      {minimal + "log: debug\n", []string{"log: must hold keys and values"}},
		"name":         {strings.Replace(minimal, "example.org", "https://example.org", 1), []string{"is not a server name", "without https://"}},
		"address":      {strings.Replace(minimal, "127.0.0.1:8008", "8008", 1), []string{`server.listeners[0].address: "8008" is not an address`}},
		"port":         {strings.Replace(minimal, "8008", "99999", 1), []string{`"99999" is not a port`}},
		"half tls":     {minimal + "      tls_key: /dev/null\n", []string{"has only one of tls_certificate and tls_key"}},
		"no file":      {minimal + "      tls_key: no.pem\n      tls_certificate: no.crt\n", []string{"no.pem cannot be read", "no.crt cannot be read"}},
		"no client":    {minimal + "      serve: [federation]\n", []string{"none serves clients"}},
		"serve":        {minimal + "      serve: [client, gopher]\n", []string{`"gopher" is not known`, "client, federation"}},
		"room version": {minimal + "rooms: {default_version: newest}\n", []string{`rooms.default_version: "newest" is not a stable room version`}},
		"mode":         {minimal + "privacy: {encryption: off}\n", []string{`privacy.encryption: "off" is not known`, "required, default, allowed"}},
		"push":         {minimal + "push: {details: some, gateways: [\"https://push.example.org\"]}\n", []string{`push.details: "some" is not known`, "push.gateways[0]", "without https://"}},
		"database":     {minimal + "database: {url: mysql://x}\n", []string{`"mysql://x" is not a database`, "sqlite:PATH"}},
		"token":        {minimal + "registration: {tokens: [a b]}\n", []string{"registration.tokens[0]: is not a registration token"}},
		"connections":  {strings.Replace(minimal, "8008", "8008\n      max_connections: -1", 1), []string{"server.listeners[0].max_connections: cannot be negative"}},
		"metrics":      {minimal + "metrics: {address: 127.0.0.1:8008}\n", []string{"127.0.0.1:8008 is used by a listener"}},
		"turn":         {minimal + "turn: {uris: [\"turn:x\"]}\n", []string{"has uris but no credentials"}},
		"level":        {minimal + "log: {level: loud}\n", []string{`log.level: "loud" is not known`}},
		"two at once":  {minimal + "privacy: {encryption: no}\nlog: {level: loud}\n", []string{"privacy.encryption", "log.level"}},
		"two unknown":  {minimal + "a: 1\nb: 2\n", []string{"a: is not a known key", "b: is not a known key"}},
		"as directory": {minimal + "appservices: {directory: nowhere}\n", []string{"nowhere is not a folder"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Load(write(t, "hanok.yaml", tt.text))
			if err == nil {
				t.Fatal("was accepted")
			}
			for _, part := range tt.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("the message lacks %q:\n%s", part, err)
				}
			}
		})
	}
	if _, err := Load(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "hanok quickstart") {
		t.Errorf("a missing file must point to quickstart: %v", err)
	}
}

// TestDescribe: what describe prints is a valid file, with every key in it.
func TestDescribe(t *testing.T) {
	var b bytes.Buffer
	if err := Describe(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(write(t, "hanok.yaml", b.String())); err != nil {
		t.Errorf("describe prints a file with mistakes: %v\n%s", err, b.String())
	}
	var uncommented strings.Builder
	for line := range strings.Lines(b.String()) {
		trimmed := strings.TrimLeft(line, " ")
		if rest, ok := strings.CutPrefix(trimmed, "# "); ok {
			key, _, _ := strings.Cut(rest, ":")
			if !strings.ContainsAny(key, " .,") && strings.Contains(rest, ": ") && key == strings.ToLower(key) {
				line = line[:len(line)-len(trimmed)] + rest
			}
		}
		uncommented.WriteString(line)
	}
	var walk func(reflect.Type)
	walk = func(typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			if f.Tag.Get("yaml") == "-" {
				continue
			}
			if f.Tag.Get("doc") == "" {
				t.Errorf("%s.%s has no doc", typ, f.Name)
			}
			if !strings.Contains(uncommented.String(), f.Tag.Get("yaml")+":") {
				t.Errorf("describe leaves out %s.%s", typ, f.Name)
			}
			switch f.Type.Kind() {
			case reflect.Struct:
				walk(f.Type)
			case reflect.Slice:
				if f.Type.Elem().Kind() == reflect.Struct {
					walk(f.Type.Elem())
				}
			}
		}
	}
	walk(reflect.TypeFor[Config]())
}

func TestValuesRoundTrip(t *testing.T) {
	for _, s := range []string{"1 KiB", "100 MiB", "3 GiB", "1000"} {
		var b Bytes
		if err := b.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if out, _ := b.MarshalText(); string(out) != s {
			t.Errorf("%q came back as %q", s, out)
		}
	}
	for _, s := range []string{"7d", "1m30s"} {
		var d Duration
		if err := d.UnmarshalText([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if out, _ := d.MarshalText(); string(out) != s {
			t.Errorf("%q came back as %q", s, out)
		}
	}
}
