package rooms_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// ChangedRooms answers from memory as from the database.
func TestChangedRooms(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		s := newNetwork(t).serverOn("a.example", dsn)
		alice, bob := s.user("alice"), s.user("bob")
		var ids []matrix.RoomID
		for i := range 6 {
			ids = append(ids, s.create(alice, rooms.CreateRequest{Preset: "public_chat", Name: fmt.Sprint(i)}))
		}
		s.join(bob, ids[1])
		at := []storage.Position{s.db.Current()}
		steps := [][]int{{0}, {1, 1, 2}, {}, {5, 4, 5}, {1}}
		for _, step := range steps {
			for _, i := range step {
				s.say(alice, ids[i], "x")
			}
			at = append(at, s.db.Current())
		}
		check := func(user matrix.UserID, mine []int) {
			t.Helper()
			for from := range at {
				for to := from; to < len(at); to++ {
					want := []matrix.RoomID{}
					for _, step := range steps[from:to] {
						for _, i := range step {
							if slices.Contains(mine, i) {
								want = append(want, ids[i])
							}
						}
					}
					slices.Sort(want)
					want = slices.Compact(want)
					got, err := s.ChangedRooms(ctx, user, at[from], at[to])
					if err != nil {
						t.Fatal(err)
					}
					slices.Sort(got)
					if s.memory && cmp.Diff(want, got) != "" {
						t.Errorf("%s, step %d to %d: %s", user, from, to, cmp.Diff(want, got))
					}
					for _, id := range want {
						if !slices.Contains(got, id) {
							t.Errorf("%s, step %d to %d lacks a room", user, from, to)
						}
					}
				}
			}
		}
		for _, s.memory = range []bool{true, false} {
			if !s.memory {
				s.restart()
			}
			check(alice, []int{0, 1, 2, 3, 4, 5})
			check(bob, []int{1})
		}
	})
}

// Whoever sees a position sees the memberships as of then, however the lists are remembered.
func TestMembershipsAreNeverStale(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice, bob := s.user("alice"), s.user("bob")
	room := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	s.create(bob, rooms.CreateRequest{})
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				until := s.db.Current()
				list, err := s.Memberships(ctx, bob)
				if err != nil {
					t.Error(err)
					return
				}
				now, err := s.MembershipOf(ctx, room, bob)
				if err != nil {
					t.Error(err)
					return
				}
				for _, m := range list {
					// now was read later: if it is no newer than until, the list has to have it.
					if m.Room == room && now.Position <= until && m.Position < now.Position {
						t.Errorf("at %d the list has the membership of %d, not that of %d", until, m.Position, now.Position)
						return
					}
				}
			}
		})
	}
	for i := range 60 {
		s.join(bob, room)
		s.must(s.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
		if i%10 == 0 {
			if err := s.Forget(ctx, bob, room); err != nil {
				t.Error(err)
			}
			if list, err := s.Memberships(ctx, bob); err != nil || len(list) != 1 {
				t.Error("a forgotten room is listed", err)
			}
		}
	}
	close(done)
	wg.Wait()
}

// BenchmarkChangedRooms is what an incremental sync asks first: of 1,000 rooms one changed.
func BenchmarkChangedRooms(b *testing.B) {
	s := newNetwork(b).server("bench.example")
	alice := s.user("alice")
	var wg sync.WaitGroup
	ids := make([]matrix.RoomID, 1000)
	for i := range 20 {
		wg.Go(func() {
			for j := range 50 {
				ids[i*50+j] = s.create(alice, rooms.CreateRequest{Name: fmt.Sprint(i, j)})
			}
		})
	}
	wg.Wait()
	since := s.db.Current()
	s.say(alice, ids[7], "x")
	b.ReportAllocs()
	for b.Loop() {
		changed, err := s.ChangedRooms(ctx, alice, since, s.db.Current())
		if err != nil || len(changed) != 1 {
			b.Fatal(changed, err)
		}
		if list, err := s.Memberships(ctx, alice); err != nil || len(list) != 1000 {
			b.Fatal(err)
		}
	}
}
