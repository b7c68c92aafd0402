package users

import (
	"fmt"
	"testing"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// BenchmarkAuthenticate is what every request costs before anything else.
func BenchmarkAuthenticate(b *testing.B) {
	w := newWorld(storagetest.Open(b))
	ctx := b.Context()
	var tokens []string
	for i := range 100 {
		a, err := w.Accounts.Register(ctx, Registration{Localpart: fmt.Sprint("u", i)})
		if err != nil {
			b.Fatal(err)
		}
		s, err := w.Sessions.Create(ctx, NewSession{UserID: a.UserID})
		if err != nil {
			b.Fatal(err)
		}
		tokens = append(tokens, s.AccessToken)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := w.Sessions.Authenticate(ctx, tokens[i%len(tokens)]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkSyncReads is what an incremental sync asks of this package when nothing has changed
// for this user, on a server with 10,000 changes by others since.
func BenchmarkSyncReads(b *testing.B) {
	w := newWorld(storagetest.Open(b))
	ctx := b.Context()
	const alice = matrix.UserID("@alice:here.test")
	var rooms []matrix.RoomID
	for i := range 1000 {
		rooms = append(rooms, matrix.RoomID(fmt.Sprintf("!%d:here.test", i)))
	}
	var to storage.Position
	err := w.db.Write(ctx, func(tx *storage.Tx) error {
		for i := range 10_000 {
			pos, err := tx.NextPosition()
			if err != nil {
				return err
			}
			to = pos
			other := matrix.UserID(fmt.Sprintf("@u%d:here.test", i))
			if _, err := storage.PutReceipt(ctx, tx, Receipt{Room: "!elsewhere:here.test", User: other, Type: ReceiptRead, EventID: "$x", Position: pos}); err != nil {
				return err
			}
			if err := storage.SetDeviceListChange(ctx, tx, other, pos, 0, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	barrier(w.db)
	for name, from := range map[string]storage.Position{"recent": to - 1, "after10k": 0} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				err := w.db.Read(ctx, func(tx *storage.Tx) error {
					if _, _, err := w.ToDevice.Pending(ctx, tx, alice, "A", from, to, 100); err != nil {
						return err
					}
					if _, err := w.AccountData.Changed(ctx, tx, alice, from, to); err != nil {
						return err
					}
					if _, err := w.Receipts.Changed(ctx, tx, rooms, alice, from, to); err != nil {
						return err
					}
					if _, err := w.Keys.Counts(ctx, tx, alice, "A"); err != nil {
						return err
					}
					_, err := w.DeviceLists.Changed(ctx, tx, alice, func(matrix.UserID) bool { return false }, from, to)
					return err
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
