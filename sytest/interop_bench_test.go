package sytest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// TestInteropMeasures compares what the same work costs on Hanok and on the other server, one after the other
// on the same machine. Read the ratios: the figures depend on the machine, and where both servers take part in what is timed, on both.
func TestInteropMeasures(t *testing.T) {
	for _, launch := range foreignSoftware(t) {
		t.Run(filepath.Base(launch), func(t *testing.T) { interopMeasures(t, startForeign(t, launch)) })
	}
}

func interopMeasures(t *testing.T, p pair) {
	servers := []*homeserver.Server{p.ours, p.away}
	row := func(what, unit string, of func(s, other *homeserver.Server) float64) {
		ours, theirs := of(servers[0], servers[1]), of(servers[1], servers[0])
		t.Logf("%-60s hanok %9.2f %s, other %9.2f %s, ratio %.1f", what, ours, unit, theirs, unit, theirs/ours)
	}
	row("memory after the start", "MB", func(s, _ *homeserver.Server) float64 { return float64(residentKB(t, s.PID())) / 1024 })

	const messages = 300
	cpu := map[*homeserver.Server]float64{}
	row("median time of a send, one client, one room", "ms", func(s, _ *homeserver.Server) float64 {
		alice := s.Register(t, "alice")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		before := cpuOf(t, s)
		times := make([]time.Duration, messages)
		for i := range times {
			started := time.Now()
			alice.Say(room, fmt.Sprint("message ", i))
			times[i] = time.Since(started)
		}
		cpu[s] = (cpuOf(t, s) - before) / messages
		return median(times)
	})
	row("CPU of that send", "ms", func(s, _ *homeserver.Server) float64 { return cpu[s] })

	received := map[*homeserver.Server]float64{}
	row("median time from a send to the /sync of the other server's user", "ms", func(s, other *homeserver.Server) float64 {
		alice, bob := s.Register(t, "alice"), other.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room, s.Name)
		bob.SyncUntilEvent(room, alice.Say(room, "first"))
		sender, receiver := cpuOf(t, s), cpuOf(t, other)
		times := make([]time.Duration, messages/3)
		for i := range times {
			started := time.Now()
			bob.SyncUntilEvent(room, alice.Say(room, fmt.Sprint("message ", i)))
			times[i] = time.Since(started)
		}
		cpu[s] = (cpuOf(t, s) - sender) / float64(len(times))
		received[other] = (cpuOf(t, other) - receiver) / float64(len(times))
		return median(times)
	})
	row("CPU of the sending server for that", "ms", func(s, _ *homeserver.Server) float64 { return cpu[s] })
	row("CPU of the receiving server for that", "ms", func(s, _ *homeserver.Server) float64 { return received[s] })

	// A room of 250 on one server, joined from the other: what the joining server needs until it knows all.
	const members = 250
	joinCPU := map[*homeserver.Server]float64{}
	complete := map[*homeserver.Server]float64{}
	row(fmt.Sprintf("joining the other server's room of %d, until /join answers", members), "ms", func(s, other *homeserver.Server) float64 {
		alice, bob := other.Register(t, "alice"), s.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		for range members - 1 {
			other.Register(t, "m").Join(room)
		}
		before, started := cpuOf(t, s), time.Now()
		bob.Join(room, other.Name)
		answered := time.Since(started)
		eventually(t, "all members", func() string {
			joined, _ := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil)["joined"].(json)
			if len(joined) != members+1 {
				return fmt.Sprint(len(joined))
			}
			return ""
		})
		complete[s] = milliseconds(time.Since(started))
		joinCPU[s] = cpuOf(t, s) - before
		return milliseconds(answered)
	})
	row("the same, until all members are known", "ms", func(s, _ *homeserver.Server) float64 { return complete[s] })
	row("CPU of the joining server for that", "ms", func(s, _ *homeserver.Server) float64 { return joinCPU[s] })
	row("memory at the end", "MB", func(s, _ *homeserver.Server) float64 { return float64(residentKB(t, s.PID())) / 1024 })
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func median(times []time.Duration) float64 {
	slices.Sort(times)
	return milliseconds(times[len(times)/2])
}

// cpuOf is the CPU time that a server's process has used, in milliseconds. Linux counts it in hundredths of a second.
func cpuOf(t *testing.T, s *homeserver.Server) float64 {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID()))
	if err != nil {
		t.Fatal(err)
	}
	// What comes after the name in parentheses, which may hold anything, begins with the third field.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	var ticks float64
	for _, field := range fields[11:13] { // utime, stime
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			t.Fatal(err)
		}
		ticks += n
	}
	return ticks * 10
}
