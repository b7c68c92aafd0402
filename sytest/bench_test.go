package sytest

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// BenchmarkSend sends messages through HTTP, durable, from 16 clients into 16 rooms and into one.
// cpu-ms/op is what the server process spends on each, the client's side not included; disk-B/op what each takes on disk, which
// says something from some 10,000 messages on.
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
			disk := diskUse(b, hs.DataDir())
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
			if err := hs.Stop(); err != nil { // what is in the write-ahead log goes where it belongs
				b.Fatal(err)
			}
			b.ReportMetric(float64(diskUse(b, hs.DataDir())-disk)/float64(b.N), "disk-B/op")
		})
	}
}

// BenchmarkSendWithAppservice is BenchmarkSend into one room on servers without an application service, with one that the room does not concern, and with
// one that is told of every message: until it has the last one.
func BenchmarkSendWithAppservice(b *testing.B) {
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = 64
	for _, name := range []string{"none", "not-concerned", "concerned"} {
		b.Run(name, func(b *testing.B) {
			service, dir := newBridge(b, "")
			if name == "none" {
				dir = ""
			}
			hs := start(b, homeserver.NewNetwork(b), dir, "")
			alice := hs.Register(b, "alice")
			room := alice.CreateRoom(json{"preset": "public_chat"})
			if name == "concerned" {
				ghost := service.registerGhost(hs, "_bridge_ghost")
				service.client(hs).Must("POST", as("/v3/join"+homeserver.Path(room), ghost), json{})
				service.member(room, ghost, "join")
			}
			var n atomic.Int64
			before := hs.Metric("process_cpu_seconds_total")
			b.SetParallelism(8)
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, ok := trySend(hs, alice, room, fmt.Sprint("b", n.Add(1))); !ok {
						b.Error("a message was refused")
						return
					}
				}
			})
			sent := b.Elapsed()
			if name == "concerned" {
				transactions, events := 0, 0
				for events < b.N {
					events += len((<-service.taken).Events)
					transactions++
				}
				b.ReportMetric(float64(b.N)/float64(transactions), "events/transaction")
				b.ReportMetric((b.Elapsed()-sent).Seconds()*1000, "ms-behind")
			}
			b.StopTimer()
			b.ReportMetric((hs.Metric("process_cpu_seconds_total")-before)*1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(b.N)/sent.Seconds(), "sends/s")
		})
	}
}

// diskUse is the size of all files in a folder.
func diskUse(b *testing.B, dir string) (total int64) {
	err := filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	return total
}

var (
	benchPolls   = flag.Int("polls", 300, "long polls in BenchmarkLongPolls")
	benchPollers = flag.Int("pollers", 30, "users who make them")
)

// BenchmarkLongPolls is the time from sending one message until the last of many long polls was answered, all through HTTP.
// cpu-ms/op is what the server process spends, the client's side not included.
func BenchmarkLongPolls(b *testing.B) {
	hs := homeserver.NewNetwork(b).Start(homeserver.Options{})
	sender := hs.Register(b, "sender")
	room := sender.CreateRoom(json{"preset": "public_chat"})
	pollers := make([]*homeserver.Client, *benchPollers)
	for i := range pollers {
		pollers[i] = hs.Register(b, "poller")
		pollers[i].Join(room)
		// Counts come after the event, and would end the next polls.
		pollers[i].Must("PUT", "/v3/pushrules/global/room"+homeserver.Path(room), json{"actions": []any{}})
	}
	http.DefaultTransport.(*http.Transport).MaxIdleConnsPerHost = *benchPolls
	var cpu float64
	var took time.Duration
	for b.Loop() {
		for _, p := range pollers {
			for { // until there is nothing to tell
				if res := p.Sync(10*time.Millisecond, "set_presence", "offline"); res["rooms"] == nil {
					break
				}
			}
		}
		var answered sync.WaitGroup
		for i := range *benchPolls {
			p := pollers[i%len(pollers)]
			answered.Go(func() {
				status, raw := p.Raw("GET", "/v3/sync?set_presence=offline&timeout=60000&since="+p.Token(), nil)
				if status != http.StatusOK || !bytes.Contains(raw, []byte(room)) {
					b.Errorf("%d %s", status, raw)
				}
			})
		}
		for hs.Metric("hanok_http_requests_in_flight") < float64(*benchPolls) {
		}
		time.Sleep(50 * time.Millisecond) // the last ones look for news before they wait
		before, start := hs.Metric("process_cpu_seconds_total"), time.Now()
		sender.Say(room, "one of many messages")
		answered.Wait()
		took += time.Since(start)
		cpu += hs.Metric("process_cpu_seconds_total") - before
	}
	b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "ms-to-last")
	b.ReportMetric(cpu*1000/float64(b.N), "cpu-ms/op")
	b.ReportMetric(hs.Metric("process_resident_memory_bytes")/1e6, "MB")
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
