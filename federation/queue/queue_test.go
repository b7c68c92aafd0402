package queue

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/matrix"
	"hanok/storage"
)

func TestEventsAreSentInOrder(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	want := map[matrix.ServerName][]string{}
	for i := range 120 {
		body := fmt.Sprint(i)
		f.say("@me:us.example", body)
		f.say("@you:a.example", "not ours to send")
		want["a.example"] = append(want["a.example"], body)
		want["b.example"] = append(want["b.example"], body)
	}
	f.publish()
	got := map[matrix.ServerName][]string{}
	for len(got["a.example"]) < 120 || len(got["b.example"]) < 120 {
		d := f.next()
		if len(d.PDUs) > MaxPDUs {
			t.Errorf("%d events in a transaction", len(d.PDUs))
		}
		got[d.Dest] = append(got[d.Dest], d.PDUs...)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	f.empty()
	if f.overlap {
		t.Error("two transactions were under way to one server")
	}
	// Nothing is repeated by a restart.
	f.stop()
	f.start()
	f.say("@me:us.example", "after")
	f.publish()
	for range 2 {
		if d := f.next(); len(d.PDUs) != 1 || d.PDUs[0] != "after" {
			t.Errorf("after a restart: %v", d)
		}
	}
}

func TestATransactionSurvivesARestart(t *testing.T) {
	f := setUp(t, "a.example")
	f.hold = make(chan struct{})
	f.say("@me:us.example", "one")
	f.queueEDU("m.direct_to_device", `{"n":1}`, "a.example")
	f.publish()
	<-f.attempted
	f.stop() // while the transaction is under way: whether it arrived is not known
	first := f.attempts[len(f.attempts)-1]
	f.say("@me:us.example", "two")
	close(f.hold)
	f.start()
	f.publish()
	second := f.next()
	if second.ID != first.ID {
		t.Errorf("repeated as %s, was %s", second.ID, first.ID)
	}
	if d := cmp.Diff(first, second); d != "" {
		t.Errorf("its content changed: %s", d)
	}
	got := append(second.PDUs, second.EDUs...)
	for len(got) < 3 {
		d := f.next()
		if d.ID == first.ID {
			t.Error("a transaction ID was used twice")
		}
		got = append(append(got, d.PDUs...), d.EDUs...)
	}
	f.empty()
}

func TestBackOffAndRecovery(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	f.fail("a.example", errors.New("down"))
	for i := range 3 {
		f.say("@me:us.example", fmt.Sprint(i))
		f.publish()
		f.next() // b.example is not held up by a.example
	}
	waitFor(t, func() bool {
		_, failing := f.peers.FailingSince("a.example")
		return failing
	})
	f.fail("a.example", nil)
	f.peers.Answered("a.example")
	var got []string
	for len(got) < 3 {
		d := f.next()
		if d.Dest != "a.example" {
			t.Errorf("%+v", d)
		}
		got = append(got, d.PDUs...)
	}
	if d := cmp.Diff([]string{"0", "1", "2"}, got); d != "" {
		t.Error(d)
	}
	f.empty()
}

func TestEDUs(t *testing.T) {
	f := setUp(t)
	for i := range 250 {
		f.queueEDU("m.direct_to_device", fmt.Sprintf(`{"n":%d}`, i), "a.example", "us.example")
	}
	var got []string
	for len(got) < 250 {
		d := f.next()
		if len(d.EDUs) > MaxEDUs || d.Dest != "a.example" {
			t.Errorf("%d EDUs to %s", len(d.EDUs), d.Dest)
		}
		got = append(got, d.EDUs...)
	}
	for i, e := range got {
		if want := fmt.Sprintf(`m.direct_to_device {"n":%d}`, i); e != want {
			t.Fatalf("EDU %d is %s", i, e)
		}
	}
	f.q.SendVolatile([]matrix.ServerName{"a.example", "us.example"}, "m.typing", []byte(`{}`))
	if d := f.next(); len(d.EDUs) != 1 || d.EDUs[0] != "m.typing {}" {
		t.Errorf("%+v", d)
	}
	f.empty()
}

func TestReceiptsWaitForCompany(t *testing.T) {
	f := setUp(t)
	waitFor(t, func() bool {
		f.q.mu.Lock()
		defer f.q.mu.Unlock()
		return f.q.ctx != nil // it runs
	})
	f.q.wakeSoon("z.example")
	f.q.mu.Lock()
	if d := f.q.busy["z.example"]; d == nil || d.running || d.timer == nil {
		t.Errorf("not waiting: %+v", d)
	}
	f.q.mu.Unlock()
	f.queueEDU("m.receipt", `{}`, "a.example")
	f.next() // nothing else has to come for it to be sent
	f.empty()
	// What cannot wait takes them along.
	err := f.db.Write(t.Context(), func(tx *storage.Tx) error {
		return errors.Join(
			f.q.QueueEDU(t.Context(), tx, []matrix.ServerName{"a.example"}, "m.receipt", []byte(`{}`)),
			f.q.QueueEDU(t.Context(), tx, []matrix.ServerName{"a.example"}, "m.direct_to_device", []byte(`{}`)),
		)
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := f.next(); len(d.EDUs) != 2 {
		t.Errorf("%v", d.EDUs)
	}
	f.empty()
}

func TestStaleEDUsAreDropped(t *testing.T) {
	f := setUp(t)
	f.stop()
	now := time.Now()
	f.q = New(Options{ServerName: "us.example", DB: f.db, Sender: f.network, Peers: f.peers, Log: zerolog.Nop(), Now: func() time.Time { return now }})
	f.queueEDU("m.receipt", `{}`, "a.example")
	f.queueEDU("m.device_list_update", `{}`, "a.example")
	edus, err := storage.FindOutboxEDUs(t.Context(), f.db, "a.example", everything, 10)
	if err != nil || len(edus) != 2 {
		t.Fatal(edus, err)
	}
	volatile := []volatileEDU{{"m.typing", []byte(`{}`), now.Add(time.Minute)}}
	for _, c := range []struct {
		after time.Duration
		want  int
	}{{0, 3}, {2 * time.Minute, 2}, {2 * time.Hour, 1}} {
		f.q.opts.Now = func() time.Time { return now.Add(c.after) }
		txn, err := f.q.compose(t.Context(), nil, edus, volatile)
		if err != nil || len(txn.EDUs) != c.want {
			t.Errorf("after %s: %+v %v", c.after, txn, err)
		}
	}
}

func TestNothingVolatileForServersThatDoNotAnswer(t *testing.T) {
	f := setUp(t)
	f.peers.Failed("a.example", time.Hour, "")
	f.q.SendVolatile([]matrix.ServerName{"a.example"}, "m.typing", []byte(`{}`))
	f.q.mu.Lock()
	defer f.q.mu.Unlock()
	if len(f.q.busy) != 0 {
		t.Error("it costs memory")
	}
}

func TestARefusedTransactionDoesNotBlockForEver(t *testing.T) {
	f := setUp(t, "a.example")
	refusal := &client.Error{Destination: "a.example", Status: 400, Cause: errors.New("no")}
	d := &destination{}
	txn := storage.OutboxTransaction{ID: "t"}
	for i := 1; i <= maxRefusals; i++ {
		if got := f.q.giveUp("a.example", d, txn, refusal); got != (i == maxRefusals) {
			t.Errorf("refusal %d: %v", i, got)
		}
	}
	d = &destination{}
	for range 2 * maxRefusals {
		if f.q.giveUp("a.example", d, txn, &client.Error{Status: 403}) {
			t.Error("events are dropped because the server does not want us now")
		}
		if f.q.giveUp("a.example", d, txn, errors.New("down")) {
			t.Error("events are dropped because the server is down")
		}
	}
}

// An event may be queued for a server that was not in the room at the event, and is sent once.
func TestQueueAgain(t *testing.T) {
	f := setUp(t, "a.example")
	f.say("@me:us.example", "bye")
	f.publish()
	first := f.next()
	for _, dest := range []matrix.ServerName{"late.example", "us.example"} {
		if err := f.q.QueueAgain(t.Context(), dest, f.events[0]); err != nil {
			t.Fatal(err)
		}
	}
	if d := f.next(); d.Dest != "late.example" || !slices.Equal(d.PDUs, first.PDUs) {
		t.Errorf("%+v, want %v for late.example", d, first.PDUs)
	}
	f.say("@me:us.example", "more")
	f.publish()
	if d := f.next(); d.Dest != "a.example" {
		t.Errorf("%+v", d)
	}
}
