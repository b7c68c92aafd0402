package feed_test

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"hanok/feed"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// notificationsOf are what a user's pushers would be told of.
func (m *member) notifications() []storage.Notification {
	m.w.Helper()
	m.w.settle()
	nid, err := m.w.db.Intern(m.w.Context(), string(m.id))
	must(m.w, err)
	list, err := storage.NotificationsAfter(m.w.Context(), m.w.db, nid[0], 0, math.MaxInt32)
	must(m.w, err)
	return list
}

func (m *member) worth(n storage.Notification) bool {
	m.w.Helper()
	ev, err := m.w.ToPush(m.w.Context(), m.id, n)
	must(m.w, err)
	return ev != nil
}

func (m *member) total() int64 {
	m.w.Helper()
	n, err := m.w.UnreadTotal(m.w.Context(), m.id)
	must(m.w, err)
	return n
}

// An invite notifies, does not count, and is over with the membership.
func TestInviteNotifies(t *testing.T) {
	w := open(t)
	alice, bob, eve := w.user("alice"), w.user("bob"), w.user("eve")
	invite := func(from, to *member) matrix.RoomID {
		room := from.create(rooms.CreateRequest{Preset: "private_chat"})
		_, err := w.rooms.Invite(t.Context(), rooms.MemberRequest{Room: room, Sender: from.id, Target: to.id})
		must(t, err)
		return room
	}
	must(t, w.users.AccountData.Set(t.Context(), bob.id, "", "m.ignored_user_list", []byte(`{"ignored_users":{"`+string(eve.id)+`":{}}}`)))
	invite(eve, bob)
	room := invite(alice, bob)
	list := bob.notifications()
	if len(list) != 1 || list[0].Thread != storage.InviteThread || string(list[0].Tweaks) != `{"sound":"default"}` {
		t.Fatalf("notifications %+v", list)
	}
	read := func(want bool) {
		t.Helper()
		got, _, err := w.Notifications(t.Context(), feed.NotifiedRequest{User: bob.id, Limit: 10})
		must(t, err)
		if len(got) != 1 || got[0].Read != want || len(got[0].Actions) != 2 || string(got[0].Actions[1]) != `{"set_tweak":"sound","value":"default"}` {
			t.Errorf("notifications %+v, read should be %v", got, want)
		}
	}
	read(false)
	if !bob.worth(list[0]) || bob.total() != 0 {
		t.Errorf("an invite: worth %v, %d unread", bob.worth(list[0]), bob.total())
	}
	bob.join(room)
	if bob.worth(list[0]) || bob.total() != 0 || bob.initial("{}").Rooms.Join[room].Unread.Notify != 0 {
		t.Errorf("an accepted invite: worth %v, %d unread", bob.worth(list[0]), bob.total())
	}
	read(true)
}

// What is read, redacted or in a room that was left is not worth sending, and is not counted.
func TestWorthPushing(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	room, other := alice.create(rooms.CreateRequest{Preset: "public_chat"}), alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(room)
	bob.join(other)
	actions := func(values ...string) []json.RawMessage {
		out := []json.RawMessage{json.RawMessage(`"notify"`)}
		for _, v := range values {
			out = append(out, json.RawMessage(v))
		}
		return out
	}
	pattern := "first"
	must(t, w.users.PushRules.Put(t.Context(), bob.id, "content", "first", "", "", users.NewPushRule{Pattern: &pattern, Actions: actions(`{"set_tweak":"colour","value":"red"}`)}))
	must(t, w.users.PushRules.Put(t.Context(), bob.id, "room", string(other), "", "", users.NewPushRule{
		Actions: actions(`{"set_tweak":"highlight"}`, `{"set_tweak":"sound","value":"ding"}`, `{"set_tweak":"long","value":"`+strings.Repeat("x", 2000)+`"}`),
	}))
	first, second := alice.say(room, "first"), alice.say(room, "second")
	alice.say(other, "elsewhere")
	list := bob.notifications()
	for i, want := range []string{`{"colour":"red"}`, `{"sound":"default"}`, `{"highlight":true,"sound":"ding"}`} {
		if string(list[i].Tweaks) != want {
			t.Errorf("tweaks %s, want %s", list[i].Tweaks, want)
		}
	}
	expect := func(what string, unread int64, worth ...bool) {
		t.Helper()
		w.settle()
		for i, want := range worth {
			if got := bob.worth(list[i]); got != want {
				t.Errorf("%s: notification %d is worth sending: %v", what, i, got)
			}
		}
		if got := bob.total(); got != unread {
			t.Errorf("%s: %d unread, want %d", what, got, unread)
		}
	}
	expect("nothing is read", 3, true, true, true)
	ev, err := w.rooms.Event(t.Context(), first)
	must(t, err)
	must(t, w.users.Receipts.Set(t.Context(), users.Receipt{Room: room, User: bob.id, Type: users.ReceiptRead, EventID: first, Order: int64(ev.Pos)}))
	expect("one is read", 2, false, true, true)
	_, err = w.rooms.Redact(t.Context(), rooms.SendRequest{Room: room, Sender: alice.id, Redacts: second}, "")
	must(t, err)
	expect("one is redacted", 1, false, false, true)
	_, err = w.rooms.Leave(t.Context(), rooms.MemberRequest{Room: other, Sender: bob.id})
	must(t, err)
	expect("one room is left", 0, false, false, false)
}
