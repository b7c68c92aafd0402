package sytest

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"image"
	"image/png"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/sytest/homeserver"
)

// sharedRoom is a room of alice's that bob has joined.
func (p pair) sharedRoom(t *testing.T) (alice, bob *homeserver.Client, room string) {
	t.Helper()
	return p.sharedRoomOf(t, "")
}

// sharedRoomOf is sharedRoom of a room version; "" is what the server makes by itself.
func (p pair) sharedRoomOf(t *testing.T, version string) (alice, bob *homeserver.Client, room string) {
	t.Helper()
	alice, bob = p.home.Register(t, "alice"), p.away.Register(t, "bob")
	body := json{"preset": "public_chat"}
	if version != "" {
		body["room_version"] = version
	}
	room = alice.CreateRoom(body)
	bob.Join(room, p.home.Name)
	member(t, alice, room, bob.UserID, "join")
	return alice, bob, room
}

func interopEphemeral(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	p.knowEachOther(t, room, alice, bob)
	eachOther := func(name string, run func(t *testing.T, from, to *homeserver.Client)) {
		p.part(t, name, func(t *testing.T) { run(t, alice, bob); run(t, bob, alice) })
	}
	ephemeral := func(res json, eventType string) []json {
		return slices.DeleteFunc(homeserver.Events(res, "rooms", "join", room, "ephemeral", "events"), func(e json) bool { return e["type"] != eventType })
	}
	eachOther("typing", func(t *testing.T, from, to *homeserver.Client) {
		to.Sync(0)
		for _, typing := range []bool{true, false} {
			from.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", from.UserID), json{"typing": typing, "timeout": 20000})
			to.SyncUntil(fmt.Sprint(from.UserID, " typing ", typing), func(res json) bool {
				for _, e := range ephemeral(res, "m.typing") {
					users, _ := homeserver.Dig(e, "content", "user_ids").([]any)
					if slices.Contains(users, any(from.UserID)) == typing {
						return true
					}
				}
				return false
			})
		}
	})
	eachOther("receipts", func(t *testing.T, from, to *homeserver.Client) {
		id := to.Say(room, "read this")
		sees(t, from, room, id)
		threaded := to.Send(room, "m.room.message", json{"msgtype": "m.text", "body": "in a thread", "m.relates_to": json{"rel_type": "m.thread", "event_id": id}})
		sees(t, from, room, threaded)
		receipt := func(receiptType, event string, body json) {
			from.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", receiptType, event), body)
		}
		receipt("m.read.private", id, json{})
		want := map[string]string{id: "main", threaded: id}
		if p.lacks["threaded receipts"] == "" {
			receipt("m.read", id, json{"thread_id": "main"})
			receipt("m.read", threaded, json{"thread_id": id})
		} else {
			receipt("m.read", threaded, json{})
			want = map[string]string{threaded: ""}
		}
		got := map[string]string{}
		to.SyncUntil("the receipts", func(res json) bool {
			for _, e := range ephemeral(res, "m.receipt") {
				content, _ := e["content"].(json)
				for event := range content {
					if homeserver.Dig(content, event, "m.read.private", from.UserID) != nil {
						t.Error("a private receipt travels")
					}
					if r := homeserver.Dig(content, event, "m.read", from.UserID); r != nil {
						got[event], _ = homeserver.Dig(r, "thread_id").(string)
					}
				}
			}
			return maps.Equal(got, want)
		})
	})
	eachOther("presence", func(t *testing.T, from, to *homeserver.Client) {
		status := "busy with " + from.UserID
		from.Must("PUT", "/v3/presence"+homeserver.Path(from.UserID, "status"), json{"presence": "online", "status_msg": status})
		to.SyncUntil("the presence", func(res json) bool {
			for _, e := range homeserver.Events(res, "presence", "events") {
				if e["sender"] == from.UserID && homeserver.Dig(e, "content", "status_msg") == status && homeserver.Dig(e, "content", "presence") == "online" {
					return true
				}
			}
			return false
		})
	})
	eachOther("to-device", func(t *testing.T, from, to *homeserver.Client) {
		other := to.Login()
		for _, device := range []string{to.DeviceID, "*"} {
			from.Must("PUT", "/v3/sendToDevice/org.example.ping"+homeserver.Path("to"+device), json{"messages": json{to.UserID: json{device: json{"for": device, "unicode": "한옥"}}}})
			to.SyncUntil("a to-device message", func(res json) bool {
				for _, e := range homeserver.Events(res, "to_device", "events") {
					if e["sender"] == from.UserID && homeserver.Dig(e, "content", "for") == device && homeserver.Dig(e, "content", "unicode") == "한옥" {
						return true
					}
				}
				return false
			})
		}
		other.SyncUntil("what is for all devices", func(res json) bool {
			for _, e := range homeserver.Events(res, "to_device", "events") {
				if homeserver.Dig(e, "content", "for") != "*" {
					t.Errorf("a message for the other device: %v", e)
				}
				return true
			}
			return false
		})
	})
	eachOther("profiles", func(t *testing.T, from, to *homeserver.Client) {
		from.Must("PUT", "/v3/profile"+homeserver.Path(from.UserID, "displayname"), json{"displayname": "A name"})
		from.Must("PUT", "/v3/profile"+homeserver.Path(from.UserID, "avatar_url"), json{"avatar_url": "mxc://example.org/picture"})
		outsider := p.away.Register(t, "outsider")
		if strings.HasSuffix(from.UserID, ":"+p.away.Name) {
			outsider = p.home.Register(t, "outsider")
		}
		got := outsider.Must("GET", "/v3/profile"+homeserver.Path(from.UserID), nil)
		if got["displayname"] != "A name" || got["avatar_url"] != "mxc://example.org/picture" {
			t.Errorf("the profile: %v", got)
		}
		got = outsider.Must("GET", "/v3/profile"+homeserver.Path(from.UserID, "displayname"), nil)
		if got["displayname"] != "A name" || got["avatar_url"] != nil {
			t.Errorf("the name: %v", got)
		}
		outsider.Refused("GET", "/v3/profile"+homeserver.Path(strings.Replace(from.UserID, "@", "@nobody-", 1)), nil, http.StatusNotFound, "M_NOT_FOUND")
	})
}

// device is the keys of a device, which only look like those of a client: nothing is encrypted with them.
type device struct {
	*homeserver.Client
	key ed25519.PrivateKey
}

func b64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// signWith signs an object as a user's key.
func signWith(t *testing.T, object json, user, keyID string, key ed25519.PrivateKey) json {
	t.Helper()
	plain := json{}
	for k, v := range object {
		if k != "signatures" && k != "unsigned" {
			plain[k] = v
		}
	}
	raw, err := canonicaljson.Marshal(plain)
	if err != nil {
		t.Fatal(err)
	}
	signatures, _ := object["signatures"].(json)
	if signatures == nil {
		signatures = json{}
	}
	own, _ := signatures[user].(json)
	if own == nil {
		own = json{}
	}
	own["ed25519:"+keyID] = signing.EncodeBase64(ed25519.Sign(key, raw))
	signatures[user] = own
	object["signatures"] = signatures
	return object
}

func newKeyPair(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public(key ed25519.PrivateKey) string { return b64(key.Public().(ed25519.PublicKey)) }

func (d device) keys(t *testing.T) json {
	return signWith(t, json{
		"user_id": d.UserID, "device_id": d.DeviceID, "algorithms": []any{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys": json{"curve25519:" + d.DeviceID: b64(bytes.Repeat([]byte{7}, 32)), "ed25519:" + d.DeviceID: public(d.key)},
	}, d.UserID, d.DeviceID, d.key)
}

// upload gives a client keys, one one-time key and a fallback key among them.
func upload(t *testing.T, c *homeserver.Client) device {
	t.Helper()
	d := device{Client: c, key: newKeyPair(t)}
	oneTime := signWith(t, json{"key": b64(bytes.Repeat([]byte{8}, 32))}, c.UserID, c.DeviceID, d.key)
	fallback := signWith(t, json{"key": b64(bytes.Repeat([]byte{9}, 32)), "fallback": true}, c.UserID, c.DeviceID, d.key)
	c.Must("POST", "/v3/keys/upload", json{
		"device_keys": d.keys(t), "one_time_keys": json{"signed_curve25519:AAAA": oneTime}, "fallback_keys": json{"signed_curve25519:FALL": fallback},
	})
	return d
}

// changed waits until a user is told that another's devices have changed.
func changed(t *testing.T, c *homeserver.Client, user string) {
	t.Helper()
	c.SyncUntil("a change of "+user+"'s devices", func(res json) bool {
		list, _ := homeserver.Dig(res, "device_lists", "changed").([]any)
		return slices.Contains(list, any(user))
	})
}

func interopDevices(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	p.knowEachOther(t, room, alice, bob)
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		from, to := who[0], who[1]
		to.Sync(0)
		d := upload(t, from)
		changed(t, to, from.UserID)
		query := func() json {
			t.Helper()
			res := to.Must("POST", "/v3/keys/query", json{"device_keys": json{from.UserID: []any{}}})
			if failures, _ := res["failures"].(json); len(failures) > 0 {
				t.Errorf("failures: %v", failures)
			}
			devices, _ := homeserver.Dig(res, "device_keys", from.UserID).(json)
			return devices
		}
		if got := homeserver.Dig(query(), from.DeviceID, "keys", "ed25519:"+from.DeviceID); got != public(d.key) {
			t.Errorf("the device's key is %v, not %v", got, public(d.key))
		}
		from.Must("PUT", "/v3/devices"+homeserver.Path(from.DeviceID), json{"display_name": "A phone"})
		eventually(t, "the device's name", func() string {
			got := query()
			if homeserver.Dig(got, from.DeviceID, "unsigned", "device_display_name") != "A phone" {
				return fmt.Sprint(got)
			}
			return ""
		})
		wanted := []string{"signed_curve25519:AAAA"}
		if p.can(from, "fallback keys") {
			wanted = append(wanted, "signed_curve25519:FALL", "signed_curve25519:FALL")
		}
		for _, want := range wanted {
			res := to.Must("POST", "/v3/keys/claim", json{"one_time_keys": json{from.UserID: json{from.DeviceID: "signed_curve25519"}}})
			key, _ := homeserver.Dig(res, "one_time_keys", from.UserID, from.DeviceID).(json)
			if key[want] == nil || homeserver.Dig(key, want, "signatures", from.UserID, "ed25519:"+from.DeviceID) == nil {
				t.Errorf("claimed %v, want %s", res, want)
			}
		}
		// A second device comes and goes.
		second := upload(t, from.Login())
		eventually(t, "the second device", func() string {
			if got := query(); got[second.DeviceID] == nil || len(got) != 2 {
				return fmt.Sprint(got)
			}
			return ""
		})
		to.Sync(0)
		second.Must("POST", "/v3/logout", json{})
		changed(t, to, from.UserID)
		eventually(t, "the second device is gone", func() string {
			if got := query(); got[second.DeviceID] != nil || len(got) != 1 {
				return fmt.Sprint(got)
			}
			return ""
		})
	}
	// Who shares no room any more is told of nothing, and is current again after coming back.
	bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
	member(t, alice, room, bob.UserID, "leave")
	if p.can(bob, "left users") {
		bob.SyncUntil("that alice is gone", func(res json) bool {
			list, _ := homeserver.Dig(res, "device_lists", "left").([]any)
			return slices.Contains(list, any(alice.UserID))
		})
	}
	third := upload(t, alice.Login())
	bob.Join(room, p.home.Name)
	changed(t, bob, alice.UserID)
	eventually(t, "alice's third device", func() string {
		res := bob.Must("POST", "/v3/keys/query", json{"device_keys": json{alice.UserID: []any{}}})
		if homeserver.Dig(res, "device_keys", alice.UserID, third.DeviceID) == nil {
			return fmt.Sprint(res)
		}
		return ""
	})
}

func interopCrossSigning(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	p.knowEachOther(t, room, alice, bob)
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		from, to := who[0], who[1]
		d := upload(t, from)
		eventually(t, "the device is known", func() string {
			res := to.Must("POST", "/v3/keys/query", json{"device_keys": json{from.UserID: []any{}}})
			if homeserver.Dig(res, "device_keys", from.UserID, from.DeviceID) == nil {
				return fmt.Sprint(res)
			}
			return ""
		})
		to.Sync(0)
		master, self, user := newKeyPair(t), newKeyPair(t), newKeyPair(t)
		of := func(key ed25519.PrivateKey, usage string) json {
			return json{"user_id": from.UserID, "usage": []any{usage}, "keys": json{"ed25519:" + public(key): public(key)}}
		}
		signed := func(object json) json { return signWith(t, object, from.UserID, public(master), master) }
		body := json{
			"master_key": of(master, "master"), "self_signing_key": signed(of(self, "self_signing")), "user_signing_key": signed(of(user, "user_signing")),
		}
		status, res := from.Do("POST", "/v3/keys/device_signing/upload", body)
		if status == http.StatusUnauthorized {
			body["auth"] = json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": from.UserID}, "password": homeserver.Password, "session": res["session"]}
			from.Must("POST", "/v3/keys/device_signing/upload", body)
		}
		changed(t, to, from.UserID)
		res = from.Must("POST", "/v3/keys/signatures/upload", json{from.UserID: json{
			from.DeviceID:  signWith(t, d.keys(t), from.UserID, public(self), self),
			public(master): signWith(t, of(master, "master"), from.UserID, from.DeviceID, d.key),
		}})
		if failures, _ := res["failures"].(json); len(failures) > 0 {
			t.Errorf("the signatures are refused: %v", failures)
		}
		eventually(t, "the cross-signing keys of "+from.UserID, func() string {
			res := to.Must("POST", "/v3/keys/query", json{"device_keys": json{from.UserID: []any{}}})
			switch {
			case homeserver.Dig(res, "master_keys", from.UserID, "keys", "ed25519:"+public(master)) != public(master):
				return fmt.Sprint("no master key: ", res)
			case homeserver.Dig(res, "self_signing_keys", from.UserID, "keys", "ed25519:"+public(self)) != public(self):
				return fmt.Sprint("no self-signing key: ", res)
			case homeserver.Dig(res, "user_signing_keys", from.UserID) != nil:
				return fmt.Sprint("the user-signing key is nobody's business: ", res)
			case homeserver.Dig(res, "device_keys", from.UserID, from.DeviceID, "signatures", from.UserID, "ed25519:"+public(self)) == nil:
				return fmt.Sprint("the device is not cross-signed: ", res)
			case p.can(from, "signed master keys") && p.can(to, "signatures of master keys") &&
				homeserver.Dig(res, "master_keys", from.UserID, "signatures", from.UserID, "ed25519:"+from.DeviceID) == nil:
				return fmt.Sprint("the master key is not signed by the device: ", res)
			}
			return ""
		})
	}
}

// picture is a file of 300 by 200 pixels.
func picture(t *testing.T) []byte {
	t.Helper()
	pixels := image.NewRGBA(image.Rect(0, 0, 300, 200))
	for i := range pixels.Pix {
		pixels.Pix[i] = byte(i)
	}
	var file bytes.Buffer
	if err := png.Encode(&file, pixels); err != nil {
		t.Fatal(err)
	}
	return file.Bytes()
}

func interopMedia(t *testing.T, p pair) {
	alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
	file := picture(t)
	res := alice.Must("POST", "/_matrix/media/v3/upload?filename=k%C3%A4tzchen.png", string(file))
	uri, _ := res["content_uri"].(string)
	id := strings.TrimPrefix(uri, "mxc://")
	status, got := bob.Raw("GET", "/v1/media/download/"+id, nil)
	if status != http.StatusOK || !bytes.Equal(got, file) {
		t.Errorf("the file: %d, %d bytes of %d", status, len(got), len(file))
	}
	for _, params := range []string{"?width=96&height=96&method=crop", "?width=150&height=150&method=scale"} {
		status, got = bob.Raw("GET", "/v1/media/thumbnail/"+id+params, nil)
		thumbnail, _, err := image.DecodeConfig(bytes.NewReader(got))
		if status != http.StatusOK || err != nil || thumbnail.Width > 320 {
			t.Errorf("the thumbnail %s: %d %v %v", params, status, thumbnail, err)
		}
	}
	status, got = bob.Raw("GET", "/v1/media/download/"+p.home.Name+"/nothing", nil)
	if status != http.StatusNotFound {
		t.Errorf("a file that is not there: %d %s", status, got)
	}
}
