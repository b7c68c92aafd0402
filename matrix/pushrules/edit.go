package pushrules

import (
	"encoding/json"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

const (
	// MaxRuleID is the greatest length of a rule ID in bytes.
	MaxRuleID = 512
	// MaxRules is the greatest number of rules of one kind.
	MaxRules = 5000
)

// Rules gives access to the rules of a kind. It fails with M_INVALID_PARAM for an unknown kind.
func (r *Ruleset) Rules(kind string) (*[]Rule, error) {
	switch kind {
	case KindOverride:
		return &r.Override, nil
	case KindContent:
		return &r.Content, nil
	case KindRoom:
		return &r.Room, nil
	case KindSender:
		return &r.Sender, nil
	case KindUnderride:
		return &r.Underride, nil
	}
	return nil, matrix.InvalidParam("There is no such kind of push rule")
}

// Get returns a rule to be read or changed in place: M_NOT_FOUND if there is
// none, M_INVALID_PARAM for an unknown kind. spec: cs/getPushRule
func (r *Ruleset) Get(kind, id string) (*Rule, error) {
	rules, err := r.Rules(kind)
	if err != nil {
		return nil, err
	}
	if i := find(*rules, id); i >= 0 {
		return &(*rules)[i], nil
	}
	return nil, matrix.NotFound("The push rule was not found.")
}

// Put adds a rule of the user's own, or replaces it where it stands and without
// changing whether it is enabled. before or after, if not "", name another rule of
// the user's own and of that kind to place it next to; before goes first. rule.Default and rule.Enabled do not count.
// spec: cs/setPushRule
func (r *Ruleset) Put(kind string, rule Rule, before, after string) error {
	rules, err := r.Rules(kind)
	if err != nil {
		return err
	}
	if err := check(kind, &rule); err != nil {
		return err
	}
	rule.Default, rule.Enabled = false, true
	list := slices.Clone(*rules)
	at := 0 // the most important of the user's own
	if len(list) > 0 && list[0].RuleID == MasterRule {
		at = 1
	}
	if i := find(list, rule.RuleID); i >= 0 {
		rule.Enabled = list[i].Enabled
		list = slices.Delete(list, i, i+1)
		at = i
	} else if len(list) >= MaxRules {
		return matrix.TooLarge("There are too many push rules of this kind")
	}
	if beside := before + after; beside != "" {
		if before != "" {
			beside = before
		}
		at = find(list, beside)
		if at < 0 || list[at].Default {
			return matrix.Errorf(400, "M_UNKNOWN", "before/after rule not found among your own rules of this kind")
		}
		if before == "" {
			at++
		}
	}
	*rules = slices.Insert(list, at, rule)
	return nil
}

// Delete removes a rule of the user's own: M_NOT_FOUND if there is none.
// spec: cs/deletePushRule
func (r *Ruleset) Delete(kind, id string) error {
	rule, err := r.Get(kind, id)
	if err != nil {
		return err
	}
	if rule.Default {
		return matrix.InvalidParam("A predefined push rule cannot be deleted, only disabled")
	}
	rules, _ := r.Rules(kind)
	*rules = slices.DeleteFunc(slices.Clone(*rules), func(r Rule) bool { return r.RuleID == id })
	return nil
}

// SetActions replaces the actions of a rule, predefined ones included.
// spec: cs/setPushRuleActions
func (r *Ruleset) SetActions(kind, id string, actions []json.RawMessage) error {
	rule, err := r.Get(kind, id)
	if err != nil {
		return err
	}
	actions, err = CheckActions(actions)
	if err != nil {
		return err
	}
	rule.Actions = actions
	return nil
}

func find(rules []Rule, id string) int {
	return slices.IndexFunc(rules, func(r Rule) bool { return r.RuleID == id })
}

// check checks a new rule and leaves of it what its kind has.
func check(kind string, rule *Rule) error {
	switch id := rule.RuleID; {
	case id == "":
		return matrix.InvalidParam("A push rule needs an ID")
	case id[0] == '.':
		return matrix.InvalidParam("Push rule IDs that start with '.' are reserved for predefined rules")
	case strings.ContainsAny(id, `/\`):
		return matrix.InvalidParam("A push rule ID must not contain slashes or backslashes")
	case len(id) > MaxRuleID:
		return matrix.InvalidParam("The push rule ID is longer than %d bytes", MaxRuleID)
	}
	if kind == KindContent {
		if rule.Pattern == nil {
			return matrix.MissingParam("A content rule needs a pattern")
		}
	} else {
		rule.Pattern = nil
	}
	if kind == KindOverride || kind == KindUnderride {
		if rule.Conditions == nil {
			rule.Conditions = []Condition{}
		}
		for _, c := range rule.Conditions {
			if c.Kind == "" {
				return matrix.InvalidParam("Each condition of a push rule needs a kind")
			}
		}
	} else {
		rule.Conditions = nil
	}
	var err error
	rule.Actions, err = CheckActions(rule.Actions)
	return err
}

// CheckActions returns the actions in canonical JSON. Historical ones mean nothing, but are kept, so that a client
// finds the rule as it set it. It fails when one has no meaning at all.
// spec: client-server-api#actions, client-server-api#historical-actions
func CheckActions(actions []json.RawMessage) ([]json.RawMessage, error) {
	checked := make([]json.RawMessage, 0, len(actions))
	for _, a := range actions {
		a, err := canonicaljson.Canonical(a, canonicaljson.Lenient)
		if err != nil {
			return nil, err
		}
		switch name, _ := canonicaljson.String(a); name {
		case "notify", "dont_notify", "coalesce":
		default:
			if _, ok := canonicaljson.GetString(a, "set_tweak"); !ok {
				return nil, matrix.InvalidParam(`A push rule's actions may be "notify" and objects with "set_tweak"`)
			}
		}
		checked = append(checked, a)
	}
	return checked, nil
}
