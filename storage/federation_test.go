package storage_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

func write(t *testing.T, db *storage.DB, fn func(tx *storage.Tx) error) {
	t.Helper()
	if err := db.Write(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func TestOutbox(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		pdu := func(dest string, pos int, room int, keepUntil matrix.Timestamp) storage.OutboxPDU {
			return storage.OutboxPDU{
				Destination: matrix.ServerName(dest), Position: storage.Position(pos), Room: storage.RoomNID(room),
				EventID: matrix.EventID(fmt.Sprintf("$%d", pos)), KeepUntil: keepUntil,
			}
		}
		write(t, db, func(tx *storage.Tx) error {
			pdus := []storage.OutboxPDU{
				pdu("a", 1, 7, 0), pdu("a", 2, 8, 0), pdu("a", 3, 7, 101), pdu("a", 4, 7, 100), pdu("a", 5, 7, 0), pdu("b", 1, 7, 0),
			}
			if err := storage.AddOutboxPDUs(ctx, tx, pdus); err != nil {
				return err
			}
			if err := storage.AddOutboxPDUs(ctx, tx, pdus[:2]); err != nil { // again, as after a crash
				return err
			}
			for i := range 3 {
				e := storage.OutboxEDU{ID: storage.Position(100 + i), Type: "m.x", Content: []byte{0, byte(i)}, ExpiresAt: matrix.Timestamp(i)}
				to := []matrix.ServerName{"a"}
				if i == 0 {
					to = append(to, "c")
				}
				if err := storage.AddOutboxEDU(ctx, tx, to, e); err != nil {
					return err
				}
			}
			return storage.PutOutboxTransaction(ctx, tx, storage.OutboxTransaction{Destination: "a", ID: "t", LastPDU: 1, LastEDU: 100})
		})
		positions := func(dest matrix.ServerName, upTo storage.Position, limit int) (out []storage.Position) {
			t.Helper()
			pdus, err := storage.FindOutboxPDUs(ctx, db, dest, upTo, limit)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range pdus {
				out = append(out, p.Position)
			}
			return out
		}
		expect := func(what string, got, want any) {
			t.Helper()
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: %s", what, d)
			}
		}
		expect("all", positions("a", 99, 99), []storage.Position{1, 2, 3, 4, 5})
		expect("first", positions("a", 3, 2), []storage.Position{1, 2})
		n, err := storage.CountOutboxPDUs(ctx, db, "a", 3)
		expect("count", []any{n, err}, []any{3, nil})
		dests, err := storage.FindOutboxDestinations(ctx, db)
		expect("destinations", []any{len(dests), err}, []any{3, nil})
		edus, err := storage.FindOutboxEDUs(ctx, db, "a", 101, 9)
		if err != nil {
			t.Fatal(err)
		}
		expect("EDUs", edus, []storage.OutboxEDU{
			{ID: 100, Type: "m.x", Content: []byte{0, 0}}, {ID: 101, Type: "m.x", Content: []byte{0, 1}, ExpiresAt: 1},
		})
		// The newest of each room stays, what must be kept, and what is under way.
		write(t, db, func(tx *storage.Tx) error { return storage.CollapseOutbox(ctx, tx, "a", 1, 100) })
		expect("collapsed", positions("a", 99, 99), []storage.Position{1, 2, 3, 5})
		txn, err := storage.GetOutboxTransaction(ctx, db, "a")
		if err != nil {
			t.Fatal(err)
		}
		write(t, db, func(tx *storage.Tx) error { return storage.FinishOutboxTransaction(ctx, tx, txn) })
		expect("finished", positions("a", 99, 99), []storage.Position{2, 3, 5})
		expect("others", positions("b", 99, 99), []storage.Position{1})
		if _, err := storage.GetOutboxTransaction(ctx, db, "a"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("after the end: %v", err)
		}
		bodies := func() (n int64) {
			t.Helper()
			if err := db.QueryRow(ctx, `SELECT COUNT(*) FROM outbox_edu_bodies`).Scan(&n); err != nil {
				t.Fatal(err)
			}
			return n
		}
		write(t, db, func(tx *storage.Tx) error { return storage.DeleteDeliveredEDUs(ctx, tx) })
		expect("bodies while c waits for one", bodies(), int64(3))
		write(t, db, func(tx *storage.Tx) error {
			if err := storage.FinishOutboxTransaction(ctx, tx, storage.OutboxTransaction{Destination: "c", LastEDU: 100}); err != nil {
				return err
			}
			return storage.DeleteDeliveredEDUs(ctx, tx)
		})
		expect("bodies", bodies(), int64(2))
	})
}

func TestOutboxNewcomers(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		rows := []storage.OutboxNewcomer{{Room: 1, Server: "a", Since: 5, Until: 100, Events: 50}, {Room: 2, Server: "a", Since: 6, Until: 200, Events: 50}}
		write(t, db, func(tx *storage.Tx) error { return storage.PutOutboxNewcomers(ctx, tx, rows) })
		rows[1].Events = 49
		write(t, db, func(tx *storage.Tx) error { return storage.PutOutboxNewcomers(ctx, tx, rows[1:]) })
		for _, now := range []matrix.Timestamp{100, 0} {
			found, err := storage.OutboxNewcomers(ctx, db, now)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(rows[1:], found); d != "" {
				t.Errorf("at %d: %s", now, d)
			}
			write(t, db, func(tx *storage.Tx) error { return storage.DropOutboxNewcomers(ctx, tx, 100) })
		}
	})
}

func TestServerKeysAndBackoff(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		key := storage.ServerKey{Server: "a", KeyID: "ed25519:x", Public: []byte{0, 1}, ValidUntil: 5, FetchedAt: 3, Document: []byte("{}")}
		old := storage.ServerKey{Server: "a", KeyID: "ed25519:y", Public: []byte{2}, ValidUntil: 6, Expired: true, FetchedAt: 3, Document: []byte("{}")}
		write(t, db, func(tx *storage.Tx) error { return storage.PutServerKeys(ctx, tx, []storage.ServerKey{key, old}) })
		key.ValidUntil = 9
		write(t, db, func(tx *storage.Tx) error { return storage.PutServerKeys(ctx, tx, []storage.ServerKey{key}) })
		got, err := storage.FindServerKeys(ctx, db, "a")
		if d := cmp.Diff([]storage.ServerKey{key, old}, got); d != "" || err != nil {
			t.Errorf("%v %s", err, d)
		}

		b := storage.ServerBackoff{Server: "a", FailingSince: 1, RetryAt: 2, Attempts: 3, Reason: "refused"}
		write(t, db, func(tx *storage.Tx) error { return storage.PutServerBackoff(ctx, tx, b) })
		b.Attempts = 4
		write(t, db, func(tx *storage.Tx) error { return storage.PutServerBackoff(ctx, tx, b) })
		all, err := storage.FindServerBackoffs(ctx, db)
		if d := cmp.Diff([]storage.ServerBackoff{b}, all); d != "" || err != nil {
			t.Errorf("%v %s", err, d)
		}
		retries := func(server matrix.ServerName, want int64) {
			t.Helper()
			write(t, db, func(tx *storage.Tx) error {
				n, err := storage.RequestRetry(ctx, tx, server)
				if n != want {
					t.Errorf("%d servers are to be tried again, not %d", n, want)
				}
				return err
			})
		}
		retries("b", 0)
		if asked, err := storage.FindRequestedRetries(ctx, db); len(asked) != 0 || err != nil {
			t.Errorf("%v %v", asked, err)
		}
		retries("a", 1)
		if asked, err := storage.FindRequestedRetries(ctx, db); len(asked) != 1 || err != nil {
			t.Errorf("%v %v", asked, err)
		}
		write(t, db, func(tx *storage.Tx) error { return storage.PutServerBackoff(ctx, tx, b) })
		retries("", 1)
		write(t, db, func(tx *storage.Tx) error { return storage.DeleteServerBackoff(ctx, tx, "a") })
		if all, err = storage.FindServerBackoffs(ctx, db); len(all) != 0 || err != nil {
			t.Errorf("%v %v", all, err)
		}
	})
}

func TestInboundTransactions(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		write(t, db, func(tx *storage.Tx) error {
			return storage.PutInboundTransaction(ctx, tx, storage.InboundTransaction{Origin: "a", ID: "1", Digest: []byte("one"), Response: []byte("first"), Received: 9})
		})
		second := storage.InboundTransaction{Origin: "a", ID: "1", Digest: []byte("two"), Response: []byte("second"), Received: 10}
		write(t, db, func(tx *storage.Tx) error { return storage.PutInboundTransaction(ctx, tx, second) })
		got, err := storage.GetInboundTransaction(ctx, db, "a", "1")
		if d := cmp.Diff(second, got); d != "" || err != nil {
			t.Errorf("%v %s", err, d)
		}
		if _, err := storage.GetInboundTransaction(ctx, db, "b", "1"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("another origin's: %v", err)
		}
		waiting, err := storage.FindInboundRooms(ctx, db)
		if len(waiting) != 0 || err != nil {
			t.Errorf("%v %v", waiting, err)
		}
		pdus := []storage.InboundPDU{{ID: 1, Origin: "a", Room: "!r", PDU: []byte("{}")}, {ID: 2, Origin: "a", Room: "!r", PDU: []byte("{0}")}}
		write(t, db, func(tx *storage.Tx) error { return storage.AddInboundPDUs(ctx, tx, pdus) })
		write(t, db, func(tx *storage.Tx) error { return storage.DeleteInboundPDUs(ctx, tx, []storage.Position{1}) })
		left, err := storage.FindInboundPDUs(ctx, db, "!r", 0, 9)
		if d := cmp.Diff(pdus[1:], left); d != "" || err != nil {
			t.Errorf("%v %s", err, d)
		}
		write(t, db, func(tx *storage.Tx) error { return storage.DeleteInboundTransactions(ctx, tx, 11) })
		if _, err := storage.GetInboundTransaction(ctx, db, "a", "1"); !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("after its time: %v", err)
		}
	})
}
