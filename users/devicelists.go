package users

import (
	"context"
	"errors"
	"fmt"

	"hanok/internal/flights"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/storage"
)

// DeviceLists follows changes of device lists: of local users, and of the remote users who share rooms with them.
// The lists of remote users are cached while their servers keep us up to date (remotedevices.go).
type DeviceLists struct {
	*core
	wake        chan struct{}         // a list became stale
	memberships chan membershipChange // see MembershipChanged
	arrivals    chan membershipChange // those of other servers' users who joined
	fetches     flights.Flights[matrix.UserID, bool]
}

// The EDUs of this file. spec: server-server-api#device-management
const (
	eduDeviceListUpdate = "m.device_list_update"
	eduSigningKeyUpdate = "m.signing_key_update"
)

// DeviceList is a user's whole device list as servers exchange it. spec: ss/getUserDevices
type DeviceList struct {
	UserID         matrix.UserID  `json:"user_id"`
	StreamID       int64          `json:"stream_id"`
	Devices        []ListedDevice `json:"devices"`
	MasterKey      rawJSON        `json:"master_key,omitempty"`
	SelfSigningKey rawJSON        `json:"self_signing_key,omitempty"`
}

// ListedDevice is one device of a DeviceList.
type ListedDevice struct {
	DeviceID    matrix.DeviceID `json:"device_id"`
	DisplayName string          `json:"device_display_name,omitempty"`
	Keys        rawJSON         `json:"keys,omitempty"`
}

// deviceListUpdate is the content of an m.device_list_update EDU.
type deviceListUpdate struct {
	UserID      matrix.UserID   `json:"user_id"`
	DeviceID    matrix.DeviceID `json:"device_id"`
	DisplayName string          `json:"device_display_name,omitempty"`
	StreamID    int64           `json:"stream_id"`
	PrevID      []int64         `json:"prev_id"`
	Deleted     bool            `json:"deleted,omitzero"`
	Keys        rawJSON         `json:"keys,omitempty"`
}

// Changed returns the users whose devices or keys changed in (from, to] and concern observer: those with whom
// observer shares a room, as shares tells, and observer. Users whom observer began or ceased to share a
// room with are not in it. spec: cs/getKeysChanges
func (d *DeviceLists) Changed(ctx context.Context, q storage.Querier, observer matrix.UserID, shares func(matrix.UserID) bool, from, to storage.Position) ([]matrix.UserID, error) {
	var changed, private []matrix.UserID
	var err error
	if !d.DB.UnchangedIn(storage.Subject{Topic: storage.TopicDeviceLists}, from, to) {
		if changed, err = storage.DeviceListChanges(ctx, q, from, to); err != nil {
			return nil, fmt.Errorf("device list changes: %w", err)
		}
	}
	if !d.DB.UnchangedIn(storage.Subject{Topic: storage.TopicPrivateKeys, User: string(observer)}, from, to) {
		if private, err = storage.PrivateKeyChanges(ctx, q, observer, from, to); err != nil {
			return nil, fmt.Errorf("private key changes: %w", err)
		}
	}
	var out []matrix.UserID
	seen := map[matrix.UserID]bool{}
	add := func(user matrix.UserID) {
		if !seen[user] {
			seen[user] = true
			out = append(out, user)
		}
	}
	for _, user := range changed {
		if user == observer || shares(user) {
			add(user)
		}
	}
	for _, user := range private {
		add(user)
	}
	return out, nil
}

// List returns a local user's device list for another server: M_NOT_FOUND if there is no such user. Who has closed the account has none: a server
// that missed when the devices went must learn of it. spec: ss/getUserDevices
func (d *DeviceLists) List(ctx context.Context, user matrix.UserID) (*DeviceList, error) {
	list := &DeviceList{UserID: user, Devices: []ListedDevice{}}
	err := d.DB.Read(ctx, func(tx *storage.Tx) error {
		if _, err := storage.GetAccount(ctx, tx, user); errors.Is(err, storage.ErrNotFound) {
			return matrix.NotFound("There is no such user")
		} else if err != nil {
			return err
		}
		var err error
		if list.StreamID, err = storage.DeviceListStreamID(ctx, tx, user); err != nil {
			return err
		}
		k, err := loadKeys(ctx, tx, "", []matrix.UserID{user}, storage.ListDeviceKeys)
		if err != nil {
			return err
		}
		for _, device := range k.devices {
			if device.Keys != nil {
				list.Devices = append(list.Devices, ListedDevice{device.DeviceID, device.DisplayName, device.Keys})
			}
		}
		list.MasterKey = k.cross[user][usageMaster]
		list.SelfSigningKey = k.cross[user][usageSelfSigning]
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("device list: %w", err)
	}
	return list, nil
}

// noteDevices records that devices of a local user changed or went, tells other servers and wakes those who follow.
func (c *core) noteDevices(ctx context.Context, tx *storage.Tx, user matrix.UserID, aud audience, devices ...matrix.DeviceID) error {
	if len(devices) == 0 {
		return nil
	}
	last, err := c.sendDevices(ctx, tx, user, aud.servers, devices)
	if err != nil {
		return err
	}
	if err := storage.SetDeviceListChange(ctx, tx, user, last, c.now(), int64(last)); err != nil {
		return err
	}
	c.wake(tx, aud.local...)
	return nil
}

// sendDevices tells servers about devices of a local user and returns the position of the last update.
func (c *core) sendDevices(ctx context.Context, tx *storage.Tx, user matrix.UserID, servers []matrix.ServerName, devices []matrix.DeviceID) (last storage.Position, err error) {
	prev, err := storage.DeviceListStreamID(ctx, tx, user)
	if err != nil {
		return 0, err
	}
	return c.sendAfter(ctx, tx, user, servers, devices, prev)
}

// sendAfter is sendDevices with updates that follow on the one with stream_id prev.
func (c *core) sendAfter(ctx context.Context, tx *storage.Tx, user matrix.UserID, servers []matrix.ServerName, devices []matrix.DeviceID, prev int64) (last storage.Position, err error) {
	known := map[matrix.DeviceID]storage.DeviceKeys{}
	if len(servers) > 0 {
		k, err := loadKeys(ctx, tx, "", []matrix.UserID{user}, storage.ListDeviceKeys)
		if err != nil {
			return 0, err
		}
		for _, device := range k.devices {
			known[device.DeviceID] = device
		}
	}
	for _, id := range devices {
		// A position each: stream_id must be unique, and each EDU refers to the one before.
		if last, err = tx.NextPosition(); err != nil {
			return 0, err
		}
		if len(servers) > 0 {
			device, exists := known[id]
			u := deviceListUpdate{UserID: user, DeviceID: id, StreamID: int64(last), PrevID: []int64{}, Deleted: !exists}
			if prev != 0 {
				u.PrevID = append(u.PrevID, prev)
			}
			u.DisplayName, u.Keys = device.DisplayName, device.Keys
			if err := c.Outbox.QueueEDU(ctx, tx, servers, eduDeviceListUpdate, encode(u)); err != nil {
				return 0, fmt.Errorf("queue device list update: %w", err)
			}
		}
		prev = int64(last)
	}
	return last, nil
}

// keyring is what is stored of some users' keys, signatures merged in.
type keyring struct {
	devices []storage.DeviceKeys
	cross   map[matrix.UserID]map[string]rawJSON // by usage
}

// loadKeys reads the devices and keys of users as observer may see them.
func loadKeys(ctx context.Context, q storage.Querier, observer matrix.UserID, users []matrix.UserID,
	list func(context.Context, storage.Querier, []matrix.UserID) ([]storage.DeviceKeys, error)) (*keyring, error) {
	devices, err := list(ctx, q, users)
	if err != nil {
		return nil, err
	}
	cross, err := storage.ListCrossSigningKeys(ctx, q, users)
	if err != nil {
		return nil, err
	}
	k := &keyring{devices: devices, cross: map[matrix.UserID]map[string]rawJSON{}}
	for _, key := range cross {
		if k.cross[key.UserID] == nil {
			k.cross[key.UserID] = map[string]rawJSON{}
		}
		k.cross[key.UserID][key.Usage] = key.Key
	}
	return k, k.mergeSignatures(ctx, q, observer, users)
}

// mergeSignatures adds the signatures that were uploaded by themselves, as far as observer may see them.
func (k *keyring) mergeSignatures(ctx context.Context, q storage.Querier, observer matrix.UserID, users []matrix.UserID) error {
	stored, err := storage.ListKeySignatures(ctx, q, observer, users)
	if err != nil || len(stored) == 0 {
		return err
	}
	type target struct {
		user matrix.UserID
		id   string
	}
	signatures := map[target][]storage.KeySignature{}
	for _, s := range stored {
		t := target{s.TargetUser, s.TargetID}
		signatures[t] = append(signatures[t], s)
	}
	merge := func(key []byte, t target) []byte {
		for _, s := range signatures[t] {
			// A key whose `signatures` cannot take another one is given out as it is.
			if signed, err := signing.AddSignature(key, string(s.Signer), s.KeyID, s.Signature); err == nil {
				key = signed
			}
		}
		return key
	}
	for i, d := range k.devices {
		if d.Keys != nil {
			k.devices[i].Keys = merge(d.Keys, target{d.UserID, string(d.DeviceID)})
		}
	}
	for user, keys := range k.cross {
		for usage, key := range keys {
			if public, ok := publicKey(key); ok {
				keys[usage] = merge(key, target{user, public})
			}
		}
	}
	return nil
}
