package pushrules

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

const me = matrix.UserID("@me:example.org")

func canonical(t testing.TB, s string) []byte {
	t.Helper()
	b, err := canonicaljson.Canonical([]byte(s), canonicaljson.Strict)
	if err != nil {
		t.Fatalf("%s: %v", s, err)
	}
	return b
}

// flat makes an event with what a test does not say filled in.
func flat(t testing.TB, s string) *Flat {
	t.Helper()
	b := canonical(t, s)
	sender, ok := canonicaljson.GetString(b, "sender")
	if !ok {
		sender = "@you:example.org"
		b = canonicaljson.Set(b, "sender", []byte(`"`+sender+`"`))
	}
	return flatten(b, "$event", "!room:example.org", matrix.UserID(sender))
}

func ptr[T any](v T) *T { return &v }

func actions(s ...string) []json.RawMessage {
	list := []json.RawMessage{}
	for _, a := range s {
		list = append(list, json.RawMessage(a))
	}
	return list
}

// TestDefault compares with the definitions of the specification, in its order.
// spec: client-server-api#predefined-rules
func TestDefault(t *testing.T) {
	definitions, err := os.ReadFile("testdata/predefined.json")
	if err != nil {
		t.Fatal(err)
	}
	want := canonical(t, strings.ReplaceAll(string(definitions), "[the user's Matrix ID]", string(me)))
	want = canonicaljson.Set(want, "content", []byte("[]"))
	want = canonicaljson.Set(want, "room", []byte("[]"))
	want = canonicaljson.Set(want, "sender", []byte("[]"))
	got, err := canonicaljson.Marshal(Default(me))
	if err != nil || string(got) != string(want) {
		t.Errorf("got  %s, %v\nwant %s", got, err, want)
	}
	standard, err := json.Marshal(Default(me)) // whatever encodes the answer
	if err != nil || string(canonical(t, string(standard))) != string(want) {
		t.Errorf("encoding/json: %s, %v", standard, err)
	}
	var back Ruleset
	if err := json.Unmarshal(got, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(*Default(me), back, cmp.Transformer("compact", func(r json.RawMessage) string {
		if r == nil {
			return ""
		}
		return string(canonical(t, string(r)))
	})); diff != "" {
		t.Error(diff)
	}
}

// TestDefaultOutcomes evaluates the predefined rules.
func TestDefaultOutcomes(t *testing.T) {
	c := Compile(me, Default(me))
	const none = ""
	for _, v := range []struct {
		event string
		room  Room
		rule  string
		does  string // n: notify, h: highlight, and the sound
	}{
		{`{"type":"m.room.message","content":{"body":"hi","msgtype":"m.text"}}`, Room{MemberCount: 3}, ".m.rule.message", "n"},
		{`{"type":"m.room.message","content":{"body":"hi","msgtype":"m.text"}}`, Room{MemberCount: 2}, ".m.rule.room_one_to_one", "ndefault"},
		{`{"type":"m.room.message","content":{"body":"hi","msgtype":"m.notice"}}`, Room{MemberCount: 2}, ".m.rule.suppress_notices", ""},
		{`{"type":"m.room.message","sender":"@me:example.org","content":{"body":"hi"}}`, Room{}, none, ""},
		{`{"type":"m.room.message","content":{"body":"me me:example.org @me:example.org @room"}}`, Room{MemberCount: 3, SenderPower: 100, DisplayName: "me"}, ".m.rule.message", "n"},
		{`{"type":"m.room.encrypted","content":{}}`, Room{MemberCount: 3}, ".m.rule.encrypted", "n"},
		{`{"type":"m.room.encrypted","content":{}}`, Room{MemberCount: 2}, ".m.rule.encrypted_room_one_to_one", "ndefault"},
		{`{"type":"m.room.member","state_key":"@me:example.org","content":{"membership":"invite"}}`, Room{}, ".m.rule.invite_for_me", "ndefault"},
		{`{"type":"m.room.member","state_key":"@me:example.org","content":{"membership":"join"}}`, Room{}, ".m.rule.member_event", ""},
		{`{"type":"m.room.member","state_key":"@me2:example.org","content":{"membership":"invite"}}`, Room{}, ".m.rule.member_event", ""},
		{`{"type":"m.room.message","content":{"m.mentions":{"user_ids":["@x:y","@me:example.org"]}}}`, Room{MemberCount: 3}, ".m.rule.is_user_mention", "nhdefault"},
		{`{"type":"m.room.message","content":{"m.mentions":{"user_ids":["@ME:example.org"]}}}`, Room{MemberCount: 3}, ".m.rule.message", "n"},
		{`{"type":"m.room.message","content":{"m.mentions":{"user_ids":"@me:example.org"}}}`, Room{MemberCount: 3}, ".m.rule.message", "n"},
		{`{"type":"m.room.message","content":{"m.mentions":{"room":true}}}`, Room{MemberCount: 3, SenderPower: 50}, ".m.rule.is_room_mention", "nh"},
		{`{"type":"m.room.message","content":{"m.mentions":{"room":true}}}`, Room{MemberCount: 3, SenderPower: 49}, ".m.rule.message", "n"},
		{`{"type":"m.room.message","content":{"m.mentions":{"room":"true"}}}`, Room{MemberCount: 3, SenderPower: 50}, ".m.rule.message", "n"},
		{`{"type":"m.room.message","content":{"m.mentions":{"room":true}}}`, Room{MemberCount: 3, SenderPower: 10, NotificationLevel: func(key string) int64 {
			if key != "room" {
				t.Errorf("asked for notifications.%s", key)
			}
			return 10
		}}, ".m.rule.is_room_mention", "nh"},
		{`{"type":"m.room.tombstone","state_key":"","content":{}}`, Room{}, ".m.rule.tombstone", "nh"},
		{`{"type":"m.room.tombstone","state_key":"x","content":{}}`, Room{}, none, ""},
		{`{"type":"m.room.tombstone","content":{}}`, Room{}, none, ""},
		{`{"type":"m.reaction","content":{"m.relates_to":{"rel_type":"m.annotation"}}}`, Room{}, ".m.rule.reaction", ""},
		{`{"type":"m.room.server_acl","state_key":"","content":{}}`, Room{}, ".m.rule.room.server_acl", ""},
		{`{"type":"m.room.message","content":{"body":"hi","m.relates_to":{"rel_type":"m.replace"}}}`, Room{}, ".m.rule.suppress_edits", ""},
		{`{"type":"m.call.invite","content":{}}`, Room{MemberCount: 2}, ".m.rule.call", "nring"},
		{`{"type":"m.room.name","state_key":"","content":{}}`, Room{MemberCount: 2}, none, ""},
	} {
		o := c.Evaluate(flat(t, v.event), v.room)
		does := o.Sound
		if o.Highlight {
			does = "h" + does
		}
		if o.Notify {
			does = "n" + does
		}
		if o.RuleID != v.rule || does != v.does {
			t.Errorf("%s: %s %q, want %s %q", v.event, o.RuleID, does, v.rule, v.does)
		}
	}
	off := Default(me)
	off.Override[0].Enabled = true
	if o := Compile(me, off).Evaluate(flat(t, `{"type":"m.room.message","content":{}}`), Room{}); o.Notify || o.RuleID != MasterRule {
		t.Errorf("the master rule is on: %+v", o)
	}
}

// TestConditions has one rule with one condition per line.
// spec: client-server-api#conditions-1
func TestConditions(t *testing.T) {
	topic := func(value string) string {
		return `{"type":"m.room.topic","state_key":"","content":{"topic":` + value + `}}`
	}
	body := func(value string) string { return `{"type":"m.room.message","content":{"body":` + value + `}}` }
	federate := func(value string) string {
		return `{"type":"m.room.create","state_key":"","content":{"m.federate":` + value + `}}`
	}
	aliases := func(value string) string {
		return `{"type":"m.room.canonical_alias","content":{"alt_aliases":` + value + `}}`
	}
	deep := strings.Repeat(`{"a":`, 900) + `"x"` + strings.Repeat("}", 900)
	for _, v := range []struct {
		condition string
		yes, no   []string
	}{
		// The examples of the specification first.
		{`{"kind":"event_match","key":"content.topic","pattern":"lunc?*"}`,
			[]string{topic(`"Lunch plans"`), topic(`"LUNCH"`)}, []string{topic(`" lunch"`), topic(`"lunc"`), topic(`null`), `{}`}},
		{`{"kind":"event_match","key":"content.body","pattern":"ex*ple"}`,
			[]string{body(`"An example event."`), body(`"exple"`), body(`"An exciting triple-whammy"`)}, []string{body(`"complexples"`), body(`1`), `{}`}},
		{`{"kind":"event_property_is","key":"content.m\\.federate","value":true}`,
			[]string{federate(`true`)}, []string{federate(`"true"`), federate(`1`), federate(`[true]`), federate(`{"m":true}`), `{}`}},
		{`{"kind":"event_property_contains","key":"content.alt_aliases","value":"#myroom:example.com"}`,
			[]string{aliases(`["#somewhere:example.org","#myroom:example.com"]`)}, []string{aliases(`[":example.com"]`), aliases(`"#myroom:example.com"`), aliases(`[["#myroom:example.com"]]`), aliases(`{"#myroom:example.com":1}`), `{}`}},

		{`{"kind":"event_match","key":"content.topic","pattern":"*"}`, []string{topic(`""`), topic(`"a\nb"`)}, []string{topic(`1`), topic(`true`), topic(`{}`), topic(`[]`), `{}`}},
		{`{"kind":"event_match","key":"content.topic","pattern":""}`, []string{topic(`""`)}, []string{topic(`"a"`), `{}`}},
		{`{"kind":"event_match","key":"content.body","pattern":"*"}`, []string{body(`""`)}, []string{`{}`, body(`1`)}},
		{`{"kind":"event_match","key":"content","pattern":"*"}`, nil, []string{body(`"x"`)}},
		{`{"kind":"event_match","key":"content.a.b","pattern":"x"}`, []string{`{"content":{"a":{"b":"X"}}}`}, []string{`{"content":{"a.b":"x"}}`, `{"content":{"a":"x"}}`, `{"content":{"a":["x"]}}`}},
		{`{"kind":"event_match","key":"content.a\\.b","pattern":"x"}`, []string{`{"content":{"a.b":"x"}}`}, []string{`{"content":{"a":{"b":"x"}}}`}},
		{`{"kind":"event_match","key":"content.a\\\\b","pattern":"x"}`, []string{`{"content":{"a\\b":"x"}}`}, []string{`{"content":{"ab":"x"}}`}},
		{`{"kind":"event_match","key":"content.a\\x","pattern":"x"}`, []string{`{"content":{"a\\x":"x"}}`}, []string{`{"content":{"ax":"x"}}`}},
		{`{"kind":"event_match","key":"content.a\\","pattern":"x"}`, []string{`{"content":{"a\\":"x"}}`}, []string{`{"content":{"a":"x"}}`}},
		{`{"kind":"event_match","key":"content.","pattern":"x"}`, []string{`{"content":{"":"x"}}`}, []string{`{"content":"x"}`}},
		{`{"kind":"event_match","key":"room_id","pattern":"!ROOM:*"}`, []string{`{}`}, nil},
		{`{"kind":"event_match","key":"event_id","pattern":"$event"}`, []string{`{}`}, nil},
		{`{"kind":"event_match","key":"sender","pattern":"@you:*"}`, []string{`{}`}, []string{`{"sender":"@yo:x"}`}},
		{`{"kind":"event_match","key":"type","pattern":"a?c"}`, []string{`{"type":"abc"}`}, []string{`{"type":"ac"}`}},
		{`{"kind":"event_match","key":"content.a` + strings.Repeat(".a", 900) + `","pattern":"x"}`, nil, []string{`{"content":` + deep + `}`}},
		{`{"kind":"event_match","key":"content` + strings.Repeat(".a", 900) + `","pattern":"x"}`, []string{`{"content":` + deep + `}`}, nil},
		{`{"kind":"event_match","key":"content.topic"}`, nil, []string{topic(`""`), topic(`"x"`)}},
		{`{"kind":"event_match","pattern":"*"}`, nil, []string{topic(`""`)}},

		{`{"kind":"event_property_is","key":"content.topic","value":null}`, []string{topic(`null`)}, []string{topic(`"null"`), topic(`false`), topic(`0`), `{}`}},
		{`{"kind":"event_property_is","key":"content.topic","value":1}`, []string{topic(`1`)}, []string{topic(`"1"`), topic(`true`), topic(`10`)}},
		{`{"kind":"event_property_is","key":"content.topic","value":"a\u0062"}`, []string{topic(`"ab"`), topic(`"\u0061b"`)}, []string{topic(`"AB"`), topic(`"a"`), topic(`"a*"`)}},
		{`{"kind":"event_property_is","key":"content.topic","value":[]}`, nil, []string{topic(`[]`)}},
		{`{"kind":"event_property_is","key":"content.topic","value":{}}`, nil, []string{topic(`{}`)}},
		{`{"kind":"event_property_is","key":"content.topic","value":1.0}`, nil, []string{topic(`1`)}},
		{`{"kind":"event_property_is","key":"content.topic"}`, nil, []string{topic(`null`), `{}`}},
		{`{"kind":"event_property_is","key":"room_id","value":"!room:example.org"}`, []string{`{}`}, nil},
		{`{"kind":"event_property_is","value":1}`, nil, []string{topic(`1`)}},
		{`{"kind":"event_property_contains","key":"content.topic","value":null}`, []string{topic(`[1,null]`), topic(`[{},[],null]`)}, []string{topic(`null`), topic(`[]`), topic(`[[null]]`)}},
		{`{"kind":"event_property_contains","key":"content.topic","value":1}`, []string{topic(`[1]`), topic(`[2,1,3]`)}, []string{topic(`["1"]`), topic(`[11]`), topic(`[true]`)}},
		{`{"kind":"event_property_contains","key":"content.topic","value":["a"]}`, nil, []string{topic(`[["a"]]`)}},

		// The room has 5 members; the receiver is called "Al*ce" there.
		{`{"kind":"contains_display_name"}`, []string{body(`"hi al*CE!"`), body(`"Al*ce"`)}, []string{body(`"Alice"`), body(`"xal*ce"`), body(`1`), `{}`}},
		{`{"kind":"room_member_count","is":"5"}`, []string{`{}`}, nil},
		{`{"kind":"room_member_count","is":"==5"}`, []string{`{}`}, nil},
		{`{"kind":"room_member_count","is":">4"}`, []string{`{}`}, nil},
		{`{"kind":"room_member_count","is":"<6"}`, []string{`{}`}, nil},
		{`{"kind":"room_member_count","is":">=5"}`, []string{`{}`}, nil},
		{`{"kind":"room_member_count","is":"<=5"}`, []string{`{}`}, nil},
		{`{"kind":"room_member_count","is":"4"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":">5"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"<5"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":">=6"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"<=4"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"=5"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"===5"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"<>4"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"+5"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":" 5"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"<"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":""}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count","is":"<99999999999999999999"}`, nil, []string{`{}`}},
		{`{"kind":"room_member_count"}`, nil, []string{`{}`}},
		{`{"kind":"sender_notification_permission","key":"room"}`, []string{`{}`}, nil}, // the sender has 50
		{`{"kind":"sender_notification_permission"}`, nil, []string{`{}`}},
		{`{"kind":"org.example.unknown","key":"type","pattern":"*"}`, nil, []string{`{}`}},
	} {
		var c Condition
		if err := json.Unmarshal([]byte(v.condition), &c); err != nil {
			t.Fatal(err)
		}
		rules := &Ruleset{Override: []Rule{{RuleID: "r", Enabled: true, Conditions: []Condition{c}, Actions: actions(`"notify"`)}}}
		room := Room{MemberCount: 5, DisplayName: "Al*ce", SenderPower: 50}
		for _, e := range v.yes {
			if !Compile(me, rules).Evaluate(flat(t, e), room).Notify {
				t.Errorf("%s does not match %s", v.condition, e)
			}
		}
		for _, e := range v.no {
			if Compile(me, rules).Evaluate(flat(t, e), room).Notify {
				t.Errorf("%s matches %s", v.condition, e)
			}
		}
	}
	rules := &Ruleset{Override: []Rule{{RuleID: "r", Enabled: true, Conditions: []Condition{{Kind: containsDisplayName}}, Actions: actions(`"notify"`)}}}
	if Compile(me, rules).Evaluate(flat(t, body(`""`)), Room{}).Notify {
		t.Error("an empty display name matches")
	}
}

// TestKinds has rules of all kinds that match, and takes the first away again and again.
func TestKinds(t *testing.T) {
	r := Default(me)
	put := func(kind, id string, pattern *string) {
		t.Helper()
		if err := r.Put(kind, Rule{RuleID: id, Pattern: pattern, Actions: actions(`"notify"`)}, "", ""); err != nil {
			t.Fatal(err)
		}
	}
	put(KindOverride, "o2", nil)
	put(KindOverride, "o1", nil)
	put(KindContent, "c2", ptr("c?ke"))
	put(KindContent, "c1", ptr("CAKE"))
	put(KindContent, "c0", ptr("pie"))
	put(KindRoom, "!room:example.org", nil)
	put(KindRoom, "!other:example.org", nil)
	put(KindSender, "@you:example.org", nil)
	put(KindSender, "@other:example.org", nil)
	put(KindUnderride, "u", nil)
	e := flat(t, `{"type":"m.room.message","content":{"body":"a cake"}}`)
	for _, want := range []struct{ kind, id string }{
		{KindOverride, "o1"}, {KindOverride, "o2"}, {KindContent, "c1"}, {KindContent, "c2"}, {KindRoom, "!room:example.org"},
		{KindSender, "@you:example.org"}, {KindUnderride, "u"}, {KindUnderride, ".m.rule.message"},
	} {
		if o := Compile(me, r).Evaluate(e, Room{}); o.RuleID != want.id {
			t.Errorf("%q matches, not %q", o.RuleID, want.id)
		}
		rule, err := r.Get(want.kind, want.id)
		if err != nil {
			t.Fatal(err)
		}
		rule.Enabled = false
	}
	if o := Compile(me, r).Evaluate(e, Room{}); o.RuleID != "" || o.Notify {
		t.Errorf("%q matches", o.RuleID)
	}
}

// spec: client-server-api#actions
func TestOutcome(t *testing.T) {
	for _, v := range []struct {
		actions           []json.RawMessage
		notify, highlight bool
		sound, tweaks     string
		left              int
	}{
		{actions(), false, false, "", `{}`, 0},
		{actions(`"notify"`), true, false, "", `{}`, 1},
		{actions(`"dont_notify"`), false, false, "", `{}`, 0},
		{actions(`"coalesce"`, `"notify"`), true, false, "", `{}`, 1},
		{actions(`"notify"`, `{"set_tweak":"highlight"}`), true, true, "", `{"highlight":true}`, 2},
		{actions(`"notify"`, `{"set_tweak":"highlight","value":true}`), true, true, "", `{"highlight":true}`, 2},
		{actions(`"notify"`, `{"set_tweak":"highlight","value":false}`), true, false, "", `{"highlight":false}`, 2},
		{actions(`{"set_tweak":"highlight"}`), false, false, "", `{"highlight":true}`, 1},
		{actions(`"notify"`, `{"value":"ring","set_tweak":"sound"}`), true, false, "ring", `{"sound":"ring"}`, 2},
		{actions(`"notify"`, `{"set_tweak":"sound"}`), true, false, "", `{}`, 2},
		{actions(`"notify"`, `{"set_tweak":"org.example.led","value":{"b":1,"a":2}}`), true, false, "", `{"org.example.led":{"a":2,"b":1}}`, 2},
		{actions(`"notify"`, `"org.example.flash"`, `{}`, `nonsense`), true, false, "", `{}`, 1},
	} {
		rules := &Ruleset{Underride: []Rule{{RuleID: "r", Enabled: true, Actions: v.actions}}}
		o := Compile(me, rules).Evaluate(flat(t, `{}`), Room{})
		if o.RuleID != "r" || o.Notify != v.notify || o.Highlight != v.highlight || o.Sound != v.sound || string(o.Tweaks) != v.tweaks || len(o.Actions) != v.left {
			t.Errorf("%s: %+v", v.actions, o)
		}
	}
}

func ids(rules []Rule) string {
	var list []string
	for _, r := range rules {
		if !r.Default {
			list = append(list, r.RuleID)
		}
	}
	return strings.Join(list, " ")
}

// spec: cs/setPushRule
func TestPutPlaces(t *testing.T) {
	r := Default(me)
	for _, v := range []struct{ id, before, after, want string }{
		{"a", "", "", "a"},
		{"b", "", "", "b a"},
		{"c", "a", "", "b c a"},
		{"d", "", "a", "b c a d"},
		{"e", "", "b", "b e c a d"},
		{"a", "", "", "b e c a d"}, // stays
		{"a", "b", "", "a b e c d"},
		{"a", "", "d", "b e c d a"},
		{"f", "e", "a", "b f e c d a"}, // before goes first
	} {
		if err := r.Put(KindOverride, Rule{RuleID: v.id}, v.before, v.after); err != nil {
			t.Fatalf("%+v: %v", v, err)
		}
		if got := ids(r.Override); got != v.want {
			t.Errorf("%+v: %s", v, got)
		}
		if r.Override[0].RuleID != MasterRule || !r.Override[len(r.Override)-1].Default {
			t.Errorf("%+v: predefined rules out of place", v)
		}
	}
	for _, beside := range []string{"x", MasterRule, ".m.rule.reaction", "b b"} {
		for _, after := range []bool{false, true} {
			before, behind := beside, ""
			if after {
				before, behind = behind, before
			}
			if err := r.Put(KindOverride, Rule{RuleID: "g"}, before, behind); !matrix.HasCode(err, "M_UNKNOWN") {
				t.Errorf("beside %s: %v", beside, err)
			}
		}
	}
	if err := r.Put(KindOverride, Rule{RuleID: "b"}, "b", ""); !matrix.HasCode(err, "M_UNKNOWN") {
		t.Errorf("beside itself: %v", err)
	}
	if got := ids(r.Override); got != "b f e c d a" {
		t.Errorf("a refused rule has changed the set: %s", got)
	}
}

func TestPutAndDelete(t *testing.T) {
	r := Default(me)
	for _, v := range []struct {
		kind string
		rule Rule
		code string
	}{
		{"device", Rule{RuleID: "a"}, "M_INVALID_PARAM"},
		{"", Rule{RuleID: "a"}, "M_INVALID_PARAM"},
		{KindOverride, Rule{}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: ".a"}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: ".m.rule.reaction"}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a/b"}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: `a\b`}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: strings.Repeat("a", MaxRuleID+1)}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a", Conditions: []Condition{{}}}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a", Actions: actions(`"explode"`)}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a", Actions: actions(`{}`)}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a", Actions: actions(`{"set_tweak":1}`)}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a", Actions: actions(`1`)}, "M_INVALID_PARAM"},
		{KindOverride, Rule{RuleID: "a", Actions: actions(`{`)}, "M_NOT_JSON"},
		{KindContent, Rule{RuleID: "a"}, "M_MISSING_PARAM"},
	} {
		if err := r.Put(v.kind, v.rule, "", ""); !matrix.HasCode(err, v.code) {
			t.Errorf("%s %+v: %v", v.kind, v.rule, err)
		}
	}
	if diff := cmp.Diff(Default(me), r); diff != "" {
		t.Errorf("refused rules have changed the set: %s", diff)
	}

	put := func(kind string, rule Rule) *Rule {
		t.Helper()
		if err := r.Put(kind, rule, "", ""); err != nil {
			t.Fatal(err)
		}
		got, err := r.Get(kind, rule.RuleID)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	got := put(KindContent, Rule{RuleID: "a", Default: true, Pattern: ptr("x"), Conditions: []Condition{{Kind: "k"}}, Actions: actions(`"dont_notify"`, ` "notify"`)})
	if want := (Rule{RuleID: "a", Enabled: true, Pattern: ptr("x"), Actions: actions(`"dont_notify"`, `"notify"`)}); !cmp.Equal(*got, want) {
		t.Error(cmp.Diff(want, *got))
	}
	got.Enabled = false
	if got := put(KindContent, Rule{RuleID: "a", Enabled: true, Pattern: ptr("y")}); got.Enabled || *got.Pattern != "y" {
		t.Errorf("a disabled rule that is replaced: %+v", got)
	}
	got = put(KindUnderride, Rule{RuleID: "a", Pattern: ptr("x")})
	if want := (Rule{RuleID: "a", Enabled: true, Conditions: []Condition{}, Actions: actions()}); !cmp.Equal(*got, want) {
		t.Error(cmp.Diff(want, *got))
	}
	if err := r.SetActions(KindOverride, ".m.rule.reaction", actions(`"notify"`)); err != nil {
		t.Error(err)
	}
	if rule, _ := r.Get(KindOverride, ".m.rule.reaction"); len(rule.Actions) != 1 {
		t.Errorf("%+v", rule)
	}
	for _, err := range []error{r.SetActions(KindRoom, "a", nil), r.Delete(KindRoom, "a")} {
		if !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Error(err)
		}
	}
	for _, err := range []error{r.SetActions("x", "a", nil), r.Delete("x", "a"), r.Delete(KindOverride, MasterRule), r.SetActions(KindUnderride, "a", actions("1"))} {
		if !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Error(err)
		}
	}
	if err := r.Delete(KindUnderride, "a"); err != nil || ids(r.Underride) != "" || ids(r.Content) != "a" {
		t.Errorf("%v, left %s and %s", err, ids(r.Underride), ids(r.Content))
	}
	r.Room = slices.Repeat([]Rule{{}}, MaxRules)
	if err := r.Put(KindRoom, Rule{RuleID: "a"}, "", ""); !matrix.HasCode(err, "M_TOO_LARGE") {
		t.Error(err)
	}
}

func BenchmarkFlatten(b *testing.B) {
	e := flat(b, encrypted)
	b.ReportAllocs()
	for b.Loop() {
		flatten(e.event, "$event", "!room:example.org", e.sender)
	}
}

var encrypted = `{"type":"m.room.encrypted","content":{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"` + strings.Repeat("A", 300) +
	`","device_id":"ABCDEFGHIJ","sender_key":"k","session_id":"s","m.relates_to":{"rel_type":"m.thread","event_id":"$a"}},"depth":1,"origin_server_ts":1}`

// BenchmarkEvaluate is one receiver's share: an encrypted message goes through all rules.
func BenchmarkEvaluate(b *testing.B) {
	e := flat(b, encrypted)
	own := Default(me)
	for i := range 50 {
		if err := own.Put(KindRoom, Rule{RuleID: fmt.Sprintf("!%d:x", i)}, "", ""); err != nil {
			b.Fatal(err)
		}
		if err := own.Put(KindContent, Rule{RuleID: fmt.Sprint(i), Pattern: ptr(fmt.Sprintf("word%d", i))}, "", ""); err != nil {
			b.Fatal(err)
		}
	}
	for name, rules := range map[string]*Ruleset{"default": Default(me), "own": own} {
		b.Run(name, func(b *testing.B) {
			c := Compile(me, rules)
			b.ReportAllocs()
			for b.Loop() {
				if !c.Evaluate(e, Room{MemberCount: 2}).Notify {
					b.Fatal("no notification")
				}
			}
		})
	}
}

// FuzzEvaluate holds that no rules and no event make the evaluation panic, and
// what must be true of every outcome.
func FuzzEvaluate(f *testing.F) {
	f.Add(`{"override":[{"rule_id":"a","enabled":true,"conditions":[{"kind":"event_match","key":"content.body","pattern":"a*b"}],"actions":["notify"]}]}`, `{"content":{"body":"x a b"}}`)
	f.Add(`{"underride":[{"rule_id":"a","enabled":true,"conditions":[{"kind":"event_property_is","key":"content.a\\.b","value":null}],"actions":[{"set_tweak":"highlight"}]}]}`, `{"content":{"a.b":null}}`)
	f.Add(`{"content":[{"rule_id":"a","enabled":true,"pattern":"?","actions":["notify"]}],"room":[{"rule_id":"!room:example.org","enabled":true}]}`, `{"content":{"body":""}}`)
	f.Fuzz(func(t *testing.T, rules, event string) {
		var r Ruleset
		b, err := canonicaljson.Canonical([]byte(event), canonicaljson.Lenient)
		if err != nil || json.Unmarshal([]byte(rules), &r) != nil {
			return
		}
		e := flatten(b, "$event", "!room:example.org", "@you:example.org")
		o := Compile(me, &r).Evaluate(e, Room{MemberCount: 2, DisplayName: "a"})
		if again, err := canonicaljson.Canonical(o.Tweaks, canonicaljson.Lenient); o.Tweaks != nil && (err != nil || string(again) != string(o.Tweaks)) {
			t.Errorf("tweaks %q", o.Tweaks)
		}
		if (o.Highlight || o.Sound != "") && !o.Notify {
			t.Errorf("%+v", o)
		}
		if o := Compile("@you:example.org", &r).Evaluate(e, Room{}); o.Notify || o.RuleID != "" {
			t.Errorf("own event: %+v", o)
		}
	})
}
