package users

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
)

var (
	masterPair = newKeypair("master")
	selfPair   = newKeypair("self-signing")
	userPair   = newKeypair("user-signing")
)

// crossUpload is a full set of keys.
func crossUpload(t *testing.T, user matrix.UserID, master, self, usk keypair) CrossSigningUpload {
	t.Helper()
	return CrossSigningUpload{
		MasterKey:      crossKey(t, user, "master", master),
		SelfSigningKey: crossKey(t, user, "self_signing", self, master),
		UserSigningKey: crossKey(t, user, "user_signing", usk, master),
	}
}

func TestCrossSigningUpload(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		w.rooms.join("!r:here.test", alice, bob, carol)
		up := crossUpload(t, alice, masterPair, selfPair, userPair)
		needs := func(up CrossSigningUpload) bool {
			t.Helper()
			return mustGet[bool](t)(w.CrossSigning.NeedsAuth(ctx, alice, up))
		}
		if needs(up) {
			t.Error("the first upload needs authentication")
		}
		w.settle()
		from := w.db.Current()
		must(t, w.CrossSigning.Upload(ctx, alice, up))
		sent := w.outbox.take()
		if len(sent) != 1 || sent[0].Type != "m.signing_key_update" || strings.Contains(string(sent[0].Content), "user_signing") {
			t.Errorf("sent %s", encode(sent))
		}
		for _, observer := range []matrix.UserID{alice, bob} {
			if diff := cmp.Diff([]matrix.UserID{alice}, w.changed(t, observer, from)); diff != "" {
				t.Errorf("%s: %s", observer, diff)
			}
		}
		if needs(up) {
			t.Error("the same keys again need authentication")
		}
		if needs(CrossSigningUpload{SelfSigningKey: up.SelfSigningKey}) {
			t.Error("one of the same keys needs authentication")
		}
		from = w.db.Current()
		must(t, w.CrossSigning.Upload(ctx, alice, up))
		if len(w.outbox.take()) != 0 || len(w.changed(t, bob, from)) != 0 {
			t.Error("the same keys again count as a change")
		}
		other := newKeypair("other")
		for name, changed := range map[string]CrossSigningUpload{
			"master":       {MasterKey: crossKey(t, alice, "master", other)},
			"self-signing": {SelfSigningKey: crossKey(t, alice, "self_signing", other, masterPair)},
			"user-signing": {UserSigningKey: crossKey(t, alice, "user_signing", other, masterPair)},
		} {
			if !needs(changed) {
				t.Errorf("another %s key needs no authentication", name)
			}
		}

		mine := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{alice: nil}))
		his := mustGet[*QueryResult](t)(w.Keys.Query(ctx, bob, Wanted{alice: nil}))
		theirs := mustGet[*QueryResult](t)(w.Keys.QueryLocal(ctx, Wanted{alice: nil}))
		for name, got := range map[string]*QueryResult{"alice": mine, "bob": his, "server": theirs} {
			if string(got.MasterKeys[alice]) != string(up.MasterKey) || string(got.SelfSigningKeys[alice]) != string(up.SelfSigningKey) {
				t.Errorf("%s sees %s", name, encode(got))
			}
			if sees := got.UserSigningKeys[alice] != nil; sees != (name == "alice") {
				t.Errorf("%s sees the user-signing key: %v", name, sees)
			}
		}
		list := mustGet[*DeviceList](t)(w.DeviceLists.List(ctx, alice))
		if string(list.MasterKey) != string(up.MasterKey) || string(list.SelfSigningKey) != string(up.SelfSigningKey) {
			t.Errorf("list %s", encode(list))
		}

		// A new user-signing key concerns nobody else.
		from = w.db.Current()
		must(t, w.CrossSigning.Upload(ctx, alice, CrossSigningUpload{UserSigningKey: crossKey(t, alice, "user_signing", other, masterPair)}))
		if len(w.outbox.take()) != 0 || len(w.changed(t, bob, from)) != 0 || len(w.changed(t, alice, from)) != 1 {
			t.Error("a user-signing key must be seen by its owner alone")
		}
		// A new master key ends the keys that the old one signed.
		must(t, w.CrossSigning.Upload(ctx, alice, CrossSigningUpload{MasterKey: crossKey(t, alice, "master", other)}))
		mine = mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{alice: nil}))
		if mine.MasterKeys[alice] == nil || mine.SelfSigningKeys[alice] != nil || mine.UserSigningKeys[alice] != nil {
			t.Errorf("after a new master key: %s", encode(mine))
		}
	})
}

func TestCrossSigningRefusals(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		other := newKeypair("other")
		good := crossUpload(t, alice, masterPair, selfPair, userPair)
		key := func(s string) CrossSigningUpload { return CrossSigningUpload{MasterKey: rawJSON(s)} }
		for _, c := range []struct {
			name string
			up   CrossSigningUpload
			code string
		}{
			{"nothing", CrossSigningUpload{}, "M_MISSING_PARAM"},
			{"null", key(`null`), "M_MISSING_PARAM"},
			{"no master key", CrossSigningUpload{SelfSigningKey: good.SelfSigningKey}, "M_MISSING_PARAM"},
			{"unsigned", CrossSigningUpload{good.MasterKey, crossKey(t, alice, "self_signing", selfPair), nil}, "M_INVALID_SIGNATURE"},
			{"signed by another", CrossSigningUpload{good.MasterKey, crossKey(t, alice, "self_signing", selfPair, other), nil}, "M_INVALID_SIGNATURE"},
			{"user-signing unsigned", CrossSigningUpload{good.MasterKey, nil, crossKey(t, alice, "user_signing", userPair)}, "M_INVALID_SIGNATURE"},
			{"of somebody else", CrossSigningUpload{MasterKey: crossKey(t, "@bob:here.test", "master", masterPair)}, "M_INVALID_PARAM"},
			{"wrong usage", CrossSigningUpload{MasterKey: crossKey(t, alice, "self_signing", masterPair)}, "M_INVALID_PARAM"},
			{"a string", key(`"x"`), "M_BAD_JSON"},
			{"no keys", key(`{"user_id":"@alice:here.test","usage":["master"]}`), "M_INVALID_PARAM"},
			{"two keys", key(`{"user_id":"@alice:here.test","usage":["master"],"keys":{"ed25519:a":"a","ed25519:b":"b"}}`), "M_INVALID_PARAM"},
			{"other name", key(`{"user_id":"@alice:here.test","usage":["master"],"keys":{"ed25519:a":"` + masterPair.public + `"}}`), "M_INVALID_PARAM"},
			{"short key", key(`{"user_id":"@alice:here.test","usage":["master"],"keys":{"ed25519:abcd":"abcd"}}`), "M_INVALID_PARAM"},
			{"nul", key(`{"user_id":"@alice:here.test","usage":["master"],"keys":{"ed25519:\u0000":"\u0000"}}`), "M_INVALID_PARAM"},
			{"usage", key(`{"user_id":"@alice:here.test","usage":"master","keys":{}}`), "M_BAD_JSON"},
			{"huge", key(`{"x":"` + strings.Repeat("x", 70_000) + `"}`), "M_TOO_LARGE"},
		} {
			if err := w.CrossSigning.Upload(ctx, alice, c.up); !matrix.HasCode(err, c.code) {
				t.Errorf("%s: got %v, want %s", c.name, err, c.code)
			}
		}
		if got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{alice: nil})); len(got.MasterKeys) != 0 {
			t.Error("a refused upload left a key")
		}
		// A key must not be a device's ID, nor a device's ID a key.
		w.login(t, alice, matrix.DeviceID(masterPair.public))
		wantCode(t, w.CrossSigning.Upload(ctx, alice, good), 403, "M_FORBIDDEN")
		must(t, w.Devices.Delete(ctx, alice, matrix.DeviceID(masterPair.public)))
		must(t, w.CrossSigning.Upload(ctx, alice, good))
		_, err := w.Sessions.Create(ctx, NewSession{UserID: alice, DeviceID: matrix.DeviceID(masterPair.public)})
		wantCode(t, err, 400, "M_INVALID_PARAM")
	})
}

func TestUploadSignatures(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		w.login(t, alice, "A")
		w.login(t, bob, "B")
		devicePair := newKeypair("device A")
		device := deviceKeys(t, alice, "A", devicePair)
		_, err := w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: device})
		must(t, err)
		bobDevice := deviceKeys(t, bob, "B", newKeypair("device B"))
		_, err = w.Keys.Upload(ctx, bob, "B", KeysUpload{DeviceKeys: bobDevice})
		must(t, err)
		must(t, w.CrossSigning.Upload(ctx, alice, crossUpload(t, alice, masterPair, selfPair, userPair)))
		bobMaster := newKeypair("bob's master")
		must(t, w.CrossSigning.Upload(ctx, bob, crossUpload(t, bob, bobMaster, newKeypair("bob's self"), newKeypair("bob's user"))))
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		carolMaster := newKeypair("carol's master")
		w.remote.lists[carol].MasterKey = crossKey(t, carol, "master", carolMaster)
		w.rooms.join("!r:here.test", alice, bob, carol)
		w.carolsDevices(t, alice)
		w.settle()
		from := w.db.Current()

		up := SignatureUpload{
			alice: {
				"A":               selfPair.sign(t, alice, selfPair.public, device),
				masterPair.public: devicePair.sign(t, alice, "A", crossKey(t, alice, "master", masterPair)),
			},
			bob:   {bobMaster.public: userPair.sign(t, alice, userPair.public, crossKey(t, bob, "master", bobMaster))},
			carol: {carolMaster.public: userPair.sign(t, alice, userPair.public, crossKey(t, carol, "master", carolMaster))},
		}
		failures := mustGet[SignatureFailures](t)(w.CrossSigning.UploadSignatures(ctx, alice, up))
		if len(failures) != 0 {
			t.Fatalf("failures %s", encode(failures))
		}
		signed := func(object []byte, by matrix.UserID, k keypair, id string) bool {
			pub, _ := decodePublicKey(k.public)
			return signing.Verify(string(by), matrix.KeyID("ed25519:"+id), pub, object) == nil
		}
		mine := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{alice: nil, bob: nil, carol: nil}))
		his := mustGet[*QueryResult](t)(w.Keys.Query(ctx, bob, Wanted{alice: nil, bob: nil, carol: nil}))
		theirs := mustGet[*QueryResult](t)(w.Keys.QueryLocal(ctx, Wanted{alice: nil, bob: nil}))
		for name, got := range map[string]*QueryResult{"alice": mine, "bob": his, "server": theirs} {
			if !signed(got.DeviceKeys[alice]["A"], alice, selfPair, selfPair.public) || !signed(got.DeviceKeys[alice]["A"], alice, devicePair, "A") {
				t.Errorf("%s does not see the device's signatures: %s", name, got.DeviceKeys[alice]["A"])
			}
			if !signed(got.MasterKeys[alice], alice, devicePair, "A") {
				t.Errorf("%s does not see the master key's signature: %s", name, got.MasterKeys[alice])
			}
			if sees := signed(got.MasterKeys[bob], alice, userPair, userPair.public); sees != (name == "alice") {
				t.Errorf("%s sees alice's signature of bob: %v", name, sees)
			}
			if sees := signed(got.MasterKeys[carol], alice, userPair, userPair.public); sees != (name == "alice") {
				t.Errorf("%s sees alice's signature of carol: %v", name, sees)
			}
		}
		// Also when carol's server is asked.
		w.rooms.leave("!r:here.test", carol)
		live := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{carol: nil}))
		if !signed(live.MasterKeys[carol], alice, userPair, userPair.public) {
			t.Errorf("alice's signature of carol is lost without the cache: %s", live.MasterKeys[carol])
		}
		w.rooms.join("!r:here.test", carol)
		if diff := cmp.Diff([]matrix.UserID{alice}, w.changed(t, bob, from)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]matrix.UserID{alice, bob, carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		types := map[string]int{}
		for _, e := range w.outbox.take() {
			types[e.Type]++
			if e.Type == "m.device_list_update" {
				var u deviceListUpdate
				must(t, json.Unmarshal(e.Content, &u))
				if !signed(u.Keys, alice, selfPair, selfPair.public) {
					t.Errorf("the update lacks the new signature: %s", u.Keys)
				}
			}
		}
		if diff := cmp.Diff(map[string]int{"m.device_list_update": 1, "m.signing_key_update": 1}, types); diff != "" {
			t.Error(diff)
		}

		other := newKeypair("other")
		changed := canonicaljson.Set(device, "algorithms", []byte(`["evil"]`))
		for name, c := range map[string]struct {
			user matrix.UserID
			id   string
			raw  []byte
			code string
		}{
			"unknown device":          {alice, "NONE", selfPair.sign(t, alice, selfPair.public, device), "M_NOT_FOUND"},
			"nul":                     {alice, "\x00", device, "M_NOT_FOUND"},
			"changed object":          {alice, "A", selfPair.sign(t, alice, selfPair.public, changed), "M_INVALID_PARAM"},
			"no new signature":        {alice, "A", device, "M_INVALID_SIGNATURE"},
			"bad signature":           {alice, "A", other.sign(t, alice, selfPair.public, device), "M_INVALID_SIGNATURE"},
			"key without say":         {alice, "A", other.sign(t, alice, other.public, device), "M_INVALID_SIGNATURE"},
			"user-signing own device": {alice, "A", userPair.sign(t, alice, userPair.public, device), "M_INVALID_SIGNATURE"},
			"other's device":          {bob, "B", userPair.sign(t, alice, userPair.public, bobDevice), "M_NOT_FOUND"},
			"self-signing other":      {bob, bobMaster.public, selfPair.sign(t, alice, selfPair.public, crossKey(t, bob, "master", bobMaster)), "M_INVALID_SIGNATURE"},
			"as somebody else":        {bob, bobMaster.public, bobMaster.sign(t, bob, bobMaster.public, crossKey(t, bob, "master", bobMaster)), "M_INVALID_SIGNATURE"},
			"no object":               {alice, "A", []byte(`1`), "M_BAD_JSON"},
			"broken":                  {alice, "A", []byte(`{`), "M_NOT_JSON"},
			"signatures":              {alice, "A", []byte(canonicaljson.Set(device, "signatures", []byte(`[]`))), "M_INVALID_SIGNATURE"},
		} {
			failures := mustGet[SignatureFailures](t)(w.CrossSigning.UploadSignatures(ctx, alice, SignatureUpload{c.user: {c.id: c.raw}}))
			if code, _ := canonicaljson.GetString(failures[c.user][c.id], "errcode"); code != c.code {
				t.Errorf("%s: %s, want %s", name, failures[c.user][c.id], c.code)
			}
		}
		_, err = w.CrossSigning.UploadSignatures(ctx, alice, SignatureUpload{"nonsense": {}})
		wantCode(t, err, 400, "M_INVALID_PARAM")
	})
}

func TestReceiveSigningKeys(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		w.carolsDevices(t, alice)
		w.follow(t)
		w.settle()
		from := w.db.Current()
		update := encode(signingKeyUpdate{UserID: carol, MasterKey: crossKey(t, carol, "master", masterPair), SelfSigningKey: crossKey(t, carol, "self_signing", selfPair, masterPair)})
		must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "evil.test", update))
		must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "there.test", []byte(`{"user_id":"@carol:there.test","master_key":{"user_id":"@alice:here.test"}}`)))
		must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "there.test", []byte(`{"user_id":[]}`)))
		if len(w.changed(t, alice, from)) != 0 {
			t.Error("a forged update counts as a change")
		}
		must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "there.test", update))
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		w.remote.down = true
		got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{carol: nil}))
		if got.MasterKeys[carol] == nil || got.SelfSigningKeys[carol] == nil {
			t.Errorf("got %s", encode(got))
		}
		// The same keys again: something else must be new.
		w.remote.down = false
		w.remote.lists[carol] = remoteList(t, carol, 2, "C1", "C2")
		must(t, w.DeviceLists.ReceiveSigningKeys(ctx, "there.test", update))
		if diff := cmp.Diff([]string{"C1", "C2"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
	})
}
