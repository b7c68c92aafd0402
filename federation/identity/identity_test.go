package identity

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/rooms"
)

// The examples of the specification. spec: identity-service-api#sha256
func TestHashAddress(t *testing.T) {
	for address, want := range map[[2]string]string{
		{"alice@example.com", "email"}: "4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc",
		{"bob@example.com", "email"}:   "LJwSazmv46n0hlMlsb_iYxI0_HXEqy_yj6Jm636cdT8",
		{"18005552067", "msisdn"}:      "nlo35_T5fzSGZzJApqu8lgIudJvmOQtDaHtr-I4rU7I",
	} {
		if got := hashAddress(address[0], address[1], "matrixrocks"); got != want {
			t.Errorf("%v: %s", address, got)
		}
	}
}

func server(t *testing.T, handler http.HandlerFunc, trusted ...string) (*Client, rooms.AddressInvite) {
	t.Helper()
	s := httptest.NewTLSServer(handler)
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "https://")
	if trusted == nil {
		trusted = []string{"127.0.0.1:*"}
	}
	return New(Options{Trusted: trusted, HTTP: s.Client()}), rooms.AddressInvite{
		IdentityServer: matrix.ServerName(host), AccessToken: "secret", Medium: "email", Address: "alice@example.com",
	}
}

func TestLookup(t *testing.T) {
	answer := `{"mappings":{"4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc":"@alice:example.com"}}`
	c, q := server(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer secret":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/_matrix/identity/v2/hash_details":
			_, _ = w.Write([]byte(`{"algorithms":["none","sha256"],"lookup_pepper":"matrixrocks"}`))
		case r.URL.Path == "/_matrix/identity/v2/lookup":
			_, _ = w.Write([]byte(answer))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	if user, err := c.Lookup(context.Background(), q); err != nil || user != "@alice:example.com" {
		t.Error(user, err)
	}
	for _, answer = range []string{`{"mappings":{}}`, `{"mappings":{"4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc":null}}`} {
		if user, err := c.Lookup(context.Background(), q); err != nil || user != "" {
			t.Error("nobody:", user, err)
		}
	}
	answer = `{"mappings":{"4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc":"alice"}}`
	if _, err := c.Lookup(context.Background(), q); !matrix.HasCode(err, "M_UNKNOWN") {
		t.Error("no user ID:", err)
	}
	q.AccessToken = "another"
	if _, err := c.Lookup(context.Background(), q); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Error("another token:", err)
	}
}

// Whatever an identity server answers, the client is told which server failed, soon.
func TestBadServers(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"status":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"not json": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"large":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(strings.Repeat(" ", maxBytes+1))) },
		"no sha256": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"algorithms":["none"],"lookup_pepper":"x"}`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, q := server(t, handler)
			if _, err := c.Lookup(context.Background(), q); !matrix.HasCode(err, "M_UNKNOWN") {
				t.Error(err)
			}
		})
	}
}

func TestTrust(t *testing.T) {
	asked := func(http.ResponseWriter, *http.Request) { t.Error("a server that is not trusted was asked") }
	c, q := server(t, asked, "id.example")
	if _, err := c.Lookup(context.Background(), q); !matrix.HasCode(err, "M_SERVER_NOT_TRUSTED") {
		t.Error(err)
	}
	if _, err := c.KeyValid(context.Background(), "https://"+string(q.IdentityServer)+"/valid", "key"); !matrix.HasCode(err, "M_SERVER_NOT_TRUSTED") {
		t.Error(err)
	}
	c, q = server(t, asked, []string{}...)
	c.trusted = nil
	if _, err := c.StoreInvite(context.Background(), q, rooms.RoomDescription{}); !matrix.HasCode(err, "M_THREEPID_DENIED") {
		t.Error(err)
	}
	if _, err := c.Lookup(context.Background(), rooms.AddressInvite{IdentityServer: "id.example/x"}); !matrix.HasCode(err, "M_INVALID_PARAM") {
		t.Error(err)
	}
}

func TestKeyValid(t *testing.T) {
	c, q := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("public_key") == "a+b/c" && r.URL.Query().Get("x") == "1" {
			_, _ = w.Write([]byte(`{"valid":true}`))
			return
		}
		_, _ = w.Write([]byte(`{"valid":false}`))
	})
	where := "https://" + string(q.IdentityServer) + "/valid?x=1"
	for key, want := range map[string]bool{"a+b/c": true, "other": false} {
		if valid, err := c.KeyValid(context.Background(), where, key); err != nil || valid != want {
			t.Error(key, valid, err)
		}
	}
	if _, err := c.KeyValid(context.Background(), "http://"+string(q.IdentityServer), "key"); err == nil {
		t.Error("plain HTTP is believed")
	}
}
