package push

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// benchGateway accepts everything, and notes when.
type benchGateway struct {
	*httptest.Server
	count atomic.Int64
	mu    sync.Mutex
	took  []time.Duration // since the last message
	said  time.Time
}

func newBenchGateway(b *testing.B) *benchGateway {
	g := &benchGateway{}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			b.Error(err)
		}
		g.mu.Lock()
		g.took = append(g.took, time.Since(g.said))
		g.mu.Unlock()
		io.WriteString(w, `{"rejected":[]}`)
		g.count.Add(1)
	}))
	b.Cleanup(g.Close)
	return g
}

func benchClient() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: MaxPerGateway, MaxConnsPerHost: MaxPerGateway}}
}

// cpu is what this process has spent.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	must(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

const benchMembers = 1000

// BenchmarkPush sends one event to a room whose thousand members each have a pusher, from the request to send it until the gateway has
// told everybody. cpu-us/push is the whole process's, the gateway included; the floor is a loop of the same requests.
func BenchmarkPush(b *testing.B) {
	g := newBenchGateway(b)
	w := newWorld(b, benchClient())
	host := g.Listener.Addr().String()
	for i := range benchMembers {
		w.member(fmt.Sprint("u", i), host)
	}
	w.say("the first") // what is asked for once
	w.await("the first is sent", 0, func() bool { return g.count.Load() == benchMembers && w.Active() == 0 })
	g.took = nil
	var spent, wall time.Duration
	for b.Loop() {
		until := g.count.Load() + benchMembers
		before := cpu(b)
		g.mu.Lock()
		g.said = time.Now()
		g.mu.Unlock()
		w.say("hello")
		for g.count.Load() < until || w.Active() > 0 {
			time.Sleep(200 * time.Microsecond)
		}
		wall += time.Since(g.said)
		spent += cpu(b) - before
	}
	pushes := b.N * benchMembers
	floor := postFloor(b, g.URL)
	perPush := spent / time.Duration(pushes)
	slices.Sort(g.took)
	b.ReportMetric(float64(perPush.Nanoseconds())/1000, "cpu-us/push")
	b.ReportMetric(float64(perPush)/float64(floor), "x-floor")
	b.ReportMetric(float64(wall.Microseconds())/1000/float64(b.N), "ms-to-last")
	b.ReportMetric(float64(g.took[len(g.took)/2].Microseconds())/1000, "median-ms")
}

// BenchmarkPushLatency is the time from sending a message to one other member until the gateway has it.
func BenchmarkPushLatency(b *testing.B) {
	g := newBenchGateway(b)
	w := newWorld(b, benchClient())
	w.member("bob", g.Listener.Addr().String())
	for b.Loop() {
		until := g.count.Load() + 1
		g.mu.Lock()
		g.said = time.Now()
		g.mu.Unlock()
		w.say("hello")
		for g.count.Load() < until || w.Active() > 0 {
			time.Sleep(50 * time.Microsecond)
		}
	}
	slices.Sort(g.took)
	b.ReportMetric(float64(g.took[len(g.took)/2].Microseconds())/1000, "median-ms")
	b.ReportMetric(float64(g.took[len(g.took)*99/100].Microseconds())/1000, "p99-ms")
}

// postFloor is the CPU time of one request to a gateway, both ends included, with as many at a time as the sender makes.
func postFloor(b *testing.B, url string) time.Duration {
	client := benchClient()
	body := bytes.Repeat([]byte("x"), 500)
	const requests = 5000
	before := cpu(b)
	var group errgroup.Group
	group.SetLimit(MaxPerGateway)
	for range requests {
		group.Go(func() error {
			res, err := client.Post(url, "application/json", bytes.NewReader(body))
			if err != nil {
				return err
			}
			defer res.Body.Close()
			_, err = io.Copy(io.Discard, res.Body)
			return err
		})
	}
	must(b, group.Wait())
	return (cpu(b) - before) / requests
}
