package users

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/pushrules"
)

func TestFollowUpgrade(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := context.Background()
		const user, from, to = matrix.UserID("@a:here.test"), matrix.RoomID("!old:here.test"), matrix.RoomID("!new:here.test")
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(w.FollowUpgrade(ctx, user, from, to)) // nothing to take over
		must(w.AccountData.SetTag(ctx, user, from, "m.favourite", json.RawMessage(`{"order":0.5}`)))
		must(w.AccountData.Set(ctx, user, "", "m.direct", json.RawMessage(`{"@b:x":["!other:x","!old:here.test"],"@c:x":["!other:x"]}`)))
		silent := []json.RawMessage{}
		room, key := string(from), "room_id"
		must(w.PushRules.Put(ctx, user, pushrules.KindRoom, room, "", "", NewPushRule{Actions: silent}))
		must(w.PushRules.SetEnabled(ctx, user, pushrules.KindRoom, room, false))
		must(w.PushRules.Put(ctx, user, pushrules.KindOverride, "mute", "", "", NewPushRule{
			Actions: silent, Conditions: []pushrules.Condition{{Kind: "event_match", Key: &key, Pattern: &room}},
		}))
		look := func() string {
			t.Helper()
			tags, err := w.AccountData.Tags(ctx, user, to)
			must(err)
			direct, err := w.AccountData.Get(ctx, user, "", "m.direct")
			must(err)
			set, err := w.PushRules.Get(ctx, w.db, user)
			must(err)
			b, err := json.Marshal([]any{tags, direct, set.Room, set.Override[1:3]})
			must(err)
			return string(b)
		}
		must(w.FollowUpgrade(ctx, user, from, to))
		const want = `[{"m.favourite":{"order":0.5}},{"@b:x":["!other:x","!old:here.test","!new:here.test"],"@c:x":["!other:x"]},` +
			`[{"rule_id":"!old:here.test","default":false,"enabled":false,"actions":[]},{"rule_id":"!new:here.test","default":false,"enabled":false,"actions":[]}],` +
			`[{"rule_id":"mute","default":false,"enabled":true,"conditions":[{"kind":"event_match","key":"room_id","pattern":"!old:here.test"}],"actions":[]},` +
			`{"rule_id":"mute.!new:here.test","default":false,"enabled":true,"conditions":[{"kind":"event_match","key":"room_id","pattern":"!new:here.test"}],"actions":[]}]]`
		if d := cmp.Diff(want, look()); d != "" {
			t.Fatal(d)
		}
		must(w.FollowUpgrade(ctx, user, from, to))
		if d := cmp.Diff(want, look()); d != "" {
			t.Errorf("a second time: %s", d)
		}
	})
}
