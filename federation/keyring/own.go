package keyring

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"

	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/storage"
)

// OldKey is a key that this server signed with before.
type OldKey struct {
	ID      matrix.KeyID
	Public  ed25519.PublicKey
	Expired matrix.Timestamp
}

// OldKeys lists the keys that this server is recorded to have signed with before key. One that nobody has
// retired yet was used until now.
func OldKeys(ctx context.Context, q storage.Querier, server matrix.ServerName, key signing.Key, now matrix.Timestamp) ([]OldKey, error) {
	recorded, err := storage.FindServerKeys(ctx, q, server)
	if err != nil {
		return nil, err
	}
	var old []OldKey
	for _, k := range recorded {
		if k.KeyID == key.ID {
			continue
		}
		if !k.Expired {
			k.ValidUntil = now
		}
		old = append(old, OldKey{k.KeyID, k.Public, k.ValidUntil})
	}
	return old, nil
}

// Record notes in the database that this server signs with key from now on, and retires the key before. Whatever becomes of the key's
// file, others can verify what was signed with it for as long as there is the database.
// spec: server-server-api#publishing-keys old_verify_keys
func Record(ctx context.Context, db *storage.DB, server matrix.ServerName, key signing.Key, now matrix.Timestamp) error {
	return db.Write(ctx, func(tx *storage.Tx) error {
		recorded, err := storage.FindServerKeys(ctx, tx, server)
		if err != nil {
			return err
		}
		changed := []storage.ServerKey{{Server: server, KeyID: key.ID, Public: key.Public(), ValidUntil: forever, FetchedAt: now, Document: []byte{}}}
		for _, k := range recorded {
			switch {
			case k.KeyID == key.ID && !bytes.Equal(k.Public, key.Public()):
				return fmt.Errorf("this server has signed with another key of the ID %s before: give the new one an ID that was not used", key.ID)
			case k.KeyID == key.ID && !k.Expired:
				changed = changed[1:]
			case k.KeyID != key.ID && !k.Expired:
				k.Expired, k.ValidUntil = true, now
				changed = append(changed, k)
			}
		}
		return storage.PutServerKeys(ctx, tx, changed)
	})
}

// ErrNotInUse says that a key was put in place and the server has not started with it since.
var ErrNotInUse = errors.New("the key was rotated already, and the server has not started with the new one since: restart it first")

// RecordFirst records the key of a server that has not recorded any, and fails with ErrNotInUse if another one is recorded as in use.
func RecordFirst(ctx context.Context, db *storage.DB, server matrix.ServerName, key signing.Key, now matrix.Timestamp) error {
	recorded, err := storage.FindServerKeys(ctx, db, server)
	if err != nil {
		return err
	}
	for _, k := range recorded {
		if !k.Expired && k.KeyID != key.ID {
			return ErrNotInUse
		}
	}
	return Record(ctx, db, server, key, now)
}
