package feed_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"sync"
	"testing"
	"time"

	"hanok/feed"
	"hanok/matrix"
	"hanok/rooms"
)

var benchSlidingRooms = flag.Int("sliding.rooms", 1000, "rooms of the user of BenchmarkSlidingWindow")

// sliding is a connection of sliding sync.
type sliding struct {
	*member
	dialect feed.Dialect
	conn    string
	pos     string
}

func (m *member) sliding(d feed.Dialect, conn string) *sliding { return &sliding{m, d, conn, ""} }

// try makes one request from where the last one ended. body holds all but pos, timeout and conn_id.
func (c *sliding) try(timeout time.Duration, body string) ([]byte, error) {
	c.w.Helper()
	req, err := feed.ParseSlidingRequest(c.dialect, c.id, []byte(body))
	if err != nil {
		return nil, err
	}
	req.Device, req.ConnID, req.Pos, req.Timeout = c.device, c.conn, c.pos, timeout
	return c.w.SlidingSync(c.w.Context(), req)
}

// raw is try that must succeed and moves on.
func (c *sliding) raw(timeout time.Duration, body string) []byte {
	c.w.Helper()
	answer, err := c.try(timeout, body)
	if err != nil {
		c.w.Fatal(err)
	}
	var res struct {
		Pos string `json:"pos"`
	}
	if err := json.Unmarshal(answer, &res); err != nil || res.Pos == "" {
		c.w.Fatalf("%v in %s", err, answer)
	}
	c.pos = res.Pos
	return answer
}

// perTold asks for what comes with each of many messages.
func perTold(b *testing.B, c *sliding, body string, say func(n int)) {
	var pos string
	var answer []byte
	for i := range b.N {
		b.StopTimer()
		if i%perMessage == 0 {
			say(i / perMessage)
			c.w.settle()
			pos = c.pos
		}
		c.pos = pos
		b.StartTimer()
		answer = c.raw(0, body)
	}
	b.StopTimer()
	reportCopying(b, answer)
}

// untilTold asks until a response tells of no room: what is large comes in parts.
func (c *sliding) untilTold(body string) {
	for len(c.raw(0, body)) > 2000 {
	}
}

// elementX is the request of a room list as Element X makes it, for the first rooms.
func elementX(count int) string {
	return fmt.Sprintf(`{"lists":{"all_rooms":{"ranges":[[0,%d]],"timeline_limit":1,"required_state":[["m.room.name",""],["m.room.encryption",""],
		["m.room.member","$LAZY"],["m.room.member","$ME"],["m.room.topic",""],["m.room.avatar",""],["m.room.canonical_alias",""],
		["m.room.power_levels",""],["org.matrix.msc3401.call.member","*"],["m.room.join_rules",""],["m.room.tombstone",""],["m.room.create",""],
		["m.room.history_visibility",""],["io.element.functional_members",""],["m.space.parent","*"],["m.space.child","*"],
		["org.matrix.msc3672.beacon_info","*"]],"filters":{}}},
		"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true,"rooms":["*"]},"typing":{"enabled":true},
		"io.element.msc4308.thread_subscriptions":{"enabled":true,"limit":10}}}`, count-1)
}

// BenchmarkSlidingWindow is the room list of a user of many rooms: the first rooms of a new connection, the same when
// the server has just started, and what comes after a message in one of the rooms once all are known.
func BenchmarkSlidingWindow(b *testing.B) {
	w := open(b)
	alice, bob := w.user("alice"), w.user("bob")
	ids := make([]matrix.RoomID, *benchSlidingRooms)
	each(len(ids), func(i int) {
		ids[i] = alice.create(rooms.CreateRequest{Preset: "public_chat", Name: name("room ", i)})
		bob.join(ids[i])
		bob.say(ids[i], "hello")
	})
	w.settle()
	b.Run("first-20", func(b *testing.B) {
		b.ReportAllocs()
		var answer []byte
		for range b.N {
			answer = alice.sliding(feed.Unstable, "first").raw(0, elementX(20))
		}
		b.ReportMetric(float64(len(answer))/1e3, "kB")
		reportCopying(b, answer)
	})
	b.Run("first-20-filtered", func(b *testing.B) {
		b.ReportAllocs()
		for range b.N {
			alice.sliding(feed.Stable, "filtered").raw(0, `{"lists":{"a":{"range":[0,19],"timeline_limit":1,"required_state":{},"filters":{"is_encrypted":false,"is_dm":false,"not_room_types":["m.space"]}}}}`)
		}
	})
	b.Run("message-of-all", func(b *testing.B) {
		c := alice.sliding(feed.Unstable, "all")
		all := elementX(len(ids))
		c.untilTold(all)
		b.ReportAllocs()
		b.ResetTimer()
		perTold(b, c, all, func(n int) { bob.say(ids[n%len(ids)], "one of many messages") })
	})
	b.Run("message-of-20", func(b *testing.B) {
		c := alice.sliding(feed.Unstable, "window")
		c.untilTold(elementX(20))
		b.ReportAllocs()
		b.ResetTimer()
		perTold(b, c, elementX(20), func(n int) { bob.say(ids[n%10], "one of many messages") }) // rooms of which the client knows
	})
	b.Run("nothing-new", func(b *testing.B) {
		c := alice.sliding(feed.Unstable, "idle")
		all := elementX(len(ids))
		c.untilTold(all)
		b.ReportAllocs()
		b.ResetTimer()
		before := cpuTime(b)
		for range b.N {
			c.raw(0, all)
		}
		b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
	})
}

// BenchmarkSlidingFanout is the time from sending one message until the last of many long-polling members has it.
func BenchmarkSlidingFanout(b *testing.B) {
	w := open(b)
	sender := w.user("sender")
	room := sender.create(rooms.CreateRequest{Preset: "public_chat"})
	members := make([]*sliding, *benchMembers)
	each(len(members), func(i int) {
		m := w.user(name("member", i))
		m.join(room)
		members[i] = m.sliding(feed.Stable, "room-list")
	})
	const body = `{"lists":{"l":{"range":[0,19],"timeline_limit":1,"required_state":{"lazy_members":true}}},"extensions":{"account_data":{"enabled":true},"receipts":{"enabled":true},"typing":{"enabled":true}}}`
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		w.settle()
		each(len(members), func(i int) { members[i].raw(0, body) })
		var got sync.WaitGroup
		for _, m := range members {
			got.Go(func() { m.raw(time.Minute, body) })
		}
		for w.hub.Waiting() < len(members) {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond) // the last ones look for news before they wait
		b.StartTimer()
		sender.say(room, "one of many messages")
		got.Wait()
	}
	b.StopTimer()
	b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms-to-last")
}
