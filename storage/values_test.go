package storage_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/storage"
	"hanok/storage/storagetest"
)

type (
	name string
	tiny int8
	raw  []byte
)

// values makes a table with a column of each type.
func values(t *testing.T, db *storage.DB) {
	blob, real := "BLOB", "REAL"
	if strings.HasSuffix(t.Name(), "postgres") {
		blob, real = "BYTEA", "DOUBLE PRECISION"
	}
	must(t, db.Write(ctx, func(tx *storage.Tx) error {
		_, err := tx.Exec(ctx, fmt.Sprintf(`CREATE TABLE v (i BIGINT, r %s, s TEXT, b %s)`, real, blob))
		return err
	}))
}

func TestValues(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		values(t, db)
		one, text := int64(1), "x"
		for _, in := range []struct{ args, want []any }{
			{[]any{1, 1.5, "a", []byte("b")}, []any{int64(1), 1.5, "a", []byte("b")}},
			{[]any{math.MaxInt64, -0.25, "", []byte{}}, []any{int64(math.MaxInt64), -0.25, "", []byte{}}},
			{[]any{int64(math.MinInt64), 0.0, "ünïcode \U0001F3E0", []byte{0, 255, 0}}, []any{int64(math.MinInt64), 0.0, "ünïcode \U0001F3E0", []byte{0, 255, 0}}},
			{[]any{nil, nil, nil, nil}, []any{nil, nil, nil, nil}},
			{[]any{true, float32(0.5), name("n"), raw("r")}, []any{int64(1), 0.5, "n", []byte("r")}},
			{[]any{storage.Position(-5), 2.0, &text, raw(nil)}, []any{int64(-5), 2.0, "x", nil}},
			{[]any{&one, nil, (*string)(nil), []byte(nil)}, []any{int64(1), nil, nil, nil}},
			{[]any{uint32(7), 1.0, "long" + strings.Repeat("y", 70_000), make([]byte, 100_000)}, []any{int64(7), 1.0, "long" + strings.Repeat("y", 70_000), make([]byte, 100_000)}},
			{[]any{false, 1.0, "a", []byte("b")}, []any{int64(0), 1.0, "a", []byte("b")}},
		} {
			must(t, db.Write(ctx, func(tx *storage.Tx) error {
				n, err := tx.Exec(ctx, `DELETE FROM v`)
				must(t, err)
				if n > 1 {
					t.Errorf("%d rows deleted", n)
				}
				n, err = tx.Exec(ctx, `INSERT INTO v (i, r, s, b) VALUES ($1, $2, $3, $4)`, in.args...)
				if n != 1 {
					t.Errorf("%d rows inserted", n)
				}
				return err
			}))
			got := make([]any, 4)
			must(t, db.QueryRow(ctx, `SELECT i, r, s, b FROM v`).Scan(&got[0], &got[1], &got[2], &got[3]))
			if d := cmp.Diff(in.want, got); d != "" {
				t.Error(d)
			}
		}
	})
}

func TestScan(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		values(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error {
			return tx.ExecBatch(ctx, `INSERT INTO v (i, r, s, b) VALUES ($1, $2, $3, $4)`,
				[][]any{{1, 1.5, "a", []byte("x")}, {2, nil, nil, nil}, {300, 2.5, "c", []byte("z")}})
		}))
		var (
			i   tiny
			u   uint16
			b   bool
			f   float64
			s   name
			r   raw
			p   storage.Position
			opt *string
			num *int
		)
		must(t, db.QueryRow(ctx, `SELECT i, i, i, r, s, b, i, s, i FROM v WHERE i = $1`, 1).Scan(&i, &u, &b, &f, &s, &r, &p, &opt, &num))
		if i != 1 || u != 1 || !b || f != 1.5 || s != "a" || string(r) != "x" || p != 1 || *opt != "a" || *num != 1 {
			t.Error(i, u, b, f, s, r, p, opt, num)
		}
		must(t, db.QueryRow(ctx, `SELECT s, b FROM v WHERE i = $1`, 2).Scan(&opt, &r))
		if opt != nil || r != nil {
			t.Error("NULL did not become nil")
		}
		// Aggregates and conditions have the same types on both engines.
		var count, sum int64
		var exists, less bool
		must(t, db.QueryRow(ctx, `SELECT COUNT(*), SUM(i), EXISTS (SELECT 1 FROM v WHERE i = $1), 1 < 2 FROM v`, 9).Scan(&count, &sum, &exists, &less))
		if count != 3 || sum != 303 || exists || !less {
			t.Error(count, sum, exists, less)
		}
		for what, err := range map[string]error{
			"too big":         db.QueryRow(ctx, `SELECT i FROM v WHERE i = $1`, 300).Scan(&i),
			"NULL into int":   db.QueryRow(ctx, `SELECT r FROM v WHERE i = $1`, 2).Scan(&count),
			"text into int":   db.QueryRow(ctx, `SELECT s FROM v WHERE i = $1`, 1).Scan(&count),
			"few variables":   db.QueryRow(ctx, `SELECT i, i FROM v WHERE i = $1`, 1).Scan(&count),
			"not a pointer":   db.QueryRow(ctx, `SELECT i FROM v WHERE i = $1`, 1).Scan(count),
			"few arguments":   db.QueryRow(ctx, `SELECT i FROM v WHERE i = $1`).Scan(&count),
			"many arguments":  db.QueryRow(ctx, `SELECT i FROM v WHERE i = $1`, 1, 2).Scan(&count),
			"bad argument":    db.QueryRow(ctx, `SELECT i FROM v WHERE i = $1`, struct{}{}).Scan(&count),
			"bad statement":   db.QueryRow(ctx, `SELECT nothing FROM v WHERE`).Scan(&count),
			"two statements":  db.QueryRow(ctx, `SELECT 1; SELECT 2`).Scan(&count),
			"write in a read": db.QueryRow(ctx, `DELETE FROM v RETURNING i`).Scan(&count),
		} {
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		}
		if err := db.QueryRow(ctx, `SELECT i FROM v WHERE i = $1`, 77).Scan(&count); err != storage.ErrNotFound {
			t.Error(err)
		}
		// Parameters may come in any order and more than once.
		must(t, db.QueryRow(ctx, `SELECT i FROM v WHERE s = $2 AND i = $1 AND i <= $1`, 300, "c").Scan(&count))
	})
}

// TestNested runs statements, also the same one, while a result is being walked.
func TestNested(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error {
			for n := range 5 {
				must(t, insert(tx, n, n))
			}
			const query = `SELECT n FROM t WHERE n < $1 ORDER BY n`
			var got []int
			outer, err := tx.Query(ctx, query, 5)
			must(t, err)
			for outer.Next() {
				inner, err := tx.Query(ctx, query, 3)
				must(t, err)
				var n, m int
				must(t, outer.Scan(&n))
				for inner.Next() {
					must(t, inner.Scan(&m))
					got = append(got, n*10+m)
				}
				must(t, inner.Err())
				must(t, insert(tx, 100+n, 0))
				must(t, outer.Scan(&m)) // still on its row
				if m != n {
					t.Errorf("%d became %d", n, m)
				}
			}
			must(t, outer.Err())
			if d := cmp.Diff([]int{0, 1, 2, 10, 11, 12, 20, 21, 22, 30, 31, 32, 40, 41, 42}, got); d != "" {
				t.Error(d)
			}
			_, err = tx.Query(ctx, query, 5) // left open
			return err
		}))
		if n := len(numbers(t, db)); n != 10 {
			t.Errorf("%d rows", n)
		}
	})
}

func TestQueryIn(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		table(t, db)
		must(t, db.Write(ctx, func(tx *storage.Tx) error {
			var rows [][]any
			for n := range 1000 {
				rows = append(rows, []any{n, n % 2})
			}
			return tx.ExecBatch(ctx, `INSERT INTO t (n, s) VALUES ($1, $2)`, rows)
		}))
		for _, size := range []int{0, 1, 2, 4, 5, 64, 256, 257, 900} {
			var list []int64
			for n := range size {
				list = append(list, int64(n))
			}
			count := 0
			must(t, storage.QueryIn(ctx, db, `SELECT n FROM t WHERE s = $1 AND n IN ($in)`, []any{0}, list, func(r *storage.Rows) error {
				count++
				var n int
				return r.Scan(&n)
			}))
			if count != (size+1)/2 {
				t.Errorf("%d of %d", count, size)
			}
		}
	})
}

// TestManyStatements runs more different statements than a connection keeps.
func TestManyStatements(t *testing.T) {
	db := storagetest.Open(t)
	for i := range 1000 {
		var n int
		must(t, db.QueryRow(ctx, fmt.Sprintf(`SELECT %d`, i)).Scan(&n))
		if n != i {
			t.Fatal(n)
		}
	}
}
