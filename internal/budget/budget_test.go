package budget

import (
	"context"
	"errors"
	"testing"
)

func TestShares(t *testing.T) {
	b := New(100, 60)
	one, same, other := b.Hold("a"), b.Hold("a"), b.Hold("b")
	for _, step := range []struct {
		hold *Hold
		n    int64
		ok   bool
	}{{one, 40, true}, {same, 20, true}, {same, 1, false}, {other, 40, true}, {other, 1, false}} {
		if err := step.hold.Take(step.n); (err == nil) != step.ok || err != nil && !errors.Is(err, ErrSpent) {
			t.Errorf("%+v: %v", step, err)
		}
	}
	one.Release()
	one.Release()
	if err := same.Take(40); err != nil || b.Free() != 0 {
		t.Errorf("%d left, %v", b.Free(), err)
	}
	same.Release()
	other.Release()
	if b.Free() != 100 || b.Holders() != 0 {
		t.Errorf("%d left, %d holders", b.Free(), b.Holders())
	}
}

func TestKeep(t *testing.T) {
	b := New(100, 100)
	read := func(ctx context.Context, n int64) {
		t.Helper()
		h := b.Hold("a")
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
