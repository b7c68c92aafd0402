package sytest

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/sytest/homeserver"
)

// bridge is an application service: it notes what it is sent, and answers as the test says.
type bridge struct {
	t    testing.TB
	http *httptest.Server
	// taken are the transactions that were answered for, asked the paths of what the server wanted to know.
	taken chan transaction
	asked chan string

	mu     sync.Mutex
	answer func(transaction) int           // the status; nil: 200. It may block
	exists map[string]func()               // what is asked for and exists, with what makes it
	other  func(path string) (int, string) // answers to any other request
	events []homeserver.JSON               // all events that were taken, without repetitions
	byID   map[string][]byte               // bodies by transaction ID
}

type transaction struct {
	ID        string
	Body      []byte
	Events    []homeserver.JSON
	Ephemeral []homeserver.JSON
}

const (
	bridgeToken = "as-secret"
	serverToken = "hs-secret"
)

// newBridge starts a bridge and writes its registration file into a folder that servers are given with APPSERVICE_DIR.
func newBridge(t testing.TB, extra string) (b *bridge, dir string) {
	t.Helper()
	b = &bridge{t: t, taken: make(chan transaction, 10_000), asked: make(chan string, 1000), exists: map[string]func(){}, byID: map[string][]byte{}}
	b.http = httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(b.http.Close)
	dir = t.TempDir()
	b.register(dir, extra)
	return b, dir
}

func (b *bridge) register(dir, extra string) {
	b.t.Helper()
	text := fmt.Sprintf(`
id: bridge
url: %s
as_token: %s
hs_token: %s
sender_localpart: _bridge_bot
namespaces:
  users: [{exclusive: true, regex: "@_bridge_.*"}]
  aliases: [{exclusive: true, regex: "#_bridge_.*"}]
%s`, b.http.URL, bridgeToken, serverToken, extra)
	if err := os.WriteFile(filepath.Join(dir, "bridge.yaml"), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bridge) serve(w http.ResponseWriter, r *http.Request) {
	reply := func(status int, body string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
	if r.Header.Get("Authorization") != "Bearer "+serverToken {
		reply(403, `{"errcode":"M_FORBIDDEN"}`)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	path := strings.TrimPrefix(r.URL.Path, "/_matrix/app/v1")
	if id, ok := strings.CutPrefix(path, "/transactions/"); ok && r.Method == "PUT" {
		b.transaction(id, body, reply)
		return
	}
	b.asked <- path
	b.mu.Lock()
	exists, other := b.exists[path], b.other
	b.mu.Unlock()
	switch {
	case exists != nil:
		exists()
		reply(200, "{}")
	case other != nil:
		reply(other(path + "?" + r.URL.RawQuery))
	default:
		reply(404, `{"errcode":"NOT_FOUND"}`)
	}
}

func (b *bridge) transaction(id string, body []byte, reply func(int, string)) {
	t := transaction{ID: id, Body: body}
	if err := stdjson.Unmarshal(body, &t); err != nil {
		b.t.Errorf("a transaction that is no JSON: %v", err)
	}
	b.mu.Lock()
	answer := b.answer
	before, again := b.byID[id]
	if again && !bytes.Equal(before, body) {
		b.t.Errorf("transaction %s changed:\n%s\n%s", id, before, body)
	}
	b.byID[id] = body
	b.mu.Unlock()
	status := 200
	if answer != nil {
		status = answer(t)
	}
	if status == 200 {
		b.mu.Lock()
		b.events = append(b.events, t.Events...)
		b.mu.Unlock()
		b.taken <- t
	}
	reply(status, "{}")
}

func (b *bridge) answering(fn func(transaction) int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer = fn
}

// making lets something exist that the server asks for; it is made first.
func (b *bridge) making(path string, fn func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.exists[path] = fn
}

// until takes transactions until one has what is looked for.
func (b *bridge) until(what string, check func(transaction) bool) transaction {
	b.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		select {
		case t := <-b.taken:
			if check(t) {
				return t
			}
		case <-timeout:
			b.t.Fatalf("the bridge is not sent %s", what)
		}
	}
}

// event takes transactions until one has an event, and returns it.
func (b *bridge) event(id string) (found homeserver.JSON) {
	b.t.Helper()
	b.until("event "+id, func(t transaction) bool {
		for _, ev := range t.Events {
			if ev["event_id"] == id {
				found = ev
			}
		}
		return found != nil
	})
	return found
}

// member takes transactions until one has a membership.
func (b *bridge) member(room, user, membership string) {
	b.t.Helper()
	b.until(membership+" of "+user, func(t transaction) bool {
		return slices.ContainsFunc(t.Events, func(ev homeserver.JSON) bool {
			return ev["type"] == "m.room.member" && ev["room_id"] == room && ev["state_key"] == user && homeserver.Dig(ev, "content", "membership") == membership
		})
	})
}

// client is the bridge's way into a server.
func (b *bridge) client(hs *homeserver.Server) *homeserver.Client {
	c := hs.Anonymous(b.t)
	c.AccessToken = bridgeToken
	return c
}

// as is a path with the user as whom it is requested.
func as(path, user string) string {
	sep := "?"
	if strings.Contains(path, "?") {
		sep = "&"
	}
	return path + sep + "user_id=" + url.QueryEscape(user)
}

func (b *bridge) registerGhost(hs *homeserver.Server, localpart string) string {
	b.t.Helper()
	id, _ := b.client(hs).Must("POST", "/v3/register", json{"type": "m.login.application_service", "username": localpart, "inhibit_login": true})["user_id"].(string)
	return id
}

func start(t testing.TB, n *homeserver.Network, dir, config string) *homeserver.Server {
	return n.Start(homeserver.Options{Env: []string{"APPSERVICE_DIR=" + dir}, ExtraConfig: config})
}

func TestAppserviceActsAsItsUsers(t *testing.T) {
	b, dir := newBridge(t, "")
	hs := start(t, homeserver.NewNetwork(t), dir, "")
	c := b.client(hs)
	bot := "@_bridge_bot:" + hs.Name
	if got := c.Must("GET", "/v3/account/whoami", nil); got["user_id"] != bot || got["device_id"] != nil {
		t.Errorf("without user_id it acts as %v", got)
	}

	// Accounts: inside the namespaces, and nobody else's.
	ghost := "@_bridge_ghost:" + hs.Name
	c.Refused("GET", as("/v3/account/whoami", ghost), nil, 403, "M_FORBIDDEN")
	if got := b.registerGhost(hs, "_bridge_ghost"); got != ghost {
		t.Fatalf("registered %q", got)
	}
	made := c.Must("POST", "/v3/register", json{"type": "m.login.application_service", "username": "_bridge_Other", "device_id": "D"})
	if made["user_id"] != "@_bridge_Other:"+hs.Name || made["access_token"] == nil || made["device_id"] != "D" {
		t.Errorf("registered with a session: %v", made)
	}
	for _, tt := range []struct {
		token  string
		body   json
		status int
		code   string
	}{
		{bridgeToken, json{"username": "alice"}, 400, "M_EXCLUSIVE"},
		{bridgeToken, json{"username": "_bridge_ghost"}, 400, "M_USER_IN_USE"},
		{bridgeToken, json{"username": "_bridge_\x01"}, 400, "M_INVALID_USERNAME"},
		{bridgeToken, json{}, 400, "M_MISSING_PARAM"},
		{"", json{"username": "_bridge_x"}, 401, "M_MISSING_TOKEN"},
		{"nobody's", json{"username": "_bridge_x"}, 401, "M_UNKNOWN_TOKEN"},
	} {
		other := hs.Anonymous(t)
		other.AccessToken = tt.token
		tt.body["type"] = "m.login.application_service"
		other.Refused("POST", "/v3/register", tt.body, tt.status, tt.code)
	}
	alice := hs.Register(t, "alice")
	alice.Refused("POST", "/v3/register", json{"type": "m.login.application_service", "username": "_bridge_x"}, 403, "M_FORBIDDEN")
	hs.Anonymous(t).Refused("POST", "/v3/register", json{"username": "_bridge_x", "password": homeserver.Password}, 400, "M_EXCLUSIVE")
	hs.Anonymous(t).Refused("GET", "/v3/register/available?username=_bridge_x", nil, 400, "M_EXCLUSIVE")
	hs.Anonymous(t).Refused("GET", "/v3/register/available?username=_BRIDGE_BOT", nil, 400, "M_EXCLUSIVE")
	c.Refused("GET", as("/v3/account/whoami", alice.UserID), nil, 403, "M_FORBIDDEN")
	c.Refused("GET", as("/v3/account/whoami", "@_bridge_ghost:elsewhere.example"), nil, 403, "M_FORBIDDEN")

	// Sessions.
	login := func(user string) json {
		return json{"type": "m.login.application_service", "identifier": json{"type": "m.id.user", "user": user}}
	}
	session := hs.Anonymous(t)
	session.AccessToken, _ = c.Must("POST", "/v3/login", login("_bridge_ghost"))["access_token"].(string)
	if got := session.Must("GET", "/v3/account/whoami", nil)["user_id"]; got != ghost {
		t.Errorf("logged in as %v", got)
	}
	c.Refused("POST", "/v3/login", login(alice.UserID), 400, "M_EXCLUSIVE")
	c.Refused("POST", "/v3/login", login("_bridge_unknown"), 403, "M_FORBIDDEN")
	hs.Anonymous(t).Refused("POST", "/v3/login", login("_bridge_ghost"), 401, "M_MISSING_TOKEN")
	alice.Refused("POST", "/v3/login", login("_bridge_ghost"), 403, "M_FORBIDDEN")

	// Devices, without interactive authentication.
	device := func(id string) string { return as("/v3/devices"+homeserver.Path(id), ghost) }
	if status, got := c.Do("PUT", device("BRIDGE"), json{"display_name": "Bridge"}); status != 201 {
		t.Errorf("a new device: %d %v", status, got)
	}
	c.Must("PUT", device("BRIDGE"), json{"display_name": "The bridge"})
	alice.Refused("PUT", "/v3/devices/NEW", json{}, 404, "M_NOT_FOUND")
	with := func(path, device string) string { return as(path, ghost) + "&device_id=" + device }
	if got := c.Must("GET", with("/v3/account/whoami", "BRIDGE"), nil); got["device_id"] != "BRIDGE" {
		t.Errorf("acts as %v", got)
	}
	if got := c.Must("GET", as("/v3/account/whoami?org.matrix.msc3202.device_id=BRIDGE", ghost), nil); got["device_id"] != "BRIDGE" {
		t.Errorf("acts as %v", got)
	}
	c.Refused("GET", with("/v3/account/whoami", "UNKNOWN"), nil, 400, "M_UNKNOWN_DEVICE")
	c.Refused("POST", as("/v3/keys/upload", ghost), json{}, 403, "M_FORBIDDEN") // for want of a device
	c.Must("POST", with("/v3/keys/upload", "BRIDGE"), json{})
	c.Must("PUT", with("/v3/sendToDevice/m.test/1", "BRIDGE"), json{"messages": json{alice.UserID: json{"*": json{"x": 1}}}})
	c.Must("DELETE", device("BRIDGE"), nil)
	c.Refused("GET", device("BRIDGE"), nil, 404, "M_NOT_FOUND")
	if status, _ := c.Do("PUT", device("TWO"), json{}); status != 201 {
		t.Errorf("a second device: %d", status)
	}
	c.Must("POST", as("/v3/delete_devices", ghost), json{"devices": []string{"TWO"}})
	c.Refused("GET", device("TWO"), nil, 404, "M_NOT_FOUND")
	for _, key := range []string{"nqOvzeuGWT/sRx3h7+MHoInYj3Uk2LD/unI9kDYcHwk", "Hq6gL+utB4ET+UvD5ci0kgAwsX6qP/zvf8v6OInU5iw"} { // replaced without authentication
		c.Must("POST", as("/v3/keys/device_signing/upload", ghost), json{"master_key": json{
			"user_id": ghost, "usage": []string{"master"}, "keys": json{"ed25519:" + key: key},
		}})
	}

	// Rooms: times, members, aliases.
	room, _ := c.Must("POST", as("/v3/createRoom", ghost), json{"preset": "public_chat"})["room_id"].(string)
	send := func(path string, query string) string {
		return as("/v3/rooms"+homeserver.Path(room)+path+"?"+query, ghost)
	}
	id, _ := c.Must("PUT", send("/send/m.room.message/1", "ts=12345"), json{"body": "long ago"})["event_id"].(string)
	if got := c.Must("GET", send("/event"+homeserver.Path(id), ""), nil)["origin_server_ts"]; got != 12345.0 {
		t.Errorf("sent at %v", got)
	}
	c.Must("PUT", send("/state/m.room.topic/", "ts=23456"), json{"topic": "old"})
	if got := c.Must("GET", send("/state/m.room.topic/", "format=event"), nil)["origin_server_ts"]; got != 23456.0 {
		t.Errorf("state set at %v", got)
	}
	for _, ts := range []string{"-1", "9007199254740992", "x"} {
		c.Refused("PUT", send("/send/m.room.message/bad"+ts, "ts="+ts), json{"body": "x"}, 400, "M_INVALID_PARAM")
	}
	alice.Join(room)
	before := time.Now().UnixMilli()
	said, _ := alice.Must("PUT", "/v3/rooms"+homeserver.Path(room)+"/send/m.room.message/1?ts=12345", json{"body": "x"})["event_id"].(string)
	if got, _ := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "event", said), nil)["origin_server_ts"].(float64); int64(got) < before {
		t.Errorf("a user can choose the time of an event: %v", got)
	}
	if got := homeserver.Dig(c.Must("GET", "/v3/rooms"+homeserver.Path(room)+"/joined_members", nil), "joined", ghost); got == nil {
		t.Error("the bot, whose ghost is in the room, cannot see who is there")
	}
	hidden := alice.CreateRoom(json{})
	c.Refused("GET", "/v3/rooms"+homeserver.Path(hidden)+"/joined_members", nil, 403, "M_FORBIDDEN")
	alias := func(name string) string { return "/v3/directory/room" + homeserver.Path("#"+name+":"+hs.Name) }
	c.Must("PUT", alias("_bridge_room"), json{"room_id": hidden}) // where none of its users is
	c.Refused("PUT", alias("room"), json{"room_id": room}, 400, "M_EXCLUSIVE")
	alice.Refused("PUT", alias("_bridge_mine"), json{"room_id": hidden}, 400, "M_EXCLUSIVE")
	alice.Refused("POST", "/v3/createRoom", json{"room_alias_name": "_bridge_mine"}, 400, "M_EXCLUSIVE")
	alice.Refused("DELETE", alias("_bridge_room"), nil, 400, "M_EXCLUSIVE")
	c.Must("DELETE", alias("_bridge_room"), nil)

	// The room directories of its networks.
	list := "/v3/directory/list/appservice/net" + homeserver.Path(room)
	c.Must("PUT", list, json{"visibility": "public"})
	alice.Refused("PUT", list, json{"visibility": "public"}, 403, "M_FORBIDDEN")
	c.Refused("PUT", list, json{"visibility": "x"}, 400, "M_BAD_JSON")
	listed := func(body json) bool {
		return slices.ContainsFunc(homeserver.Events(alice.Must("POST", "/v3/publicRooms", body), "chunk"), func(e json) bool { return e["room_id"] == room })
	}
	if listed(json{}) || !listed(json{"third_party_instance_id": "bridge|net"}) || !listed(json{"include_all_networks": true}) || listed(json{"third_party_instance_id": "bridge|x"}) {
		t.Error("the directories are not separate")
	}
	alice.Refused("POST", "/v3/publicRooms", json{"third_party_instance_id": "bridge|net", "include_all_networks": true}, 400, "M_INVALID_PARAM")
	c.Must("PUT", list, json{"visibility": "private"})
	if listed(json{"include_all_networks": true}) {
		t.Error("the room is still listed")
	}

	c.Must("POST", as("/v3/account/deactivate", ghost), json{})
	c.Refused("GET", as("/v3/account/whoami", ghost), nil, 403, "M_USER_DEACTIVATED")
}

func TestAppserviceRateLimits(t *testing.T) {
	const limited = "limits: {no_rate_limits: false}\n"
	n := homeserver.NewNetwork(t)
	for _, on := range []bool{false, true} {
		b, dir := newBridge(t, fmt.Sprintf("rate_limited: %v\n", on))
		hs := start(t, n, dir, limited)
		c := b.client(hs)
		ghost := b.registerGhost(hs, "_bridge_ghost")
		refusals := func(user string) (refused int) {
			for range 15 { // more than the burst of new rooms
				if status, _ := c.Do("POST", as("/v3/createRoom", user), json{}); status == 429 {
					refused++
				}
			}
			return refused
		}
		if refusals("@_bridge_bot:"+hs.Name) > 0 {
			t.Errorf("rate_limited %v: the sender has limits", on)
		}
		if got := refusals(ghost) > 0; got != on {
			t.Errorf("rate_limited %v: the ghost is refused %v", on, got)
		}
	}
}

func TestAppservicePing(t *testing.T) {
	b, dir := newBridge(t, "")
	other := "id: other\nurl: null\nas_token: other-secret\nhs_token: y\nsender_localpart: other\nnamespaces: {}\n"
	if err := os.WriteFile(filepath.Join(dir, "other.yml"), []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	hs := start(t, homeserver.NewNetwork(t), dir, "")
	c := b.client(hs)
	const path = "/v1/appservice/bridge/ping"
	var asked string
	b.mu.Lock()
	b.other = func(path string) (int, string) { asked = path; return 200, "{}" }
	b.mu.Unlock()
	if _, ok := c.Must("POST", path, json{"transaction_id": "meow"})["duration_ms"].(float64); !ok || asked != "/ping?" {
		t.Errorf("asked at %q", asked)
	}
	hs.Register(t, "alice").Refused("POST", path, json{}, 403, "M_FORBIDDEN")
	c.Refused("POST", "/v1/appservice/other/ping", json{}, 403, "M_FORBIDDEN")
	silent := hs.Anonymous(t)
	silent.AccessToken = "other-secret"
	silent.Refused("POST", "/v1/appservice/other/ping", json{}, 400, "M_URL_NOT_SET")
	b.mu.Lock()
	b.other = func(string) (int, string) { return 401, `{"errcode":"NO"}` }
	b.mu.Unlock()
	if got := c.Refused("POST", path, json{}, 502, "M_BAD_STATUS"); got["status"] != 401.0 || got["body"] != `{"errcode":"NO"}` {
		t.Errorf("%v", got)
	}
	b.http.Close()
	c.Refused("POST", path, json{}, 502, "M_CONNECTION_FAILED")
}

// Each event once, in order, in transactions of a hundred at most, over kills and while the service is down.
func TestAppserviceTransactionsSurviveKills(t *testing.T) {
	b, dir := newBridge(t, "")
	hs := start(t, homeserver.NewNetwork(t), dir, "")
	alice := hs.Register(t, "alice")
	ghost := b.registerGhost(hs, "_bridge_ghost")
	elsewhere := alice.CreateRoom(json{"preset": "public_chat"})
	room := alice.CreateRoom(json{"preset": "public_chat"})
	alice.Say(room, "before the bridge came")
	b.client(hs).Must("POST", as("/v3/join"+homeserver.Path(room), ghost), json{})
	b.member(room, ghost, "join")
	first := alice.Say(room, "hello")
	if ev := b.event(first); ev["room_id"] != room || ev["sender"] != alice.UserID || homeserver.Dig(ev, "content", "body") != "hello" || ev["origin_server_ts"] == nil {
		t.Errorf("the event came as %v", ev)
	}

	// The server dies while the service works on a transaction.
	working := make(chan transaction, 100)
	release := make(chan struct{})
	b.answering(func(tx transaction) int {
		working <- tx
		<-release
		return 500 // nobody is there to take an answer
	})
	want := []string{alice.Say(room, "lost?")}
	under := <-working
	for i := range 120 {
		alice.Say(elsewhere, "not for the bridge")
		want = append(want, alice.Say(room, fmt.Sprint(i)))
	}
	hs.Kill()
	close(release)
	b.answering(func(transaction) int { return 503 })
	hs.Start()
	for i := range 130 { // a long time without the service
		want = append(want, alice.Say(room, fmt.Sprint(120+i)))
	}
	b.client(hs).Must("POST", as("/v3/rooms"+homeserver.Path(room, "leave"), ghost), json{})
	alice.Say(room, "after the bridge left")
	var again transaction
	b.answering(func(tx transaction) int {
		b.mu.Lock()
		defer b.mu.Unlock()
		if again.ID == "" {
			again = tx
		}
		return 200
	})
	b.member(room, ghost, "leave")
	if again.ID != under.ID || !bytes.Equal(again.Body, under.Body) {
		t.Errorf("after the kill came transaction %s\n%s\nand not %s\n%s", again.ID, again.Body, under.ID, under.Body)
	}
	var got []string
	b.mu.Lock()
	for _, ev := range b.events {
		if id, _ := ev["event_id"].(string); ev["type"] == "m.room.message" && id != first {
			got = append(got, id)
		}
	}
	for id, body := range b.byID {
		if n := bytes.Count(body, []byte(`"event_id"`)); n > 100 {
			t.Errorf("transaction %s has %d events", id, n)
		}
	}
	b.mu.Unlock()
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if lag := hs.Metric(`hanok_appservice_failing_seconds{service="bridge"}`); lag != 0 {
		t.Errorf("it is said to fail for %v seconds", lag)
	}
}

func TestAppserviceEphemeralData(t *testing.T) {
	for _, tt := range []struct{ key, name string }{{"receive_ephemeral", "ephemeral"}, {"de.sorunome.msc2409.push_ephemeral", "de.sorunome.msc2409.ephemeral"}} {
		t.Run(tt.key, func(t *testing.T) {
			b, dir := newBridge(t, tt.key+": true\n")
			hs := start(t, homeserver.NewNetwork(t), dir, "")
			alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
			ghost := b.registerGhost(hs, "_bridge_ghost")
			room := alice.CreateRoom(json{"preset": "public_chat"})
			b.client(hs).Must("POST", as("/v3/join"+homeserver.Path(room), ghost), json{})
			secret := bob.CreateRoom(json{}) // of no concern to the bridge
			id := alice.Say(room, "hello")
			b.event(id)

			data := func(check func(json) bool) func(transaction) bool {
				return func(tx transaction) bool {
					var body json
					if err := stdjson.Unmarshal(tx.Body, &body); err != nil {
						t.Fatal(err)
					}
					if body["events"] == nil {
						t.Errorf("a transaction without events: %s", tx.Body)
					}
					for _, e := range homeserver.Events(body, tt.name) {
						if e["room_id"] == secret || e["sender"] == bob.UserID {
							t.Errorf("the bridge is told %v", e)
						}
					}
					return slices.ContainsFunc(homeserver.Events(body, tt.name), check)
				}
			}
			bob.Must("PUT", "/v3/rooms"+homeserver.Path(secret, "typing", bob.UserID), json{"typing": true, "timeout": 60_000})
			bob.Must("PUT", "/v3/presence"+homeserver.Path(bob.UserID)+"/status", json{"presence": "online"})
			alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", alice.UserID), json{"typing": true, "timeout": 60_000})
			b.until("typing", data(func(e json) bool {
				users, _ := homeserver.Dig(e, "content", "user_ids").([]any)
				return e["type"] == "m.typing" && e["room_id"] == room && slices.Contains(users, any(alice.UserID))
			}))
			alice.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", alice.UserID), json{"typing": false})
			b.until("the end of typing", data(func(e json) bool {
				users, _ := homeserver.Dig(e, "content", "user_ids").([]any)
				return e["type"] == "m.typing" && len(users) == 0
			}))
			alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", "m.read.private", id), json{})
			b.client(hs).Must("POST", as("/v3/rooms"+homeserver.Path(room, "receipt", "m.read.private", id), ghost), json{})
			alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", "m.read", id), json{})
			private := false
			b.until("a receipt", data(func(e json) bool {
				if homeserver.Dig(e, "content", id, "m.read.private", alice.UserID) != nil {
					t.Error("the bridge is told of a private receipt")
				}
				private = private || homeserver.Dig(e, "content", id, "m.read.private", ghost) != nil
				return e["type"] == "m.receipt" && e["room_id"] == room && homeserver.Dig(e, "content", id, "m.read", alice.UserID) != nil
			}))
			if !private {
				t.Error("the bridge is not told of a private receipt of its own user")
			}
			alice.Must("PUT", "/v3/presence"+homeserver.Path(alice.UserID)+"/status", json{"presence": "unavailable", "status_msg": "away"})
			b.until("presence", data(func(e json) bool {
				return e["type"] == "m.presence" && e["sender"] == alice.UserID && homeserver.Dig(e, "content", "status_msg") == "away"
			}))
		})
	}
}

// Nobody reads what a service's users are notified of.
func TestAppserviceUsersAreNotNotified(t *testing.T) {
	b, dir := newBridge(t, "")
	hs := start(t, homeserver.NewNetwork(t), dir, "")
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	ghost := hs.Anonymous(t)
	ghost.AccessToken, _ = b.client(hs).Must("POST", "/v3/register", json{"type": "m.login.application_service", "username": "_bridge_ghost"})["access_token"].(string)
	room := alice.CreateRoom(json{"preset": "public_chat"})
	ghost.Join(room)
	bob.Join(room)
	alice.Say(room, "hello")
	unread := func(res json) any {
		return homeserver.Dig(res, "rooms", "join", room, "unread_notifications", "notification_count")
	}
	bob.SyncUntil("a notification", func(res json) bool { return unread(res) == 1.0 })
	if got := unread(ghost.Sync(0)); got != 0.0 {
		t.Errorf("the ghost has %v notifications", got)
	}
}

// A user of another server invites somebody who is made for the occasion, and finds a room by an alias that is.
func TestAppserviceOverFederation(t *testing.T) {
	n := homeserver.NewNetwork(t)
	b, dir := newBridge(t, "")
	hs := start(t, n, dir, "")
	far := n.Start(homeserver.Options{})
	c := b.client(hs)
	bob := far.Register(t, "bob")
	ghost := "@_bridge_new:" + hs.Name
	b.making("/users/"+ghost, func() { b.registerGhost(hs, "_bridge_new") })

	room := bob.CreateRoom(json{"preset": "private_chat", "name": "far"})
	bob.Invite(room, ghost)
	b.member(room, ghost, "invite")
	c.Must("POST", as("/v3/join"+homeserver.Path(room), ghost), json{})
	b.member(room, ghost, "join")
	b.event(bob.Say(room, "hello"))

	// An invite that is taken back.
	second := bob.CreateRoom(json{"preset": "private_chat"})
	bob.Invite(second, ghost)
	b.member(second, ghost, "invite")
	bob.Must("POST", "/v3/rooms"+homeserver.Path(second, "kick"), json{"user_id": ghost})
	b.member(second, ghost, "leave")

	var here string
	alias := "#_bridge_channel:" + hs.Name
	b.making("/rooms/"+alias, func() {
		here, _ = c.Must("POST", "/v3/createRoom", json{"preset": "public_chat", "room_alias_name": "_bridge_channel"})["room_id"].(string)
	})
	bob.Join(alias)
	b.member(here, bob.UserID, "join")
	far.Register(t, "carol").Refused("GET", "/v3/directory/room"+homeserver.Path("#_bridge_none:"+hs.Name), nil, 404, "M_NOT_FOUND")

	// A profile makes one, too.
	b.making("/users/@_bridge_known:"+hs.Name, func() { b.registerGhost(hs, "_bridge_known") })
	if got := bob.Must("GET", "/v3/profile"+homeserver.Path("@_bridge_known:"+hs.Name), nil)["displayname"]; got != "_bridge_known" {
		t.Errorf("the profile has the name %v", got)
	}

	// While the service is down, who looks for what it could make is told so; invites wait for it.
	b.http.Close()
	local := hs.Register(t, "alice")
	local.Refused("GET", "/v3/directory/room"+homeserver.Path("#_bridge_other:"+hs.Name), nil, 408, "M_UNKNOWN")
	local.Invite(local.CreateRoom(json{}), "@_bridge_later:"+hs.Name)
}

func TestAppserviceThirdPartyNetworks(t *testing.T) {
	b, dir := newBridge(t, "protocols: [irc, odd]\n")
	hs := start(t, homeserver.NewNetwork(t), dir, "")
	b.mu.Lock()
	b.other = func(path string) (int, string) {
		switch path {
		case "/thirdparty/protocol/irc?":
			return 200, `{"user_fields":["nick"],"location_fields":[],"icon":"mxc://a/b","field_types":{},"instances":[{"network_id":"net","desc":"Net","fields":{}}]}`
		case "/thirdparty/protocol/odd?":
			return 200, `{"user_fields":["a"],"user_fields":["b"]}`
		case "/thirdparty/user/irc?nick=jim&nick=tim":
			return 200, `[{"userid":"@_bridge_jim:x","protocol":"irc","fields":{"nick":"jim"}},{"userid":7}]`
		case "/thirdparty/location?alias=%23a%3Ab":
			return 200, `[{"alias":"#a:b","protocol":"irc","fields":{}}]`
		}
		return 404, `{"errcode":"NOT_FOUND"}`
	}
	b.mu.Unlock()
	alice := hs.Register(t, "alice")
	want := json{"user_fields": []any{"nick"}, "location_fields": []any{}, "icon": "mxc://a/b", "field_types": json{}, "instances": []any{
		json{"network_id": "net", "desc": "Net", "fields": json{}, "instance_id": "bridge|net"},
	}}
	if d := cmp.Diff(json{"irc": want}, alice.Must("GET", "/v3/thirdparty/protocols", nil)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(want, alice.Must("GET", "/v3/thirdparty/protocol/irc", nil)); d != "" {
		t.Error(d)
	}
	alice.Refused("GET", "/v3/thirdparty/protocol/xmpp", nil, 404, "M_NOT_FOUND")
	alice.Refused("GET", "/v3/thirdparty/protocol/odd", nil, 404, "M_NOT_FOUND") // what it says is no good JSON
	for path, want := range map[string]string{
		"/v3/thirdparty/user/irc?nick=jim&nick=tim": `[{"userid":"@_bridge_jim:x","protocol":"irc","fields":{"nick":"jim"}}]`,
		"/v3/thirdparty/location?alias=%23a%3Ab":    `[{"alias":"#a:b","protocol":"irc","fields":{}}]`,
	} {
		if status, got := alice.Raw("GET", path, nil); status != 200 || string(got) != want {
			t.Errorf("%s: %d %s", path, status, got)
		}
	}
	alice.Refused("GET", "/v3/thirdparty/user/irc?nick=none", nil, 404, "M_NOT_FOUND")
	alice.Refused("GET", "/v3/thirdparty/user", nil, 400, "M_MISSING_PARAM")
	alice.Refused("GET", "/v3/thirdparty/user?userid=%40x%3Ay", nil, 404, "M_NOT_FOUND")
	hs.Anonymous(t).Refused("GET", "/v3/thirdparty/protocols", nil, 401, "M_MISSING_TOKEN")
}
