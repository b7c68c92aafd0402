package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// oddNumbers are JSON numbers that need care in canonical JSON.
var oddNumbers = []string{
	"0", "-0", "0.0", "-0.0", "1.0", "1e3", "1E2", "1e+2", "-1.5e-7", "0.1", "0.30000000000000004", "1.5", "1e16", "1e22", "1e23", "5e-324", "0.0001", "0.00001", "100000000000000000000.0",
	"1.7976931348623157e308", "123456789.123456789", "9007199254740991", "-9007199254740991", "9007199254740992", "-9007199254740993", "9223372036854775808",
	"123456789012345678901234567890", "1e400", "[1.0, 2, 3e0, -0]",
}

// oddValues are other JSON values that servers may write in more than one way.
var oddValues = []string{
	`"\u0000"`, `"\u0001\b\f\n\r\t\u001f"`, `"\u007f\u0080\u009f"`, `"\u2028\u2029"`, `"\ufeff"`, `"\ufffe\uffff\ufdd0"`, `"\ud83d\ude00"`, `"\uD83D\uDE00 \u00E9 e\u0301"`, `"\/ \" \\"`, `"<script>&amp;'"`,
	`"\ud800"`, `"\udc00\ud800"`, `"a\ud83d"`, `"\u202e\u200d\u200b\u2066"`, `"👩‍👩‍👧‍👦🏳️‍🌈"`, `"𐀀 𝕳 \ud800\udc00"`, `null`, `true`, `[]`, `{}`, `[[],{},null,[[]]]`,
	`{"\ue000":1,"😀":2,"":3,"a\u0000b":4," ":5,"\"":6,"\\":7,"é":8,"e\u0301":9,"Z":10,"\uffff":11,"\ud800\udc00":12,"__proto__":13}`,
	`{"a":1,"a":2}`, `{"event_id":"$x","room_id":"!x","sender":"@x:y","unsigned":{"age":1},"signatures":{},"hashes":{},"age_ts":1,"redacts":"$x","m.relates_to":"no object"}`,
	strings.Repeat("[", 60) + strings.Repeat("]", 60), strings.Repeat(`{"a":`, 90) + "1" + strings.Repeat("}", 90),
}

// interopOddContent has clients send content that is written in odd ways, and compares what either side shows of it: servers that do not agree on the canonical form
// of an event do not agree on its hash either.
func interopOddContent(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, room := p.sharedRoomOf(t, version)
			sent := map[string]string{}
			foreign := alice.Server() != p.ours
			for _, value := range slices.Concat(oddNumbers, oddValues) {
				body := `{"msgtype":"m.text","body":"odd","value":` + value + `}`
				status, res := alice.Do("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", fmt.Sprint("odd", len(sent), time.Now().UnixNano())), body)
				switch {
				case status == http.StatusOK:
					sent[value] = fmt.Sprint(res["event_id"])
				case foreign && p.lacks["odd values"] != "":
					// what it says of those that it does not take is its own affair
				case status != http.StatusBadRequest:
					t.Errorf("%s answers %d %v for %s", p.home.Name, status, res, value)
				case !slices.Contains(oddNumbers, value) && !strings.Contains(value, `\ud`) && value != `{"a":1,"a":2}`:
					t.Errorf("%s does not take %s: %v", p.home.Name, value, res)
				}
			}
			last := alice.Say(room, "last")
			sees(t, bob, room, last)
			for _, value := range slices.Sorted(maps.Keys(sent)) {
				here, there := sees(t, alice, room, sent[value]), sees(t, bob, room, sent[value])
				if !reflect.DeepEqual(here["content"], there["content"]) {
					t.Errorf("%s: %v here is %v there", value, here["content"], there["content"])
				}
			}
			sees(t, alice, room, bob.Say(room, "all read"))
			sameState(t, room, alice, bob)
		})
	}
}

// interopOddKeys does the same for types and state keys.
func interopOddKeys(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, room := p.sharedRoomOf(t, version)
			for _, key := range []string{" ", "/", "%2F", "한옥 ☃", "\x7f", "\u2028", "👩‍👩‍👧‍👦", "\"\\", "#?&=+", "..", strings.Repeat("x", 255), strings.Repeat("é", 127)} {
				alice.SetState(room, "org.example.odd", key, json{"key": key})
				stateIs(t, bob, room, "org.example.odd", key, "key", key)
				if len(key) <= 240 {
					alice.SetState(room, "org.example."+key, "", json{"key": key})
					stateIs(t, bob, room, "org.example."+key, "", "key", key)
				}
			}
			for _, key := range []string{strings.Repeat("x", 256), strings.Repeat("é", 128)} {
				path := "/v3/rooms" + homeserver.Path(room, "state", "org.example.odd", key)
				if status, res := alice.Do("PUT", path, json{"key": "long"}); status == http.StatusOK && len([]rune(key)) > 255 {
					t.Errorf("a state key of %d bytes: %d %v", len(key), status, res)
				} else if status == http.StatusOK {
					t.Logf("%s takes a state key of %d bytes", p.home.Name, len(key))
				}
			}
			// Whatever of this was taken does not stand between them.
			sees(t, bob, room, alice.Say(room, "last"))
			sees(t, alice, room, bob.Say(room, "all read"))
		})
	}
}

// interopLargeEvents sends events as large as the server takes, which the other one has to take, too.
func interopLargeEvents(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, room := p.sharedRoomOf(t, version)
			for name, unit := range map[string]string{"ASCII": "x", "multibyte": "한", "escaped": "\\"} {
				send := func(n int) string {
					status, res := alice.Do("PUT", "/v3/rooms"+homeserver.Path(room, "send", "m.room.message", fmt.Sprint("large", n, time.Now().UnixNano())),
						json{"msgtype": "m.text", "body": strings.Repeat(unit, n)})
					tooLarge := status == http.StatusRequestEntityTooLarge && (res["errcode"] == "M_TOO_LARGE" || !p.can(alice, "code of large events"))
					if status != http.StatusOK && !tooLarge {
						t.Errorf("%d %s characters: %d %v, want 200 or 413 M_TOO_LARGE", n, name, status, res)
					}
					id, _ := res["event_id"].(string)
					return id
				}
				size := len(unit)
				if unit == "\\" {
					size = 2
				}
				// The largest that is taken, to the character.
				fits, tooLarge, largest := 60_000/size, 65_536/size, ""
				for tooLarge-fits > 1 {
					n := (fits + tooLarge) / 2
					if id := send(n); id != "" {
						fits, largest = n, id
					} else {
						tooLarge = n
					}
				}
				if largest == "" {
					t.Fatalf("%s takes no event of more than 60,000 bytes", p.home.Name)
				}
				t.Logf("%s takes %d %s characters of %d bytes", p.home.Name, fits, name, size)
				body, _ := homeserver.Dig(sees(t, bob, room, largest), "content", "body").(string)
				if body != strings.Repeat(unit, fits) {
					t.Errorf("the largest event of %d %s characters has lost some: %d bytes", fits, name, len(body))
				}
			}
			alice.SetState(room, "m.room.topic", "", json{"topic": strings.Repeat("x", 60_000)})
			stateIs(t, bob, room, "m.room.topic", "", "topic", strings.Repeat("x", 60_000))
			sees(t, alice, room, bob.Say(room, "all read"))
			wholeRoomAgain(t, p, room, alice)
			sameState(t, room, alice, bob)
		})
	}
}

// wholeRoomAgain has another user of the other server's side read all of a room that is there already, page by page.
func wholeRoomAgain(t *testing.T, p pair, room string, alice *homeserver.Client) {
	t.Helper()
	carol := p.away.Register(t, "carol")
	carol.Join(room, p.home.Name)
	member(t, alice, room, carol.UserID, "join")
	want := map[any]bool{}
	for _, e := range backwards(alice, room, 100) {
		want[e["event_id"]] = true
	}
	for _, e := range backwards(carol, room, 100) {
		delete(want, e["event_id"])
	}
	if len(want) > 0 {
		t.Errorf("%s does not find %d events", carol.UserID, len(want))
	}
}

// oddEvent is what a third server makes of an event that would be right.
type oddEvent struct {
	name     string
	stateKey *string
	content  any
	change   func(members json)
}

// oddEvents are events in which something is unusual or wrong.
func oddEvents(t *testing.T, peer *homeserver.Peer, r *homeserver.JoinedRoom) []oddEvent {
	set := func(name, member string, value any) oddEvent {
		return oddEvent{name: name, change: func(members json) { members[member] = value }}
	}
	state := func(name, key string, change func(json)) oddEvent {
		return oddEvent{name: name, stateKey: &key, change: change}
	}
	without := func(member string) oddEvent {
		return oddEvent{name: "without." + member, change: func(members json) { delete(members, member) }}
	}
	list := func(member string, change func([]any) []any) func(json) {
		return func(members json) { members[member] = change(slices.Clone(members[member].([]any))) }
	}
	out := []oddEvent{
		{name: "right"},
		set("unknown.string", "org.example.unknown", "x"), set("unknown.object", "org.example.unknown", json{"a": []any{1, nil, json{}}}), set("unknown.null", "org.example.unknown", nil),
		set("unknown.membership", "membership", "join"), set("unknown.age", "age", 5), set("unknown.age_ts", "age_ts", 5), set("unknown.origin", "origin", "elsewhere.example.org"),
		set("unknown.prev_state", "prev_state", []any{}), set("unknown.user_id", "user_id", "@x:example.org"), set("unknown.event_id", "event_id", "$bogus"), set("unknown.redacts", "redacts", "$nothing"),
		set("unknown.outlier", "outlier", true), set("unknown.internal_metadata", "internal_metadata", json{"outlier": true, "soft_failed": true}), set("unknown.unsigned", "unsigned", json{"age": -5, "redacted_because": json{}}),
		set("unknown.empty", "", "x"), set("unknown.auth_edges", "auth_edges", 1.0),
		set("depth.0", "depth", 0), set("depth.1", "depth", 1), set("depth.negative", "depth", -1), set("depth.53", "depth", 9007199254740991), set("depth.past53", "depth", 9007199254740992),
		set("depth.past63", "depth", uint64(9223372036854775808)), set("depth.string", "depth", "5"), set("depth.fraction", "depth", 1.5), set("depth.null", "depth", nil), without("depth"),
		set("ts.0", "origin_server_ts", 0), set("ts.negative", "origin_server_ts", -1), set("ts.future", "origin_server_ts", 4102444800000), set("ts.53", "origin_server_ts", 9007199254740991),
		set("ts.past53", "origin_server_ts", 9007199254740992), set("ts.string", "origin_server_ts", "5"), set("ts.null", "origin_server_ts", nil), without("origin_server_ts"),
		set("content.list", "content", []any{}), set("content.null", "content", nil), set("content.string", "content", "x"), without("content"),
		set("content.fraction", "content", json{"n": 1.5}), set("content.large", "content", json{"n": 9007199254740992}),
		set("content.lists", "content", json{"body": json{}, "msgtype": []any{}, "m.relates_to": []any{}, "m.mentions": "all"}),
		set("sender.other", "sender", "@somebody:elsewhere.example.org"), set("sender.same-server", "sender", "@nobody:"+string(r.User.Server())), set("sender.malformed", "sender", "nobody"), without("sender"),
		set("room.other", "room_id", "!other:example.org"), set("room.number", "room_id", 5),
		{name: "prev.none", change: list("prev_events", func([]any) []any { return []any{} })},
		{name: "prev.twice", change: list("prev_events", func(l []any) []any { return append(l, l[0]) })},
		{name: "prev.malformed", change: list("prev_events", func(l []any) []any { return append(l, 5) })},
		{name: "prev.20", change: list("prev_events", func(l []any) []any { return slices.Repeat(l, 20) })},
		{name: "prev.21", change: list("prev_events", func(l []any) []any { return slices.Repeat(l, 21) })},
		without("prev_events"), without("auth_events"),
		{name: "auth.none", change: list("auth_events", func([]any) []any { return []any{} })},
		{name: "auth.twice", change: list("auth_events", func(l []any) []any { return append(l, l[0]) })},
		{name: "auth.without-first", change: list("auth_events", func(l []any) []any { return l[1:] })},
		{name: "auth.without-last", change: list("auth_events", func(l []any) []any { return l[:len(l)-1] })},
		{name: "auth.11", change: list("auth_events", func(l []any) []any { return slices.Repeat(l, 6)[:11] })},
		state("state.default-level", "", nil), // needs more power than the peer has
		state("state.own", string(r.User), nil), state("state.other", "@somebody:elsewhere.example.org", nil), state("state.own-server", "@nobody:"+string(r.User.Server()), nil),
		set("state_key.null", "state_key", nil), set("state_key.number", "state_key", 5),
		set("redacts.number", "redacts", 5), set("type.empty", "type", ""), set("type.number", "type", 5), without("type"),
		set("type.255", "type", strings.Repeat("t", 255)), set("type.256", "type", strings.Repeat("t", 256)), set("type.255-characters", "type", strings.Repeat("é", 255)),
		{name: "unknown.many", change: func(members json) {
			for i := range 500 {
				members[fmt.Sprint("org.example.", i)] = i
			}
		}},
		{name: "content.deep", content: nested(60)},
		{name: "content.keys", content: json{"\ue000": 1, "😀": 2, "": 3, "a\x00b": 4, "\u2028": "\x7f\x01"}},
	}
	for _, size := range []int{65_000, 65_535, 65_536, 65_537} {
		out = append(out, oddEvent{name: fmt.Sprint("size.", size), change: func(members json) {
			members["content"] = json{"body": ""}
			raw, err := stdjson.Marshal(members)
			if err != nil {
				t.Fatal(err)
			}
			members["content"] = json{"body": strings.Repeat("x", size-len(peer.Seal(r.Version, raw)))}
		}})
	}
	return out
}

func nested(depth int) any {
	var v any = json{}
	for range depth {
		v = json{"a": v}
	}
	return v
}

// interopOddEvents has a third server send the same odd events to both, and compares which of them they show.
func interopOddEvents(t *testing.T, p pair) {
	for _, version := range p.versions(t) {
		p.part(t, "version "+version, func(t *testing.T) {
			alice, bob, room := p.sharedRoomOf(t, version)
			peer := p.home.Network().NewPeer()
			peer.ContentType = "application/json" // without which Dendrite refuses everything
			r := peer.Join(p.home, room, "stranger")
			for _, c := range []*homeserver.Client{alice, bob} {
				member(t, c, room, string(r.User), "join")
			}
			send := func(raw []byte) (results [2]string) {
				for i, s := range []*homeserver.Server{p.home, p.away} {
					body := fmt.Sprintf(`{"origin":%q,"origin_server_ts":%d,"pdus":[%s]}`, peer.Name, time.Now().UnixMilli(), raw)
					status, answer := peer.Call(s, "PUT", "/_matrix/federation/v1/send"+homeserver.Path(fmt.Sprint("odd", time.Now().UnixNano())), []byte(body))
					results[i] = fmt.Sprintf("%d %.300s", status, answer)
					if status >= 500 {
						t.Errorf("%s answers %s", s.Name, results[i])
					}
				}
				return results
			}
			marker := func(name string) string { return "org.example.odd." + name }
			odd := slices.DeleteFunc(oddEvents(t, peer, r), func(o oddEvent) bool { return p.lacks["odd event "+o.name] != "" })
			answers := map[string][2]string{}
			for _, o := range odd {
				content := o.content
				if content == nil {
					content = json{"odd": o.name}
				}
				answers[o.name] = send(r.Event(marker(o.name), o.stateKey, content, o.change))
			}
			last := r.Event("m.room.message", nil, json{"msgtype": "m.text", "body": "last"}, nil)
			send(last)
			lastID := homeserver.EventID(r.Version, last)
			shown := [2]map[string]string{}
			for i, c := range []*homeserver.Client{alice, bob} {
				sees(t, c, room, lastID)
				shown[i] = map[string]string{}
				for _, e := range backwards(c, room, 100) {
					name, _ := e["type"].(string)
					if odd := fmt.Sprint(homeserver.Dig(e, "content", "odd")); strings.HasPrefix(name, "ttt") || strings.HasPrefix(name, "é") || name == "" {
						name = marker(odd)
					}
					shown[i][name] = fmt.Sprintf("%.300s", fmt.Sprint(e["content"], e["state_key"], e["origin_server_ts"], e["sender"]))
				}
			}
			for _, o := range odd {
				here, there := shown[0][marker(o.name)], shown[1][marker(o.name)]
				switch {
				case o.name == "right" && (here == "" || there == ""):
					t.Errorf("an event that is right is not shown: here %q, there %q: %s", here, there, answers[o.name])
				case here != there:
					t.Errorf("%s: %q at %s (%s), %q at %s (%s)", o.name, here, p.home.Name, answers[o.name][0], there, p.away.Name, answers[o.name][1])
				}
			}
			sees(t, bob, room, alice.Say(room, "hello"))
			sees(t, alice, room, bob.Say(room, "hello"))
			sameState(t, room, alice, bob)
		})
	}
}
