package storage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Limits of the PostgreSQL engine.
const (
	postgresReaders = 12
	postgresWriters = 6    // for Write; WriteAsync has one more of its own
	postgresQueue   = 4096 // writes waiting, of each kind
	postgresBatch   = 64   // ordered writes in one commit
	postgresRetries = 50   // runs of one write before its conflict is returned
)

// postgresEngine runs each Write in a transaction of its own on one of a few connections;
// the server groups their commits. Writes that keep an order go through one connection, several to a
// transaction. All are SERIALIZABLE and repeated on a conflict, so that a function sees what it
// would see on SQLite: as if it ran alone.
type postgresEngine struct {
	commit  committer
	readers *pgxpool.Pool
	writers *pgxpool.Pool

	mu      sync.RWMutex // held to send on the queues, so that close can close them
	closed  bool
	queue   chan *request
	ordered chan *request
	done    sync.WaitGroup
}

func openPostgresEngine(ctx context.Context, dsn string, c committer) (*postgresEngine, error) {
	pool := func(size int32, params map[string]string) (*pgxpool.Pool, error) {
		cfg, err := pgxpool.ParseConfig(dsn)
		if err != nil {
			return nil, err
		}
		cfg.MaxConns = size
		if cfg.ConnConfig.ConnectTimeout == 0 {
			cfg.ConnConfig.ConnectTimeout = 10 * time.Second
		}
		cfg.ConnConfig.RuntimeParams["application_name"] = "hanok"
		for k, v := range params {
			cfg.ConnConfig.RuntimeParams[k] = v
		}
		return pgxpool.NewWithConfig(ctx, cfg)
	}
	readers, err := pool(postgresReaders, map[string]string{"default_transaction_read_only": "on"})
	if err != nil {
		return nil, err
	}
	writers, err := pool(postgresWriters+1, map[string]string{
		"default_transaction_isolation": "serializable",
		"synchronous_commit":            "on",
	})
	if err != nil {
		readers.Close()
		return nil, err
	}
	if err := writers.Ping(ctx); err != nil {
		readers.Close()
		writers.Close()
		return nil, err
	}
	e := &postgresEngine{
		commit: c, readers: readers, writers: writers,
		queue:   make(chan *request, postgresQueue),
		ordered: make(chan *request, postgresQueue),
	}
	for range postgresWriters {
		e.done.Go(e.writeLoop)
	}
	e.done.Go(e.orderedLoop)
	return e, nil
}

// query reads the whole result and gives the connection back: a caller that asks
// something else for each row does not hold one while it waits for another.
func (e *postgresEngine) query(ctx context.Context, query string, args []any) (*Rows, error) {
	c, err := e.readers.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Release()
	s := &postgresSession{conn: c.Conn()}
	cur, err := s.query(ctx, query, args)
	if err != nil {
		return nil, err
	}
	s.closeOpen()
	return &Rows{cur: cur}, nil
}

func (e *postgresEngine) snapshot(ctx context.Context, fn func(session) error) error {
	c, err := e.readers.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	tx, err := c.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly})
	if err != nil {
		return err
	}
	s := &postgresSession{conn: c.Conn()}
	defer func() {
		s.closeOpen()
		tx.Rollback(context.WithoutCancel(ctx))
	}()
	return fn(s)
}

func (e *postgresEngine) write(r *request) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if e.closed {
		r.err = ErrClosed
		e.commit.answer([]*request{r})
		return
	}
	if r.ordered {
		e.ordered <- r
	} else {
		e.queue <- r
	}
}

func (e *postgresEngine) queued() int { return len(e.queue) + len(e.ordered) }

func (e *postgresEngine) writeLoop() {
	for r := range e.queue {
		if r.start() {
			e.runAlone(r)
		}
	}
}

// orderedLoop runs the writes that keep their order.
func (e *postgresEngine) orderedLoop() {
	for r := range e.ordered {
		batch := batchOf(r, e.ordered, postgresBatch)
		for _, r := range batch {
			r.start()
		}
		// All in one transaction, in the hope that none fails: a savepoint would cost each
		// two round trips. Otherwise one by one.
		began := time.Now()
		if len(batch) > 1 && e.attempt(batch...) == nil {
			e.commit.finish(batch, began)
			continue
		}
		for _, r := range batch {
			e.runAlone(r)
		}
	}
}

// runAlone runs a request in a transaction of its own, again if it conflicts with another, and answers it.
func (e *postgresEngine) runAlone(r *request) {
	began := time.Now()
	for try := range postgresRetries {
		r.err = e.attempt(r)
		if !isConflict(r.err) && (try > postgresWriters+1 || !errors.Is(r.err, errNotBegun)) {
			break
		}
		// A moment apart, so that the two do not meet again.
		time.Sleep(time.Duration(rand.Int64N(int64(min(try+1, 20)) * int64(time.Millisecond))))
	}
	e.commit.finish([]*request{r}, began)
}

// attempt runs requests in one transaction. After an error nothing of them is left.
func (e *postgresEngine) attempt(batch ...*request) error {
	ctx := context.Background()
	c, err := e.writers.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	s := &postgresSession{conn: c.Conn()}
	if _, err := c.Exec(ctx, "BEGIN"); err != nil {
		return fmt.Errorf("%w: %w", errNotBegun, err)
	}
	for _, r := range batch {
		e.commit.run(r, s)
		s.closeOpen()
		if err = r.err; err != nil {
			break
		}
	}
	if err == nil {
		var tag pgconn.CommandTag
		tag, err = c.Exec(ctx, "COMMIT")
		if err == nil && tag.String() != "COMMIT" {
			// The function ignored an error of a statement: the server rolled back.
			err = errors.New("postgres: the transaction had failed before its end")
		} else if err != nil {
			err = fmt.Errorf("commit: %w", err)
		}
	} else if !c.Conn().IsClosed() {
		if _, rollbackErr := c.Exec(ctx, "ROLLBACK"); rollbackErr != nil {
			c.Conn().Close(ctx)
		}
	}
	if err != nil {
		for _, r := range batch {
			e.commit.giveUp(r)
			r.err = nil
		}
	}
	return err
}

// errNotBegun is what an attempt returns that did nothing, usually because the server was restarted
// and the pool did not know yet.
var errNotBegun = errors.New("postgres: begin")

// isConflict says whether a transaction failed only because of another at the same time.
func isConflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}

func (e *postgresEngine) close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	close(e.queue)
	close(e.ordered)
	e.mu.Unlock()
	e.done.Wait()
	e.writers.Close()
	e.readers.Close()
	return nil
}
