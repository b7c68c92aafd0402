package queue

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// More events than are kept in memory, before the outbox runs: each is sent once, in order.
func TestABurst(t *testing.T) {
	f := setUp(t, "a.example")
	f.stop()
	const n = maxFresh + 100
	err := f.db.Write(t.Context(), func(tx *storage.Tx) error { return storage.SetCursor(t.Context(), tx, cursorName, f.db.Current()) })
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		f.say("@me:us.example", fmt.Sprint(i))
	}
	f.prepare()
	f.publish()
	if got := f.q.takeFresh(); !got.lost || got.events != nil {
		t.Errorf("%d events are kept, lost %v", len(got.events), got.lost)
	}
	f.told = 0
	f.publish()
	f.run()
	var got []string
	for len(got) < n {
		got = append(got, f.next().PDUs...)
	}
	f.empty()
	for i, body := range got {
		if body != fmt.Sprint(i) {
			t.Fatalf("event %d is %s", i, body)
		}
	}
	if len(got) != n || len(f.arrived) > 0 {
		t.Errorf("%d events, and %d more transactions", len(got), len(f.arrived))
	}
}

func TestWhoseEventsAreSent(t *testing.T) {
	f := setUp(t, "a.example", "b.example")
	member := func(sender, target matrix.UserID, membership string) event.Proto {
		key := string(target)
		return event.Proto{
			Sender: sender, Type: "m.room.member", StateKey: &key,
			Content: fmt.Appendf(nil, `{"membership":%q,"body":"%s %s"}`, membership, membership, target),
		}
	}
	f.add(member("@x:a.example", "@x:a.example", "join"), true)  // by send_join to us
	f.add(member("@y:a.example", "@y:a.example", "join"), false) // by send_join to somebody else
	f.add(member("@me:us.example", "@z:c.example", "invite"), true)
	f.publish()
	got := map[matrix.ServerName][]string{}
	for len(got["a.example"]) < 1 || len(got["b.example"]) < 2 {
		d := f.next()
		got[d.Dest] = append(got[d.Dest], d.PDUs...)
	}
	f.empty()
	want := map[matrix.ServerName][]string{
		"a.example": {"invite @z:c.example"},
		"b.example": {"join @x:a.example", "invite @z:c.example"},
	}
	if len(f.arrived) > 0 {
		t.Errorf("sent besides: %+v", f.next())
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A server that comes into the room is sent what is sticky there, though it happened before; also if another server let it in.
func TestStickyEventsAreSentToAServerThatJoins(t *testing.T) {
	f := setUp(t, "a.example")
	ms := int64(3_600_000)
	old := f.add(event.Proto{
		Sender: "@me:us.example", Type: "m.rtc.member", Content: []byte(`{"body":"sticky"}`), Sticky: &ms, OriginServerTS: matrix.TimestampOf(time.Now()),
	}, false)
	f.publish()
	if d := f.next(); !cmp.Equal(d.PDUs, []string{"sticky"}) {
		t.Errorf("to who was there: %+v", d)
	}
	f.house.mu.Lock()
	f.sticky, f.servers = []*rooms.Event{old}, append(f.servers, "b.example")
	f.house.mu.Unlock()
	key := "@x:b.example"
	f.add(event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &key, Content: []byte(`{"membership":"join","body":"join"}`)}, false)
	f.publish()
	if d := f.next(); d.Dest != "b.example" || !cmp.Equal(d.PDUs, []string{"sticky"}) {
		t.Errorf("to who joined: %+v", d)
	}
	f.empty()
	if len(f.arrived) > 0 {
		t.Errorf("sent besides: %+v", f.next())
	}
	if got := keepUntil(old, "b.example"); got != old.StickyUntil() || got == 0 {
		t.Errorf("kept until %d", got)
	}
}

// What other servers send which have not heard yet that a server came into the room is sent on to it, by who let it in.
func TestWhatAServerThatJoinsIsNotSentByOthers(t *testing.T) {
	f := setUp(t)
	f.say("@x:a.example", "before")
	target := "@x:b.example"
	join := event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"join"}`)}
	f.add(join, false) // through somebody else
	f.say("@x:a.example", "for others to send")
	f.add(join, true)
	f.say("@x:b.example", "its own")
	f.say("@x:a.example", "unknown to a")
	f.say("@x:a.example", "known")
	f.publish()
	if d := f.next(); d.Dest != "b.example" || !slices.Equal(d.PDUs, []string{"unknown to a"}) {
		t.Errorf("%+v", d)
	}
	// Also by another process than the one that let it in.
	f.empty()
	f.stop()
	f.start()
	f.say("@x:a.example", "unknown to a still")
	f.publish()
	if d := f.next(); d.Dest != "b.example" || !slices.Equal(d.PDUs, []string{"unknown to a still"}) {
		t.Errorf("after a restart: %+v", d)
	}
	for range 2 * newcomerEvents {
		f.say("@x:a.example", "unknown to a")
	}
	f.publish()
	f.house.mu.Lock()
	f.servers = []matrix.ServerName{"b.example"}
	f.house.mu.Unlock()
	f.say("@me:us.example", "last")
	f.publish()
	sent := 2
	for last := false; !last; {
		d := f.next()
		sent += len(d.PDUs)
		last = slices.Contains(d.PDUs, "last")
	}
	if sent > newcomerEvents+1 {
		t.Errorf("%d events were sent", sent)
	}
}

// The same if it is sent an event that follows on its join at the same time.
func TestServerThatJoinsAndIsSentAnEvent(t *testing.T) {
	f := setUp(t, "b.example")
	f.peers.Answered("b.example") // it has asked to be let in
	f.stop()
	f.say("@me:us.example", "meanwhile")
	f.sticky = slices.Clone(f.events)
	if err := f.db.Write(t.Context(), func(tx *storage.Tx) error {
		return storage.SetCursor(t.Context(), tx, cursorName, f.events[0].Pos) // before which b was not in the room
	}); err != nil {
		t.Fatal(err)
	}
	target := "@x:b.example"
	f.add(event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"join"}`)}, true)
	f.say("@me:us.example", "welcome")
	f.start()
	var got []string
	for len(got) < 2 {
		got = append(got, f.next().PDUs...)
	}
	if !slices.Equal(got, []string{"welcome", "meanwhile"}) {
		t.Errorf("%q", got)
	}
	f.empty()
}

// What a server missed is stored while another write, which began before, is under way: the reader is told of it once it can read up to there.
func TestWhatAServerMissedIsVisibleLater(t *testing.T) {
	db := storagetest.OpenDSN(t, storagetest.PostgresDSN(t)) // SQLite has one writer
	f := setUpOn(t, db)
	f.stop()
	f.prepare()
	f.q.rooms = f.house
	f.say("@x:a.example", "meanwhile")
	f.sticky = slices.Clone(f.events)
	target := "@x:b.example"
	join := f.add(event.Proto{Sender: "@x:b.example", Type: "m.room.member", StateKey: &target, Content: []byte(`{"membership":"join"}`)}, true)
	r := &reader{q: f.q}
	r.goTo(f.events[0].Pos)
	begun, ended := make(chan struct{}), make(chan error, 1)
	goOn := make(chan struct{})
	release := sync.OnceFunc(func() { close(goOn) })
	defer release()
	go func() {
		ended <- db.Write(t.Context(), func(tx *storage.Tx) error {
			_, err := tx.NextPosition()
			close(begun)
			<-goOn
			return err
		})
	}()
	<-begun
	if err := r.handle(t.Context(), []*rooms.Event{join}, join.Pos, 1); err != nil {
		t.Fatal(err)
	}
	queued, err := storage.FindOutboxPDUs(t.Context(), db, "b.example", everything, 10)
	if err != nil || len(queued) != 1 || queued[0].Position <= db.Current() {
		t.Fatalf("queued %+v at %d: %v", queued, db.Current(), err)
	}
	select {
	case <-f.q.news:
		t.Fatal("the reader is told of what it cannot read yet")
	default:
	}
	release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	<-f.q.news
	if err := r.catchUp(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.cursor < queued[0].Position || len(f.q.ahead) != 0 {
		t.Errorf("the reader is at %d, and waited for are %v", r.cursor, f.q.ahead)
	}
}

func TestMembershipMustArrive(t *testing.T) {
	f := setUp(t)
	target := "@z:c.example"
	for _, membership := range []string{"invite", "leave"} {
		e := f.add(event.Proto{
			Sender: "@me:us.example", Type: "m.room.member", StateKey: &target, Content: fmt.Appendf(nil, `{"membership":%q}`, membership),
		}, false)
		if keepUntil(e, "c.example") == 0 || keepUntil(e, "a.example") != 0 {
			t.Errorf("%s: wrong about what must arrive", membership)
		}
	}
}
