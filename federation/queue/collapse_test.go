package queue

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/federation/client"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/storage"
)

// One event or EDU that a server stumbles over is dropped, and nothing else.
func TestWhatIsRefusedIsFoundByHalves(t *testing.T) {
	for _, refusal := range []client.Error{{Status: 400}, {Status: 401, Retry: true}} { // the latter by a server that cannot read what was signed
		t.Run(fmt.Sprint(refusal.Status), func(t *testing.T) { foundByHalves(t, refusal) })
	}
}

func foundByHalves(t *testing.T, refusal client.Error) {
	f := idle(t)
	f.refuse = func(d delivery) error {
		if strings.Contains(fmt.Sprint(d.PDUs, d.EDUs), "poison") {
			return &refusal
		}
		return nil
	}
	var pdus []storage.OutboxPDU
	for i, body := range []string{"1", "2", "poison", "4", "5", "6", "7"} {
		f.say("@me:us.example", body)
		e := f.events[i]
		pdus = append(pdus, storage.OutboxPDU{Destination: "a.example", Position: e.Pos, Room: e.RoomNID, EventID: e.ID()})
	}
	if err := f.db.Write(t.Context(), func(tx *storage.Tx) error { return storage.AddOutboxPDUs(t.Context(), tx, pdus) }); err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"a", "b", "poison", "d"} {
		f.queueEDU("m.direct_to_device", fmt.Sprintf(`{"m":%q}`, word), "a.example")
	}
	d := &destination{}
	for range 200 {
		if more, err := f.q.deliver(t.Context(), "a.example", d); err == nil && !more {
			break
		}
	}
	var events, messages []string
	for len(f.arrived) > 0 {
		got := f.next()
		events, messages = append(events, got.PDUs...), append(messages, got.EDUs...)
	}
	if diff := cmp.Diff([]string{"1", "2", "4", "5", "6", "7"}, events); diff != "" {
		t.Error(diff)
	}
	for i, m := range messages {
		_, messages[i], _ = strings.Cut(m, " ")
	}
	if diff := cmp.Diff([]string{`{"m":"a"}`, `{"m":"b"}`, `{"m":"d"}`}, messages); diff != "" {
		t.Error(diff)
	}
	f.empty()
}

// While a server is away for long, one event stands for all of its room, but for the memberships of its users.
func TestEventsForAServerThatIsLongGone(t *testing.T) {
	f := setUp(t, "a.example")
	f.stop()
	f.peers.Failed("a.example", 5*time.Hour, "")
	f.q = New(Options{ServerName: "us.example", DB: f.db, Sender: f.network, Peers: f.peers, Now: func() time.Time { return time.Now().Add(2 * time.Hour) }})
	f.run()
	target := "@x:a.example"
	f.add(event.Proto{Sender: "@me:us.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"leave","body":"kick"}`)}, false)
	for i := range 20 {
		f.say("@me:us.example", fmt.Sprint(i))
		f.publish()
	}
	waitFor(t, func() bool {
		f.q.freshMu.Lock()
		defer f.q.freshMu.Unlock()
		queued, err := storage.FindOutboxPDUs(t.Context(), f.db, "a.example", everything, 100)
		return err == nil && len(queued) == 2 && queued[0].KeepUntil > 0 && queued[1].Newest && len(f.q.fresh.events) == 0
	})
	f.peers.Answered("a.example")
	if d := f.next(); !slices.Equal(d.PDUs, []string{"kick", "19"}) {
		t.Errorf("%v", d.PDUs)
	}
	f.empty()
}

// Of news of devices only the last of each user wait for a server that is away; messages to devices all do.
func TestCollapsedEDUs(t *testing.T) {
	f := idle(t)
	want := []string{}
	for i := range collapseAt {
		user := fmt.Sprintf("@u%d:us.example", i%3)
		news := fmt.Sprintf(`{"user_id":%q,"stream_id":%d,"prev_id":[%d]}`, user, i+3, i)
		f.queueEDU("m.device_list_update", news, "a.example")
		if i == 0 || i >= collapseAt-3 { // the first is under way
			want = append(want, news)
		}
		if i%100 == 50 {
			message := fmt.Sprintf(`{"sender":%q,"message_id":"%d"}`, user, i)
			f.queueEDU("m.direct_to_device", message, "a.example")
			want = append(want, message)
			f.queueEDU("m.receipt", `{}`, "a.example")
		}
	}
	first, err := storage.FindOutboxEDUs(t.Context(), f.db, "a.example", everything, 1)
	if err != nil {
		t.Fatal(err)
	}
	err = f.db.Write(t.Context(), func(tx *storage.Tx) error {
		return storage.PutOutboxTransaction(t.Context(), tx, storage.OutboxTransaction{Destination: "a.example", ID: "t", LastEDU: first[0].ID})
	})
	if err != nil {
		t.Fatal(err)
	}
	f.q.opts.Now = func() time.Time { return time.Now().Add(2 * time.Hour) } // receipts are stale by then
	f.q.collapse(t.Context(), "a.example")
	left, err := storage.FindOutboxEDUs(t.Context(), f.db, "a.example", everything, 1000)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]string, len(left))
	for i, e := range left {
		got[i] = string(e.Content)
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Whoever gets what is left of updates of devices in the end has the right list, or asks for it.
func TestCollapsedDeviceLists(t *testing.T) {
	for name, c := range map[string]struct {
		updates [][2]int // stream_id, and the one before
		want    []int
	}{
		"a sequence":                             {[][2]int{{5, 0}, {6, 5}, {9, 6}}, []int{9}},
		"some of it was not for that server":     {[][2]int{{5, 4}, {6, 5}, {9, 8}}, []int{9}},
		"told that it misses something":          {[][2]int{{5, 4}, {8, 7}}, []int{8}},
		"and then goes on from what it has":      {[][2]int{{8, 7}, {9, 5}}, []int{8, 9}},
		"and from what it does not get":          {[][2]int{{8, 7}, {9, 5}, {10, 9}}, []int{10}},
		"told twice that it misses something":    {[][2]int{{8, 7}, {9, 5}, {12, 11}}, []int{12}},
		"the first ever, after it was told so":   {[][2]int{{8, 7}, {9, 0}}, []int{8, 9}},
		"told so, and a sequence from before it": {[][2]int{{5, 4}, {8, 7}, {9, 5}}, []int{8, 9}},
	} {
		t.Run(name, func(t *testing.T) {
			f := idle(t)
			err := f.db.Write(t.Context(), func(tx *storage.Tx) error {
				for i := range collapseAt { // that it is much
					if err := f.q.QueueEDU(t.Context(), tx, []matrix.ServerName{"a.example"}, "m.direct_to_device", fmt.Appendf(nil, `{"m":%d}`, i)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range c.updates {
				prev := fmt.Sprint(u[1:])
				if u[1] == 0 {
					prev = "[]"
				}
				f.queueEDU("m.device_list_update", fmt.Sprintf(`{"user_id":"@me:us.example","stream_id":%d,"prev_id":%s}`, u[0], prev), "a.example")
			}
			f.q.collapse(t.Context(), "a.example")
			left, err := storage.FindOutboxEDUs(t.Context(), f.db, "a.example", everything, 1000)
			if err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, e := range left[collapseAt:] {
				_, stream, _ := supersedes(e)
				got = append(got, int(stream))
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("left are %v, want %v", got, c.want)
			}
		})
	}
}

// silent stores that a server has not answered for some time, and is not to be tried for an hour.
func (f *fixture) silent(server matrix.ServerName, since time.Duration) {
	f.house.t.Helper()
	now := time.Now()
	b := storage.ServerBackoff{Server: server, FailingSince: matrix.TimestampOf(now.Add(-since)), RetryAt: matrix.TimestampOf(now.Add(time.Hour)), Attempts: 9}
	if err := f.db.Write(context.Background(), func(tx *storage.Tx) error { return storage.PutServerBackoff(context.Background(), tx, b) }); err != nil {
		f.house.t.Fatal(err)
	}
}

// awaitPause returns when something is queued for a server, and waits for the end of its back-off.
func (f *fixture) awaitPause(server matrix.ServerName) {
	f.house.t.Helper()
	waitFor(f.house.t, func() bool {
		f.q.mu.Lock()
		defer f.q.mu.Unlock()
		d := f.q.busy[server]
		return d != nil && d.timer != nil
	})
}

// Of what passes, nothing is kept for servers that have been silent for long; messages to devices wait for everybody.
func TestReceiptsForAServerThatIsLongGone(t *testing.T) {
	f := setUp(t, "a.example")
	f.stop()
	f.silent("lately.example", collapseAfter/2)
	f.silent("gone.example", 2*collapseAfter)
	f.loadPeers()
	f.prepare()
	f.queueEDU("m.receipt", `{}`, "gone.example")
	f.queueEDU("m.receipt", `{}`, "lately.example", "gone.example")
	f.queueEDU("m.direct_to_device", `{}`, "lately.example", "gone.example")
	sizes, err := storage.FindOutboxSizes(t.Context(), f.db)
	if err != nil {
		t.Fatal(err)
	}
	want := []storage.OutboxSize{{Destination: "gone.example", EDUs: 1}, {Destination: "lately.example", EDUs: 2}}
	if d := cmp.Diff(want, sizes); d != "" {
		t.Error(d)
	}
}

// For a server that is long gone one row stands for all that is said in a room; when it is back, it gets the newest event, whatever happened in between.
func TestOneRowForAServerThatIsLongGone(t *testing.T) {
	f := setUp(t, "gone.example", "well.example")
	f.stop()
	f.silent("gone.example", 2*collapseAfter)
	f.loadPeers()
	f.start()
	say := func(bodies ...string) {
		t.Helper()
		for _, body := range bodies {
			f.say("@me:us.example", body)
			f.publish()
			if d := f.next(); d.Dest != "well.example" {
				t.Errorf("%+v", d)
			}
		}
	}
	rows := func() int64 {
		t.Helper()
		sizes, err := storage.FindOutboxSizes(t.Context(), f.db)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sizes {
			if s.Destination == "gone.example" {
				return s.PDUs
			}
		}
		return 0
	}
	say("one", "two", "three")
	rest := func() {
		t.Helper()
		waitFor(t, func() bool {
			sizes, err := storage.FindOutboxSizes(t.Context(), f.db)
			return err == nil && len(sizes) == 1 && sizes[0].Destination == "gone.example"
		})
	}
	rest()
	if n := rows(); n != 1 {
		t.Errorf("%d rows", n)
	}
	// A restart forgets that a row stands for what follows, but not what it stands for.
	f.stop()
	f.loadPeers()
	f.start()
	say("four", "five")
	rest()
	if n := rows(); n != 1 {
		t.Errorf("%d rows after a restart", n)
	}
	f.stop()
	f.loadPeers()
	f.start()
	f.peers.Answered("gone.example")
	if d := f.next(); d.Dest != "gone.example" || !slices.Equal(d.PDUs, []string{"five"}) {
		t.Errorf("%+v", d)
	}
	f.empty()
	f.say("@me:us.example", "six")
	f.publish()
	got := []matrix.ServerName{f.next().Dest, f.next().Dest}
	slices.Sort(got)
	if !slices.Equal(got, []matrix.ServerName{"gone.example", "well.example"}) {
		t.Errorf("%v", got)
	}
	f.empty()
}

// An attempt that fails, and what is said before and after it.
func TestAServerThatIsLongGoneAndTriedInVain(t *testing.T) {
	f := setUp(t, "gone.example")
	f.stop()
	f.silent("gone.example", 2*collapseAfter)
	f.loadPeers()
	f.start()
	f.fail("gone.example", errors.New("down"))
	f.say("@me:us.example", "one")
	f.say("@me:us.example", "two")
	f.publish()
	f.awaitPause("gone.example")
	f.peers.Answered("gone.example") // so it is tried, and is down again
	<-f.attempted
	f.say("@me:us.example", "three")
	f.say("@me:us.example", "four")
	f.publish()
	f.fail("gone.example", nil)
	f.peers.Answered("gone.example")
	var got []string
	for len(got) == 0 || got[len(got)-1] != "four" {
		got = append(got, f.next().PDUs...)
	}
	if !slices.Contains(got, "two") || slices.Contains(got, "one") {
		t.Errorf("%v", got) // "two" was under way
	}
	f.empty()
}

// The reader is about to pass an event for which an older one stands, when that one's place is taken by it: it is sent once the reader is there.
func TestNewestEventAheadOfTheReader(t *testing.T) {
	f := setUp(t, "gone.example")
	f.stop()
	f.silent("gone.example", 2*collapseAfter)
	f.loadPeers()
	f.start()
	f.say("@me:us.example", "one")
	f.publish()
	f.awaitPause("gone.example")
	f.say("@me:us.example", "two")
	two := f.house.events[len(f.house.events)-1].Pos
	f.peers.Answered("gone.example")
	waitFor(t, func() bool {
		f.q.mu.Lock()
		defer f.q.mu.Unlock()
		pdus, err := storage.FindOutboxPDUs(t.Context(), f.db, "gone.example", everything, 10)
		return err == nil && len(pdus) == 1 && pdus[0].Position == two && f.q.busy["gone.example"] == nil
	})
	passed := *f.house.events[1]
	passed.Relay = false // for the reader, which has found that another one stands for it
	f.house.mu.Lock()
	f.house.events[1] = &passed
	f.house.mu.Unlock()
	(&reader{q: f.q}).goTo(two)
	if d := f.next(); !slices.Equal(d.PDUs, []string{"two"}) {
		t.Errorf("%+v", d)
	}
	f.empty()
}

func TestCatchUpAfterALongOutage(t *testing.T) {
	f := setUp(t, "a.example")
	f.peers.Failed("a.example", time.Hour, "")
	target := "@x:a.example"
	f.add(event.Proto{Sender: "@me:us.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"leave","body":"kick"}`)}, false)
	for i := range collapseAt + 10 {
		f.say("@me:us.example", fmt.Sprint(i))
	}
	f.publish()
	waitFor(t, func() bool {
		n, err := storage.CountOutboxPDUs(t.Context(), f.db, "a.example", 10_000)
		return err == nil && n == collapseAt+11
	})
	f.q.collapse(t.Context(), "a.example")
	f.peers.Answered("a.example")
	d := f.next()
	if want := []string{"kick", fmt.Sprint(collapseAt + 9)}; !cmp.Equal(d.PDUs, want) {
		t.Errorf("sent %v, want %v", d.PDUs, want)
	}
	f.empty()
}
