package sytest

import (
	stdjson "encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

func filter(t *testing.T, f json) string {
	t.Helper()
	b, err := stdjson.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// members are the users whose membership events stand in a list.
func members(events []json) []string {
	var out []string
	for _, e := range events {
		if e["type"] == "m.room.member" {
			out = append(out, e["state_key"].(string))
		}
	}
	slices.Sort(out)
	return out
}

func TestSyncLazyMembers(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob, eve := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "eve")
		room := alice.CreateRoom(json{"preset": "public_chat", "name": "named, so that there are no heroes to know"})
		bob.Join(room)
		eve.Join(room)
		for i := range 3 {
			bob.Say(room, fmt.Sprint(i))
		}
		lazy := filter(t, json{"room": json{"state": json{"lazy_load_members": true}, "timeline": json{"limit": 2}}})
		res := alice.Sync(0, "filter", lazy)
		got := members(homeserver.Events(res, "rooms", "join", room, "state", "events"))
		if !slices.Equal(got, []string{alice.UserID, bob.UserID}) {
			t.Errorf("the first sync tells of %v, not of the user and the sender", got)
		}
		if heroes := homeserver.Dig(res, "rooms", "join", room, "summary", "m.heroes"); heroes != nil {
			t.Errorf("the heroes of a room with a name: %v", heroes)
		}
		bob.Say(room, "again")
		res = alice.Sync(time.Second, "filter", lazy)
		if got := members(homeserver.Events(res, "rooms", "join", room, "state", "events")); len(got) > 0 || len(homeserver.Timeline(res, room)) != 1 {
			t.Errorf("told again of %v", got)
		}
		redundant := filter(t, json{"room": json{"state": json{"lazy_load_members": true, "include_redundant_members": true}}})
		bob.Say(room, "once more")
		res = alice.Sync(time.Second, "filter", redundant)
		if got := members(homeserver.Events(res, "rooms", "join", room, "state", "events")); !slices.Equal(got, []string{bob.UserID}) {
			t.Errorf("asked to repeat the sender, told of %v", got)
		}
		// What happens in a gap is told whoever it is about.
		eve.Must("PUT", "/v3/profile"+homeserver.Path(eve.UserID, "displayname"), json{"displayname": "Eve E"})
		for i := range 3 {
			bob.Say(room, fmt.Sprint("gap ", i))
		}
		res = alice.Sync(time.Second, "filter", lazy)
		if homeserver.Dig(res, "rooms", "join", room, "timeline", "limited") != true {
			t.Errorf("three events do not fit two: %v", res)
		}
		if got := members(homeserver.Events(res, "rooms", "join", room, "state", "events")); !slices.Contains(got, eve.UserID) {
			t.Errorf("a change in the gap is not told: %v", got)
		}
		// Without a name the room is called by its members: the client has to know them.
		nina := hs.Register(t, "nina")
		nina.Join(room)
		nina.Sync(0, "filter", lazy)
		alice.SetState(room, "m.room.name", "", json{"name": ""})
		res = nina.Sync(time.Second, "filter", lazy)
		unknown := []string{alice.UserID, eve.UserID} // Bob was among the senders
		heroes, _ := homeserver.Dig(res, "rooms", "join", room, "summary", "m.heroes").([]any)
		if got := members(homeserver.Events(res, "rooms", "join", room, "state", "events")); !slices.Equal(got, unknown) || len(heroes) != 3 {
			t.Errorf("the name is gone; heroes %v, told of %v", heroes, got)
		}
	})
}

func TestSyncState(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat", "topic": "first"})
		bob.Join(room)
		after := bob.Login()
		bob.Sync(0)
		after.Sync(0)
		topics := func(res json, section string) []string {
			var out []string
			for _, e := range homeserver.Events(res, "rooms", "join", room, section, "events") {
				if e["type"] == "m.room.topic" {
					out = append(out, homeserver.Dig(e, "content", "topic").(string))
				}
			}
			return out
		}
		alice.SetState(room, "m.room.topic", "", json{"topic": "second"})
		for i := range 3 {
			alice.Say(room, fmt.Sprint(i))
		}
		alice.SetState(room, "m.room.topic", "", json{"topic": "third"})
		short := filter(t, json{"room": json{"timeline": json{"limit": 2}}})
		res := bob.Sync(time.Second, "filter", short)
		if got := topics(res, "state"); !slices.Equal(got, []string{"second"}) {
			t.Errorf("state up to the start of the timeline: %v", got)
		}
		if got := topics(res, "timeline"); !slices.Equal(got, []string{"third"}) {
			t.Errorf("timeline: %v", got)
		}
		// The gap can be closed with the tokens of the sync.
		prev, _ := homeserver.Dig(res, "rooms", "join", room, "timeline", "prev_batch").(string)
		page := bob.Must("GET", "/v3/rooms"+homeserver.Path(room, "messages")+"?dir=b&limit=3&from="+prev, nil)
		if got := len(homeserver.Events(page, "chunk")); got != 3 {
			t.Errorf("a page before prev_batch has %d events", got)
		}
		res = after.Sync(time.Second, "filter", short, "use_state_after", "true")
		if got := topics(res, "state_after"); !slices.Equal(got, []string{"third"}) || homeserver.Dig(res, "rooms", "join", room, "state") != nil {
			t.Errorf("state at the end of the timeline: %v", got)
		}
		res = bob.Sync(0, "full_state", "true")
		if got := topics(res, "state"); !slices.Equal(got, []string{"third"}) {
			t.Errorf("full_state: %v", got)
		}
		if res := bob.Sync(100 * time.Millisecond); homeserver.Dig(res, "rooms") != nil {
			t.Errorf("nothing happened, and yet: %v", res["rooms"])
		}
	})
}

func TestSyncLeftRooms(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		room := alice.CreateRoom(json{"preset": "public_chat"})
		bob.Join(room)
		before := alice.Say(room, "before the kick")
		bob.SyncUntilEvent(room, before)
		alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "kick"), json{"user_id": bob.UserID, "reason": "noise"})
		secret := alice.Say(room, "after the kick")
		res := bob.Sync(time.Second)
		events := homeserver.Events(res, "rooms", "leave", room, "timeline", "events")
		if len(events) != 1 || homeserver.Dig(events[0], "content", "reason") != "noise" || homeserver.Dig(res, "rooms", "join", room) != nil {
			t.Errorf("the kick: %v", res["rooms"])
		}
		if res := bob.Login().Sync(0); homeserver.Dig(res, "rooms", "leave") != nil {
			t.Errorf("left rooms without being asked for: %v", res["rooms"])
		}
		res = bob.Login().Sync(0, "filter", filter(t, json{"room": json{"include_leave": true}}))
		var seen []any
		for _, e := range homeserver.Events(res, "rooms", "leave", room, "timeline", "events") {
			seen = append(seen, e["event_id"])
		}
		if !slices.Contains(seen, any(before)) || slices.Contains(seen, any(secret)) {
			t.Errorf("include_leave shows %v; %v was before, %v after", seen, before, secret)
		}
		// Who comes and goes between two syncs saw the room meanwhile.
		bob.Sync(0)
		bob.Join(room)
		during := alice.Say(room, "while bob is here")
		bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
		alice.Say(room, "after bob has gone")
		res = bob.Sync(time.Second, "filter", filter(t, json{"room": json{"timeline": json{"limit": 2}}}))
		events = homeserver.Events(res, "rooms", "leave", room, "timeline", "events")
		if len(events) != 2 || events[0]["event_id"] != during || events[1]["state_key"] != bob.UserID {
			t.Errorf("the timeline of a short stay: %v", events)
		}
		if state := homeserver.Events(res, "rooms", "leave", room, "state", "events"); !slices.ContainsFunc(state, func(e json) bool { return e["type"] == "m.room.create" }) {
			t.Errorf("the state of a short stay: %v", state)
		}
	})
}

func TestSyncIgnoredUsers(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob, eve := hs.Register(t, "alice"), hs.Register(t, "bob"), hs.Register(t, "eve")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	bob.Join(room)
	eve.Join(room)
	alice.Must("PUT", "/v3/user"+homeserver.Path(alice.UserID, "account_data", "m.ignored_user_list"), json{"ignored_users": json{eve.UserID: json{}}})
	alice.Sync(0)
	loud := eve.Say(room, "buy my things")
	eve.SetState(eve.CreateRoom(json{"invite": []string{alice.UserID}}), "m.room.name", "", json{"name": "Things"})
	eve.Say(room, "buy, "+alice.UserID)
	quiet := bob.Say(room, "hello")
	found, counted := false, false // in one answer, or one after the other
	alice.SyncUntil("bob's message, one unread, and nothing of eve's", func(res json) bool {
		for _, e := range homeserver.Timeline(res, room) {
			found = found || e["event_id"] == quiet
			if e["event_id"] == loud {
				t.Error("an ignored user's message is told")
			}
		}
		if homeserver.Dig(res, "rooms", "invite") != nil {
			t.Error("an ignored user's invite is told")
		}
		count := homeserver.Dig(res, "rooms", "join", room, "unread_notifications", "notification_count")
		if count != nil && count.(float64) > 1 {
			t.Error("an ignored user's message is counted")
		}
		counted = counted || count == 1.0
		return found && counted
	})
}

// More to-device messages than fit one response come in order, each once, over several.
func TestSyncManyToDeviceMessages(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
		bob.Sync(0)
		const count = 250
		for i := range count {
			alice.Must("PUT", "/v3/sendToDevice/org.example.n"+homeserver.Path(fmt.Sprint(i)), json{"messages": json{bob.UserID: json{bob.DeviceID: json{"n": i}}}})
		}
		next := 0
		bob.SyncUntil("all of them", func(res json) bool {
			for _, e := range homeserver.Events(res, "to_device", "events") {
				if n := homeserver.Dig(e, "content", "n"); n != float64(next) {
					t.Fatalf("message %v where %d was due", n, next)
				}
				next++
			}
			return next == count
		})
		if res := bob.Sync(100 * time.Millisecond); res["to_device"] != nil {
			t.Errorf("more than were sent: %v", res["to_device"])
		}
	})
}

// event_format federation gives events as servers exchange them, with their ID.
func TestSyncFederationFormat(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice := hs.Register(t, "alice")
	room := alice.CreateRoom(json{"preset": "public_chat"})
	said := alice.Say(room, "hello")
	res := alice.Sync(0, "filter", filter(t, json{"event_format": "federation", "room": json{"timeline": json{"limit": 1}}}))
	events := homeserver.Timeline(res, room)
	if len(events) != 1 || events[0]["event_id"] != said {
		t.Fatalf("the timeline: %v", events)
	}
	for _, key := range []string{"auth_events", "prev_events", "depth", "hashes", "signatures", "room_id"} {
		if events[0][key] == nil {
			t.Errorf("the event has no %s: %v", key, events[0])
		}
	}
}

// Who left a room and came back between two syncs may have changed their keys meanwhile: the other side was not told.
// spec: client-server-api#tracking-the-device-list-for-a-user
func TestSyncDeviceListsAfterAbsence(t *testing.T) {
	n := homeserver.NewNetwork(t)
	here, there := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	alice, bob := here.Register(t, "alice"), there.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "private_chat", "invite": []string{bob.UserID}, "power_level_content_override": json{"invite": 0}})
	via := alice.UserID[strings.IndexByte(alice.UserID, ':')+1:]
	bob.SyncUntilInvited(room)
	bob.Join(room, via)
	alice.SyncUntilJoined(room, bob.UserID)
	bob.SyncUntilJoined(room, alice.UserID)
	settled := alice.Sync(100 * time.Millisecond) // nothing is left over
	for homeserver.Dig(settled, "device_lists") != nil {
		settled = alice.Sync(100 * time.Millisecond)
	}
	changed := func(what string, res json) {
		t.Helper()
		list, _ := homeserver.Dig(res, "device_lists", "changed").([]any)
		if !slices.Contains(list, any(bob.UserID)) {
			t.Errorf("%s: bob's keys have to be asked for again, but the changed lists are %v", what, list)
		}
	}
	watch := alice.Login() // the first device must see nothing of the time in between
	watch.Sync(0)
	bob.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
	leaves(watch, room, bob.UserID)
	alice.Invite(room, bob.UserID)
	bob.SyncUntilInvited(room)
	bob.Join(room, via)
	changed("bob was away", alice.Sync(time.Second))

	alice.Must("POST", "/v3/rooms"+homeserver.Path(room, "leave"), json{})
	leaves(bob, room, alice.UserID)
	bob.Invite(room, alice.UserID)
	watch.SyncUntilInvited(room)
	alice.Join(room, via)
	changed("alice was away", alice.Sync(time.Second))

	// Who is invited may be sent keys before they come.
	carol := here.Register(t, "carol")
	alice.Invite(room, carol.UserID)
	res := alice.Sync(time.Second)
	if list, _ := homeserver.Dig(res, "device_lists", "changed").([]any); !slices.Contains(list, any(carol.UserID)) {
		t.Errorf("after an invite the changed lists are %v", list)
	}

	// Who only changes their name was there all the time.
	alice.Sync(0)
	bob.Must("PUT", "/v3/profile"+homeserver.Path(bob.UserID, "displayname"), json{"displayname": "Bob B"})
	if res := alice.Sync(5 * time.Second); homeserver.Dig(res, "device_lists") != nil {
		t.Errorf("a new name: %v", res["device_lists"])
	}
}

// A client hears of it when there is less to read because a message was redacted, whenever that is counted.
func TestUnreadCountAfterRedaction(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	alice, bob := hs.Register(t, "alice"), hs.Register(t, "bob")
	room := alice.CreateRoom(json{"preset": "private_chat", "invite": []string{bob.UserID}})
	bob.Join(room)
	alice.SyncUntilJoined(room, bob.UserID)
	count := func(want float64) func(json) bool {
		return func(res json) bool {
			return homeserver.Dig(res, "rooms", "join", room, "unread_notifications", "notification_count") == want
		}
	}
	for range 3 {
		gone := bob.Say(room, "one")
		bob.Say(room, "another")
		alice.SyncUntil("two notifications", count(2))
		bob.Must("PUT", "/v3"+roomPath(room, "redact", gone, "r"+gone), json{})
		alice.SyncUntil("one notification", count(1))
		last := bob.Say(room, "the last")
		alice.SyncUntil("two notifications", count(2))
		alice.Must("POST", "/v3"+roomPath(room, "receipt", "m.read", last), json{})
		alice.SyncUntil("none", count(0))
	}
}
