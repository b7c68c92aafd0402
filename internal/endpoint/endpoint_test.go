package endpoint

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"hanok/internal/budget"
	"hanok/matrix"
)

func testServer(t *testing.T, routes ...Route) *httptest.Server {
	t.Helper()
	o := Options{Prefix: "/_matrix/client", CORS: true, Log: zerolog.Nop(), Authorise: func(r *Request, _ Route) error {
		return matrix.Errorf(401, "M_MISSING_TOKEN", "Missing access token.")
	}}
	mux := NewRouter(o)
	Mount(mux, o, routes)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func call(t *testing.T, method, url, body string) (int, string, http.Header) {
	t.Helper()
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header
}

func TestPathVariablesAreUnescapedOnce(t *testing.T) {
	s := testServer(t, Route{Method: "GET", Versions: "v3 r0", Path: "/rooms/{roomId}/state/{type}", Handle: func(r *Request) (any, error) {
		return map[string]string{"v": r.Var("roomId") + "|" + r.Var("type")}, nil
	}})
	for path, want := range map[string]string{
		"/v3/rooms/!a:b/state/m.room":         "!a:b|m.room",
		"/r0/rooms/%21a%3Ab/state/a%2Fb":      "!a:b|a/b",
		"/v3/rooms/%2525/state/%23x":          "%25|#x",
		"/v3/rooms/%e2%82%ac/state/a%20b%2Bc": "€|a b+c",
	} {
		status, body, _ := call(t, "GET", s.URL+"/_matrix/client"+path, "")
		if status != 200 || body != `{"v":"`+want+`"}` {
			t.Errorf("%s: %d %s, want %s", path, status, body, want)
		}
	}
	for _, path := range []string{"/v3/rooms/%ff/state/x", "/v3/rooms/a%00b/state/x", "/v3/rooms/a/state/x?q=%00"} {
		status, body, _ := call(t, "GET", s.URL+"/_matrix/client"+path, "")
		if status != 400 || !strings.Contains(body, "M_INVALID_PARAM") {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
}

func TestErrors(t *testing.T) {
	type in struct {
		N int `json:"n"`
	}
	s := testServer(t,
		Route{Method: "POST", Path: "/decode", MaxBody: 100, Handle: func(r *Request) (any, error) { return nil, r.Decode(&in{}) }},
		Route{Method: "GET", Path: "/panic", Handle: func(*Request) (any, error) { panic("secret") }},
		Route{Method: "GET", Path: "/private", Auth: 1, Handle: func(*Request) (any, error) { return nil, nil }},
		Route{Method: "GET", Path: "/limited", Handle: func(*Request) (any, error) {
			return nil, matrix.Errorf(429, "M_LIMIT_EXCEEDED", "Slow down.").With("retry_after_ms", int64(1500))
		}},
	)
	for _, c := range []struct {
		method, path, body string
		status             int
		want               string
	}{
		{"POST", "/decode", `{"n":1}`, 200, `{}`},
		{"POST", "/decode", `{"n":"x"}`, 400, "M_BAD_JSON"},
		{"POST", "/decode", `[]`, 400, "M_BAD_JSON"},
		{"POST", "/decode", `{"n":1,"n":2}`, 400, "M_BAD_JSON"},
		{"POST", "/decode", `{"n":1`, 400, "M_NOT_JSON"},
		{"POST", "/decode", `nope`, 400, "M_NOT_JSON"},
		{"POST", "/decode", ``, 400, "M_NOT_JSON"},
		{"POST", "/decode", `{"n":` + strings.Repeat(" ", 200) + `1}`, 413, "M_TOO_LARGE"},
		{"GET", "/decode", ``, 405, "M_UNRECOGNIZED"},
		{"GET", "/nowhere", ``, 404, "M_UNRECOGNIZED"},
		{"GET", "/panic", ``, 500, "M_UNKNOWN"},
		{"GET", "/private", ``, 401, "M_MISSING_TOKEN"},
		{"GET", "/limited", ``, 429, "M_LIMIT_EXCEEDED"},
	} {
		status, body, h := call(t, c.method, s.URL+"/_matrix/client"+c.path, c.body)
		if status != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s %s: %d %s, want %d %s", c.method, c.path, c.body, status, body, c.status, c.want)
		}
		if strings.Contains(body, "secret") {
			t.Errorf("%s leaks the cause: %s", c.path, body)
		}
		if h.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %s: no CORS header", c.method, c.path)
		}
		if c.status == 429 && h.Get("Retry-After") != "2" {
			t.Errorf("Retry-After %q", h.Get("Retry-After"))
		}
	}
	if status, _, h := call(t, "OPTIONS", s.URL+"/_matrix/client/decode", ""); status != 204 || h.Get("Access-Control-Allow-Headers") == "" {
		t.Errorf("OPTIONS: %d", status)
	}
}

// What bodies take is bounded, for all and for each, while they are needed.
func TestBodiesAreHeld(t *testing.T) {
	bodies := budget.New(1<<20, 1<<19)
	begun, end := make(chan string), make(chan struct{})
	mux := NewRouter(Options{})
	Mount(mux, Options{Log: zerolog.Nop(), Hold: func(r *Request) *budget.Hold { return bodies.Hold(r.Query("who"), nil) }}, []Route{
		{Method: "POST", Path: "/work", Handle: func(r *Request) (any, error) {
			if _, err := r.Body(); err != nil {
				return nil, err
			}
			if r.HasQuery("drop") {
				r.DropBody()
			}
			if r.HasQuery("wait") {
				begun <- r.Query("who")
				<-end
			}
			return nil, nil
		}},
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	send := func(query string, size int) int {
		status, _, _ := call(t, "POST", s.URL+"/work?"+query, strings.Repeat("a", size))
		return status
	}
	done := make(chan int)
	begin := func(query string, size int) {
		go func() { done <- send(query, size) }()
		<-begun
	}
	begin("who=a&wait", 400<<10)
	for query, want := range map[string]int{"who=a": 429, "who=b": 200} {
		if status := send(query, 200<<10); status != want {
			t.Errorf("%s: %d", query, status)
		}
	}
	if status := send("who=a", smallBody); status != 200 {
		t.Errorf("a small body: %d", status)
	}
	begin("who=b&wait&drop", 200<<10)
	if left := bodies.Free(); left != 1<<20-400<<10 {
		t.Errorf("%d bytes are left", left)
	}
	close(end)
	for range 2 {
		if status := <-done; status != 200 {
			t.Error(status)
		}
	}
	s.Close() // waits for the requests
	if bodies.Free() != 1<<20 || bodies.Holders() != 0 {
		t.Errorf("%d bytes and %d callers are left", bodies.Free(), bodies.Holders())
	}
}
