package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/keyring"
	"hanok/matrix"
	"hanok/matrix/signing"
)

func TestGate(t *testing.T) {
	g := newGate[string](2, 1)
	enter := func(id string) func() {
		t.Helper()
		leave, err := g.enter(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return leave
	}
	first, second, other := enter("a"), enter("a"), enter("b")
	third := make(chan func())
	go func() {
		leave, err := g.enter(context.Background(), "a")
		if err != nil {
			t.Error(err)
		}
		third <- leave
	}()
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		g.mu.Lock()
		waiting = g.byID["a"].users == 3
		g.mu.Unlock()
	}
	if _, err := g.enter(t.Context(), "a"); !matrix.HasCode(err, "M_LIMIT_EXCEEDED") {
		t.Errorf("a fourth: %v", err)
	}
	first()
	leave := <-third
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := g.enter(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("one that gave up: %v", err)
	}
	second()
	leave()
	other()
	if len(g.byID) != 0 {
		t.Errorf("%d keys are remembered", len(g.byID))
	}
}

// tarpit is a key server that takes its time.
type tarpit struct{ asked, answer chan struct{} }

func (p tarpit) ServerKeys(ctx context.Context, _ matrix.ServerName, _ bool) ([]byte, error) {
	p.asked <- struct{}{}
	select {
	case <-p.answer:
	case <-ctx.Done():
	}
	return nil, errors.New("no")
}

func (tarpit) QueryNotary(context.Context, matrix.ServerName, client.KeyCriteria) ([][]byte, error) {
	return nil, errors.New("no")
}

// Requests in the name of servers that nobody knows are heard a few at a time, and not a byte of their bodies before.
func TestStrangers(t *testing.T) {
	pit := tarpit{make(chan struct{}, 100), make(chan struct{})}
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	f := setUp(t, func(o *Options) {
		o.Keys = keyring.New(keyring.Options{ServerName: "us.example", Key: key, DB: o.DB, Fetch: pit, Log: zerolog.Nop()})
	})
	knock := func(name string, body io.Reader) (int, error) {
		req, err := http.NewRequest(http.MethodPut, f.http.URL+"/_matrix/federation/v1/send/1", body)
		if err != nil {
			return 0, err
		}
		req.Header.Set("Authorization", `X-Matrix origin="`+name+`",destination="us.example",key="ed25519:1",sig="AAAA"`)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, err
		}
		res.Body.Close()
		return res.StatusCode, nil
	}
	const all = strangersAtOnce + strangersWaiting
	done := make(chan int, all)
	for i := range all {
		go func() {
			status, err := knock("s"+strings.Repeat("x", i+1)+".example", bytes.NewReader(make([]byte, 100)))
			if err != nil {
				t.Error(err)
			}
			done <- status
		}()
	}
	for range strangersAtOnce {
		<-pit.asked
	}
	for waiting := false; !waiting; time.Sleep(time.Millisecond) {
		f.server.strangers.mu.Lock()
		for _, q := range f.server.strangers.byID {
			waiting = q.users == all
		}
		f.server.strangers.mu.Unlock()
	}
	if status, err := knock("one-more.example", nil); status != http.StatusTooManyRequests || err != nil {
		t.Errorf("one too many: %d %v", status, err)
	}
	if len(pit.asked) != 0 {
		t.Errorf("%d more servers are asked for their keys", len(pit.asked))
	}
	if f.server.bodies.free != bodyBudget {
		t.Error("bodies of strangers were read")
	}
	close(pit.answer)
	for range all {
		if status := <-done; status != http.StatusUnauthorized {
			t.Errorf("a stranger got %d", status)
		}
	}
}

// All bodies together have a limit, since they are read before they can be checked.
func TestBodiesAreBounded(t *testing.T) {
	f := setUp(t, nil)
	const uri = "/_matrix/federation/v1/send/1"
	body := `{"origin":"a.example","origin_server_ts":1,"pdus":[],"x":"` + strings.Repeat("a", 1<<20) + `"}`
	f.server.bodies.take(bodyBudget - 1<<19)
	f.expect(429, "M_LIMIT_EXCEEDED")(f.call("PUT", uri, body))
	f.server.bodies.give(bodyBudget - 1<<19)
	f.expect(200, "pdus")(f.call("PUT", uri, body))
	if f.server.bodies.free != bodyBudget {
		t.Errorf("%d bytes were not given back", bodyBudget-f.server.bodies.free)
	}
}
