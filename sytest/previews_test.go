package sytest

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"hanok/sytest/homeserver"
)

// Previews are off unless the operator turns them on, and then they do not lead into the server's own network.
func TestURLPreviews(t *testing.T) {
	asked := make(chan string, 10)
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.URL.Path
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte(`<title>internal</title>`))
	}))
	defer inside.Close()
	n := homeserver.NewNetwork(t)
	path := "/v1/media/preview_url?url=" + url.QueryEscape(inside.URL+"/page")
	for name, tt := range map[string]struct {
		config, errcode string
		enabled         bool
		status          int
	}{
		"off":     {"media: {url_previews: false}\n", "M_FORBIDDEN", false, 403},
		"guarded": {"federation: {allow_private_addresses: false}\n", "M_UNKNOWN", true, 502},
		"closed":  {"federation: {disabled: true}\n", "M_UNKNOWN", true, 502},
	} {
		t.Run(name, func(t *testing.T) {
			alice := n.Start(homeserver.Options{ExtraConfig: tt.config}).Register(t, "alice")
			alice.Refused("GET", path, nil, tt.status, tt.errcode)
			for _, capability := range []string{"m.preview_url", "io.element.msc4452.preview_url"} {
				if got := homeserver.Dig(alice.Must("GET", "/v3/capabilities", nil), "capabilities", capability, "enabled"); got != tt.enabled {
					t.Errorf("%s: %v", capability, got)
				}
			}
		})
	}
	alice := n.Start(homeserver.Options{}).Register(t, "alice")
	if len(asked) > 0 {
		t.Errorf("somebody asked for %s", <-asked)
	}
	if got := alice.Must("GET", path, nil)["og:title"]; got != "internal" {
		t.Errorf("where it is allowed: %v", got)
	}
	alice.Refused("GET", "/v1/media/preview_url", nil, 400, "M_MISSING_PARAM")
	alice.Refused("GET", "/v1/media/preview_url?url=file:///etc/passwd", nil, 400, "M_INVALID_PARAM")
}
