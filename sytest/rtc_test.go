package sytest

import (
	stdjson "encoding/json"
	"net/http"
	"net/url"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/sytest/homeserver"
)

// What Element Call looks for, and what lk-jwt-service asks; the latter also of a server that talks to no other.
func TestCallTransports(t *testing.T) {
	n := homeserver.NewNetwork(t)
	for name, config := range map[string]string{"federating": "", "closed": "federation: {disabled: true}\n"} {
		t.Run(name, func(t *testing.T) {
			hs := n.Start(homeserver.Options{ExtraConfig: config + "rtc: {livekit_service_urls: [\"https://one.example/jwt\", \"https://two.example/jwt\"]}\n"})
			alice := hs.Register(t, "alice")
			want := []any{
				json{"type": "livekit", "livekit_service_url": "https://one.example/jwt"}, json{"type": "livekit", "livekit_service_url": "https://two.example/jwt"},
			}
			for _, path := range []string{"/v1", "/unstable/org.matrix.msc4143"} {
				if d := cmp.Diff(want, alice.Must("GET", path+"/rtc/transports", nil)["rtc_transports"]); d != "" {
					t.Error(d)
				}
			}
			hs.Anonymous(t).Refused("GET", "/v1/rtc/transports", nil, 401, "M_MISSING_TOKEN")
			if d := cmp.Diff(want, wellKnown(t, hs)["org.matrix.msc4143.rtc_foci"]); d != "" {
				t.Error(d)
			}

			token, _ := alice.Must("POST", "/v3/user"+homeserver.Path(alice.UserID, "openid", "request_token"), json{})["access_token"].(string)
			const userinfo = "/_matrix/federation/v1/openid/userinfo"
			service := hs.Anonymous(t)
			if got := service.Must("GET", userinfo+"?access_token="+url.QueryEscape(token), nil)["sub"]; got != alice.UserID {
				t.Errorf("the token is of %v", got)
			}
			service.Refused("GET", userinfo+"?access_token=x", nil, 401, "M_UNKNOWN_TOKEN")
			service.Refused("GET", userinfo, nil, 401, "M_MISSING_TOKEN")
		})
	}
	if got := n.Start(homeserver.Options{}).Register(t, "bob").Must("GET", "/v1/rtc/transports", nil)["rtc_transports"]; cmp.Diff([]any{}, got) != "" {
		t.Errorf("without transports: %v", got)
	}
}

// wellKnown is what a server tells at /.well-known/matrix/client.
func wellKnown(t *testing.T, hs *homeserver.Server) (doc json) {
	t.Helper()
	res, err := http.Get(hs.ClientURL + "/.well-known/matrix/client")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := stdjson.NewDecoder(res.Body).Decode(&doc); err != nil {
		t.Fatal(err)
	}
	return doc
}
