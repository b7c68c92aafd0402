package rooms_test

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/policyserver"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
	"hanok/rooms"
)

var errSpam = matrix.Errorf(400, "M_FORBIDDEN", "The message appears to contain possible spam")

// policedRoom is a room of three servers, the third of which is its policy server: it recommends everything but spam.
func policedRoom(t *testing.T) (n *network, a, b *server, room matrix.RoomID, sign func(pdu []byte) []byte) {
	n, a, b, room = twoServers(t)
	p := n.server("p.example")
	p.join(p.user("bot"), room, a)
	n.settle()
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	sign = func(pdu []byte) []byte {
		ev, err := event.Parse(versionOf(t, a, room), pdu)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := ev.Sign("p.example", signing.Key{ID: policyserver.KeyID, Private: key.Private})
		if err != nil {
			t.Fatal(err)
		}
		_, signature, _ := signed.SignatureCheck("p.example", policyserver.KeyID)
		return signature
	}
	n.recommend = func(_ matrix.ServerName, pdu []byte) ([]byte, error) {
		if strings.Contains(string(pdu), "spam") {
			return nil, errSpam
		}
		return sign(pdu), nil
	}
	a.set(a.user("alice"), room, policyserver.EventType, "", fmt.Sprintf(`{"via":"p.example","public_keys":{"ed25519":%q}}`, signing.EncodeBase64(key.Public())))
	n.settle()
	return n, a, b, room, sign
}

func versionOf(t *testing.T, s *server, room matrix.RoomID) *roomversion.Version {
	t.Helper()
	snapshot, err := s.Snapshot(ctx, room)
	if err != nil {
		t.Fatal(err)
	}
	return snapshot.Version
}

func sendText(s *server, user matrix.UserID, room matrix.RoomID, text, txn string) (matrix.EventID, error) {
	return s.Send(ctx, rooms.SendRequest{
		Room: room, Sender: user, Type: "m.room.message", Content: []byte(`{"msgtype":"m.text","body":"` + text + `"}`), Device: "D", TxnID: txn,
	})
}

// spec: server-server-api#validating-policy-server-signatures
func TestPolicyServerOfLocalEvents(t *testing.T) {
	n, a, b, room, _ := policedRoom(t)
	alice, bob := a.user("alice"), b.user("bob")
	if asked := n.count("a.example policy") + n.count("b.example policy"); asked != 0 {
		t.Errorf("the policy server was asked %d times about its own appointment", asked)
	}
	id, err := sendText(a, alice, room, "hello", "1")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := sendText(a, alice, room, "hello", "1"); again != id || err != nil {
		t.Errorf("the repeated request gave %s %v", again, err)
	}
	if _, err := sendText(b, bob, room, "some spam", ""); !matrix.HasCode(err, "M_FORBIDDEN") || err.Error() != errSpam.Error() {
		t.Errorf("what the policy server says: %v", err)
	}
	if _, err := a.Ban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: "@x:x.example", Reason: "spam"}); !matrix.HasCode(err, "M_FORBIDDEN") {
		t.Errorf("a state event: %v", err)
	}
	target := a.say(alice, room, "a mistake")
	n.settle()
	if _, err := a.Redact(ctx, rooms.SendRequest{Room: room, Sender: alice, Redacts: target}, ""); err != nil {
		t.Fatal(err)
	}
	n.settle()
	for _, s := range []*server{a, b} {
		if diff := cmp.Diff([]string{"hello", ""}, s.texts(s.user(map[*server]string{a: "alice", b: "bob"}[s]), room)); diff != "" {
			t.Error(s.name, diff)
		}
		ev, err := s.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Contains(ev.SignatureKeyIDs("p.example"), policyserver.KeyID) {
			t.Errorf("%s has the event without the signature", s.name)
		}
	}
	if asked := n.count("b.example policy"); asked != 1 {
		t.Errorf("b asked %d times: the signature of a's events came with them", asked)
	}
	// Without an answer nothing is sent, but the policy server can be dismissed.
	n.split(a, n.servers["p.example"], true)
	if _, err := sendText(a, alice, room, "late", ""); err == nil {
		t.Error("an event was sent although the policy server does not answer")
	}
	a.set(alice, room, policyserver.EventType, "", `{}`)
	a.say(alice, room, "free")
	n.settle()
	if texts := b.texts(bob, room); texts[len(texts)-1] != "free" {
		t.Error(texts)
	}
}

// A room whose policy server has nobody in it uses none.
func TestPolicyServerThatIsNotInTheRoom(t *testing.T) {
	n, a, b, room, _ := policedRoom(t)
	p := n.servers["p.example"]
	p.must(p.Leave(ctx, rooms.MemberRequest{Room: room, Sender: p.user("bot")}))
	n.settle()
	b.must(sendText(b, b.user("bob"), room, "spam at last", ""))
	n.settle()
	if diff := cmp.Diff([]string{"spam at last"}, a.texts(a.user("alice"), room)); diff != "" {
		t.Error(diff)
	}
}

// Events of servers that did not ask: we ask for them, and hide what is not recommended.
func TestPolicyServerOfReceivedEvents(t *testing.T) {
	n, a, b, room, sign := policedRoom(t)
	alice, bob := a.user("alice"), b.user("bob")
	honest := n.recommend
	// b takes the word of a policy server of its own for that of the room's.
	send := func(text string, signature func(pdu []byte) ([]byte, error)) *rooms.Event {
		t.Helper()
		n.recommend = func(_ matrix.ServerName, pdu []byte) ([]byte, error) { return signature(pdu) }
		id, err := sendText(b, bob, room, text, "")
		if err != nil {
			t.Fatal(err)
		}
		n.recommend = honest
		ev, err := b.Event(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return ev
	}
	approved := func(pdu []byte) ([]byte, error) { return sign(pdu), nil }
	fine, spam := send("fine", approved), send("spam", approved)
	b.mu.Lock()
	b.outbox = nil
	b.mu.Unlock()
	bare := func(ev *rooms.Event, signature []byte) []byte {
		t.Helper()
		forged, err := ev.WithSignature("p.example", policyserver.KeyID, signature)
		if err != nil {
			t.Fatal(err)
		}
		return forged.JSON()
	}
	wrong := make([]byte, ed25519.SignatureSize)
	for _, r := range a.Receive(ctx, b.name, room, [][]byte{bare(fine, wrong), bare(spam, wrong)}) {
		if r.Err != nil {
			t.Errorf("%s: %v", r.ID, r.Err)
		}
	}
	if diff := cmp.Diff([]string{"fine"}, a.texts(alice, room)); diff != "" {
		t.Error(diff)
	}
	for ev, hidden := range map[*rooms.Event]bool{fine: false, spam: true} {
		got, err := a.Event(ctx, ev.ID())
		if err != nil || got.SoftFailed != hidden {
			t.Errorf("%s: soft-failed %t, not %t: %v", ev.ID(), got.SoftFailed, hidden, err)
		}
	}
	if asked := n.count("a.example policy"); asked != 2 {
		t.Errorf("a asked %d times, not twice", asked)
	}
	// A guest that the policy server does not want is told so.
	c := n.server("c.example")
	n.recommend = func(matrix.ServerName, []byte) ([]byte, error) { return nil, errSpam }
	if _, err := c.Join(ctx, rooms.MemberRequest{Room: room, Sender: c.user("carol"), Via: []matrix.ServerName{"a.example"}}); err == nil || !strings.Contains(err.Error(), errSpam.Message) {
		t.Errorf("a join that is not recommended: %v", err)
	}
	n.recommend = honest
	c.join(c.user("carol"), room, a)
}

// What was erased by somebody who may not speak any more is still there.
func TestSoftFailedRedactionErasesNothing(t *testing.T) {
	n, a, b, room := twoServers(t)
	alice, bob := a.user("alice"), b.user("bob")
	a.set(alice, room, "m.room.power_levels", "", fmt.Sprintf(`{"users":{%q:100,%q:50}}`, alice, bob))
	id := a.say(alice, room, "evidence")
	n.settle()
	n.split(a, b, true)
	b.must(b.Redact(ctx, rooms.SendRequest{Room: room, Sender: bob, Redacts: id}, ""))
	b.mu.Lock()
	redaction := b.outbox[len(b.outbox)-1]
	b.outbox = nil
	b.mu.Unlock()
	a.must(a.Ban(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: bob}))
	for _, r := range a.Receive(ctx, b.name, room, [][]byte{redaction.JSON()}) {
		if r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if diff := cmp.Diff([]string{"evidence"}, a.texts(alice, room)); diff != "" {
		t.Error(diff)
	}
}

// The signatures of other servers do not make an event of ours larger than others take: Synapse counts in the 14 bytes of an empty "unsigned". What would become
// too large is refused before anybody is asked to sign it.
// spec: client-server-api#size-limits
func TestSizeWithSignaturesOfOthers(t *testing.T) {
	n, a, b, room, _ := policedRoom(t)
	alice, carol := a.user("alice"), b.user("carol")
	const most = event.MaxSize - len(`,"unsigned":{}`)
	for what, send := range map[string]func(long string) (matrix.EventID, error){
		"message": func(long string) (matrix.EventID, error) { return sendText(a, alice, room, long, "") },
		"invite": func(long string) (matrix.EventID, error) {
			return a.Invite(ctx, rooms.MemberRequest{Room: room, Sender: alice, Target: carol, Reason: long})
		},
	} {
		asked := func() int { return n.count("a.example policy") + n.count("a.example invite") }
		taken, refused := 0, 0
		for length := 64_000; length < 65_400; length += 12 {
			before := asked()
			id, err := send(strings.Repeat("x", length))
			if err != nil {
				if refused++; !matrix.HasCode(err, "M_TOO_LARGE") || asked() != before {
					t.Fatalf("a %s of %d bytes: %v, and others were asked %d times", what, length, err, asked()-before)
				}
				continue
			}
			taken++
			ev, err := a.Event(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			if size := len(ev.JSON()); size > most {
				t.Fatalf("a %s of %d bytes has %d when it is signed", what, length, size)
			}
		}
		if taken == 0 || refused == 0 {
			t.Errorf("of the %ss %d were taken and %d refused", what, taken, refused)
		}
	}
}
