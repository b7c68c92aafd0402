package feed

import (
	"testing"
)

func ready(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

func TestWaiters(t *testing.T) {
	w := NewWaiters()
	a1, done1 := w.Register("@a:x")
	a2, done2 := w.Register("@a:x")
	b, doneB := w.Register("@b:x")
	w.Wake("@a:x", "@nobody:x")
	w.Wake("@a:x") // a waiter that has not looked yet is woken once
	if !ready(a1) || !ready(a2) || ready(a1) || ready(b) {
		t.Error("waking is per user, and one token each")
	}
	done1()
	w.Wake("@a:x")
	if ready(a1) || !ready(a2) {
		t.Error("a waiter that is done is not woken")
	}
	done2()
	if len(w.users) != 1 {
		t.Errorf("%d users are kept, one waits", len(w.users))
	}
	w.Shutdown()
	if !ready(b) || !w.Stopping() {
		t.Error("shutdown wakes everybody")
	}
	doneB()
	late, doneLate := w.Register("@a:x")
	if !ready(late) {
		t.Error("nobody waits after shutdown")
	}
	doneLate()
	if len(w.users) != 0 {
		t.Errorf("%d users are kept", len(w.users))
	}
}

func BenchmarkWake(b *testing.B) {
	w := NewWaiters()
	for range 1000 {
		_, done := w.Register("@other:x")
		defer done()
	}
	woken, done := w.Register("@a:x")
	defer done()
	b.ReportAllocs()
	for b.Loop() {
		w.Wake("@a:x")
		<-woken
	}
}
