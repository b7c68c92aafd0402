package client

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/discovery"
	"hanok/federation/fedtest"
	"hanok/federation/peers"
	"hanok/federation/xmatrix"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/storage/storagetest"
)

type fixture struct {
	*fedtest.Network
	client *Client
	peers  *peers.Peers
	public ed25519.PublicKey
	now    *time.Time
}

func setUp(t *testing.T) fixture {
	t.Helper()
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	n := fedtest.NewNetwork(t)
	now := time.Now()
	f := fixture{Network: n, now: &now}
	f.peers, err = peers.New(t.Context(), peers.Options{
		DB: storagetest.Open(t), Deny: []string{"denied.*"}, Now: func() time.Time { return *f.now }, Log: zerolog.Nop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.client = New(Options{
		ServerName: "us.example", Key: key, Version: "test", Peers: f.peers, Log: zerolog.Nop(),
		Resolver: discovery.New(discovery.Options{Roots: n.Roots, DNS: n.DNS, Dial: n.Dial, Now: func() time.Time { return *f.now }}),
	})
	t.Cleanup(f.client.Close)
	f.public, _ = key.Private.Public().(ed25519.PublicKey)
	return f
}

func (f fixture) serve(host string, h http.HandlerFunc) {
	f.Serve(host+":8448", h, host)
}

func get(dest matrix.ServerName) Request {
	return Request{Operation: "test", Method: http.MethodGet, Destination: dest, Path: []string{"a"}}
}

func TestRequestIsSigned(t *testing.T) {
	f := setUp(t)
	type seen struct {
		host, uri, auth, body, agent string
		proto                        int
	}
	requests := make(chan seen, 1)
	f.serve("them.example", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		requests <- seen{r.Host, r.RequestURI, r.Header.Get("Authorization"), string(body), r.UserAgent(), r.ProtoMajor}
		fmt.Fprint(w, `{"ok":true}`)
	})
	var answer struct{ OK bool }
	err := f.client.Do(t.Context(), Request{
		Method: http.MethodPut, Destination: "them.example", Path: []string{"send", "!a/b:c d%é"},
		Query: url.Values{"q": {"a b&c"}}, Body: []byte(`{"x":1}`),
	}, &answer)
	if err != nil {
		t.Fatal(err)
	}
	got := <-requests
	if want := "/send/%21a%2Fb%3Ac%20d%25%C3%A9?q=a+b%26c"; got.uri != want {
		t.Errorf("uri %q, want %q", got.uri, want)
	}
	if got.host != "them.example" || got.body != `{"x":1}` || got.agent != "Hanok/test" || got.proto != 2 {
		t.Errorf("%+v", got)
	}
	h, err := xmatrix.Parse(got.auth)
	if err != nil {
		t.Fatal(err)
	}
	if h.Origin != "us.example" || h.Destination != "them.example" {
		t.Errorf("%+v", h)
	}
	if err := (xmatrix.Request{Method: "PUT", URI: got.uri, Content: []byte(got.body)}).Verify(h, f.public); err != nil {
		t.Error(err)
	}
}

func TestConnectionsAreReusedPerName(t *testing.T) {
	f := setUp(t)
	ok := func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) }
	f.serve("them.example", ok)
	f.Serve("them.example:443", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/.well-known/matrix/server" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, `{}`)
	}), "them.example")
	for range 3 {
		for _, name := range []matrix.ServerName{"them.example", "them.example:443"} {
			if err := f.client.Do(t.Context(), get(name), nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	count := map[string]int{}
	for _, a := range f.Dialed() {
		count[a]++
	}
	// One to 8448 for the bare name; on 443 one for .well-known and one for the name with the port.
	if count["them.example:8448"] != 1 || count["them.example:443"] != 2 {
		t.Errorf("connections: %v", count)
	}
}

// A request over a connection that is there asks nobody where the server lives; one after the server has moved goes to the new place.
func TestWhereRequestsGo(t *testing.T) {
	f := setUp(t)
	lives := func(where string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, `{"at":%q,"host":%q}`, where, r.Host) }
	}
	f.Serve("one.example:8448", lives("one"), "one.example")
	f.Serve("two.example:8450", lives("two"), "two.example")
	f.Record("_matrix-fed._tcp.two.example. 60 IN SRV 0 0 8450 two.example.")
	var delegated atomic.Value
	delegated.Store("one.example")
	file := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		fmt.Fprintf(w, `{"m.server":%q}`, delegated.Load())
	}
	f.Serve("a.example:443", http.HandlerFunc(file), "a.example")
	f.Serve("b.example:443", http.HandlerFunc(file), "b.example")
	ask := func(name matrix.ServerName, at string) {
		t.Helper()
		var answer struct {
			At   string `json:"at"`
			Host string `json:"host"`
		}
		if err := f.client.Do(t.Context(), get(name), &answer); err != nil {
			t.Fatal(err)
		}
		if answer.At != at || answer.Host != at+".example" {
			t.Errorf("%+v", answer)
		}
	}
	ask("a.example", "one")
	before, dialed := len(f.Asked()), len(f.Dialed())
	ask("a.example", "one")
	if asked := f.Asked()[before:]; len(asked) > 0 {
		t.Errorf("DNS was asked for %v", asked)
	}
	ask("b.example", "one")
	if dialed = len(f.Dialed()) - dialed; dialed != 1 {
		t.Errorf("two servers at one place: %d connections, besides the first one's, want the one for .well-known", dialed)
	}
	delegated.Store("two.example")
	*f.now = f.now.Add(time.Hour)
	ask("a.example", "two")
}

// Thousands of servers must not leave thousands of connections open, whatever they speak.
func TestIdleConnectionsAreBounded(t *testing.T) {
	f := setUp(t)
	const servers, most = 40, 10
	f.client = New(Options{
		ServerName: "us.example", Key: f.client.opts.Key, Peers: f.peers, Resolver: f.client.opts.Resolver, Log: zerolog.Nop(), MaxConnections: most,
	})
	t.Cleanup(f.client.Close)
	resolver := f.client.opts.Resolver
	busy, hold := make(chan struct{}), make(chan struct{})
	f.serve("slow.example", func(w http.ResponseWriter, _ *http.Request) {
		close(busy)
		<-hold
		fmt.Fprint(w, `{}`)
	})
	slow := make(chan error, 1)
	go func() { slow <- f.client.Do(t.Context(), get("slow.example"), nil) }()
	<-busy
	for i := range servers {
		name := fmt.Sprintf("s%d.example", i)
		f.serve(name, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
		if err := f.client.Do(t.Context(), get(matrix.ServerName(name)), nil); err != nil {
			t.Fatal(err)
		}
		if open := resolver.Open(); open > most+1 {
			t.Fatalf("%d connections are open after %d servers", open, i+1)
		}
	}
	close(hold)
	if err := <-slow; err != nil {
		t.Errorf("a busy connection was closed: %v", err)
	}
	f.client.Close()
	for deadline := time.Now().Add(5 * time.Second); resolver.Open() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d connections are never closed", resolver.Open())
		}
	}
}

func TestErrors(t *testing.T) {
	f := setUp(t)
	f.serve("them.example", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/forbidden":
			w.WriteHeader(403)
			fmt.Fprint(w, `{"errcode":"M_FORBIDDEN","error":"No."}`)
		case "/partial":
			w.WriteHeader(403)
			fmt.Fprint(w, `{"errcode":"M_UNABLE_DUE_TO_PARTIAL_STATE","error":"Not yet."}`)
		case "/version":
			w.WriteHeader(400)
			fmt.Fprint(w, `{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","error":"No.","room_version":"99","evil":"x"}`)
		case "/token":
			w.WriteHeader(401)
			fmt.Fprint(w, `{"errcode":"M_UNKNOWN_TOKEN","error":"No."}`)
		case "/html":
			w.WriteHeader(404)
			fmt.Fprint(w, `<html>`)
		case "/unrecognised":
			w.WriteHeader(404)
			fmt.Fprint(w, `{"errcode":"M_UNRECOGNIZED","error":"No."}`)
		case "/invalid", "/_matrix/federation/v2/send_join/!r:them.example/$e", "/_matrix/federation/v2/invite/!r:them.example/$e":
			w.WriteHeader(400)
			fmt.Fprint(w, `{"errcode":"M_INVALID_PARAM","error":"No."}`)
		case "/redirect":
			http.Redirect(w, r, "https://elsewhere.example/", http.StatusFound)
		case "/nojson":
			fmt.Fprint(w, `nope`)
		case "/twice":
			fmt.Fprint(w, `{"a":1,"a":2}`)
		}
	})
	for path, want := range map[string]struct {
		status int // of what a client is told
		code   string
		retry  bool
	}{
		"forbidden":    {403, "M_FORBIDDEN", false},
		"partial":      {403, "M_UNABLE_DUE_TO_PARTIAL_STATE", true},
		"version":      {400, "M_INCOMPATIBLE_ROOM_VERSION", false},
		"token":        {502, "M_UNKNOWN", true},
		"html":         {502, "M_UNKNOWN", false},
		"unrecognised": {502, "M_UNKNOWN", false},
		"invalid":      {400, "M_INVALID_PARAM", false},
		"redirect":     {502, "M_UNKNOWN", false},
		"nojson":       {502, "M_UNKNOWN", false},
		"twice":        {502, "M_UNKNOWN", false},
	} {
		r := get("them.example")
		r.Path = []string{path}
		err := f.client.Do(t.Context(), r, &struct{ A int }{})
		public, ok := matrix.AsError(err)
		var detail *Error
		if !ok || !errors.As(err, &detail) {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if public.Status != want.status || public.Code != want.code || detail.Retry != want.retry {
			t.Errorf("%s: %d %s retry %v, want %+v", path, public.Status, public.Code, detail.Retry, want)
		}
		if path == "version" && (public.Extra["room_version"] != "99" || len(public.Extra) != 1) {
			t.Errorf("extra members: %v", public.Extra)
		}
	}
	// What is wrong with an event that we made is not the fault of our client.
	_, joined := f.client.SendJoin(t.Context(), "them.example", "!r:them.example", "$e", []byte(`{}`))
	_, invited := f.client.Invite(t.Context(), "them.example", "!r:them.example", "$e", "11", []byte(`{}`), nil)
	for _, err := range []error{joined, invited} {
		if public, ok := matrix.AsError(err); !ok || public.Status != 502 {
			t.Errorf("%v", err)
		}
	}
	if _, failing := f.peers.FailingSince("them.example"); failing {
		t.Error("a server that answers is taken for failing")
	}
	if err := f.client.Do(t.Context(), get("denied.example"), nil); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("a denied server: %v", err)
	}
	if err := f.client.Do(t.Context(), get("us.example"), nil); err == nil {
		t.Error("a request to ourselves is made")
	}
}

func TestBackOff(t *testing.T) {
	f := setUp(t)
	for name, handler := range map[string]http.HandlerFunc{
		"down.example": nil,
		"error.example": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(503)
		},
		"busy.example": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(429)
			fmt.Fprint(w, `{"errcode":"M_LIMIT_EXCEEDED","error":"Wait.","retry_after_ms":3600000}`)
		},
	} {
		dest := matrix.ServerName(name)
		if handler != nil {
			f.serve(name, handler)
		}
		if err := f.client.Do(t.Context(), get(dest), nil); err == nil || errors.Is(err, ErrBackingOff) {
			t.Fatalf("%s: %v", name, err)
		}
		dialed := len(f.Dialed())
		if err := f.client.Do(t.Context(), get(dest), nil); !errors.Is(err, ErrBackingOff) || len(f.Dialed()) != dialed {
			t.Errorf("%s is asked again at once: %v", name, err)
		}
		urgent := get(dest)
		urgent.Urgent = true
		if err := f.client.Do(t.Context(), urgent, nil); err == nil || errors.Is(err, ErrBackingOff) {
			t.Errorf("%s: an urgent request is not made: %v", name, err)
		}
	}
	for name, want := range map[matrix.ServerName]string{"down.example": "no such host", "error.example": "answered 503", "busy.example": "answered 429 M_LIMIT_EXCEEDED: Wait."} {
		if got := f.peers.Reason(name); !strings.Contains(got, want) || strings.Contains(got, "https://") {
			t.Errorf("%s fails because of %q, want %q", name, got, want)
		}
	}
	if at, _ := f.peers.RetryAt("busy.example"); at.Sub(*f.now) < 59*time.Minute {
		t.Errorf("a server that asks for an hour is left alone until %s", at)
	}
	*f.now = f.now.Add(2 * time.Second)
	if err := f.client.Do(t.Context(), get("down.example"), nil); errors.Is(err, ErrBackingOff) {
		t.Error("not tried again after the back-off")
	}
	f.serve("down.example", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{}`) })
	*f.now = f.now.Add(time.Hour)
	if err := f.client.Do(t.Context(), get("down.example"), nil); err != nil {
		t.Fatal(err)
	}
	if _, failing := f.peers.FailingSince("down.example"); failing {
		t.Error("the back-off of a server that answers goes on")
	}
}

// That somebody had no time left to wait says nothing about a server.
func TestNoFairChance(t *testing.T) {
	f := setUp(t)
	asked, block := make(chan struct{}, 1), make(chan struct{})
	defer close(block)
	f.serve("slow.example", func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-block
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := f.client.Do(ctx, get("slow.example"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	<-asked
	if err := f.client.Do(ctx, get("slow.example"), nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if len(asked) > 0 {
		t.Error("asked though nobody waits")
	}
	if _, failing := f.peers.FailingSince("slow.example"); failing {
		t.Error("taken for a server that does not answer")
	}
}

func TestHostileResponses(t *testing.T) {
	f := setUp(t)
	release := make(chan struct{})
	defer close(release)
	f.serve("them.example", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/endless":
			for {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<16)); err != nil {
					return
				}
			}
		case "/announced":
			w.Header().Set("Content-Length", "99999999999")
			w.WriteHeader(200)
		case "/silent", "/halfway":
			if r.URL.Path == "/halfway" {
				fmt.Fprint(w, `{"a":`)
				w.(http.Flusher).Flush()
			}
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "/hugeerror":
			w.WriteHeader(400)
			for {
				if _, err := io.WriteString(w, strings.Repeat(" ", 1<<16)); err != nil {
					return
				}
			}
		}
	})
	ask := func(path string, timeout time.Duration) error {
		r := get("them.example")
		r.Path, r.Timeout, r.MaxBytes, r.Urgent = []string{path}, timeout, 1<<20, true
		return f.client.Do(t.Context(), r, nil)
	}
	for _, path := range []string{"endless", "announced"} {
		if err := ask(path, time.Minute); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := ask("hugeerror", time.Minute); err == nil {
		t.Error("an error of endless length is no error")
	}
	for _, path := range []string{"silent", "halfway"} {
		if err := ask(path, 50*time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", path, err)
		}
	}
	// Our own caller giving up says nothing about the server.
	f.peers.Answered("them.example")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	r := get("them.example")
	r.Path = []string{"silent"}
	if err := f.client.Do(ctx, r, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	if _, failing := f.peers.FailingSince("them.example"); failing {
		t.Error("a caller that gave up made the server look failing")
	}
}

func TestMedia(t *testing.T) {
	f := setUp(t)
	f.Serve("cdn.example:443", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "image/png")
		w.Header().Set("Content-Disposition", `inline; filename="c.png"`)
		fmt.Fprint(w, "from the CDN")
	}), "cdn.example")
	f.serve("new.example", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "multipart/mixed; boundary=x")
		switch r.URL.Path {
		case "/_matrix/federation/v1/media/download/direct":
			fmt.Fprint(w, "--x\r\nContent-Type: application/json\r\n\r\n{}\r\n--x\r\nContent-Type: text/plain\r\nContent-Disposition: attachment; filename=a.txt\r\n\r\nhello\r\n--x--\r\n")
		case "/_matrix/federation/v1/media/download/moved":
			fmt.Fprint(w, "--x\r\nContent-Type: application/json\r\n\r\n{}\r\n--x\r\nLocation: https://cdn.example/c\r\n\r\n\r\n--x--\r\n")
		case "/_matrix/federation/v1/media/download/inside":
			fmt.Fprint(w, "--x\r\nContent-Type: application/json\r\n\r\n{}\r\n--x\r\nLocation: http://127.0.0.1/c\r\n\r\n\r\n--x--\r\n")
		case "/_matrix/federation/v1/media/download/nothing":
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(404)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"No."}`)
		case "/_matrix/federation/v1/media/download/later":
			w.WriteHeader(504)
			fmt.Fprint(w, `{"errcode":"M_NOT_YET_UPLOADED","error":"Wait."}`)
		case "/_matrix/federation/v1/media/download/huge":
			w.WriteHeader(502)
			fmt.Fprint(w, `{"errcode":"M_TOO_LARGE","error":"No."}`)
		case "/_matrix/federation/v1/media/download/huger":
			w.WriteHeader(413)
			fmt.Fprint(w, `{"errcode":"M_TOO_LARGE","error":"No."}`)
		default:
			fmt.Fprint(w, "--x--\r\n")
		}
	})
	f.serve("old.example", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/_matrix/media/v3/download/old.example/abc" && r.URL.Query().Get("allow_remote") == "false" {
			w.Header().Set("Content-Type", "text/plain")
			fmt.Fprint(w, "old way")
			return
		}
		w.WriteHeader(404)
		fmt.Fprint(w, `{"errcode":"M_UNRECOGNIZED","error":"What?"}`)
	})
	for _, c := range []struct {
		server   matrix.ServerName
		id, body string
		filename string
	}{
		{"new.example", "direct", "hello", "a.txt"},
		{"new.example", "moved", "from the CDN", "c.png"},
		{"old.example", "abc", "old way", ""},
	} {
		file, err := f.client.Download(t.Context(), c.server, c.id, time.Second)
		if err != nil {
			t.Errorf("%s: %v", c.id, err)
			continue
		}
		body, err := io.ReadAll(file.Body)
		if err != nil || string(body) != c.body || file.Filename != c.filename {
			t.Errorf("%s: %q %q %v", c.id, body, file.Filename, err)
		}
		if err := file.Body.Close(); err != nil {
			t.Error(err)
		}
	}
	for id, code := range map[string]string{
		"inside": "M_UNKNOWN", "other": "M_UNKNOWN", "nothing": "M_NOT_FOUND", "later": "M_NOT_YET_UPLOADED", "huge": "M_TOO_LARGE", "huger": "M_TOO_LARGE",
	} {
		if _, err := f.client.Download(t.Context(), "new.example", id, time.Second); !matrix.HasCode(err, code) {
			t.Errorf("%s: %v", id, err)
		}
		if _, failing := f.peers.FailingSince("new.example"); failing {
			t.Errorf("%s: a server that answers is taken for failing", id)
		}
	}
}

func TestInviteFallsBack(t *testing.T) {
	f := setUp(t)
	f.serve("old.example", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/invite/") && strings.Contains(string(body), `"unsigned":{"invite_room_state":[{"type":"x"}]}`) {
			fmt.Fprint(w, `[200,{"event":{"signed":true}}]`)
			return
		}
		w.WriteHeader(404)
	})
	pdu, state := []byte(`{"type":"m.room.member"}`), [][]byte{[]byte(`{"type":"x"}`)}
	got, err := f.client.Invite(t.Context(), "old.example", "!r:us.example", "$e:us.example", "1", pdu, state)
	if err != nil || string(got) != `{"signed":true}` {
		t.Errorf("%s %v", got, err)
	}
	if _, err := f.client.Invite(t.Context(), "old.example", "!r:us.example", "$e", "10", pdu, state); err == nil {
		t.Error("an invite of a later version is sent in the old way")
	}
}

// Servers from before version 1.1 of the specification know the first versions of the endpoints only.
func TestOldMembershipEndpoints(t *testing.T) {
	f := setUp(t)
	var asked []string
	answer := ""
	f.serve("old.example", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, strings.TrimPrefix(r.URL.Path, "/_matrix/federation/"))
		if strings.Contains(r.URL.Path, "/v2/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		fmt.Fprint(w, answer)
	})
	event := `{"an event":"` + strings.Repeat("x", minEvent) + `"}`
	answer = `[200,{"state":[` + event + `],"auth_chain":[` + event + `],"members_omitted":false}]`
	sent, err := f.client.SendJoin(t.Context(), "old.example", "!r:old.example", "$e", []byte(`{}`))
	if err != nil || len(sent.State) != 1 || len(sent.AuthChain) != 1 {
		t.Errorf("%+v, %v", sent, err)
	}
	answer = `[200,{}]`
	if err := f.client.SendLeave(t.Context(), "old.example", "!r:old.example", "$e", []byte(`{}`)); err != nil {
		t.Error(err)
	}
	want := []string{"v2/send_join/!r:old.example/$e", "v1/send_join/!r:old.example/$e", "v2/send_leave/!r:old.example/$e", "v1/send_leave/!r:old.example/$e"}
	if !slices.Equal(asked, want) {
		t.Errorf("asked %v", asked)
	}
	for _, answer = range []string{`{"state":[]}`, `[200]`, `[200,[]]`} {
		if _, err := f.client.SendJoin(t.Context(), "old.example", "!r:old.example", "$e", []byte(`{}`)); err == nil {
			t.Errorf("%s passes for an answer", answer)
		}
	}
	// That there is no such room is an answer.
	asked = nil
	f.serve("new.example", func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Path)
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"No."}`)
	})
	if _, err := f.client.SendJoin(t.Context(), "new.example", "!r:old.example", "$e", []byte(`{}`)); err == nil || len(asked) != 1 {
		t.Errorf("asked %v: %v", asked, err)
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for header, want := range map[string]time.Duration{
		"": 0, "x": 0, "-1": 0, "0": 0, "90": 90 * time.Second, "99999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0,
	} {
		if got := retryAfter(header, now); got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

// A server says "404 Not Found" for rooms and files as well.
func TestUnrecognised(t *testing.T) {
	answer := func(status int, code string) error {
		e := &Error{Status: status}
		if code != "" {
			e.Peer = matrix.Errorf(status, code, "x")
		}
		return fmt.Errorf("wrapped: %w", e)
	}
	for _, err := range []error{answer(404, ""), answer(404, "M_UNRECOGNIZED"), answer(405, "M_UNRECOGNIZED"), answer(405, ""), answer(400, "M_UNRECOGNIZED"), answer(400, "")} {
		if !Unrecognised(err) {
			t.Errorf("%v is no sign of an older server", err)
		}
	}
	for _, err := range []error{answer(404, "M_NOT_FOUND"), answer(400, "M_INVALID_PARAM"), answer(403, "M_UNRECOGNIZED"), answer(502, ""), answer(0, ""), nil} {
		if Unrecognised(err) {
			t.Errorf("%v is taken for the sign of an older server", err)
		}
	}
}

// Pictures of a server that did not answer lately are asked for one at a time: each may cost half a minute.
func TestProbes(t *testing.T) {
	f := setUp(t)
	asked, answer := make(chan struct{}, 10), make(chan struct{})
	f.serve("slow.example", func(w http.ResponseWriter, _ *http.Request) {
		asked <- struct{}{}
		<-answer
		w.WriteHeader(404)
		fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"No."}`)
	})
	f.peers.Failed("slow.example", time.Hour, "")
	first := make(chan error, 1)
	go func() {
		_, err := f.client.Download(t.Context(), "slow.example", "a", 0)
		first <- err
	}()
	<-asked
	if _, err := f.client.Download(t.Context(), "slow.example", "b", 0); !errors.Is(err, ErrBackingOff) {
		t.Errorf("a second file: %v", err)
	}
	close(answer)
	if err := <-first; !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Error(err)
	}
	if _, err := f.client.Download(t.Context(), "slow.example", "c", 0); !matrix.HasCode(err, "M_NOT_FOUND") || !f.client.Answers("slow.example") {
		t.Errorf("after it has answered: %v", err)
	}
}
