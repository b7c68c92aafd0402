package users

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Limits of what another server may make us keep.
const (
	maxRemoteDevices = 5000     // per user
	maxRemoteKeys    = 6 << 20  // bytes of the keys of all devices of a user
	maxKeyObject     = 64 << 10 // bytes of one device's keys
	seenStreamIDs    = 64       // stream_ids remembered per user
)

// ReceiveUpdate takes an m.device_list_update EDU. What is malformed, or not from the user's own server, is dropped.
// An update that follows on what is cached is applied; after a gap the whole list is fetched again.
// spec: server-server-api#device-management
func (d *DeviceLists) ReceiveUpdate(ctx context.Context, origin matrix.ServerName, content []byte) error {
	var u deviceListUpdate
	if decode(content, &u, "device list update") != nil || !validRemoteUser(u.UserID, origin) || len(u.PrevID) > 100 {
		return nil
	}
	if _, err := matrix.ParseDeviceID(string(u.DeviceID)); err != nil {
		return nil
	}
	device := ListedDevice{u.DeviceID, u.DisplayName, u.Keys}
	row, ok := remoteDevice(u.UserID, device)
	if !ok {
		return nil
	}
	local, err := d.localSharing(ctx, u.UserID)
	if err != nil {
		return err
	}
	if len(local) == 0 {
		// Its server will be asked when somebody wants to know.
		return d.notePossible(ctx, u.UserID)
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		lists, err := storage.ListRemoteDeviceLists(ctx, tx, []matrix.UserID{u.UserID})
		if err != nil {
			return err
		}
		if len(lists) == 0 {
			// Nobody here has asked for the user's keys since they came to share a room, so nobody has to know before
			// the list is fetched.
			tx.OnVisible(d.resync)
			return storage.PutRemoteDeviceList(ctx, tx, storage.RemoteDeviceList{
				UserID: u.UserID, Seen: encode([]int64{u.StreamID}), Stale: true, RetryAt: d.now(),
			})
		}
		return d.update(ctx, tx, lists[0], u, row, local)
	})
	if err != nil {
		return fmt.Errorf("device list update: %w", err)
	}
	return nil
}

// update applies an update to a list that is known.
func (d *DeviceLists) update(ctx context.Context, tx *storage.Tx, l storage.RemoteDeviceList, u deviceListUpdate, row storage.DeviceKeys, local []matrix.UserID) error {
	var seen []int64
	if err := json.Unmarshal(l.Seen, &seen); err != nil {
		return fmt.Errorf("seen stream ids: %w", err)
	}
	was, err := storage.GetRemoteDevice(ctx, tx, u.UserID, u.DeviceID)
	if ignoreNotFound(err) != nil {
		return err
	}
	known := err == nil
	same := !known && u.Deleted || known && !u.Deleted && sameDevices([]storage.DeviceKeys{was}, []storage.DeviceKeys{row})
	// One that was seen says nothing new. If it does all the same, it is late, or from a Dendrite, which gives the removal of a
	// device a number that it has given before.
	again := slices.Contains(seen, u.StreamID)
	if again && same {
		return nil
	}
	missing := slices.ContainsFunc(u.PrevID, func(id int64) bool { return !slices.Contains(seen, id) })
	// One that follows on an earlier update than the newest is of a server that has lost something, as one does that was put back to a backup.
	missing = missing || len(u.PrevID) > 0 && slices.Max(u.PrevID) < l.StreamID
	first := len(u.PrevID) == 0 && l.StreamID == 0
	full := false
	if !u.Deleted && !same {
		count, size, err := storage.RemoteDevicesSize(ctx, tx, u.UserID)
		if err != nil {
			return err
		}
		full = !known && count >= maxRemoteDevices || size-int64(len(was.Keys))+int64(len(row.Keys)) > maxRemoteKeys
	}
	if full || again || l.Stale || missing || len(u.PrevID) == 0 && !first {
		if err := d.fetchAgain(ctx, tx, l); err != nil {
			return err
		}
		return d.noteRemote(ctx, tx, u.UserID, local)
	}
	if u.Deleted {
		err = storage.DeleteRemoteDevice(ctx, tx, u.UserID, u.DeviceID)
	} else {
		err = storage.PutRemoteDevices(ctx, tx, []storage.DeviceKeys{row})
	}
	if err != nil {
		return err
	}
	seen = append(seen, u.StreamID)
	l.StreamID, l.Seen = u.StreamID, encode(seen[max(0, len(seen)-seenStreamIDs):])
	if err := storage.PutRemoteDeviceList(ctx, tx, l); err != nil || same {
		return err
	}
	return d.noteRemote(ctx, tx, u.UserID, local)
}

// refetchAfter is how long after an attempt to fetch a list the next one comes, however many updates ask for it: each may bring
// megabytes. A client that asks for the keys meanwhile does not wait.
const refetchAfter = 2 * time.Second

// fetchAgain has the list of a user fetched again that is cached.
func (d *DeviceLists) fetchAgain(ctx context.Context, tx *storage.Tx, l storage.RemoteDeviceList) error {
	soon := matrix.Span(refetchAfter)
	switch {
	case !l.Stale: // RetryAt is when it was fetched
		l.RetryAt = max(l.RetryAt+soon, d.now())
	case l.Failures > 0: // its server was heard from
		l.RetryAt = min(l.RetryAt, max(l.RetryAt-retryDelay(l.Failures)+soon, d.now()))
	default: // it is being fetched, or about to be
	}
	l.Stale, l.Failures = true, 0
	tx.OnVisible(d.resync)
	return storage.PutRemoteDeviceList(ctx, tx, l)
}

// signingKeyUpdate is the content of an m.signing_key_update EDU.
type signingKeyUpdate struct {
	UserID         matrix.UserID `json:"user_id"`
	MasterKey      rawJSON       `json:"master_key,omitempty"`
	SelfSigningKey rawJSON       `json:"self_signing_key,omitempty"`
}

// ReceiveSigningKeys takes an m.signing_key_update EDU. One that brings no other keys is how Dendrite tells that a device was
// signed with them: the list is fetched again. spec: server-server-api#end-to-end-encryption
func (d *DeviceLists) ReceiveSigningKeys(ctx context.Context, origin matrix.ServerName, content []byte) error {
	var u signingKeyUpdate
	if decode(content, &u, "signing key update") != nil || !validRemoteUser(u.UserID, origin) {
		return nil
	}
	keys := remoteCrossSigning(u.UserID, u.MasterKey, u.SelfSigningKey)
	if len(keys) == 0 {
		return nil
	}
	local, err := d.localSharing(ctx, u.UserID)
	if err != nil {
		return err
	}
	if len(local) == 0 {
		if err := d.notePossible(ctx, u.UserID); err != nil {
			return err
		}
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		lists, err := storage.ListRemoteDeviceLists(ctx, tx, []matrix.UserID{u.UserID})
		if err != nil {
			return err
		}
		if len(lists) > 0 {
			known, err := storage.ListCrossSigningKeys(ctx, tx, []matrix.UserID{u.UserID})
			if err != nil {
				return err
			}
			fresh := slices.DeleteFunc(slices.Clone(keys), func(k storage.CrossSigningKey) bool {
				return slices.ContainsFunc(known, func(o storage.CrossSigningKey) bool { return o.Usage == k.Usage && bytes.Equal(o.Key, k.Key) })
			})
			for _, k := range fresh {
				if err := storage.PutCrossSigningKey(ctx, tx, k); err != nil {
					return err
				}
			}
			if len(fresh) == 0 {
				if err := d.fetchAgain(ctx, tx, lists[0]); err != nil {
					return err
				}
			}
		}
		return d.noteRemote(ctx, tx, u.UserID, local)
	})
	if err != nil {
		return fmt.Errorf("signing key update: %w", err)
	}
	return nil
}

// noteRemote records a change of a remote user's devices or keys and wakes the local users it concerns.
func (d *DeviceLists) noteRemote(ctx context.Context, tx *storage.Tx, user matrix.UserID, local []matrix.UserID) error {
	if len(local) == 0 {
		return nil
	}
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	if err := storage.SetDeviceListChange(ctx, tx, user, pos, d.now(), 0); err != nil {
		return err
	}
	d.core.wake(tx, local...)
	return nil
}

// localSharing lists the local users who share a room with a user of another server.
func (c *core) localSharing(ctx context.Context, user matrix.UserID) ([]matrix.UserID, error) {
	local, err := c.Rooms.LocalSharing(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("local users sharing a room: %w", err)
	}
	return local, nil
}

// validRemoteUser reports whether a user ID is one that origin may speak for.
func validRemoteUser(user matrix.UserID, origin matrix.ServerName) bool {
	_, err := matrix.ParseUserID(string(user))
	return err == nil && user.Server() == origin
}

// remoteDevice checks a device of another server: its keys, if any, must not be for another user or device.
func remoteDevice(user matrix.UserID, device ListedDevice) (storage.DeviceKeys, bool) {
	row := storage.DeviceKeys{UserID: user, DeviceID: device.DeviceID, DisplayName: device.DisplayName[:min(len(device.DisplayName), maxDeviceName)]}
	if _, err := matrix.ParseDeviceID(string(device.DeviceID)); err != nil {
		return row, false
	}
	if len(device.Keys) == 0 || string(device.Keys) == "null" {
		return row, true
	}
	keys, err := object(device.Keys, canonicaljson.Strict, maxKeyObject, "keys")
	if err != nil {
		return row, false
	}
	if len(canonicaljson.Delete(keys, "unsigned")) == len("{}") {
		return row, true // some servers send {} for a device without keys
	}
	// Clients check keys and ignore incomplete ones; here nobody must speak for another device.
	for member, want := range map[string]string{"user_id": string(user), "device_id": string(device.DeviceID)} {
		if raw, ok := canonicaljson.Get(keys, member); ok {
			if got, isString := canonicaljson.String(raw); !isString || got != want {
				return row, false
			}
		}
	}
	row.Keys = canonicaljson.Delete(keys, "unsigned")
	return row, true
}

// remoteCrossSigning returns those of a remote user's keys that are well formed.
func remoteCrossSigning(user matrix.UserID, master, selfSigning []byte) []storage.CrossSigningKey {
	var keys []storage.CrossSigningKey
	for usage, raw := range map[string][]byte{usageMaster: master, usageSelfSigning: selfSigning} {
		if len(raw) == 0 || string(raw) == "null" {
			continue
		}
		if k, err := parseCrossSigningKey(user, usage, raw); err == nil {
			keys = append(keys, *k)
		}
	}
	return keys
}

// sameDevices compares two lists; the order in the database is by device ID.
func sameDevices(a, b []storage.DeviceKeys) bool {
	return slices.EqualFunc(a, b, func(x, y storage.DeviceKeys) bool {
		return x.DeviceID == y.DeviceID && x.DisplayName == y.DisplayName && bytes.Equal(x.Keys, y.Keys)
	})
}
