package feed_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"hanok/feed"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// A response that continues the list of the one before says the same as one that is made anew.
func TestSlidingContinued(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { continueLists(t, rand.New(rand.NewPCG(seed, 11))) })
	}
}

func continueLists(t *testing.T, r *rand.Rand) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	const count = 12
	ids := make([]matrix.RoomID, count)
	in := make([]bool, count)
	last := make([]matrix.EventID, count)
	for i := range ids {
		ids[i], in[i] = bob.create(rooms.CreateRequest{Preset: "public_chat"}), true
		alice.join(ids[i])
		last[i] = bob.say(ids[i], "hello")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	set := func(room matrix.RoomID, kind, content string) {
		must(w.users.AccountData.Set(w.Context(), alice.id, room, kind, json.RawMessage(content)))
	}
	happen := func() {
		i := r.IntN(count)
		id := ids[i]
		switch r.IntN(12) {
		case 0, 1, 2, 3, 4:
			last[i] = bob.say(id, "a message")
		case 5:
			bob.state(id, "m.room.name", fmt.Sprintf(`{"name":"%d"}`, r.IntN(1000)))
		case 6:
			if r.IntN(3) == 0 {
				bob.state(id, "m.room.encryption", `{"algorithm":"m.megolm.v1.aes-sha2"}`)
			}
		case 7:
			set(id, "org.example.n", fmt.Sprintf(`{"n":%d}`, r.IntN(1000)))
		case 8:
			ev, err := w.rooms.Event(w.Context(), last[i])
			must(err)
			reader := []matrix.UserID{alice.id, bob.id}[r.IntN(2)]
			must(w.users.Receipts.Set(w.Context(), users.Receipt{Room: id, User: reader, Type: "m.read", EventID: last[i], Order: int64(ev.Pos)}))
		case 9:
			if r.IntN(3) > 0 {
				return
			}
			change := w.rooms.Join
			if in[i] {
				change = w.rooms.Leave
			}
			_, err := change(w.Context(), rooms.MemberRequest{Room: id, Sender: alice.id})
			must(err)
			in[i] = !in[i]
		case 10:
			switch r.IntN(6) {
			case 0:
				set("", "m.direct", fmt.Sprintf(`{%q:[%q]}`, bob.id, id))
			case 1:
				set(id, "m.tag", `{"tags":{"m.favourite":{}}}`)
			}
		case 11:
			must(w.SetTyping(w.Context(), id, bob.id, r.IntN(2) == 0, time.Minute))
		}
	}
	bodies := []string{
		`{"lists":{"a":{"ranges":[[0,3]],"timeline_limit":2,"required_state":[["m.room.name",""]]}},"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true},"typing":{"enabled":true}}}`,
		`{"lists":{"a":{"ranges":[[0,1],[4,6]],"timeline_limit":1,"required_state":[["m.room.name",""]]},"b":{"ranges":[[0,2]],"timeline_limit":3,"required_state":[["m.room.encryption",""]],"filters":{"is_encrypted":false}}},"extensions":{"receipts":{"enabled":true}}}`,
		fmt.Sprintf(`{"lists":{"dm":{"ranges":[[0,50]],"timeline_limit":1,"required_state":[],"filters":{"is_dm":true}},"fav":{"ranges":[[0,2]],"timeline_limit":1,"required_state":[],"filters":{"tags":["m.favourite"]}}},"room_subscriptions":{%q:{"timeline_limit":5,"required_state":[["*","*"]]}},"extensions":{"account_data":{"enabled":true}}}`, ids[0]),
	}
	dialects := []feed.Dialect{feed.Unstable, feed.Unstable, feed.Unstable}
	kept, anew := make([]*sliding, len(bodies)), make([]*sliding, len(bodies))
	for i := range bodies {
		kept[i], anew[i] = alice.sliding(dialects[i], fmt.Sprint("kept", i)), alice.sliding(dialects[i], fmt.Sprint("anew", i))
	}
	warm := w.Feed
	for step := range 100 {
		for range r.IntN(4) {
			happen()
		}
		w.settle()
		i := r.IntN(len(bodies))
		before := kept[i].pos
		got := kept[i].raw(0, bodies[i])
		// One that was just made knows no list. Who types lives in memory.
		w.Feed = feed.New(feed.Options{DB: w.db, Rooms: w.rooms, Users: w.users, Hub: w.hub, Log: zerolog.Nop()})
		w.Feed.Typing = warm.Typing
		was := anew[i].pos
		want := anew[i].raw(0, bodies[i])
		w.Feed = warm
		if diff := cmp.Diff(withoutPos(t, want), withoutPos(t, got)); diff != "" {
			t.Fatalf("step %d, request %d: anew (-), continued (+): %s", step, i, diff)
		}
		if r.IntN(6) == 0 { // the response got lost
			kept[i].pos, anew[i].pos = before, was
		}
	}
}

// withoutPos is an answer without what differs from connection to connection.
func withoutPos(t *testing.T, answer []byte) map[string]any {
	var out map[string]any
	if err := json.Unmarshal(answer, &out); err != nil {
		t.Fatal(err)
	}
	delete(out, "pos")
	rooms, _ := out["rooms"].(map[string]any)
	for _, room := range rooms {
		room := room.(map[string]any)
		delete(room, "prev_batch") // it says where in the stream the client is
		state, _ := room["required_state"].([]any)
		slices.SortFunc(state, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		for _, part := range []string{"timeline", "required_state"} {
			events, _ := room[part].([]any)
			for _, ev := range events {
				if u, ok := ev.(map[string]any)["unsigned"].(map[string]any); ok {
					delete(u, "age")
				}
			}
		}
	}
	return out
}
