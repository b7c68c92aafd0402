package push

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

func TestBackoff(t *testing.T) {
	for failing, want := range map[time.Duration]time.Duration{
		0: time.Second, time.Second: time.Second, 10 * time.Second: 5 * time.Second, time.Hour: 30 * time.Minute, 1000 * time.Hour: 30 * time.Minute,
	} {
		if got := backoff(matrix.Span(failing), maxWait); got != matrix.Span(want) {
			t.Errorf("after %v: %d ms, want %v", failing, got, want)
		}
	}
}

// Whatever a gateway answers is read within bounds, and counts by its status.
func TestAnswers(t *testing.T) {
	s := New(Options{HTTP: &http.Client{}})
	for name, tt := range map[string]struct {
		handle http.HandlerFunc
		want   reply
	}{
		"accepted":   {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"rejected":["a","b"]}`) }, reply{status: 200, rejected: []string{"a", "b"}}},
		"no JSON":    {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `ok`) }, reply{status: 200}},
		"other JSON": {func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"rejected":"a"}`) }, reply{status: 200}},
		"nothing":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, reply{status: 204}},
		"large": {func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"rejected":["`, strings.Repeat("x", 10*maxAnswer), `"]}`)
		}, reply{status: 200}},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9")
			fmt.Fprint(w, `{`)
		}, reply{status: 200}},
		"later":       {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "7"); w.WriteHeader(429) }, reply{status: 429, retryAfter: 7 * time.Second}},
		"some day":    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "x"); w.WriteHeader(503) }, reply{status: 503}},
		"never there": {nil, reply{}},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tt.handle)
			defer server.Close()
			if tt.handle == nil {
				server.Close()
			}
			got, err := s.post(t.Context(), &users.Pusher{Data: []byte(`{"url":"` + server.URL + `?secret"}`)}, []byte(`{}`))
			if fmt.Sprint(got) != fmt.Sprint(tt.want) || (err != nil) != (tt.handle == nil) {
				t.Errorf("%+v %v, want %+v", got, err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the URL is in the error: %v", err)
			}
		})
	}
}

// What has been waiting for a day is not sent any more, and does not hold up what came later.
func TestTooOld(t *testing.T) {
	w := newWorld(t, nil)
	w.member("bob", "push.test")
	w.answers(func(told) (*http.Response, error) { return nil, errors.New("down") })
	old := w.say("old")
	w.await("it fails", 0, func() bool { return w.result("failed") > 0 })
	w.idle()
	w.pass(maxAge)
	w.answers(nil)
	w.await("it is dropped", time.Second, func() bool { return w.result("dropped") == 1 })
	w.pass(-maxAge)
	if n := w.nextIs(w.say("new")); n.Event == old || n.Unread != 2 {
		t.Errorf("told of %+v", n)
	}
}

// A gateway that stumbles over one notification gets the next after a while; one that asks for time gets it.
func TestRefused(t *testing.T) {
	w := newWorld(t, nil)
	w.member("bob", "push.test")
	bad := w.say("bad")
	w.nextIs(bad)
	var tries atomic.Int32
	bad = ""
	w.answers(func(n told) (*http.Response, error) {
		if bad == "" || n.Event == bad {
			bad = n.Event
			tries.Add(1)
			return answer(http.StatusRequestEntityTooLarge, ""), nil
		}
		return nil, nil
	})
	w.say("large")
	good := w.say("good")
	w.await("it was tried for a minute", 5*time.Second, func() bool { return w.result("dropped") == 1 })
	w.await("the next is sent", 5*time.Second, func() bool { return len(w.got) > 0 })
	w.nextIs(good)
	if n := tries.Load(); n < 2 || n > 60 {
		t.Errorf("tried %d times before it was given up", n)
	}

	w.idle()
	var busy atomic.Bool
	busy.Store(true)
	var asked atomic.Int64
	w.answers(func(told) (*http.Response, error) {
		if !busy.Load() {
			return nil, nil
		}
		asked.Add(1)
		res := answer(http.StatusTooManyRequests, "")
		res.Header.Set("Retry-After", "600")
		return res, nil
	})
	late := w.say("late")
	w.await("it is refused", 0, func() bool { return asked.Load() == 1 })
	w.idle()
	w.pass(5 * time.Minute)
	w.say("meanwhile")
	w.await("the pusher waits", 0, func() bool { return w.Waiting() == 1 })
	busy.Store(false)
	w.await("it is sent", time.Minute, func() bool { return len(w.got) > 0 })
	w.nextIs(late)
	if asked.Load() != 1 {
		t.Errorf("asked %d times within the time that the gateway had asked for", asked.Load())
	}
}

// A gateway that does not answer is asked by one pusher at a time; when it answers again, all get through at once.
func TestDeadGateway(t *testing.T) {
	const members = 3 * MaxPerGateway
	w := newWorld(t, nil)
	for i := range members {
		w.member(fmt.Sprint("u", i), "dead.test")
	}
	w.member("well", "well.test")
	var dead atomic.Bool
	dead.Store(true)
	var asked atomic.Int32
	w.answers(func(n told) (*http.Response, error) {
		if n.Host == "dead.test" && dead.Load() {
			asked.Add(1)
			return nil, errors.New("down")
		}
		return nil, nil
	})
	first := w.say("first")
	if n := w.nextIs(first); n.Host != "well.test" {
		t.Fatalf("told %+v", n)
	}
	w.await("all wait", 0, func() bool { return w.Waiting() == members })
	if n := asked.Load(); n > 2*MaxPerGateway {
		t.Errorf("%d requests to find out that a gateway does not answer", n)
	}
	asked.Store(0)
	w.nextIs(w.say("second"))
	for range 10 {
		before := asked.Load()
		w.await("it is asked again", time.Second, func() bool { return asked.Load() > before })
		w.await("all wait", 0, func() bool { return w.Active() == 0 })
	}
	if n := asked.Load(); n > 20 {
		t.Errorf("%d requests in ten rounds", n)
	}
	dead.Store(false)
	w.pass(maxGatewayWait)
	count := make(map[string]int)
	for range 2 * members {
		n := w.next()
		if count[n.Key]++; (n.Event == first) != (count[n.Key] == 1) {
			t.Fatalf("out of order: %+v", n)
		}
	}
	w.idle()
	if n := w.Waiting(); n != 0 {
		t.Errorf("%d pushers still wait", n)
	}
}

// One request among many that gets no answer holds up nobody else.
func TestStumblingGateway(t *testing.T) {
	w := newWorld(t, nil)
	const members = 30
	for i := range members {
		w.member(fmt.Sprint("u", i), "push.test")
	}
	all := make(chan struct{})
	var under, stumbled atomic.Int32
	w.answers(func(n told) (*http.Response, error) {
		if under.Add(1) == members {
			close(all)
		}
		<-all // all at once, so that there are others under way
		if n.Key == "@u7:here.test" && stumbled.Add(1) == 1 {
			return nil, errors.New("connection reset")
		}
		return nil, nil
	})
	id := w.say("hello")
	for range members - 1 {
		w.nextIs(id)
	}
	w.await("one waits", 0, func() bool { return w.Waiting() == 1 })
	w.pass(minWait)
	if n := w.nextIs(id); n.Key != "@u7:here.test" {
		t.Errorf("told %+v", n)
	}
	w.idle()
}

// A pusher that is set anew sends to its new gateway at once, and one of a locked account does not send.
func TestPusherChanges(t *testing.T) {
	w := newWorld(t, nil)
	bob := w.member("bob", "old.test")
	w.answers(func(n told) (*http.Response, error) {
		if n.Host == "old.test" {
			return nil, errors.New("down")
		}
		return nil, nil
	})
	first := w.say("first")
	w.await("it waits", 0, func() bool { return w.Waiting() == 1 })
	uses, err := storage.FindGatewayUses(t.Context(), w.db)
	if must(t, err); len(uses) != 1 || uses[0].Gateway != "http://old.test" || uses[0].Pushers != 1 || uses[0].Waiting != 1 || uses[0].FailingSince == 0 || uses[0].RetryAt <= uses[0].FailingSince {
		t.Errorf("gateways %+v", uses)
	}
	w.set(bob, "new.test")
	second := w.say("second")
	w.nextIs(first)
	if n := w.nextIs(second); n.Host != "new.test" || n.Unread != 2 {
		t.Errorf("told %+v", n)
	}
	must(t, w.users.Accounts.SetLocked(t.Context(), bob, true))
	third := w.say("third")
	w.member("carol", "new.test")
	w.nextIs(w.say("fourth")) // to carol
	must(t, w.users.Accounts.SetLocked(t.Context(), bob, false))
	fifth := w.say("fifth")
	told := map[string]int{}
	for range 4 {
		told[w.next().Event]++
	}
	if told[third] != 1 || told[fifth] != 2 {
		t.Errorf("after the account was unlocked: %v", told)
	}
}

// Idle pushers are in the database only, and so are those of users whom nothing is sent.
func TestIdleCostsNothing(t *testing.T) {
	w := newWorld(t, nil)
	bob := w.member("bob", "push.test")
	for i := range 90 {
		must(t, w.users.Pushers.Set(t.Context(), users.Pusher{UserID: bob, PushKey: fmt.Sprint(i), Kind: "http", AppID: "app",
			Data: []byte(fmt.Sprintf(`{"url":"http://host%d.test/_matrix/push/v1/notify"}`, i))}, true))
	}
	id := w.say("hello")
	for range 91 {
		w.nextIs(id)
	}
	w.idle()
	w.Sender.mu.Lock()
	defer w.Sender.mu.Unlock()
	if len(w.active) != 0 || len(w.gateways) != 0 || w.running != 0 || len(w.turn) != 0 {
		t.Errorf("in memory: %d pushers, %d gateways, %d running, %d in turn", len(w.active), len(w.gateways), w.running, len(w.turn))
	}
}

// Counts follow what is read, however often and wherever, and end at what is so.
func TestCounts(t *testing.T) {
	w := newWorld(t, nil)
	bob := w.member("bob", "push.test")
	var events []*rooms.Event
	for i := range 5 {
		id := w.say(fmt.Sprint(i))
		if n := w.nextIs(id); n.Unread != int64(i+1) {
			t.Errorf("message %d: %d unread", i, n.Unread)
		}
		ev, err := w.rooms.Event(t.Context(), matrix.EventID(id))
		must(t, err)
		events = append(events, ev)
	}
	for _, ev := range events {
		must(t, w.users.Receipts.Set(t.Context(), users.Receipt{Room: w.room, User: bob, Type: users.ReceiptReadPrivate, EventID: ev.ID(), Order: int64(ev.Pos)}))
	}
	last := int64(5)
	for last != 0 {
		n := w.next()
		if n.Event != "" || n.Unread >= last {
			t.Fatalf("told %+v after %d unread", n, last)
		}
		last = n.Unread
	}
	w.idle()
	if len(w.got) != 0 {
		t.Errorf("told more than needed: %+v", w.next())
	}
	var progress storage.PusherProgress
	progress, err := storage.GetPusherProgress(t.Context(), w.db, storage.PusherKey{UserID: bob, AppID: "app", PushKey: string(bob)})
	must(t, err)
	if progress.Badge != 0 || progress.LastPosition != events[4].Pos {
		t.Errorf("progress %+v", progress)
	}
}
