package users

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// Devices are the devices of local users. spec: client-server-api#device-management
type Devices struct {
	*core

	mu     sync.Mutex
	seen   map[deviceKey]storage.Device   // to be stored
	stored map[deviceKey]matrix.Timestamp // when last stored, for devices seen lately
}

type deviceKey struct {
	user   matrix.UserID
	device matrix.DeviceID
}

// Device is one device.
type Device = storage.Device

// maxDeviceName is in bytes.
const maxDeviceName = 1024

// When a device was seen is stored at most so often, and for so many devices at a time.
const (
	seenInterval = 10 * time.Minute
	maxSeen      = 100_000
)

var errNoDevice = matrix.NotFound("There is no such device")

// checkDeviceID refuses what no new device may be called: "*" stands for all devices in to-device messages.
func checkDeviceID(id matrix.DeviceID) error {
	if id == allDevices {
		return matrix.InvalidParam("A device cannot be called \"*\"")
	}
	_, err := matrix.ParseDeviceID(string(id))
	return err
}

// List returns a user's devices. spec: cs/getDevices
func (d *Devices) List(ctx context.Context, user matrix.UserID) ([]Device, error) {
	devices, err := storage.ListDevices(ctx, d.DB, user)
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	for i := range devices {
		d.freshen(&devices[i])
	}
	return devices, nil
}

// Get returns one device: M_NOT_FOUND if there is none. spec: cs/getDevice
func (d *Devices) Get(ctx context.Context, user matrix.UserID, device matrix.DeviceID) (*Device, error) {
	if checkDeviceID(device) != nil {
		return nil, errNoDevice
	}
	found, err := storage.GetDevice(ctx, d.DB, user, device)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errNoDevice
	}
	if err != nil {
		return nil, fmt.Errorf("get device: %w", err)
	}
	d.freshen(&found)
	return &found, nil
}

// freshen fills in when the device was seen if that is not stored yet.
func (d *Devices) freshen(device *Device) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s, ok := d.seen[deviceKey{device.UserID, device.DeviceID}]; ok && s.LastSeenAt > device.LastSeenAt {
		device.LastSeenAt, device.LastSeenIP, device.UserAgent = s.LastSeenAt, s.LastSeenIP, s.UserAgent
	}
}

// Put makes a device or renames it and reports whether it is new. A plain user's device must exist
// (create false, else M_NOT_FOUND); application services may create. spec: cs/updateDevice, MSC4190
func (d *Devices) Put(ctx context.Context, user matrix.UserID, device matrix.DeviceID, displayName *string, create bool) (created bool, err error) {
	if err := checkDeviceID(device); err != nil {
		if !create {
			err = errNoDevice
		}
		return false, err
	}
	name := ""
	if displayName != nil {
		name = *displayName
	}
	if len(name) > maxDeviceName {
		return false, matrix.TooLarge("The device name is longer than %d bytes", maxDeviceName)
	}
	aud, err := d.audienceOf(ctx, user)
	if err != nil {
		return false, err
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		created = false
		was, err := storage.GetDevice(ctx, tx, user, device)
		switch {
		case errors.Is(err, storage.ErrNotFound) && create:
			created, err = d.makeDevice(ctx, tx, user, device, name, aud)
			return err
		case errors.Is(err, storage.ErrNotFound):
			return errNoDevice
		case err != nil:
			return err
		case displayName == nil || was.DisplayName == name:
			return nil
		}
		if _, err := storage.RenameDevice(ctx, tx, user, device, name); err != nil {
			return err
		}
		return d.noteDevices(ctx, tx, user, aud, device)
	})
	if err != nil {
		return false, fmt.Errorf("put device: %w", err)
	}
	return created, nil
}

// Delete removes devices with their tokens, keys, to-device messages and pushers. Unknown ones are ignored. spec: cs/deleteDevices
func (d *Devices) Delete(ctx context.Context, user matrix.UserID, devices ...matrix.DeviceID) error {
	aud, err := d.audienceOf(ctx, user)
	if err != nil {
		return err
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		return d.deleteDevices(ctx, tx, user, aud, func(id matrix.DeviceID) bool { return slices.Contains(devices, id) })
	})
	if err != nil {
		return fmt.Errorf("delete devices: %w", err)
	}
	return nil
}

// makeDevice makes a device unless it exists, and tells whoever follows the user's device list.
func (c *core) makeDevice(ctx context.Context, tx *storage.Tx, user matrix.UserID, device matrix.DeviceID, name string, aud audience) (bool, error) {
	keys, err := storage.ListCrossSigningKeys(ctx, tx, []matrix.UserID{user})
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(keys, func(k storage.CrossSigningKey) bool { return k.Public == string(device) }) {
		// spec: client-server-api#cross-signing (device IDs must not collide with cross-signing keys)
		return false, matrix.InvalidParam("This device ID is one of your cross-signing keys")
	}
	fresh, err := storage.InsertDevice(ctx, tx, user, device, name)
	if err != nil || !fresh {
		return false, err
	}
	return true, c.noteDevices(ctx, tx, user, aud, device)
}

// deleteDevices removes those of a user's devices that which picks, and tells whoever follows the list.
func (c *core) deleteDevices(ctx context.Context, tx *storage.Tx, user matrix.UserID, aud audience, which func(matrix.DeviceID) bool) error {
	ids, err := storage.DeviceIDs(ctx, tx, user)
	if err != nil {
		return err
	}
	var gone []matrix.DeviceID
	for _, id := range ids {
		if !which(id) {
			continue
		}
		if _, err := storage.DeleteDevice(ctx, tx, user, id); err != nil {
			return err
		}
		if err := c.deleteLocalNotificationSettings(ctx, tx, user, id); err != nil {
			return err
		}
		gone = append(gone, id)
	}
	return c.noteDevices(ctx, tx, user, aud, gone...)
}

// localNotificationSettings are the types of account data that belong to one device, whose ID follows. spec: MSC3890
var localNotificationSettings = []string{"m.local_notification_settings.", "org.matrix.msc3890.local_notification_settings."}

// deleteLocalNotificationSettings removes what clients keep about notifications on a device that is gone.
func (c *core) deleteLocalNotificationSettings(ctx context.Context, tx *storage.Tx, user matrix.UserID, device matrix.DeviceID) error {
	for _, prefix := range localNotificationSettings {
		dataType := prefix + string(device)
		d, err := storage.GetAccountData(ctx, tx, user, "", dataType)
		if errors.Is(err, storage.ErrNotFound) || err == nil && d.Content == nil {
			continue
		}
		if err == nil {
			err = c.put(ctx, tx, user, "", dataType, nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Seen notes that a device made a request. It is cheap: stored at intervals, in the background. Address
// and user agent are dropped unless the operator keeps them.
func (d *Devices) Seen(user matrix.UserID, device matrix.DeviceID, ip, userAgent string) {
	if device == "" {
		return
	}
	s := storage.Device{UserID: user, DeviceID: device, LastSeenAt: d.now()}
	if d.KeepAddresses {
		s.LastSeenIP, s.UserAgent = ip, userAgent[:min(len(userAgent), 512)]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.seen) < maxSeen {
		d.seen[deviceKey{user, device}] = s
	}
}

// run stores when devices were seen, now and then and at the end.
func (d *Devices) run(ctx context.Context) error {
	err := d.every(ctx, time.Minute, func(ctx context.Context) error { return d.flush(ctx, false) })
	final, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(err, d.flush(final, true))
}

// flush stores what is due: of a device that is always busy, one write per interval.
func (d *Devices) flush(ctx context.Context, all bool) error {
	now := d.now()
	old := now.Add(-seenInterval)
	var due []storage.Device
	d.mu.Lock()
	for k, s := range d.seen {
		if all || d.stored[k] < old {
			due = append(due, s)
			d.stored[k] = now
			delete(d.seen, k)
		}
	}
	for k, at := range d.stored {
		if _, waiting := d.seen[k]; at < old && !waiting {
			delete(d.stored, k)
		}
	}
	d.mu.Unlock()
	if len(due) == 0 {
		return nil
	}
	if err := d.DB.Write(ctx, func(tx *storage.Tx) error { return storage.SetDevicesSeen(ctx, tx, due) }); err != nil {
		return fmt.Errorf("store when devices were seen: %w", err)
	}
	return nil
}
