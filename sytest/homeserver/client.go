package homeserver

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Client is one device of a user of a server.
type Client struct {
	UserID      string
	DeviceID    string
	AccessToken string

	t      testing.TB
	server *Server
	since  string
}

// Server is where the user is registered.
func (c *Client) Server() *Server { return c.server }

// JSON is any JSON object.
type JSON = map[string]any

// unique makes names that no other test of the process uses.
var unique atomic.Int64

// Register makes a user whose localpart starts with name, logged in.
func (s *Server) Register(t testing.TB, name string) *Client {
	t.Helper()
	c := &Client{t: t, server: s}
	res := c.Must("POST", "/v3/register", JSON{
		"username": fmt.Sprintf("%s-%d", name, unique.Add(1)), "password": Password, "auth": JSON{"type": "m.login.dummy"},
	})
	c.adopt(res)
	return c
}

// RegisterAdmin is Register for an administrator, made with the shared secret.
func (s *Server) RegisterAdmin(t testing.TB, name string) *Client {
	t.Helper()
	c := &Client{t: t, server: s}
	const path = "/_synapse/admin/v1/register"
	nonce, _ := c.Must("GET", path, nil)["nonce"].(string)
	name = fmt.Sprintf("%s-%d", name, unique.Add(1))
	mac := hmac.New(sha1.New, []byte(SharedSecret))
	fmt.Fprintf(mac, "%s\x00%s\x00%s\x00admin", nonce, name, Password)
	c.adopt(c.Must("POST", path, JSON{"nonce": nonce, "username": name, "password": Password, "admin": true, "mac": hex.EncodeToString(mac.Sum(nil))}))
	return c
}

// Password is every test user's.
const Password = "correct horse battery"

// Login logs the same user in once more, on a new device.
func (c *Client) Login() *Client {
	c.t.Helper()
	other := &Client{t: c.t, server: c.server}
	other.adopt(other.Must("POST", "/v3/login", JSON{
		"type": "m.login.password", "identifier": JSON{"type": "m.id.user", "user": c.UserID}, "password": Password,
	}))
	return other
}

// Anonymous is a client without a session.
func (s *Server) Anonymous(t testing.TB) *Client { return &Client{t: t, server: s} }

func (c *Client) adopt(session JSON) {
	c.UserID, _ = session["user_id"].(string)
	c.DeviceID, _ = session["device_id"].(string)
	c.AccessToken, _ = session["access_token"].(string)
}

// Do makes a request below /_matrix/client (or at a path that starts with /_) and returns the
// status and the body, which must be a JSON object or nothing.
func (c *Client) Do(method, path string, body any) (int, JSON) {
	c.t.Helper()
	status, raw := c.Raw(method, path, body)
	var out JSON
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &out); err != nil {
			c.t.Fatalf("%s %s: %d, no JSON object: %v\n%s", method, path, status, err, raw)
		}
	}
	return status, out
}

// Raw is Do for answers of any shape. A body of type string is sent as it is.
func (c *Client) Raw(method, path string, body any) (int, []byte) {
	c.t.Helper()
	status, raw, err := c.Try(method, path, body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return status, raw
}

// Try is Raw for servers that may be down.
func (c *Client) Try(method, path string, body any) (status int, raw []byte, err error) {
	c.t.Helper()
	if !strings.HasPrefix(path, "/_") {
		path = "/_matrix/client" + path
	}
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	default:
		enc, err := json.Marshal(b)
		must(c.t, err)
		r = bytes.NewReader(enc)
	}
	req, err := http.NewRequest(method, c.server.ClientURL+path, r)
	must(c.t, err)
	if c.AccessToken != "" {
		req.Header.Set("Authorization", "Bearer "+c.AccessToken)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer res.Body.Close()
	raw, err = io.ReadAll(res.Body)
	return res.StatusCode, raw, err
}

// Must is Do for requests that must succeed.
func (c *Client) Must(method, path string, body any) JSON {
	c.t.Helper()
	status, out := c.Do(method, path, body)
	if status != http.StatusOK {
		c.t.Fatalf("%s %s as %s: %d %v", method, path, c.UserID, status, out)
	}
	return out
}

// Refused is Do for requests that must fail with this status and errcode.
func (c *Client) Refused(method, path string, body any, status int, errcode string) JSON {
	c.t.Helper()
	got, out := c.Do(method, path, body)
	if got != status || out["errcode"] != errcode {
		c.t.Errorf("%s %s as %s: %d %v, want %d %s", method, path, c.UserID, got, out, status, errcode)
	}
	return out
}

// Path joins path segments, each escaped.
func Path(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

// CreateRoom makes a room and returns its ID.
func (c *Client) CreateRoom(body JSON) string {
	c.t.Helper()
	id, _ := c.Must("POST", "/v3/createRoom", body)["room_id"].(string)
	if id == "" {
		c.t.Fatal("createRoom answered no room_id")
	}
	return id
}

// Join joins a room by ID or alias through servers.
func (c *Client) Join(room string, via ...string) {
	c.t.Helper()
	q := url.Values{}
	for _, v := range via {
		q.Add("via", v)
	}
	c.Must("POST", "/v3/join"+Path(room)+"?"+q.Encode(), JSON{})
}

// Invite invites a user.
func (c *Client) Invite(room, user string) {
	c.t.Helper()
	c.Must("POST", "/v3/rooms"+Path(room, "invite"), JSON{"user_id": user})
}

// Send sends a message-like event and returns its ID.
func (c *Client) Send(room, eventType string, content any) string {
	c.t.Helper()
	id, _ := c.Must("PUT", "/v3/rooms"+Path(room, "send", eventType, fmt.Sprint("txn", unique.Add(1))), content)["event_id"].(string)
	return id
}

// Say sends a text and returns the event's ID.
func (c *Client) Say(room, text string) string {
	c.t.Helper()
	return c.Send(room, "m.room.message", JSON{"msgtype": "m.text", "body": text})
}

// SetState sends a state event and returns its ID.
func (c *Client) SetState(room, eventType, key string, content any) string {
	c.t.Helper()
	id, _ := c.Must("PUT", "/v3/rooms"+Path(room, "state", eventType, key), content)["event_id"].(string)
	return id
}

// Sync makes one /sync from where the last one ended, which waits for news at most this long.
func (c *Client) Sync(wait time.Duration, params ...string) JSON {
	c.t.Helper()
	q := url.Values{"timeout": {fmt.Sprint(wait.Milliseconds())}}
	if c.since != "" {
		q.Set("since", c.since)
	}
	for i := 0; i+1 < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	res := c.Must("GET", "/v3/sync?"+q.Encode(), nil)
	c.since, _ = res["next_batch"].(string)
	if c.since == "" {
		c.t.Fatal("a sync without next_batch")
	}
	return res
}

// SyncUntil syncs until the response satisfies the check, at most 20 seconds.
func (c *Client) SyncUntil(what string, check func(JSON) bool) JSON {
	c.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		wait := time.Until(deadline)
		if wait <= 0 {
			c.t.Fatalf("%s has not seen %s", c.UserID, what)
		}
		if res := c.Sync(min(wait, 5*time.Second)); check(res) {
			return res
		}
	}
}

// Dig walks into nested objects; nil where there is nothing.
func Dig(v any, path ...string) any {
	for _, p := range path {
		m, ok := v.(JSON)
		if !ok {
			return nil
		}
		v = m[p]
	}
	return v
}

// Events are the objects of a list in a response.
func Events(v any, path ...string) []JSON {
	list, _ := Dig(v, path...).([]any)
	out := make([]JSON, 0, len(list))
	for _, e := range list {
		if m, ok := e.(JSON); ok {
			out = append(out, m)
		}
	}
	return out
}

// Timeline are the events of a joined room's timeline in a sync response.
func Timeline(res JSON, room string) []JSON {
	return Events(res, "rooms", "join", room, "timeline", "events")
}

// SyncUntilEvent syncs until an event shows in a room's timeline, and returns it.
func (c *Client) SyncUntilEvent(room, eventID string) JSON {
	c.t.Helper()
	var found JSON
	c.SyncUntil("event "+eventID, func(res JSON) bool {
		for _, e := range Timeline(res, room) {
			if e["event_id"] == eventID {
				found = e
			}
		}
		return found != nil
	})
	return found
}

// SyncUntilInvited syncs until the user is invited to a room.
func (c *Client) SyncUntilInvited(room string) JSON {
	c.t.Helper()
	return c.SyncUntil("an invite to "+room, func(res JSON) bool { return Dig(res, "rooms", "invite", room) != nil })
}

// SyncUntilJoined syncs until a user shows as joined in a room.
func (c *Client) SyncUntilJoined(room, user string) {
	c.t.Helper()
	c.SyncUntil(user+" joined to "+room, func(res JSON) bool {
		for _, section := range []string{"timeline", "state"} {
			for _, e := range Events(res, "rooms", "join", room, section, "events") {
				if e["type"] == "m.room.member" && e["state_key"] == user && Dig(e, "content", "membership") == "join" {
					return true
				}
			}
		}
		return false
	})
}

// Token is where the next Sync goes on, SetToken sets it.
func (c *Client) Token() string         { return c.since }
func (c *Client) SetToken(token string) { c.since = token }
