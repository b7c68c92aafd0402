package users

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// fuzzSeeds are contents of EDUs and bodies, good and bad.
var fuzzSeeds = []string{
	`{"user_id":"@carol:there.test","device_id":"D","stream_id":3,"prev_id":[2],"keys":{"user_id":"@carol:there.test","device_id":"D","keys":{"ed25519:D":"x"}}}`,
	`{"user_id":"@carol:there.test","device_id":"D","stream_id":3,"deleted":true,"device_display_name":"\u0000"}`,
	`{"user_id":"@carol:there.test","usage":["master"],"keys":{"ed25519:` + "2KXnd7HfO9U7u1QqDIPmRHEdWD0PHQFDUzbSrRVVNCc" + `":"2KXnd7HfO9U7u1QqDIPmRHEdWD0PHQFDUzbSrRVVNCc"}}`,
	`{"message_id":"m","sender":"@carol:there.test","type":"m.x","messages":{"@alice:here.test":{"*":{"a":1}}}}`,
	`{"push":[{"user_id":"@carol:there.test","presence":"online","last_active_ago":5}]}`,
	`{"room":{"timeline":{"limit":10,"types":["m.*"]},"rooms":["!a:b"]},"event_fields":["a"]}`,
	`{"signed_curve25519:A":{"key":"k","signatures":{"@c:t":{"ed25519:D":"s"}}},"curve25519:B":"x"}`,
	`{}`, `[]`, `{"user_id":{}}`, `{"a":1,"a":2}`, "\xff", `{"keys":{"ed25519:\u0000":"\u0000"}}`,
}

// FuzzRemoteInput gives bytes to everything that reads what other servers send, and to the
// checks of uploads: nothing panics, and what passes can be stored and speaks for nobody else.
func FuzzRemoteInput(f *testing.F) {
	for _, seed := range fuzzSeeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var u deviceListUpdate
		if decode(raw, &u, "") == nil && validRemoteUser(u.UserID, "there.test") {
			if row, ok := remoteDevice(u.UserID, ListedDevice{u.DeviceID, u.DisplayName, u.Keys}); ok {
				if strings.ContainsRune(string(row.DeviceID), 0) || row.DeviceID == "" || !strings.HasSuffix(string(row.UserID), ":there.test") {
					t.Errorf("passed %q %q", row.UserID, row.DeviceID)
				}
				checkStored(t, row.Keys, row.UserID)
			}
		}
		for _, k := range remoteCrossSigning(carol, raw, raw) {
			if pub, ok := decodePublicKey(k.Public); !ok || len(pub) != 32 {
				t.Errorf("passed key %q", k.Public)
			}
			checkStored(t, k.Key, carol)
		}
		var m directToDevice
		if decode(raw, &m, "") == nil && validRemoteUser(m.Sender, "there.test") {
			messages, err := (&ToDevice{core: &core{Options{Policy: fakePolicy{}}}}).check(m.Type, m.Messages)
			for user, devices := range messages {
				for device, content := range devices {
					if strings.ContainsRune(string(user)+string(device)+m.Type, 0) || !canonicaljson.IsCanonical(toDeviceEvent(m.Sender, m.Type, content), canonicaljson.Lenient) && err == nil {
						t.Errorf("passed message %q %q %q", user, device, content)
					}
				}
			}
		}
		var push presencePush
		_ = decode(raw, &push, "")
		if canonical, err := object(raw, canonicaljson.Lenient, maxFilter, ""); err == nil {
			_ = checkFilter(canonical)
		}
		if keys, err := parseDeviceKeys(carol, "D", raw); err == nil && keys != nil {
			checkStored(t, keys, carol)
		}
		var claimable map[string]rawJSON
		if decode(raw, &claimable, "") == nil {
			keys, err := parseClaimable(claimable)
			for _, k := range keys {
				if err == nil && (strings.ContainsRune(k.Algorithm+k.KeyID, 0) || k.Algorithm == "" || k.KeyID == "") {
					t.Errorf("passed key %q:%q", k.Algorithm, k.KeyID)
				}
			}
		}
	})
}

// checkStored fails unless keys are canonical, without `unsigned`, and of no other user.
func checkStored(t *testing.T, keys []byte, user matrix.UserID) {
	t.Helper()
	if keys == nil {
		return
	}
	canonical, err := canonicaljson.Canonical(bytes.Clone(keys), canonicaljson.Strict)
	if err != nil || !bytes.Equal(canonical, keys) {
		t.Errorf("not canonical: %q", keys)
	}
	if _, ok := canonicaljson.Get(keys, "unsigned"); ok {
		t.Errorf("stored unsigned: %q", keys)
	}
	if raw, ok := canonicaljson.Get(keys, "user_id"); ok {
		if got, _ := canonicaljson.String(raw); got != string(user) {
			t.Errorf("keys of %s pass for %s", got, user)
		}
	}
}

// FuzzGateway checks URLs of push gateways: what passes leads to where the configuration allows, and can be stored.
func FuzzGateway(f *testing.F) {
	for _, seed := range []string{
		"https://push.test/_matrix/push/v1/notify", "https://user:pass@push.test:8443/_matrix/push/v1/notify?a=b#c", "http://push.test/_matrix/push/v1/notify",
		"https://[::1%25eth0]/_matrix/push/v1/notify", "https://%80.test/_matrix/push/v1/notify", "https://:443/_matrix/push/v1/notify", "https:/_matrix/push/v1/notify",
		"https://push.test.evil/_matrix/push/v1/notify", "HTTPS://PUSH.TEST/_matrix/push/v1/notify", "//push.test/_matrix/push/v1/notify", "https://push.test\\@evil/_matrix/push/v1/notify",
	} {
		f.Add(seed)
	}
	gateways := PushGateways{Hosts: []string{"push.test"}}
	f.Fuzz(func(t *testing.T, raw string) {
		gateway, err := gateways.check(raw)
		if _, known := matrix.AsError(err); err != nil && !known {
			t.Errorf("%q: %v is no error for a client", raw, err)
		}
		if err != nil {
			return
		}
		req, err := http.NewRequest(http.MethodPost, raw, nil)
		if err != nil || !strings.EqualFold(req.URL.Hostname(), "push.test") || req.URL.Path != gatewayPath || req.URL.Scheme != "https" {
			t.Errorf("%q passed, and leads to %v (%v)", raw, req, err)
		}
		if !strings.HasPrefix(strings.ToLower(gateway), "https://push.test") || !utf8.ValidString(gateway) {
			t.Errorf("%q is of the gateway %q", raw, gateway)
		}
	})
}
