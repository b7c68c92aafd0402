package event

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// benchEvent is an encrypted message of 1.2 kB with its signature, as most events are.
func benchEvent(b *testing.B) *Event {
	b.Helper()
	v := version(b, roomversion.Default)
	roomID, parent, auth := room(v)
	e := build(b, v, Proto{
		RoomID: roomID, Sender: "@alice:one.example", Type: "m.room.encrypted",
		Content: []byte(fmt.Sprintf(`{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"%s","device_id":"ABCDEFGHIJ",`+
			`"sender_key":"GGg9yyvzWLJGMCEEkmrYYnUVd9DFRZnR1Tv4FgXJTVw","session_id":"J5Vza9Jrc3nLYXGVqVmGmaDJLG7SUdr6bSiRN8uFZXs"}`,
			strings.Repeat("AwgAEpAB", 58))),
		PrevEvents: []matrix.EventID{parent}, AuthEvents: []matrix.EventID{auth, parent},
		Depth: 1234, OriginServerTS: 1763900000000,
	})
	signed, err := e.Sign("one.example", specKey(b))
	if err != nil {
		b.Fatal(err)
	}
	return signed
}

func BenchmarkParse(b *testing.B) {
	e := benchEvent(b)
	raw := e.JSON()
	b.SetBytes(int64(len(raw)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(e.Version(), raw); err != nil {
			b.Fatal(err)
		}
	}
}

// The part of BenchmarkParse that no implementation can save: two hashes.
func BenchmarkHashOnly(b *testing.B) {
	raw := benchEvent(b).JSON()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		sha256.Sum256(raw)
		sha256.Sum256(raw[:len(raw)/2])
	}
}

func BenchmarkFromStored(b *testing.B) {
	e := benchEvent(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromStored(e.Version(), e.ID(), e.JSON()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppendClient(b *testing.B) {
	e := benchEvent(b)
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = e.AppendClient(dst[:0], ClientOptions{OmitRoomID: true, Now: 1763900001000, Membership: "join"})
	}
}

func BenchmarkBuild(b *testing.B) {
	e := benchEvent(b)
	p := Proto{
		RoomID: e.RoomID(), Sender: e.Sender(), Type: e.Type(), Content: e.Content(), PrevEvents: e.PrevEvents(),
		AuthEvents: e.AuthEvents(), Depth: e.Depth(), OriginServerTS: e.OriginServerTS(),
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(e.Version(), p, "one.example"); err != nil {
			b.Fatal(err)
		}
	}
}
