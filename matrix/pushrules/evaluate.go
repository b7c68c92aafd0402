package pushrules

import (
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/glob"
)

// Compiled is a rule set ready to be evaluated many times, by several goroutines.
type Compiled struct {
	user                matrix.UserID
	override, underride []conditional
	content             []conditional
	room                map[matrix.RoomID]*Outcome
	sender              map[matrix.UserID]*Outcome
}

// conditional is an enabled rule: when all tests hold, the outcome.
type conditional struct {
	tests   []test
	outcome *Outcome
}

// Room is what conditions need to know of the room.
type Room struct {
	MemberCount       int
	DisplayName       string                 // the receiver's display name in the room
	SenderPower       int64                  // power level of the event's sender
	NotificationLevel func(key string) int64 // required level for notifications.key; nil stands for 50
}

// Outcome is what a rule set makes of an event. Its slices are shared: do not change them.
type Outcome struct {
	Notify    bool
	Highlight bool              // only with Notify
	Sound     string            // only with Notify
	RuleID    string            // the rule that matched, "" if none
	Actions   []json.RawMessage // of that rule, historical ones left out. spec: cs/getNotifications
	Tweaks    []byte            // canonical JSON object of all tweaks, for the push gateway
}

// Compile prepares a rule set; the user's own events never match. Disabled rules
// and rules with a condition that cannot be understood never match either.
func Compile(user matrix.UserID, rules *Ruleset) *Compiled {
	c := &Compiled{user: user, room: map[matrix.RoomID]*Outcome{}, sender: map[matrix.UserID]*Outcome{}}
	c.override = compileConditional(rules.Override)
	c.underride = compileConditional(rules.Underride)
	for _, r := range rules.Content {
		if r.Enabled && r.Pattern != nil {
			c.content = append(c.content, conditional{[]test{bodyTest(*r.Pattern)}, outcome(r)})
		}
	}
	for _, r := range rules.Room {
		if r.Enabled {
			c.room[matrix.RoomID(r.RuleID)] = outcome(r)
		}
	}
	for _, r := range rules.Sender {
		if r.Enabled {
			c.sender[matrix.UserID(r.RuleID)] = outcome(r)
		}
	}
	return c
}

func compileConditional(rules []Rule) []conditional {
	var list []conditional
next:
	for _, r := range rules {
		if !r.Enabled {
			continue
		}
		tests := make([]test, 0, len(r.Conditions))
		for _, condition := range r.Conditions {
			t, ok := compileCondition(condition)
			if !ok {
				continue next
			}
			tests = append(tests, t)
		}
		list = append(list, conditional{tests, outcome(r)})
	}
	return list
}

// outcome reads a rule's actions. spec: client-server-api#actions
func outcome(r Rule) *Outcome {
	o := &Outcome{RuleID: r.RuleID, Actions: []json.RawMessage{}, Tweaks: []byte("{}")}
	for _, raw := range r.Actions {
		actions, err := CheckActions([]json.RawMessage{raw})
		if err != nil {
			continue
		}
		action := actions[0]
		if name, _ := canonicaljson.String(action); name == "dont_notify" || name == "coalesce" {
			continue // spec: client-server-api#historical-actions
		}
		o.Actions = append(o.Actions, action)
		name, isTweak := canonicaljson.GetString(action, "set_tweak")
		if !isTweak {
			o.Notify = true
			continue
		}
		value, ok := canonicaljson.Get(action, "value")
		if !ok {
			value = []byte("true") // defined for highlight only
		}
		if ok || name == "highlight" {
			o.Tweaks = canonicaljson.Set(o.Tweaks, name, value)
		}
	}
	if o.Notify {
		o.Highlight, _ = canonicaljson.GetBool(o.Tweaks, "highlight")
		o.Sound, _ = canonicaljson.GetString(o.Tweaks, "sound")
	}
	return o
}

// StandardTweaks are the tweaks that the specification names. spec: client-server-api#actions
func (o *Outcome) StandardTweaks() []byte {
	tweaks := []byte("{}")
	for _, name := range []string{"highlight", "sound"} {
		if value, ok := canonicaljson.Get(o.Tweaks, name); ok && len(value) <= maxStandardTweak {
			tweaks = canonicaljson.Set(tweaks, name, value)
		}
	}
	return tweaks
}

const maxStandardTweak = 255

// Actions are the actions of a rule that notifies with tweaks, a canonical JSON object or nothing.
func Actions(tweaks []byte) []json.RawMessage {
	actions := []json.RawMessage{json.RawMessage(`"notify"`)}
	if len(tweaks) == 0 {
		return actions
	}
	for name, value := range canonicaljson.Members(tweaks) {
		action := append(canonicaljson.AppendString([]byte(`{"set_tweak":`), name), '}')
		if name != "highlight" || string(value) != "true" {
			action = canonicaljson.Set(action, "value", value)
		}
		actions = append(actions, action)
	}
	return actions
}

// Evaluate finds the first matching rule and returns what it does.
func (c *Compiled) Evaluate(f *Flat, room Room) Outcome {
	if f.sender == c.user {
		return Outcome{}
	}
	if o := firstMatch(c.override, f, &room); o != nil {
		return *o
	}
	if o := firstMatch(c.content, f, &room); o != nil {
		return *o
	}
	if o := c.room[f.room]; o != nil {
		return *o
	}
	if o := c.sender[f.sender]; o != nil {
		return *o
	}
	if o := firstMatch(c.underride, f, &room); o != nil {
		return *o
	}
	return Outcome{}
}

func firstMatch(rules []conditional, f *Flat, room *Room) *Outcome {
next:
	for i := range rules {
		for j := range rules[i].tests {
			if !rules[i].tests[j].holds(f, room) {
				continue next
			}
		}
		return rules[i].outcome
	}
	return nil
}

// test is a compiled condition.
type test struct {
	kind  testKind
	known int      // index in Flat.known, -1 for any other path:
	path  []string // its property names
	glob  glob.Glob
	value []byte // canonical scalar to compare with
	op    string // for member counts: "==", "<", ">", "<=" or ">="
	count int64
	key   string // of notifications
}

type testKind uint8

const (
	testMatch testKind = iota
	testBody
	testIs
	testContains
	testDisplayName
	testMembers
	testPermission
)

// compileCondition prepares a condition; ok is false for one that can never hold.
func compileCondition(c Condition) (t test, ok bool) {
	if c.Key != nil {
		t.path = canonicaljson.SplitPath(*c.Key)
		t.known = slices.IndexFunc(knownNames, func(names []string) bool { return slices.Equal(names, t.path) })
	}
	switch c.Kind {
	case eventMatch:
		if c.Key == nil || c.Pattern == nil {
			return test{}, false
		}
		if t.known == bodyIndex {
			return bodyTest(*c.Pattern), true
		}
		t.kind, t.glob = testMatch, glob.Compile(*c.Pattern, true)
		return t, true
	case eventPropertyIs, eventPropertyContains:
		value, err := canonicaljson.Canonical(c.Value, canonicaljson.Strict)
		if c.Key == nil || err != nil || canonicaljson.IsObject(value) || canonicaljson.IsArray(value) {
			return test{}, false
		}
		if t.kind = testIs; c.Kind == eventPropertyContains {
			t.kind = testContains
		}
		t.value = value
		return t, true
	case containsDisplayName:
		return test{kind: testDisplayName}, true
	case roomMemberCount:
		if c.Is == nil {
			return test{}, false
		}
		digits := strings.TrimLeft(*c.Is, "=<>")
		t = test{kind: testMembers, op: (*c.Is)[:len(*c.Is)-len(digits)]}
		if t.op == "" {
			t.op = "=="
		}
		n, err := strconv.ParseUint(digits, 10, 63)
		t.count = int64(n)
		return t, err == nil && slices.Contains([]string{"==", "<", ">", "<=", ">="}, t.op)
	case senderNotificationPermission:
		if c.Key == nil {
			return test{}, false
		}
		return test{kind: testPermission, key: *c.Key}, true
	}
	return test{}, false
}

func bodyTest(pattern string) test {
	return test{kind: testBody, glob: glob.Compile(pattern, true)}
}

func (t *test) property(f *Flat) property {
	if t.known >= 0 {
		return f.known[t.known]
	}
	return lookUp(f.event, t.path)
}

func (t *test) holds(f *Flat, room *Room) bool {
	switch t.kind {
	case testMatch:
		p := t.property(f)
		return p.isString() && t.glob.Match(p.text)
	case testBody:
		return f.body().isString() && t.glob.MatchWords(f.body().text)
	case testIs:
		return string(t.property(f).raw) == string(t.value)
	case testContains:
		for element := range canonicaljson.Elements(t.property(f).raw) {
			if string(element) == string(t.value) {
				return true
			}
		}
		return false
	case testDisplayName:
		return room.DisplayName != "" && glob.Literal(room.DisplayName, true).MatchWords(f.body().text)
	case testMembers:
		n := int64(room.MemberCount)
		switch t.op {
		case "<":
			return n < t.count
		case ">":
			return n > t.count
		case "<=":
			return n <= t.count
		case ">=":
			return n >= t.count
		}
		return n == t.count
	default: // testPermission
		need := int64(50)
		if room.NotificationLevel != nil {
			need = room.NotificationLevel(t.key)
		}
		return room.SenderPower >= need
	}
}
