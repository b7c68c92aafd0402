package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
)

// migrate applies the missing migrations, each in one transaction. Before an existing
// database is changed, a copy is put beside it.
func (e *sqliteEngine) migrate(ctx context.Context, all []migration) error {
	// The first request of the writer: nobody else uses the connection yet.
	applied := make(map[int64]string)
	err := e.direct(ctx, func(tx *Tx) error {
		if _, err := tx.Exec(ctx, versionTable); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, versionsQuery)
		if err != nil {
			return err
		}
		applied, err = readVersions(rows)
		return err
	})
	if err != nil {
		return err
	}
	todo, err := pending(all, applied)
	if err != nil {
		return err
	}
	if len(todo) > 0 && len(applied) > 0 {
		if err := e.backUp(fmt.Sprintf("%s.before-%04d", e.file.path, todo[0].version)); err != nil {
			return fmt.Errorf("copy the database before the upgrade: %w", err)
		}
	}
	for _, m := range todo {
		err := e.direct(ctx, func(tx *Tx) error {
			for _, s := range m.statements() {
				if _, err := tx.Exec(ctx, s); err != nil {
					return err
				}
			}
			_, err := tx.Exec(ctx, insertVersionQuery, m.version, m.name, m.checksum())
			return err
		})
		if err != nil {
			return fmt.Errorf("migration %d (%s): %w", m.version, m.name, err)
		}
		e.commit.log.Info().Int64("version", m.version).Str("name", m.name).Msg("migrated")
	}
	return nil
}

// direct is Write, through the queue.
func (e *sqliteEngine) direct(ctx context.Context, fn func(*Tx) error) error {
	r := &request{fn: fn, answer: make(chan error, 1)}
	e.write(r)
	return <-r.answer
}

// backUp writes a copy of the database. A copy with that name is of the same version: it is replaced.
func (e *sqliteEngine) backUp(to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := createPrivate(to); err != nil {
		return err
	}
	c, err := e.file.open(false)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err = c.exec(context.Background(), `VACUUM INTO $1`, []any{to}); err != nil {
		return err
	}
	f, err := os.Open(to)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// createPrivate makes a new database file that only its owner can read; SQLite gives the same
// rights to the log. A file that exists is not touched: to close it here would take away the locks that
// connections of this process have on it.
func createPrivate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}
