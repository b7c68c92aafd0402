package queue

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// Servers that were heard from do not wait for silent ones, of which there may be thousands in a room; not if they are heard from while they wait, either.
func TestSilentServersHoldUpNobodyElse(t *testing.T) {
	silent := many("silent", maxUnheard+100)
	f := setUp(t, silent...)
	f.stop()
	f.prepare()
	f.q.unheard.patience = 0
	f.run()
	f.network.hold = make(chan struct{})
	f.network.held = func(dest matrix.ServerName) bool { return strings.HasPrefix(string(dest), "silent") }
	for _, name := range silent {
		f.fail(name, errors.New("silent"))
	}
	f.say("@me:us.example", "one")
	f.publish()
	waitFor(t, func() bool {
		f.q.mu.Lock()
		defer f.q.mu.Unlock()
		return f.q.unheard.sending == maxUnheard && len(f.q.unheard.waiting) == 100
	})
	if n := runtime.NumGoroutine(); n > maxUnheard+maxHeard {
		t.Errorf("%d goroutines", n)
	}
	f.house.mu.Lock()
	f.servers = append(f.servers, "known.example", "new.example")
	f.house.mu.Unlock()
	f.peers.Answered("known.example")
	f.say("@me:us.example", "two")
	f.publish()
	if d := f.next(); d.Dest != "known.example" {
		t.Errorf("%+v", d)
	}
	f.peers.Answered("new.example") // it asks us something
	if d := f.next(); d.Dest != "new.example" {
		t.Errorf("%+v", d)
	}
	close(f.network.hold)
}

// Of servers of which nothing is known, those that work do not wait until all that do not have been given up; of these no more are waited for than may be.
func TestSilentServersMakePlace(t *testing.T) {
	const places, beside = 2, 3
	for name, c := range map[string]struct {
		silent int
		waits  bool
	}{"few": {places + beside - 1, false}, "many": {places + beside, true}} {
		t.Run(name, func(t *testing.T) {
			silent := many("silent", c.silent)
			f := setUp(t, silent...)
			f.stop()
			f.prepare()
			f.q.unheard.limit, f.q.unheard.patience, f.q.unheard.mayLinger = places, 20*time.Millisecond, beside
			f.network.hold = make(chan struct{})
			f.network.held = func(dest matrix.ServerName) bool { return dest != "works.example" }
			for _, name := range silent {
				f.fail(name, errors.New("silent"))
			}
			state := func(sending, lingering, waiting int) {
				t.Helper()
				waitFor(t, func() bool {
					f.q.mu.Lock()
					defer f.q.mu.Unlock()
					l := &f.q.unheard
					return l.sending == sending && l.lingering == lingering && len(l.waiting) == waiting
				})
			}
			f.run()
			f.say("@me:us.example", "hello")
			f.publish()
			state(c.silent-beside, beside, 0)
			f.house.mu.Lock()
			f.servers = append(f.servers, "works.example")
			f.house.mu.Unlock()
			f.say("@me:us.example", "you too")
			f.publish()
			if c.waits {
				state(places, beside, 1)
				close(f.network.hold) // all are given up
			}
			if d := f.next(); d.Dest != "works.example" {
				t.Errorf("%+v", d)
			}
			if !c.waits {
				close(f.network.hold)
			}
			state(0, 0, 0)
		})
	}
}

// A destination with much to get takes turns with the others.
func TestDestinationsTakeTurns(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	f.stop()
	f.prepare()
	f.q.heard.limit, f.q.unheard.limit = 1, 1
	f.peers.Answered("a.example") // in one lane
	f.peers.Answered("b.example")
	for i := range 4 * MaxPDUs {
		f.say("@me:us.example", fmt.Sprint(i))
	}
	f.run()
	f.publish()
	var order []matrix.ServerName
	for range 8 {
		order = append(order, f.next().Dest)
	}
	switches := 0
	for i := range order[1:] {
		if order[i] != order[i+1] {
			switches++
		}
	}
	if switches < 6 {
		t.Errorf("%v", order)
	}
	f.empty()
}

// What is queued while a destination waits for its turn is sent, too: its first transaction was made before.
func TestEventsWhileADestinationWaitsForItsTurn(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	f.stop()
	f.prepare()
	f.q.heard.limit, f.q.unheard.limit = 1, 1
	f.network.hold = make(chan struct{})
	for _, dest := range f.servers {
		f.peers.Answered(dest)
	}
	f.run()
	f.say("@me:us.example", "one")
	f.publish()
	<-f.attempted // one of them; the other waits
	f.say("@me:us.example", "two")
	f.publish()
	waitFor(t, func() bool {
		for _, dest := range f.servers {
			queued, err := storage.FindOutboxPDUs(t.Context(), f.db, dest, everything, MaxPDUs)
			if err != nil || len(queued) != 2 {
				return false
			}
		}
		return true
	})
	close(f.network.hold)
	got := map[matrix.ServerName][]string{}
	for range 4 {
		d := f.next()
		got[d.Dest] = append(got[d.Dest], d.PDUs...)
		if len(got["a.example"]) == 2 && len(got["b.example"]) == 2 {
			break
		}
	}
	for _, dest := range f.servers {
		if !slices.Equal(got[dest], []string{"one", "two"}) {
			t.Errorf("%s got %q", dest, got[dest])
		}
	}
	f.empty()
}
