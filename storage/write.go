package storage

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Tx is a transaction under way, or a snapshot. It must not be used after its function returned.
type Tx struct {
	session
	stream  *stream // nil in a snapshot
	span    *span   // the positions taken, nil before the first
	visible []func()
}

// context keeps a write that was started from being ended half way by its caller going away:
// it is short, and others may be in the same commit.
func (tx *Tx) context(ctx context.Context) context.Context {
	if tx.stream != nil {
		return context.Background()
	}
	return ctx
}

// Query reads within the transaction. Results left open are closed with it.
func (tx *Tx) Query(ctx context.Context, query string, args ...any) (*Rows, error) {
	cur, err := tx.query(tx.context(ctx), query, args)
	if err != nil {
		return nil, err
	}
	return &Rows{cur: cur}, nil
}

// QueryRow is Query for at most one row.
func (tx *Tx) QueryRow(ctx context.Context, query string, args ...any) *Row {
	rows, err := tx.Query(ctx, query, args...)
	return &Row{rows, err}
}

// Exec runs a statement and returns the number of rows it changed.
// After an error the transaction can only be given up, by returning the error.
func (tx *Tx) Exec(ctx context.Context, query string, args ...any) (int64, error) {
	return tx.exec(tx.context(ctx), query, args)
}

// ExecBatch runs one statement once for each list of arguments: on PostgreSQL in one round trip.
func (tx *Tx) ExecBatch(ctx context.Context, query string, argLists [][]any) error {
	return tx.execBatch(tx.context(ctx), query, argLists)
}

// NextPosition gives the transaction a new stream position. It becomes visible
// to readers when the transaction has committed and no lower one is still under way.
func (tx *Tx) NextPosition() (Position, error) {
	if tx.stream == nil {
		return 0, fmt.Errorf("storage: position asked for in a snapshot")
	}
	return tx.stream.next(tx)
}

// OnVisible calls fn after the commit, once Current has reached all positions of this transaction.
// Calls happen in order of position, from one goroutine: fn must not block.
func (tx *Tx) OnVisible(fn func()) { tx.visible = append(tx.visible, fn) }

// Write runs fn in a transaction and returns when it is durable. If fn returns
// an error all its effects are undone, and only its own, and Write returns that error.
// A panic in fn is returned as an error. fn may be run again (serialisation failure on
// PostgreSQL), so it must not have effects outside tx, and must not wait for anything but
// the database; in particular not for another Write.
//
// If ctx ends before fn was started, it never is; once started it is finished.
func (db *DB) Write(ctx context.Context, fn func(tx *Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r := &request{fn: fn, answer: make(chan error, 1)}
	db.engine.write(r)
	select {
	case err := <-r.answer:
		return err
	case <-ctx.Done():
		if r.state.CompareAndSwap(queued, dropped) {
			return ctx.Err()
		}
		return <-r.answer
	}
}

// WriteAsync is Write that does not wait: done is called once, after the
// commit or the failure, from the goroutine that also makes the OnVisible calls: it must not block.
// Calls from one goroutine commit in the order they were made. WriteAsync blocks while very many are queued.
func (db *DB) WriteAsync(fn func(tx *Tx) error, done func(error)) {
	db.engine.write(&request{fn: fn, done: done, ordered: true})
}

// request is a write on its way.
type request struct {
	fn      func(*Tx) error
	ordered bool         // commits after the ordered requests before it
	answer  chan error   // for Write
	done    func(error)  // for WriteAsync
	state   atomic.Int32 // queued, started or dropped
	tx      *Tx          // of the run that counts
	err     error        // what fn returned
}

const (
	queued = iota
	started
	dropped
)

// batchOf adds to a request those that wait behind it.
func batchOf(first *request, queue <-chan *request, most int) []*request {
	batch := []*request{first}
	for len(batch) < most {
		select {
		case r, ok := <-queue:
			if !ok {
				return batch
			}
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// start says whether the request is to be run.
func (r *request) start() bool {
	return r.state.CompareAndSwap(queued, started)
}

// committer is what the engines share in running and answering requests.
type committer struct {
	stream  *stream
	calls   *caller
	log     zerolog.Logger
	observe func(Commit) // may be nil
}

// run calls a request's function on a session within a transaction.
func (c committer) run(r *request, s session) {
	r.tx = &Tx{session: s, stream: c.stream}
	returned := false
	defer func() {
		p := recover()
		switch {
		case p != nil:
			c.log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("panic in a transaction")
			r.err = fmt.Errorf("storage: panic in a transaction: %v", p)
		case !returned:
			// t.Fatal within it. The goroutine that writes for everybody is gone: better than to hang is to say so.
			go panic("storage: a transaction's function ended its goroutine (runtime.Goexit, t.Fatal)")
		}
	}()
	r.err = r.fn(r.tx)
	returned = true
}

// giveUp forgets what a run took that is undone and may be repeated.
func (c committer) giveUp(r *request) {
	if r.tx != nil {
		c.stream.finish([]*Tx{r.tx}, false)
		r.tx = nil
	}
}

// finish answers requests after the end of their transaction: those without an error of their own have committed.
func (c committer) finish(rs []*request, began time.Time) {
	if c.observe != nil && len(rs) > 0 {
		o := Commit{Writes: len(rs), Took: time.Since(began)}
		for _, r := range rs {
			if r.err != nil {
				o.Failed++
			}
		}
		c.observe(o)
	}
	c.answer(rs)
}

func (c committer) answer(rs []*request) {
	good := make([]*Tx, 0, len(rs))
	for _, r := range rs {
		if r.err != nil {
			c.giveUp(r)
		} else if r.tx != nil {
			good = append(good, r.tx)
		}
	}
	c.stream.finish(good, true)
	for _, r := range rs {
		if r.answer != nil {
			r.answer <- r.err
		} else {
			c.calls.add(func() { r.done(r.err) })
		}
	}
}

// caller makes calls one after the other on a goroutine of its own.
type caller struct {
	log    zerolog.Logger
	mu     sync.Mutex
	wake   sync.Cond
	queue  []func()
	closed bool
	gone   bool // the loop has ended
	ended  chan struct{}
}

func newCaller(log zerolog.Logger) *caller {
	c := &caller{log: log, ended: make(chan struct{})}
	c.wake.L = &c.mu
	go c.loop()
	return c
}

// add queues calls. The queue is bounded by the writes under way: each adds a few calls, and
// the engines hold back further writes.
func (c *caller) add(fns ...func()) {
	if len(fns) == 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone { // to answer a write after Close
		go func() {
			for _, fn := range fns {
				c.call(fn)
			}
		}()
		return
	}
	c.queue = append(c.queue, fns...)
	c.wake.Signal()
}

func (c *caller) loop() {
	defer close(c.ended)
	var spare []func()
	for {
		c.mu.Lock()
		for len(c.queue) == 0 && !c.closed {
			c.wake.Wait()
		}
		calls := c.queue
		c.queue = spare[:0]
		c.gone = len(calls) == 0
		c.mu.Unlock()
		if len(calls) == 0 {
			return
		}
		for i, fn := range calls {
			c.call(fn)
			calls[i] = nil
		}
		spare = calls
	}
}

func (c *caller) call(fn func()) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error().Interface("panic", p).Bytes("stack", debug.Stack()).Msg("panic after a commit")
		}
	}()
	fn()
}

// close makes the calls still queued and ends.
func (c *caller) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wake.Signal()
	<-c.ended
}
