package storage

import (
	"fmt"
	"slices"
	"testing"
)

func TestChanges(t *testing.T) {
	c := &changes{}
	c.start(10)
	alice, bob := Subject{Topic: TopicAccountData, User: "@alice:x"}, Subject{Topic: TopicAccountData, User: "@bob:x"}
	expect := func(s Subject, since Position, unchanged bool) {
		t.Helper()
		if got := since >= c.last(s); got != unchanged {
			t.Errorf("%v unchanged since %d: %v", s.User, since, got)
		}
	}
	expect(alice, 9, false) // from before the start nothing is known
	expect(alice, 10, true)
	if before := c.note(alice, 12, 12); before != 10 {
		t.Errorf("changed before at %d", before)
	}
	expect(alice, 11, false)
	expect(alice, 12, true)
	expect(bob, 11, true)
	// 15 is noted before 14, which ends later: who has looked at 15 has not seen it.
	c.note(alice, 15, 16)
	if before := c.note(alice, 14, 16); before != 15 {
		t.Errorf("changed before at %d", before)
	}
	expect(alice, 15, false)
	expect(alice, 16, false)
	expect(alice, 17, true)
	// What is forgotten counts as changed.
	c.note(bob, 20, 20)
	for i := range 3 * maxChanges {
		pos := Position(100 + i)
		c.note(Subject{Topic: TopicToDevice, User: fmt.Sprint(i)}, pos, pos)
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
