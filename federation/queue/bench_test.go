package queue

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// BenchmarkFanOut sends one event to 2,000 servers that answer at once.
func BenchmarkFanOut(b *testing.B) {
	const servers = 2000
	f := setUp(b, many("s", servers)...)
	i := 0
	for b.Loop() {
		f.say("@me:us.example", fmt.Sprint(i))
		i++
		f.publish()
		for range servers {
			f.next()
		}
		f.empty()
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/servers, "µs/server")
}

func many(prefix string, n int) []matrix.ServerName {
	names := make([]matrix.ServerName, n)
	for i := range names {
		names[i] = matrix.ServerName(fmt.Sprintf("%s%d.example", prefix, i))
	}
	return names
}

// BenchmarkMostlyDown sends an event to 5,000 servers of which 4,500 have been down for a day: how long it takes to those that work, and what
// the others cost.
func BenchmarkMostlyDown(b *testing.B) {
	const up, down = 500, 4500
	gone := many("down", down)
	f := setUp(b, append(many("up", up), gone...)...)
	f.stop()
	since := matrix.TimestampOf(time.Now().Add(-24 * time.Hour))
	err := f.db.Write(b.Context(), func(tx *storage.Tx) error {
		for _, name := range gone {
			later := matrix.TimestampOf(time.Now().Add(6 * time.Hour))
			if err := storage.PutServerBackoff(b.Context(), tx, storage.ServerBackoff{Server: name, FailingSince: since, RetryAt: later, Attempts: 20}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range gone {
		f.fail(name, errors.New("down"))
	}
	f.loadPeers()
	f.start()
	i := 0
	for b.Loop() {
		f.say("@me:us.example", fmt.Sprint(i))
		i++
		f.publish()
		for range up {
			f.next()
		}
	}
	b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/event")
	var rows int64
	if err := f.db.QueryRow(b.Context(), `SELECT COUNT(*) FROM outbox_pdus`).Scan(&rows); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(rows), "rows")
	b.ReportMetric(float64(runtime.NumGoroutine()), "goroutines")
}

// BenchmarkFirstContact sends an event to 5,000 servers that were never heard from, 4,500 of which are silent for a second (in the world, about twenty, and all times with it): how
// long it takes to the others. known: those were heard from.
func BenchmarkFirstContact(b *testing.B) {
	const up, down = 500, 4500
	for _, known := range []bool{false, true} {
		b.Run(fmt.Sprintf("known=%v", known), func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				gone := many("down", down)
				names := append(many("up", up), gone...)
				rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
				f := setUp(b, names...)
				f.network.delay = func(dest matrix.ServerName) time.Duration {
					if strings.HasPrefix(string(dest), "down") {
						return time.Second
					}
					return 0
				}
				for _, name := range gone {
					f.fail(name, errors.New("down"))
				}
				if known {
					for _, name := range many("up", up) {
						f.peers.Answered(name)
					}
				}
				f.q.mu.Lock()
				f.q.unheard.patience = silence / 20
				f.q.mu.Unlock()
				f.say("@me:us.example", "hello")
				b.StartTimer()
				start := time.Now()
				f.publish()
				var first, median time.Duration
				most := 0
				for i := range up {
					f.next()
					most = max(most, runtime.NumGoroutine())
					switch i {
					case 0:
						first = time.Since(start)
					case up / 2:
						median = time.Since(start)
					}
				}
				b.StopTimer()
				b.ReportMetric(float64(first.Milliseconds()), "ms/first")
				b.ReportMetric(float64(median.Milliseconds()), "ms/median")
				b.ReportMetric(float64(time.Since(start).Milliseconds()), "ms/last")
				b.ReportMetric(float64(most), "goroutines")
				f.stop()
				b.StartTimer()
			}
		})
	}
}
