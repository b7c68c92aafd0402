package feed_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
	"hanok/users"
)

// world is one server without HTTP and without other servers: a feed and what it is made from.
type world struct {
	testing.TB
	*feed.Feed
	db    *storage.DB
	rooms *rooms.Engine
	users *users.Service
	hub   *feed.Hub
}

const here = matrix.ServerName("here.test")

func newWorld(t testing.TB, db *storage.DB) *world {
	t.Helper()
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{TB: t, db: db}
	w.hub = feed.NewHub(func(room matrix.RoomID) []matrix.UserID {
		local, err := w.rooms.LocalUsers(context.Background(), room)
		if err != nil {
			t.Error(err)
		}
		return local
	}, nil)
	if w.rooms, err = rooms.New(rooms.Options{DB: db, ServerName: here, Key: key, Listener: w.hub, Log: zerolog.Nop()}); err != nil {
		t.Fatal(err)
	}
	w.users = users.New(users.Options{
		DB: db, ServerName: here, Log: zerolog.Nop(), Notifier: w.hub, Rooms: w.rooms, Policy: anything{}, Hashing: users.CheapHashing,
	})
	w.Feed = feed.New(feed.Options{DB: db, Rooms: w.rooms, Users: w.users, Hub: w.hub, Log: zerolog.Nop()})
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		if err := w.rooms.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

type anything struct{}

func (anything) ToDevice(string, []byte) error { return nil }

// member is a user of the world with one device.
type member struct {
	w      *world
	id     matrix.UserID
	device matrix.DeviceID
	since  feed.Token
}

func (w *world) user(name string) *member {
	w.Helper()
	a, err := w.users.Accounts.Register(w.Context(), users.Registration{Localpart: name})
	if err != nil {
		w.Fatal(err)
	}
	return w.login(a.UserID)
}

func (w *world) login(id matrix.UserID) *member {
	w.Helper()
	s, err := w.users.Sessions.Create(w.Context(), users.NewSession{UserID: id})
	if err != nil {
		w.Fatal(err)
	}
	return &member{w: w, id: id, device: s.DeviceID}
}

func (m *member) create(r rooms.CreateRequest) matrix.RoomID {
	m.w.Helper()
	r.Creator = m.id
	id, err := m.w.rooms.CreateRoom(m.w.Context(), r)
	if err != nil {
		m.w.Fatal(err)
	}
	return id
}

func (m *member) join(room matrix.RoomID) {
	m.w.Helper()
	if _, err := m.w.rooms.Join(m.w.Context(), rooms.MemberRequest{Room: room, Sender: m.id}); err != nil {
		m.w.Fatal(err)
	}
}

// say sends a message like those of encrypted rooms.
func (m *member) say(room matrix.RoomID, text string) matrix.EventID {
	m.w.Helper()
	content, err := json.Marshal(map[string]string{"msgtype": "m.text", "body": text})
	if err != nil {
		m.w.Fatal(err)
	}
	id, err := m.w.rooms.Send(m.w.Context(), rooms.SendRequest{Room: room, Sender: m.id, Type: "m.room.message", Content: content, Device: m.device})
	if err != nil {
		m.w.Fatal(err)
	}
	return id
}

// each does something n times, several at a time.
func each(n int, do func(i int)) {
	const lanes = 32
	var wg sync.WaitGroup
	for lane := range lanes {
		wg.Go(func() {
			for i := lane; i < n; i += lanes {
				do(i)
			}
		})
	}
	wg.Wait()
}

func open(t testing.TB) *world { return newWorld(t, storagetest.Open(t)) }

func name(prefix string, i int) string { return fmt.Sprint(prefix, i) }

// nextBatch finds the token at the end of a response, without reading the rest.
func nextBatch(t testing.TB, body []byte) feed.Token {
	t.Helper()
	at := bytes.LastIndex(body, []byte(`"next_batch":"`))
	text, _, ok := strings.Cut(string(body[max(at, 0):]), `"}`)
	if at < 0 || !ok {
		t.Fatalf("no next_batch in %s", body)
	}
	token, err := feed.ParseToken(strings.TrimPrefix(text, `"next_batch":"`))
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// settle waits until all that was sent is visible and counted.
func (w *world) settle() {
	w.Helper()
	allVisible := func() {
		done := make(chan struct{})
		w.db.EphemeralPosition(func(storage.Position) {}, func() { close(done) })
		<-done
	}
	allVisible()
	for deadline := time.Now().Add(time.Minute); ; {
		at, err := storage.Cursor(w.Context(), w.db, "notifications")
		if err != nil {
			w.Fatal(err)
		}
		left, err := w.rooms.EventsAfter(w.Context(), at, w.db.Current(), 1)
		if err != nil {
			w.Fatal(err)
		}
		if len(left) == 0 {
			allVisible() // what was counted can be read a moment before it is visible
			return
		}
		if time.Now().After(deadline) {
			w.Fatal("the notifications are not counted")
		}
		time.Sleep(200 * time.Microsecond)
	}
}
