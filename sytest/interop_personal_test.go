package sytest

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"image"
	"image/color/palette"
	"image/gif"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// interopPrivate checks that what is nobody else's business does not get to the other server.
func interopPrivate(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		from, to := who[0], who[1]
		stranger := to.Server().Register(t, "stranger") // on the same server, in no room with them
		stranger.Sync(0)
		first := to.Say(room, "read this")
		thread := to.Send(room, "m.room.message", json{"msgtype": "m.text", "body": "and this", "m.relates_to": json{"rel_type": "m.thread", "event_id": first}})
		last := to.Say(room, "and that")
		sees(t, from, room, last)
		to.Sync(0)
		receipt := func(kind, event string, body json) {
			from.Must("POST", "/v3/rooms"+homeserver.Path(room, "receipt", kind, event), body)
		}
		receipt("m.read.private", first, json{})
		receipt("m.read.private", first, json{"thread_id": "main"})
		receipt("m.read.private", thread, json{"thread_id": first})
		from.Must("POST", "/v3/rooms"+homeserver.Path(room, "read_markers"), json{"m.fully_read": first, "m.read.private": first})
		from.Must("PUT", "/v3/user"+homeserver.Path(from.UserID, "rooms", room, "account_data", "org.example.secret"), json{"secret": true})
		from.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", from.UserID), json{"typing": true, "timeout": 20000})
		from.Must("PUT", "/v3/presence"+homeserver.Path(from.UserID, "status"), json{"presence": "online", "status_msg": "for those who know me " + last})
		receipt("m.read", last, json{})
		typed, read, present := false, false, false
		to.SyncUntil("what is for all in the room", func(res json) bool {
			if all := fmt.Sprint(res); strings.Contains(all, "m.read.private") || strings.Contains(all, "m.fully_read") || strings.Contains(all, "org.example.secret") {
				t.Errorf("%s is told of what is %s's own: %v", to.UserID, from.UserID, res)
			}
			for _, e := range homeserver.Events(res, "rooms", "join", room, "ephemeral", "events") {
				users, _ := homeserver.Dig(e, "content", "user_ids").([]any)
				typed = typed || slices.Contains(users, any(from.UserID))
				content, _ := e["content"].(json)
				for event := range content {
					if homeserver.Dig(content, event, "m.read", from.UserID) == nil {
						continue
					}
					read = read || event == last
					if event == first || event == thread {
						t.Errorf("%s is told of a private receipt of %s as a public one: %v", to.UserID, from.UserID, e)
					}
				}
			}
			for _, e := range homeserver.Events(res, "presence", "events") {
				present = present || e["sender"] == from.UserID && homeserver.Dig(e, "content", "status_msg") == "for those who know me "+last
			}
			return typed && read && present
		})
		if res := fmt.Sprint(stranger.Sync(0)); strings.Contains(res, from.UserID) {
			t.Errorf("a stranger is told of %s: %s", from.UserID, res)
		}
		if status, res := stranger.Do("GET", "/v3/presence"+homeserver.Path(from.UserID, "status"), nil); status == http.StatusOK && res["status_msg"] != nil {
			t.Errorf("a stranger reads the presence of %s: %v", from.UserID, res)
		}
		from.Must("PUT", "/v3/rooms"+homeserver.Path(room, "typing", from.UserID), json{"typing": false})
	}
}

// crossSign gives a user new cross-signing keys and signs a device with them.
func crossSign(t *testing.T, d device) (master string) {
	t.Helper()
	primary, self, user := newKeyPair(t), newKeyPair(t), newKeyPair(t)
	of := func(key ed25519.PrivateKey, usage string) json {
		return json{"user_id": d.UserID, "usage": []any{usage}, "keys": json{"ed25519:" + public(key): public(key)}}
	}
	signed := func(object json) json { return signWith(t, object, d.UserID, public(primary), primary) }
	body := json{"master_key": of(primary, "master"), "self_signing_key": signed(of(self, "self_signing")), "user_signing_key": signed(of(user, "user_signing"))}
	status, res := d.Do("POST", "/v3/keys/device_signing/upload", body)
	if status == http.StatusUnauthorized {
		body["auth"] = json{"type": "m.login.password", "identifier": json{"type": "m.id.user", "user": d.UserID}, "password": homeserver.Password, "session": res["session"]}
		d.Must("POST", "/v3/keys/device_signing/upload", body)
	} else if status != http.StatusOK {
		t.Fatalf("cross-signing keys of %s: %d %v", d.UserID, status, res)
	}
	d.Must("POST", "/v3/keys/signatures/upload", json{d.UserID: json{d.DeviceID: signWith(t, d.keys(t), d.UserID, public(self), self)}})
	return public(primary)
}

// interopKeysAfterRejoin changes devices and cross-signing keys while their users share no room, or the other server is down.
func interopKeysAfterRejoin(t *testing.T, p pair) {
	p.forgetOutages(t)
	alice, bob, room := p.sharedRoom(t)
	p.knowEachOther(t, room, alice, bob)
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		from, to := who[0], who[1]
		shows := func(master string, there, gone device) {
			t.Helper()
			eventually(t, to.UserID+" sees the keys of "+from.UserID, func() string {
				res := to.Must("POST", "/v3/keys/query", json{"device_keys": json{from.UserID: []any{}}})
				devices, _ := homeserver.Dig(res, "device_keys", from.UserID).(json)
				if homeserver.Dig(res, "master_keys", from.UserID, "keys", "ed25519:"+master) != master || devices[there.DeviceID] == nil || gone.Client != nil && devices[gone.DeviceID] != nil {
					return fmt.Sprint(res)
				}
				return ""
			})
		}
		ping := func(name string, d device) {
			t.Helper()
			to.Must("PUT", "/v3/sendToDevice/org.example.ping"+homeserver.Path(name+fmt.Sprint(time.Now().UnixNano())), json{"messages": json{from.UserID: json{d.DeviceID: json{"ping": name}}}})
			d.SyncUntil("a message to a device: "+name, func(res json) bool {
				return slices.ContainsFunc(homeserver.Events(res, "to_device", "events"), func(e json) bool { return homeserver.Dig(e, "content", "ping") == name })
			})
		}
		to.Sync(0)
		first := upload(t, from.Login())
		master := crossSign(t, first)
		changed(t, to, from.UserID)
		shows(master, first, device{})
		ping("in the room", first)

		// They part. Messages get through all the same.
		leave(t, bob, room)
		member(t, alice, room, bob.UserID, "leave")
		ping("apart", first)
		second := upload(t, from.Login())
		first.Must("POST", "/v3/logout", json{})
		master = crossSign(t, second)
		bob.Join(room, p.home.Name)
		member(t, alice, room, bob.UserID, "join")
		changed(t, to, from.UserID)
		shows(master, second, first)
		ping("together again", second)

		// Down while keys change.
		to.Sync(0)
		to.Server().Kill()
		third := upload(t, from.Login())
		second.Must("POST", "/v3/logout", json{})
		master = crossSign(t, third)
		to.Server().Start()
		p.heard(t, from, to, room, "I have a new phone")
		changed(t, to, from.UserID)
		shows(master, third, second)
		ping("back", third)
	}
}

// interopProfileFields changes what a profile has, takes it away, and changes it while the other server is down.
func interopProfileFields(t *testing.T, p pair) {
	alice, bob, room := p.sharedRoom(t)
	for _, who := range [][2]*homeserver.Client{{alice, bob}, {bob, alice}} {
		from, to := who[0], who[1]
		set := func(field string, value any) {
			t.Helper()
			from.Must("PUT", "/v3/profile"+homeserver.Path(from.UserID, field), json{field: value})
		}
		picture := "mxc://" + from.Server().Name + "/picture"
		set("displayname", "Ünï 한옥 👩‍👩‍👧‍👦")
		set("avatar_url", picture)
		stateIs(t, to, room, "m.room.member", from.UserID, "displayname", "Ünï 한옥 👩‍👩‍👧‍👦")
		stateIs(t, to, room, "m.room.member", from.UserID, "avatar_url", picture)
		if p.can(to, "restarts right after a join") {
			to.Server().Kill()
		}
		set("displayname", "Named meanwhile")
		to.Server().EnsureStarted()
		p.heard(t, from, to, room, "how do you like my name?")
		stateIs(t, to, room, "m.room.member", from.UserID, "displayname", "Named meanwhile")
		set("displayname", "")
		set("avatar_url", "")
		eventually(t, "no name and no picture", func() string {
			content := to.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.member", from.UserID), nil)
			if name, _ := content["displayname"].(string); name != "" && p.can(from, "profiles without names") || content["avatar_url"] != nil && content["avatar_url"] != "" || content["membership"] != "join" {
				return fmt.Sprint(content)
			}
			return ""
		})
		if p.lacks["profile fields"] == "" {
			set("m.tz", "Asia/Seoul")
			set("org.example.field", json{"deep": []any{1.0, "x"}})
			eventually(t, "more of the profile", func() string {
				res := to.Must("GET", "/v3/profile"+homeserver.Path(from.UserID), nil)
				if res["m.tz"] != "Asia/Seoul" || fmt.Sprint(res["org.example.field"]) != fmt.Sprint(json{"deep": []any{1.0, "x"}}) {
					return fmt.Sprint(res)
				}
				return ""
			})
			if res := to.Must("GET", "/v3/profile"+homeserver.Path(from.UserID, "m.tz"), nil); res["m.tz"] != "Asia/Seoul" {
				t.Errorf("one field of the profile: %v", res)
			}
			from.Must("DELETE", "/v3/profile"+homeserver.Path(from.UserID, "m.tz"), nil)
			to.Refused("GET", "/v3/profile"+homeserver.Path(from.UserID, "m.tz"), nil, http.StatusNotFound, "M_NOT_FOUND")
		}
		sameState(t, room, alice, bob)
	}
}

// interopFiles has files of many kinds read through the other server.
func interopFiles(t *testing.T, p pair) {
	for _, who := range []pair{p, {home: p.away, away: p.home, ours: p.ours, lacks: p.lacks}} {
		alice, bob := who.home.Register(t, "alice"), who.away.Register(t, "bob")
		add := func(name string, content []byte) string {
			t.Helper()
			uri, _ := alice.Must("POST", "/_matrix/media/v3/upload?filename="+name, string(content))["content_uri"].(string)
			return strings.TrimPrefix(uri, "mxc://")
		}
		same := func(what, id string, want []byte) {
			t.Helper()
			for _, name := range []string{"", "/other%20name.bin"} {
				status, got := bob.Raw("GET", "/v1/media/download/"+id+name, nil)
				if status != http.StatusOK || !bytes.Equal(got, want) {
					t.Errorf("%s of %s: %d, %d bytes of %d", what, who.home.Name, status, len(got), len(want))
				}
			}
		}
		large := bytes.Repeat([]byte("0123456789abcdef"), 5<<16)
		same("a large file", add("large.bin", large), large)
		same("a text", add("%ED%95%9C%EC%98%A5%20%22x%22.txt", []byte("text, and \r\n--boundary--\r\n\r\n")), []byte("text, and \r\n--boundary--\r\n\r\n"))
		same("a script", add("x.html", []byte("<script>alert(1)</script>")), []byte("<script>alert(1)</script>"))

		var moving bytes.Buffer
		frames := &gif.GIF{}
		for i := range 3 {
			frame := image.NewPaletted(image.Rect(0, 0, 200, 150), palette.Plan9)
			for j := range frame.Pix {
				frame.Pix[j] = byte(j + 40*i)
			}
			frames.Image, frames.Delay = append(frames.Image, frame), append(frames.Delay, 10)
		}
		if err := gif.EncodeAll(&moving, frames); err != nil {
			t.Fatal(err)
		}
		id := add("moving.gif", moving.Bytes())
		same("a moving picture", id, moving.Bytes())
		for _, params := range []string{"&animated=true", "&animated=false", ""} {
			status, got := bob.Raw("GET", "/v1/media/thumbnail/"+id+"?width=96&height=96&method=crop"+params, nil)
			if thumbnail, _, err := image.DecodeConfig(bytes.NewReader(got)); status != http.StatusOK || err != nil || thumbnail.Width > 320 {
				t.Errorf("the thumbnail%s of a moving picture of %s: %d %v %v", params, who.home.Name, status, thumbnail, err)
			}
		}
		if status, got := bob.Raw("GET", "/v1/media/thumbnail/"+add("no.png", []byte("no picture"))+"?width=96&height=96", nil); status < 400 || status >= 500 {
			t.Errorf("the thumbnail of what is no picture: %d %.200s", status, got)
		}

		// Told of before it is there.
		if who.can(alice, "files that come later") {
			uri, _ := alice.Must("POST", "/_matrix/media/v1/create", json{})["content_uri"].(string)
			id := strings.TrimPrefix(uri, "mxc://")
			if status, got := bob.Raw("GET", "/v1/media/download/"+id+"?timeout_ms=100", nil); status < 400 ||
				bob.Server() == p.ours && (status != http.StatusGatewayTimeout || !bytes.Contains(got, []byte("M_NOT_YET_UPLOADED"))) {
				t.Errorf("a file that has not come: %d %.200s", status, got)
			}
			alice.Must("PUT", "/_matrix/media/v3/upload/"+id, "here it is")
			eventually(t, "a file that came later", func() string {
				if status, got := bob.Raw("GET", "/v1/media/download/"+id+"?timeout_ms=5000", nil); status != http.StatusOK || string(got) != "here it is" {
					return fmt.Sprintf("%d %.200s", status, got)
				}
				return ""
			})
		}
		// What was fetched once is there when the other server is not; what was not is an error, and soon.
		unread := add("unread.txt", []byte("unread"))
		who.home.Kill()
		same("a file of a server that is down", id, moving.Bytes())
		if status, got := bob.Raw("GET", "/v1/media/download/"+unread+"?timeout_ms=1000", nil); status < 400 {
			t.Errorf("a file of a server that is down, and that nobody has read: %d %.200s", status, got)
		}
		who.home.Start()
		eventually(t, "a file of a server that was down", func() string {
			if status, got := bob.Raw("GET", "/v1/media/download/"+unread, nil); status != http.StatusOK {
				return fmt.Sprintf("%d %.200s", status, got)
			}
			return ""
		})
	}
}

// interopFilesElsewhere fetches files of a third server, which says where they are instead of sending them.
func interopFilesElsewhere(t *testing.T, p pair) {
	bob := p.away.Register(t, "bob")
	if !p.can(bob, "files elsewhere") {
		t.Skip(p.lacks["files elsewhere"])
	}
	peer, file := p.away.Network().NewPeer(), picture(t)
	peer.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		header := w.Header()
		switch id, isMedia := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/media/download/"); {
		case isMedia:
			header.Set("Content-Type", "multipart/mixed; boundary=edge")
			fmt.Fprintf(w, "--edge\r\nContent-Type: application/json\r\n\r\n{}\r\n--edge\r\nLocation: https://%s/store/%s?signed=a%%2Fb\r\n\r\n\r\n--edge--\r\n", peer.Name, id)
		case r.URL.Path == "/store/here" && r.URL.RawQuery == "signed=a%2Fb":
			header.Set("Content-Type", "image/png")
			header.Set("Content-Disposition", `inline; filename="stored.png"`)
			_, _ = w.Write(file) // who has gone away learns nothing any more
		default:
			return false
		}
		return true
	}
	for range 2 { // fetched, and kept
		status, got := bob.Raw("GET", "/v1/media/download/"+string(peer.Name)+"/here", nil)
		if status != http.StatusOK || !bytes.Equal(got, file) {
			t.Errorf("a file that is elsewhere: %d, %d bytes of %d: %.200q", status, len(got), len(file), got)
		}
	}
	status, got := bob.Raw("GET", "/v1/media/thumbnail/"+string(peer.Name)+"/here?width=96&height=96&method=crop", nil)
	if thumbnail, _, err := image.DecodeConfig(bytes.NewReader(got)); status != http.StatusOK || err != nil || thumbnail.Width > 320 {
		t.Errorf("the thumbnail of a file that is elsewhere: %d %v %v", status, thumbnail, err)
	}
	if status, got := bob.Raw("GET", "/v1/media/download/"+string(peer.Name)+"/gone", nil); status < 400 {
		t.Errorf("a file that is not where it should be: %d %.200s", status, got)
	}
	if n := len(slices.DeleteFunc(peer.Asked(), func(request string) bool { return request != "GET /store/here" })); n != 1 {
		t.Errorf("the file was fetched %d times", n)
	}
}
