package backoff_test

import (
	"math"
	"testing"
	"time"

	"hanok/internal/backoff"
)

func TestDoubled(t *testing.T) {
	for _, c := range []struct {
		times int
		want  time.Duration
	}{{-1, 3 * time.Second}, {0, 3 * time.Second}, {1, 6 * time.Second}, {4, 48 * time.Second}, {5, time.Minute}, {6, time.Minute}, {math.MaxInt, time.Minute}} {
		if got := backoff.Doubled(3*time.Second, time.Minute, c.times); got != c.want {
			t.Errorf("doubled %d times: %s, want %s", c.times, got, c.want)
		}
	}
}
