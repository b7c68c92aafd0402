package keyring

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/xmatrix"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// world answers key requests in place of other servers.
type world struct {
	mu        sync.Mutex
	documents map[matrix.ServerName][]byte
	notaries  map[matrix.ServerName]func(client.KeyCriteria) [][]byte
	asked     map[matrix.ServerName]int
	queries   int
	hold      chan struct{} // if set, direct requests wait for it
	// if set, direct requests to servers in tarpit.example wait for it
	tarpit chan struct{}
}

func (w *world) ServerKeys(ctx context.Context, server matrix.ServerName, _ bool) ([]byte, error) {
	w.mu.Lock()
	w.asked[server]++
	doc, ok := w.documents[server]
	hold := w.hold
	if strings.HasSuffix(string(server), ".tarpit.example") {
		hold = w.tarpit
	}
	w.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if !ok {
		return nil, errors.New("down")
	}
	return doc, nil
}

func (w *world) QueryNotary(_ context.Context, notary matrix.ServerName, criteria client.KeyCriteria) ([][]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queries++
	answer, ok := w.notaries[notary]
	if !ok {
		return nil, errors.New("down")
	}
	return answer(criteria), nil
}

func (w *world) times(server matrix.ServerName) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked[server]
}

// stuck is how many servers in tarpit.example were asked.
func (w *world) stuck() (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for server, times := range w.asked {
		if strings.HasSuffix(string(server), ".tarpit.example") {
			n += times
		}
	}
	return n
}

func (w *world) publish(server matrix.ServerName, doc []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.documents[server] = doc
}

type fixture struct {
	*world
	ring *Ring
	db   *storage.DB
	now  time.Time
	own  signing.Key
}

func setUp(t *testing.T, notaries ...matrix.ServerName) *fixture {
	t.Helper()
	f := &fixture{
		world: &world{
			documents: map[matrix.ServerName][]byte{}, asked: map[matrix.ServerName]int{},
			notaries: map[matrix.ServerName]func(client.KeyCriteria) [][]byte{},
		},
		db: storagetest.Open(t), now: time.Now().Truncate(time.Millisecond), own: generate(t),
	}
	f.ring = f.newRing(notaries...)
	return f
}

func (f *fixture) newRing(notaries ...matrix.ServerName) *Ring {
	return New(Options{
		ServerName: "us.example", Key: f.own, DB: f.db, Fetch: f.world, Notaries: notaries,
		Now: func() time.Time { return f.now }, Log: zerolog.Nop(),
	})
}

func generate(t *testing.T) signing.Key {
	t.Helper()
	k, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func public(k signing.Key) ed25519.PublicKey {
	p, _ := k.Private.Public().(ed25519.PublicKey)
	return p
}

// keyDocument makes what a server publishes.
func keyDocument(t *testing.T, server matrix.ServerName, until time.Time, key signing.Key, old ...OldKey) []byte {
	t.Helper()
	oldKeys := map[matrix.KeyID]any{}
	for _, k := range old {
		oldKeys[k.ID] = map[string]any{"key": signing.EncodeBase64(k.Public), "expired_ts": k.Expired}
	}
	doc, err := canonicaljson.Marshal(map[string]any{
		"server_name": server, "valid_until_ts": until.UnixMilli(), "old_verify_keys": oldKeys,
		"verify_keys": map[matrix.KeyID]any{key.ID: map[string]any{"key": signing.EncodeBase64(public(key))}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return countersign(t, server, key, doc)
}

func countersign(t *testing.T, server matrix.ServerName, key signing.Key, doc []byte) []byte {
	t.Helper()
	signed, err := key.Sign(string(server), doc)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func (f *fixture) request(t *testing.T, server matrix.ServerName, key signing.Key) error {
	t.Helper()
	req := xmatrix.Request{Method: "GET", URI: "/x", Origin: server, Destination: "us.example"}
	value, err := req.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	h, err := xmatrix.Parse(value)
	if err != nil {
		t.Fatal(err)
	}
	return f.ring.VerifyRequest(t.Context(), req, h)
}

func message(t *testing.T, version roomversion.ID, server matrix.ServerName, ts time.Time, keys ...signing.Key) *event.Event {
	t.Helper()
	v, ok := roomversion.Get(version)
	if !ok {
		t.Fatalf("no version %s", version)
	}
	room := matrix.RoomID("!r:us.example")
	if v.RoomIDIsCreateHash {
		room = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	}
	e, err := event.Build(v, event.Proto{
		RoomID: room, Sender: matrix.UserID("@a:" + string(server)), Type: "m.room.message",
		Content: []byte(`{"body":"x"}`), Depth: 1, OriginServerTS: matrix.TimestampOf(ts),
	}, server)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if e, err = e.Sign(server, k); err != nil {
			t.Fatal(err)
		}
	}
	return e
}

func (f *fixture) verify(t *testing.T, e *event.Event) error {
	t.Helper()
	return f.ring.Verify(t.Context(), []*event.Event{e})[0]
}

func TestRequests(t *testing.T) {
	f := setUp(t)
	key, other := generate(t), generate(t)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	for range 3 {
		if err := f.request(t, "them.example", key); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.times("them.example"); n != 1 {
		t.Errorf("asked %d times", n)
	}
	other.ID = key.ID
	if err := f.request(t, "them.example", other); !matrix.HasCode(err, "M_UNAUTHORIZED") {
		t.Errorf("a forged request: %v", err)
	}
	if err := f.request(t, "nobody.example", other); !matrix.HasCode(err, "M_UNAUTHORIZED") {
		t.Errorf("a server without keys: %v", err)
	}
	// What was fetched survives a restart.
	f.ring = f.newRing()
	if err := f.request(t, "them.example", key); err != nil || f.times("them.example") != 1 {
		t.Errorf("after a restart: %v, asked %d times", err, f.times("them.example"))
	}
	// A key that is past its time is asked for again, and only then refused.
	f.now = f.now.Add(2 * time.Hour)
	if err := f.request(t, "them.example", key); !matrix.HasCode(err, "M_UNAUTHORIZED") || f.times("them.example") != 2 {
		t.Errorf("an expired key: %v, asked %d times", err, f.times("them.example"))
	}
}

func TestRotation(t *testing.T) {
	f := setUp(t)
	first, second := generate(t), generate(t)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), first))
	if err := f.request(t, "them.example", first); err != nil {
		t.Fatal(err)
	}
	rotated := f.now.Add(time.Minute)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), second, OldKey{first.ID, public(first), matrix.TimestampOf(rotated)}))
	f.now = f.now.Add(5 * time.Minute)
	if err := f.request(t, "them.example", second); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if err := f.request(t, "them.example", first); !matrix.HasCode(err, "M_UNAUTHORIZED") {
		t.Errorf("a request with the old key: %v", err)
	}
	for _, version := range []roomversion.ID{"4", "10"} {
		if err := f.verify(t, message(t, version, "them.example", rotated.Add(-time.Second), first)); err != nil {
			t.Errorf("v%s: an event from before the rotation: %v", version, err)
		}
		if err := f.verify(t, message(t, version, "them.example", rotated.Add(time.Second), first)); err == nil {
			t.Errorf("v%s: an event with the old key from after the rotation verifies", version)
		}
	}
}

func TestValidityOfEventKeys(t *testing.T) {
	f := setUp(t)
	key := generate(t)
	until := f.now.Add(time.Hour)
	f.publish("them.example", keyDocument(t, "them.example", until, key))
	for _, c := range []struct {
		version roomversion.ID
		ts      time.Time
		good    bool
	}{
		{"4", until.Add(time.Hour), true},
		{"5", until.Add(-time.Second), true},
		{"5", until.Add(time.Second), false},
		{"12", until.Add(time.Second), false},
	} {
		err := f.verify(t, message(t, c.version, "them.example", c.ts, key))
		if (err == nil) != c.good {
			t.Errorf("v%s at %s: %v", c.version, c.ts.Sub(until), err)
		}
	}
	// A key claiming to be good for years is believed for seven days.
	f.publish("long.example", keyDocument(t, "long.example", f.now.Add(10*365*24*time.Hour), key))
	if err := f.verify(t, message(t, "10", "long.example", f.now.Add(6*24*time.Hour), key)); err != nil {
		t.Error(err)
	}
	if err := f.verify(t, message(t, "10", "long.example", f.now.Add(8*24*time.Hour), key)); err == nil {
		t.Error("an event from the future verifies")
	}
}

func TestEventSignatures(t *testing.T) {
	f := setUp(t)
	key, forged, unknown := generate(t), generate(t), generate(t)
	forged.ID = key.ID
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	events := []*event.Event{
		message(t, "10", "them.example", f.now, key),
		message(t, "10", "them.example", f.now),
		message(t, "10", "them.example", f.now, forged),
		message(t, "10", "them.example", f.now, unknown),
		message(t, "10", "them.example", f.now, unknown, key),
		message(t, "10", "gone.example", f.now, key),
		message(t, "10", "us.example", f.now, f.own),
	}
	errs := f.ring.Verify(t.Context(), events)
	for i, good := range []bool{true, false, false, false, true, false, true} {
		if (errs[i] == nil) != good {
			t.Errorf("event %d: %v", i, errs[i])
		}
	}
	if n := f.times("us.example"); n != 0 {
		t.Error("we asked ourselves")
	}
}

func TestLyingDocuments(t *testing.T) {
	f := setUp(t)
	key, other := generate(t), generate(t)
	honest := keyDocument(t, "them.example", f.now.Add(time.Hour), key)
	unsigned := canonicaljson.Delete(honest, "signatures")
	forged := other
	forged.ID = key.ID
	many := map[string]any{}
	for i := range maxKeysPerServer + 1 {
		many[fmt.Sprintf("ed25519:%d", i)] = map[string]string{"key": signing.EncodeBase64(public(key))}
	}
	manyRaw, err := canonicaljson.Marshal(many)
	if err != nil {
		t.Fatal(err)
	}
	for name, doc := range map[string][]byte{
		"another server":     keyDocument(t, "evil.example", f.now.Add(time.Hour), key),
		"unsigned":           unsigned,
		"signed by others":   countersign(t, "evil.example", other, unsigned),
		"forged":             countersign(t, "them.example", forged, unsigned),
		"changed afterwards": canonicaljson.Set(honest, "valid_until_ts", []byte(`99`)),
		"no JSON":            []byte(`x`),
		"array":              []byte(`[]`),
		"bad key":            countersign(t, "them.example", key, canonicaljson.Set(unsigned, "verify_keys", []byte(`{"`+string(key.ID)+`":{"key":"AAAA"}}`))),
		"no keys":            countersign(t, "them.example", key, canonicaljson.Set(unsigned, "verify_keys", []byte(`{}`))),
		"too many keys":      countersign(t, "them.example", key, canonicaljson.Set(unsigned, "verify_keys", manyRaw)),
	} {
		if keys, err := parse(doc, "them.example", f.ring.now()); err == nil {
			t.Errorf("%s: accepted with %d keys", name, len(keys))
		}
	}
	if _, err := parse(honest, "them.example", f.ring.now()); err != nil {
		t.Errorf("honest: %v", err)
	}
	f.publish("them.example", unsigned)
	if err := f.request(t, "them.example", key); !matrix.HasCode(err, "M_UNAUTHORIZED") {
		t.Errorf("a request under a lying document: %v", err)
	}
}

func TestFetchingIsSharedAndRemembered(t *testing.T) {
	f := setUp(t)
	f.hold = make(chan struct{})
	key := generate(t)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	var wg sync.WaitGroup
	var failures atomic.Int64
	for range 20 {
		wg.Go(func() {
			if f.verify(t, message(t, "10", "them.example", f.now, key)) != nil {
				failures.Add(1)
			}
		})
	}
	close(f.hold)
	wg.Wait()
	if failures.Load() != 0 || f.times("them.example") != 1 {
		t.Errorf("%d failures, asked %d times", failures.Load(), f.times("them.example"))
	}
	// A server that does not answer is not asked for every event.
	e := message(t, "10", "gone.example", f.now, key)
	for range 5 {
		if f.verify(t, e) == nil {
			t.Fatal("verifies without a key")
		}
	}
	if n := f.times("gone.example"); n != 1 {
		t.Errorf("a dead server was asked %d times", n)
	}
	f.now = f.now.Add(retryAfterFailure)
	_ = f.verify(t, e)
	if n := f.times("gone.example"); n != 2 {
		t.Errorf("a dead server was asked %d times after a while", n)
	}
}

func TestNotary(t *testing.T) {
	f := setUp(t, "notary.example")
	notaryKey, key, evil := generate(t), generate(t), generate(t)
	f.publish("notary.example", keyDocument(t, "notary.example", f.now.Add(time.Hour), notaryKey))
	honest := keyDocument(t, "gone.example", f.now.Add(time.Hour), key)
	f.notaries["notary.example"] = func(c client.KeyCriteria) [][]byte {
		return [][]byte{
			[]byte(`{}`),
			keyDocument(t, "gone2.example", f.now.Add(time.Hour), evil), // not signed by the notary
			countersign(t, "notary.example", notaryKey, keyDocument(t, "unasked.example", f.now.Add(time.Hour), evil)),
			countersign(t, "notary.example", notaryKey, honest),
		}
	}
	errs := f.ring.Verify(t.Context(), []*event.Event{
		message(t, "10", "gone.example", f.now, key),
		message(t, "10", "gone2.example", f.now, evil),
	})
	if errs[0] != nil || errs[1] == nil {
		t.Errorf("%v", errs)
	}
	if keys, err := storage.FindServerKeys(t.Context(), f.db, "unasked.example"); err != nil || len(keys) != 0 {
		t.Errorf("keys that nobody asked for were stored: %v %v", keys, err)
	}
	// Many servers at once: the notary first, in one request, and nobody else.
	var events []*event.Event
	docs := [][]byte{}
	for i := range manyServers + 1 {
		server := matrix.ServerName(fmt.Sprintf("s%d.example", i))
		docs = append(docs, countersign(t, "notary.example", notaryKey, keyDocument(t, server, f.now.Add(time.Hour), key)))
		events = append(events, message(t, "10", server, f.now, key))
	}
	f.notaries["notary.example"] = func(client.KeyCriteria) [][]byte { return docs }
	before := f.queries
	for i, err := range f.ring.Verify(t.Context(), events) {
		if err != nil {
			t.Errorf("server %d: %v", i, err)
		}
	}
	if f.queries != before+1 || f.times("s0.example") != 0 {
		t.Errorf("%d queries, a server was asked %d times", f.queries-before, f.times("s0.example"))
	}
}

// A notary's old copy must not revive a key that its server has given up.
func TestNotaryCannotReviveAKey(t *testing.T) {
	f := setUp(t, "notary.example")
	notaryKey, first, second, third := generate(t), generate(t), generate(t), generate(t)
	f.publish("notary.example", keyDocument(t, "notary.example", f.now.Add(time.Hour), notaryKey))
	old := keyDocument(t, "them.example", f.now.Add(24*time.Hour), first)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), second, OldKey{first.ID, public(first), matrix.TimestampOf(f.now)}))
	f.notaries["notary.example"] = func(client.KeyCriteria) [][]byte {
		return [][]byte{countersign(t, "notary.example", notaryKey, old)}
	}
	if err := f.request(t, "them.example", third); !matrix.HasCode(err, "M_UNAUTHORIZED") { // makes us ask the notary
		t.Fatal(err)
	}
	if f.queries != 1 {
		t.Fatal("the notary was not asked")
	}
	if err := f.request(t, "them.example", first); !matrix.HasCode(err, "M_UNAUTHORIZED") {
		t.Errorf("the old key signs requests again: %v", err)
	}
}

func TestOwnDocument(t *testing.T) {
	f := setUp(t)
	doc, err := f.ring.Own()
	if err != nil {
		t.Fatal(err)
	}
	keys, err := parse(doc, "us.example", f.ring.now())
	if err != nil || len(keys) != 1 || keys[0].ValidUntil <= matrix.TimestampOf(f.now.Add(time.Hour)) {
		t.Fatalf("%v %v", keys, err)
	}
	again, _ := f.ring.Own()
	if string(again) != string(doc) {
		t.Error("made anew each time")
	}
	f.now = f.now.Add(13 * time.Hour)
	if again, _ = f.ring.Own(); string(again) == string(doc) {
		t.Error("not renewed in time")
	}
}

func TestAnsweringAsNotary(t *testing.T) {
	f := setUp(t)
	key := generate(t)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	query := func(c client.KeyCriteria) []map[string]any {
		t.Helper()
		docs, err := f.ring.Query(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		var out []map[string]any
		for _, d := range docs {
			if err := signing.Verify("us.example", f.own.ID, public(f.own), d); err != nil {
				t.Errorf("not signed by us: %v", err)
			}
			var v map[string]any
			if err := json.Unmarshal(d, &v); err != nil {
				t.Fatal(err)
			}
			out = append(out, v)
		}
		return out
	}
	if got := query(client.KeyCriteria{"them.example": nil}); len(got) != 1 || got[0]["server_name"] != "them.example" {
		t.Errorf("%v", got)
	}
	if got := query(client.KeyCriteria{"them.example": {"": 0}}); len(got) != 1 {
		t.Errorf("%v", got)
	}
	if got := query(client.KeyCriteria{"them.example": {"ed25519:other": 0}}); len(got) != 0 {
		t.Errorf("%v", got)
	}
	if got := query(client.KeyCriteria{"them.example": {key.ID: 0}, "us.example": nil, "gone.example": nil}); len(got) != 2 {
		t.Errorf("%v", got)
	}
	if got := query(client.KeyCriteria{}); len(got) != 0 {
		t.Errorf("%v", got)
	}
	// A document half of whose life is over is asked for again.
	before := f.times("them.example")
	f.now = f.now.Add(20 * time.Minute)
	query(client.KeyCriteria{"them.example": nil})
	if got := f.times("them.example"); got != before {
		t.Errorf("asked %d times again within half of the life of its document", got-before)
	}
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	f.now = f.now.Add(20 * time.Minute)
	if got := query(client.KeyCriteria{"them.example": nil}); len(got) != 1 || f.times("them.example") != before+1 ||
		got[0]["valid_until_ts"] != float64(f.now.Add(40*time.Minute).UnixMilli()) {
		t.Errorf("asked %d times, %v", f.times("them.example")-before, got)
	}
	// A server that has gone since: what we have of it is still handed out.
	f.mu.Lock()
	delete(f.documents, "them.example")
	f.mu.Unlock()
	f.now = f.now.Add(2 * time.Hour)
	if got := query(client.KeyCriteria{"them.example": nil}); len(got) != 1 {
		t.Errorf("%v", got)
	}
	big := client.KeyCriteria{}
	for i := range maxQuery + 1 {
		big[matrix.ServerName(fmt.Sprint(i))] = nil
	}
	if _, err := f.ring.Query(t.Context(), big); !matrix.HasCode(err, "M_TOO_LARGE") {
		t.Errorf("%v", err)
	}
}

func FuzzDocument(f *testing.F) {
	key, err := signing.Generate()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(`{"server_name":"a.example","valid_until_ts":1,"verify_keys":{"ed25519:x":{"key":"AAAA"}},"old_verify_keys":{},"signatures":{"a.example":{"ed25519:x":"AAAA"}}}`))
	signed, err := key.Sign("a.example", []byte(`{"server_name":"a.example","valid_until_ts":9,"verify_keys":{"`+string(key.ID)+`":{"key":"`+signing.EncodeBase64(public(key))+`"}}}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		keys, err := parse(raw, "a.example", 1)
		if err != nil {
			return
		}
		if len(keys) == 0 || len(keys) > maxKeysPerServer {
			t.Errorf("%d keys", len(keys))
		}
		for _, k := range keys {
			if k.Server != "a.example" || len(k.Public) != ed25519.PublicKeySize || len(k.Document) == 0 {
				t.Errorf("%+v", k)
			}
		}
	})
}
