package users

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// world is a service with stand-ins for the rest of the server.
type world struct {
	*Service
	db       *storage.DB
	rooms    *fakeRooms
	outbox   *fakeOutbox
	remote   *fakeRemote
	notifier *fakeNotifier
	clock    *fakeClock
	options  Options
}

const here = matrix.ServerName("here.test")

// each runs a test on both engines.
func each(t *testing.T, fn func(t *testing.T, w *world)) {
	t.Helper()
	storagetest.Each(t, func(t *testing.T, db *storage.DB) { fn(t, newWorld(db)) })
}

func newWorld(db *storage.DB, change ...func(*Options)) *world {
	w := &world{
		db: db, rooms: &fakeRooms{}, outbox: &fakeOutbox{db: db}, notifier: newFakeNotifier(db),
		remote: &fakeRemote{lists: map[matrix.UserID]*DeviceList{}, queries: map[matrix.ServerName]int{}},
		clock:  &fakeClock{now: time.UnixMilli(1_700_000_000_000)},
	}
	w.options = Options{
		DB: db, ServerName: here, Log: zerolog.New(io.Discard), Clock: w.clock.Now, Remote: w.remote, Notifier: w.notifier,
		Rooms: w.rooms, Outbox: w.outbox, Policy: fakePolicy{}, Hashing: CheapHashing, RemoteTimeout: 5 * time.Second,
	}
	for _, c := range change {
		c(&w.options)
	}
	w.Service = New(w.options)
	return w
}

// barrier waits until all that was committed is visible and announced.
func barrier(db *storage.DB) {
	done := make(chan struct{})
	db.EphemeralPosition(func(storage.Position) {}, func() { close(done) })
	<-done
}

type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fakeRooms has rooms with members.
type fakeRooms struct {
	mu    sync.Mutex
	rooms map[matrix.RoomID][]matrix.UserID
	// partial are servers that have users in rooms of which not all members are known.
	partial []matrix.ServerName
	// unaware are users whose servers have come back without knowing.
	unaware []matrix.UserID
	// newcomers are users who came with a new server, with when they say that they joined; since is from when a local user shares a room with it.
	newcomers map[matrix.UserID]matrix.Timestamp
	since     map[matrix.UserID]storage.Position
	// partings of remote users: when they left a room, and since when another is shared.
	partings map[matrix.UserID][2]matrix.Timestamp
}

func (f *fakeRooms) ReturnedUnawares(_ context.Context, _ matrix.RoomID, user matrix.UserID) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.unaware, user), nil
}

func (f *fakeRooms) NewServer(_ context.Context, room matrix.RoomID, user matrix.UserID) (local []matrix.UserID, made matrix.Timestamp, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	made, ok := f.newcomers[user]
	if !ok {
		return nil, 0, nil
	}
	return slices.DeleteFunc(slices.Clone(f.rooms[room]), func(u matrix.UserID) bool { return u.Server() != here }), made, nil
}

func (f *fakeRooms) SharedSince(_ context.Context, user matrix.UserID, _ matrix.ServerName, pos storage.Position) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	since, ok := f.since[user]
	return ok && since < pos, nil
}

func (f *fakeRooms) Parting(_ context.Context, user matrix.UserID) (left, shared matrix.Timestamp, known bool, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p, ok := f.partings[user]
	return p[0], p[1], ok, nil
}

func (f *fakeRooms) PartialServers(context.Context, matrix.UserID) ([]matrix.ServerName, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.partial, nil
}

func (f *fakeRooms) SharesPartialRoom(server matrix.ServerName) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.partial, server)
}

func (f *fakeRooms) PartialAudience(_ context.Context, server matrix.ServerName) ([]matrix.UserID, error) {
	if f.SharesPartialRoom(server) {
		return []matrix.UserID{"@alice:here.test"}, nil
	}
	return nil, nil
}

func (f *fakeRooms) join(room matrix.RoomID, users ...matrix.UserID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rooms == nil {
		f.rooms = map[matrix.RoomID][]matrix.UserID{}
	}
	f.rooms[room] = append(f.rooms[room], users...)
}

func (f *fakeRooms) leave(room matrix.RoomID, user matrix.UserID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rooms[room] = slices.DeleteFunc(f.rooms[room], func(u matrix.UserID) bool { return u == user })
}

func (f *fakeRooms) Sharing(_ context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []matrix.UserID
	for _, members := range f.rooms {
		if slices.Contains(members, user) {
			for _, m := range members {
				if !slices.Contains(out, m) {
					out = append(out, m)
				}
			}
		}
	}
	return out, nil
}

func (f *fakeRooms) LocalSharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	sharing, err := f.Sharing(ctx, user)
	return slices.DeleteFunc(sharing, func(u matrix.UserID) bool { return u.Server() != here }), err
}

func (f *fakeRooms) JoinedServers(_ context.Context, room matrix.RoomID) ([]matrix.ServerName, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []matrix.ServerName
	for _, m := range f.rooms[room] {
		if !slices.Contains(out, m.Server()) {
			out = append(out, m.Server())
		}
	}
	return out, nil
}

func (f *fakeRooms) JoinedUsers(_ context.Context, room matrix.RoomID) ([]matrix.UserID, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rooms[room]), nil
}

// fakeOutbox keeps what was sent.
type fakeOutbox struct {
	db   *storage.DB
	mu   sync.Mutex
	sent []sentEDU
}

type sentEDU struct {
	To       []matrix.ServerName
	Type     string
	Content  json.RawMessage
	Volatile bool
}

func (f *fakeOutbox) QueueEDU(_ context.Context, tx *storage.Tx, to []matrix.ServerName, eduType string, content []byte) error {
	tx.OnVisible(func() { f.add(sentEDU{slices.Clone(to), eduType, content, false}) })
	return nil
}

func (f *fakeOutbox) SendVolatile(to []matrix.ServerName, eduType string, content []byte) {
	f.add(sentEDU{to, eduType, content, true})
}

func (f *fakeOutbox) add(e sentEDU) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sent = append(f.sent, e)
}

// take returns what was sent since the last call.
func (f *fakeOutbox) take() []sentEDU {
	barrier(f.db)
	f.mu.Lock()
	defer f.mu.Unlock()
	sent := f.sent
	f.sent = nil
	return sent
}

// fakeNotifier counts who was woken.
type fakeNotifier struct {
	db    *storage.DB
	mu    sync.Mutex
	users map[matrix.UserID]int
	rooms map[matrix.RoomID]int
}

func newFakeNotifier(db *storage.DB) *fakeNotifier {
	return &fakeNotifier{db: db, users: map[matrix.UserID]int{}, rooms: map[matrix.RoomID]int{}}
}

func (f *fakeNotifier) WakeUsers(users ...matrix.UserID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, u := range users {
		f.users[u]++
	}
}

func (f *fakeNotifier) WakeRoom(room matrix.RoomID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rooms[room]++
}

// takeUsers returns who was woken since the last call, in order.
func (f *fakeNotifier) takeUsers() []matrix.UserID {
	barrier(f.db)
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []matrix.UserID
	for u := range f.users {
		out = append(out, u)
	}
	clear(f.users)
	slices.Sort(out)
	return out
}

// fakeRemote is the other servers.
type fakeRemote struct {
	mu       sync.Mutex
	down     bool
	lists    map[matrix.UserID]*DeviceList
	queries  map[matrix.ServerName]int
	fetches  int
	claims   ClaimedKeys
	profile  map[string]json.RawMessage
	profiles error
	block    bool                       // until ctx ends
	silent   map[matrix.ServerName]bool // the same for some servers
	during   func(matrix.UserID)        // called once in UserDevices, before the answer
	answer   func(matrix.UserID)        // called in UserDevices, before each answer
}

var errDown = errors.New("connection refused")

func (f *fakeRemote) QueryKeys(ctx context.Context, server matrix.ServerName, devices map[matrix.UserID][]matrix.DeviceID) (*QueryResult, error) {
	f.mu.Lock()
	f.queries[server]++
	down, block := f.down, f.block || f.silent[server]
	out := newQueryResult()
	for user := range devices {
		if l := f.lists[user]; l != nil {
			out.DeviceKeys[user] = map[matrix.DeviceID]json.RawMessage{}
			for _, d := range l.Devices {
				out.DeviceKeys[user][d.DeviceID] = d.Keys
			}
			out.MasterKeys[user], out.SelfSigningKeys[user] = l.MasterKey, l.SelfSigningKey
		}
	}
	f.mu.Unlock()
	if block {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if down {
		return nil, errDown
	}
	return out, nil
}

func (f *fakeRemote) Answers(server matrix.ServerName) bool { return !f.silent[server] }

func (f *fakeRemote) ClaimKeys(ctx context.Context, server matrix.ServerName, _ Claims) (ClaimedKeys, error) {
	if f.silent[server] {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return nil, errDown
	}
	return f.claims, nil
}

func (f *fakeRemote) UserDevices(ctx context.Context, user matrix.UserID) (*DeviceList, error) {
	f.mu.Lock()
	f.fetches++
	down, during, answer := f.down, f.during, f.answer
	f.during = nil
	l := f.lists[user]
	f.mu.Unlock()
	if answer != nil {
		answer(user)
	}
	if during != nil {
		during(user)
	}
	if down || l == nil {
		return nil, errDown
	}
	copied := *l
	return &copied, nil
}

func (f *fakeRemote) Profile(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	return f.profile, f.profiles
}

type fakePolicy struct{}

func (fakePolicy) ToDevice(eventType string, content []byte) error {
	if eventType == "m.room_key" {
		return matrix.Forbidden("must be encrypted")
	}
	return nil
}

// register makes an account.
func (w *world) register(t *testing.T, localpart string) matrix.UserID {
	t.Helper()
	a, err := w.Accounts.Register(t.Context(), Registration{Localpart: localpart, Password: "password of " + localpart})
	if err != nil {
		t.Fatalf("register %s: %v", localpart, err)
	}
	return a.UserID
}

// registerWithCarol registers alice, who is in a room with carol of another server.
func (w *world) registerWithCarol(t *testing.T) matrix.UserID {
	t.Helper()
	alice := w.register(t, "alice")
	w.rooms.join("!r:here.test", alice, carol)
	return alice
}

// login makes a session on a device.
func (w *world) login(t *testing.T, user matrix.UserID, device matrix.DeviceID) *Session {
	t.Helper()
	s, err := w.Sessions.Create(t.Context(), NewSession{UserID: user, DeviceID: device})
	if err != nil {
		t.Fatalf("login: %v", err)
	}
	return s
}

// settle forgets what was sent and who was woken so far.
func (w *world) settle() {
	w.outbox.take()
	w.notifier.takeUsers()
}

// wantCode fails unless err carries an errcode and status.
func wantCode(t *testing.T, err error, status int, code string) {
	t.Helper()
	e, ok := matrix.AsError(err)
	if !ok || e.Code != code || e.Status != status {
		t.Fatalf("got error %v, want %d %s", err, status, code)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustGet[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// keypair is an ed25519 key for tests, the same for the same name.
type keypair struct {
	public  string
	private ed25519.PrivateKey
}

func newKeypair(name string) keypair {
	seed := make([]byte, 32)
	copy(seed, name)
	private := ed25519.NewKeyFromSeed(seed)
	return keypair{signing.EncodeBase64(private.Public().(ed25519.PublicKey)), private}
}

// sign signs a canonical object as user with the key named id.
func (k keypair) sign(t *testing.T, user matrix.UserID, id string, object []byte) []byte {
	t.Helper()
	key := signing.Key{ID: matrix.KeyID("ed25519:" + id), Private: k.private}
	signed, err := key.Sign(string(user), object)
	must(t, err)
	return signed
}

// deviceKeys are identity keys, signed by themselves.
func deviceKeys(t *testing.T, user matrix.UserID, device matrix.DeviceID, k keypair) []byte {
	t.Helper()
	raw, err := canonicaljson.Marshal(map[string]any{
		"user_id": user, "device_id": device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys": map[string]string{"ed25519:" + string(device): k.public, "curve25519:" + string(device): "abc"},
	})
	must(t, err)
	return k.sign(t, user, string(device), raw)
}

// crossKey is a cross-signing key, signed by the given key if any.
func crossKey(t *testing.T, user matrix.UserID, usage string, k keypair, by ...keypair) []byte {
	t.Helper()
	raw, err := canonicaljson.Marshal(map[string]any{
		"user_id": user, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + k.public: k.public},
	})
	must(t, err)
	for _, signer := range by {
		raw = signer.sign(t, user, signer.public, raw)
	}
	return raw
}

// oneTimeKeys makes n one-time keys whose IDs begin with prefix.
func oneTimeKeys(prefix string, n int) map[string]rawJSON {
	keys := map[string]rawJSON{}
	for i := range n {
		id := fmt.Sprintf("signed_curve25519:%s%03d", prefix, i)
		keys[id] = rawJSON(fmt.Sprintf(`{"key":"%s%d","signatures":{"@x:y":{"ed25519:D":"sig"}}}`, prefix, i))
	}
	return keys
}

// hostileNames are strings that no stored name may be.
var hostileNames = []string{"", "with\x00nul", strings.Repeat("x", 256), "bad\xffutf8"}
