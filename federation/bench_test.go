package federation_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"hanok/federation"
	"hanok/federation/fedtest"
	"hanok/feed"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// BenchmarkFederationLatency measures from the send on one server to the answer of a waiting /sync on the other.
func BenchmarkFederationLatency(b *testing.B) {
	n := fedtest.NewNetwork(b)
	one, two := newNode(b, n, "a.example"), newNode(b, n, "b.example")
	room := one.create("alice", "public_chat", "")
	two.register("bob")
	two.join("bob", room, "a.example")
	one.sees(room, two.user("bob"), "join")
	one.say("alice", room, "warm")
	two.hears("warm")
	answers := two.sync("bob")
	var took []time.Duration
	i := 0
	for b.Loop() {
		body := fmt.Sprint("message ", i)
		i++
		start := time.Now()
		one.say("alice", room, body)
		for !bytes.Contains(<-answers, []byte(`"`+body+`"`)) {
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms-median")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms-p99")
}

// sync makes one /sync after the other for a user, as a client does, and hands out the answers.
func (s *node) sync(name string) <-chan []byte {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	answers, done := make(chan []byte, 1000), make(chan struct{})
	filter, err := feed.ParseFilter([]byte(`{}`))
	if err != nil {
		s.t.Fatal(err)
	}
	request := feed.Request{User: s.user(name), Filter: filter, Timeout: 30 * time.Second}
	once := func() error {
		var body bytes.Buffer
		if err := s.feed.Sync(ctx, request, &body); err != nil {
			return err
		}
		var answer struct {
			NextBatch string `json:"next_batch"`
		}
		err := json.Unmarshal(body.Bytes(), &answer)
		if err == nil {
			request.Since, err = feed.ParseToken(answer.NextBatch)
		}
		if err == nil && len(answers) < cap(answers) {
			answers <- body.Bytes()
		}
		return err
	}
	if err := once(); err != nil {
		cancel()
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := once(); err != nil && ctx.Err() == nil {
				s.t.Error(err)
				return
			}
		}
	}()
	return answers
}

// BenchmarkReceive measures 1,000 events that come in 20 transactions of one server.
func BenchmarkReceive(b *testing.B) {
	n := fedtest.NewNetwork(b)
	one, two := newNode(b, n, "a.example"), newNode(b, n, "b.example")
	// The same server as one, but without an outbox that sends the events besides.
	sender, err := federation.NewOutbound(context.Background(), federation.Options{
		ServerName: one.name, Key: one.key, DB: storagetest.Open(b), Roots: n.Roots, DNS: n.DNS, Dial: n.Dial,
	})
	if err != nil {
		b.Fatal(err)
	}
	defer sender.Close()
	var took time.Duration
	for b.Loop() {
		b.StopTimer()
		room := one.create("alice", "public_chat", "")
		two.join("bob", room, "a.example")
		one.sees(room, two.user("bob"), "join")
		one.out.Peers.Failed("b.example", time.Hour, "")
		var bodies [][]byte
		for t := range 20 {
			var pdus []json.RawMessage
			for i := range 50 {
				id := one.say("alice", room, fmt.Sprint(t, " ", i))
				ev, err := one.rooms.Event(one.ctx(), id)
				if err != nil {
					b.Fatal(err)
				}
				pdus = append(pdus, ev.JSON())
			}
			body, err := json.Marshal(map[string]any{"origin": "a.example", "origin_server_ts": 1, "pdus": pdus})
			if err != nil {
				b.Fatal(err)
			}
			bodies = append(bodies, body)
		}
		b.StartTimer()
		start := time.Now()
		for t, body := range bodies {
			results, err := sender.SendTransaction(one.ctx(), "b.example", fmt.Sprint(room, t), body)
			if err != nil {
				b.Fatal(err)
			}
			for id, r := range results {
				if r.Error != "" {
					b.Fatal(id, r.Error)
				}
			}
		}
		took += time.Since(start)
	}
	b.ReportMetric(1000*float64(b.N)/took.Seconds(), "events/s")
}

// BenchmarkJoin10k measures a join of a room with 10,000 members over TLS: until the user is in, and until the members are
// known. x-floor is the ratio of the latter to checking the signatures of its state alone.
func BenchmarkJoin10k(b *testing.B) {
	const members = 10_000
	n := fedtest.NewNetwork(b)
	one := newNode(b, n, "a.example")
	room := one.create("alice", "public_chat", "")
	var wg sync.WaitGroup
	for worker := range 50 {
		wg.Go(func() {
			for i := worker; i < members; i += 50 {
				_, err := one.rooms.Join(context.Background(), rooms.MemberRequest{Room: room, Sender: one.user(fmt.Sprint("user", i))})
				if err != nil {
					b.Error(err)
				}
			}
		})
	}
	wg.Wait()
	floor := signatureFloor(b, one, room)
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		two := newNode(b, n, fmt.Sprintf("b%d.example", i))
		b.StartTimer()
		start := time.Now()
		two.join("bob", room, "a.example")
		took := time.Since(start)
		b.ReportMetric(took.Seconds(), "s/join")
		known, err := two.rooms.Members(context.Background(), rooms.MembersRequest{Room: room, User: two.user("bob")})
		if err != nil || len(known) <= members {
			b.Fatal(len(known), err)
		}
		took = time.Since(start)
		b.ReportMetric(took.Seconds(), "s/whole")
		b.ReportMetric(took.Seconds()/floor.Seconds(), "x-floor")
		b.StopTimer()
		two.stop()
		b.StartTimer()
	}
}

func signatureFloor(b *testing.B, s *node, room matrix.RoomID) time.Duration {
	snapshot, err := s.rooms.Snapshot(s.ctx(), room)
	if err != nil {
		b.Fatal(err)
	}
	state, err := snapshot.State.All(s.ctx())
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	checks := make([]signing.Check, 0, len(state))
	public, _ := s.key.Private.Public().(ed25519.PublicKey)
	for _, ev := range state {
		checks = append(checks, check(b, s, ev, public))
	}
	for _, ok := range signing.VerifyBatch(checks) {
		if !ok {
			b.Fatal("a signature does not verify")
		}
	}
	return time.Since(start)
}

func check(b *testing.B, s *node, ev *rooms.Event, public ed25519.PublicKey) signing.Check {
	b.Helper()
	message, signature, ok := ev.SignatureCheck(s.name, s.key.ID)
	if !ok {
		b.Fatal("no signature on ", ev.ID())
	}
	return signing.Check{Public: public, Message: message, Signature: signature}
}
