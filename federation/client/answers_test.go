package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"

	"hanok/internal/budget"
	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// many repeats an element, as an array of so many bytes.
func many(element string, bytes int) string {
	return "[" + strings.TrimSuffix(strings.Repeat(element+",", bytes/(len(element)+1)), ",") + "]"
}

// What answers of the greatest length consist of does not take many times their length in memory.
func TestAnswersOfTinyValues(t *testing.T) {
	const size = 2 << 20
	id := `"$` + strings.Repeat("x", 43) + `"`
	var members strings.Builder
	members.WriteByte('{')
	for i := range size / 12 {
		fmt.Fprintf(&members, `"%x":{},`, i)
	}
	members.WriteString(`"@wanted:x":{}}`)
	object := members.String()
	var join joinAnswer
	var keys wantedKeys[[]matrix.DeviceID]
	var key wantedKey[[]matrix.DeviceID]
	newClaimed := func() *claimed { return &claimed{wanted: users.Claims{"@wanted:x": {"D": "a"}}} }
	claims := newClaimed()
	var old pair
	keys.wanted, key.wanted = users.Wanted{"@wanted:x": nil}, users.Wanted{"@wanted:x": nil}
	for name, c := range map[string]struct {
		body string
		into any
		too  bool // many
	}{
		"events":          {`{"state":` + many("{}", size) + `,"auth_chain":` + many("1", size) + `}`, &join, false},
		"servers":         {`{"servers_in_room":` + many(`""`, size) + `}`, &join, true},
		"old answers":     {many("1", size), &old, true},
		"IDs":             {many(`""`, size), new(idList), false},
		"real IDs":        {many(id, size), new(idList), false},
		"rooms":           {many("{}", size), new(roomList[rooms.RoomSummary]), false},
		"rooms of spaces": {many("{}", size), new(roomList[rooms.HierarchyRoom]), false},
		"devices":         {many("{}", size), new(deviceList), true},
		"users":           {object, &keys, false},
		"their devices":   {`{"@wanted:x":` + object + `}`, &keys, false},
		"their keys":      {object, &key, false},
		"claimed users":   {object, newClaimed(), false},
		"claimed devices": {`{"@wanted:x":` + object + `}`, newClaimed(), false},
		"claimed keys":    {`{"@wanted:x":{"D":` + object + `}}`, claims, false},
	} {
		body := []byte(c.body)
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		err := json.Unmarshal(body, c.into)
		runtime.GC()
		runtime.ReadMemStats(&after)
		if c.too != errors.Is(err, strictjson.ErrTooMany) || !c.too && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Of objects the decoder remembers the names, to find those that occur twice.
		if kept := int64(after.HeapAlloc) - int64(before.HeapAlloc); kept > 3*size && (c.body[0] != '{' || kept > 10*size) {
			t.Errorf("%s: %d MB are kept of %d", name, kept>>20, len(body)>>20)
		}
		runtime.KeepAlive(body)
		runtime.KeepAlive(c.into)
	}
	if len(join.State)+len(join.AuthChain) != 0 || len(keys.keys) > 1 || len(keys.keys["@wanted:x"]) != 0 || len(claims.keys["@wanted:x"]["D"]) != maxKeysClaims {
		t.Errorf("%d events, keys of %d users, %d one-time keys", len(join.State)+len(join.AuthChain), len(keys.keys), len(claims.keys["@wanted:x"]["D"]))
	}
}

// Answers that are long, and come slowly, or are being worked with, leave room for those of other servers, and do not keep out short ones.
func TestAllAnswersTogetherAreBounded(t *testing.T) {
	f := setUp(t)
	f.client.answers = budget.New(20<<20, 6<<20)
	release := make(chan struct{})
	written := make(chan struct{}, 10)
	for _, host := range []string{"one.example", "two.example", "three.example"} {
		f.serve(host, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/short" {
				fmt.Fprint(w, `{}`)
				return
			}
			fmt.Fprint(w, `{}`+strings.Repeat(" ", 4<<20))
			w.(http.Flusher).Flush()
			written <- struct{}{}
			if r.URL.Path == "/slow" {
				<-release
			}
		})
	}
	ask := func(ctx context.Context, server matrix.ServerName, path string) error {
		r := get(server)
		r.Path, r.MaxBytes = []string{path}, 8<<20
		return f.client.Do(ctx, r, nil)
	}
	const counted = 3 << 20 // of 4
	left := func(n int64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); f.client.answers.Free() != 20<<20-n*counted-n*2; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes are left", f.client.answers.Free())
			}
		}
	}
	slow := make(chan error, 3)
	go func() { slow <- ask(t.Context(), "one.example", "slow") }()
	left(1)
	if err := ask(t.Context(), "one.example", "long"); !errors.Is(err, budget.ErrSpent) {
		t.Errorf("a second long answer of one server: %v", err)
	} else if answer, ok := matrix.AsError(err); !ok || answer.Status != http.StatusServiceUnavailable {
		t.Errorf("a client is told %v", answer)
	}
	working, over := budget.Keep(t.Context())
	if err := ask(working, "two.example", "long"); err != nil {
		t.Errorf("a long answer of another server: %v", err)
	}
	go func() { slow <- ask(t.Context(), "three.example", "slow") }()
	left(3)
	if err := ask(t.Context(), "two.example", "long"); !errors.Is(err, budget.ErrSpent) {
		t.Errorf("one long answer too many: %v", err)
	}
	for _, server := range []matrix.ServerName{"one.example", "two.example", "three.example"} {
		if err := ask(t.Context(), server, "short"); err != nil {
			t.Errorf("a short answer: %v", err)
		}
		if _, failing := f.peers.FailingSince(server); failing {
			t.Errorf("%s is held to fail", server)
		}
	}
	close(release)
	for range 2 {
		if err := <-slow; err != nil {
			t.Error(err)
		}
	}
	left(1)
	over()
	left(0)
}

// Two servers that send much, and then go on slowly, do not keep the answers of others from being read: who has most of the room, and for
// longest, gives it back.
func TestSlowAnswersGiveWay(t *testing.T) {
	f := setUp(t)
	f.client.answers = budget.New(20<<20, 16<<20)
	release := make(chan struct{})
	defer close(release)
	serve := func(host string, size int, slow bool) {
		f.serve(host, func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{}`+strings.Repeat(" ", size+uncounted-2))
			if slow {
				w.(http.Flusher).Flush()
				<-release
			}
		})
	}
	serve("one.example", 13<<20, true)
	serve("two.example", 4<<20, true)
	serve("three.example", 2<<20, false)
	ask := func(server matrix.ServerName) error {
		r := get(server)
		r.MaxBytes = 32 << 20
		return f.client.Do(t.Context(), r, nil)
	}
	left := func(n int64) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); f.client.answers.Free() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d bytes are left", f.client.answers.Free())
			}
		}
	}
	one, two := make(chan error, 1), make(chan error, 1)
	go func() { one <- ask("one.example") }()
	left(7 << 20)
	go func() { two <- ask("two.example") }()
	left(3 << 20)
	// Two servers have 17 of 20 MB, and a third one may have less than what it sends beside them.
	start := time.Now()
	if err := ask("three.example"); err != nil {
		t.Errorf("the answer of a third server: %v", err)
	}
	serve("four.example", 3<<20, false)
	if err := ask("four.example"); err != nil {
		t.Errorf("the answer of a fourth server: %v", err)
	}
	t.Logf("read after %v", time.Since(start))
	err := <-one
	if answer, ok := matrix.AsError(err); !errors.Is(err, budget.ErrSpent) || !ok || answer.Status != http.StatusServiceUnavailable {
		t.Errorf("the answer that takes most was ended with %v", err)
	}
	if _, failing := f.peers.FailingSince("one.example"); failing {
		t.Error("its server is held to fail")
	}
	select {
	case err := <-two:
		t.Errorf("one that need not have ended has: %v", err)
	default:
	}
}
