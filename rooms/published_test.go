package rooms_test

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/rooms"
)

// found are the names and sizes of a directory's rooms, sorted.
func found(t testing.TB, s *server, q rooms.PublicRoomsRequest) []string {
	t.Helper()
	page, err := s.PublicRooms(ctx, q)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, r := range page.Chunk {
		names = append(names, fmt.Sprintf("%s %d", r.Name, r.NumJoined))
	}
	slices.Sort(names)
	if len(names) != page.Total {
		t.Errorf("%d rooms on a page of %d", len(names), page.Total)
	}
	return names
}

// The directory follows what happens to rooms: their names, members, and whether they are published.
func TestPublicRoomsFollow(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice, bob := s.user("alice"), s.user("bob")
	publish := func(room matrix.RoomID, published bool) {
		t.Helper()
		if err := s.SetPublished(ctx, alice, room, published, false); err != nil {
			t.Fatal(err)
		}
	}
	want := func(q rooms.PublicRoomsRequest, names ...string) {
		t.Helper()
		if diff := cmp.Diff(append([]string{}, names...), found(t, s, q)); diff != "" {
			t.Error(diff)
		}
	}
	all := rooms.PublicRoomsRequest{}
	want(all)
	one := s.create(alice, rooms.CreateRequest{Name: "Café One", Preset: "public_chat", Published: true})
	two := s.create(alice, rooms.CreateRequest{Name: "Two", Topic: "한옥", Preset: "public_chat"})
	want(all, "Café One 1")
	publish(two, true)
	s.join(bob, two)
	want(all, "Café One 1", "Two 2")
	want(rooms.PublicRoomsRequest{Search: "CAFE"}, "Café One 1")
	want(rooms.PublicRoomsRequest{Search: "하"}, "Two 2")
	want(rooms.PublicRoomsRequest{Search: "three"})
	s.set(alice, two, "m.room.name", "", `{"name":"Three"}`)
	want(rooms.PublicRoomsRequest{Search: "three"}, "Three 2")
	space := "m.space"
	want(rooms.PublicRoomsRequest{RoomTypes: []*string{&space}})
	want(rooms.PublicRoomsRequest{RoomTypes: []*string{&space, nil}}, "Café One 1", "Three 2")

	publish(one, false)
	want(all, "Three 2")
	s.set(alice, one, "m.room.name", "", `{"name":"Hidden"}`)
	want(all, "Three 2")
	publish(one, true)
	want(all, "Hidden 1", "Three 2")

	for _, user := range []matrix.UserID{alice, bob} {
		if _, err := s.Leave(ctx, rooms.MemberRequest{Room: two, Sender: user}); err != nil {
			t.Fatal(err)
		}
	}
	want(all, "Hidden 1")
	s.join(bob, two) // it is still public
	want(all, "Hidden 1", "Three 1")
	s.restart()
	want(all, "Hidden 1", "Three 1")

	s.create(alice, rooms.CreateRequest{Name: "Ours", Published: true, Content: []byte(`{"m.federate":false}`)})
	want(rooms.PublicRoomsRequest{Search: "ours"}, "Ours 1")
	want(rooms.PublicRoomsRequest{Search: "ours", Server: true})
}

// Nobody loses a change that is committed while the directory is read.
func TestPublicRoomsRace(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice := s.user("alice")
	var ids []matrix.RoomID
	for range 5 {
		ids = append(ids, s.create(alice, rooms.CreateRequest{Name: "x", Preset: "public_chat", Published: true}))
	}
	var writers sync.WaitGroup
	for n, room := range ids {
		writers.Go(func() {
			for i := range 30 {
				s.set(alice, room, "m.room.name", "", fmt.Sprintf(`{"name":"%d of %d"}`, i, n))
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		if _, err := s.PublicRooms(ctx, rooms.PublicRoomsRequest{Search: "of"}); err != nil {
			t.Fatal(err)
		}
	}
	for n := range ids {
		name := fmt.Sprintf("29 of %d", n)
		if got := found(t, s, rooms.PublicRoomsRequest{Search: name}); len(got) != 1 || got[0] != name+" 1" {
			t.Errorf("%q found %q", name, got)
		}
	}
}

var publishedRooms = flag.Int("published-rooms", 10_000, "rooms in the directory of BenchmarkPublicRooms")

// BenchmarkPublicRooms reads pages of 20 of the directory, while rooms in it change. x-floor is the ratio to looking through the names of all rooms in memory.
func BenchmarkPublicRooms(b *testing.B) {
	s := newNetwork(b).server("bench.example")
	alice := s.user("alice")
	ids := make([]matrix.RoomID, *publishedRooms)
	names := make([]string, len(ids))
	var wg sync.WaitGroup
	for lane := range 64 {
		wg.Go(func() {
			for i := lane; i < len(ids); i += 64 {
				names[i] = fmt.Sprintf("room number %d of many", i)
				ids[i] = s.create(alice, rooms.CreateRequest{Name: names[i], Topic: strings.Repeat("about this and that ", 5), Preset: "public_chat", Published: true})
			}
		})
	}
	wg.Wait()
	read := func(b *testing.B, q rooms.PublicRoomsRequest) {
		if page, err := s.PublicRooms(ctx, q); err != nil || len(page.Chunk) == 0 {
			b.Fatal(page, err)
		}
	}
	for name, q := range map[string]rooms.PublicRoomsRequest{
		"page": {Limit: 20}, "search": {Limit: 20, Search: "NUMBER 77"}, "type": {Limit: 20, RoomTypes: []*string{nil}},
	} {
		b.Run(name, func(b *testing.B) {
			read(b, q)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				read(b, q)
			}
			took := b.Elapsed() / time.Duration(b.N)
			b.StopTimer()
			start := time.Now()
			const floors = 20
			hits := 0
			for range floors {
				for _, name := range names {
					if strings.Contains(name, "number 77") {
						hits++
					}
				}
			}
			floor := time.Since(start) / floors
			if hits == 0 {
				b.Fatal("the term is in no name")
			}
			b.ReportMetric(float64(took)/float64(floor), "x-floor")
		})
	}
	b.Run("changed", func(b *testing.B) {
		b.ReportAllocs()
		for i := range b.N {
			b.StopTimer()
			s.set(alice, ids[i%len(ids)], "m.room.topic", "", fmt.Sprintf(`{"topic":"%d"}`, i))
			b.StartTimer()
			read(b, rooms.PublicRoomsRequest{Limit: 20})
		}
	})
	b.Run("restarted", func(b *testing.B) {
		for range b.N {
			b.StopTimer()
			s.restart()
			b.StartTimer()
			read(b, rooms.PublicRoomsRequest{Limit: 20})
		}
	})
}
