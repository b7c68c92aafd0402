package eventauth_test

import (
	"errors"
	"fmt"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
)

// A stranger may not speak in a room.
func ExampleCheck() {
	v, _ := roomversion.Get("12")
	none := ""
	create, err := event.Build(v, event.Proto{
		Sender: "@alice:example.org", Type: "m.room.create", StateKey: &none, Content: []byte(`{}`),
	}, "example.org")
	if err != nil {
		fmt.Println(err)
		return
	}
	message, err := event.Build(v, event.Proto{
		RoomID: create.RoomID(), Sender: "@bob:example.net", Type: "m.room.message", Content: []byte(`{"body":"hello"}`),
		PrevEvents: []matrix.EventID{create.ID()}, Depth: 1,
	}, "example.net")
	if err != nil {
		fmt.Println(err)
		return
	}

	var checker eventauth.Checker // one for each room, for as long as it is busy
	err = checker.Check(message, eventauth.EventsOf(create))
	var rejection *eventauth.Rejection
	if errors.As(err, &rejection) {
		fmt.Println(rejection.Rule)
		fmt.Println(rejection.Reason)
	}
	// Output:
	// rooms/v12 6
	// the sender is not in the room
}

// Which events have to be in the auth_events of an invite.
func ExampleSelect() {
	v, _ := roomversion.Get("12")
	for _, key := range eventauth.Select(v, "m.room.member", "@bob:example.net", true, "@alice:example.org",
		[]byte(`{"membership":"invite"}`)) {
		fmt.Printf("%s %q\n", key.Type, key.Key)
	}
	// Output:
	// m.room.power_levels ""
	// m.room.member "@alice:example.org"
	// m.room.member "@bob:example.net"
	// m.room.join_rules ""
}
