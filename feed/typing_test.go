package feed

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// countingPositions gives positions that are visible at once.
type countingPositions struct{ given atomic.Int64 }

func (p *countingPositions) EphemeralPosition(place func(storage.Position), onVisible func()) {
	place(storage.Position(p.given.Add(1)))
	onVisible()
}

func (p *countingPositions) last() storage.Position { return storage.Position(p.given.Load()) }

// Of a server that has thousands of users type in one room only some are told of.
func TestTypistsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = matrix.RoomID("!r:x")
		pos := &countingPositions{}
		typing := NewTyping(pos, func(matrix.RoomID) {})
		for i := range 10 * maxTypists {
			user := matrix.UserID(fmt.Sprintf("@u%d:x", i))
			if changed := typing.Start(room, user, time.Minute); changed != (i < maxTypists) {
				t.Fatalf("number %d: %v", i, changed)
			}
		}
		synctest.Wait()
		if users, _ := typing.Users(room); len(users) != maxTypists || int(pos.last()) != maxTypists {
			t.Errorf("%d type, in %d changes", len(users), pos.last())
		}
		if typing.Start(room, "@u0:x", time.Minute) || !typing.Stop(room, "@u0:x") || !typing.Start(room, "@late:x", time.Minute) {
			t.Error("those who type go on, and make room for others")
		}
		time.Sleep(2 * time.Minute)
		if users, _ := typing.Users(room); len(users) != 0 {
			t.Errorf("%d type still", len(users))
		}
	})
}

func TestTyping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const room = matrix.RoomID("!r:x")
		var woken atomic.Int64
		pos := &countingPositions{}
		typing := NewTyping(pos, func(matrix.RoomID) { woken.Add(1) })
		expect := func(want ...matrix.UserID) {
			t.Helper()
			synctest.Wait()
			if got, at := typing.Users(room); !slices.Equal(got, want) || at != pos.last() {
				t.Errorf("typing %v at %d, want %v at %d", got, at, want, pos.last())
			}
		}
		if users, at := typing.Users(room); users != nil || at != 0 {
			t.Errorf("an unknown room: %v %v", users, at)
		}
		if !typing.Start(room, "@b:x", 10*time.Second) || !typing.Start(room, "@a:x", time.Hour) {
			t.Error("starting is a change")
		}
		expect("@a:x", "@b:x")
		time.Sleep(6 * time.Second)
		if typing.Start(room, "@b:x", 10*time.Second) {
			t.Error("going on is no change")
		}
		time.Sleep(9 * time.Second)
		expect("@a:x", "@b:x") // prolonged
		time.Sleep(2 * time.Second)
		expect("@a:x")
		if typing.Stop(room, "@b:x") {
			t.Error("stopped twice")
		}
		time.Sleep(MaxTyping)
		expect() // nobody types for an hour
		if typing.Stop("!other:x", "@a:x") {
			t.Error("stopped in a room where nobody typed")
		}
		if woken.Load() != int64(pos.last()) || woken.Load() != 4 {
			t.Errorf("woke %d times for %d changes", woken.Load(), pos.last())
		}
	})
}
