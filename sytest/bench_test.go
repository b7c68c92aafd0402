package sytest

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// BenchmarkSend sends messages through HTTP, durable, from 16 clients into 16 rooms and into one.
// cpu-ms/op is what the server process spends on each, the client's side not included.
func BenchmarkSend(b *testing.B) {
	for name, count := range map[string]int{"one-room": 1, "16-rooms": 16} {
		b.Run(name, func(b *testing.B) {
			hs := homeserver.NewNetwork(b).Start(homeserver.Options{})
			alice := hs.Register(b, "alice")
			rooms := make([]string, count)
			for i := range rooms {
				rooms[i] = alice.CreateRoom(json{})
			}
			http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 64
			var n atomic.Int64
			before := hs.Metric("process_cpu_seconds_total")
			b.SetParallelism(8)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					i := int(n.Add(1))
					if _, ok := trySend(hs, alice, rooms[i%count], fmt.Sprint("b", i)); !ok {
						b.Error("a message was refused")
						return
					}
				}
			})
			b.StopTimer()
			cpu := hs.Metric("process_cpu_seconds_total") - before
			b.ReportMetric(cpu*1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "sends/s")
			b.ReportMetric(hs.Metric("process_resident_memory_bytes")/1e6, "MB")
		})
	}
}

// BenchmarkSendToSync is the time from sending to the answer of another user's waiting /sync.
func BenchmarkSendToSync(b *testing.B) {
	hs := homeserver.NewNetwork(b).Start(homeserver.Options{})
	alice, bob := hs.Register(b, "alice"), hs.Register(b, "bob")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	bob.SyncUntilEvent(room, alice.Say(room, "warm up"))
	var took []time.Duration
	for b.Loop() {
		text := fmt.Sprint("n", len(took))
		got := make(chan time.Time, 1)
		go func() {
			for {
				res := bob.Sync(10 * time.Second)
				for _, e := range homeserver.Timeline(res, room) {
					if s, _ := homeserver.Dig(e, "content", "body").(string); strings.HasSuffix(s, text) {
						got <- time.Now()
						return
					}
				}
			}
		}()
		for hs.Metric("hanok_http_requests_in_flight") < 1 {
		}
		start := time.Now()
		alice.Say(room, text)
		took = append(took, (<-got).Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "median-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
}
