package stateres

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// The files in testdata/scenarios are rooms in a small language, one statement a line:
//
//	versions 2-12             the room versions to run in (all, if not said)
//	NAME = EVENT              an event, named
//	EVENT                     an event that nobody talks about
//	100 times EVENT           the same again and again
//	branch NAME [from EVENT]  what follows is on that branch, forked off after an event
//	merge BRANCH BRANCH...    the current branch goes on after all of these
//	lose EVENT                from now on the server does not have the event
//	reject EVENT              from now on the server counts the event as rejected
//	expect [VERSIONS] WHAT EVENT|none
//
// where EVENT is one of
//
//	USER create | join | leave | knock
//	USER invite | kick | ban | unban USER
//	USER levels NAME:LEVEL... of users, or of properties if they have a dot in front
//	USER rule JOINRULE
//	USER topic | name | message TEXT
//
// and may end in
//
//	auth EVENT...   these auth events, in place of those that are right
//	with EVENT...   the state before it has these events, as a server would say that is behind
//	at SECONDS      its clock: seconds since the room began
//	rejected        it has to be rejected
//
// and WHAT is topic, name, rule, levels or member USER. Users live on the
// server of their first letter. A creator in levels counts before version 12 only.

// scenario runs a file in one room version.
type scenario struct {
	*world
	line     int
	named    map[string]Ref
	branches map[string][]Ref
	branch   string
	creator  string
	failures []string
}

func TestScenarios(t *testing.T) {
	for name, lines := range scenarioFiles(t) {
		for _, id := range roomversion.Supported() {
			if !runsIn(lines, id) {
				continue
			}
			t.Run(name+"/v"+string(id), func(t *testing.T) {
				for _, failure := range runScenario(lines, id, "", bothWays(rand.New(rand.NewPCG(1, 2)).IntN)) {
					t.Error(failure)
				}
			})
		}
	}
}

// scenarioFiles are the lines of all files, by name.
func scenarioFiles(t *testing.T) map[string][]string {
	files, err := filepath.Glob("testdata/scenarios/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	byName := make(map[string][]string)
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		byName[strings.TrimSuffix(filepath.Base(file), ".txt")] = strings.Split(string(b), "\n")
	}
	return byName
}

// runScenario runs a file, and says where it does not go as the file has it.
func runScenario(lines []string, id roomversion.ID, broken string, resolve func(*world, []state) (state, error)) []string {
	s := &scenario{world: newWorld(id), named: make(map[string]Ref), branches: make(map[string][]Ref), branch: "main"}
	s.resolve, s.broken = resolve, broken
	for i, line := range lines {
		s.line = i + 1
		line, _, _ = strings.Cut(line, "#")
		if words := strings.Fields(line); len(words) > 0 && !s.try(words) {
			break
		}
	}
	return s.failures
}

// try runs a line. It is false if there is no going on after it.
func (s *scenario) try(words []string) (ok bool) {
	defer func() {
		switch r := recover().(type) {
		case nil:
			ok = true
		case failure:
			s.failures = append(s.failures, string(r))
		default:
			panic(r)
		}
	}()
	s.run(words)
	return true
}

// failure is what fatalf panics with.
type failure string

func runsIn(lines []string, id roomversion.ID) bool {
	for _, line := range lines {
		if versions, ok := strings.CutPrefix(line, "versions "); ok {
			return inRange(strings.TrimSpace(versions), id)
		}
	}
	return true
}

// inRange reads "3" and "2-11".
func inRange(versions string, id roomversion.ID) bool {
	from, to, ok := strings.Cut(versions, "-")
	if !ok {
		to = from
	}
	low, err1 := strconv.Atoi(from)
	high, err2 := strconv.Atoi(to)
	n, err3 := strconv.Atoi(string(id))
	return err1 == nil && err2 == nil && err3 == nil && low <= n && n <= high
}

func (s *scenario) fatalf(format string, args ...any) {
	panic(failure(fmt.Sprintf("line %d: %s", s.line, fmt.Sprintf(format, args...))))
}

func (s *scenario) ref(name string) Ref {
	ref, ok := s.named[name]
	if !ok {
		s.fatalf("no event is called %s", name)
	}
	return ref
}

func (s *scenario) refs(names []string) []Ref {
	refs := make([]Ref, len(names))
	for i, name := range names {
		refs[i] = s.ref(name)
	}
	return refs
}

func (s *scenario) run(words []string) {
	switch {
	case words[0] == "versions":
	case words[0] == "branch":
		if s.branch = words[1]; len(words) > 2 {
			s.branches[s.branch] = []Ref{s.ref(words[3])}
		}
	case words[0] == "merge":
		var tips []Ref
		for _, name := range words[1:] {
			tips = append(tips, s.branches[name]...)
		}
		s.branches[s.branch] = tips
	case words[0] == "lose":
		s.lost[s.ref(words[1])] = true
	case words[0] == "reject":
		s.entries[s.ref(words[1])].Rejected = true
	case words[0] == "expect":
		s.expect(words[1:])
	case len(words) > 2 && words[1] == "=":
		s.named[words[0]] = s.event(words[2:])
	case len(words) > 2 && words[1] == "times":
		n, err := strconv.Atoi(words[0])
		if err != nil {
			s.fatalf("%v", err)
		}
		for range n {
			s.event(words[2:])
		}
	default:
		s.event(words)
	}
}

func userID(name string) string { return "@" + name + ":" + name[:1] }

// event reads and adds an event to the current branch.
func (s *scenario) event(words []string) Ref {
	d := draft{prev: s.branches[s.branch]}
	rejected := false
	words, d, rejected = s.modifiers(words, d)
	if len(words) < 2 {
		s.fatalf("not an event")
	}
	d.sender = matrix.UserID(userID(words[0]))
	rest := words[2:]
	content := make(map[string]any)
	switch verb := words[1]; verb {
	case "create":
		s.creator = words[0]
		d.eventType, d.stateKey = "m.room.create", text("")
		content["creator"], content["room_version"] = d.sender, s.version.ID
	case "join", "leave", "knock":
		d.eventType, d.stateKey = "m.room.member", text(string(d.sender))
		content["membership"] = verb
		if len(rest) > 0 {
			content["displayname"] = rest[0]
		}
	case "invite", "kick", "ban", "unban":
		d.eventType, d.stateKey = "m.room.member", text(userID(rest[0]))
		content["membership"] = map[string]string{"kick": "leave", "unban": "leave"}[verb]
		if content["membership"] == "" {
			content["membership"] = verb
		}
	case "levels":
		d.eventType, d.stateKey = "m.room.power_levels", text("")
		s.levels(content, rest)
	case "rule":
		d.eventType, d.stateKey = "m.room.join_rules", text("")
		content["join_rule"] = rest[0]
	case "topic", "name":
		d.eventType, d.stateKey = "m.room."+verb, text("")
		content[verb] = strings.Join(rest, " ")
	case "message":
		d.eventType = "m.room.message"
		content["body"] = strings.Join(rest, " ")
	default:
		s.fatalf("nobody knows how to %s", verb)
	}
	b, err := json.Marshal(content)
	if err != nil {
		s.fatalf("%v", err)
	}
	d.content = string(b)
	ref, rejection, err := s.add(d)
	switch {
	case err != nil:
		s.fatalf("%v", err)
	case rejection != nil && !rejected:
		s.fatalf("rejected: %v", rejection)
	case rejection == nil && rejected:
		s.fatalf("allowed")
	}
	s.branches[s.branch] = []Ref{ref}
	return ref
}

func (s *scenario) modifiers(words []string, d draft) ([]string, draft, bool) {
	rejected := false
	for i := len(words) - 1; i > 0; i-- {
		args := words[i+1:]
		switch words[i] {
		case "auth":
			d.auth = s.refs(args)
		case "with":
			before, err := s.head()
			if err != nil {
				s.fatalf("%v", err)
			}
			d.before = maps.Clone(before)
			for _, ref := range s.refs(args) {
				key, _ := keyOf(s.entries[ref])
				d.before[key] = ref
			}
		case "at":
			n, err := strconv.Atoi(args[0])
			if err != nil {
				s.fatalf("%v", err)
			}
			d.ts = 1_700_000_000_000 + matrix.Timestamp(n)*1000
		case "rejected":
			rejected = true
		default:
			continue
		}
		words = words[:i]
	}
	return words, d, rejected
}

func (s *scenario) levels(content map[string]any, list []string) {
	byUser := make(map[string]int)
	for _, item := range list {
		name, number, _ := strings.Cut(item, ":")
		level, err := strconv.Atoi(number)
		if err != nil {
			s.fatalf("%v", err)
		}
		if property, ok := strings.CutPrefix(name, "."); ok {
			content[property] = level
		} else if name != s.creator || !s.version.PrivilegedCreators {
			byUser[userID(name)] = level
		}
	}
	content["users"] = byUser
}

// head is the state after the current branch.
func (s *scenario) head() (state, error) {
	var states []state
	for _, tip := range s.branches[s.branch] {
		states = append(states, s.after[tip])
	}
	return s.join(states)
}

func (s *scenario) expect(words []string) {
	if words[0][0] >= '0' && words[0][0] <= '9' {
		if !inRange(words[0], s.version.ID) {
			return
		}
		words = words[1:]
	}
	key := matrix.StateKey{}
	switch words[0] {
	case "topic", "name":
		key.Type = "m.room." + words[0]
	case "rule":
		key.Type = "m.room.join_rules"
	case "levels":
		key.Type = "m.room.power_levels"
	case "member":
		key = matrix.StateKey{Type: "m.room.member", Key: userID(words[1])}
		words = words[1:]
	default:
		s.fatalf("nobody knows what %s is", words[0])
	}
	got, err := s.head()
	if err != nil {
		s.fatalf("%v", err)
	}
	want := Ref(0)
	if words[1] != "none" {
		want = s.ref(words[1])
	}
	if got[key] != want {
		names := make(map[Ref]string)
		for name, ref := range s.named {
			names[ref] = name
		}
		s.failures = append(s.failures, fmt.Sprintf("line %d: %v is event %d %q, want %s\n%v", s.line, key, got[key], names[got[key]], words[1],
			slices.Sorted(maps.Values(s.describe(got)))))
	}
}
