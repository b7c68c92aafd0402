package sytest

import (
	"fmt"
	"testing"

	"hanok/sytest/homeserver"
)

// A call's members are known to whoever comes in, on whatever server, though their timelines say nothing of it.
func TestStickyEvents(t *testing.T) {
	n := homeserver.NewNetwork(t)
	one, two := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	alice, bob, carol := one.Register(t, "alice"), two.Register(t, "bob"), one.Register(t, "carol")
	room := alice.CreateRoom(json{"preset": "public_chat", "initial_state": []json{{"type": "m.room.history_visibility", "state_key": "", "content": json{"history_visibility": "joined"}}}})
	send := func(path, ms string, body any) json {
		return alice.Must("PUT", "/v3/rooms"+homeserver.Path(room)+path+"?org.matrix.msc4354.sticky_duration_ms="+ms, body)
	}
	member, _ := send("/send/m.rtc.member/1", "600000", json{"n": "member"})["event_id"].(string)
	for i := range 30 { // far outside any timeline
		alice.Say(room, fmt.Sprint(i))
	}
	told := func(c *homeserver.Client, id string) {
		t.Helper()
		c.SyncUntil("the sticky event", func(res json) bool {
			// One that arrives after a join is news for the timeline.
			for _, e := range append(homeserver.Events(res, "rooms", "join", room, "msc4354_sticky", "events"), homeserver.Timeline(res, room)...) {
				if e["event_id"] != id {
					continue
				}
				left, _ := homeserver.Dig(e, "unsigned", "msc4354_sticky_duration_ttl_ms").(float64)
				if left <= 0 || left > 600_000 || homeserver.Dig(e, "msc4354_sticky", "duration_ms") != 6e5 {
					t.Errorf("the event as told to %s: %v", c.UserID, e)
				}
				return true
			}
			return false
		})
	}
	carol.Sync(0)
	carol.Join(room)
	told(carol, member)
	bob.Sync(0)
	bob.Join(room, one.Name)
	told(bob, member)
	one.Kill()
	one.Start()
	told(carol.Login(), member)

	// One that is scheduled becomes sticky when it is sent.
	end, _ := send("/send/m.rtc.member/2", "600000&org.matrix.msc4140.delay=3600000", json{"n": "end"})["delay_id"].(string)
	bob.Sync(0)
	alice.Must("POST", "/v1/delayed_events"+homeserver.Path(end, "send"), nil)
	bob.SyncUntil("the end", func(res json) bool {
		e := find(res, room, "end")
		return e != nil && homeserver.Dig(e, "msc4354_sticky", "duration_ms") == 6e5
	})
	for path, ms := range map[string]string{"/send/m.rtc.member/3": "3600001", "/send/m.rtc.member/4": "-1", "/send/m.rtc.member/5": "x", "/state/m.rtc.member/6": "1"} {
		alice.Refused("PUT", "/v3/rooms"+homeserver.Path(room)+path+"?org.matrix.msc4354.sticky_duration_ms="+ms, json{}, 400, "M_INVALID_PARAM")
	}
}
