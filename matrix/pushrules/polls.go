package pushrules

import (
	"encoding/json"
	"slices"

	"hanok/matrix"
)

// DefaultWithPolls is Default with the predefined rules for polls, which clients that know polls expect of the
// server before the specification has them: answers are silent, a poll's start and end are like messages. spec: MSC3930
func DefaultWithPolls(user matrix.UserID) *Ruleset {
	const rules, events = ".org.matrix.msc3930.rule.poll_", "org.matrix.msc3381.poll."
	notify := json.RawMessage(`"notify"`)
	sound := json.RawMessage(`{"set_tweak":"sound","value":"default"}`)
	rule := func(id, event string, onlyTwo bool, actions ...json.RawMessage) Rule {
		key, pattern, two := "type", events+event, "2"
		if actions == nil {
			actions = []json.RawMessage{}
		}
		r := Rule{RuleID: rules + id, Default: true, Enabled: true, Actions: actions}
		if onlyTwo {
			r.Conditions = append(r.Conditions, Condition{Kind: roomMemberCount, Is: &two})
		}
		r.Conditions = append(r.Conditions, Condition{Kind: eventMatch, Key: &key, Pattern: &pattern})
		return r
	}
	set := Default(user)
	set.Override = append(set.Override, rule("response", "response", false))
	// Before the rules for any message: the first rule that matches counts.
	at := max(0, slices.IndexFunc(set.Underride, func(r Rule) bool { return r.RuleID == ".m.rule.message" }))
	set.Underride = slices.Insert(set.Underride, at,
		rule("start_one_to_one", "start", true, notify, sound),
		rule("end_one_to_one", "end", true, notify, sound),
		rule("start", "start", false, notify),
		rule("end", "end", false, notify),
	)
	return set
}
