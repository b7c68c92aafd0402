package feed

import (
	"testing"
	"time"

	"hanok/matrix/canonicaljson"
	"hanok/users"
)

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
