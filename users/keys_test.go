package users

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

func TestUploadDeviceKeys(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		w.rooms.join("!r:here.test", alice, "@bob:here.test", "@carol:there.test")
		w.settle()
		keys := deviceKeys(t, alice, "A", newKeypair("a"))
		withUnsigned := canonicaljson.Set(keys, "unsigned", []byte(`{"device_display_name":"forged"}`))
		counts := mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: withUnsigned}))
		if diff := cmp.Diff(map[string]int64{"signed_curve25519": 0}, counts); diff != "" {
			t.Error(diff)
		}
		if sent := w.outbox.take(); len(sent) != 1 || sent[0].Type != "m.device_list_update" {
			t.Errorf("sent %+v", sent)
		}
		if woken := w.notifier.takeUsers(); len(woken) != 2 {
			t.Errorf("woken %v", woken)
		}
		// The same keys again change nothing.
		mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: keys}))
		if sent := w.outbox.take(); len(sent) != 0 {
			t.Errorf("sent %+v", sent)
		}
		got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, "@bob:here.test", Wanted{alice: nil}))
		if diff := cmp.Diff(string(canonicaljson.Set(keys, "unsigned", []byte("{}"))), string(got.DeviceKeys[alice]["A"])); diff != "" {
			t.Error(diff)
		}

		// Other identity keys end what was made with the old ones.
		mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{OneTimeKeys: oneTimeKeys("k", 3)}))
		counts = mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: deviceKeys(t, alice, "A", newKeypair("other"))}))
		if counts["signed_curve25519"] != 0 {
			t.Errorf("one-time keys of old identity keys: %v", counts)
		}

		_, err := w.Keys.Upload(ctx, alice, "GONE", KeysUpload{OneTimeKeys: oneTimeKeys("k", 1)})
		wantCode(t, err, 404, "M_NOT_FOUND")
		for _, c := range []struct{ keys, code string }{
			{string(deviceKeys(t, "@bob:here.test", "A", newKeypair("a"))), "M_INVALID_PARAM"},
			{string(deviceKeys(t, alice, "B", newKeypair("a"))), "M_INVALID_PARAM"},
			{`{}`, "M_BAD_JSON"}, {`{"user_id":"@alice:here.test","device_id":"A"}`, "M_BAD_JSON"},
			{`[]`, "M_BAD_JSON"}, {`"x"`, "M_BAD_JSON"}, {`{`, "M_NOT_JSON"},
			{`{"user_id":1,"device_id":"A","keys":{}}`, "M_BAD_JSON"},
			{`{"user_id":"@alice:here.test","device_id":"A","keys":{"ed25519:A":1}}`, "M_BAD_JSON"},
			{`{"user_id":"@alice:here.test","device_id":"A","algorithms":[],"signatures":{},"keys":{"noalgorithm":"x"}}`, "M_INVALID_PARAM"},
			{`{"user_id":"@alice:here.test","device_id":"A","algorithms":[],"signatures":{},"keys":{"a:\u0000":"x"}}`, "M_INVALID_PARAM"},
			{`{"user_id":"@alice:here.test","device_id":"A","keys":{},"signatures":"x"}`, "M_BAD_JSON"},
			{`{"user_id":"@alice:here.test","device_id":"A","keys":{},"f":1.5}`, "M_BAD_JSON"},
			{`{"user_id":"@alice:here.test","user_id":"@bob:here.test","device_id":"A","keys":{}}`, "M_BAD_JSON"},
			{`{"x":"` + strings.Repeat("x", 70_000) + `"}`, "M_TOO_LARGE"},
		} {
			_, err := w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: rawJSON(c.keys)})
			if !matrix.HasCode(err, c.code) {
				t.Errorf("%.60s: got %v, want %s", c.keys, err, c.code)
			}
		}
	})
}

func TestUploadOneTimeKeys(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		upload := func(keys map[string]rawJSON) (map[string]int64, error) {
			return w.Keys.Upload(ctx, alice, "A", KeysUpload{OneTimeKeys: keys})
		}
		keys := oneTimeKeys("a", 5)
		for range 2 {
			if counts := mustGet[map[string]int64](t)(upload(keys)); counts["signed_curve25519"] != 5 {
				t.Errorf("counts %v", counts)
			}
		}
		// The same key signed anew is the same key.
		one := map[string]rawJSON{"signed_curve25519:a000": rawJSON(`{"key":"a0","signatures":{"@x:y":{"ed25519:D":"another"}}}`)}
		mustGet[map[string]int64](t)(upload(one))
		one["signed_curve25519:a000"] = rawJSON(`{"key":"changed"}`)
		one["signed_curve25519:zzz"] = rawJSON(`{"key":"new"}`)
		_, err := upload(one)
		wantCode(t, err, 400, "M_INVALID_PARAM")
		counts := mustGet[map[string]int64](t)(upload(map[string]rawJSON{"curve25519:x": rawJSON(`"plain"`)}))
		if diff := cmp.Diff(map[string]int64{"signed_curve25519": 5, "curve25519": 1}, counts); diff != "" {
			t.Errorf("a refused upload had effects: %s", diff)
		}
		for id, c := range map[string]struct{ key, code string }{
			"nocolon":                       {`"x"`, "M_INVALID_PARAM"},
			":x":                            {`"x"`, "M_INVALID_PARAM"},
			"a:":                            {`"x"`, "M_INVALID_PARAM"},
			"a:\x00":                        {`"x"`, "M_INVALID_PARAM"},
			strings.Repeat("a", 65) + ":x":  {`"x"`, "M_INVALID_PARAM"},
			"a:" + strings.Repeat("x", 300): {`"x"`, "M_INVALID_PARAM"},
			"a:number":                      {`1`, "M_BAD_JSON"},
			"a:null":                        {`null`, "M_BAD_JSON"},
			"a:array":                       {`[]`, "M_BAD_JSON"},
			"a:nokey":                       {`{}`, "M_BAD_JSON"},
			"a:keynumber":                   {`{"key":1}`, "M_BAD_JSON"},
			"a:signatures":                  {`{"key":"x","signatures":[]}`, "M_BAD_JSON"},
			"a:big":                         {`"` + strings.Repeat("x", 5000) + `"`, "M_TOO_LARGE"},
			"a:dup":                         {`{"key":"x","key":"y"}`, "M_BAD_JSON"},
			"a:broken":                      {`{"key"`, "M_NOT_JSON"},
		} {
			if _, err := upload(map[string]rawJSON{id: rawJSON(c.key)}); !matrix.HasCode(err, c.code) {
				t.Errorf("%.40q: got %v, want %s", id, err, c.code)
			}
		}
		_, err = upload(oneTimeKeys("many", maxOneTimeKeys+1))
		wantCode(t, err, 413, "M_TOO_LARGE")
		_, err = upload(oneTimeKeys("fill", maxOneTimeKeys))
		wantCode(t, err, 413, "M_TOO_LARGE")
	})
}

// Keys are given out in the order of their uploads, each once; then the fallback key, again and again.
func TestClaim(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		for _, prefix := range []string{"z", "a", "m"} {
			mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{OneTimeKeys: oneTimeKeys(prefix, 2)}))
		}
		fallback := map[string]rawJSON{"signed_curve25519:fb": rawJSON(`{"fallback":true,"key":"fb"}`)}
		mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{FallbackKeys: fallback}))
		unused := func(want ...string) {
			t.Helper()
			counts := mustGet[*KeyCounts](t)(w.Keys.Counts(ctx, w.db, alice, "A"))
			if counts.UnusedFallback == nil || !slices.Equal(counts.UnusedFallback, want) {
				t.Errorf("unused fallback keys %v, want %v", counts.UnusedFallback, want)
			}
		}
		unused("signed_curve25519")
		claims := Claims{alice: {"A": "signed_curve25519"}}
		claim := func() string {
			t.Helper()
			got := mustGet[*ClaimResult](t)(w.Keys.Claim(ctx, claims))
			ids := slices.Collect(maps.Keys(got.OneTimeKeys[alice]["A"]))
			if len(ids) != 1 || len(got.Failures) != 0 {
				t.Fatalf("claimed %+v", got)
			}
			return string(ids[0])
		}
		order := ""
		for range 6 {
			order += strings.TrimPrefix(claim(), "signed_curve25519:")[:1]
		}
		if order != "zzaamm" {
			t.Errorf("claimed in order %s", order)
		}
		unused("signed_curve25519")
		for range 3 {
			if id := claim(); id != "signed_curve25519:fb" {
				t.Errorf("claimed %s", id)
			}
		}
		unused()
		// The same fallback key again stays used; a new one is not.
		mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{FallbackKeys: fallback}))
		unused()
		mustGet[map[string]int64](t)(w.Keys.Upload(ctx, alice, "A", KeysUpload{FallbackKeys: map[string]rawJSON{"signed_curve25519:fb2": rawJSON(`{"key":"fb2"}`)}}))
		unused("signed_curve25519")
		_, err := w.Keys.Upload(ctx, alice, "A", KeysUpload{FallbackKeys: map[string]rawJSON{"a:1": rawJSON(`"x"`), "a:2": rawJSON(`"y"`)}})
		wantCode(t, err, 400, "M_INVALID_PARAM")

		// Nothing to claim is no error, whatever is asked.
		for _, c := range []Claims{
			{alice: {"NONE": "signed_curve25519"}}, {alice: {"A": "other"}}, {"@nobody:here.test": {"A": "x"}},
			{alice: {"\x00": "x"}}, {alice: {"A": "\x00"}}, {alice: {"A": ""}}, {},
		} {
			if got := mustGet[*ClaimResult](t)(w.Keys.Claim(ctx, c)); len(got.OneTimeKeys) != 0 || got.OneTimeKeys == nil {
				t.Errorf("%v: %+v", c, got)
			}
		}
		_, err = w.Keys.Claim(ctx, Claims{"nonsense": {"A": "x"}})
		wantCode(t, err, 400, "M_INVALID_PARAM")
		got := mustGet[ClaimedKeys](t)(w.Keys.ClaimLocal(ctx, Claims{"@x:there.test": {"A": "x"}, "nonsense": {"A": "x"}}))
		if len(got) != 0 {
			t.Errorf("claimed for others: %v", got)
		}
		huge := Claims{alice: {}}
		for i := range maxClaims + 1 {
			huge[alice][matrix.DeviceID(fmt.Sprint(i))] = "x"
		}
		_, err = w.Keys.Claim(ctx, huge)
		wantCode(t, err, 413, "M_TOO_LARGE")
		_, err = w.Keys.ClaimLocal(ctx, huge)
		wantCode(t, err, 413, "M_TOO_LARGE")
	})
}

// However many claim at the same time, no key is given out twice.
func TestClaimRace(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		mustGet[map[string]int64](t)(w.Keys.Upload(t.Context(), alice, "A", KeysUpload{OneTimeKeys: oneTimeKeys("k", 20)}))
		var mu sync.Mutex
		seen := map[matrix.KeyID]int{}
		var wg sync.WaitGroup
		for range 30 {
			wg.Go(func() {
				got, err := w.Keys.ClaimLocal(context.Background(), Claims{alice: {"A": "signed_curve25519"}})
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				for id := range got[alice]["A"] {
					seen[id]++
				}
			})
		}
		wg.Wait()
		if len(seen) != 20 {
			t.Errorf("%d keys given out", len(seen))
		}
		for id, n := range seen {
			if n != 1 {
				t.Errorf("%s given out %d times", id, n)
			}
		}
	})
}

func TestClaimRemote(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		carol := matrix.UserID("@carol:there.test")
		w.remote.claims = ClaimedKeys{
			carol: {
				"C":      {"signed_curve25519:1": rawJSON(`{ "key": "k" }`)},
				"WRONG":  {"other:1": rawJSON(`{}`)},
				"BROKEN": {"signed_curve25519:1": rawJSON(`{`)},
				"BIG":    {"signed_curve25519:1": rawJSON(`"` + strings.Repeat("x", 5000) + `"`)},
				"EXTRA":  {"signed_curve25519:1": rawJSON(`{}`)},
			},
			"@other:there.test": {"O": {"signed_curve25519:1": rawJSON(`{}`)}},
		}
		claims := Claims{carol: {"C": "signed_curve25519", "WRONG": "signed_curve25519", "BROKEN": "signed_curve25519", "BIG": "signed_curve25519"}}
		got := mustGet[*ClaimResult](t)(w.Keys.Claim(ctx, claims))
		want := ClaimedKeys{carol: {"C": {"signed_curve25519:1": rawJSON(`{"key":"k"}`)}}}
		if diff := cmp.Diff(want, got.OneTimeKeys); diff != "" {
			t.Error(diff)
		}
		w.remote.down = true
		got = mustGet[*ClaimResult](t)(w.Keys.Claim(ctx, claims))
		if len(got.Failures) != 1 || got.Failures["there.test"] == nil || len(got.OneTimeKeys) != 0 {
			t.Errorf("claim of a server that is down: %+v", got)
		}
	})
}

func TestQuery(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		for _, d := range []matrix.DeviceID{"A1", "A2", "NOKEYS"} {
			w.login(t, alice, d)
		}
		for _, d := range []matrix.DeviceID{"A1", "A2"} {
			_, err := w.Keys.Upload(ctx, alice, d, KeysUpload{DeviceKeys: deviceKeys(t, alice, d, newKeypair(string(d)))})
			must(t, err)
		}
		name := "Phone \"1\"\x00"
		_, err := w.Devices.Put(ctx, alice, "A1", &name, false)
		must(t, err)
		devices := func(requester matrix.UserID, wanted Wanted) map[matrix.UserID][]string {
			t.Helper()
			got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, requester, wanted))
			out := map[matrix.UserID][]string{}
			for user, list := range got.DeviceKeys {
				out[user] = []string{}
				for id := range list {
					out[user] = append(out[user], string(id))
				}
				slices.Sort(out[user])
			}
			return out
		}
		for _, c := range []struct {
			wanted Wanted
			want   map[matrix.UserID][]string
		}{
			{Wanted{alice: nil}, map[matrix.UserID][]string{alice: {"A1", "A2"}}},
			{Wanted{alice: {}, bob: {}}, map[matrix.UserID][]string{alice: {"A1", "A2"}, bob: {}}},
			{Wanted{alice: {"A2", "NOKEYS", "NONE", "\x00"}}, map[matrix.UserID][]string{alice: {"A2"}}},
			{Wanted{"@nobody:here.test": nil}, map[matrix.UserID][]string{}},
			{nil, map[matrix.UserID][]string{}},
		} {
			if diff := cmp.Diff(c.want, devices(bob, c.wanted)); diff != "" {
				t.Errorf("%v: %s", c.wanted, diff)
			}
		}
		got := mustGet[*QueryResult](t)(w.Keys.QueryLocal(ctx, Wanted{alice: {"A1"}, "@x:there.test": nil, "nonsense": nil}))
		info, _ := canonicaljson.Get(got.DeviceKeys[alice]["A1"], "unsigned")
		if text, _ := canonicaljson.GetString(info, "device_display_name"); text != name || len(got.DeviceKeys) != 1 {
			t.Errorf("answer to another server: %s", encode(got))
		}
		_, err = w.Keys.Query(ctx, bob, Wanted{"nonsense": nil})
		wantCode(t, err, 400, "M_INVALID_PARAM")
		huge := Wanted{}
		for i := range maxQueried + 1 {
			huge[matrix.UserID(fmt.Sprintf("@u%d:here.test", i))] = nil
		}
		_, err = w.Keys.Query(ctx, bob, huge)
		wantCode(t, err, 413, "M_TOO_LARGE")
		_, err = w.Keys.QueryLocal(ctx, huge)
		wantCode(t, err, 413, "M_TOO_LARGE")
	})
}

// remoteList makes carol's device list on the other server.
func remoteList(t *testing.T, user matrix.UserID, stream int64, devices ...matrix.DeviceID) *DeviceList {
	l := &DeviceList{UserID: user, StreamID: stream}
	for _, d := range devices {
		l.Devices = append(l.Devices, ListedDevice{DeviceID: d, DisplayName: string(d) + "'s name", Keys: deviceKeys(t, user, d, newKeypair(string(d)))})
	}
	return l
}

const carol = matrix.UserID("@carol:there.test")

// carolsDevices asks for carol's devices as a client does.
func (w *world) carolsDevices(t *testing.T, requester matrix.UserID) []string {
	t.Helper()
	got := mustGet[*QueryResult](t)(w.Keys.Query(t.Context(), requester, Wanted{carol: nil}))
	ids := []string{}
	for id := range got.DeviceKeys[carol] {
		ids = append(ids, string(id))
	}
	slices.Sort(ids)
	return ids
}

// follow lets the background fetch what is due.
func (w *world) follow(t *testing.T) {
	t.Helper()
	work := newFetchWork(w.DeviceLists)
	mustGet[time.Duration](t)(work.dispatch(t.Context()))
	work.group.Wait()
}

// deviceUpdate is an m.device_list_update of carol's.
func deviceUpdate(t *testing.T, device matrix.DeviceID, stream int64, prev ...int64) []byte {
	t.Helper()
	return encode(deviceListUpdate{UserID: carol, DeviceID: device, StreamID: stream, PrevID: prev, Keys: deviceKeys(t, carol, device, newKeypair(string(device)))})
}

func TestQueryRemote(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.remote.lists[carol] = remoteList(t, carol, 5, "C1")

		// Nobody shares a room: each query asks the server, and nothing is kept.
		for range 2 {
			if diff := cmp.Diff([]string{"C1"}, w.carolsDevices(t, alice)); diff != "" {
				t.Error(diff)
			}
		}
		w.follow(t)
		if w.remote.queries["there.test"] != 2 || w.remote.fetches != 0 {
			t.Errorf("asked %d times, fetched %d times", w.remote.queries["there.test"], w.remote.fetches)
		}
		// With a room in common, the list is fetched once and then kept.
		w.rooms.join("!r:here.test", alice, carol)
		w.carolsDevices(t, alice)
		w.follow(t)
		w.remote.down = true
		if diff := cmp.Diff([]string{"C1"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
		if w.remote.queries["there.test"] != 2 || w.remote.fetches != 1 {
			t.Errorf("asked %d times, fetched %d times", w.remote.queries["there.test"], w.remote.fetches)
		}
		got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, Wanted{carol: {"C2"}, "@dan:elsewhere.test": nil}))
		if len(got.DeviceKeys[carol]) != 0 || got.DeviceKeys[carol] == nil {
			t.Errorf("a device that is not there: %s", encode(got))
		}
		if len(got.Failures) != 1 || got.Failures["elsewhere.test"] == nil {
			t.Errorf("failures %v", got.Failures)
		}
	})
}

// Of many users at once the keys are asked for together, and the lists fetched afterwards.
func TestQueryManyRemote(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		wanted := Wanted{}
		for i := range fetchedAtOnce + 3 {
			user := matrix.UserID(fmt.Sprintf("@u%d:there.test", i))
			wanted[user] = nil
			w.rooms.join("!r:here.test", user)
			w.remote.lists[user] = remoteList(t, user, 1, "D")
		}
		w.rooms.join("!r:here.test", alice)
		barrier(w.db)
		from := w.db.Current()
		for round := range 2 {
			got := mustGet[*QueryResult](t)(w.Keys.Query(ctx, alice, wanted))
			if len(got.DeviceKeys) != len(wanted) || len(got.Failures) != 0 {
				t.Errorf("round %d: %s", round, encode(got))
			}
			w.clock.advance(time.Minute)
			w.follow(t)
		}
		if w.remote.queries["there.test"] != 1 || w.remote.fetches != len(wanted) {
			t.Errorf("asked %d times, fetched %d lists", w.remote.queries["there.test"], w.remote.fetches)
		}
		if got := w.changed(t, alice, from); len(got) != 0 {
			t.Errorf("told of %d lists just after they were asked for", len(got))
		}
	})
}

func TestQueryTimeout(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w = newWorld(w.db, func(o *Options) { o.RemoteTimeout = 50 * time.Millisecond })
		alice := w.register(t, "alice")
		w.remote.block = true
		got := mustGet[*QueryResult](t)(w.Keys.Query(t.Context(), alice, Wanted{alice: nil, carol: nil}))
		if got.Failures["there.test"] == nil || got.DeviceKeys[alice] == nil {
			t.Errorf("got %s", encode(got))
		}
	})
}

// However many servers are silent, those that answer are heard.
func TestQueryBesideSilentServers(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		w = newWorld(w.db, func(o *Options) { o.RemoteTimeout = 200 * time.Millisecond })
		alice := w.register(t, "alice")
		w.remote.lists[carol] = remoteList(t, carol, 1, "PHONE")
		w.remote.claims = ClaimedKeys{carol: {"PHONE": {"signed_curve25519:A": rawJSON(`{}`)}}}
		w.remote.silent = map[matrix.ServerName]bool{}
		wanted, claims := Wanted{carol: nil}, Claims{carol: {"PHONE": "signed_curve25519"}}
		for i := range 5 * remoteAskedOnce {
			server := fmt.Sprintf("silent%d.test", i)
			w.remote.silent[matrix.ServerName(server)] = true
			wanted[matrix.UserID("@x:"+server)], claims[matrix.UserID("@x:"+server)] = nil, map[matrix.DeviceID]string{"D": "signed_curve25519"}
		}
		got := mustGet[*QueryResult](t)(w.Keys.Query(t.Context(), alice, wanted))
		if got.DeviceKeys[carol]["PHONE"] == nil || len(got.Failures) != 5*remoteAskedOnce {
			t.Errorf("%d failures, and %s", len(got.Failures), encode(got.DeviceKeys))
		}
		claimed := mustGet[*ClaimResult](t)(w.Keys.Claim(t.Context(), claims))
		if claimed.OneTimeKeys[carol]["PHONE"] == nil || len(claimed.Failures) != 5*remoteAskedOnce {
			t.Errorf("%d failures, and %s", len(claimed.Failures), encode(claimed.OneTimeKeys))
		}
	})
}

// What another server says about its users is checked, and about others ignored.
func TestQueryRemoteLies(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.register(t, "alice")
		l := remoteList(t, carol, 1, "GOOD")
		l.Devices = append(l.Devices,
			ListedDevice{DeviceID: "OTHERUSER", Keys: deviceKeys(t, alice, "OTHERUSER", newKeypair("x"))},
			ListedDevice{DeviceID: "OTHERDEVICE", Keys: deviceKeys(t, carol, "X", newKeypair("x"))},
			ListedDevice{DeviceID: "BROKEN", Keys: rawJSON(`{"a":1.5}`)},
			ListedDevice{DeviceID: "ARRAY", Keys: rawJSON(`[]`)},
			ListedDevice{DeviceID: "NUL\x00", Keys: deviceKeys(t, carol, "NUL\x00", newKeypair("x"))},
			ListedDevice{DeviceID: "BIG", Keys: rawJSON(`{"x":"` + strings.Repeat("x", 70_000) + `"}`)},
		)
		l.MasterKey = crossKey(t, alice, "master", newKeypair("m"))
		l.SelfSigningKey = rawJSON(`"x"`)
		w.remote.lists[carol] = l
		for _, shared := range []bool{false, true} {
			if shared {
				w.rooms.join("!r:here.test", alice, carol)
			}
			got := mustGet[*QueryResult](t)(w.Keys.Query(t.Context(), alice, Wanted{carol: nil}))
			if len(got.DeviceKeys[carol]) != 1 || got.DeviceKeys[carol]["GOOD"] == nil || len(got.MasterKeys) != 0 || len(got.SelfSigningKeys) != 0 {
				t.Errorf("shared=%v: %s", shared, encode(got))
			}
			w.follow(t)
		}
		if diff := cmp.Diff([]string{"GOOD"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
	})
}
