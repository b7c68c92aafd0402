package users

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/pushrules"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

var notify = []json.RawMessage{json.RawMessage(`"notify"`)}

func TestPushRules(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		if diff := cmp.Diff(pushrules.DefaultWithPolls(alice), mustGet[*pushrules.Ruleset](t)(w.PushRules.Get(ctx, w.db, alice))); diff != "" {
			t.Fatal(diff)
		}
		pattern := "cake"
		content := NewPushRule{Pattern: &pattern, Actions: notify}
		put := func(id, before, after string) error {
			return w.PushRules.Put(ctx, alice, "content", id, before, after, content)
		}
		must(t, put("one", "", ""))
		must(t, put("two", "", ""))
		must(t, put("three", "", "two"))
		must(t, put("four", "one", ""))
		ids := func(kind string) string {
			t.Helper()
			set := mustGet[*pushrules.Ruleset](t)(w.PushRules.Get(ctx, w.db, alice))
			list, err := set.Rules(kind)
			must(t, err)
			var out []string
			for _, r := range *list {
				out = append(out, r.RuleID)
			}
			return strings.Join(out, " ")
		}
		if got := ids("content"); !strings.HasPrefix(got, "two three four one") {
			t.Errorf("content rules %s", got)
		}
		must(t, put("one", "two", ""))
		if got := ids("content"); !strings.HasPrefix(got, "one two three four") {
			t.Errorf("content rules %s", got)
		}
		wantCode(t, put("five", "none", ""), 400, "M_UNKNOWN")
		wantCode(t, put("five", "", ".m.rule.message"), 400, "M_UNKNOWN")
		wantCode(t, put(".five", "", ""), 400, "M_INVALID_PARAM")
		wantCode(t, put("a/b", "", ""), 400, "M_INVALID_PARAM")

		// The master rule stays before the user's own.
		must(t, w.PushRules.Put(ctx, alice, "override", "mine", "", "", NewPushRule{Conditions: []pushrules.Condition{}, Actions: notify}))
		if got := ids("override"); !strings.HasPrefix(got, ".m.rule.master mine ") {
			t.Errorf("override rules %s", got)
		}

		// Changed predefined rules keep their change; own rules keep enabled when replaced.
		must(t, w.PushRules.SetEnabled(ctx, alice, "override", ".m.rule.master", true))
		must(t, w.PushRules.SetActions(ctx, alice, "underride", ".m.rule.message", []json.RawMessage{}))
		must(t, w.PushRules.SetEnabled(ctx, alice, "content", "two", false))
		must(t, put("two", "", ""))
		for _, c := range []struct {
			kind, id string
			enabled  bool
			actions  int
		}{{"override", ".m.rule.master", true, 0}, {"underride", ".m.rule.message", true, 0}, {"content", "two", false, 1}, {"content", "one", true, 1}} {
			r := mustGet[*pushrules.Rule](t)(w.PushRules.Rule(ctx, alice, c.kind, c.id))
			if r.Enabled != c.enabled || len(r.Actions) != c.actions {
				t.Errorf("%s %s: %+v", c.kind, c.id, r)
			}
		}
		// Only changes are stored.
		raw, _, err := storage.GetPushRules(ctx, w.db, alice)
		must(t, err)
		if strings.Contains(string(raw), ".m.rule.contains_user_name") {
			t.Errorf("a rule that was not changed is stored: %s", raw)
		}
		// Changing back is no change.
		must(t, w.PushRules.SetEnabled(ctx, alice, "override", ".m.rule.master", false))
		raw, _, err = storage.GetPushRules(ctx, w.db, alice)
		must(t, err)
		if strings.Contains(string(raw), ".m.rule.master") {
			t.Errorf("a change taken back is stored: %s", raw)
		}

		must(t, w.PushRules.Delete(ctx, alice, "content", "three"))
		wantCode(t, w.PushRules.Delete(ctx, alice, "content", "three"), 404, "M_NOT_FOUND")
		wantCode(t, w.PushRules.Delete(ctx, alice, "override", ".m.rule.master"), 400, "M_INVALID_PARAM")
		wantCode(t, w.PushRules.SetEnabled(ctx, alice, "content", "none", true), 404, "M_NOT_FOUND")
		wantCode(t, w.PushRules.SetActions(ctx, alice, "content", "none", notify), 404, "M_NOT_FOUND")
		wantCode(t, w.PushRules.SetActions(ctx, alice, "content", "one", nil), 400, "M_MISSING_PARAM")
		_, err = w.PushRules.Rule(ctx, alice, "nonsense", "x")
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.PushRules.Rule(ctx, alice, "content", "\x00")
		wantCode(t, err, 404, "M_NOT_FOUND")
		for name, rule := range map[string]NewPushRule{
			"no actions": {Pattern: &pattern}, "no pattern": {Actions: notify},
			"action": {Pattern: &pattern, Actions: []json.RawMessage{rawJSON(`1`)}}, "broken": {Pattern: &pattern, Actions: []json.RawMessage{rawJSON(`{`)}},
		} {
			if _, ok := matrix.AsError(w.PushRules.Put(ctx, alice, "content", "bad", "", "", rule)); !ok {
				t.Errorf("%s: accepted", name)
			}
		}
	})
}

// Followers of account data see changed push rules, and the compiled rules follow, too.
func TestPushRulesAreFollowed(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		first := mustGet[*pushrules.Compiled](t)(w.PushRules.Compiled(ctx, alice))
		if mustGet[*pushrules.Compiled](t)(w.PushRules.Compiled(ctx, alice)) != first {
			t.Error("compiled twice")
		}
		w.settle()
		from := w.db.Current()
		must(t, w.PushRules.SetEnabled(ctx, alice, "override", ".m.rule.master", true))
		if woken := w.notifier.takeUsers(); len(woken) != 1 {
			t.Errorf("woken %v", woken)
		}
		changed := mustGet[[]AccountDatum](t)(w.AccountData.Changed(ctx, w.db, alice, from, w.db.Current()))
		if len(changed) != 1 || changed[0].Type != "m.push_rules" || changed[0].Position <= from {
			t.Fatalf("changed %+v", changed)
		}
		var content struct {
			Global pushrules.Ruleset `json:"global"`
		}
		must(t, json.Unmarshal(changed[0].Content, &content))
		if !content.Global.Override[0].Enabled {
			t.Errorf("content %s", changed[0].Content)
		}
		if mustGet[*pushrules.Compiled](t)(w.PushRules.Compiled(ctx, alice)) == first {
			t.Error("old compiled rules")
		}
	})
}

// However rules are changed and read at the same time, in the end the compiled rules are the new ones.
func TestCompiledRulesRace(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.register(t, "alice")
		event := pushrules.Flatten(testEvent(t))
		room := pushrules.Room{MemberCount: 2}
		stop := make(chan struct{})
		var readers sync.WaitGroup
		for range 4 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						if _, err := w.PushRules.Compiled(context.Background(), alice); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		for i := range 30 {
			off := i%2 == 0
			must(t, w.PushRules.SetEnabled(t.Context(), alice, "override", ".m.rule.master", off))
			barrier(w.db)
			c := mustGet[*pushrules.Compiled](t)(w.PushRules.Compiled(t.Context(), alice))
			if got := c.Evaluate(event, room); got.Notify == off {
				t.Fatalf("change %d: %+v with the master rule %v", i, got, off)
			}
		}
		close(stop)
		readers.Wait()
	})
}

func testEvent(t *testing.T) *event.Event {
	t.Helper()
	version, ok := roomversion.Get("11")
	if !ok {
		t.Fatal("no room version 11")
	}
	e, err := event.Parse(version, []byte(`{"auth_events":[],"content":{"body":"hello","msgtype":"m.text"},"depth":1,"hashes":{"sha256":"n4bQgYhMfWWaL-qgxVrQFaO_TxsrC4Is0V1sFbDwCgg"},"origin_server_ts":1,"prev_events":[],"room_id":"!r:here.test","sender":"@bob:here.test","signatures":{},"type":"m.room.message"}`))
	must(t, err)
	return e
}

func TestFilters(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		id := mustGet[string](t)(w.Filters.Create(ctx, alice, rawJSON(`{"room":{"timeline":{"limit":5}}}`)))
		again := mustGet[string](t)(w.Filters.Create(ctx, alice, rawJSON(`{ "room": {"timeline": {"limit": 5}} }`)))
		if id != again || id == "" || id[0] == '{' {
			t.Errorf("IDs %q and %q", id, again)
		}
		for range 2 { // the second from the cache
			if got := mustGet[json.RawMessage](t)(w.Filters.Get(ctx, alice, id)); string(got) != `{"room":{"timeline":{"limit":5}}}` {
				t.Errorf("filter %s", got)
			}
		}
		_, err := w.Filters.Get(ctx, bob, id)
		wantCode(t, err, 404, "M_NOT_FOUND")
		for _, name := range hostileNames {
			_, err := w.Filters.Get(ctx, alice, name)
			wantCode(t, err, 404, "M_NOT_FOUND")
		}
		for _, bad := range []string{
			`[]`, `1`, `{"presence":"x"}`, `{"room":{"timeline":[]}}`, `{"room":{"rooms":["nonsense"]}}`, `{"room":{"rooms":"!a:b"}}`,
			`{"presence":{"senders":["nonsense"]}}`, `{"room":{"state":{"types":[1]}}}`, `{"room":{"timeline":{"limit":"5"}}}`,
			`{"room":{"timeline":{"limit":-1}}}`, `{"event_format":"x"}`, `{"event_fields":[1]}`, `{"room":{"include_leave":1}}`,
			`{"account_data":{"not_rooms":["x"]}}`, `{"a":1,"a":2}`,
		} {
			if _, err := w.Filters.Create(ctx, alice, rawJSON(bad)); !matrix.HasCode(err, "M_BAD_JSON") {
				t.Errorf("%s: %v", bad, err)
			}
		}
		_, err = w.Filters.Create(ctx, alice, rawJSON(`{`))
		wantCode(t, err, 400, "M_NOT_JSON")
		_, err = w.Filters.Create(ctx, alice, rawJSON(`{"x":"`+strings.Repeat("x", maxFilter)+`"}`))
		wantCode(t, err, 413, "M_TOO_LARGE")
		for _, good := range []string{
			`{}`, `{"unknown":1}`, `{"room":null}`, `{"event_format":"federation","event_fields":["a.b"]}`,
			`{"room":{"rooms":["!a:b","!v12hash"],"state":{"lazy_load_members":true,"include_redundant_members":false},"timeline":{"limit":0,"contains_url":true,"org.matrix.x":1}}}`,
		} {
			if _, err := w.Filters.Create(ctx, alice, rawJSON(good)); err != nil {
				t.Errorf("%s: %v", good, err)
			}
		}
		// The oldest go.
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			for i := range 6 {
				if err := storage.PutFilter(ctx, tx, bob, string(rune('a'+i)), []byte(`{}`), matrix.Timestamp(i), 3); err != nil {
					return err
				}
			}
			return nil
		}))
		for id, want := range map[string]bool{"a": false, "c": false, "d": true, "f": true} {
			if _, err := w.Filters.Get(ctx, bob, id); (err == nil) != want {
				t.Errorf("filter %s: %v", id, err)
			}
		}
	})
}
