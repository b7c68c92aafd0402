package api

import (
	"encoding/json"
	"strings"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/pushrules"
	"hanok/users"
)

// spec: cs/getPushRules
func (a *API) pushRules(r *endpoint.Request) (any, error) {
	rules, err := a.Users.PushRules.Get(r.Ctx(), a.DB, requester(r).UserID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"global": rules}, nil
}

// spec: cs/getPushRulesGlobal
func (a *API) pushRulesGlobal(r *endpoint.Request) (any, error) {
	return a.Users.PushRules.Get(r.Ctx(), a.DB, requester(r).UserID)
}

// pushRulesOfKind is not in the specification any more; there are clients that ask for it.
func (a *API) pushRulesOfKind(r *endpoint.Request) (any, error) {
	rules, err := a.Users.PushRules.Get(r.Ctx(), a.DB, requester(r).UserID)
	if err != nil {
		return nil, err
	}
	list, err := rules.Rules(r.Var("kind"))
	if err != nil {
		return nil, err
	}
	return append([]pushrules.Rule{}, *list...), nil // [] rather than null
}

// spec: cs/getPushRule
func (a *API) pushRule(r *endpoint.Request) (any, error) {
	return a.Users.PushRules.Rule(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"))
}

// badPushRule answers requests that name no rule and no part of one, for which the reason is a parameter rather than the endpoint.
func (a *API) badPushRule(*endpoint.Request) (any, error) {
	return nil, matrix.InvalidParam("The path of a push rule is /pushrules/global/{kind}/{ruleId}, with /enabled or /actions behind it.")
}

// spec: cs/setPushRule
func (a *API) setPushRule(r *endpoint.Request) (any, error) {
	var rule users.NewPushRule
	if err := r.Decode(&rule); err != nil {
		return nil, err
	}
	// Some clients name the neighbour with its scope and kind in front.
	last := func(id string) string { return id[strings.LastIndexByte(id, '/')+1:] }
	return nil, a.Users.PushRules.Put(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"),
		last(r.Query("before")), last(r.Query("after")), rule)
}

// spec: cs/deletePushRule
func (a *API) deletePushRule(r *endpoint.Request) (any, error) {
	return nil, a.Users.PushRules.Delete(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"))
}

// spec: cs/isPushRuleEnabled
func (a *API) pushRuleEnabled(r *endpoint.Request) (any, error) {
	rule, err := a.Users.PushRules.Rule(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"))
	if err != nil {
		return nil, err
	}
	return map[string]bool{"enabled": rule.Enabled}, nil
}

// spec: cs/setPushRuleEnabled
func (a *API) setPushRuleEnabled(r *endpoint.Request) (any, error) {
	var req struct {
		Enabled *bool `json:"enabled"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.Enabled == nil {
		return nil, matrix.MissingParam("enabled is missing.")
	}
	return nil, a.Users.PushRules.SetEnabled(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"), *req.Enabled)
}

// spec: cs/getPushRuleActions
func (a *API) pushRuleActions(r *endpoint.Request) (any, error) {
	rule, err := a.Users.PushRules.Rule(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"))
	if err != nil {
		return nil, err
	}
	return map[string]any{"actions": rule.Actions}, nil
}

// spec: cs/setPushRuleActions
func (a *API) setPushRuleActions(r *endpoint.Request) (any, error) {
	var req struct {
		Actions []json.RawMessage `json:"actions"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.Actions == nil {
		return nil, matrix.MissingParam("actions is missing.")
	}
	return nil, a.Users.PushRules.SetActions(r.Ctx(), requester(r).UserID, r.Var("kind"), r.Var("ruleId"), req.Actions)
}
