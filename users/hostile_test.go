package users

import (
	"errors"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/storage"
)

// Names from paths and bodies that no row can have are answered like any other unknown name, on both engines.
func TestHostileNames(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		version := mustGet[string](t)(w.Backups.Create(ctx, alice, backupAlgorithm, rawJSON(`{}`)))
		name := "x"
		for _, bad := range append(hostileNames, "*", strings.Repeat("\x00", 10)) {
			device, user, room := matrix.DeviceID(bad), matrix.UserID("@"+bad+":here.test"), matrix.RoomID("!"+bad+":here.test")
			for what, err := range map[string]error{
				"get device":    second(w.Devices.Get(ctx, alice, device)),
				"put device":    second(w.Devices.Put(ctx, alice, device, &name, false)),
				"create device": second(w.Devices.Put(ctx, alice, device, &name, true)),
				"get backup":    second(w.Backups.GetKeys(ctx, alice, BackupSelection{Version: version, Room: "!r:here.test", Session: bad + "\x00"})),
				"room backup":   second(w.Backups.GetKeys(ctx, alice, BackupSelection{Version: version, Room: room + "\x00"})),
				"account data":  second(w.AccountData.Get(ctx, alice, room+"\x00", "m.x")),
				"tags":          second(w.AccountData.Tags(ctx, alice, room+"\x00")),
				"set tag":       w.AccountData.SetTag(ctx, alice, room+"\x00", "t", rawJSON(`{}`)),
				"set profile":   second(w.Profiles.Set(ctx, alice, bad+"\x00", rawJSON(`1`))),
				"push rule":     w.PushRules.SetEnabled(ctx, alice, "override", bad, true),
				"filter":        second(w.Filters.Get(ctx, alice, bad)),
				"open session":  second(w.UIA.Authenticate(ctx, Operation{Name: bad, User: alice, Flows: [][]string{{StageDummy}}}, nil)),
			} {
				if _, ok := matrix.AsError(err); !ok {
					t.Errorf("%s %q: %v", what, bad, err)
				}
			}
			for what, err := range map[string]error{
				"delete device":  w.Devices.Delete(ctx, alice, device),
				"logout":         w.Sessions.Logout(ctx, alice, device),
				"delete pusher":  w.Pushers.Delete(ctx, storage.PusherKey{UserID: alice, AppID: bad, PushKey: bad}),
				"delete backup":  second(w.Backups.DeleteKeys(ctx, alice, BackupSelection{Version: version, Room: "!r:here.test", Session: bad})),
				"search":         third(w.Directory.Search(ctx, alice, bad, 5)),
				"untrack":        w.DeviceLists.Untrack(ctx, user),
				"remote devices": w.DeviceLists.ReceiveUpdate(ctx, "there.test", encode(map[string]any{"user_id": "@c:there.test", "device_id": "\x00", "stream_id": 1})),
			} {
				if _, ok := matrix.AsError(err); err != nil && !ok {
					t.Errorf("%s %q: %v", what, bad, err)
				}
			}
			if err := w.RegistrationTokens.Delete(ctx, bad); !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("delete token %q: %v", bad, err)
			}
		}
		if list := mustGet[[]Device](t)(w.Devices.List(ctx, alice)); len(list) != 1 {
			t.Errorf("devices %+v", list)
		}
		_, err := w.Sessions.Create(ctx, NewSession{UserID: alice, DeviceID: "*"})
		wantCode(t, err, 400, "M_INVALID_PARAM")
	})
}

func third[T, U any](_ T, _ U, err error) error { return err }

func second[T any](_ T, err error) error { return err }
