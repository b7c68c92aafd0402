package gate

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New[string](2, 1)
		enter := func(id string) func() {
			t.Helper()
			leave, err := g.Enter(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return leave
		}
		first, second, other := enter("a"), enter("a"), enter("b")
		third := make(chan func(), 1)
		go func() {
			leave, err := g.Enter(context.Background(), "a")
			if err != nil {
				t.Error(err)
			}
			third <- leave
		}()
		synctest.Wait()
		if g.Users("a") != 3 || g.Users("b") != 1 || g.Users("c") != 0 {
			t.Error("users", g.Users("a"), g.Users("b"), g.Users("c"))
		}
		if _, err := g.Enter(t.Context(), "a"); !errors.Is(err, ErrFull) {
			t.Errorf("a fourth: %v", err)
		}
		first()
		leave := <-third
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := g.Enter(ctx, "a"); !errors.Is(err, context.Canceled) {
			t.Errorf("one that gave up: %v", err)
		}
		second()
		leave()
		other()
		if g.Keys() != 0 {
			t.Errorf("%d keys are remembered", g.Keys())
		}
	})
}
