// Package simulation runs several homeservers with a network between them that delays, loses, repeats and reorders,
// that falls apart and heals, and kills servers on the way: all in one process, in virtual time, and all of it
// decided by one number, the seed. When the network has healed, everybody has to agree, and nothing may be lost.
//
//	go test ./sytest/simulation                                         # the seeds of every run
//	go test ./sytest/simulation -run TestSimulation -seed 1234 -trace   # one of them, with what happens
//	go test ./sytest/simulation -run TestSimulation -seeds 20000 -timeout 0
//
// Start reading at world.run. By concept: network_test.go (what happens to messages), server_test.go (a server, and how it
// is killed), operations_test.go (what users do), user_test.go (what a client is told), check_test.go (what must hold).
package simulation

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

var (
	oneSeed = flag.Int64("seed", -1, "run this seed only")
	seeds   = flag.Int("seeds", 100, "how many seeds to run")
	from    = flag.Int("from", 0, "the first of them")
	replays = flag.Int("replays", 4, "how many seeds TestReplay runs twice")
	traced  = flag.Bool("trace", false, "print what happens")
	dumped  = flag.Bool("dump", false, "print the events that the servers have in the end")
	logged  = flag.Bool("logs", false, "print what the servers log")
)

// outcome is what came of a world.
type outcome struct {
	hash     string
	failures []string
	took     time.Duration // of virtual time
	lines    []string
}

// simulate runs one seed from beginning to end.
func simulate(t *testing.T, seed uint64) (o outcome) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed)
		w.run()
		o = outcome{hash: w.trace.hash(), failures: w.failures, took: time.Since(w.began), lines: w.trace.lines}
	})
	return o
}

func report(t *testing.T, seed uint64, o outcome) {
	t.Helper()
	if len(o.failures) > 0 {
		t.Errorf("seed %d:\n%s\nTo see what happened: go test ./sytest/simulation -run TestSimulation -seed %d -trace", seed, strings.Join(o.failures, "\n"), seed)
	}
}

func TestSimulation(t *testing.T) {
	if *oneSeed >= 0 {
		o := simulate(t, uint64(*oneSeed))
		t.Logf("seed %d: %s of virtual time, trace %s", *oneSeed, o.took, o.hash)
		report(t, uint64(*oneSeed), o)
		return
	}
	n := *seeds
	if testing.Short() {
		n = min(n, 20)
	}
	for seed := *from; seed < *from+n; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			report(t, uint64(seed), simulate(t, uint64(seed)))
		})
	}
}

// A seed says everything: what happens is the same whenever it is run.
func TestReplay(t *testing.T) {
	for seed := range uint64(*replays) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			first := simulate(t, seed)
			second := simulate(t, seed)
			if first.hash == second.hash {
				return
			}
			for i, line := range first.lines {
				if i >= len(second.lines) || line != second.lines[i] {
					t.Fatalf("seed %d runs differently from line %d:\n%s\n%s", seed, i, strings.Join(first.lines[max(0, i-3):min(i+3, len(first.lines))], "\n"), strings.Join(second.lines[max(0, i-3):min(i+3, len(second.lines))], "\n"))
				}
			}
			t.Fatalf("seed %d ends earlier the first time", seed)
		})
	}
}
