package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"hanok/federation/client"
	"hanok/federation/keyring"
	"hanok/federation/peers"
	"hanok/federation/xmatrix"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// fakeRooms answers what a test sets; everything else would panic and fail the test.
type fakeRooms struct {
	Rooms
	denied   map[matrix.RoomID]bool
	receive  func(origin matrix.ServerName, room matrix.RoomID, pdus [][]byte) []rooms.Received
	backfill func(from []matrix.EventID, limit int) [][]byte
	missing  func(earliest, latest []matrix.EventID, limit int, minDepth int64) [][]byte
	invite   func(version roomversion.ID, pdu []byte, stripped [][]byte) []byte
	joined   map[matrix.UserID]bool
}

func (f *fakeRooms) AllowsServer(_ context.Context, room matrix.RoomID, _ matrix.ServerName) error {
	if f.denied[room] {
		return matrix.Forbidden("denied by the access list")
	}
	return nil
}

func (f *fakeRooms) Snapshot(context.Context, matrix.RoomID) (*rooms.Snapshot, error) {
	v, _ := roomversion.Get("1")
	return &rooms.Snapshot{Version: v}, nil
}

func (f *fakeRooms) Receive(_ context.Context, origin matrix.ServerName, room matrix.RoomID, pdus [][]byte) []rooms.Received {
	return f.receive(origin, room, pdus)
}

func (f *fakeRooms) MayBeJoined(_ context.Context, _ matrix.RoomID, user matrix.UserID) (bool, error) {
	return f.joined[user], nil
}

func (f *fakeRooms) MakeJoin(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, user matrix.UserID, versions []roomversion.ID) (rooms.MadeEvent, error) {
	return rooms.MadeEvent{Version: versions[len(versions)-1], Event: fmt.Appendf(nil, `{"sender":%q}`, user)}, nil
}

func (f *fakeRooms) SendLeave(context.Context, matrix.ServerName, matrix.RoomID, matrix.EventID, []byte) error {
	return nil
}

func (f *fakeRooms) SendJoin(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, _ matrix.EventID, pdu []byte, omit bool) (rooms.SentJoin, error) {
	return rooms.SentJoin{Event: pdu, State: [][]byte{[]byte(`{"s":1}`), []byte(`{"s":2}`)}, MembersOmitted: omit, Servers: []matrix.ServerName{"us.example"}}, nil
}

func (f *fakeRooms) ReceiveInvite(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, _ matrix.EventID, version roomversion.ID, pdu []byte, stripped [][]byte) ([]byte, error) {
	return f.invite(version, pdu, stripped), nil
}

func (f *fakeRooms) ServeBackfill(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, from []matrix.EventID, limit int) ([][]byte, error) {
	return f.backfill(from, limit), nil
}

func (f *fakeRooms) ServeMissingEvents(_ context.Context, _ matrix.ServerName, _ matrix.RoomID, earliest, latest []matrix.EventID, limit int, minDepth int64) ([][]byte, error) {
	return f.missing(earliest, latest, limit, minDepth), nil
}

// keys hands out the keys of the test's peers.
type keys map[matrix.ServerName][]byte

func (k keys) ServerKeys(_ context.Context, server matrix.ServerName, _ bool) ([]byte, error) {
	if doc, ok := k[server]; ok {
		return doc, nil
	}
	return nil, errors.New("down")
}

func (k keys) QueryNotary(context.Context, matrix.ServerName, client.KeyCriteria) ([][]byte, error) {
	return nil, errors.New("down")
}

type fixture struct {
	t     *testing.T
	rooms *fakeRooms
	db    *storage.DB
	peers *peers.Peers
	keys  map[matrix.ServerName]signing.Key
	opts  Options

	server *Server
	http   *httptest.Server
}

func setUp(t *testing.T, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{t: t, rooms: &fakeRooms{}, db: storagetest.Open(t), keys: map[matrix.ServerName]signing.Key{}}
	published := keys{}
	for _, server := range []matrix.ServerName{"us.example", "a.example", "b.example", "denied.example"} {
		key, err := signing.Generate()
		if err != nil {
			t.Fatal(err)
		}
		f.keys[server] = key
		ring := keyring.New(keyring.Options{ServerName: server, Key: key, DB: f.db})
		if published[server], err = ring.Own(); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	f.peers, err = peers.New(t.Context(), peers.Options{DB: f.db, Deny: []string{"denied.*"}, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	f.opts = Options{
		ServerName: "us.example", Version: "1", DB: f.db, Peers: f.peers, Rooms: f.rooms, Log: zerolog.Nop(),
		Keys: keyring.New(keyring.Options{ServerName: "us.example", Key: f.keys["us.example"], DB: f.db, Fetch: published, Log: zerolog.Nop()}),
	}
	if change != nil {
		change(&f.opts)
	}
	f.start()
	return f
}

func (f *fixture) start() {
	f.server = New(f.opts)
	f.http = httptest.NewServer(f.server)
	f.t.Cleanup(f.http.Close)
}

func (f *fixture) sign(origin matrix.ServerName, method, uri, body string) string {
	f.t.Helper()
	req := xmatrix.Request{Method: method, URI: uri, Origin: origin, Destination: "us.example"}
	if body != "" {
		req.Content = []byte(body)
	}
	auth, err := req.Sign(f.keys[origin])
	if err != nil {
		f.t.Fatal(err)
	}
	return auth
}

// call makes a request signed by a.example and returns the status and the body.
func (f *fixture) call(method, uri, body string) (int, string) {
	f.t.Helper()
	return f.raw(method, uri, body, f.sign("a.example", method, uri, body))
}

func (f *fixture) raw(method, uri, body string, auth ...string) (int, string) {
	f.t.Helper()
	req, err := http.NewRequest(method, f.http.URL+uri, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	req.Header["Authorization"] = auth
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/json" {
		f.t.Errorf("%s %s: content type %q", method, uri, ct)
	}
	return res.StatusCode, string(b)
}

func (f *fixture) expect(status int, part string) func(int, string) {
	return func(gotStatus int, body string) {
		f.t.Helper()
		if gotStatus != status || !strings.Contains(body, part) {
			f.t.Errorf("%d %s, want %d %s", gotStatus, body, status, part)
		}
	}
}

func TestAuthentication(t *testing.T) {
	f := setUp(t, nil)
	const uri = "/_matrix/federation/v1/make_join/!r:us.example/@x:a.example?ver=1&ver=%31%30"
	good := f.sign("a.example", "GET", uri, "")
	f.expect(200, `"room_version":"10"`)(f.raw("GET", uri, "", good))
	unauthorized := f.expect(401, "M_UNAUTHORIZED")
	unauthorized(f.raw("GET", uri, ""))
	unauthorized(f.raw("GET", uri, "", "Bearer x"))
	unauthorized(f.raw("GET", uri, "", "X-Matrix x"))
	unauthorized(f.raw("GET", uri+"&x", "", good))
	unauthorized(f.raw("GET", uri, "", strings.Replace(good, `sig="`, `sig="A`, 1)))
	unauthorized(f.raw("GET", uri, "", strings.Replace(good, `destination="us`, `destination="them`, 1)))
	unauthorized(f.raw("GET", uri, "", strings.Replace(good, `origin="a`, `origin="b`, 1)))
	unauthorized(f.raw("GET", uri, "", strings.Replace(good, `origin="a`, `origin="unknown`, 1)))
	unauthorized(f.raw("GET", uri, "", good, f.sign("b.example", "GET", uri, "")))
	// One signature that cannot be checked beside one that can.
	f.expect(200, "")(f.raw("GET", uri, "", strings.Replace(good, `key="ed25519:`, `key="ed25519:un`, 1), good))
	f.expect(403, "M_FORBIDDEN")(f.raw("GET", uri, "", f.sign("denied.example", "GET", uri, "")))
	// The body is signed as JSON, not as bytes.
	const query = "/_matrix/federation/v1/get_missing_events/!r:us.example"
	f.rooms.missing = func([]matrix.EventID, []matrix.EventID, int, int64) [][]byte { return nil }
	auth := f.sign("a.example", "POST", query, `{"latest_events":[],"earliest_events":[]}`)
	f.expect(200, `{"events":[]}`)(f.raw("POST", query, `{ "earliest_events": [], "latest_events": [] }`, auth))
	unauthorized(f.raw("POST", query, `{"latest_events":["$x"],"earliest_events":[]}`, auth))
	f.expect(400, "M_NOT_JSON")(f.raw("POST", query, `{`, auth))
	f.expect(400, "M_NOT_JSON")(f.raw("POST", query, `{"a":1,"a":2}`, auth))
}

func TestASignedRequestEndsBackOff(t *testing.T) {
	f := setUp(t, nil)
	f.peers.Failed("a.example", 0, "")
	f.call("GET", "/_matrix/federation/v1/make_join/!r:us.example/@x:a.example", "")
	if _, failing := f.peers.FailingSince("a.example"); failing {
		t.Error("it goes on")
	}
	f.peers.Failed("b.example", 0, "")
	f.raw("GET", "/_matrix/federation/v1/event/$x", "", strings.Replace(f.sign("a.example", "GET", "/_matrix/federation/v1/event/$x", ""), `origin="a`, `origin="b`, 1))
	if _, failing := f.peers.FailingSince("b.example"); !failing {
		t.Error("a forged request ends it")
	}
}

func TestUnknownEndpoints(t *testing.T) {
	f := setUp(t, nil)
	f.expect(404, "M_UNRECOGNIZED")(f.call("GET", "/_matrix/federation/v1/nothing", ""))
	f.expect(405, "M_UNRECOGNIZED")(f.call("POST", "/_matrix/federation/v1/version", "{}"))
	f.expect(401, "M_MISSING_TOKEN")(f.raw("GET", "/_matrix/federation/v1/openid/userinfo", ""))
}

func TestPublicEndpoints(t *testing.T) {
	f := setUp(t, nil)
	f.expect(200, `{"server":{"name":"Hanok","version":"1"}}`)(f.raw("GET", "/_matrix/federation/v1/version", ""))
	f.expect(200, `"server_name":"us.example"`)(f.raw("GET", "/_matrix/key/v2/server", ""))
	f.expect(200, `{"server_keys":[{`)(f.raw("GET", "/_matrix/key/v2/query/a.example", ""))
	f.expect(200, `{"server_keys":[{`)(f.raw("GET", "/_matrix/key/v2/query/a.example/ed25519:1", ""))
	f.expect(200, `{"server_keys":[]}`)(f.raw("GET", "/_matrix/key/v2/query/gone.example", ""))
	f.expect(400, "M_INVALID_PARAM")(f.raw("GET", "/_matrix/key/v2/query/a%20b", ""))
	f.expect(200, `"server_name":"b.example"`)(f.raw("POST", "/_matrix/key/v2/query", `{"server_keys":{"b.example":{}}}`))
	f.expect(200, `{"server_keys":[]}`)(f.raw("POST", "/_matrix/key/v2/query", `{"server_keys":{}}`))
	f.expect(400, "M_MISSING_PARAM")(f.raw("POST", "/_matrix/key/v2/query", `{}`))
	f.expect(400, "M_BAD_JSON")(f.raw("POST", "/_matrix/key/v2/query", `{"server_keys":{"b.example":[]}}`))
}

func TestAccessLists(t *testing.T) {
	f := setUp(t, nil)
	f.rooms.denied = map[matrix.RoomID]bool{"!d:us.example": true}
	for _, c := range []string{
		"GET make_join/!d:us.example/@x:a.example", "GET make_leave/!d:us.example/@x:a.example", "GET make_knock/!d:us.example/@x:a.example",
		"PUT ../v2/send_join/!d:us.example/$e", "PUT ../v2/send_leave/!d:us.example/$e", "PUT send_knock/!d:us.example/$e",
		"PUT invite/!d:us.example/$e", "PUT ../v2/invite/!d:us.example/$e", "GET state/!d:us.example", "GET state_ids/!d:us.example",
		"GET backfill/!d:us.example", "GET event_auth/!d:us.example/$e", "POST get_missing_events/!d:us.example",
	} {
		method, path, _ := strings.Cut(c, " ")
		uri, body := "/_matrix/federation/v1/"+path, ""
		uri = strings.Replace(uri, "v1/../", "", 1)
		if method != "GET" {
			body = "{}"
		}
		status, answer := f.call(method, uri, body)
		if status != 403 || !strings.Contains(answer, "M_FORBIDDEN") {
			t.Errorf("%s: %d %s", c, status, answer)
		}
	}
}

func TestParameters(t *testing.T) {
	f := setUp(t, nil)
	const v1 = "/_matrix/federation/v1/"
	f.expect(403, "M_FORBIDDEN")(f.call("GET", v1+"make_join/!r:us.example/@x:b.example", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"make_join/r/@x:a.example", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"make_join/!r:us.example/x", ""))
	f.expect(200, `"room_version":"1"`)(f.call("GET", v1+"make_join/%21r%3Aus.example/%40x%3Aa.example", ""))
	f.expect(400, "M_MISSING_PARAM")(f.call("GET", v1+"state/!r:us.example", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"state/!r:us.example?event_id=x", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"event/x", ""))
	f.expect(400, "M_MISSING_PARAM")(f.call("GET", v1+"backfill/!r:us.example?v=$a", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"backfill/!r:us.example?v=$a&limit=x", ""))
	f.expect(400, "M_MISSING_PARAM")(f.call("GET", v1+"backfill/!r:us.example?limit=1", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"user/devices/@x:a.example", ""))
	f.expect(400, "M_MISSING_PARAM")(f.call("GET", v1+"query/profile", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"query/profile?user_id=@x:a.example", ""))
	f.expect(400, "M_MISSING_PARAM")(f.call("GET", v1+"query/directory", ""))
	f.expect(400, "M_INVALID_PARAM")(f.call("GET", v1+"query/directory?room_alias=%23x:a.example", ""))
	f.expect(400, "M_MISSING_PARAM")(f.call("POST", v1+"user/keys/query", "{}"))
	f.expect(400, "M_MISSING_PARAM")(f.call("POST", v1+"user/keys/claim", "{}"))
	f.expect(404, "M_UNRECOGNIZED")(f.call("GET", v1+"media/download/x", ""))
	f.rooms.backfill = func(from []matrix.EventID, limit int) [][]byte {
		return [][]byte{fmt.Appendf(nil, `{"from":%d,"limit":%d}`, len(from), limit)}
	}
	f.expect(200, `"pdus":[{"from":2,"limit":100}]`)(f.call("GET", v1+"backfill/!r:us.example?v=$a&v=$b&limit=5000", ""))
	f.rooms.missing = func(earliest, latest []matrix.EventID, limit int, minDepth int64) [][]byte {
		return [][]byte{fmt.Appendf(nil, `[%d,%d,%d,%d]`, len(earliest), len(latest), limit, minDepth)}
	}
	f.expect(200, `{"events":[[1,2,50,7]]}`)(f.call("POST", v1+"get_missing_events/!r:us.example", `{"limit":999,"min_depth":7,"earliest_events":["$a"],"latest_events":["$b","$c"]}`))
	f.expect(200, `{"events":[[0,0,10,0]]}`)(f.call("POST", v1+"get_missing_events/!r:us.example", `{"earliest_events":[],"latest_events":[]}`))
	f.expect(400, "M_BAD_JSON")(f.call("POST", v1+"get_missing_events/!r:us.example", `{"earliest_events":7}`))
	many := strings.TrimSuffix(strings.Repeat(`"$x",`, maxMissingEdges+1), ",")
	f.expect(400, "M_INVALID_PARAM")(f.call("POST", v1+"get_missing_events/!r:us.example", `{"earliest_events":[`+many+`],"latest_events":[]}`))
}

func TestMemberships(t *testing.T) {
	f := setUp(t, nil)
	f.expect(200, `{"auth_chain":[],"event":{"x":1},"members_omitted":false,"origin":"us.example","state":[{"s":1},{"s":2}]}`)(
		f.call("PUT", "/_matrix/federation/v2/send_join/!r:us.example/$e", `{"x":1}`))
	f.expect(200, `"members_omitted":true,"origin":"us.example","servers_in_room":["us.example"]`)(
		f.call("PUT", "/_matrix/federation/v2/send_join/!r:us.example/$e?omit_members=true", `{"x":1}`))
	f.expect(200, `[200,{"auth_chain":[],"event":{"x":1},"members_omitted":false,"origin":"us.example","state":[{"s":1},{"s":2}]}]`)(
		f.call("PUT", "/_matrix/federation/v1/send_join/!r:us.example/$e", `{"x":1}`))
	f.expect(200, `[200,{}]`)(f.call("PUT", "/_matrix/federation/v1/send_leave/!r:us.example/$e", `{"x":1}`))
	f.rooms.invite = func(version roomversion.ID, pdu []byte, stripped [][]byte) []byte {
		return fmt.Appendf(nil, `[%q,%s,%d]`, version, pdu, len(stripped))
	}
	f.expect(200, `{"event":["11",{"y":1},2]}`)(
		f.call("PUT", "/_matrix/federation/v2/invite/!r:a.example/$e", `{"room_version":"11","event":{"y":1},"invite_room_state":[{},{}]}`))
	f.expect(400, "M_MISSING_PARAM")(f.call("PUT", "/_matrix/federation/v2/invite/!r:a.example/$e", `{"event":{}}`))
	f.expect(200, `[200,{"event":["",{"unsigned":{"invite_room_state":[{}]}},1]}]`)(
		f.call("PUT", "/_matrix/federation/v1/invite/!r:a.example/$e", `{"unsigned":{"invite_room_state":[{}]}}`))
	f.expect(413, "M_TOO_LARGE")(f.call("PUT", "/_matrix/federation/v2/send_join/!r:us.example/$e", `{"x":"`+strings.Repeat("x", eventBody)+`"}`))
}

// received makes an event ID of a PDU's only other member.
func received(pdus [][]byte, err error) []rooms.Received {
	out := make([]rooms.Received, len(pdus))
	for i, p := range pdus {
		id, _ := canonicaljson.GetString(p, "id")
		out[i] = rooms.Received{ID: matrix.EventID(id), Err: err}
	}
	return out
}

func TestTransactions(t *testing.T) {
	f := setUp(t, nil)
	var calls atomic.Int64
	f.rooms.denied = map[matrix.RoomID]bool{"!d:us.example": true}
	f.rooms.receive = func(origin matrix.ServerName, room matrix.RoomID, pdus [][]byte) []rooms.Received {
		calls.Add(1)
		if origin != "a.example" {
			t.Errorf("origin %s", origin)
		}
		switch room {
		case "!refused:us.example":
			return received(pdus, matrix.Forbidden("no"))
		case "!rejected:us.example":
			return received(pdus, matrix.Forbidden("no power").Because(&eventauth.Rejection{Reason: "no power"}))
		case "!unjudged:us.example":
			return received(pdus, matrix.Forbidden("no state").Because(errors.Join(rooms.ErrUnjudged, &client.Error{Destination: "a.example", Status: 404, Cause: errors.New("unknown")})))
		case "!broken:us.example":
			return received(pdus, errors.New("secret detail"))
		}
		return received(pdus, nil)
	}
	const denied = `{"room_id":"!d:us.example","event_id":"$d:a.example","type":"m.x","sender":"@x:a.example","origin_server_ts":1,"depth":1,"content":{},"prev_events":[],"auth_events":[],"hashes":{"sha256":""},"origin":"a.example","signatures":{}}`
	const body = `{"origin":"a.example","origin_server_ts":1,"pdus":[
		{"id":"$1","room_id":"!r:us.example"},{"id":"$2","room_id":"!r:us.example"},{"id":"$3","room_id":"!refused:us.example"},
		{"id":"$4","room_id":"!broken:us.example"},{"id":"$5"},7,{"id":"$7","room_id":"!rejected:us.example"},{"id":"$8","room_id":"!unjudged:us.example"},{"id":"$6","room_id":8},` + denied + `]}`
	const want = `{"pdus":{"$1":{},"$2":{},"$3":{"error":"no"},"$4":{},"$7":{},"$8":{},"$d:a.example":{"error":"denied by the access list"}}}`
	f.expect(200, want)(f.call("PUT", "/_matrix/federation/v1/send/1", body))
	if calls.Load() != 5 {
		t.Errorf("%d calls", calls.Load())
	}
	// Again, also after a restart: the same answer, no work.
	f.expect(200, want)(f.call("PUT", "/_matrix/federation/v1/send/1", body))
	f.start()
	f.expect(200, want)(f.call("PUT", "/_matrix/federation/v1/send/1", strings.Replace(body, `"origin_server_ts":1`, `"origin_server_ts":2`, 1)))
	if calls.Load() != 5 {
		t.Errorf("a repeated transaction was processed again: %d calls", calls.Load())
	}
	f.expect(200, `{"pdus":{}}`)(f.call("PUT", "/_matrix/federation/v1/send/2", `{}`))
	tooMany := func(member string, n int) string {
		return `{"` + member + `":[` + strings.TrimSuffix(strings.Repeat(`{},`, n), ",") + `]}`
	}
	f.expect(400, "M_INVALID_PARAM")(f.call("PUT", "/_matrix/federation/v1/send/3", tooMany("pdus", 51)))
	f.expect(400, "M_INVALID_PARAM")(f.call("PUT", "/_matrix/federation/v1/send/3", tooMany("edus", 101)))
	f.expect(200, "")(f.call("PUT", "/_matrix/federation/v1/send/4", tooMany("edus", 100)))
	f.expect(400, "M_BAD_JSON")(f.call("PUT", "/_matrix/federation/v1/send/5", `{"pdus":{}}`))
	f.expect(400, "M_INVALID_PARAM")(f.call("PUT", "/_matrix/federation/v1/send/"+strings.Repeat("x", 256), `{}`))
}

func TestASlowRoomDoesNotBlockAnother(t *testing.T) {
	f := setUp(t, nil)
	quick := make(chan struct{})
	f.rooms.receive = func(_ matrix.ServerName, room matrix.RoomID, pdus [][]byte) []rooms.Received {
		if room == "!slow:us.example" {
			<-quick // ends only if the other room is worked on meanwhile
		} else {
			close(quick)
		}
		return received(pdus, nil)
	}
	f.expect(200, `{"pdus":{"$1":{},"$2":{}}}`)(f.call("PUT", "/_matrix/federation/v1/send/1",
		`{"pdus":[{"id":"$1","room_id":"!slow:us.example"},{"id":"$2","room_id":"!quick:us.example"}]}`))
}

// Dendrite sends a transaction to which it got no answer again with what has come up since, under the same ID.
func TestATransactionWithMoreInItThanBefore(t *testing.T) {
	f := setUp(t, nil)
	var came []string
	f.rooms.receive = func(_ matrix.ServerName, _ matrix.RoomID, pdus [][]byte) []rooms.Received {
		out := received(pdus, nil)
		for _, r := range out {
			came = append(came, string(r.ID))
		}
		return out
	}
	presence := func(user, state string) string {
		return fmt.Sprintf(`{"edu_type":"m.presence","content":{"push":[{"user_id":"@%s:a.example","presence":"%s"}]}}`, user, state)
	}
	const first = `{"id":"$1","room_id":"!r:us.example"}`
	const both = `{"pdus":{"$1":{},"$2":{}}}`
	send := func(pdus, edus, want string) {
		t.Helper()
		f.expect(200, want)(f.call("PUT", "/_matrix/federation/v1/send/1", `{"pdus":[`+pdus+`],"edus":[`+edus+`]}`))
	}
	send(first, presence("x", "online"), `{"pdus":{"$1":{}}}`)
	send(first+`,{"id":"$2","room_id":"!r:us.example"}`, presence("x", "online")+","+presence("y", "online"), both)
	send(first+`,{"id":"$2","room_id":"!r:us.example"}`, presence("x", "online")+","+presence("y", "online"), both)
	if want := []string{"$1", "$1", "$2"}; !slices.Equal(came, want) {
		t.Errorf("%v came, want %v", came, want)
	}
	// Only an EDU is new.
	send(first+`,{"id":"$2","room_id":"!r:us.example"}`, presence("x", "online")+","+presence("y", "unavailable"), both)
	if len(came) != 5 {
		t.Errorf("%v came", came)
	}
}

func TestATransactionRepeatedWhileItIsUnderWay(t *testing.T) {
	f := setUp(t, nil)
	var calls atomic.Int64
	release := make(chan struct{})
	f.rooms.receive = func(_ matrix.ServerName, _ matrix.RoomID, pdus [][]byte) []rooms.Received {
		calls.Add(1)
		<-release
		return received(pdus, nil)
	}
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			f.expect(200, `{"pdus":{"$1":{}}}`)(f.call("PUT", "/_matrix/federation/v1/send/1", `{"pdus":[{"id":"$1","room_id":"!r:us.example"}]}`))
		})
	}
	time.AfterFunc(50*time.Millisecond, func() { close(release) })
	wg.Wait()
	if calls.Load() != 1 {
		t.Errorf("processed %d times", calls.Load())
	}
}

func TestASenderThatDoesNotWait(t *testing.T) {
	f := setUp(t, nil)
	release, begun := make(chan struct{}), make(chan struct{}, maxTransactions)
	f.rooms.receive = func(_ matrix.ServerName, _ matrix.RoomID, pdus [][]byte) []rooms.Received {
		begun <- struct{}{}
		<-release
		return received(pdus, nil)
	}
	const body = `{"pdus":[{"id":"$1","room_id":"!r:us.example"}]}`
	var wg sync.WaitGroup
	for i := range maxTransactions {
		wg.Go(func() { f.expect(200, "$1")(f.call("PUT", fmt.Sprint("/_matrix/federation/v1/send/", i), body)) })
	}
	for range maxTransactions {
		<-begun
	}
	f.expect(429, "M_LIMIT_EXCEEDED")(f.call("PUT", "/_matrix/federation/v1/send/more", body))
	// Others are not held up by it.
	auth := f.sign("b.example", "PUT", "/_matrix/federation/v1/send/1", `{}`)
	f.expect(200, "{}")(f.raw("PUT", "/_matrix/federation/v1/send/1", `{}`, auth))
	close(release)
	wg.Wait()
	f.expect(200, "$1")(f.call("PUT", "/_matrix/federation/v1/send/more", body))
}

// A room that takes long must not hold up the sender, nor lose what was acknowledged.
func TestASlowRoomIsFinishedLater(t *testing.T) {
	f := setUp(t, func(o *Options) { o.Patience = time.Millisecond })
	release := make(chan struct{})
	var done atomic.Int64
	f.rooms.receive = func(_ matrix.ServerName, _ matrix.RoomID, pdus [][]byte) []rooms.Received {
		<-release
		done.Add(int64(len(pdus)))
		return received(pdus, nil)
	}
	const pdu = `{"room_id":"!d:us.example","event_id":"$d:a.example","type":"m.x","sender":"@x:a.example","origin_server_ts":1,"depth":1,"content":{},"prev_events":[],"auth_events":[],"hashes":{"sha256":""},"origin":"a.example","signatures":{}}`
	f.expect(200, `{"pdus":{"$d:a.example":{}}}`)(f.call("PUT", "/_matrix/federation/v1/send/1", `{"pdus":[`+pdu+`]}`))
	staged := func() int {
		t.Helper()
		rows, err := storage.FindInboundPDUs(t.Context(), f.db, "!d:us.example", 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		return len(rows)
	}
	if staged() != 1 {
		t.Fatal("not stored")
	}
	// A second server on the same database, as after a crash, finishes the work.
	quick := *f.rooms
	again := make(chan [][]byte, 1)
	quick.receive = func(origin matrix.ServerName, room matrix.RoomID, pdus [][]byte) []rooms.Received {
		if origin != "a.example" || room != "!d:us.example" {
			t.Errorf("%s %s", origin, room)
		}
		again <- pdus
		return received(pdus, nil)
	}
	opts := f.opts
	opts.Rooms = &quick
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- New(opts).Run(ctx) }()
	if pdus := <-again; len(pdus) != 1 || string(pdus[0]) != pdu {
		t.Errorf("%s", pdus)
	}
	for range 1000 {
		if staged() == 0 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if staged() != 0 {
		t.Error("still stored after it was finished")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	close(release)
}

// What comes before an event cannot be fetched at the moment: the event is kept, and tried again.
func TestAnEventIsTriedAgain(t *testing.T) {
	f := setUp(t, func(o *Options) { o.Retry = time.Millisecond })
	attempts := make(chan int, 10)
	n := 0
	f.rooms.receive = func(_ matrix.ServerName, _ matrix.RoomID, pdus [][]byte) []rooms.Received {
		n++
		attempts <- n
		switch n {
		case 1:
			return received(pdus, matrix.Forbidden("no state").Because(&client.Error{Destination: "a.example", Retry: true, Cause: errors.New("unreachable")}))
		case 2:
			return received(pdus, matrix.Forbidden("no state").Because(&client.Error{Destination: "a.example", Status: 403, Peer: matrix.Errorf(403, rooms.CodePartialState, "not yet")}))
		case 3:
			return received(pdus, nil)
		}
		return received(pdus, matrix.Forbidden("no state").Because(&client.Error{Destination: "a.example", Status: 404, Cause: errors.New("unknown")}))
	}
	const pdu = `{"id":"$d","room_id":"!d:us.example"}`
	f.expect(200, `{}`)(f.call("PUT", "/_matrix/federation/v1/send/1", `{"pdus":[`+pdu+`]}`))
	for i := range 3 {
		if got := <-attempts; got != i+1 {
			t.Fatal(got)
		}
	}
	for range 1000 {
		rows, err := storage.FindInboundRooms(t.Context(), f.db)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) == 0 {
			// A refusal is final.
			f.expect(200, `no state`)(f.call("PUT", "/_matrix/federation/v1/send/2", `{"pdus":[`+pdu+`]}`))
			if rows, err := storage.FindInboundRooms(t.Context(), f.db); err != nil || len(rows) > 0 {
				t.Errorf("%s, %v", rows, err)
			}
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("still stored after it was processed")
}

func TestAPanicIsContained(t *testing.T) {
	f := setUp(t, nil)
	f.rooms.receive = func(matrix.ServerName, matrix.RoomID, [][]byte) []rooms.Received { panic("bug") }
	f.expect(200, `{"pdus":{}}`)(f.call("PUT", "/_matrix/federation/v1/send/1", `{"pdus":[{"room_id":"!r:us.example"}],"edus":[{"edu_type":"m.presence","content":{}}]}`))
}

// typing records notices.
type typing struct{ log []string }

func (y *typing) Start(room matrix.RoomID, user matrix.UserID, _ time.Duration) bool {
	y.log = append(y.log, fmt.Sprint("start ", room, user))
	return true
}

func (y *typing) Stop(room matrix.RoomID, user matrix.UserID) bool {
	y.log = append(y.log, fmt.Sprint("stop ", room, user))
	return true
}

func TestTypingNotices(t *testing.T) {
	y := &typing{}
	f := setUp(t, func(o *Options) { o.Typing = y })
	f.rooms.denied = map[matrix.RoomID]bool{"!d:us.example": true}
	f.rooms.joined = map[matrix.UserID]bool{"@x:a.example": true, "@x:b.example": true}
	notice := func(room, user string, on bool) string {
		return fmt.Sprintf(`{"edu_type":"m.typing","content":{"room_id":%q,"user_id":%q,"typing":%v}}`, room, user, on)
	}
	f.expect(200, `{"pdus":{}}`)(f.call("PUT", "/_matrix/federation/v1/send/1", `{"edus":[`+strings.Join([]string{
		notice("!r:us.example", "@x:a.example", true),
		notice("!r:us.example", "@x:b.example", true), // not the sender's
		notice("!r:us.example", "@y:a.example", true), // not in the room
		notice("!d:us.example", "@x:a.example", true), // access list
		`{"edu_type":"m.typing","content":7}`,
		`{"edu_type":"m.unknown","content":{}}`,
		`{"edu_type":"m.typing"}`,
		notice("!r:us.example", "@x:a.example", false),
	}, ",")+`]}`))
	want := []string{"start !r:us.example@x:a.example", "stop !r:us.example@x:a.example"}
	if d := cmp.Diff(want, y.log); d != "" {
		t.Error(d)
	}
}
