package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"hanok/internal/wake"
)

// Limits of the SQLite engine.
const (
	sqliteReaders   = 8                     // connections of the reading pool, opened as needed
	sqliteQueue     = 4096                  // writes waiting
	sqliteBatch     = 256                   // writes in one commit
	sqliteBatchTime = 20 * time.Millisecond // after which a batch takes no further write
	// checkpointEvery is how many commits the log may grow between two checkpoints.
	checkpointEvery = 128
	// idleAfter is how long nothing is written until the log is emptied, at least.
	idleAfter = 2 * time.Second
	// logLimit is the size of the log in pages at which the writer stops for a checkpoint.
	logLimit = 16_384
)

// sqliteEngine has one writing connection, owned by one goroutine, and a pool of reading ones.
type sqliteEngine struct {
	file   sqliteFile
	sync   string // the pragma for connections that write
	commit committer
	gather func() // may be nil
	writer *sqliteConn

	mu     sync.RWMutex // held to send on queue, so that close can close it
	closed bool
	queue  chan *request

	readers *readers

	checkpoint chan struct{} // asks for one
	restart    chan string   // asks the writer to let the log start over: RESTART or TRUNCATE
	commits    atomic.Int64
	done       sync.WaitGroup
	stop       chan struct{}
}

// openSQLiteEngine opens the writing connection; the schema is up to migrate.
func openSQLiteEngine(path string, o Options, c committer) (*sqliteEngine, error) {
	if path == "" || strings.HasPrefix(path, ":memory:") {
		return nil, errors.New("sqlite: a file path is needed")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, err
	}
	if err := createPrivate(path); err != nil {
		return nil, err
	}
	file := sqliteFile{path: path}
	if o.Exclusive {
		file.vfs = exclusiveVFS
	}
	w, err := file.open(false)
	if err != nil {
		return nil, err
	}
	e := &sqliteEngine{
		file: file, sync: `PRAGMA synchronous = FULL`, commit: c, gather: o.Gather, writer: w,
		queue:      make(chan *request, sqliteQueue),
		readers:    newReaders(file),
		checkpoint: make(chan struct{}, 1),
		restart:    make(chan string, 1),
		stop:       make(chan struct{}),
	}
	if o.NoSync {
		e.sync = `PRAGMA synchronous = OFF`
	}
	// synchronous=FULL: a commit is on disk when it is acknowledged. Checkpoints
	// are made beside the writer, so it makes none itself. temp_store: without it each batch
	// of savepoints writes the pages it changes to a temporary file as well.
	// secure_delete: what is erased is overwritten.
	for _, q := range []string{
		`PRAGMA journal_mode = WAL`, e.sync, `PRAGMA foreign_keys = OFF`,
		`PRAGMA temp_store = MEMORY`, `PRAGMA cache_size = -8000`, `PRAGMA wal_autocheckpoint = 0`,
		`PRAGMA journal_size_limit = 67108864`, `PRAGMA secure_delete = ON`,
	} {
		if err := w.pragma(q); err != nil {
			w.close()
			return nil, err
		}
	}
	e.done.Add(2)
	go e.writeLoop()
	go e.checkpointLoop()
	return e, nil
}

// pragma runs a statement for its effect.
func (c *sqliteConn) pragma(query string) error {
	_, err := c.exec(context.Background(), query, nil)
	return err
}

func (e *sqliteEngine) query(ctx context.Context, query string, args []any) (*Rows, error) {
	c, err := e.readers.acquire(ctx)
	if err != nil {
		return nil, err
	}
	cur, err := c.query(ctx, query, args)
	if err != nil {
		e.readers.release(c)
		return nil, err
	}
	return &Rows{cur: cur, release: func() { e.readers.release(c) }}, nil
}

func (e *sqliteEngine) snapshot(ctx context.Context, fn func(session) error) error {
	c, err := e.readers.acquire(ctx)
	if err != nil {
		return err
	}
	defer e.readers.release(c)
	if err := c.pragma(`BEGIN`); err != nil {
		return err
	}
	defer func() {
		c.resetAll()
		c.pragma(`COMMIT`)
	}()
	return fn(c)
}

func (e *sqliteEngine) write(r *request) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		r.err = ErrClosed
		e.commit.answer([]*request{r})
		return
	}
	e.queue <- r
}

func (e *sqliteEngine) queued() int { return len(e.queue) }

// writeLoop takes what is queued, runs it in one transaction and answers.
func (e *sqliteEngine) writeLoop() {
	defer e.done.Done()
	for {
		var r *request
		var ok bool
		select {
		case r, ok = <-e.queue:
			if !ok {
				return
			}
		case mode := <-e.restart:
			e.restartLog(mode)
			continue
		}
		if e.gather != nil {
			e.gather()
		}
		batch := batchOf(r, e.queue, sqliteBatch)
		for len(batch) > 0 {
			batch = e.runBatch(batch)
			if e.commits.Add(1)%checkpointEvery == 0 {
				wake.Up(e.checkpoint)
			}
		}
	}
}

// runBatch runs requests in one transaction and answers them. It returns those that it had no time for.
func (e *sqliteEngine) runBatch(batch []*request) (rest []*request) {
	w := e.writer
	began := time.Now()
	if err := w.pragma(`BEGIN IMMEDIATE`); err != nil {
		for _, r := range batch {
			r.err = err
		}
		e.commit.finish(batch, began)
		return nil
	}
	ran := make([]*request, 0, len(batch))
	alone := len(batch) == 1 // needs no savepoint: to undo it is to roll back
	for i, r := range batch {
		if i > 0 && time.Since(began) > sqliteBatchTime {
			rest = batch[i:]
			break
		}
		if !r.start() {
			continue
		}
		ran = append(ran, r)
		if !alone {
			if r.err = w.pragma(`SAVEPOINT w`); r.err != nil {
				continue
			}
		}
		e.commit.run(r, w)
		w.resetAll()
		if !w.inTransaction() {
			// SQLite gave up the whole transaction (disk full, I/O error): nothing of it will be there.
			if r.err == nil {
				r.err = errors.New("sqlite: transaction ended within a write")
			}
			for _, other := range ran {
				if other.err == nil {
					other.err = fmt.Errorf("lost with another write: %w", r.err)
				}
			}
			e.commit.finish(ran, began)
			return batch[i+1:]
		}
		if alone {
			break
		}
		if r.err != nil {
			if err := w.pragma(`ROLLBACK TO w`); err != nil {
				r.err = errors.Join(r.err, err)
			}
		}
		if err := w.pragma(`RELEASE w`); err != nil && r.err == nil {
			r.err = err
		}
	}
	var err error
	if alone && (len(ran) == 0 || ran[0].err != nil) {
		err = w.pragma(`ROLLBACK`)
	} else if err = w.pragma(`COMMIT`); err != nil {
		for _, r := range ran {
			if r.err == nil {
				r.err = fmt.Errorf("commit: %w", err)
			}
		}
	}
	if w.inTransaction() {
		w.pragma(`ROLLBACK`)
	}
	e.commit.finish(ran, began)
	return rest
}

// restartLog finishes a checkpoint while nothing is written, so that the log starts over. It waits
// for readers of the log, but not for long: all writes wait for it.
func (e *sqliteEngine) restartLog(mode string) {
	w := e.writer
	w.busyTimeout(200 * time.Millisecond)
	defer w.busyTimeout(busyTimeout)
	if err := w.pragma(`PRAGMA wal_checkpoint(` + mode + `)`); err != nil {
		e.commit.log.Warn().Err(err).Msg("the log cannot start over")
	}
}

// checkpointLoop moves the log into the database beside the writer, so that no write waits for it. When
// nothing was written for a while it also empties the log, so that what was erased is gone from there too.
func (e *sqliteEngine) checkpointLoop() {
	defer e.done.Done()
	var c *sqliteConn
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	idle := time.NewTicker(idleAfter)
	defer idle.Stop()
	limit := int64(logLimit)
	var before, emptied int64 // commits at the last tick, and when the log was emptied
	for {
		select {
		case <-e.stop:
			return
		case <-idle.C:
			if now := e.commits.Load(); now != before {
				before = now
			} else if now != emptied {
				emptied = now
				e.askRestart("TRUNCATE")
			}
			continue
		case <-e.checkpoint:
		}
		if c == nil {
			var err error
			if c, err = e.file.open(false); err != nil {
				e.commit.log.Error().Err(err).Msg("no connection for checkpoints")
				continue
			}
			if err := c.pragma(e.sync); err != nil {
				e.commit.log.Error().Err(err).Msg("checkpoint connection")
			}
		}
		var busy, pages, moved int64
		row := Row{rows: c.rows(`PRAGMA wal_checkpoint(PASSIVE)`)}
		if err := row.Scan(&busy, &pages, &moved); err != nil {
			e.commit.log.Error().Err(err).Msg("checkpoint")
			continue
		}
		// The log starts over by itself when a write finds all of it moved and nobody
		// reading it. Under load that may not happen, and the writer has to see to it; if a long
		// read keeps even that from working, not again soon.
		if pages < logLimit {
			limit = logLimit
		} else if pages > limit {
			limit = 2 * pages
			e.askRestart("RESTART")
		}
	}
}

func (e *sqliteEngine) askRestart(mode string) {
	select {
	case e.restart <- mode:
	default: // asked already
	}
}

// rows is query without arguments, for PRAGMA.
func (c *sqliteConn) rows(query string) *Rows {
	cur, err := c.query(context.Background(), query, nil)
	if err != nil {
		return &Rows{err: err, closed: true}
	}
	return &Rows{cur: cur}
}

func (e *sqliteEngine) close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.queue)
	e.mu.Unlock()
	close(e.stop)
	e.done.Wait()
	if n := e.readers.close(); n > 0 {
		e.commit.log.Warn().Int("results", n).Msg("results that were never closed")
	}
	// The last connection to close checkpoints and removes the log.
	return e.writer.close()
}
