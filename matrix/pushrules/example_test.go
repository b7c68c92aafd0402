package pushrules_test

import (
	"fmt"

	"hanok/matrix/event"
	"hanok/matrix/pushrules"
	"hanok/matrix/roomversion"
)

func Example() {
	v, _ := roomversion.Get("11")
	e, err := event.Build(v, event.Proto{
		RoomID: "!room:example.org", Sender: "@alice:example.org", Type: "m.room.message",
		Content: []byte(`{"msgtype":"m.text","body":"Hello, Bob","m.mentions":{"user_ids":["@bob:example.org"]}}`),
	}, "example.org")
	if err != nil {
		panic(err)
	}
	flat := pushrules.Flatten(e) // once per event

	rules := pushrules.Compile("@bob:example.org", pushrules.Default("@bob:example.org")) // once per user
	outcome := rules.Evaluate(flat, pushrules.Room{MemberCount: 3})
	fmt.Println(outcome.RuleID, outcome.Notify, outcome.Highlight, string(outcome.Tweaks))
	// Output: .m.rule.is_user_mention true true {"highlight":true,"sound":"default"}
}
