package appservice_test

import (
	"fmt"
	"testing"

	"hanok/matrix"
	"hanok/rooms"
)

// BenchmarkCatchUp is how fast a service that was away is told of what happened, by HTTP: in a room with a thousand of its users, and in one that does not concern it.
func BenchmarkCatchUp(b *testing.B) {
	for name, ghosts := range map[string]int{"concerned": 1000, "not-concerned": 0} {
		b.Run(name, func(b *testing.B) {
			w := newWorld(b, nil)
			room, marker := w.create(rooms.CreateRequest{}), w.create(rooms.CreateRequest{})
			last := w.join(marker, ghost)
			for i := range ghosts {
				last = w.join(room, matrix.UserID(fmt.Sprintf("@_x_%d:here.test", i)))
			}
			w.collect(last)
			w.settled()
			w.stop()
			for range b.N {
				w.say(room, alice)
			}
			last = w.say(marker, alice)
			b.ResetTimer()
			w.run()
			for ids := w.next(); ids[len(ids)-1] != last; ids = w.next() {
			}
			b.StopTimer()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			w.stop()
		})
	}
}
