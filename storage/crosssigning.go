package storage

import (
	"context"

	"hanok/matrix"
)

// CrossSigningKey is one of a user's cross-signing keys.
type CrossSigningKey struct {
	UserID matrix.UserID
	Usage  string // "master", "self_signing" or "user_signing"
	Public string // unpadded base64
	Key    []byte // canonical JSON
}

const listCrossSigningKeys = `SELECT user_id, usage, public_key, key FROM cross_signing_keys WHERE user_id IN ($in)`

// ListCrossSigningKeys returns all cross-signing keys of users, local and remote.
func ListCrossSigningKeys(ctx context.Context, q Querier, users []matrix.UserID) ([]CrossSigningKey, error) {
	return collectIn(ctx, q, func(r *Rows) (k CrossSigningKey, err error) {
		return k, r.Scan(&k.UserID, &k.Usage, &k.Public, &k.Key)
	}, listCrossSigningKeys, nil, users)
}

const putCrossSigningKey = `INSERT INTO cross_signing_keys (user_id, usage, public_key, key) VALUES ($1, $2, $3, $4)
	ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, key = excluded.key`

// PutCrossSigningKey stores a key in place of the one before.
func PutCrossSigningKey(ctx context.Context, tx *Tx, k CrossSigningKey) error {
	_, err := tx.Exec(ctx, putCrossSigningKey, k.UserID, k.Usage, k.Public, k.Key)
	return err
}

const deleteCrossSigningKey = `DELETE FROM cross_signing_keys WHERE user_id = $1 AND usage = $2`

// DeleteCrossSigningKey removes a key.
func DeleteCrossSigningKey(ctx context.Context, tx *Tx, user matrix.UserID, usage string) error {
	_, err := tx.Exec(ctx, deleteCrossSigningKey, user, usage)
	return err
}

// KeySignature is a signature of a device or a cross-signing key that was uploaded by itself.
type KeySignature struct {
	TargetUser matrix.UserID
	TargetID   string // device ID or public key
	Signer     matrix.UserID
	KeyID      matrix.KeyID
	Signature  string
}

const putKeySignature = `INSERT INTO key_signatures (target_user, target_id, signer, key_id, signature) VALUES ($1, $2, $3, $4, $5)
	ON CONFLICT (target_user, target_id, signer, key_id) DO UPDATE SET signature = excluded.signature`

// PutKeySignature stores a signature.
func PutKeySignature(ctx context.Context, tx *Tx, s KeySignature) error {
	_, err := tx.Exec(ctx, putKeySignature, s.TargetUser, s.TargetID, s.Signer, s.KeyID, s.Signature)
	return err
}

const listKeySignatures = `SELECT target_user, target_id, signer, key_id, signature FROM key_signatures
	WHERE (signer = target_user OR signer = $1) AND target_user IN ($in)`

// ListKeySignatures returns the signatures of users' keys that are their own or by observer.
func ListKeySignatures(ctx context.Context, q Querier, observer matrix.UserID, users []matrix.UserID) ([]KeySignature, error) {
	return collectIn(ctx, q, func(r *Rows) (s KeySignature, err error) {
		return s, r.Scan(&s.TargetUser, &s.TargetID, &s.Signer, &s.KeyID, &s.Signature)
	}, listKeySignatures, []any{observer}, users)
}

const deleteKeySignatures = `DELETE FROM key_signatures WHERE target_user = $1 AND target_id = $2`

// DeleteKeySignatures removes all signatures of a device or key.
func DeleteKeySignatures(ctx context.Context, tx *Tx, user matrix.UserID, targetID string) error {
	_, err := tx.Exec(ctx, deleteKeySignatures, user, targetID)
	return err
}
