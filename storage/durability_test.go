package storage_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/storage"
	"hanok/storage/storagetest"
)

// childDSN, in the environment, makes this test binary the process that is killed.
const childDSN = "HANOK_TEST_CHILD_DSN"

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childDSN); dsn != "" {
		if os.Getenv(childDSN+"_LIMIT") != "" {
			writeUntilFull(dsn)
		} else {
			writeUntilKilled(dsn)
		}
		return
	}
	os.Exit(m.Run())
}

// writeUntilKilled writes from many goroutines and prints "number position event" of each write
// once it was acknowledged.
func writeUntilKilled(dsn string) {
	db, err := storage.Open(ctx, storage.Options{DSN: dsn})
	if err != nil {
		panic(err)
	}
	var mu sync.Mutex
	start := os.Getenv(childDSN + "_START")
	first, _ := strconv.Atoi(start)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				n := first + i*8 + w
				event, err := db.AllocateEvent()
				if err != nil {
					panic(err)
				}
				var p storage.Position
				err = db.Write(ctx, func(tx *storage.Tx) error {
					if p, err = tx.NextPosition(); err != nil {
						return err
					}
					return insert(tx, n, n)
				})
				if err != nil {
					panic(err)
				}
				mu.Lock()
				fmt.Printf("%d %d %d\n", n, p, event)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestKill kills a writing process with SIGKILL, twice: what it acknowledged is there, each
// write wholly or not at all, and numbers and positions go on above all that were handed out.
func TestKill(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		db, err := storage.Open(ctx, storage.Options{DSN: dsn})
		must(t, err)
		table(t, db)
		must(t, db.Close())
		var lastPosition storage.Position
		var lastEvent storage.EventNID
		var acknowledged []int
		for round := range 2 {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), childDSN+"="+dsn, childDSN+"_START="+strconv.Itoa(round*1_000_000))
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			must(t, err)
			must(t, cmd.Start())
			lines := bufio.NewScanner(out)
			for count := 0; lines.Scan(); count++ {
				var n int
				var p storage.Position
				var e storage.EventNID
				if _, err := fmt.Sscan(lines.Text(), &n, &p, &e); err != nil {
					if strings.Count(lines.Text(), " ") < 2 {
						break // cut off by the kill
					}
					t.Fatal(err)
				}
				if p <= lastPosition && round > 0 && count == 0 || e <= lastEvent && round > 0 && count == 0 {
					t.Errorf("position %d, event %d after %d, %d", p, e, lastPosition, lastEvent)
				}
				lastPosition, lastEvent = max(lastPosition, p), max(lastEvent, e)
				acknowledged = append(acknowledged, n)
				if count == 300 {
					must(t, cmd.Process.Kill())
				}
			}
			cmd.Wait()
			if len(acknowledged) < 300 {
				t.Fatalf("only %d writes", len(acknowledged))
			}
		}
		db = storagetest.OpenDSN(t, dsn)
		there := numbers(t, db)
		slices.Sort(acknowledged)
		var lost []int
		for _, n := range acknowledged {
			if _, ok := slices.BinarySearch(there, n); !ok {
				lost = append(lost, n)
			}
		}
		if len(lost) > 0 {
			t.Errorf("acknowledged but lost: %v", lost)
		}
		if db.Current() < lastPosition {
			t.Errorf("Current is %d, %d was handed out", db.Current(), lastPosition)
		}
		if e, err := db.AllocateEvent(); err != nil || e <= lastEvent {
			t.Errorf("event %d after %d: %v", e, lastEvent, err)
		}
	})
}

// writeUntilFull limits the size of files, so that the log cannot grow, writes until commits fail, and
// lifts the limit. It prints the number of each write that was acknowledged and "full" for one that failed.
func writeUntilFull(dsn string) {
	limit, _ := strconv.ParseUint(os.Getenv(childDSN+"_LIMIT"), 10, 64)
	signal.Ignore(syscall.SIGXFSZ)
	db, err := storage.Open(ctx, storage.Options{DSN: dsn})
	if err != nil {
		panic(err)
	}
	var before syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		panic(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: before.Max}); err != nil {
		panic(err)
	}
	pad := make([]byte, 20_000)
	write := func(n int) bool {
		err := db.Write(ctx, func(tx *storage.Tx) error {
			if _, err := tx.NextPosition(); err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `INSERT INTO pad (data) VALUES ($1)`, pad); err != nil {
				return err
			}
			return insert(tx, n, n)
		})
		if err != nil {
			fmt.Println("full", err)
			return false
		}
		fmt.Println(n)
		return true
	}
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i, failed := 0, 0; failed < 5; i++ {
				if !write(w*10_000 + i) {
					failed++
				}
			}
		})
	}
	wg.Wait()
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &before); err != nil {
		panic(err)
	}
	if !write(99_999) {
		panic("no write after there was space again")
	}
	if db.Current() < 1 {
		panic("nothing is visible")
	}
	os.Exit(0) // without Close
}

// TestNoSpace lets commits fail for want of space: what was acknowledged is there and nothing else, and writing
// goes on once there is space.
func TestNoSpace(t *testing.T) {
	dsn := storagetest.SQLiteDSN(t)
	db, err := storage.Open(ctx, storage.Options{DSN: dsn})
	must(t, err)
	table(t, db)
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE pad (n INTEGER PRIMARY KEY, data BLOB NOT NULL)`)
		return err
	}))
	must(t, db.Close())
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDSN+"="+dsn, childDSN+"_LIMIT=2000000")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	must(t, err)
	want, full := []int{}, 0
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "full") {
			full++
			continue
		}
		n, err := strconv.Atoi(strings.TrimSpace(line))
		must(t, err)
		want = append(want, n)
	}
	if full < 20 || len(want) < 20 {
		t.Fatalf("%d writes, %d failures", len(want), full)
	}
	slices.Sort(want)
	if d := cmp.Diff(want, numbers(t, storagetest.OpenDSN(t, dsn))); d != "" {
		t.Errorf("acknowledged, but other rows are there: %s", d)
	}
}

// TestAllocateEventAbove has one process make events that build on those of another.
func TestAllocateEventAbove(t *testing.T) {
	dsn := storagetest.SQLiteDSN(t)
	one, two := storagetest.OpenDSN(t, dsn), storagetest.OpenDSN(t, dsn)
	last := storage.EventNID(0)
	for range 20 {
		for _, db := range []*storage.DB{one, two, two} {
			e, err := db.AllocateEvent(last/2, last, 1)
			must(t, err)
			if e <= last {
				t.Fatalf("event %d on %d", e, last)
			}
			last = e
		}
	}
}

// TestTwoProcesses opens one SQLite database twice, as the command line does beside the server: both
// write, and no number is given twice.
func TestTwoProcesses(t *testing.T) {
	dsn := storagetest.SQLiteDSN(t)
	one := storagetest.OpenDSN(t, dsn)
	table(t, one)
	two := storagetest.OpenDSN(t, dsn)
	var mu sync.Mutex
	seen := map[storage.EventNID]bool{}
	var wg sync.WaitGroup
	for w, db := range []*storage.DB{one, two, one, two} {
		wg.Go(func() {
			for i := range 50 {
				e, err := db.AllocateEvent()
				if err == nil {
					err = db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, w*1000+i, 0) })
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[e] {
					t.Errorf("event %d twice", e)
				}
				seen[e] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if n := len(numbers(t, one)); n != 200 {
		t.Errorf("%d rows", n)
	}
	a, err := one.Intern(ctx, "same")
	must(t, err)
	b, err := two.Intern(ctx, "same")
	must(t, err)
	if a[0] != b[0] {
		t.Error(a, b)
	}
}

// TestSettings checks what durability on SQLite hangs on.
func TestSettings(t *testing.T) {
	db := storagetest.Open(t)
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		got := map[string]string{}
		for _, p := range []string{"journal_mode", "synchronous", "wal_autocheckpoint", "busy_timeout"} {
			var v any
			must(t, tx.QueryRow(ctx, "PRAGMA "+p).Scan(&v))
			got[p] = fmt.Sprint(v)
		}
		want := map[string]string{"journal_mode": "wal", "synchronous": "2", "wal_autocheckpoint": "0", "busy_timeout": "10000"}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
		return nil
	}))
}

// TestErased overwrites and deletes content: when the database has been idle for a while, no file has it.
func TestErased(t *testing.T) {
	dsn := storagetest.SQLiteDSN(t)
	db := storagetest.OpenDSN(t, dsn)
	secrets := []string{"overwritten-0123456789", "deleted-0123456789"}
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE e (n INTEGER PRIMARY KEY, data TEXT NOT NULL)`)
		return err
	}))
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		for i, s := range secrets {
			// Long enough for pages of their own.
			if _, err := tx.Exec(ctx, `INSERT INTO e (n, data) VALUES ($1, $2)`, i, strings.Repeat(s, 1000)); err != nil {
				return err
			}
		}
		return nil
	}))
	holds := func() bool {
		files, err := filepath.Glob(strings.TrimPrefix(dsn, "sqlite:") + "*")
		must(t, err)
		for _, f := range files {
			data, err := os.ReadFile(f) // another file descriptor is no matter: the test does not write meanwhile
			must(t, err)
			for _, s := range secrets {
				if strings.Contains(string(data), s) {
					return true
				}
			}
		}
		return false
	}
	if !holds() {
		t.Fatal("the test does not find what is there")
	}
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		if _, err := tx.Exec(ctx, `UPDATE e SET data = $1 WHERE n = 0`, "gone"); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `DELETE FROM e WHERE n = 1`)
		return err
	}))
	deadline := time.Now().Add(30 * time.Second)
	for holds() {
		if time.Now().After(deadline) {
			t.Fatal("erased content is still in a file")
		}
		time.Sleep(100 * time.Millisecond)
	}
}
