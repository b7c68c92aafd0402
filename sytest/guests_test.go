package sytest

import (
	"net/http"
	"net/url"
	"strings"
	"testing"

	"hanok/sytest/homeserver"
)

// registerGuest makes a guest with a session.
func registerGuest(t *testing.T, hs *homeserver.Server) *homeserver.Client {
	t.Helper()
	c := hs.Anonymous(t)
	res := c.Must("POST", "/v3/register?kind=guest", json{})
	c.UserID, _ = res["user_id"].(string)
	c.AccessToken, _ = res["access_token"].(string)
	return c
}

// leaves waits until somebody sees a user leave a room.
func leaves(c *homeserver.Client, room, user string) {
	c.SyncUntil(user+" leaving", func(res json) bool {
		for _, e := range homeserver.Timeline(res, room) {
			if e["state_key"] == user && homeserver.Dig(e, "content", "membership") == "leave" {
				return true
			}
		}
		return false
	})
}

// Guests get into rooms that let guests join, and have to go when that ends. spec: client-server-api#guest-access
func TestGuestAccess(t *testing.T) {
	n := homeserver.NewNetwork(t)
	here, there := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	alice, bob := here.Register(t, "alice"), there.Register(t, "bob")
	guest := registerGuest(t, here)
	for _, host := range []*homeserver.Client{alice, bob} {
		room := host.CreateRoom(json{"preset": "public_chat", "power_level_content_override": json{"events": json{"m.room.guest_access": 0}}})
		path := "/v3/join" + homeserver.Path(room) + "?via=" + url.QueryEscape(host.UserID[strings.IndexByte(host.UserID, ':')+1:])
		guest.Refused("POST", path, json{}, http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN")
		host.Sync(0)
		host.SetState(room, "m.room.guest_access", "", json{"guest_access": "can_join"})
		guest.Must("POST", path, json{})
		host.SyncUntilJoined(room, guest.UserID)
		alice.Must("POST", path, json{})
		alice.SetState(room, "m.room.guest_access", "", json{"guest_access": "forbidden"})
		leaves(host, room, guest.UserID)
		guest.Refused("POST", path, json{}, http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN")
		if m := host.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.member", alice.UserID), nil); m["membership"] != "join" {
			t.Errorf("a user who is no guest: %v", m)
		}
	}
}

// A guest has a name, and becomes a user with the token that it has.
func TestGuestAccount(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	guest, other := registerGuest(t, hs), registerGuest(t, hs)
	profile := "/v3/profile" + homeserver.Path(guest.UserID)
	if got := guest.Must("GET", profile+"/displayname", nil); len(got) != 0 {
		t.Errorf("the name of a guest who has none: %v", got)
	}
	guest.Must("PUT", profile+"/displayname", json{"displayname": "Nobody"})
	if got := guest.Must("GET", profile+"/displayname", nil)["displayname"]; got != "Nobody" {
		t.Errorf("the name: %v", got)
	}
	guest.Refused("PUT", profile+"/avatar_url", json{"avatar_url": "mxc://a/b"}, http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN")
	guest.Refused("POST", "/v3/createRoom", json{}, http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN")

	name := guest.UserID[1:strings.IndexByte(guest.UserID, ':')]
	register := func(token, name string) json {
		return json{"username": name, "password": homeserver.Password, "guest_access_token": token, "auth": json{"type": "m.login.dummy"}}
	}
	c := hs.Anonymous(t)
	c.Refused("POST", "/v3/register", register(other.AccessToken, name), http.StatusForbidden, "M_FORBIDDEN")
	c.Refused("POST", "/v3/register", register("made-up", name), http.StatusForbidden, "M_FORBIDDEN")
	c.Refused("POST", "/v3/register", register(guest.AccessToken, "somebody"), http.StatusForbidden, "M_FORBIDDEN")
	if got := c.Must("POST", "/v3/register", register(guest.AccessToken, name)); got["user_id"] != guest.UserID || got["access_token"] == nil {
		t.Errorf("the upgraded account: %v", got)
	}
	guest.CreateRoom(json{}) // the guest's session goes on
	guest.Login()
	c.Refused("POST", "/v3/register", register(guest.AccessToken, name), http.StatusForbidden, "M_FORBIDDEN")
}
