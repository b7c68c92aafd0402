package server

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"hanok/federation/keyring"
	"hanok/matrix"
	"hanok/matrix/signing"
)

// loadSigningKey reads the server's key, and makes one on first start. The
// file has Synapse's format, so that a server can move in with its key: a line
// "ed25519 VERSION SEED", the seed in unpadded base64. Further lines are ignored.
func loadSigningKey(path string) (signing.Key, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeSigningKey(path)
	}
	if err != nil {
		return signing.Key{}, fmt.Errorf("read the signing key: %w", err)
	}
	key, err := parseSigningKey(data)
	if err != nil {
		return signing.Key{}, fmt.Errorf("the signing key %s cannot be used: %w. Put back a copy of it: without it other servers will not know this one", path, err)
	}
	return key, nil
}

func parseSigningKey(data []byte) (signing.Key, error) {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if len(fields) != 3 || fields[0] != "ed25519" {
			return signing.Key{}, errors.New(`its first line is not "ed25519 VERSION SEED"`)
		}
		id, err := matrix.ParseKeyID("ed25519:" + fields[1])
		if err != nil || !id.ServerKey() {
			return signing.Key{}, fmt.Errorf("%q is not a key version", fields[1])
		}
		seed, err := signing.DecodeBase64(fields[2])
		if err != nil || len(seed) != ed25519.SeedSize {
			return signing.Key{}, errors.New("its seed is not 32 bytes in base64")
		}
		return signing.Key{ID: id, Private: ed25519.NewKeyFromSeed(seed)}, nil
	}
	return signing.Key{}, errors.New("it is empty")
}

func formatSigningKey(key signing.Key) []byte {
	return fmt.Appendf(nil, "ed25519 %s %s\n", key.ID.Identifier(), signing.EncodeBase64(key.Private.Seed()))
}

// makeSigningKey makes a key and has it on disk before anybody sees anything signed with it.
func makeSigningKey(path string) (signing.Key, error) {
	key, err := writeNewKey(path + ".new")
	if err != nil {
		return signing.Key{}, err
	}
	err = os.Link(path+".new", path) // unlike Rename, does not replace a key that was made meanwhile
	if err = errors.Join(err, os.Remove(path+".new")); err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	return key, nil
}

func writeNewKey(path string) (signing.Key, error) {
	key, err := signing.Generate()
	if err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	_, err = f.Write(formatSigningKey(key))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	return key, nil
}

// RotateSigningKey puts a new key in place of the one in the file, which it keeps beside it. A server that runs goes on
// with its key until it is started again; then the old one is retired.
func (s *Server) RotateSigningKey(ctx context.Context) (rotated signing.Key, kept string, err error) {
	path := s.cfg.Server.SigningKey
	// What was signed with the key so far must stay verifiable, also if the server has never run with this database.
	if err := keyring.RecordFirst(ctx, s.db, s.name, s.key, matrix.TimestampOf(time.Now())); err != nil {
		return rotated, "", err
	}
	kept = path + "." + s.key.ID.Identifier()
	if err := os.Link(path, kept); err != nil && !errors.Is(err, fs.ErrExist) {
		return rotated, "", fmt.Errorf("keep the old signing key: %w", err)
	}
	if rotated, err = writeNewKey(path + ".new"); err != nil {
		return rotated, "", err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return rotated, "", fmt.Errorf("put the new signing key in place: %w", err)
	}
	return rotated, kept, nil
}

// SigningKeys lists the key in the file and those that were used before.
func (s *Server) SigningKeys(ctx context.Context) (current signing.Key, old []keyring.OldKey, err error) {
	old, err = keyring.OldKeys(ctx, s.db, s.name, s.key, matrix.TimestampOf(time.Now()))
	return s.key, old, err
}
