package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// ServerKey is a public key of another server. spec: ss/getServerKey
type ServerKey struct {
	Server     matrix.ServerName
	KeyID      matrix.KeyID
	Public     []byte
	ValidUntil matrix.Timestamp // for an expired key: when it stopped being used
	Expired    bool             // listed among old_verify_keys: signs no requests any more
	FetchedAt  matrix.Timestamp
	Document   []byte // the signed document the key was last seen in, canonical JSON
}

const selectServerKeys = `
SELECT key_id, public_key, valid_until, expired, fetched_at, document
FROM server_keys WHERE server = $1 ORDER BY key_id`

// FindServerKeys returns all stored keys of a server.
func FindServerKeys(ctx context.Context, q Querier, server matrix.ServerName) ([]ServerKey, error) {
	rows, err := q.Query(ctx, selectServerKeys, string(server))
	if err != nil {
		return nil, fmt.Errorf("server keys: %w", err)
	}
	defer rows.Close()
	var keys []ServerKey
	for rows.Next() {
		k := ServerKey{Server: server}
		var id string
		var validUntil, expired, fetchedAt int64
		if err := rows.Scan(&id, &k.Public, &validUntil, &expired, &fetchedAt, &k.Document); err != nil {
			return nil, fmt.Errorf("server keys: %w", err)
		}
		k.KeyID, k.ValidUntil, k.Expired, k.FetchedAt = matrix.KeyID(id), matrix.Timestamp(validUntil), expired != 0, matrix.Timestamp(fetchedAt)
		keys = append(keys, k)
	}
	return keys, rows.Err()
}

const selectServersWithOldKeys = `SELECT DISTINCT server FROM server_keys WHERE server > $1 AND fetched_at < $2 ORDER BY server LIMIT $3`

// FindServersWithOldKeys lists servers that have keys from before a time, in order, after a given one.
func FindServersWithOldKeys(ctx context.Context, q Querier, after matrix.ServerName, before matrix.Timestamp, limit int) ([]matrix.ServerName, error) {
	return collect(ctx, q, func(r *Rows) (s matrix.ServerName, err error) { return s, r.Scan(&s) }, selectServersWithOldKeys, after, before, limit)
}

const deleteServerKey = `DELETE FROM server_keys WHERE server = $1 AND key_id = $2`

// DeleteServerKeys removes keys of a server.
func DeleteServerKeys(ctx context.Context, tx *Tx, server matrix.ServerName, ids []matrix.KeyID) error {
	args := make([][]any, len(ids))
	for i, id := range ids {
		args[i] = []any{string(server), string(id)}
	}
	if err := tx.ExecBatch(ctx, deleteServerKey, args); err != nil {
		return fmt.Errorf("delete server keys: %w", err)
	}
	return nil
}

const deleteKeysOfServer = `DELETE FROM server_keys WHERE server = $1`

// DeleteKeysOfServers removes all keys of some servers.
func DeleteKeysOfServers(ctx context.Context, tx *Tx, servers []matrix.ServerName) error {
	args := make([][]any, len(servers))
	for i, server := range servers {
		args[i] = []any{string(server)}
	}
	if err := tx.ExecBatch(ctx, deleteKeysOfServer, args); err != nil {
		return fmt.Errorf("delete keys of servers: %w", err)
	}
	return nil
}

const upsertServerKey = `
INSERT INTO server_keys (server, key_id, public_key, valid_until, expired, fetched_at, document)
VALUES ($1, $2, $3, $4, $5, $6, $7)
ON CONFLICT (server, key_id) DO UPDATE SET
    public_key = excluded.public_key, valid_until = excluded.valid_until, expired = excluded.expired,
    fetched_at = excluded.fetched_at, document = excluded.document`

// PutServerKeys stores keys, replacing those of the same server and ID.
func PutServerKeys(ctx context.Context, tx *Tx, keys []ServerKey) error {
	args := make([][]any, len(keys))
	for i, k := range keys {
		expired := int64(0)
		if k.Expired {
			expired = 1
		}
		args[i] = []any{string(k.Server), string(k.KeyID), k.Public, int64(k.ValidUntil), expired, int64(k.FetchedAt), k.Document}
	}
	if err := tx.ExecBatch(ctx, upsertServerKey, args); err != nil {
		return fmt.Errorf("store server keys: %w", err)
	}
	return nil
}
