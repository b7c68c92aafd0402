package rooms

import (
	"slices"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/matrix/stateres"
	"hanok/storage"
)

// strangers are events that nobody knows anything of.
type strangers struct{}

func (strangers) Events(refs []stateres.Ref) ([]stateres.Entry, error) {
	return make([]stateres.Entry, len(refs)), nil
}
func (strangers) AuthEvents(refs []stateres.Ref) ([][]stateres.Ref, error) {
	return make([][]stateres.Ref, len(refs)), nil
}
func (strangers) Unconflicted(matrix.StateKey) (stateres.Ref, error)   { return 0, nil }
func (strangers) Shared([]stateres.Ref, func(stateres.Ref) bool) error { return nil }

// What resolutions leave for later ones is bounded over all rooms.
func TestMemoriesAreBounded(t *testing.T) {
	version, _ := roomversion.Get("11")
	of := func(bytes int) *stateres.Memory {
		memory := stateres.NewMemory()
		values := make([]stateres.Ref, bytes/400&^1)
		for i := range values {
			values[i] = stateres.Ref(i + 1)
		}
		var conflicts []stateres.Conflict
		for pair := range slices.Chunk(values, 2) {
			conflicts = append(conflicts, stateres.Conflict{Key: matrix.StateKey{Type: "m.room.topic", Key: string(rune(len(conflicts)))}, Values: pair})
		}
		if _, err := stateres.Resolve(version, conflicts, memory, strangers{}); err != nil || memory.Size() < bytes {
			t.Fatal(memory.Size(), err)
		}
		return memory
	}
	m := newMemories()
	const third = maxRemembered/3 - 12_000
	for room := range storage.RoomNID(3) {
		m.put(room, of(third))
	}
	first := m.take(0)
	if first == nil || m.take(0) != nil {
		t.Error("a memory is given to one resolution at a time")
	}
	m.put(0, first)
	m.put(4, of(third))
	m.put(5, of(maxRemembered))
	for room, want := range []bool{true, false, true, false, true, false} {
		if got := m.take(storage.RoomNID(room)) != nil; got != want {
			t.Errorf("room %d is remembered: %v", room, got)
		}
	}
	if n := m.byRoom.Len(); n != 0 {
		t.Errorf("%d rooms are left", n)
	}
}
