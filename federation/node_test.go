package federation_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation"
	"hanok/federation/fedtest"
	"hanok/federation/server"
	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/media"
	"hanok/privacy"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// node is a whole server without its client API.
type node struct {
	t       testing.TB
	net     *fedtest.Network
	name    matrix.ServerName
	key     signing.Key
	dir     string
	handler atomic.Pointer[server.Server]

	db    *storage.DB
	out   *federation.Outbound
	rooms *rooms.Engine
	users *users.Service
	media *media.Repository
	hub   *feed.Hub
	feed  *feed.Feed
	// updates gets every commit.
	updates chan *rooms.Update
	unread  []*rooms.Event // of the last update
	typing  chan string
	stop    func()
}

// newNode starts a server that others reach at its name.
func newNode(t testing.TB, n *fedtest.Network, name string) *node {
	t.Helper()
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	s := &node{t: t, net: n, name: matrix.ServerName(name), key: key, dir: t.TempDir()}
	n.Serve(name+":8448", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := s.handler.Load(); h != nil {
			h.ServeHTTP(w, r)
			return
		}
		w.WriteHeader(http.StatusBadGateway) // as a reverse proxy answers while the server is down
	}), name)
	s.start()
	t.Cleanup(func() { s.stop() })
	return s
}

func (s *node) start() {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	fatal := func(err error) {
		s.t.Helper()
		if err != nil {
			s.t.Fatal(err)
		}
	}
	log := zerolog.Nop()
	if os.Getenv("HANOK_TEST_LOG") != "" {
		log = zerolog.New(zerolog.NewTestWriter(s.t)).With().Str("server", string(s.name)).Logger()
	}
	var err error
	s.db, err = storage.Open(ctx, storage.Options{DSN: "sqlite:" + filepath.Join(s.dir, "db"), Log: log})
	fatal(err)
	s.out, err = federation.NewOutbound(ctx, federation.Options{
		ServerName: s.name, Key: s.key, DB: s.db, Version: "test", Log: log, Roots: s.net.Roots, DNS: s.net.DNS, Dial: s.net.Dial,
	})
	fatal(err)
	s.updates, s.typing = make(chan *rooms.Update, 100_000), make(chan string, 100)
	s.hub = feed.NewHub(func(room matrix.RoomID) []matrix.UserID {
		local, err := s.rooms.LocalUsers(context.Background(), room)
		if err != nil {
			s.t.Error(err)
		}
		return local
	}, nil)
	s.rooms, err = rooms.New(rooms.Options{
		DB: s.db, ServerName: s.name, Key: s.key, Remote: s.out, Listener: listener{s}, Log: log,
	})
	fatal(err)
	policy, err := privacy.New(privacy.Options{Mode: privacy.Allowed})
	fatal(err)
	s.users = users.New(users.Options{
		DB: s.db, ServerName: s.name, Log: log, Remote: s.out, Outbox: s.out.Queue, Rooms: s.rooms, Notifier: nobody{}, Policy: policy,
	})
	s.media, err = media.New(media.Options{
		DB: s.db, Dir: filepath.Join(s.dir, "media"), Server: s.name, Policy: policy, Remote: s.out,
		MaxUpload: 1 << 20, MaxRemote: 1 << 20, MaxPixels: 1 << 20, RemoteMaxAge: time.Hour, Now: time.Now, Log: log,
	})
	fatal(err)
	s.feed = feed.New(feed.Options{DB: s.db, Rooms: s.rooms, Users: s.users, Hub: s.hub, Log: log})
	inbound := server.New(server.Options{
		ServerName: s.name, Version: "test", DB: s.db, Keys: s.out.Keys, Peers: s.out.Peers, Rooms: s.rooms, Users: s.users,
		Media: s.media, Typing: typing{s}, Outbox: s.out.Queue, Log: log,
	})
	s.handler.Store(inbound)
	done := make(chan error, 3)
	go func() { done <- s.out.Queue.Run(ctx, s.rooms) }()
	go func() { done <- inbound.Run(ctx) }()
	go func() { done <- s.rooms.Run(ctx) }()
	s.stop = func() {
		s.stop = func() {}
		s.handler.Store(nil)
		cancel()
		for range 3 {
			if err := <-done; err != nil {
				s.t.Error(err)
			}
		}
		s.out.Close()
		if err := s.rooms.Close(); err != nil {
			s.t.Error(err)
		}
		if err := s.db.Close(); err != nil {
			s.t.Error(err)
		}
	}
}

type listener struct{ s *node }

func (l listener) RoomUpdated(u *rooms.Update) {
	l.s.hub.RoomUpdated(u)
	l.s.out.Queue.RoomUpdated(u)
	l.s.updates <- u
}

type nobody struct{}

func (nobody) WakeUsers(...matrix.UserID) {}
func (nobody) WakeRoom(matrix.RoomID)     {}

type typing struct{ s *node }

func (y typing) Start(_ matrix.RoomID, user matrix.UserID, _ time.Duration) bool {
	y.s.typing <- "start " + string(user)
	return true
}

func (y typing) Stop(_ matrix.RoomID, user matrix.UserID) bool {
	y.s.typing <- "stop " + string(user)
	return true
}

func (s *node) user(name string) matrix.UserID {
	return matrix.UserID("@" + name + ":" + string(s.name))
}

func (s *node) register(name string) matrix.UserID {
	s.t.Helper()
	account, err := s.users.Accounts.Register(s.ctx(), users.Registration{Localpart: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return account.UserID
}

func (s *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *node) create(name, preset string, version roomversion.ID) matrix.RoomID {
	s.t.Helper()
	room, err := s.rooms.CreateRoom(s.ctx(), rooms.CreateRequest{Creator: s.user(name), Preset: preset, Version: version, Name: "A room"})
	if err != nil {
		s.t.Fatal(err)
	}
	return room
}

func (s *node) join(name string, room matrix.RoomID, via ...matrix.ServerName) {
	s.t.Helper()
	if _, err := s.rooms.Join(s.ctx(), rooms.MemberRequest{Room: room, Sender: s.user(name), Via: via}); err != nil {
		s.t.Fatalf("%s joins: %v", s.user(name), err)
	}
}

func (s *node) say(name string, room matrix.RoomID, body string) matrix.EventID {
	s.t.Helper()
	id, err := s.rooms.Send(s.ctx(), rooms.SendRequest{
		Room: room, Sender: s.user(name), Type: "m.room.message", Content: fmt.Appendf(nil, `{"msgtype":"m.text","body":%q}`, body),
	})
	if err != nil {
		s.t.Fatalf("%s says %q: %v", s.user(name), body, err)
	}
	return id
}

// await waits for a commit with an event.
func (s *node) await(what string, match func(*rooms.Event) bool) *rooms.Event {
	s.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		if i := slices.IndexFunc(s.unread, match); i >= 0 {
			found := s.unread[i]
			s.unread = s.unread[i+1:]
			return found
		}
		select {
		case u := <-s.updates:
			s.unread = u.Events
		case <-timeout:
			s.t.Fatalf("%s never sees %s", s.name, what)
		}
	}
}

func (s *node) hears(body string) {
	s.t.Helper()
	s.await(fmt.Sprintf("%q", body), func(e *rooms.Event) bool { got, _ := e.ContentString("body"); return got == body })
}

func (s *node) sees(room matrix.RoomID, user matrix.UserID, membership string) {
	s.t.Helper()
	s.await(fmt.Sprintf("%s %s", membership, user), func(e *rooms.Event) bool {
		return e.RoomID() == room && e.Is("m.room.member", string(user)) && e.Membership() == membership
	})
}

func (s *node) setState(name string, room matrix.RoomID, eventType, key, content string) {
	s.t.Helper()
	_, err := s.rooms.Send(s.ctx(), rooms.SendRequest{
		Room: room, Sender: s.user(name), Type: eventType, StateKey: &key, Content: []byte(content),
	})
	if err != nil {
		s.t.Fatalf("%s sets %s: %v", s.user(name), eventType, err)
	}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("waited in vain for %s", what)
}
