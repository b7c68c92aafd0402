package delayed

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

const (
	here  = matrix.ServerName("here.test")
	alice = matrix.UserID("@alice:here.test")
	bob   = matrix.UserID("@bob:here.test")
)

// world is a scheduler on a real engine, with a clock that stands still.
type world struct {
	*Scheduler
	t      *testing.T
	ctx    context.Context
	room   matrix.RoomID
	mu     sync.Mutex
	clock  time.Time
	refuse error // what MaySend says
	policy policy
	sent   chan struct{} // holds a token when there was a commit to a room
}

// RoomUpdated implements rooms.Listener.
func (w *world) RoomUpdated(*rooms.Update) {
	wake.Up(w.sent)
}

// policy refuses plain messages.
type policy struct{ rooms.Policy }

func (policy) CheckLocal(_ context.Context, e *event.Event, _ bool) error {
	if e.Type() == "m.room.message" && !e.IsState() {
		return matrix.Forbidden("plain")
	}
	return nil
}

func (policy) CheckRemote(context.Context, *event.Event, bool) bool { return false }

func (policy) InitialState(context.Context, *rooms.CreateRequest) ([]rooms.StateInput, error) {
	return nil, nil
}

func each(t *testing.T, fn func(w *world)) {
	t.Helper()
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		w := &world{t: t, ctx: t.Context(), sent: make(chan struct{}, 1), clock: time.UnixMilli(1_700_000_000_000)}
		key, err := signing.Generate()
		w.must(err)
		engine, err := rooms.New(rooms.Options{DB: db, ServerName: here, Key: key, Policy: w.policy, Listener: w, Log: zerolog.Nop()})
		w.must(err)
		t.Cleanup(func() { engine.Close() })
		w.Scheduler = w.restarted(db, engine)
		w.room, err = engine.CreateRoom(w.ctx, rooms.CreateRequest{Creator: alice, Preset: "public_chat"})
		w.must(err)
		_, err = engine.Join(w.ctx, rooms.MemberRequest{Room: w.room, Sender: bob})
		w.must(err)
		fn(w)
	})
}

// restarted is a scheduler that remembers nothing.
func (w *world) restarted(db *storage.DB, engine *rooms.Engine) *Scheduler {
	return New(Options{
		DB: db, Rooms: engine, MaxDelay: time.Hour, MaxScheduled: 3, Log: zerolog.Nop(),
		MaySend: func(context.Context, matrix.UserID) error { return w.refuse },
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.clock
		},
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) advance(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.clock = w.clock.Add(d)
}

// schedule lets a user set a state of their own later.
func (w *world) schedule(user matrix.UserID, text string, delay time.Duration) string {
	w.t.Helper()
	key := string(user)
	id, err := w.Schedule(w.ctx, Request{Delay: delay, Event: rooms.SendRequest{
		Room: w.room, Sender: user, Type: "m.room.encrypted", Content: []byte(`{"text":"` + text + `","user":"` + key + `"}`),
	}})
	w.must(err)
	return id
}

func (w *world) due() {
	w.t.Helper()
	_, err := w.sendDue(w.ctx)
	w.must(err)
}

// texts are the events in the room that schedule made, in order.
func (w *world) texts() string {
	w.t.Helper()
	page, err := w.Rooms.Messages(w.ctx, rooms.MessagesRequest{Room: w.room, User: alice, Limit: 1000})
	w.must(err)
	var out []string
	for _, ev := range page.Events {
		if text, ok := ev.ContentString("text"); ok {
			out = append(out, text)
		}
	}
	return strings.Join(out, " ")
}

func (w *world) expect(what, want string) {
	w.t.Helper()
	if got := w.texts(); got != want {
		w.t.Fatalf("%s: sent %q, want %q", what, got, want)
	}
}

func (w *world) get(user matrix.UserID, id string) *Event {
	w.t.Helper()
	ev, err := w.Get(w.ctx, user, id)
	w.must(err)
	return ev
}

func status(err error) int {
	if e, ok := matrix.AsError(err); ok {
		return e.Status
	}
	return 0
}

func TestTimes(t *testing.T) {
	each(t, func(w *world) {
		first := w.schedule(alice, "first", 20*time.Second)
		second := w.schedule(bob, "second", 30*time.Second)
		w.advance(19999 * time.Millisecond)
		w.due()
		w.expect("too early", "")
		w.must(w.Restart(w.ctx, second))
		w.advance(time.Millisecond)
		w.due()
		w.expect("the first is due", "first")
		ev := w.get(alice, first)
		if ev.EventID == "" || ev.FinalisedAt == 0 || ev.SendAt != 0 || ev.Error != nil {
			t.Errorf("sent: %+v", ev)
		}
		sent, err := w.Rooms.Event(w.ctx, ev.EventID)
		w.must(err)
		if o, err := w.Rooms.ClientOptions(w.ctx, sent, alice, "ANY"); err != nil || o.DelayID != first || o.TransactionID != "" {
			t.Errorf("what the sender is told of the event: %+v %v", o, err)
		}
		if o, err := w.Rooms.ClientOptions(w.ctx, sent, bob, "ANY"); err != nil || o.DelayID != "" || o.TransactionID != "" {
			t.Errorf("what others are told of the event: %+v %v", o, err)
		}
		w.advance(10 * time.Second)
		w.due()
		w.expect("the second was restarted", "first")
		w.advance(20 * time.Second)
		w.due()
		w.expect("the second is due", "first second")
	})
}

func TestActions(t *testing.T) {
	each(t, func(w *world) {
		sent, cancelled := w.schedule(alice, "sent", time.Minute), w.schedule(alice, "cancelled", time.Minute)
		w.must(w.Send(w.ctx, sent))
		w.expect("sent by hand", "sent")
		w.must(w.Cancel(w.ctx, cancelled))
		w.advance(time.Hour)
		w.due()
		w.expect("the other is cancelled", "sent")
		for _, c := range []struct {
			name string
			err  error
			want int
		}{
			{"send again", w.Send(w.ctx, sent), 0},
			{"cancel what is sent", w.Cancel(w.ctx, sent), 409},
			{"restart what is sent", w.Restart(w.ctx, sent), 409},
			{"cancel again", w.Cancel(w.ctx, cancelled), 0},
			{"send what is cancelled", w.Send(w.ctx, cancelled), 409},
			{"restart what is cancelled", w.Restart(w.ctx, cancelled), 409},
			{"send nothing", w.Send(w.ctx, "x"), 404},
			{"cancel nothing", w.Cancel(w.ctx, "x"), 404},
			{"restart nothing", w.Restart(w.ctx, "x"), 404},
		} {
			if got := status(c.err); got != c.want {
				t.Errorf("%s: %v, want %d", c.name, c.err, c.want)
			}
		}
		w.expect("nothing is sent twice", "sent")
		if _, err := w.Get(w.ctx, bob, sent); status(err) != 404 {
			t.Errorf("another user's event: %v", err)
		}
		if ev := w.get(alice, cancelled); ev.FinalisedAt == 0 || ev.EventID != "" || ev.Error != nil {
			t.Errorf("cancelled: %+v", ev)
		}
	})
}

// What cannot be sent stays if it was sent by hand, and is given up with the reason when it is due.
func TestRefusals(t *testing.T) {
	each(t, func(w *world) {
		id := w.schedule(bob, "kicked", time.Minute)
		_, err := w.Rooms.Kick(w.ctx, rooms.MemberRequest{Room: w.room, Sender: alice, Target: bob})
		w.must(err)
		if err := w.Send(w.ctx, id); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("sent by somebody who was kicked: %v", err)
		}
		if ev := w.get(bob, id); ev.FinalisedAt != 0 {
			t.Errorf("given up too early: %+v", ev)
		}
		w.advance(time.Minute)
		w.due()
		if ev := w.get(bob, id); ev.FinalisedAt == 0 || !strings.Contains(string(ev.Error), `"M_FORBIDDEN"`) {
			t.Errorf("given up: %+v %s", ev, ev.Error)
		}
		if err := w.Cancel(w.ctx, id); err != nil {
			t.Errorf("cancel what failed: %v", err)
		}
		suspended := w.schedule(alice, "suspended", time.Minute)
		w.refuse = matrix.Errorf(403, "M_USER_SUSPENDED", "suspended")
		w.advance(time.Minute)
		w.due()
		if ev := w.get(alice, suspended); !strings.Contains(string(ev.Error), "M_USER_SUSPENDED") {
			t.Errorf("of a suspended user: %+v", ev)
		}
		// An outage is no refusal.
		w.refuse = nil
		kept := w.schedule(alice, "kept", time.Minute)
		w.refuse = errors.New("the database is down")
		w.advance(time.Minute)
		w.due()
		w.refuse = nil
		w.expect("while it could not be sent", "")
		w.advance(retryAfter)
		w.due()
		w.expect("after the outage", "kept")
		if ev := w.get(alice, kept); ev.EventID == "" {
			t.Errorf("after the outage: %+v", ev)
		}
	})
}

func TestScheduling(t *testing.T) {
	each(t, func(w *world) {
		q := func(delay time.Duration, change func(*rooms.SendRequest)) error {
			ev := rooms.SendRequest{Room: w.room, Sender: alice, Type: "m.room.encrypted", Content: []byte(`{}`)}
			if change != nil {
				change(&ev)
			}
			_, err := w.Schedule(w.ctx, Request{Event: ev, Delay: delay})
			return err
		}
		for _, c := range []struct {
			name string
			err  error
			code string
		}{
			{"no delay", q(0, nil), "M_INVALID_PARAM"},
			{"too far ahead", q(time.Hour+time.Millisecond, nil), "M_FORBIDDEN"},
			{"in a room one is not in", q(time.Second, func(r *rooms.SendRequest) { r.Sender = "@eve:here.test" }), "M_FORBIDDEN"},
			{"in no room", q(time.Second, func(r *rooms.SendRequest) { r.Room = "!no:here.test" }), "M_FORBIDDEN"},
			{"plaintext", q(time.Second, func(r *rooms.SendRequest) { r.Type = "m.room.message" }), "M_FORBIDDEN"},
			{"too large", q(time.Second, func(r *rooms.SendRequest) { r.Content = []byte(`{"a":"` + strings.Repeat("a", 70000) + `"}`) }), "M_TOO_LARGE"},
			{"a second create event", q(time.Second, func(r *rooms.SendRequest) { r.Type = "m.room.create" }), "M_INVALID_PARAM"},
		} {
			if !matrix.HasCode(c.err, c.code) {
				t.Errorf("%s: %v, want %s", c.name, c.err, c.code)
			}
		}
		repeat := func() (string, error) {
			return w.Schedule(w.ctx, Request{Delay: time.Minute, Event: rooms.SendRequest{
				Room: w.room, Sender: alice, Type: "m.room.encrypted", Content: []byte(`{"text":"once"}`), Device: "D", TxnID: "1",
			}})
		}
		first, err := repeat()
		w.must(err)
		second, err := repeat()
		w.must(err)
		if first != second {
			t.Errorf("a repeated request: %s and %s", first, second)
		}
		w.schedule(alice, "b", 2*time.Minute)
		w.schedule(alice, "c", 3*time.Minute)
		full := q(time.Second, nil)
		if e, ok := matrix.AsError(full); !ok || e.Status != 429 || e.Extra["retry_after_ms"] != int64(60_000) {
			t.Errorf("one too many: %v", full)
		}
		w.schedule(bob, "of another", time.Minute)
		// In pages, in order.
		var got []string
		for from, pages := "", 0; pages == 0 || from != ""; pages++ {
			page, next, err := w.List(w.ctx, alice, from, 2)
			w.must(err)
			for _, ev := range page {
				got = append(got, string(ev.Content[9:13]))
			}
			from = next
		}
		if fmt.Sprint(got) != `[once b"," c","]` {
			t.Errorf("the list: %v", got)
		}
		if _, _, err := w.List(w.ctx, alice, "nonsense", 2); !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("a bad token: %v", err)
		}
		// Due events are sent by the next start, in order; a closed account sends nothing.
		w.must(w.DB.Write(w.ctx, func(tx *storage.Tx) error { return storage.PurgeUserData(w.ctx, tx, bob) }))
		w.advance(time.Hour)
		w.Scheduler = w.restarted(w.DB, w.Rooms)
		w.due()
		w.expect("after the restart", "once b c")
	})
}

// State that the room has already makes no event, and is sent all the same.
func TestSameState(t *testing.T) {
	each(t, func(w *world) {
		key := ""
		q := rooms.SendRequest{Room: w.room, Sender: alice, Type: "m.room.topic", StateKey: &key, Content: []byte(`{"topic":"x"}`)}
		now, err := w.Rooms.Send(w.ctx, q)
		w.must(err)
		id, err := w.Schedule(w.ctx, Request{Event: q, Delay: time.Second})
		w.must(err)
		w.advance(time.Second)
		w.due()
		if ev := w.get(alice, id); ev.EventID != now {
			t.Errorf("sent as %s, want %s", ev.EventID, now)
		}
	})
}

// However many ask at once, and whatever they ask for, one thing happens.
func TestConcurrentActions(t *testing.T) {
	each(t, func(w *world) {
		for round := range 10 {
			id := w.schedule(alice, fmt.Sprint(round), time.Second)
			w.advance(time.Second)
			var sends, cancels sync.WaitGroup
			var mu sync.Mutex
			cancelled := 0
			for range 4 {
				sends.Go(func() {
					if err := w.Send(w.ctx, id); err != nil && status(err) != 409 {
						t.Error(err)
					}
				})
				cancels.Go(func() {
					if err := w.Cancel(w.ctx, id); err == nil {
						mu.Lock()
						cancelled++
						mu.Unlock()
					} else if status(err) != 409 {
						t.Error(err)
					}
				})
			}
			w.due()
			sends.Wait()
			cancels.Wait()
			ev := w.get(alice, id)
			if ev.FinalisedAt == 0 || (ev.EventID == "") != (cancelled == 4) || cancelled != 0 && cancelled != 4 {
				t.Errorf("cancelled %d times of 4, became %+v", cancelled, ev)
			}
			if n := strings.Count(" "+w.texts()+" ", fmt.Sprintf(" %d ", round)); n != 1 && ev.EventID != "" || n != 0 && ev.EventID == "" {
				t.Errorf("it is in the room %d times, and became %+v", n, ev)
			}
		}
	})
}

// Run sends what is scheduled while it waits for something later.
func TestRun(t *testing.T) {
	each(t, func(w *world) {
		s := New(Options{DB: w.DB, Rooms: w.Rooms, MaySend: func(context.Context, matrix.UserID) error { return nil }, MaxDelay: time.Hour, MaxScheduled: 10, Log: zerolog.Nop()})
		ctx, cancel := context.WithCancel(w.ctx)
		ended := make(chan error)
		go func() { ended <- s.Run(ctx) }()
		w.Scheduler = s
		w.schedule(alice, "later", time.Hour)
		select {
		case <-w.sent: // of making the room
		default:
		}
		began := time.Now()
		id := w.schedule(alice, "soon", 50*time.Millisecond)
		select {
		case <-w.sent:
		case <-time.After(20 * time.Second):
			t.Fatal("it is not sent")
		}
		if w.get(alice, id).FinalisedAt == 0 {
			t.Error("something else is sent")
		}
		if took := time.Since(began); took < 50*time.Millisecond || took > lookEvery {
			t.Errorf("sent after %v", took)
		}
		w.expect("only what was due", "soon")
		cancel()
		w.must(<-ended)
	})
}
