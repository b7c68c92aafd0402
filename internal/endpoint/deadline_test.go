package endpoint

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/matrix"
)

// timed is a response on a connection with time-outs.
type timed struct {
	*httptest.ResponseRecorder
	read  time.Duration // from now; 0: none
	write time.Duration // for what is written next, as for read
	parts []part        // of the answer, the header first
}

type part struct {
	length int
	within time.Duration
}

func within(deadline time.Time) time.Duration {
	if deadline.IsZero() {
		return 0
	}
	return time.Until(deadline)
}

func (w *timed) SetReadDeadline(deadline time.Time) error {
	w.read = within(deadline)
	return nil
}

func (w *timed) SetWriteDeadline(deadline time.Time) error {
	w.write = within(deadline)
	return nil
}

func (w *timed) sent(length int) {
	w.parts = append(w.parts, part{length, w.write})
	w.write = 0
}

func (w *timed) WriteHeader(code int) {
	w.sent(0)
	w.ResponseRecorder.WriteHeader(code)
}

func (w *timed) Write(b []byte) (int, error) {
	w.sent(len(b))
	return w.ResponseRecorder.Write(b)
}

// Of whatever kind an answer is, a client that does not take it is not waited for.
func TestAnswersHaveToBeTaken(t *testing.T) {
	large := strings.Repeat("x", 10<<20)
	check := func(name string, h http.Handler) {
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
		if len(w.parts) == 0 {
			t.Errorf("%s: there is no answer", name)
		}
		for _, p := range w.parts {
			if most := time.Minute + time.Duration(p.length/32_000)*time.Second; p.within <= 50*time.Second || p.within > most {
				t.Errorf("%s: %v for %d bytes", name, p.within, p.length)
			}
		}
	}
	for name, h := range map[string]Handler{
		"value": func(*Request) (any, error) { return map[string]string{"a": large}, nil },
		"raw":   func(*Request) (any, error) { return Raw(large), nil },
		"error": func(*Request) (any, error) { return nil, matrix.Forbidden("%s", large) },
		"stream": func(*Request) (any, error) {
			return Stream(func(w io.Writer) error { _, err := io.WriteString(w, large); return err }), nil
		},
		"small": func(*Request) (any, error) {
			return Stream(func(w io.Writer) error { _, err := io.WriteString(w, "{}"); return err }), nil
		},
		"file": func(r *Request) (any, error) {
			http.ServeContent(r.W, r.Request, "", time.Time{}, strings.NewReader(large))
			return Written{}, nil
		},
		"header": func(r *Request) (any, error) {
			r.W.WriteHeader(http.StatusNotModified)
			return Written{}, nil
		},
	} {
		check(name, Serve(Options{Log: zerolog.Nop()}, Route{Handle: h}))
	}
	check("no route", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(Writer(w), large) }))
}

// Who is refused does not keep the connection by sending its body slowly, which net/http would read a part of first.
func TestBodiesOfRefusedRequestsAreNotWaitedFor(t *testing.T) {
	refused := func(*Request, Route) error { return matrix.Errorf(401, "M_MISSING_TOKEN", "Missing access token.") }
	for name, c := range map[string]struct {
		auth   Auth
		handle Handler
		body   string
		within time.Duration
	}{
		"refused":   {1, nil, "{}", 5 * time.Second},
		"not read":  {None, func(*Request) (any, error) { return nil, nil }, "{}", 5 * time.Second},
		"too large": {None, func(r *Request) (any, error) { return r.Body() }, strings.Repeat("x", 200), 5 * time.Second},
		"read":      {None, func(r *Request) (any, error) { b, err := r.Body(); return Raw(b), err }, "{}", 0},
		"no body":   {1, nil, "", 0},
		"reading": {None, func(r *Request) (any, error) {
			if d := r.W.(*statusWriter).ResponseWriter.(*timed).read; d < 29*time.Second || d > time.Hour {
				t.Errorf("%v for the body", d)
			}
			b, err := r.Body()
			return Raw(b), err
		}, "{}", 0},
	} {
		w := &timed{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(c.body))
		Serve(Options{Log: zerolog.Nop(), Authorise: refused}, Route{Auth: c.auth, MaxBody: 100, Handle: c.handle}).ServeHTTP(w, r)
		if w.read > c.within || w.read < c.within-time.Second {
			t.Errorf("%s: net/http may read for %v more, want %v", name, w.read, c.within)
		}
	}
}
