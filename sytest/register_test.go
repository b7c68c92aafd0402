package sytest

import (
	"net/http"
	"testing"

	"hanok/sytest/homeserver"
)

// A token of the configuration lets people in, a wrong one does not, and without one registration is closed.
func TestRegistrationToken(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{ExtraConfig: "registration: {open: false, tokens: [let-me-in]}\n"})
	c := hs.Anonymous(t)
	body := func(name, token, session string) json {
		return json{"username": name, "password": homeserver.Password, "auth": json{"type": "m.login.registration_token", "token": token, "session": session}}
	}
	status, res := c.Do("POST", "/v3/register", json{"username": "ann", "password": homeserver.Password})
	session, _ := res["session"].(string)
	if status != http.StatusUnauthorized || session == "" || res["errcode"] != nil {
		t.Fatalf("the first answer: %d %v", status, res)
	}
	if valid := c.Must("GET", "/v1/register/m.login.registration_token/validity?token=let-me-in", nil)["valid"]; valid != true {
		t.Errorf("validity: %v", valid)
	}
	if status, res := c.Do("POST", "/v3/register", body("ann", "wrong", session)); status != http.StatusUnauthorized || res["errcode"] == nil {
		t.Errorf("a wrong token: %d %v", status, res)
	}
	for _, name := range []string{"ann", "ben"} { // good more than once
		_, res := c.Do("POST", "/v3/register", json{"username": name, "password": homeserver.Password})
		session, _ := res["session"].(string)
		if got := c.Must("POST", "/v3/register", body(name, "let-me-in", session)); got["access_token"] == nil {
			t.Errorf("registering %s: %v", name, got)
		}
	}
	c.Refused("POST", "/v3/register", json{"username": "ann", "password": "x"}, http.StatusBadRequest, "M_USER_IN_USE")
}

// A client that did not get the answer to its registration asks again with the same session, and gets the same account.
func TestRegistrationRepeated(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	c := hs.Anonymous(t)
	for _, name := range []string{"", "Ann"} {
		request := json{"password": homeserver.Password}
		if name != "" {
			request["username"] = name
		}
		_, res := c.Do("POST", "/v3/register", request)
		session, _ := res["session"].(string)
		request["auth"] = json{"type": "m.login.dummy", "session": session}
		first, second := c.Must("POST", "/v3/register", request), c.Must("POST", "/v3/register", request)
		if first["user_id"] != second["user_id"] || second["access_token"] == nil || first["access_token"] == second["access_token"] {
			t.Errorf("%q was registered as %v, then %v", name, first, second)
		}
	}
	// Without that session the name is taken.
	c.Refused("POST", "/v3/register", json{"username": "ann", "auth": json{"type": "m.login.dummy", "session": "made-up"}}, http.StatusBadRequest, "M_USER_IN_USE")
}
