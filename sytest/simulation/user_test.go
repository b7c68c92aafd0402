package simulation

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"hanok/feed"
	"hanok/matrix"
	"hanok/users"
)

// user is an account with the client of its first device.
type user struct {
	s       *server
	id      matrix.UserID
	devices []matrix.DeviceID // those that may be there

	client  client
	sending sync.Mutex
	// sent are the to-device messages of the first device, by receiver, in order.
	sent map[*user][]sentMessage
}

type sentMessage struct {
	text  string
	acked bool
}

const firstDevice = matrix.DeviceID("D0")

func newUser(s *server, name string) *user {
	u := &user{s: s, id: matrix.UserID("@" + name + ":" + string(s.name)), sent: map[*user][]sentMessage{}}
	u.client = client{u: u, received: map[matrix.UserID][]string{}, rooms: map[matrix.RoomID]*clientRoom{}}
	p := s.current()
	if _, err := p.users.Accounts.Register(p.life, users.Registration{Localpart: name}); err != nil {
		s.w.t.Fatal(err)
	}
	if err := u.addDevice(p.life, p, firstDevice, "1"); err != nil {
		s.w.t.Fatal(err)
	}
	// Keys for half of those who may want one: then there is none left.
	var up users.KeysUpload
	keys := map[string]any{}
	for i := range 5 {
		keys[fmt.Sprint("signed_curve25519:k", i)] = map[string]any{"key": fmt.Sprint(u.id, " key ", i), "signatures": map[string]any{}}
	}
	b, err := json.Marshal(map[string]any{"one_time_keys": keys})
	if err == nil {
		err = json.Unmarshal(b, &up)
	}
	if err == nil {
		_, err = p.users.Keys.Upload(p.life, u.id, firstDevice, up)
	}
	if err != nil {
		s.w.t.Fatal(err)
	}
	return u
}

func (u *user) String() string { return u.id.Localpart() + "@" + u.s.short }

// addDevice makes a device with keys, or gives one that is there other keys.
func (u *user) addDevice(ctx context.Context, p *process, device matrix.DeviceID, key string) error {
	name := "phone " + key
	if _, err := p.users.Devices.Put(ctx, u.id, device, &name, true); err != nil {
		return err
	}
	keys := fmt.Appendf(nil, `{"user_id":%q,"device_id":%q,"algorithms":["m.olm.v1.curve25519-aes-sha2"],"keys":{"ed25519:%s":%q},"signatures":{}}`, u.id, device, device, key)
	var up users.KeysUpload
	if err := json.Unmarshal(fmt.Appendf(nil, `{"device_keys":%s}`, keys), &up); err != nil {
		return err
	}
	_, err := p.users.Keys.Upload(ctx, u.id, device, up)
	return err
}

// client is what a user's first device has been told by /sync.
type client struct {
	u        *user
	mu       sync.Mutex // one /sync at a time
	since    feed.Token
	received map[matrix.UserID][]string // to-device messages by sender
	rooms    map[matrix.RoomID]*clientRoom
}

type clientRoom struct {
	membership string // join, invite, knock or leave: the section in which it was last
	state      map[matrix.StateKey]matrix.EventID
}

type syncEvent struct {
	ID      matrix.EventID `json:"event_id"`
	Type    string         `json:"type"`
	Key     string         `json:"state_key"`
	Sender  matrix.UserID  `json:"sender"`
	Content struct {
		Text string `json:"text"`
	} `json:"content"`
}

type syncEvents struct {
	Events []syncEvent `json:"events"`
}

type syncRoom struct {
	State syncEvents `json:"state_after"`
}

type syncAnswer struct {
	Next     string     `json:"next_batch"`
	ToDevice syncEvents `json:"to_device"`
	Rooms    struct {
		Join   map[matrix.RoomID]syncRoom `json:"join"`
		Leave  map[matrix.RoomID]syncRoom `json:"leave"`
		Invite map[matrix.RoomID]struct{} `json:"invite"`
		Knock  map[matrix.RoomID]struct{} `json:"knock"`
	} `json:"rooms"`
}

// sync asks once, and believes what comes unless the server dies before it has answered.
func (c *client) sync(ctx context.Context, p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var body bytes.Buffer
	err := p.feed.Sync(ctx, feed.Request{User: c.u.id, Device: firstDevice, Since: c.since, Filter: &feed.Filter{}, StateAfter: true}, &body)
	if err != nil || p.dead.Load() {
		return err
	}
	var a syncAnswer
	if err := json.Unmarshal(body.Bytes(), &a); err != nil {
		return err
	}
	if c.since, err = feed.ParseToken(a.Next); err != nil {
		return err
	}
	for _, m := range a.ToDevice.Events {
		c.received[m.Sender] = append(c.received[m.Sender], m.Content.Text)
	}
	for id, r := range a.Rooms.Join {
		c.room(id, "join").apply(r)
	}
	for id, r := range a.Rooms.Leave {
		c.room(id, "leave").apply(r)
	}
	for id := range a.Rooms.Invite {
		c.room(id, "invite")
	}
	for id := range a.Rooms.Knock {
		c.room(id, "knock")
	}
	return nil
}

func (c *client) room(id matrix.RoomID, membership string) *clientRoom {
	r := c.rooms[id]
	if r == nil {
		r = &clientRoom{state: map[matrix.StateKey]matrix.EventID{}}
		c.rooms[id] = r
	}
	r.membership = membership
	return r
}

func (r *clientRoom) apply(s syncRoom) {
	for _, e := range s.State.Events {
		r.state[matrix.StateKey{Type: e.Type, Key: e.Key}] = e.ID
	}
}

// text lists state as "type|key=event", sorted.
func stateText(state map[matrix.StateKey]matrix.EventID) []string {
	var out []string
	for k, id := range state {
		out = append(out, k.Type+"|"+k.Key+"="+string(id))
	}
	slices.Sort(out)
	return out
}
