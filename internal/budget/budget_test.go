package budget

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func take(t *testing.T, h *Hold, n int64, ok bool) {
	t.Helper()
	if err := h.Take(n); (err == nil) != ok || err != nil && !errors.Is(err, ErrSpent) {
		t.Errorf("%d bytes: %v", n, err)
	}
}

// Each takes so much that the rest is as large, in proportion, as it would be beside one with a whole share.
func TestShares(t *testing.T) {
	b := New(100, 60)
	one, same, other := b.Hold("a", nil), b.Hold("a", nil), b.Hold("b", nil)
	take(t, one, 40, true)
	take(t, same, 20, true)
	take(t, same, 1, false)
	take(t, other, 25, false)
	take(t, other, 24, true) // 24 : 16 = 60 : 40
	take(t, other, 1, false)
	for i, n := range []int64{9, 4, 1} {
		h := b.Hold(string(rune('c'+i)), nil)
		take(t, h, n+1, false)
		take(t, h, n, true)
		defer h.Release()
	}
	one.Release()
	one.Release()
	take(t, same, 6, true)
	same.Release()
	other.Release()
	if b.Free() != 100-14 || b.Holders() != 3 {
		t.Errorf("%d left, %d holders", b.Free(), b.Holders())
	}
}

// ending is a Hold that is given back once it has to be.
func ending(b *Budget, whose string) (h *Hold, ended func() bool) {
	var was atomic.Bool
	h = b.Hold(whose, func(cause error) {
		was.Store(errors.Is(cause, ErrSpent))
		h.Release()
	})
	return h, was.Load
}

func TestWhoHasMostForLongestGivesItBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(100, 90)
		slow, slowEnded := ending(b, "slow")
		take(t, slow, 50, true)
		time.Sleep(time.Minute)
		big, bigEnded := ending(b, "big") // has less for a shorter time
		take(t, big, 44, true)
		time.Sleep(time.Second)
		small, smallEnded := ending(b, "small")
		start := time.Now()
		take(t, small, 20, true)
		if !slowEnded() || bigEnded() || time.Since(start) > 0 {
			t.Errorf("ended: who has it for long %v, who has not %v, after %v", slowEnded(), bigEnded(), time.Since(start))
		}
		// Nobody loses something to who has more, or to a part of their own.
		more := b.Hold("big", nil)
		take(t, more, 40, false)
		if smallEnded() || bigEnded() {
			t.Error("who has most took from others")
		}
		third, thirdEnded := ending(b, "third")
		take(t, third, 43, true)
		if !bigEnded() || smallEnded() || thirdEnded() {
			t.Errorf("ended: %v %v %v", bigEnded(), smallEnded(), thirdEnded())
		}
		small.Release()
		third.Release()
		if b.Free() != 100 || b.Holders() != 0 || len(b.holds) != 0 {
			t.Errorf("%d left, %d holders", b.Free(), b.Holders())
		}
	})
}

// What does not come back is waited for as long as somebody may have patience, and others are asked for theirs meanwhile.
func TestWaitingForWhatIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(100, 90)
		var asked atomic.Bool
		stuck := b.Hold("stuck", func(error) { asked.Store(true) })
		take(t, stuck, 90, true)
		start := time.Now()
		h := b.Hold("other", nil)
		take(t, h, 20, false)
		if !asked.Load() || time.Since(start) != endPatience {
			t.Errorf("asked %v, waited %v", asked.Load(), time.Since(start))
		}
		go func() {
			time.Sleep(time.Second)
			stuck.Release()
		}()
		take(t, h, 20, true)
		h.Release()
	})
}

// Work that lives on what was read may have to end, too, but not before it has lasted a while.
func TestWorkGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(100, 90)
		ctx, over := Keep(t.Context())
		go func() {
			<-ctx.Done()
			over()
		}()
		read := b.Hold("a", nil)
		take(t, read, 80, true)
		read.Done(ctx)
		h := b.Hold("b", nil)
		take(t, h, 30, false)
		if ctx.Err() != nil {
			t.Error("work that has just begun had to end")
		}
		time.Sleep(workGrace)
		take(t, h, 30, true)
		if !errors.Is(context.Cause(ctx), ErrSpent) {
			t.Errorf("the work ended because of %v", context.Cause(ctx))
		}
		h.Release()
	})
}

func TestKeep(t *testing.T) {
	b := New(100, 100)
	read := func(ctx context.Context, n int64) {
		t.Helper()
		h := b.Hold("a", nil)
		if err := h.Take(n); err != nil {
			t.Fatal(err)
		}
		h.Done(ctx)
	}
	read(t.Context(), 50)
	if b.Free() != 100 {
		t.Error("kept without work")
	}
	ctx, over := Keep(t.Context())
	read(ctx, 30)
	inner, innerOver := Keep(ctx)
	read(inner, 20)
	innerOver()
	if b.Free() != 50 {
		t.Errorf("%d left during the work", b.Free())
	}
	over()
	read(ctx, 10) // by somebody who did not hear of it
	if b.Free() != 100 {
		t.Errorf("%d left after the work", b.Free())
	}
}
