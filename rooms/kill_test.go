package rooms_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage/storagetest"
)

// TestKill kills a process that is sending at full speed: what it had acknowledged is there, in rooms that go on.
func TestKill(t *testing.T) {
	if dsn := os.Getenv("ROOMS_KILL_DSN"); dsn != "" {
		sendUntilKilled(t, dsn)
		return
	}
	dsn := storagetest.SQLiteDSN(t)
	for round := range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "ROOMS_KILL_DSN="+dsn, fmt.Sprint("ROOMS_KILL_ROUND=", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		acked := make(map[matrix.EventID]matrix.RoomID)
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			if room, id, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "acked "), " "); ok && strings.HasPrefix(lines.Text(), "acked ") {
				acked[matrix.EventID(id)] = matrix.RoomID(room)
			}
			if len(acked) == 300 {
				cmd.Process.Kill()
			}
		}
		io.Copy(io.Discard, out)
		cmd.Wait()
		if len(acked) < 300 {
			t.Fatalf("only %d acknowledged", len(acked))
		}
		s := newNetwork(t).serverOn("a.example", dsn)
		seen := make(map[matrix.RoomID]bool)
		for id, room := range acked {
			ev, err := s.Event(ctx, id)
			if err != nil {
				t.Fatalf("an acknowledged event is lost: %v", err)
			}
			if ev.IsState() {
				continue
			}
			if _, err := s.VisibleEvent(ctx, s.user("alice"), room, id); err != nil {
				t.Fatal(err)
			}
			seen[room] = true
		}
		for room := range seen {
			snap, err := s.Snapshot(ctx, room)
			if err != nil || len(snap.Extremities) != 1 {
				t.Fatal(snap.Extremities, err)
			}
			if _, err := snap.State.All(ctx); err != nil {
				t.Fatal(err)
			}
			s.say(s.user("alice"), room, "after")
		}
		s.stop()
	}
}

func sendUntilKilled(t *testing.T, dsn string) {
	s := newNetwork(t).serverOn("a.example", dsn)
	alice := s.user("alice")
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 4 {
		room := s.create(alice, rooms.CreateRequest{Name: fmt.Sprint(os.Getenv("ROOMS_KILL_ROUND"), i)})
		for j := range 8 {
			wg.Go(func() {
				for k := 0; ; k++ {
					q := message(room, alice, "D", fmt.Sprint(j, "-", k), "x")
					if k%10 == 9 {
						key := fmt.Sprint(j)
						q.StateKey, q.TxnID, q.Content = &key, "", fmt.Appendf(nil, `{"k":%d}`, k)
					}
					id, err := s.Send(ctx, q)
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					fmt.Println("acked", room, id)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
}
