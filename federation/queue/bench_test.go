package queue

import (
	"fmt"
	"testing"

	"hanok/matrix"
)

// BenchmarkFanOut sends one event to 2,000 servers that answer at once.
func BenchmarkFanOut(b *testing.B) {
	const servers = 2000
	names := make([]matrix.ServerName, servers)
	for i := range names {
		names[i] = matrix.ServerName(fmt.Sprintf("s%d.example", i))
	}
	f := setUp(b, names...)
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
