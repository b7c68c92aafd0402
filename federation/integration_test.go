package federation_test

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/federation"
	"hanok/federation/fedtest"
	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/media"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

func TestRoomsOfEveryVersion(t *testing.T) {
	for _, version := range roomversion.Supported() {
		t.Run(string(version), func(t *testing.T) {
			n := fedtest.NewNetwork(t)
			a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
			room := a.create("alice", "public_chat", version)
			a.say("alice", room, "before")
			b.join("bob", room, "a.example")
			a.sees(room, b.user("bob"), "join")
			b.say("bob", room, "hello")
			a.hears("hello")
			a.say("alice", room, "welcome")
			b.hears("welcome")
			for _, s := range []*node{a, b} {
				servers, err := s.rooms.JoinedServers(s.ctx(), room)
				slices.Sort(servers)
				if err != nil || !slices.Equal(servers, []matrix.ServerName{"a.example", "b.example"}) {
					t.Errorf("%s: servers %v %v", s.name, servers, err)
				}
			}
			page, err := b.rooms.Messages(b.ctx(), rooms.MessagesRequest{Room: room, User: b.user("bob"), Backward: true, Limit: 50})
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(page.Events, func(e *rooms.Event) bool { body, _ := e.ContentString("body"); return body == "before" }) {
				t.Error("history from before the join is not fetched")
			}
		})
	}
}

func TestMembershipsOverFederation(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	alice, bob := a.user("alice"), b.user("bob")
	b.register("bob")
	invite := func(room matrix.RoomID) {
		t.Helper()
		if _, err := a.rooms.Invite(a.ctx(), rooms.MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		m, err := b.rooms.MembershipOf(b.ctx(), room, bob)
		if err != nil || m.Membership != "invite" {
			t.Fatalf("membership %+v %v", m, err)
		}
		state, err := b.rooms.InviteState(b.ctx(), bob, room)
		if err != nil || len(state) < 3 {
			t.Errorf("invite state: %s %v", state, err)
		}
	}

	t.Run("accept", func(t *testing.T) {
		room := a.create("alice", "private_chat", "")
		invite(room)
		b.join("bob", room)
		a.sees(room, bob, "join")
		if _, err := b.rooms.Leave(b.ctx(), rooms.MemberRequest{Room: room, Sender: bob}); err != nil {
			t.Fatal(err)
		}
		a.sees(room, bob, "leave")
	})
	t.Run("reject", func(t *testing.T) {
		room := a.create("alice", "private_chat", "")
		invite(room)
		if _, err := b.rooms.Leave(b.ctx(), rooms.MemberRequest{Room: room, Sender: bob}); err != nil {
			t.Fatal(err)
		}
		a.sees(room, bob, "leave")
	})
	t.Run("take back", func(t *testing.T) {
		room := a.create("alice", "private_chat", "")
		invite(room)
		if _, err := a.rooms.Kick(a.ctx(), rooms.MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the invite to be gone", func() bool {
			m, err := b.rooms.MembershipOf(b.ctx(), room, bob)
			return err == nil && m.Membership == "leave"
		})
	})
	t.Run("not invited", func(t *testing.T) {
		room := a.create("alice", "private_chat", "")
		_, err := b.rooms.Join(b.ctx(), rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{"a.example"}})
		if !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("%v", err)
		}
	})
	t.Run("knock", func(t *testing.T) {
		key := ""
		room := a.create("alice", "private_chat", "10")
		_, err := a.rooms.Send(a.ctx(), rooms.SendRequest{
			Room: room, Sender: alice, Type: "m.room.join_rules", StateKey: &key, Content: []byte(`{"join_rule":"knock"}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.rooms.Knock(b.ctx(), rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{"a.example"}}); err != nil {
			t.Fatal(err)
		}
		a.sees(room, bob, "knock")
		invite(room)
		b.join("bob", room)
		a.sees(room, bob, "join")
	})
	t.Run("kick and ban", func(t *testing.T) {
		room := a.create("alice", "public_chat", "")
		b.join("bob", room, "a.example")
		if _, err := a.rooms.Kick(a.ctx(), rooms.MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		b.sees(room, bob, "leave")
		b.join("bob", room, "a.example")
		if _, err := a.rooms.Ban(a.ctx(), rooms.MemberRequest{Room: room, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		b.sees(room, bob, "ban")
		_, err := b.rooms.Join(b.ctx(), rooms.MemberRequest{Room: room, Sender: bob, Via: []matrix.ServerName{"a.example"}})
		if !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("a banned user joins: %v", err)
		}
	})
}

// A server that joins through one server must hear of, and be heard by, the others.
func TestThreeServers(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b, c := newNode(t, n, "a.example"), newNode(t, n, "b.example"), newNode(t, n, "c.example")
	room := a.create("alice", "public_chat", "")
	b.join("bob", room, "a.example")
	c.join("carol", room, "b.example")
	a.sees(room, c.user("carol"), "join")
	for _, s := range []struct {
		*node
		name string
	}{{a, "alice"}, {b, "bob"}, {c, "carol"}} {
		s.say(s.name, room, "from "+s.name)
	}
	for _, s := range []*node{a, b, c} {
		seen := map[string]bool{}
		s.await("everybody", func(e *rooms.Event) bool {
			body, _ := e.ContentString("body")
			seen[body] = true
			return seen["from alice"] && seen["from bob"] && seen["from carol"]
		})
	}
}

func TestOutage(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	room := a.create("alice", "public_chat", "")
	b.join("bob", room, "a.example")
	a.sees(room, b.user("bob"), "join")
	b.stop()
	for i := range 30 {
		a.say("alice", room, fmt.Sprint("missed ", i))
	}
	waitFor(t, "the back-off", func() bool { _, failing := a.out.Peers.FailingSince("b.example"); return failing })
	a.stop()
	a.start()
	b.start()
	b.say("bob", room, "back again") // which wakes what a has for b
	a.hears("back again")
	for i := range 30 {
		b.hears(fmt.Sprint("missed ", i))
	}
}

func TestUsersOverFederation(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	alice, bob := a.register("alice"), b.register("bob")
	room := a.create("alice", "public_chat", "")
	b.join("bob", room, "a.example")
	a.sees(room, bob, "join")

	if _, err := b.users.Profiles.Set(b.ctx(), bob, users.FieldDisplayName, json.RawMessage(`"Bob"`)); err != nil {
		t.Fatal(err)
	}
	profile, err := a.users.Profiles.Get(a.ctx(), bob)
	if err != nil || string(profile[users.FieldDisplayName]) != `"Bob"` {
		t.Errorf("profile: %s %v", profile, err)
	}
	if _, err := a.users.Profiles.Get(a.ctx(), b.user("nobody")); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("profile of nobody: %v", err)
	}

	alias := matrix.RoomAlias("#lobby:a.example")
	if err := a.rooms.CreateAlias(a.ctx(), alice, alias, room, false); err != nil {
		t.Fatal(err)
	}
	id, servers, err := b.rooms.ResolveAlias(b.ctx(), alias)
	if err != nil || id != room || !slices.Contains(servers, "a.example") {
		t.Errorf("alias: %s %v %v", id, servers, err)
	}
	if _, _, err := b.rooms.ResolveAlias(b.ctx(), "#nothing:a.example"); !matrix.HasCode(err, "M_NOT_FOUND") {
		t.Errorf("unknown alias: %v", err)
	}
	if err := a.rooms.SetPublished(a.ctx(), alice, room, true, false); err != nil {
		t.Fatal(err)
	}
	for _, search := range []string{"", "room"} {
		page, err := b.out.PublicRooms(b.ctx(), "a.example", rooms.PublicRoomsRequest{Search: search})
		if err != nil || len(page.Chunk) != 1 || page.Chunk[0].RoomID != room || page.Chunk[0].NumJoined != 2 {
			t.Errorf("directory for %q: %+v %v", search, page, err)
		}
	}

	if err := a.users.ToDevice.Send(a.ctx(), alice, "", "t1", "m.test", users.Messages{bob: {"*": json.RawMessage(`{"n":1}`)}}); err != nil {
		t.Fatal(err)
	}
	device, err := b.users.Sessions.Create(b.ctx(), users.NewSession{UserID: bob, DeviceID: "PHONE"})
	if err != nil {
		t.Fatal(err)
	}
	pending := func() (out []users.ToDeviceMessage) {
		out, _, err := b.users.ToDevice.Pending(b.ctx(), b.db, bob, device.DeviceID, 0, b.db.Current(), 10)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if err := a.users.ToDevice.Send(a.ctx(), alice, "", "t2", "m.test", users.Messages{bob: {"PHONE": json.RawMessage(`{"n":2}`)}}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a message to a device", func() bool { return len(pending()) > 0 })

	a.out.Queue.SendVolatile([]matrix.ServerName{"b.example"}, "m.typing", fmt.Appendf(nil, `{"room_id":%q,"user_id":%q,"typing":true}`, room, alice))
	select {
	case got := <-b.typing:
		if got != "start "+string(alice) {
			t.Error(got)
		}
	case <-time.After(10 * time.Second):
		t.Error("no typing notice")
	}

	event := a.say("alice", room, "read me")
	b.hears("read me")
	if err := b.users.Receipts.Set(b.ctx(), users.Receipt{Room: room, User: bob, Type: users.ReceiptRead, EventID: event, At: 1}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a receipt", func() bool {
		all, err := a.users.Receipts.InRoom(a.ctx(), a.db, room, alice)
		return err == nil && slices.ContainsFunc(all, func(r users.Receipt) bool { return r.User == bob && r.EventID == event })
	})

	list, err := a.out.UserDevices(a.ctx(), bob)
	if err != nil || list.UserID != bob {
		t.Errorf("devices: %+v %v", list, err)
	}
	if _, err := a.out.UserDevices(a.ctx(), b.user("nobody")); err == nil {
		t.Error("devices of nobody")
	}
	keys, err := a.out.QueryKeys(a.ctx(), "b.example", map[matrix.UserID][]matrix.DeviceID{bob: {}})
	if err != nil {
		t.Errorf("keys: %+v %v", keys, err)
	}
	if _, err := a.out.ClaimKeys(a.ctx(), "b.example", users.Claims{bob: {"PHONE": "signed_curve25519"}}); err != nil {
		t.Errorf("claim: %v", err)
	}
	software, err := a.out.Version(a.ctx(), "b.example")
	if software.Name != "Hanok" || software.Version != "test" || time.Since(software.Clock) > time.Minute || err != nil {
		t.Errorf("version: %+v %v", software, err)
	}
}

// Who is kept to their server is unknown on others.
func TestUserKeptToTheirServer(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	kept := b.register("kept")
	ask := func() (profile, devices error, keys int) {
		_, profile = a.out.Profile(a.ctx(), kept, "")
		_, devices = a.out.UserDevices(a.ctx(), kept)
		answer, err := a.out.QueryKeys(a.ctx(), "b.example", map[matrix.UserID][]matrix.DeviceID{kept: nil})
		if err != nil {
			t.Fatal(err)
		}
		return profile, devices, len(answer.DeviceKeys)
	}
	if profile, devices, keys := ask(); profile != nil || devices != nil || keys != 1 {
		t.Fatal(profile, devices, keys)
	}
	if err := b.users.Accounts.SetLocalOnly(b.ctx(), kept, true); err != nil {
		t.Fatal(err)
	}
	if profile, devices, keys := ask(); !matrix.HasCode(profile, "M_NOT_FOUND") || !matrix.HasCode(devices, "M_NOT_FOUND") || keys != 0 {
		t.Error(profile, devices, keys)
	}
}

func TestRestrictedJoin(t *testing.T) {
	for _, version := range []roomversion.ID{"8", "10", "12"} {
		t.Run(string(version), func(t *testing.T) {
			n := fedtest.NewNetwork(t)
			a, b, c := newNode(t, n, "a.example"), newNode(t, n, "b.example"), newNode(t, n, "c.example")
			lobby := a.create("alice", "public_chat", version)
			room := a.create("alice", "private_chat", version)
			a.setState("alice", room, "m.room.join_rules", "", fmt.Sprintf(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, lobby))
			_, err := b.rooms.Join(b.ctx(), rooms.MemberRequest{Room: room, Sender: b.user("bob"), Via: []matrix.ServerName{"a.example"}})
			if !matrix.HasCode(err, "M_FORBIDDEN") {
				t.Errorf("from outside the lobby: %v", err)
			}
			b.join("bob", lobby, "a.example")
			a.sees(lobby, b.user("bob"), "join")
			b.join("bob", room, "a.example")
			a.sees(room, b.user("bob"), "join")
			// Another server, through one that can authorise it and one that cannot.
			c.join("carol", lobby, "a.example")
			b.sees(lobby, c.user("carol"), "join")
			c.join("carol", room, "b.example", "a.example")
			a.sees(room, c.user("carol"), "join")
			b.sees(room, c.user("carol"), "join")
			c.say("carol", room, "hello")
			b.hears("hello")
		})
	}
}

func TestServerACL(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	room := a.create("alice", "public_chat", "")
	b.join("bob", room, "a.example")
	a.sees(room, b.user("bob"), "join")
	a.setState("alice", room, "m.room.server_acl", "", `{"allow":["*"],"deny":["b.*"]}`)
	b.await("the access list", func(e *rooms.Event) bool { return e.Type() == "m.room.server_acl" })
	b.say("bob", room, "anybody there?")
	a.say("alice", room, "not any more")
	b.hears("not any more")
	event, err := a.rooms.Snapshot(a.ctx(), room)
	if err != nil {
		t.Fatal(err)
	}
	_, err = b.out.Backfill(b.ctx(), "a.example", room, event.Extremities, 10)
	if !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("backfill: %v", err)
	}
	waitFor(t, "the refused event to leave b's outbox", func() bool {
		pending, err := storage.FindOutboxDestinations(b.ctx(), b.db)
		return err == nil && len(pending) == 0
	})
	page, err := a.rooms.Messages(a.ctx(), rooms.MessagesRequest{Room: room, User: a.user("alice"), Backward: true, Limit: 50})
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(page.Events, func(e *rooms.Event) bool { return e.Sender() == b.user("bob") && e.Type() == "m.room.message" }) {
		t.Error("an event of a denied server is in the room")
	}
}

func TestMediaOverFederation(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	alice := a.register("alice")
	uri, err := a.media.Upload(a.ctx(), alice, media.Upload{Body: strings.NewReader("ciphertext"), Length: 10, ContentType: "application/octet-stream", Filename: "x.bin"})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		file, err := b.media.Open(b.ctx(), media.Get{URI: uri, Wait: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(file.Content)
		if err != nil || string(body) != "ciphertext" || file.Filename != "x.bin" {
			t.Errorf("%q %q %v", body, file.Filename, err)
		}
		file.Close()
		n.Unplug("a.example:8448") // the second time it is here already
	}
	if _, err := b.media.Open(b.ctx(), media.Get{URI: media.URI{Server: "a.example", ID: "nothing"}, Wait: time.Second}); err == nil {
		t.Error("a file that does not exist")
	}
}

func TestHierarchy(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	space, err := a.rooms.CreateRoom(a.ctx(), rooms.CreateRequest{
		Creator: a.user("alice"), Preset: "public_chat", Name: "Space", Content: []byte(`{"type":"m.space"}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	open, closed := a.create("alice", "public_chat", ""), a.create("alice", "private_chat", "")
	child := func(room matrix.RoomID, content string) {
		a.setState("alice", space, "m.space.child", string(room), content)
	}
	child(open, `{"via":["a.example"],"suggested":true}`)
	child(closed, `{"via":["a.example"]}`)
	child("!elsewhere:c.example", `{"via":["c.example"]}`)
	child("!removed:a.example", `{}`)
	ask := func(room matrix.RoomID, suggested bool) (*rooms.Hierarchy, error) {
		return b.out.Hierarchy(b.ctx(), "a.example", room, suggested)
	}
	got, err := ask(space, false)
	if err != nil {
		t.Fatal(err)
	}
	if got.Room.RoomType != "m.space" || len(got.Room.ChildrenState) != 3 || len(got.Children) != 1 || got.Children[0].RoomID != open ||
		!slices.Equal(got.Inaccessible, []matrix.RoomID{closed}) {
		t.Errorf("%+v", got)
	}
	if got, err = ask(space, true); err != nil || len(got.Room.ChildrenState) != 1 || len(got.Inaccessible) != 0 {
		t.Errorf("suggested: %+v %v", got, err)
	}
	for _, room := range []matrix.RoomID{closed, "!unknown:a.example"} {
		if _, err := ask(room, false); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Errorf("%s: %v", room, err)
		}
	}
}

func TestOpenID(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a := newNode(t, n, "a.example")
	token, _, err := a.users.Sessions.OpenIDToken(a.ctx(), a.register("alice"))
	if err != nil {
		t.Fatal(err)
	}
	for given, want := range map[string]string{token: `{"sub":"@alice:a.example"}`, "wrong": `M_UNKNOWN_TOKEN`} {
		w := httptest.NewRecorder()
		a.handler.Load().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/_matrix/federation/v1/openid/userinfo?access_token="+given, nil))
		if !strings.Contains(w.Body.String(), want) {
			t.Errorf("%d %s, want %s", w.Code, w.Body, want)
		}
	}
}

func TestCheck(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, _ := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	steps := func(name matrix.ServerName) (out []string) {
		for f := range a.out.Check(a.ctx(), name) {
			out = append(out, fmt.Sprint(f.Step, " ", f.Err == nil))
		}
		return out
	}
	good := []string{"lists true", ".well-known true", "discovery true", "connection true", "software true", "keys true", "our signature true"}
	if got := steps("b.example"); !slices.Equal(got, good) {
		t.Errorf("%v", got)
	}
	if got := steps("nothing.example"); !slices.Equal(got, []string{"lists true", ".well-known true", "discovery true", "connection false"}) {
		t.Errorf("%v", got)
	}
	// Ourselves, as others see us.
	if got := steps("a.example"); !slices.Equal(got, []string{".well-known true", "discovery true", "connection true", "software true", "keys true"}) {
		t.Errorf("%v", got)
	}
	d := &node{t: t, net: n, name: "b.example", key: a.key, dir: t.TempDir()}
	d.start()
	defer d.stop()
	for f := range d.out.Check(d.ctx(), "b.example") {
		if f.Step == "keys" && (f.Err == nil || !strings.Contains(f.Err.Error(), "is it another server")) {
			t.Errorf("another server answers under our name: %+v", f)
		}
	}
	// b cannot reach us, so it cannot verify what we sign.
	c := newNode(t, n, "c.example")
	n.Unplug("c.example:8448")
	var last federation.Finding
	for f := range c.out.Check(c.ctx(), "b.example") {
		last = f
	}
	if last.Step != "our signature" || last.Err == nil {
		t.Errorf("%+v", last)
	}
}

// An identity server has an address bound to bob, whom alice invited by that address.
func TestThirdPartyInvite(t *testing.T) {
	n := fedtest.NewNetwork(t)
	a, b := newNode(t, n, "a.example"), newNode(t, n, "b.example")
	bob := b.register("bob")
	identity, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := identity.Private.Public().(ed25519.PublicKey)
	room := a.create("alice", "private_chat", "10")
	a.setState("alice", room, "m.room.third_party_invite", "token", fmt.Sprintf(
		`{"display_name":"b...@example","public_key":%q,"public_keys":[{"public_key":%q}]}`,
		signing.EncodeBase64(public), signing.EncodeBase64(public)))
	bind := func(token string) int {
		t.Helper()
		signed, err := identity.Sign("id.example", fmt.Appendf(nil, `{"mxid":%q,"token":%q}`, bob, token))
		if err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf(`{"medium":"email","address":"bob@example","mxid":%q,"invites":[{"medium":"email","address":"bob@example","mxid":%q,"room_id":%q,"sender":%q,"signed":%s}]}`,
			bob, bob, room, a.user("alice"), signed)
		w := httptest.NewRecorder()
		b.handler.Load().ServeHTTP(w, httptest.NewRequest(http.MethodPut, "/_matrix/federation/v1/3pid/onbind", strings.NewReader(body)))
		return w.Code
	}
	membership := func() string {
		m, err := b.rooms.MembershipOf(b.ctx(), room, bob)
		if err != nil {
			t.Fatal(err)
		}
		return m.Membership
	}
	if code := bind("another"); code != 200 || membership() == "invite" {
		t.Errorf("an invite that nobody made: %d, %s", code, membership())
	}
	if code := bind("token"); code != 200 || membership() != "invite" {
		t.Errorf("%d, %q", code, membership())
	}
	b.join("bob", room)
	a.sees(room, bob, "join")
}
