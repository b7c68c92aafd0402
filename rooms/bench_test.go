package rooms_test

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// BenchmarkAppend sends messages through the engine, each waited for until it is durable. x-raw is the ratio of that rate
// to the raw limit of the database: the very same rows, inserted in batches of 50 by a bare loop in the same run.
func BenchmarkAppend(b *testing.B) {
	b.Run("one-room", func(b *testing.B) { benchmarkAppend(b, 1) })
	b.Run("16-rooms", func(b *testing.B) { benchmarkAppend(b, 16) })
}

// senders is how many clients send at the same time, over all rooms.
const senders = 256

var messageContent = []byte(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AwgAEpABqOCAaP6NQ1Z5xs1m3zV8RfCm7T4UJ3Eu0cZKSJ0fFzQ5bzC0QfZyKQCSzRZJ8lJtPqkwm2rqvYhRzTQ2dAvDk1rT2mYpZ3u6m9iQJcXkW8d0nF4sLhV7bO1xEyGgUaHtNiMpRqSvXwCeBfDjKlZoPuYtA5s6d7f8g9h0j1k2l3z4x5c6v7b8n9m0qwertyuiopASDFGHJKLzxcvbnmQWERTYUIOP1234567890abcdefghijklmnopqrstuvwxyzABCDEF","device_id":"ABCDEFGHIJ","sender_key":"IlRMeOPX2e0MurIyfWEucYBRVOEEUMrOHqn/8mLqMjA","session_id":"X3lUlvLELLYxeTx4yOVu6UDpasGEVO0Jbu+QFnm0cKQ"}`)

func benchmarkAppend(b *testing.B, n int) {
	net := newNetwork(b)
	s := net.server("bench.example")
	alice := s.user("alice")
	ids := make([]matrix.RoomID, n)
	for i := range ids {
		ids[i] = s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	}
	send := func(from, total int) time.Duration {
		var next atomic.Int64
		var wg sync.WaitGroup
		start := time.Now()
		for range senders {
			wg.Go(func() {
				for {
					i := int(next.Add(1))
					if i > total {
						return
					}
					_, err := s.Send(ctx, rooms.SendRequest{Room: ids[i%n], Sender: alice, Type: "m.room.encrypted", Content: messageContent, Device: "DEV", TxnID: fmt.Sprint("m", from+i)})
					if err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return time.Since(start)
	}
	send(0, 500)
	first := s.db.Current()
	b.ReportAllocs()
	b.ResetTimer()
	took := send(500, b.N)
	b.StopTimer()
	engine := float64(b.N) / took.Seconds()
	raw := rawRate(b, s.db, first)
	b.ReportMetric(engine, "events/s")
	b.ReportMetric(raw, "raw-events/s")
	b.ReportMetric(engine/raw, "x-raw")
}

// rawRate inserts the rows that were stored after a position into another database, and returns rows per second.
func rawRate(b *testing.B, from *storage.DB, since storage.Position) float64 {
	nids, err := storage.EventsAfter(ctx, from, since, from.Current(), 20_000)
	if err != nil {
		b.Fatal(err)
	}
	rows, err := storage.EventsByNID(ctx, from, nids)
	if err != nil {
		b.Fatal(err)
	}
	slices.SortFunc(rows, func(a, b *storage.EventRow) int { return int(a.Pos - b.Pos) })
	to := storagetest.OpenDSN(b, storagetest.SQLiteDSN(b))
	start := time.Now()
	for at := 0; at < len(rows); at += 50 {
		batch := rows[at:min(at+50, len(rows))]
		err := to.Write(ctx, func(tx *storage.Tx) error { return storage.InsertEvents(ctx, tx, batch) })
		if err != nil {
			b.Fatal(err)
		}
	}
	return float64(len(rows)) / time.Since(start).Seconds()
}

// BenchmarkReceive takes messages of another server in transactions of 50. Its verification does what a key ring does once
// it has the key.
func BenchmarkReceive(b *testing.B) {
	net := newNetwork(b)
	from, to := net.server("from.example"), net.server("to.example")
	alice := from.user("alice")
	room := from.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	to.join(to.user("bob"), room, from)
	net.settle()
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			for range b.N/50 + 1 {
				if _, err := from.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.encrypted", Content: messageContent}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	from.mu.Lock()
	out := from.outbox
	from.mu.Unlock()
	pdus := make([][]byte, len(out))
	for i, ev := range out {
		pdus[i] = ev.JSON()
	}
	b.ReportAllocs()
	b.ResetTimer()
	for at := 0; at < b.N; at += 50 {
		for _, r := range to.Receive(ctx, from.name, room, pdus[at:min(at+50, b.N)]) {
			if r.Err != nil {
				b.Fatal(r.Err)
			}
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
}

// BenchmarkJoinLargeRoom joins a room with 10,000 members of another server; signatures are verified, nothing is sent over a network.
func BenchmarkJoinLargeRoom(b *testing.B) {
	const members = 10_000
	net := newNetwork(b)
	from := net.server("from.example")
	room := from.create(from.user("alice"), rooms.CreateRequest{Preset: "public_chat"})
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for j := range members / 100 {
				from.join(from.user(fmt.Sprintf("u%d_%d", i, j)), room)
			}
		})
	}
	wg.Wait()
	b.ResetTimer()
	for i := range b.N {
		to := net.server(matrix.ServerName(fmt.Sprintf("to%d.example", i)))
		to.join(to.user("bob"), room, from)
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N), "s/join")
}

// BenchmarkMessages reads pages of 100 out of a long history, with what is told to clients of each event. x-raw is the ratio to reading
// the rows of such a page from the database.
func BenchmarkMessages(b *testing.B) {
	s := newNetwork(b).server("bench.example")
	alice := s.user("alice")
	room := s.create(alice, rooms.CreateRequest{Preset: "public_chat"})
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			for range 50 {
				if _, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.encrypted", Content: messageContent}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	for _, cold := range []bool{false, true} {
		name := "warm"
		if cold {
			name = "cold"
		}
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var from *rooms.Token
			var nids []storage.EventNID
			for range b.N {
				if cold && from == nil {
					b.StopTimer()
					s.restart()
					b.StartTimer()
				}
				page, err := s.Messages(ctx, rooms.MessagesRequest{Room: room, User: alice, Backward: true, Limit: 100, From: from})
				if err != nil {
					b.Fatal(err)
				}
				if len(page.Events) == 100 && nids == nil {
					for _, ev := range page.Events {
						nids = append(nids, ev.NID)
					}
				}
				for _, ev := range page.Events {
					o, err := s.ClientOptions(ctx, ev, alice, "D")
					if err != nil {
						b.Fatal(err)
					}
					ev.AppendClient(nil, o)
				}
				from = page.End
			}
			b.StopTimer()
			const times = 100
			start := time.Now()
			for range times {
				if rows, err := storage.EventsByNID(ctx, s.db, nids); err != nil || len(rows) != len(nids) {
					b.Fatal(len(rows), err)
				}
			}
			b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/(time.Since(start).Seconds()/times), "x-raw")
		})
	}
}

// BenchmarkReceiveAfterPartition takes the events of the other side of a partition, one after the other, after both sides have changed power levels and
// banned people all the time: each of them is one more that the states are resolved over. x-floor is the ratio of the time that the last fifth of them took to that
// of the same events where nothing happened meanwhile.
func BenchmarkReceiveAfterPartition(b *testing.B) {
	for _, version := range []roomversion.ID{"1", "11", "12"} {
		for _, length := range []int{100, 400} {
			b.Run(fmt.Sprintf("v%s/%d", version, length), func(b *testing.B) {
				last := length / 5
				var took, floor time.Duration
				for range b.N {
					net, room, pdus := partitioned(b, version, length)
					from := net.servers["b.example"]
					receive := func(to matrix.ServerName, pdu []byte) time.Duration {
						start := time.Now()
						if r := net.servers[to].receive(from, room, pdu); r[0].Err != nil {
							b.Fatal(r[0].Err)
						}
						return time.Since(start)
					}
					for i, pdu := range pdus {
						quiet, busy := receive("quiet.example", pdu), receive("a.example", pdu)
						if i >= len(pdus)-last {
							floor += quiet
							took += busy
						}
					}
				}
				b.ReportMetric(float64(took.Microseconds())/float64(last*b.N), "µs/event")
				b.ReportMetric(float64(floor.Microseconds())/float64(last*b.N), "floor-µs/event")
				b.ReportMetric(float64(took)/float64(floor), "x-floor")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}

// partitioned is a room in which a.example and b.example have each changed the power in the room length times without hearing of the other; quiet.example has heard
// of neither. pdus are the events of b.example.
func partitioned(tb testing.TB, version roomversion.ID, length int) (net *network, room matrix.RoomID, pdus [][]byte) {
	net = newNetwork(tb)
	a, b, quiet := net.server("a.example"), net.server("b.example"), net.server("quiet.example")
	alice, bob := a.user("alice"), b.user("bob")
	room = a.create(alice, rooms.CreateRequest{Preset: "public_chat", Version: version})
	b.join(bob, room, a)
	net.settle()
	quiet.join(quiet.user("carol"), room, a)
	net.settle()
	levels := func(change int) string {
		creator := ""
		if version != "12" {
			creator = fmt.Sprintf(`%q:100,`, alice)
		}
		return fmt.Sprintf(`{"users":{%s%q:100},"events":{"m.room.topic":%d}}`, creator, bob, change)
	}
	a.set(alice, room, "m.room.power_levels", "", levels(0))
	net.settle()
	for _, s := range []*server{b, quiet} {
		net.split(a, s, true)
	}
	net.split(b, quiet, true)
	ban := func(s *server, sender matrix.UserID, i int) {
		s.must(s.Ban(ctx, rooms.MemberRequest{Room: room, Sender: sender, Target: matrix.UserID(fmt.Sprintf("@spammer%d:c.example", i))}))
	}
	for i := range length {
		if i%2 == 0 {
			a.set(alice, room, "m.room.power_levels", "", levels(1+i%50))
			b.set(bob, room, "m.room.power_levels", "", levels(2+i%50))
		} else {
			ban(a, alice, i)
			ban(b, bob, i)
		}
	}
	for _, ev := range b.outbox {
		pdus = append(pdus, ev.JSON())
	}
	for _, s := range []*server{b, quiet} {
		net.split(a, s, false)
	}
	net.split(b, quiet, false)
	return net, room, pdus
}

// BenchmarkRestate makes the state of a room whole in which 20,000 events have come since it was joined without its members, messages of five
// kilobytes and state events: how long it takes, and how much memory more than before. Signatures are not verified.
func BenchmarkRestate(b *testing.B) {
	const events, atOnce = 20_000, 50
	text := strings.Repeat("x", 5000)
	for b.Loop() {
		b.StopTimer()
		p := newPartialJoin(b, rooms.CreateRequest{}, nil)
		alice := p.a.user("alice")
		var wg sync.WaitGroup
		for i := range atOnce {
			wg.Go(func() {
				for j := range events / atOnce {
					if j%2 == 0 {
						p.a.say(alice, p.room, text)
					} else {
						p.a.set(alice, p.room, "test.state", fmt.Sprintf("%d %d", i, j), `{}`)
					}
				}
			})
		}
		wg.Wait()
		p.n.settle()
		peak := peakHeap()
		b.StartTimer()
		p.complete(p.b.user("bob"))
		b.StopTimer()
		b.ReportMetric(float64(peak())/1e6, "MB")
		p.agree()
		b.StartTimer()
	}
}

// peakHeap measures how many bytes of the heap are in use more than now, at most, as the garbage collector finds.
func peakHeap() (more func() uint64) {
	gc := debug.SetGCPercent(20) // so that it is looked at often
	use := func() uint64 {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	runtime.GC()
	before := use()
	most := before
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			most = max(most, use())
			select {
			case <-stop:
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-stopped
		debug.SetGCPercent(gc)
		return most - before
	}
}
