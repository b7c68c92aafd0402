package privacy

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"image"
	"image/color"
	"image/png"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

func policy(t *testing.T, o Options) *Policy {
	t.Helper()
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func build(t *testing.T, eventType string, stateKey *string, content string) *event.Event {
	t.Helper()
	v, ok := roomversion.Get("11")
	if !ok {
		t.Fatal("no room version 11")
	}
	var redacts matrix.EventID
	if eventType == "m.room.redaction" {
		redacts = "$x"
	}
	e, err := event.Build(v, event.Proto{
		RoomID: "!room:test", Sender: "@alice:test", Type: eventType, StateKey: stateKey, Content: []byte(content),
		Redacts: redacts, Depth: 2, OriginServerTS: 1, PrevEvents: []matrix.EventID{"$p"}, AuthEvents: []matrix.EventID{"$a"},
	}, "test")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const ciphertext = `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"AwgAEnACgAkLmt6","session_id":"X"}`

func TestEvents(t *testing.T) {
	empty, other := "", "other"
	for name, tt := range map[string]struct {
		eventType string
		key       *string
		content   string
		local     bool // whether Required lets a local user send it
		remote    bool // whether Required keeps it when it comes from elsewhere
	}{
		"ciphertext":           {"m.room.encrypted", nil, ciphertext, true, true},
		"reaction":             {"m.reaction", nil, `{"m.relates_to":{"event_id":"$x","key":"👍","rel_type":"m.annotation"}}`, true, true},
		"dummy":                {"org.matrix.dummy_event", nil, `{}`, true, true},
		"dummy with content":   {"org.matrix.dummy_event", nil, `{"body":"psst"}`, false, false},
		"redaction":            {"m.room.redaction", nil, `{"redacts":"$x"}`, true, true},
		"verification":         {"m.key.verification.ready", nil, `{"from_device":"X"}`, true, true},
		"allowed by operator":  {"org.example.bot.ping", nil, `{}`, true, true},
		"message":              {"m.room.message", nil, `{"body":"hi","msgtype":"m.text"}`, false, false},
		"sticker":              {"m.sticker", nil, `{"body":"hi","url":"mxc://a/b"}`, false, false},
		"unknown":              {"org.example.other", nil, `{}`, false, false},
		"call with addresses":  {"m.call.invite", nil, `{"offer":{}}`, false, false},
		"plain as encrypted":   {"m.room.encrypted", nil, `{"body":"hi","msgtype":"m.text"}`, false, false},
		"both":                 {"m.room.encrypted", nil, `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"A","body":"hi"}`, false, false},
		"empty ciphertext":     {"m.room.encrypted", nil, `{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":""}`, false, false},
		"algorithm not text":   {"m.room.encrypted", nil, `{"algorithm":17,"ciphertext":"A"}`, false, false},
		"message as state":     {"m.room.message", &empty, `{"body":"hi"}`, false, false},
		"name":                 {"m.room.name", &empty, `{"name":"Room"}`, true, true},
		"encryption on":        {"m.room.encryption", &empty, `{"algorithm":"m.megolm.v1.aes-sha2"}`, true, true},
		"encryption off":       {"m.room.encryption", &empty, `{}`, false, true},
		"encryption elsewhere": {"m.room.encryption", &other, `{}`, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			e := build(t, tt.eventType, tt.key, tt.content)
			for _, encrypted := range []bool{true, false} {
				p := policy(t, Options{AllowTypes: []string{"org.example.bot.*"}})
				err := p.CheckLocal(context.Background(), e, encrypted)
				if (err == nil) != tt.local {
					t.Errorf("CheckLocal in an encrypted=%v room: %v", encrypted, err)
				}
				if err != nil {
					if !matrix.HasCode(err, "M_FORBIDDEN") || !strings.Contains(err.Error(), ".") || len(err.Error()) < 60 {
						t.Errorf("the refusal does not say what to do: %v", err)
					}
				}
				if redact := p.CheckRemote(context.Background(), e, encrypted); redact == tt.remote {
					t.Errorf("CheckRemote: redact=%v", redact)
				}
				for _, mode := range []Mode{Default, Allowed} {
					p := policy(t, Options{Mode: mode})
					if err := p.CheckLocal(context.Background(), e, encrypted); err != nil || p.CheckRemote(context.Background(), e, encrypted) {
						t.Errorf("mode %s refuses: %v", mode, err)
					}
				}
			}
		})
	}
}

func TestRefusalNamesTheCure(t *testing.T) {
	p, e := policy(t, Options{}), build(t, "m.room.message", nil, `{"body":"hi","msgtype":"m.text"}`)
	for encrypted, want := range map[bool]string{true: "Use a client that supports end-to-end encryption", false: "Turn on encryption in the room's settings"} {
		if err := p.CheckLocal(context.Background(), e, encrypted); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("encrypted=%v: %v lacks %q", encrypted, err, want)
		}
	}
}

func TestNewRoom(t *testing.T) {
	const on, own, off = `{"algorithm":"m.megolm.v1.aes-sha2"}`, `{"algorithm":"m.megolm.v1.aes-sha2","rotation_period_msgs":10}`, `{}`
	for _, tt := range []struct {
		mode            Mode
		requested, want string // "" for none
		refused         bool
	}{
		{Required, "", on, false}, {Required, own, own, false}, {Required, off, "", true}, {Required, `{"algorithm":"rot13"}`, "", true},
		{Default, "", on, false}, {Default, own, own, false}, {Default, off, "", false},
		{Allowed, "", "", false}, {Allowed, own, own, false}, {Allowed, off, off, false},
	} {
		var requested []byte
		if tt.requested != "" {
			requested = []byte(tt.requested)
		}
		got, err := policy(t, Options{Mode: tt.mode}).NewRoom("@a:b.c", requested)
		if string(got) != tt.want || (err != nil) != tt.refused {
			t.Errorf("%s, asked for %q: got %q, %v", tt.mode, tt.requested, got, err)
		}
	}
}

func TestToDevice(t *testing.T) {
	p := policy(t, Options{})
	for _, good := range [][2]string{
		{"m.room.encrypted", `{"algorithm":"m.olm.v1.curve25519-aes-sha2","ciphertext":{"k":{"type":0,"body":"x"}},"sender_key":"k"}`},
		{"m.room_key_request", `{}`}, {"m.room_key.withheld", `{}`}, {"m.key.verification.start", `{}`}, {"m.secret.request", `{}`}, {"m.dummy", `{}`},
	} {
		if err := p.ToDevice(good[0], []byte(good[1])); err != nil {
			t.Errorf("%s: %v", good[0], err)
		}
	}
	for _, bad := range []string{"m.room_key", "m.forwarded_room_key", "m.secret.send", "m.room_key_bundle", "io.element.call.encryption_keys", "m.room.encrypted"} {
		if err := p.ToDevice(bad, []byte(`{"session_key":"x"}`)); !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("%s travels in the clear: %v", bad, err)
		}
		if err := policy(t, Options{Mode: Default}).ToDevice(bad, []byte(`{}`)); err != nil {
			t.Errorf("mode default refuses %s: %v", bad, err)
		}
	}
}

func TestUploads(t *testing.T) {
	noise := make([]byte, HeadSize)
	rand.Read(noise)
	var picture, zipped bytes.Buffer
	img := image.NewGray(image.Rect(0, 0, 64, 64))
	img.Set(1, 1, color.White)
	if err := png.Encode(&picture, img); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&zipped)
	z.Write([]byte("hello"))
	z.Close()
	text := []byte(strings.Repeat("Dear diary, today was a day like any other. ", 100))[:HeadSize]
	p := policy(t, Options{UnencryptedUpload: 1000})
	for name, tt := range map[string]struct {
		kind    string
		head    []byte
		max     int64
		refused bool
	}{
		"ciphertext":         {"application/octet-stream", noise, 0, false},
		"no type":            {"", noise, 0, false},
		"short ciphertext":   {"application/octet-stream", noise[:20], 0, false},
		"empty":              {"application/octet-stream", nil, 0, false},
		"avatar":             {"image/png", picture.Bytes(), 1000, false},
		"hidden picture":     {"application/octet-stream", picture.Bytes(), 0, true},
		"hidden text":        {"application/octet-stream", text, 0, true},
		"hidden archive":     {"application/octet-stream", zipped.Bytes(), 0, true},
		"hidden video":       {"application/octet-stream", append([]byte("\x00\x00\x00\x20ftypisom"), noise[:100]...), 0, true},
		"hidden zeros":       {"application/octet-stream", make([]byte, HeadSize), 0, true},
		"text":               {"text/plain", text, 0, true},
		"video":              {"video/mp4", noise, 0, true},
		"text called a png":  {"image/png", text, 0, true},
		"noise called a png": {"image/png", noise, 0, true},
		"svg":                {"image/svg+xml", []byte("<svg/>"), 0, true},
	} {
		max, err := p.CheckUpload(tt.kind, tt.head)
		if max != tt.max || (err != nil) != tt.refused {
			t.Errorf("%s: max %d, %v", name, max, err)
		}
		if _, err := policy(t, Options{Mode: Default}).CheckUpload(tt.kind, tt.head); err != nil {
			t.Errorf("%s: mode default refuses: %v", name, err)
		}
	}
	for range 20_000 { // ciphertext must never be taken for plaintext
		rand.Read(noise)
		if looksPlain(noise) {
			t.Fatalf("noise looks plain: entropy %f, starts %x", entropy(noise), noise[:8])
		}
	}
}

func TestUnknownMode(t *testing.T) {
	if _, err := New(Options{Mode: "off"}); err == nil {
		t.Error("an unknown mode was accepted")
	}
}

// What the server says to its users is not encrypted, and nobody else may speak so.
func TestServerNotices(t *testing.T) {
	const on = `{"algorithm":"m.megolm.v1.aes-sha2"}`
	message := build(t, "m.room.message", nil, `{"body":"hi","msgtype":"m.server_notice"}`)
	for _, tt := range []struct {
		notices matrix.UserID
		may     bool
	}{{"@alice:test", true}, {"@bob:test", false}, {"", false}} {
		p := policy(t, Options{Mode: Required, Notices: tt.notices})
		if err := p.CheckLocal(t.Context(), message, false); (err == nil) != tt.may {
			t.Errorf("notices from %q, a message of @alice:test: %v", tt.notices, err)
		}
		if content, err := p.NewRoom("@alice:test", nil); err != nil || (string(content) != on) != tt.may {
			t.Errorf("notices from %q, a room of @alice:test: %s %v", tt.notices, content, err)
		}
	}
}
