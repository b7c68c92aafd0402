package storage

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// migrationLock keeps two processes from migrating at the same time.
const migrationLock = 0x68616e6f6b // "hanok"

// migrate applies the missing migrations, each in one transaction. There is no copy
// before: that is the administrator's, as for any shared database server.
func (e *postgresEngine) migrate(ctx context.Context, all []migration) error {
	c, err := e.writers.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	if _, err := c.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(migrationLock)); err != nil {
		return err
	}
	defer c.Exec(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, int64(migrationLock))
	if _, err := c.Exec(ctx, `SET client_min_messages = warning`); err != nil {
		return err
	}
	if _, err := c.Exec(ctx, toPostgres(versionTable)); err != nil {
		return err
	}
	s := &postgresSession{conn: c.Conn()}
	cur, err := s.query(ctx, versionsQuery, nil)
	if err != nil {
		return err
	}
	applied, err := readVersions(&Rows{cur: cur})
	if err != nil {
		return err
	}
	todo, err := pending(all, applied)
	if err != nil {
		return err
	}
	for _, m := range todo {
		err := pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
			for _, statement := range m.statements() {
				if _, err := tx.Exec(ctx, toPostgres(statement)); err != nil {
					return fmt.Errorf("%w in %q", err, toPostgres(statement))
				}
			}
			_, err := s.exec(ctx, insertVersionQuery, []any{m.version, m.name, m.checksum()})
			return err
		})
		if err != nil {
			return fmt.Errorf("migration %d (%s): %w", m.version, m.name, err)
		}
		e.commit.log.Info().Int64("version", m.version).Str("name", m.name).Msg("migrated")
	}
	return nil
}
