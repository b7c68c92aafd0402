package rooms_test

import (
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// relate sends an event that relates to another. members are further members of the content, as JSON.
func (s *server) relate(user matrix.UserID, room matrix.RoomID, typ, relType string, parent matrix.EventID, members string) matrix.EventID {
	s.t.Helper()
	s.mu.Lock()
	// Each is later than the one before, also within one millisecond.
	at := matrix.Timestamp(time.Now().UnixMilli() + int64(len(s.updates)))
	s.mu.Unlock()
	id, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: typ, Content: relation(relType, parent, members), Timestamp: at})
	s.must(id, err)
	return id
}

func relation(relType string, parent matrix.EventID, members string) []byte {
	return fmt.Appendf(nil, `{%s"m.relates_to":{"rel_type":%q,"event_id":%q}}`, members, relType, parent)
}

// aggregations is what a reader is told with an event, as decoded JSON.
func (s *server) aggregations(rd rooms.Reader, id matrix.EventID) map[string]any {
	s.t.Helper()
	ev, err := s.Event(ctx, id)
	if err != nil {
		s.t.Fatal(err)
	}
	all, err := s.Aggregations(ctx, rd, []*rooms.Event{ev}, false)
	if err != nil {
		s.t.Fatal(err)
	}
	if all[ev.NID] == nil {
		return nil
	}
	var out map[string]any
	if err := json.Unmarshal(all[ev.NID], &out); err != nil {
		s.t.Fatalf("%v: %s", err, all[ev.NID])
	}
	return out
}

func dig(v any, path ...string) any {
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	return v
}

// related lists the IDs of a page.
func (s *server) related(rd rooms.Reader, q rooms.RelationsRequest) ([]matrix.EventID, *rooms.Token) {
	s.t.Helper()
	if q.Limit == 0 {
		q.Limit = 100
	}
	page, err := s.Relations(ctx, rd, q)
	if err != nil {
		s.t.Fatal(err)
	}
	return idsOf(page.Events), page.Next
}

func idsOf(events []*rooms.Event) []matrix.EventID {
	ids := make([]matrix.EventID, len(events))
	for i, ev := range events {
		ids[i] = ev.ID()
	}
	return ids
}

func expect(t *testing.T, what string, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("%s: %s", what, d)
	}
}

type ids = []matrix.EventID

func TestRelationPages(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		n := newNetwork(t)
		s := n.serverOn("a.example", dsn)
		alice, bob := s.user("alice"), s.user("bob")
		room := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
		s.join(bob, room)
		root := s.say(alice, room, "root")
		reply := s.relate(alice, room, "m.room.message", "m.thread", root, "")
		other := s.relate(bob, room, "m.dummy", "m.thread", root, "")
		like := s.relate(bob, room, "m.reaction", "m.annotation", reply, `"a":1,`)
		edit := s.relate(alice, room, "m.room.message", "m.replace", root, `"m.new_content":{},`)
		ref := s.relate(bob, room, "m.ref", "m.reference", like, "")
		deep := s.relate(bob, room, "m.ref", "m.reference", ref, "")
		rd := rooms.Reader{User: alice}
		q := rooms.RelationsRequest{Room: room, Parent: root, Backward: true}
		got, _ := s.related(rd, q)
		expect(t, "all", ids{edit, other, reply}, got)
		got, _ = s.related(rd, rooms.RelationsRequest{Room: room, Parent: root})
		expect(t, "forward", ids{reply, other, edit}, got)
		q.RelType = "m.thread"
		got, _ = s.related(rd, q)
		expect(t, "by relation", ids{other, reply}, got)
		q.EventType = "m.dummy"
		got, _ = s.related(rd, q)
		expect(t, "by type", ids{other}, got)
		q.EventType = "never.seen"
		got, _ = s.related(rd, q)
		expect(t, "by a type nobody knows", ids{}, got)

		// Three levels, not four; what does not match is not followed.
		q = rooms.RelationsRequest{Room: room, Parent: root, Backward: true, Recurse: true}
		got, _ = s.related(rd, q)
		expect(t, "recursion", ids{ref, edit, like, other, reply}, got)
		got, _ = s.related(rd, rooms.RelationsRequest{Room: room, Parent: root, Backward: true, Recurse: true, RelType: "m.annotation"})
		expect(t, "filtered recursion", ids{}, got)
		got, _ = s.related(rd, rooms.RelationsRequest{Room: room, Parent: like, Recurse: true})
		expect(t, "recursion forward", ids{ref, deep}, got)

		// Pages meet: nothing twice, nothing lost, in both directions, with and without recursion.
		for _, q := range []rooms.RelationsRequest{
			{Backward: true}, {}, {Backward: true, Recurse: true}, {Recurse: true}, {Backward: true, RelType: "m.thread"},
		} {
			q.Room, q.Parent = room, root
			whole, next := s.related(rd, q)
			if next != nil {
				t.Errorf("%+v: a whole page says there is more", q)
			}
			var parts ids
			for q.Limit = 1; ; {
				page, next := s.related(rd, q)
				parts = append(parts, page...)
				if next == nil || len(parts) > len(whole) {
					break
				}
				q.From = next
			}
			expect(t, "pages", whole, parts)
		}
		first, next := s.related(rd, rooms.RelationsRequest{Room: room, Parent: root, Backward: true, Limit: 1})
		rest, _ := s.related(rd, rooms.RelationsRequest{Room: room, Parent: root, To: next})
		expect(t, "up to a token", ids{reply, other}, rest)
		expect(t, "first", ids{edit}, first)

		// Ignored users and redactions.
		got, _ = s.related(rooms.Reader{User: alice, Ignored: map[matrix.UserID]bool{bob: true}}, rooms.RelationsRequest{Room: room, Parent: root, Backward: true})
		expect(t, "without bob's", ids{edit, reply}, got)
		if _, err := s.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: reply}, ""); err != nil {
			t.Fatal(err)
		}
		got, _ = s.related(rd, rooms.RelationsRequest{Room: room, Parent: root, Backward: true, Recurse: true})
		expect(t, "a redacted event relates to nothing", ids{edit, other}, got)

		if _, err := s.Relations(ctx, rooms.Reader{User: s.user("eve")}, rooms.RelationsRequest{Room: room, Parent: "$none"}); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Errorf("an unknown parent: %v", err)
		}
	})
}

func TestAggregations(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		n := newNetwork(t)
		s := n.serverOn("a.example", dsn)
		alice, bob, carol, dave := s.user("alice"), s.user("bob"), s.user("carol"), s.user("dave")
		room := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
		for _, user := range []matrix.UserID{bob, carol, dave} {
			s.join(user, room)
		}
		rd := rooms.Reader{User: alice}
		root := s.say(alice, room, "root")
		if got := s.aggregations(rd, root); got != nil {
			t.Errorf("without relations: %v", got)
		}
		s.relate(bob, room, "m.reaction", "m.annotation", root, "")
		if got := s.aggregations(rd, root); got != nil {
			t.Errorf("annotations are not aggregated: %v", got)
		}

		// Edits: of the same sender and type, with new content, not of edits, the newest that is left.
		s.relate(bob, room, "m.room.message", "m.replace", root, `"m.new_content":{"body":"forged"},`)
		s.relate(alice, room, "m.other", "m.replace", root, `"m.new_content":{"body":"other type"},`)
		s.relate(alice, room, "m.room.message", "m.replace", root, `"body":"no content",`)
		if got := s.aggregations(rd, root); got != nil {
			t.Errorf("invalid edits: %v", got)
		}
		first := s.relate(alice, room, "m.room.message", "m.replace", root, `"m.new_content":{"body":"1"},`)
		second := s.relate(alice, room, "m.room.message", "m.replace", root, `"m.new_content":{"body":"2"},`)
		s.relate(alice, room, "m.room.message", "m.replace", second, `"m.new_content":{"body":"edit of an edit"},`)
		expect(t, "edit", string(second), dig(s.aggregations(rd, root), "m.replace", "event_id"))
		expect(t, "content of the edit", "2", dig(s.aggregations(rd, root), "m.replace", "content", "m.new_content", "body"))
		if got := s.aggregations(rd, second); got != nil {
			t.Errorf("an edit was edited: %v", got)
		}
		if _, err := s.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: second}, ""); err != nil {
			t.Fatal(err)
		}
		expect(t, "edit after its redaction", string(first), dig(s.aggregations(rd, root), "m.replace", "event_id"))

		// Threads and references.
		reply := s.relate(bob, room, "m.room.message", "m.thread", root, "")
		last := s.relate(carol, room, "m.room.message", "m.thread", root, "")
		edit := s.relate(carol, room, "m.room.message", "m.replace", last, `"m.new_content":{},`)
		ref1 := s.relate(bob, room, "m.ref", "m.reference", root, "")
		ref2 := s.relate(carol, room, "m.ref", "m.reference", root, "")
		thread := dig(s.aggregations(rd, root), "m.thread")
		expect(t, "latest", string(last), dig(thread, "latest_event", "event_id"))
		expect(t, "aggregated in the latest", string(edit), dig(thread, "latest_event", "unsigned", "m.relations", "m.replace", "event_id"))
		expect(t, "count", 2.0, dig(thread, "count"))
		expect(t, "the root's sender takes part", true, dig(thread, "current_user_participated"))
		expect(t, "somebody else does not", false, dig(s.aggregations(rooms.Reader{User: dave}, root), "m.thread", "current_user_participated"))
		chunk := func(ids ...matrix.EventID) any {
			var out []any
			for _, id := range ids {
				out = append(out, map[string]any{"event_id": string(id)})
			}
			return out
		}
		expect(t, "references", chunk(ref1, ref2), dig(s.aggregations(rd, root), "m.reference", "chunk"))

		without := rooms.Reader{User: alice, Ignored: map[matrix.UserID]bool{carol: true}}
		thread = dig(s.aggregations(without, root), "m.thread")
		expect(t, "latest without carol", string(reply), dig(thread, "latest_event", "event_id"))
		expect(t, "count without carol", 1.0, dig(thread, "count"))
		expect(t, "references without carol", chunk(ref1), dig(s.aggregations(without, root), "m.reference", "chunk"))

		// Who has left does not hear of what came after.
		s.must(s.Leave(ctx, rooms.MemberRequest{Room: room, Sender: bob}))
		s.relate(alice, room, "m.room.message", "m.thread", root, "")
		thread = dig(s.aggregations(rooms.Reader{User: bob}, root), "m.thread")
		expect(t, "latest for who left", string(last), dig(thread, "latest_event", "event_id"))
		expect(t, "count for who left", 2.0, dig(thread, "count"))

		// A redacted root keeps its thread, not its edits.
		if _, err := s.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: root}, ""); err != nil {
			t.Fatal(err)
		}
		got := s.aggregations(rd, root)
		expect(t, "edit of a redacted event", nil, dig(got, "m.replace"))
		expect(t, "thread of a redacted event", 3.0, dig(got, "m.thread", "count"))
		if got := s.aggregations(rooms.Reader{User: s.user("eve")}, root); got != nil {
			t.Errorf("a stranger: %v", got)
		}
	})
}

// Relations of events that come by federation, as news and as history.
func TestRemoteRelations(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	alice, bob := a.user("alice"), b.user("bob")
	room := a.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	root := a.say(alice, room, "root")
	early := a.relate(alice, room, "m.room.message", "m.thread", root, "")
	b.join(bob, room, a)
	n.settle()
	b.texts(bob, room) // fetches history
	rd := rooms.Reader{User: bob}
	got, _ := b.related(rd, rooms.RelationsRequest{Room: room, Parent: root, Backward: true})
	expect(t, "of history", ids{early}, got)
	late := a.relate(alice, room, "m.room.message", "m.thread", root, "")
	n.settle()
	got, _ = b.related(rd, rooms.RelationsRequest{Room: room, Parent: root, Backward: true})
	expect(t, "of news", ids{late, early}, got)
	if _, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: late}, ""); err != nil {
		t.Fatal(err)
	}
	n.settle()
	got, _ = b.related(rd, rooms.RelationsRequest{Room: room, Parent: root, Backward: true})
	expect(t, "after a redaction", ids{early}, got)
}

func TestThreads(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		n := newNetwork(t)
		s := n.serverOn("a.example", dsn)
		alice, bob := s.user("alice"), s.user("bob")
		room := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
		s.join(bob, room)
		var roots ids
		for i := range 5 {
			roots = append(roots, s.say(alice, room, fmt.Sprint(i)))
		}
		bobs := s.say(bob, room, "bob's")
		for _, root := range roots {
			s.relate(alice, room, "m.room.message", "m.thread", root, "")
		}
		s.relate(bob, room, "m.room.message", "m.thread", bobs, "")
		s.relate(bob, room, "m.room.message", "m.thread", roots[1], "")
		s.relate(bob, room, "m.room.message", "m.thread", "$unknown", "")
		list := func(rd rooms.Reader, q rooms.ThreadsRequest) ids {
			t.Helper()
			q.Room = room
			var out ids
			for pages := 0; pages < 20; pages++ {
				page, err := s.Threads(ctx, rd, q)
				if err != nil {
					t.Fatal(err)
				}
				out = append(out, idsOf(page.Events)...)
				if page.Next == nil {
					return out
				}
				q.From = page.Next
			}
			t.Fatal("paging does not end")
			return nil
		}
		all := ids{roots[1], bobs, roots[4], roots[3], roots[2], roots[0]}
		rd := rooms.Reader{User: alice}
		for limit := 1; limit <= 7; limit++ {
			expect(t, fmt.Sprint("limit ", limit), all, list(rd, rooms.ThreadsRequest{Limit: limit}))
		}
		expect(t, "alice's", ids{roots[1], roots[4], roots[3], roots[2], roots[0]}, list(rd, rooms.ThreadsRequest{Limit: 2, Participated: true}))
		expect(t, "bob's", ids{roots[1], bobs}, list(rooms.Reader{User: bob}, rooms.ThreadsRequest{Limit: 2, Participated: true}))
		// Without bob the second thread falls back to where alice left it, and bob's is gone.
		expect(t, "without bob", ids{roots[4], roots[3], roots[2], roots[1], roots[0]},
			list(rooms.Reader{User: alice, Ignored: map[matrix.UserID]bool{bob: true}}, rooms.ThreadsRequest{Limit: 2}))
		// A root of an ignored user is shown in redacted form when others wrote in the thread.
		s.relate(alice, room, "m.room.message", "m.thread", bobs, "")
		page, err := s.Threads(ctx, rooms.Reader{User: alice, Ignored: map[matrix.UserID]bool{bob: true}}, rooms.ThreadsRequest{Room: room, Limit: 1})
		if err != nil || len(page.Events) != 1 || page.Events[0].ID() != bobs || string(page.Events[0].Content()) != "{}" {
			t.Errorf("%v, %v", page, err)
		}
		eve := s.user("eve")
		s.set(alice, room, "m.room.join_rules", "", `{"join_rule":"invite"}`)
		if _, err := s.Threads(ctx, rooms.Reader{User: eve}, rooms.ThreadsRequest{Room: room}); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("a stranger: %v", err)
		}
	})
}

func TestThreadOf(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice := s.user("alice")
	room := s.create(alice, rooms.CreateRequest{})
	root := s.say(alice, room, "root")
	reply := s.relate(alice, room, "m.room.message", "m.thread", root, "")
	edit := s.relate(alice, room, "m.room.message", "m.replace", reply, "")
	like := s.relate(alice, room, "m.reaction", "m.annotation", edit, "")
	far := s.relate(alice, room, "m.ref", "m.reference", like, "")
	beside := s.relate(alice, room, "m.reaction", "m.annotation", root, "")
	unknown := s.relate(alice, room, "m.reaction", "m.annotation", "$unknown", "")
	for id, want := range map[matrix.EventID]matrix.EventID{root: "", reply: root, edit: root, like: root, far: "", beside: "", unknown: ""} {
		ev, err := s.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := s.ThreadOf(ctx, ev); err != nil || got != want {
			t.Errorf("%s is in %q, %v, want %q", ev.Content(), got, err, want)
		}
	}
}

func TestRelationsRefused(t *testing.T) {
	n := newNetwork(t)
	s := n.server("a.example")
	alice, bob := s.user("alice"), s.user("bob")
	room := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	s.join(bob, room)
	root := s.say(alice, room, "root")
	reply := s.relate(alice, room, "m.room.message", "m.thread", root, "")
	send := func(user matrix.UserID, typ string, content []byte) error {
		_, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: user, Type: typ, Content: content})
		return err
	}
	if err := send(bob, "m.room.message", relation("m.thread", reply, "")); !matrix.HasCode(err, "M_UNKNOWN") {
		t.Errorf("a thread in a thread: %v", err)
	}
	answer := fmt.Appendf(nil, `{"m.relates_to":{"m.in_reply_to":{"event_id":%q}}}`, root)
	id, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: bob, Type: "m.room.message", Content: answer})
	s.must(id, err)
	s.relate(bob, room, "m.room.message", "m.thread", id, "") // a reply is no relation: it may have a thread

	like := func(key string) []byte {
		return fmt.Appendf(nil, `{"m.relates_to":{"rel_type":"m.annotation","event_id":%q,"key":%q}}`, root, key)
	}
	first, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: bob, Type: "m.reaction", Content: like("+")})
	s.must(first, err)
	if err := send(bob, "m.reaction", like("+")); !matrix.HasCode(err, "M_DUPLICATE_ANNOTATION") {
		t.Errorf("twice the same: %v", err)
	}
	for _, err := range []error{send(bob, "m.reaction", like("-")), send(bob, "m.other", like("+")), send(alice, "m.reaction", like("+"))} {
		if err != nil {
			t.Error(err)
		}
	}
	if _, err := s.Redact(ctx, rooms.SendRequest{Room: room, Sender: bob, Redacts: first}, ""); err != nil {
		t.Fatal(err)
	}
	if err := send(bob, "m.reaction", like("+")); err != nil {
		t.Errorf("again after a redaction: %v", err)
	}
	// Of many at once, one gets through.
	results := make(chan error, 10)
	for range cap(results) {
		go func() { results <- send(alice, "m.reaction", like("race")) }()
	}
	ok := 0
	for range cap(results) {
		if err := <-results; err == nil {
			ok++
		} else if !matrix.HasCode(err, "M_DUPLICATE_ANNOTATION") {
			t.Error(err)
		}
	}
	expect(t, "annotations that got through", 1, ok)
}

// BenchmarkAggregations makes what goes with a page of 100 events: without any relations, and with 20 threads of
// 50 events each, their roots edited.
func BenchmarkAggregations(b *testing.B) {
	s := newNetwork(b).server("bench.example")
	alice := s.user("alice")
	plain, busy := s.create(alice, rooms.CreateRequest{}), s.create(alice, rooms.CreateRequest{})
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 5 {
				s.say(alice, plain, "x")
			}
			root := s.say(alice, busy, "root")
			for range 50 {
				s.relate(alice, busy, "m.room.message", "m.thread", root, "")
			}
			for range 4 {
				s.relate(alice, busy, "m.room.message", "m.replace", root, `"m.new_content":{},`)
			}
		})
	}
	wg.Wait()
	rd := rooms.Reader{User: alice}
	for name, room := range map[string]matrix.RoomID{"plain": plain, "threads": busy} {
		roots := func(ev *rooms.Event) bool { _, related := ev.Relation(); return name == "plain" || !related }
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: alice, Backward: true, Limit: 100, Filter: roots})
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				all, err := s.Aggregations(ctx, rd, page.Events, false)
				if err != nil || name == "threads" && len(all) != 20 {
					b.Fatal(len(all), err)
				}
			}
		})
	}
}
