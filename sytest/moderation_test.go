package sytest

import (
	"net/http"
	"testing"

	"hanok/sytest/homeserver"
)

// TestModeration: administrators suspend and lock accounts. spec: client-server-api#server-administration
func TestModeration(t *testing.T) {
	s := homeserver.NewNetwork(t).Start(homeserver.Options{})
	admin, other, alice := s.RegisterAdmin(t, "admin"), s.RegisterAdmin(t, "other"), s.Register(t, "alice")
	suspend := func(user string) string { return "/v1/admin/suspend/" + user }
	lock := func(user string) string { return "/v1/admin/lock/" + user }

	for _, path := range []string{suspend(alice.UserID), lock(admin.UserID), lock("@nobody:" + s.Name), lock("@x:elsewhere.example")} {
		alice.Refused("GET", path, nil, http.StatusForbidden, "M_FORBIDDEN") // whoever it is about
		alice.Refused("PUT", path, json{"suspended": true, "locked": true}, http.StatusForbidden, "M_FORBIDDEN")
	}
	admin.Refused("GET", suspend("@x:elsewhere.example"), nil, http.StatusBadRequest, "M_INVALID_PARAM")
	admin.Refused("GET", lock("@nobody:"+s.Name), nil, http.StatusNotFound, "M_NOT_FOUND")
	admin.Refused("PUT", suspend(other.UserID), json{"suspended": true}, http.StatusForbidden, "M_FORBIDDEN")
	admin.Refused("PUT", lock(admin.UserID), json{"locked": true}, http.StatusForbidden, "M_FORBIDDEN")
	admin.Refused("PUT", lock(alice.UserID), json{}, http.StatusBadRequest, "M_BAD_JSON")

	if got := admin.Must("PUT", suspend(alice.UserID), json{"suspended": true}); got["suspended"] != true {
		t.Errorf("suspend: %v", got)
	}
	if got := admin.Must("GET", suspend(alice.UserID), nil); got["suspended"] != true {
		t.Errorf("suspended: %v", got)
	}
	alice.Refused("POST", "/v3/createRoom", json{}, http.StatusForbidden, "M_USER_SUSPENDED")
	alice.Must("GET", "/v3/joined_rooms", nil)
	admin.Must("PUT", suspend(alice.UserID), json{"suspended": false})
	alice.CreateRoom(json{})

	admin.Must("PUT", lock(alice.UserID), json{"locked": true})
	if got := alice.Refused("GET", "/v3/joined_rooms", nil, http.StatusUnauthorized, "M_USER_LOCKED"); got["soft_logout"] != true {
		t.Errorf("locked: %v", got)
	}
	admin.Must("PUT", lock(alice.UserID), json{"locked": false})
	alice.Must("GET", "/v3/joined_rooms", nil)

	if got := homeserver.Dig(admin.Must("GET", "/v3/capabilities", nil), "capabilities", "m.account_moderation", "lock"); got != true {
		t.Errorf("the administrator's capability: %v", got)
	}
	if got := homeserver.Dig(alice.Must("GET", "/v3/capabilities", nil), "capabilities", "m.account_moderation"); got != nil {
		t.Errorf("everybody's capability: %v", got)
	}
}

// TestWhoIs: people may ask about themselves, administrators about everybody; addresses are not kept.
func TestWhoIs(t *testing.T) {
	s := homeserver.NewNetwork(t).Start(homeserver.Options{})
	admin, alice, bob := s.RegisterAdmin(t, "admin"), s.Register(t, "alice"), s.Register(t, "bob")
	path := "/v3/admin/whois/" + alice.UserID
	bob.Refused("GET", path, nil, http.StatusForbidden, "M_FORBIDDEN")
	alice.Must("GET", path, nil)
	got := admin.Must("GET", path, nil)
	connections, _ := homeserver.Dig(got, "devices", alice.DeviceID, "sessions").([]any)
	if got["user_id"] != alice.UserID || len(connections) != 1 {
		t.Fatalf("whois: %v", got)
	}
	if ip := homeserver.Dig(connections[0].(json)["connections"].([]any)[0].(json), "ip"); ip != nil {
		t.Errorf("an address was kept: %v", ip)
	}
}

// TestForgetOnLeave: a room that somebody left, or was removed from, is gone for them; other devices hear of the leave once.
func TestForgetOnLeave(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		s := start(homeserver.Options{ExtraConfig: "rooms: {forget_on_leave: true}\n"})
		alice, bob, carol := s.Register(t, "alice"), s.Register(t, "bob"), s.Register(t, "carol")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		carol.Join(room)
		bob.SyncUntilJoined(room, bob.UserID)
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room)+"/leave", json{})
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room)+"/ban", json{"user_id": carol.UserID})
		bob.SyncUntil("the leave", func(sync json) bool { return homeserver.Dig(sync, "rooms", "leave", room) != nil })
		for _, gone := range []*homeserver.Client{bob, carol} {
			gone.Refused("GET", "/v3/rooms"+homeserver.Path(room)+"/messages?dir=b", nil, http.StatusForbidden, "M_FORBIDDEN")
			left := gone.Must("GET", `/v3/sync?filter={"room":{"include_leave":true}}`, nil)
			if homeserver.Dig(left, "rooms", "leave", room) != nil {
				t.Errorf("%s still sees the room", gone.UserID)
			}
		}
		bob.Join(room) // and it is back
		bob.Must("GET", "/v3/rooms"+homeserver.Path(room)+"/messages?dir=b", nil)
		if got := homeserver.Dig(bob.Must("GET", "/v3/capabilities", nil), "capabilities", "m.forget_forced_upon_leave", "enabled"); got != true {
			t.Errorf("capability: %v", got)
		}
	})
}
