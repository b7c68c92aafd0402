package storage

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// What the tests of the schema and of query plans ask of both engines.
type inspector interface {
	// schema describes all tables and indexes as text.
	schema(ctx context.Context) (string, error)
	// explain returns the plan of a query as text, one step per line.
	explain(ctx context.Context, query string) (string, error)
}

// Explain returns the plan of a query as text.
func (db *DB) Explain(ctx context.Context, query string) (string, error) {
	return db.engine.(inspector).explain(ctx, query)
}

// Schema describes all tables and indexes as text.
func (db *DB) Schema(ctx context.Context) (string, error) { return db.engine.(inspector).schema(ctx) }

// schema lists the statements that made the tables and indexes.
func (e *sqliteEngine) schema(ctx context.Context) (string, error) {
	c, err := e.readers.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer e.readers.release(c)
	rows := c.rows(`SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY tbl_name, type DESC, name`)
	defer rows.Close()
	var out strings.Builder
	for rows.Next() {
		var sql string
		if err := rows.Scan(&sql); err != nil {
			return "", err
		}
		out.WriteString(sql + ";\n")
	}
	return out.String(), rows.Err()
}

func (e *sqliteEngine) explain(ctx context.Context, query string) (string, error) {
	c, err := e.readers.acquire(ctx)
	if err != nil {
		return "", err
	}
	defer e.readers.release(c)
	s, err := c.prepare(`EXPLAIN QUERY PLAN ` + query)
	if err != nil {
		return "", err
	}
	args := make([]any, s.nargs)
	for i := range args {
		args[i] = 1
	}
	cur, err := c.query(ctx, s.query, args)
	if err != nil {
		return "", err
	}
	rows := &Rows{cur: cur}
	defer rows.Close()
	var out strings.Builder
	for rows.Next() {
		var id, parent, unused int64
		var detail string
		if err := rows.Scan(&id, &parent, &unused, &detail); err != nil {
			return "", err
		}
		out.WriteString(detail + "\n")
	}
	return out.String(), rows.Err()
}

const (
	postgresColumns = `SELECT table_name, column_name, data_type, coalesce(collation_name, ''), is_nullable, coalesce(column_default, '')
		FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY table_name, ordinal_position`
	postgresIndexes = `SELECT indexdef FROM pg_indexes WHERE schemaname = current_schema() ORDER BY tablename, indexname`
)

// schema lists the columns and indexes that exist.
func (e *postgresEngine) schema(ctx context.Context) (string, error) {
	var out strings.Builder
	rows, err := e.query(ctx, postgresColumns, nil)
	if err != nil {
		return "", err
	}
	defer rows.Close()
	for rows.Next() {
		var table, column, typ, collation, nullable, def string
		if err := rows.Scan(&table, &column, &typ, &collation, &nullable, &def); err != nil {
			return "", err
		}
		fmt.Fprintf(&out, "%s.%s %s", table, column, typ)
		if collation != "" {
			fmt.Fprintf(&out, " collate %s", collation)
		}
		if nullable == "NO" {
			out.WriteString(" not null")
		}
		if def != "" {
			fmt.Fprintf(&out, " default %s", def)
		}
		out.WriteString("\n")
	}
	if rows.Err() != nil {
		return "", rows.Err()
	}
	indexes, err := e.query(ctx, postgresIndexes, nil)
	if err != nil {
		return "", err
	}
	defer indexes.Close()
	for indexes.Next() {
		var def string
		if err := indexes.Scan(&def); err != nil {
			return "", err
		}
		out.WriteString(def + "\n")
	}
	return out.String(), indexes.Err()
}

// explain plans the query for any arguments, with sequential scans only where nothing else is possible.
func (e *postgresEngine) explain(ctx context.Context, query string) (string, error) {
	c, err := e.writers.Acquire(ctx)
	if err != nil {
		return "", err
	}
	defer c.Release()
	tx, err := c.Begin(ctx)
	if err != nil {
		return "", err
	}
	defer tx.Rollback(ctx)
	if _, err := tx.Exec(ctx, `SET LOCAL enable_seqscan = off`); err != nil {
		return "", err
	}
	d, err := tx.Prepare(ctx, "", query)
	if err != nil {
		return "", err
	}
	execute := "EXPLAIN (COSTS OFF) EXECUTE explained"
	if n := len(d.ParamOIDs); n > 0 {
		execute += "(NULL" + strings.Repeat(", NULL", n-1) + ")"
	}
	defer c.Exec(ctx, `DEALLOCATE explained`, pgx.QueryExecModeSimpleProtocol)
	for _, q := range []string{`SET LOCAL plan_cache_mode = force_generic_plan`, `PREPARE explained AS ` + query} {
		if _, err := tx.Exec(ctx, q, pgx.QueryExecModeSimpleProtocol); err != nil {
			return "", err
		}
	}
	rows, err := tx.Query(ctx, execute, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		return "", err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return strings.Join(lines, "\n") + "\n", err
}
