package sytest

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// pushed is a user whose notifications go to a gateway, in a room with somebody who talks.
type pushed struct {
	alice, bob *homeserver.Client // bob is told what alice says
	room       string
	gateway    *homeserver.Gateway
}

func newPushed(t *testing.T, hs *homeserver.Server, g *homeserver.Gateway, data json) *pushed {
	t.Helper()
	p := &pushed{alice: hs.Register(t, "alice"), bob: hs.Register(t, "bob"), gateway: g}
	p.room = p.alice.CreateRoom(json{"preset": "public_chat", "name": "Tea"})
	p.bob.Join(p.room)
	p.bob.SetPusher(g, "key", data)
	return p
}

func read(c *homeserver.Client, room, event string) {
	c.Must("POST", "/v3"+roomPath(room, "receipt", "m.read", event), json{})
}

func pushers(c *homeserver.Client) []json {
	return homeserver.Events(c.Must("GET", "/v3/pushers", nil), "pushers")
}

// What a gateway is told, in both formats. spec: push/notify
func TestPush(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		g, ids := hs.Network().NewGateway(true), hs.Network().NewGateway(true)
		p := newPushed(t, hs, g, json{"colour": "red"})
		alice, bob, room := p.alice, p.bob, p.room
		bob.SetPusher(ids, "other key", json{"format": "event_id_only", "default_payload": json{"a": 1}})

		said := alice.Say(room, "hello")
		n := g.NextEvent(said)
		for key, want := range map[string]any{
			"room_id": room, "type": "m.room.message", "sender": alice.UserID, "room_name": "Tea", "prio": "high", "id": said, "user_is_target": nil,
		} {
			if n[key] != want {
				t.Errorf("%s is %v, want %v", key, n[key], want)
			}
		}
		if homeserver.Dig(n, "content", "body") != "hello" || homeserver.Dig(n, "counts", "unread") != 1.0 || n["sender_display_name"] == nil {
			t.Errorf("notification %v", n)
		}
		device := func(n json) json {
			t.Helper()
			devices := homeserver.Events(n, "devices")
			if len(devices) != 1 {
				t.Fatalf("devices of %v", n)
			}
			return devices[0]
		}
		d := device(n)
		if d["app_id"] != "org.example.app" || d["pushkey"] != "key" || fmt.Sprint(d["data"]) != "map[colour:red]" || fmt.Sprint(d["tweaks"]) != "map[sound:default]" {
			t.Errorf("device %v", d)
		}
		if ts, _ := d["pushkey_ts"].(float64); time.Since(time.Unix(int64(ts), 0)).Abs() > time.Minute {
			t.Errorf("pushkey_ts %v is no time in seconds", ts)
		}
		n = ids.NextEvent(said)
		if got := slices.Sorted(maps.Keys(n)); !slices.Equal(got, []string{"counts", "devices", "event_id", "prio", "room_id"}) {
			t.Errorf("event_id_only: %v", n)
		}
		if d := device(n); d["tweaks"] != nil || fmt.Sprint(d["data"]) != "map[default_payload:map[a:1] format:event_id_only]" {
			t.Errorf("event_id_only: %v", d)
		}

		// What somebody reads brings the count down; what they say themselves, or what is muted, is not told.
		read(bob, room, said)
		g.NextCounts(0)
		if n := ids.NextCounts(0); len(n) != 3 || n["prio"] != "low" {
			t.Errorf("counts only: %v", n)
		}
		bob.Say(room, "my own")
		alice.Send(room, "m.room.message", json{"msgtype": "m.notice", "body": "a notice does not notify"})
		encrypted := alice.Send(room, "m.room.encrypted", json{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "s", "sender_key": "k", "device_id": "d"})
		if n := g.NextEvent(encrypted); n["content"] != nil || n["prio"] != "high" {
			t.Errorf("an encrypted event: %v", n)
		}
		ids.NextEvent(encrypted)

		// Invites, of here and elsewhere.
		other := alice.CreateRoom(json{"name": "Secret", "invite": []string{bob.UserID}})
		n = g.Next()
		if n["room_id"] != other || n["user_is_target"] != true || n["membership"] != "invite" || n["room_name"] != "Secret" || homeserver.Dig(n, "counts", "unread") != 1.0 {
			t.Errorf("an invite: %v", n)
		}
		ids.Next()
		bob.Join(other)
		elsewhere := hs.Network().Start(homeserver.Options{})
		carol := elsewhere.Register(t, "carol")
		far := carol.CreateRoom(json{"name": "Far away", "invite": []string{bob.UserID}})
		n = g.Next()
		if n["room_id"] != far || n["user_is_target"] != true || n["room_name"] != "Far away" || n["sender"] != carol.UserID {
			t.Errorf("an invite from elsewhere: %v", n)
		}
		ids.Next()

		// A redacted message counts no more, and neither does a room that one has left.
		again := alice.Say(other, "again")
		g.NextEvent(again)
		ids.NextEvent(again)
		alice.Must("PUT", "/v3"+roomPath(other, "redact", again, "1"), json{})
		g.NextCounts(1)
		ids.NextCounts(1)
		bob.Must("POST", "/v3"+roomPath(room, "leave"), json{})
		g.NextCounts(0)
		ids.NextCounts(0)

		// A pusher goes when its key is rejected, or with its device; another user who takes the key takes the pusher.
		g.Answer(func(json) (int, json) { return 200, json{"rejected": []string{"key"}} })
		last := alice.Say(other, "the last")
		g.NextEvent(last)
		ids.NextEvent(last)
		read(bob, other, last) // told after that
		ids.NextCounts(0)
		if list := pushers(bob); len(list) != 1 || list[0]["pushkey"] != "other key" {
			t.Errorf("a rejected pusher stays: %v", list)
		}
		phone := bob.Login()
		phone.SetPusher(g, "phone", nil)
		g.Answer(nil)
		g.NextEvent(alice.Say(other, "to two"))
		ids.Next()
		phone.Must("POST", "/v3/logout", json{})
		alice.SetPusher(ids, "other key", nil)
		if list := pushers(bob); len(list) != 0 {
			t.Errorf("pushers of a device that is gone, or that somebody else has taken, stay: %v", list)
		}
		alice.Say(other, "to nobody")
		back := bob.Say(other, "to alice")
		ids.NextEvent(back)
		if g.Waiting() != 0 {
			t.Errorf("a gateway is told too much: %v", g.Next())
		}
	})
}

// What is not sent is sent later: after an outage of the gateway and a power cut, and not what was read meanwhile.
func TestPushOutage(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		hs := start(homeserver.Options{})
		g, well := hs.Network().NewGateway(true), hs.Network().NewGateway(false)
		p := newPushed(t, hs, g, nil)
		p.bob.SetPusher(well, "well", nil)
		g.NextEvent(p.alice.Say(p.room, "before"))
		well.Next()
		g.Stop()
		var said []string
		for i := range 4 {
			said = append(said, p.alice.Say(p.room, fmt.Sprint("meanwhile ", i)))
		}
		for _, id := range said { // one that does not answer holds up nobody else
			well.NextEvent(id)
		}
		hs.Kill()
		hs.Start()
		read(p.bob, p.room, said[1])
		for n := well.Next(); homeserver.Dig(n, "counts", "unread") != 2.0; n = well.Next() {
			if n["event_id"] != said[3] { // the one that was under way may come again
				t.Fatalf("the gateway is told %v, and not that two messages are unread", n)
			}
		}
		said = append(said, p.alice.Say(p.room, "after the power cut"))
		well.NextEvent(said[4])
		g.Start()
		for i, id := range said[2:] {
			// The count is the current one, and a late notification brings it.
			if n := g.NextEvent(id); homeserver.Dig(n, "counts", "unread") != 3.0 {
				t.Errorf("notification %d: %v", i, n)
			}
		}

		// One pusher that a gateway refuses holds up no other one of the same gateway.
		var refuse atomic.Bool
		refuse.Store(true)
		g.Answer(func(n json) (int, json) {
			if homeserver.Events(n, "devices")[0]["pushkey"] == "key" && refuse.Load() {
				return http.StatusBadGateway, nil
			}
			return 200, json{}
		})
		p.alice.SetPusher(g, "alice", nil)
		late := p.alice.Say(p.room, "late")
		well.NextEvent(late)
		g.NextEvent(p.bob.Say(p.room, "to alice"))
		refuse.Store(false)
		g.NextEvent(late)
	})
}

// However often the server is killed, a pusher is told of everything in order, and again of no more than the one that was under way.
func TestPushKill(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		const kills = 4
		hs := start(homeserver.Options{})
		g := hs.Network().NewGateway(true)
		p := newPushed(t, hs, g, nil)
		var order []string
		for round := range kills {
			stop := make(chan struct{})
			var sending sync.WaitGroup
			begun := make(chan struct{})
			sending.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					id, ok := trySend(hs, p.alice, p.room, fmt.Sprintf("%d-%d", round, i))
					if !ok {
						return
					}
					order = append(order, id)
					if i == 5 {
						close(begun)
					}
				}
			})
			<-begun
			hs.Kill()
			close(stop)
			sending.Wait()
			hs.Start()
		}
		last := p.alice.Say(p.room, "the last")
		order = append(order, last)
		var told []string
		repeats := 0
		for len(told) == 0 || told[len(told)-1] != last {
			id, _ := g.Next()["event_id"].(string)
			switch {
			case len(told) > 0 && told[len(told)-1] == id:
				repeats++
			default:
				told = append(told, id)
			}
		}
		// A message whose sender got no answer may have been stored.
		acknowledged := slices.DeleteFunc(slices.Clone(told), func(id string) bool { return !slices.Contains(order, id) })
		if !slices.Equal(acknowledged, order) {
			t.Errorf("%d messages were sent, and the gateway was told of %d of them", len(order), len(acknowledged))
		}
		if repeats > kills || len(told) > len(order)+kills {
			t.Errorf("%d notifications were repeated, and %d were of no message", repeats, len(told)-len(order))
		}
	})
}

// A gateway that does not answer in time is not waited for by those who use another one.
func TestPushSlowGateway(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	slow, other := hs.Network().NewGateway(false), hs.Network().NewGateway(false)
	p := newPushed(t, hs, slow, nil)
	release := make(chan struct{})
	slow.Answer(func(json) (int, json) { <-release; return 200, json{} })
	p.bob.SetPusher(other, "quick", nil)
	for i := range 10 {
		other.NextEvent(p.alice.Say(p.room, fmt.Sprint(i)))
	}
	close(release)
	slow.Next()
}

// A redirect leads nowhere, and neither does a gateway in a network that this server must not reach.
func TestPushStaysOut(t *testing.T) {
	n := homeserver.NewNetwork(t)
	hs := n.Start(homeserver.Options{})
	g, inside := n.NewGateway(true), n.NewGateway(true)
	p := newPushed(t, hs, g, nil)
	var once sync.Once
	first := make(chan struct{})
	g.Answer(func(json) (int, json) {
		redirect := false
		once.Do(func() { redirect = true; close(first) })
		if redirect {
			return http.StatusTemporaryRedirect, json{"location": inside.URL}
		}
		return 200, json{}
	})
	said := p.alice.Say(p.room, "hello")
	<-first
	g.NextEvent(said)
	if inside.Waiting() != 0 {
		t.Error("a redirect was followed")
	}

	closed := n.Start(homeserver.Options{ExtraConfig: "push: {allow_private_addresses: false, gateways: [127.0.0.1]}"})
	bob := closed.Register(t, "bob")
	for _, u := range []string{"http://127.0.0.1/_matrix/push/v1/notify", "https://push.example.org/_matrix/push/v1/notify"} {
		bob.Refused("POST", "/v3/pushers/set", homeserver.Pusher("key", json{"url": u}), 400, "M_INVALID_PARAM")
	}
	q := newPushed(t, closed, inside, nil)
	q.alice.Say(q.room, "hello")
	const failed = `hanok_push_notifications_total{kind="event",result="failed"}`
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, tried := closed.FindMetric(failed); tried {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing was tried")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if inside.Waiting() != 0 {
		t.Error("a gateway at a private address was reached")
	}

	off := n.Start(homeserver.Options{ExtraConfig: "push: {disabled: true}"})
	off.Register(t, "bob").Refused("POST", "/v3/pushers/set", homeserver.Pusher("key", json{"url": inside.URL}), 403, "M_FORBIDDEN")
}

// Where encryption is required, gateways are told of IDs only, whatever an app asks for.
func TestPushPrivacy(t *testing.T) {
	n := homeserver.NewNetwork(t)
	ciphertext := json{"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "s", "sender_key": "k", "device_id": "d"}
	for config, want := range map[string][]string{
		"privacy: {encryption: required}":                            {"counts", "devices", "event_id", "prio", "room_id"},
		"privacy: {encryption: required}\npush: {details: metadata}": {"counts", "devices", "event_id", "id", "prio", "room_id", "room_name", "sender", "sender_display_name", "type"},
	} {
		hs := n.Start(homeserver.Options{ExtraConfig: config})
		p := newPushed(t, hs, n.NewGateway(true), nil)
		said := p.alice.Send(p.room, "m.room.encrypted", ciphertext)
		if got := slices.Sorted(maps.Keys(p.gateway.NextEvent(said))); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", config, got, want)
		}
	}
}

// Requests that set pushers, and what is wrong with them. spec: cs/postPusher
func TestSetPusher(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{})
	bob := hs.Register(t, "bob")
	const url = "https://push.example.org/_matrix/push/v1/notify"
	refuse := func(errcode string, change func(json)) {
		t.Helper()
		body := homeserver.Pusher("key", json{"url": url})
		change(body)
		bob.Refused("POST", "/v3/pushers/set", body, 400, errcode)
	}
	for _, key := range []string{"app_id", "pushkey", "app_display_name", "device_display_name", "lang", "data"} {
		refuse("M_MISSING_PARAM", func(b json) { delete(b, key) })
		refuse("M_MISSING_PARAM", func(b json) { b[key] = nil })
	}
	refuse("M_MISSING_PARAM", func(b json) { b["data"] = json{} })
	refuse("M_INVALID_PARAM", func(b json) { b["kind"] = "email" })
	refuse("M_INVALID_PARAM", func(b json) { b["data"] = json{"url": "https://push.example.org/notify"} })
	bob.Must("POST", "/v3/pushers/set", homeserver.Pusher("key", json{"url": url, "format": "event_id_only"}))
	list := pushers(bob)
	if len(list) != 1 || homeserver.Dig(list[0], "data", "url") != url || homeserver.Dig(list[0], "data", "format") != "event_id_only" || list[0]["lang"] != "en" {
		t.Errorf("pushers %v", list)
	}
	bob.Must("POST", "/v3/pushers/set", json{"kind": nil, "app_id": "org.example.app", "pushkey": "key"})
	if list := pushers(bob); len(list) != 0 {
		t.Errorf("a deleted pusher stays: %v", list)
	}
}
