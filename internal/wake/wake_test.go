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

func TestAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		waiting := make(chan struct{}, 1)
		expect := func(waiting <-chan struct{}, want time.Duration, ended bool) {
			t.Helper()
			begun := time.Now()
			if err := wake.After(ctx, time.Minute, waiting); time.Since(begun) != want || (err != nil) != ended {
				t.Errorf("after %v: %v", time.Since(begun), err)
			}
		}
		expect(nil, time.Minute, false)
		expect(waiting, time.Minute, false)
		wake.Up(waiting)
		expect(waiting, 0, false)
		time.AfterFunc(time.Second, cancel)
		expect(waiting, time.Second, true)
	})
}
