package rooms

import (
	"testing"

	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

// An event that was read from the database before the state of its room became whole is not remembered as it was then.
func TestCacheForgetsPartialStates(t *testing.T) {
	v, ok := roomversion.Get("11")
	if !ok {
		t.Fatal("no room version 11")
	}
	partial := map[storage.RoomNID]bool{1: true, 2: true}
	c := newEventCache(1<<20, func(room storage.RoomNID) bool { return partial[room] })
	read := func(nid storage.EventNID, room storage.RoomNID, flag bool) *Event {
		parsed, err := event.FromStored(v, "", []byte(`{}`))
		if err != nil {
			t.Fatal(err)
		}
		return &Event{Event: parsed, NID: nid, RoomNID: room, Partial: flag}
	}
	c.fill(read(1, 1, true), read(2, 1, false), read(3, 2, true))
	late := read(4, 1, true)
	delete(partial, 1)
	c.forgetPartial(1)
	c.fill(late)
	for nid, want := range map[storage.EventNID]bool{1: false, 2: true, 3: true, 4: false} {
		if got := c.byNumber(nid) != nil; got != want {
			t.Errorf("event %d: remembered %v", nid, got)
		}
	}
	if c.size != 2*eventCost(late) {
		t.Errorf("%d bytes", c.size)
	}
}
