package keyring

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok/federation/client"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/signing"
	"hanok/storage"
)

func tarpit(i int) matrix.ServerName { return matrix.ServerName(fmt.Sprintf("s%d.tarpit.example", i)) }

// awaitStuck waits until so many servers were asked that do not answer, and a moment for more of them.
func (f *fixture) awaitStuck(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); f.stuck() < n; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d servers were asked, not %d", f.stuck(), n)
		}
	}
	time.Sleep(20 * time.Millisecond)
	if got := f.stuck(); got != n {
		t.Errorf("%d servers were asked, not %d", got, n)
	}
}

// Questions about servers that do not answer have a few of them asked at once, few for each question, and do not hold up
// the keys of events and of requests.
func TestQuestionsAboutTarpits(t *testing.T) {
	f := setUp(t)
	f.tarpit = make(chan struct{})
	all := client.KeyCriteria{}
	for i := range maxQuery {
		all[tarpit(i)] = nil
	}
	var questions sync.WaitGroup
	ask := func() {
		if _, err := f.ring.Query(t.Context(), all); err != nil {
			t.Error(err)
		}
	}
	questions.Go(ask)
	f.awaitStuck(t, maxFetches()[forQuestions])
	key := generate(t)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	f.publish("others.example", keyDocument(t, "others.example", f.now.Add(time.Hour), key))
	if err := f.verify(t, message(t, "10", "them.example", f.now, key)); err != nil {
		t.Errorf("an event meanwhile: %v", err)
	}
	if err := f.request(t, "others.example", key); err != nil {
		t.Errorf("a request meanwhile: %v", err)
	}
	close(f.tarpit)
	questions.Wait()
	if n := f.stuck(); n != maxQueryFetches {
		t.Errorf("one question had %d servers asked", n)
	}
	all["one.more.example"] = nil
	if _, err := f.ring.Query(t.Context(), all); !matrix.HasCode(err, "M_TOO_LARGE") {
		t.Errorf("a question about too many servers: %v", err)
	}
}

// A server that sends events of servers that do not answer does not take all places for asking.
func TestEventsOfTarpits(t *testing.T) {
	f := setUp(t)
	f.tarpit = make(chan struct{})
	key := generate(t)
	var events []*event.Event
	for i := range 100 {
		events = append(events, message(t, "10", tarpit(i), f.now, key))
	}
	var work sync.WaitGroup
	for range 3 {
		work.Go(func() {
			for _, err := range f.ring.Verify(OnBehalf(t.Context(), "evil.example"), events) {
				if err == nil {
					t.Error("verified without a key")
				}
			}
		})
	}
	f.awaitStuck(t, causesAtOnce)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	if err := f.ring.Verify(OnBehalf(t.Context(), "good.example"), []*event.Event{message(t, "10", "them.example", f.now, key)})[0]; err != nil {
		t.Errorf("what another server sent: %v", err)
	}
	close(f.tarpit)
	work.Wait()
	if n := f.stuck(); n != len(events) {
		t.Errorf("%d requests for the keys of %d servers", n, len(events))
	}
	if n := f.ring.causes.Keys(); n != 0 {
		t.Errorf("%d servers are remembered", n)
	}
}

// Requests that name one unknown key after the other have the server asked now and then, whoever makes them.
func TestUnknownKeysWithoutEnd(t *testing.T) {
	f := setUp(t)
	key := generate(t)
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), key))
	for i := range 100 {
		unknown := key
		unknown.ID = matrix.KeyID(fmt.Sprintf("ed25519:%d", i))
		if err := f.request(t, "them.example", unknown); !matrix.HasCode(err, "M_UNAUTHORIZED") {
			t.Fatal(err)
		}
		f.now = f.now.Add(retryAfterAnswer / 20)
	}
	if n := f.times("them.example"); n > 6 {
		t.Errorf("asked %d times", n)
	}
	if err := f.request(t, "them.example", key); err != nil {
		t.Errorf("its own key: %v", err)
	}
}

// A server that lists other keys each time has us keep some of them, and always the one that it signs with.
func TestKeysWithoutEnd(t *testing.T) {
	f := setUp(t)
	var current signing.Key
	for round := range 6 {
		var old []OldKey
		if round > 0 {
			old = append(old, OldKey{current.ID, public(current), matrix.TimestampOf(f.now)})
		}
		current = generate(t)
		for i := range maxKeysPerServer - 2 {
			old = append(old, OldKey{matrix.KeyID(fmt.Sprintf("ed25519:%d_%d", round, i)), public(current), 1})
		}
		f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Hour), current, old...))
		if err := f.request(t, "them.example", current); err != nil {
			t.Fatal(err)
		}
		f.now = f.now.Add(time.Minute)
	}
	for where, ring := range map[string]*Ring{"in memory": f.ring, "on disk": f.newRing()} {
		known, err := ring.load(t.Context(), "them.example")
		if err != nil || len(known.keys) > maxKnownKeys {
			t.Errorf("%d keys %s, %v", len(known.keys), where, err)
		}
		if _, ok := known.keys[current.ID]; !ok {
			t.Errorf("the key in use is gone %s", where)
		}
	}
}

// A document is stored with each of its keys: one that is big and lists many is refused.
func TestBigDocuments(t *testing.T) {
	f := setUp(t)
	key := generate(t)
	doc := func(keys, padding int) []byte {
		var old []OldKey
		for i := range keys - 1 {
			old = append(old, OldKey{matrix.KeyID(fmt.Sprintf("ed25519:old%d", i)), public(key), 1})
		}
		raw := canonicaljson.Delete(keyDocument(t, "them.example", f.now.Add(time.Hour), key, old...), "signatures")
		return countersign(t, "them.example", key, canonicaljson.Set(raw, "padding", []byte(`"`+strings.Repeat("x", padding)+`"`)))
	}
	for _, good := range [][2]int{{1, 50_000}, {90, 0}} {
		if _, err := parse(doc(good[0], good[1]), "them.example", f.ring.now()); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range [][2]int{{90, 50_000}, {maxKeysPerServer + 1, 0}} {
		if _, err := parse(doc(bad[0], bad[1]), "them.example", f.ring.now()); err == nil {
			t.Errorf("%v: accepted", bad)
		}
	}
}

// What a server says of the life of its keys is believed for a week.
func TestKeyThatIsValidForEver(t *testing.T) {
	for name, until := range map[string]time.Time{"for ever": time.UnixMilli(1<<53 - 1), "no more": time.Unix(1, 0)} {
		t.Run(name, func(t *testing.T) {
			f := setUp(t)
			key := generate(t)
			f.publish("them.example", keyDocument(t, "them.example", until, key))
			for range 5 {
				err := f.request(t, "them.example", key)
				if (name == "for ever") != (err == nil) {
					t.Fatal(err)
				}
			}
			if n := f.times("them.example"); n != 1 {
				t.Errorf("asked %d times", n)
			}
			f.publish("them.example", []byte("gone"))
			f.now = f.now.Add(8 * 24 * time.Hour)
			if err := f.request(t, "them.example", key); !matrix.HasCode(err, "M_UNAUTHORIZED") {
				t.Errorf("after a week: %v", err)
			}
		})
	}
}

// A notary may bring keys that we do not have, and not put others in the place of those that we have.
func TestNotaryCannotReplaceAKey(t *testing.T) {
	f := setUp(t, "notary.example")
	notaryKey, key, forged := generate(t), generate(t), generate(t)
	forged.ID = key.ID
	f.publish("notary.example", keyDocument(t, "notary.example", f.now.Add(time.Hour), notaryKey))
	f.publish("them.example", keyDocument(t, "them.example", f.now.Add(time.Minute), key))
	if err := f.request(t, "them.example", key); err != nil {
		t.Fatal(err)
	}
	f.notaries["notary.example"] = func(client.KeyCriteria) [][]byte {
		return [][]byte{countersign(t, "notary.example", notaryKey, keyDocument(t, "them.example", f.now.Add(100*time.Hour), forged))}
	}
	f.publish("them.example", []byte("gone"))
	f.now = f.now.Add(time.Hour / 2)
	if err := f.request(t, "them.example", forged); !matrix.HasCode(err, "M_UNAUTHORIZED") {
		t.Errorf("a request signed with the notary's key: %v", err)
	}
	if f.queries == 0 {
		t.Error("the notary was not asked")
	}
	if err := f.verify(t, message(t, "10", "them.example", f.now.Add(-time.Hour/2), forged)); err == nil {
		t.Error("an event signed with the notary's key is accepted")
	}
}

// The keys of servers that nobody here has to do with are forgotten, when they are believed no more.
func TestKeysOfStrangersAreForgotten(t *testing.T) {
	f := setUp(t)
	ctx := t.Context()
	key := generate(t)
	for _, server := range []matrix.ServerName{"stranger.example", "member.example", "late.example"} {
		if server == "late.example" {
			f.now = f.now.Add(3 * 24 * time.Hour)
		}
		f.publish(server, keyDocument(t, server, f.now.Add(time.Hour), key))
		if err := f.request(t, server, key); err != nil {
			t.Fatal(err)
		}
	}
	if err := Record(ctx, f.db, "us.example", f.own, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := f.db.Intern(ctx, "member.example"); err != nil { // as storing a membership does
		t.Fatal(err)
	}
	f.now = f.now.Add(6 * 24 * time.Hour)
	if err := f.ring.Forget(ctx); err != nil {
		t.Fatal(err)
	}
	for server, want := range map[matrix.ServerName]int{"stranger.example": 0, "member.example": 1, "late.example": 1, "us.example": 1} {
		if keys, err := storage.FindServerKeys(ctx, f.db, server); err != nil || len(keys) != want {
			t.Errorf("%s has %d keys, %v", server, len(keys), err)
		}
	}
	f.publish("stranger.example", []byte("gone"))
	if err := f.request(t, "stranger.example", key); err == nil {
		t.Error("the stranger's key is still known")
	}
}

// A notary is asked about a server now and then, however often somebody names the server.
func TestNotaryIsNotAskedForEachRequest(t *testing.T) {
	f := setUp(t, "notary.example", "second.example")
	notaryKey, key := generate(t), generate(t)
	for _, notary := range []matrix.ServerName{"notary.example", "second.example"} {
		f.publish(notary, keyDocument(t, notary, f.now.Add(24*time.Hour), notaryKey))
	}
	f.notaries["second.example"] = func(client.KeyCriteria) [][]byte { return nil }
	for range 100 {
		if err := f.request(t, "gone.example", key); !matrix.HasCode(err, "M_UNAUTHORIZED") {
			t.Fatal(err)
		}
		if f.verify(t, message(t, "10", "gone.example", f.now, key)) == nil {
			t.Fatal("verified without a key")
		}
		f.now = f.now.Add(time.Second)
	}
	if f.queries < 2 || f.queries > 4 { // of two notaries, within a hundred seconds
		t.Errorf("notaries were asked %d times", f.queries)
	}
}

// Strangers whose servers do not answer do not keep out servers that people here know.
func TestStrangersDoNotKeepOutOthers(t *testing.T) {
	f := setUp(t)
	f.tarpit = make(chan struct{})
	key := generate(t)
	var strangers sync.WaitGroup
	for i := range 100 {
		strangers.Go(func() { _ = f.request(t, tarpit(i), key) })
	}
	f.awaitStuck(t, maxFetches()[forStrangers])
	if _, err := f.db.Intern(t.Context(), "known.example"); err != nil {
		t.Fatal(err)
	}
	f.publish("known.example", keyDocument(t, "known.example", f.now.Add(time.Hour), key))
	if err := f.request(t, "known.example", key); err != nil {
		t.Errorf("a server that people here know: %v", err)
	}
	close(f.tarpit)
	strangers.Wait()
}
