package users

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// count is how many rows a query about a table finds.
func (w *world) count(t *testing.T, query string, args ...any) (n int) {
	t.Helper()
	must(t, w.db.QueryRow(t.Context(), query, args...).Scan(&n))
	return n
}

// Updates of devices that never follow on what came before make us fetch the list now and then, not for each of them.
func TestUpdatesThatNeverFollow(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 5, "C1")
		w.carolsDevices(t, alice)
		for _, down := range []bool{false, true} {
			w.remote.down = down
			before := w.remote.fetches
			const seconds = 6
			for i := range 10 * seconds {
				w.clock.advance(time.Second / 10)
				gap := int64(1e15) + int64(i)*10
				must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", deviceUpdate(t, "C1", gap, gap-5)))
				must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "there.test", encode(signingKeyUpdate{UserID: carol, MasterKey: crossKey(t, carol, usageMaster, newKeypair(fmt.Sprint("m", i%2)))})))
				w.follow(t)
			}
			if n := w.remote.fetches - before; n < 2 || n > seconds/int(refetchAfter.Seconds())+1 {
				t.Errorf("down %v: fetched %d times within %d seconds", down, n, seconds)
			}
		}
		// In the end the list is up to date.
		w.remote.down = false
		w.clock.advance(fetchFirstRetry)
		w.follow(t)
		if n := w.count(t, `SELECT count(*) FROM remote_device_lists WHERE stale = 1`); n != 0 {
			t.Error("the list is still stale")
		}
	})
}

// What one user of another server may have us keep of their devices is bounded, by update and by list.
func TestDevicesWithoutEnd(t *testing.T) {
	w := newWorld(openSQLite(t))
	ctx := t.Context()
	alice := w.registerWithCarol(t)
	const size = 60_000
	const most = maxRemoteKeys / size
	device := func(i int) (matrix.DeviceID, []byte) {
		id := matrix.DeviceID(fmt.Sprint("D", i))
		return id, encode(map[string]string{"user_id": string(carol), "device_id": string(id), "x": strings.Repeat("x", size)})
	}
	w.remote.lists[carol] = remoteList(t, carol, 1)
	w.carolsDevices(t, alice)
	for i := range most + 20 {
		id, keys := device(i)
		must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", encode(deviceListUpdate{UserID: carol, DeviceID: id, StreamID: int64(i + 2), PrevID: []int64{int64(i + 1)}, Keys: keys})))
	}
	if n := w.count(t, `SELECT count(*) FROM remote_devices`); n < most-2 || n > most {
		t.Errorf("%d devices are kept by updates", n)
	}
	for i := range most + 20 {
		id, keys := device(i)
		w.remote.lists[carol].Devices = append(w.remote.lists[carol].Devices, ListedDevice{DeviceID: id, Keys: keys})
	}
	w.clock.advance(refetchAfter)
	w.follow(t)
	if n := w.count(t, `SELECT count(*) FROM remote_devices`); n < most-2 || n > most {
		t.Errorf("%d devices are kept of a list", n)
	}
}

// Updates about users who share no room with anybody here leave nothing behind.
func TestUpdatesOfStrangers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		w.register(t, "alice")
		w.settle()
		w.notifier.takeUsers()
		tables := []string{"remote_device_lists", "remote_devices", "cross_signing_keys", "device_list_changes", "names"}
		before := map[string]int{}
		for _, table := range tables {
			before[table] = w.count(t, `SELECT count(*) FROM `+table)
		}
		for i := range 50 {
			user := matrix.UserID(fmt.Sprintf("@x%d:there.test", i))
			must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", encode(deviceListUpdate{UserID: user, DeviceID: "D", StreamID: 1 << 60, PrevID: []int64{1}})))
			must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "there.test", encode(signingKeyUpdate{UserID: user, MasterKey: crossKey(t, user, usageMaster, newKeypair("m"))})))
		}
		for _, table := range tables {
			if n := w.count(t, `SELECT count(*) FROM `+table); n != before[table] {
				t.Errorf("%s has %d rows more", table, n-before[table])
			}
		}
		w.follow(t)
		if w.remote.fetches != 0 || len(w.notifier.takeUsers()) != 0 {
			t.Errorf("%d fetches, or somebody was woken", w.remote.fetches)
		}
	})
}

// Messages that nobody can get leave nothing behind.
func TestMessagesToNobody(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		many := map[string]any{}
		for i := range 2000 {
			many[fmt.Sprintf("@nobody%d:here.test", i)] = map[string]any{"*": map[string]int{}}
		}
		for i, messages := range []map[string]any{
			{}, many,
			{string(alice): map[string]any{}},
			{string(alice): map[string]any{"B": map[string]int{}, "": map[string]int{}}},
			{string(alice): map[string]any{"B": map[string]int{}}},
			{"@x:elsewhere.test": map[string]any{"*": map[string]int{}}},
		} {
			must(t, w.ToDevice.Receive(ctx, "there.test", encode(map[string]any{"message_id": fmt.Sprint(i), "sender": carol, "type": "m.x", "messages": messages})))
		}
		for _, table := range []string{"to_device", "to_device_received"} {
			if n := w.count(t, `SELECT count(*) FROM `+table); n != 0 {
				t.Errorf("%s has %d rows", table, n)
			}
		}
	})
}

// A server that makes up threads for the receipts of its users does not fill the room with them.
func TestReceiptsForThreadsWithoutEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		const room = matrix.RoomID("!r:here.test")
		alice := w.register(t, "alice")
		w.rooms.join(room, alice, carol)
		r := Receipt{Room: room, User: carol, Type: ReceiptRead, EventID: "$first", At: 5}
		main := r
		main.Thread = "main"
		must(t, w.Receipts.ReceiveRemote(ctx, r, main))
		for part := range 4 {
			var flood []Receipt
			for i := range maxRemoteThreads {
				x := r
				x.Thread = fmt.Sprintf("$thread%d-%d", part, i)
				flood = append(flood, x)
			}
			must(t, w.Receipts.ReceiveRemote(ctx, flood...))
		}
		got := mustGet[[]Receipt](t)(w.Receipts.InRoom(ctx, w.db, room, alice))
		if len(got) != maxRemoteThreads+2 {
			t.Errorf("%d receipts are kept", len(got))
		}
		for i, x := range got {
			if i > 1 && x.Thread != fmt.Sprintf("$thread3-%d", i-2) {
				t.Fatalf("the receipt number %d is that of %s", i, x.Thread)
			}
		}
		// People here have as many as they like.
		for i := range maxRemoteThreads + 10 {
			must(t, w.Receipts.Set(ctx, Receipt{Room: room, User: alice, Type: ReceiptRead, EventID: "$one", Thread: fmt.Sprintf("$t%d", i)}))
		}
		if n := w.count(t, `SELECT count(*) FROM receipts WHERE user_id = $1`, alice); n != maxRemoteThreads+10 {
			t.Errorf("%d of alice's receipts are kept", n)
		}
	})
}

// What is said of one user a thousand times is one change, and asks once who has to know.
func TestPresenceOfOneUser(t *testing.T) {
	w := newWorld(openSQLite(t))
	w.registerWithCarol(t)
	w.settle()
	var push presencePush
	for i := range 1000 {
		push.Push = append(push.Push, presenceUpdate{UserID: carol, Presence: []string{PresenceOnline, PresenceOffline}[i%2], StatusMsg: fmt.Sprint(i)})
	}
	from := w.db.Current()
	must(t, w.Presence.Receive(t.Context(), "there.test", encode(push)))
	barrier(w.db)
	if got := w.Presence.Get(carol); got.StatusMsg != "999" {
		t.Errorf("%+v", got)
	}
	// The barrier takes a position as well.
	if took := w.db.Current() - from; took > 2 {
		t.Errorf("it took %d positions", took)
	}
}

// Users of other servers are not taken at their word that a user exists here.
func TestInvitesOfNobody(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, gone := w.register(t, "alice"), w.register(t, "gone")
		must(t, w.Accounts.Deactivate(ctx, gone, false))
		must(t, w.Accounts.CheckInvite(ctx, alice, carol))
		must(t, w.Accounts.CheckInvite(ctx, "@tomorrow:here.test", alice))
		for _, nobody := range []matrix.UserID{gone, "@tomorrow:here.test"} {
			wantCode(t, w.Accounts.CheckInvite(ctx, nobody, carol), 403, "M_FORBIDDEN")
		}
	})
}

// A server that claims all keys of a device gets its fallback key after a while, and others still get one-time keys.
func TestClaimsWithoutEnd(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		w.login(t, alice, "B")
		for _, device := range []matrix.DeviceID{"A", "B"} {
			mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, device, KeysUpload{OneTimeKeys: oneTimeKeys("k", 50)}))
		}
		mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{FallbackKeys: map[string]rawJSON{"signed_curve25519:fb": rawJSON(`{"key":"fb"}`)}}))
		claim := func(origin matrix.ServerName, device matrix.DeviceID) (id string) {
			t.Helper()
			got := mustGet[ClaimedKeys](t)(w.Keys.ClaimFor(ctx, origin, Claims{alice: {device: "signed_curve25519", "NONE": "signed_curve25519"}}))
			for k := range got[alice][device] {
				id = strings.TrimPrefix(string(k), "signed_curve25519:")
			}
			return id
		}
		keys := map[string]bool{}
		for range 100 {
			keys[claim("evil.test", "A")] = true
		}
		if len(keys) != maxClaimsOfServer+1 || !keys["fb"] {
			t.Errorf("%d different keys were given out", len(keys))
		}
		if id := claim("there.test", "A"); id == "fb" || id == "" {
			t.Errorf("another server got %q", id)
		}
		w.clock.advance(claimTime)
		if id := claim("evil.test", "A"); id == "fb" || id == "" {
			t.Errorf("after an hour it got %q", id)
		}
		// Without a fallback key there is nothing else to give.
		for range 50 {
			if id := claim("evil.test", "B"); id == "" {
				t.Fatal("no key though there are some")
			}
		}
		if id := claim("evil.test", "B"); id != "" {
			t.Errorf("there is a key %q", id)
		}
		if n := w.Keys.claims.counts.Len(); n != 3 {
			t.Errorf("%d claimants are remembered", n)
		}
	})
}

// Of the messages of one server the last ones are known again, not all of them.
func TestNotesOfMessagesAreBounded(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			for i := range 100 {
				if _, err := storage.NoteToDeviceReceived(ctx, tx, "there.test", fmt.Sprint(i), matrix.Timestamp(i)); err != nil {
					return err
				}
			}
			if _, err := storage.NoteToDeviceReceived(ctx, tx, "elsewhere.test", "1", 1); err != nil {
				return err
			}
			return storage.TrimToDeviceReceived(ctx, tx, "there.test", 30)
		}))
		for server, want := range map[string]int{"there.test": 30, "elsewhere.test": 1} {
			if n := w.count(t, `SELECT count(*) FROM to_device_received WHERE server = $1`, server); n != want {
				t.Errorf("%d messages of %s are known again", n, server)
			}
		}
		// The oldest of them, and only now and then.
		w.ToDevice.received.Store(trimNotesEvery - 1)
		edu := encode(map[string]any{"message_id": "new", "sender": carol, "type": "m.x", "messages": map[string]any{string(alice): map[string]any{"A": map[string]int{}}}})
		for range 2 {
			must(t, w.ToDevice.Receive(ctx, "there.test", edu))
		}
		if got, _ := w.pending(t, alice, "A"); len(got) != 1 {
			t.Errorf("the message came %d times", len(got))
		}
	})
}
