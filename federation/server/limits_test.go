package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/keyring"
	"hanok/internal/budget"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/storage"
)

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

// setUpTarpit is a server that has all keys from a tarpit.
func setUpTarpit(t *testing.T) (*fixture, tarpit) {
	pit := tarpit{make(chan struct{}, 1000), make(chan struct{})}
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return setUp(t, func(o *Options) {
		o.Keys = keyring.New(keyring.Options{ServerName: "us.example", Key: key, DB: o.DB, Fetch: pit, Log: zerolog.Nop()})
	}), pit
}

// Requests in the name of servers that nobody knows are heard a few at a time, and not a byte of their bodies before.
func TestStrangers(t *testing.T) {
	f, pit := setUpTarpit(t)
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
	for f.server.strangers.Users("127.0.0.1") != all {
		time.Sleep(time.Millisecond)
	}
	if status, err := knock("one-more.example", nil); status != http.StatusTooManyRequests || err != nil {
		t.Errorf("one too many: %d %v", status, err)
	}
	if len(pit.asked) != 0 {
		t.Errorf("%d more servers are asked for their keys", len(pit.asked))
	}
	if f.server.bodies.Free() != bodyBudget {
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
	hold := func(addresses int, n int64) (release func()) {
		t.Helper()
		var holds []*budget.Hold
		for i := range addresses {
			h := f.server.bodies.Hold(fmt.Sprintf("192.0.2.%d", i), nil)
			holds = append(holds, h)
			for taken := int64(0); taken < n; taken += 1 << 17 {
				if err := h.Take(1 << 17); err != nil && addresses > 1 {
					break // as much as it may
				} else if err != nil {
					t.Fatalf("%d: %v", i, err)
				}
			}
		}
		return func() {
			for _, h := range holds {
				h.Release()
			}
		}
	}
	release := hold(14, bodyShare)
	f.expect(429, "M_LIMIT_EXCEEDED")(f.call("PUT", uri, body))
	release()
	// One address has no more than its share, and six have not all of it either, which leaves something for the others.
	release = hold(1, bodyShare)
	if f.server.bodies.Hold("192.0.2.0", nil).Take(1) == nil {
		t.Error("one address may take more than its share")
	}
	f.expect(200, "pdus")(f.call("PUT", uri, body))
	release()
	release = hold(6, bodyShare)
	f.expect(200, "pdus")(f.call("PUT", uri, body))
	release()
	own := f.server.bodies.Hold("127.0.0.1", nil)
	if err := own.Take(bodyShare - 1<<19); err != nil {
		t.Fatal(err)
	}
	f.expect(429, "M_LIMIT_EXCEEDED")(f.call("PUT", uri, body))
	own.Release()
	f.expect(200, "pdus")(f.call("PUT", uri, body))
	if f.server.bodies.Free() != bodyBudget {
		t.Errorf("%d bytes were not given back", bodyBudget-f.server.bodies.Free())
	}
	if n := f.server.bodies.Holders(); n != 0 {
		t.Errorf("%d addresses are remembered", n)
	}
}

// A subscriber has many addresses of IPv6, and counts as one caller.
func TestAddressesOfOneCaller(t *testing.T) {
	f := setUp(t, nil)
	for remote, want := range map[string]string{
		"192.0.2.7:1234":                 "192.0.2.7",
		"[2001:db8:1:2:3:4:5:6]:1":       "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::9]:2":       "2001:db8:1:2::/64",
		"[2001:db8:1:3::]:1":             "2001:db8:1:3::/64",
		"[fe80::1%eth0]:5":               "fe80::/64",
		"[::ffff:192.0.2.7]:1":           "::ffff:192.0.2.7",
		"what a broken listener may say": "what a broken listener may say",
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = remote
		if got := f.server.address(r); got != want {
			t.Errorf("%s: %s", remote, got)
		}
	}
}

// Whoever asks us as a notary, or tells us of an address that a user has proved to own, has us ask other servers, and may be anybody.
func TestQuestionsOfStrangers(t *testing.T) {
	f, pit := setUpTarpit(t)
	var names strings.Builder
	for i := range 500 {
		fmt.Fprintf(&names, `,"s%d.example":{}`, i)
	}
	query := `{"server_keys":{` + names.String()[1:] + `}}`
	const all = strangersAtOnce + strangersWaiting
	done := make(chan int, all)
	for range all {
		go func() {
			status, _ := f.raw("POST", "/_matrix/key/v2/query", query)
			done <- status
		}()
	}
	for f.server.strangers.Users("127.0.0.1") != all {
		time.Sleep(time.Millisecond)
	}
	for _, path := range []string{"/_matrix/key/v2/query/one-more.example", "/_matrix/key/v2/query/one-more.example/ed25519:1"} {
		f.expect(429, "M_LIMIT_EXCEEDED")(f.raw("GET", path, ""))
	}
	f.expect(429, "M_LIMIT_EXCEEDED")(f.raw("POST", "/_matrix/key/v2/query", query))
	f.expect(429, "M_LIMIT_EXCEEDED")(f.raw("PUT", "/_matrix/federation/v1/3pid/onbind", `{"mxid":"@a:us.example","invites":[]}`))
	close(pit.answer)
	for range all {
		if status := <-done; status != http.StatusOK {
			t.Errorf("a question got %d", status)
		}
	}
	if n := len(pit.asked); n > 500 {
		t.Errorf("%d requests for 500 servers", n)
	}
}

// The answers to the last transactions of a server are remembered, not all of them.
func TestTransactionsWithoutEnd(t *testing.T) {
	f := setUp(t, nil)
	ctx := t.Context()
	err := f.db.Write(ctx, func(tx *storage.Tx) error {
		for i := range 3 * maxTransactionsKept {
			if err := storage.PutInboundTransaction(ctx, tx, storage.InboundTransaction{Origin: "a.example", ID: fmt.Sprint("old", i), Response: []byte("{}"), Digest: []byte{}, Received: matrix.Timestamp(i)}); err != nil {
				return err
			}
		}
		return storage.PutInboundTransaction(ctx, tx, storage.InboundTransaction{Origin: "b.example", ID: "only", Response: []byte("{}"), Digest: []byte{}, Received: 1})
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range trimTransactionsEvery {
		f.expect(200, "pdus")(f.call("PUT", fmt.Sprintf("/_matrix/federation/v1/send/new%d", i), `{"pdus":[],"edus":[]}`))
	}
	for origin, want := range map[string]int{"a.example": maxTransactionsKept, "b.example": 1} {
		var n int
		if err := f.db.QueryRow(ctx, `SELECT count(*) FROM inbound_transactions WHERE origin = $1`, origin).Scan(&n); err != nil || n != want {
			t.Errorf("%d transactions of %s are remembered, %v", n, origin, err)
		}
	}
	if _, err := storage.GetInboundTransaction(ctx, f.db, "a.example", fmt.Sprint("new", trimTransactionsEvery-1)); err != nil {
		t.Errorf("the last one: %v", err)
	}
}

// What one server may have us store for rooms that take long is bounded over all rooms, and so is what all servers may.
func TestStagedEventsAreBounded(t *testing.T) {
	f := setUp(t, nil)
	stage := func(origin matrix.ServerName, room, events, size int) *roomBatch {
		b := &roomBatch{origin: origin, room: matrix.RoomID(fmt.Sprintf("!r%d:x", room))}
		for range events {
			b.pdus = append(b.pdus, make([]byte, size))
		}
		if !f.server.mayStage(b) {
			return nil
		}
		return b
	}
	fill := func(origin matrix.ServerName, events, size int) (taken []*roomBatch) {
		for room := 0; room < 10_000; room++ {
			b := stage(origin, room, events, size)
			if b == nil {
				return taken
			}
			taken = append(taken, b)
		}
		t.Fatal("there is no end")
		return nil
	}
	free := func(batches []*roomBatch) {
		for _, b := range batches {
			f.server.unstaged(b.part())
		}
	}
	small := fill("a.example", 50, 100)
	if len(small)*50 != maxStagedOrigin {
		t.Errorf("%d small events", len(small)*50)
	}
	if stage("b.example", 0, 50, 100) == nil {
		t.Error("another server has no place")
	}
	free(small)
	big := fill("a.example", 50, 60_000)
	if n := len(big) * 50 * 60_000; n > maxStagedBytes || n < maxStagedBytes/2 {
		t.Errorf("%d bytes of big events", n)
	}
	all := 0
	var others []*roomBatch
	for i := range 10 {
		more := fill(matrix.ServerName(fmt.Sprintf("s%d.example", i)), 10, 60_000)
		others = append(others, more...)
		all += len(more) * 10 * 60_000
	}
	if all > maxStagedAll {
		t.Errorf("%d bytes of all servers", all)
	}
	free(big)
	free(others)
	f.server.unstaged(stagedPart{"b.example", "!r0:x", 50, 5000})
	if s := f.server.staged; len(s.rooms) != 0 || len(s.origins) != 0 || s.bytes != 0 {
		t.Errorf("%d rooms, %d servers and %d bytes are left", len(s.rooms), len(s.origins), s.bytes)
	}
}
