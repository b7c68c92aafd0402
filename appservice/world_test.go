package appservice_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/appservice"
	"hanok/config"
	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
	"hanok/users"
)

const (
	here  = matrix.ServerName("here.test")
	alice = matrix.UserID("@alice:here.test")
	bob   = matrix.UserID("@bob:here.test")
	ghost = matrix.UserID("@_x_ghost:here.test")
	other = matrix.UserID("@_x_other:here.test")
)

// world is one server without HTTP, and one application service with it.
type world struct {
	testing.TB
	db       *storage.DB
	rooms    *rooms.Engine
	users    *users.Service
	services *appservice.Services
	http     *httptest.Server
	stop     func()

	mu     sync.Mutex
	answer http.HandlerFunc // of the service, in place of its own
	taken  chan []string    // event IDs of each transaction
	paths  []string         // of all requests
	status int              // of answers to transactions
}

func pattern(regex string) config.Namespace {
	return config.Namespace{Pattern: regexp.MustCompile("^(?:" + regex + ")")}
}

func newWorld(t testing.TB, change func(*config.Appservice)) *world {
	t.Helper()
	return newWorldOn(t, storagetest.Open(t), change)
}

func newWorldOn(t testing.TB, db *storage.DB, change func(*config.Appservice)) *world {
	t.Helper()
	w := &world{TB: t, db: db, taken: make(chan []string, 10_000), status: 200}
	w.http = httptest.NewServer(http.HandlerFunc(w.serve))
	t.Cleanup(w.http.Close)
	reg := config.Appservice{ID: "x", URL: w.http.URL, ASToken: "as", HSToken: "hs", Sender: "@_x:here.test", Users: []config.Namespace{pattern("@_x_")}}
	if change != nil {
		change(&reg)
	}
	w.services = appservice.New(appservice.Options{ServerName: here, Registrations: []config.Appservice{reg}, DB: w.db, Log: zerolog.Nop()})
	key, err := signing.Generate()
	w.must(err)
	w.rooms, err = rooms.New(rooms.Options{DB: w.db, ServerName: here, Key: key, Listener: w.services, Log: zerolog.Nop()})
	w.must(err)
	hub := feed.NewHub(func(matrix.RoomID) []matrix.UserID { return nil }, w.services.Wake)
	w.users = users.New(users.Options{DB: w.db, ServerName: here, Log: zerolog.Nop(), Notifier: hub, Rooms: w.rooms, Hashing: users.CheapHashing})
	t.Cleanup(func() { w.rooms.Close() })
	w.run()
	return w
}

// run starts the services; they know where they are in the stream when it returns.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() {
		done <- w.services.Run(ctx, appservice.Sources{Rooms: w.rooms, Users: w.users, Typing: feed.NewTyping(w.db, func(matrix.RoomID) {})})
	}()
	stopped := false
	w.stop = func() {
		if !stopped {
			stopped = true
			cancel()
			if err := <-done; err != nil {
				w.Error(err)
			}
		}
	}
	w.Cleanup(w.stop)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if pos, err := storage.Cursor(w.Context(), w.db, "appservice:x"); err == nil && pos > 0 {
			return
		}
		if time.Now().After(deadline) {
			w.Fatal("the reader has no cursor")
		}
	}
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	w.mu.Lock()
	w.paths = append(w.paths, r.Method+" "+r.URL.Path)
	answer, status := w.answer, w.status
	w.mu.Unlock()
	if answer != nil {
		r.Body = io.NopCloser(bytes.NewReader(body))
		answer(rw, r)
		return
	}
	if !strings.HasPrefix(r.URL.Path, "/_matrix/app/v1/transactions/") || status != 200 {
		http.Error(rw, `{"errcode":"NO"}`, max(status, 404))
		return
	}
	w.take(body)
}

func (w *world) take(body []byte) {
	var t struct {
		Events []struct {
			ID string `json:"event_id"`
		}
	}
	if err := json.Unmarshal(body, &t); err != nil {
		w.Error(err)
	}
	ids := make([]string, len(t.Events))
	for i, ev := range t.Events {
		ids[i] = ev.ID
	}
	w.taken <- ids
}

func (w *world) answering(status int, answer http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status, w.answer = status, answer
}

// settled waits until it is stored that what was taken was answered for.
func (w *world) settled() {
	w.Helper()
	waitFor(w, "end of the transaction", func() bool {
		_, err := storage.GetAppserviceTransaction(w.Context(), w.db, "x")
		return errors.Is(err, storage.ErrNotFound)
	})
}

// next is the next transaction.
func (w *world) next() []string {
	w.Helper()
	select {
	case ids := <-w.taken:
		return ids
	case <-time.After(20 * time.Second):
		w.Fatal("nothing comes")
		return nil
	}
}

func (w *world) create(r rooms.CreateRequest) matrix.RoomID {
	w.Helper()
	if r.Creator == "" {
		r.Creator = alice
	}
	r.Preset = "public_chat"
	id, err := w.rooms.CreateRoom(w.Context(), r)
	w.must(err)
	return id
}

func (w *world) join(room matrix.RoomID, user matrix.UserID) string {
	w.Helper()
	id, err := w.rooms.Join(w.Context(), rooms.MemberRequest{Room: room, Sender: user})
	w.must(err)
	return string(id)
}

func (w *world) leave(room matrix.RoomID, user matrix.UserID) string {
	w.Helper()
	id, err := w.rooms.Leave(w.Context(), rooms.MemberRequest{Room: room, Sender: user})
	w.must(err)
	return string(id)
}

func (w *world) say(room matrix.RoomID, user matrix.UserID) string {
	w.Helper()
	id, err := w.rooms.Send(w.Context(), rooms.SendRequest{Room: room, Sender: user, Type: "m.room.message", Content: []byte(`{"body":"x"}`)})
	w.must(err)
	return string(id)
}

// waitFor waits until something holds that nobody is told of.
func waitFor(t testing.TB, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !check(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("no %s", what)
			return
		}
	}
}
