package simulation

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

// world is what happens under one seed.
type world struct {
	t      testing.TB
	seed   uint64
	began  time.Time
	dir    string
	log    io.Writer  // of all servers; nil: their errors only
	random *rand.Rand // of the one who decides what happens: never asked by two goroutines
	trace  trace

	net     *network
	servers []*server
	byHost  map[string]*server
	users   []*user
	ending  sync.WaitGroup // processes that were killed
	acting  sync.WaitGroup // operations and faults under way

	mu      sync.Mutex
	rooms   []*room
	claimed map[string]*user // one-time keys, by whom
	outage  bool             // somebody was away for long
	// scheduled is what is to be said later, cancelled the texts of what is not.
	scheduled []scheduled
	cancelled map[string]bool
	said      map[string]bool // texts
	underWay  int
	failures  []string
}

// room is what the world knows of a room.
type room struct {
	id       matrix.RoomID
	version  roomversion.ID
	name     string
	creator  *user
	acked    []ackedEvent
	aliases  []matrix.RoomAlias
	upgraded bool // or somebody tried to: its aliases may lead on
	// read are those to whom users' receipts were sent.
	read map[*user]map[*server]bool
	// excluded are servers that need not agree with the others: a server ACL named them at some time, or see findLost.
	excluded map[*server]bool
	// spoken are servers whose users had something to say in the room, and were allowed to, in the last round of check.
	spoken map[*server]bool
	// left are servers of which a user left the room, or was removed from it.
	left map[*server]bool
	// doubtful are users whose membership was changed by another server, without word of it that came back.
	doubtful map[*user]bool
}

// ackedEvent is an event that a server told its client was sent.
type ackedEvent struct {
	by   *user
	id   matrix.EventID
	what string
}

// trace is what happened, in order. What happened in one instant has no order.
type trace struct {
	mu    sync.Mutex
	began time.Time
	lines []string
	since int // index of the first line of this instant
	at    time.Duration
	shown io.Writer // nil: nowhere
}

func (t *trace) add(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	t.mu.Lock()
	defer t.mu.Unlock()
	if at := time.Since(t.began).Truncate(tick); at != t.at {
		t.settle()
		t.at = at
	}
	t.lines = append(t.lines, fmt.Sprintf("%14.9f %s", t.at.Seconds(), line))
}

// settle ends an instant.
func (t *trace) settle() {
	now := t.lines[t.since:]
	slices.Sort(now)
	if t.shown != nil {
		for _, line := range now {
			fmt.Fprintln(t.shown, line)
		}
	}
	t.since = len(t.lines)
}

// hash identifies the whole trace.
func (t *trace) hash() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settle()
	h := sha256.New()
	for _, line := range t.lines {
		io.WriteString(h, line+"\n")
	}
	return hex.EncodeToString(h.Sum(nil))
}

func newWorld(t testing.TB, seed uint64) *world {
	w := &world{
		t: t, seed: seed, began: time.Now(), random: rand.New(rand.NewPCG(seed, 1)),
		byHost: map[string]*server{}, claimed: map[string]*user{}, cancelled: map[string]bool{}, said: map[string]bool{}, dir: temporary(t),
	}
	w.trace.began = w.began
	w.net = newNetwork(w)
	if *traced {
		w.trace.shown = os.Stderr
	}
	if *logged {
		w.log = os.Stderr
	}
	return w
}

// fail notes what must not be. The world goes on: what follows may explain it.
func (w *world) fail(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.trace.add("FAILED: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.failures = append(w.failures, text)
}

// build makes the servers and their users.
func (w *world) build() {
	empty, err := emptyDatabase()
	if err != nil {
		w.t.Fatal(err)
	}
	for i := range 5 + w.random.IntN(5) {
		s := newServer(w, i)
		w.servers = append(w.servers, s)
		w.byHost[host(s.name)] = s
		if err := os.Mkdir(s.dir(0), 0o700); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(s.dir(0)+"/"+databaseFile, empty, 0o600); err != nil {
			w.t.Fatal(err)
		}
		s.start()
		w.pause(time.Microsecond, time.Second)
		for j := range 1 + w.random.IntN(2) {
			u := newUser(s, fmt.Sprint("u", j))
			s.users, w.users = append(s.users, u), append(w.users, u)
		}
	}
}

// untilTick is how long to wait for the first tick at which d has passed.
func (w *world) untilTick(d time.Duration) time.Duration {
	past := time.Since(w.began)
	return (past + d + tick - 1).Truncate(tick) - past
}

// pause lets some time pass, until a tick.
func (w *world) pause(low, high time.Duration) { time.Sleep(w.untilTick(w.between(low, high))) }

func (w *world) between(low, high time.Duration) time.Duration { return duration(w.random, low, high) }

func (w *world) someone() *user      { return w.users[w.random.IntN(len(w.users))] }
func (w *world) someServer() *server { return w.servers[w.random.IntN(len(w.servers))] }

// someRoom is one of those that were made so far; nil if there are none.
func (w *world) someRoom() *room {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.rooms) == 0 {
		return nil
	}
	return w.rooms[w.random.IntN(len(w.rooms))]
}

func (w *world) addRoom(r *room) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.name = fmt.Sprint("room", len(w.rooms))
	r.excluded, r.left, r.read, r.doubtful, r.spoken = map[*server]bool{}, map[*server]bool{}, map[*user]map[*server]bool{}, map[*user]bool{}, map[*server]bool{}
	w.rooms = append(w.rooms, r)
}

// act does something beside everything else.
func (w *world) act(fn func(ctx context.Context)) {
	w.mu.Lock()
	w.underWay++
	w.mu.Unlock()
	w.acting.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		fn(ctx)
		w.mu.Lock()
		w.underWay--
		w.mu.Unlock()
	})
}

// run is the whole story: operations and faults, then a network without any, and a look at what is there.
func (w *world) run() {
	w.build()
	w.net.latency = w.between(5*time.Millisecond, 500*time.Millisecond)
	w.prepare()
	w.quiesce()
	if w.random.IntN(4) > 0 {
		w.net.loss, w.net.repeat = w.random.Float64()/8, w.random.Float64()/8
	}
	pace := w.between(50*time.Millisecond, 2*time.Second)
	for range 25 + w.random.IntN(30) {
		w.pause(time.Millisecond, pace)
		if w.random.IntN(8) == 0 {
			w.fault()
		} else {
			w.operation()
		}
	}
	w.acting.Wait()
	w.trace.add("the network heals")
	w.net.heal()
	w.net.loss, w.net.repeat = 0, 0
	for _, s := range w.servers {
		s.start()
		w.pause(time.Microsecond, time.Second)
	}
	w.quiesce()
	w.awaitScheduled()
	w.awaitMembers()
	w.awaitLeaves()
	w.quiesce()
	w.check()
	w.end()
}

// quiesce lets time pass until nothing is under way and nothing waits to be sent.
func (w *world) quiesce() {
	w.acting.Wait()
	const patience = 24 * time.Hour // what cannot be settled is asked for a good half of a day
	for began, wait := time.Now(), 3*time.Second; time.Since(began) < patience; wait += wait / 50 {
		time.Sleep(w.untilTick(wait))
		if w.busy() == "" {
			return
		}
	}
	w.fail("there is no end of it: %s", w.busy())
}

// awaitMembers waits for the members of rooms that were joined without them: a server that was alone for long asks again after minutes. Where the
// others do not count it in, it asks in vain.
func (w *world) awaitMembers() {
	for range 100 {
		if !slices.ContainsFunc(w.servers, func(s *server) bool { p := s.current(); return len(p.rooms.PartialAt(p.db.Current())) > 0 }) {
			return
		}
		time.Sleep(w.untilTick(10 * time.Second))
	}
}

// awaitLeaves waits until rooms are told of invites that were rejected and knocks that were taken back while nobody there could be reached.
func (w *world) awaitLeaves() {
	for range 50 {
		if !slices.ContainsFunc(w.servers, func(s *server) bool {
			p := s.current()
			untold, err := storage.UntoldLeaves(p.life, p.db, matrix.TimestampOf(time.Now().AddDate(1, 0, 0)), 1)
			if err != nil {
				w.fail("%s: %v", s.short, err)
			}
			return len(untold) > 0
		}) {
			return
		}
		time.Sleep(w.untilTick(10 * time.Second))
	}
}

func (w *world) busy() string {
	if n := w.net.underWay(0); n > 0 {
		return fmt.Sprintf("%d requests are under way", n)
	}
	for _, s := range w.servers {
		p := s.current()
		sizes, err := storage.FindOutboxSizes(p.life, p.db)
		if err != nil {
			w.fail("%s: %v", s.short, err)
		}
		waiting, err := storage.FindInboundRooms(p.life, p.db)
		if err != nil {
			w.fail("%s: %v", s.short, err)
		}
		if len(sizes)+len(waiting) > 0 {
			return fmt.Sprintf("%s has to send %v and to receive %v", s.short, sizes, waiting)
		}
	}
	return ""
}

// end stops everything.
func (w *world) end() {
	w.acting.Wait()
	var stopping sync.WaitGroup
	for _, s := range w.servers {
		if p := s.current(); p != nil {
			stopping.Go(p.stop)
		}
	}
	stopping.Wait()
	w.ending.Wait()
	for w.net.underWay(0) > 0 {
		time.Sleep(time.Second)
	}
}

// fault breaks something, or mends it.
func (w *world) fault() {
	switch w.random.IntN(6) {
	case 0, 1: // a partition
		side := map[*server]bool{}
		for _, s := range w.servers {
			side[s] = w.random.IntN(2) == 0
		}
		var text [2][]string
		for _, a := range w.servers {
			i := 0
			if side[a] {
				i = 1
			}
			text[i] = append(text[i], a.short)
			for _, b := range w.servers {
				w.net.set(link{a, b}, side[a] != side[b])
			}
		}
		w.trace.add("partition: %s | %s", strings.Join(text[0], " "), strings.Join(text[1], " "))
	case 2: // one link
		a, b := w.someServer(), w.someServer()
		w.trace.add("%s and %s are cut off from each other", a.short, b.short)
		w.net.set(link{a, b}, true)
	case 3:
		w.trace.add("all links work again")
		w.net.heal()
	case 4, 5:
		down := w.between(time.Millisecond, 20*time.Second)
		if w.random.IntN(20) == 0 { // an outage
			down, w.outage = w.between(10*time.Minute, 5*time.Hour), true
		}
		w.crash(w.someServer(), down, w.random.IntN(3), w.random.IntN(2) == 0, w.between(time.Millisecond, 10*time.Second))
	}
}

// crash kills a server, now or when it commits events or anything else, and starts it again after a while.
func (w *world) crash(s *server, down time.Duration, after int, events bool, patience time.Duration) {
	p := s.current()
	if p == nil {
		return
	}
	if after > 0 {
		w.trace.add("%s is going to die", s.short)
		if events {
			p.dieAt.Store(int32(after))
		} else {
			p.dieAtCommit.Store(int32(10 * after))
		}
	} else {
		messages.await()
		p.kill()
	}
	w.act(func(context.Context) {
		time.Sleep(w.untilTick(patience))
		p.dieAt.Store(0)
		p.dieAtCommit.Store(0)
		p.kill() // if it lives still
		time.Sleep(w.untilTick(down))
		w.trace.add("%s starts", s.short)
		s.start()
	})
}
