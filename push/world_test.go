package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/feed"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
	"hanok/users"
)

// world is one server without HTTP and without other servers, and gateways that are functions.
type world struct {
	testing.TB
	*Sender
	db    *storage.DB
	rooms *rooms.Engine
	users *users.Service
	feed  *feed.Feed

	alice matrix.UserID // who talks
	room  matrix.RoomID

	mu      sync.Mutex
	ahead   time.Duration // of the world's clock
	gateway func(told told) (*http.Response, error)
	got     chan told
	results map[string]int // of attempts
}

// told is what a gateway was told.
type told struct {
	Host, Event, Key string
	Unread           int64
}

const here = matrix.ServerName("here.test")

// newWorld makes a world whose sender runs. Without client, gateways are what answer says.
func newWorld(t testing.TB, client *http.Client) *world {
	t.Helper()
	db := storagetest.Open(t)
	key, err := signing.Generate()
	must(t, err)
	w := &world{TB: t, db: db, got: make(chan told, 10_000), results: make(map[string]int)}
	hub := feed.NewHub(func(matrix.RoomID) []matrix.UserID { return nil }, nil)
	w.rooms, err = rooms.New(rooms.Options{DB: db, ServerName: here, Key: key, Listener: listeners{hub, w}, Log: zerolog.Nop()})
	must(t, err)
	w.users = users.New(users.Options{
		DB: db, ServerName: here, Log: zerolog.Nop(), Notifier: w, Rooms: w.rooms, Hashing: users.CheapHashing,
		PushGateways: users.PushGateways{Insecure: true},
	})
	w.feed = feed.New(feed.Options{
		DB: db, Rooms: w.rooms, Users: w.users, Hub: hub, Log: zerolog.Nop(),
		Notified:  func(users ...matrix.UserID) { w.Sender.Notified(users...) },
		Recounted: func(users ...storage.NameNID) { w.Sender.Recounted(users...) },
	})
	if client == nil {
		client = &http.Client{Transport: w}
	}
	w.Sender = New(Options{
		ServerName: here, DB: db, Rooms: w.rooms, Users: w.users, Feed: w.feed, HTTP: client, Details: DetailsAll, Log: zerolog.Nop(),
		Now: func() time.Time { w.mu.Lock(); defer w.mu.Unlock(); return time.Now().Add(w.ahead) },
		Observe: func(a Attempt) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.results[a.Result]++
		},
	})
	w.alice = w.user("alice")
	w.room, err = w.rooms.CreateRoom(t.Context(), rooms.CreateRequest{Creator: w.alice, Preset: "public_chat"})
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{w.feed.Run, w.Sender.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		stop()
		running.Wait()
		must(t, w.rooms.Close())
	})
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

type listeners []rooms.Listener

func (l listeners) RoomUpdated(u *rooms.Update) {
	for _, one := range l {
		one.RoomUpdated(u)
	}
}

func (w *world) RoomUpdated(u *rooms.Update) {
	if w.Sender != nil {
		w.Sender.RoomUpdated(u)
	}
}
func (w *world) WakeUsers(...matrix.UserID) { w.wake() }
func (w *world) WakeRoom(matrix.RoomID)     { w.wake() }
func (w *world) wake() {
	if w.Sender != nil {
		w.Sender.MayHaveRead()
	}
}

// RoundTrip is the way to all gateways.
func (w *world) RoundTrip(r *http.Request) (*http.Response, error) {
	raw, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var body struct {
		Notification struct {
			EventID string `json:"event_id"`
			Counts  struct {
				Unread int64 `json:"unread"`
			} `json:"counts"`
			Devices []struct {
				PushKey string `json:"pushkey"`
			} `json:"devices"`
		} `json:"notification"`
	}
	if err := json.Unmarshal(raw, &body); err != nil || len(body.Notification.Devices) != 1 {
		w.Errorf("no notification: %s", raw)
		return nil, errors.New("no notification")
	}
	n := told{r.URL.Host, body.Notification.EventID, body.Notification.Devices[0].PushKey, body.Notification.Counts.Unread}
	w.mu.Lock()
	gateway := w.gateway
	w.mu.Unlock()
	if gateway != nil {
		if res, err := gateway(n); res != nil || err != nil {
			return res, err
		}
	}
	w.got <- n
	return answer(http.StatusOK, `{"rejected":[]}`), nil
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(bytes.NewReader([]byte(body)))}
}

// answers sets what gateways answer; nil, or an answer without error and response, is that they accept it.
func (w *world) answers(fn func(told told) (*http.Response, error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gateway = fn
}

// pass lets time pass, and wakes who waits for it.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	w.ahead += d
	w.mu.Unlock()
	wake.Up(w.due)
}

// await lets time pass until something is so.
func (w *world) await(what string, d time.Duration, done func() bool) {
	w.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.Fatalf("not so after a long time: %s", what)
		}
		w.pass(d)
	}
}

func (w *world) result(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.results[name]
}

func (w *world) user(name string) matrix.UserID {
	w.Helper()
	a, err := w.users.Accounts.Register(w.Context(), users.Registration{Localpart: name})
	must(w, err)
	return a.UserID
}

// member makes a member of the room with a pusher.
func (w *world) member(name, host string) matrix.UserID {
	w.Helper()
	user := w.user(name)
	_, err := w.rooms.Join(w.Context(), rooms.MemberRequest{Room: w.room, Sender: user})
	must(w, err)
	w.set(user, host)
	return user
}

func (w *world) set(user matrix.UserID, host string) {
	w.Helper()
	must(w, w.users.Pushers.Set(w.Context(), users.Pusher{
		UserID: user, PushKey: string(user), Kind: "http", AppID: "app", Data: json.RawMessage(`{"url":"http://` + host + `/_matrix/push/v1/notify"}`),
	}, false))
}

func (w *world) say(text string) string {
	w.Helper()
	id, err := w.rooms.Send(w.Context(), rooms.SendRequest{Room: w.room, Sender: w.alice, Type: "m.room.message", Content: []byte(`{"msgtype":"m.text","body":"` + text + `"}`)})
	must(w, err)
	return string(id)
}

func (w *world) next() told {
	w.Helper()
	select {
	case n := <-w.got:
		return n
	case <-time.After(20 * time.Second):
		w.Fatal("no gateway is told of anything")
		return told{}
	}
}

func (w *world) nextIs(event string) told {
	w.Helper()
	n := w.next()
	if n.Event != event {
		w.Fatalf("told of %+v, not of %s", n, event)
	}
	return n
}

// idle waits until nothing is under way.
func (w *world) idle() {
	w.Helper()
	w.await("nothing is under way", 0, func() bool { return w.Active() == 0 })
}
