package storage_test

import (
	"context"
	"testing"

	"hanok/storage"
	"hanok/storage/storagetest"
)

func TestNotifications(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		events := func(list []storage.Notification, err error) (out []storage.EventNID) {
			t.Helper()
			must(err)
			for _, n := range list {
				out = append(out, n.Event)
			}
			return out
		}
		expect := func(what string, got []storage.EventNID, want ...storage.EventNID) {
			t.Helper()
			if len(got) != len(want) {
				t.Fatalf("%s: %v, want %v", what, got, want)
			}
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("%s: %v, want %v", what, got, want)
				}
			}
		}
		must(db.Write(ctx, func(tx *storage.Tx) error {
			for i := storage.Position(1); i <= 6; i++ {
				n := storage.Notification{User: 1, Room: 1, EventPos: 10 * i, Event: storage.EventNID(i), Thread: "main", Highlight: i%2 == 0, Pos: 100 + i/3}
				if i > 4 {
					n.Thread = "$t"
				}
				for range 2 { // an event notifies once
					if _, err := storage.AddNotification(ctx, tx, n); err != nil {
						return err
					}
				}
			}
			_, err := storage.AddNotification(ctx, tx, storage.Notification{User: 1, Room: 2, EventPos: 1, Event: 7, Thread: "main", Pos: 1})
			return err
		}))
		expect("all", events(storage.UnreadNotifications(ctx, db, 1, 1, 0, 0)), 1, 2, 3, 4, 5, 6)
		expect("after a receipt", events(storage.UnreadNotifications(ctx, db, 1, 1, 20, 0)), 3, 4, 5, 6)
		expect("main timeline read", events(storage.UnreadNotifications(ctx, db, 1, 1, 0, 60)), 5, 6)
		expect("newest first", events(storage.NotificationsBefore(ctx, db, 1, 1<<60, 1<<60, false, 4)), 6, 5, 4, 3)
		expect("further", events(storage.NotificationsBefore(ctx, db, 1, 101, 30, false, 9)), 2, 1, 7)
		expect("highlights", events(storage.NotificationsBefore(ctx, db, 1, 1<<60, 1<<60, true, 9)), 6, 4, 2)
		expect("what a pusher was not told of", events(storage.NotificationsAfter(ctx, db, 1, 20, 3)), 3, 4, 5)
		rooms, err := storage.RoomsWithNotifications(ctx, db, 1)
		if must(err); len(rooms) != 2 || rooms[0] != 1 || rooms[1] != 2 {
			t.Errorf("rooms with notifications: %v", rooms)
		}
		if rooms, err := storage.RoomsWithNotifications(ctx, db, 2); err != nil || len(rooms) != 0 {
			t.Errorf("rooms of somebody else: %v %v", rooms, err)
		}
		must(db.Write(ctx, func(tx *storage.Tx) error {
			if _, err := storage.DropEventNotifications(ctx, tx, 5); err != nil {
				return err
			}
			return storage.TrimNotifications(ctx, tx, 1, 1, 2)
		}))
		expect("trimmed", events(storage.UnreadNotifications(ctx, db, 1, 1, 0, 0)), 4, 6)
		expect("another room", events(storage.UnreadNotifications(ctx, db, 1, 2, 0, 0)), 7)
	})
}
