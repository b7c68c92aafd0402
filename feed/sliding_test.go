package feed_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/feed"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// slidingAnswer is what the tests look at of a response, in the stable dialect.
type slidingAnswer struct {
	Pos   string `json:"pos"`
	Lists map[string]struct {
		Count int `json:"count"`
	} `json:"lists"`
	Rooms map[matrix.RoomID]struct {
		Initial    bool   `json:"initial"`
		Expanded   bool   `json:"expanded_timeline"`
		Limited    bool   `json:"limited"`
		Membership string `json:"membership"`
		Timeline   []struct {
			EventID matrix.EventID `json:"event_id"`
		} `json:"timeline"`
		State []struct {
			Type    string `json:"type"`
			Key     string `json:"state_key"`
			Content struct {
				Topic      string `json:"topic"`
				Membership string `json:"membership"`
			} `json:"content"`
		} `json:"required_state"`
		IsDM        *bool `json:"is_dm"`
		JoinedCount *int  `json:"joined_count"`
	} `json:"rooms"`
	Extensions struct {
		AccountData struct {
			Rooms map[matrix.RoomID][]struct {
				Type    string `json:"type"`
				Content struct {
					N int `json:"n"`
				} `json:"content"`
			} `json:"rooms"`
		} `json:"account_data"`
		Receipts struct {
			Rooms map[matrix.RoomID]struct {
				Content map[matrix.EventID]map[string]map[matrix.UserID]any `json:"content"`
			} `json:"rooms"`
		} `json:"receipts"`
	} `json:"extensions"`
}

func (c *sliding) sync(timeout time.Duration, body string) *slidingAnswer {
	c.w.Helper()
	var a slidingAnswer
	if err := json.Unmarshal(c.raw(timeout, body), &a); err != nil {
		c.w.Fatal(err)
	}
	return &a
}

func (m *member) state(room matrix.RoomID, eventType, content string) {
	m.w.Helper()
	key := ""
	if _, err := m.w.rooms.Send(m.w.Context(), rooms.SendRequest{Room: room, Sender: m.id, Type: eventType, StateKey: &key, Content: []byte(content)}); err != nil {
		m.w.Fatal(err)
	}
}

// told is what a client remembers of a room.
type told struct {
	events   []matrix.EventID // those since the last gap
	topic    string
	member   string
	joined   int
	dm       bool
	datum    int
	receipts map[matrix.UserID]matrix.EventID
}

// apply takes a response in as a client does.
func (a *slidingAnswer) apply(known map[matrix.RoomID]told) {
	for id, r := range a.Rooms {
		k := known[id]
		k.receipts = maps.Clone(k.receipts)
		if r.Initial {
			k = told{datum: k.datum, receipts: k.receipts}
		}
		if r.Initial || r.Expanded || r.Limited {
			k.events = nil
		}
		for _, ev := range r.Timeline {
			k.events = append(slices.Clip(k.events), ev.EventID)
		}
		for _, s := range r.State {
			switch s.Type {
			case "m.room.topic":
				k.topic = s.Content.Topic
			case "m.room.member":
				k.member = s.Content.Membership
			}
		}
		if r.IsDM != nil {
			k.dm = *r.IsDM
		}
		if r.JoinedCount != nil {
			k.joined = *r.JoinedCount
		}
		known[id] = k
	}
	for id, data := range a.Extensions.AccountData.Rooms {
		k := known[id]
		for _, d := range data {
			if d.Type == "org.example.n" {
				k.datum = d.Content.N
			}
		}
		known[id] = k
	}
	for id, r := range a.Extensions.Receipts.Rooms {
		k := known[id]
		k.receipts = maps.Clone(k.receipts)
		for event, types := range r.Content {
			for user := range types["m.read"] {
				if k.receipts == nil {
					k.receipts = make(map[matrix.UserID]matrix.EventID)
				}
				k.receipts[user] = event
			}
		}
		known[id] = k
	}
}

// TestSlidingLosesNothing plays a client that changes its window all the time and gets only some of the responses, while things
// happen in its rooms: in the end it knows of each room what the server does.
func TestSlidingLosesNothing(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { loseNothing(t, rand.New(rand.NewPCG(seed, 7))) })
	}
}

func loseNothing(t *testing.T, r *rand.Rand) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	const count = 8
	type truth struct {
		id     matrix.RoomID
		events []matrix.EventID
		topic  string
		in     bool
		bob    bool
		dm     bool
		datum  int
		read   matrix.EventID // by bob
	}
	all := make([]*truth, count)
	for i := range all {
		all[i] = &truth{id: bob.create(rooms.CreateRequest{Preset: "public_chat"}), in: true, bob: true}
		alice.join(all[i].id)
	}
	say := func(x *truth) {
		if x.bob {
			x.events = append(x.events, bob.say(x.id, fmt.Sprint("message ", len(x.events))))
		}
	}
	member := func(x *truth, in *bool, m *member) {
		q := rooms.MemberRequest{Room: x.id, Sender: m.id}
		change := w.rooms.Join
		if *in {
			change = w.rooms.Leave
		}
		if _, err := change(w.Context(), q); err != nil {
			t.Fatal(err)
		}
		*in = !*in
	}
	happen := func() {
		x := all[r.IntN(count)]
		switch r.IntN(10) {
		case 0, 1, 2, 3:
			say(x)
		case 4:
			if x.bob {
				x.topic = fmt.Sprint("topic ", r.IntN(1000))
				bob.state(x.id, "m.room.topic", fmt.Sprintf(`{"topic":%q}`, x.topic))
			}
		case 5:
			x.dm = !x.dm
			var list []matrix.RoomID
			for _, y := range all {
				if y.dm {
					list = append(list, y.id)
				}
			}
			content, _ := json.Marshal(map[matrix.UserID][]matrix.RoomID{bob.id: list})
			if err := w.users.AccountData.Set(w.Context(), alice.id, "", "m.direct", content); err != nil {
				t.Fatal(err)
			}
		case 6:
			x.datum = 1 + r.IntN(1000)
			if err := w.users.AccountData.Set(w.Context(), alice.id, x.id, "org.example.n", fmt.Appendf(nil, `{"n":%d}`, x.datum)); err != nil {
				t.Fatal(err)
			}
		case 7:
			if x.bob && len(x.events) > 0 {
				x.read = x.events[len(x.events)-1]
				ev, err := w.rooms.Event(w.Context(), x.read)
				if err != nil {
					t.Fatal(err)
				}
				if err := w.users.Receipts.Set(w.Context(), users.Receipt{Room: x.id, User: bob.id, Type: "m.read", EventID: x.read, Order: int64(ev.Pos)}); err != nil {
					t.Fatal(err)
				}
			}
		case 8:
			if all[0] != x { // somebody has to keep the rooms going
				member(x, &x.in, alice)
			}
		case 9:
			if x.in && x != all[0] {
				member(x, &x.bob, bob)
			}
		}
	}
	body := func(window, limit int, subscribed *truth, extensions bool) string {
		state := func(topic bool) string {
			include := fmt.Sprintf(`{"type":"m.room.member","state_key":%q}`, alice.id)
			if topic {
				include += `,{"type":"m.room.topic","state_key":""}`
			}
			return `"required_state":{"include":[` + include + `]}`
		}
		subs := ""
		if subscribed != nil {
			subs = fmt.Sprintf(`%q:{"timeline_limit":%d,%s}`, subscribed.id, 1+r.IntN(20), state(true))
		}
		return fmt.Sprintf(`{"lists":{"l":{"range":[0,%d],"timeline_limit":%d,%s}},"room_subscriptions":{%s},"extensions":{"account_data":{"enabled":%v},"receipts":{"enabled":%v}}}`,
			window-1, limit, state(window > count || r.IntN(3) > 0), subs, extensions, extensions)
	}
	c := alice.sliding(feed.Stable, "main")
	known := make(map[matrix.RoomID]told)
	for range 120 {
		for range r.IntN(4) {
			happen()
		}
		w.settle()
		var sub *truth
		if r.IntN(3) == 0 {
			sub = all[r.IntN(count)]
		}
		before := c.pos
		answer := c.sync(0, body(1+r.IntN(count), 1+r.IntN(4), sub, r.IntN(4) > 0))
		if r.IntN(4) == 0 {
			c.pos = before // the response got lost
			continue
		}
		answer.apply(known)
	}
	w.settle()
	c.sync(0, body(100, 1, nil, true)).apply(known)
	for i, x := range all {
		k, ok := known[x.id]
		if !ok {
			if x.in {
				t.Errorf("room %d is not known", i)
			}
			continue
		}
		if x.in != (k.member == "join") {
			t.Errorf("room %d: in it is %v, known as %q", i, x.in, k.member)
		}
		if !x.in {
			continue
		}
		joined := 1
		if x.bob {
			joined = 2
		}
		if k.topic != x.topic || k.dm != x.dm || k.datum != x.datum || k.joined != joined {
			t.Errorf("room %d: topic %q, dm %v, datum %d, joined %d; known %q, %v, %d, %d", i, x.topic, x.dm, x.datum, joined, k.topic, k.dm, k.datum, k.joined)
		}
		page, err := w.rooms.Timeline(w.Context(), rooms.TimelineRequest{Room: mustNID(t, w, x.id), Until: w.db.Current(), Limit: len(k.events)})
		if err != nil {
			t.Fatal(err)
		}
		var newest []matrix.EventID
		for _, ev := range page.Events {
			newest = append(newest, ev.ID())
		}
		if !slices.Equal(newest, k.events) {
			t.Errorf("room %d: the newest %d events are %v, known %v", i, len(k.events), newest, k.events)
		}
		if x.read != "" && x.bob && slices.Contains(k.events, x.read) && k.receipts[bob.id] != x.read {
			t.Errorf("room %d: bob has read %s, known %s", i, x.read, k.receipts[bob.id])
		}
	}
}

func mustNID(t *testing.T, w *world, id matrix.RoomID) storage.RoomNID {
	t.Helper()
	nid, err := w.rooms.RoomNID(w.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return nid
}

// A room that cannot be told does not keep the others from being told, and is told when it can be.
func TestSlidingBrokenRoom(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	var ids []matrix.RoomID
	for range 3 {
		id := bob.create(rooms.CreateRequest{Preset: "public_chat"})
		alice.join(id)
		ids = append(ids, id)
	}
	fresh, known, other := ids[0], ids[1], ids[2]
	const (
		config = `{"timeline_limit":5,"required_state":{"include":[{"type":"m.room.topic","state_key":""}]}}`
		body   = `{"lists":{"l":` + config + `}}`
	)
	// damage takes away the states before a room's events, or gives them back, and starts the server again.
	damage := func(by int, rooms ...matrix.RoomID) {
		for _, id := range rooms {
			if err := w.db.Write(w.Context(), func(tx *storage.Tx) error {
				_, err := tx.Exec(w.Context(), `UPDATE events SET state_before = state_before + $1 WHERE room_nid = $2`, by, int64(mustNID(t, w, id)))
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		w = newWorld(t, w.db)
		alice.w = w
	}
	c := alice.sliding(feed.Stable, "main")
	c.sync(0, fmt.Sprintf(`{"room_subscriptions":{%q:%s,%q:%s}}`, known, config, other, config))
	missed, said := bob.say(known, "a message there"), bob.say(other, "a message elsewhere")
	w.settle()
	damage(1_000_000_000, fresh, known)
	a := c.sync(time.Second, body)
	if r := a.Rooms[other]; len(a.Rooms) != 1 || len(r.Timeline) != 1 || r.Timeline[0].EventID != said || a.Lists["l"].Count != 3 {
		t.Errorf("news beside broken rooms: %v", a.Rooms)
	}
	began := time.Now()
	if a := c.sync(100*time.Millisecond, body); len(a.Rooms) > 0 || time.Since(began) < 100*time.Millisecond {
		t.Errorf("broken rooms keep a request from waiting: %v after %v", a.Rooms, time.Since(began))
	}
	damage(-1_000_000_000, fresh, known)
	a = c.sync(0, body)
	if r := a.Rooms[known]; r.Initial || len(r.Timeline) != 1 || r.Timeline[0].EventID != missed {
		t.Errorf("the room that was known, mended: %+v", r)
	}
	if r := a.Rooms[fresh]; !r.Initial || len(r.Timeline) == 0 {
		t.Errorf("the room that was not known, mended: %+v", r)
	}
	if a := c.sync(0, body); len(a.Rooms) > 0 {
		t.Errorf("told twice: %v", a.Rooms)
	}
}

// A response that would become very large is told in parts, without waiting.
func TestSlidingLargeResponse(t *testing.T) {
	w := open(t)
	alice := w.user("alice")
	const count = 10
	for range count {
		id := alice.create(rooms.CreateRequest{Preset: "public_chat"})
		for range 18 {
			alice.say(id, strings.Repeat("x", 60<<10))
		}
	}
	w.settle()
	c := alice.sliding(feed.Stable, "main")
	const body = `{"lists":{"l":{"timeline_limit":20,"required_state":{}}},"extensions":{"receipts":{"enabled":true}}}`
	known, responses := make(map[matrix.RoomID]told), 0
	for ; len(known) < count && responses < count; responses++ {
		c.sync(10*time.Second, body).apply(known)
	}
	if len(known) != count || responses != 2 {
		t.Errorf("%d rooms in %d responses", len(known), responses)
	}
	for id, k := range known {
		if len(k.events) != 20 {
			t.Errorf("%d events of %s", len(k.events), id)
		}
	}
}

// A client that has been told everything causes no writes, whatever happens in its rooms.
func TestSlidingWritesNothing(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	id := bob.create(rooms.CreateRequest{Preset: "public_chat"})
	alice.join(id)
	w.settle()
	c := alice.sliding(feed.Unstable, "main")
	c.raw(0, elementX(20))
	versions := func() int {
		rows, err := storage.SlidingConnectionsOfDevice(w.Context(), w.db, alice.id, alice.device)
		if err != nil {
			t.Fatal(err)
		}
		return len(rows)
	}
	for i := range 5 {
		bob.say(id, fmt.Sprint(i))
		w.settle()
		c.raw(time.Second, elementX(20))
		c.raw(0, elementX(20))
	}
	if n := versions(); n != 1 {
		t.Errorf("%d versions are stored of a connection that nothing has to be kept of", n)
	}
	if err := w.users.Devices.Delete(w.Context(), alice.id, alice.device); err != nil {
		t.Fatal(err)
	}
	if n := versions(); n != 0 {
		t.Errorf("%d versions are left of a device that is gone", n)
	}
	c.device = w.login(alice.id).device
	if _, err := c.try(0, elementX(20)); !matrix.HasCode(err, "M_UNKNOWN_POS") {
		t.Errorf("a pos of a device that is gone: %v", err)
	}
}
