package endpoint

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"hanok/matrix"
)

func TestStream(t *testing.T) {
	piece := []byte(`{"text":"` + strings.Repeat("x", 1000) + `"},`)
	s := testServer(t,
		Route{Method: "GET", Path: "/small", Handle: func(*Request) (any, error) {
			return Stream(func(w io.Writer) error { _, err := w.Write([]byte(`{"a":1}`)); return err }), nil
		}},
		Route{Method: "GET", Path: "/large", Handle: func(*Request) (any, error) {
			return Stream(func(w io.Writer) error {
				if _, err := w.Write([]byte("[")); err != nil {
					return err
				}
				for range 1000 {
					if _, err := w.Write(piece); err != nil {
						return err
					}
				}
				_, err := w.Write([]byte("0]"))
				return err
			}), nil
		}},
		Route{Method: "GET", Path: "/early", Handle: func(*Request) (any, error) {
			return Stream(func(w io.Writer) error {
				if _, err := w.Write(piece); err != nil {
					return err
				}
				return matrix.Forbidden("not you")
			}), nil
		}},
		Route{Method: "GET", Path: "/panic", Handle: func(*Request) (any, error) {
			return Stream(func(io.Writer) error { panic("secret") }), nil
		}},
		// What was written until the error is valid JSON by itself: the client must see that it is not all.
		Route{Method: "GET", Path: "/late", Handle: func(*Request) (any, error) {
			return Stream(func(w io.Writer) error {
				if _, err := w.Write([]byte(`{"a":"` + strings.Repeat("x", 2*streamBuffer) + `"}`)); err != nil {
					return err
				}
				return errors.New("the database is gone")
			}), nil
		}},
	)
	status, body, h := call(t, "GET", s.URL+"/_matrix/client/small", "")
	if status != 200 || body != `{"a":1}` || h.Get("Content-Length") != "7" || h.Get("Content-Type") != "application/json" {
		t.Errorf("small: %d %s %v", status, body, h)
	}
	status, body, h = call(t, "GET", s.URL+"/_matrix/client/large", "")
	if status != 200 || !json.Valid([]byte(body)) || len(body) != 1000*len(piece)+3 || h.Get("Content-Type") != "application/json" {
		t.Errorf("large: %d, %d bytes, %v", status, len(body), h)
	}
	if status, body, _ = call(t, "GET", s.URL+"/_matrix/client/early", ""); status != 403 || !strings.HasPrefix(body, `{"errcode":"M_FORBIDDEN"`) {
		t.Errorf("early error: %d %s", status, body)
	}
	if status, body, _ = call(t, "GET", s.URL+"/_matrix/client/panic", ""); status != 500 || strings.Contains(body, "secret") {
		t.Errorf("panic: %d %s", status, body)
	}
	res, err := http.Get(s.URL + "/_matrix/client/late")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if got, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("an answer that broke off after %d bytes looks whole", len(got))
	}
}
