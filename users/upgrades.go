package users

import (
	"context"
	"errors"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/pushrules"
	"hanok/storage"
)

// FollowUpgrade takes over what a user set for a room to the one that replaces it: tags, push rules, and its place among
// direct chats. What the user has set for the new room already stays. spec: client-server-api#room-upgrades
func (s *Service) FollowUpgrade(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	if err := s.AccountData.followUpgrade(ctx, user, from, to); err != nil {
		return err
	}
	return s.PushRules.followUpgrade(ctx, user, from, to)
}

const typeDirect = "m.direct"

func (a *AccountData) followUpgrade(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	old, _, err := readTags(ctx, a.DB, user, from)
	if err != nil {
		return err
	}
	direct, err := storage.GetAccountData(ctx, a.DB, user, "", typeDirect)
	if ignoreNotFound(err) != nil {
		return err
	}
	if string(old) == "{}" && movedDirect(direct.Content, from, to) == nil {
		return nil
	}
	return a.DB.Write(ctx, func(tx *storage.Tx) error {
		present, _, err := readTags(ctx, tx, user, to)
		if err != nil {
			return err
		}
		if string(old) != "{}" && string(present) == "{}" {
			if err := a.put(ctx, tx, user, to, typeTag, old); err != nil {
				return err
			}
		}
		direct, err := storage.GetAccountData(ctx, tx, user, "", typeDirect)
		if ignoreNotFound(err) != nil {
			return err
		}
		if content := movedDirect(direct.Content, from, to); content != nil {
			return a.put(ctx, tx, user, "", typeDirect, content)
		}
		return nil
	})
}

// movedDirect adds a room to m.direct wherever the one it replaces is; nil if nothing changes. spec: client-server-api#mdirect
func movedDirect(content []byte, from, to matrix.RoomID) []byte {
	if !canonicaljson.IsObject(content) {
		return nil
	}
	out := content
	for user, list := range canonicaljson.Members(content) {
		if !canonicaljson.IsArray(list) {
			continue
		}
		var listed []string
		for el := range canonicaljson.Elements(list) {
			if id, ok := canonicaljson.String(el); ok {
				listed = append(listed, id)
			}
		}
		if !slices.Contains(listed, string(from)) || slices.Contains(listed, string(to)) {
			continue
		}
		added := canonicaljson.AppendString(append(slices.Clone(list[:len(list)-1]), ','), string(to))
		out = canonicaljson.Set(out, strings.Clone(user), append(added, ']'))
	}
	if string(out) == string(content) {
		return nil
	}
	return out
}

func (p *PushRules) followUpgrade(ctx context.Context, user matrix.UserID, from, to matrix.RoomID) error {
	set, err := p.Get(ctx, p.DB, user)
	if err != nil {
		return err
	}
	if n, err := copyRules(set, from, to); err != nil || n == 0 {
		return err
	}
	return p.change(ctx, user, func(set *pushrules.Ruleset) error {
		_, err := copyRules(set, from, to)
		return err
	})
}

// copyRules adds copies of the user's own rules about one room that are about another, right behind them, and says how many.
func copyRules(set *pushrules.Ruleset, from, to matrix.RoomID) (added int, err error) {
	for _, kind := range []string{pushrules.KindOverride, pushrules.KindRoom, pushrules.KindUnderride} {
		for _, rule := range slices.Clone(*rulesOf(set, kind)) {
			moved, about := movedRule(kind, rule, from, to)
			if !about || rule.Default {
				continue
			}
			if _, err := set.Get(kind, moved.RuleID); err == nil {
				continue
			}
			if err := set.Put(kind, moved, "", rule.RuleID); err != nil {
				return added, err
			}
			made, err := set.Get(kind, moved.RuleID)
			if err != nil {
				return added, err
			}
			made.Enabled = rule.Enabled
			added++
		}
	}
	return added, nil
}

// movedRule is a rule about one room made to be about another; about is false if it is about neither.
func movedRule(kind string, rule pushrules.Rule, from, to matrix.RoomID) (_ pushrules.Rule, about bool) {
	id := rule.RuleID
	rule.RuleID = strings.ReplaceAll(id, string(from), string(to))
	if kind == pushrules.KindRoom {
		return rule, id == string(from)
	}
	rule.Conditions = slices.Clone(rule.Conditions)
	for i := range rule.Conditions {
		c := &rule.Conditions[i]
		if c.Kind == "event_match" && c.Key != nil && *c.Key == "room_id" && c.Pattern != nil && *c.Pattern == string(from) {
			pattern := string(to)
			c.Pattern = &pattern
			about = true
		}
	}
	if rule.RuleID == id {
		rule.RuleID = id + "." + string(to)
	}
	return rule, about
}

func ignoreNotFound(err error) error {
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	}
	return err
}
