package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSigningKeyFile(t *testing.T) {
	// A seed and its public key from the specification's test vectors, in Synapse's file format.
	// spec: appendices#cryptographic-test-vectors
	key, err := parseSigningKey([]byte("ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1\n"))
	if err != nil || key.ID != "ed25519:1" {
		t.Fatal(key.ID, err)
	}
	if got := string(formatSigningKey(key)); got != "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA0\n" { // the unused bits of the last character are 0
		t.Errorf("written as %q", got)
	}
	for _, bad := range []string{
		"", "\n# comment\n", "ed25519 1", "ed448 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1", "ed25519 1 short",
		"ed25519 a:b YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1", "ed25519 1 YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1 more",
	} {
		if k, err := parseSigningKey([]byte(bad)); err == nil {
			t.Errorf("%q was taken as %v", bad, k.ID)
		}
	}
}

func TestSigningKeyIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data", "signing.key")
	first, err := loadSigningKey(path)
	if err != nil {
		t.Fatal(err)
	}
	again, err := loadSigningKey(path)
	if err != nil || again.ID != first.ID || !again.Private.Equal(first.Private) {
		t.Errorf("another key after a restart: %v %v", again.ID, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil { // as an unlucky crash of another program might leave it
		t.Fatal(err)
	}
	if _, err := loadSigningKey(path); err == nil || !strings.Contains(err.Error(), "Put back a copy") {
		t.Errorf("a broken key must not be replaced silently: %v", err)
	}
}
