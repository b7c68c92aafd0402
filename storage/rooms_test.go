package storage_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

func eventRow(nid int, depth, pos int64) *storage.EventRow {
	return &storage.EventRow{
		NID: storage.EventNID(nid), ID: matrix.EventID("$" + string(rune('a'+nid))), Room: 7, Type: 1, Sender: 2, Depth: depth, Pos: storage.Position(pos),
		ReceivedTS: 1234, State: 5, Prev: []storage.EventNID{storage.EventNID(nid - 1)}, Auth: []storage.EventNID{3, 1 << 40}, JSON: []byte(`{"a":"` + "\x00" + `"}`),
	}
}

func TestEvents(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		rows := []*storage.EventRow{eventRow(10, 1, -4), eventRow(11, 2, -3), eventRow(12, 2, 5), eventRow(13, 3, 6), eventRow(14, 3, 0), eventRow(15, 2, 7)}
		rows[2].StateKey, rows[2].TxnID, rows[2].TxnDevice = 9, "t", "D"
		rows[3].TxnID, rows[3].Prev, rows[3].Auth = "u", []storage.EventNID{}, []storage.EventNID{}
		rows[4].Flags, rows[4].RedactedBy = storage.EventOutlier|storage.EventRejected, 12
		write(t, db, func(tx *storage.Tx) error { return storage.InsertEvents(ctx, tx, rows) })

		got, err := storage.EventsByNID(ctx, db, []storage.EventNID{14, 10, 12, 11, 13, 15, 99})
		if err != nil {
			t.Fatal(err)
		}
		slices.SortFunc(got, func(a, b *storage.EventRow) int { return int(a.NID - b.NID) })
		if diff := cmp.Diff(rows, got); diff != "" {
			t.Fatal(diff)
		}
		nids := func(page []storage.EventNID, err error) []int {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			out := []int{}
			for _, nid := range page {
				out = append(out, int(nid))
			}
			return out
		}
		if found, err := storage.EventsByID(ctx, db, []matrix.EventID{"$l", "$none"}); err != nil || len(found) != 1 || found[0].NID != 11 {
			t.Error(found, err)
		}
		for _, c := range []struct {
			name string
			want []int
			got  []int
		}{
			{"timeline", []int{15, 13, 12}, nids(storage.TimelineBackward(ctx, db, 7, 0, 100, 10))},
			{"timeline, a part", []int{13, 12}, nids(storage.TimelineBackward(ctx, db, 7, 4, 6, 10))},
			{"timeline, limited", []int{15}, nids(storage.TimelineBackward(ctx, db, 7, 0, 100, 1))},
			{"back", []int{13, 15, 12, 11, 10}, nids(storage.HistoryBackward(ctx, db, 7, 1<<60, 1<<60, 10))},
			{"back from a place", []int{12, 11}, nids(storage.HistoryBackward(ctx, db, 7, 2, 5, 2))},
			{"forward", []int{10, 11, 12, 15, 13}, nids(storage.HistoryForward(ctx, db, 7, 0, 0, 10))},
			{"forward from a place", []int{15, 13}, nids(storage.HistoryForward(ctx, db, 7, 2, 5, 10))},
			{"stream", []int{12, 13}, nids(storage.EventsAfter(ctx, db, 0, 6, 10))},
			{"another room", []int{}, nids(storage.HistoryForward(ctx, db, 8, 0, 0, 10))},
		} {
			if diff := cmp.Diff(c.want, c.got); diff != "" {
				t.Errorf("%s: %s", c.name, diff)
			}
		}
		if id, err := storage.EventByTxn(ctx, db, 2, "t", "D", 7, 1); err != nil || id != "$m" {
			t.Error(id, err)
		}
		if id, err := storage.EventByTxn(ctx, db, 2, "u", "", 7, 1); err != nil || id != "$n" {
			t.Error(id, err)
		}
		if _, err := storage.EventByTxn(ctx, db, 2, "t", "E", 7, 1); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
		if depth, at, err := storage.PlaceAt(ctx, db, 7, 6); err != nil || depth != 3 || at != 6 {
			t.Error(depth, at, err)
		}
		again := eventRow(20, 9, 9)
		again.TxnID, again.TxnDevice = "t", "D"
		if err := db.Write(ctx, func(tx *storage.Tx) error { return storage.InsertEvents(ctx, tx, []*storage.EventRow{again}) }); err == nil {
			t.Error("a transaction id was stored twice")
		}
		promoted := *rows[4]
		promoted.Flags, promoted.Pos, promoted.State, promoted.Prev = 0, 8, 6, []storage.EventNID{13, 15}
		write(t, db, func(tx *storage.Tx) error {
			if err := storage.UpdateEvent(ctx, tx, &promoted); err != nil {
				return err
			}
			return storage.EraseEvent(ctx, tx, 10, 14, []byte(`{}`))
		})
		if got, err = storage.EventsByNID(ctx, db, []storage.EventNID{14}); err != nil || cmp.Diff(&promoted, got[0]) != "" {
			t.Error(err, cmp.Diff(&promoted, got[0]))
		}
		if got, err = storage.EventsByNID(ctx, db, []storage.EventNID{10}); err != nil || string(got[0].JSON) != `{}` || got[0].RedactedBy != 14 {
			t.Error(got[0], err)
		}
		edges, err := storage.EdgesByNID(ctx, db, []storage.EventNID{14})
		if err != nil || cmp.Diff(edges[0], storage.EventEdges{NID: 14, Depth: 3, Prev: promoted.Prev, Auth: promoted.Auth}) != "" {
			t.Error(edges, err)
		}
	})
}

func TestMissingPrevs(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		write(t, db, func(tx *storage.Tx) error {
			err := storage.InsertMissingPrevs(ctx, tx, 7, []storage.MissingPrev{{ID: "$a", Child: 1, Depth: 5}, {ID: "$b", Child: 2, Depth: 9}, {ID: "$b", Child: 1, Depth: 5}})
			if err == nil {
				err = storage.InsertMissingPrevs(ctx, tx, 7, []storage.MissingPrev{{ID: "$a", Child: 1, Depth: 5}})
			}
			return err
		})
		got, err := storage.MissingPrevs(ctx, db, 7, 6, 10)
		if err != nil || cmp.Diff([]storage.MissingPrev{{ID: "$b", Child: 2, Depth: 9}}, got) != "" {
			t.Error(got, err)
		}
		write(t, db, func(tx *storage.Tx) error { return storage.DeleteMissingPrevs(ctx, tx, 7, []matrix.EventID{"$b"}) })
		for id, want := range map[matrix.EventID]int64{"$a": 5, "$b": 0} {
			if depth, ok, err := storage.DepthAfterMissing(ctx, db, 7, id); err != nil || depth != want || ok != (want > 0) {
				t.Error(id, depth, ok, err)
			}
		}
	})
}

func TestMemberships(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		set := func(user int, m storage.Membership, pos int) {
			write(t, db, func(tx *storage.Tx) error {
				return storage.UpsertMemberships(ctx, tx, []storage.MembershipRow{{Room: 7, User: storage.NameNID(user), Server: 50, Membership: m, Event: 1, Sender: 2, Pos: storage.Position(pos)}})
			})
		}
		left := func(want storage.Position) {
			t.Helper()
			if m, err := storage.MembershipOf(ctx, db, 7, 100); err != nil || m.LeftPos != want {
				t.Fatalf("left at %d, want %d (%v)", m.LeftPos, want, err)
			}
		}
		set(100, storage.MembershipInvite, 1)
		left(0)
		set(100, storage.MembershipJoin, 2)
		left(0)
		set(100, storage.MembershipLeave, 3)
		left(3)
		set(100, storage.MembershipInvite, 4)
		left(3)
		set(100, storage.MembershipBan, 5)
		left(3)
		write(t, db, func(tx *storage.Tx) error { return storage.SetForgotten(ctx, tx, 7, 100) })
		if m, _ := storage.MembershipOf(ctx, db, 7, 100); !m.Forgotten {
			t.Error("not forgotten")
		}
		set(100, storage.MembershipJoin, 6)
		left(0)
		if m, _ := storage.MembershipOf(ctx, db, 7, 100); m.Forgotten {
			t.Error("still forgotten after a join")
		}
		set(101, storage.MembershipJoin, 7)
		set(102, storage.MembershipLeave, 8)
		users, err := storage.JoinedOfServer(ctx, db, 7, 50)
		if err != nil || len(users) != 2 {
			t.Error(users, err)
		}
		for _, c := range []struct {
			server storage.NameNID
			before storage.Position
			want   bool
		}{{50, 6, false}, {50, 7, true}, {50, storage.EndOfStream, true}, {51, storage.EndOfStream, false}} {
			if joined, err := storage.ServerJoined(ctx, db, 7, c.server, c.before); err != nil || joined != c.want {
				t.Errorf("server %d joined before %d: %t, %v", c.server, c.before, joined, err)
			}
		}
		for server, want := range map[storage.NameNID]storage.NameNID{50: 100, 51: 0} {
			if oldest, err := storage.OldestJoin(ctx, db, 7, server); err != nil || oldest.User != want {
				t.Error(server, oldest, err)
			}
		}
		sharing, err := storage.SharingUsers(ctx, db, 101)
		if err != nil || len(sharing) != 2 {
			t.Error(sharing, err)
		}
		for server, want := range map[storage.NameNID]int{50: 2, 51: 0} {
			if of, err := storage.SharingUsersOf(ctx, db, 101, server); err != nil || len(of) != want {
				t.Error(server, of, err)
			}
		}
		if n, err := storage.CountMembers(ctx, db, 7, storage.MembershipJoin); err != nil || n != 2 {
			t.Error(n, err)
		}
		heroes, err := storage.FirstMembers(ctx, db, 7, storage.MembershipJoin, storage.MembershipInvite, 101, 5)
		if err != nil || cmp.Diff([]storage.NameNID{100}, heroes) != "" {
			t.Error(heroes, err)
		}
		if _, err := storage.MembershipOf(ctx, db, 8, 100); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	})
}

func TestRoomRows(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := t.Context()
		write(t, db, func(tx *storage.Tx) error {
			for range 2 {
				if err := storage.InsertRoom(ctx, tx, 7, "!r:x", "12"); err != nil {
					return err
				}
			}
			if err := storage.SetRoomHeads(ctx, tx, []storage.RoomHead{{NID: 7, Head: []storage.EventNID{5, 1 << 50}, State: 3, Pos: 9}}); err != nil {
				return err
			}
			if err := storage.InsertRoomStates(ctx, tx, []storage.RoomState{{Room: 7, Pos: 4, State: 1}, {Room: 7, Pos: 9, State: 3}}); err != nil {
				return err
			}
			return storage.SetPublished(ctx, tx, 7, true)
		})
		want := &storage.RoomRow{NID: 7, ID: "!r:x", Version: "12", Head: []storage.EventNID{5, 1 << 50}, State: 3, Pos: 9, Published: true}
		for _, get := range []func() (*storage.RoomRow, error){
			func() (*storage.RoomRow, error) { return storage.RoomByID(ctx, db, "!r:x") },
			func() (*storage.RoomRow, error) { return storage.RoomByNID(ctx, db, 7) },
		} {
			if got, err := get(); err != nil || cmp.Diff(want, got) != "" {
				t.Error(err, cmp.Diff(want, got))
			}
		}
		for pos, want := range map[storage.Position]int64{4: 1, 8: 1, 9: 3, 100: 3} {
			if got, err := storage.RoomStateAt(ctx, db, 7, pos); err != nil || got != want {
				t.Error(pos, got, err)
			}
		}
		if _, err := storage.RoomStateAt(ctx, db, 7, 3); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
		// A head that moves without an event in the timeline leaves the position.
		write(t, db, func(tx *storage.Tx) error {
			return storage.SetRoomHeads(ctx, tx, []storage.RoomHead{{NID: 7, Head: []storage.EventNID{6}, State: 4}})
		})
		if got, err := storage.RoomByNID(ctx, db, 7); err != nil || got.Pos != 9 || got.State != 4 {
			t.Error(got, err)
		}
		if _, err := storage.RoomByID(ctx, db, "!none:x"); !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
	})
}
