package sytest

import (
	"net/http"
	"strings"
	"testing"

	"hanok/sytest/homeserver"
)

// In the mode `required`, which is the default of a new install.
func TestEncryptionRequired(t *testing.T) {
	n := homeserver.NewNetwork(t)
	strict := n.Start(homeserver.Options{ExtraConfig: "privacy: {encryption: required}\n"})
	open := n.Start(homeserver.Options{})
	alice, mallory := strict.Register(t, "alice"), open.Register(t, "mallory")

	room := alice.CreateRoom(json{"preset": "public_chat"})
	if got := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.encryption", ""), nil)["algorithm"]; got != "m.megolm.v1.aes-sha2" {
		t.Errorf("a new room's encryption: %v", got)
	}
	alice.Refused("POST", "/v3/createRoom", json{"initial_state": []json{{"type": "m.room.encryption", "state_key": "", "content": json{}}}}, 403, "M_FORBIDDEN")
	res := alice.Refused("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", "1"), json{"msgtype": "m.text", "body": "plain"}, http.StatusForbidden, "M_FORBIDDEN")
	if msg, _ := res["error"].(string); !strings.Contains(msg, "encrypt") {
		t.Errorf("the refusal does not say what to do: %q", msg)
	}
	alice.Refused("PUT", "/v3/rooms"+homeserver.Path(room, "state", "m.room.encryption", ""), json{}, 403, "M_FORBIDDEN")
	cipher := json{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgAEnACgAkLmt6qF84IK", "session_id": "s", "device_id": "d", "sender_key": "k"}
	alice.Send(room, "m.room.encrypted", cipher)
	alice.Refused("PUT", "/v3/sendToDevice/m.room_key/1", json{"messages": json{alice.UserID: json{"*": json{"session_key": "secret"}}}}, 403, "M_FORBIDDEN")

	// Plaintext from elsewhere is kept in redacted form and not shown.
	mallory.Join(room, strict.Name)
	alice.SyncUntilJoined(room, mallory.UserID)
	const secret = "the eagle has landed"
	plain := mallory.Say(room, secret)
	after := mallory.Send(room, "m.room.encrypted", cipher)
	alice.SyncUntil("the encrypted message", func(res json) bool {
		found := false
		for _, e := range homeserver.Timeline(res, room) {
			if e["event_id"] == plain {
				t.Error("a plaintext message of another server is shown")
			}
			found = found || e["event_id"] == after
		}
		return found
	})
	if status, body := alice.Raw("GET", "/v3/rooms"+homeserver.Path(room, "event", plain), nil); strings.Contains(string(body), secret) {
		t.Errorf("the plaintext can be had: %d %s", status, body)
	}
	if dir := strict.DataDir(); containsBytes(t, dir, secret) {
		t.Error("the plaintext is on disk")
	}
}
