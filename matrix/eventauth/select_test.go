package eventauth

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// spec: server-server-api#auth-events-selection
func TestSelect(t *testing.T) {
	user := func(id string) matrix.StateKey { return matrix.StateKey{Type: typeMember, Key: id} }
	token := matrix.StateKey{Type: typeThirdPartyInvite, Key: "t\n"}
	rules := matrix.StateKey{Type: typeJoinRules}
	for _, tt := range []struct {
		name string
		spec spec
		want []matrix.StateKey // beside create, power levels and bob, the sender
		in   func(*roomversion.Version) bool
	}{
		{"message", message(bob, "m.room.message"), nil, nil},
		{"message with a membership", spec{sender: bob, kind: "m.x", stateKey: carol, content: `{"membership":"join"}`}, nil, nil},
		{"power levels", powerLevels(bob, `{}`), nil, nil},
		{"join", member(bob, bob, "join"), []matrix.StateKey{rules}, nil},
		{"join of another", member(bob, carol, "join"), []matrix.StateKey{user(carol), rules}, nil},
		{"knock", member(bob, bob, "knock"), []matrix.StateKey{rules}, nil},
		{"leave", member(bob, bob, "leave"), nil, nil},
		{"kick", member(bob, carol, "leave"), []matrix.StateKey{user(carol)}, nil},
		{"ban", member(bob, carol, "ban"), []matrix.StateKey{user(carol)}, nil},
		{"invite", member(bob, dave, "invite"), []matrix.StateKey{user(dave), rules}, nil},
		{"no state", spec{sender: bob, kind: typeMember, stateKey: "-", content: `{"membership":"join"}`}, nil, nil},
		{"third-party invite", content(member(bob, dave, "invite"), `{"membership":"invite","third_party_invite":{"signed":{"token":"t\n"}}}`),
			[]matrix.StateKey{user(dave), rules, token}, nil},
		{"third-party invite without token", content(member(bob, dave, "invite"), `{"membership":"invite","third_party_invite":{"signed":{"token":5}}}`),
			[]matrix.StateKey{user(dave), rules}, nil},
		{"third-party invite of a wrong type", content(member(bob, dave, "invite"), `{"membership":"invite","third_party_invite":["signed"]}`),
			[]matrix.StateKey{user(dave), rules}, nil},
		{"third-party invite of a join", content(member(bob, bob, "join"), `{"membership":"join","third_party_invite":{"signed":{"token":"t\n"}}}`),
			[]matrix.StateKey{rules}, nil},
		{"restricted join", content(member(bob, bob, "join"), `{"join_authorised_via_users_server":"@carol:c","membership":"join"}`),
			[]matrix.StateKey{rules, user(carol)}, restricted},
		{"restricted join by oneself", content(member(bob, bob, "join"), `{"join_authorised_via_users_server":"@bob:b","membership":"join"}`),
			[]matrix.StateKey{rules}, restricted},
		{"restricted join, not yet", content(member(bob, bob, "join"), `{"join_authorised_via_users_server":"@carol:c","membership":"join"}`),
			[]matrix.StateKey{rules}, not(restricted)},
		{"restricted leave", content(member(bob, bob, "leave"), `{"join_authorised_via_users_server":"@carol:c","membership":"leave"}`),
			nil, nil},
	} {
		for _, id := range roomversion.Supported() {
			r := newRoom(t, id)
			if tt.in != nil && !tt.in(r.v) {
				continue
			}
			want := []matrix.StateKey{{Type: typePowerLevels}, user(bob)}
			if !r.v.RoomIDIsCreateHash {
				want = append([]matrix.StateKey{{Type: typeCreate}}, want...)
			}
			want = append(want, tt.want...)
			if diff := cmp.Diff(want, SelectFor(r.make(tt.spec))); diff != "" {
				t.Errorf("v%s %s: -want +got\n%s", id, tt.name, diff)
			}
		}
	}
	if got := SelectFor(newRoom(t, "11").create); len(got) != 0 {
		t.Errorf("a create event has auth events: %v", got)
	}
}
