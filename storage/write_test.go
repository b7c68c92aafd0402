package storage_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/storage"
	"hanok/storage/storagetest"
)

var ctx = context.Background()

// table makes a table of numbers.
func table(t testing.TB, db *storage.DB) {
	t.Helper()
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		// The types are those of PostgreSQL, which SQLite takes as well without STRICT.
		_, err := tx.Exec(ctx, `CREATE TABLE t (n BIGINT NOT NULL PRIMARY KEY, s BIGINT NOT NULL)`)
		return err
	}))
}

func insert(tx *storage.Tx, n, s int) error {
	_, err := tx.Exec(ctx, `INSERT INTO t (n, s) VALUES ($1, $2)`, n, s)
	return err
}

func numbers(t testing.TB, q storage.Querier) []int {
	t.Helper()
	rows, err := q.Query(ctx, `SELECT n FROM t ORDER BY s, n`)
	must(t, err)
	defer rows.Close()
	out := []int{}
	for rows.Next() {
		var n int
		must(t, rows.Scan(&n))
		out = append(out, n)
	}
	must(t, rows.Err())
	return out
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hold keeps the writer busy until release is called.
func hold(t testing.TB, db *storage.DB) (release func()) {
	t.Helper()
	entered, leave, done := make(chan bool), make(chan bool), make(chan error, 1)
	db.WriteAsync(func(*storage.Tx) error {
		entered <- true
		<-leave
		return nil
	}, func(err error) { done <- err })
	<-entered
	return func() {
		close(leave)
		must(t, <-done)
	}
}

// TestFailuresAlone queues writes behind a busy writer, so that they share a commit: what fails among
// them, by an error, a panic or a bad statement, undoes itself only.
func TestFailuresAlone(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		release := hold(t, db)
		boom := errors.New("boom")
		type answer struct {
			n   int
			err error
		}
		answers := make(chan answer, 100)
		var visible sync.Map
		for n := range 40 {
			db.WriteAsync(func(tx *storage.Tx) error {
				if _, err := tx.NextPosition(); err != nil {
					return err
				}
				tx.OnVisible(func() { visible.Store(n, true) })
				if err := insert(tx, n, n); err != nil {
					return err
				}
				switch n % 4 {
				case 1:
					return boom
				case 2:
					panic("boom")
				case 3:
					return insert(tx, n, n) // twice
				}
				return nil
			}, func(err error) { answers <- answer{n, err} })
		}
		release()
		var want []int
		for i := range 40 {
			a := <-answers
			if a.n != i {
				t.Errorf("answer %d came as %d", a.n, i)
			}
			if good := a.n%4 == 0; good != (a.err == nil) || a.n%4 == 1 && !errors.Is(a.err, boom) {
				t.Errorf("%d: %v", a.n, a.err)
			}
			if a.n%4 == 0 {
				want = append(want, a.n)
			}
		}
		if d := cmp.Diff(want, numbers(t, db)); d != "" {
			t.Error(d)
		}
		must(t, db.Write(ctx, func(*storage.Tx) error { return nil }))
		for n := range 40 {
			if _, ok := visible.Load(n); ok != (n%4 == 0) {
				t.Errorf("OnVisible of %d: %v", n, ok)
			}
		}
	})
}

// TestAsyncOrder checks that writes of one goroutine commit in the order they were made, while
// others write too: a reader never sees one without all before it.
func TestAsyncOrder(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		const writers, each = 4, 60
		var wg sync.WaitGroup
		stop := make(chan bool)
		var reader sync.WaitGroup
		reader.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				var counts [writers]int
				for _, n := range numbers(t, db) {
					if w, i := n/1000, n%1000; counts[w] != i {
						t.Errorf("writer %d: %d is there, %d is not", w, i, counts[w])
						return
					} else {
						counts[w]++
					}
				}
			}
		})
		for w := range writers {
			wg.Go(func() {
				done := make(chan error, each)
				for i := range each {
					db.WriteAsync(func(tx *storage.Tx) error { return insert(tx, w*1000+i, i) }, func(err error) { done <- err })
					if i%7 == 0 { // conflicts with the other writers on PostgreSQL
						must(t, db.Write(ctx, func(tx *storage.Tx) error { return storage.SetCursor(ctx, tx, "x", 1) }))
					}
				}
				for range each {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		close(stop)
		reader.Wait()
	})
}

// TestAsyncChain makes writes each of which builds on the one before it, queued so that they share commits.
func TestAsyncChain(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 1, 0) }))
		release := hold(t, db)
		done := make(chan error, 200)
		want := 0
		for i := range 200 {
			want = (want*31 + i) % 1_000_003
			db.WriteAsync(func(tx *storage.Tx) error {
				_, err := tx.Exec(ctx, `UPDATE t SET s = (s * 31 + $1) % 1000003 WHERE n = 1`, i)
				return err
			}, func(err error) { done <- err })
		}
		release()
		for range 200 {
			must(t, <-done)
		}
		var got int
		must(t, db.QueryRow(ctx, `SELECT s FROM t WHERE n = 1`).Scan(&got))
		if got != want {
			t.Errorf("the result is %d, in order it is %d", got, want)
		}
	})
}

// TestCancelled checks that a write whose caller left is dropped before it starts and finished after.
func TestCancelled(t *testing.T) {
	db := storagetest.Open(t)
	table(t, db)
	release := hold(t, db)
	gone, cancel := context.WithCancel(ctx)
	waiting := make(chan error, 1)
	go func() { waiting <- db.Write(gone, func(tx *storage.Tx) error { return insert(tx, 1, 1) }) }()
	cancel()
	if err := <-waiting; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	release()

	started, cancel := context.WithCancel(ctx)
	must(t, db.Write(started, func(tx *storage.Tx) error {
		cancel()
		_, err := tx.Exec(started, `INSERT INTO t (n, s) VALUES ($1, $2)`, 2, 2)
		return err
	}))
	if err := db.Write(started, func(tx *storage.Tx) error { return insert(tx, 3, 3) }); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if d := cmp.Diff([]int{2}, numbers(t, db)); d != "" {
		t.Error(d)
	}
}

// TestSerializable runs read-modify-write transactions at once: none is lost.
func TestSerializable(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 1, 0) }))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 10 {
					err := db.Write(ctx, func(tx *storage.Tx) error {
						var s int
						if err := tx.QueryRow(ctx, `SELECT s FROM t WHERE n = $1`, 1).Scan(&s); err != nil {
							return fmt.Errorf("wrapped: %w", err)
						}
						_, err := tx.Exec(ctx, `UPDATE t SET s = $2 WHERE n = $1`, 1, s+1)
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		var s int
		must(t, db.QueryRow(ctx, `SELECT s FROM t WHERE n = $1`, 1).Scan(&s))
		if s != 80 {
			t.Errorf("%d of 80 increments", s)
		}
	})
}

// TestPositions has many writers take positions and commit out of order, some failing: whoever reads up to
// Current misses nothing, now or later, and OnVisible comes in order, after Current has reached it.
func TestPositions(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		var mu sync.Mutex
		var called []storage.Position // as OnVisible came
		type look struct {
			upTo  storage.Position
			count int
		}
		var looks [12][]look // of each writer, while the others write
		var wg sync.WaitGroup
		for w := range looks {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(1, uint64(w)))
				before := storage.Position(0)
				for i := range 25 {
					var last storage.Position
					err := db.Write(ctx, func(tx *storage.Tx) error {
						for range 1 + r.IntN(3) {
							p, err := tx.NextPosition()
							if err != nil {
								return err
							}
							if err := insert(tx, int(p), int(p)); err != nil {
								return err
							}
							last = p
						}
						p := last
						tx.OnVisible(func() {
							if db.Current() < p {
								t.Errorf("called for %d at %d", p, db.Current())
							}
							mu.Lock()
							called = append(called, p)
							mu.Unlock()
						})
						if i%5 == 4 {
							return errors.New("no")
						}
						return nil
					})
					if (err != nil) != (i%5 == 4) {
						t.Error(err)
					}
					if i%6 == 0 {
						seen, visible := make(chan storage.Position, 1), make(chan struct{})
						db.EphemeralPosition(func(p storage.Position) { seen <- p }, func() { close(visible) })
						<-visible
						if p := <-seen; db.Current() < p || p <= last {
							t.Errorf("ephemeral %d after %d at %d", p, last, db.Current())
						}
					}
					l := look{upTo: db.Current()}
					if l.upTo < before {
						t.Errorf("Current went back from %d to %d", before, l.upTo)
					}
					before = l.upTo
					if err := db.QueryRow(ctx, `SELECT COUNT(*) FROM t WHERE n <= $1`, l.upTo).Scan(&l.count); err != nil {
						t.Error(err)
						return
					}
					looks[w] = append(looks[w], l)
				}
			})
		}
		wg.Wait()
		all := numbers(t, db)
		for _, l := range slices.Concat(looks[:]...) {
			if now, _ := slices.BinarySearch(all, int(l.upTo)+1); now != l.count {
				t.Errorf("up to %d there were %d rows, later %d", l.upTo, l.count, now)
			}
		}
		barrier := make(chan bool)
		db.EphemeralPosition(func(storage.Position) {}, func() { close(barrier) })
		<-barrier
		mu.Lock()
		defer mu.Unlock()
		if !slices.IsSorted(called) || len(called) != 12*20 {
			t.Errorf("%d calls, in order: %v", len(called), slices.IsSorted(called))
		}
	})
}

// TestReopen checks that numbers and positions go on after an orderly restart.
func TestReopen(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		var lastPosition storage.Position
		var lastEvent storage.EventNID
		var lastRoom storage.RoomNID
		for range 3 {
			db, err := storage.Open(ctx, storage.Options{DSN: dsn})
			must(t, err)
			if db.Current() < lastPosition {
				t.Errorf("Current went back from %d to %d", lastPosition, db.Current())
			}
			seen, visible := make(chan storage.Position, 1), make(chan struct{})
			db.EphemeralPosition(func(p storage.Position) { seen <- p }, func() { close(visible) })
			<-visible
			if p := <-seen; p <= lastPosition || p > lastPosition+10 {
				t.Errorf("position %d after %d", p, lastPosition)
			} else {
				lastPosition = p
			}
			e, err := db.AllocateEvent()
			must(t, err)
			r, err := db.AllocateRoom()
			must(t, err)
			if e <= lastEvent || r <= lastRoom || e > 10 || r > 10 {
				t.Errorf("event %d after %d, room %d after %d", e, lastEvent, r, lastRoom)
			}
			lastEvent, lastRoom = e, r
			must(t, db.Close())
			if err := db.Write(ctx, func(*storage.Tx) error { return nil }); !errors.Is(err, storage.ErrClosed) {
				t.Errorf("write after close: %v", err)
			}
			late := make(chan error)
			db.WriteAsync(func(*storage.Tx) error { return nil }, func(err error) { late <- err })
			if err := <-late; !errors.Is(err, storage.ErrClosed) {
				t.Errorf("async write after close: %v", err)
			}
		}
	})
}

// TestBlocks takes more numbers than a block has, from many goroutines.
func TestBlocks(t *testing.T) {
	db := storagetest.Open(t)
	var mu sync.Mutex
	seen := map[storage.RoomNID]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				n, err := db.AllocateRoom()
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if seen[n] {
					t.Errorf("%d twice", n)
				}
				seen[n] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestDiskFull checks that writes that hit a full disk get an error and leave nothing, and that the rest goes on.
func TestDiskFull(t *testing.T) {
	db := storagetest.Open(t)
	table(t, db)
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(ctx, `CREATE TABLE big (n INTEGER PRIMARY KEY, data BLOB NOT NULL)`)
		return err
	}))
	storage.LimitPages(db, 200)
	release := hold(t, db)
	type answer struct {
		n   int
		err error
	}
	answers := make(chan answer, 30)
	for n := range 30 {
		db.WriteAsync(func(tx *storage.Tx) error {
			if err := insert(tx, n, n); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, `INSERT INTO big (data) VALUES ($1)`, make([]byte, 50_000))
			return err
		}, func(err error) { answers <- answer{n, err} })
	}
	release()
	want := []int{}
	failed := 0
	for range 30 {
		if a := <-answers; a.err == nil {
			want = append(want, a.n)
		} else {
			failed++
		}
	}
	if failed == 0 {
		t.Fatal("the disk was not full")
	}
	if d := cmp.Diff(want, numbers(t, db)); d != "" {
		t.Errorf("acknowledged, but other rows are there: %s", d)
	}
	storage.LimitPages(db, 100_000)
	must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 1000, 1000) }))
}

// TestReadSnapshot checks that Read sees one state, and writes nothing.
func TestReadSnapshot(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 1, 1) }))
		must(t, db.Read(ctx, func(tx *storage.Tx) error {
			before := numbers(t, tx)
			must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 2, 2) }))
			if d := cmp.Diff(before, numbers(t, tx)); d != "" {
				t.Error(d)
			}
			return nil
		}))
		if d := cmp.Diff([]int{1, 2}, numbers(t, db)); d != "" {
			t.Error(d)
		}
		if err := db.Read(ctx, func(tx *storage.Tx) error { return insert(tx, 3, 3) }); err == nil {
			t.Error("a snapshot was written to")
		}
		if err := db.Read(ctx, func(tx *storage.Tx) error { _, err := tx.NextPosition(); return err }); err == nil {
			t.Error("a snapshot gave a position")
		}
		must(t, db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, 4, 4) }))
	})
}

// TestCloseBusy closes under load: what was acknowledged is there.
func TestCloseBusy(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		db, err := storage.Open(ctx, storage.Options{DSN: dsn})
		must(t, err)
		table(t, db)
		var mu sync.Mutex
		want := []int{}
		var wg sync.WaitGroup
		for w := range 6 {
			wg.Go(func() {
				for i := range 1_000_000 {
					n := w*1_000_000 + i
					err := db.Write(ctx, func(tx *storage.Tx) error { return insert(tx, n, 0) })
					if errors.Is(err, storage.ErrClosed) {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					want = append(want, n)
					mu.Unlock()
				}
			})
		}
		time.Sleep(50 * time.Millisecond) // long enough that some are under way; the result holds for any time
		must(t, db.Close())
		wg.Wait()
		db = storagetest.OpenDSN(t, dsn)
		slices.Sort(want)
		if d := cmp.Diff(want, numbers(t, db)); d != "" {
			t.Error(d)
		}
	})
}

func TestBadDSN(t *testing.T) {
	for _, dsn := range []string{"", "mysql://secret@x", "sqlite:", "sqlite::memory:", "secret"} {
		_, err := storage.Open(ctx, storage.Options{DSN: dsn})
		if err == nil || strings.Contains(err.Error(), "secret@") {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}

// TestObserve checks that every write is counted in one transaction.
func TestObserve(t *testing.T) {
	storagetest.EachDSN(t, func(t *testing.T, dsn string) {
		var writes, failed, commits atomic.Int64
		db, err := storage.Open(ctx, storage.Options{DSN: dsn, Observe: func(c storage.Commit) {
			writes.Add(int64(c.Writes))
			failed.Add(int64(c.Failed))
			commits.Add(1)
			if c.Took <= 0 || c.Took > time.Minute {
				t.Errorf("took %v", c.Took)
			}
		}})
		must(t, err)
		before := writes.Load()
		release := hold(t, db)
		done := make(chan error, 30)
		for i := range 30 {
			db.WriteAsync(func(*storage.Tx) error {
				if i%3 == 0 {
					return errors.New("no")
				}
				return nil
			}, func(err error) { done <- err })
		}
		if n := db.Queued(); n != 30 {
			t.Errorf("%d queued", n)
		}
		commits.Store(0)
		release()
		for range 30 {
			<-done
		}
		if w, f := writes.Load()-before, failed.Load(); w != 31 || f != 10 {
			t.Errorf("%d writes, %d failed", w, f)
		}
		if strings.HasPrefix(dsn, "sqlite") && commits.Load() > 4 {
			t.Errorf("%d commits: writes are not grouped", commits.Load())
		}
		must(t, db.Close())
	})
}
