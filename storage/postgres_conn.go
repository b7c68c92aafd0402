package storage

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// postgresSession is one connection, used by one goroutine at a time.
type postgresSession struct {
	conn *pgx.Conn
	open *postgresCursor
}

// arguments converts to the types that both engines store.
func arguments(query string, args []any) ([]any, error) {
	out := make([]any, len(args))
	for i, a := range args {
		v, err := valueOf(a)
		if err != nil {
			return nil, fmt.Errorf("argument $%d of %q: %w", i+1, query, err)
		}
		switch v.kind {
		case kindInt:
			out[i] = v.int
		case kindFloat:
			out[i] = v.float
		case kindText:
			out[i] = v.any()
		case kindBytes:
			out[i] = v.bytes
		}
	}
	return out, nil
}

func (s *postgresSession) exec(ctx context.Context, query string, args []any) (int64, error) {
	s.closeOpen()
	args, err := arguments(query, args)
	if err != nil {
		return 0, err
	}
	tag, err := s.conn.Exec(ctx, query, args...)
	return tag.RowsAffected(), err
}

func (s *postgresSession) execBatch(ctx context.Context, query string, argLists [][]any) error {
	if len(argLists) == 0 {
		return nil
	}
	s.closeOpen()
	var b pgx.Batch
	for _, args := range argLists {
		args, err := arguments(query, args)
		if err != nil {
			return err
		}
		b.Queue(query, args...)
	}
	return s.conn.SendBatch(ctx, &b).Close()
}

func (s *postgresSession) query(ctx context.Context, query string, args []any) (cursor, error) {
	s.closeOpen()
	args, err := arguments(query, args)
	if err != nil {
		return nil, err
	}
	rows, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	s.open = &postgresCursor{s: s, rows: rows}
	return s.open, nil
}

// closeOpen reads the rest of an open result into memory: the connection can carry only one
// at a time, but on SQLite a function may run statements while it walks a result.
func (s *postgresSession) closeOpen() {
	if s.open != nil {
		s.open.detach()
	}
}

// postgresCursor walks the rows of a query.
type postgresCursor struct {
	s      *postgresSession
	rows   pgx.Rows
	values [][]byte   // of the current row
	rest   [][][]byte // rows read ahead by detach
	after  bool       // detached: rest holds what is left
	fields []field
	closed bool
}

type field struct {
	oid    uint32
	format int16
}

func (r *postgresCursor) describe() {
	if r.fields != nil {
		return
	}
	for _, f := range r.rows.FieldDescriptions() {
		r.fields = append(r.fields, field{f.DataTypeOID, f.Format})
	}
}

// detach reads what is left, so that the connection is free.
func (r *postgresCursor) detach() {
	r.s.open = nil
	if r.closed || r.after {
		return
	}
	r.after = true
	r.describe()
	r.values = cloneRow(r.values)
	for r.rows.Next() {
		r.rest = append(r.rest, cloneRow(r.rows.RawValues()))
	}
	r.rows.Close()
}

func cloneRow(row [][]byte) [][]byte {
	out := make([][]byte, len(row))
	for i, v := range row {
		if v != nil {
			out[i] = append([]byte{}, v...)
		}
	}
	return out
}

func (r *postgresCursor) columns() int { return len(r.fields) }

func (r *postgresCursor) next() (bool, error) {
	if r.closed {
		return false, nil
	}
	if r.after {
		if len(r.rest) > 0 {
			r.values, r.rest = r.rest[0], r.rest[1:]
			return true, nil
		}
		return false, r.rows.Err()
	}
	if !r.rows.Next() {
		return false, r.rows.Err()
	}
	r.describe()
	r.values = r.rows.RawValues()
	return true, nil
}

func (r *postgresCursor) close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	if r.s.open == r {
		r.s.open = nil
	}
	r.rows.Close()
	return r.rows.Err()
}

func (r *postgresCursor) column(i int) (value, error) {
	raw := r.values[i]
	if raw == nil {
		return value{}, nil
	}
	f := r.fields[i]
	switch f.oid {
	case pgtype.Int8OID, pgtype.Int4OID, pgtype.Int2OID:
		if f.format != pgx.BinaryFormatCode {
			n, err := strconv.ParseInt(string(raw), 10, 64)
			return value{kind: kindInt, int: n}, err
		}
		switch len(raw) {
		case 8:
			return value{kind: kindInt, int: int64(binary.BigEndian.Uint64(raw))}, nil
		case 4:
			return value{kind: kindInt, int: int64(int32(binary.BigEndian.Uint32(raw)))}, nil
		case 2:
			return value{kind: kindInt, int: int64(int16(binary.BigEndian.Uint16(raw)))}, nil
		}
	case pgtype.BoolOID: // a comparison; SQLite has 0 and 1
		v := value{kind: kindInt}
		if len(raw) == 1 && (raw[0] == 1 || raw[0] == 't') {
			v.int = 1
		}
		return v, nil
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.NameOID, pgtype.BPCharOID, pgtype.UnknownOID:
		return value{kind: kindText, bytes: raw}, nil
	case pgtype.ByteaOID:
		if f.format == pgx.BinaryFormatCode {
			return value{kind: kindBytes, bytes: raw}, nil
		}
		b, err := hex.DecodeString(string(raw[min(2, len(raw)):]))
		return value{kind: kindBytes, bytes: b}, err
	case pgtype.Float8OID:
		if f.format == pgx.BinaryFormatCode && len(raw) == 8 {
			return value{kind: kindFloat, float: math.Float64frombits(binary.BigEndian.Uint64(raw))}, nil
		}
	case pgtype.NumericOID: // sum(bigint)
		var n pgtype.Numeric
		if err := r.s.conn.TypeMap().Scan(f.oid, f.format, raw, &n); err != nil {
			return value{}, err
		}
		if whole, err := n.Int64Value(); err == nil {
			return value{kind: kindInt, int: whole.Int64}, nil
		}
		float, err := n.Float64Value()
		return value{kind: kindFloat, float: float.Float64}, err
	}
	return value{}, fmt.Errorf("postgres: a column of type %d (format %d) is not among those both engines have", f.oid, f.format)
}
