package peers

import (
	"fmt"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

func newPeers(t *testing.T, db *storage.DB, now *time.Time, allow, deny []string) *Peers {
	t.Helper()
	p, err := New(t.Context(), Options{DB: db, Allow: allow, Deny: deny, Now: func() time.Time { return *now }, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// settle waits for the writes that nobody waits for: they commit in order.
func settle(t *testing.T, db *storage.DB) {
	t.Helper()
	done := make(chan error)
	db.WriteAsync(func(*storage.Tx) error { return nil }, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestLists(t *testing.T) {
	now := time.Now()
	for _, c := range []struct {
		allow, deny []string
		good, bad   []matrix.ServerName
	}{
		{nil, nil, []matrix.ServerName{"a.example", "1.2.3.4:5"}, nil},
		{nil, []string{"*.evil.example", "b?.example"}, []matrix.ServerName{"evil.example", "b.example"}, []matrix.ServerName{"x.evil.example", "X.EVIL.example:8448", "b1.example"}},
		{[]string{"*.good.example"}, []string{"bad.good.example"}, []matrix.ServerName{"a.good.example:1"}, []matrix.ServerName{"good.example", "bad.good.example", "other.example"}},
	} {
		p := newPeers(t, storagetest.Open(t), &now, c.allow, c.deny)
		for _, s := range c.good {
			if err := p.Check(s); err != nil {
				t.Errorf("allow %v deny %v: %s: %v", c.allow, c.deny, s, err)
			}
		}
		for _, s := range c.bad {
			if err := p.Check(s); !matrix.HasCode(err, "M_FORBIDDEN") {
				t.Errorf("allow %v deny %v: %s: %v", c.allow, c.deny, s, err)
			}
		}
	}
}

func TestBackOff(t *testing.T) {
	db, now := storagetest.Open(t), time.Now()
	start := now
	p := newPeers(t, db, &now, nil, nil)
	if _, wait := p.RetryAt("a.example"); wait {
		t.Error("an unknown server has to wait")
	}
	var last time.Duration
	for attempt := 1; attempt <= 30; attempt++ {
		p.Failed("a.example", 0, "")
		at, wait := p.RetryAt("a.example")
		d := at.Sub(now)
		if !wait || d <= 0 || d > maxWait*5/4 {
			t.Fatalf("attempt %d: %s", attempt, d)
		}
		if attempt <= 15 && d < last*11/10 {
			t.Errorf("attempt %d waits %s, the one before %s", attempt, d, last)
		}
		last = d
		// Failures of requests that were under way already count once.
		p.Failed("a.example", time.Hour, "")
		if again, _ := p.RetryAt("a.example"); again != at {
			t.Errorf("attempt %d was counted twice", attempt)
		}
		now = at
	}
	if last < maxWait/2 {
		t.Errorf("after 30 attempts the wait is %s", last)
	}
	if since, failing := p.FailingSince("a.example"); !failing || since.Sub(start).Abs() > time.Second {
		t.Errorf("failing since %s, %v", since, failing)
	}
	p.Failed("a.example", 0, "")
	settle(t, db)

	// A restart remembers.
	p = newPeers(t, db, &now, nil, nil)
	if _, wait := p.RetryAt("a.example"); !wait {
		t.Error("forgotten by a restart")
	}
	p.Answered("a.example")
	select {
	case server := <-p.Recovered():
		if server != "a.example" {
			t.Error(server)
		}
	default:
		t.Error("nobody is told of the recovery")
	}
	p.Answered("a.example")
	if len(p.Recovered()) != 0 {
		t.Error("told of a recovery that is none")
	}
	settle(t, db)
	p = newPeers(t, db, &now, nil, nil)
	if _, failing := p.FailingSince("a.example"); failing {
		t.Error("back again after a restart")
	}
}

// The operator's wish comes from another process, through the database.
func TestRequestedRetry(t *testing.T) {
	db, now := storagetest.Open(t), time.Now()
	p := newPeers(t, db, &now, nil, nil)
	for range 10 {
		now = now.Add(maxWait)
		p.Failed("a.example", 0, "")
	}
	p.Failed("b.example", 0, "")
	settle(t, db)
	ask := func(server matrix.ServerName) {
		t.Helper()
		err := db.Write(t.Context(), func(tx *storage.Tx) error { _, err := storage.RequestRetry(t.Context(), tx, server); return err })
		if err == nil {
			err = p.retryRequested(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ask("a.example")
	if _, wait := p.RetryAt("a.example"); wait {
		t.Error("the server is still left alone")
	}
	if _, wait := p.RetryAt("b.example"); !wait {
		t.Error("another server is tried again")
	}
	if got := <-p.Recovered(); got != "a.example" {
		t.Errorf("the outbox is told of %s", got)
	}
	if err := p.retryRequested(t.Context()); err != nil || len(p.recovered) != 0 {
		t.Errorf("once is enough: %v", err)
	}
	p.Failed("a.example", 0, "")
	if at, _ := p.RetryAt("a.example"); at.Sub(now) < 10*time.Minute {
		t.Errorf("a retry in vain forgets how long the server has been away: next at %s", at.Sub(now))
	}
	ask("")
	if len(p.recovered) != 2 {
		t.Errorf("%d servers are tried again, not both", len(p.recovered))
	}
}

func TestClasses(t *testing.T) {
	db, now := storagetest.Open(t), time.Now()
	p := newPeers(t, db, &now, nil, nil)
	expect := func(want Class) {
		t.Helper()
		if got := p.ClassOf("a.example"); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
	expect(Well)
	p.Failed("a.example", 0, "")
	expect(Failing)
	now = now.Add(25 * time.Hour)
	expect(Lost)
	p.Answered("a.example")
	expect(Well)
}

// Names cost nothing to make up.
func TestFailingServersAreBounded(t *testing.T) {
	db, now := storagetest.Open(t), time.Now()
	p := newPeers(t, db, &now, nil, nil)
	for i := range maxFailing + 50 {
		p.Failed(matrix.ServerName(fmt.Sprintf("s%d.example", i)), 0, "")
	}
	settle(t, db)
	stored, err := storage.FindServerBackoffs(t.Context(), db)
	if err != nil || len(stored) != maxFailing || len(p.failing) != maxFailing {
		t.Errorf("%d stored, %d remembered: %v", len(stored), len(p.failing), err)
	}
}

func TestAServerMayAskForTime(t *testing.T) {
	db, now := storagetest.Open(t), time.Now()
	p := newPeers(t, db, &now, nil, nil)
	p.Failed("a.example", time.Hour, "")
	if at, _ := p.RetryAt("a.example"); at.Sub(now) < 59*time.Minute {
		t.Errorf("left alone for %s", at.Sub(now))
	}
	p.Failed("b.example", 1000*time.Hour, "")
	if at, _ := p.RetryAt("b.example"); at.Sub(now) > maxWait+time.Minute {
		t.Errorf("left alone for %s", at.Sub(now))
	}
}
