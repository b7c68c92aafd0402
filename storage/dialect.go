package storage

import "regexp"

// The migrations are written for SQLite. What PostgreSQL calls otherwise:
// texts compare by bytes on both.
var postgresWords = map[string]string{
	"INTEGER": "BIGINT",
	"TEXT":    `TEXT COLLATE "C"`,
	"BLOB":    "BYTEA",
	"REAL":    "DOUBLE PRECISION",
}

var (
	postgresWord = regexp.MustCompile(`\b(INTEGER|TEXT|BLOB|REAL)\b`)
	tableOptions = regexp.MustCompile(`\)\s*STRICT(,\s*WITHOUT ROWID)?\s*$`)
)

// toPostgres translates one statement of a migration.
func toPostgres(statement string) string {
	statement = tableOptions.ReplaceAllString(statement, ")")
	return postgresWord.ReplaceAllStringFunc(statement, func(w string) string { return postgresWords[w] })
}
