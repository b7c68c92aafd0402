package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/sytest/homeserver"
)

// hostedRoom is a room of a peer, which lets users join without telling them the members, and answers for the state when it is told to.
type hostedRoom struct {
	t       *testing.T
	peer    *homeserver.Peer
	version *roomversion.Version
	id      matrix.RoomID
	creator matrix.UserID

	mu     sync.Mutex
	state  map[matrix.StateKey]*event.Event
	events map[matrix.EventID]*event.Event
	last   *event.Event
	asked  chan struct{} // gets a token for each request for the state
	open   chan struct{} // closed when those are answered
	refuse bool          // with 403
}

func newHostedRoom(t *testing.T, peer *homeserver.Peer, members int) *hostedRoom {
	version, _ := roomversion.Get("11")
	h := &hostedRoom{
		t: t, peer: peer, version: version, id: matrix.RoomID("!room:" + string(peer.Name)), creator: matrix.UserID("@creator:" + string(peer.Name)),
		state: map[matrix.StateKey]*event.Event{}, events: map[matrix.EventID]*event.Event{}, asked: make(chan struct{}, 100), open: make(chan struct{}),
	}
	h.set(h.creator, "m.room.create", "", `{"room_version":"11"}`)
	h.set(h.creator, "m.room.member", string(h.creator), `{"membership":"join"}`)
	h.set(h.creator, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100}}`, h.creator))
	h.set(h.creator, "m.room.join_rules", "", `{"join_rule":"public"}`)
	h.set(h.creator, "m.room.name", "", `{"name":"Town square"}`)
	for i := range members {
		user := matrix.UserID(fmt.Sprintf("@m%d:%s", i, peer.Name))
		h.set(user, "m.room.member", string(user), `{"membership":"join"}`)
	}
	peer.Answer = h.answer
	return h
}

// auth lists what authorises an event of a sender.
func (h *hostedRoom) auth(sender matrix.UserID) (ids []matrix.EventID) {
	for _, k := range []matrix.StateKey{{Type: "m.room.create"}, {Type: "m.room.power_levels"}, {Type: "m.room.join_rules"}, {Type: "m.room.member", Key: string(sender)}} {
		if ev := h.state[k]; ev != nil {
			ids = append(ids, ev.ID())
		}
	}
	return ids
}

func (h *hostedRoom) set(sender matrix.UserID, eventType, key, content string) {
	h.send(event.Proto{Sender: sender, Type: eventType, StateKey: &key, Content: []byte(content)})
}

// send makes an event of a user of the peer, which the room ends with.
func (h *hostedRoom) send(p event.Proto) *event.Event {
	p.RoomID, p.Depth, p.OriginServerTS = h.id, 1, 1
	if h.last != nil {
		p.Depth, p.PrevEvents = h.last.Depth()+1, []matrix.EventID{h.last.ID()}
		p.AuthEvents = h.auth(p.Sender)
		if p.Type != "m.room.member" {
			p.AuthEvents = slices.DeleteFunc(p.AuthEvents, func(id matrix.EventID) bool { return h.events[id].Is("m.room.join_rules", "") })
		}
	}
	ev, err := event.Build(h.version, p, h.peer.Name)
	if err == nil {
		ev, err = ev.Sign(h.peer.Name, h.peer.Key)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.add(ev)
	return ev
}

func (h *hostedRoom) add(ev *event.Event) {
	h.last, h.events[ev.ID()] = ev, ev
	if key, ok := ev.StateKey(); ok {
		h.state[matrix.StateKey{Type: ev.Type(), Key: key}] = ev
	}
}

func (h *hostedRoom) answer(w http.ResponseWriter, r *http.Request) bool {
	parts := strings.Split(strings.TrimPrefix(r.URL.Path, "/_matrix/federation/"), "/")
	reply := func(v any) bool {
		b, err := stdjson.Marshal(v)
		if err != nil {
			h.t.Error(err)
		}
		_, _ = w.Write(b)
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case len(parts) == 4 && parts[1] == "make_join":
		user := matrix.UserID(parts[3])
		return reply(json{"room_version": "11", "event": json{
			"type": "m.room.member", "room_id": h.id, "sender": user, "state_key": user, "content": json{"membership": "join"}, "depth": h.last.Depth() + 1,
			"prev_events": []matrix.EventID{h.last.ID()}, "auth_events": h.auth(user),
		}})
	case len(parts) == 4 && parts[1] == "send_join":
		if r.URL.Query().Get("omit_members") != "true" {
			h.t.Error("the members are asked for")
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return false
		}
		state, chain := []stdjson.RawMessage{}, []stdjson.RawMessage{}
		for _, ev := range h.state {
			if ev.Type() != "m.room.member" {
				state = append(state, ev.JSON())
			}
		}
		chain = append(chain, h.state[matrix.StateKey{Type: "m.room.member", Key: string(h.creator)}].JSON())
		join, err := event.Parse(h.version, body)
		if err != nil {
			h.t.Error(err)
			return false
		}
		h.add(join)
		return reply(json{"origin": h.peer.Name, "members_omitted": true, "servers_in_room": []matrix.ServerName{h.peer.Name}, "state": state, "auth_chain": chain})
	case len(parts) == 3 && (parts[1] == "state_ids" || parts[1] == "state"):
		h.mu.Unlock()
		select {
		case h.asked <- struct{}{}:
		default:
		}
		select {
		case <-h.open:
		case <-r.Context().Done():
		}
		h.mu.Lock()
		if h.refuse {
			w.WriteHeader(http.StatusForbidden)
			return reply(json{"errcode": "M_FORBIDDEN", "error": "you are not in this room"})
		}
		ids, events := []matrix.EventID{}, []stdjson.RawMessage{}
		for _, ev := range h.state {
			if ev.Sender().Server() == h.peer.Name {
				ids, events = append(ids, ev.ID()), append(events, ev.JSON())
			}
		}
		if parts[1] == "state_ids" {
			return reply(json{"pdu_ids": ids, "auth_chain_ids": []matrix.EventID{}})
		}
		return reply(json{"pdus": events, "auth_chain": []stdjson.RawMessage{}})
	case len(parts) == 4 && parts[1] == "user" && parts[2] == "devices":
		return reply(json{"user_id": parts[3], "stream_id": 1, "devices": []json{{"device_id": "ONE", "keys": json{"user_id": parts[3], "device_id": "ONE", "algorithms": []string{}, "keys": json{}, "signatures": json{}}}}})
	case len(parts) == 3 && parts[1] == "event":
		if ev := h.events[matrix.EventID(parts[2])]; ev != nil {
			return reply(json{"origin": h.peer.Name, "pdus": []stdjson.RawMessage{ev.JSON()}})
		}
	case len(parts) == 3 && parts[1] == "send":
		return reply(json{"pdus": json{}})
	}
	return false
}

const lazyMembers = `filter={"room":{"state":{"lazy_load_members":true},"timeline":{"lazy_load_members":true}}}`

// A server that is killed while it fetches the members of a room goes on with that when it starts again, and tells
// clients of the room in the way they expect, all the time.
func TestKillDuringPartialState(t *testing.T) {
	const members = 60
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice := hs.Register(t, "alice")
		h := newHostedRoom(t, hs.Network().NewPeer(), members)
		room := string(h.id)
		shown := func(res homeserver.JSON) bool { return homeserver.Dig(res, "rooms", "join", room) != nil }
		sync := func(query string) homeserver.JSON {
			t.Helper()
			return alice.Must("GET", "/v3/sync?timeout=0&"+query, nil)
		}
		sliding := func(member string) bool {
			t.Helper()
			res := alice.Must("POST", "/unstable/org.matrix.simplified_msc3575/sync", json{"conn_id": member, "lists": json{
				"all": json{"ranges": [][]int{{0, 20}}, "timeline_limit": 5, "required_state": [][]string{{"m.room.member", member}}},
			}})
			return homeserver.Dig(res, "rooms", room) != nil
		}
		around := make(chan homeserver.JSON, 1) // the answer to a request for an event with the state
		before := sync("")["next_batch"].(string)
		alice.Join(room, string(h.peer.Name))
		<-h.asked
		for _, killed := range []bool{false, true} {
			if killed {
				hs.Kill()
				hs.Start()
				<-h.asked
			}
			if !shown(sync(lazyMembers)) {
				t.Errorf("killed %v: a client that loads members lazily does not see the room", killed)
			}
			if shown(sync("")) || shown(sync("since="+before)) {
				t.Errorf("killed %v: a client that wants all members sees the room without them", killed)
			}
			if !sliding("$LAZY") || sliding("*") {
				t.Errorf("killed %v: sliding sync shows the room to those who want all members, or not to those who do not", killed)
			}
			alice.Say(room, fmt.Sprint("killed ", killed))
			// Of whom their server tells us it does so because they are in the room.
			online := fmt.Sprintf("@m%d:%s", map[bool]int{false: 1, true: 2}[killed], h.peer.Name)
			edu := fmt.Sprintf(`{"edu_type":"m.presence","content":{"push":[{"user_id":%q,"presence":"online","last_active_ago":5}]}}`, online)
			if status, body := h.peer.Call(hs, "PUT", fmt.Sprintf("/_matrix/federation/v1/send/presence%v", killed), fmt.Appendf(nil, `{"origin":%q,"origin_server_ts":1,"pdus":[],"edus":[%s]}`, h.peer.Name, edu)); status != 200 {
				t.Fatal(status, string(body))
			}
			if !slices.ContainsFunc(homeserver.Events(sync("since="+before), "presence", "events"), func(e homeserver.JSON) bool { return e["sender"] == online }) {
				t.Errorf("killed %v: the presence of a member is not told", killed)
			}
			// A big room of which two members are known is no chat of two.
			h.mu.Lock()
			said := h.send(event.Proto{Sender: matrix.UserID("@m0:" + string(h.peer.Name)), Type: "m.room.message", Content: fmt.Appendf(nil, `{"msgtype":"m.text","body":"killed %v"}`, killed)})
			h.mu.Unlock()
			if status, body := h.peer.Call(hs, "PUT", fmt.Sprintf("/_matrix/federation/v1/send/hello%v", killed), fmt.Appendf(nil, `{"origin":%q,"origin_server_ts":1,"pdus":[%s],"edus":[]}`, h.peer.Name, said.JSON())); status != 200 {
				t.Fatal(status, string(body))
			}
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the message makes no notification")
				}
				list := homeserver.Events(alice.Must("GET", "/v3/notifications?limit=1", nil), "notifications")
				if len(list) == 0 || homeserver.Dig(list[0], "event", "event_id") != string(said.ID()) {
					continue
				}
				if actions := fmt.Sprint(list[0]["actions"]); strings.Contains(actions, "sound") {
					t.Errorf("killed %v: the message counts as one between two: %s", killed, actions)
				}
				break
			}
			// Where all members are wanted with an event, that waits.
			path := "/v3/rooms" + homeserver.Path(room, "context", string(said.ID())) + "?limit=0"
			alice.Must("GET", path+`&filter={"lazy_load_members":true}`, nil)
			if killed {
				go func() {
					_, res := alice.Do("GET", path, nil)
					around <- res
				}()
			}
			if got := alice.Must("GET", "/v3/presence"+homeserver.Path(online, "status"), nil)["presence"]; got != "online" {
				t.Errorf("killed %v: the member is %v", killed, got)
			}
		}
		during := sync("since=" + before)["next_batch"].(string)
		close(h.open)
		told := 0
		for _, ev := range homeserver.Events(<-around, "state") {
			if ev["type"] == "m.room.member" {
				told++
			}
		}
		if told != members+2 {
			t.Errorf("%d members are told with an event, not %d", told, members+2)
		}
		deadline := time.Now().Add(30 * time.Second)
		res := homeserver.JSON{}
		for !shown(res) {
			if time.Now().After(deadline) {
				t.Fatal("the members do not come")
			}
			res = alice.Must("GET", "/v3/sync?timeout=10000&since="+before, nil)
		}
		in := map[string]bool{}
		for _, part := range []string{"state", "timeline"} {
			for _, ev := range homeserver.Events(res, "rooms", "join", room, part, "events") {
				if ev["type"] == "m.room.member" {
					in[ev["state_key"].(string)] = true
				}
			}
		}
		// Whose devices a client has to know it is told with the room, also if it heard of everything else before.
		for _, since := range []string{before, during} {
			changed, _ := homeserver.Dig(sync("since="+since), "device_lists", "changed").([]any)
			if len(changed) != members+2 {
				t.Errorf("since %s: the devices of %d members are told of, not of %d", since, len(changed), members+2)
			}
		}
		if !sliding("*") {
			t.Error("sliding sync does not show the room")
		}
		if len(in) != members+2 {
			t.Errorf("%d members are told, not %d", len(in), members+2)
		}
		joined := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "joined_members"), nil)["joined"].(map[string]any)
		if len(joined) != members+2 {
			t.Errorf("%d members are joined, not %d", len(joined), members+2)
		}
		// Who was in it all along is found by name, too, soon after.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if len(homeserver.Events(alice.Must("POST", "/v3/user_directory/search", json{"search_term": "m7"}), "results")) > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Error("a member is not in the user directory")
				break
			}
		}
		hs.Kill()
		hs.Start()
		if !shown(sync("")) {
			t.Error("the room is gone after another start")
		}
	})
}

// Whose only room with somebody here is one that this server is not in after all, as its servers say, is not followed: their server does not tell us of their devices.
func TestDevicesInRefusedRoom(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	h := newHostedRoom(t, hs.Network().NewPeer(), 3)
	h.refuse = true
	room := string(h.id)
	alice.Join(room, string(h.peer.Name))
	<-h.asked
	elsie := "@elsie:" + string(h.peer.Name)
	h.mu.Lock()
	joined := h.send(event.Proto{Sender: matrix.UserID(elsie), Type: "m.room.member", StateKey: &elsie, Content: []byte(`{"membership":"join"}`)})
	h.mu.Unlock()
	if status, body := h.peer.Call(hs, "PUT", "/_matrix/federation/v1/send/elsie", fmt.Appendf(nil, `{"origin":%q,"origin_server_ts":1,"pdus":[%s],"edus":[]}`, h.peer.Name, joined.JSON())); status != 200 {
		t.Fatal(status, string(body))
	}
	asked := func(when string, more int) {
		t.Helper()
		count := func() (n int) {
			for _, path := range h.peer.Asked() {
				if strings.Contains(path, "/user/devices/") || strings.Contains(path, "/user/keys/query") {
					n++
				}
			}
			return n
		}
		before := count()
		alice.Must("POST", "/v3/keys/query", json{"device_keys": json{elsie: []string{}}})
		if got := count() - before; got != more {
			t.Errorf("%s: %d requests for devices, not %d", when, got, more)
		}
	}
	asked("at first", 1)
	asked("then", 0)
	close(h.open)
	alice.Refused("GET", "/v3/rooms"+homeserver.Path(room, "members"), nil, http.StatusGatewayTimeout, "M_UNKNOWN")
	asked("when the room is refused", 1)
	asked("after that", 1)
}
