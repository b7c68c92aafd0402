package sytest

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	fedserver "hanok/federation/server"
	"hanok/internal/endpoint"
	"hanok/matrix/roomversion"
	"hanok/sytest/homeserver"
)

// federationRoutes are all endpoints for other servers.
func federationRoutes(t *testing.T) []endpoint.Route {
	routes := fedserver.New(fedserver.Options{}).Routes()
	if len(routes) < 30 {
		t.Fatalf("only %d routes", len(routes))
	}
	return routes
}

// hostile is a peer in a room of a server, and the checks that hold for all answers.
type hostile struct {
	t     *testing.T
	hs    *homeserver.Server
	peer  *homeserver.Peer
	alice *homeserver.Client
	room  *homeserver.JoinedRoom

	failures map[string]bool // what went wrong is said once
}

func (h *hostile) fail(kind, format string, args ...any) {
	h.t.Helper()
	if !h.failures[kind] {
		h.failures[kind] = true
		h.t.Errorf(format, args...)
	}
}

func newHostile(t *testing.T, hs *homeserver.Server, version string) *hostile {
	h := &hostile{t: t, hs: hs, peer: hs.Network().NewPeer(), alice: hs.Register(t, "alice"), failures: map[string]bool{}}
	id := h.alice.CreateRoom(json{"preset": "public_chat", "room_version": version})
	h.room = h.peer.Join(hs, id, "mallory")
	return h
}

func (h *hostile) check(what, method, path string, body []byte, status int, answer []byte, took time.Duration) {
	h.t.Helper()
	var e struct {
		Code string `json:"errcode"`
	}
	err := stdjson.Unmarshal(answer, &e)
	switch {
	case status == 500 || status == 0 || status > 504:
		h.fail(fmt.Sprint(what, status), "%s: %s %s %s: %d %s", what, method, short(path), short(string(body)), status, answer)
	case status >= 400 && method != http.MethodHead && (err != nil || e.Code == ""):
		h.fail(fmt.Sprint(what, status), "%s: %s %s: %d without errcode: %s", what, method, short(path), status, answer)
	case took > 5*slow:
		h.fail(what+" slow", "%s: %s %s %s took %v", what, method, short(path), short(string(body)), took)
	}
}

// call makes a signed request.
func (h *hostile) call(what, method, path string, body []byte) (int, []byte) {
	h.t.Helper()
	began := time.Now()
	status, answer := h.peer.Call(h.hs, method, path, body)
	h.check(what, method, path, body, status, answer, time.Since(began))
	return status, answer
}

var sent int

// transaction sends PDUs and EDUs and returns the answer's errors by event ID.
func (h *hostile) transaction(what string, pdus, edus []string) map[string]string {
	h.t.Helper()
	sent++
	body := fmt.Sprintf(`{"origin":%q,"origin_server_ts":1,"pdus":[%s],"edus":[%s]}`, h.peer.Name, strings.Join(pdus, ","), strings.Join(edus, ","))
	status, answer := h.call(what, "PUT", fmt.Sprintf("/_matrix/federation/v1/send/%d", sent), []byte(body))
	var out struct {
		PDUs map[string]struct {
			Error string `json:"error"`
		} `json:"pdus"`
	}
	if status != 200 {
		return nil
	}
	if err := stdjson.Unmarshal(answer, &out); err != nil {
		h.t.Errorf("%s: %s", what, answer)
	}
	errs := map[string]string{}
	for id, r := range out.PDUs {
		errs[id] = r.Error
		if strings.Contains(r.Error, "could not be processed") {
			h.fail(what+" unforeseen", "%s: an unforeseen failure for %s", what, short(body))
		}
	}
	return errs
}

// works checks that the room is as usable as before, for both sides.
func (h *hostile) works() {
	h.t.Helper()
	h.alice.SyncUntilEvent(string(h.room.ID), h.alice.Say(string(h.room.ID), "still here"))
	good := h.room.Event("m.room.message", nil, json{"msgtype": "m.text", "body": "a good one"}, nil)
	errs := h.transaction("a good event", []string{string(good)}, nil)
	if len(errs) != 1 {
		h.t.Errorf("a good event: %v", errs)
	}
	for id, e := range errs {
		if e != "" {
			h.t.Errorf("a good event is refused: %s", e)
			return
		}
		h.alice.SyncUntilEvent(string(h.room.ID), id)
	}
}

var hostileVersions = []string{"1", "3", "6", "10", "11", "12"}

// Requests that are not signed, or not properly.
func TestUnsignedFederationRequests(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	other := n.NewPeer()
	headers := []string{
		"", "X-Matrix", "X-Matrix ", "x-matrix origin", `X-Matrix origin="",key="",sig=""`, "Bearer x", "Basic eDp4",
		`X-Matrix origin="` + string(h.peer.Name) + `",key="ed25519:1",sig="AAAA"`,
		`X-Matrix origin="` + string(h.peer.Name) + `",key="` + string(h.peer.Key.ID) + `",sig="` + strings.Repeat("A", 86) + `"`,
		`X-Matrix origin="` + string(h.peer.Name) + `",key="` + string(h.peer.Key.ID) + `",sig="\"\\\\",destination="` + hs.Name + `"`,
		`X-Matrix origin="localhost:1",key="ed25519:1",sig="AAAA"`, `X-Matrix origin="` + hs.Name + `",key="ed25519:1",sig="AAAA"`,
		`X-Matrix origin="bad name",key="ed25519:1",sig="AAAA"`, `X-Matrix origin="[::1",key="ed25519:1",sig="AAAA"`,
		`X-Matrix origin="` + strings.Repeat("x", 20000) + `",key="ed25519:1",sig="AAAA"`,
		`X-Matrix origin="a",origin="b",key="ed25519:1",sig="AAAA"`, `X-Matrix ` + strings.Repeat(`,`, 5000), `X-Matrix origin="a` + strings.Repeat(`\`, 100),
		`X-Matrix origin="` + string(other.Name) + `",destination="elsewhere.example",key="` + string(other.Key.ID) + `",sig="AAAA"`,
	}
	public := []string{"getServerKey", "perspectivesKeyQuery", "bulkPerspectivesKeyQuery", "getVersion", "exchangeOpenIdToken", "onBindThirdPartyIdentifier"}
	for _, rt := range federationRoutes(t) {
		path := h.fill(rt.Path, nil)
		for _, header := range headers {
			began := time.Now()
			status, answer, err := h.peer.Request(hs, rt.Method, path, header, []byte(`{}`))
			if err != nil {
				t.Errorf("%s %s with %s: %v", rt.Method, path, short(header), err)
				continue
			}
			h.check(short(header), rt.Method, path, nil, status, answer, time.Since(began))
			if !slices.Contains(public, rt.Operation) && (status != 401 && status != 403 || !bytes.Contains(answer, []byte("M_UNAUTHORIZED")) && !bytes.Contains(answer, []byte("M_FORBIDDEN"))) {
				t.Errorf("%s %s with %s: %d %s", rt.Method, path, short(header), status, answer)
			}
		}
		if !slices.Contains(public, rt.Operation) {
			// Signed for something else.
			status, answer, err := h.peer.Request(hs, rt.Method, path, h.header("GET", "/elsewhere", nil), nil)
			if err != nil || status != 401 {
				t.Errorf("%s %s with another request's signature: %d %s %v", rt.Method, path, status, answer, err)
			}
		}
	}
	h.works()
}

func (h *hostile) header(method, uri string, content []byte) string {
	h.t.Helper()
	header, err := h.peer.Sign(h.hs, method, uri, content)
	if err != nil {
		h.t.Fatal(err)
	}
	return header
}

// fill puts values in for the path variables.
func (h *hostile) fill(path string, override map[string]string) string {
	vars := map[string]string{
		"keyId": "ed25519:x", "serverName": string(h.peer.Name), "txnId": fmt.Sprint(time.Now().UnixNano()), "roomId": string(h.room.ID), "userId": string(h.room.User),
		"eventId": string(h.room.Join.ID()), "mediaId": "none",
	}
	return variable.ReplaceAllStringFunc(path, func(v string) string {
		name := v[1 : len(v)-1]
		if raw, ok := override[name]; ok {
			return raw
		}
		value, ok := vars[name]
		if !ok {
			value = "example" // of a variable that this test knows no good value of
		}
		return url.PathEscape(value)
	})
}

// Signed requests with paths, parameters and bodies that make no sense.
func TestBadInputOfServers(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		h := newHostile(t, hs, "11")
		known := requests(t)
		for _, rt := range federationRoutes(t) {
			h.t = t
			doc := known["ss/"+rt.Operation]
			if rt.Method == "GET" {
				doc.Body = nil
			}
			if b := h.goodBody(rt.Operation); b != nil {
				doc.Body = b
			}
			body := encode(t, doc.Body)
			for _, m := range variable.FindAllStringSubmatch(rt.Path, -1) {
				for _, w := range weird() {
					h.call("path variable", rt.Method, h.fill(rt.Path, map[string]string{m[1]: w}), body)
				}
			}
			for _, name := range append(slices.Clone(doc.Query), "limit") {
				for _, w := range weird() {
					h.call("query parameter", rt.Method, h.fill(rt.Path, nil)+"?"+name+"="+w, body)
				}
			}
			h.call("many parameters", rt.Method, h.fill(rt.Path, nil)+"?"+strings.Repeat("ver=1&v=$x:y&", 2000), body)
			for _, b := range []string{"", " ", "{", "null", "[]", `"text"`, "1", "{}", "{}{}", "\x00", "\xff", `{"a":1,"a":2}`, `{"a":1.5}`, `{"a":1e400}`, strings.Repeat("[", 10000) + strings.Repeat("]", 10000), `{"a":"` + strings.Repeat("x", 5<<20) + `"}`} {
				if len(b) > 1<<20 {
					_, _, _ = h.peer.Request(hs, rt.Method, h.fill(rt.Path, nil), h.header(rt.Method, h.fill(rt.Path, nil), nil), []byte(b)) // it may be cut off
					continue
				}
				h.call("body", rt.Method, h.fill(rt.Path, nil), []byte(b))
			}
			if doc.Body == nil {
				continue
			}
			for where, mutated := range mutations(doc.Body, "") {
				values := wrong()
				if strings.HasSuffix(where, "?") {
					values = keys()
				}
				for _, w := range values {
					raw := bytes.ReplaceAll(encode(t, mutated), []byte(`"`+placeholder+`"`), []byte(w))
					h.call("member "+where, rt.Method, h.fill(rt.Path, nil), raw)
				}
			}
		}
		h.works()
	})
}

// Methods that an endpoint does not take, paths that are almost right, and bodies of other types.
// spec: server-server-api#unsupported-endpoints, server-server-api#api-standards
func TestOddRequestsOfServers(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	known := requests(t)
	routes := federationRoutes(t)
	taken := map[string][]string{} // methods by path
	for _, rt := range routes {
		taken[rt.Path] = append(taken[rt.Path], rt.Method)
	}
	expect := func(what, method, path string, body []byte, status int, code string) {
		t.Helper()
		got, answer := h.call(what, method, path, body)
		var e struct {
			Code string `json:"errcode"`
		}
		if err := stdjson.Unmarshal(answer, &e); method != http.MethodHead && (err != nil || e.Code != code) || got != status {
			t.Errorf("%s: %s %s: %d %.200s, want %d %s", what, method, path, got, answer, status, code)
		}
	}
	for _, rt := range routes {
		var body []byte
		if rt.Method != "GET" {
			body = encode(t, known["ss/"+rt.Operation].Body)
			if b := h.goodBody(rt.Operation); b != nil {
				body = encode(t, b)
			}
		}
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND", "ODD"} {
			switch {
			case slices.Contains(taken[rt.Path], method):
			case method == "HEAD" && slices.Contains(taken[rt.Path], "GET"):
				want, _ := h.call("GET", "GET", h.fill(rt.Path, nil), nil)
				if got, answer := h.call("HEAD", "HEAD", h.fill(rt.Path, nil), nil); got != want || len(answer) > 0 {
					t.Errorf("HEAD %s: %d with %d bytes, GET %d", rt.Path, got, len(answer), want)
				}
			default:
				expect("another method", method, h.fill(rt.Path, nil), nil, 405, "M_UNRECOGNIZED")
			}
		}
		for what, path := range map[string]string{
			"a slash at the end": h.fill(rt.Path, nil) + "/", "a part more": h.fill(rt.Path, nil) + "/x/y/z", "two slashes": strings.Replace(h.fill(rt.Path, nil), "/v", "//v", 1),
			"another version": strings.NewReplacer("/v1/", "/v9/", "/v2/", "/v9/").Replace(h.fill(rt.Path, nil)), "capitals": strings.Replace(h.fill(rt.Path, nil), "/_matrix/", "/_MATRIX/", 1),
			"an encoded slash": strings.Replace(h.fill(rt.Path, nil), "/v", "%2Fv", 1),
		} {
			expect(what, rt.Method, path, body, 404, "M_UNRECOGNIZED")
		}
		for _, m := range variable.FindAllStringSubmatch(rt.Path, -1) {
			switch name := m[1]; name {
			case "roomId", "userId", "eventId", "serverName":
				right := h.fill("{"+name+"}", nil)
				expect("encoded twice", rt.Method, h.fill(rt.Path, map[string]string{name: url.PathEscape(percent(right))}), body, 400, "M_INVALID_PARAM")
				expect("invalid UTF-8", rt.Method, h.fill(rt.Path, map[string]string{name: right + "%ff"}), body, 400, "M_INVALID_PARAM")
				expect("NUL", rt.Method, h.fill(rt.Path, map[string]string{name: right + "%00"}), body, 400, "M_INVALID_PARAM")
				if got, answer := h.call("every character encoded", rt.Method, h.fill(rt.Path, map[string]string{name: percent(right)}), body); got == 400 && bytes.Contains(answer, []byte("must start with")) {
					t.Errorf("%s with every character of %s encoded: %d %s", rt.Path, name, got, answer)
				}
			}
		}
		if body == nil {
			continue
		}
		want, _ := h.call("no type", rt.Method, h.fill(rt.Path, nil), body)
		for _, kind := range []string{"application/json", "application/json; charset=iso-8859-1", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"} {
			h.peer.ContentType = kind
			if got, answer := h.call("a body of the type "+kind, rt.Method, h.fill(rt.Path, nil), body); got != want {
				t.Errorf("%s %s with %s: %d %.200s, without %d", rt.Method, rt.Path, kind, got, answer, want)
			}
		}
		h.peer.ContentType = ""
	}
	h.works()
}

// percent encodes every character of an encoded path segment.
func percent(segment string) string {
	plain, err := url.PathUnescape(segment)
	if err != nil {
		return segment
	}
	return "%" + strings.ReplaceAll(fmt.Sprintf("% X", plain), " ", "%")
}

func (h *hostile) goodBody(operation string) any {
	me := string(h.room.User)
	switch operation {
	case "sendTransaction":
		return json{"origin": h.peer.Name, "origin_server_ts": 1, "pdus": []any{json{"room_id": h.room.ID, "type": "x"}}, "edus": []any{json{"edu_type": "m.typing", "content": json{"room_id": h.room.ID, "user_id": me, "typing": true}}}}
	case "queryUserEncryptionKeys":
		return json{"device_keys": json{h.alice.UserID: []any{h.alice.DeviceID}}}
	case "claimUserEncryptionKeys":
		return json{"one_time_keys": json{h.alice.UserID: json{h.alice.DeviceID: "signed_curve25519"}}}
	case "bulkPerspectivesKeyQuery":
		return json{"server_keys": json{string(h.peer.Name): json{string(h.peer.Key.ID): json{"minimum_valid_until_ts": 1}}}}
	case "getMissingPreviousEvents":
		return json{"limit": 10, "min_depth": 0, "earliest_events": []any{}, "latest_events": []any{string(h.room.Join.ID())}}
	}
	return nil
}

// Events with every member wrong in every way, sealed and signed as they are, by every endpoint that takes one.
func TestMalformedPDUs(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		for _, version := range hostileVersions {
			t.Run("v"+version, func(t *testing.T) {
				h := newHostile(t, hs, version)
				key := string(h.room.User)
				invitee := h.alice.UserID
				odd := append(wrong(), `"$x"`, `"$x:localhost:1"`, `["$x"]`, `["$x:localhost:1"]`, `[["$x:localhost:1",{"sha256":""}]]`, `[["$x:localhost:1",{"sha256":1}]]`, `{"localhost:1":{"ed25519:x":"x"}}`,
					`"`+h.hs.Name+`"`, `"`+h.alice.UserID+`"`, `"m.room.create"`, `"m.room.redaction"`, `{"membership":"ban"}`, `{"membership":null}`, `{"users":{"@a:b":"x"}}`, `9007199254740991`, `9223372036854775806`)
				var batch []string
				flush := func(what string) {
					h.transaction(what, batch, nil)
					batch = nil
				}
				for _, kind := range []string{"m.room.message", "m.room.member", "m.room.power_levels", "m.room.redaction", "m.room.create", "m.room.join_rules", "m.room.server_acl", "m.room.third_party_invite", "m.room.encryption", "m.room.aliases", "m.room.policy", "m.room.canonical_alias", "m.room.tombstone", "m.space.child"} {
					var skey *string
					empty := ""
					content := json{"a": json{"b": 1}}
					switch kind {
					case "m.room.message":
						content = json{"msgtype": "m.text", "body": "x", "m.relates_to": json{"rel_type": "m.thread", "event_id": "$x"}}
					case "m.room.redaction":
						content = json{"redacts": h.room.Join.ID()}
					case "m.room.member":
						skey = &key
						content = json{"membership": "join", "displayname": "x", "avatar_url": "y", "join_authorised_via_users_server": "@x:y", "third_party_invite": json{"signed": json{"mxid": "@x:y", "token": "t", "signatures": json{}}}}
					default:
						skey = &empty
					}
					send := func(what string, change func(json)) {
						batch = append(batch, string(h.room.Event(kind, skey, content, change)))
						if len(batch) == 50 {
							flush(what)
						}
					}
					// Members of the event itself only with two kinds: the others' contents are what differs.
					var names []string
					if kind == "m.room.message" || kind == "m.room.member" {
						names = []string{"type", "content", "sender", "room_id", "depth", "origin_server_ts", "prev_events", "auth_events", "state_key", "event_id", "redacts", "unsigned", "origin", "hashes", "signatures", "extra"}
					} else {
						names = []string{"content", "redacts", "state_key"}
					}
					for _, name := range names {
						send(kind+" without "+name, func(m json) { delete(m, name) })
						for _, w := range odd {
							if !stdjson.Valid([]byte(w)) || len(w) > 60000 {
								continue
							}
							send(kind+" "+name, func(m json) { m[name] = stdjson.RawMessage(w) })
						}
					}
					for where, mutated := range mutations(content, "") {
						for _, w := range odd {
							if !stdjson.Valid([]byte(w)) || len(w) > 60000 {
								continue
							}
							raw := bytes.ReplaceAll(encode(t, mutated), []byte(`"`+placeholder+`"`), []byte(w))
							if stdjson.Valid(raw) {
								send(kind+" content"+where, func(m json) { m["content"] = stdjson.RawMessage(raw) })
							}
						}
					}
				}
				flush("the rest")
				// Not signed, signed by somebody else, for somebody else.
				good := h.room.Event("m.room.message", nil, json{"body": "x"}, nil)
				h.transaction("broken signature", []string{strings.Replace(string(good), `"ed25519:`, `"ed25519:x`, 1)}, nil)
				foreign := h.room.Event("m.room.message", nil, json{"body": "x"}, func(m json) { m["sender"] = h.alice.UserID })
				for id, e := range h.transaction("a sender of the server itself", []string{string(foreign)}, nil) {
					if e == "" {
						t.Errorf("an event in alice's name is accepted: %s", id)
					}
				}
				large := h.room.Event("m.room.message", nil, json{"body": strings.Repeat("x", 70000)}, nil)
				h.transaction("large", []string{string(large)}, nil)
				h.transaction("of a room that is not known", []string{string(h.room.Event("m.room.message", nil, json{}, func(m json) { m["room_id"] = "!unknown:localhost:1" }))}, nil)

				// The same through the endpoints for memberships.
				for _, membership := range []string{"join", "leave", "knock", "invite"} {
					state := key
					if membership == "invite" {
						state = invitee
					}
					for _, name := range []string{"type", "content", "sender", "room_id", "depth", "origin_server_ts", "prev_events", "auth_events", "state_key", "event_id", "hashes", "signatures"} {
						for _, w := range odd {
							if !stdjson.Valid([]byte(w)) || len(w) > 60000 {
								continue
							}
							ev := h.room.Event("m.room.member", &state, json{"membership": membership}, func(m json) { m[name] = stdjson.RawMessage(w) })
							h.membership(membership, version, ev)
						}
					}
				}
				h.works()
			})
		}
	})
}

// membership sends a membership event where such events go.
func (h *hostile) membership(membership, version string, ev []byte) {
	h.t.Helper()
	path := homeserver.Path(string(h.room.ID), homeserver.EventID(h.room.Version, ev))
	switch membership {
	case "join":
		h.call("send_join", "PUT", "/_matrix/federation/v2/send_join"+path, ev)
	case "leave":
		h.call("send_leave", "PUT", "/_matrix/federation/v2/send_leave"+path, ev)
	case "knock":
		h.call("send_knock", "PUT", "/_matrix/federation/v1/send_knock"+path, ev)
	case "invite":
		h.call("invite", "PUT", "/_matrix/federation/v2/invite"+path, fmt.Appendf(nil, `{"room_version":%q,"event":%s,"invite_room_state":[]}`, version, ev))
		h.call("invite of another version", "PUT", "/_matrix/federation/v2/invite"+path, fmt.Appendf(nil, `{"room_version":%q,"event":%s,"invite_room_state":[null,{},1]}`, "2", ev))
		h.call("invite of another version", "PUT", "/_matrix/federation/v2/invite"+path, fmt.Appendf(nil, `{"room_version":%q,"event":%s,"invite_room_state":null}`, "9", ev))
		h.call("invite v1", "PUT", "/_matrix/federation/v1/invite"+path, ev)
	}
}

// EDUs of every kind with every member wrong in every way.
func TestMalformedEDUs(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		h := newHostile(t, hs, "11")
		me, event := string(h.room.User), string(h.room.Join.ID())
		keys25519 := json{"user_id": me, "usage": []any{"master"}, "keys": json{"ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}}
		var batch []string
		send := func(edu string) {
			if batch = append(batch, edu); len(batch) == 100 {
				h.transaction("EDUs", nil, batch)
				batch = nil
			}
		}
		for kind, content := range map[string]json{
			"m.typing":             {"room_id": h.room.ID, "user_id": me, "typing": true},
			"m.receipt":            {string(h.room.ID): json{"m.read": json{me: json{"event_ids": []any{event}, "data": json{"ts": 1, "thread_id": "main"}}}}},
			"m.presence":           {"push": []any{json{"user_id": me, "presence": "online", "status_msg": "x", "last_active_ago": 1, "currently_active": true}}},
			"m.direct_to_device":   {"sender": me, "type": "t", "message_id": "m", "messages": json{h.alice.UserID: json{h.alice.DeviceID: json{"a": 1}, "*": json{}}}},
			"m.device_list_update": {"user_id": me, "device_id": "D", "stream_id": 5, "prev_id": []any{4}, "deleted": false, "device_display_name": "n", "keys": json{"user_id": me, "device_id": "D", "algorithms": []any{"a"}, "keys": json{"ed25519:D": "k"}, "signatures": json{me: json{"ed25519:D": "s"}}}},
			"m.signing_key_update": {"user_id": me, "master_key": keys25519, "self_signing_key": keys25519},
			"m.unknown":            {"a": 1},
		} {
			for where, mutated := range mutations(json{"edu_type": kind, "content": content}, "") {
				values := wrong()
				if strings.HasSuffix(where, "?") {
					values = keys()
				}
				for _, w := range values {
					if !stdjson.Valid([]byte(w)) || strings.Contains(w, `"a":1,"a":2`) || strings.Contains(w, "400") || strings.Contains(w, `\ud800`) || strings.Contains(w, "\xff") || strings.HasPrefix(w, "[[[[") || strings.HasPrefix(w, `{"a":{"a"`) || where == "/edu_type" && w != `"x"` && w != `null` && w != `""` {
						// What makes the whole transaction unreadable is no use here.
						continue
					}
					send(string(bytes.ReplaceAll(encode(t, mutated), []byte(`"`+placeholder+`"`), []byte(w))))
				}
			}
			// Thousands of entries in one.
			huge := json{}
			for i := range 20000 {
				huge[fmt.Sprintf("@user%d:%s", i, h.peer.Name)] = json{"event_ids": []any{event}, "data": json{"ts": 1}}
			}
			switch kind {
			case "m.receipt":
				send(string(encode(t, json{"edu_type": kind, "content": json{string(h.room.ID): json{"m.read": huge}}})))
			case "m.direct_to_device":
				devices := json{}
				for i := range 20000 {
					devices[fmt.Sprintf("D%d", i)] = json{}
				}
				send(string(encode(t, json{"edu_type": kind, "content": json{"sender": me, "type": "t", "message_id": "huge", "messages": json{h.alice.UserID: devices}}})))
				users := json{}
				for i := range 20000 {
					users[fmt.Sprintf("@user%d:%s", i, hs.Name)] = json{"*": json{}}
				}
				send(string(encode(t, json{"edu_type": kind, "content": json{"sender": me, "type": "t", "message_id": "huge2", "messages": users}})))
			case "m.presence":
				push := make([]any, 20000)
				for i := range push {
					push[i] = json{"user_id": fmt.Sprintf("@user%d:%s", i, h.peer.Name), "presence": "online"}
				}
				send(string(encode(t, json{"edu_type": kind, "content": json{"push": push}})))
			case "m.device_list_update":
				prev := make([]any, 20000)
				for i := range prev {
					prev[i] = i
				}
				send(string(encode(t, json{"edu_type": kind, "content": json{"user_id": me, "device_id": "D", "stream_id": 5, "prev_id": prev}})))
			}
		}
		h.transaction("EDUs", nil, batch)
		h.works()
	})
}

// A peer that answers our questions with nonsense, slowly, or not at all.
func TestPeerThatAnswersNonsense(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		for _, version := range hostileVersions {
			t.Run("v"+version, func(t *testing.T) {
				h := newHostile(t, hs, version)
				own := string(h.room.Join.JSON())
				endless := `{"pdus":[` + strings.TrimSuffix(strings.Repeat(own+",", 200), ",") + `],"auth_chain":[],"events":[` + own + `]}`
				ids := func(count int) string {
					var b strings.Builder
					for i := range count {
						fmt.Fprintf(&b, `"$%s%06d",`, strings.Repeat("x", 37), i)
					}
					return strings.TrimSuffix(b.String(), ",")
				}
				manyIDs := `{"pdu_ids":[` + ids(500) + `],"auth_chain_ids":[` + ids(500) + `]}`
				for _, answer := range []string{"", "null", "[]", "{}", "{", `{"pdus":null,"auth_chain":null,"events":null,"pdu_ids":null,"auth_chain_ids":null}`, `{"pdus":[null,1,"x",{}],"auth_chain":[null],"events":[null,{}],"pdu_ids":[null],"auth_chain_ids":[1]}`,
					`{"pdu_ids":["","$","\u0000","x"],"auth_chain_ids":["$x"],"events":[{"a":1,"a":2}]}`, endless, manyIDs, strings.Repeat("[", 100000), `{"pdus":[` + own + `],"auth_chain":[` + own + `],"events":[` + own + `],"pdu_ids":["` + string(h.room.Join.ID()) + `"],"auth_chain_ids":["` + string(h.room.Join.ID()) + `"]}`} {
					h.peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
						if strings.HasPrefix(r.URL.Path, "/_matrix/key/") {
							return false
						}
						_, _ = io.WriteString(w, answer)
						return true
					}
					missing := func(id string) any {
						if version == "1" {
							return []any{[]any{id + ":" + string(h.peer.Name), json{"sha256": ""}}}
						}
						return []any{id}
					}
					sent++
					none := fmt.Sprintf("$%s%06d", strings.Repeat("A", 37), sent)
					before := len(h.peer.Asked())
					h.transaction("prev event that cannot be had", []string{string(h.room.Event("m.room.message", nil, json{"body": "x"}, func(m json) { m["prev_events"] = missing(none) }))}, nil)
					h.transaction("auth event that cannot be had", []string{string(h.room.Event("m.room.message", nil, json{"body": "x"}, func(m json) { m["auth_events"] = missing(none) }))}, nil)
					ev := h.room.Event("m.room.member", ref(string(h.room.User)), json{"membership": "join"}, func(m json) { m["prev_events"], m["auth_events"] = missing(none), missing(none) })
					h.membership("join", version, ev)
					if asked := len(h.peer.Asked()) - before; asked > 400 {
						t.Errorf("%d requests to the peer for three events", asked)
					}
				}
				h.peer.Answer = nil
				h.works()
			})
		}
	})
}

func ref(s string) *string { return &s }

// A repeated transaction has no second effect, and a transaction that is too large is refused whole.
func TestRepeatedTransaction(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	h := newHostile(t, hs, "11")
	edu := string(encode(t, json{"edu_type": "m.direct_to_device", "content": json{"sender": h.room.User, "type": "org.example.ping", "message_id": "one", "messages": json{h.alice.UserID: json{"*": json{}}}}}))
	body := fmt.Appendf(nil, `{"origin":%q,"origin_server_ts":1,"pdus":[],"edus":[%s]}`, h.peer.Name, edu)
	for range 3 {
		h.call("repeated", "PUT", "/_matrix/federation/v1/send/same", body)
		h.call("the same message in another transaction", "PUT", fmt.Sprintf("/_matrix/federation/v1/send/%d", time.Now().UnixNano()), body)
	}
	count := 0
	for _, e := range homeserver.Events(h.alice.Sync(0), "to_device", "events") {
		if e["type"] == "org.example.ping" {
			count++
		}
	}
	if count != 1 {
		t.Errorf("the message came %d times", count)
	}
	for _, body := range []string{`{"pdus":[` + strings.TrimSuffix(strings.Repeat(`{},`, 51), ",") + `]}`, `{"edus":[` + strings.TrimSuffix(strings.Repeat(`{},`, 101), ",") + `]}`} {
		if status, answer := h.call("too much", "PUT", "/_matrix/federation/v1/send/toomuch", []byte(body)); status != 400 {
			t.Errorf("%d %s", status, answer)
		}
	}
	h.works()
}

// An invite may claim any room version for a room that is not known here. That must not keep anybody from joining the room.
func TestInviteOfAnotherVersion(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs1, hs2 := two(start)
		alice, bob, carol := hs1.Register(t, "alice"), hs1.Register(t, "bob"), hs2.Register(t, "carol")
		room := carol.CreateRoom(json{"preset": "public_chat", "room_version": "11"})
		v1, _ := roomversion.Get("1")
		peer := hs1.Network().NewPeer()
		mallory := "@mallory:" + string(peer.Name)
		ref := []any{[]any{"$x:" + string(peer.Name), json{"sha256": ""}}}
		for _, victim := range []*homeserver.Client{alice, bob} {
			id := fmt.Sprintf("$%d:%s", nextNumber(), peer.Name)
			invite := peer.Seal(v1, encode(t, json{"type": "m.room.member", "room_id": room, "sender": mallory, "state_key": victim.UserID, "content": json{"membership": "invite"},
				"event_id": id, "depth": 5, "origin_server_ts": 1, "prev_events": ref, "auth_events": ref}))
			status, answer := peer.Call(hs1, "PUT", "/_matrix/federation/v2/invite"+homeserver.Path(room, id), fmt.Appendf(nil, `{"room_version":"1","event":%s,"invite_room_state":[]}`, invite))
			if status != 200 {
				t.Fatalf("%d %s", status, answer)
			}
		}
		alice.SyncUntilInvited(room)
		alice.Join(room, hs2.Name)
		carol.SyncUntilJoined(room, alice.UserID)
		alice.SyncUntilEvent(room, carol.Say(room, "hello"))
		carol.SyncUntilEvent(room, alice.Say(room, "hello"))
		if res := bob.Sync(0); homeserver.Dig(res, "rooms", "invite", room) != nil {
			t.Error("the false invite is still shown")
		}
		bob.Do("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		bob.Join(room, hs2.Name)
		carol.SyncUntilJoined(room, bob.UserID)
		for _, path := range []string{"/v3/sync", "/v3/joined_rooms", "/v3/rooms" + homeserver.Path(room, "messages") + "?dir=b"} {
			alice.Must("GET", path, nil)
		}
		hs1.Kill()
		hs1.Start()
		alice.Must("GET", "/v3/sync", nil)
		alice.SyncUntilEvent(room, carol.Say(room, "after a restart"))
	})
}
