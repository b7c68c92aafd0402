package users

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

// HashCost is the cost of an argon2id password hash.
type HashCost struct {
	Time     uint32 // passes; 2 if zero
	Memory   uint32 // KiB; 19 MiB if zero
	Parallel int    // how many passwords are hashed at the same time; number of CPUs if zero
}

// CheapHashing is for tests.
var CheapHashing = HashCost{Time: 1, Memory: 64}

// Limits of what a stored hash may ask for, so that an imported one cannot exhaust memory.
const (
	maxHashMemory = 1 << 20 // KiB
	maxHashTime   = 64
)

// hasher hashes passwords, a bounded number at a time: each takes its share of memory.
type hasher struct {
	cost  HashCost
	slots chan struct{}
}

func newHasher(cost HashCost) *hasher {
	if cost.Time == 0 {
		cost.Time = 2
	}
	if cost.Memory == 0 {
		cost.Memory = 19 * 1024
	}
	if cost.Parallel == 0 {
		cost.Parallel = runtime.GOMAXPROCS(0)
	}
	return &hasher{cost: cost, slots: make(chan struct{}, cost.Parallel)}
}

// acquire waits for a slot.
func (h *hasher) acquire(ctx context.Context) error {
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (h *hasher) release() { <-h.slots }

// hash makes a hash in the text form of the argon2 tools.
func (h *hasher) hash(ctx context.Context, password string) (string, error) {
	if err := h.acquire(ctx); err != nil {
		return "", err
	}
	defer h.release()
	salt := make([]byte, 16)
	rand.Read(salt)
	key := argon2.IDKey([]byte(password), salt, h.cost.Time, h.cost.Memory, 1, 32)
	b64 := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=1$%s$%s", argon2.Version, h.cost.Memory, h.cost.Time,
		b64.EncodeToString(salt), b64.EncodeToString(key)), nil
}

// verify compares a password with a stored hash. old reports that the hash should be made anew.
func (h *hasher) verify(ctx context.Context, stored, password string) (ok, old bool, err error) {
	if err := h.acquire(ctx); err != nil {
		return false, false, err
	}
	defer h.release()
	if strings.HasPrefix(stored, "$2") {
		err := bcrypt.CompareHashAndPassword([]byte(stored), []byte(password))
		if errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
			return false, false, nil
		}
		return err == nil, true, err
	}
	p, err := parseArgon(stored)
	if err != nil {
		return false, false, err
	}
	key := argon2.IDKey([]byte(password), p.salt, p.time, p.memory, p.threads, uint32(len(p.key)))
	ok = subtle.ConstantTimeCompare(key, p.key) == 1
	return ok, p.time != h.cost.Time || p.memory != h.cost.Memory, nil
}

// waste takes as long as verify, so that a missing user is not told from a wrong password.
func (h *hasher) waste(ctx context.Context, password string) error {
	if err := h.acquire(ctx); err != nil {
		return err
	}
	defer h.release()
	argon2.IDKey([]byte(password), make([]byte, 16), h.cost.Time, h.cost.Memory, 1, 32)
	return nil
}

type argonParams struct {
	time, memory uint32
	threads      uint8
	salt, key    []byte
}

func parseArgon(stored string) (p argonParams, err error) {
	fields := strings.Split(stored, "$")
	if len(fields) != 6 || fields[1] != "argon2id" || fields[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return p, errors.New("password hash of unknown kind")
	}
	if _, err := fmt.Sscanf(fields[3], "m=%d,t=%d,p=%d", &p.memory, &p.time, &p.threads); err != nil {
		return p, fmt.Errorf("password hash: %w", err)
	}
	if p.memory > maxHashMemory || p.time > maxHashTime || p.time == 0 || p.threads == 0 {
		return p, errors.New("password hash asks for too much")
	}
	if p.salt, err = base64.RawStdEncoding.DecodeString(fields[4]); err != nil {
		return p, fmt.Errorf("password hash: %w", err)
	}
	if p.key, err = base64.RawStdEncoding.DecodeString(fields[5]); err != nil {
		return p, fmt.Errorf("password hash: %w", err)
	}
	if len(p.key) < 16 || len(p.key) > 128 {
		return p, errors.New("password hash of unknown length")
	}
	return p, nil
}
