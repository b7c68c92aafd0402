package wake_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"hanok/internal/wake"
)

// However often who waits is woken meanwhile, it looks once.
func TestUp(t *testing.T) {
	waiting := make(chan struct{}, 1)
	for range 3 {
		wake.Up(waiting)
	}
	<-waiting
	if len(waiting) != 0 {
		t.Error("woken twice")
	}
}

func TestEvery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		calls := 0
		begun := time.Now()
		wake.Every(ctx, time.Minute, func() {
			if calls++; calls == 3 {
				cancel()
			}
		})
		if calls != 3 || time.Since(begun) != 3*time.Minute {
			t.Errorf("%d calls within %v", calls, time.Since(begun))
		}
	})
}
