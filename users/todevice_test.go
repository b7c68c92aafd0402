package users

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
)

// pending returns the events waiting for a device.
func (w *world) pending(t *testing.T, user matrix.UserID, device matrix.DeviceID) (events []string, last storage.Position) {
	t.Helper()
	barrier(w.db)
	messages, _, err := w.ToDevice.Pending(t.Context(), w.db, user, device, 0, w.db.Current(), 1000)
	must(t, err)
	for _, m := range messages {
		events = append(events, string(m.Event))
		last = m.Position
	}
	return events, last
}

func TestToDevice(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		w.login(t, alice, "A1")
		w.login(t, alice, "A2")
		w.login(t, bob, "B")
		w.settle()
		messages := Messages{
			alice: {"A1": rawJSON(`{ "n": 1 }`), "*": rawJSON(`{"n":"all"}`), "NONE": rawJSON(`{}`)},
			carol: {"*": rawJSON(`{"n":1.5}`)},
		}
		for range 2 { // the second is the same transaction
			must(t, w.ToDevice.Send(ctx, bob, "B", "txn\x00", "m.x", messages))
		}
		event := func(content string) string {
			return `{"content":` + content + `,"sender":"@bob:here.test","type":"m.x"}`
		}
		got, last := w.pending(t, alice, "A1")
		if diff := cmp.Diff([]string{event(`{"n":1}`)}, got); diff != "" {
			t.Error(diff)
		}
		got, _ = w.pending(t, alice, "A2")
		if diff := cmp.Diff([]string{event(`{"n":"all"}`)}, got); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]matrix.UserID{alice}, w.notifier.takeUsers()); diff != "" {
			t.Error(diff)
		}
		sent := w.outbox.take()
		if len(sent) != 1 || sent[0].Type != "m.direct_to_device" || !cmp.Equal(sent[0].To, []matrix.ServerName{"there.test"}) {
			t.Fatalf("sent %s", encode(sent))
		}
		var m directToDevice
		must(t, decode(sent[0].Content, &m, "edu"))
		if m.Sender != bob || m.Type != "m.x" || len(m.MessageID) == 0 || len(m.MessageID) > 32 || string(m.Messages[carol]["*"]) != `{"n":1.5}` {
			t.Errorf("sent %s", sent[0].Content)
		}
		// Another device may use the same transaction ID.
		must(t, w.ToDevice.Send(ctx, alice, "A1", "txn\x00", "m.x", Messages{alice: {"A1": rawJSON(`{}`)}}))
		if got, _ := w.pending(t, alice, "A1"); len(got) != 2 {
			t.Errorf("pending %v", got)
		}
		// What was delivered goes, the rest stays.
		must(t, w.ToDevice.Acknowledge(ctx, alice, "A1", last-1))
		if got, _ := w.pending(t, alice, "A1"); len(got) != 2 {
			t.Errorf("pending %v", got)
		}
		must(t, w.ToDevice.Acknowledge(ctx, alice, "A1", last))
		if got, _ := w.pending(t, alice, "A1"); len(got) != 1 {
			t.Errorf("pending %v", got)
		}
		if got, _ := w.pending(t, alice, "A2"); len(got) != 1 {
			t.Errorf("another device's messages went: %v", got)
		}
		must(t, w.ToDevice.Acknowledge(ctx, alice, "NONE", last))
	})
}

func TestToDevicePages(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		for i := range 7 {
			must(t, w.ToDevice.Send(ctx, alice, "A", fmt.Sprint(i), "m.x", Messages{alice: {"A": rawJSON(fmt.Sprintf(`{"n":%d}`, i))}}))
		}
		barrier(w.db)
		to := w.db.Current()
		var from storage.Position
		var seen strings.Builder
		for page := 0; ; page++ {
			messages, more, err := w.ToDevice.Pending(ctx, w.db, alice, "A", from, to, 3)
			must(t, err)
			for _, m := range messages {
				seen.WriteString(strings.TrimPrefix(strings.Split(string(m.Event), "}")[0], `{"content":{"n":`))
				from = m.Position
			}
			if more != (page < 2) {
				t.Errorf("page %d: more=%v", page, more)
			}
			if !more {
				break
			}
		}
		if seen.String() != "0123456" {
			t.Errorf("seen %s", seen.String())
		}
		// The oldest go when there are too many.
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error { return storage.TrimToDevice(ctx, tx, alice, "A", 4, 1000) }))
		got, _ := w.pending(t, alice, "A")
		if len(got) != 4 || !strings.Contains(got[0], `"n":3`) {
			t.Errorf("after trimming: %v", got)
		}
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			return storage.TrimToDevice(ctx, tx, alice, "A", 4, int64(len(got[3])+len(got[2])))
		}))
		if got, _ := w.pending(t, alice, "A"); len(got) != 2 || !strings.Contains(got[0], `"n":5`) {
			t.Errorf("after trimming by size: %v", got)
		}
	})
}

func TestToDeviceRefusals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		one := func(content string) Messages { return Messages{alice: {"A": rawJSON(content)}} }
		many := Messages{alice: {}}
		for i := range maxToDeviceCount + 1 {
			many[alice][matrix.DeviceID(fmt.Sprint(i))] = rawJSON(`{}`)
		}
		for name, c := range map[string]struct {
			eventType string
			messages  Messages
			code      string
		}{
			"plain room key": {"m.room_key", one(`{}`), "M_FORBIDDEN"},
			"no type":        {"", one(`{}`), "M_INVALID_PARAM"},
			"nul type":       {"\x00", one(`{}`), "M_INVALID_PARAM"},
			"long type":      {strings.Repeat("x", 256), one(`{}`), "M_INVALID_PARAM"},
			"string":         {"m.x", one(`"x"`), "M_BAD_JSON"},
			"broken":         {"m.x", one(`{`), "M_NOT_JSON"},
			"duplicate":      {"m.x", one(`{"a":1,"a":2}`), "M_BAD_JSON"},
			"big":            {"m.x", one(`{"x":"` + strings.Repeat("x", maxToDevice) + `"}`), "M_TOO_LARGE"},
			"user":           {"m.x", Messages{"nonsense": {"A": rawJSON(`{}`)}}, "M_INVALID_PARAM"},
			"device":         {"m.x", Messages{alice: {"\x00": rawJSON(`{}`)}}, "M_INVALID_PARAM"},
			"many":           {"m.x", many, "M_TOO_LARGE"},
		} {
			if err := w.ToDevice.Send(ctx, alice, "A", name, c.eventType, c.messages); !matrix.HasCode(err, c.code) {
				t.Errorf("%s: got %v, want %s", name, err, c.code)
			}
		}
		if got, _ := w.pending(t, alice, "A"); len(got) != 0 {
			t.Errorf("refused messages are pending: %v", got)
		}
	})
}

func TestReceiveToDevice(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		w.settle()
		edu := func(id, sender, eventType string) []byte {
			return encode(map[string]any{"message_id": id, "sender": sender, "type": eventType,
				"messages": map[string]any{string(alice): map[string]any{"*": map[string]int{"n": 1}}, "@x:elsewhere.test": map[string]any{"*": 1}}})
		}
		for range 3 {
			must(t, w.ToDevice.Receive(ctx, "there.test", edu("id1", "@carol:there.test", "m.x")))
		}
		// Message IDs of different servers have nothing to do with each other.
		must(t, w.ToDevice.Receive(ctx, "elsewhere.test", edu("id1", "@dan:elsewhere.test", "m.x")))
		got, _ := w.pending(t, alice, "A")
		want := []string{
			`{"content":{"n":1},"sender":"@carol:there.test","type":"m.x"}`,
			`{"content":{"n":1},"sender":"@dan:elsewhere.test","type":"m.x"}`,
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		for _, bad := range [][]byte{
			edu("id2", "@alice:here.test", "m.x"), edu("id3", "@x:elsewhere.test", "m.x"), edu("id4", "nonsense", "m.x"),
			edu("", "@carol:there.test", "m.x"), edu(strings.Repeat("x", 33), "@carol:there.test", "m.x"), edu("id5", "@carol:there.test", ""),
			edu("id6", "@carol:there.test", "m.room_key"), []byte(`{}`), []byte(`[]`), []byte(`{`), []byte(`{"messages":[]}`),
			[]byte(`{"message_id":"id7","sender":"@carol:there.test","type":"m.x","messages":{"@alice:here.test":{"A":"x"}}}`),
			[]byte(`{"message_id":"id8","sender":"@carol:there.test","type":"m.x","messages":{"@alice:here.test":"x"}}`),
		} {
			must(t, w.ToDevice.Receive(ctx, "there.test", bad))
		}
		if got, _ := w.pending(t, alice, "A"); len(got) != 2 {
			t.Errorf("malformed messages are pending: %v", got)
		}
		// The notes of what was received do not stay for ever.
		w.clock.advance(31 * 24 * time.Hour)
		must(t, w.core.expire(ctx))
		var n int
		must(t, w.db.QueryRow(ctx, `SELECT count(*) FROM to_device_received`).Scan(&n))
		if n != 0 {
			t.Errorf("%d notes left", n)
		}
	})
}
