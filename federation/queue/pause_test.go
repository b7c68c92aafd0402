package queue

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/peers"
	"hanok/matrix"
	"hanok/storage"
)

// However a server turns our transactions down, it is asked more and more rarely, also while it is heard from, and soon enough
// when it takes them again.
func TestHowOftenAServerIsAskedThatRefuses(t *testing.T) {
	const while = time.Hour
	for _, c := range []struct {
		name  string
		err   client.Error
		heard time.Duration // how often the server asks us for something meanwhile; 0: never
		most  int           // attempts meanwhile
		least int
	}{
		{"401", client.Error{Status: 401, Retry: true}, 0, 15, 10},
		{"401, heard from", client.Error{Status: 401, Retry: true}, time.Second, 15, 10},
		{"403", client.Error{Status: 403}, 0, 15, 10},
		{"404", client.Error{Status: 404}, time.Second, 15, 10},
		{"302", client.Error{Status: 302}, 0, 15, 10},
		{"200 and nonsense", client.Error{Status: 200}, 0, 15, 10},
		{"500", client.Error{Status: 500, Retry: true}, 0, 16, 8},
		{"500, heard from", client.Error{Status: 500, Retry: true}, 10 * time.Second, 365, 300},
		{"429", client.Error{Status: 429, Retry: true}, 0, 16, 8},
		{"429, after half an hour", client.Error{Status: 429, Retry: true, RetryAfter: 30 * time.Minute}, 0, 3, 2},
		{"429, after two minutes, heard from", client.Error{Status: 429, Retry: true, RetryAfter: 2 * time.Minute}, time.Second, 31, 10},
		{"no answer", client.Error{Retry: true}, 0, 16, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := setUp(t)
				answer := c.err
				answer.Destination = "a.example"
				f.refuse = func(d delivery) error { return &answer }
				f.queueEDU("m.direct_to_device", `{}`, "a.example")
				heard := make(chan struct{})
				if c.heard > 0 {
					go func() {
						defer close(heard)
						for begin := time.Now(); time.Since(begin) < while; time.Sleep(c.heard) {
							f.peers.Answered("a.example")
						}
					}()
					<-heard
				} else {
					time.Sleep(while)
				}
				f.network.mu.Lock()
				n := len(f.attempts)
				f.refuse = func(d delivery) error { return nil }
				f.network.mu.Unlock()
				if n > c.most || n < c.least {
					t.Errorf("%d attempts in %s, want %d to %d", n, while, c.least, c.most)
				}
				f.peers.Answered("a.example")
				began := time.Now()
				select {
				case <-f.arrived:
				case <-time.After(while):
					t.Fatal("nothing arrives any more")
				}
				if waited := time.Since(began); waited > maxAskedPause {
					t.Errorf("it took %s until the server was asked again", waited)
				}
				f.stop()
			})
		})
	}
}

// What waits for a server with which the operator does not want to federate any more is not tried over and over.
func TestQueuedForARefusedServer(t *testing.T) {
	f := idle(t)
	if err := f.db.Write(t.Context(), func(tx *storage.Tx) error {
		return storage.AddOutboxEDU(t.Context(), tx, []matrix.ServerName{"b.example"}, storage.OutboxEDU{ID: 1, Type: "m.direct_to_device", Content: []byte(`{}`)})
	}); err != nil {
		t.Fatal(err)
	}
	denying, err := peers.New(t.Context(), peers.Options{DB: f.db, Deny: []string{"b.example"}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	f.q.opts.Peers = denying
	f.q.ctx = t.Context()
	if err := f.q.resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(f.q.busy) != 0 {
		t.Errorf("busy with %v", f.q.busy)
	}
}
