package feed_test

import (
	"bytes"
	"context"
	"flag"
	"slices"
	"sync"
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

// BenchmarkSyncIncremental is a /sync of a user of many rooms after a message in one of them. x-copy is how many times
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
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		b.StopTimer()
		bob.say(ids[i%len(ids)], "one of many messages")
		w.settle()
		b.StartTimer()
		body = alice.sync(0, nil)
	}
	b.StopTimer()
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
	filter, err := feed.ParseFilter([]byte(`{"room":{"timeline":{"limit":20},"state":{"lazy_load_members":true}}}`))
	if err != nil {
		b.Fatal(err)
	}
	var body []byte
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		alice.since = feed.Token{}
		body = alice.sync(0, filter)
	}
	b.StopTimer()
	b.ReportMetric(float64(len(body))/1e6, "MB")
	reportCopying(b, body)
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

// BenchmarkFanout is the time from sending one message until the last of many long-polling members has it.
// x-copy compares it with the copying of all their responses.
func BenchmarkFanout(b *testing.B) {
	w := open(b)
	sender := w.user("sender")
	room := sender.create(rooms.CreateRequest{Preset: "public_chat"})
	members := make([]*member, *benchMembers)
	each(len(members), func(i int) {
		members[i] = w.user(name("member", i))
		members[i].join(room)
	})
	var body []byte
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		w.settle()
		each(len(members), func(i int) { members[i].sync(0, nil) })
		var got sync.WaitGroup
		for i, m := range members {
			got.Go(func() {
				raw := m.sync(time.Minute, nil)
				if i == 0 {
					body = raw
				}
			})
		}
		for w.hub.Waiting() < len(members) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // the last ones look for news before they wait
		b.StartTimer()
		sender.say(room, "one of many messages")
		got.Wait()
	}
	b.StopTimer()
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms-to-last")
	reportCopying(b, slices.Repeat(body, len(members)))
}

var sink []byte
