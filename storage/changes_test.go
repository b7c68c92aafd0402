package storage

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

func TestChanges(t *testing.T) {
	c := &changes{}
	c.start(10)
	alice, bob := Subject{Topic: TopicAccountData, User: "@alice:x"}, Subject{Topic: TopicAccountData, User: "@bob:x"}
	expect := func(s Subject, since Position, unchanged bool) {
		t.Helper()
		if got := c.unchanged(s, since, math.MaxInt64); got != unchanged {
			t.Errorf("%v unchanged since %d: %v", s.User, since, got)
		}
	}
	note := func(s Subject, pos, taken, want Position) {
		t.Helper()
		if before := c.note(s, pos, func() Position { return taken }); before != want {
			t.Errorf("changed before at %d, want %d", before, want)
		}
	}
	expect(alice, 9, false) // from before the start nothing is known
	expect(alice, 10, true)
	note(alice, 12, 12, 10)
	note(alice, 12, 12, 12)
	expect(alice, 11, false)
	expect(alice, 12, true)
	expect(bob, 11, true)
	if !c.unchanged(alice, 10, 11) || c.unchanged(alice, 10, 12) || c.unchanged(alice, 9, 11) {
		t.Error("a change that is not visible yet is none")
	}
	// 15 is noted before 14, which ends later: who has looked at 15 has not seen it.
	note(alice, 15, 16, 12)
	note(alice, 14, 16, 15)
	expect(alice, 15, false)
	expect(alice, 16, false)
	expect(alice, 17, true)
	if c.unchanged(alice, 15, 16) {
		t.Error("14 came after 15")
	}
	// What is forgotten counts as changed.
	note(bob, 20, 20, 10)
	for i := range 3 * maxChanges {
		c.note(Subject{Topic: TopicToDevice, User: fmt.Sprint(i)}, Position(100+i), nil)
	}
	expect(bob, 20, false)
	expect(bob, 100+3*maxChanges, true)
	if len(c.young)+len(c.old) > 2*maxChanges {
		t.Errorf("%d notes are kept", len(c.young)+len(c.old))
	}
}

func TestRecency(t *testing.T) {
	var r Recency[string]
	if _, ok := r.Oldest(); ok || r.Since(0) != nil {
		t.Error("not empty")
	}
	r.Touch("a", 1)
	r.Touch("b", 2)
	r.Touch("c", 3)
	r.Touch("a", 4)
	if got := r.Since(2); !slices.Equal(got, []string{"a", "c"}) {
		t.Error(got)
	}
	if got, _ := r.Oldest(); got != "b" {
		t.Error(got)
	}
	r.Forget("a")
	r.Forget("nothing")
	if got := r.Since(0); !slices.Equal(got, []string{"c", "b"}) || r.Len() != 2 {
		t.Error(got)
	}
}
