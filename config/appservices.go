package config

import (
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"hanok/matrix"
)

// Appservice is an application service, as its registration file describes it. spec: application-service-api#registration
type Appservice struct {
	File    string
	ID      string
	URL     string // without a slash at the end; "": nothing is ever sent to it
	ASToken string // the service shows it to us
	HSToken string // we show it to the service
	Sender  matrix.UserID

	Users, Aliases, Rooms []Namespace

	RateLimited bool // those as whom it acts have rate limits
	Protocols   []string
	Ephemeral   Ephemeral
}

// Namespace are the identifiers that a regular expression matches from their beginning on, as in other servers: an ID may go on after it.
type Namespace struct {
	Pattern   *regexp.Regexp
	Exclusive bool
}

// Ephemeral says whether a service is told of typing, receipts and presence, and under which name.
type Ephemeral int

const (
	EphemeralNone     Ephemeral = iota
	EphemeralStable             // spec: application-service-api#pushing-ephemeral-data
	EphemeralUnstable           // for services from before that was specified. spec: MSC2409
)

// Limits of registrations.
const (
	maxRegistrations    = 1000
	maxRegistrationFile = 1 << 20 // bytes
	maxNamespaces       = 1000    // of one kind
	maxRegexLength      = 2000    // bytes
)

// registrationFile is what a registration file may hold. Keys that are not here are for others: services keep their own settings there.
type registrationFile struct {
	ID         string            `yaml:"id"`
	URL        string            `yaml:"url"`
	ASToken    string            `yaml:"as_token"`
	HSToken    string            `yaml:"hs_token"`
	Localpart  string            `yaml:"sender_localpart"`
	Namespaces *namespacesOfFile `yaml:"namespaces"`
	Limited    bool              `yaml:"rate_limited"`
	Protocols  []string          `yaml:"protocols"`
	Ephemeral  bool              `yaml:"receive_ephemeral"`
	// What bridges wrote before there was receive_ephemeral.
	PushEphemeral     bool `yaml:"push_ephemeral"`
	UnstableEphemeral bool `yaml:"de.sorunome.msc2409.push_ephemeral"`
}

type namespacesOfFile struct {
	Users   []namespaceOfFile `yaml:"users"`
	Aliases []namespaceOfFile `yaml:"aliases"`
	Rooms   []namespaceOfFile `yaml:"rooms"`
}

type namespaceOfFile struct {
	Regex     string `yaml:"regex"`
	Exclusive bool   `yaml:"exclusive"`
}

// loadRegistrations reads all registration files and checks them, each and against each other.
func (c *Config) loadRegistrations() Problems {
	var ps Problems
	dir := c.Appservices.Directory
	entries, err := os.ReadDir(dir)
	if err != nil {
		return Problems{{Key: "appservices.directory", Text: dir + " cannot be read", Hint: "Let the user that runs hanok read it."}}
	}
	c.Appservices.Registrations = nil
	seen := map[string]string{} // what must be unique, to the file that has it
	for _, entry := range entries {
		if ext := filepath.Ext(entry.Name()); entry.IsDir() || ext != ".yaml" && ext != ".yml" {
			continue
		}
		if len(c.Appservices.Registrations) == maxRegistrations {
			return append(ps, Problem{Key: "appservices.directory", Text: fmt.Sprintf("has more than %d registration files", maxRegistrations)})
		}
		reg, problems := c.loadRegistration(filepath.Join(dir, entry.Name()))
		ps = append(ps, problems...)
		for _, unique := range []struct{ key, value string }{{"id", reg.ID}, {"as_token", reg.ASToken}, {"sender_localpart", string(reg.Sender)}} {
			if unique.value == "" {
				continue // said already
			}
			if other := seen[unique.key+" "+unique.value]; other != "" {
				ps = append(ps, Problem{File: reg.File, Key: unique.key, Text: "is the same as in " + other, Hint: "Every application service needs its own."})
			}
			seen[unique.key+" "+unique.value] = reg.File
		}
		c.Appservices.Registrations = append(c.Appservices.Registrations, reg)
	}
	return ps
}

func (c *Config) loadRegistration(file string) (Appservice, Problems) {
	reg := Appservice{File: file}
	data, err := readAtMost(file, maxRegistrationFile)
	if err != nil {
		return reg, Problems{{File: file, Text: err.Error(), Hint: "Let the user that runs hanok read the file that the application service made."}}
	}
	var raw registrationFile
	d := decoder{file: file, lenient: true}
	d.document(data, &raw)
	if len(d.problems) > 0 {
		return reg, d.problems
	}
	bad := func(key, hint, format string, args ...any) { d.problem(nil, key, fmt.Sprintf(format, args...), hint) }

	for _, required := range []struct{ key, value string }{{"id", raw.ID}, {"as_token", raw.ASToken}, {"hs_token", raw.HSToken}, {"sender_localpart", raw.Localpart}} {
		if required.value == "" {
			bad(required.key, "Take the file as the application service made it.", "is missing")
		}
	}
	reg.ID, reg.ASToken, reg.HSToken = raw.ID, raw.ASToken, raw.HSToken
	for key, token := range map[string]string{"as_token": raw.ASToken, "hs_token": raw.HSToken} {
		if strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
			bad(key, "Use letters, digits and punctuation of ASCII.", "has characters that cannot be in an HTTP header")
		}
	}
	if raw.Localpart != "" && validServerName(c.Server.Name) {
		sender, err := matrix.ParseUserID("@" + raw.Localpart + ":" + c.Server.Name)
		if err != nil || !sender.Compliant() {
			bad("sender_localpart", "Write the part before the colon, as in _irc_bot.", "%q cannot be part of a user ID", raw.Localpart)
		} else {
			reg.Sender = sender
		}
		if raw.Localpart == c.Notices.Localpart {
			bad("sender_localpart", "Give the application service another name.", "is the account of server_notices")
		}
	}
	reg.URL = strings.TrimRight(raw.URL, "/")
	if reg.URL != "" {
		u, err := url.Parse(reg.URL)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || u.RawQuery != "" || u.Fragment != "" {
			bad("url", "Write where the application service listens, as in http://127.0.0.1:29328, or null.", "%q is not an http(s) URL", raw.URL)
		}
	}
	if raw.Namespaces == nil {
		bad("namespaces", "Write 'namespaces: {}' if it has none.", "is missing")
		raw.Namespaces = &namespacesOfFile{}
	}
	reg.Users = namespaces(bad, "users", raw.Namespaces.Users)
	if notices := "@" + c.Notices.Localpart + ":" + c.Server.Name; c.Notices.Localpart != "" &&
		slices.ContainsFunc(reg.Users, func(n Namespace) bool { return n.Exclusive && n.Pattern.MatchString(notices) }) {
		bad("namespaces.users", "Give server_notices.localpart another name, or narrow the expression.", "take in the account of server_notices")
	}
	reg.Aliases = namespaces(bad, "aliases", raw.Namespaces.Aliases)
	reg.Rooms = namespaces(bad, "rooms", raw.Namespaces.Rooms)
	reg.RateLimited, reg.Protocols = raw.Limited, raw.Protocols
	if slices.Contains(reg.Protocols, "") {
		bad("protocols", "Leave it out.", "one is empty")
	}
	switch {
	case raw.Ephemeral:
		reg.Ephemeral = EphemeralStable
	case raw.UnstableEphemeral, raw.PushEphemeral:
		reg.Ephemeral = EphemeralUnstable
	}
	return reg, d.problems
}

func namespaces(bad func(key, hint, format string, args ...any), kind string, list []namespaceOfFile) []Namespace {
	key := "namespaces." + kind
	if len(list) > maxNamespaces {
		bad(key, "Join some of them into one expression, as in a|b.", "are more than %d", maxNamespaces)
		return nil
	}
	out := make([]Namespace, 0, len(list))
	for i, n := range list {
		at := fmt.Sprintf("%s[%d].regex", key, i)
		switch pattern, err := regexp.Compile("^(?:" + n.Regex + ")"); {
		case n.Regex == "":
			bad(at, "Write .* if every one is meant.", "is missing")
		case len(n.Regex) > maxRegexLength:
			bad(at, "Split it into several.", "is longer than %d bytes", maxRegexLength)
		case err != nil:
			bad(at, "Expressions are as in RE2, without look-ahead and back-references.", "is not a regular expression: %s",
				strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		default:
			out = append(out, Namespace{Pattern: pattern, Exclusive: n.Exclusive})
		}
	}
	return out
}

// readAtMost reads a file that must not be longer than limit bytes.
func readAtMost(file string, limit int64) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("cannot be read")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot be read")
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("is larger than %d bytes", limit)
	}
	return data, nil
}
