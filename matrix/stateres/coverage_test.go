package stateres

import (
	"strings"
	"testing"

	"hanok/matrix/roomversion"
)

// The rules of the algorithms, as the oracle has them. It can be told to ignore one.
// spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
const (
	rulePowerLevels    = "power events: power levels are"
	rulePowerRules     = "power events: join rules are"
	rulePowerBans      = "power events: bans are"
	rulePowerKicks     = "power events: leaves are"
	rulePowerOthers    = "power events: memberships are if somebody else sets them"
	ruleAuthDifference = "full conflicted set: the auth difference belongs to it"
	ruleSubgraph       = "full conflicted set: the conflicted state subgraph belongs to it"
	ruleTopological    = "reverse topological power ordering: events come after their auth events"
	ruleGreaterPower   = "reverse topological power ordering: greater power first"
	rulePowerClock     = "reverse topological power ordering: then the earlier clock"
	ruleMainline       = "mainline ordering: by position, greater first"
	ruleMainlineBack   = "mainline ordering: the mainline goes back to the first power levels"
	ruleMainlineBranch = "mainline ordering: events may build on it by way of power levels off it"
	ruleMainlineClock  = "mainline ordering: then the earlier clock"
	ruleCheck          = "iterative auth checks: only allowed events count"
	ruleAuthEvents     = "iterative auth checks: what the state lacks comes from the auth events"
	ruleRejected       = "iterative auth checks: but not from rejected ones"
	rulePowerChains    = "algorithm 1: what is in the auth chains of power events goes with them"
	ruleStart          = "algorithm 2: starts from the unconflicted state, in v12 from nothing"
	ruleUnconflicted   = "algorithm 5: the unconflicted state stays"

	rule1Levels  = "v1: power levels before members"
	rule1Rules   = "v1: join rules before members"
	rule1Depth   = "v1: by ascending depth"
	rule1Check   = "v1: events that affect authorisation must be allowed after the one before"
	rule1Stop    = "v1: ends at the first that is not"
	rule1Allowed = "v1: of others, the last that is allowed"
)

var (
	rulesV1 = []string{rule1Levels, rule1Rules, rule1Depth, rule1Check, rule1Stop, rule1Allowed}
	rulesV2 = []string{
		rulePowerLevels, rulePowerRules, rulePowerBans, rulePowerKicks, rulePowerOthers, ruleAuthDifference,
		ruleTopological, ruleGreaterPower, rulePowerClock, ruleMainline, ruleMainlineBack, ruleMainlineBranch, ruleMainlineClock,
		ruleCheck, ruleAuthEvents, ruleRejected, rulePowerChains, ruleStart, ruleUnconflicted,
	}
)

// obeys reports whether a rule counts.
func (w *world) obeys(rule string) bool { return w.broken != rule }

// TestScenariosCoverRules: an algorithm without one of the rules fails some scenario.
func TestScenariosCoverRules(t *testing.T) {
	files := scenarioFiles(t)
	for _, algorithm := range []struct {
		version roomversion.ID
		rules   []string
		resolve func(*world, []state) (state, error)
	}{
		{"1", rulesV1, (*world).resolveWholeV1},
		{"11", rulesV2, (*world).resolveWhole},
		{"12", append([]string{ruleSubgraph}, rulesV2...), (*world).resolveWhole},
	} {
		for _, rule := range append([]string{""}, algorithm.rules...) {
			var caught []string
			for name, lines := range files {
				text := strings.Join(lines, "\n")
				// The oracle has all events, and is not made for thousands.
				if !runsIn(lines, algorithm.version) || strings.Contains(text, "\nlose ") || strings.Contains(text, " times ") {
					continue
				}
				if len(runScenario(lines, algorithm.version, rule, algorithm.resolve)) > 0 {
					caught = append(caught, name)
				}
			}
			if rule == "" && len(caught) > 0 {
				t.Errorf("v%s: the oracle fails %v", algorithm.version, caught)
			}
			if rule != "" && len(caught) == 0 {
				t.Errorf("v%s: no scenario misses the rule %q", algorithm.version, rule)
			}
		}
	}
}
