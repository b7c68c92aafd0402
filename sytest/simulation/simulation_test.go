// Package simulation runs several homeservers with a network between them that delays, loses, repeats and reorders,
// that falls apart and heals, and kills servers on the way: all in one process, in virtual time, and all of it
// decided by one number, the seed. When the network has healed, everybody has to agree, and nothing may be lost.
//
//	go test ./sytest/simulation                                         # the seeds of every run
//	go test ./sytest/simulation -run TestSimulation -seed 1234 -narrate # one of them, with what happens
//	go test ./sytest/simulation -run TestSimulation -seeds 20000 -timeout 0
//
// Start reading at world.run. By concept: network_test.go (what happens to messages), server_test.go (a server, and how it
// is killed), operations_test.go (what users do), user_test.go (what a client is told), check_test.go and memberships_test.go (what must hold).
package simulation

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var (
	oneSeed = flag.Int64("seed", -1, "run this seed only")
	seeds   = flag.Int("seeds", 100, "how many seeds to run")
	from    = flag.Int("from", 0, "the first of them")
	fresh   = flag.Int("fresh", 0, "how many further seeds to run that are others every day")
	part    = flag.Int("part", -1, "run every so manieth seed only: for the processes that TestSimulation starts")
	replays = flag.Int("replays", 4, "how many seeds TestReplay runs twice")
	traced  = flag.Bool("narrate", false, "print what happens")
	dumped  = flag.Bool("dump", false, "print the events that the servers have in the end")
	logged  = flag.Bool("logs", false, "print what the servers log")
)

// TestMain has one goroutine run at a time. What several do in one instant of virtual time would come in another order now and then, and a seed not
// run as it did before. It also spares the locks between threads, which is worth a fifth of the time.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}

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
		text := fmt.Sprintf("seed %d:\n%s\nTo see what happened: go test ./sytest/simulation -run TestSimulation -seed %d -narrate", seed, strings.Join(o.failures, "\n"), seed)
		if *part < 0 {
			t.Fatal(text)
		}
		fmt.Fprintln(os.Stderr, text) // at once: it may be long until all are done
		t.Fail()
	}
}

func TestSimulation(t *testing.T) {
	switch {
	case *oneSeed >= 0:
		o := simulate(t, uint64(*oneSeed))
		t.Logf("seed %d: %s of virtual time, trace %s", *oneSeed, o.took, o.hash)
		report(t, uint64(*oneSeed), o)
	case *part >= 0:
		for seed := *from + *part; seed < *from+*seeds; seed += runtime.NumCPU() {
			t.Run(fmt.Sprint(seed), func(t *testing.T) { report(t, uint64(seed), simulate(t, uint64(seed))) })
		}
	default:
		n := *seeds
		if testing.Short() {
			n = min(n, 20)
		}
		inParts(t, *from, n)
		if *fresh > 0 {
			inParts(t, firstFresh(time.Now()), *fresh)
		}
	}
}

// firstFresh is the first of the seeds that belong to a day.
func firstFresh(now time.Time) int { return int(now.Unix()/(24*60*60)) * 100_000 }

// inParts runs n seeds in a process for each processor.
func inParts(t *testing.T, from, n int) {
	began := time.Now()
	var running sync.WaitGroup
	for i := range runtime.NumCPU() {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestSimulation$", "-test.timeout=0",
			fmt.Sprint("-part=", i), fmt.Sprint("-from=", from), fmt.Sprint("-seeds=", n))
		cmd.Env = append(os.Environ(), "GOGC=400")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			text, err := io.ReadAll(out)
			if err = errors.Join(err, cmd.Wait()); err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		})
	}
	running.Wait()
	t.Logf("seeds %d to %d in %s", from, from+n-1, time.Since(began).Truncate(time.Millisecond))
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
