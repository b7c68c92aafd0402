package homeserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"testing"
	"time"

	"hanok/federation/xmatrix"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// Network is the network that a server was started in.
func (s *Server) Network() *Network { return s.network }

// Peer is another homeserver that says what a test tells it to: it signs its
// requests properly and publishes its key, and everything else is up to the test.
type Peer struct {
	Name matrix.ServerName
	Key  signing.Key
	// Answer answers what servers ask; nil, or false, is 404. It may be called from several goroutines.
	Answer func(w http.ResponseWriter, r *http.Request) bool
	// ContentType goes with the bodies of its requests; none if empty.
	ContentType string

	t      testing.TB
	client *http.Client
	mu     sync.Mutex
	asked  []string
}

// NewPeer starts a peer in the network. It is stopped with the test.
func (n *Network) NewPeer() *Peer {
	n.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(n.t, err)
	key, err := signing.Generate()
	must(n.t, err)
	name := matrix.ServerName(fmt.Sprintf("localhost:%d", l.Addr().(*net.TCPAddr).Port))
	certFile, keyFile := n.certificate(fmt.Sprint("peer", l.Addr().(*net.TCPAddr).Port))
	certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
	must(n.t, err)
	ca, err := os.ReadFile(n.caFile)
	must(n.t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	p := &Peer{Name: name, Key: key, t: n.t, client: &http.Client{
		Timeout: time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}}
	s := &http.Server{
		Handler: http.HandlerFunc(p.serve), ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: time.Minute,
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}},
	}
	go func() { _ = s.ServeTLS(l, "", "") }() // ends with Close
	n.t.Cleanup(func() { _ = s.Close() })
	return p
}

func (p *Peer) serve(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.URL.Path)
	p.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if p.Answer != nil && p.Answer(w, r) {
		return
	}
	if r.URL.Path == "/_matrix/key/v2/server" {
		_, _ = w.Write(p.keys())
		return
	}
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"errcode":"M_NOT_FOUND","error":"no"}`)
}

// Asked lists the requests that servers made so far.
func (p *Peer) Asked() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.asked...)
}

func (p *Peer) keys() []byte {
	doc, err := canonicaljson.Marshal(JSON{
		"server_name": p.Name, "valid_until_ts": time.Now().Add(24 * time.Hour).UnixMilli(), "old_verify_keys": JSON{},
		"verify_keys": JSON{string(p.Key.ID): JSON{"key": signing.EncodeBase64(p.Key.Public())}},
	})
	must(p.t, err)
	signed, err := p.Key.Sign(string(p.Name), doc)
	must(p.t, err)
	return signed
}

// Call makes a signed request to a server. body is JSON text, nil for none.
func (p *Peer) Call(s *Server, method, path string, body []byte) (int, []byte) {
	p.t.Helper()
	content := body
	if len(content) == 0 {
		content = nil
	}
	header, err := p.Sign(s, method, path, content)
	if err != nil {
		// What is no JSON cannot be signed: sign something else.
		header, err = p.Sign(s, method, path, []byte("{}"))
	}
	must(p.t, err)
	status, answer, err := p.Request(s, method, path, header, body)
	if err != nil {
		p.t.Errorf("%s %.200s: %v", method, path, err)
	}
	return status, answer
}

// Sign makes the Authorization header of a request.
func (p *Peer) Sign(s *Server, method, path string, content []byte) (string, error) {
	return xmatrix.Request{Method: method, URI: path, Origin: p.Name, Destination: matrix.ServerName(s.Name), Content: content}.Sign(p.Key)
}

// Request makes a request with any Authorization header.
func (p *Peer) Request(s *Server, method, path, authorization string, body []byte) (int, []byte, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, "https://"+s.Name, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.URL.Opaque = path // is put on the request line as it is
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	if p.ContentType != "" {
		req.Header.Set("Content-Type", p.ContentType)
	}
	res, err := p.client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	return res.StatusCode, answer, err
}

// JoinedRoom is a room that a user of the peer is in.
type JoinedRoom struct {
	ID      matrix.RoomID
	Version *roomversion.Version
	User    matrix.UserID
	Join    *event.Event
	// State is the state after the join.
	State map[matrix.StateKey]*event.Event

	peer *Peer
}

// Join joins a public room of a server as @name.
func (p *Peer) Join(s *Server, room string, name string) *JoinedRoom {
	p.t.Helper()
	user := matrix.UserID("@" + name + ":" + string(p.Name))
	query := "?"
	for v := 1; v <= 12; v++ {
		query += fmt.Sprintf("ver=%d&", v)
	}
	status, answer := p.Call(s, "GET", "/_matrix/federation/v1/make_join"+Path(room, string(user))+query, nil)
	var made struct {
		Version roomversion.ID  `json:"room_version"`
		Event   json.RawMessage `json:"event"`
	}
	if err := json.Unmarshal(answer, &made); err != nil || status != http.StatusOK {
		p.t.Fatalf("make_join: %d %s", status, answer)
	}
	v, ok := roomversion.Get(made.Version)
	if !ok {
		p.t.Fatalf("room version %q", made.Version)
	}
	r := &JoinedRoom{ID: matrix.RoomID(room), Version: v, User: user, State: map[matrix.StateKey]*event.Event{}, peer: p}
	r.Join = p.Complete(v, made.Event)
	status, answer = p.Call(s, "PUT", "/_matrix/federation/v2/send_join"+Path(room, string(r.Join.ID())), r.Join.JSON())
	var joined struct {
		State []json.RawMessage `json:"state"`
	}
	if err := json.Unmarshal(answer, &joined); err != nil || status != http.StatusOK {
		p.t.Fatalf("send_join: %d %s", status, answer)
	}
	for _, raw := range joined.State {
		ev, err := event.Parse(v, raw)
		must(p.t, err)
		key, _ := ev.StateKey()
		r.State[matrix.StateKey{Type: ev.Type(), Key: key}] = ev
	}
	r.State[matrix.StateKey{Type: "m.room.member", Key: string(user)}] = r.Join
	return r
}

// Complete hashes and signs an event that a server has made for us.
func (p *Peer) Complete(v *roomversion.Version, raw []byte) *event.Event {
	p.t.Helper()
	c, err := canonicaljson.Canonical(raw, v.JSON)
	must(p.t, err)
	if v.EventIDFormat == roomversion.EventIDInEvent {
		c = canonicaljson.Set(c, "event_id", canonicaljson.AppendString(nil, fmt.Sprintf("$%d:%s", unique.Add(1), p.Name)))
	}
	ev, err := event.Parse(v, p.Seal(v, c))
	must(p.t, err)
	return ev
}

// Seal puts the content hash and our signature on any object that is an event or is to pass for one.
// What is wrong with it stays wrong.
func (p *Peer) Seal(v *roomversion.Version, object []byte) []byte {
	p.t.Helper()
	c, err := canonicaljson.Canonical(object, canonicaljson.Lenient)
	if err != nil || !canonicaljson.IsObject(c) {
		return object
	}
	for _, member := range []string{"hashes", "signatures", "unsigned"} {
		c = canonicaljson.Delete(c, member)
	}
	hash := sha256.Sum256(c)
	c = canonicaljson.Set(c, "hashes", []byte(`{"sha256":"`+base64.RawStdEncoding.EncodeToString(hash[:])+`"}`))
	c = canonicaljson.Set(c, "signatures", []byte(`{}`))
	ev, err := event.Parse(v, c)
	if err != nil {
		// Nobody can tell what the signature of such an event would be: this one looks like one.
		signed, err := p.Key.Sign(string(p.Name), c)
		if err != nil {
			return c
		}
		return signed
	}
	signed, err := ev.Sign(p.Name, p.Key)
	if err != nil {
		return c
	}
	return signed.JSON()
}

// Event builds an event of the peer's user on our join, authorised by the state we know. change may
// set or delete members before it is sealed.
func (r *JoinedRoom) Event(eventType string, stateKey *string, content any, change func(members JSON)) []byte {
	r.peer.t.Helper()
	ref := func(ev *event.Event) any {
		if r.Version.EventIDFormat == roomversion.EventIDInEvent {
			return []any{ev.ID(), JSON{"sha256": ""}}
		}
		return ev.ID()
	}
	auth := []any{}
	for _, key := range []matrix.StateKey{{Type: "m.room.create"}, {Type: "m.room.power_levels"}, {Type: "m.room.join_rules"}, {Type: "m.room.member", Key: string(r.User)}} {
		if key.Type == "m.room.create" && r.Version.RoomIDIsCreateHash || key.Type == "m.room.join_rules" && eventType != "m.room.member" {
			continue
		}
		if ev := r.State[key]; ev != nil {
			auth = append(auth, ref(ev))
		}
	}
	members := JSON{
		"type": eventType, "content": content, "sender": r.User, "room_id": r.ID, "depth": r.Join.Depth() + 1,
		"origin_server_ts": time.Now().UnixMilli(), "prev_events": []any{ref(r.Join)}, "auth_events": auth,
	}
	if stateKey != nil {
		members["state_key"] = *stateKey
	}
	if r.Version.EventIDFormat == roomversion.EventIDInEvent {
		members["event_id"] = fmt.Sprintf("$%d:%s", unique.Add(1), r.peer.Name)
	}
	if change != nil {
		change(members)
	}
	raw, err := json.Marshal(members)
	must(r.peer.t, err)
	return r.peer.Seal(r.Version, raw)
}

// EventID is the ID of an event, or something like one if it is malformed.
func EventID(v *roomversion.Version, raw []byte) string {
	ev, err := event.Parse(v, raw)
	if err != nil {
		return "$malformed"
	}
	return string(ev.ID())
}
