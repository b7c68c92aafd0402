package sytest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// peakMemory measures how many bytes of memory a server has at most from now on, beside what it has now.
func peakMemory(t *testing.T, hs *homeserver.Server) (more func() int64) {
	t.Helper()
	if runtime.GOOS != "linux" {
		return func() int64 { return 0 }
	}
	status := func(field string) int64 {
		t.Helper()
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", hs.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if rest, ok := strings.CutPrefix(line, field+":"); ok {
				kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				return kb << 10
			}
		}
		t.Fatalf("no %s", field)
		return 0
	}
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", hs.PID()), []byte("5"), 0); err != nil { // forgets the peak
		t.Fatal(err)
	}
	before := status("VmRSS")
	return func() int64 { return status("VmHWM") - before }
}

// packed compresses an answer of a pattern repeated to so many bytes.
func packed(t *testing.T, before, element, after string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(z, before)
	chunk := strings.Repeat(element+",", 1<<16/len(element))
	for written := 0; written < size; written += len(chunk) {
		_, _ = io.WriteString(z, chunk)
	}
	_, _ = io.WriteString(z, element+after)
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Who opens connections and asks for nothing on them, or has not asked yet after a while, keeps nobody out, and takes no more than all connections may.
func TestConnectionsWithoutEnd(t *testing.T) {
	const most, more = 10_000, 500
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil || files.Cur < most+more+1000 {
		t.Skipf("the test may open %d files only (%v)", files.Cur, err)
	}
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	alice.Sync(0)
	told := make(chan json, 1)
	go func() { told <- alice.Sync(time.Minute) }()
	memory := peakMemory(t, hs)
	address := strings.TrimPrefix(hs.ClientURL, "http://")
	for i := range most + more {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err = io.WriteString(c, "GET /_matrix/client/versions HTTP/1.1\r\nHost"[:i%40]); err != nil {
			t.Fatal(err)
		}
	}
	start := time.Now()
	room := alice.CreateRoom(json{}) // which the other connection, that waited meanwhile, is told of
	if body := fmt.Sprint(<-told); !strings.Contains(body, room) {
		t.Error("a request that was waiting was not answered")
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("a room was made and told of in %v", took)
	}
	for listener, open := range map[string]func(float64) bool{
		fmt.Sprintf(`hanok_http_connections{listener=%q}`, address):                          func(n float64) bool { return n <= most },
		fmt.Sprintf(`hanok_http_connections_full_total{listener=%q,reason="idle"}`, address): func(n float64) bool { return n >= more },
		fmt.Sprintf(`hanok_http_connections_full_total{listener=%q,reason="busy"}`, address): func(n float64) bool { return n == 0 },
	} {
		if n := hs.Metric(listener); !open(n) {
			t.Errorf("%s is %v", listener, n)
		}
	}
	if n := memory(); n > 500<<20 {
		t.Errorf("%d MB of memory were needed", n>>20)
	} else {
		t.Logf("%d MB of memory for %d connections", n>>20, most)
	}
}

// Requests without a session that do not come to their end take a part of the memory only, and nothing of what users have.
func TestClientRequestsWithoutEnd(t *testing.T) {
	const requests, size, most = 40, 900 << 10, 10
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{})
	memory := peakMemory(t, hs)
	refused := make(chan string, requests)
	for range requests {
		c, err := net.Dial("tcp", strings.TrimPrefix(hs.ClientURL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		go func() {
			_, _ = io.WriteString(c, "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\nContent-Length: 1048576\r\n\r\n"+strings.Repeat(" ", size)) // fails if it is refused before
			status := make([]byte, len("HTTP/1.1 429"))
			if _, err := io.ReadFull(c, status); err == nil {
				refused <- string(status)
			}
		}()
	}
	for range requests - most {
		select {
		case status := <-refused:
			if status != "HTTP/1.1 429" {
				t.Errorf("a request that has not ended is answered %s", status)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("more bodies are waited for than fit into what they may take")
		}
	}
	alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", "1"), json{"msgtype": "m.text", "body": strings.Repeat("x", 50<<10)})
	if n := memory(); n > 40<<20 {
		t.Errorf("%d MB of memory were needed", n>>20)
	} else {
		t.Logf("%d MB of memory", n>>20)
	}
}

// Answers of the greatest length, to all questions that the events of many rooms make necessary at the same time, do not take the memory of all of them.
func TestHugeAnswersAtOnce(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	const rooms = 15
	var pdus []string
	for i := range rooms {
		room := h.peer.Join(hs, h.alice.CreateRoom(json{"preset": "public_chat", "room_version": "11"}), "mallory")
		pdus = append(pdus, string(room.Event("m.room.message", nil, json{"body": "x"}, func(m json) { m["prev_events"] = []any{fmt.Sprintf("$%s%06d", strings.Repeat("A", 37), i)} })))
	}
	junk := `{"junk":"` + strings.Repeat("x", 100) + `"}`
	var ids strings.Builder
	for i := range 50 {
		fmt.Fprintf(&ids, `"$%s%06d",`, strings.Repeat("B", 37), i)
	}
	answers := map[string][]byte{
		"get_missing_events": packed(t, `{"events":[`, "{}", "]}", 30<<20),
		"state_ids":          packed(t, `{"pdu_ids":[`, strings.TrimSuffix(ids.String(), ","), `],"auth_chain_ids":[]}`, 20<<20),
		"state":              packed(t, `{"auth_chain":[],"pdus":[`, junk, "]}", 120<<20),
		"event_auth":         packed(t, `{"auth_chain":[`, "1", "]}", 30<<20),
		"event":              packed(t, `{"pdus":[`, "{}", "]}", 30<<20),
	}
	var answered atomic.Int64
	h.peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		parts := strings.Split(r.URL.Path, "/")
		answer := answers[parts[min(4, len(parts)-1)]]
		if answer == nil {
			return false
		}
		answered.Add(1)
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = w.Write(answer)
		return true
	}
	more := peakMemory(t, hs)
	body := fmt.Appendf(nil, `{"origin":%q,"origin_server_ts":1,"pdus":[%s]}`, h.peer.Name, strings.Join(pdus, ","))
	if status, answer := h.peer.Call(hs, "PUT", "/_matrix/federation/v1/send/huge", body); status != 200 { // after ten seconds, if need be
		t.Errorf("%d %s", status, answer)
	}
	if n := more(); n > 1200<<20 {
		t.Errorf("%d MB of memory were needed", n>>20)
	} else {
		t.Logf("%d answers, %d MB of memory", answered.Load(), n>>20)
	}
	if answered.Load() < rooms {
		t.Errorf("only %d questions were asked", answered.Load())
	}
	h.peer.Answer = nil
	h.works()
}

// Requests of the greatest length, of tiny values, in the name of a server that is known: whether it has signed them shows when they are read.
func TestHugeRequestsAtOnce(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	const size = 12 << 20
	var object strings.Builder
	object.WriteString(`{"pdus":[],"edus":[{"edu_type":"m.typing","content":{`)
	for i := 0; object.Len() < size; i++ {
		fmt.Fprintf(&object, `"%x":1,`, (i*7919)%100_000_007)
	}
	object.WriteString(`"z":1}}]}`)
	bodies := map[string]string{
		"elements": `{"edus":[],"pdus":[` + strings.Repeat("1,", size/2) + `1]}`,
		"members":  object.String(),
	}
	for name, body := range bodies {
		const path = "/_matrix/federation/v1/send/huge"
		signed, err := h.peer.Sign(hs, "PUT", path, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		for _, auth := range []string{signed, strings.Replace(signed, `sig="`, `sig="AA`, 1)} {
			more := peakMemory(t, hs)
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					if status, answer, err := h.peer.Request(hs, "PUT", path, auth, []byte(body)); err == nil && status >= 500 {
						t.Errorf("%s: %d %s", name, status, answer)
					}
				})
			}
			all.Wait()
			if n := more(); n > 600<<20 {
				t.Errorf("%s, signed %v: %d MB of memory were needed", name, auth == signed, n>>20)
			} else {
				t.Logf("%s, signed %v: %d MB of memory", name, auth == signed, n>>20)
			}
		}
	}
	h.works()
}

// Floods of EDUs about people, rooms, devices and threads that do not exist, or that have nothing to do with anybody here.
func TestFloodsOfEDUs(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	h.alice.Sync(0)
	stranger := func(i int) string { return fmt.Sprintf("@stranger%d:%s", i, h.peer.Name) }
	event := func(i int) string { return fmt.Sprintf("$%043d", i) }
	edu := func(eduType string, content any) string {
		return string(encode(t, json{"edu_type": eduType, "content": content}))
	}
	presence := func(i int) string {
		var push []any
		for j := range 50 {
			push = append(push, json{"user_id": stranger(50*i + j), "presence": "online", "status_msg": strings.Repeat("x", 500)})
		}
		return edu("m.presence", json{"push": push})
	}
	toDevice := func(i int) string {
		messages := json{}
		for j := range 100 {
			messages[fmt.Sprintf("@nobody%d:%s", 100*i+j, hs.Name)] = json{"*": json{}}
		}
		messages[h.alice.UserID] = json{fmt.Sprintf("NODEVICE%d", i): json{}}
		return edu("m.direct_to_device", json{"sender": h.room.User, "type": "m.x", "message_id": fmt.Sprint(i), "messages": messages})
	}
	read := func(user, room string, i int, thread bool) string {
		data := json{"ts": i}
		if thread {
			data["thread_id"] = event(i)
		}
		return edu("m.receipt", json{room: json{"m.read": json{user: json{"event_ids": []any{event(i)}, "data": data}}}})
	}
	floods := map[string]func(i int) string{
		"typing of strangers": func(i int) string {
			return edu("m.typing", json{"room_id": h.room.ID, "user_id": stranger(i), "typing": true})
		},
		"typing in rooms elsewhere": func(i int) string {
			return edu("m.typing", json{"room_id": fmt.Sprintf("!x%d:%s", i, h.peer.Name), "user_id": h.room.User, "typing": true})
		},
		"receipts of strangers": func(i int) string { return read(stranger(i), string(h.room.ID), i, false) },
		"receipts in rooms elsewhere": func(i int) string {
			return read(string(h.room.User), fmt.Sprintf("!x%d:%s", i, h.peer.Name), i, false)
		},
		"receipts in threads": func(i int) string { return read(string(h.room.User), string(h.room.ID), i, true) },
		"presence":            presence,
		"messages to nobody":  toDevice,
		"devices of strangers": func(i int) string {
			return edu("m.device_list_update", json{"user_id": stranger(i), "device_id": "D", "stream_id": 1<<53 - 1 - i, "prev_id": []any{i}})
		},
		"devices of a user of another server": func(i int) string {
			return edu("m.device_list_update", json{"user_id": "@x:elsewhere.example", "device_id": "D", "stream_id": i, "prev_id": []any{}})
		},
		"devices of a member, without end": func(i int) string {
			return edu("m.device_list_update", json{"user_id": h.room.User, "device_id": fmt.Sprint("D", i), "stream_id": 3 * i, "prev_id": []any{3*i - 1}})
		},
		"signing keys of strangers": func(i int) string {
			return edu("m.signing_key_update", json{"user_id": stranger(i), "master_key": json{"user_id": stranger(i), "usage": []any{"master"}, "keys": json{fmt.Sprint("ed25519:", i): "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}})
		},
	}
	const transactions, each = 6, 100
	goroutines := hs.Metric("go_goroutines")
	more := peakMemory(t, hs)
	began := time.Now()
	for name, flood := range floods {
		before, start := len(h.peer.Asked()), time.Now()
		for i := range transactions {
			var edus []string
			for j := range each {
				edus = append(edus, flood(each*i+j))
			}
			h.transaction(name, nil, edus)
		}
		took := time.Since(start)
		if asked := len(h.peer.Asked()) - before; asked > 10+int(took/time.Second) {
			t.Errorf("%s: %d requests to its server within %v", name, asked, took)
		}
		t.Logf("%s: %v", name, took)
	}
	if n := more(); n > 150<<20 {
		t.Errorf("%d MB of memory were needed", n>>20)
	}
	t.Logf("all: %v, %d MB of memory", time.Since(began), more()>>20)
	if after := hs.Metric("go_goroutines"); after > goroutines+100 {
		t.Errorf("%v goroutines, %v before", after, goroutines)
	}
	// What clients are told of it has an end, too.
	res := encode(t, h.alice.Must("GET", "/v3/sync", nil))
	if len(res) > 100_000 {
		t.Errorf("a response of %d bytes to a first sync", len(res))
	}
	h.works()
}

// A space whose every room has another one in it, and files without end.
func TestQuestionsOfClientsWithoutEnd(t *testing.T) {
	const limit = 2 << 20
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{ExtraConfig: fmt.Sprintf("media: {max_remote: %d}", limit)})
	peer := hs.Network().NewPeer()
	alice := hs.Register(t, "alice")
	var made, sent atomic.Int64
	space := func(id string, children ...string) json {
		state := []any{}
		for _, c := range children {
			state = append(state, json{"type": "m.space.child", "state_key": c, "sender": "@m:" + string(peer.Name), "origin_server_ts": 1, "content": json{"via": []any{peer.Name}}})
		}
		return json{"room_id": id, "room_type": "m.space", "num_joined_members": 1, "guest_can_join": false, "world_readable": true, "join_rule": "public", "children_state": state}
	}
	peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.Contains(r.URL.Path, "/hierarchy/"):
			id, _ := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/hierarchy/")
			var next []string
			for range 3 {
				next = append(next, fmt.Sprintf("!s%d:%s", made.Add(1), peer.Name))
			}
			_, _ = w.Write(encode(t, json{"room": space(id, append(next, id, "!top:"+string(peer.Name))...), "children": []any{}, "inaccessible_children": []any{}}))
		case strings.Contains(r.URL.Path, "/media/download/"):
			w.Header().Set("Content-Type", "multipart/mixed; boundary=x")
			_, _ = io.WriteString(w, "--x\r\nContent-Type: application/json\r\n\r\n{}\r\n--x\r\nContent-Type: image/png\r\n\r\n")
			for chunk := bytes.Repeat([]byte("x"), 1<<16); ; {
				n, err := w.Write(chunk)
				sent.Add(int64(n))
				if err != nil {
					return true
				}
			}
		default:
			return false
		}
		return true
	}
	page := alice.Must("GET", "/v1/rooms"+homeserver.Path("!top:"+string(peer.Name), "hierarchy")+"?limit=1000", nil)
	if asked := len(peer.Asked()); asked > 70 {
		t.Errorf("%d requests for a page of %d rooms", asked, len(homeserver.Events(page, "rooms")))
	}
	for _, path := range []string{"/v1/media/download", "/v1/media/thumbnail"} {
		alice.Refused("GET", path+homeserver.Path(string(peer.Name), "endless")+"?width=10&height=10", nil, 502, "M_TOO_LARGE")
	}
	if n := sent.Load(); n > 2*limit+(16<<20) { // what lies in buffers on the way
		t.Errorf("%d bytes were taken of files that may have %d", n, limit)
	}
	kept := int64(0)
	err := filepath.WalkDir(filepath.Join(hs.DataDir(), "media"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		kept += info.Size()
		return err
	})
	if err != nil && !os.IsNotExist(err) || kept > 0 {
		t.Errorf("%d bytes are kept, %v", kept, err)
	}
}

// Servers that say different things to different people, or another thing each time.
func TestEquivocation(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	other := hs.Network().NewPeer()
	room := other.Join(hs, string(h.room.ID), "other")
	message := func(r *homeserver.JoinedRoom, body string) string {
		return string(r.Event("m.room.message", nil, json{"body": body, "msgtype": "m.text"}, nil))
	}
	body := func(p *homeserver.Peer, pdus ...string) []byte {
		return fmt.Appendf(nil, `{"origin":%q,"origin_server_ts":1,"pdus":[%s],"edus":[]}`, p.Name, strings.Join(pdus, ","))
	}
	const path = "/_matrix/federation/v1/send/same"
	send := func(p *homeserver.Peer, pdu string) string {
		t.Helper()
		status, answer := p.Call(hs, "PUT", path, body(p, pdu))
		if status != 200 {
			t.Fatalf("%d %s", status, answer)
		}
		return string(answer)
	}
	// A transaction is its sender's: another server may give its own the same ID. One with other content is another, and takes nothing from the first.
	first, second, third := message(h.room, "first"), message(room, "second"), message(h.room, "third")
	if answer := send(h.peer, first); answer == send(other, second) || answer == send(h.peer, third) {
		t.Errorf("others were answered with %s, too", answer)
	}
	answer := send(h.peer, third)
	if again := send(h.peer, third); again != answer {
		t.Errorf("the transaction was answered with %s, then with %s", answer, again)
	}
	event := func(pdu string) string {
		return "/v3/rooms" + homeserver.Path(string(h.room.ID), "event", homeserver.EventID(h.room.Version, []byte(pdu)))
	}
	for _, pdu := range []string{first, second, third} {
		h.alice.Must("GET", event(pdu), nil)
	}

	// A state that is another one each time it is asked for.
	var asked atomic.Int64
	h.peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasPrefix(r.URL.Path, "/_matrix/key/") {
			return false
		}
		n := asked.Add(1)
		id := fmt.Sprintf("$%043d", n)
		fmt.Fprintf(w, `{"events":[],"auth_chain":[],"pdu_ids":[%q],"auth_chain_ids":[%q],"pdus":[%s]}`, id, id, message(h.room, fmt.Sprint(n)))
		return true
	}
	for i := range 5 {
		h.transaction("another state each time", []string{string(h.room.Event("m.room.message", nil, json{"body": "x"}, func(m json) { m["prev_events"] = []any{fmt.Sprintf("$%s%06d", strings.Repeat("C", 37), i)} }))}, nil)
	}
	if n := asked.Load(); n > 5*150 {
		t.Errorf("%d requests for five events", n)
	}
	h.peer.Answer = nil
	h.works()
}
