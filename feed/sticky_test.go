package feed_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"hanok/feed"
	"hanok/matrix"
	"hanok/rooms"
)

// stick sends a sticky event of an hour.
func (m *member) stick(room matrix.RoomID) matrix.EventID {
	m.w.Helper()
	ms := int64(3_600_000)
	id, err := m.w.rooms.Send(m.w.Context(), rooms.SendRequest{Room: room, Sender: m.id, Type: "m.rtc.member", Content: []byte(`{}`), Sticky: &ms})
	if err != nil {
		m.w.Fatal(err)
	}
	return id
}

// stickies are what a sync tells of rooms' sticky events, in the section of its own and in the timeline.
type stickies struct {
	section, timeline map[matrix.RoomID][]matrix.EventID
}

func (m *member) syncSticky(filter string) stickies {
	m.w.Helper()
	f, err := feed.ParseFilter([]byte(filter))
	if err != nil {
		m.w.Fatal(err)
	}
	var b bytes.Buffer
	if err := m.w.Sync(m.w.Context(), feed.Request{User: m.id, Device: m.device, Since: m.since, Filter: f, Timeout: time.Millisecond}, &b); err != nil {
		m.w.Fatal(err)
	}
	m.since = nextBatch(m.w, b.Bytes())
	type events struct {
		Events []struct {
			ID       matrix.EventID `json:"event_id"`
			Sticky   *struct{}      `json:"msc4354_sticky"`
			Unsigned struct {
				Left int64 `json:"msc4354_sticky_duration_ttl_ms"`
			} `json:"unsigned"`
		} `json:"events"`
	}
	var res struct {
		Rooms struct {
			Join map[matrix.RoomID]struct {
				Timeline events `json:"timeline"`
				Sticky   events `json:"msc4354_sticky"`
			} `json:"join"`
		} `json:"rooms"`
	}
	if err := json.Unmarshal(b.Bytes(), &res); err != nil {
		m.w.Fatal(err)
	}
	out := stickies{map[matrix.RoomID][]matrix.EventID{}, map[matrix.RoomID][]matrix.EventID{}}
	for id, room := range res.Rooms.Join {
		for _, part := range []struct {
			events
			into map[matrix.RoomID][]matrix.EventID
		}{{room.Timeline, out.timeline}, {room.Sticky, out.section}} {
			for _, ev := range part.Events {
				if ev.Sticky == nil {
					continue
				}
				part.into[id] = append(part.into[id], ev.ID)
				if ev.Unsigned.Left <= 0 || ev.Unsigned.Left > 3_600_000 {
					m.w.Errorf("%s is sticky for %d more ms", ev.ID, ev.Unsigned.Left)
				}
			}
		}
	}
	return out
}

func TestStickyInSync(t *testing.T) {
	w := open(t)
	alice, bob, carol := w.user("alice"), w.user("bob"), w.user("carol")
	room := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(room)
	expect := func(what string, got stickies, section, timeline []matrix.EventID) {
		t.Helper()
		if !slices.Equal(got.section[room], section) || !slices.Equal(got.timeline[room], timeline) {
			t.Errorf("%s: %v in the section, %v in the timeline; want %v and %v", what, got.section[room], got.timeline[room], section, timeline)
		}
	}
	const few = `{"room":{"timeline":{"limit":2}}}`
	bob.syncSticky(few)
	first := alice.stick(room)
	expect("it fits", bob.syncSticky(few), nil, []matrix.EventID{first})
	second := alice.stick(room)
	for range 3 {
		alice.say(room, "x")
	}
	third := alice.stick(room)
	expect("one does not fit", bob.syncSticky(few), []matrix.EventID{second}, []matrix.EventID{third})
	expect("told once", bob.syncSticky(few), nil, nil)
	fourth := alice.stick(room)
	expect("filtered out of the timeline", bob.syncSticky(`{"room":{"timeline":{"not_types":["m.rtc.member"]}}}`), []matrix.EventID{fourth}, nil)

	// Whoever comes is told all.
	all := []matrix.EventID{first, second, third, fourth}
	carol.syncSticky(few)
	carol.join(room)
	alice.say(room, "y")
	expect("newly joined", carol.syncSticky(few), all, nil)
	expect("told once", carol.syncSticky(few), nil, nil)
	expect("a new device", w.login(bob.id).syncSticky(few), all, nil)
	if _, err := w.rooms.Leave(t.Context(), rooms.MemberRequest{Room: room, Sender: carol.id}); err != nil {
		t.Fatal(err)
	}
	alice.stick(room)
	expect("after the user has left", carol.syncSticky(few), nil, nil)
	if _, err := w.rooms.Redact(t.Context(), rooms.SendRequest{Room: room, Sender: alice.id, Redacts: first}, ""); err != nil {
		t.Fatal(err)
	}
	if got := w.login(bob.id).syncSticky(few).section[room]; slices.Contains(got, first) || !slices.Contains(got, second) {
		t.Errorf("after a redaction: %v", got)
	}
	if err := w.users.AccountData.Set(t.Context(), bob.id, "", "m.ignored_user_list", fmt.Appendf(nil, `{"ignored_users":{%q:{}}}`, alice.id)); err != nil {
		t.Fatal(err)
	}
	expect("of somebody who is ignored", w.login(bob.id).syncSticky(few), nil, nil)
}

// Those that do not fit into one response come with the next ones, without anything new having happened.
func TestManySticky(t *testing.T) {
	w := open(t)
	alice, bob, carol := w.user("alice"), w.user("bob"), w.user("carol")
	quiet := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	room := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(quiet)
	bob.join(room)
	carol.join(quiet)
	for _, m := range []*member{bob, carol} {
		m.syncSticky(`{}`)
	}
	sent := make([]matrix.EventID, 250)
	each(len(sent), func(i int) { sent[i] = alice.stick(room) })
	quietly := alice.stick(quiet)
	carol.join(room)
	slices.Sort(sent)
	for name, m := range map[string]*member{"joined before": bob, "joined since": carol, "new": w.login(bob.id)} {
		var got []matrix.EventID
		most := 0
		for range 6 {
			s := m.syncSticky(`{"room":{"timeline":{"limit":1}}}`)
			got = append(append(got, s.section[room]...), s.timeline[room]...)
			most = max(most, len(s.section[room]))
			if slices.Contains(append(s.section[quiet], s.timeline[quiet]...), quietly) {
				quietly = ""
			}
		}
		slices.Sort(got)
		if got = slices.Compact(got); !slices.Equal(got, sent) {
			t.Errorf("%s: %d of %d were told", name, len(got), len(sent))
		}
		if most > 100 || quietly != "" {
			t.Errorf("%s: %d in one response; the one of the other room is missing: %q", name, most, quietly)
		}
		quietly = alice.stick(quiet)
	}
}
