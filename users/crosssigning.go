package users

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/storage"
)

// CrossSigning holds cross-signing keys; signatures are in signatures.go. spec: client-server-api#cross-signing
type CrossSigning struct {
	*core
	keys *Keys
}

// The usages of cross-signing keys.
const (
	usageMaster      = "master"
	usageSelfSigning = "self_signing"
	usageUserSigning = "user_signing"
)

// CrossSigningUpload is the body of POST /keys/device_signing/upload without `auth`.
type CrossSigningUpload struct {
	MasterKey      json.RawMessage `json:"master_key,omitempty"`
	SelfSigningKey json.RawMessage `json:"self_signing_key,omitempty"`
	UserSigningKey json.RawMessage `json:"user_signing_key,omitempty"`
}

var errInvalidSignature = matrix.Errorf(http.StatusBadRequest, "M_INVALID_SIGNATURE", "The signature is not valid")

// publicKey returns the one ed25519 key of a canonical cross-signing key object, in unpadded base64.
func publicKey(key []byte) (public string, ok bool) {
	keys, _ := canonicaljson.GetObject(key, "keys")
	n := 0
	for id, raw := range canonicaljson.Members(keys) {
		n++
		value, isString := canonicaljson.String(raw)
		ok = isString && id == "ed25519:"+value
		public = strings.Clone(value)
	}
	return public, ok && n == 1
}

func decodePublicKey(public string) (ed25519.PublicKey, bool) {
	b, err := signing.DecodeBase64(public)
	return b, err == nil && len(b) == ed25519.PublicKeySize
}

// parseCrossSigningKey checks the form of a key: user, usage, and one ed25519 key.
func parseCrossSigningKey(user matrix.UserID, usage string, raw []byte) (*storage.CrossSigningKey, error) {
	key, err := object(raw, canonicaljson.Strict, maxKeyObject, usage+" key")
	if err != nil {
		return nil, err
	}
	var shape struct {
		UserID     string                       `json:"user_id"`
		Usage      []string                     `json:"usage"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := decode(key, &shape, usage+" key"); err != nil {
		return nil, err
	}
	if shape.UserID != string(user) {
		return nil, matrix.InvalidParam("The user_id of the %s key is not the key's owner", usage)
	}
	if !slices.Contains(shape.Usage, usage) {
		return nil, matrix.InvalidParam("The usage of the %s key must include %q", usage, usage)
	}
	public, ok := publicKey(key)
	if !ok {
		return nil, matrix.InvalidParam("The %s key must hold one key, named ed25519: and its value", usage)
	}
	if _, ok := decodePublicKey(public); !ok || len(public) > 64 {
		return nil, matrix.InvalidParam("The %s key is not an ed25519 public key in base64", usage)
	}
	return &storage.CrossSigningKey{UserID: user, Usage: usage, Public: public, Key: canonicaljson.Delete(key, "unsigned")}, nil
}

// parse checks the form of all keys of an upload.
func (up CrossSigningUpload) parse(user matrix.UserID) (map[string]*storage.CrossSigningKey, error) {
	keys := map[string]*storage.CrossSigningKey{}
	for usage, raw := range map[string][]byte{usageMaster: up.MasterKey, usageSelfSigning: up.SelfSigningKey, usageUserSigning: up.UserSigningKey} {
		if len(raw) == 0 || string(raw) == "null" {
			continue
		}
		k, err := parseCrossSigningKey(user, usage, raw)
		if err != nil {
			return nil, err
		}
		keys[usage] = k
	}
	return keys, nil
}

func (c *CrossSigning) stored(ctx context.Context, q storage.Querier, user matrix.UserID) (map[string]storage.CrossSigningKey, error) {
	list, err := storage.ListCrossSigningKeys(ctx, q, []matrix.UserID{user})
	if err != nil {
		return nil, fmt.Errorf("cross-signing keys: %w", err)
	}
	keys := map[string]storage.CrossSigningKey{}
	for _, k := range list {
		keys[k.Usage] = k
	}
	return keys, nil
}

// NeedsAuth reports whether this upload needs user-interactive authentication: not if
// the user has no master key yet, nor if it has no new keys. spec: cs/uploadCrossSigningKeys, MSC3967
func (c *CrossSigning) NeedsAuth(ctx context.Context, user matrix.UserID, up CrossSigningUpload) (bool, error) {
	keys, err := up.parse(user)
	if err != nil {
		return false, err
	}
	stored, err := c.stored(ctx, c.DB, user)
	if err != nil {
		return false, err
	}
	if _, ok := stored[usageMaster]; !ok {
		return false, nil
	}
	for usage, k := range keys {
		if stored[usage].Public != k.Public {
			return true, nil
		}
	}
	return false, nil
}

// Upload stores the keys. Self-signing and user-signing keys must be signed by the master key: the one uploaded with
// them, or the stored one. A new master key ends the keys and signatures made with the one before.
// Errors: M_INVALID_SIGNATURE, M_MISSING_PARAM without any master key, M_FORBIDDEN if a key is a device's ID. spec: cs/uploadCrossSigningKeys
func (c *CrossSigning) Upload(ctx context.Context, user matrix.UserID, up CrossSigningUpload) error {
	keys, err := up.parse(user)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		return matrix.MissingParam("There is no key in the request")
	}
	aud, err := c.audienceOf(ctx, user)
	if err != nil {
		return err
	}
	err = c.DB.Write(ctx, func(tx *storage.Tx) error { return c.upload(ctx, tx, user, keys, aud) })
	if err != nil {
		return fmt.Errorf("upload cross-signing keys: %w", err)
	}
	return nil
}

func (c *CrossSigning) upload(ctx context.Context, tx *storage.Tx, user matrix.UserID, keys map[string]*storage.CrossSigningKey, aud audience) error {
	stored, err := c.stored(ctx, tx, user)
	if err != nil {
		return err
	}
	master, ok := stored[usageMaster]
	if k := keys[usageMaster]; k != nil {
		master, ok = *k, true
	}
	if !ok {
		return matrix.MissingParam("Upload a master key first")
	}
	if err := c.checkKeys(ctx, tx, user, keys, master); err != nil {
		return err
	}
	if was, ok := stored[usageMaster]; ok && was.Public != master.Public {
		for usage, k := range stored {
			if err := storage.DeleteKeySignatures(ctx, tx, user, k.Public); err != nil {
				return err
			}
			if err := storage.DeleteCrossSigningKey(ctx, tx, user, usage); err != nil {
				return err
			}
		}
	}
	changed, public := false, false
	for usage, k := range keys {
		if stored[usage].Public == k.Public && string(stored[usage].Key) == string(k.Key) {
			continue
		}
		changed = true
		public = public || usage != usageUserSigning
		if err := storage.PutCrossSigningKey(ctx, tx, *k); err != nil {
			return err
		}
	}
	if !changed {
		return nil
	}
	if !public {
		return c.notePrivate(ctx, tx, user, user)
	}
	return c.noteSigningKeys(ctx, tx, user, aud)
}

// checkKeys checks signatures by the master key, and that no key is taken for a device.
func (c *CrossSigning) checkKeys(ctx context.Context, tx *storage.Tx, user matrix.UserID, keys map[string]*storage.CrossSigningKey, master storage.CrossSigningKey) error {
	masterKey, ok := decodePublicKey(master.Public)
	if !ok {
		return errors.New("stored master key is malformed")
	}
	for usage, k := range keys {
		_, err := storage.GetDevice(ctx, tx, user, matrix.DeviceID(k.Public))
		if err == nil {
			return matrix.Forbidden("Key ID in use")
		}
		if !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if usage == usageMaster {
			continue
		}
		if signing.Verify(string(user), matrix.KeyID("ed25519:"+master.Public), masterKey, k.Key) != nil {
			return matrix.Errorf(http.StatusBadRequest, "M_INVALID_SIGNATURE", "The %s key is not signed by the master key", usage)
		}
	}
	return nil
}

// noteSigningKeys tells everybody who follows a local user's devices that the public cross-signing keys changed.
func (c *CrossSigning) noteSigningKeys(ctx context.Context, tx *storage.Tx, user matrix.UserID, aud audience) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	if err := storage.SetDeviceListChange(ctx, tx, user, pos, c.now(), 0); err != nil {
		return err
	}
	if len(aud.servers) > 0 {
		ring, err := loadKeys(ctx, tx, "", []matrix.UserID{user}, storage.ListDeviceKeys)
		if err != nil {
			return err
		}
		keys := ring.cross[user]
		u := signingKeyUpdate{UserID: user, MasterKey: keys[usageMaster], SelfSigningKey: keys[usageSelfSigning]}
		if err := c.Outbox.QueueEDU(ctx, tx, aud.servers, eduSigningKeyUpdate, encode(u)); err != nil {
			return fmt.Errorf("queue signing key update: %w", err)
		}
	}
	c.wake(tx, aud.local...)
	return nil
}

// notePrivate tells observer alone that user's keys look different to them now.
func (c *CrossSigning) notePrivate(ctx context.Context, tx *storage.Tx, observer, user matrix.UserID) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	if err := storage.SetPrivateKeyChange(ctx, tx, observer, user, pos); err != nil {
		return err
	}
	c.wake(tx, observer)
	return nil
}
