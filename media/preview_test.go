package media

import (
	"encoding/json"
	"errors"
	"image/png"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage/storagetest"
)

func TestOpenGraph(t *testing.T) {
	long := strings.Repeat("é", maxProperty)
	for page, want := range map[string]map[string]string{
		``: {},
		`<html><head><meta property="og:title" content="A &amp; B"><meta property="og:type" content="x"/></head>`: {"og:title": "A & B", "og:type": "x"},
		`<title> plain
			title </title><meta name="description" content="text">`: {"og:title": "plain title", "og:description": "text"},
		`<title>plain</title><meta name="og:title" content="first"><meta property="og:title" content="second">`: {"og:title": "first"},
		`<title>head</title></head><body><meta property="og:title" content="of a comment">`:                     {"og:title": "head"},
		`<meta property="twitter:title" content="x"><meta property="og:title">`:                                 {},
		`<meta property="og:title" content="` + long + `">`:                                                     {"og:title": strings.Repeat("é", maxProperty/2) + "…"},
		"<meta property=og:title content=\"bad \xff text\">":                                                    {"og:title": "bad \uFFFD text"},
		`<meta property="og:` + strings.Repeat("x", 100) + `" content="x">`:                                     {},
	} {
		if d := cmp.Diff(want, openGraph(strings.NewReader(page))); d != "" {
			t.Errorf("%.80s: %s", page, d)
		}
	}
}

// site counts requests.
type site struct {
	*httptest.Server
	mu    sync.Mutex
	asked map[string]int
}

func newSite(t *testing.T, pages map[string]http.HandlerFunc) *site {
	s := &site{asked: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked[r.URL.Path]++
		s.mu.Unlock()
		if page := pages[r.URL.Path]; page != nil {
			page(w, r)
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

func page(kind, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		_, _ = w.Write([]byte(body))
	}
}

func TestPreview(t *testing.T) {
	f := open(t, storagetest.Open(t), nil)
	image := picture(t, 30, 20, png.Encode)
	s := newSite(t, map[string]http.HandlerFunc{
		"/a/page":    page("text/html; charset=iso-8859-1", "<title>caf\xe9</title><meta property=og:image content=../picture><meta property=og:image:alt content=alt>"),
		"/picture":   page("image/png", image),
		"/lost":      page("text/html", `<title>lost</title><meta property=og:image content="/nowhere">`),
		"/file":      page("file:///etc/passwd", "x"),
		"/elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/a/page", http.StatusFound) },
		"/circle":    func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/circle", http.StatusFound) },
		"/scheme":    func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "ftp://x/", http.StatusFound) },
		"/data":      page("application/zip", "PK"),
		"/huge":      page("image/png", strings.Repeat("x", maxPicture+1)),
		"/once":      page("text/html", "<title>once</title>"),
	})
	p := NewPreviews(f.Repository, s.Client())
	get := func(path string) map[string]any {
		t.Helper()
		b, err := p.Get(t.Context(), s.URL+path)
		if err != nil {
			t.Fatal(err)
		}
		var out map[string]any
		if err := json.Unmarshal(b, &out); err != nil {
			t.Fatal(err)
		}
		return out
	}
	for _, path := range []string{"/a/page", "/elsewhere", "/a/page#part"} {
		got := get(path)
		uri, err := ParseURI(got["og:image"].(string))
		if err != nil {
			t.Fatal(err)
		}
		delete(got, "og:image")
		want := map[string]any{
			"og:title": "café", "og:image:type": "image/png", "og:image:width": 30.0, "og:image:height": 20.0, "og:image:alt": "alt", "matrix:image:size": float64(len(image)),
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", path, d)
		}
		file, err := f.Open(t.Context(), Get{URI: uri})
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
	}
	if n := s.count("/a/page"); n != 2 { // by itself and through the redirect
		t.Errorf("the page was asked for %d times", n)
	}
	if d := cmp.Diff(map[string]any{"og:title": "lost"}, get("/lost")); d != "" {
		t.Errorf("a picture that is gone: %s", d)
	}
	if got := get("/data"); len(got) != 0 {
		t.Errorf("what is no page: %v", got)
	}
	if got := get("/picture"); got["og:image"] == nil || got["og:title"] != nil {
		t.Errorf("a picture: %v", got)
	}
	var same sync.WaitGroup
	for range 5 {
		same.Go(func() { get("/once") })
	}
	same.Wait()
	if n := s.count("/once"); n != 1 {
		t.Errorf("a page that several want is asked for %d times", n)
	}
	for _, path := range []string{"/nowhere", "/circle", "/scheme", "/huge"} {
		for range 2 {
			if _, err := p.Get(t.Context(), s.URL+path); !errors.Is(err, errNoPreview) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	if n := s.count("/circle"); n > previewRedirects+1 {
		t.Errorf("%d redirects were followed", n)
	}
	for _, bad := range []string{"", "x", "ftp://example.org/", "file:///etc/passwd", "http://", "http://user@example.org/", "http://[::1", "http://example.org/" + strings.Repeat("x", 5000)} {
		if _, err := p.Get(t.Context(), bad); !matrix.HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("%.30q: %v", bad, err)
		}
	}
	// What is kept does not stay for ever.
	f.now.Add((2 * time.Hour).Milliseconds())
	get("/a/page")
	if n := s.count("/a/page"); n != 3 {
		t.Errorf("the page was asked for %d times after an hour", n)
	}
}

func FuzzOpenGraph(f *testing.F) {
	f.Add(`<title>x</title><meta property=og:title content="y">`)
	f.Fuzz(func(t *testing.T, page string) {
		found := openGraph(strings.NewReader(page))
		if len(found) > maxProperties+2 {
			t.Errorf("%d properties", len(found))
		}
		for name, value := range found {
			if len(name) > 64 || len(value) > maxProperty+len("…") || value == "" {
				t.Errorf("%q: %q", name, value)
			}
		}
		if _, err := json.Marshal(found); err != nil {
			t.Error(err)
		}
	})
}
