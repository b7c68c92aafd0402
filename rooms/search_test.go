package rooms_test

import (
	"fmt"
	"sync"
	"testing"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// search returns what was found, in order, as bodies.
func (s *server) search(q rooms.SearchRequest) []string {
	s.t.Helper()
	res, err := s.Search(ctx, q)
	if err != nil {
		s.t.Fatal(err)
	}
	out := []string{}
	for _, f := range res.Found {
		for _, key := range []string{"body", "name", "topic"} {
			if text, ok := f.Event.ContentString(key); ok {
				out = append(out, text)
			}
		}
		if f.Rank <= 0 {
			s.t.Errorf("rank %v", f.Rank)
		}
	}
	return out
}

func TestSearch(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		n := newNetwork(t)
		s := n.serverOn("a.example", dsn)
		alice, bob := s.user("alice"), s.user("bob")
		at := matrix.Timestamp(1000)
		say := func(user matrix.UserID, room matrix.RoomID, text string) matrix.EventID {
			t.Helper()
			at++
			id, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: "m.room.message", Content: fmt.Appendf(nil, `{"body":%q}`, text), Timestamp: at})
			s.must(id, err)
			return id
		}
		room := s.create(alice, rooms.CreateRequest{Preset: "public_chat", Name: "Marsians", Timestamp: 10})
		secret := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
		s.set(alice, secret, "m.room.topic", "", `{"topic":"x","m.topic":{"m.text":[{"mimetype":"text/html","body":"<b>rich</b>"},{"body":"rich plain"}]}}`)
		say(alice, room, "before Bob: Marsians")
		s.set(alice, room, "m.room.history_visibility", "", `{"history_visibility":"joined"}`)
		say(alice, room, "unseen Marsians")
		s.join(bob, room)
		say(alice, room, "Marsians and men and Marsians")
		gone := say(alice, room, "marsians gone")
		say(bob, room, "MARSIANS, by Bob, in a very long message about many other things, too")
		say(alice, room, "안녕하세요 화성인들은")
		if _, err := s.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: gone}, ""); err != nil {
			t.Fatal(err)
		}
		q := rooms.SearchRequest{Reader: rooms.Reader{User: alice}, Term: "marsians", Recent: true}
		expect(t, "recent", []string{"MARSIANS, by Bob, in a very long message about many other things, too", "Marsians and men and Marsians", "unseen Marsians", "before Bob: Marsians", "Marsians"}, s.search(q))
		q.Recent = false
		expect(t, "best first", []string{"Marsians", "Marsians and men and Marsians", "unseen Marsians", "before Bob: Marsians", "MARSIANS, by Bob, in a very long message about many other things, too"}, s.search(q))
		q.Keys = []string{"content.name"}
		expect(t, "by key", []string{"Marsians"}, s.search(q))
		q.Keys, q.Term = nil, "marsians bob"
		expect(t, "all words", []string{"before Bob: Marsians", "MARSIANS, by Bob, in a very long message about many other things, too"}, s.search(q))
		for term, want := range map[string]int{"mars": 5, "ma": 0, "arsians": 0, "men": 1, "": 0, "?!": 0, "화성": 1, "rich": 1, "x": 1, "b": 0} {
			q.Term = term
			if got := s.search(q); len(got) != want {
				t.Errorf("%q found %q", term, got)
			}
		}
		q.Term, q.Reader.Ignored = "marsians", map[matrix.UserID]bool{bob: true}
		expect(t, "without bob", []string{"Marsians", "Marsians and men and Marsians", "unseen Marsians", "before Bob: Marsians"}, s.search(q))
		q.Skip = []matrix.RoomID{room}
		expect(t, "without the room", []string{}, s.search(q))
		theirs := rooms.SearchRequest{Reader: rooms.Reader{User: bob}, Term: "marsians", Recent: true}
		expect(t, "what bob may see", []string{"MARSIANS, by Bob, in a very long message about many other things, too", "Marsians and men and Marsians", "before Bob: Marsians", "Marsians"}, s.search(theirs))
		s.must(s.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
		say(alice, room, "Marsians after bob")
		if got := s.search(theirs); len(got) == 0 || got[0] == "Marsians after bob" {
			t.Errorf("after leaving: %q", got)
		}
		expect(t, "a stranger", []string{}, s.search(rooms.SearchRequest{Reader: rooms.Reader{User: s.user("eve")}, Term: "marsians"}))

		// A page made later sees what the first one saw.
		res, err := s.Search(ctx, theirs)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "highlights", []string{"MARSIANS", "Marsians"}, res.Highlights)
		first := rooms.SearchRequest{Reader: rooms.Reader{User: alice}, Term: "marsians", Until: res.Until, Recent: true}
		had := s.search(first)
		say(alice, room, "Marsians later")
		expect(t, "as of before", had, s.search(first))

		// Rooms that are encrypted are not searched, those that were replaced are.
		replaced, err := s.Upgrade(ctx, rooms.UpgradeRequest{Room: room, Sender: alice, Version: "11"})
		if err != nil {
			t.Fatal(err)
		}
		say(alice, replaced, "new Marsians")
		q = rooms.SearchRequest{Reader: rooms.Reader{User: alice}, Term: "marsians", Rooms: []matrix.RoomID{replaced}, Recent: true}
		if got := s.search(q); len(got) < 7 {
			t.Errorf("with the room before: %q", got)
		}
		s.set(alice, room, "m.room.encryption", "", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
		expect(t, "when that is encrypted", []string{"new Marsians"}, func() []string {
			q.Keys = []string{"content.body"}
			return s.search(q)
		}())
	})
}

// BenchmarkSearch looks for a word in a room of 5,000 messages.
func BenchmarkSearch(b *testing.B) {
	s := newNetwork(b).server("bench.example")
	alice := s.user("alice")
	room := s.create(alice, rooms.CreateRequest{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for i := range 100 {
				s.say(alice, room, fmt.Sprintf("message number %d of some people who talk about this and that", i))
			}
		})
	}
	wg.Wait()
	b.ReportAllocs()
	for b.Loop() {
		res, err := s.Search(ctx, rooms.SearchRequest{Reader: rooms.Reader{User: alice}, Term: "number 42"})
		if err != nil || len(res.Found) != 50 {
			b.Fatal(res, err)
		}
	}
}
