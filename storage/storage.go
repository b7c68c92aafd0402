// Package storage is the database: one schema, one SQL text, two engines.
//
// DB is opened on SQLite (embedded) or PostgreSQL. All writes go through
// Write; concurrent calls are grouped into one commit where the engine gains by it, so
// durability costs one fsync per batch. Reads use a pool.
//
// The SQL of each concept is in one file of its own (events.go, rooms.go,
// devices.go, ...): functions that take a Querier to read and a *Tx to write.
// Below them: write.go (grouping and answering writes), positions.go (the stream
// and what is visible of it), numbers.go and names.go (what is interned), sqlite*.go and
// postgres*.go (the engines), dialect.go and migrate.go (the schema).
package storage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/rs/zerolog"
)

// ErrNotFound is what every Get function returns when there is no such row.
// Row.Scan returns it too, so a Get function only has to wrap it.
var ErrNotFound = errors.New("storage: not found")

// ErrClosed is what a write gets after Close.
var ErrClosed = errors.New("storage: closed")

// Numbers for what is interned. They are stable, never reused and mean nothing outside this database.
type (
	EventNID int64
	RoomNID  int64
	// NameNID numbers event types, state keys and user IDs alike, so that the
	// state key of a membership event is the number of its user.
	NameNID int64
)

// Position is a place in the one stream of everything that readers follow:
// events, to-device messages, account data, receipts, device lists, typing.
type Position int64

// EndOfStream comes after every position.
const EndOfStream Position = math.MaxInt64

// Options say which database to open.
type Options struct {
	// DSN is "sqlite:PATH" or a postgres:// URL.
	DSN string
	Log zerolog.Logger
	// Observe, if set, is told of every transaction after its end. It must not block.
	Observe func(Commit)
	// NoSync leaves it to the operating system when a commit reaches the disk: it survives the end of the process, but not
	// that of the machine. For tests that kill no machine; SQLite only.
	NoSync bool
	// Exclusive says that no other process opens the database, as tools for backups or a second server would: what
	// connections lock stays in the memory of this one. For tests; SQLite only.
	Exclusive bool
	// Gather, if set, is called when a write has come and before those that came with it are looked for. A test that
	// waits there until nothing else moves gets the same writes into one commit each time; SQLite only.
	Gather func()
}

// Commit is what a transaction did that held one or more writes.
type Commit struct {
	Writes, Failed int
	Took           time.Duration // from its begin to the durable end
}

// engine is what SQLite and PostgreSQL do differently.
type engine interface {
	// query reads, on any connection.
	query(ctx context.Context, query string, args []any) (*Rows, error)
	// snapshot runs fn on one consistent snapshot.
	snapshot(ctx context.Context, fn func(session) error) error
	// write queues a request; the engine answers it with request.finish. It blocks while the queue is full.
	write(*request)
	// queued is the number of requests waiting.
	queued() int
	// migrate brings the schema up to date.
	migrate(ctx context.Context, all []migration) error
	// close answers what is queued and closes the connections.
	close() error
}

// DB is an open database.
type DB struct {
	log    zerolog.Logger
	engine engine
	calls  *caller
	stream *stream
	names  *names

	changes changes

	positions, eventNumbers, roomNumbers, nameNumbers, nodeNumbers *numbers
}

// Open opens or creates the database and brings its schema up to date.
func Open(ctx context.Context, o Options) (*DB, error) {
	db := &DB{log: o.Log, calls: newCaller(o.Log)}
	db.stream = newStream(db.calls)
	db.stream.changes = &db.changes
	commit := committer{stream: db.stream, calls: db.calls, log: o.Log, observe: o.Observe}
	var err error
	if path, ok := strings.CutPrefix(o.DSN, "sqlite:"); ok {
		db.engine, err = openSQLiteEngine(path, o, commit)
	} else if s := scheme(o.DSN); s == "postgres" || s == "postgresql" {
		db.engine, err = openPostgresEngine(ctx, o.DSN, commit)
	} else {
		err = fmt.Errorf("the database is sqlite:PATH or postgres://..., not %q", scheme(o.DSN))
	}
	if err != nil {
		db.calls.close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := db.start(ctx); err != nil {
		db.engine.close()
		db.calls.close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return db, nil
}

// scheme is the part of a DSN that may be shown: the rest can hold a password.
func scheme(dsn string) string {
	s, _, _ := strings.Cut(dsn, ":")
	return s
}

func (db *DB) start(ctx context.Context) error {
	all, err := migrations()
	if err != nil {
		return err
	}
	if err := db.engine.migrate(ctx, all); err != nil {
		return err
	}
	for _, n := range []struct {
		to    **numbers
		name  string
		block int64
	}{
		{&db.positions, "position", 1 << 20},
		{&db.eventNumbers, "event", 1 << 16},
		{&db.roomNumbers, "room", 1 << 10},
		{&db.nameNumbers, "name", 1 << 12},
		{&db.nodeNumbers, "state_node", 1 << 16},
	} {
		if *n.to, err = newNumbers(ctx, db, n.name, n.block); err != nil {
			return err
		}
	}
	db.stream.start(db.positions)
	db.changes.start(db.Current())
	db.names = newNames(db)
	return nil
}

// Close finishes the writes under way and closes the database.
func (db *DB) Close() error {
	for _, n := range []*numbers{db.positions, db.eventNumbers, db.roomNumbers, db.nameNumbers, db.nodeNumbers} {
		if err := n.giveBack(); err != nil {
			db.log.Warn().Err(err).Msg("numbers not given back")
		}
	}
	err := db.engine.close()
	db.calls.close()
	return err
}

// Query reads outside of a transaction. On SQLite the result holds a connection until it is closed.
func (db *DB) Query(ctx context.Context, query string, args ...any) (*Rows, error) {
	return db.engine.query(ctx, query, args)
}

// QueryRow is Query for at most one row.
func (db *DB) QueryRow(ctx context.Context, query string, args ...any) *Row {
	rows, err := db.Query(ctx, query, args...)
	return &Row{rows, err}
}

// Queued is the number of writes that wait for their transaction to begin.
func (db *DB) Queued() int { return db.engine.queued() }

// Read runs fn on one consistent snapshot, read-only.
func (db *DB) Read(ctx context.Context, fn func(tx *Tx) error) error {
	return db.engine.snapshot(ctx, func(s session) error { return fn(&Tx{session: s}) })
}

// AllocateEvent and its like hand out unique numbers without a round trip: blocks
// are reserved in the database ahead. An event's number is greater than those of its auth events
// also if other processes write to the database: they are given as below.
func (db *DB) AllocateEvent(below ...EventNID) (EventNID, error) {
	above := EventNID(0)
	for _, b := range below {
		above = max(above, b)
	}
	n, err := db.eventNumbers.take(int64(above))
	return EventNID(n), err
}

// AllocateRoom: see AllocateEvent.
func (db *DB) AllocateRoom() (RoomNID, error) {
	n, err := db.roomNumbers.take(0)
	return RoomNID(n), err
}

// AllocateStateNode: see AllocateEvent.
func (db *DB) AllocateStateNode() (int64, error) { return db.nodeNumbers.take(0) }
