package keyring

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/storage"
)

// document is the JSON in which a server publishes its keys. spec: ss/getServerKey
type document struct {
	ServerName    string                     `json:"server_name"`
	VerifyKeys    map[matrix.KeyID]verifyKey `json:"verify_keys"`
	OldVerifyKeys map[matrix.KeyID]oldKey    `json:"old_verify_keys"`
	ValidUntil    int64                      `json:"valid_until_ts"`
}

type verifyKey struct {
	Key string `json:"key"`
}

type oldKey struct {
	Key     string `json:"key"`
	Expired int64  `json:"expired_ts"`
}

// What one document may make us store: it is stored with each of its keys.
const (
	maxKeysPerServer = 100
	maxStoredBytes   = 1 << 20
)

// parse checks a key document: that it is the server's, and signed by every key in
// verify_keys that claims to have signed it, by one at least.
func parse(raw []byte, server matrix.ServerName, now matrix.Timestamp) ([]storage.ServerKey, error) {
	canonical, err := canonicaljson.Canonical(raw, canonicaljson.Strict)
	if err != nil {
		return nil, fmt.Errorf("key document: %w", err)
	}
	var doc document
	if err := json.Unmarshal(canonical, &doc); err != nil {
		return nil, fmt.Errorf("key document: %w", err)
	}
	if matrix.ServerName(doc.ServerName) != server {
		return nil, fmt.Errorf("key document: %w: it is for %q, not for %q", ErrOtherServer, doc.ServerName, server)
	}
	if n := len(doc.VerifyKeys) + len(doc.OldVerifyKeys); n > maxKeysPerServer || n*len(canonical) > maxStoredBytes {
		return nil, errors.New("key document: too many keys")
	}
	signed := map[matrix.KeyID]bool{}
	for _, id := range signing.KeyIDs(doc.ServerName, canonical) {
		signed[id] = true
	}
	var keys []storage.ServerKey
	verified := false
	for id, k := range doc.VerifyKeys {
		if !strings.HasPrefix(string(id), "ed25519:") {
			continue
		}
		public, err := publicKey(k.Key)
		if err != nil {
			return nil, fmt.Errorf("key document: %s: %w", id, err)
		}
		if signed[id] {
			if err := signing.Verify(doc.ServerName, id, public, canonical); err != nil {
				return nil, fmt.Errorf("key document: %w: %s: %w", ErrNotSigned, id, err)
			}
			verified = true
		}
		keys = append(keys, storage.ServerKey{
			Server: server, KeyID: id, Public: public, ValidUntil: matrix.Timestamp(doc.ValidUntil), FetchedAt: now, Document: canonical,
		})
	}
	if !verified {
		return nil, fmt.Errorf("key document: %w", ErrNotSigned)
	}
	for id, k := range doc.OldVerifyKeys {
		if _, current := doc.VerifyKeys[id]; current || !strings.HasPrefix(string(id), "ed25519:") {
			continue
		}
		public, err := publicKey(k.Key)
		if err != nil {
			return nil, fmt.Errorf("key document: %s: %w", id, err)
		}
		keys = append(keys, storage.ServerKey{
			Server: server, KeyID: id, Public: public, ValidUntil: matrix.Timestamp(k.Expired), Expired: true, FetchedAt: now, Document: canonical,
		})
	}
	return keys, nil
}

// Published reads the keys that a server signs with from its document, after checking that.
func Published(raw []byte, server matrix.ServerName) (map[matrix.KeyID]ed25519.PublicKey, error) {
	keys, err := parse(raw, server, 0)
	if err != nil {
		return nil, err
	}
	out := make(map[matrix.KeyID]ed25519.PublicKey, len(keys))
	for _, k := range keys {
		if !k.Expired {
			out[k.KeyID] = k.Public
		}
	}
	return out, nil
}

func publicKey(s string) (ed25519.PublicKey, error) {
	b, err := signing.DecodeBase64(s)
	if err != nil {
		return nil, err
	}
	if len(b) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("a public key has %d bytes, not %d", ed25519.PublicKeySize, len(b))
	}
	return b, nil
}

const (
	// ownValidity is how long others may believe our document.
	ownValidity = 24 * time.Hour
	// ownRenewal is when it is made anew.
	ownRenewal = 12 * time.Hour
)

// Own returns our signed key document, valid for twelve hours at least. spec: ss/getServerKey
func (r *Ring) Own() ([]byte, error) {
	r.ownMu.Lock()
	defer r.ownMu.Unlock()
	now := r.opts.Now()
	if r.own != nil && now.Before(r.ownUntil.Add(-ownRenewal)) {
		return r.own, nil
	}
	until := now.Add(ownValidity)
	public, _ := r.opts.Key.Private.Public().(ed25519.PublicKey)
	doc := document{
		ServerName:    string(r.opts.ServerName),
		VerifyKeys:    map[matrix.KeyID]verifyKey{r.opts.Key.ID: {signing.EncodeBase64(public)}},
		OldVerifyKeys: map[matrix.KeyID]oldKey{},
		ValidUntil:    until.UnixMilli(),
	}
	for _, k := range r.opts.OldKeys {
		doc.OldVerifyKeys[k.ID] = oldKey{signing.EncodeBase64(k.Public), int64(k.Expired)}
	}
	canonical, err := canonicaljson.Marshal(doc)
	if err != nil {
		return nil, fmt.Errorf("own key document: %w", err)
	}
	signed, err := r.opts.Key.Sign(string(r.opts.ServerName), canonical)
	if err != nil {
		return nil, fmt.Errorf("own key document: %w", err)
	}
	r.own, r.ownUntil = signed, until
	return signed, nil
}
