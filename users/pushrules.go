package users

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/pushrules"
	"hanok/storage"
)

// PushRules are the users' push rules: the predefined ones, with each user's changes and own rules over them. Only the
// changes are stored, so that everybody gets the predefined rules of a newer version.
// spec: client-server-api#push-rules
type PushRules struct {
	*core

	mu      sync.Mutex
	cache   *recent.Map[matrix.UserID, *pushrules.Compiled]
	checked storage.Position // the cache is right up to here
	changes int              // counts up whenever somebody's rules turn out to have changed
}

func newPushRules(c *core) *PushRules {
	return &PushRules{core: c, cache: recent.NewMap[matrix.UserID, *pushrules.Compiled](10_000)}
}

// NewPushRule is the body of PUT /pushrules/global/{kind}/{ruleId}.
type NewPushRule struct {
	Pattern    *string               `json:"pattern,omitempty"`
	Conditions []pushrules.Condition `json:"conditions,omitempty"`
	Actions    []json.RawMessage     `json:"actions"`
}

// What a user's changes may take in the database, and up to what size the compiled rules are cached.
const (
	maxPushRuleBytes   = 2 << 20
	maxCachedPushRules = 32 << 10
)

// storedRules is what a user changed.
type storedRules struct {
	// Own are the user's rules by kind, most important first.
	Own map[string][]pushrules.Rule `json:"own,omitempty"`
	// Changed are changes to predefined rules, by kind and ID.
	Changed map[string]map[string]ruleChange `json:"changed,omitempty"`

	position storage.Position
	size     int // bytes
}

type ruleChange struct {
	Enabled *bool             `json:"enabled,omitzero"`
	Actions []json.RawMessage `json:"actions,omitzero"` // nil: unchanged
}

// readRules returns what a user changed; nothing if there is nothing.
func readRules(ctx context.Context, q storage.Querier, user matrix.UserID) (*storedRules, error) {
	raw, pos, err := storage.GetPushRules(ctx, q, user)
	if errors.Is(err, storage.ErrNotFound) {
		return &storedRules{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("push rules: %w", err)
	}
	s := &storedRules{position: pos, size: len(raw)}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("stored push rules: %w", err)
	}
	return s, nil
}

var ruleKinds = []string{pushrules.KindOverride, pushrules.KindContent, pushrules.KindRoom, pushrules.KindSender, pushrules.KindUnderride}

// rulesOf returns the list of one of ruleKinds.
func rulesOf(set *pushrules.Ruleset, kind string) *[]pushrules.Rule {
	list, err := set.Rules(kind)
	if err != nil {
		panic(err) // the kind is one of ruleKinds
	}
	return list
}

// ruleset puts a user's changes over the predefined rules. The user's own come first in each kind, but for
// the master rule, which is before everything. spec: client-server-api#push-rules
func (s *storedRules) ruleset(user matrix.UserID) *pushrules.Ruleset {
	set := pushrules.DefaultWithPolls(user)
	for _, kind := range ruleKinds {
		list := rulesOf(set, kind)
		for i := range *list {
			r := &(*list)[i]
			c := s.Changed[kind][r.RuleID]
			if c.Enabled != nil {
				r.Enabled = *c.Enabled
			}
			if c.Actions != nil {
				r.Actions = c.Actions
			}
		}
		at := 0
		if len(*list) > 0 && (*list)[0].RuleID == pushrules.MasterRule {
			at = 1
		}
		*list = slices.Insert(*list, at, s.Own[kind]...)
	}
	return set
}

// changesOf is the reverse: what makes a rule set differ from the predefined one.
func changesOf(user matrix.UserID, set *pushrules.Ruleset) *storedRules {
	s := &storedRules{Own: map[string][]pushrules.Rule{}, Changed: map[string]map[string]ruleChange{}}
	predefined := pushrules.DefaultWithPolls(user)
	for _, kind := range ruleKinds {
		s.Changed[kind] = map[string]ruleChange{}
		for _, r := range *rulesOf(set, kind) {
			was, err := predefined.Get(kind, r.RuleID)
			if !r.Default || err != nil {
				s.Own[kind] = append(s.Own[kind], r)
				continue
			}
			var c ruleChange
			if r.Enabled != was.Enabled {
				c.Enabled = &r.Enabled
			}
			if !bytes.Equal(encode(r.Actions), encode(was.Actions)) {
				c.Actions = r.Actions
			}
			if c.Enabled != nil || c.Actions != nil {
				s.Changed[kind][r.RuleID] = c
			}
		}
	}
	return s
}

func pushRulesContent(user matrix.UserID, s *storedRules) json.RawMessage {
	return encode(map[string]any{"global": s.ruleset(user)})
}

// Get returns a user's whole rule set. Predefined rules are up to date with this server's version.
func (p *PushRules) Get(ctx context.Context, q storage.Querier, user matrix.UserID) (*pushrules.Ruleset, error) {
	s, err := readRules(ctx, q, user)
	if err != nil {
		return nil, err
	}
	return s.ruleset(user), nil
}

// Compiled returns the rule set ready to be evaluated, as of the last visible change. It is cached, so that an
// event can be evaluated for many users without asking the database.
func (p *PushRules) Compiled(ctx context.Context, user matrix.UserID) (*pushrules.Compiled, error) {
	if err := p.forgetChanged(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	compiled, ok := p.cache.Get(user)
	changes := p.changes
	p.mu.Unlock()
	if ok {
		return compiled, nil
	}
	s, err := readRules(ctx, p.DB, user)
	if err != nil {
		return nil, err
	}
	compiled = pushrules.Compile(user, s.ruleset(user))
	p.mu.Lock()
	defer p.mu.Unlock()
	// Rules that changed since they were read must not be kept; very large ones are not worth the memory.
	if p.changes == changes && s.size <= maxCachedPushRules {
		p.cache.Put(user, compiled)
	}
	return compiled, nil
}

// forgetChanged drops cached rules that were changed, by this process or another.
func (p *PushRules) forgetChanged(ctx context.Context) error {
	now := p.DB.Current()
	p.mu.Lock()
	if p.cache.Len() == 0 {
		p.checked = max(p.checked, now)
	}
	checked := p.checked
	p.mu.Unlock()
	if now <= checked {
		return nil
	}
	changed, err := storage.ChangedPushRules(ctx, p.DB, checked, now)
	if err != nil {
		return fmt.Errorf("changed push rules: %w", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, user := range changed {
		p.cache.Remove(user)
		p.changes++
	}
	p.checked = max(p.checked, now)
	return nil
}

// Rule returns one rule: M_NOT_FOUND if there is none, also of a kind there is none of. spec: cs/getPushRule
func (p *PushRules) Rule(ctx context.Context, user matrix.UserID, kind, ruleID string) (*pushrules.Rule, error) {
	set, err := p.Get(ctx, p.DB, user)
	if err != nil {
		return nil, err
	}
	rule, err := set.Get(kind, ruleID)
	if matrix.HasCode(err, "M_INVALID_PARAM") {
		return nil, matrix.NotFound("There is no such kind of push rule")
	}
	return rule, err
}

// change edits a user's rule set in one transaction, and wakes the user's devices.
func (p *PushRules) change(ctx context.Context, user matrix.UserID, edit func(*pushrules.Ruleset) error) error {
	err := p.DB.Write(ctx, func(tx *storage.Tx) error {
		s, err := readRules(ctx, tx, user)
		if err != nil {
			return err
		}
		set := s.ruleset(user)
		if err := edit(set); err != nil {
			return err
		}
		changes := encode(changesOf(user, set))
		if len(changes) > maxPushRuleBytes {
			return matrix.TooLarge("The push rules would be larger than %d bytes", maxPushRuleBytes)
		}
		pos, err := tx.NextPosition()
		if err != nil {
			return err
		}
		p.wake(tx, user)
		return storage.PutPushRules(ctx, tx, user, changes, pos)
	})
	if err != nil {
		return fmt.Errorf("change push rules: %w", err)
	}
	return nil
}

// Put adds or replaces a rule of the user's own; before and after place it next to another. spec: cs/setPushRule
func (p *PushRules) Put(ctx context.Context, user matrix.UserID, kind, ruleID, before, after string, rule NewPushRule) error {
	if rule.Actions == nil {
		return matrix.MissingParam("actions is required")
	}
	r := pushrules.Rule{RuleID: ruleID, Pattern: rule.Pattern, Conditions: rule.Conditions, Actions: rule.Actions}
	return p.change(ctx, user, func(set *pushrules.Ruleset) error { return set.Put(kind, r, before, after) })
}

// Delete removes a rule of the user's own; a predefined one is M_INVALID_PARAM. spec: cs/deletePushRule
func (p *PushRules) Delete(ctx context.Context, user matrix.UserID, kind, ruleID string) error {
	return p.change(ctx, user, func(set *pushrules.Ruleset) error { return set.Delete(kind, ruleID) })
}

// SetEnabled turns a rule on or off. spec: cs/setPushRuleEnabled
func (p *PushRules) SetEnabled(ctx context.Context, user matrix.UserID, kind, ruleID string, enabled bool) error {
	return p.change(ctx, user, func(set *pushrules.Ruleset) error {
		r, err := set.Get(kind, ruleID)
		if err == nil {
			r.Enabled = enabled
		}
		return err
	})
}

// SetActions replaces the actions of a rule. spec: cs/setPushRuleActions
func (p *PushRules) SetActions(ctx context.Context, user matrix.UserID, kind, ruleID string, actions []json.RawMessage) error {
	if actions == nil {
		return matrix.MissingParam("actions is required")
	}
	return p.change(ctx, user, func(set *pushrules.Ruleset) error { return set.SetActions(kind, ruleID, actions) })
}
