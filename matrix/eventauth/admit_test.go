package eventauth_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
	"time"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// admission is an encrypted message of 1.2 kB as it arrives from a peer, and the
// state that it is checked against: a v12 room with 20 moderators.
type admission struct {
	version *roomversion.Version
	raw     []byte
	create  *event.Event
	auth    []*event.Event
	state   eventauth.Events
	key     signing.Key
}

func newAdmission(b *testing.B) *admission {
	b.Helper()
	v, ok := roomversion.Get(roomversion.Default)
	if !ok {
		b.Fatal("no default version")
	}
	build := func(p event.Proto) *event.Event {
		p.OriginServerTS = 1763900000000
		e, err := event.Build(v, p, "one.example")
		if err != nil {
			b.Fatal(err)
		}
		return e
	}
	const alice, bob = matrix.UserID("@alice:one.example"), matrix.UserID("@bob:two.example")
	empty, bobKey := "", string(bob)
	create := build(event.Proto{Sender: alice, Type: "m.room.create", StateKey: &empty, Content: []byte(`{"room_version":"12"}`), Depth: 1})
	room := create.RoomID()
	var moderators []string
	for i := range 20 {
		moderators = append(moderators, fmt.Sprintf(`"@mod%d:one.example":50`, i))
	}
	levels := build(event.Proto{
		RoomID: room, Sender: alice, Type: "m.room.power_levels", StateKey: &empty, Depth: 2, PrevEvents: []matrix.EventID{create.ID()},
		Content: []byte(`{"users":{` + strings.Join(moderators, ",") + `},"events":{"m.room.name":50,"m.room.topic":50,"m.room.avatar":50}}`),
	})
	member := build(event.Proto{
		RoomID: room, Sender: bob, Type: "m.room.member", StateKey: &bobKey, Depth: 3, PrevEvents: []matrix.EventID{levels.ID()},
		AuthEvents: []matrix.EventID{levels.ID()}, Content: []byte(`{"membership":"join","displayname":"Bob"}`),
	})
	a := &admission{
		version: v, create: create, auth: []*event.Event{levels, member}, state: eventauth.EventsOf(create, levels, member),
		key: signing.Key{ID: "ed25519:a_1", Private: ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))},
	}
	message := build(event.Proto{
		RoomID: room, Sender: bob, Type: "m.room.encrypted", Depth: 4, PrevEvents: []matrix.EventID{member.ID()},
		AuthEvents: []matrix.EventID{levels.ID(), member.ID()},
		Content: []byte(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"` + strings.Repeat("AwgAEpAB", 58) + `","device_id":"ABCDEFGHIJ",` +
			`"sender_key":"GGg9yyvzWLJGMCEEkmrYYnUVd9DFRZnR1Tv4FgXJTVw","session_id":"J5Vza9Jrc3nLYXGVqVmGmaDJLG7SUdr6bSiRN8uFZXs"}`),
	})
	signed, err := message.Sign("two.example", a.key)
	if err != nil {
		b.Fatal(err)
	}
	if a.raw = signed.JSON(); len(a.raw) < 1190 || len(a.raw) > 1210 {
		b.Fatalf("the event has %d bytes", len(a.raw))
	}
	return a
}

// admit is what happens to an event from a peer, save for signatures and storage.
func (a *admission) admit() (*event.Event, error) {
	e, err := event.Parse(a.version, a.raw)
	if err != nil {
		return nil, err
	}
	accepted := func(matrix.EventID) bool { return false }
	if err := eventauth.CheckAuthEvents(e, a.auth, accepted, a.create); err != nil {
		return nil, err
	}
	return e, eventauth.Check(e, a.state)
}

// reportLimit states how many times longer an operation took than what no
// implementation can save, which is timed here.
func reportLimit(b *testing.B, what string, limit func()) {
	b.StopTimer()
	const rounds = 1000
	start := time.Now()
	for range rounds {
		limit()
	}
	floor := float64(time.Since(start).Nanoseconds()) / rounds
	b.ReportMetric(floor, "ns-"+what)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/floor, "x-"+what)
}

// BenchmarkAdmit parses, hashes, identifies and authorises an event of 1.2 kB.
func BenchmarkAdmit(b *testing.B) {
	a := newAdmission(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.admit(); err != nil {
			b.Fatal(err)
		}
	}
	// The content hash covers all but hashes and signatures, the reference hash all but the content.
	reportLimit(b, "sha256", func() {
		sha256.Sum256(a.raw[:len(a.raw)-220])
		sha256.Sum256(a.raw[:600])
	})
}

// BenchmarkVerify is BenchmarkAdmit with the sender's server's signature.
func BenchmarkVerify(b *testing.B) {
	a := newAdmission(b)
	public := a.key.Private.Public().(ed25519.PublicKey)
	b.ReportAllocs()
	for b.Loop() {
		e, err := a.admit()
		if err != nil {
			b.Fatal(err)
		}
		for _, server := range e.RequiredSigners() {
			for _, id := range e.SignatureKeyIDs(server) {
				message, signature, ok := e.SignatureCheck(server, id)
				if !ok || !ed25519.Verify(public, message, signature) {
					b.Fatal("the signature does not verify")
				}
			}
		}
	}
	message, signature := a.raw[:600], ed25519.Sign(a.key.Private, a.raw[:600])
	reportLimit(b, "ed25519", func() { ed25519.Verify(public, message, signature) })
}
