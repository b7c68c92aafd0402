package rooms_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"hanok/rooms"
)

// TestDiskPerMessage holds what a message of an encrypted room takes on disk.
func TestDiskPerMessage(t *testing.T) {
	s := newNetwork(t).server("a.example")
	alice := s.user("alice")
	room := s.create(alice, rooms.CreateRequest{})
	size := func() int64 {
		s.stop()
		info, err := os.Stat(strings.TrimPrefix(s.dsn, "sqlite:"))
		if err != nil {
			t.Fatal(err)
		}
		s.start()
		return info.Size()
	}
	empty := size()
	const n = 3000
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			for j := range n / 30 {
				if _, err := s.Send(ctx, rooms.SendRequest{Room: room, Sender: alice, Type: "m.room.encrypted", Content: messageContent, Device: "DEVICEID", TxnID: fmt.Sprintf("m1700000000.%d.%d", i, j)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	per := (size() - empty) / n
	t.Logf("%d bytes per message, of which %d are its content", per, len(messageContent))
	if per > 2500 {
		t.Errorf("%d bytes per message", per)
	}
}
