package users

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"hanok/matrix"
	"hanok/storage"
)

func TestAccountData(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		const room = matrix.RoomID("!r:here.test")
		w.settle()
		from := w.db.Current()
		must(t, w.AccountData.Set(ctx, alice, "", "m.direct", rawJSON(`{"b":0.5, "a":"nul\u0000"}`)))
		must(t, w.AccountData.Set(ctx, alice, room, "m.direct", rawJSON(`{"in":"room"}`)))
		must(t, w.AccountData.Set(ctx, bob, "", "m.direct", rawJSON(`{"bob":1}`)))
		if got := mustGet[json.RawMessage](t)(w.AccountData.Get(ctx, alice, "", "m.direct")); string(got) != `{"a":"nul\u0000","b":0.5}` {
			t.Errorf("content %s", got)
		}
		if diff := cmp.Diff([]matrix.UserID{alice, bob}, w.notifier.takeUsers()); diff != "" {
			t.Error(diff)
		}
		read := func(data []AccountDatum, err error) map[string]string {
			t.Helper()
			must(t, err)
			out := map[string]string{}
			for _, d := range data {
				if d.Type == "m.push_rules" {
					d.Content = rawJSON("rules")
				}
				out[string(d.Room)+" "+d.Type] = string(d.Content)
			}
			return out
		}
		want := map[string]string{" m.direct": `{"a":"nul\u0000","b":0.5}`, "!r:here.test m.direct": `{"in":"room"}`}
		if diff := cmp.Diff(want, read(w.AccountData.Changed(ctx, w.db, alice, from, w.db.Current()))); diff != "" {
			t.Error(diff)
		}
		want = map[string]string{" m.direct": want[" m.direct"], " m.push_rules": "rules"}
		if diff := cmp.Diff(want, read(w.AccountData.Global(ctx, w.db, alice))); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(map[string]string{"!r:here.test m.direct": `{"in":"room"}`}, read(w.AccountData.InRoom(ctx, w.db, alice, room))); diff != "" {
			t.Error(diff)
		}

		// Deleted data is gone, and followers see it as {}, once.
		barrier(w.db)
		from = w.db.Current()
		for range 2 {
			must(t, w.AccountData.Delete(ctx, alice, "", "m.direct"))
			must(t, w.AccountData.Delete(ctx, alice, "", "never.set"))
		}
		_, err := w.AccountData.Get(ctx, alice, "", "m.direct")
		wantCode(t, err, 404, "M_NOT_FOUND")
		barrier(w.db)
		if diff := cmp.Diff(map[string]string{" m.direct": `{}`}, read(w.AccountData.Changed(ctx, w.db, alice, from, w.db.Current()))); diff != "" {
			t.Error(diff)
		}
		if got := read(w.AccountData.Global(ctx, w.db, alice)); len(got) != 1 {
			t.Errorf("global data after deletion: %v", got)
		}

		// An empty object deletes, and is told to followers every time.
		for range 2 {
			barrier(w.db)
			from = w.db.Current()
			must(t, w.AccountData.Set(ctx, alice, room, "m.direct", rawJSON(`{}`)))
			_, err = w.AccountData.Get(ctx, alice, room, "m.direct")
			wantCode(t, err, 404, "M_NOT_FOUND")
			barrier(w.db)
			if diff := cmp.Diff(map[string]string{"!r:here.test m.direct": `{}`}, read(w.AccountData.Changed(ctx, w.db, alice, from, w.db.Current()))); diff != "" {
				t.Error(diff)
			}
		}

		rules := mustGet[json.RawMessage](t)(w.AccountData.Get(ctx, alice, "", "m.push_rules"))
		if !strings.HasPrefix(string(rules), `{"global":{`) {
			t.Errorf("push rules %.80s", rules)
		}
		for _, c := range []struct {
			room          matrix.RoomID
			kind, content string
			status        int
			code          string
		}{
			{"", "m.push_rules", `{}`, 405, "M_BAD_JSON"},
			{"", "m.fully_read", `{}`, 405, "M_BAD_JSON"},
			{room, "m.fully_read", `{}`, 405, "M_BAD_JSON"},
			{"", "m.x", `[]`, 400, "M_BAD_JSON"},
			{"", "m.x", `1`, 400, "M_BAD_JSON"},
			{"", "m.x", `{`, 400, "M_NOT_JSON"},
			{"", "m.x", ``, 400, "M_NOT_JSON"},
			{"", "m.x", `{"a":1,"a":2}`, 400, "M_BAD_JSON"},
			{"", "m.x", `{"a":"` + strings.Repeat("x", maxAccountData) + `"}`, 413, "M_TOO_LARGE"},
			{"nonsense", "m.x", `{}`, 400, "M_INVALID_PARAM"},
		} {
			wantCode(t, w.AccountData.Set(ctx, alice, c.room, c.kind, rawJSON(c.content)), c.status, c.code)
		}
		for _, name := range hostileNames {
			wantCode(t, w.AccountData.Set(ctx, alice, "", name, rawJSON(`{}`)), 400, "M_INVALID_PARAM")
			wantCode(t, w.AccountData.Delete(ctx, alice, "", name), 400, "M_INVALID_PARAM")
			_, err := w.AccountData.Get(ctx, alice, "", name)
			wantCode(t, err, 404, "M_NOT_FOUND")
		}
	})
}

func TestAccountDataIsBounded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			for i := range maxAccountDataTypes {
				d := storage.AccountDatum{Type: fmt.Sprint(i), Content: []byte("{}"), Position: 1}
				if err := storage.PutAccountData(ctx, tx, alice, d); err != nil {
					return err
				}
			}
			return nil
		}))
		wantCode(t, w.AccountData.Set(ctx, alice, "", "one.more", rawJSON(`{}`)), 413, "M_TOO_LARGE")
		must(t, w.AccountData.Set(ctx, alice, "", "0", rawJSON(`{"changed":true}`)))
		must(t, w.AccountData.Set(ctx, alice, "!r:here.test", "in.room", rawJSON(`{}`)))
		// What was deleted makes place.
		must(t, w.AccountData.Delete(ctx, alice, "", "7"))
		must(t, w.AccountData.Set(ctx, alice, "", "one.more", rawJSON(`{"a":1}`)))
		wantCode(t, w.AccountData.Set(ctx, alice, "", "and.another", rawJSON(`{}`)), 413, "M_TOO_LARGE")
	})
}

func TestTags(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		const room = matrix.RoomID("!r:here.test")
		tags := func() string {
			t.Helper()
			return string(encode(mustGet[map[string]json.RawMessage](t)(w.AccountData.Tags(ctx, alice, room))))
		}
		if tags() != `{}` {
			t.Errorf("tags %s", tags())
		}
		must(t, w.AccountData.SetTag(ctx, alice, room, "m.favourite", rawJSON(`{"order":0.1}`)))
		must(t, w.AccountData.SetTag(ctx, alice, room, "u.\"x\"", rawJSON(`{}`)))
		must(t, w.AccountData.SetTag(ctx, alice, room, "m.favourite", rawJSON(`{"order":0.2}`)))
		if got := tags(); got != `{"m.favourite":{"order":0.2},"u.\"x\"":{}}` {
			t.Errorf("tags %s", got)
		}
		if got := mustGet[json.RawMessage](t)(w.AccountData.Get(ctx, alice, room, "m.tag")); string(got) != `{"tags":`+tags()+`}` {
			t.Errorf("m.tag %s", got)
		}
		must(t, w.AccountData.DeleteTag(ctx, alice, room, "m.favourite"))
		barrier(w.db)
		from := w.db.Current()
		must(t, w.AccountData.DeleteTag(ctx, alice, room, "m.favourite"))
		barrier(w.db)
		if got := mustGet[[]AccountDatum](t)(w.AccountData.Changed(ctx, w.db, alice, from, w.db.Current())); len(got) != 0 {
			t.Errorf("deleting nothing changed %v", got)
		}
		if got := tags(); got != `{"u.\"x\"":{}}` {
			t.Errorf("tags %s", got)
		}
		// Whatever a client put there by itself does not get in the way.
		must(t, w.AccountData.Set(ctx, alice, room, "m.tag", rawJSON(`{"tags":"nonsense"}`)))
		must(t, w.AccountData.SetTag(ctx, alice, room, "a", rawJSON(`{}`)))
		if got := tags(); got != `{"a":{}}` {
			t.Errorf("tags %s", got)
		}
		for _, name := range hostileNames {
			wantCode(t, w.AccountData.SetTag(ctx, alice, room, name, rawJSON(`{}`)), 400, "M_INVALID_PARAM")
		}
		wantCode(t, w.AccountData.SetTag(ctx, alice, room, "x", rawJSON(`1`)), 400, "M_BAD_JSON")
		full := map[string]any{}
		for i := range maxTags {
			full[fmt.Sprint("t", i)] = struct{}{}
		}
		must(t, w.AccountData.Set(ctx, alice, room, "m.tag", encode(map[string]any{"tags": full})))
		wantCode(t, w.AccountData.SetTag(ctx, alice, room, "one.more", rawJSON(`{}`)), 413, "M_TOO_LARGE")
		must(t, w.AccountData.SetTag(ctx, alice, room, "t0", rawJSON(`{"order":0.5}`)))
		must(t, w.AccountData.DeleteTag(ctx, alice, room, "t1"))
		must(t, w.AccountData.SetTag(ctx, alice, room, "one.more", rawJSON(`{}`)))
		long := rawJSON(`{"x":"` + strings.Repeat("x", maxOneTimeKey-100) + `"}`)
		for i := range maxTags {
			if err := w.AccountData.SetTag(ctx, alice, room, fmt.Sprint("t", i), long); err != nil {
				wantCode(t, err, 413, "M_TOO_LARGE")
				return
			}
		}
		t.Error("tags of any size")
	})
}

// Whatever is set and deleted in whatever order, what Changed tells from any position makes
// of the state at that position the state of now.
func TestAccountDataStream(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		current := map[string]string{}
		states := map[storage.Position]map[string]string{}
		rapid.Check(t, func(r *rapid.T) {
			barrier(w.db)
			states[w.db.Current()] = copyOf(current)
			kind := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(r, "type")
			if rapid.Bool().Draw(r, "delete") {
				must(t, w.AccountData.Delete(ctx, alice, "", kind))
				delete(current, kind)
			} else {
				content := fmt.Sprintf(`{"n":%d}`, rapid.IntRange(1, 100).Draw(r, "n"))
				must(t, w.AccountData.Set(ctx, alice, "", kind, rawJSON(content)))
				current[kind] = content
			}
			barrier(w.db)
			for from, state := range states {
				got := copyOf(state)
				for _, d := range mustGet[[]AccountDatum](t)(w.AccountData.Changed(ctx, w.db, alice, from, w.db.Current())) {
					if got[d.Type] = string(d.Content); string(d.Content) == `{}` {
						delete(got, d.Type)
					}
				}
				if diff := cmp.Diff(current, got); diff != "" {
					r.Fatalf("from %d: %s", from, diff)
				}
			}
			if len(states) > 20 {
				clear(states)
			}
		})
	})
}

func copyOf(m map[string]string) map[string]string {
	c := map[string]string{}
	for k, v := range m {
		c[k] = v
	}
	return c
}
