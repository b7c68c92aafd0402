package appservice_test

import (
	"context"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"hanok/appservice"
	"hanok/config"
	"hanok/matrix"
)

// reply answers every request alike.
func reply(status int, body string) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.WriteHeader(status)
		_, _ = rw.Write([]byte(body))
	}
}

func TestPingFailures(t *testing.T) {
	w := newWorld(t, nil)
	x := w.services.All()[0]
	elsewhere := func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, "/elsewhere", http.StatusFound) }
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		code   string
	}{
		"refused":       {reply(403, `{"errcode":"M_FORBIDDEN"}`), "M_BAD_STATUS"},
		"another 200":   {reply(204, ""), "M_BAD_STATUS"},
		"redirect":      {elsewhere, "M_BAD_STATUS"}, // and our token stays where it belongs
		"endless":       {reply(200, strings.Repeat("x", 2<<20)), "M_CONNECTION_FAILED"},
		"no answer":     {hang, "M_CONNECTION_TIMEOUT"},
		"cut off":       {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "M_CONNECTION_FAILED"},
		"long and torn": {reply(500, strings.Repeat("한", 3000)), "M_BAD_STATUS"},
	} {
		t.Run(name, func(t *testing.T) {
			w.answering(200, tt.answer)
			patience := 10 * time.Second
			if tt.code == "M_CONNECTION_TIMEOUT" {
				patience = 50 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			_, err := x.Ping(ctx, "")
			if !matrix.HasCode(err, tt.code) {
				t.Fatalf("%v, want %s", err, tt.code)
			}
			if e, _ := matrix.AsError(err); e.Extra["body"] != nil && len(e.Extra["body"].(string)) > 4200 {
				t.Errorf("the error has %d bytes of the answer", len(e.Extra["body"].(string)))
			}
		})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, path := range w.paths {
		if strings.Contains(path, "elsewhere") {
			t.Error("a redirect was followed")
		}
	}
}

// What a service says of a protocol is remembered, also when it does not answer later; that it says nothing of use is not for long.
func TestProtocols(t *testing.T) {
	w := newWorld(t, func(r *config.Appservice) { r.Protocols = []string{"irc", "odd"} })
	w.answering(200, func(rw http.ResponseWriter, r *http.Request) {
		body := `{"user_fields":["nick"],"instances":[{"network_id":"a"},{"desc":"without"},7]}`
		if strings.HasSuffix(r.URL.Path, "odd") {
			body = `["no object"]`
		}
		_, _ = rw.Write([]byte(body))
	})
	const want = `[{"instance_id":"x|a","network_id":"a"},{"desc":"without"}]`
	if all := w.services.AllProtocols(t.Context()); len(all) != 1 || string(all["irc"]["instances"]) != want {
		t.Errorf("%s, want %s", all["irc"]["instances"], want)
	}
	w.answering(500, nil)
	if w.services.Protocol(t.Context(), "irc") == nil || w.services.Protocol(t.Context(), "odd") != nil || w.services.Protocol(t.Context(), "none") != nil {
		t.Error("what was said is not remembered")
	}
}

func TestLookUpKeepsWhatIsWellFormed(t *testing.T) {
	w := newWorld(t, func(r *config.Appservice) { r.Protocols = []string{"irc"} })
	good := `{"alias":"#a:b","protocol":"irc","fields":{"x":"y"}}`
	for body, want := range map[string]int{
		"[" + good + "]": 1,
		"[" + good + `,{"alias":"","protocol":"irc","fields":{}},{"alias":"#a:b","protocol":"irc"},{"protocol":"irc","fields":{}},null,[]]`: 1,
		good: 0, `[{"alias":"#a:b","alias":"#c:d","protocol":"irc","fields":{}}]`: 0, "[": 0, "": 0,
	} {
		w.answering(200, reply(200, body))
		if got := w.services.LookUp(t.Context(), appservice.LookUpLocation, "irc", url.Values{"x": {"y"}}); len(got) != want {
			t.Errorf("%s: %s", body, got)
		}
	}
}
