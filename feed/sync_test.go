package feed_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// answer is a response as a client reads it.
type answer struct {
	Rooms struct {
		Join, Leave   map[matrix.RoomID]toldRoom
		Invite, Knock map[matrix.RoomID]map[string]events
	} `json:"rooms"`
	AccountData events `json:"account_data"`
	Presence    events `json:"presence"`
}

type toldRoom struct {
	Timeline struct {
		Events    []map[string]any `json:"events"`
		Limited   bool             `json:"limited"`
		PrevBatch string           `json:"prev_batch"`
	} `json:"timeline"`
	State       events            `json:"state"`
	AccountData events            `json:"account_data"`
	Ephemeral   events            `json:"ephemeral"`
	Unread      counts            `json:"unread_notifications"`
	Threads     map[string]counts `json:"unread_thread_notifications"`
}

type events struct {
	Events []map[string]any `json:"events"`
}

type counts struct {
	Notify    int `json:"notification_count"`
	Highlight int `json:"highlight_count"`
}

func (m *member) told(filter string) answer {
	m.w.Helper()
	f, err := feed.ParseFilter([]byte(filter))
	if err != nil {
		m.w.Fatal(err)
	}
	var res answer
	if err := json.Unmarshal(m.sync(0, f), &res); err != nil {
		m.w.Fatal(err)
	}
	return res
}

// initial is told by a device that is new.
func (m *member) initial(filter string) answer {
	m.w.Helper()
	return m.w.login(m.id).told(filter)
}

func texts(list []map[string]any) []string {
	var out []string
	for _, ev := range list {
		content, _ := ev["content"].(map[string]any)
		if body, ok := content["body"].(string); ok {
			out = append(out, body)
		}
	}
	return out
}

func types(list []map[string]any) []string {
	var out []string
	for _, ev := range list {
		t, _ := ev["type"].(string)
		out = append(out, t)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (m *member) send(room matrix.RoomID, eventType, content string) matrix.EventID {
	m.w.Helper()
	id, err := m.w.rooms.Send(m.w.Context(), rooms.SendRequest{Room: room, Sender: m.id, Type: eventType, Content: []byte(content), Device: m.device})
	if err != nil {
		m.w.Fatal(err)
	}
	return id
}

// spec: client-server-api#filtering
func TestSyncFilters(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	room := alice.create(rooms.CreateRequest{Preset: "public_chat", Name: "A room"})
	other := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	left := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(room)
	for i := range 3 {
		alice.say(room, name("alice ", i))
	}
	bob.say(room, "bob")
	alice.send(room, "org.example.file", `{"body":"file","url":"mxc://x/y"}`)
	must(t, w.users.AccountData.Set(t.Context(), alice.id, "", "org.example.one", []byte(`{"n":1}`)))
	must(t, w.users.AccountData.Set(t.Context(), alice.id, "", "org.example.two", []byte(`{"n":2}`)))
	must(t, w.users.AccountData.Set(t.Context(), alice.id, room, "m.tag", []byte(`{"tags":{"u.a":{}}}`)))
	must(t, w.users.AccountData.Set(t.Context(), alice.id, room, "org.example.room", []byte(`{"n":3}`)))
	must(t, w.users.Receipts.Set(t.Context(), users.Receipt{Room: room, User: bob.id, Type: users.ReceiptRead, EventID: bob.say(room, "read"), Order: 1}))
	w.Typing.Start(room, bob.id, time.Minute)
	must(t, w.users.AccountData.Set(t.Context(), alice.id, left, "org.example.room", []byte(`{"n":4}`)))
	if _, err := w.rooms.Leave(t.Context(), rooms.MemberRequest{Room: left, Sender: alice.id}); err != nil {
		t.Fatal(err)
	}
	w.settle()

	inRoom := func(kind string, filter string) string { return `{"room":{"` + kind + `":` + filter + `}}` }
	timeline := func(filter string) []string {
		return texts(alice.initial(inRoom("timeline", filter)).Rooms.Join[room].Timeline.Events)
	}
	all := []string{"alice 0", "alice 1", "alice 2", "bob", "file", "read"}
	for filter, want := range map[string][]string{
		`{}`:                                     all,
		`{"limit":2}`:                            {"file", "read"},
		`{"limit":0}`:                            nil,
		`{"types":["m.room.mess*"]}`:             {"alice 0", "alice 1", "alice 2", "bob", "read"},
		`{"types":["*"],"not_types":["m.*"]}`:    {"file"},
		`{"senders":["` + string(bob.id) + `"]}`: {"bob", "read"},
		`{"not_senders":["` + string(bob.id) + `"]}`: {"alice 0", "alice 1", "alice 2", "file"},
		`{"contains_url":true}`:                      {"file"},
		`{"contains_url":false,"limit":1}`:           {"read"},
		`{"rooms":["` + string(other) + `"]}`:        nil,
		`{"not_rooms":["` + string(room) + `"]}`:     nil,
		`{"senders":[]}`:                             nil,
	} {
		if got := timeline(filter); !slices.Equal(got, want) {
			t.Errorf("timeline %s: %q, want %q", filter, got, want)
		}
	}
	if res := alice.initial(inRoom("timeline", `{"limit":0}`)).Rooms.Join[room]; !res.Timeline.Limited || res.Timeline.PrevBatch == "" || len(res.State.Events) < 5 {
		t.Errorf("limit 0: all of the state, and a place to go back from: %+v", res)
	}
	state := func(filter string) []string {
		return types(alice.initial(inRoom("timeline", `{"limit":1},"state":`+filter)).Rooms.Join[room].State.Events)
	}
	if got := state(`{"types":["m.room.n*"]}`); !slices.Equal(got, []string{"m.room.name"}) {
		t.Errorf("state by type: %q", got)
	}
	if got := state(`{"not_rooms":["` + string(room) + `"]}`); got != nil {
		t.Errorf("state of another room: %q", got)
	}
	if got := state(`{"senders":["` + string(bob.id) + `"]}`); !slices.Equal(got, []string{"m.room.member"}) {
		t.Errorf("state by sender: %q", got)
	}

	for filter, want := range map[string][]string{
		`{}`: {"m.receipt", "m.typing"}, `{"types":["m.typing"]}`: {"m.typing"}, `{"not_types":["m.t*"]}`: {"m.receipt"}, `{"types":[]}`: nil,
		`{"not_rooms":["` + string(room) + `"]}`: nil, `{"limit":0}`: nil,
	} {
		if got := types(alice.initial(inRoom("ephemeral", filter)).Rooms.Join[room].Ephemeral.Events); !slices.Equal(got, want) {
			t.Errorf("ephemeral %s: %q, want %q", filter, got, want)
		}
	}
	for filter, want := range map[string][]string{
		`{}`: {"m.tag", "org.example.room"}, `{"types":["m.tag"]}`: {"m.tag"}, `{"limit":1}`: {"org.example.room"}, `{"rooms":["` + string(other) + `"]}`: nil,
		`{"not_senders":["` + string(alice.id) + `"]}`: nil,
	} {
		if got := types(alice.initial(inRoom("account_data", filter)).Rooms.Join[room].AccountData.Events); !slices.Equal(got, want) {
			t.Errorf("room account data %s: %q, want %q", filter, got, want)
		}
	}
	for filter, want := range map[string][]string{
		`{"types":["org.example.*"]}`: {"org.example.one", "org.example.two"}, `{"types":["org.*"],"not_types":["*.two"]}`: {"org.example.one"}, `{"limit":0}`: nil,
	} {
		if got := types(alice.initial(`{"account_data":` + filter + `}`).AccountData.Events); !slices.Equal(got, want) {
			t.Errorf("account data %s: %q, want %q", filter, got, want)
		}
	}

	// What is said of rooms as such comes before what is said of parts of them.
	joined := func(filter string) []matrix.RoomID {
		var ids []matrix.RoomID
		for id := range alice.initial(filter).Rooms.Join {
			ids = append(ids, id)
		}
		return ids
	}
	if got := joined(`{"room":{"rooms":["` + string(room) + `"],"timeline":{"rooms":["` + string(other) + `"]}}}`); !slices.Equal(got, []matrix.RoomID{room}) {
		t.Errorf("rooms: %q", got)
	}
	if got := joined(`{"room":{"not_rooms":["` + string(room) + `"],"rooms":["` + string(room) + `","` + string(other) + `"]}}`); !slices.Equal(got, []matrix.RoomID{other}) {
		t.Errorf("not_rooms: %q", got)
	}
	res := alice.initial(`{"room":{"include_leave":true}}`)
	if got := types(res.Rooms.Leave[left].AccountData.Events); !slices.Equal(got, []string{"org.example.room"}) || len(res.Rooms.Join) != 2 {
		t.Errorf("left room: %q", got)
	}

	// Only the fields that were asked for.
	res = alice.initial(`{"event_fields":["type","content.body","unsigned.age"],"room":{"timeline":{"limit":1}}}`)
	got, err := json.Marshal(res.Rooms.Join[room].Timeline.Events[0])
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"content":{"body":"read"},"type":"m.room.message","unsigned":{"age":`; !strings.HasPrefix(string(got), want) {
		t.Errorf("fields: %s", got)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Whatever is counted, read and redacted in whatever order: a device that follows sees the counts that a new device sees, which
// are counted from what is stored.
// spec: client-server-api#receiving-notifications
func TestSyncUnreadCounts(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	room := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(room)
	w.settle()
	const filter = `{"room":{"timeline":{"unread_thread_notifications":true}}}`
	alice.told(filter)
	r := rand.New(rand.NewPCG(1, 2))
	var sent []matrix.EventID
	var roots []string
	now := counts{}
	threads := map[string]counts{}
	mention := `"m.mentions":{"user_ids":["` + string(alice.id) + `"]}`
	for step := range 150 {
		what := ""
		switch n := r.IntN(10); {
		case n < 4 || len(sent) == 0:
			content := `{"msgtype":"m.text","body":"x"}`
			if r.IntN(3) == 0 {
				content = `{"msgtype":"m.text","body":"x",` + mention + `}`
			}
			sent = append(sent, bob.send(room, "m.room.message", content))
			what = "message"
		case n < 7:
			root := string(sent[r.IntN(len(sent))])
			if len(roots) > 0 {
				root = roots[r.IntN(len(roots))]
			}
			if len(roots) < 3 && !slices.Contains(roots, root) {
				roots = append(roots, root)
			}
			bob.send(room, "m.room.message", `{"msgtype":"m.text","body":"x","m.relates_to":{"rel_type":"m.thread","event_id":"`+root+`"}}`)
			what = "thread message"
		case n < 8:
			id := sent[r.IntN(len(sent))]
			if _, err := w.rooms.Redact(t.Context(), rooms.SendRequest{Room: room, Sender: bob.id, Redacts: id}, ""); err != nil {
				t.Fatal(err)
			}
			what = "redaction"
		default:
			id := sent[r.IntN(len(sent))]
			ev, err := w.rooms.Event(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			thread := ""
			switch r.IntN(3) {
			case 0:
				thread = "main"
			case 1:
				if len(roots) > 0 {
					thread = roots[r.IntN(len(roots))]
				}
			}
			must(t, w.users.Receipts.Set(t.Context(), users.Receipt{Room: room, User: alice.id, Type: users.ReceiptReadPrivate, EventID: id, Thread: thread, Order: int64(ev.Pos)}))
			what = "receipt " + thread
		}
		w.settle()
		// What is not told has not changed, but for redactions: nobody is woken for those.
		for _, res := range []answer{alice.told(filter)} {
			if j, ok := res.Rooms.Join[room]; ok {
				now, threads = j.Unread, j.Threads
			}
		}
		fresh := alice.initial(filter).Rooms.Join[room]
		if now != fresh.Unread || fmt.Sprint(threads) != fmt.Sprint(fresh.Threads) {
			t.Fatalf("step %d, after a %s: %v %v, counted anew %v %v", step, what, now, threads, fresh.Unread, fresh.Threads)
		}
		sum := fresh.Unread.Notify
		for _, c := range fresh.Threads {
			sum += c.Notify
		}
		for _, f := range []*feed.Feed{w.Feed, w.restarted().Feed} {
			if total, err := f.UnreadTotal(t.Context(), alice.id); err != nil || total != int64(sum) {
				t.Fatalf("step %d, after a %s: %d unread in all rooms (%v), want %d", step, what, total, err, sum)
			}
		}
		again := w.restarted().login(alice.id).told(filter).Rooms.Join[room]
		if again.Unread != fresh.Unread || fmt.Sprint(again.Threads) != fmt.Sprint(fresh.Threads) {
			t.Fatalf("step %d, after a %s: %v %v, by a server that knows nothing %v %v", step, what, fresh.Unread, fresh.Threads, again.Unread, again.Threads)
		}
	}
}

// restarted is a feed on the same data that remembers nothing.
func (w *world) restarted() *world {
	other := *w
	other.Feed = feed.New(feed.Options{DB: w.db, Rooms: w.rooms, Users: w.users, Hub: feed.NewHub(func(matrix.RoomID) []matrix.UserID { return nil }, nil)})
	return &other
}

// Every reader is told the same as without the form that readers share, also after a redaction of what went before.
func TestSyncSharedForm(t *testing.T) {
	w := open(t)
	alice, bob, late := w.user("alice"), w.user("bob"), w.user("late")
	second := w.login(alice.id)
	room := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(room)
	topic := func(text string) matrix.EventID {
		key := ""
		id, err := w.rooms.Send(t.Context(), rooms.SendRequest{
			Room: room, Sender: alice.id, Type: "m.room.topic", StateKey: &key, Content: []byte(`{"topic":"` + text + `"}`), Device: alice.device, TxnID: text,
		})
		must(t, err)
		return id
	}
	first := topic("secret")
	ids := []matrix.EventID{first, topic("second"), topic("third")}
	id, err := w.rooms.Send(t.Context(), rooms.SendRequest{Room: room, Sender: alice.id, Type: "m.room.message", Content: []byte(`{"body":"hello"}`), Device: alice.device, TxnID: "m"})
	must(t, err)
	ids = append(ids, id)
	late.join(room)
	ids = append(ids, alice.say(room, "after"))
	check := func() {
		t.Helper()
		const now = matrix.Timestamp(2_000_000_000_000)
		for _, id := range ids {
			ev, err := w.rooms.Event(t.Context(), id)
			must(t, err)
			for _, m := range []*member{alice, second, bob, late} {
				o, err := w.rooms.ClientOptions(t.Context(), ev, m.id, m.device)
				must(t, err)
				o.OmitRoomID, o.Now, o.Relations, o.RedactedBecause = true, now, []byte(`{}`), nil
				got, err := w.rooms.AppendForSync(t.Context(), nil, ev, m.id, m.device, now, o.Relations)
				must(t, err)
				var shown struct {
					Unsigned struct {
						Membership    string
						TransactionID string          `json:"transaction_id"`
						Because       json.RawMessage `json:"redacted_because"`
						PrevContent   json.RawMessage `json:"prev_content"`
					}
				}
				must(t, json.Unmarshal(got, &shown))
				if want := string(ev.AppendClient(nil, o)); shown.Unsigned.Because == nil && string(got) != want {
					t.Errorf("%s is told\n%s, want\n%s", m.id, got, want)
				}
				if (shown.Unsigned.TransactionID != "") != (m == alice && id != ids[4]) {
					t.Errorf("%s on %s is told the transaction of %s: %s", m.id, m.device, alice.device, got)
				}
				wantMembership := "join"
				if m == late && id != ids[4] {
					wantMembership = "leave"
				}
				if shown.Unsigned.Membership != wantMembership {
					t.Errorf("%s was %s: %s", m.id, wantMembership, got)
				}
				if id == ids[1] && bytes.Contains(shown.Unsigned.PrevContent, []byte("secret")) != (first == ids[0]) {
					t.Errorf("previous content: %s", got)
				}
			}
		}
	}
	check()
	check()
	_, err = w.rooms.Redact(t.Context(), rooms.SendRequest{Room: room, Sender: alice.id, Redacts: first}, "")
	must(t, err)
	first = "" // what it said is not told any more
	check()
}

// A response goes out room by room, and one that breaks off is no JSON.
func TestSyncStreams(t *testing.T) {
	w := open(t)
	alice := w.user("alice")
	const count = 40
	each(count, func(i int) {
		room := alice.create(rooms.CreateRequest{Preset: "private_chat", Name: name("room ", i)})
		for range 10 {
			alice.say(room, strings.Repeat("x", 1000))
		}
	})
	w.settle()
	out := &pieces{left: 1 << 30}
	must(t, w.Sync(t.Context(), feed.Request{User: alice.id, Device: alice.device, Filter: &feed.Filter{}}, out))
	var res answer
	must(t, json.Unmarshal(out.all, &res))
	if len(res.Rooms.Join) != count || out.longest > len(out.all)/10 {
		t.Errorf("%d rooms in %d bytes, the longest piece of %d", len(res.Rooms.Join), len(out.all), out.longest)
	}
	for _, most := range []int{0, 1, 3, 10} {
		cut := &pieces{left: most}
		err := w.Sync(t.Context(), feed.Request{User: alice.id, Device: alice.device, Filter: &feed.Filter{}}, cut)
		if !errors.Is(err, errGone) || json.Valid(cut.all) || cut.tries != most+1 {
			t.Errorf("a client that went after %d pieces: %v, tried %d times", most, err, cut.tries)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cut := &pieces{left: 5, then: cancel}
	if err := w.Sync(ctx, feed.Request{User: alice.id, Device: alice.device, Filter: &feed.Filter{}}, cut); err == nil || json.Valid(cut.all) {
		t.Errorf("an error within the rooms: %v", err)
	}
}

var errGone = errors.New("gone")

// pieces takes some pieces of a response.
type pieces struct {
	all            []byte
	longest, tries int
	left           int
	then           func() // when the last one was taken, nil to fail
}

func (p *pieces) Write(b []byte) (int, error) {
	p.tries++
	if p.left == 0 && p.then == nil {
		return 0, errGone
	}
	if p.left--; p.left == 0 && p.then != nil {
		p.then()
	}
	p.all = append(p.all, b...)
	p.longest = max(p.longest, len(b))
	return len(b), nil
}

// What is remembered of a room's timeline, state and gaps says the same as what is stored.
func TestSyncFromMemory(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	room := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	r := rand.New(rand.NewPCG(3, 4))
	var tokens []storage.Position
	joined := false
	for i := range 200 {
		switch n := r.IntN(10); {
		case n < 7:
			alice.say(room, name("message ", i))
		case n < 8:
			key := ""
			_, err := w.rooms.Send(t.Context(), rooms.SendRequest{Room: room, Sender: alice.id, Type: "m.room.topic", StateKey: &key, Content: []byte(`{"topic":"` + name("", i) + `"}`)})
			must(t, err)
		case joined:
			_, err := w.rooms.Leave(t.Context(), rooms.MemberRequest{Room: room, Sender: bob.id})
			must(t, err)
			joined = false
		default:
			bob.join(room)
			joined = true
		}
		w.settle()
		tokens = append(tokens, w.db.Current())
	}
	nid, err := w.rooms.RoomNID(t.Context(), room)
	must(t, err)
	key, err := signing.Generate()
	must(t, err)
	cold, err := rooms.New(rooms.Options{DB: w.db, ServerName: here, Key: key, Log: zerolog.Nop()})
	must(t, err)
	defer cold.Close()
	look := func(e *rooms.Engine, since, until storage.Position) string {
		page, err := e.Timeline(t.Context(), rooms.TimelineRequest{Room: nid, Since: since, Until: until, Limit: 10})
		must(t, err)
		state, err := e.StateAtPosition(t.Context(), nid, until)
		must(t, err)
		all, err := state.All(t.Context())
		must(t, err)
		out := fmt.Sprint(page.Limited, page.PrevBatch)
		for _, ev := range append(page.Events, all...) {
			out += " " + fmt.Sprint(ev.NID)
		}
		return out
	}
	for range 300 {
		since, until := tokens[r.IntN(len(tokens))], tokens[r.IntN(len(tokens))]
		if r.IntN(3) > 0 { // most clients follow closely
			since, until = tokens[len(tokens)-1-r.IntN(40)], tokens[len(tokens)-1-r.IntN(3)]
		}
		if got, want := look(w.rooms, since, until), look(cold, since, until); got != want {
			t.Fatalf("(%d, %d]: %s\nstored: %s", since, until, got, want)
		}
	}
}

// A client from before a backup was restored begins anew: what came since then may have positions that it has seen already.
func TestSyncTokenAhead(t *testing.T) {
	w := open(t)
	alice, bob := w.user("alice"), w.user("bob")
	room := alice.create(rooms.CreateRequest{Preset: "public_chat"})
	bob.join(room)
	said := bob.say(room, "after the backup")
	w.settle()
	note := users.Messages{alice.id: {alice.device: json.RawMessage(`{"to":"a device"}`)}}
	if err := w.users.ToDevice.Send(t.Context(), bob.id, bob.device, "t", "org.example.note", note); err != nil {
		t.Fatal(err)
	}
	w.settle()
	alice.since = feed.At(w.db.Current() + 1_000_000)
	body := string(alice.sync(time.Minute, nil))
	for _, part := range []string{string(said), `"m.room.create"`, `"to":"a device"`} {
		if !strings.Contains(body, part) {
			t.Errorf("no %s in %s", part, body)
		}
	}
	if alice.since.Pos > w.db.Current() {
		t.Errorf("next_batch is %s, the stream is at %d", alice.since, w.db.Current())
	}
	next := bob.say(room, "and on")
	w.settle()
	if body := string(alice.sync(0, nil)); !strings.Contains(body, string(next)) {
		t.Errorf("no %s in %s", next, body)
	}
}
