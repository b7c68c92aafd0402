package users

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// QueryResult is the response of a key query. spec: cs/queryKeys, ss/queryUserEncryptionKeys
type QueryResult struct {
	DeviceKeys      map[matrix.UserID]map[matrix.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys      map[matrix.UserID]json.RawMessage                     `json:"master_keys,omitempty"`
	SelfSigningKeys map[matrix.UserID]json.RawMessage                     `json:"self_signing_keys,omitempty"`
	UserSigningKeys map[matrix.UserID]json.RawMessage                     `json:"user_signing_keys,omitempty"`
	Failures        RemoteFailures                                        `json:"failures"`
}

func newQueryResult() *QueryResult {
	return &QueryResult{
		DeviceKeys:      map[matrix.UserID]map[matrix.DeviceID]json.RawMessage{},
		MasterKeys:      map[matrix.UserID]json.RawMessage{},
		SelfSigningKeys: map[matrix.UserID]json.RawMessage{},
		UserSigningKeys: map[matrix.UserID]json.RawMessage{},
		Failures:        RemoteFailures{},
	}
}

// Wanted names the devices of a query by user; an empty list means all.
type Wanted = map[matrix.UserID][]matrix.DeviceID

// maxQueried is how many users one query may name.
const maxQueried = 20_000

// Query returns the keys of local and remote users to a local requester. Remote users' devices come from the cache if
// it is up to date, else from their servers; those that do not answer in time are in Failures. spec: cs/queryKeys
func (k *Keys) Query(ctx context.Context, requester matrix.UserID, devices Wanted) (*QueryResult, error) {
	local, remote := Wanted{}, Wanted{}
	if len(devices) > maxQueried {
		return nil, matrix.TooLarge("Too many users queried at once")
	}
	for user, list := range devices {
		if _, err := matrix.ParseUserID(string(user)); err != nil {
			return nil, err
		}
		if k.local(user) {
			local[user] = list
		} else {
			remote[user] = list
		}
	}
	out := newQueryResult()
	if err := k.queryLocal(ctx, out, requester, local); err != nil {
		return nil, err
	}
	if err := k.queryRemote(ctx, out, requester, remote); err != nil {
		return nil, err
	}
	return out, nil
}

// QueryLocal answers another server; users that are not ours are left out. spec: ss/queryUserEncryptionKeys
func (k *Keys) QueryLocal(ctx context.Context, devices Wanted) (*QueryResult, error) {
	if len(devices) > maxQueried {
		return nil, matrix.TooLarge("Too many users queried at once")
	}
	ours := Wanted{}
	for user, list := range devices {
		if _, err := matrix.ParseUserID(string(user)); err == nil && k.local(user) {
			ours[user] = list
		}
	}
	out := newQueryResult()
	if err := k.queryLocal(ctx, out, "", ours); err != nil {
		return nil, err
	}
	return out, nil
}

func usersOf(devices Wanted) []matrix.UserID {
	users := make([]matrix.UserID, 0, len(devices))
	for user := range devices {
		users = append(users, user)
	}
	slices.Sort(users)
	return users
}

func (k *Keys) queryLocal(ctx context.Context, out *QueryResult, requester matrix.UserID, devices Wanted) error {
	if len(devices) == 0 {
		return nil
	}
	users := usersOf(devices)
	err := k.DB.Read(ctx, func(tx *storage.Tx) error {
		ring, err := loadKeys(ctx, tx, requester, users, storage.ListDeviceKeys)
		if err != nil {
			return err
		}
		for _, user := range users {
			if _, err := storage.GetAccount(ctx, tx, user); err == nil {
				out.DeviceKeys[user] = map[matrix.DeviceID]json.RawMessage{}
			} else if err != storage.ErrNotFound {
				return err
			}
		}
		out.add(ring, requester, devices)
		return nil
	})
	if err != nil {
		return fmt.Errorf("query local keys: %w", err)
	}
	return nil
}

// add fills in stored keys: devices that are wanted and have keys, with their names; a user-signing key for its owner only.
func (r *QueryResult) add(ring *keyring, requester matrix.UserID, wanted Wanted) {
	for _, d := range ring.devices {
		if d.Keys == nil || len(wanted[d.UserID]) > 0 && !slices.Contains(wanted[d.UserID], d.DeviceID) {
			continue
		}
		info := []byte("{}")
		if d.DisplayName != "" {
			info = append(canonicaljson.AppendString([]byte(`{"device_display_name":`), d.DisplayName), '}')
		}
		if r.DeviceKeys[d.UserID] == nil {
			r.DeviceKeys[d.UserID] = map[matrix.DeviceID]json.RawMessage{}
		}
		r.DeviceKeys[d.UserID][d.DeviceID] = canonicaljson.Set(d.Keys, "unsigned", info)
	}
	for user, keys := range ring.cross {
		if key := keys[usageMaster]; key != nil {
			r.MasterKeys[user] = key
		}
		if key := keys[usageSelfSigning]; key != nil {
			r.SelfSigningKeys[user] = key
		}
		if key := keys[usageUserSigning]; key != nil && user == requester {
			r.UserSigningKeys[user] = key
		}
	}
}

// queryRemote answers from the cache what it can and asks the servers of the other users.
func (k *Keys) queryRemote(ctx context.Context, out *QueryResult, requester matrix.UserID, devices Wanted) error {
	if len(devices) == 0 {
		return nil
	}
	missing, err := k.queryCache(ctx, out, requester, devices)
	if err != nil || len(missing) == 0 {
		return err
	}
	shared, err := k.sharedWith(ctx, requester, usersOf(missing))
	if err != nil {
		return err
	}
	// The lists of those who share a room are followed from now on: from before they are asked
	// for, so that no change in between is missed.
	if err := k.lists.track(ctx, shared, k.now().Add(k.RemoteTimeout)); err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, k.RemoteTimeout)
	defer cancel()
	if len(shared) <= fetchedAtOnce {
		// The list of each gives what has to be cached, and the answer.
		fetched, err := k.fetchLists(asking, shared)
		if err != nil {
			return err
		}
		still, err := k.queryCache(ctx, out, requester, only(missing, fetched))
		if err != nil {
			return err
		}
		for _, user := range fetched {
			if _, ok := still[user]; !ok {
				delete(missing, user)
			}
		}
	} else {
		defer k.lists.resync()
	}
	byServer := map[matrix.ServerName]Wanted{}
	for user, list := range missing {
		if byServer[user.Server()] == nil {
			byServer[user.Server()] = Wanted{}
		}
		byServer[user.Server()][user] = list
	}
	return k.ask(asking, out, requester, byServer)
}

// fetchedAtOnce is of how many users one query fetches the lists itself; more are asked
// for together, and their lists fetched in the background.
const fetchedAtOnce = 8

func only(wanted Wanted, users []matrix.UserID) Wanted {
	some := Wanted{}
	for _, user := range users {
		some[user] = wanted[user]
	}
	return some
}

// queryCache answers from the cached lists, and returns what they have no answer for.
func (k *Keys) queryCache(ctx context.Context, out *QueryResult, requester matrix.UserID, devices Wanted) (missing Wanted, err error) {
	missing = Wanted{}
	if len(devices) == 0 {
		return missing, nil
	}
	lists, err := storage.ListRemoteDeviceLists(ctx, k.DB, usersOf(devices))
	if err != nil {
		return nil, fmt.Errorf("query cached keys: %w", err)
	}
	var fresh []matrix.UserID
	for _, l := range lists {
		if !l.Stale {
			fresh = append(fresh, l.UserID)
		}
	}
	// A list is kept up to date as long as its user shares a room with somebody here.
	shared, err := k.sharedWith(ctx, requester, fresh)
	if err != nil {
		return nil, err
	}
	cached := only(devices, shared)
	for user, list := range devices {
		if _, ok := cached[user]; !ok {
			missing[user] = list
		}
	}
	if len(cached) == 0 {
		return missing, nil
	}
	err = k.DB.Read(ctx, func(tx *storage.Tx) error {
		ring, err := loadKeys(ctx, tx, requester, usersOf(cached), storage.ListRemoteDeviceKeys)
		if err != nil {
			return err
		}
		for user := range cached {
			out.DeviceKeys[user] = map[matrix.DeviceID]json.RawMessage{}
		}
		out.add(ring, requester, cached)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("query cached keys: %w", err)
	}
	return missing, nil
}

// sharedWith returns those remote users who share a room with a local user, most likely the requester.
func (k *Keys) sharedWith(ctx context.Context, requester matrix.UserID, users []matrix.UserID) ([]matrix.UserID, error) {
	if len(users) == 0 {
		return nil, nil
	}
	sharing, err := k.Rooms.Sharing(ctx, requester)
	if err != nil {
		return nil, fmt.Errorf("users sharing a room: %w", err)
	}
	with := make(map[matrix.UserID]bool, len(sharing))
	for _, user := range sharing {
		with[user] = true
	}
	var shared []matrix.UserID
	for _, user := range users {
		if !with[user] {
			local, err := k.localSharing(ctx, user)
			if err != nil {
				return nil, err
			}
			if len(local) == 0 {
				continue
			}
		}
		shared = append(shared, user)
	}
	return shared, nil
}

// fetchLists fetches lists, but for those that could not be fetched lately, and returns whose came.
func (k *Keys) fetchLists(ctx context.Context, users []matrix.UserID) (fetched []matrix.UserID, err error) {
	lists, err := storage.ListRemoteDeviceLists(ctx, k.DB, users)
	if err != nil {
		return nil, fmt.Errorf("device lists to fetch: %w", err)
	}
	var mu sync.Mutex
	var g errgroup.Group
	for _, l := range lists {
		if l.Failures > 0 && l.RetryAt > k.now() {
			continue
		}
		g.Go(func() error {
			ok, err := k.lists.fetch(ctx, l, true)
			if ok {
				mu.Lock()
				fetched = append(fetched, l.UserID)
				mu.Unlock()
			}
			return err
		})
	}
	return fetched, g.Wait()
}

// ask queries other servers.
func (k *Keys) ask(ctx context.Context, out *QueryResult, requester matrix.UserID, byServer map[matrix.ServerName]Wanted) error {
	var mu sync.Mutex
	return askServers(k.core, byServer, func(server matrix.ServerName, wanted Wanted) error {
		got, err := k.Remote.QueryKeys(ctx, server, wanted)
		mu.Lock()
		defer mu.Unlock()
		if err != nil || got == nil {
			out.Failures[server] = serverUnreachable
			return nil
		}
		ring := remoteRing(got, wanted)
		if err := ring.mergeSignatures(context.WithoutCancel(ctx), k.DB, requester, usersOf(wanted)); err != nil {
			return err
		}
		for user := range wanted {
			if got.DeviceKeys[user] != nil {
				out.DeviceKeys[user] = map[matrix.DeviceID]json.RawMessage{}
			}
		}
		out.add(ring, requester, wanted)
		return nil
	})
}

// remoteRing keeps of another server's answer what was asked for and is well formed.
func remoteRing(got *QueryResult, wanted Wanted) *keyring {
	ring := &keyring{cross: map[matrix.UserID]map[string]rawJSON{}}
	for user := range wanted {
		for id, keys := range got.DeviceKeys[user] {
			name := ""
			if canonical, err := object(keys, canonicaljson.Strict, maxKeyObject, "keys"); err == nil {
				if info, ok := canonicaljson.GetObject(canonical, "unsigned"); ok {
					name, _ = canonicaljson.GetString(info, "device_display_name")
				}
			}
			if d, ok := remoteDevice(user, ListedDevice{id, name, keys}); ok && d.Keys != nil {
				ring.devices = append(ring.devices, d)
			}
		}
		ring.cross[user] = map[string]rawJSON{}
		for _, k := range remoteCrossSigning(user, got.MasterKeys[user], got.SelfSigningKeys[user]) {
			ring.cross[user][k.Usage] = k.Key
		}
	}
	return ring
}
