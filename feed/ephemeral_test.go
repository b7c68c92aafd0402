package feed

import (
	"testing"
	"time"

	"hanok/matrix/canonicaljson"
	"hanok/users"
)

func TestReceiptContent(t *testing.T) {
	got, err := canonicaljson.Marshal(receiptContent([]users.Receipt{
		{User: "@a:x", Type: "m.read", EventID: "$1", At: 5},
		{User: "@b:x", Type: "m.read", EventID: "$1", Thread: "main", At: 6},
		{User: "@a:x", Type: "m.read.private", EventID: "$2", At: 7},
		{User: "@a:x", Type: "m.read", EventID: "$1", Thread: "main", At: 8}, // says less than the unthreaded one
	}))
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"$1":{"m.read":{"@a:x":{"ts":5},"@b:x":{"thread_id":"main","ts":6}}},"$2":{"m.read.private":{"@a:x":{"ts":7}}}}`
	if string(got) != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := string(typedContent("m.receipt", []byte(`{}`))); got != `{"content":{},"type":"m.receipt"}` {
		t.Error(got)
	}
}

func TestPresenceContent(t *testing.T) {
	now := time.Unix(100, 0)
	for want, p := range map[string]users.PresenceState{
		`{"presence":"offline"}`: {State: "offline"},
		`{"currently_active":true,"last_active_ago":2000,"presence":"online","status_msg":"hi"}`: {State: "online", StatusMsg: "hi", LastActive: time.Unix(98, 0), Active: true},
		`{"last_active_ago":0,"presence":"unavailable"}`:                                         {State: "unavailable", LastActive: time.Unix(101, 0)},
	} {
		got, err := canonicaljson.Marshal(PresenceContent(p, now))
		if err != nil || string(got) != want {
			t.Errorf("%s %v\nwant %s", got, err, want)
		}
	}
}

func TestReadUpTo(t *testing.T) {
	read := readUpTo([]users.Receipt{
		{Type: "m.read", Order: 5}, {Type: "m.read.private", Order: 7}, {Type: "m.read", Thread: "$t", Order: 9}, {Type: "m.fully_read", Order: 50},
	})
	if read[""] != 7 || read["$t"] != 9 || read["main"] != 0 {
		t.Error(read)
	}
}
