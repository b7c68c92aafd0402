package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Keys are device keys, one-time keys and fallback keys: uploading them is here, querying in keyquery.go, claiming in keyclaim.go.
// spec: client-server-api#end-to-end-encryption
type Keys struct {
	*core
	lists  *DeviceLists
	counts *storage.Memo[deviceKey, *KeyCounts]
	claims *claimMemory // of other servers
}

// KeysUpload is the body of POST /keys/upload. spec: cs/uploadKeys
type KeysUpload struct {
	DeviceKeys   rawJSON            `json:"device_keys,omitempty"`
	OneTimeKeys  map[string]rawJSON `json:"one_time_keys,omitempty"`
	FallbackKeys map[string]rawJSON `json:"fallback_keys,omitempty"`
}

// KeyCounts is what /sync tells a device about its own keys.
type KeyCounts struct {
	OneTime        map[string]int64 // unclaimed keys by algorithm; signed_curve25519 is always there
	UnusedFallback []string         // algorithms with a fallback key that was not used, never nil
}

// Limits of uploads.
const (
	maxOneTimeKeys     = 5000    // held for one device
	maxFallbackKeys    = 10      // algorithms
	maxOneTimeKey      = 4 << 10 // bytes
	signedCurve25519   = "signed_curve25519"
	maxAlgorithmLength = 64
)

// Upload stores keys and returns the counts of one-time keys by algorithm. M_BAD_JSON for keys that are malformed, M_INVALID_PARAM if device keys are for another user
// or device, or a one-time key differs from the one with the same ID; M_NOT_FOUND if the device is gone. Sending the same
// again changes nothing. spec: cs/uploadKeys
func (k *Keys) Upload(ctx context.Context, user matrix.UserID, device matrix.DeviceID, up KeysUpload) (map[string]int64, error) {
	deviceKeys, err := parseDeviceKeys(user, device, up.DeviceKeys)
	if err != nil {
		return nil, err
	}
	if len(up.OneTimeKeys) > maxOneTimeKeys || len(up.FallbackKeys) > maxFallbackKeys {
		return nil, matrix.TooLarge("Too many keys at once")
	}
	oneTime, err := parseClaimable(up.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	fallback, err := parseClaimable(up.FallbackKeys)
	if err != nil {
		return nil, err
	}
	algorithms := map[string]bool{}
	for _, f := range fallback {
		if algorithms[f.Algorithm] {
			return nil, matrix.InvalidParam("There can be one fallback key per algorithm")
		}
		algorithms[f.Algorithm] = true
	}
	var aud audience
	if deviceKeys != nil {
		if aud, err = k.audienceOf(ctx, user); err != nil {
			return nil, err
		}
	}
	var counts map[string]int64
	err = k.DB.Write(ctx, func(tx *storage.Tx) error {
		was, err := storage.GetDeviceKeys(ctx, tx, user, device)
		if errors.Is(err, storage.ErrNotFound) {
			return errNoDevice
		}
		if err != nil {
			return err
		}
		if deviceKeys != nil && !bytes.Equal(deviceKeys, was.Keys) {
			if err := k.replaceDeviceKeys(ctx, tx, was, deviceKeys, aud); err != nil {
				return err
			}
		}
		if err := k.addOneTimeKeys(ctx, tx, user, device, oneTime); err != nil {
			return err
		}
		for _, f := range fallback {
			if err := storage.PutFallbackKey(ctx, tx, user, device, f); err != nil {
				return err
			}
		}
		counts, err = oneTimeCounts(ctx, tx, user, device)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("upload keys: %w", err)
	}
	return counts, nil
}

// replaceDeviceKeys stores identity keys. If they are other keys than before, what was signed by or for the old ones goes.
func (k *Keys) replaceDeviceKeys(ctx context.Context, tx *storage.Tx, was storage.DeviceKeys, keys []byte, aud audience) error {
	if was.Keys != nil {
		before, _ := canonicaljson.Get(was.Keys, "keys")
		after, _ := canonicaljson.Get(keys, "keys")
		if !bytes.Equal(before, after) {
			if err := storage.DeleteClaimableKeys(ctx, tx, was.UserID, was.DeviceID); err != nil {
				return err
			}
			if err := storage.DeleteKeySignatures(ctx, tx, was.UserID, string(was.DeviceID)); err != nil {
				return err
			}
		}
	}
	if _, err := storage.SetDeviceKeys(ctx, tx, was.UserID, was.DeviceID, keys); err != nil {
		return err
	}
	return k.noteDevices(ctx, tx, was.UserID, aud, was.DeviceID)
}

// addOneTimeKeys stores those that are new.
func (k *Keys) addOneTimeKeys(ctx context.Context, tx *storage.Tx, user matrix.UserID, device matrix.DeviceID, keys []storage.OneTimeKey) error {
	if len(keys) == 0 {
		return nil
	}
	stored, err := storage.ListOneTimeKeys(ctx, tx, user, device)
	if err != nil {
		return err
	}
	existing := map[string][]byte{}
	for _, s := range stored {
		existing[s.Algorithm+":"+s.KeyID] = s.Key
	}
	var fresh []storage.OneTimeKey
	for _, key := range keys {
		id := key.Algorithm + ":" + key.KeyID
		switch old, ok := existing[id]; {
		case !ok:
			fresh = append(fresh, key)
		case !bytes.Equal(unsigned(old), unsigned(key.Key)):
			return matrix.InvalidParam("One-time key %s already exists with another value", id)
		}
	}
	if len(fresh) == 0 {
		return nil
	}
	if len(stored)+len(fresh) > maxOneTimeKeys {
		return matrix.TooLarge("This device holds as many one-time keys as it may")
	}
	upload, err := tx.NextPosition()
	if err != nil {
		return err
	}
	return storage.InsertOneTimeKeys(ctx, tx, user, device, upload, fresh)
}

// unsigned is what two keys are compared by: the same key may be signed anew.
func unsigned(key []byte) []byte {
	if !canonicaljson.IsObject(key) {
		return key
	}
	return canonicaljson.Delete(key, "signatures", "unsigned")
}

// parseDeviceKeys checks identity keys and returns them in canonical form without `unsigned`; nil if there are none.
func parseDeviceKeys(user matrix.UserID, device matrix.DeviceID, raw []byte) ([]byte, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	keys, err := object(raw, canonicaljson.Strict, maxKeyObject, "device_keys")
	if err != nil {
		return nil, err
	}
	var shape struct {
		UserID     *string                      `json:"user_id"`
		DeviceID   *string                      `json:"device_id"`
		Algorithms []string                     `json:"algorithms"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := decode(keys, &shape, "device_keys"); err != nil {
		return nil, err
	}
	switch {
	case shape.UserID == nil || shape.DeviceID == nil || shape.Algorithms == nil || shape.Keys == nil || shape.Signatures == nil:
		return nil, matrix.BadJSON("device_keys needs user_id, device_id, algorithms, keys and signatures")
	case *shape.UserID != string(user):
		return nil, matrix.InvalidParam("The user_id of device_keys is not yours")
	case *shape.DeviceID != string(device):
		return nil, matrix.InvalidParam("The device_id of device_keys is not that of this device")
	}
	for id := range shape.Keys {
		if _, err := matrix.ParseKeyID(id); err != nil {
			return nil, err
		}
	}
	return canonicaljson.Delete(keys, "unsigned"), nil
}

// parseClaimable checks one-time or fallback keys, given by "algorithm:id", and returns them in order of ID.
func parseClaimable(raw map[string]rawJSON) ([]storage.OneTimeKey, error) {
	keys := make([]storage.OneTimeKey, 0, len(raw))
	for id, value := range raw {
		parsed, err := matrix.ParseKeyID(id)
		if err != nil {
			return nil, err
		}
		if len(parsed.Algorithm()) > maxAlgorithmLength {
			return nil, matrix.InvalidParam("The algorithm of key %q is too long", id)
		}
		if len(value) > maxOneTimeKey {
			return nil, matrix.TooLarge("Key %q is larger than %d bytes", id, maxOneTimeKey)
		}
		key, err := canonicaljson.Canonical(value, canonicaljson.Strict)
		if err != nil {
			return nil, err
		}
		if canonicaljson.IsObject(key) {
			if _, ok := canonicaljson.GetString(key, "key"); !ok {
				return nil, matrix.BadJSON("Key %q needs a member `key`", id)
			}
			if raw, ok := canonicaljson.Get(key, "signatures"); ok && !canonicaljson.IsObject(raw) {
				return nil, matrix.BadJSON("The signatures of key %q must be an object", id)
			}
		} else if _, ok := canonicaljson.String(key); !ok {
			return nil, matrix.BadJSON("Key %q must be an object or a string", id)
		}
		keys = append(keys, storage.OneTimeKey{Algorithm: parsed.Algorithm(), KeyID: parsed.Identifier(), Key: key})
	}
	slices.SortFunc(keys, func(a, b storage.OneTimeKey) int { return strings.Compare(a.KeyID, b.KeyID) })
	return keys, nil
}

func oneTimeCounts(ctx context.Context, q storage.Querier, user matrix.UserID, device matrix.DeviceID) (map[string]int64, error) {
	counts, err := storage.CountOneTimeKeys(ctx, q, user, device)
	if err != nil {
		return nil, err
	}
	// Clients take a missing count for "not told", and would not make new keys.
	if _, ok := counts[signedCurve25519]; !ok {
		counts[signedCurve25519] = 0
	}
	return counts, nil
}

// Counts is for /sync.
func (k *Keys) Counts(ctx context.Context, q storage.Querier, user matrix.UserID, device matrix.DeviceID) (*KeyCounts, error) {
	return k.counts.Get(deviceKey{user, device}, storage.Subject{Topic: storage.TopicKeys, User: string(user)}, func() (*KeyCounts, error) {
		return readCounts(ctx, q, user, device)
	})
}

func readCounts(ctx context.Context, q storage.Querier, user matrix.UserID, device matrix.DeviceID) (*KeyCounts, error) {
	counts, err := oneTimeCounts(ctx, q, user, device)
	if err != nil {
		return nil, fmt.Errorf("one-time key counts: %w", err)
	}
	unused, err := storage.UnusedFallbackKeys(ctx, q, user, device)
	if err != nil {
		return nil, fmt.Errorf("unused fallback keys: %w", err)
	}
	if unused == nil {
		unused = []string{}
	}
	return &KeyCounts{OneTime: counts, UnusedFallback: unused}, nil
}
