package eventauth

import (
	"errors"
	"strings"
	"testing"

	"hanok/matrix/roomversion"
)

// State that belongs to whose ID its key begins with. alice is above bob, carol beside nobody.
func TestOwnedState(t *testing.T) {
	for _, id := range roomversion.Experimental() {
		r := newRoom(t, id)
		if !r.v.OwnedState {
			continue
		}
		long := strings.Repeat("x", 255)
		for _, tt := range []struct {
			sender, key string
			want        string // "", forbidden or malformed
		}{
			{bob, bob, ""},
			{bob, bob + "_device", ""},
			{bob, bob + "_", ""},
			{bob, bob + "_" + long, ""},
			{bob, bob + "_x" + long, "malformed"},
			{bob, "free", ""},
			{bob, long, ""},
			{bob, long + "x", "malformed"},
			{alice, bob + "_device", ""},
			{alice, "@nobody:elsewhere_x", ""},
			{carol, bob + "_device", "forbidden"},
			{carol, hugo, "forbidden"}, // as high as the sender
			{carol, carol + "device", "forbidden"},
			{carol, carol + ".evil.example_device", "forbidden"},
			{bob, alice + "_" + bob, "forbidden"},
			{alice, "@oops", "malformed"},
			{alice, "@", "malformed"},
			{alice, alice + "@x_device", "malformed"},
		} {
			err := Check(r.make(spec{sender: tt.sender, kind: "org.example", stateKey: tt.key}), r.state)
			got := ""
			var rejection *Rejection
			if errors.As(err, &rejection) {
				got = "forbidden"
				if rejection.Malformed {
					got = "malformed"
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if got != tt.want {
				t.Errorf("%s: %s sends state with key %.60q: %q, want %q (%v)", id, tt.sender, tt.key, got, tt.want, err)
			}
		}
	}
}
