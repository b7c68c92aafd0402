package users

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Claims names the one-time keys that are wanted: user, device, algorithm.
type Claims map[matrix.UserID]map[matrix.DeviceID]string

// ClaimedKeys are one-time keys: user, device, key ID, key.
type ClaimedKeys map[matrix.UserID]map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage

// ClaimResult is the response of POST /keys/claim. spec: cs/claimKeys
type ClaimResult struct {
	OneTimeKeys ClaimedKeys    `json:"one_time_keys"`
	Failures    RemoteFailures `json:"failures"`
}

// RemoteFailures says which servers could not be asked.
type RemoteFailures map[matrix.ServerName]json.RawMessage

// Limits of one request.
const (
	maxClaims       = 10_000 // devices
	remoteAskedOnce = 32     // servers asked at the same time, of those that answer and of the others
)

var serverUnreachable = rawJSON(`{"status":503,"message":"The server could not be reached"}`)

func (c Claims) count() (n int) {
	for _, devices := range c {
		n += len(devices)
	}
	return n
}

func (c ClaimedKeys) add(user matrix.UserID, device matrix.DeviceID, id matrix.KeyID, key []byte) {
	if c[user] == nil {
		c[user] = map[matrix.DeviceID]map[matrix.KeyID]json.RawMessage{}
	}
	c[user][device] = map[matrix.KeyID]json.RawMessage{id: key}
}

// Claim claims one-time keys of local and remote devices; servers that do not answer
// in time are in Failures. spec: cs/claimKeys
func (k *Keys) Claim(ctx context.Context, claims Claims) (*ClaimResult, error) {
	local, remote, err := k.splitClaims(claims)
	if err != nil {
		return nil, err
	}
	out := &ClaimResult{Failures: RemoteFailures{}}
	if out.OneTimeKeys, err = k.ClaimLocal(ctx, local); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.RemoteTimeout)
	defer cancel()
	var mu sync.Mutex
	err = askServers(k.core, remote, func(server matrix.ServerName, wanted Claims) error {
		got, err := k.Remote.ClaimKeys(ctx, server, wanted)
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			out.Failures[server] = serverUnreachable
			return nil
		}
		for user, devices := range wanted {
			for device, algorithm := range devices {
				for id, key := range got[user][device] {
					// Only what was asked for, once, and in a form that is safe to pass on.
					if canonical, err := canonicaljson.Canonical(key, canonicaljson.Lenient); err == nil &&
						id.Algorithm() == algorithm && len(canonical) <= maxOneTimeKey && out.OneTimeKeys[user][device] == nil {
						out.OneTimeKeys.add(user, device, id, canonical)
					}
				}
			}
		}
		return nil
	})
	return out, err
}

// askServers puts a question to each server, several at the same time. Those that answer do not wait for the others, each of
// which may be silent until nobody waits any more.
func askServers[T any](c *core, questions map[matrix.ServerName]T, ask func(matrix.ServerName, T) error) error {
	var lanes [2][]matrix.ServerName
	for server := range questions {
		i := 0
		if !c.Remote.Answers(server) {
			i = 1
		}
		lanes[i] = append(lanes[i], server)
	}
	var all errgroup.Group
	for _, servers := range lanes {
		all.Go(func() error {
			var lane errgroup.Group
			lane.SetLimit(remoteAskedOnce)
			for _, server := range servers {
				lane.Go(func() error { return ask(server, questions[server]) })
			}
			return lane.Wait()
		})
	}
	return all.Wait()
}

// splitClaims sorts claims by server; IDs are checked.
func (k *Keys) splitClaims(claims Claims) (local Claims, remote map[matrix.ServerName]Claims, err error) {
	if claims.count() > maxClaims {
		return nil, nil, matrix.TooLarge("Too many keys claimed at once")
	}
	local, remote = Claims{}, map[matrix.ServerName]Claims{}
	for user, devices := range claims {
		if _, err := matrix.ParseUserID(string(user)); err != nil {
			return nil, nil, err
		}
		if k.local(user) {
			local[user] = devices
			continue
		}
		server := user.Server()
		if remote[server] == nil {
			remote[server] = Claims{}
		}
		remote[server][user] = devices
	}
	return local, remote, nil
}

// ClaimFor answers another server: users that are not ours and devices without keys are left out. A server that claims one key of a device
// after the other gets its fallback key, so that others find one-time keys. spec: ss/claimUserEncryptionKeys
func (k *Keys) ClaimFor(ctx context.Context, origin matrix.ServerName, claims Claims) (ClaimedKeys, error) {
	claimed, err := k.claim(ctx, claims, func(user matrix.UserID, device matrix.DeviceID) bool {
		return k.claims.many(claimant{origin, user, device}, k.Clock())
	})
	for user, devices := range claimed {
		for device := range devices {
			k.claims.note(claimant{origin, user, device}, k.Clock())
		}
	}
	return claimed, err
}

// ClaimLocal claims keys of local devices for a local user.
func (k *Keys) ClaimLocal(ctx context.Context, claims Claims) (ClaimedKeys, error) {
	return k.claim(ctx, claims, func(matrix.UserID, matrix.DeviceID) bool { return false })
}

// claim claims keys of local devices; spare says of which the one-time keys are spared, if there is a fallback key.
func (k *Keys) claim(ctx context.Context, claims Claims, spare func(matrix.UserID, matrix.DeviceID) bool) (ClaimedKeys, error) {
	if claims.count() > maxClaims {
		return nil, matrix.TooLarge("Too many keys claimed at once")
	}
	type wanted struct {
		user      matrix.UserID
		device    matrix.DeviceID
		algorithm string
		spare     bool
	}
	var all []wanted
	for user, devices := range claims {
		for device, algorithm := range devices {
			_, badUser := matrix.ParseUserID(string(user))
			_, badDevice := matrix.ParseDeviceID(string(device))
			if badUser == nil && badDevice == nil && checkName(algorithm, "algorithm") == nil && k.local(user) {
				all = append(all, wanted{user, device, algorithm, spare(user, device)})
			}
		}
	}
	// In one order, so that concurrent claims on PostgreSQL do not wait for each other in a circle.
	slices.SortFunc(all, func(a, b wanted) int {
		return cmp.Or(cmp.Compare(a.user, b.user), cmp.Compare(a.device, b.device))
	})
	out := ClaimedKeys{}
	if len(all) == 0 {
		return out, nil
	}
	err := k.DB.Write(ctx, func(tx *storage.Tx) error {
		clear(out)
		for _, w := range all {
			key, err := storage.ClaimKey(ctx, tx, w.user, w.device, w.algorithm, w.spare)
			if errors.Is(err, storage.ErrNotFound) {
				continue
			}
			if err != nil {
				return err
			}
			out.add(w.user, w.device, matrix.KeyID(key.Algorithm+":"+key.KeyID), key.Key)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("claim keys: %w", err)
	}
	return out, nil
}

// A server has many users, each of whom may want a key of a device. Beyond so many within claimTime, the one-time keys are spared for others: a
// device has fifty or so, and uploads more when it is online next.
const (
	maxClaimsOfServer = 30
	claimTime         = time.Hour
	maxClaimants      = 20_000 // remembered
)

// claimant is a server that claims keys of a device.
type claimant struct {
	server matrix.ServerName
	user   matrix.UserID
	device matrix.DeviceID
}

// claimMemory counts claims.
type claimMemory struct {
	counts *recent.Map[claimant, claimCount]
}

type claimCount struct {
	since time.Time
	count int
}

func newClaimMemory() *claimMemory {
	return &claimMemory{recent.NewMap[claimant, claimCount](maxClaimants)}
}

// many says whether a server has claimed many keys of a device lately.
func (m *claimMemory) many(by claimant, now time.Time) bool {
	c, _ := m.counts.Get(by)
	return c.lately(now).count >= maxClaimsOfServer
}

// note counts a key that was claimed.
func (m *claimMemory) note(by claimant, now time.Time) {
	m.counts.Update(by, func(was claimCount, _ bool) claimCount {
		next := was.lately(now)
		next.count++
		return next
	})
}

// lately is what was claimed within claimTime, of an earlier count or none.
func (c claimCount) lately(now time.Time) claimCount {
	if now.Sub(c.since) >= claimTime {
		return claimCount{since: now}
	}
	return c
}
