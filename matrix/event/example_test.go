package event_test

import (
	"crypto/ed25519"
	"fmt"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

func ExampleBuild() {
	version, _ := roomversion.Get("12")
	stateKey := ""
	create, err := event.Build(version, event.Proto{
		Sender:         "@alice:example.org",
		Type:           "m.room.create",
		StateKey:       &stateKey,
		Content:        []byte(`{"room_version": "12"}`),
		Depth:          1,
		OriginServerTS: 1432735824653,
	}, "example.org")
	if err != nil {
		panic(err)
	}
	fmt.Println(create.ID())
	fmt.Println(create.RoomID())
	// Output:
	// $6EvP2Dfzebk1brxLJkrQqJstDyQPLdKaDQfBmbcw3_8
	// !6EvP2Dfzebk1brxLJkrQqJstDyQPLdKaDQfBmbcw3_8
}

func ExampleParse() {
	version, _ := roomversion.Get("1")
	e, err := event.Parse(version, []byte(`{
		"room_id": "!x:domain", "sender": "@a:domain", "event_id": "$0:domain", "origin_server_ts": 1000000, "depth": 3,
		"type": "X", "content": {"body": "changed on the way"}, "prev_events": [], "auth_events": [], "signatures": {},
		"hashes": {"sha256": "5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"}, "unsigned": {"age_ts": 1000000}
	}`))
	if err != nil {
		panic(err)
	}
	fmt.Println(e.HashMismatch(), string(e.Content()))
	// Output: true {}
}

// A receiver collects the signatures of many events and verifies them together.
func ExampleEvent_SignatureCheck() {
	version, _ := roomversion.Get("11")
	key := signing.Key{ID: "ed25519:1", Private: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))}
	unsigned, err := event.Build(version, event.Proto{
		RoomID: "!room:example.org", Sender: "@alice:example.org", Type: "m.room.message", Content: []byte(`{"body":"hello"}`),
	}, "example.org")
	if err != nil {
		panic(err)
	}
	received, err := unsigned.Sign("example.org", key)
	if err != nil {
		panic(err)
	}

	keys := map[matrix.KeyID]ed25519.PublicKey{"ed25519:1": key.Private.Public().(ed25519.PublicKey)}
	var checks []signing.Check
	for _, server := range received.RequiredSigners() {
		for _, id := range received.SignatureKeyIDs(server) {
			if message, signature, ok := received.SignatureCheck(server, id); ok {
				checks = append(checks, signing.Check{Public: keys[id], Message: message, Signature: signature})
			}
		}
	}
	fmt.Println(signing.VerifyBatch(checks))
	// Output: [true]
}

func ExampleEvent_Redact() {
	version, _ := roomversion.Get("11")
	alice := "@alice:example.org"
	e, err := event.Build(version, event.Proto{
		RoomID: "!room:example.org", Sender: matrix.UserID(alice), Type: "m.room.member", StateKey: &alice,
		Content: []byte(`{"membership":"join","displayname":"Alice"}`),
	}, "example.org")
	if err != nil {
		panic(err)
	}
	redacted := e.Redact()
	fmt.Println(string(redacted.Content()), redacted.ID() == e.ID())
	// Output: {"membership":"join"} true
}

func ExampleEvent_AppendClient() {
	version, _ := roomversion.Get("3")
	e, err := event.Build(version, event.Proto{
		RoomID: "!room:example.org", Sender: "@alice:example.org", Type: "m.room.message",
		Content: []byte(`{"body":"hello","msgtype":"m.text"}`), OriginServerTS: 1432735824653,
	}, "example.org")
	if err != nil {
		panic(err)
	}
	fmt.Println(string(e.AppendClient(nil, event.ClientOptions{OmitRoomID: true, Now: 1432735825000})))
	// Output: {"content":{"body":"hello","msgtype":"m.text"},"event_id":"$h1/nEHjouhRyC7hf/qTUm+NUJqFo/hM8vOeT10Q+DN0","origin_server_ts":1432735824653,"sender":"@alice:example.org","type":"m.room.message","unsigned":{"age":347}}
}
