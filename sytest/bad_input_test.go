package sytest

import (
	"bytes"
	"context"
	_ "embed"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"hanok/api"
	"hanok/internal/endpoint"
	"hanok/media"
	"hanok/sytest/homeserver"
)

// Bad input of every kind at every endpoint of the client-server API: whatever comes in, the
// answer is JSON, quick, below 500, and an errcode says what is wrong.
//
// The endpoints are those of the route tables; testdata/requests.json says which
// parameters and which body the specification gives them.
func TestBadInputOfClients(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		routes := api.New(api.Options{Media: &media.Repository{}}).Routes()
		if len(routes) < 150 {
			t.Fatalf("only %d routes", len(routes))
		}
		guest := &homeserver.Client{}
		_, answer := hs.Anonymous(t).Do("POST", "/v3/register?kind=guest", json{})
		guest.AccessToken, _ = answer["access_token"].(string)
		if guest.AccessToken == "" {
			t.Fatalf("no guest: %v", answer)
		}
		t.Run("routes", func(t *testing.T) {
			tried := map[string]bool{}
			for _, rt := range routes {
				// Versions of one endpoint share their handler: the mutations go to the first.
				key := rt.Method + pathTail.ReplaceAllString(rt.Path, "/")
				first := !tried[key]
				tried[key] = true
				t.Run(rt.Method+" "+strings.ReplaceAll(rt.Path, "/", ":"), func(t *testing.T) {
					t.Parallel()
					p := &prober{t: t, hs: hs, route: rt, guest: guest.AccessToken, answers: map[int]int{}}
					p.renew()
					p.tokensAndMethods()
					if first {
						p.paths()
						p.queries()
						p.bodies()
					}
					t.Logf("answers: %v", p.answers)
				})
			}
		})
		if n := hs.Metric("hanok_http_requests_in_flight"); n > 1 {
			t.Errorf("%v requests are still being worked on", n)
		}
	})
}

// pathTail is the version in a path.
var pathTail = regexp.MustCompile(`/(v3|r0|v1|unstable)/`)

//go:embed testdata/requests.json
var requestsJSON []byte

// documented is what the specification says of a request.
type documented struct {
	Query []string `json:"query"`
	Body  any      `json:"body"`
}

func requests(t testing.TB) map[string]documented {
	var all map[string]documented
	if err := stdjson.Unmarshal(requestsJSON, &all); err != nil {
		t.Fatal(err)
	}
	return all
}

// prober tries one route.
type prober struct {
	t     *testing.T
	hs    *homeserver.Server
	route endpoint.Route
	guest string

	alice *homeserver.Client
	vars  map[string]string

	answers map[int]int // status to number
	offset  int         // see some
}

// renew makes a user with a bit of everything, so that requests get past the first look-up.
func (p *prober) renew() {
	p.alice = p.hs.Register(p.t, "alice")
	p.vars = map[string]string{
		"userId": p.alice.UserID, "deviceId": p.alice.DeviceID, "eventType": "org.example.type", "txnId": "1", "stateKey": "key",
		"type": "org.example.data", "tag": "u.tag", "kind": "override", "ruleId": "rule", "keyName": "displayname", "sessionId": "session",
		"receiptType": "m.read", "relType": "m.thread", "serverName": p.hs.Name, "mediaId": "none", "fileName": "file", "version": "1", "filterId": "0",
	}
	p.renewRoom()
	if strings.Contains(p.route.Path, "room_keys") {
		v := p.alice.Must("POST", "/v3/room_keys/version", json{"algorithm": "m.megolm_backup.v1", "auth_data": json{}})
		p.vars["version"], _ = v["version"].(string)
	}
	if strings.Contains(p.route.Path, "filterId") {
		f := p.alice.Must("POST", "/v3/user"+homeserver.Path(p.alice.UserID, "filter"), json{})
		p.vars["filterId"], _ = f["filter_id"].(string)
	}
	if strings.Contains(p.route.Path, "media") {
		m := p.alice.Must("POST", "/_matrix/media/v3/upload", "not an image")
		uri, _ := m["content_uri"].(string)
		p.vars["mediaId"] = uri[strings.LastIndex(uri, "/")+1:]
	}
	if strings.Contains(p.route.Path, "ruleId") {
		p.alice.Must("PUT", "/v3/pushrules/global/override/rule", json{"actions": []string{}, "conditions": []json{}})
	}
	if strings.Contains(p.route.Path, "/tags/") || strings.Contains(p.route.Path, "account_data") {
		p.alice.Must("PUT", "/v3/user"+homeserver.Path(p.alice.UserID, "account_data", "org.example.data"), json{})
	}
}

func (p *prober) renewRoom() {
	for _, variable := range []string{"roomId", "roomIdOrAlias", "eventId", "roomAlias"} {
		if strings.Contains(p.route.Path, "{"+variable+"}") {
			name := "x" + strings.TrimPrefix(p.alice.UserID[:strings.IndexByte(p.alice.UserID, ':')], "@") + fmt.Sprint(time.Now().UnixNano())
			room := p.alice.CreateRoom(json{"room_alias_name": name})
			p.vars["roomId"], p.vars["roomIdOrAlias"], p.vars["roomAlias"] = room, room, "#"+name+":"+p.hs.Name
			p.vars["eventId"] = p.alice.Say(room, "hello")
			return
		}
	}
}

var variable = regexp.MustCompile(`\{(\w+)\}`)

// path fills in the variables; override values are used as they are.
func (p *prober) path(override map[string]string) string {
	return variable.ReplaceAllStringFunc(p.route.Path, func(v string) string {
		name := v[1 : len(v)-1]
		if raw, ok := override[name]; ok {
			return raw
		}
		value, ok := p.vars[name]
		if !ok {
			value = "example" // of a variable that this test knows no good value of
		}
		return url.PathEscape(value)
	})
}

// answer is what came back.
type answer struct {
	status int
	body   []byte
	code   string
}

// slow is how long an answer may take; on a busy machine a request gets a second chance.
const slow = 2 * time.Second

// try makes a request and checks what holds for all answers.
func (p *prober) try(what, token, method, pathAndQuery string, body []byte) answer {
	p.t.Helper()
	for attempt := 1; ; attempt++ {
		began := time.Now()
		a, err := p.request(token, method, pathAndQuery, body)
		took := time.Since(began)
		p.answers[a.status]++
		switch {
		case err != nil && len(body) > 1<<20 && (errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)):
			return a // it had said no and closed before we had sent everything
		case err != nil:
			p.t.Errorf("%s: %s %s: %v", what, method, short(pathAndQuery), err)
			return a
		case took > slow && attempt < 3:
			continue
		case took > slow:
			p.t.Errorf("%s: %s %s %s took %v", what, method, short(pathAndQuery), short(string(body)), took)
		case a.status == 500 || a.status > 500 && a.code == "" || a.status > 504:
			p.t.Errorf("%s: %s %s %s: %d %s", what, method, short(pathAndQuery), short(string(body)), a.status, a.body)
		}
		return a
	}
}

func short(s string) string {
	if len(s) > 300 {
		return fmt.Sprintf("%q... (%d bytes)", s[:300], len(s))
	}
	return fmt.Sprintf("%q", s)
}

var client = &http.Client{
	Timeout:       30 * time.Second,
	Transport:     &http.Transport{MaxIdleConnsPerHost: 16},
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
}

func (p *prober) request(token, method, pathAndQuery string, body []byte) (a answer, err error) {
	u, err := url.Parse(p.hs.ClientURL)
	if err != nil {
		return a, err
	}
	// An opaque URL is put on the request line as it is.
	u.Opaque = pathAndQuery
	req := (&http.Request{Method: method, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(context.Background())
	if body != nil {
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer res.Body.Close()
	a.status = res.StatusCode
	if a.body, err = io.ReadAll(res.Body); err != nil {
		return a, err
	}
	if res.Header.Get("Access-Control-Allow-Origin") != "*" {
		return a, fmt.Errorf("%d without CORS headers", a.status)
	}
	if a.status < 400 || method == http.MethodHead {
		return a, nil
	}
	var e struct {
		Code    string `json:"errcode"`
		Message string `json:"error"`
		Session string `json:"session"`
	}
	if err := stdjson.Unmarshal(a.body, &e); err != nil {
		return a, fmt.Errorf("%d and no JSON: %q", a.status, a.body)
	}
	a.code = e.Code
	if uiaStep := a.status == http.StatusUnauthorized && e.Session != ""; e.Code == "" && !uiaStep {
		return a, fmt.Errorf("%d without errcode: %s", a.status, a.body)
	}
	return a, nil
}

func (p *prober) body() any {
	known, ok := requests(p.t)["cs/"+p.route.Operation]
	if b := p.goodBody(); b != nil {
		return b
	}
	if !ok {
		return nil
	}
	return known.Body
}

func encode(t *testing.T, v any) []byte {
	if v == nil {
		return nil
	}
	b, err := stdjson.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// tokensAndMethods tries who may call, and how.
func (p *prober) tokensAndMethods() {
	path, body := p.path(nil), encode(p.t, p.body())
	private := p.route.Auth != endpoint.None
	for what, token := range map[string]string{"no token": "", "a wrong token": "syt_wrong", "a long token": strings.Repeat("x", 20000), "odd characters": "%00'\"é"} {
		a := p.try(what, token, p.route.Method, path, body)
		if private && token != "" && (a.status != 401 || a.code != "M_UNKNOWN_TOKEN") {
			p.t.Errorf("%s: %d %s", what, a.status, a.body)
		}
		if private && token == "" && !(a.status == 401 && a.code == "M_MISSING_TOKEN") && p.withoutToken(a) {
			p.t.Errorf("%s: %d %s", what, a.status, a.body)
		}
	}
	p.try("NUL in the token", "", p.route.Method, path+"?access_token=%00", body)
	p.try("a guest", p.guest, p.route.Method, path, nil)
	for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE", "PROPFIND"} {
		if method != p.route.Method {
			if a := p.try("another method", p.alice.AccessToken, method, path, nil); a.status == 405 && a.code != "M_UNRECOGNIZED" && method != "HEAD" {
				p.t.Errorf("%s: %d %s", method, a.status, a.body)
			}
		}
	}
	if a := p.try("OPTIONS", "", "OPTIONS", path, nil); a.status >= 300 {
		p.t.Errorf("OPTIONS: %d", a.status)
	}
	a := p.try("a path below", p.alice.AccessToken, p.route.Method, path+"/nowhere/nowhere/nowhere", nil)
	// Below /pushrules/ the path is the name of a rule, which is a parameter.
	if a.status != 404 && a.status != 405 && !(strings.Contains(path, "/pushrules/") && a.code == "M_INVALID_PARAM") {
		p.t.Errorf("a path that does not exist: %d %s", a.status, a.body)
	}
	p.renew() // one of these methods may have ended the session
}

// withoutToken reports whether the answer to a request without a token is wrong: some endpoints
// use a token only if there is one.
func (p *prober) withoutToken(a answer) bool {
	return a.status == http.StatusUnauthorized && a.code != ""
}

// weird are values for path variables, escaped already.
func weird() []string {
	return []string{
		"%00", "a%00b", "%2F", "..", ".", "%2e%2e", "..%2f..%2fetc%2fpasswd", "", "%20", "%25", "%2500", "%23", "%3F", "*", "a%0Ab", "%ff", "%ED%A0%80",
		"%F0%9F%90%88", "null", "-1", "0", "9223372036854775808", "1e3", "%7B%7D", "@", "%21", "$", "%23:", ":", "@:", "!:x", "@x:localhost:1", "!room:localhost:1",
		"%23alias:localhost:1", "$event:localhost:1", "@x:bad%20name", "!x:" + strings.Repeat("x", 300), "@x:localhost:99999", "@X:localhost", "@%C3%A9:localhost:1",
		"@x:[::1", "$" + strings.Repeat("x", 43), "!" + strings.Repeat("x", 43), strings.Repeat("x", 256), strings.Repeat("x", 10000), "m.room.create", "m.room.member", "m.room.power_levels", "m.fully_read", "m.push_rules",
	}
}

func (p *prober) paths() {
	body := encode(p.t, p.body())
	for _, m := range variable.FindAllStringSubmatch(p.route.Path, -1) {
		for _, w := range p.some(weird()) {
			p.kept(p.try("path variable "+m[1], p.alice.AccessToken, p.route.Method, p.path(map[string]string{m[1]: w}), body))
		}
	}
	// All at once.
	for _, w := range weird() {
		all := map[string]string{}
		for _, m := range variable.FindAllStringSubmatch(p.route.Path, -1) {
			all[m[1]] = w
		}
		if len(all) > 1 {
			p.kept(p.try("all path variables", p.alice.AccessToken, p.route.Method, p.path(all), body))
		}
	}
}

func (p *prober) queries() {
	body := encode(p.t, p.body())
	names := slices.Clone(requests(p.t)["cs/"+p.route.Operation].Query)
	if len(names) == 0 {
		names = []string{"unknown"}
	}
	for _, name := range names {
		for _, w := range p.some(append(weird(), "NaN", "Infinity", "99999999999", "true", "%7B%22room%22:5%7D", "%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:-1%7D%7D%7D",
			"%7B%22room%22:%7B%22rooms%22:[%22%00%22]%7D%7D", "%5B%5D", "%22%22", "s1_2_3", "t1-2", "-5", "00", "b", "f", "%7B%22a%22:"+strings.Repeat("%5B", 2000))) {
			if name == "access_token" || name == "timeout" && w == "99999999999" { // a long poll may take long
				continue
			}
			p.kept(p.try("query parameter "+name, p.alice.AccessToken, p.route.Method, p.path(nil)+"?"+url.QueryEscape(name)+"="+w, body))
		}
	}
	p.kept(p.try("a query that is none", p.alice.AccessToken, p.route.Method, p.path(nil)+"?&&=&;%zz;a%zz=%&limit=1&limit=-1", body))
	p.kept(p.try("a long query", p.alice.AccessToken, p.route.Method, p.path(nil)+"?"+strings.Repeat("via=x&", 2000), body))
}

// some leaves out most values where a request costs a password check.
func (p *prober) some(values []string) []string {
	switch p.route.Operation {
	case "login", "changePassword", "deleteDevice", "deleteDevices", "deactivateAccount", "logout", "logout_all", "uploadCrossSigningKeys":
	default:
		return values
	}
	const one = 7
	p.offset++ // others each time
	var out []string
	for i := p.offset % one; i < len(values); i += one {
		out = append(out, values[i])
	}
	return out
}

// kept looks after what a request destroyed.
func (p *prober) kept(a answer) {
	switch {
	case a.code == "M_UNKNOWN_TOKEN" && p.route.Operation != "refresh", a.status == 200 && strings.HasPrefix(p.route.Operation, "deactivate"):
		p.renew()
	case a.status == 200 && (p.route.Operation == "leaveRoom" || p.route.Operation == "forgetRoom"):
		p.renewRoom()
	}
}

const placeholder = "@PLACEHOLDER@"

// wrong are JSON texts that stand in for a member.
func wrong() []string {
	return []string{
		`null`, `true`, `0`, `-1`, `1.5`, `1e400`, `9007199254740993`, `9223372036854775807`, `-9223372036854775809`, `18446744073709551616`, `""`, `" "`, `"x"`, `"\u0000"`, `"a\u0000b"`, `"\ud800"`, "\"\xff\"",
		`"\u202e"`, `"@x:localhost:1"`, `"!x:localhost:1"`, `"#x:localhost:1"`, `[]`, `{}`, `[null]`, `[[]]`, `[1]`, `[""]`, `["\u0000"]`, `{"":null}`, `{"\u0000":"\u0000"}`, `{"a":1,"a":2}`, `{"@x:localhost:1":{"":[]}}`, `{"a":{"b":{"c":{"d":1.5}}}}`,
		`"` + strings.Repeat("x", 70000) + `"`, `[` + strings.TrimSuffix(strings.Repeat(`"x",`, 5000), ",") + `]`, strings.Repeat("[", 2000) + strings.Repeat("]", 2000), strings.Repeat(`{"a":`, 2000) + "1" + strings.Repeat("}", 2000), `nonsense`, `'x'`, `01`,
	}
}

// keys are JSON texts of odd names of members.
func keys() []string {
	return []string{`""`, `"\u0000"`, `"\ud800"`, `"💥"`, `"@x:localhost:1"`, `"!x:localhost:1"`, `"` + strings.Repeat("x", 300) + `"`, `"a:b"`}
}

func (p *prober) bodies() {
	for _, rt := range []string{"", " ", "{", "null", "[]", `"text"`, "1", "true", "{}", "{}{}", "\x00", "\xff\xfe", "\ufeff{}", `{"a":1,"a":2}`, `{"a":"\ud800"}`, `{"a":"\u0000"}`, "{'a':1}", `{"a":1e999}`, `{a:1}`, `{"a":1,}`,
		strings.Repeat("[", 100000), strings.Repeat("[", 100000) + strings.Repeat("]", 100000), strings.Repeat(`{"a":`, 100000), `{"a":"` + strings.Repeat("x", 2<<20) + `"}`, `[` + strings.Repeat("0,", 1<<20) + `0]`} {
		a := p.try("body", p.alice.AccessToken, p.route.Method, p.path(nil), []byte(rt))
		if p.takesJSON() && p.body() != nil && rt != "" {
			if !stdjson.Valid([]byte(rt)) && len(rt) < 1<<20 && a.status < 400 {
				p.t.Errorf("%s is no JSON, and accepted: %d %s", short(rt), a.status, a.body)
			}
		}
		p.kept(a)
	}
	body := p.body()
	if body == nil {
		return
	}
	path := p.path(nil)
	p.kept(p.try("the documented body", p.alice.AccessToken, p.route.Method, path, encode(p.t, body)))
	for where, mutated := range mutations(body, "") {
		text := encode(p.t, mutated)
		stand, values := []byte(`"`+placeholder+`"`), wrong()
		if strings.HasSuffix(where, "?") {
			values = keys()
		}
		for _, w := range p.some(values) {
			raw := bytes.ReplaceAll(text, stand, []byte(w))
			if strings.Contains(p.path(nil), "txnId") {
				p.vars["txnId"] = fmt.Sprint(time.Now().UnixNano())
			}
			p.kept(p.try("member "+where, p.alice.AccessToken, p.route.Method, p.path(nil), raw))
		}
	}
	if o, ok := body.(json); ok {
		for name := range o {
			one := encode(p.t, json{name: o[name]})
			twice := append(append(append([]byte{}, one[:len(one)-1]...), ','), one[1:]...)
			if a := p.try("a key twice", p.alice.AccessToken, p.route.Method, p.path(nil), twice); a.status < 400 && p.takesJSON() {
				p.t.Errorf("%s twice is accepted: %d %s", name, a.status, a.body)
			}
		}
	}
}

// takesJSON: uploads take anything, and what has no body does not look at it.
func (p *prober) takesJSON() bool {
	return (p.route.Method == "POST" || p.route.Method == "PUT") && !strings.HasPrefix(p.route.Path, "/_matrix/media")
}

// mutations yields copies of a value in which one member is the placeholder; where the path ends with "?",
// it is the name of the member that is.
func mutations(v any, at string) map[string]any {
	out := map[string]any{}
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			c := maps.Clone(v)
			c[name] = placeholder
			out[at+"/"+name] = c
			renamed := maps.Clone(v)
			delete(renamed, name)
			renamed[placeholder] = member
			out[at+"/"+name+"?"] = renamed
			for where, m := range mutations(member, at+"/"+name) {
				c := maps.Clone(v)
				c[name] = m
				out[where] = c
			}
		}
	case []any:
		if len(v) == 0 {
			return nil
		}
		out[at+"/0"] = append([]any{placeholder}, v[1:]...)
		for where, m := range mutations(v[0], at+"/0") {
			out[where] = append([]any{m}, v[1:]...)
		}
	}
	return out
}

// goodBody is a body that goes through, where the documentation's example would be refused early.
func (p *prober) goodBody() any {
	me, device := p.alice.UserID, p.alice.DeviceID
	auth := json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": me}, "password": homeserver.Password}
	signed := func(keys json) json {
		return json{"user_id": me, "keys": keys, "signatures": json{me: json{"ed25519:" + device: strings.Repeat("A", 86)}}}
	}
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	session := json{"first_message_index": 1, "forwarded_count": 0, "is_verified": false, "session_data": json{"ciphertext": "c"}}
	switch p.route.Operation {
	case "login":
		return json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": me}, "password": homeserver.Password, "device_id": "DEVICE", "initial_device_display_name": "name", "refresh_token": true}
	case "register":
		return json{"username": "someone", "password": homeserver.Password, "device_id": "DEVICE", "initial_device_display_name": "name", "inhibit_login": false, "refresh_token": true, "auth": json{"type": "m.login.dummy"}}
	case "changePassword":
		return json{"new_password": homeserver.Password, "logout_devices": false, "auth": auth}
	case "deactivateAccount":
		return json{"erase": true, "auth": json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": me}, "password": "wrong", "session": "s"}}
	case "deleteDevice":
		return json{"auth": auth}
	case "deleteDevices":
		return json{"devices": []any{"OTHER"}, "auth": auth}
	case "setPresence":
		return json{"presence": "online", "status_msg": "here"}
	case "setTyping":
		return json{"typing": true, "timeout": 1000}
	case "setRoomTag":
		return json{"order": 0.25}
	case "setReadMarker":
		return json{"m.fully_read": p.vars["eventId"], "m.read": p.vars["eventId"], "m.read.private": p.vars["eventId"]}
	case "postReceipt":
		return json{"thread_id": "main"}
	case "setProfileField":
		return json{"displayname": "Alice"}
	case "sendMessage":
		return json{"msgtype": "m.text", "body": "b", "m.relates_to": json{"rel_type": "m.thread", "event_id": p.vars["eventId"], "key": "k", "m.in_reply_to": json{"event_id": p.vars["eventId"]}}, "m.mentions": json{"user_ids": []any{me}, "room": true}}
	case "setRoomStateWithKey":
		return json{"name": "n", "list": []any{1, json{"a": "b"}}}
	case "setAccountData", "setAccountDataPerRoom":
		return json{"events": json{"a": []any{1}}, "event_id": "x"}
	case "inviteUser", "kick", "ban", "unban":
		return json{"user_id": "@nobody:" + p.hs.Name, "reason": "r"}
	case "setRoomAlias":
		return json{"room_id": p.alice.CreateRoom(json{})}
	case "setRoomVisibilityOnDirectory":
		return json{"visibility": "public"}
	case "uploadKeys":
		return json{
			"device_keys": json{"user_id": me, "device_id": device, "algorithms": []any{"m.olm.v1.curve25519-aes-sha2"},
				"keys":       json{"curve25519:" + device: key, "ed25519:" + device: key},
				"signatures": json{me: json{"ed25519:" + device: strings.Repeat("A", 86)}}},
			"one_time_keys": json{"signed_curve25519:AAAAHg": json{"key": key, "signatures": json{me: json{"ed25519:" + device: "sig"}}}},
			"fallback_keys": json{"signed_curve25519:AAAAHh": json{"key": key, "fallback": true}},
		}
	case "queryKeys":
		return json{"device_keys": json{me: []any{device}}, "timeout": 10000}
	case "claimKeys":
		return json{"one_time_keys": json{me: json{device: "signed_curve25519"}}, "timeout": 10000}
	case "uploadCrossSigningKeys":
		master := signed(json{"ed25519:" + key: key})
		master["usage"] = []any{"master"}
		self := signed(json{"ed25519:" + key: key})
		self["usage"] = []any{"self_signing"}
		return json{"master_key": master, "self_signing_key": self, "auth": auth}
	case "uploadCrossSigningSignatures":
		return json{me: json{device: signed(json{"ed25519:" + device: key}), key: signed(json{"ed25519:" + key: key})}}
	case "sendToDevice":
		return json{"messages": json{me: json{device: json{"a": "b"}, "*": json{}}}}
	case "postRoomKeysVersion":
		return json{"algorithm": "m.megolm_backup.v1", "auth_data": json{"public_key": key}}
	case "putRoomKeysVersion":
		return json{"algorithm": "m.megolm_backup.v1", "auth_data": json{"public_key": key}, "version": p.vars["version"]}
	case "putRoomKeys":
		return json{"rooms": json{"!room:localhost": json{"sessions": json{"session": session}}}}
	case "putRoomKeysByRoomId":
		return json{"sessions": json{"session": session}}
	case "putRoomKeyBySessionId":
		return session
	case "setPushRule":
		return json{"actions": []any{"notify", json{"set_tweak": "sound", "value": "default"}}, "conditions": []any{json{"kind": "event_match", "key": "content.body", "pattern": "x*", "is": "2", "value": "v"}}, "pattern": "p"}
	case "setPushRuleEnabled":
		return json{"enabled": true}
	case "setPushRuleActions":
		return json{"actions": []any{"notify"}}
	case "postPusher":
		return json{"app_id": "app", "pushkey": "key", "kind": "http", "app_display_name": "a", "device_display_name": "d", "profile_tag": "t", "lang": "en", "append": true, "data": json{"url": "http://127.0.0.1:1/_matrix/push/v1/notify", "format": "event_id_only"}}
	case "createRoom":
		return json{
			"preset": "public_chat", "name": "n", "topic": "t", "room_version": "11", "visibility": "private", "is_direct": false, "room_alias_name": "",
			"invite": []any{"@nobody:" + p.hs.Name}, "creation_content": json{"m.federate": true, "type": "m.space", "additional_creators": []any{}, "predecessor": json{"room_id": "!x:y", "event_id": "$z"}},
			"initial_state":                []any{json{"type": "m.room.guest_access", "state_key": "", "content": json{"guest_access": "can_join"}}},
			"power_level_content_override": json{"users": json{me: 100}, "events": json{"m.room.name": 50}, "ban": 50, "users_default": 0, "notifications": json{"room": 50}},
		}
	case "sharedSecretRegister":
		return json{"nonce": "n", "username": "u", "password": "p", "admin": false, "mac": "00"}
	case "refresh":
		return json{"refresh_token": "syr_none"}
	}
	return nil
}
