package pushrules

import (
	"encoding/json"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// MasterRule is the predefined rule that turns all notifications off; it goes before all others.
const MasterRule = ".m.rule.master"

// Default is the predefined rule set for a user.
// spec: client-server-api#predefined-rules
func Default(user matrix.UserID) *Ruleset {
	var (
		notify       = json.RawMessage(`"notify"`)
		highlight    = json.RawMessage(`{"set_tweak":"highlight"}`)
		defaultSound = json.RawMessage(`{"set_tweak":"sound","value":"default"}`)
		ring         = json.RawMessage(`{"set_tweak":"sound","value":"ring"}`)
		me           = json.RawMessage(canonicaljson.AppendString(nil, string(user)))
	)
	type conditions = []Condition
	rule := func(id string, when conditions, actions ...json.RawMessage) Rule {
		if actions == nil {
			actions = []json.RawMessage{}
		}
		return Rule{RuleID: id, Default: true, Enabled: true, Conditions: when, Actions: actions}
	}
	match := func(key, pattern string) Condition {
		return Condition{Kind: eventMatch, Key: &key, Pattern: &pattern}
	}
	is := func(key, value string) Condition {
		return Condition{Kind: eventPropertyIs, Key: &key, Value: json.RawMessage(value)}
	}
	contains := func(key string, value json.RawMessage) Condition {
		return Condition{Kind: eventPropertyContains, Key: &key, Value: value}
	}
	permitted := func(key string) Condition {
		return Condition{Kind: senderNotificationPermission, Key: &key}
	}
	members := func(is string) Condition {
		return Condition{Kind: roomMemberCount, Is: &is}
	}

	master := rule(MasterRule, conditions{})
	master.Enabled = false
	return &Ruleset{
		Override: []Rule{
			master,
			rule(".m.rule.suppress_notices", conditions{match("content.msgtype", "m.notice")}),
			rule(".m.rule.invite_for_me", conditions{
				match("type", "m.room.member"), match("content.membership", "invite"), match("state_key", string(user)),
			}, notify, defaultSound),
			rule(".m.rule.member_event", conditions{match("type", "m.room.member")}),
			rule(".m.rule.is_user_mention", conditions{contains(`content.m\.mentions.user_ids`, me)}, notify, defaultSound, highlight),
			rule(".m.rule.is_room_mention", conditions{is(`content.m\.mentions.room`, "true"), permitted("room")}, notify, highlight),
			rule(".m.rule.tombstone", conditions{match("type", "m.room.tombstone"), match("state_key", "")}, notify, highlight),
			rule(".m.rule.reaction", conditions{match("type", "m.reaction")}),
			rule(".m.rule.room.server_acl", conditions{match("type", "m.room.server_acl"), match("state_key", "")}),
			rule(".m.rule.suppress_edits", conditions{is(`content.m\.relates_to.rel_type`, `"m.replace"`)}),
		},
		Content: []Rule{},
		Room:    []Rule{},
		Sender:  []Rule{},
		Underride: []Rule{
			rule(".m.rule.call", conditions{match("type", "m.call.invite")}, notify, ring),
			rule(".m.rule.encrypted_room_one_to_one", conditions{members("2"), match("type", "m.room.encrypted")}, notify, defaultSound),
			rule(".m.rule.room_one_to_one", conditions{members("2"), match("type", "m.room.message")}, notify, defaultSound),
			rule(".m.rule.message", conditions{match("type", "m.room.message")}, notify),
			rule(".m.rule.encrypted", conditions{match("type", "m.room.encrypted")}, notify),
		},
	}
}
