// Package pushrules holds the default push rules, edits rule sets and evaluates them.
//
// An event is prepared once (Flatten), each receiver's rule set is prepared once and
// kept (Compile); what is left per event and receiver is Evaluate, which allocates nothing.
// spec: client-server-api#push-rules
package pushrules

import "encoding/json"

// Ruleset is a user's rules as the API shows them, each kind with the most important
// rule first. spec: cs/getPushRulesGlobal
type Ruleset struct {
	Override  []Rule `json:"override"`
	Content   []Rule `json:"content"`
	Room      []Rule `json:"room"`
	Sender    []Rule `json:"sender"`
	Underride []Rule `json:"underride"`
}

// Rule is one push rule. spec: cs/getPushRule
type Rule struct {
	RuleID     string            `json:"rule_id"`
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Pattern    *string           `json:"pattern,omitzero"`    // of content rules
	Conditions []Condition       `json:"conditions,omitzero"` // of override and underride rules, not nil there
	Actions    []json.RawMessage `json:"actions"`             // not nil
}

// Condition is one condition of a rule. Members that a kind does not have are nil.
// spec: client-server-api#conditions-1
type Condition struct {
	Kind    string          `json:"kind"`
	Key     *string         `json:"key,omitzero"`
	Pattern *string         `json:"pattern,omitzero"`
	Is      *string         `json:"is,omitzero"`
	Value   json.RawMessage `json:"value,omitzero"`
}

// The kinds of rules, in the order in which they are tried.
const (
	KindOverride  = "override"
	KindContent   = "content"
	KindRoom      = "room"
	KindSender    = "sender"
	KindUnderride = "underride"
)

// The kinds of conditions.
const (
	eventMatch                   = "event_match"
	eventPropertyIs              = "event_property_is"
	eventPropertyContains        = "event_property_contains"
	containsDisplayName          = "contains_display_name"
	roomMemberCount              = "room_member_count"
	senderNotificationPermission = "sender_notification_permission"
)
