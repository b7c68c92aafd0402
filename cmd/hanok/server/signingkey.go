package server

import (
	"bufio"
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

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
	key, err := signing.Generate()
	if err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	_, err = f.Write(formatSigningKey(key))
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Link(path+".new", path) // unlike Rename, does not replace a key that was made meanwhile
	}
	if err = errors.Join(err, os.Remove(path+".new")); err != nil {
		return signing.Key{}, fmt.Errorf("make a signing key: %w", err)
	}
	return key, nil
}
