package storage

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"path"
	"strconv"
	"strings"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one step of the schema. After a release its text is never changed.
type migration struct {
	version int64
	name    string
	text    string
}

// ErrNewer is in the error of Open when a newer program has upgraded the database.
var ErrNewer = fmt.Errorf("the database was made by a newer version of hanok: run that version, or restore the copy made before the upgrade")

// The version table is made by the engines, before the first migration.
const (
	versionTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version  INTEGER NOT NULL PRIMARY KEY,
	name     TEXT    NOT NULL,
	checksum TEXT    NOT NULL
) STRICT`
	versionsQuery      = `SELECT version, checksum FROM schema_migrations ORDER BY version`
	insertVersionQuery = `INSERT INTO schema_migrations (version, name, checksum) VALUES ($1, $2, $3)`
)

// migrations returns the embedded steps in order.
func migrations() ([]migration, error) {
	entries, err := migrationFiles.ReadDir("migrations") // sorted by name
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, e := range entries {
		number, name, ok := strings.Cut(strings.TrimSuffix(e.Name(), ".sql"), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil {
			return nil, fmt.Errorf("migration file %q: want NNNN_name.sql", e.Name())
		}
		if len(all) > 0 && all[len(all)-1].version >= version {
			return nil, fmt.Errorf("migration %d exists twice", version)
		}
		data, err := migrationFiles.ReadFile(path.Join("migrations", e.Name()))
		if err != nil {
			return nil, err
		}
		all = append(all, migration{version, name, string(data)})
	}
	return all, nil
}

func (m migration) checksum() string {
	sum := sha256.Sum256([]byte(m.text))
	return hex.EncodeToString(sum[:8])
}

// pending returns the migrations still to be applied, given version and checksum of those that were.
func pending(all []migration, applied map[int64]string) ([]migration, error) {
	known := make(map[int64]bool)
	var todo []migration
	for _, m := range all {
		known[m.version] = true
		sum, ok := applied[m.version]
		switch {
		case !ok:
			todo = append(todo, m)
		case sum != m.checksum():
			return nil, fmt.Errorf("migration %d (%s) is not the one this database was made with", m.version, m.name)
		}
	}
	for version := range applied {
		if !known[version] {
			return nil, fmt.Errorf("migration %d: %w", version, ErrNewer)
		}
	}
	return todo, nil
}

// statements splits the text of a migration at its semicolons. Comments may
// contain them; quoted texts and trigger bodies may not, and there are none.
func (m migration) statements() []string {
	var kept []string
	for line := range strings.Lines(m.text) {
		code, _, _ := strings.Cut(line, "--")
		if strings.TrimSpace(code) != "" {
			kept = append(kept, strings.TrimRight(code, " \t\n"))
		}
	}
	var out []string
	for s := range strings.SplitSeq(strings.Join(kept, "\n"), ";") {
		if s = strings.TrimSpace(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

func readVersions(rows *Rows) (map[int64]string, error) {
	applied := make(map[int64]string)
	for rows.Next() {
		var version int64
		var sum string
		if err := rows.Scan(&version, &sum); err != nil {
			return nil, err
		}
		applied[version] = sum
	}
	return applied, rows.Err()
}
