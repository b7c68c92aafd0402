package users

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/storage"
)

// SignatureUpload is the body of POST /keys/signatures/upload: by user, then by device ID or public key.
type SignatureUpload map[matrix.UserID]map[string]json.RawMessage

// SignatureFailures has an error body per object that was refused.
type SignatureFailures map[matrix.UserID]map[string]json.RawMessage

// maxSignatures is how many objects one upload may hold.
const maxSignatures = 5000

func (f SignatureFailures) add(user matrix.UserID, id string, err *matrix.Error) {
	if f[user] == nil {
		f[user] = map[string]json.RawMessage{}
	}
	f[user][id] = encode(map[string]string{"errcode": err.Code, "error": err.Message})
}

// UploadSignatures verifies and stores signatures: of the user's devices by the self-signing key, of the user's master key by
// devices, of other users' master keys by the user-signing key. Each object must be what is stored but for the new signatures.
// What is refused is in the failures. spec: cs/uploadCrossSigningSignatures
func (c *CrossSigning) UploadSignatures(ctx context.Context, user matrix.UserID, up SignatureUpload) (SignatureFailures, error) {
	n, wanted := 0, Wanted{user: nil}
	for target, objects := range up {
		if _, err := matrix.ParseUserID(string(target)); err != nil {
			return nil, err
		}
		wanted[target] = nil
		n += len(objects)
	}
	if n > maxSignatures {
		return nil, matrix.TooLarge("Too many signatures at once")
	}
	// Other users' keys come from the cache or their servers, as for /keys/query.
	known, err := c.keys.Query(ctx, user, wanted)
	if err != nil {
		return nil, err
	}
	failures := SignatureFailures{}
	var accepted []storage.KeySignature
	for target, objects := range up {
		for id, raw := range objects {
			s, err := c.checkSignature(known, user, target, id, raw)
			if e, ok := matrix.AsError(err); ok {
				failures.add(target, id, e)
				continue
			}
			if err != nil {
				return nil, err
			}
			accepted = append(accepted, s...)
		}
	}
	if len(accepted) == 0 {
		return failures, nil
	}
	aud, err := c.audienceOf(ctx, user)
	if err != nil {
		return nil, err
	}
	err = c.DB.Write(ctx, func(tx *storage.Tx) error { return c.storeSignatures(ctx, tx, user, accepted, aud) })
	if err != nil {
		return nil, fmt.Errorf("upload signatures: %w", err)
	}
	return failures, nil
}

// checkSignature returns the valid new signatures in one object.
func (c *CrossSigning) checkSignature(known *QueryResult, user, target matrix.UserID, id string, raw []byte) ([]storage.KeySignature, error) {
	signed, err := object(raw, canonicaljson.Strict, maxKeyObject, "The signed object")
	if err != nil {
		return nil, err
	}
	device, isDevice := known.DeviceKeys[target][matrix.DeviceID(id)]
	master := known.MasterKeys[target]
	masterPublic, _ := publicKey(master)
	var stored []byte
	switch {
	case isDevice && target == user:
		stored = device
	case master != nil && id == masterPublic:
		stored = master
	default:
		return nil, matrix.NotFound("There is no such device or master key")
	}
	if !bytes.Equal(signing.Payload(signed), signing.Payload(stored)) {
		return nil, matrix.InvalidParam("The object is not the key that is stored")
	}
	var out []storage.KeySignature
	for _, keyID := range signing.KeyIDs(string(user), signed) {
		public, ok := c.signer(known, user, target, isDevice && target == user, keyID)
		if !ok {
			continue // by a key that has no say here, as a device's own signature of itself
		}
		if signing.Verify(string(user), keyID, public, signed) != nil {
			return nil, errInvalidSignature
		}
		signature, _ := signing.Signature(string(user), keyID, signed)
		out = append(out, storage.KeySignature{
			TargetUser: target, TargetID: id, Signer: user, KeyID: matrix.KeyID(strings.Clone(string(keyID))),
			Signature: signing.EncodeBase64(signature),
		})
	}
	if len(out) == 0 {
		return nil, matrix.Errorf(http.StatusBadRequest, "M_INVALID_SIGNATURE", "There is no signature by a key that may sign this object")
	}
	return out, nil
}

// signer returns the public key of a key ID, if that key may sign this kind of object.
func (c *CrossSigning) signer(known *QueryResult, user, target matrix.UserID, ofDevice bool, keyID matrix.KeyID) (ed25519.PublicKey, bool) {
	var public string
	switch {
	case ofDevice:
		public, _ = publicKey(known.SelfSigningKeys[user])
		if keyID.Identifier() != public {
			return nil, false
		}
	case target != user:
		public, _ = publicKey(known.UserSigningKeys[user])
		if keyID.Identifier() != public {
			return nil, false
		}
	default: // the user's own master key, by a device
		keys, _ := canonicaljson.GetObject(known.DeviceKeys[user][matrix.DeviceID(keyID.Identifier())], "keys")
		if keys == nil {
			return nil, false
		}
		public, _ = canonicaljson.GetString(keys, string(keyID))
	}
	if keyID.Algorithm() != "ed25519" {
		return nil, false
	}
	return decodePublicKey(public)
}

// storeSignatures stores what was checked, and tells those who may see it.
func (c *CrossSigning) storeSignatures(ctx context.Context, tx *storage.Tx, user matrix.UserID, signatures []storage.KeySignature, aud audience) error {
	master := false
	var devices []matrix.DeviceID
	others := map[matrix.UserID]bool{}
	for _, s := range signatures {
		if err := storage.PutKeySignature(ctx, tx, s); err != nil {
			return err
		}
		device := matrix.DeviceID(s.TargetID)
		_, err := storage.GetDevice(ctx, tx, user, device)
		switch {
		case s.TargetUser != user:
			others[s.TargetUser] = true
		case err == nil:
			devices = append(devices, device)
		case err == storage.ErrNotFound:
			master = true
		default:
			return err
		}
	}
	if err := c.noteDevices(ctx, tx, user, aud, devices...); err != nil {
		return err
	}
	if master {
		if err := c.noteSigningKeys(ctx, tx, user, aud); err != nil {
			return err
		}
	}
	for other := range others {
		if err := c.notePrivate(ctx, tx, user, other); err != nil {
			return err
		}
	}
	return nil
}
