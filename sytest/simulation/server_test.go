package simulation

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/delayed"
	"hanok/federation"
	fedserver "hanok/federation/server"
	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/privacy"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// server is a homeserver. It lives in one process after the other; its database is all that goes from one to the next.
type server struct {
	w     *world
	name  matrix.ServerName
	short string
	key   signing.Key
	users []*user

	mu      sync.Mutex
	process *process // nil while it is down
	started int
}

func newServer(w *world, number int) *server {
	s := &server{w: w, short: fmt.Sprint("s", number)}
	var err error
	if s.name, s.key, err = identity(number); err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (s *server) current() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process
}

// process is one life of a server: the parts of cmd/hanok without its client API and media.
type process struct {
	s   *server
	dir string
	// dead says that nothing this process does reaches anybody any more.
	dead atomic.Bool
	// life ends with it.
	life context.Context
	end  context.CancelFunc

	db      *storage.DB
	out     *federation.Outbound
	rooms   *rooms.Engine
	users   *users.Service
	hub     *feed.Hub
	feed    *feed.Feed
	delayed *delayed.Scheduler
	inbound *fedserver.Server
	running sync.WaitGroup

	// dieAt is how many further events are committed until the process dies in the middle of it all, dieAtCommit how many
	// transactions, whatever they store; 0: none.
	dieAt, dieAtCommit atomic.Int32
}

const databaseFile = "hanok.db"

// emptyDatabase is one with the schema, made once for all tests.
var emptyDatabase = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "hanok-simulation")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, databaseFile)
	db, err := storage.Open(context.Background(), storage.Options{DSN: "sqlite:" + path, NoSync: true})
	if err != nil {
		return nil, err
	}
	if err := db.Write(context.Background(), storeKeys); err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
})

// maxServers is how many servers a world has at most.
const maxServers = 9

// storeKeys has servers know each other's keys: how those are fetched is the matter of other tests, and
// all who wait for a key go on in one instant, in no certain order.
func storeKeys(tx *storage.Tx) error {
	var keys []storage.ServerKey
	for i := range maxServers {
		name, key, err := identity(i)
		if err != nil {
			return err
		}
		start := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when synctest's time begins
		keys = append(keys, storage.ServerKey{
			Server: name, KeyID: key.ID, Public: key.Public(), Document: []byte("{}"),
			FetchedAt: matrix.TimestampOf(start), ValidUntil: matrix.TimestampOf(start.AddDate(1, 0, 0)),
		})
	}
	return storage.PutServerKeys(context.Background(), tx, keys)
}

// identity is the name and key of a server.
func identity(number int) (matrix.ServerName, signing.Key, error) {
	name := matrix.ServerName(fmt.Sprintf("s%d.sim:1", number))
	seed := sha256.Sum256([]byte(name))
	key, err := signing.NewKey("ed25519:1", seed[:])
	return name, key, err
}

// start begins a process on the database of the last one.
func (s *server) start() {
	w := s.w
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != nil {
		return
	}
	p := &process{s: s, dir: s.dir(s.started)}
	s.started++
	p.life, p.end = context.WithCancel(context.Background())
	if err := p.open(); err != nil {
		w.t.Fatal(err)
	}
	for _, run := range []func(context.Context) error{
		p.users.Run, p.feed.Run, p.delayed.Run, p.inbound.Run, p.rooms.Run, func(ctx context.Context) error { return p.out.Queue.Run(ctx, p.rooms) },
	} {
		p.running.Go(func() {
			if err := run(p.life); err != nil && !errors.Is(err, context.Canceled) && !p.dead.Load() {
				w.fail("%s: %v", s.short, err)
			}
		})
	}
	s.process = p
}

func (s *server) dir(process int) string {
	return filepath.Join(s.w.dir, fmt.Sprintf("%s-%d", s.short, process))
}

// open builds the parts as cmd/hanok/server does.
func (p *process) open() (err error) {
	s, w := p.s, p.s.w
	log := zerolog.New(zerolog.LevelWriterAdapter{Writer: errorLog{p}}).Level(zerolog.ErrorLevel)
	if w.log != nil {
		log = zerolog.New(w.log).With().Str("on", s.short).Logger().Hook(virtualTime{w})
	}
	if p.db, err = storage.Open(p.life, storage.Options{DSN: "sqlite:" + filepath.Join(p.dir, databaseFile), NoSync: true, Exclusive: true, Gather: commits.await, Observe: p.committed, Log: log}); err != nil {
		return err
	}
	p.out, err = federation.NewOutbound(p.life, federation.Options{
		ServerName: s.name, Key: s.key, DB: p.db, Version: "simulation", Log: log, Transport: port{p},
		Jitter: func(to matrix.ServerName, wait time.Duration) time.Duration {
			return duration(draw(w.seed, fmt.Sprint(s.name, to, time.Now().UnixNano())), wait*3/4, wait*5/4)
		},
	})
	if err != nil {
		return err
	}
	policy, err := privacy.New(privacy.Options{Mode: privacy.Allowed})
	if err != nil {
		return err
	}
	p.hub = feed.NewHub(func(room matrix.RoomID) []matrix.UserID {
		local, _ := p.rooms.LocalUsers(p.life, room) //nolint:errcheck // nobody waits
		return local
	}, nil)
	p.rooms, err = rooms.New(rooms.Options{
		DB: p.db, ServerName: s.name, Key: s.key, Remote: p.out, Listener: listener{p}, Log: log,
		Random: reader{draw(w.seed, fmt.Sprint(s.name, s.started))},
		Profile: func(ctx context.Context, user matrix.UserID) (string, string, error) {
			return p.users.Profiles.Local(ctx, user)
		},
		MayInvite: func(ctx context.Context, invited, inviter matrix.UserID) error {
			return p.users.Accounts.CheckInvite(ctx, invited, inviter)
		},
		Gather: batches.await, CacheBytes: 1 << 20,
	})
	if err != nil {
		return err
	}
	p.users = users.New(users.Options{
		DB: p.db, ServerName: s.name, Log: log, Remote: p.out, Outbox: p.out.Queue, Rooms: sharing{p.rooms}, Notifier: p.hub, Policy: policy,
	})
	p.feed = feed.New(feed.Options{DB: p.db, Rooms: p.rooms, Users: p.users, Hub: p.hub, Log: log})
	p.delayed = delayed.New(delayed.Options{
		DB: p.db, Rooms: p.rooms, MaySend: func(context.Context, matrix.UserID) error { return nil }, MaxDelay: time.Hour, MaxScheduled: 100, Log: log,
	})
	p.inbound = fedserver.New(fedserver.Options{
		ServerName: s.name, Version: "simulation", DB: p.db, Keys: p.out.Keys, Peers: p.out.Peers, Rooms: p.rooms, Users: p.users,
		Typing: p.feed.Typing, Outbox: p.out.Queue, Log: log,
	})
	return nil
}

// A phase is a nanosecond of four. Each is for one kind of thing, so that what begins in one instant is of one kind, and when
// it begins nothing else moves: all that was released before has run until it waits for the next phase, a message or a timer. What
// happens in one instant does not depend, then, on the order in which goroutines get to run.
type phase int64

const (
	messages phase = iota // arrive, and users act
	commits               // of databases
	batches               // of rooms, on their way there
	readings              // of who shares a room with whom, for device lists
	phases
)

// tick is the grain of the network's time: in one tick there is room for all steps that follow from one message, so that
// it does not matter for what comes later how many there were.
const tick = 400 * time.Nanosecond

// await returns in the next phase of its kind.
func (p phase) await() {
	d := (p - phase(time.Now().UnixNano())%phases + phases) % phases
	if d == 0 {
		d = phases
	}
	time.Sleep(time.Duration(d))
}

// sharing reads who shares a room in a phase of its own: what is remembered of rooms changes right after a commit, while others look.
type sharing struct{ *rooms.Engine }

func (s sharing) Sharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	readings.await()
	return s.Engine.Sharing(ctx, user)
}

func (s sharing) LocalSharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	readings.await()
	return s.Engine.LocalSharing(ctx, user)
}

func (s sharing) JoinedServers(ctx context.Context, room matrix.RoomID) ([]matrix.ServerName, error) {
	readings.await()
	return s.Engine.JoinedServers(ctx, room)
}

func (s sharing) JoinedUsers(ctx context.Context, room matrix.RoomID) ([]matrix.UserID, error) {
	readings.await()
	return s.Engine.JoinedUsers(ctx, room)
}

// kill ends the process as the kernel would: what it has committed stays, and nothing else. It must be called
// while nothing else happens.
func (p *process) kill() {
	s := p.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process != p {
		return
	}
	next := s.dir(s.started)
	if err := os.Mkdir(next, 0o700); err != nil {
		s.w.t.Error(err)
	}
	// The log first: what is moved from it into the database meanwhile is in both.
	for _, name := range []string{databaseFile + "-wal", databaseFile} {
		b, err := os.ReadFile(filepath.Join(p.dir, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(next, name), b, 0o600)
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			s.w.t.Error(err)
		}
	}
	p.dead.Store(true)
	s.process = nil
	s.w.trace.add("%s is killed", s.short)
	s.w.ending.Go(p.close)
}

// stop ends the process in an orderly way.
func (p *process) stop() {
	s := p.s
	s.mu.Lock()
	s.process = nil
	s.mu.Unlock()
	p.close()
}

func (p *process) close() {
	p.hub.Shutdown()
	p.end()
	p.running.Wait()
	p.out.Close()
	err := errors.Join(p.rooms.Close(), p.db.Close())
	if err != nil && !p.dead.Load() {
		p.s.w.fail("%s does not stop: %v", p.s.short, err)
	}
	os.RemoveAll(p.dir)
}

// listener is what is told of commits.
type listener struct{ p *process }

func (l listener) RoomUpdated(u *rooms.Update) {
	p := l.p
	if n := int32(len(u.Events)); p.dieAt.Load() > 0 && p.dieAt.Add(-n) <= 0 {
		// What else goes on in this instant comes to its end; what follows from this commit does not begin.
		messages.await()
		p.kill()
	}
	p.hub.RoomUpdated(u)
	feed.FollowMembers(p.users.DeviceLists, u)
	p.out.Queue.RoomUpdated(u)
}

// committed is told of every transaction.
func (p *process) committed(storage.Commit) {
	if p.dieAtCommit.Load() > 0 && p.dieAtCommit.Add(-1) == 0 {
		p.s.w.ending.Go(func() {
			messages.await()
			p.kill()
		})
	}
}

// errorLog fails the world with what a server calls an error.
type errorLog struct{ p *process }

func (l errorLog) Write(line []byte) (int, error) {
	if !l.p.dead.Load() && l.p.life.Err() == nil {
		l.p.s.w.fail("%s logs %s", l.p.s.short, bytes.TrimSpace(line))
	}
	return len(line), nil
}

type virtualTime struct{ w *world }

func (v virtualTime) Run(e *zerolog.Event, _ zerolog.Level, _ string) {
	e.Dur("at", time.Since(v.w.began))
}

// reader makes a source of bytes of one of numbers.
type reader struct{ r interface{ Uint64() uint64 } }

func (r reader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.r.Uint64())
	}
	return len(b), nil
}

// temporary is a folder in memory where the system has one.
func temporary(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "hanok-simulation")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// joinedUsers are the users of this server in a room, as it sees it itself.
func (p *process) joinedUsers(ctx context.Context, room matrix.RoomID) []*user {
	var in []*user
	local, _ := p.rooms.LocalUsers(ctx, room) //nolint:errcheck // a room that is not known has none
	for _, u := range p.s.users {
		if slices.Contains(local, u.id) {
			in = append(in, u)
		}
	}
	return in
}
