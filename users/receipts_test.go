package users

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hanok/matrix"
)

func TestReceipts(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		const room = matrix.RoomID("!r:here.test")
		w.rooms.join(room, alice, bob, carol)
		w.settle()
		from := w.db.Current()
		receipt := func(kind string, event matrix.EventID, order int64, thread string) Receipt {
			return Receipt{Room: room, User: alice, Type: kind, EventID: event, Order: order, Thread: thread}
		}
		must(t, w.Receipts.Set(ctx, receipt(ReceiptRead, "$two", 2, ""), receipt(ReceiptReadPrivate, "$three", 3, ""), receipt(ReceiptFullyRead, "$one", 1, "")))
		sent := w.outbox.take()
		want := fmt.Sprintf(`{"!r:here.test":{"m.read":{"@alice:here.test":{"event_ids":["$two"],"data":{"ts":%d}}}}}`, w.core.now())
		if len(sent) != 1 || sent[0].Type != "m.receipt" || !cmp.Equal(sent[0].To, []matrix.ServerName{"there.test"}) {
			t.Fatalf("sent %s", encode(sent))
		}
		if got := canonical(t, sent[0].Content); got != canonical(t, []byte(want)) {
			t.Errorf("sent %s, want %s", got, want)
		}
		if w.notifier.rooms[room] != 1 {
			t.Errorf("room woken %d times", w.notifier.rooms[room])
		}
		see := func(observer matrix.UserID) []Receipt {
			t.Helper()
			barrier(w.db)
			all := mustGet[[]Receipt](t)(w.Receipts.InRoom(ctx, w.db, room, observer))
			changed := mustGet[[]Receipt](t)(w.Receipts.Changed(ctx, w.db, []matrix.RoomID{room}, observer, from, w.db.Current()))
			slices.SortFunc(changed, func(a, b Receipt) int { return int(a.Position - b.Position) })
			if diff := cmp.Diff(all, changed); diff != "" {
				t.Errorf("changed since the start: %s", diff)
			}
			return all
		}
		ignore := cmpopts.IgnoreFields(Receipt{}, "Position", "At")
		public := []Receipt{receipt(ReceiptRead, "$two", 2, "")}
		if diff := cmp.Diff(public, see(bob), ignore); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(append(public, receipt(ReceiptReadPrivate, "$three", 3, "")), see(alice), ignore); diff != "" {
			t.Error(diff)
		}
		if own := mustGet[[]Receipt](t)(w.Receipts.OfUser(ctx, w.db, room, alice)); len(own) != 2 {
			t.Errorf("own receipts %v", own)
		}
		marker := func() string {
			t.Helper()
			return string(mustGet[json.RawMessage](t)(w.AccountData.Get(ctx, alice, room, "m.fully_read")))
		}
		if marker() != `{"event_id":"$one"}` {
			t.Errorf("fully read %s", marker())
		}

		// Nothing moves back, nor counts as news when it stays.
		w.settle()
		must(t, w.Receipts.Set(ctx, receipt(ReceiptRead, "$one", 1, ""), receipt(ReceiptReadPrivate, "$two", 2, ""), receipt(ReceiptFullyRead, "$zero", 0, "")))
		must(t, w.Receipts.Set(ctx, receipt(ReceiptRead, "$two", 2, "")))
		if diff := cmp.Diff(public, see(bob), ignore); diff != "" {
			t.Error(diff)
		}
		if sent := w.outbox.take(); len(sent) != 0 {
			t.Errorf("sent %s", encode(sent))
		}
		// Each thread moves by itself.
		must(t, w.Receipts.Set(ctx, receipt(ReceiptRead, "$one", 1, "main"), receipt(ReceiptRead, "$t", 1, "$root")))
		if got := see(bob); len(got) != 3 {
			t.Errorf("receipts %v", got)
		}
		// A place that is not known moves.
		must(t, w.Receipts.Set(ctx, receipt(ReceiptRead, "$unknown", 0, "")))
		if got := see(bob); got[len(got)-1].EventID != "$unknown" {
			t.Errorf("receipts %v", got)
		}
		for name, change := range map[string]func(*Receipt){
			"type": func(r *Receipt) { r.Type = "m.nonsense" }, "event": func(r *Receipt) { r.EventID = "nonsense" },
			"nul": func(r *Receipt) { r.EventID = "$x\x00:here.test" }, "thread": func(r *Receipt) { r.Thread = "nonsense" },
			"thread nul": func(r *Receipt) { r.Thread = "$\x00:x" }, "room": func(r *Receipt) { r.Room = "nonsense" },
			"marker in thread": func(r *Receipt) { r.Type, r.Thread = ReceiptFullyRead, "main" },
		} {
			bad := receipt(ReceiptRead, "$nine", 9, "")
			change(&bad)
			if err := w.Receipts.Set(ctx, receipt(ReceiptRead, "$nine", 9, ""), bad); !matrix.HasCode(err, "M_INVALID_PARAM") {
				t.Errorf("%s: %v", name, err)
			}
		}
		if got := see(bob); len(got) != 3 || got[2].EventID != "$unknown" {
			t.Errorf("a refused request had effects: %v", got)
		}
	})
}

// Few changes on the server or many: a user is told of those in their rooms.
func TestChangedReceipts(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		const mine = matrix.RoomID("!mine:here.test")
		for _, others := range []int{1, manyReceipts + 10} {
			barrier(w.db)
			from := w.db.Current()
			var batch []Receipt
			for i := range others {
				user := matrix.UserID(fmt.Sprintf("@u%d:there.test", i))
				batch = append(batch, Receipt{Room: "!other:here.test", User: user, Type: ReceiptRead, EventID: matrix.EventID(fmt.Sprint("$", others))})
			}
			batch = append(batch, Receipt{Room: mine, User: carol, Type: ReceiptRead, EventID: matrix.EventID(fmt.Sprint("$", others))})
			must(t, w.Receipts.ReceiveRemote(ctx, batch...))
			barrier(w.db)
			got := mustGet[[]Receipt](t)(w.Receipts.Changed(ctx, w.db, []matrix.RoomID{"!empty:here.test", mine}, "@alice:here.test", from, w.db.Current()))
			if len(got) != 1 || got[0].User != carol {
				t.Errorf("among %d others: %v", others, got)
			}
		}
	})
}

func TestRemoteReceipts(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		const room = matrix.RoomID("!r:here.test")
		w.rooms.join(room, alice, carol)
		w.settle()
		r := Receipt{Room: room, User: carol, Type: ReceiptRead, EventID: "$one", At: 5}
		private, bad, future := r, r, r
		private.Type, bad.EventID, future.At, future.EventID = ReceiptReadPrivate, "nonsense", 1<<60, "$future"
		must(t, w.Receipts.ReceiveRemote(ctx, private, bad, future, r))
		must(t, w.Receipts.ReceiveRemote(ctx))
		if sent := w.outbox.take(); len(sent) != 0 {
			t.Errorf("sent %v", sent)
		}
		got := mustGet[[]Receipt](t)(w.Receipts.InRoom(ctx, w.db, room, alice))
		if len(got) != 1 || got[0].EventID != "$one" || got[0].At != 5 {
			t.Errorf("receipts %v", got)
		}
		if w.notifier.rooms[room] != 1 {
			t.Error("the room was not woken")
		}
	})
}

func TestProfiles(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		set := func(field, value string) bool {
			t.Helper()
			return mustGet[bool](t)(w.Profiles.Set(ctx, alice, field, rawJSON(value)))
		}
		if !set("displayname", `"Alice \u0000 ♥"`) || set("displayname", `"Alice \u0000 ♥"`) {
			t.Error("changes are not told from repetitions")
		}
		set("avatar_url", `"mxc://here.test/a"`)
		set("m.tz", `"Asia/Seoul"`)
		set("org.example.x", `{"b":1.5,"a":[null]}`)
		profile := mustGet[map[string]json.RawMessage](t)(w.Profiles.Get(ctx, alice))
		want := map[string]json.RawMessage{
			"displayname": rawJSON(`"Alice \u0000 ♥"`), "avatar_url": rawJSON(`"mxc://here.test/a"`), "m.tz": rawJSON(`"Asia/Seoul"`),
			"org.example.x": rawJSON(`{"a":[null],"b":1.5}`),
		}
		if diff := cmp.Diff(want, profile); diff != "" {
			t.Error(diff)
		}
		name, avatar, err := w.Profiles.Local(ctx, alice)
		must(t, err)
		if name != "Alice \x00 ♥" || avatar != "mxc://here.test/a" {
			t.Errorf("local profile %q %q", name, avatar)
		}
		if got := mustGet[json.RawMessage](t)(w.Profiles.Field(ctx, alice, "m.tz")); string(got) != `"Asia/Seoul"` {
			t.Errorf("field %s", got)
		}
		if !mustGet[bool](t)(w.Profiles.Delete(ctx, alice, "m.tz")) || mustGet[bool](t)(w.Profiles.Delete(ctx, alice, "m.tz")) {
			t.Error("deletion is not told from nothing")
		}
		_, err = w.Profiles.Field(ctx, alice, "m.tz")
		wantCode(t, err, 404, "M_NOT_FOUND")
		_, err = w.Profiles.Get(ctx, "@nobody:here.test")
		wantCode(t, err, 404, "M_NOT_FOUND")
		if !set("avatar_url", `""`) {
			t.Error("an empty avatar does not remove it")
		}
		_, err = w.Profiles.Field(ctx, alice, "avatar_url")
		wantCode(t, err, 404, "M_NOT_FOUND")

		long := string(make([]byte, 300))
		big := `"` + string(slices.Repeat([]byte("x"), 40_000)) + `"`
		for _, c := range []struct{ field, value, code string }{
			{"", `1`, "M_INVALID_PARAM"}, {"Upper", `1`, "M_INVALID_PARAM"}, {"1x", `1`, "M_INVALID_PARAM"}, {"nul\x00", `1`, "M_INVALID_PARAM"},
			{"sp ace", `1`, "M_INVALID_PARAM"}, {long, `1`, "M_KEY_TOO_LARGE"}, {"displayname", `1`, "M_BAD_JSON"}, {"avatar_url", `null`, "M_BAD_JSON"},
			{"displayname", big, "M_INVALID_PARAM"}, {"avatar_url", big, "M_INVALID_PARAM"}, {"x", `{`, "M_NOT_JSON"}, {"x", ``, "M_NOT_JSON"},
			{"x", `{"a":1,"a":1}`, "M_BAD_JSON"}, {"x", `"` + string(slices.Repeat([]byte("x"), 70_000)) + `"`, "M_PROFILE_TOO_LARGE"},
		} {
			if _, err := w.Profiles.Set(ctx, alice, c.field, rawJSON(c.value)); !matrix.HasCode(err, c.code) {
				t.Errorf("%.20q = %.20s: got %v, want %s", c.field, c.value, err, c.code)
			}
		}
		set("one", big)
		_, err = w.Profiles.Set(ctx, alice, "two", rawJSON(big))
		wantCode(t, err, 400, "M_PROFILE_TOO_LARGE")
	})
}

func TestRemoteProfiles(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.remote.profile = map[string]json.RawMessage{
			"displayname": rawJSON(`"Carol"`), "avatar_url": rawJSON(`1`), "Bad Key": rawJSON(`1`), "broken": rawJSON(`{`), "ok": rawJSON(`{"a": 1}`),
		}
		got := mustGet[map[string]json.RawMessage](t)(w.Profiles.Get(ctx, carol))
		if diff := cmp.Diff(map[string]json.RawMessage{"displayname": rawJSON(`"Carol"`), "ok": rawJSON(`{"a":1}`)}, got); diff != "" {
			t.Error(diff)
		}
		if got := mustGet[json.RawMessage](t)(w.Profiles.Field(ctx, carol, "displayname")); string(got) != `"Carol"` {
			t.Errorf("field %s", got)
		}
		_, err := w.Profiles.Field(ctx, carol, "avatar_url")
		wantCode(t, err, 404, "M_NOT_FOUND")
		for _, failure := range []error{errDown, matrix.NotFound("no"), matrix.Forbidden("no")} {
			w.remote.profiles = failure
			_, err := w.Profiles.Get(ctx, carol)
			wantCode(t, err, 404, "M_NOT_FOUND")
		}
	})
}

func canonical(t *testing.T, raw []byte) string {
	t.Helper()
	var v any
	must(t, json.Unmarshal(raw, &v))
	return string(encode(v))
}

// What is read from the stream of receipts uses an index.
func TestReceiptQueriesUseIndexes(t *testing.T) {
	db := newWorld(openSQLite(t)).db
	for _, query := range []string{
		`SELECT room_id FROM receipts WHERE position > 1 AND position <= 2 AND (type = 'm.read' OR type = 'm.read.private' AND user_id = 'x')`,
		`SELECT room_id FROM receipts WHERE position > 1 AND position <= 2 AND room_id IN ('a', 'b')`,
		`SELECT type FROM account_data WHERE user_id = 'x' AND position > 1 AND position <= 2`,
		`SELECT user_id FROM device_list_changes WHERE position > 1 AND position <= 2`,
		`SELECT event FROM to_device WHERE user_id = 'x' AND device_id = 'y' AND position > 1 ORDER BY position LIMIT 5`,
	} {
		rows, err := db.Query(t.Context(), "EXPLAIN QUERY PLAN "+query)
		must(t, err)
		for rows.Next() {
			var id, parent, unused int64
			var detail string
			must(t, rows.Scan(&id, &parent, &unused, &detail))
			if len(detail) >= 4 && detail[:4] == "SCAN" || detail == "USE TEMP B-TREE FOR ORDER BY" {
				t.Errorf("%s: %s", query, detail)
			}
		}
		must(t, rows.Err())
	}
}

func TestReceiptContent(t *testing.T) {
	got := ReceiptContent([]Receipt{
		{User: "@a:x", Type: "m.read", EventID: "$1", At: 5},
		{User: "@b:x", Type: "m.read", EventID: "$1", Thread: "main", At: 6},
		{User: "@a:x", Type: "m.read.private", EventID: "$2", At: 7},
		{User: "@a:x", Type: "m.read", EventID: "$1", Thread: "main", At: 8}, // says less than the unthreaded one
	})
	const want = `{"$1":{"m.read":{"@a:x":{"ts":5},"@b:x":{"ts":6,"thread_id":"main"}}},"$2":{"m.read.private":{"@a:x":{"ts":7}}}}`
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}
