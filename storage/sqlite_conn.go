package storage

import (
	"container/list"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"modernc.org/libc"
	_ "modernc.org/sqlite" // its init patches the library it wraps
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteConn is one connection, used by one goroutine at a time.
//
// It calls the SQLite API itself and not through database/sql and its driver:
// a write is a handful of statements of a few microseconds each, and the
// column names, declared types, context watchers and copies that the driver
// makes for each of them cost as much as the statement.
type sqliteConn struct {
	tls    *libc.TLS
	db     uintptr
	out    uintptr // room for two pointers, where calls put their results
	byText map[string]*list.Element
	lru    *list.List // of *sqliteStmt, most recently used first
	open   map[*sqliteCursor]struct{}

	values []value // scratch for bind
}

// maxStatements bounds the prepared statements of a connection.
const maxStatements = 400

// sqliteStmt is a prepared statement.
type sqliteStmt struct {
	query   string
	handle  uintptr
	args    []int // args[i] is the index of the argument for parameter i+1
	nargs   int   // arguments the query refers to
	columns int
	busy    bool
	buf     uintptr // the bound texts and blobs, kept until the next use
	bufLen  int
}

// sqliteError is a failure that SQLite reported.
type sqliteError struct {
	Code int32 // extended result code
	Text string
}

func (e *sqliteError) Error() string {
	return fmt.Sprintf("sqlite: %s (%d)", e.Text, e.Code)
}

// sqliteFile is a database to connect to.
type sqliteFile struct {
	path string
	vfs  string // the part of SQLite that deals with files; empty: the default one
}

// exclusiveVFS keeps locks and the index of the log in the memory of one process.
const exclusiveVFS = "unix-excl"

func (f sqliteFile) open(readOnly bool) (*sqliteConn, error) {
	c := &sqliteConn{
		tls:    libc.NewTLS(),
		byText: make(map[string]*list.Element),
		lru:    list.New(),
		open:   make(map[*sqliteCursor]struct{}),
	}
	name, err := libc.CString(f.path)
	if err != nil {
		c.tls.Close()
		return nil, err
	}
	defer libc.Xfree(c.tls, name)
	var vfs uintptr
	if f.vfs != "" {
		if vfs, err = libc.CString(f.vfs); err != nil {
			c.tls.Close()
			return nil, err
		}
		defer libc.Xfree(c.tls, vfs)
	}
	c.out = libc.Xmalloc(c.tls, 16)
	if c.out == 0 {
		c.tls.Close()
		return nil, fmt.Errorf("sqlite: out of memory")
	}
	// A connection stays with one goroutine at a time, so it needs no mutex.
	flags := int32(sqlite3.SQLITE_OPEN_NOMUTEX)
	if readOnly {
		flags |= sqlite3.SQLITE_OPEN_READONLY
	} else {
		flags |= sqlite3.SQLITE_OPEN_READWRITE | sqlite3.SQLITE_OPEN_CREATE
	}
	rc := sqlite3.Xsqlite3_open_v2(c.tls, name, c.out, flags, vfs)
	c.db = *(*uintptr)(ptr(c.out))
	if rc != sqlite3.SQLITE_OK {
		err := c.errorFor(rc)
		c.close()
		return nil, fmt.Errorf("open %s: %w", f.path, err)
	}
	sqlite3.Xsqlite3_extended_result_codes(c.tls, c.db, 1)
	c.busyTimeout(busyTimeout)
	return c, nil
}

// busyTimeout is how long a statement waits for another process or connection.
const busyTimeout = 10 * time.Second

func (c *sqliteConn) busyTimeout(d time.Duration) {
	sqlite3.Xsqlite3_busy_timeout(c.tls, c.db, int32(d.Milliseconds()))
}

// ptr makes a pointer of an address in SQLite's memory, which the garbage collector does not manage.
func ptr(addr uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&addr)) }

func (c *sqliteConn) close() error {
	c.resetAll()
	for e := c.lru.Front(); e != nil; e = e.Next() {
		c.finalize(e.Value.(*sqliteStmt))
	}
	var err error
	if c.db != 0 {
		if rc := sqlite3.Xsqlite3_close_v2(c.tls, c.db); rc != sqlite3.SQLITE_OK {
			err = &sqliteError{rc, "close"}
		}
		c.db = 0
	}
	libc.Xfree(c.tls, c.out)
	c.tls.Close()
	return err
}

func (c *sqliteConn) errorFor(rc int32) error {
	text := "out of memory"
	if c.db != 0 {
		text = libc.GoString(sqlite3.Xsqlite3_errmsg(c.tls, c.db))
	}
	return &sqliteError{rc, text}
}

// inTransaction says whether a transaction is open: SQLite ends it by itself after some failures.
func (c *sqliteConn) inTransaction() bool {
	return sqlite3.Xsqlite3_get_autocommit(c.tls, c.db) == 0
}

// prepare returns the statement for a query, from the cache unless that one is in use.
func (c *sqliteConn) prepare(query string) (*sqliteStmt, error) {
	if e, ok := c.byText[query]; ok {
		if s := e.Value.(*sqliteStmt); !s.busy {
			c.lru.MoveToFront(e)
			return s, nil
		}
		return c.compile(query)
	}
	s, err := c.compile(query)
	if err != nil {
		return nil, err
	}
	c.byText[query] = c.lru.PushFront(s)
	if c.lru.Len() > maxStatements {
		for e := c.lru.Back(); e != nil; e = e.Prev() {
			if old := e.Value.(*sqliteStmt); !old.busy && old != s {
				c.lru.Remove(e)
				delete(c.byText, old.query)
				c.finalize(old)
				break
			}
		}
	}
	return s, nil
}

func (c *sqliteConn) compile(query string) (*sqliteStmt, error) {
	text, err := libc.CString(query)
	if err != nil {
		return nil, err
	}
	defer libc.Xfree(c.tls, text)
	rc := sqlite3.Xsqlite3_prepare_v3(c.tls, c.db, text, int32(len(query)+1), sqlite3.SQLITE_PREPARE_PERSISTENT, c.out, c.out+8)
	if rc != sqlite3.SQLITE_OK {
		return nil, fmt.Errorf("%w in %q", c.errorFor(rc), query)
	}
	s := &sqliteStmt{query: query, handle: *(*uintptr)(ptr(c.out))}
	if s.handle == 0 {
		return nil, fmt.Errorf("sqlite: empty statement %q", query)
	}
	if tail := *(*uintptr)(ptr(c.out + 8)); strings.TrimSpace(libc.GoString(tail)) != "" {
		c.finalize(s)
		return nil, fmt.Errorf("sqlite: several statements in %q", query)
	}
	s.columns = int(sqlite3.Xsqlite3_column_count(c.tls, s.handle))
	n := int(sqlite3.Xsqlite3_bind_parameter_count(c.tls, s.handle))
	for i := range n {
		// SQLite takes $2 for a name and numbers names as they appear.
		name := libc.GoString(sqlite3.Xsqlite3_bind_parameter_name(c.tls, s.handle, int32(i+1)))
		num, err := strconv.Atoi(strings.TrimLeft(name, "$?"))
		if err != nil || num < 1 {
			c.finalize(s)
			return nil, fmt.Errorf("sqlite: parameter %q in %q: want $1, $2 ...", name, query)
		}
		s.args = append(s.args, num-1)
		s.nargs = max(s.nargs, num)
	}
	return s, nil
}

func (c *sqliteConn) finalize(s *sqliteStmt) {
	sqlite3.Xsqlite3_finalize(c.tls, s.handle)
	libc.Xfree(c.tls, s.buf)
	s.handle, s.buf = 0, 0
}

// bind gives the statement its arguments.
func (c *sqliteConn) bind(s *sqliteStmt, args []any) error {
	if len(args) != s.nargs {
		return fmt.Errorf("sqlite: %d arguments for %d parameters in %q", len(args), s.nargs, s.query)
	}
	size := 0
	c.values = c.values[:0]
	for _, i := range s.args {
		v, err := valueOf(args[i])
		if err != nil {
			return fmt.Errorf("argument $%d of %q: %w", i+1, s.query, err)
		}
		c.values = append(c.values, v)
		size += len(v.bytes)
	}
	// Never empty: a nil address would bind NULL for an empty text.
	if size++; size > s.bufLen {
		libc.Xfree(c.tls, s.buf)
		s.bufLen = 0
		if s.buf = libc.Xmalloc(c.tls, libc.Tsize_t(size)); s.buf == 0 {
			return fmt.Errorf("sqlite: out of memory for arguments of %d bytes", size)
		}
		s.bufLen = size
	}
	at := s.buf
	for p := range c.values {
		v := &c.values[p]
		n := int32(p + 1)
		var rc int32
		switch v.kind {
		case kindNull:
			rc = sqlite3.Xsqlite3_bind_null(c.tls, s.handle, n)
		case kindInt:
			rc = sqlite3.Xsqlite3_bind_int64(c.tls, s.handle, n, v.int)
		case kindFloat:
			rc = sqlite3.Xsqlite3_bind_double(c.tls, s.handle, n, v.float)
		case kindText, kindBytes:
			copy(unsafe.Slice((*byte)(ptr(at)), len(v.bytes)), v.bytes)
			if v.kind == kindText {
				rc = sqlite3.Xsqlite3_bind_text(c.tls, s.handle, n, at, int32(len(v.bytes)), 0)
			} else {
				rc = sqlite3.Xsqlite3_bind_blob(c.tls, s.handle, n, at, int32(len(v.bytes)), 0)
			}
			at += uintptr(len(v.bytes))
			v.bytes = nil
		}
		if rc != sqlite3.SQLITE_OK {
			return c.errorFor(rc)
		}
	}
	return nil
}

// done makes a statement ready for its next use.
func (c *sqliteConn) done(s *sqliteStmt) {
	sqlite3.Xsqlite3_reset(c.tls, s.handle)
	s.busy = false
	if e, ok := c.byText[s.query]; !ok || e.Value.(*sqliteStmt) != s {
		c.finalize(s)
	}
}

func (c *sqliteConn) exec(ctx context.Context, query string, args []any) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s, err := c.prepare(query)
	if err != nil {
		return 0, err
	}
	defer c.done(s)
	return c.run(s, args)
}

// run steps a statement to its end.
func (c *sqliteConn) run(s *sqliteStmt, args []any) (int64, error) {
	if err := c.bind(s, args); err != nil {
		return 0, err
	}
	for {
		switch rc := sqlite3.Xsqlite3_step(c.tls, s.handle); rc {
		case sqlite3.SQLITE_ROW:
		case sqlite3.SQLITE_DONE:
			return sqlite3.Xsqlite3_changes64(c.tls, c.db), nil
		default:
			return 0, c.errorFor(rc)
		}
	}
}

func (c *sqliteConn) execBatch(ctx context.Context, query string, argLists [][]any) error {
	if err := ctx.Err(); err != nil || len(argLists) == 0 {
		return err
	}
	s, err := c.prepare(query)
	if err != nil {
		return err
	}
	defer c.done(s)
	for i, args := range argLists {
		if i > 0 {
			sqlite3.Xsqlite3_reset(c.tls, s.handle)
		}
		if _, err := c.run(s, args); err != nil {
			return err
		}
	}
	return nil
}

func (c *sqliteConn) query(ctx context.Context, query string, args []any) (cursor, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s, err := c.prepare(query)
	if err != nil {
		return nil, err
	}
	if err := c.bind(s, args); err != nil {
		c.done(s)
		return nil, err
	}
	s.busy = true
	cur := &sqliteCursor{c: c, s: s, ctx: ctx}
	c.open[cur] = struct{}{}
	return cur, nil
}

// resetAll closes the cursors that were left open.
func (c *sqliteConn) resetAll() {
	for cur := range c.open {
		cur.close()
	}
}

// sqliteCursor walks the rows of a statement.
type sqliteCursor struct {
	c    *sqliteConn
	s    *sqliteStmt // nil when closed
	ctx  context.Context
	rows uint
}

func (r *sqliteCursor) columns() int {
	if r.s == nil {
		return 0
	}
	return r.s.columns
}

func (r *sqliteCursor) next() (bool, error) {
	if r.s == nil {
		return false, nil
	}
	// The context is asked now and then; a single step follows an index and is short.
	if r.rows++; r.rows%128 == 0 {
		if err := r.ctx.Err(); err != nil {
			return false, err
		}
	}
	switch rc := sqlite3.Xsqlite3_step(r.c.tls, r.s.handle); rc {
	case sqlite3.SQLITE_ROW:
		return true, nil
	case sqlite3.SQLITE_DONE:
		return false, nil
	default:
		return false, r.c.errorFor(rc)
	}
}

// column returns a value of the current row; its bytes are valid until the next step.
func (r *sqliteCursor) column(i int) (value, error) {
	tls, h, n := r.c.tls, r.s.handle, int32(i)
	switch sqlite3.Xsqlite3_column_type(tls, h, n) {
	case sqlite3.SQLITE_INTEGER:
		return value{kind: kindInt, int: sqlite3.Xsqlite3_column_int64(tls, h, n)}, nil
	case sqlite3.SQLITE_FLOAT:
		return value{kind: kindFloat, float: sqlite3.Xsqlite3_column_double(tls, h, n)}, nil
	case sqlite3.SQLITE_TEXT:
		p := sqlite3.Xsqlite3_column_text(tls, h, n)
		return value{kind: kindText, bytes: r.bytes(p, n)}, nil
	case sqlite3.SQLITE_BLOB:
		p := sqlite3.Xsqlite3_column_blob(tls, h, n)
		return value{kind: kindBytes, bytes: r.bytes(p, n)}, nil
	default:
		return value{}, nil
	}
}

func (r *sqliteCursor) bytes(p uintptr, n int32) []byte {
	size := sqlite3.Xsqlite3_column_bytes(r.c.tls, r.s.handle, n)
	if p == 0 || size == 0 {
		return []byte{}
	}
	return unsafe.Slice((*byte)(ptr(p)), int(size))
}

func (r *sqliteCursor) close() error {
	if r.s == nil {
		return nil
	}
	delete(r.c.open, r)
	r.c.done(r.s)
	r.s = nil
	return nil
}
