// Package wake has goroutines look again at what they look after.
package wake

import (
	"context"
	"time"
)

// Up leaves a token in a channel of capacity one, and never blocks: who waits for it looks now, and who is busy finds it afterwards.
func Up(waiting chan<- struct{}) {
	select {
	case waiting <- struct{}{}:
	default:
	}
}

// Every calls fn at intervals until ctx ends, the first time after one.
func Every(ctx context.Context, interval time.Duration, fn func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		fn()
	}
}

// After waits, no longer than until a token is in a channel, which may be nil. Its error is that of ctx.
func After(ctx context.Context, wait time.Duration, waiting <-chan struct{}) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-waiting:
	case <-ctx.Done():
	}
	return ctx.Err()
}
