package feed_test

import (
	"bytes"
	"context"
	"flag"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"hanok/feed"
	"hanok/matrix"
	"hanok/rooms"
)

// The sizes of the benchmarks.
var (
	benchRooms   = flag.Int("sync.rooms", 1000, "rooms of the user of BenchmarkSyncIncremental")
	benchInitial = flag.Int("sync.initial", 200, "rooms of the user of BenchmarkSyncInitial")
	benchEvents  = flag.Int("sync.events", 20, "events in each room of BenchmarkSyncInitial")
	benchMembers = flag.Int("sync.members", 1000, "long-polling members in BenchmarkFanout")
)

// sync makes a /sync from where the last one ended, and returns the body.
func (m *member) sync(timeout time.Duration, filter *feed.Filter) []byte {
	if filter == nil {
		filter = &feed.Filter{}
	}
	var body bytes.Buffer
	err := m.w.Sync(context.Background(), feed.Request{User: m.id, Device: m.device, Since: m.since, Filter: filter, Timeout: timeout}, &body)
	if err != nil {
		m.w.Error(err)
	}
	m.since = nextBatch(m.w, body.Bytes())
	return body.Bytes()
}

// perMessage is how often a benchmark asks what came with one message, which takes ten times as long to send as to tell.
const perMessage = 10

// BenchmarkSyncIncremental is a /sync of a user of many rooms after a message in one of them, asked for anew by one in ten. x-copy is how many times
// the copying of the response takes that long.
func BenchmarkSyncIncremental(b *testing.B) {
	w := open(b)
	alice, bob := w.user("alice"), w.user("bob")
	ids := make([]matrix.RoomID, *benchRooms)
	each(len(ids), func(i int) {
		ids[i] = alice.create(rooms.CreateRequest{Preset: "public_chat"})
		bob.join(ids[i])
	})
	w.settle()
	alice.sync(0, nil)
	var body []byte
	var since feed.Token
	var used time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		if i%perMessage == 0 {
			bob.say(ids[i/perMessage%len(ids)], "one of many messages")
			w.settle()
			since = alice.since
		}
		alice.since = since
		before := cpuTime(b)
		b.StartTimer()
		body = alice.sync(0, nil)
		b.StopTimer()
		used += cpuTime(b) - before
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-us/op")
	reportCopying(b, body)
}

// BenchmarkSyncInitial is the first /sync of a user, with the members loaded lazily as clients do.
func BenchmarkSyncInitial(b *testing.B) {
	w := open(b)
	alice, bob := w.user("alice"), w.user("bob")
	each(*benchInitial, func(i int) {
		room := alice.create(rooms.CreateRequest{Preset: "public_chat", Name: name("room ", i)})
		bob.join(room)
		for j := range *benchEvents {
			bob.say(room, name("one of many messages ", j))
		}
	})
	w.settle()
	filter := lazyFilter(b)
	var body []byte
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	for range b.N {
		alice.since = feed.Token{}
		body = alice.sync(0, filter)
	}
	b.StopTimer()
	b.ReportMetric((cpuTime(b)-before).Seconds()*1000/float64(b.N), "cpu-ms/op")
	b.ReportMetric(float64(len(body))/1e6, "MB")
	reportCopying(b, body)
}

// cpuTime is what the process has used so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// reportCopying compares an operation with the copying of what it answers.
func reportCopying(b *testing.B, body []byte) {
	const times = 1000
	start := time.Now()
	for range times {
		sink = slices.Clone(body)
	}
	b.ReportMetric(b.Elapsed().Seconds()/float64(b.N)/(time.Since(start).Seconds()/times), "x-copy")
}

// lazyFilter is what clients ask for.
func lazyFilter(t testing.TB) *feed.Filter {
	t.Helper()
	filter, err := feed.ParseFilter([]byte(`{"room":{"timeline":{"limit":20},"state":{"lazy_load_members":true}}}`))
	if err != nil {
		t.Fatal(err)
	}
	return filter
}

// BenchmarkFanout is the time from sending one message until the last of many long-polling members has it.
// x-copy compares it with the copying of all their responses.
func BenchmarkFanout(b *testing.B) {
	w := open(b)
	sender := w.user("sender")
	room := sender.create(rooms.CreateRequest{Preset: "public_chat"})
	filter := lazyFilter(b)
	members := make([]*member, *benchMembers)
	each(len(members), func(i int) {
		members[i] = w.user(name("member", i))
		members[i].join(room)
	})
	var body []byte
	var used time.Duration
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		w.settle()
		each(len(members), func(i int) { members[i].sync(0, filter) })
		var got sync.WaitGroup
		for i, m := range members {
			got.Go(func() {
				raw := m.sync(time.Minute, filter)
				if i == 0 {
					body = raw
				}
			})
		}
		for w.hub.Waiting() < len(members) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // the last ones look for news before they wait
		before := cpuTime(b)
		b.StartTimer()
		sender.say(room, "one of many messages")
		got.Wait()
		b.StopTimer()
		used += cpuTime(b) - before
		b.StartTimer()
	}
	b.StopTimer()
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms-to-last")
	b.ReportMetric(used.Seconds()*1000/float64(b.N), "cpu-ms/op")
	reportCopying(b, slices.Repeat(body, len(members)))
}

var sink []byte
