package storage

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Querier reads: a *DB (each statement by itself) or a *Tx.
type Querier interface {
	Query(ctx context.Context, query string, args ...any) (*Rows, error)
	QueryRow(ctx context.Context, query string, args ...any) *Row
}

// session is one connection of an engine, used by one goroutine at a time.
type session interface {
	exec(ctx context.Context, query string, args []any) (int64, error)
	execBatch(ctx context.Context, query string, argLists [][]any) error
	query(ctx context.Context, query string, args []any) (cursor, error)
}

// cursor walks a result.
type cursor interface {
	next() (bool, error)
	columns() int
	column(i int) (value, error) // valid until next or close
	close() error                // may be called twice
}

// Rows walks a result: Next, Scan, Err and Close work as in database/sql.
//
// Arguments and results are int64, float64, string, []byte and NULL. Arguments
// may also be any integer type, bool (stored as 0 or 1), named types and pointers. Scan
// fills the same types, and *any. Reaching the end closes.
type Rows struct {
	cur     cursor
	release func() // gives a connection back, nil in a transaction
	err     error
	closed  bool
}

// Next goes to the next row, false at the end or on an error, which Err tells.
func (r *Rows) Next() bool {
	if r.closed || r.err != nil {
		return false
	}
	more, err := r.cur.next()
	if err != nil || !more {
		r.err = err
		r.Close()
		return false
	}
	return true
}

// Scan copies the columns of the row into what dest point to.
func (r *Rows) Scan(dest ...any) error {
	if r.closed {
		return fmt.Errorf("storage: Scan without a row")
	}
	if n := r.cur.columns(); n != len(dest) {
		return fmt.Errorf("storage: Scan of %d columns into %d variables", n, len(dest))
	}
	for i, d := range dest {
		v, err := r.cur.column(i)
		if err == nil {
			err = v.assign(d)
		}
		if err != nil {
			return fmt.Errorf("storage: column %d: %w", i+1, err)
		}
	}
	return nil
}

// Err is the error that ended the walk, if any.
func (r *Rows) Err() error { return r.err }

// Close ends the walk. It may be called twice.
func (r *Rows) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.cur.close()
	if r.err == nil {
		r.err = err
	}
	if r.release != nil {
		r.release()
	}
	return err
}

// Row is a result of at most one row.
type Row struct {
	rows *Rows
	err  error
}

// Scan copies the columns of the row, and returns ErrNotFound if there is none.
func (r *Row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return ErrNotFound
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	return r.rows.Close()
}

// inSizes are the lengths of IN lists that statements are prepared for.
var inSizes = []int{1, 4, 16, 64, 256}

// inQuery writes an IN list of n parameters, numbered after the fixed ones, in place of $in.
func inQuery(query string, fixed, n int) string {
	before, after, ok := strings.Cut(query, "$in")
	if !ok {
		panic(fmt.Sprintf("storage: no $in in %q", query))
	}
	text := make([]byte, 0, len(query)+5*n)
	text = append(text, before...)
	for i := range n {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(text, '$')
		text = strconv.AppendInt(text, int64(fixed+i+1), 10)
	}
	return string(append(text, after...))
}

// queryIn runs a query with an IN list of any length and calls scan for every row.
//
// The query says "IN ($in)"; fixed are its arguments $1, $2 ... besides the list.
// A long list is asked for in parts, so an ORDER BY or LIMIT holds for each part
// only. The list must not hold NULLs; duplicates in it may return a row twice.
func queryIn[T any](ctx context.Context, q Querier, query string, fixed []any, list []T, scan func(*Rows) error) error {
	for part := range slices.Chunk(list, inSizes[len(inSizes)-1]) {
		size := inSizes[slices.IndexFunc(inSizes, func(n int) bool { return n >= len(part) })]
		args := make([]any, 0, len(fixed)+size)
		args = append(args, fixed...)
		for _, v := range part {
			args = append(args, v)
		}
		for len(args) < len(fixed)+size {
			args = append(args, args[len(args)-1])
		}
		rows, err := q.Query(ctx, inQuery(query, len(fixed), size), args...)
		if err != nil {
			return err
		}
		for rows.Next() {
			if err := scan(rows); err != nil {
				rows.Close()
				return err
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
	}
	return nil
}
